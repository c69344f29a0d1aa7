//! Shapes of secrets in text: tokens of code hosts, model providers and clouds, JSON Web Tokens, private keys, headers
//! of authorization, assignments of keys, and passwords in URLs.
//!
//! Other shapes are not recognised: this is the second line of defence, the first is that secrets are never put into
//! text.
//!
//! The text is searched by few passes, each of which begins with a search for literals, so that text without them
//! costs little. No shape can match a part of a long candidate of another: the time is linear.

use std::{borrow::Cow, sync::LazyLock};

use regex::{Captures, Regex};

use super::{REDACTED, known};

/// Tokens that begin at the edge of a word. The class of characters at the end takes the whole token; `{end}` refuses
/// an identifier that continues.
const TOKENS: [&str; 27] = [
    r"gh[pousr]_[A-Za-z0-9]{20,}{end}",
    // Tokens of installations that hold a JSON Web Token, of some 520 characters, also cut ones.
    r"gh[pousr]_[A-Za-z0-9]{1,20}_eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*){0,4}",
    r"github_pat_[A-Za-z0-9_]{20,}",
    r"glpat-[A-Za-z0-9_.-]{20,}",
    r"sk-[A-Za-z0-9_-]{16,}",
    r"[sr]k_(?:live|test)_[A-Za-z0-9]{10,}",
    r"whsec_[A-Za-z0-9+/=]{16,}",
    r"AKIA[0-9A-Z]{16}{end}",
    r"ASIA[0-9A-Z]{16}{end}",
    r"AIza[0-9A-Za-z_-]{35}{end}",
    r"ya29\.[0-9A-Za-z_-]{20,}",
    r"GOCSPX-[0-9A-Za-z_-]{20,}",
    r"xox[abeoprs]-[A-Za-z0-9-]{10,}",
    r"xapp-[0-9]-[A-Za-z0-9-]{10,}",
    r"eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]{8,}){2,4}",
    r"npm_[A-Za-z0-9]{36}{end}",
    r"pypi-[A-Za-z0-9_-]{40,}",
    r"hf_[A-Za-z0-9]{30,}{end}",
    r"gsk_[A-Za-z0-9]{40,}{end}",
    r"xai-[A-Za-z0-9]{40,}{end}",
    r"pplx-[A-Za-z0-9]{40,}{end}",
    r"r8_[A-Za-z0-9]{37}{end}",
    r"do[opr]_v1_[A-Za-z0-9]{40,}",
    r"dckr_pat_[A-Za-z0-9_-]{20,}",
    r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",
    r"(?:[Bb]earer|BEARER) +[A-Za-z0-9._~+/=-]{16,}",
    r"AGE-SECRET-KEY-1[A-Za-z0-9]{40,}",
];

fn compiled(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap_or_else(|cause| unreachable!("the shapes are constants: {cause}"))
}

fn tokens(before: &str) -> Regex {
    // Only ASCII letters, digits and `_` make a word here, which the fast engines of the crate can decide.
    let shapes = TOKENS.join("|").replace("{end}", r"(?-u:\b{end-half})");
    compiled(&format!("{before}(?:{shapes})"))
}

