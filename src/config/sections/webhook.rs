//! Where operators' alerts are posted, and how patiently.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::hidden;
use crate::domain::notify::webhook::WebhookRules;

/// `[webhook]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Webhook {
    /// `https://…`, or `http://…` on loopback; absent: nothing is posted. Hidden but for its origin, since the rest of it
    /// may be what lets one post there.
    #[serde(serialize_with = "hidden")]
    pub url: Option<SecretString>,
    /// What signs: at least 24 characters, or `whsec_` and base64 of at least 24 bytes. Required with `url`.
    #[serde(serialize_with = "hidden")]
    pub secret: Option<SecretString>,
    /// What signed before, while receivers learn the new one: then both sign.
    #[serde(serialize_with = "hidden")]
    pub previous_secret: Option<SecretString>,
    /// How long one post may take, in seconds. A receiver should keep what it gets and answer, not work on it.
    pub timeout_s: u64,
    /// Tries before an alert is given up; with the waits below the last one comes after about 19 minutes.
    pub max_attempts: u32,
    /// The wait after the first try, in seconds; it doubles.
    pub first_retry_s: u64,
    /// The longest wait, in seconds.
    pub max_retry_s: u64,
}

impl Default for Webhook {
    fn default() -> Self {
        Self {
            url: None,
            secret: None,
            previous_secret: None,
            timeout_s: 10,
            max_attempts: 12,
            first_retry_s: 1,
            max_retry_s: 300,
        }
    }
}

impl Webhook {
    /// The rules of the domain.
    pub(crate) fn rules(&self) -> WebhookRules {
        WebhookRules {
            max_attempts: self.max_attempts,
            first_retry: Duration::from_secs(self.first_retry_s),
            max_retry: Duration::from_secs(self.max_retry_s),
        }
    }

    /// [`Self::timeout_s`].
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_s)
    }

    /// Where it is posted, without user, path and query, any of which may be a secret.
    pub(crate) fn endpoint(&self) -> Option<String> {
        origin(self.url.as_ref()?.expose_secret())
    }
}

/// Scheme, host and port of an address over which alerts may be posted; nothing for any other.
pub(crate) fn origin(text: &str) -> Option<String> {
    let url = url::Url::parse(text).ok()?;
    let is_loopback = match url.host()? {
        url::Host::Domain(name) => name == "localhost",
        url::Host::Ipv4(address) => address.is_loopback(),
        url::Host::Ipv6(address) => address.is_loopback(),
    };
    let fine = url.scheme() == "https" || (url.scheme() == "http" && is_loopback);
    fine.then(|| url.origin().ascii_serialization())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_origin_is_shown_and_only_loopback_goes_without_tls() {
        for (url, shown) in [
            ("https://u:p@hooks.example.com/T0/secret?key=1#x", "https://hooks.example.com"),
            ("https://hooks.example.com:8443", "https://hooks.example.com:8443"),
            ("http://127.0.0.1:9000/hook", "http://127.0.0.1:9000"),
            ("http://[::1]:9000/hook", "http://[::1]:9000"),
            ("http://localhost/hook", "http://localhost"),
        ] {
            assert_eq!(origin(url).as_deref(), Some(shown), "{url}");
        }
        for bad in [
            "",
            "hooks.example.com",
            "http://hooks.example.com/",
            "http://10.0.0.1/",
            "ftp://localhost/",
            "file:///x",
        ] {
            assert_eq!(origin(bad), None, "{bad}");
        }
    }
}
