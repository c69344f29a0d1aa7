//! Records of what was decided and done, as they are read for an audit.
//!
//! Nothing is left out of a record but stands as null, so that a table has the same columns whatever its rows are.

pub(crate) mod csv;
pub(crate) mod query;
pub(crate) mod summary;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::domain::{
    clock::Timestamp,
    ids::{InstallationId, PromptId, SessionId, UserId, WorkspaceId},
    routing::{FlipTrigger, Initiator, Route},
    words::{FollowUp, MigrationStatus, ReasonCode, RollbackKind},
};

/// A change of a connection's status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TransitionItem {
    /// The new status.
    pub status: String,
    /// Why.
    pub cause: String,
    /// What was measured at that moment; null where nothing was.
    pub health: Value,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// One flip of a workspace's route, or one step of a migration run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MigrationItem {
    /// Its id.
    #[schema(value_type = String)]
    pub migration_id: Uuid,
    /// The run of which it is a step; null where it is none.
    #[schema(value_type = Option<String>)]
    pub run_id: Option<Uuid>,
    /// The tenant.
    #[schema(value_type = String)]
    pub installation_id: InstallationId,
    /// The tenant's name for the workspace.
    #[schema(value_type = String)]
    pub workspace_id: WorkspaceId,
    /// The route before.
    #[schema(value_type = String)]
    pub from_protocol: Route,
    /// The route after.
    #[schema(value_type = String)]
    pub to_protocol: Route,
    /// The epoch that began with it; null where nothing was flipped.
    pub epoch: Option<u64>,
    /// In whose name: `system`, `operator` or `user`.
    #[schema(value_type = String)]
    pub initiated_by: Initiator,
    /// Who.
    pub actor: String,
    /// Why, as a word: `autoThreshold`, `manualOperator`, `manualUser`, `recovery`, `pin` or `migration`.
    #[schema(value_type = String)]
    pub trigger: FlipTrigger,
    /// Why, in a sentence.
    pub reason: String,
    /// Where it stands: `scheduled`, `inProgress`, `paused`, `succeeded`, `rolledBack`, `cancelled` or `failed`.
    #[schema(value_type = String)]
    pub status: MigrationStatus,
    /// What was measured when it was decided.
    pub metrics: Value,
    /// When it began, or will.
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// When it ended; null while it has not.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub completed_at: Option<Timestamp>,
}

/// A rollback to HTTP, or a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RollbackEventItem {
    /// Its id.
    #[schema(value_type = String)]
    pub event_id: Uuid,
    /// The tenant.
    #[schema(value_type = String)]
    pub installation_id: InstallationId,
    /// The tenant's name for the workspace.
    #[schema(value_type = String)]
    pub workspace_id: WorkspaceId,
    /// The epoch that began with it.
    pub epoch: u64,
    /// `rollback` or `restore`.
    #[schema(value_type = String)]
    pub kind: RollbackKind,
    /// What flipped it.
    #[schema(value_type = String)]
    pub trigger: FlipTrigger,
    /// Why, as a word.
    #[schema(value_type = String)]
    pub reason_code: ReasonCode,
    /// Who.
    pub actor: String,
    /// Why, in a sentence.
    pub reason: String,
    /// What is to be done about it: `notifyUsers` or `scheduleReview`; null for nothing.
    #[schema(value_type = Option<String>)]
    pub follow_up: Option<FollowUp>,
    /// What was measured when it was decided.
    pub metrics: Value,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// A handshake, and what became of the connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConnectionItem {
    /// The id of the record.
    #[schema(value_type = String)]
    pub connection_row_id: Uuid,
    /// The tenant.
    #[schema(value_type = String)]
    pub installation_id: InstallationId,
    /// The tenant's name for the workspace.
    #[schema(value_type = String)]
    pub workspace_id: WorkspaceId,
    /// For which session; null for a probe of the workspace.
    #[schema(value_type = Option<String>)]
    pub session_id: Option<SessionId>,
    /// As the runtime named it; null where it got no name.
    pub connection_id: Option<String>,
    /// What carried it.
    #[schema(value_type = String)]
    pub protocol: Route,
    /// `connected`, or `failed` with `errorCode`.
    #[schema(value_type = String)]
    pub outcome: &'static str,
    /// What became of it last: `connected`, `degraded`, `reconnecting`, `error` or `rolledBack`.
    pub status: String,
    /// The negotiated version; null where none was.
    pub protocol_version: Option<u16>,
    /// What the agent called itself.
    pub agent_name: Option<String>,
    /// Which version it said that it was.
    pub agent_version: Option<String>,
    /// What the agent can do, as it said; null where it said nothing.
    pub capabilities: Value,
    /// Why the handshake failed, as a stable code.
    #[schema(value_type = Option<String>)]
    pub error_code: Option<&'static str>,
    /// Why, in a sentence.
    pub error_detail: Option<String>,
    /// How long the handshake took.
    pub handshake_ms: u64,
    /// Whether it only tried whether ACP is well again.
    pub is_probe: bool,
    /// When the handshake ended.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// How it was when it last changed: turns, success rate, latency, last heartbeat; null where nothing was measured.
    pub health: Value,
    /// The changes of its status, oldest first.
    pub transitions: Vec<TransitionItem>,
}

