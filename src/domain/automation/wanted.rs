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
    /// True if `branch_name` is the branch that the workspace was cloned at, and gets the commit although it exists: the
    /// head of a pull request to which the turn belongs. No caller can ask for it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_continued: bool,
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
}
