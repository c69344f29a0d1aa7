//! The GitHub automation of a turn, as its result reports it.

use std::ops::Deref;

use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, Schema, extensions::Extensions},
};

use uuid::Uuid;

use super::words::word_schemas;
pub(crate) use crate::domain::automation::skip::{SkipDetail, SkipReason};
use crate::domain::clock::Timestamp;

/// Version of this part of the contract (semver), in `meta.githubAutomationVersion`.
pub(crate) const GITHUB_AUTOMATION_VERSION: &str = "1.2.0";
/// The longest notification, in characters.
pub(crate) const MAX_NOTIFICATION_CHARS: usize = 140;
/// The longest transcript note, in characters.
pub(crate) const MAX_NOTE_CHARS: usize = 512;
/// The most log lines of one run.
pub(crate) const MAX_LOG_LINES: usize = 50;
/// The longest log line, in characters.
pub(crate) const MAX_LOG_CHARS: usize = 300;
/// The longest name of a branch, in characters.
pub(crate) const MAX_BRANCH_CHARS: usize = 200;

word_schemas! {
    SkipReason => "SkipReason", "Why automation was skipped.";
    SkipDetail => "SkipDetail", "The detailed reason of a skip.";
}

/// Outcome of the automation of one turn. Only [`GithubAutomation::new`] makes one, so every value satisfies the rules
/// between its members; they are read-only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "AutomationMembers")]
pub(crate) struct GithubAutomation(AutomationMembers);

/// The members of a [`GithubAutomation`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AutomationMembers {
    /// Outcome of the run, which decides which other members are present.
    pub status: AutomationStatus,
    /// The requested mode.
    pub mode: AutomationMode,
    /// The issue; absent with the mode `commit-only`, and in a repository without issues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub issue: Option<AutomationIssue>,
    /// The branch with the changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, min_length = 1, max_length = 200)]
    pub branch: Option<String>,
    /// The commit of the turn's changes, on `branch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub commit: Option<AutomationCommit>,
    /// The pull request for `branch`; always present after a success, except with the mode `commit-only` and in a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub pull_request: Option<AutomationPullRequest>,
    /// State of the checks of the pull request, if the changes must wait for a person. The service does not wait for checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub checks: Option<AutomationChecks>,
    /// Why automation was skipped; present if and only if `status` is `skipped`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub skip_reason: Option<SkipReason>,
    /// The exact cause within `skipReason`, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub skip_detail: Option<SkipDetail>,
    /// The text of the notification; at most 140 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, min_length = 1, max_length = 140)]
    pub toast_message: Option<String>,
    /// The text of the transcript note; at most 512 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, min_length = 1, max_length = 512)]
    pub transcript_note: Option<String>,
    /// The rollback of the workspace, if one affected the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub rollback: Option<AutomationRollback>,
    /// Duration, attempts and log of the run.
    pub diagnostics: AutomationDiagnostics,
    /// The error of a failed run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub error: Option<AutomationError>,
    /// The commit that could not be delivered, and is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub rescue: Option<AutomationRescue>,
    /// Time of the next attempt, which the service begins by itself; RFC 3339 in UTC. Its outcome is in the audit and in a
    /// notification; this result does not change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub retry_at: Option<Timestamp>,
    /// True if the caller asked to change nothing at GitHub.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    pub dry_run: bool,
}

/// A commit that could not be delivered, and is kept as a bundle and a patch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AutomationRescue {
    /// Id of the run, for `GET /acp/automation/{id}/rescue`.
    pub id: Uuid,
    /// The branch to which the commit belongs.
    #[schema(min_length = 1, max_length = 200)]
    pub branch: String,
    /// Hash of the commit, 40 hexadecimal digits in lower case.
    #[schema(pattern = "^[0-9a-f]{40}$")]
    pub commit: String,
}

/// Outcome of the automation of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AutomationStatus {
    Success,
    /// Skipped on purpose; `skipReason` says why.
    Skipped,
    Error,
}

/// State of the checks of a pull request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) enum AutomationChecks {
    /// GitHub runs no workflow until a person with write permission approves it.
    WaitingForApproval,
}

/// The requested mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AutomationMode {
    /// Issue, branch, commit and pull request.
    Github,
    /// The branch is pushed, without issue and pull request.
    CommitOnly,
}

impl AutomationStatus {
    /// The word on the wire.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Skipped => "skipped",
            Self::Error => "error",
        }
    }
}

