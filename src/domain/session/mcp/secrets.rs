//! Removes the secrets of an MCP server: each environment value and header, credentials in URLs and arguments, and every
//! text that the redaction recognises.
//!
//! Removing too much costs little: it takes effect only when the values in memory are lost, and is reported then.

use serde_json::{Map, Value, json};

use super::named;
use crate::domain::redaction::{REDACTED, Redacted, RedactedJson};

/// The members of the mark of a server under `_meta`: `lumilink.secretsRemoved`.
const MARK: [&str; 2] = ["lumilink", "secretsRemoved"];
/// Parts of names of which the value is a credential. Names are compared in lower case, without `-` and `_`.
const CREDENTIALS: [&str; 13] = [
    "token",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "apikey",
    "accesskey",
    "privatekey",
    "credential",
    "authorization",
    "cookie",
    "bearer",
    "signature",
];
/// Ends of names of which the value is a credential.
const CREDENTIAL_ENDS: [&str; 6] = ["key", "auth", "sig", "pat", "pwd", "pass"];
/// Ends of names of which the value is a place or a name, whatever comes before.
const PLACES: [&str; 6] = ["file", "path", "dir", "url", "name", "id"];
/// Characters of the shortest text without a name that counts as random, in a place where paths and names occur.
const RANDOM: usize = 20;
/// Characters of the shortest random value in the query of a URL.
const RANDOM_IN_QUERY: usize = 16;

/// Removes the secrets of a server, and returns the places from which they were removed, such as `env.KEY` and `args[1]`,
/// which its mark names too.
pub(super) fn remove(server: &mut Value) -> Vec<String> {
    let mut removed = Vec::new();
    for place in ["env", "headers"] {
        if let Some(pairs) = server.get_mut(place) {
            remove_values(place, pairs, &mut removed);
        }
    }
    if let Some(Value::String(url)) = server.get_mut("url") {
        replace(url, without_credentials(url), || "url".to_owned(), &mut removed);
    }
    if let Some(Value::Array(args)) = server.get_mut("args") {
        remove_arguments(args, &mut removed);
    }
    if let Some(meta) = server.get_mut("_meta")
        && remove_random(meta)
    {
        removed.push("_meta".to_owned());
    }
    for (member, value) in server.as_object_mut().into_iter().flatten() {
        let redacted = RedactedJson::of(&Map::from_iter([(member.clone(), value.clone())]));
        let known = serde_json::from_str::<Value>(redacted.as_str()).ok();
        match known.and_then(|mut known| known.get_mut(member).map(Value::take)) {
            Some(redacted) if redacted != *value => {
                *value = redacted;
                if !removed.iter().any(|place| place.starts_with(member.as_str())) {
                    removed.push(member.clone());
                }
            }
            _ => {}
        }
    }
    if !removed.is_empty() {
        mark(server, &removed);
    }
    removed
}

/// The place of a credential in `args` or `url` of a server, such as `args[1]`: one with the name of a credential, of a
/// known shape, or before the host of a URL. Texts that only look random are no reason to refuse a server.
pub(super) fn exposed_in(server: &Value) -> Option<String> {
    if server["url"].as_str().is_some_and(has_named_credential) {
        return Some("url".to_owned());
    }
    let mut expected = Expected::Anything;
    for (index, argument) in server["args"].as_array().into_iter().flatten().enumerate() {
        let Some(text) = argument.as_str() else { continue };
        let is_pair = matches!(expected, Expected::Pair);
        let is_named = match text.find(['=', ':']).map(|at| text.split_at(at + 1)) {
            Some((name, value)) if is_name(name) => {
                let value = value.trim_start();
                let is_value = !value.is_empty() && !is_reference(value) && !value.starts_with("//");
                is_value && names_credential(&name[..name.len() - 1])
            }
            _ => false,
        };
        let is_option_value = matches!(expected, Expected::Credential) && !text.starts_with("--") && !text.is_empty();
        let is_secret = (is_option_value && !is_reference(text))
            || is_named
            || (!is_pair && text.contains("://") && has_named_credential(text))
            || Redacted::new(text).as_str() != text;
        if is_secret {
            return Some(format!("args[{index}]"));
        }
        expected = Expected::after(text);
    }
    None
}

