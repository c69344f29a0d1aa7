//! Which parts of an environment variable are secrets: everything but what is known to be harmless.

use url::Url;

use super::known::is_credential;

/// The shortest value that is a secret whatever its name says, in bytes. Shorter ones are words and numbers.
const SHORTEST: usize = 12;
/// Variables of places, names and habits.
const HARMLESS: [&str; 24] = [
    "COLORTERM",
    "DISPLAY",
    "EDITOR",
    "HOME",
    "HOSTNAME",
    "LANG",
    "LANGUAGE",
    "LOGNAME",
    "NO_PROXY",
    "OLDPWD",
    "PAGER",
    "PATH",
    "PWD",
    "RUST_LOG",
    "SHELL",
    "SHLVL",
    "TEMP",
    "TERM",
    "TMP",
    "TMPDIR",
    "TZ",
    "USER",
    "VISUAL",
    "_",
];
/// Starts of such names.
const HARMLESS_STARTS: [&str; 2] = ["LC_", "XDG_"];
/// Last words of such names. A model is named in every answer.
const HARMLESS_ENDS: [&str; 14] = [
    "DIR", "EMAIL", "FILE", "FOLDER", "HOME", "HOST", "LOCALE", "MODEL", "NAME", "PATH", "REGION", "ROOT", "SOCK",
    "USER",
];
/// Characters of the shortest random part of a URL's path.
const RANDOM_SEGMENT: usize = 20;

/// The texts of a variable that must be redacted wherever they occur.
pub(crate) fn secrets_of(variable: &str, value: &str) -> Vec<String> {
    if is_credential(variable) {
        return vec![value.to_owned()];
    }
    if value.contains("://") {
        return secrets_of_url(value);
    }
    let is_secret = value.len() >= SHORTEST && !is_harmless(variable) && !is_path(value);
    is_secret.then(|| value.to_owned()).into_iter().collect()
}

/// The credentials in a URL, as they are written there and decoded: user and password, values of the query, the fragment, and
/// random parts of the path.
pub(crate) fn secrets_of_url(text: &str) -> Vec<String> {
    let Ok(url) = Url::parse(text) else { return Vec::new() };
    let mut found = Vec::new();
    let mut add = |written: &str, least: usize| {
        let decoded = percent_decoded(written);
        if written.len() >= least {
            found.push(written.to_owned());
        }
        if decoded.len() >= least && decoded != written {
            found.push(decoded);
        }
    };
    match url.password() {
        Some(password) => add(password, 1),
        // A token without a password.
        None => add(url.username(), SHORTEST),
    }
    let parameters = url.query().into_iter().chain(url.fragment()).flat_map(|part| part.split(['&', ';']));
    for parameter in parameters {
        add(parameter.split_once('=').map_or(parameter, |(_, value)| value), SHORTEST);
    }
    let has = |text: &str, is: fn(&u8) -> bool| text.bytes().any(|byte| is(&byte));
    for segment in url.path_segments().into_iter().flatten() {
        if has(segment, u8::is_ascii_digit) && has(segment, u8::is_ascii_alphabetic) {
            add(segment, RANDOM_SEGMENT);
        }
    }
    found
}

/// Decodes `%XX`; other text, and what is no UTF-8, stays as it is.
fn percent_decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((byte, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let decoded = digits.filter(|_| *byte == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(decoded.unwrap_or(*byte));
        rest = if decoded.is_some() { &after[2..] } else { after };
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

fn is_harmless(variable: &str) -> bool {
    let name = variable.to_ascii_uppercase();
    let last = name.rsplit('_').next().unwrap_or_default();
    HARMLESS.contains(&name.as_str())
        || HARMLESS_STARTS.iter().any(|start| name.starts_with(start))
        || HARMLESS_ENDS.contains(&last)
}

/// True for an absolute path of several parts, none of which is long enough for a secret. Secrets in base64 may contain
/// slashes.
fn is_path(value: &str) -> bool {
    let parts = value.split('/').filter(|part| !part.is_empty());
    value.starts_with('/') && parts.clone().count() > 1 && parts.into_iter().all(|part| part.len() < RANDOM_SEGMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_variables_are_found_whatever_their_names() {
        for (name, value, secrets) in [
            ("MY_SERVICE_KEY", "12345678", vec!["12345678"]),
            ("CANARY", "no-shape-at-all", vec!["no-shape-at-all"]),
            ("CANARY", "short", vec![]),
            ("HOME", "/home/somebody", vec![]),
            ("GOPATH", "a-place-to-work-in", vec!["a-place-to-work-in"]),
            ("MY_TOOL_PATH", "a-place-to-work-in", vec![]),
            ("ANTHROPIC_MODEL", "claude-sonnet-4-5", vec![]),
            ("LC_ALL", "en_GB.UTF-8.extra", vec![]),
            ("CACHE", "/var/cache/tools", vec![]),
            ("PASS", "/9jk4AAQSkZJRgABAQAAAQABAAD/2wBD", vec!["/9jk4AAQSkZJRgABAQAAAQABAAD/2wBD"]),
            ("API_BASE", "https://api.example.com/v1/models", vec![]),
            ("HTTPS_PROXY", "http://user:p%40ss@proxy:3128", vec!["p%40ss", "p@ss"]),
            ("SENTRY_DSN", "https://0123456789abcdef@sentry.io/1", vec!["0123456789abcdef"]),
            ("HOOK", "https://hooks.example.com/T00/a1b2c3d4e5f6g7h8i9j0k1", vec!["a1b2c3d4e5f6g7h8i9j0k1"]),
            ("FEED", "https://example.com/?a=1&sig=0123456789ab", vec!["0123456789ab"]),
        ] {
            assert_eq!(secrets_of(name, value), secrets, "{name}={value}");
        }
    }
}
