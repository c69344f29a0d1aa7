//! Migrations of fleets: begins, changes and runs them. One driver per supervisor; the rules are in
//! [`crate::domain::migration`].
//!
//! Invariant: a run is written to disk, guarded by its version, before any of its steps is made. So only one of two
//! supervisors makes a step, and the next driver that reads the run settles the steps of a process that died.

mod driver;
mod moves;
mod pass;
pub(crate) mod tenant;

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;
use uuid::Uuid;

use super::workspaces::Workspaces;
use crate::{
    domain::{
        clock::Timestamp,
        ids::{InstallationId, WorkspaceId},
        migration::{IllegalChange, MigrationPlan, MigrationRun},
        routing::{Attribution, Route},
        turn::outcome::{ErrorCode, Failure},
    },
    store::{self, MigrationRunRow, SaveMigrationRun, SavedMigrationRun},
};

/// Pause before a database operation is retried.
const RETRY: Duration = Duration::from_secs(1);

/// Handle to the migrations of fleets. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Migrations(Arc<Inner>);

struct Inner {
    workspaces: Workspaces,
    changed: Notify,
    /// True if no other supervisor uses the database.
    is_alone: bool,
    /// Interval between searches for workspaces to be moved automatically.
    auto_look: Duration,
}

/// A change of a run, requested by a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunChange {
    /// Moves no further workspaces until the run is resumed.
    Pause,
    Resume,
    Cancel,
    /// Moves back the workspaces that the run has moved.
    RollBack,
}

impl Migrations {
    /// Creates the handle for the workspaces of one database. `is_alone` means that no other supervisor uses the
    /// database, so that steps in progress at the start belong to no live process.
    pub(crate) fn new(workspaces: Workspaces, is_alone: bool, auto_look: Duration) -> Self {
        Self(Arc::new(Inner { workspaces, changed: Notify::new(), is_alone, auto_look }))
    }

    /// Begins a run.
    ///
    /// # Errors
    /// `invalid_request` for an invalid plan. After a database error the run may have begun.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the run begun.
    pub(crate) async fn begin(
        &self,
        plan: MigrationPlan,
        attribution: Attribution,
    ) -> Result<MigrationRunRow, Failure> {
        let services = self.0.workspaces.services();
        let now = services.clock.now();
        let run = MigrationRun::new(plan, attribution, now)
            .map_err(|cause| Failure::new(ErrorCode::InvalidRequest, cause.to_string()))?;
        let run_id = Uuid::now_v7();
        let save = SaveMigrationRun { run_id, expected_version: 0, run: run.clone(), now };
        match services.store.save_migration_run(save).await.map_err(|cause| store::failure(&cause))? {
            SavedMigrationRun::Saved(version) => {
                self.0.changed.notify_one();
                Ok(MigrationRunRow { run_id, run, version, updated: now })
            }
            SavedMigrationRun::Stale(_) => Err(Failure::new(ErrorCode::Internal, "the id of a new run is taken")),
        }
    }

    /// Changes a run.
    ///
    /// # Errors
    /// `not_found`, or `migration_state` if the run does not allow the change. After a database error the change may
    /// have been written.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the change written.
    pub(crate) async fn change(
        &self,
        run_id: Uuid,
        change: RunChange,
        attribution: &Attribution,
    ) -> Result<MigrationRunRow, Failure> {
        let services = self.0.workspaces.services();
        let failed = |cause| store::failure(&cause);
        let mut found = services.store.migration_run(run_id).await.map_err(failed)?;
        loop {
            let mut row = found.ok_or_else(|| Failure::new(ErrorCode::NotFound, "no migration with this id"))?;
            let now = services.clock.now();
            apply(&mut row.run, change, attribution.clone(), now)
                .map_err(|cause| Failure::new(ErrorCode::MigrationState, cause.to_string()))?;
            let save = SaveMigrationRun { run_id, expected_version: row.version, run: row.run.clone(), now };
            match services.store.save_migration_run(save).await.map_err(failed)? {
                SavedMigrationRun::Saved(version) => {
                    self.0.changed.notify_one();
                    return Ok(MigrationRunRow { version, updated: now, ..row });
                }
                // The driver wrote the run at the same moment.
                SavedMigrationRun::Stale(now) => found = now.map(|row| *row),
            }
        }
    }

    /// The workspaces that a migration to `target` applies to if it names none: the tenant's workspaces with another
    /// default, at most [`crate::domain::migration::MAX_WORKSPACES`]. Cancel-safe.
    pub(crate) async fn with_another_default(
        &self,
        installation: &InstallationId,
        target: Route,
    ) -> Result<Vec<WorkspaceId>, Failure> {
        let store = &self.0.workspaces.services().store;
        let failed = |cause| store::failure(&cause);
        let tenant = store.tenant_protocol(installation.clone()).await.map_err(failed)?;
        moves::with_another_default(store, installation, tenant.as_ref(), target).await.map_err(failed)
    }
}

fn apply(
    run: &mut MigrationRun,
    change: RunChange,
    attribution: Attribution,
    now: Timestamp,
) -> Result<(), IllegalChange> {
    match change {
        RunChange::Pause => run.pause(attribution),
        RunChange::Resume => run.resume(attribution, now),
        RunChange::Cancel => run.cancel(attribution, now),
        RunChange::RollBack => run.roll_back(attribution, now),
    }
}
