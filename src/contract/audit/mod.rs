//! Audit records: what was decided and done, as JSON members and CSV columns.
//!
//! Absent values are null and never omitted, so that every row of a table has the same columns.

pub(crate) mod csv;
pub(crate) mod query;
pub(crate) mod summary;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    contract::{
        automation::{AutomationMode, AutomationStatus, SkipDetail, SkipReason},
        notifications::notification::{Severity, Trigger},
    },
    domain::{
        capacity::{AlertKind, AlertLevel},
        changes::ChangeKind,
        clock::Timestamp,
        erasure::EraseScope,
        ids::{InstallationId, PromptId, SessionId, UserId, WorkspaceId},
        routing::{FlipTrigger, Initiator, Route},
        session::connection::ConnectionStatus,
        turn::outcome::ErrorCode,
        words::{FollowUp, MigrationStatus, ReasonCode, RollbackKind},
    },
};

/// Outcome of a handshake, in the document.
#[derive(Debug, ToSchema)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "a schema; `store/audit` has the words")]
pub(crate) enum HandshakeOutcome {
    Connected,
    Failed,
}

/// A change of a connection's status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TransitionItem {
    #[schema(value_type = ConnectionStatus)]
    pub status: String,
    pub cause: String,
    /// Turns, success rate, latency and last heartbeat at that moment; null if nothing was measured.
    pub health: Value,
    pub at: Timestamp,
}

/// A flip of a workspace's route, or a step of a migration run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MigrationItem {
    pub migration_id: Uuid,
    /// The migration run that the step belongs to; null for a flip outside a run.
    pub run_id: Option<Uuid>,
    pub installation_id: InstallationId,
    pub workspace_id: WorkspaceId,
    pub from_protocol: Route,
    pub to_protocol: Route,
    /// The epoch that began with the flip; null if nothing was flipped.
    pub epoch: Option<u64>,
    /// Initiator of the flip: `system`, `operator` or `user`.
    pub initiated_by: Initiator,
    /// The initiator: the subject of the token, or `lumilink`.
    pub actor: String,
    /// The name that the request gave as `actor`, if it differs; null otherwise.
    pub actor_note: Option<String>,
    /// The reason as a word: `autoThreshold`, `manualOperator`, `manualUser`, `recovery`, `pin` or `migration`.
    pub trigger: FlipTrigger,
    /// The reason as a sentence.
    pub reason: String,
    /// `scheduled`, `inProgress`, `paused`, `succeeded`, `rolledBack`, `cancelled` or `failed`.
    pub status: MigrationStatus,
    /// The measurements on which the decision was based.
    pub metrics: Value,
    /// When it began, or is scheduled to begin.
    pub started_at: Timestamp,
    /// When it ended; null until then.
    pub completed_at: Option<Timestamp>,
}

/// A rollback to HTTP, or a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RollbackEventItem {
    pub event_id: Uuid,
    pub installation_id: InstallationId,
    pub workspace_id: WorkspaceId,
    /// The epoch that began with the flip.
    pub epoch: u64,
    /// Direction of the flip: `rollback` (to HTTP) or `restore` (to ACP).
    pub kind: RollbackKind,
    /// The reason for the flip as a word, as in migrations.
    pub trigger: FlipTrigger,
    /// The reason as a word, such as `threshold`, `manual` or `capacity`.
    pub reason_code: ReasonCode,
    /// The initiator: the subject of the token, or `lumilink`.
    pub actor: String,
    /// The name that the request gave as `actor`, if it differs; null otherwise.
    pub actor_note: Option<String>,
    /// The reason as a sentence.
    pub reason: String,
    /// The follow-up that was requested: `notifyUsers` or `scheduleReview`; null for none.
    pub follow_up: Option<FollowUp>,
    /// The measurements on which the decision was based.
    pub metrics: Value,
    pub created_at: Timestamp,
}

/// A handshake with an agent, and the later changes of its connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConnectionItem {
    /// The record, not the connection: `connectionId` names that.
    pub connection_row_id: Uuid,
    pub installation_id: InstallationId,
    pub workspace_id: WorkspaceId,
    /// The session; null for a probe of the workspace.
    pub session_id: Option<SessionId>,
    /// The runtime's name for the connection; null if the handshake failed before it got one.
    pub connection_id: Option<String>,
    /// The protocol of the connection.
    pub protocol: Route,
    /// `connected`, or `failed` with `errorCode`.
    #[schema(value_type = HandshakeOutcome)]
    pub outcome: &'static str,
    /// The last status: `connected`, `degraded`, `reconnecting`, `error` or `rolledBack`.
    #[schema(value_type = ConnectionStatus)]
    pub status: String,
    /// The negotiated protocol version; null if none was.
    pub protocol_version: Option<u16>,
    /// The agent's name, as the agent reported it.
    pub agent_name: Option<String>,
    /// The agent's version, as the agent reported it.
    pub agent_version: Option<String>,
    /// The capabilities that the agent reported; null if it reported none.
    pub capabilities: Value,
    /// The stable error code of a failed handshake.
    #[schema(value_type = Option<ErrorCode>)]
    pub error_code: Option<&'static str>,
    /// The reason as a sentence.
    pub error_detail: Option<String>,
    /// Duration of the handshake in milliseconds.
    pub handshake_ms: u64,
    /// True if the handshake was a probe for the recovery of ACP.
    pub is_probe: bool,
    /// Time at which the handshake ended, RFC 3339 in UTC.
    pub created_at: Timestamp,
    /// Turns, success rate, latency and last heartbeat at the last change that was measured; null if none was.
    pub health: Value,
    /// The changes of its status, oldest first.
    pub transitions: Vec<TransitionItem>,
}