/// True if the first URL in a text has a password, a user that looks like a token, or a parameter with the name of a
/// credential.
fn has_named_credential(text: &str) -> bool {
    let rest = text.find("://").map_or(text, |at| &text[at + 3..]);
    let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let user = authority.rsplit_once('@').map(|(user, _)| user).filter(|user| !is_reference(user));
    let parameters = rest.split_once(['?', '#']).map_or("", |(_, parameters)| parameters);
    let is_secret = |parameter: &str| {
        parameter
            .split_once('=')
            .is_some_and(|(name, value)| !value.is_empty() && !is_reference(value) && names_credential(name))
    };
    user.is_some_and(|user| user.contains(':') || user.len() >= RANDOM_IN_QUERY)
        || parameters.split(['&', ';', '#', '?']).any(is_secret)
        || Redacted::new(text).as_str() != text
}

/// True if [`remove`] removed a secret of the server.
pub(super) fn removed_from(server: &Value) -> bool {
    let [service, member] = MARK;
    server["_meta"][service][member].as_array().is_some_and(|places| !places.is_empty())
}

/// Removes the texts that have the name of a credential or look random; true if there was one.
fn remove_random(value: &mut Value) -> bool {
    match value {
        Value::Array(items) => items.iter_mut().fold(false, |removed, item| remove_random(item) | removed),
        Value::Object(members) => members.iter_mut().fold(false, |removed, (name, member)| {
            let is_named = names_credential(name) && member.as_str().is_some_and(|text| !text.is_empty());
            if is_named {
                *member = REDACTED.into();
            }
            remove_random(member) | removed | is_named
        }),
        Value::String(text) if text.len() >= RANDOM_IN_QUERY && has_letter_and_digit(text) && !text.contains(' ') => {
            *text = REDACTED.to_owned();
            true
        }
        _ => false,
    }
}

fn mark(server: &mut Value, removed: &[String]) {
    let [service, member] = MARK;
    let meta = &mut server["_meta"];
    if !meta.is_object() {
        *meta = Value::Object(Map::new());
    }
    if !meta[service].is_object() {
        meta[service] = json!({});
    }
    meta[service][member] = json!(removed);
}

fn replace(text: &mut String, with: Option<String>, place: impl Fn() -> String, removed: &mut Vec<String>) {
    if let Some(with) = with {
        *text = with;
        removed.push(place());
    }
}

/// Removes every value of a list of names and values. A member of another form is removed as a whole.
fn remove_values(place: &str, pairs: &mut Value, removed: &mut Vec<String>) {
    let is_list = pairs.as_array().is_some_and(|pairs| pairs.iter().all(|pair| pair["name"].is_string()));
    if !is_list {
        if !(pairs.is_null() || pairs.as_array().is_some_and(Vec::is_empty)) {
            *pairs = json!([]);
            removed.push(place.to_owned());
        }
        return;
    }
    for pair in pairs.as_array_mut().into_iter().flatten() {
        let (name, value) = (pair["name"].as_str().unwrap_or_default().to_owned(), &pair["value"]);
        if value != "" && !value.is_null() && named::name_in(value).is_none() {
            // Other members may repeat the value.
            *pair = json!({"name": name, "value": REDACTED});
            removed.push(format!("{place}.{name}"));
        }
    }
}

/// The meaning of an argument by the one before it.
#[derive(Clone, Copy)]
enum Expected {
    Anything,
    /// The value of an option with the name of a credential.
    Credential,
    /// `NAME: VALUE` or `NAME=VALUE`, of which the value is removed.
    Pair,
}

