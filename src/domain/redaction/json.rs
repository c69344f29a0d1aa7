//! Redaction of JSON, string by string, without a change of anything else.

use std::{borrow::Cow, sync::LazyLock};

use regex::Regex;

use super::{REDACTED, known, names, shapes};

/// Text of a document that may hold a secret: the literals of every shape, an escape that may hide one, and a member
/// with the name of a credential. Documents without a match are not read further.
static CANDIDATE: LazyLock<Regex> = LazyLock::new(|| {
    let parts = [
        r"gh[pousr]_|github_pat_|glpat-|sk-|[sr]k_live_|[sr]k_test_|whsec_|AKIA|ASIA|AIza|ya29\.|GOCSPX-|xox[abeoprs]-",
        r"xapp-|eyJ|npm_|pypi-|hf_|gsk_|xai-|pplx-|r8_|do[opr]_v1_|dckr_pat_|SG\.|[Bb]earer |BEARER |AGE-SECRET-KEY-1",
        r#"://[^/\s"]*[@\\]|PRIVATE KEY|(?i:authorization)|API_?KEY=|ACCESS_KEY=|SECRET_KEY=|_TOKEN=|_SECRET=|PASSWORD="#,
        r"[?&](?:access_token|refresh_token|client_secret|api_?key|token|password)=",
        r"\\u00[2-7]|\\/",
        r#"(?i:token|secret|passw[a-z]*|passphrase|key|cookie)"\s*:\s*""#,
    ];
    Regex::new(&parts.join("|")).unwrap_or_else(|cause| unreachable!("the parts are constants: {cause}"))
});

/// Redacts valid JSON.
pub(super) fn redact(json: &str) -> Cow<'_, str> {
    if !CANDIDATE.is_match(json) && !known::are_in(json) {
        return Cow::Borrowed(json);
    }
    redact_strings(json, |name, text| match name.is_some_and(|name| names::hides(name, text)) {
        true => Cow::Borrowed(REDACTED),
        false => shapes::redact(text),
    })
}

/// Redacts known values alone in valid JSON.
pub(super) fn redact_known(json: &str) -> Cow<'_, str> {
    // An escape that need not be one may hide a value.
    if !known::are_in(json) && !json.contains("\\u") && !json.contains("\\/") {
        return Cow::Borrowed(json);
    }
    redact_strings(json, |_, text| known::redact(Cow::Borrowed(text)))
}

/// Replaces each string by what `redact` makes of it and of the name of its member.
fn redact_strings(json: &str, redact: impl for<'a> Fn(Option<&str>, &'a str) -> Cow<'a, str>) -> Cow<'_, str> {
    let (mut out, mut copied, mut at) = (String::new(), 0, 0);
    // The member whose value comes next.
    let mut name: Option<Cow<'_, str>> = None;
    while let Some(start) = json[at..].find('"').map(|step| at + step) {
        let end = end_of_string(json, start);
        let text = decoded(&json[start + 1..end - 1]);
        let is_value = name.is_some() && json[at..start].trim_start().is_empty();
        let of_member = name.take().filter(|_| is_value);
        let shown = redact(of_member.as_deref(), &text);
        if shown != text {
            out.push_str(&json[copied..start]);
            out.push_str(&serde_json::Value::String(shown.into_owned()).to_string());
            copied = end;
        }
        at = end;
        let rest = json[end..].trim_start();
        if rest.starts_with(':') {
            at = json.len() - rest.len() + 1;
            name = Some(text);
        }
    }
    if copied == 0 {
        return Cow::Borrowed(json);
    }
    out.push_str(&json[copied..]);
    Cow::Owned(out)
}

/// The index behind the closing quote of the string that begins at `start`.
fn end_of_string(json: &str, start: usize) -> usize {
    let mut at = start + 1;
    while let Some(step) = json.get(at..).and_then(|rest| rest.find(['"', '\\'])) {
        at += step;
        if json.as_bytes()[at] == b'"' {
            return at + 1;
        }
        // An escape has one more character, which is ASCII in valid JSON and may be a quote.
        at += 2;
    }
    json.len()
}

/// The text of a string between its quotes. A half of a surrogate pair, which no text can hold, becomes U+FFFD.
fn decoded(inner: &str) -> Cow<'_, str> {
    if !inner.contains('\\') {
        return Cow::Borrowed(inner);
    }
    let mut text = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let escape = &rest[at..];
        let (character, length) = match escape.as_bytes().get(1) {
            Some(b'u') => unescaped(escape),
            Some(b'n') => ('\n', 2),
            Some(b't') => ('\t', 2),
            Some(b'r') => ('\r', 2),
            Some(b'b') => ('\u{8}', 2),
            Some(b'f') => ('\u{c}', 2),
            Some(other) if other.is_ascii() => (char::from(*other), 2),
            _ => ('\u{fffd}', 1),
        };
        text.push(character);
        rest = escape.get(length..).unwrap_or_default();
    }
    text.push_str(rest);
    Cow::Owned(text)
}

/// The character of the `\uXXXX` at the start of a text, or of a pair of them, and the length of the escape.
fn unescaped(escape: &str) -> (char, usize) {
    let unit = |at: usize| {
        let digits = escape.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    let units = [unit(0), unit(6)].map(|unit| unit.unwrap_or_default());
    match char::decode_utf16(units).next() {
        Some(Ok(character)) => (character, 6 * character.len_utf16()),
        _ => ('\u{fffd}', 6),
    }
}
