//! The automation that a caller requests for the changes of a turn.

use serde::{Deserialize, Serialize};

use super::skip::WantedMode;
use crate::domain::{
    text,
    turn::outcome::{ErrorCode, Failure},
};

/// The longest title of an issue, in characters.
pub(crate) const MAX_TITLE_CHARS: usize = 120;
/// The longest name of a branch, in characters.
pub(crate) const MAX_BRANCH_CHARS: usize = 200;
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
            if let Some(why) = branch.as_deref().and_then(problem_of_branch) {
                return bad(format!("{name}` {why}"));
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

/// The problem of a branch name, in words that follow the name of a member; the rules are those of git.
pub(crate) fn problem_of_branch(name: &str) -> Option<String> {
    let count = name.chars().count();
    if !(1..=MAX_BRANCH_CHARS).contains(&count) {
        return Some(format!("must have 1 to {MAX_BRANCH_CHARS} characters"));
    }
    let is_forbidden = |char: char| char.is_control() || char.is_whitespace() || "~^:?*[\\".contains(char);
    if name.contains(is_forbidden) || name.contains("..") || name.contains("@{") || name == "@" {
        return Some("contains characters that git forbids in names of branches".into());
    }
    let is_part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    let is_whole = name.split('/').all(is_part) && !name.starts_with('-') && !name.ends_with('.');
    (!is_whole).then(|| "is not a name that git accepts for a branch".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branch_names_that_git_refuses_are_refused() {
        for good in ["main", "claude-code/issue-7", "a.b/c_d", "ü/x"] {
            assert_eq!(problem_of_branch(good), None, "{good}");
        }
        for bad in [
            "", "-x", "a..b", "a b", "a~1", "a^", "a:b", "a?", "a*", "a[", "a\\b", "/a", "a/", "a//b", ".a", "a/.b",
            "a.lock", "a.lock/b", "a.", "@", "a@{b", "a\u{7f}",
        ] {
            assert!(problem_of_branch(bad).is_some(), "{bad:?}");
        }
        assert!(problem_of_branch(&"a".repeat(201)).is_some());
    }

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
