//! Names of JSON members whose string value is a secret.
//!
//! Names are compared without regard to case, `-`, `_` and a leading `x-`. Values that are no strings, and empty ones,
//! are kept. A name that is also used for harmless values (`token` of a parser, `secret` of a story) hides only a value
//! that looks like a credential.

use super::shapes::looks_random;

/// Names that hide any text.
const ALWAYS: [&str; 15] = [
    "accesstoken",
    "apikey",
    "apitoken",
    "authorization",
    "authtoken",
    "bearertoken",
    "clientsecret",
    "password",
    "passwd",
    "passphrase",
    "privatekey",
    "proxyauthorization",
    "refreshtoken",
    "secretaccesskey",
    "secretkey",
];
/// Names that hide a text that looks like a credential.
const IF_RANDOM: [&str; 7] = ["accesskey", "cookie", "idtoken", "secret", "sessiontoken", "setcookie", "token"];
/// Values of [`ALWAYS`] that name a type or a place instead of a secret.
const PLACEHOLDERS: [&str; 6] = ["string", "null", "none", "true", "false", "required"];
/// Bytes of the shortest value of [`IF_RANDOM`] that is a credential.
const SHORTEST: usize = 8;

/// True if the text of a member is a secret because of the member's name.
pub(super) fn hides(name: &str, value: &str) -> bool {
    // The longest name of the lists, with separators.
    if value.is_empty() || name.len() > 32 {
        return false;
    }
    let plain: String =
        name.chars().filter(|it| !matches!(it, '-' | '_')).map(|it| it.to_ascii_lowercase()).collect();
    let plain = plain.strip_prefix('x').filter(|rest| ALWAYS.contains(rest)).unwrap_or(&plain);
    if ALWAYS.contains(&plain) {
        return !PLACEHOLDERS.contains(&value.to_ascii_lowercase().as_str()) && !is_reference(value);
    }
    IF_RANDOM.contains(&plain) && value.len() >= SHORTEST && looks_random(value) && !is_reference(value)
}

/// True for the name of a variable instead of a value: `$API_KEY`, `${API_KEY}`, `{{ key }}`, `<your key>`.
fn is_reference(value: &str) -> bool {
    value.starts_with(['$', '<', '{', '%'])
}