/// Outcome of automation for the changes of a turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AutomationRunItem {
    pub run_id: Uuid,
    /// The run of `GET /acp/automation/{id}`, of which this is one attempt; null if automation was skipped before it began.
    pub automation_id: Option<Uuid>,
    pub installation_id: InstallationId,
    pub workspace_id: WorkspaceId,
    pub session_id: SessionId,
    pub prompt_id: Option<PromptId>,
    /// Outcome of the run: `success`, `skipped` or `error`.
    #[schema(value_type = AutomationStatus)]
    pub status: String,
    /// Requested mode: `github` or `commit-only`.
    #[schema(value_type = AutomationMode)]
    pub mode: String,
    pub issue_number: Option<u64>,
    pub issue_url: Option<String>,
    pub pull_request_number: Option<u64>,
    pub pull_request_url: Option<String>,
    pub branch: Option<String>,
    /// Hash of the commit, 40 hexadecimal digits; null without a commit.
    pub commit_sha: Option<String>,
    /// The reason for a skip as a word; null unless `status` is `skipped`.
    #[schema(value_type = Option<SkipReason>)]
    pub skip_reason: Option<String>,
    /// The exact cause within `skipReason`.
    #[schema(value_type = Option<SkipDetail>)]
    pub skip_detail: Option<String>,
    /// Duration of the run, in milliseconds.
    pub duration_ms: u64,
    /// Attempts, the successful one included.
    pub attempts: u32,
    /// The stable error code of a failed run.
    pub error_code: Option<String>,
    /// The log of the run: a list of lines.
    pub logs: Value,
    /// Time at which the run ended, RFC 3339 in UTC.
    pub created_at: Timestamp,
}

/// A change of a capacity alert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CapacityAlertItem {
    pub event_id: Uuid,
    /// The alert: the same id for all its levels and their resolution.
    pub alert_id: Uuid,
    /// The tenant whose share the alert is about; null for the whole service.
    pub installation_id: Option<InstallationId>,
    /// Level of the alert: `warning` or `critical`.
    #[schema(value_type = AlertLevel)]
    pub level: &'static str,
    /// Change of the alert: `raised` or `resolved`.
    #[schema(value_type = AlertKind)]
    pub kind: &'static str,
    /// Seats in use at that moment.
    pub taken: usize,
    /// Seats that the service or the tenant may use.
    pub limit: usize,
    pub created_at: Timestamp,
}

/// An erasure of a session, a workspace or a tenant: what was asked for, and numbers of removed things.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ErasureItem {
    pub erasure_id: Uuid,
    /// `session`, `workspace` or `tenant`.
    pub scope: EraseScope,
    pub installation_id: InstallationId,
    /// Null for a tenant.
    pub workspace_id: Option<WorkspaceId>,
    /// Null for a workspace or tenant.
    pub session_id: Option<SessionId>,
    /// Name of the person or program that asked for it.
    pub actor: String,
    /// Sessions.
    pub sessions: u64,
    /// Turns with their results.
    pub turns: u64,
    /// Entries of transcripts.
    pub transcript_entries: u64,
    /// Notifications.
    pub notifications: u64,
    /// Rows beside these: routes, settings, keys, records of connections and flips, read marks, deliveries.
    pub records: u64,
    /// Workspaces.
    pub workspaces: u64,
    /// Folders of workspaces; a folder that was given by `path` is never removed.
    pub folders: u64,
    /// Private home folders of agents.
    pub homes: u64,
    /// Conversations that agents removed from their own history.
    pub agent_histories: u64,
    /// Conversations whose agent offers the removal and did not confirm it.
    pub agent_histories_left: u64,
    pub created_at: Timestamp,
    /// Null while the erasure is in progress.
    pub ended_at: Option<Timestamp>,
}

/// An administrative change: settings of a tenant, or a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ChangeItem {
    pub change_id: Uuid,
    /// The tenant that it is about; null for the whole service.
    pub installation_id: Option<InstallationId>,
    /// `tenantSettings`, `tenantProtocol` (route defaults and blocked repositories), `tokenCreated` or `tokenRevoked`.
    pub kind: ChangeKind,
    /// The tenant or the id of the token.
    pub object: String,
    /// The subject of the token with which it was made.
    pub actor: String,
    /// The name that the request gave as `actor`, if it differs; null otherwise.
    pub actor_note: Option<String>,
    /// The reason that the request gave; null for tokens.
    pub reason: Option<String>,
    /// The members that changed, as they were before; null for a token. Of a list with more than 100 entries the first 100,
    /// and the number of the others.
    pub before: Value,
    /// The same members as they are after; for a token its subject, role, scope, limits and expiry.
    pub after: Value,
    pub created_at: Timestamp,
}

/// A notification to users or operators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NotificationItem {
    pub notification_id: Uuid,
    /// Null for operators.
    pub installation_id: Option<InstallationId>,
    /// Null for operators.
    pub workspace_id: Option<WorkspaceId>,
    /// The session that the notification is about; null for a whole workspace.
    pub session_id: Option<SessionId>,
    pub user_id: Option<UserId>,
    /// The stream: `tenant:` and the tenant, or `operators`.
    pub stream: String,
    /// The number in the stream, from 1.
    pub seq: u64,
    pub title: String,
    pub body: String,
    /// Severity of the notification: `info`, `warning` or `error`.
    #[schema(value_type = Severity)]
    pub severity: &'static str,
    /// The event that caused the notification, as a word.
    #[schema(value_type = Trigger)]
    pub trigger: &'static str,
    /// Display time in a client, in milliseconds.
    pub auto_dismiss_ms: u64,
    /// The record that caused it. Each cause is notified once.
    pub cause_id: String,
    pub created_at: Timestamp,
}
