//! The records of the stand-in.

use std::collections::BTreeMap;

use crate::harness::{Value, json};

/// A repository. Tests change its public members through [`GitHub::edit`](super::GitHub::edit).
#[derive(Debug, Clone)]
pub(crate) struct Repository {
    pub id: u64,
    /// `owner/name`.
    pub full_name: String,
    pub default_branch: String,
    pub is_private: bool,
    pub is_archived: bool,
    pub has_issues: bool,
    /// The repository of which this is a fork.
    pub parent: Option<String>,
    /// Rules of branches, as the API returns them; see [`Rule`].
    pub rules: Vec<Rule>,
    /// Permission of each person: `admin`, `write`, `read`; others have `read`.
    pub people: BTreeMap<String, String>,
    /// Issues and pull requests, by number from 1.
    pub issues: Vec<Issue>,
    pub comments: Vec<Comment>,
    /// Reactions: the path of the object below `issues/`, and the kind. Each is there once.
    pub reactions: Vec<(String, String)>,
    pub labels: Vec<String>,
    /// Workflow runs that wait for approval, whatever their commit.
    pub waiting_runs: u64,
}

/// A rule of branches, as `GET /rules/branches/{name}` returns it. It refuses no push by itself; see
/// [`Rejection`](super::git::Rejection).
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    /// A prefix of names, with `*` at its end; or one name.
    pub pattern: String,
    /// Such as `creation`, `required_signatures`, `non_fast_forward`, `required_linear_history`.
    pub kind: String,
    /// Parameters, or `null`.
    pub parameters: Value,
}

impl Rule {
    pub(super) fn applies_to(&self, branch: &str) -> bool {
        match self.pattern.strip_suffix('*') {
            Some(start) => branch.starts_with(start),
            None => self.pattern == branch,
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let mut rule = json!({"type": self.kind, "ruleset_source_type": "Repository", "ruleset_source": "octo/hello",
                              "ruleset_id": 42});
        if !self.parameters.is_null() {
            rule["parameters"] = self.parameters.clone();
        }
        rule
    }
}

/// An issue, or a pull request if `pull` is set.
#[derive(Debug, Clone)]
pub(crate) struct Issue {
    pub id: u64,
    pub number: u64,
    pub title: String,
    pub body: String,
    /// `open` or `closed`.
    pub state: String,
    pub labels: Vec<String>,
    pub assignees: Vec<String>,
    /// Login of the author.
    pub author: String,
    /// Seconds since 1970.
    pub created_at: i64,
    pub pull: Option<Pull>,
}

#[derive(Debug, Clone)]
pub(crate) struct Pull {
    /// The repository of the head branch.
    pub head_repository: String,
    pub head: String,
    pub base: String,
    pub is_draft: bool,
    pub is_merged: bool,
    pub maintainer_can_modify: bool,
    pub reviewers: Vec<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct Comment {
    pub id: u64,
    /// Number of the issue or pull request.
    pub issue: u64,
    pub body: String,
    pub author: String,
    pub created_at: i64,
}

/// Holder of a token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Holder {
    User(String),
    /// An installation, with its permissions and the repositories that it reaches (all of its account if `None`).
    Installation {
        id: u64,
        permissions: BTreeMap<String, String>,
        repositories: Option<Vec<u64>>,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub value: String,
    pub holder: Holder,
    /// Seconds since 1970; `None` for a token that does not expire.
    pub expires_at: Option<i64>,
    pub is_revoked: bool,
}

/// An installation of the App on an account.
#[derive(Debug, Clone)]
pub(crate) struct Installation {
    pub id: u64,
    pub account: String,
    pub permissions: BTreeMap<String, String>,
    /// Names of the repositories that it reaches; all of the account if `None`.
    pub repositories: Option<Vec<String>>,
    pub is_suspended: bool,
}

impl Installation {
    pub(super) fn reaches(&self, full_name: &str) -> bool {
        let is_owned = full_name.split('/').next() == Some(&self.account);
        is_owned && self.repositories.as_ref().is_none_or(|all| all.iter().any(|it| it == full_name))
    }
}

/// One request of the log.
#[derive(Debug, Clone)]
pub(crate) struct Logged {
    pub method: String,
    pub path: String,
    pub query: String,
    /// `App`, `octocat`, `installation 1`, `anonymous`, or `unknown` for a wrong or expired token.
    pub caller: String,
    pub user_agent: String,
    /// `X-GitHub-Api-Version`.
    pub api_version: String,
    /// The body of an API request; `null` for git.
    pub body: Value,
    /// 0 if the connection was closed instead of an answer.
    pub status: u16,
}

/// `2026-11-25T09:00:00Z` for seconds since 1970.
pub(super) fn rfc3339(seconds: i64) -> String {
    let time = time::OffsetDateTime::from_unix_timestamp(seconds).expect("a time in range");
    time.format(&time::format_description::well_known::Rfc3339).expect("a time")
}
