//! The token that clients of the API must send.

use secrecy::{ExposeSecret, SecretString};

use super::AppError;
use crate::{
    config::{Loaded, sections::ClientToken},
    domain::redaction::known,
    process::local_server,
};

/// The token as configured, else that of the data folder, which is made at the first start. `None`: no token is required.
/// Its value is redacted from now on.
///
/// # Errors
/// The file of the data folder cannot be used.
pub(super) fn client_token(loaded: &Loaded) -> Result<Option<SecretString>, AppError> {
    let token = match loaded.config.server.client_token() {
        ClientToken::None => return Ok(None),
        ClientToken::Configured(token) => token.clone(),
        ClientToken::OfDataFolder => {
            let what = format!("token file {}", local_server::token_path(&loaded.data_dir).display());
            local_server::token(&loaded.data_dir).map_err(AppError::io(what))?
        }
    };
    known::hide([token.expose_secret().to_owned()]);
    Ok(Some(token))
}

/// Where clients find their token, for people.
pub(super) fn client_token_place(loaded: &Loaded) -> String {
    match loaded.config.server.client_token() {
        ClientToken::None => "none is required".into(),
        ClientToken::Configured(_) => "server.token".into(),
        ClientToken::OfDataFolder => local_server::token_path(&loaded.data_dir).display().to_string(),
    }
}
