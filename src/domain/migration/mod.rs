//! Migration of a set of workspaces to another default route, in steps (FR-003): the workspaces of the next step, skips
//! with their reasons, the failure limit, and the rollback.
//!
//! Pure: the driver applies an event, commits the run, and only then acts. A move changes the workspace's default route,
//! so a running turn ends on the route on which it began.

mod run;

use serde::{Deserialize, Serialize};

use super::{
    clock::Timestamp,
    ids::{InstallationId, WorkspaceId},
    routing::{Attribution, Route},
    words::words,
};

pub(crate) use super::words::MigrationStatus;

/// The most workspaces of one migration: each takes about 80 bytes of the run's JSON, which is written with each step.
pub(crate) const MAX_WORKSPACES: usize = 5000;
/// The most workspaces of one step; equal to the live sessions that a process holds.
pub(crate) const MAX_BATCH: u32 = 1000;

/// The condition under which a migration moves workspaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub(crate) enum MigrationMode {
    Now,
    /// From a time on.
    At {
        at: Timestamp,
    },
    /// While ACP is healthy, and only workspaces with automatic rollout.
    Automatic,
}

/// The request for a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MigrationPlan {
    pub installation_id: InstallationId,
    pub target: Route,
    /// The tenant's workspaces, moved in this order; 1 to [`MAX_WORKSPACES`], each once.
    pub workspaces: Vec<WorkspaceId>,
    pub mode: MigrationMode,
    /// Workspaces of one step; 1 to [`MAX_BATCH`].
    pub batch_size: u32,
    /// Failed moves that are tolerated: one more ends the migration as failed.
    pub max_failures: u32,
}

/// The reason why a plan is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadPlan {
    #[error("a migration has 1 to {MAX_WORKSPACES} workspaces, this one has {0}")]
    Workspaces(usize),
    #[error("the workspace {0} is listed twice")]
    Twice(WorkspaceId),
    #[error("a step has 1 to {MAX_BATCH} workspaces, not {0}")]
    Batch(u32),
}

impl MigrationPlan {
    /// Checks the bounds of the plan.
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
    /// True for statuses of a migration that has ended. A rollback may still reopen it.
    pub(crate) fn is_final(self) -> bool {
        !matches!(self, Self::Scheduled | Self::InProgress | Self::Paused)
    }
}

words! {
    /// The reason why a migration skips a workspace.
    #[derive(PartialOrd, Ord)]
    MigrationSkip {
        UnknownWorkspace = "unknownWorkspace",
        /// The target is the workspace's default route already.
        AlreadyThere = "alreadyThere",
        /// A pin decides the workspace's route.
        Pinned = "pinned",
        /// The tenant's `allowMigration` is false.
        TenantForbids = "tenantForbids",
        /// The tenant's `enableAcp` is false.
        AcpDisabled = "acpDisabled",
        /// The tenant blocks the workspace's repository.
        Blocked = "blocked",
        /// The workspace's `migrationEnabled` is false.
        MigrationDisabled = "migrationDisabled",
        /// The migration is automatic, and neither the workspace's `autoRollout` nor the tenant's `autoMigration` is true.
        AutoRolloutOff = "autoRolloutOff",
        /// The workspace's runtime speaks only HTTP.
        HttpOnly = "httpOnly",
    }
}

/// The facts about a workspace that decide whether it is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WorkspaceFacts {
    /// `None` for an unknown workspace.
    pub default_route: Option<Route>,
    pub is_pinned: bool,
    /// The workspace's `migrationEnabled`: true if it may be moved to ACP at all.
    pub migration_enabled: bool,
    /// The workspace's `autoRollout`, or the tenant's `autoMigration`.
    pub auto_rollout: bool,
    /// The tenant's `allowMigration`.
    pub tenant_allows: bool,
    /// The tenant's `enableAcp`.
    pub acp_enabled: bool,
    /// True if the tenant blocks the workspace's repository.
    pub is_blocked: bool,
    /// True if the workspace's runtime speaks ACP.
    pub supports_acp: bool,
}

impl WorkspaceFacts {
    /// The first reason that holds to skip the workspace; `None` if it is to be moved. A move to HTTP requires neither a
    /// runtime that speaks ACP nor the permission to use ACP.
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
            (to_acp && !self.supports_acp, MigrationSkip::HttpOnly),
        ];
        reasons.into_iter().find_map(|(holds, reason)| holds.then_some(reason))
    }
}

/// Health of ACP over the workspaces in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FleetHealth {
    /// True while a rollback storm is open.
    pub is_storm: bool,
    pub in_use: usize,
    /// Workspaces in use that are rolled back to HTTP.
    pub rolled_back: usize,
}

/// ACP is unhealthy if more than one workspace in this number is rolled back; the same share as that of a storm.
const ROLLED_BACK_ONE_IN: usize = 10;

impl FleetHealth {
    /// True if automatic migrations may move workspaces to ACP: no storm, and at most 10 % rolled back.
    pub(crate) fn is_healthy(&self) -> bool {
        !self.is_storm && self.rolled_back.saturating_mul(ROLLED_BACK_ONE_IN) <= self.in_use
    }
}

/// The state of one workspace in a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub(crate) enum Place {
    /// Not yet part of a step.
    Untouched,
    /// The move has begun; its result is not known.
    Moving,
    /// The workspace has the new default.
    Moved {
        /// The reason why a move back failed, if one did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    Skipped {
        reason: MigrationSkip,
    },
    /// The move failed; the workspace keeps its old default.
    Failed {
        /// The reason, redacted.
        detail: String,
    },
    /// The move back has begun; its result is not known.
    MovingBack,
    /// The workspace was moved, and has its old default again.
    MovedBack,
}

/// One workspace of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    pub workspace_id: WorkspaceId,
    #[serde(flatten)]
    pub place: Place,
}

/// Counts of workspaces by state; the parts add up to the total.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MigrationProgress {
    pub total: usize,
    pub untouched: usize,
    /// Workspaces that are being moved, in either direction.
    pub moving: usize,
    pub moved: usize,
    pub skipped: usize,
    pub failed: usize,
    pub moved_back: usize,
}

/// The state of a migration; serialised as JSON in its row.
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
    /// True during and after a rollback.
    #[serde(default)]
    is_going_back: bool,
    /// The attribution of the migration or of its last change.
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