/// What became of the changes of a turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AutomationRunItem {
    /// Its id.
    #[schema(value_type = String)]
    pub run_id: Uuid,
    /// The tenant.
    #[schema(value_type = String)]
    pub installation_id: InstallationId,
    /// The tenant's name for the workspace.
    #[schema(value_type = String)]
    pub workspace_id: WorkspaceId,
    /// The session.
    #[schema(value_type = String)]
    pub session_id: SessionId,
    /// The turn.
    #[schema(value_type = Option<String>)]
    pub prompt_id: Option<PromptId>,
    /// `success`, `skipped` or `error`.
    pub status: String,
    /// `github` or `commit-only`.
    pub mode: String,
    /// The issue.
    pub issue_number: Option<u64>,
    /// Where to see it.
    pub issue_url: Option<String>,
    /// The pull request.
    pub pull_request_number: Option<u64>,
    /// Where to see it.
    pub pull_request_url: Option<String>,
    /// The branch.
    pub branch: Option<String>,
    /// The commit, 40 hexadecimal digits.
    pub commit_sha: Option<String>,
    /// Why it was left out.
    pub skip_reason: Option<String>,
    /// The same, exactly.
    pub skip_detail: Option<String>,
    /// How long it took.
    pub duration_ms: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// Why it failed.
    pub error_code: Option<String>,
    /// What it logged: a list of lines.
    pub logs: Value,
    /// When it ended.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// One change of an alert of capacity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CapacityAlertItem {
    /// Its id.
    #[schema(value_type = String)]
    pub event_id: Uuid,
    /// The alert: the same for all its levels, and for what becomes of them.
    #[schema(value_type = String)]
    pub alert_id: Uuid,
    /// The tenant whose share it is about; null for the whole service.
    #[schema(value_type = Option<String>)]
    pub installation_id: Option<InstallationId>,
    /// `warning` or `critical`.
    #[schema(value_type = String)]
    pub level: &'static str,
    /// `raised` or `resolved`.
    #[schema(value_type = String)]
    pub kind: &'static str,
    /// Seats taken at that moment.
    pub taken: usize,
    /// Seats there were.
    pub limit: usize,
    /// When it was decided.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// What was told to users or operators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NotificationItem {
    /// Its id.
    #[schema(value_type = String)]
    pub notification_id: Uuid,
    /// The tenant; null where it was for operators.
    #[schema(value_type = Option<String>)]
    pub installation_id: Option<InstallationId>,
    /// The tenant's name for the workspace; null where it was for operators.
    #[schema(value_type = Option<String>)]
    pub workspace_id: Option<WorkspaceId>,
    /// The session, where it is about one.
    #[schema(value_type = Option<String>)]
    pub session_id: Option<SessionId>,
    /// The session's user.
    #[schema(value_type = Option<String>)]
    pub user_id: Option<UserId>,
    /// The sequence in which it stands: `tenant:` and the tenant, or `operators`.
    pub stream: String,
    /// Its place there.
    pub seq: u64,
    /// The title.
    pub title: String,
    /// The text.
    pub body: String,
    /// `info`, `warning` or `error`.
    pub severity: &'static str,
    /// What made it.
    pub trigger: &'static str,
    /// How long it is shown.
    pub auto_dismiss_ms: u64,
    /// The record of which it tells.
    pub cause_id: String,
    /// When it was written.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}
