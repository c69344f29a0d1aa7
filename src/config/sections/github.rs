//! `[github]`: automation of the changes that agents make.

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize};
use url::{Host, Url};

use super::{check::Check, hidden, triggers::Triggers};
use crate::domain::automation::{
    branch::DEFAULT_TEMPLATE,
    plan::{PROTECTED_PATHS, Protection},
    policy::{Policy, default_labels, problem_of_protected, problem_of_template},
    repository_pattern::{MAX_PATTERNS, is_pattern},
    signing::SigningMode,
    ssh_key::SshKey,
    step::Identity,
};

/// Automation of the changes that agents make.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Github {
    /// True if changes are automated.
    pub enabled: bool,
    /// Switches automation off, whatever tenants and prompts request. The variable `GITHUB_AUTOMATION_DISABLED=1` sets
    /// it too.
    pub kill_switch: bool,
    /// Repositories that are never automated: `owner/name`, where `*` matches any characters. Tenants may block more.
    pub blocked_repositories: Vec<String>,
    /// Root of GitHub's REST API. GitHub Enterprise Server: `https://<host>/api/v3`. Tokens are sent to this host and, for
    /// git, to the host that belongs to it.
    pub api_url: String,
    /// Id or client id of the GitHub App that makes tokens for turns without a `githubToken`. A token is made only for
    /// installations that an administrator bound to the tenant.
    #[serde(deserialize_with = "id_or_text")]
    pub app_id: Option<String>,
    /// Private key of the App, an RSA key in PEM format as GitHub issues it, best given by `private_key_file`. Required with
    /// `app_id`. Give it to the supervisor alone, not to a separate runtime.
    #[serde(serialize_with = "hidden")]
    pub private_key: Option<SecretString>,
    /// True to start with a key although the runtime is in this process and agents run without the file rules of the jail:
    /// they could read the file of the key if they have the same user.
    pub allow_embedded_key: bool,
    /// When commits are signed: `auto` if a rule of the repository demands it, `always`, or `never`. They are signed with
    /// `signing_key`, else by GitHub, which makes the commit itself if the credential is the GitHub App.
    pub signing: SigningMode,
    /// SSH key that signs commits: ed25519, in the format of OpenSSH, without a passphrase; best given by `signing_key_file`.
    /// At GitHub it must be a signing key of the account whose address `author_email` is. It reaches the runtime with the steps
    /// that sign, and is in no file there.
    #[serde(serialize_with = "hidden")]
    pub signing_key: Option<SecretString>,
    /// The longest time that one step of automation waits for a rate limit, in seconds. A run that would have to wait longer
    /// is tried again by itself at the time that GitHub states.
    pub max_wait_s: u64,
    /// Name of branches: a prefix, or text with `{name}`, `{issue}`, `{session}` and `{timestamp}`.
    pub branch_template: String,
    /// True to open pull requests as drafts.
    pub draft: bool,
    /// Patterns of protected paths: `.github/` is a folder, `docs/owners.txt` a path, and `CODEOWNERS` a name in any folder.
    /// A tenant may have others.
    pub protected_paths: Vec<String>,
    /// Treatment of a change of a protected path: `draft` opens the pull request as a draft, `refuse` skips the run and
    /// keeps the commit. A tenant may choose the other.
    pub protection: Protection,
    /// Author and committer of commits. Empty: the identity that GitHub names for the credential.
    pub author_name: String,
    /// Address of `author_name`.
    pub author_email: String,
    /// Turns that a label or a mention at GitHub starts; see below.
    pub triggers: Triggers,
}

impl Default for Github {
    fn default() -> Self {
        Self {
            enabled: true,
            kill_switch: false,
            blocked_repositories: Vec::new(),
            api_url: "https://api.github.com".into(),
            app_id: None,
            private_key: None,
            allow_embedded_key: false,
            signing: SigningMode::Auto,
            signing_key: None,
            max_wait_s: 60,
            branch_template: DEFAULT_TEMPLATE.into(),
            draft: false,
            protected_paths: PROTECTED_PATHS.map(String::from).to_vec(),
            protection: Protection::Draft,
            author_name: String::new(),
            author_email: String::new(),
            triggers: Triggers::default(),
        }
    }
}