impl Expected {
    fn after(argument: &str) -> Self {
        match argument {
            "-e" | "--env" | "-H" | "--header" | "--headers" => Self::Pair,
            option if option.starts_with('-') && !option.contains('=') && names_credential(option) => {
                Self::Credential
            }
            _ => Self::Anything,
        }
    }
}

fn remove_arguments(args: &mut [Value], removed: &mut Vec<String>) {
    let mut expected = Expected::Anything;
    for (index, argument) in args.iter_mut().enumerate() {
        let Value::String(text) = argument else { continue };
        let next = Expected::after(text);
        replace(text, argument_without_secrets(text, expected), || format!("args[{index}]"), removed);
        expected = next;
    }
}

/// The argument without its secret; `None` if it has none.
fn argument_without_secrets(text: &str, expected: Expected) -> Option<String> {
    if text.is_empty() || is_reference(text) {
        return None;
    }
    if matches!(expected, Expected::Credential) && !text.starts_with("--") {
        return Some(REDACTED.to_owned());
    }
    let pair = text.find(['=', ':']).map(|at| text.split_at(at + 1)).filter(|(name, _)| is_name(name));
    if let Some((name, value)) = pair {
        let is_credential = matches!(expected, Expected::Pair) || names_credential(&name[..name.len() - 1]);
        let value = value.trim_start();
        if is_credential && !value.is_empty() && !is_reference(value) && !value.starts_with("//") {
            return Some(format!("{name}{REDACTED}"));
        }
    }
    if text.contains("://") {
        return without_credentials(text);
    }
    let redacted = Redacted::new(text);
    if redacted.as_str() != text {
        return Some(redacted.into_string());
    }
    is_random_argument(text).then(|| REDACTED.to_owned())
}

/// True for `--api-key=`, `KEY=` and `X-Api-Key:`.
fn is_name(text: &str) -> bool {
    let name = &text[..text.len() - 1];
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// True for the name of a variable instead of a value: `$API_KEY`, `Bearer ${API_KEY}`, `{{ key }}`.
fn is_reference(value: &str) -> bool {
    value.starts_with(['$', '{', '%']) || value.contains("${")
}

/// True if the value of an option, parameter or header with this name is a credential.
fn names_credential(name: &str) -> bool {
    let plain: String =
        name.chars().filter(char::is_ascii_alphanumeric).map(|character| character.to_ascii_lowercase()).collect();
    let ends_with = |ends: &[&str]| ends.iter().any(|end| plain.ends_with(end));
    !ends_with(&PLACES) && (CREDENTIALS.iter().any(|part| plain.contains(part)) || ends_with(&CREDENTIAL_ENDS))
}

fn has_letter_and_digit(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_digit()) && text.bytes().any(|byte| byte.is_ascii_alphabetic())
}

/// True for a random text that is no path, no name of a package and no sentence.
fn is_random_argument(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric();
    let has = |is: fn(&u8) -> bool| text.bytes().any(|byte| is(&byte));
    let is_mixed = has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase) && has(u8::is_ascii_digit);
    let is_token = text.bytes().all(|byte| is_word(byte) || matches!(byte, b'-' | b'_' | b'+' | b'='));
    let is_unbroken = text.len() >= 32 && text.bytes().all(is_word) && has_letter_and_digit(text);
    is_unbroken || (text.len() >= RANDOM && is_token && is_mixed)
}

