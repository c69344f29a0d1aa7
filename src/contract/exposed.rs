//! Writes secrets into bodies for the runtime.

use secrecy::{ExposeSecret, SecretString};
use serde::Serializer;

/// Writes a secret into a body for the runtime.
///
/// # Errors
/// None of its own.
pub(crate) fn expose<S: Serializer>(secret: &SecretString, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(secret.expose_secret())
}

/// As [`expose`], or `null`.
///
/// # Errors
/// None of its own.
pub(crate) fn expose_optional<S: Serializer>(secret: &Option<SecretString>, to: S) -> Result<S::Ok, S::Error> {
    match secret {
        Some(secret) => expose(secret, to),
        None => to.serialize_none(),
    }
}
