//! What GitHub automation looks like in a result.

use std::ops::Deref;

use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, Schema, extensions::Extensions},
};

pub(crate) use crate::domain::automation::skip::{SkipDetail, SkipReason};

/// The version of this part of the contract, as `meta.githubAutomationVersion` says it (semver).
pub(crate) const GITHUB_AUTOMATION_VERSION: &str = "1.0.0";
/// The longest toast, in characters.
pub(crate) const MAX_TOAST_CHARS: usize = 140;
/// The longest transcript note, in characters.
pub(crate) const MAX_NOTE_CHARS: usize = 512;
/// The most log lines of one run.
pub(crate) const MAX_LOG_LINES: usize = 50;
/// The longest log line, in characters.
pub(crate) const MAX_LOG_CHARS: usize = 300;
/// The longest name of a branch, in characters.
pub(crate) const MAX_BRANCH_CHARS: usize = 200;

/// Outcome of the automation of one turn. It can be made only by [`GithubAutomation::new`], so one that
/// exists keeps the rules between its members; they can be read, not changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "AutomationMembers")]
pub(crate) struct GithubAutomation(AutomationMembers);

/// The members of a [`GithubAutomation`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AutomationMembers {
    /// What became of it.
    pub status: AutomationStatus,
    /// What was asked for.
    pub mode: AutomationMode,
    /// The issue; there after a success, unless only a commit was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub issue: Option<AutomationIssue>,
    /// The branch with the changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, min_length = 1, max_length = 200)]
    pub branch: Option<String>,
    /// The commit on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub commit: Option<AutomationCommit>,
    /// The pull request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub pull_request: Option<AutomationPullRequest>,
    /// Why it was left out; there if and only if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub skip_reason: Option<SkipReason>,
    /// The finer reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub skip_detail: Option<SkipDetail>,
    /// What the user was told; at most 140 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, min_length = 1, max_length = 140)]
    pub toast_message: Option<String>,
    /// What the transcript says; at most 512 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, min_length = 1, max_length = 512)]
    pub transcript_note: Option<String>,
    /// The rollback of the workspace, if one had a part in this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub rollback: Option<AutomationRollback>,
    /// How the run went.
    pub diagnostics: AutomationDiagnostics,
    /// What failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub error: Option<AutomationError>,
}

/// What became of the automation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AutomationStatus {
    /// Done.
    Success,
    /// Left out on purpose.
    Skipped,
    /// Failed.
    Error,
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AutomationMode {
    /// Issue, branch, commit and pull request.
    Github,
    /// The branch is pushed, without issue and pull request.
    CommitOnly,
}

/// An issue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AutomationIssue {
    /// GitHub's id.
    pub id: u64,
    /// Its number in the repository.
    #[schema(minimum = 1)]
    pub number: u64,
    /// Where to read it.
    #[schema(format = "uri")]
    pub url: String,
    /// Its title.
    pub title: String,
}

/// A commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AutomationCommit {
    /// Its hash, 40 hexadecimal digits.
    #[schema(pattern = "^[0-9a-f]{40}$")]
    pub sha: String,
    /// Its message.
    pub message: String,
}

/// A pull request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AutomationPullRequest {
    /// Its number in the repository.
    #[schema(minimum = 1)]
    pub number: u64,
    /// Where to read it.
    #[schema(format = "uri")]
    pub url: String,
    /// The branch that it wants to merge.
    pub branch: String,
}

/// A rollback that had a part in a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AutomationRollback {
    /// Who or what rolled back.
    pub trigger: RollbackTrigger,
    /// The rule that it broke.
    pub threshold: RollbackThreshold,
}

/// Who or what rolled a workspace back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) enum RollbackTrigger {
    /// The window.
    AutoThreshold,
    /// An operator.
    ManualOperator,
    /// A user.
    ManualUser,
}

/// The rule of the window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RollbackThreshold {
    /// The least success rate, 0 to 1.
    #[schema(minimum = 0, maximum = 1)]
    pub success_rate: f64,
    /// Over so many minutes.
    #[schema(minimum = 1)]
    pub window_minutes: u32,
}

/// How a run went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AutomationDiagnostics {
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// What it did, at most 50 lines of at most 300 characters.
    #[schema(max_items = 50)]
    pub logs: Vec<String>,
    /// The stable code of what went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub error_code: Option<String>,
}

/// What failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AutomationError {
    /// The stable code.
    pub code: String,
    /// One sentence.
    pub message: String,
    /// Whether the same run may succeed later.
    pub retryable: bool,
}

/// The members do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("githubAutomation: {0}")]
pub(crate) struct BadAutomation(String);

impl GithubAutomation {
    /// Checks the members against the rules of the contract, which are also in its JSON Schema.
    ///
    /// # Errors
    /// Names the first rule that is broken.
    pub(crate) fn new(members: AutomationMembers) -> Result<Self, BadAutomation> {
        members.check_status()?;
        members.check_limits()?;
        Ok(Self(members))
    }
}

