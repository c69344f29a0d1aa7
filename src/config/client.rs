//! The server that the command line calls.

use secrecy::SecretString;

use super::{
    environment::Environment,
    error::{ConfigError, Origin},
};

/// Default address of `serve`.
pub(crate) const DEFAULT_URL: &str = "http://127.0.0.1:8080";
/// Address of the server, unless `--server` is given.
pub(crate) const URL_VARIABLE: &str = "LUMILINK_URL";
/// Token, unless `--token` is given. Other users of the machine can read flags, but not this.
pub(crate) const TOKEN_VARIABLE: &str = "LUMILINK_TOKEN";

/// Address and token of a server.
#[derive(Debug, Clone)]
pub(crate) struct ClientSettings {
    /// Base URL, http or https.
    pub url: url::Url,
    pub token: Option<SecretString>,
}

impl ClientSettings {
    /// Uses the flags, else the environment, else the default.
    ///
    /// # Errors
    /// The address is not an http or https URL with a host.
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
