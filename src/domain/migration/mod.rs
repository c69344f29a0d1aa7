//! A fleet of workspaces that moves to another route in steps (FR-003): whom to move next, whom to leave out and why,
//! when to stop, and the way back.
//!
//! Pure: whoever runs it applies an event, writes the run down, and only then acts. A move changes the workspace's
//! default route, so a turn that runs ends on the route on which it began.

mod run;

use serde::{Deserialize, Serialize};

use super::{
    clock::Timestamp,
    ids::{InstallationId, WorkspaceId},
    routing::{Attribution, Route},
};

pub(crate) use super::words::MigrationStatus;

/// The most workspaces of one migration: each takes about 80 bytes of the run's JSON, which is written with each step.
pub(crate) const MAX_WORKSPACES: usize = 5000;
/// The most workspaces of one step: as many as a supervisor has live sessions.
pub(crate) const MAX_BATCH: u32 = 1000;

/// When a migration moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub(crate) enum MigrationMode {
    /// At once.
    Now,
    /// From a time on.
    At {
        /// The time of day.
        at: Timestamp,
    },
    /// While ACP is healthy, and only the workspaces that are rolled out by themselves.
    Automatic,
}

/// What is to be moved, where to, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MigrationPlan {
    /// Whose workspaces.
    pub installation_id: InstallationId,
    /// The default route that they get.
    pub target: Route,
    /// Which ones, in this order; 1 to [`MAX_WORKSPACES`], each once.
    pub workspaces: Vec<WorkspaceId>,
    pub mode: MigrationMode,
    /// How many in one step; 1 to [`MAX_BATCH`].
    pub batch_size: u32,
    /// Failed moves that are tolerated: with one more the migration ends as failed. 0 tolerates none.
    pub max_failures: u32,
}

/// Why a plan is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadPlan {
    /// None, or too many.
    #[error("a migration has 1 to {MAX_WORKSPACES} workspaces, this one has {0}")]
    Workspaces(usize),
    /// One stands in it twice.
    #[error("the workspace {0} stands in the migration twice")]
    Twice(WorkspaceId),
    /// None, or too many.
    #[error("a step has 1 to {MAX_BATCH} workspaces, not {0}")]
    Batch(u32),
}

impl MigrationPlan {
    /// Whether it is within its bounds.
    pub(crate) fn check(&self) -> Result<(), BadPlan> {
        if !(1..=MAX_WORKSPACES).contains(&self.workspaces.len()) {
            return Err(BadPlan::Workspaces(self.workspaces.len()));
        }
        if !(1..=MAX_BATCH).contains(&self.batch_size) {
            return Err(BadPlan::Batch(self.batch_size));
        }
        let mut sorted: Vec<_> = self.workspaces.iter().collect();
        sorted.sort_unstable();
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(BadPlan::Twice(pair[0].clone())),
            None => Ok(()),
        }
    }
}

impl MigrationStatus {
    /// Whether it has ended; a rollback may still begin it anew.
    pub(crate) fn is_final(self) -> bool {
        !matches!(self, Self::Scheduled | Self::InProgress | Self::Paused)
    }
}

/// Why a workspace is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum MigrationSkip {
    /// There is no such workspace.
    UnknownWorkspace,
    /// The route is its default already.
    AlreadyThere,
    /// A pin decides its route.
    Pinned,
    /// The tenant's `allowMigration` is false.
    TenantForbids,
    /// The tenant's `enableAcp` is false.
    AcpDisabled,
    /// The tenant has blocked its repository.
    Blocked,
    /// Its `migrationEnabled` is false.
    MigrationDisabled,
    /// It is not moved by itself: neither its `autoRollout` nor the tenant's `autoMigration` is true.
    AutoRolloutOff,
    /// Its runtime speaks only HTTP.
    HttpOnly,
}

/// What is known of a workspace when its turn has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WorkspaceFacts {
    /// Its default route; absent where there is no such workspace.
    pub default_route: Option<Route>,
    /// Whether a pin decides its route.
    pub is_pinned: bool,
    /// Its `migrationEnabled`: whether it may be moved to ACP at all.
    pub migration_enabled: bool,
    /// Its `autoRollout`, or the tenant's `autoMigration`.
    pub auto_rollout: bool,
    /// The tenant's `allowMigration`.
    pub tenant_allows: bool,
    /// The tenant's `enableAcp`.
    pub acp_enabled: bool,
    /// Whether the tenant has blocked its repository.
    pub is_blocked: bool,
    /// Whether its runtime speaks ACP.
    pub speaks_acp: bool,
}

