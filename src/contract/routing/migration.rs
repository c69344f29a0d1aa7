//! Migrations of fleets: plan, progress, and the state of each workspace.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{
    contract::inputs::{Actor, ChangeInitiator, Reason},
    domain::{
        clock::Timestamp,
        ids::{InstallationId, WorkspaceId},
        migration::{MigrationSkip, MigrationStatus},
        routing::{Initiator, Route},
    },
};

/// Workspaces per step by default.
pub(crate) const DEFAULT_BATCH: u32 = 10;

/// Body of `POST /acp/migrations`: the plan of a migration.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(examples(json!({"installationId": "acme", "target": "acp", "workspaces": ["demo"], "actor": "alice", "reason": "planned maintenance"})))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct MigrationBody {
    /// Name of the tenant; optional with a token of a tenant.
    pub installation_id: Option<InstallationId>,
    /// The default route to move to: `acp` or `http`.
    pub target: Route,
    /// The workspaces to move, in this order, at most 5,000. Absent: all workspaces of the tenant with another default.
    #[schema(min_items = 1, max_items = 5000)]
    pub workspaces: Option<Vec<WorkspaceId>>,
    /// `now` (default), `at`, or `automatic`: only while ACP is healthy, and only workspaces with automatic rollout.
    #[serde(default)]
    pub mode: When,
    /// Start, RFC 3339; only with the mode `at`.
    pub at: Option<Timestamp>,
    /// Workspaces per step, 1 to 1,000; default 10.
    #[schema(minimum = 1, maximum = 1000)]
    pub batch_size: Option<u32>,
    /// Failed moves that are tolerated; with one more the migration fails. Default 0.
    #[schema(format = "uint32", maximum = 4294967295u64)]
    pub max_failures: Option<u32>,
    /// A name for the audit beside the subject of the token, such as that of the person for whom a program acts. At most 128
    /// characters.
    #[schema(value_type = Option<Actor>)]
    pub actor: Option<String>,
    /// Why; recorded in the audit. At most 500 characters.
    #[schema(value_type = Reason)]
    pub reason: String,
    /// Initiator of the change: `operator` (default) or `user`.
    #[schema(value_type = Option<ChangeInitiator>)]
    pub initiated_by: Option<Initiator>,
}

/// When a migration moves workspaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) enum When {
    #[default]
    Now,
    /// From the time `at` on.
    At,
    /// Only while ACP is healthy.
    Automatic,
}

/// Body of `POST /acp/migrations/{id}/…`: the author of a change and its reason.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(examples(json!({"actor": "alice", "reason": "planned maintenance"})))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct MigrationChange {
    /// A name for the audit beside the subject of the token, such as that of the person for whom a program acts. At most 128
    /// characters.
    #[schema(value_type = Option<Actor>)]
    pub actor: Option<String>,
    /// Why; recorded in the audit. At most 500 characters.
    #[schema(value_type = Reason)]
    pub reason: String,
    /// Initiator of the change: `operator` (default) or `user`.
    #[schema(value_type = Option<ChangeInitiator>)]
    pub initiated_by: Option<Initiator>,
}

/// A migration of the workspaces of one tenant.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Migration {
    pub migration_id: uuid::Uuid,
    /// Name of the tenant.
    pub installation_id: InstallationId,
    /// The default route to move to.
    pub target: Route,
    /// When the migration moves workspaces: `now`, `at` or `automatic`.
    pub mode: When,
    /// Start, RFC 3339 in UTC; only with the mode `at`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// Number of workspaces that are moved in one step.
    pub batch_size: u32,
    /// Failed moves that are tolerated.
    pub max_failures: u32,
    /// `scheduled`, `inProgress`, `paused`, `succeeded`, `rolledBack`, `cancelled` or `failed`.
    pub status: MigrationStatus,
    /// True if the migration is moving workspaces back.
    pub is_going_back: bool,
    /// Numbers of workspaces by their progress.
    pub progress: Progress,
    /// Initiator of the last change: `operator` or `user`.
    pub initiated_by: Initiator,
    /// Subject of the token with which the last change was made.
    pub actor: String,
    /// The name that the request gave as `actor`, if it differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor_note: Option<String>,
    /// The reason for the last change, as a sentence.
    pub reason: String,
    /// Time of creation, RFC 3339 in UTC.
    pub created_at: Timestamp,
    /// Time of the first move, RFC 3339 in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// Time of the end, RFC 3339 in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// Time of the last change, RFC 3339 in UTC.
    pub updated_at: Timestamp,
    /// The state of each workspace, in order; absent in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspaces: Option<Vec<MigrationEntry>>,
}

/// Progress of a migration; the counts add up to `total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Progress {
    /// Number of workspaces in the migration.
    pub total: usize,
    /// Workspaces not yet processed.
    pub untouched: usize,
    /// Workspaces being moved, either way.
    pub moving: usize,
    /// Workspaces with the new default.
    pub moved: usize,
    /// Workspaces that were skipped, for example because they are pinned.
    pub skipped: usize,
    /// Workspaces that could not be moved.
    pub failed: usize,
    /// Workspaces that were moved back.
    pub moved_back: usize,
}

/// A workspace of a migration.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MigrationEntry {
    /// Name of the workspace within its tenant.
    pub workspace_id: WorkspaceId,
    /// Progress of the workspace in the migration.
    pub state: EntryState,
    /// Why it was skipped: `unknownWorkspace`, `alreadyThere`, `pinned`, `tenantForbids`, `acpDisabled`, `blocked`,
    /// `migrationDisabled`, `autoRolloutOff` or `httpOnly`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<MigrationSkip>,
    /// Why it could not be moved or moved back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// State of a workspace in a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) enum EntryState {
    /// Not yet processed.
    Untouched,
    Moving,
    Moved,
    Skipped,
    /// Moving it failed; it keeps its route.
    Failed,
    MovingBack,
    MovedBack,
}

/// Filters of `GET /acp/migrations`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct MigrationQuery {
    /// Only entries of this tenant.
    pub installation_id: Option<InstallationId>,
    /// Only entries with this status.
    pub status: Option<MigrationStatus>,
    /// Most entries on the page, 1 to 50.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<usize>,
    /// `nextCursor` of the previous page.
    #[param(pattern = r"^-?[0-9]{1,18}~[!-~]{0,300}$")]
    pub cursor: Option<String>,
}