/// A text without the credentials of the first URL in it: user and password, random segments of the path, and values of
/// the query and the fragment that look like a credential or have the name of one. `None` if it has none.
fn without_credentials(text: &str) -> Option<String> {
    let Some(start) = text.find("://").map(|at| at + 3) else {
        let redacted = Redacted::new(text);
        return (redacted.as_str() != text).then(|| redacted.into_string());
    };
    let (scheme, rest) = text.split_at(start);
    let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = match authority.rsplit_once('@') {
        Some((_, host)) => format!("{REDACTED}@{host}"),
        None => authority.to_owned(),
    };
    let (path, parameters) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
    let segments: Vec<_> =
        path.split('/').map(|segment| if is_secret_segment(segment) { REDACTED } else { segment }).collect();
    let mut shown = format!("{scheme}{host}{}", segments.join("/"));
    for parameter in parameters.split_inclusive(['?', '#', '&', ';']) {
        let (parameter, separator) = match parameter.char_indices().next_back() {
            Some((at, '?' | '#' | '&' | ';')) => parameter.split_at(at),
            _ => (parameter, ""),
        };
        let (name, value) = parameter.split_once('=').unwrap_or(("", parameter));
        let is_random = value.len() >= RANDOM_IN_QUERY && has_letter_and_digit(value);
        let is_secret = !value.is_empty() && !is_reference(value) && (is_random || names_credential(name));
        match (is_secret, name.is_empty()) {
            (false, _) => shown.push_str(parameter),
            (true, true) => shown.push_str(REDACTED),
            (true, false) => shown.push_str(&format!("{name}={REDACTED}")),
        }
        shown.push_str(separator);
    }
    let shown = Redacted::new(&shown).into_string();
    (shown != text).then_some(shown)
}