impl WorkspaceFacts {
    /// Why a migration leaves the workspace out, the first reason that holds; none where it is to be moved. A workspace
    /// that goes to HTTP needs neither a runtime that speaks ACP nor the permission to be moved to it.
    pub(crate) fn skips(&self, target: Route, mode: MigrationMode) -> Option<MigrationSkip> {
        let to_acp = target == Route::Acp;
        let is_automatic = mode == MigrationMode::Automatic;
        let reasons = [
            (self.default_route.is_none(), MigrationSkip::UnknownWorkspace),
            (self.default_route == Some(target), MigrationSkip::AlreadyThere),
            (self.is_pinned, MigrationSkip::Pinned),
            (!self.tenant_allows, MigrationSkip::TenantForbids),
            (to_acp && !self.acp_enabled, MigrationSkip::AcpDisabled),
            (self.is_blocked, MigrationSkip::Blocked),
            (to_acp && !self.migration_enabled, MigrationSkip::MigrationDisabled),
            (is_automatic && !self.auto_rollout, MigrationSkip::AutoRolloutOff),
            (to_acp && !self.speaks_acp, MigrationSkip::HttpOnly),
        ];
        reasons.into_iter().find_map(|(holds, reason)| holds.then_some(reason))
    }
}

/// How ACP does over the workspaces that are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FleetHealth {
    /// Whether many workspaces fall back at once.
    pub is_storm: bool,
    /// Workspaces in use.
    pub in_use: usize,
    /// Those of them that are on HTTP because they were rolled back.
    pub rolled_back: usize,
}

/// ACP is not well where more than one workspace in so many is rolled back: by the same share a storm is told.
const ROLLED_BACK_ONE_IN: usize = 10;

impl FleetHealth {
    /// Whether workspaces may be moved to ACP by themselves: no storm rages, and at most 10 % are rolled back.
    pub(crate) fn is_healthy(&self) -> bool {
        !self.is_storm && self.rolled_back.saturating_mul(ROLLED_BACK_ONE_IN) <= self.in_use
    }
}

/// Outcome of one workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub(crate) enum Place {
    /// It was not its turn.
    Untouched,
    /// Its move has begun, and nobody has said how it ended.
    Moving,
    /// It has the new default.
    Moved {
        /// Why it could not be moved back, where that was tried.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    /// It is skipped.
    Skipped { reason: MigrationSkip },
    /// It could not be moved, and is where it was.
    Failed { detail: String },
    /// Its move back has begun, and nobody has said how it ended.
    MovingBack,
    /// It was moved, and has its old default again.
    MovedBack,
}

/// One workspace of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    pub workspace_id: WorkspaceId,
    /// Outcome of it.
    #[serde(flatten)]
    pub place: Place,
}

/// How far a migration is; the parts add up to the total.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MigrationProgress {
    /// Workspaces of the plan.
    pub total: usize,
    /// Whose turn has not come.
    pub untouched: usize,
    /// That are being moved, either way.
    pub moving: usize,
    /// That have the new default.
    pub moved: usize,
    /// That were skipped.
    pub skipped: usize,
    /// That could not be moved.
    pub failed: usize,
    /// That were moved and moved back.
    pub moved_back: usize,
}

/// A migration as it is kept and as it is run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MigrationRun {
    installation_id: InstallationId,
    target: Route,
    mode: MigrationMode,
    batch_size: u32,
    max_failures: u32,
    /// In the order of the plan.
    workspaces: Vec<Entry>,
    status: MigrationStatus,
    /// Whether it moves back.
    #[serde(default)]
    is_going_back: bool,
    /// Who wanted it, or its last change, and why.
    attribution: Attribution,
    created: Timestamp,
    #[serde(default)]
    started: Option<Timestamp>,
    #[serde(default)]
    completed: Option<Timestamp>,
}

pub(crate) use self::run::{IllegalChange, NextStep};

#[cfg(test)]
mod tests;