impl Github {
    /// The configured author of commits.
    pub(crate) fn author(&self) -> Option<Identity> {
        let (name, email) = (self.author_name.clone(), self.author_email.clone());
        (!name.is_empty()).then_some(Identity { name, email })
    }

    /// Id and private key of the App, if one is configured.
    pub(crate) fn app(&self) -> Option<(&str, &SecretString)> {
        self.app_id.as_deref().zip(self.private_key.as_ref())
    }

    /// The policy of tenants without settings of their own.
    pub(crate) fn policy(&self) -> Policy {
        Policy {
            is_draft: self.draft,
            labels: default_labels(),
            assignees: Vec::new(),
            reviewers: Vec::new(),
            branch_template: self.branch_template.clone(),
            protected_paths: self.protected_paths.clone(),
            protection: self.protection,
        }
    }

    pub(super) fn validate(&self, check: &mut Check<'_>) {
        let patterns = &self.blocked_repositories;
        let setting = "github.blocked_repositories";
        check.require(patterns.len() <= MAX_PATTERNS, setting, format!("must be at most {MAX_PATTERNS} patterns"));
        for pattern in patterns {
            check.require(is_pattern(pattern), setting, format!("{pattern:?} must be like owner/name or owner/*"));
        }
        check.require(is_api_url(&self.api_url), "github.api_url", "must be an https address, or http on loopback");
        check.require((1..=600).contains(&self.max_wait_s), "github.max_wait_s", "must be 1 to 600");
        if let Some(why) = problem_of_template(&self.branch_template) {
            check.require(false, "github.branch_template", why);
        }
        if let Some(why) = problem_of_protected(&self.protected_paths) {
            check.require(false, "github.protected_paths", why);
        }
        self.validate_app(check);
        if let Some(Err(why)) = self.signing_key.as_ref().map(|key| SshKey::parse(key.expose_secret())) {
            check.require(false, "github.signing_key", why.to_string());
        }
        self.triggers.validate(check, self.app().is_some());
        let is_plain = |text: &str| {
            text.chars().count() <= 100 && !text.contains(['<', '>']) && !text.contains(char::is_control)
        };
        let is_whole = self.author_name.is_empty() == self.author_email.is_empty();
        let is_author = is_whole && is_plain(&self.author_name) && is_plain(&self.author_email);
        let why = "needs a name and an address, each of at most 100 characters without `<`, `>` and line breaks";
        check.require(is_author, "github.author_name", why);
    }

    fn validate_app(&self, check: &mut Check<'_>) {
        let is_id = |id: &String| (1..=100).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
        let what = "must be the App's id or client id, 1 to 100 visible ASCII characters";
        check.require(self.app_id.as_ref().is_none_or(is_id), "github.app_id", what);
        let what = "is not set, and `github.private_key` is; set both or neither";
        check.require(self.app_id.is_some() || self.private_key.is_none(), "github.app_id", what);
        let what = "is not set, and `github.app_id` is; set it, best by `private_key_file`";
        check.require(self.app_id.is_none() || self.private_key.is_some(), "github.private_key", what);
        // What the text contains is checked when the App is made.
        let is_pem = |key: &SecretString| {
            let text = key.expose_secret().trim();
            let is_of = |kind| {
                text.starts_with(&format!("-----BEGIN {kind}-----"))
                    && text.ends_with(&format!("-----END {kind}-----"))
            };
            ["RSA PRIVATE KEY", "PRIVATE KEY"].iter().any(is_of)
        };
        let what = "is not an RSA private key in PEM format; use the file that GitHub offers on the App's page";
        check.require(self.private_key.as_ref().is_none_or(is_pem), "github.private_key", what);
    }
}

/// A text, or a number, as most ids of Apps are.
fn id_or_text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Id {
        Number(u64),
        Text(String),
    }
    Ok(Option::<Id>::deserialize(from)?.map(|id| match id {
        Id::Number(number) => number.to_string(),
        Id::Text(text) => text,
    }))
}

/// True for an address to which tokens may be sent: `https`, or `http` on loopback, without credentials, query and fragment.
fn is_api_url(text: &str) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    let is_loopback = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => return false,
    };
    let is_safe = url.scheme() == "https" || (url.scheme() == "http" && is_loopback);
    let is_bare = url.username().is_empty() && url.password().is_none();
    is_safe && is_bare && url.query().is_none() && url.fragment().is_none()
}