fn is_secret_segment(segment: &str) -> bool {
    let is_token =
        segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'=' | b'~'));
    segment.len() >= RANDOM && is_token && has_letter_and_digit(segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(server: Value) -> (Value, Vec<String>) {
        let mut server = server;
        let removed = remove(&mut server);
        (server, removed)
    }

    #[test]
    fn secrets_in_url_and_arguments_of_an_mcp_server_are_removed() {
        let secret = "Zq7rT2wX9cV4bN6m";
        let urls = [
            "https://user:Zq7rT2wX9cV4bN6m@mcp.example.com/sse",
            "https://Zq7rT2wX9cV4bN6m@mcp.example.com/sse",
            "https://mcp.example.com/sse?token=Zq7rT2wX9cV4bN6m",
            "https://mcp.example.com/sse?a=1&apiKey=Zq7rT2wX9cV4bN6m#x",
            "https://mcp.example.com?profile=Zq7rT2wX9cV4bN6m",
            "https://mcp.example.com/s/Zq7rT2wX9cV4bN6mAAAA/mcp",
            "https://mcp.example.com/#access_token=Zq7rT2wX9cV4bN6m",
        ];
        for url in urls {
            let (server, removed) = kept(json!({"type": "http", "name": "a", "url": url, "headers": []}));
            assert!(!server.to_string().contains(secret), "{server}");
            assert_eq!(
                (removed, server["_meta"]["lumilink"]["secretsRemoved"].clone()),
                (vec!["url".to_owned()], json!(["url"]))
            );
        }
        let arguments: [&[&str]; 12] = [
            &["--token", "Zq7rT2wX9cV4bN6m"],
            &["--api-key=Zq7rT2wX9cV4bN6m"],
            &["run", "-e", "GITHUB_HOST=Zq7rT2wX9cV4bN6m", "image"],
            &["-H", "X-Custom: Zq7rT2wX9cV4bN6m"],
            &["--header", "Authorization:Bearer Zq7rT2wX9cV4bN6m"],
            &["X-Api-Key: Zq7rT2wX9cV4bN6m"],
            &["https://u:Zq7rT2wX9cV4bN6m@example.com/sse"],
            &["--url=https://example.com/?key=Zq7rT2wX9cV4bN6m"],
            &["postgres://app:Zq7rT2wX9cV4bN6m@db/app"],
            &["Zq7rT2wX9cV4bN6mAAAA"],
            &["DB_PASSWORD=Zq7rT2wX9cV4bN6m"],
            &["--secret", "-Zq7rT2wX9cV4bN6m"],
        ];
        for args in arguments {
            let (server, removed) = kept(json!({"name": "a", "command": "npx", "args": args, "env": []}));
            assert!(!server.to_string().contains(secret), "{server}");
            assert_eq!(removed.len(), 1, "{removed:?}");
            assert!(removed[0].starts_with("args["), "{removed:?}");
        }
    }

    #[test]
    fn credential_in_arguments_or_url_is_exposed_and_other_texts_are_not() {
        let local = |args: &[&str]| json!({"name": "a", "command": "npx", "args": args});
        for args in [
            &["--token", "abc"] as &[&str],
            &["--api-key=abc"],
            &["-e", "API_KEY=abc"],
            &["--header", "Authorization: Bearer abc"],
            &["https://u:p@example.com/sse"],
            &["--url=https://example.com/?key=abc"],
            &["ghp_abcdefghijklmnopqrstuvwxyz0123456789"],
        ] {
            assert!(exposed_in(&local(args)).is_some_and(|place| place.starts_with("args[")), "{args:?}");
        }
        for args in [
            &["-y", "@modelcontextprotocol/server-github@2025.4.8"] as &[&str],
            &["--token-file", "/run/secrets/token"],
            &["--header", "Authorization: Bearer ${TOKEN}"],
            &["-e", "GITHUB_TOKEN"],
            &["--commit", "0123456789abcdef0123456789abcdef01234567"],
            &["-e", "MODE=fast"],
        ] {
            assert_eq!(exposed_in(&local(args)), None, "{args:?}");
        }
        for (url, is_exposed) in [
            ("https://user:pass@mcp.example.com/sse", true),
            ("https://0123456789abcdef@mcp.example.com/sse", true),
            ("https://mcp.example.com/sse?access_token=abc", true),
            ("https://mcp.example.com/sse?region=eu", false),
            ("https://mcp.example.com/sse?key=${KEY}", false),
        ] {
            assert_eq!(exposed_in(&json!({"name": "a", "url": url})).is_some(), is_exposed, "{url}");
        }
    }

    #[test]
    fn innocent_mcp_server_is_kept_as_it_is() {
        let arguments = json!([
            "-y",
            "@modelcontextprotocol/server-github@2025.4.8",
            "--port",
            "8080",
            "--token-file",
            "/run/secrets/token",
            "--header",
            "Authorization: Bearer ${TOKEN}",
            "/home/user/project-2024/some-long-folder-name-1",
            "--allow=read,write",
            "--keyboard-layout",
            "de",
            "--author=ada",
            "C:\\Users\\ada",
            "some-long-name-of-a-profile-2024",
            "https://example.com:8443/mcp/v1?transport=sse&region=eu-west-1",
            "",
        ]);
        let servers = [
            json!({"name": "a", "command": "npx", "args": arguments, "env": []}),
            json!({"name": "b", "type": "http", "url": "https://mcp.example.com/mcp?version=2", "headers": []}),
            json!({"name": "token", "command": "x", "args": [], "env": [{"name": "EMPTY", "value": ""}], "_meta": {"a": 1}}),
            json!({"name": "c", "command": "x"}),
        ];
        for server in servers {
            assert_eq!(kept(server.clone()), (server, Vec::new()));
        }
    }

    #[test]
    fn values_of_environment_and_headers_are_removed_whatever_their_form() {
        let secret = "s3cret";
        for member in ["env", "headers"] {
            for pairs in [
                json!([{"name": "A", "value": secret}, {"name": "B", "value": ""}]),
                json!([{"name": "A", "value": secret, "_meta": {"copy": secret}}]),
                json!({"A": secret}),
                json!([["A", secret]]),
                json!("A=s3cret"),
                json!([{"name": "A", "value": {"from": secret}}]),
            ] {
                let (server, removed) = kept(json!({"name": "a", member: pairs, "_meta": 7}));
                assert!(!server.to_string().contains(secret), "{server}");
                assert_eq!(removed.len(), 1, "{removed:?}");
                assert!(removed_from(&server));
            }
        }
        let (server, removed) = kept(json!({"name": "a", "oauth": {"clientSecret": "s3cret"}}));
        assert_eq!((server["oauth"]["clientSecret"].as_str(), removed), (Some(REDACTED), vec!["oauth".to_owned()]));
    }
}
