//! `[github.triggers]`: turns that a label or a mention at GitHub starts.

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::{check::Check, hidden};
use crate::domain::{automation::wanted::MAX_LABEL_CHARS, text};

/// The shortest secret, in characters: HMAC-SHA-256 is weaker with a key that is shorter than its hash of 32 bytes (RFC 2104,
/// section 3).
const MIN_SECRET_CHARS: usize = 32;
/// The longest name to mention, in characters; GitHub's have up to 39.
const MAX_MENTION_CHARS: usize = 39;
/// The most queued deliveries: one read takes them all.
const MAX_QUEUED: usize = 1000;

/// Turns that a label or a mention at GitHub starts. GitHub posts signed deliveries to `/github/webhook`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Triggers {
    /// True to accept deliveries. Requires `github.app_id`, `github.private_key` and the secret. False: `/github/webhook` is 404.
    pub enabled: bool,
    /// The secret of the App's webhook, by which deliveries are authenticated, best given by `webhook_secret_file`: 32 or more
    /// visible ASCII characters without spaces, such as `openssl rand -hex 32` prints.
    #[serde(serialize_with = "hidden")]
    pub webhook_secret: Option<SecretString>,
    /// The label that starts a turn when a person with write permission applies it; case does not matter.
    pub label: String,
    /// The name that starts a turn when a person with write permission mentions it, without `@`. Empty: the App's own name.
    pub mention: String,
    /// The most deliveries that are queued, those that are worked on included, 1 to 1,000. More are refused with 503.
    pub max_queued: usize,
    /// The most queued deliveries of one tenant, 1 to `max_queued`, so that one busy tenant does not fill the queue of all.
    pub max_queued_of_tenant: usize,
    /// Deliveries that are worked on at the same time, and with it the turns that run because of them, 1 to 1,000. Further ones
    /// wait, and those of one issue wait for each other.
    pub max_turns: usize,
}

impl Default for Triggers {
    fn default() -> Self {
        Self {
            enabled: false,
            webhook_secret: None,
            label: "lumilink".into(),
            mention: String::new(),
            max_queued: 500,
            max_queued_of_tenant: 100,
            max_turns: 8,
        }
    }
}

impl Triggers {
    /// `has_app` is true if a GitHub App is configured.
    pub(super) fn validate(&self, check: &mut Check<'_>, has_app: bool) {
        let what = "is true, and needs a GitHub App: set `github.app_id` and `github.private_key_file`";
        check.require(!self.enabled || has_app, "github.triggers.enabled", what);
        let what = "is not set, and `github.triggers.enabled` is true; set it, best by `webhook_secret_file`";
        let has_secret = self.webhook_secret.is_some();
        check.require(!self.enabled || has_secret, "github.triggers.webhook_secret", what);
        let is_good = |secret: &SecretString| {
            let secret = secret.expose_secret();
            secret.len() >= MIN_SECRET_CHARS && secret.bytes().all(|byte| byte.is_ascii_graphic())
        };
        let what = format!(
            "must be {MIN_SECRET_CHARS} or more visible ASCII characters without spaces: openssl rand -hex 32"
        );
        check.require(self.webhook_secret.as_ref().is_none_or(is_good), "github.triggers.webhook_secret", what);
        let is_label =
            (1..=MAX_LABEL_CHARS).contains(&self.label.chars().count()) && text::one_line(&self.label) == self.label;
        let what = format!("must be a text of 1 to {MAX_LABEL_CHARS} characters on one line");
        check.require(is_label, "github.triggers.label", what);
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let is_name = self.mention.len() <= MAX_MENTION_CHARS && self.mention.bytes().all(is_part);
        let what = format!("must be a name of at most {MAX_MENTION_CHARS} letters, digits and dashes, without `@`");
        check.require(is_name, "github.triggers.mention", what);
        check.range("github.triggers.max_queued", self.max_queued, 1..=MAX_QUEUED);
        let most = self.max_queued.clamp(1, MAX_QUEUED);
        check.range("github.triggers.max_queued_of_tenant", self.max_queued_of_tenant, 1..=most);
        check.range("github.triggers.max_turns", self.max_turns, 1..=MAX_QUEUED);
    }
}
