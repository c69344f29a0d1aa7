//! The members of GitHub's answers that are used. Everything that can be missed is optional, and unknown members are
//! ignored: servers of other versions, and stand-ins, leave members out.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::domain::automation::step::PullRequestState;

/// A repository.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RepositoryFacts {
    pub id: Option<u64>,
    pub full_name: Option<String>,
    pub default_branch: Option<String>,
    pub archived: Option<bool>,
    /// True if GitHub disabled the repository.
    pub disabled: Option<bool>,
    pub fork: Option<bool>,
    pub has_issues: Option<bool>,
    /// The rights of the user, such as `push`; means nothing for the token of an App.
    pub permissions: Option<BTreeMap<String, Value>>,
}

/// A git reference.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Reference {
    pub object: Target,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Target {
    pub sha: String,
}

/// A commit.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct CommitObject {
    pub tree: Target,
}

/// Runs of workflows.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct WorkflowRuns {
    pub total_count: u64,
}

/// The target of a token, or a bot.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct User {
    pub id: u64,
    pub login: String,
    #[serde(default)]
    pub name: Option<String>,
    /// `User` for a person.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
}

/// The permission of a person on a repository.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Collaborator {
    /// `admin`, `write`, `read` or `none`.
    pub permission: Option<String>,
    pub user: Option<User>,
}

/// An issue, or the issue side of a pull request.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Issue {
    #[serde(default)]
    pub id: u64,
    pub number: u64,
    #[serde(default)]
    pub html_url: Option<String>,
    #[serde(default)]
    pub title: Option<String>,
    #[serde(default)]
    pub body: Option<String>,
    /// Address of the repository in the API.
    #[serde(default)]
    pub repository_url: Option<String>,
    /// `open` or `closed`.
    #[serde(default)]
    pub state: Option<String>,
    /// Present for a pull request.
    #[serde(default)]
    pub pull_request: Option<Value>,
}

/// A comment on an issue.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Comment {
    #[serde(default)]
    pub html_url: Option<String>,
    #[serde(default)]
    pub body: Option<String>,
}

/// A pull request.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct PullRequest {
    pub number: u64,
    #[serde(default)]
    pub html_url: Option<String>,
    /// `open` or `closed`.
    #[serde(default)]
    pub state: Option<String>,
    /// Absent in lists.
    #[serde(default)]
    pub merged: Option<bool>,
    #[serde(default)]
    pub merged_at: Option<String>,
    #[serde(default)]
    pub draft: Option<bool>,
    #[serde(default)]
    pub title: Option<String>,
    #[serde(default)]
    pub body: Option<String>,
    #[serde(default)]
    pub head: Side,
    #[serde(default)]
    pub base: Side,
    #[serde(default)]
    pub labels: Option<Vec<Name>>,
    #[serde(default)]
    pub assignees: Option<Vec<Name>>,
    #[serde(default)]
    pub requested_reviewers: Option<Vec<Name>>,
    /// True if maintainers of the base may push to the head, which is in a fork.
    #[serde(default)]
    pub maintainer_can_modify: Option<bool>,
}

impl PullRequest {
    pub(crate) fn is_open(&self) -> bool {
        self.state.as_deref() == Some("open")
    }

    pub(crate) fn state(&self) -> PullRequestState {
        match (self.is_merged(), self.is_open()) {
            (true, _) => PullRequestState::Merged,
            (false, true) => PullRequestState::Open,
            (false, false) => PullRequestState::Closed,
        }
    }

    pub(crate) fn is_merged(&self) -> bool {
        self.merged == Some(true) || self.merged_at.is_some()
    }
}

/// The head or the base of a pull request.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Side {
    /// The branch.
    #[serde(rename = "ref")]
    pub branch: Option<String>,
    /// The commit of the branch.
    pub sha: Option<String>,
    /// `None` after the deletion of a fork.
    pub repo: Option<RepositoryFacts>,
}

/// The name of a label or the login of a user.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Name {
    name: Option<String>,
    login: Option<String>,
}

impl Name {
    /// True if this is the label or the user of that name; GitHub ignores case.
    pub(crate) fn is(&self, name: &str) -> bool {
        [&self.name, &self.login].into_iter().flatten().any(|it| it.eq_ignore_ascii_case(name))
    }
}

/// A ruleset, as the holder of the token sees it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Ruleset {
    /// `always`, `pull_requests_only`, `never` or `exempt`.
    pub current_user_can_bypass: Option<String>,
}

/// The installation of an App.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Installation {
    pub id: u64,
    #[serde(default)]
    pub app_slug: Option<String>,
    /// Granted permissions, such as `contents` with `write`.
    #[serde(default)]
    pub permissions: Option<BTreeMap<String, Value>>,
    #[serde(default)]
    pub suspended_at: Option<String>,
}

/// A minted token.
#[derive(Deserialize)]
pub(super) struct MintedToken {
    pub token: secrecy::SecretString,
    /// RFC 3339.
    #[serde(default)]
    pub expires_at: Option<String>,
    #[serde(default)]
    pub permissions: Option<BTreeMap<String, Value>>,
}
