//! The events of a migration, and the choice of its next step.

use super::{
    BadPlan, Entry, MigrationMode, MigrationPlan, MigrationProgress, MigrationRun, MigrationSkip, MigrationStatus,
    Place, WorkspaceFacts,
};
use crate::domain::{
    clock::Timestamp,
    ids::{InstallationId, WorkspaceId},
    redaction::Redacted,
    routing::{Attribution, Route},
    text,
};

/// The longest persisted reason of a failed move, in characters; each workspace has at most one.
const MAX_DETAIL_CHARS: usize = 300;

/// A change that the status of a migration does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a migration that is {} cannot be {wanted}", .status.as_str())]
pub(crate) struct IllegalChange {
    pub status: MigrationStatus,
    /// The refused change: `started`, `paused`, `resumed`, `cancelled` or `rolled back`.
    pub wanted: &'static str,
}

/// The next action of the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NextStep {
    /// Move those of these workspaces that [`MigrationRun::begin_move`] admits.
    Move(Vec<WorkspaceId>),
    /// Move these back. Each move has begun; report its result with `step_done` or `step_failed`.
    MoveBack(Vec<WorkspaceId>),
    /// Wait for the results of these moves of the last step. If the process that made them has died, settle them with
    /// [`MigrationRun::settle`].
    Unsettled(Vec<WorkspaceId>),
    /// Wait until this time; without a time, until an event: a resume, or ACP healthy again.
    Wait(Option<Timestamp>),
    Over,
}

impl MigrationRun {
    /// A scheduled migration. It begins with the first [`Self::next_step`] at or after its time.
    ///
    /// # Errors
    /// The bound that the plan violates.
    pub(crate) fn new(plan: MigrationPlan, attribution: Attribution, now: Timestamp) -> Result<Self, BadPlan> {
        plan.check()?;
        let untouched = |workspace_id| Entry { workspace_id, place: Place::Untouched };
        Ok(Self {
            installation_id: plan.installation_id,
            target: plan.target,
            mode: plan.mode,
            batch_size: plan.batch_size,
            max_failures: plan.max_failures,
            workspaces: plan.workspaces.into_iter().map(untouched).collect(),
            status: MigrationStatus::Scheduled,
            is_going_back: false,
            attribution,
            created: now,
            started: None,
            completed: None,
        })
    }

    pub(crate) fn installation_id(&self) -> &InstallationId {
        &self.installation_id
    }

    pub(crate) fn target(&self) -> Route {
        self.target
    }

    pub(crate) fn mode(&self) -> MigrationMode {
        self.mode
    }

    pub(crate) fn batch_size(&self) -> u32 {
        self.batch_size
    }

    /// Failed moves that are tolerated.
    pub(crate) fn max_failures(&self) -> u32 {
        self.max_failures
    }

    pub(crate) fn status(&self) -> MigrationStatus {
        self.status
    }

    /// True during and after a rollback.
    pub(crate) fn is_going_back(&self) -> bool {
        self.is_going_back
    }

    /// The attribution of the migration or of its last change.
    pub(crate) fn attribution(&self) -> &Attribution {
        &self.attribution
    }

    pub(crate) fn created(&self) -> Timestamp {
        self.created
    }

    pub(crate) fn started(&self) -> Option<Timestamp> {
        self.started
    }

    /// The time of its end; a rollback clears it.
    pub(crate) fn completed(&self) -> Option<Timestamp> {
        self.completed
    }

    /// True if the driver must continue it: it has not ended, or results of its last moves are missing.
    pub(crate) fn is_open(&self) -> bool {
        !self.status.is_final() || self.progress().moving > 0
    }

