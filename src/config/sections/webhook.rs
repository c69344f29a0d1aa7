//! `[webhook]`: where alerts for operators are posted.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::{check::Check, hidden};
use crate::domain::notify::webhook::{MIN_SECRET_BYTES, WebhookRules, key_of};

/// The longest that one post may take, in seconds; it occupies one of four connections.
const MAX_TIMEOUT_S: u64 = 60;
/// The longest wait between two posts, in seconds: a day.
const MAX_RETRY_S: u64 = 24 * 3600;

/// Where alerts for operators are posted.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Webhook {
    /// `https://…`, or `http://…` on loopback. Not set: nothing is posted. Only its origin is shown, because path and
    /// query may be secrets.
    #[serde(serialize_with = "hidden")]
    pub url: Option<SecretString>,
    /// Secret that signs each post; required with `url`. 24 or more visible ASCII characters, or `whsec_` and the
    /// base64 of 24 or more bytes.
    #[serde(serialize_with = "hidden")]
    pub secret: Option<SecretString>,
    /// The former secret while receivers switch to the new one: both sign.
    #[serde(serialize_with = "hidden")]
    pub previous_secret: Option<SecretString>,
    /// Time limit for one post, in seconds, 1 to 60. A receiver should store the alert and answer at once.
    pub timeout_s: u64,
    /// Attempts before a delivery is given up, 1 to 1,000. With the default waits the last attempt comes about 19
    /// minutes after the first.
    pub max_attempts: u32,
    /// Wait after the first attempt, in seconds, 1 to `max_retry_s`; it doubles with each attempt, ± 20 %.
    pub first_retry_s: u64,
    /// The longest wait, in seconds, 1 to 86,400. `Retry-After` of the receiver may extend a wait to an hour.
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
    pub(crate) fn rules(&self) -> WebhookRules {
        WebhookRules {
            max_attempts: self.max_attempts,
            first_retry: Duration::from_secs(self.first_retry_s),
            max_retry: Duration::from_secs(self.max_retry_s),
        }
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_s)
    }

    /// Scheme, host and port of `url`; user, path and query may be secrets.
    pub(crate) fn endpoint(&self) -> Option<String> {
        origin(self.url.as_ref()?.expose_secret())
    }

    pub(super) fn validate(&self, check: &mut Check<'_>) {
        let url = self.url.as_ref();
        let fine = url.is_none_or(|url| origin(url.expose_secret()).is_some());
        check.require(fine, "webhook.url", "must be https://…, or http://… on 127.0.0.1, [::1] or localhost");
        let what = format!(
            "must be {MIN_SECRET_BYTES} or more visible ASCII characters without spaces, or whsec_ and base64 of as many \
             bytes: openssl rand -base64 32"
        );
        for (setting, secret) in
            [("webhook.secret", &self.secret), ("webhook.previous_secret", &self.previous_secret)]
        {
            let fine = secret.as_ref().is_none_or(|secret| key_of(secret.expose_secret()).is_some());
            check.require(fine, setting, &what);
        }
        let can_sign = url.is_none() || self.secret.is_some();
        let what = "is not set, but webhook.url requires it to sign posts; set it in LUMILINK_WEBHOOK__SECRET";
        check.require(can_sign, "webhook.secret", what);
        check.range_of("webhook.timeout_s", self.timeout_s, 1..=MAX_TIMEOUT_S, " seconds");
        check.range("webhook.max_attempts", self.max_attempts, 1..=1000);
        check.range_of("webhook.max_retry_s", self.max_retry_s, 1..=MAX_RETRY_S, " seconds");
        let (first, most) = (self.first_retry_s, self.max_retry_s);
        let what = format!("is {first}, must be 1 to webhook.max_retry_s ({most})");
        check.require((1..=most.max(1)).contains(&first), "webhook.first_retry_s", what);
    }
}

/// Scheme, host and port of a URL to which alerts may be posted; `None` for any other URL.
fn origin(text: &str) -> Option<String> {
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
    fn origin_drops_secrets_and_requires_tls_beyond_loopback() {
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
