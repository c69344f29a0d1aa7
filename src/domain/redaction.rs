//! Redaction: removes secrets of known shapes from text.

use std::{borrow::Cow, fmt, sync::LazyLock};

use regex::Regex;

/// The replacement of a secret.
pub(crate) const REDACTED: &str = "[redacted]";

/// Shapes of secrets: GitHub tokens, API keys of the usual model providers and clouds, JSON Web Tokens, bearer headers,
/// private keys, and passwords in URLs. Other shapes are not recognised: this is the second line of defence, the first is
/// that secrets are never put into text.
static SECRETS: LazyLock<Regex> = LazyLock::new(|| {
    let shapes = [
        r"gh[pousr]_[A-Za-z0-9]{20,}",
        r"github_pat_[A-Za-z0-9_]{20,}",
        r"sk-[A-Za-z0-9_-]{16,}",
        r"AKIA[0-9A-Z]{16}",
        r"AIza[0-9A-Za-z_-]{35}",
        r"xox[abprs]-[A-Za-z0-9-]{10,}",
        r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
        r"(?i:bearer) +[A-Za-z0-9._~+/=-]{16,}",
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*-----END [A-Z ]*PRIVATE KEY-----",
        r"://[^/\s:@]+:[^/\s@]+@",
    ];
    Regex::new(&shapes.join("|")).unwrap_or_else(|cause| unreachable!("the shapes are a constant: {cause}"))
});

/// Text without secrets of a known shape; the only text that reaches disk, log, notification or GitHub.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Redacted(String);

impl Redacted {
    pub(crate) fn new(text: &str) -> Self {
        Self(redact(text).into_owned())
    }

    /// Wraps text that was redacted before it was persisted; only for the store.
    pub(crate) fn from_kept(text: String) -> Self {
        Self(text)
    }

    /// Transforms the text. `change` must not add text from another source.
    pub(crate) fn map(self, change: impl FnOnce(&str) -> String) -> Self {
        Self(change(&self.0))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn into_string(self) -> String {
        self.0
    }
}

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn redact(text: &str) -> Cow<'_, str> {
    SECRETS.replace_all(text, |found: &regex::Captures<'_>| {
        // Keeps the delimiters of the URL, so that the text stays readable and JSON stays valid.
        if found[0].starts_with("://") { format!("://{REDACTED}@") } else { REDACTED.to_owned() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_replaced_and_other_text_is_kept() {
        for secret in [
            "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
            "github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz",
            "sk-ant-api03-abcdefghijklmnop",
            "AKIAIOSFODNN7EXAMPLE",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
            "Bearer abcdefghijklmnop1234",
            "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
        ] {
            let text = format!("before {secret} after");
            assert_eq!(Redacted::new(&text).as_str(), format!("before {REDACTED} after"), "{secret}");
        }
        assert_eq!(Redacted::new("https://u:p4ss@host/x").as_str(), "https://[redacted]@host/x");
        let harmless = "a task-force of bearers went to http://host:80/path and mailed a@b";
        assert_eq!(Redacted::new(harmless).as_str(), harmless);
    }

    #[test]
    fn redaction_keeps_json_valid() {
        let json = r#"{"a":"https://u:p4ss@host","b":"ghp_abcdefghijklmnopqrstuvwxyz0123456789"}"#;
        assert!(serde_json::from_str::<serde_json::Value>(Redacted::new(json).as_str()).is_ok());
    }
}