    /// All workspaces with their states, in the order of the plan.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.workspaces
    }

    /// A redacted copy to be persisted. Names of workspaces are kept, even if one looks like a secret.
    pub(crate) fn redacted(&self) -> Self {
        let mut run = self.clone();
        let Attribution { initiator: _, actor, actor_note, reason } = &mut run.attribution;
        for text in [actor, reason].into_iter().chain(actor_note) {
            *text = Redacted::new(text).into_string();
        }
        run
    }

    pub(crate) fn progress(&self) -> MigrationProgress {
        let mut progress = MigrationProgress { total: self.workspaces.len(), ..MigrationProgress::default() };
        for entry in &self.workspaces {
            let part = match entry.place {
                Place::Untouched => &mut progress.untouched,
                Place::Moving | Place::MovingBack => &mut progress.moving,
                Place::Moved { .. } => &mut progress.moved,
                Place::Skipped { .. } => &mut progress.skipped,
                Place::Failed { .. } => &mut progress.failed,
                Place::MovedBack => &mut progress.moved_back,
            };
            *part += 1;
        }
        progress
    }

    /// Chooses the next action, and begins a scheduled migration at its time. No step begins before the results of the
    /// last one. An automatic migration to ACP waits while ACP is unhealthy; a rollback does not.
    pub(crate) fn next_step(&mut self, now: Timestamp, acp_is_healthy: bool) -> NextStep {
        // Moves without a result come first, even after a pause or a cancel: their workspaces are in an unknown
        // state.
        let unsettled = self.matching(|place| matches!(place, Place::Moving | Place::MovingBack), usize::MAX);
        if !unsettled.is_empty() {
            return NextStep::Unsettled(unsettled);
        }
        match (self.status, self.mode) {
            (MigrationStatus::Scheduled, MigrationMode::At { at }) if now < at => return NextStep::Wait(Some(at)),
            (MigrationStatus::Scheduled, _) => self.begin(now),
            (MigrationStatus::Paused, _) => return NextStep::Wait(None),
            (MigrationStatus::InProgress, _) => {}
            _ => return NextStep::Over,
        }
        let batch = self.batch_size as usize;
        if self.is_going_back {
            let moved = self.matching(|place| matches!(place, Place::Moved { detail: None }), batch);
            for id in &moved {
                self.put(id, Place::MovingBack);
            }
            return NextStep::MoveBack(moved);
        }
        if self.mode == MigrationMode::Automatic && self.target == Route::Acp && !acp_is_healthy {
            return NextStep::Wait(None);
        }
        NextStep::Move(self.matching(|place| *place == Place::Untouched, batch))
    }

    /// Begins the move of a workspace of the current step. `Some(Err)` if the workspace is skipped, which is recorded;
    /// `None` if it cannot be moved now: the migration was paused or has ended meanwhile, or the workspace is not part of
    /// the step.
    pub(crate) fn begin_move(
        &mut self,
        workspace: &WorkspaceId,
        facts: &WorkspaceFacts,
        now: Timestamp,
    ) -> Option<Result<(), MigrationSkip>> {
        let may_move = self.status == MigrationStatus::InProgress && !self.is_going_back;
        let under_way = self.workspaces.iter().filter(|entry| entry.place == Place::Moving).count();
        if !may_move || under_way >= self.batch_size as usize || self.place(workspace) != Some(&Place::Untouched) {
            return None;
        }
        if let Some(reason) = facts.skips(self.target, self.mode) {
            self.put(workspace, Place::Skipped { reason });
            self.conclude(now);
            return Some(Err(reason));
        }
        self.put(workspace, Place::Moving);
        Some(Ok(()))
    }

    /// Records the success of a move, in either direction, also after a pause or a cancel. False if the workspace was not
    /// being moved.
    pub(crate) fn step_done(&mut self, workspace: &WorkspaceId, now: Timestamp) -> bool {
        let place = match self.place(workspace) {
            Some(Place::Moving) => Place::Moved { detail: None },
            Some(Place::MovingBack) => Place::MovedBack,
            _ => return false,
        };
        self.put(workspace, place);
        self.conclude(now);
        true
    }

    /// Records the failure of a move, in either direction, with its reason: the workspace keeps its default route. False
    /// if the workspace was not being moved.
    pub(crate) fn step_failed(&mut self, workspace: &WorkspaceId, detail: &Redacted, now: Timestamp) -> bool {
        let detail = text::cut(detail.as_str(), MAX_DETAIL_CHARS);
        let place = match self.place(workspace) {
            Some(Place::Moving) => Place::Failed { detail },
            Some(Place::MovingBack) => Place::Moved { detail: Some(detail) },
            _ => return false,
        };
        self.put(workspace, place);
        self.conclude(now);
        true
    }

    /// Settles a move without a result by the workspace's current default route. A workspace that was not moved becomes
    /// untouched again. False if the workspace was not being moved.
    pub(crate) fn settle(&mut self, workspace: &WorkspaceId, default_route: Route, now: Timestamp) -> bool {
        let is_moved = default_route == self.target;
        let place = match self.place(workspace) {
            Some(Place::Moving) if !is_moved => Place::Untouched,
            Some(Place::MovingBack) if !is_moved => Place::MovedBack,
            Some(Place::Moving | Place::MovingBack) => Place::Moved { detail: None },
            _ => return false,
        };
        self.put(workspace, place);
        self.conclude(now);
        true
    }

    /// Begins a scheduled migration before its time.
    #[cfg(test)]
    pub(crate) fn start(&mut self, attribution: Attribution, now: Timestamp) -> Result<(), IllegalChange> {
        self.allow(&[MigrationStatus::Scheduled], "started")?;
        self.attribution = attribution;
        self.begin(now);
        Ok(())
    }

    /// Pauses the migration; moves that have begun still end.
    pub(crate) fn pause(&mut self, attribution: Attribution) -> Result<(), IllegalChange> {
        self.allow(&[MigrationStatus::Scheduled, MigrationStatus::InProgress], "paused")?;
        (self.status, self.attribution) = (MigrationStatus::Paused, attribution);
        Ok(())
    }

    /// Resumes a paused migration; one that had not begun waits for its time again.
    pub(crate) fn resume(&mut self, attribution: Attribution, now: Timestamp) -> Result<(), IllegalChange> {
        self.allow(&[MigrationStatus::Paused], "resumed")?;
        self.attribution = attribution;
        self.status = if self.started.is_some() { MigrationStatus::InProgress } else { MigrationStatus::Scheduled };
        self.conclude(now);
        Ok(())
    }

    /// Ends the migration or its rollback: workspaces stay where they are, moves that have begun still end.
    pub(crate) fn cancel(&mut self, attribution: Attribution, now: Timestamp) -> Result<(), IllegalChange> {
        let open = [MigrationStatus::Scheduled, MigrationStatus::InProgress, MigrationStatus::Paused];
        self.allow(&open, "cancelled")?;
        self.attribution = attribution;
        self.end(MigrationStatus::Cancelled, now);
        Ok(())
    }

    /// Moves all moved workspaces back, those of moves that have begun included, in steps of the same size. Failed moves
    /// back are repeated. A scheduled migration cannot be rolled back; it is cancelled instead.
    pub(crate) fn roll_back(&mut self, attribution: Attribution, now: Timestamp) -> Result<(), IllegalChange> {
        let begun = [
            MigrationStatus::InProgress,
            MigrationStatus::Paused,
            MigrationStatus::Succeeded,
            MigrationStatus::Cancelled,
            MigrationStatus::Failed,
        ];
        self.allow(&begun, "rolled back")?;
        for entry in &mut self.workspaces {
            if let Place::Moved { detail } = &mut entry.place {
                *detail = None;
            }
        }
        (self.is_going_back, self.completed, self.attribution) = (true, None, attribution);
        self.begin(now);
        self.conclude(now);
        Ok(())
    }

    fn allow(&self, from: &[MigrationStatus], wanted: &'static str) -> Result<(), IllegalChange> {
        if from.contains(&self.status) { Ok(()) } else { Err(IllegalChange { status: self.status, wanted }) }
    }

    fn begin(&mut self, now: Timestamp) {
        self.status = MigrationStatus::InProgress;
        self.started.get_or_insert(now);
    }

    fn end(&mut self, status: MigrationStatus, now: Timestamp) {
        (self.status, self.completed) = (status, Some(now));
    }

    /// Ends the migration if nothing remains to be done or too many moves failed. Without such failures it waits for the
    /// moves that have begun.
    fn conclude(&mut self, now: Timestamp) {
        if self.status != MigrationStatus::InProgress {
            return;
        }
        let MigrationProgress { untouched, moving, moved, failed, .. } = self.progress();
        if self.is_going_back {
            let is_waiting = self.workspaces.iter().any(|entry| entry.place == Place::Moved { detail: None });
            if moving == 0 && !is_waiting {
                let status = if moved == 0 { MigrationStatus::RolledBack } else { MigrationStatus::Failed };
                self.end(status, now);
            }
        } else if failed > self.max_failures as usize {
            self.end(MigrationStatus::Failed, now);
        } else if untouched + moving == 0 {
            self.end(MigrationStatus::Succeeded, now);
        }
    }

    fn matching(&self, are: impl Fn(&Place) -> bool, most: usize) -> Vec<WorkspaceId> {
        let found = self.workspaces.iter().filter(|entry| are(&entry.place));
        found.take(most).map(|entry| entry.workspace_id.clone()).collect()
    }

    fn place(&self, workspace: &WorkspaceId) -> Option<&Place> {
        self.workspaces.iter().find(|entry| entry.workspace_id == *workspace).map(|entry| &entry.place)
    }

    fn put(&mut self, workspace: &WorkspaceId, place: Place) {
        if let Some(entry) = self.workspaces.iter_mut().find(|entry| entry.workspace_id == *workspace) {
            entry.place = place;
        }
    }
}
