//! Migrations of fleets: what is moved, how far that is, and what became of each workspace.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::domain::{
    clock::Timestamp,
    ids::{InstallationId, WorkspaceId},
    migration::{MigrationSkip, MigrationStatus},
    routing::{Initiator, Route},
};

/// How many workspaces one step moves where nothing else is said.
pub(crate) const DEFAULT_BATCH: u32 = 10;

/// `POST /acp/migrations`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct MigrationBody {
    /// The tenant.
    #[schema(value_type = String)]
    pub installation_id: InstallationId,
    /// The default route that the workspaces get: `acp` or `http`.
    #[schema(value_type = String)]
    pub target: Route,
    /// Which ones, in this order, at most 5,000; left out: all of the tenant's with another default.
    #[schema(value_type = Option<Vec<String>>, min_items = 1, max_items = 5000)]
    pub workspaces: Option<Vec<WorkspaceId>>,
    /// `now` (default), `at`, or `automatic`: while ACP is healthy, and only those that are moved by themselves.
    #[serde(default)]
    pub mode: When,
    /// When it begins, RFC 3339; with the mode `at` alone.
    #[schema(value_type = Option<String>, format = "date-time")]
    pub at: Option<Timestamp>,
    /// How many one step moves, 1 to 1,000; 10 where it is left out.
    #[schema(minimum = 1, maximum = 1000)]
    pub batch_size: Option<u32>,
    /// Failed moves that are tolerated; with one more it ends as failed. 0 where it is left out.
    pub max_failures: Option<u32>,
    /// Who wants it, at most 128 characters.
    #[schema(max_length = 128)]
    pub actor: String,
    /// Why, at most 500 characters.
    #[schema(max_length = 500)]
    pub reason: String,
    /// In whose name: `operator` (default) or `user`.
    #[schema(value_type = Option<String>)]
    pub initiated_by: Option<Initiator>,
}

/// When a migration moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) enum When {
    /// At once.
    #[default]
    Now,
    /// From a time on.
    At,
    /// While ACP is healthy.
    Automatic,
}

/// `POST /acp/migrations/{id}/…`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct MigrationChange {
    /// Who wants it, at most 128 characters.
    #[schema(max_length = 128)]
    pub actor: String,
    /// Why, at most 500 characters.
    #[schema(max_length = 500)]
    pub reason: String,
    /// In whose name: `operator` (default) or `user`.
    #[schema(value_type = Option<String>)]
    pub initiated_by: Option<Initiator>,
}

/// A migration.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Migration {
    /// Its id.
    #[schema(value_type = String)]
    pub migration_id: uuid::Uuid,
    /// The tenant.
    #[schema(value_type = String)]
    pub installation_id: InstallationId,
    /// The default route that the workspaces get.
    #[schema(value_type = String)]
    pub target: Route,
    /// When it moves.
    pub mode: When,
    /// When it begins, RFC 3339 in UTC; only of the mode `at`.
    #[schema(value_type = Option<String>, format = "date-time")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// How many one step moves.
    pub batch_size: u32,
    /// Failed moves that are tolerated.
    pub max_failures: u32,
    /// `scheduled`, `inProgress`, `paused`, `succeeded`, `rolledBack`, `cancelled` or `failed`.
    #[schema(value_type = String)]
    pub status: MigrationStatus,
    /// Whether it moves back what it moved.
    pub is_going_back: bool,
    /// How far it is.
    pub progress: Progress,
    /// In whose name it, or its last change, was wanted.
    #[schema(value_type = String)]
    pub initiated_by: Initiator,
    /// Who wanted that.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// When it was planned, RFC 3339 in UTC.
    #[schema(value_type = String, format = "date-time")]
    pub created_at: Timestamp,
    /// When it began.
    #[schema(value_type = Option<String>, format = "date-time")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[schema(value_type = Option<String>, format = "date-time")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// When it was last written down.
    #[schema(value_type = String, format = "date-time")]
    pub updated_at: Timestamp,
    /// What became of each workspace, in order; left out in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspaces: Option<Vec<MigrationEntry>>,
}

/// How far a migration is; the parts add up to the total.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Progress {
    /// Workspaces.
    pub total: usize,
    /// Whose turn has not come.
    pub untouched: usize,
    /// That are being moved, either way.
    pub moving: usize,
    /// That have the new default.
    pub moved: usize,
    /// That were left out.
    pub skipped: usize,
    /// That could not be moved.
    pub failed: usize,
    /// That were moved and moved back.
    pub moved_back: usize,
}

/// A workspace of a migration.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MigrationEntry {
    /// Which one.
    #[schema(value_type = String)]
    pub workspace_id: WorkspaceId,
    /// What became of it.
    pub state: EntryState,
    /// Why it was left out: `unknownWorkspace`, `alreadyThere`, `pinned`, `tenantForbids`, `acpDisabled`, `blocked`,
    /// `migrationDisabled`, `autoRolloutOff` or `httpOnly`.
    #[schema(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<MigrationSkip>,
    /// Why it could not be moved, or not back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What became of a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) enum EntryState {
    /// It was not its turn.
    Untouched,
    /// It is being moved.
    Moving,
    /// It has the new default.
    Moved,
    /// It was left out.
    Skipped,
    /// It could not be moved, and is where it was.
    Failed,
    /// It is being moved back.
    MovingBack,
    /// It has its old default again.
    MovedBack,
}

/// Filters of `GET /acp/migrations`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct MigrationQuery {
    /// Only this tenant's.
    #[param(value_type = Option<String>)]
    pub installation_id: Option<InstallationId>,
    /// Only those that stand there.
    #[param(value_type = Option<String>)]
    pub status: Option<MigrationStatus>,
    /// Entries on the page, up to 50.
    pub limit: Option<usize>,
    /// `nextCursor` of the page before.
    pub cursor: Option<String>,
}