/// Tokens at the edge of a word.
static PLAIN: LazyLock<Regex> = LazyLock::new(|| tokens(r"(?-u:\b{start-half})"));
/// Tokens behind an escape sequence, whose letter is no part of the word: texts that were printed with quotes and escapes.
static ESCAPED: LazyLock<Regex> = LazyLock::new(|| tokens(r"\\(?:[nrtbf]|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2})"));
/// User and password of a URL. Neither contains a quote, which ends a URL in running text.
static USERINFO: LazyLock<Regex> = LazyLock::new(|| compiled(r#"://([^/\s:@"'`<>()\[\]{}\\]*):([^/\s@"'<>\\]+)@"#));
/// A header of authorization, of which the scheme is kept.
static HEADER: LazyLock<Regex> = LazyLock::new(|| {
    compiled(
        r#"(?i)(authorization[\\"']{0,3} {0,4}[:=] {0,4}[\\"']{0,2}(?:basic|bearer|token|digest) +)([A-Za-z0-9._~+/=-]{8,})"#,
    )
});
/// An assignment of a key, as in a file of environment variables or in the query of a URL.
static ASSIGNED: LazyLock<Regex> = LazyLock::new(|| {
    let names = "API_?KEY|ACCESS_KEY|SECRET_KEY|_TOKEN|_SECRET|PASSWORD";
    let members = "access_token|refresh_token|client_secret|api_?key|token|password";
    let value = r"[A-Za-z0-9._~+/%=-]{12,}";
    compiled(&format!(r#"((?:{names})=\\?["']?|[?&](?:{members})=)({value})"#))
});
/// A private key, also one that is cut: as far as lines of base64 follow the head, or precede the end.
static PRIVATE_KEY: LazyLock<Regex> = LazyLock::new(|| {
    let name = "[A-Z0-9 ]{0,32}PRIVATE KEY(?: BLOCK)?-----";
    let line_end = r"(?:\s|\\[nr])";
    compiled(&format!(
        r"-----BEGIN {name}(?:(?:[^-]|-{{1,4}}[^-])*-----END {name}|(?:{line_end}*[A-Za-z0-9+/=]{{24,}})+)|(?:[A-Za-z0-9+/=]{{24,}}{line_end}+)+(?:[A-Za-z0-9+/=]+{line_end}+)?-----END {name}"
    ))
});

/// Replaces the secrets in a text.
pub(super) fn redact(text: &str) -> Cow<'_, str> {
    let mut text = replaced(known::redact(Cow::Borrowed(text)), &PLAIN, |found| match is_token(&found[0]) {
        true => REDACTED.to_owned(),
        false => found[0].to_owned(),
    });
    if text.contains('\\') {
        text = replaced(text, &ESCAPED, |found| {
            let escape = match found[0].as_bytes().get(1) {
                Some(b'u') => 6,
                Some(b'x') => 4,
                _ => 2,
            };
            let (escape, token) = found[0].split_at(escape);
            if is_token(token) { format!("{escape}{REDACTED}") } else { found[0].to_owned() }
        });
    }
    if text.contains("://") && text.contains('@') {
        text = replaced(text, &USERINFO, |found| match is_port(&found[2]) {
            true => found[0].to_owned(),
            false => format!("://{REDACTED}@"),
        });
    }
    text = replaced(text, &HEADER, |found| match is_credential(&found[2]) {
        true => format!("{}{REDACTED}", &found[1]),
        false => found[0].to_owned(),
    });
    text = replaced(text, &ASSIGNED, |found| match looks_random(&found[2]) {
        true => format!("{}{REDACTED}", &found[1]),
        false => found[0].to_owned(),
    });
    if text.contains("PRIVATE KEY") {
        text = replaced(text, &PRIVATE_KEY, |_| REDACTED.to_owned());
    }
    text
}

/// Names of rules by the start of a token. Tokens without one here have shapes that examples use, too.
const RULES: [(&str, &str); 25] = [
    ("gh", "github-token"),
    ("github_pat_", "github-token"),
    ("glpat-", "gitlab-token"),
    ("sk-", "model-provider-key"),
    ("sk_", "payment-key"),
    ("rk_", "payment-key"),
    ("whsec_", "webhook-secret"),
    ("AKIA", "aws-access-key"),
    ("ASIA", "aws-access-key"),
    ("AIza", "google-api-key"),
    ("ya29.", "google-token"),
    ("GOCSPX-", "google-client-secret"),
    ("xox", "slack-token"),
    ("xapp-", "slack-token"),
    ("npm_", "npm-token"),
    ("pypi-", "pypi-token"),
    ("hf_", "model-provider-key"),
    ("gsk_", "model-provider-key"),
    ("xai-", "model-provider-key"),
    ("pplx-", "model-provider-key"),
    ("r8_", "model-provider-key"),
    ("do", "digitalocean-token"),
    ("dckr_pat_", "docker-token"),
    ("SG.", "sendgrid-key"),
    ("AGE-SECRET-KEY-1", "private-key"),
];

/// See [`super::secrets`].
pub(super) fn secrets(text: &str) -> Vec<(usize, &'static str)> {
    let rule_of = |token: &str| RULES.iter().find(|(start, _)| token.starts_with(start)).map(|(_, rule)| *rule);
    // Examples of documentation.
    let is_real = |token: &str| is_token(token) && !token.ends_with("EXAMPLE");
    let tokens = PLAIN.find_iter(text).filter(|found| is_real(found.as_str()));
    let mut found: Vec<_> = tokens.filter_map(|found| Some((found.start(), rule_of(found.as_str())?))).collect();
    if text.contains("PRIVATE KEY") {
        found.extend(PRIVATE_KEY.find_iter(text).map(|key| (key.start(), "private-key")));
    }
    let own = known::values().map(|known| known.places_in(text.as_bytes())).unwrap_or_default();
    let own = own.into_iter().map(|place| place.start).filter(|at| text.is_char_boundary(*at));
    found.extend(own.map(|at| (at, "secret-of-this-service")));
    found.sort_unstable();
    found
}

fn replaced<'a>(text: Cow<'a, str>, shape: &Regex, with: impl Fn(&Captures<'_>) -> String) -> Cow<'a, str> {
    // Without a match, which is the usual case, this costs a third of a search for captures.
    if !shape.is_match(&text) {
        return text;
    }
    let changed = match shape.replace_all(&text, |found: &Captures<'_>| with(found)) {
        Cow::Borrowed(_) => None,
        Cow::Owned(changed) => Some(changed),
    };
    changed.map_or(text, Cow::Owned)
}

/// Decides about a candidate whose prefix is a word or a common identifier as well.
fn is_token(found: &str) -> bool {
    let has_digit = |text: &str| text.bytes().any(|byte| byte.is_ascii_digit());
    match found.get(..3) {
        Some("sk-") => is_provider_key(&found[3..]),
        Some("ASI" | "npm" | "hf_" | "gls" | "glp") => has_digit(&found[4..]),
        Some("Bea" | "bea" | "BEA" | "SG." | "xox") => has_digit(found),
        _ => true,
    }
}

/// Decides about the part behind `sk-`, which is also a prefix of class names (`sk-fading-circle`) and of words that
/// are joined to a name.
fn is_provider_key(rest: &str) -> bool {
    const PROVIDERS: [&str; 6] = ["ant-", "proj-", "or-v1-", "svcacct-", "admin-", "lf-"];
    let is_unbroken = rest.bytes().all(|byte| byte.is_ascii_alphanumeric());
    PROVIDERS.iter().any(|provider| rest.starts_with(provider) && looks_random(rest))
        || (is_unbroken && looks_random(rest))
        || (rest.len() >= 20 && is_mixed(rest))
}

/// True if a text has a digit and a letter, as random tokens have.
pub(super) fn looks_random(text: &str) -> bool {
    let has = |is: fn(&u8) -> bool| text.bytes().any(|byte| is(&byte));
    has(u8::is_ascii_digit) && has(u8::is_ascii_alphabetic) && !text.contains(char::is_whitespace)
}

/// True if the text behind the scheme of a header is no word of a sentence about headers.
fn is_credential(text: &str) -> bool {
    let is_inner_capital = |pair: &[u8]| pair[0].is_ascii_lowercase() && pair[1].is_ascii_uppercase();
    text.len() >= 24
        || text.bytes().any(|byte| byte.is_ascii_digit() || byte == b'=')
        || text.as_bytes().windows(2).any(is_inner_capital)
}

fn is_mixed(text: &str) -> bool {
    let has = |is: fn(&u8) -> bool| text.bytes().any(|byte| is(&byte));
    has(u8::is_ascii_digit) && has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase)
}

/// True if the part behind the colon is a port, followed by text of a list: `http://localhost:3000,admin@example.com`.
fn is_port(password: &str) -> bool {
    let rest = password.trim_start_matches(|character: char| character.is_ascii_digit());
    let digits = password.len() - rest.len();
    (1..=5).contains(&digits) && rest.starts_with([',', ';', '|', ')', ']', '}', '`'])
}
