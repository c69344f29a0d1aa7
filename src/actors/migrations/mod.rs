//! Migrations of fleets: begins, changes and runs them. One driver in each supervisor; the rules are in
//! [`crate::domain::migration`].
//!
//! Invariant: a run is written to disk before anything of it is done, guarded by its version. So of two supervisors one
//! makes a step, and what a process that died has begun is settled by whoever looks at it next.

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

/// Pause before the database is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// Migrations of fleets. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Migrations(Arc<Inner>);

struct Inner {
    workspaces: Workspaces,
    /// Wakes the driver.
    changed: Notify,
    /// Whether no other supervisor uses the database.
    is_alone: bool,
    /// How often workspaces are looked for that are to be moved by themselves.
    auto_look: Duration,
}

/// What is to be done with a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunChange {
    /// Moves nothing more until it is resumed.
    Pause,
    /// Continues.
    Resume,
    Cancel,
    /// Moves back what it moved.
    RollBack,
}

impl Migrations {
    /// Of the workspaces of one database. `is_alone` says that no other supervisor uses it, so that what is under way
    /// at the start is nobody's.
    pub(crate) fn new(workspaces: Workspaces, is_alone: bool, auto_look: Duration) -> Self {
        Self(Arc::new(Inner { workspaces, changed: Notify::new(), is_alone, auto_look }))
    }

    /// Begins a run. A failure has begun nothing, or it is not known whether it has. A dropped future may have begun
    /// it.
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

    /// Changes a run. A failure has changed nothing, or it is not known whether it has. A dropped future may have
    /// changed it.
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
                // The driver continued in the same moment.
                SavedMigrationRun::Stale(now) => found = now.map(|row| *row),
            }
        }
    }

    /// A tenant's workspaces that a migration to `target` is about where none are named: those with another default, at
    /// most [`crate::domain::migration::MAX_WORKSPACES`]. Cancel-safe.
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