impl Deref for GithubAutomation {
    type Target = AutomationMembers;

    fn deref(&self) -> &AutomationMembers {
        &self.0
    }
}

impl TryFrom<AutomationMembers> for GithubAutomation {
    type Error = BadAutomation;

    fn try_from(members: AutomationMembers) -> Result<Self, BadAutomation> {
        Self::new(members)
    }
}

fn rule(holds: bool, otherwise: &str) -> Result<(), BadAutomation> {
    if holds { Ok(()) } else { Err(BadAutomation(otherwise.to_owned())) }
}

impl AutomationMembers {
    fn check_status(&self) -> Result<(), BadAutomation> {
        let told = [
            (self.skip_reason.is_some(), "skipReason"),
            (self.toast_message.is_some(), "toastMessage"),
            (self.transcript_note.is_some(), "transcriptNote"),
        ];
        match self.status {
            AutomationStatus::Success => {
                let issue = self.issue.is_some() || self.mode == AutomationMode::CommitOnly;
                rule(issue, "a success has an issue, unless the mode is commit-only")?;
                for (there, name) in told {
                    rule(!there, &format!("a success has no {name}"))?;
                }
                rule(self.error.is_none(), "a success has no error")
            }
            AutomationStatus::Skipped => {
                for (there, name) in told {
                    rule(there, &format!("a skip has a {name}"))?;
                }
                Ok(())
            }
            AutomationStatus::Error => rule(self.error.is_some(), "an error says what failed"),
        }
    }

    fn check_limits(&self) -> Result<(), BadAutomation> {
        for (text, most, name) in [
            (&self.toast_message, MAX_TOAST_CHARS, "toastMessage"),
            (&self.transcript_note, MAX_NOTE_CHARS, "transcriptNote"),
            (&self.branch, MAX_BRANCH_CHARS, "branch"),
        ] {
            let fits = text.as_ref().is_none_or(|text| (1..=most).contains(&text.chars().count()));
            rule(fits, &format!("{name} has 1 to {most} characters"))?;
        }
        let sha = self.commit.as_ref().is_none_or(|commit| {
            commit.sha.len() == 40 && commit.sha.bytes().all(|it| it.is_ascii_digit() || (b'a'..=b'f').contains(&it))
        });
        rule(sha, "commit.sha has 40 hexadecimal digits in lower case")?;
        let numbers = self.issue.as_ref().is_none_or(|issue| issue.number > 0)
            && self.pull_request.as_ref().is_none_or(|request| request.number > 0);
        rule(numbers, "numbers of issues and pull requests begin at 1")?;
        let threshold = self.rollback.as_ref().is_none_or(|rollback| {
            (0.0..=1.0).contains(&rollback.threshold.success_rate) && rollback.threshold.window_minutes > 0
        });
        rule(threshold, "rollback.threshold.successRate is 0 to 1, over at least one minute")?;
        let logs = &self.diagnostics.logs;
        let logs = logs.len() <= MAX_LOG_LINES && logs.iter().all(|line| line.chars().count() <= MAX_LOG_CHARS);
        rule(logs, "diagnostics.logs has at most 50 lines of at most 300 characters")
    }
}

impl PartialSchema for GithubAutomation {
    fn schema() -> RefOr<Schema> {
        let mut schema = AutomationMembers::schema();
        if let RefOr::T(Schema::Object(object)) = &mut schema {
            let description = "Outcome of the automation of one turn.".to_owned();
            object.description = Some(description);
            // `if` and `then` are JSON Schema 2020-12, which OpenAPI 3.1 is made of.
            let rules = Extensions::from_iter([("allOf", conditional_rules())]);
            object.extensions.get_or_insert_default().merge(rules);
        }
        schema
    }
}

impl ToSchema for GithubAutomation {
    fn name() -> std::borrow::Cow<'static, str> {
        "GithubAutomation".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        AutomationMembers::schemas(schemas);
    }
}

/// The rules of [`AutomationMembers::check_status`] as JSON Schema.
fn conditional_rules() -> serde_json::Value {
    let is = |member: &str, value: &str| json!({"properties": {member: {"const": value}}, "required": [member]});
    let none_of = ["skipReason", "toastMessage", "transcriptNote", "error"].map(|it| json!({"required": [it]}));
    json!([
        {"if": is("status", "success"), "then": {"not": {"anyOf": none_of}}},
        {
            "if": {"allOf": [is("status", "success"), is("mode", "github")]},
            "then": {"required": ["issue"]}
        },
        {
            "if": is("status", "skipped"),
            "then": {"required": ["skipReason", "toastMessage", "transcriptNote"]}
        },
        {"if": is("status", "error"), "then": {"required": ["error"]}}
    ])
}

#[cfg(test)]
mod tests;
