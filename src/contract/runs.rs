//! Runs of GitHub automation: what became of the changes of a turn, with every attempt to deliver them.

use std::collections::BTreeMap;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use utoipa::{
    IntoParams, PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, schema::Type},
};
use uuid::Uuid;

use super::{automation::AutomationPullRequest, words::word_schemas};
use crate::domain::{
    automation::{
        plan::Protection,
        progress::StepState,
        saga::SagaStatus,
        skip::{SkipDetail, SkipReason, WantedMode},
        step::StepName,
    },
    clock::Timestamp,
    ids::{InstallationId, PromptId, SessionId, WorkspaceId},
};

word_schemas! {
    Protection => "AutomationProtection", "Treatment of a change of a protected path: the pull request is a draft, or the run is skipped.";
    SagaStatus => "AutomationRunStatus", "Status of a run: `waiting` has another attempt at `retryAt`, which the service begins by itself.";
    StepName => "AutomationStepName", "A step of a run of automation.";
    StepState => "AutomationStepState", "State of a step in the newest attempt: `started` is next or in progress.";
}

/// Filters of `GET /acp/automation`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct RunQuery {
    /// Only runs of this tenant.
    pub installation_id: Option<InstallationId>,
    /// Only runs in workspaces of this name.
    pub workspace_id: Option<WorkspaceId>,
    /// Only runs of this session.
    pub session_id: Option<SessionId>,
    /// Only runs with this status.
    pub status: Option<SagaStatus>,
    /// Only runs that began at or after this time, RFC 3339.
    pub from: Option<Timestamp>,
    /// Only runs that began before this time, RFC 3339.
    pub until: Option<Timestamp>,
    /// The most runs on the page, up to `[limits] page_entries`.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<usize>,
    /// `nextCursor` of the previous page.
    #[param(pattern = r"^-?[0-9]{1,18}~[!-~]{0,300}$")]
    pub cursor: Option<String>,
}

/// A run of automation: one for each turn whose changes were to be delivered. Members without a value are null. Parts of the
/// conversation and of the changes are null for a caller without the privilege `contents.read`, and in lists.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AutomationRun {
    /// Id of the run; `runId` in events, `automationId` in the audit, and the id of a `rescue`.
    pub automation_id: Uuid,
    pub installation_id: InstallationId,
    pub workspace_id: WorkspaceId,
    pub session_id: SessionId,
    /// The turn whose changes are delivered.
    pub prompt_id: PromptId,
    pub status: SagaStatus,
    /// Why the newest attempt was skipped.
    pub skip_reason: Option<SkipReason>,
    /// The exact cause within `skipReason`.
    pub skip_detail: Option<SkipDetail>,
    /// Number of the newest attempt, from 1; 0 until the run has a plan.
    pub attempt: u32,
    /// Time of the next attempt, if the service begins it by itself.
    pub retry_at: Option<Timestamp>,
    /// The request; null until the run has a plan.
    pub plan: Option<AutomationPlan>,
    /// The steps that have begun, in their order.
    pub steps: Vec<AutomationStep>,
    /// The changes of the turn.
    pub changes: Option<AutomationChanges>,
    pub issue: Option<AutomationRunIssue>,
    /// The branch for the commit.
    pub branch: Option<String>,
    pub commit: Option<AutomationRunCommit>,
    /// True once the branch has the commit at GitHub.
    pub pushed: bool,
    pub pull_request: Option<AutomationPullRequest>,
    /// Address of the comment on the issue.
    pub comment_url: Option<String>,
    /// The kept commit, for `GET /acp/automation/{id}/rescue`; null if nothing had to be kept.
    pub rescue: Option<AutomationKept>,
    /// Time at which the kept commit was removed, because it was older than `retention.rescues_days`.
    pub rescue_removed_at: Option<Timestamp>,
    /// Log of the newest attempt: at most 50 lines of at most 300 characters.
    #[schema(max_items = 50)]
    pub logs: Option<Vec<String>>,
    /// Time at which the agent's part of the turn ended, RFC 3339 in UTC.
    pub created_at: Timestamp,
    /// Time of the newest change, RFC 3339 in UTC.
    pub updated_at: Timestamp,
}

/// The request that a run carries out.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AutomationPlan {
    /// The repository as the session named it.
    pub repository: String,
    pub mode: WantedMode,
    /// True if nothing is changed at GitHub.
    pub dry_run: bool,
    /// The requested name of the branch.
    pub branch_name: Option<String>,
    /// The requested branch that the pull request proposes to change.
    pub base_branch: Option<String>,
    /// Number of an existing issue that was requested.
    pub issue: Option<u64>,
    pub draft: bool,
    pub labels: Vec<String>,
    pub assignees: Vec<String>,
    pub reviewers: Vec<String>,
    /// Patterns of protected paths.
    pub protected_paths: Vec<String>,
    pub protection: Protection,
}

/// A step of a run that has begun.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AutomationStep {
    pub step: StepName,
    pub state: StepState,
    /// The stable code of the failure.
    pub code: Option<String>,
    /// Description of the failure, with advice.
    pub message: Option<String>,
    /// The earliest time of a repetition, as GitHub stated it.
    pub retry_at: Option<Timestamp>,
}

/// The changes of a turn.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AutomationChanges {
    /// Hash of the commit on which the changes are based.
    pub parent: String,
    /// Number of changed files.
    pub total: u64,
    /// Number of changed files that the repository ignores, and that are in no commit.
    pub ignored: u64,
    /// The branch that was cloned.
    pub base_branch: Option<String>,
    /// Changed files, at most 1,000.
    #[schema(max_items = 1000)]
    pub files: Option<Vec<AutomationFile>>,
    /// Why the changes cannot be pushed; the first decides.
    pub findings: Option<Vec<AutomationFinding>>,
}

