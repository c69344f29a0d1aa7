//! The header `Authorization`, as supervisor and runtime read it.

/// The token of a value `Bearer TOKEN`. The scheme is matched without regard to case (RFC 9110, 11.1).
pub(crate) fn bearer_token(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start_matches(' '))
}
