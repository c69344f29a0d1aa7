//! One step of a migration: select a batch, persist that it is in progress, move it, persist the results.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::MissedTickBehavior;

use super::{
    RETRY,
    moves::{self, Moved, Step},
};
use crate::{
    actors::workspaces::Workspaces,
    domain::{
        clock::Timestamp,
        ids::{WorkspaceId, WorkspaceKey},
        migration::{MigrationSkip, NextStep, Place},
        routing::Route,
        turn::outcome::Failure,
    },
    store::{self, MigrationRunRow, SaveMigrationRun, SavedMigrationRun, StoreError},
    telemetry::metrics::routing::MigrationStep,
};

/// Workspaces of one run moved at the same time; each starts an agent for a handshake.
const MOVES_AT_ONCE: usize = 8;
/// Interval at which a step in progress is written to disk, so that clients see its progress and other supervisors
/// see that it is alive.
const BEAT: Duration = Duration::from_secs(2);
/// The driver's next action after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// Make the next step at once.
    Again,
    /// Make no step before this time; without a time, before the next change or check.
    Wait(Option<Timestamp>),
}

/// One step of one run.
pub(super) struct Pass {
    workspaces: Workspaces,
    row: MigrationRunRow,
}

impl Pass {
    pub(crate) fn new(workspaces: Workspaces, row: MigrationRunRow) -> Self {
        Self { workspaces, row }
    }

    /// Makes the step. `may_settle` means that no other supervisor is making it.
    ///
    /// # Errors
    /// If the database or the runtime is unavailable before anything is moved. Once moves are in progress, their
    /// results are written as soon as the database is available.
    ///
    /// # Cancel safety
    /// Dropping the future leaves moves that the next start has to settle.
    pub(crate) async fn run(mut self, may_settle: bool) -> Result<After, Failure> {
        let before = self.row.run.clone();
        let is_healthy = self.workspaces.fleet_health().is_healthy();
        let next = self.row.run.next_step(self.workspaces.services().clock.now(), is_healthy);
        match next {
            NextStep::Over => Ok(After::Wait(None)),
            NextStep::Wait(until) => {
                if self.row.run != before {
                    self.save().await?;
                }
                Ok(After::Wait(until))
            }
            NextStep::Unsettled(_) if !may_settle => Ok(After::Wait(None)),
            NextStep::Unsettled(batch) => self.settle(batch).await,
            NextStep::Move(batch) => self.move_batch(batch).await,
            NextStep::MoveBack(batch) => {
                let to = self.row.run.target().other();
                if self.save().await? { self.act(batch, to).await } else { Ok(After::Again) }
            }
        }
    }

    /// Settles moves whose results were never written, by the defaults on disk.
    async fn settle(&mut self, batch: Vec<WorkspaceId>) -> Result<After, Failure> {
        let services = self.workspaces.services().clone();
        let installation = self.row.run.installation_id().clone();
        let tenant = services.store.tenant_protocol(installation).await.map_err(|cause| store::failure(&cause))?;
        for workspace in &batch {
            let default = moves::default_of(&services.store, &self.key(workspace), tenant.as_ref()).await;
            let default = default.map_err(|cause| store::failure(&cause))?;
            self.row.run.settle(workspace, default, services.clock.now());
        }
        let moves = batch.len();
        if self.save().await? {
            tracing::info!(marker = "[MIGRATION]", run_id = %self.row.run_id, moves, "unfinished moves settled");
        }
        Ok(After::Again)
    }

    /// Selects the workspaces of a batch that may be moved, and moves them.
    async fn move_batch(&mut self, batch: Vec<WorkspaceId>) -> Result<After, Failure> {
        let services = self.workspaces.services().clone();
        let target = self.row.run.target();
        let failed = |cause: StoreError| store::failure(&cause);
        let tenant = services.store.tenant_protocol(self.row.run.installation_id().clone()).await.map_err(failed)?;
        // An unavailable runtime is no reason to skip the workspaces: the step is retried.
        let supports_acp = target == Route::Http || moves::supports_acp(&self.workspaces).await?;
        let (mut moving, mut skipped) = (Vec::new(), Vec::new());
        for workspace in batch {
            let facts = moves::of(&services.store, &self.key(&workspace), tenant.as_ref(), supports_acp)
                .await
                .map_err(failed)?;
            match self.row.run.begin_move(&workspace, &facts, services.clock.now()) {
                Some(Ok(())) => moving.push(workspace),
                Some(Err(reason)) => skipped.push((workspace, facts.default_route, reason)),
                None => {}
            }
        }
        for (workspace, default, reason) in &skipped {
            self.record_skip(workspace, default.unwrap_or(target.other()), *reason).await.map_err(failed)?;
        }
        if !self.save().await? {
            return Ok(After::Again);
        }
        skipped.iter().for_each(|_| services.metrics.routes().migrated(MigrationStep::Skipped));
        if moving.is_empty() {
            return Ok(After::Again);
        }
        self.act(moving, target).await
    }

