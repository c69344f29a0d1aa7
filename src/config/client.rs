//! Where our own command line finds a server.

use secrecy::SecretString;

use super::{
    environment::Environment,
    error::{ConfigError, Origin},
};

/// What `serve` listens on by default.
pub(crate) const DEFAULT_URL: &str = "http://127.0.0.1:8080";
/// Names the server where no flag does.
pub(crate) const URL_VARIABLE: &str = "LUMILINK_URL";
/// Holds the token where no flag does; better than the flag, which other users of the machine can read.
pub(crate) const TOKEN_VARIABLE: &str = "LUMILINK_TOKEN";

/// A server, and how to be let in.
#[derive(Debug, Clone)]
pub(crate) struct ClientSettings {
    /// Base address, http or https.
    pub url: url::Url,
    /// Bearer token.
    pub token: Option<SecretString>,
}

impl ClientSettings {
    /// Takes the flags, else the environment, else the default.
    ///
    /// # Errors
    /// Where the address is not an http or https URL with a host.
    pub(crate) fn resolve(
        url: Option<&str>,
        token: Option<SecretString>,
        environment: &Environment,
    ) -> Result<Self, ConfigError> {
        let (text, origin) = match (url, environment.get(URL_VARIABLE)) {
            (Some(flag), _) => (flag, Origin::Flag("--server".into())),
            (None, Some(variable)) => (variable, Origin::Environment(URL_VARIABLE.into())),
            (None, None) => (DEFAULT_URL, Origin::Default),
        };
        let what = "must be an http or https address such as http://127.0.0.1:8080, without user or password";
        let url = url::Url::parse(text)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host() && url.username().is_empty())
            .filter(|url| url.password().is_none())
            .ok_or_else(|| ConfigError::new("server address", origin, what))?;
        let token = token.or_else(|| environment.get(TOKEN_VARIABLE).map(SecretString::from));
        Ok(Self { url, token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_beats_the_environment_which_beats_the_default() {
        let environment: Environment = [(URL_VARIABLE, "http://env:1"), (TOKEN_VARIABLE, "t")].into_iter().collect();
        let url = |flag, environment| ClientSettings::resolve(flag, None, environment).unwrap().url.to_string();
        assert_eq!(url(Some("https://flag"), &environment), "https://flag/");
        assert_eq!(url(None, &environment), "http://env:1/");
        assert_eq!(url(None, &Environment::default()), "http://127.0.0.1:8080/");
        assert!(ClientSettings::resolve(None, None, &environment).unwrap().token.is_some());
        for bad in ["ftp://x", "host:80", "", "http://u:p@host"] {
            let error = ClientSettings::resolve(Some(bad), None, &environment).unwrap_err();
            assert!(error.to_string().contains("flag --server"), "{bad}: {error}");
        }
    }
}
