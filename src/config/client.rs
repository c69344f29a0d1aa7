//! The server that the command line calls.

use std::path::Path;

use secrecy::SecretString;

use super::{
    environment::Environment,
    error::{ConfigError, Origin},
    secret_file,
};

/// Default address of `serve`.
pub(crate) const DEFAULT_URL: &str = "http://127.0.0.1:8080";
/// Address of the server, unless `--server` is given.
pub(crate) const URL_VARIABLE: &str = "LUMILINK_URL";
/// Token, unless `--token` is given. Other users of the machine can read flags, but not this.
pub(crate) const TOKEN_VARIABLE: &str = "LUMILINK_TOKEN";

/// A file with the token, in place of [`TOKEN_VARIABLE`].
pub(crate) const TOKEN_FILE_VARIABLE: &str = "LUMILINK_TOKEN_FILE";

/// Address and token of a server.
#[derive(Debug, Clone)]
pub(crate) struct ClientSettings {
    /// Base URL, http or https.
    pub url: url::Url,
    pub token: Option<SecretString>,
}

impl ClientSettings {
    /// Uses the flags, else the environment, else `local`: the running server of the data folder. Its token is used for its
    /// address alone. Else the default address.
    ///
    /// # Errors
    /// The address is not an http or https URL with a host, or the environment gives the token twice or in a file that
    /// cannot be read.
    pub(crate) fn resolve(
        url: Option<&str>,
        token: Option<SecretString>,
        environment: &Environment,
        local: Option<Self>,
    ) -> Result<Self, ConfigError> {
        let (text, origin) = match (url, environment.get(URL_VARIABLE)) {
            (Some(flag), _) => (flag, Origin::Flag("--server".into())),
            (None, Some(variable)) => (variable, Origin::Environment(URL_VARIABLE.into())),
            (None, None) => (local.as_ref().map_or(DEFAULT_URL, |local| local.url.as_str()), Origin::Default),
        };
        let what = "must be an http or https address such as http://127.0.0.1:8080, without user or password";
        let url = url::Url::parse(text)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host() && url.username().is_empty())
            .filter(|url| url.password().is_none())
            .ok_or_else(|| ConfigError::new("server address", origin, what))?;
        let token = match token {
            Some(flag) => Some(flag),
            None => token_of(environment)?,
        };
        let of_local = local.filter(|local| local.url.origin() == url.origin()).and_then(|local| local.token);
        Ok(Self { url, token: token.or(of_local) })
    }
}

fn token_of(environment: &Environment) -> Result<Option<SecretString>, ConfigError> {
    let (token, file) = (environment.get(TOKEN_VARIABLE), environment.get(TOKEN_FILE_VARIABLE));
    let bad = |what| ConfigError::new("token", Origin::Environment(TOKEN_FILE_VARIABLE.into()), what);
    match (token, file) {
        (Some(_), Some(_)) => Err(bad(format!("is set by {TOKEN_VARIABLE} too; set only one of them"))),
        (None, Some(file)) => secret_file::read(Path::new(file)).map(Some).map_err(bad),
        (token, None) => Ok(token.map(SecretString::from)),
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn token_is_read_from_the_file_that_the_environment_names() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let file = file.to_str().unwrap();
        let resolve = |variables: &[(&str, &str)]| {
            ClientSettings::resolve(None, None, &variables.iter().copied().collect::<Environment>(), None)
        };
        let missing = resolve(&[(TOKEN_FILE_VARIABLE, file)]).unwrap_err().to_string();
        assert!(missing.contains(TOKEN_FILE_VARIABLE) && missing.contains(file), "{missing}");
        std::fs::write(file, "from-file\n").unwrap();
        let token = resolve(&[(TOKEN_FILE_VARIABLE, file)]).unwrap().token.unwrap();
        assert_eq!(token.expose_secret(), "from-file");
        let twice = resolve(&[(TOKEN_FILE_VARIABLE, file), (TOKEN_VARIABLE, "t")]).unwrap_err().to_string();
        assert!(twice.contains("only one"), "{twice}");
    }

    #[test]
    fn token_of_the_local_server_is_sent_to_its_address_alone() {
        let local = || {
            let url = "http://127.0.0.1:8123".parse().unwrap();
            Some(ClientSettings { url, token: Some(SecretString::from("local")) })
        };
        let resolve = |url, variables: &[(&str, &str)]| {
            let environment = variables.iter().copied().collect();
            let settings = ClientSettings::resolve(url, None, &environment, local()).unwrap();
            (settings.url.to_string(), settings.token.map(|token| token.expose_secret().to_owned()))
        };
        let address = "http://127.0.0.1:8123/".to_owned();
        assert_eq!(resolve(None, &[]), (address.clone(), Some("local".into())));
        assert_eq!(resolve(Some("http://127.0.0.1:8123"), &[]), (address.clone(), Some("local".into())));
        assert_eq!(resolve(None, &[(TOKEN_VARIABLE, "given")]), (address, Some("given".into())));
        for other in ["http://127.0.0.1:8124", "https://127.0.0.1:8123", "http://127.0.0.2:8123"] {
            assert_eq!(resolve(Some(other), &[]).1, None, "{other}");
            assert_eq!(resolve(None, &[(URL_VARIABLE, other)]).1, None, "{other}");
        }
    }

    #[test]
    fn a_flag_beats_the_environment_which_beats_the_default() {
        let environment: Environment = [(URL_VARIABLE, "http://env:1"), (TOKEN_VARIABLE, "t")].into_iter().collect();
        let url = |flag, environment| ClientSettings::resolve(flag, None, environment, None).unwrap().url.to_string();
        assert_eq!(url(Some("https://flag"), &environment), "https://flag/");
        assert_eq!(url(None, &environment), "http://env:1/");
        assert_eq!(url(None, &Environment::default()), "http://127.0.0.1:8080/");
        assert!(ClientSettings::resolve(None, None, &environment, None).unwrap().token.is_some());
        for bad in ["ftp://x", "host:80", "", "http://u:p@host"] {
            let error = ClientSettings::resolve(Some(bad), None, &environment, None).unwrap_err();
            assert!(error.to_string().contains("flag --server"), "{bad}: {error}");
        }
    }
}
