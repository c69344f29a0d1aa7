//! The automation that a caller requests for the changes of a turn.

use serde::{Deserialize, Serialize};

use super::{branch::BranchName, skip::WantedMode, texts::MAX_TITLE_CHARS};
use crate::domain::{
    text,
    turn::outcome::{ErrorCode, Failure},
};

/// The most labels of a request.
pub(crate) const MAX_LABELS: usize = 20;
/// The longest label at GitHub, in characters.
pub(crate) const MAX_LABEL_CHARS: usize = 50;

/// The longest login of a person at GitHub, in characters.
const MAX_LOGIN_CHARS: usize = 39;

/// True for the login of a person. Names on GitHub Enterprise may have an underscore.
fn is_login(text: &str) -> bool {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    is_plain && text.len() <= MAX_LOGIN_CHARS && text.starts_with(|first: char| first.is_ascii_alphanumeric())
}

/// A request for automation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub mode: WantedMode,
    pub options: WantedOptions,
}

/// The parts of a request that most prompts leave at their defaults. Stored as JSON; unknown members are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct WantedOptions {
    /// True to change nothing at GitHub.
    pub is_dry_run: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub branch_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_branch: Option<String>,
    /// Number of an existing issue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issue: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issue_title: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Login of the person who asks for the change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requester: Option<String>,
    /// True if the turn was given a token, which is in memory alone: without it the turn never uses another credential.
    pub has_token: bool,
}

impl From<WantedMode> for Wanted {
    fn from(mode: WantedMode) -> Self {
        Self { mode, options: WantedOptions::default() }
    }
}

impl Wanted {
    /// Checks the options of a request.
    ///
    /// # Errors
    /// `invalid_request` that names the member.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let bad = |why: String| Err(Failure::new(ErrorCode::InvalidRequest, format!("`automation.{why}")));
        let options = &self.options;
        for (name, branch) in [("branchName", &options.branch_name), ("baseBranch", &options.base_branch)] {
            if let Some(Err(why)) = branch.as_deref().map(BranchName::parse) {
                return bad(format!("{name}` is {why}"));
            }
        }
        if options.requester.as_deref().is_some_and(|login| !is_login(login)) {
            return bad(format!(
                "requester` must be a login of at most {MAX_LOGIN_CHARS} letters, digits and dashes"
            ));
        }
        if options.issue == Some(0) {
            return bad("issue` must be at least 1".into());
        }
        let fits =
            |text: &str, most: usize| (1..=most).contains(&text.chars().count()) && text::one_line(text) == text;
        if options.issue_title.as_deref().is_some_and(|title| !fits(title, MAX_TITLE_CHARS)) {
            return bad(format!("issueTitle` must be one line of 1 to {MAX_TITLE_CHARS} characters"));
        }
        if options.labels.len() > MAX_LABELS || options.labels.iter().any(|label| !fits(label, MAX_LABEL_CHARS)) {
            let why = format!("labels` must be at most {MAX_LABELS} texts of 1 to {MAX_LABEL_CHARS} characters");
            return bad(why);
        }
        Ok(())
    }

    /// The options as stored; `None` for the defaults.
    pub(crate) fn options_to_stored(&self) -> Option<String> {
        let is_default = self.options == WantedOptions::default();
        (!is_default).then(|| serde_json::to_string(&self.options).ok()).flatten()
    }

    /// Reads the stored form. Options that cannot be read are those of a dry run, which changes nothing at GitHub.
    pub(crate) fn from_stored(mode: &str, options: Option<&str>) -> Self {
        let unread = || WantedOptions { is_dry_run: true, ..WantedOptions::default() };
        let options = options.map(|json| serde_json::from_str(json).unwrap_or_else(|_| unread()));
        Self { mode: WantedMode::tolerant(mode), options: options.unwrap_or_default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_round_trip_and_unreadable_ones_change_nothing_at_github() {
        let wanted = Wanted::from(WantedMode::CommitOnly);
        assert_eq!(wanted.options_to_stored(), None);
        let options = WantedOptions { issue: Some(4), labels: vec!["a".into()], ..WantedOptions::default() };
        let wanted = Wanted { options, ..wanted };
        let stored = wanted.options_to_stored();
        assert_eq!(Wanted::from_stored("commit-only", stored.as_deref()), wanted);
        assert!(Wanted::from_stored("github", Some("{")).options.is_dry_run);
    }

    #[test]
    fn requester_is_a_login_and_nothing_else() {
        let of = |login: &str| {
            let options = WantedOptions { requester: Some(login.into()), ..WantedOptions::default() };
            Wanted { options, ..Wanted::default() }.check()
        };
        for good in ["octocat", "a-b_c", "0", &"x".repeat(39)] {
            assert!(of(good).is_ok(), "{good}");
        }
        for bad in ["", "-x", "a b", "a/../b", "lumi[bot]", "a@b.c", &"x".repeat(40)] {
            assert!(of(bad).unwrap_err().detail.contains("automation.requester"), "{bad}");
        }
    }
}