/// A changed file.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AutomationFile {
    pub path: String,
    /// Bytes of the new content; 0 for a deleted file.
    pub bytes: u64,
    pub deleted: bool,
}

/// Something in the changes that must not be pushed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AutomationFinding {
    pub detail: SkipDetail,
    pub path: String,
    /// Line, from 1.
    pub line: Option<u64>,
    /// The rule, or the measured and the allowed size; never the content.
    pub rule: String,
}

/// The issue of a run.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AutomationRunIssue {
    pub number: u64,
    pub url: String,
    pub title: Option<String>,
}

/// The commit of a run.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AutomationRunCommit {
    /// Hash of the commit, 40 hexadecimal digits in lower case.
    #[schema(pattern = "^[0-9a-f]{40}$")]
    pub sha: String,
    pub message: Option<String>,
}

/// A commit that is kept at the runtime.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AutomationKept {
    /// Bytes of the bundle.
    pub bundle_bytes: u64,
    /// Bytes of the patch.
    pub patch_bytes: u64,
    /// True if the patch is cut at its limit; the bundle is whole.
    pub patch_cut: bool,
}

/// Parameters of `GET /acp/automation/{id}/rescue`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct RescueQuery {
    /// `bundle` (the default) for `git fetch`, or `patch` for `git am`.
    #[serde(default)]
    #[param(inline)]
    pub format: RescueFormat,
}

/// Form of a kept commit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RescueFormat {
    #[default]
    Bundle,
    Patch,
}

impl RescueFormat {
    /// Its name, which is also the end of file names.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Bundle => "bundle",
            Self::Patch => "patch",
        }
    }

    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Bundle => "application/octet-stream",
            Self::Patch => "text/x-patch; charset=utf-8",
        }
    }
}

/// Schema of a bundle.
#[derive(Debug)]
pub(crate) struct RescueFile;

impl PartialSchema for RescueFile {
    fn schema() -> RefOr<Schema> {
        let mut file = ObjectBuilder::new().schema_type(Type::String).description(Some("A file of git.")).build();
        file.content_media_type = "application/octet-stream".into();
        Schema::Object(file).into()
    }
}

impl ToSchema for RescueFile {
    fn name() -> std::borrow::Cow<'static, str> {
        "AutomationRescueFile".into()
    }
}

/// Body of `POST /acp/automation/{id}/retry`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(examples(json!({})))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RetryBody {
    /// GitHub token for the attempt, with write access to contents, issues and pull requests of the repository. It stays in
    /// memory. Without it the attempt uses the service's credential, unless the turn was given a token.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = "password", write_only, pattern = "^[!-~]{1,4096}$")]
    pub github_token: Option<SecretString>,
}

/// Content of the event `automation`: a step of a run began or ended.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "camelCase")]
#[allow(dead_code, reason = "a schema; `actors/automation` writes the JSON")]
pub(crate) struct AutomationProgress {
    /// Id of the run, for `GET /acp/automation/{id}`.
    run_id: Uuid,
    /// Number of the attempt, from 1.
    attempt: u32,
    step: StepName,
    state: StepState,
    /// The stable code of a failure; absent otherwise.
    #[schema(nullable = false)]
    code: Option<String>,
}

/// Numbers of ended attempts of automation, by outcome. Skips before a run began are included.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AutomationCounts {
    /// All of them.
    pub runs: u64,
    pub success: u64,
    pub skipped: u64,
    pub error: u64,
    /// The share of successes among successes and errors, 0 to 1; null without either.
    pub success_rate: Option<f64>,
    /// Numbers of skips by reason; reasons without a skip are omitted.
    pub skips: BTreeMap<String, u64>,
}

impl AutomationCounts {
    /// Derives the sums and the success rate.
    pub(crate) fn new(success: u64, error: u64, skips: BTreeMap<String, u64>) -> Self {
        let (skipped, ended) = (skips.values().sum::<u64>(), success + error);
        let success_rate = (ended > 0).then(|| success as f64 / ended as f64);
        Self { runs: ended + skipped, success, skipped, error, success_rate, skips }
    }

    pub(crate) fn plus(self, other: &Self) -> Self {
        let mut skips = self.skips;
        for (reason, count) in &other.skips {
            *skips.entry(reason.clone()).or_default() += count;
        }
        Self::new(self.success + other.success, self.error + other.error, skips)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::audit::{AutomationRunItem, csv::csv_page};

    #[test]
    fn counts_of_days_are_added_up_by_reason() {
        let skips = |words: &[(&str, u64)]| words.iter().map(|(word, count)| ((*word).to_owned(), *count)).collect();
        let one = AutomationCounts::new(3, 1, skips(&[("rateLimited", 2)]));
        let both = one.plus(&AutomationCounts::new(0, 0, skips(&[("rateLimited", 1), ("other", 4)])));
        assert_eq!(both, AutomationCounts::new(3, 1, skips(&[("other", 4), ("rateLimited", 3)])));
        assert_eq!((both.runs, both.skipped, both.success_rate), (11, 7, Some(0.75)));
        assert_eq!(AutomationCounts::default().success_rate, None);
    }

    #[test]
    fn csv_of_automation_runs_names_the_run() {
        let header = csv_page::<AutomationRunItem>(&[]).unwrap();
        assert!(header.starts_with("runId,automationId,installationId,"), "{header}");
    }
}
