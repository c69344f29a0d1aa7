//! `[github]`: automation of the changes that agents make.

use serde::{Deserialize, Serialize};
use url::{Host, Url};

use super::check::Check;
use crate::domain::automation::{
    branch::{DEFAULT_TEMPLATE, check_template},
    repository_pattern::{MAX_PATTERNS, is_pattern},
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
    /// The longest time that one step of automation waits for a rate limit, in seconds. A run that would have to wait longer
    /// is tried again by itself at the time that GitHub states.
    pub max_wait_s: u64,
    /// Name of branches: a prefix, or text with `{name}`, `{issue}`, `{session}` and `{timestamp}`.
    pub branch_template: String,
    /// True to open pull requests as drafts.
    pub draft: bool,
    /// Author and committer of commits. Empty: the identity that GitHub names for the credential.
    pub author_name: String,
    /// Address of `author_name`.
    pub author_email: String,
}

impl Default for Github {
    fn default() -> Self {
        Self {
            enabled: true,
            kill_switch: false,
            blocked_repositories: Vec::new(),
            api_url: "https://api.github.com".into(),
            max_wait_s: 60,
            branch_template: DEFAULT_TEMPLATE.into(),
            draft: false,
            author_name: String::new(),
            author_email: String::new(),
        }
    }
}

impl Github {
    /// The configured author of commits.
    pub(crate) fn author(&self) -> Option<Identity> {
        let (name, email) = (self.author_name.clone(), self.author_email.clone());
        (!name.is_empty()).then_some(Identity { name, email })
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
        if let Err(cause) = check_template(&self.branch_template) {
            check.require(false, "github.branch_template", cause.to_string());
        }
        let is_plain = |text: &str| {
            text.chars().count() <= 100 && !text.contains(['<', '>']) && !text.contains(char::is_control)
        };
        let is_whole = self.author_name.is_empty() == self.author_email.is_empty();
        let is_author = is_whole && is_plain(&self.author_name) && is_plain(&self.author_email);
        let why = "needs a name and an address, each of at most 100 characters without `<`, `>` and line breaks";
        check.require(is_author, "github.author_name", why);
    }
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