impl AutomationMode {
    /// The word on the wire.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Github => "github",
            Self::CommitOnly => "commit-only",
        }
    }
}

/// The issue that was opened for a turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AutomationIssue {
    /// Id of the issue at GitHub.
    pub id: u64,
    /// Number in the repository, from 1, as in the web address.
    #[schema(minimum = 1)]
    pub number: u64,
    /// Web address at GitHub, for people.
    #[schema(format = "uri")]
    pub url: String,
    pub title: String,
}

/// The commit that holds the changes of a turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AutomationCommit {
    /// Hash of the commit, 40 hexadecimal digits in lower case.
    #[schema(pattern = "^[0-9a-f]{40}$")]
    pub sha: String,
    pub message: String,
}

/// The pull request that was opened for a turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AutomationPullRequest {
    /// Number in the repository, from 1, as in the web address.
    #[schema(minimum = 1)]
    pub number: u64,
    /// Web address at GitHub, for people.
    #[schema(format = "uri")]
    pub url: String,
    /// The branch that the pull request proposes to merge.
    pub branch: String,
}

/// A rollback that affected a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AutomationRollback {
    /// Trigger of the rollback.
    pub trigger: RollbackTrigger,
    /// The rule that was broken.
    pub threshold: RollbackThreshold,
}

/// Trigger of the rollback of a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) enum RollbackTrigger {
    /// The share of successful turns fell below the threshold of the success window.
    AutoThreshold,
    ManualOperator,
    ManualUser,
}

/// The rule of the success window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RollbackThreshold {
    /// The lowest healthy success rate, 0 to 1.
    #[schema(minimum = 0, maximum = 1)]
    pub success_rate: f64,
    /// Length of the window, in minutes.
    #[schema(minimum = 1)]
    pub window_minutes: u32,
}

/// Duration, attempts and log of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AutomationDiagnostics {
    /// Duration of the run, in milliseconds.
    pub duration_ms: u64,
    /// Number of attempts, the successful one included.
    pub attempts: u32,
    /// Log of the run: at most 50 lines of at most 300 characters.
    #[schema(max_items = 50)]
    pub logs: Vec<String>,
    /// The stable error code; absent unless the run failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub error_code: Option<String>,
}

/// The error of a failed run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AutomationError {
    /// The stable error code; absent unless the run failed.
    pub code: String,
    /// Description of the error, in one sentence.
    pub message: String,
    /// True if the same run may succeed later.
    pub retryable: bool,
}

/// The members contradict each other or exceed a limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("githubAutomation: {0}")]
pub(crate) struct BadAutomation(String);

impl GithubAutomation {
    /// Checks the rules between the members, which are also in the JSON Schema.
    ///
    /// # Errors
    /// Names the first broken rule.
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
        let reports = [
            (self.skip_reason.is_some(), "skipReason"),
            (self.toast_message.is_some(), "toastMessage"),
            (self.transcript_note.is_some(), "transcriptNote"),
        ];
        match self.status {
            AutomationStatus::Success => {
                let request = self.pull_request.is_some() || self.mode == AutomationMode::CommitOnly || self.dry_run;
                rule(request, "a success has a pullRequest, unless the mode is commit-only or it is a dryRun")?;
                rule(self.rescue.is_none(), "a success has no rescue")?;
                for (there, name) in reports {
                    rule(!there, &format!("a success has no {name}"))?;
                }
                rule(self.error.is_none(), "a success has no error")
            }
            AutomationStatus::Skipped => {
                for (there, name) in reports {
                    rule(there, &format!("a skip has a {name}"))?;
                }
                Ok(())
            }
            AutomationStatus::Error => rule(self.error.is_some(), "an error says what failed"),
        }
    }

    fn check_limits(&self) -> Result<(), BadAutomation> {
        for (text, most, name) in [
            (&self.toast_message, MAX_NOTIFICATION_CHARS, "toastMessage"),
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
    let none_of =
        ["skipReason", "toastMessage", "transcriptNote", "error", "rescue"].map(|it| json!({"required": [it]}));
    let dry = json!({"properties": {"dryRun": {"const": true}}, "required": ["dryRun"]});
    json!([
        {"if": is("status", "success"), "then": {"not": {"anyOf": none_of}}},
        {
            "if": {"allOf": [is("status", "success"), is("mode", "github"), {"not": dry}]},
            "then": {"required": ["pullRequest"]}
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
