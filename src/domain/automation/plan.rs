//! The plan of a run: what the caller and the tenant's settings ask for, fixed when the run begins.

use serde::{Deserialize, Serialize};

use super::{
    skip::WantedMode,
    step::{Identity, IssueFact},
};
use crate::domain::{
    clock::Timestamp,
    ids::SessionId,
    routing::{FlipTrigger, Route},
    words::words,
};

words! {
    /// Treatment of a change of a protected path.
    Protection {
        /// The pull request is a draft.
        Draft = "draft",
        /// The run is skipped, and the commit is kept.
        Refuse = "refuse",
    }
}

/// The plan of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Plan {
    pub session_id: SessionId,
    /// `owner/name`, or an address, as the session gave it.
    pub repository: String,
    pub mode: WantedMode,
    #[serde(default)]
    pub is_dry_run: bool,
    /// Time of the turn, from which the name of the branch and the dates of the commit are made.
    pub at: Timestamp,
    /// The prompt, cut at [`MAX_PROMPT_CHARS`] and redacted.
    pub prompt: String,
    /// The agent's last message, cut at [`MAX_PROMPT_CHARS`] and redacted.
    #[serde(default)]
    pub message: String,
    /// Facts about the turn for the pull request.
    pub figures: Figures,
    /// True if the turn was given a token: no other credential is used.
    #[serde(default)]
    pub has_token: bool,
    #[serde(default)]
    pub branch_name: Option<String>,
    #[serde(default)]
    pub base_branch: Option<String>,
    /// Number of an existing issue to which the pull request belongs.
    #[serde(default)]
    pub issue: Option<u64>,
    #[serde(default)]
    pub issue_title: Option<String>,
    /// Number of the pull request on which the session works.
    #[serde(default)]
    pub pull_request: Option<u64>,
    /// Login of the person who asks for the change.
    #[serde(default)]
    pub requester: Option<String>,
    /// As [`NewBranch::template`](super::branch::NewBranch::template).
    #[serde(default)]
    pub branch_template: String,
    /// Author and committer; absent: the identity that GitHub names for the credential.
    #[serde(default)]
    pub author: Option<Identity>,
    #[serde(default)]
    pub is_draft: bool,
    #[serde(default)]
    pub labels: Vec<String>,
    #[serde(default)]
    pub assignees: Vec<String>,
    #[serde(default)]
    pub reviewers: Vec<String>,
    /// Patterns of paths, as [`Plan::is_protected`] reads them.
    #[serde(default)]
    pub protected_paths: Vec<String>,
    pub protection: Protection,
    /// The branch, issue and pull request of the session's newest run.
    #[serde(default)]
    pub previous: Option<Previous>,
    /// The issue of an earlier run of the session that pushed nothing, and that this run supersedes.
    #[serde(default)]
    pub earlier_issue: Option<IssueFact>,
    /// The commits of such runs that GitHub may have, since the answer to a push can be lost.
    #[serde(default)]
    pub unconfirmed: Option<Unconfirmed>,
}

/// Facts about a turn.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Figures {
    /// The carrier; absent if it is unknown.
    pub carrier: Option<Route>,
    /// The agent's stop reason.
    pub stop_reason: String,
    pub duration_ms: u64,
    /// Updates that the agent sent.
    pub updates: u64,
    /// Input and output tokens, if the agent reported them.
    pub tokens: Option<(u64, u64)>,
    /// The trigger of the workspace's rollback, if it is active.
    pub rollback: Option<FlipTrigger>,
    /// Remarks about the turn, such as that its agent was not quiet.
    pub remarks: Vec<String>,
}

/// The branch, issue and pull request that a session has at GitHub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Previous {
    pub branch: String,
    /// The commit that the branch got.
    pub head: String,
    #[serde(default)]
    pub issue: Option<IssueFact>,
    #[serde(default)]
    pub pull_request: Option<u64>,
}

/// Commits of which it is not known whether a branch has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Unconfirmed {
    pub branch: String,
    /// The newest first; at most [`MAX_UNCONFIRMED`].
    pub commits: Vec<String>,
}

/// The most commits of earlier runs that a push recognises.
pub(crate) const MAX_UNCONFIRMED: usize = 10;

/// The longest prompt and message of a plan, in characters.
pub(crate) const MAX_PROMPT_CHARS: usize = 8000;

/// The paths that are protected unless a tenant's settings say otherwise: what runs in the repository's automation, who
/// must review, what instructs agents, and what fixes dependencies.
pub(crate) const PROTECTED_PATHS: [&str; 16] = [
    ".github/",
    ".gitlab-ci.yml",
    "CODEOWNERS",
    "AGENTS.md",
    "CLAUDE.md",
    "GEMINI.md",
    ".cursor/",
    ".claude/",
    "package-lock.json",
    "pnpm-lock.yaml",
    "yarn.lock",
    "Cargo.lock",
    "poetry.lock",
    "uv.lock",
    "Gemfile.lock",
    "go.sum",
];

impl Plan {
    /// True if the run has an issue and a pull request.
    pub(crate) fn wants_pull_request(&self) -> bool {
        self.mode == WantedMode::Github
    }

    /// True if a pattern matches the path, ignoring case. A pattern with a slash at the end names a folder from the top;
    /// one with another slash a path from the top; one without a slash a name in any folder.
    pub(crate) fn is_protected(&self, path: &str) -> bool {
        let path = path.to_lowercase();
        let name = path.rsplit('/').next().unwrap_or_default();
        self.protected_paths.iter().map(|pattern| pattern.to_lowercase()).any(|pattern| {
            match pattern.strip_suffix('/') {
                Some(folder) => path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')),
                None if pattern.contains('/') => path == pattern.trim_start_matches('/'),
                None => name == pattern,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::saga::tests::plan;

    #[test]
    fn protected_path_matches_folders_paths_and_names_in_any_case() {
        let mut plan = plan();
        plan.protected_paths = [".github/", "docs/owners.txt", "CODEOWNERS"].map(String::from).to_vec();
        for path in [".github/workflows/ci.yml", ".GitHub/x", "docs/owners.txt", "CODEOWNERS", "a/b/codeowners"] {
            assert!(plan.is_protected(path), "{path}");
        }
        for path in ["x/.github/y", ".githubx", ".github", "x/docs/owners.txt", "codeowners.md"] {
            assert!(!plan.is_protected(path), "{path}");
        }
    }
}