    async fn record_skip(
        &self,
        workspace: &WorkspaceId,
        from: Route,
        reason: MigrationSkip,
    ) -> Result<(), StoreError> {
        let step = self.step(workspace, self.row.run.target());
        self.workspaces.services().store.record_migration(moves::skipped(&step, from, reason)).await
    }

    /// Moves the workspaces in progress and writes the results, even if the run was paused, cancelled or rolled back
    /// meanwhile.
    async fn act(&mut self, batch: Vec<WorkspaceId>, to: Route) -> Result<After, Failure> {
        let steps: Vec<_> = batch.iter().map(|workspace| self.step(workspace, to)).collect();
        let workspaces = self.workspaces.clone();
        let moving = steps.into_iter().map(|step| moves::make(workspaces.clone(), step));
        let mut moving = std::pin::pin!(stream::iter(moving).buffer_unordered(MOVES_AT_ONCE));
        let mut unsaved = Vec::new();
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beat.reset();
        loop {
            tokio::select! {
                moved = moving.next() => match moved {
                    Some(moved) => {
                        self.apply(&moved);
                        unsaved.push(moved);
                    }
                    None => break,
                },
                _ = beat.tick() => {
                    // A failed write is retried at the end.
                    let _ = self.save_moves(&mut unsaved).await;
                }
            }
        }
        while let Err(cause) = self.save_moves(&mut unsaved).await {
            tracing::warn!(marker = "[MIGRATION]", run_id = %self.row.run_id, %cause, "migration step is not written yet; retrying");
            if matches!(cause, StoreError::Conflict(_) | StoreError::Corrupt(_) | StoreError::Closed) {
                return Err(store::failure(&cause));
            }
            tokio::time::sleep(RETRY).await;
        }
        self.log_progress();
        Ok(After::Again)
    }

    fn apply(&mut self, moved: &Moved) {
        let now = self.workspaces.services().clock.now();
        match &moved.outcome {
            Ok(()) => self.row.run.step_done(&moved.workspace, now),
            Err(detail) => self.row.run.step_failed(&moved.workspace, detail, now),
        };
    }

    /// Writes the results of ended moves. A pause, cancel or rollback that was written meanwhile is kept.
    async fn save_moves(&mut self, unsaved: &mut Vec<Moved>) -> Result<(), StoreError> {
        loop {
            match self.try_save().await? {
                SavedMigrationRun::Saved(version) => {
                    self.row.version = version;
                    unsaved.drain(..).for_each(|moved| self.count(&moved));
                    return Ok(());
                }
                SavedMigrationRun::Stale(Some(row)) => {
                    self.row = *row;
                    unsaved.iter().for_each(|moved| self.apply(moved));
                }
                SavedMigrationRun::Stale(None) => {
                    unsaved.clear();
                    return Ok(());
                }
            }
        }
    }

    /// Writes the run before its step is made. `false` means that another writer was first and the run must be read
    /// again.
    async fn save(&mut self) -> Result<bool, Failure> {
        match self.try_save().await.map_err(|cause| store::failure(&cause))? {
            SavedMigrationRun::Saved(version) => {
                self.row.version = version;
                self.log_progress();
                Ok(true)
            }
            SavedMigrationRun::Stale(_) => Ok(false),
        }
    }

    async fn try_save(&self) -> Result<SavedMigrationRun, StoreError> {
        let services = self.workspaces.services();
        let save = SaveMigrationRun {
            run_id: self.row.run_id,
            expected_version: self.row.version,
            run: self.row.run.clone(),
            now: services.clock.now(),
        };
        services.store.save_migration_run(save).await
    }

    fn count(&self, moved: &Moved) {
        let place = self.row.run.entries().iter().find(|entry| entry.workspace_id == moved.workspace);
        let step = match (&moved.outcome, place.map(|entry| &entry.place)) {
            (Err(_), _) => MigrationStep::Failed,
            (Ok(()), Some(Place::MovedBack)) => MigrationStep::MovedBack,
            (Ok(()), _) => MigrationStep::Moved,
        };
        self.workspaces.services().metrics.routes().migrated(step);
    }

    fn log_progress(&self) {
        let (run, progress) = (&self.row.run, self.row.run.progress());
        tracing::info!(
            marker = "[MIGRATION]",
            run_id = %self.row.run_id,
            installation = %run.installation_id(),
            target = run.target().as_str(),
            status = run.status().as_str(),
            total = progress.total,
            untouched = progress.untouched,
            moving = progress.moving,
            moved = progress.moved,
            skipped = progress.skipped,
            failed = progress.failed,
            moved_back = progress.moved_back,
            "fleet migration progress"
        );
    }

    fn step(&self, workspace: &WorkspaceId, to: Route) -> Step {
        Step {
            run_id: self.row.run_id,
            key: self.key(workspace),
            to,
            attribution: self.row.run.attribution().clone(),
            now: self.workspaces.services().clock.now(),
        }
    }

    fn key(&self, workspace: &WorkspaceId) -> WorkspaceKey {
        let installation_id = self.row.run.installation_id().clone();
        WorkspaceKey { installation_id, workspace_id: workspace.clone() }
    }
}
