//! What happens to a migration, and whom it moves next.

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

/// The longest reason that is kept of a move that failed, in characters; one stands with each workspace.
const MAX_DETAIL_CHARS: usize = 300;

/// Something cannot be done with a migration that stands there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a migration that is {} cannot be {wanted}", .status.as_str())]
pub(crate) struct IllegalChange {
    pub status: MigrationStatus,
    /// What was wanted: started, paused, resumed, cancelled or rolled back.
    pub wanted: &'static str,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NextStep {
    /// Look at these and move those that [`MigrationRun::begin_move`] admits.
    Move(Vec<WorkspaceId>),
    /// Move these back; each is under way now, and is to be answered by `step_done` or `step_failed`.
    MoveBack(Vec<WorkspaceId>),
    /// The last step has not ended: nobody said how these moves ended. Where nobody is going to (the process that made
    /// them has died), [`MigrationRun::settle`] says where the workspaces are.
    Unsettled(Vec<WorkspaceId>),
    /// Nothing until then; without a time, until something happens: a resume, or ACP that is healthy again.
    Wait(Option<Timestamp>),
    /// Nothing any more.
    Over,
}

impl MigrationRun {
    /// A migration as it was planned, by whom and why. It begins with the first [`Self::next_step`] at or after its
    /// time. An error says what is wrong with the plan.
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

    /// Whose workspaces it moves.
    pub(crate) fn installation_id(&self) -> &InstallationId {
        &self.installation_id
    }

    /// The default route that they get.
    pub(crate) fn target(&self) -> Route {
        self.target
    }

    pub(crate) fn mode(&self) -> MigrationMode {
        self.mode
    }

    /// How many it moves in one step.
    pub(crate) fn batch_size(&self) -> u32 {
        self.batch_size
    }

    /// Failed moves that it tolerates.
    pub(crate) fn max_failures(&self) -> u32 {
        self.max_failures
    }

    pub(crate) fn status(&self) -> MigrationStatus {
        self.status
    }

    /// Whether it moves back what it moved.
    pub(crate) fn is_going_back(&self) -> bool {
        self.is_going_back
    }

    /// Who wanted it, or its last change, and why.
    pub(crate) fn attribution(&self) -> &Attribution {
        &self.attribution
    }

    /// When it was planned.
    pub(crate) fn created(&self) -> Timestamp {
        self.created
    }

    pub(crate) fn started(&self) -> Option<Timestamp> {
        self.started
    }

    /// When it ended; a rollback may take it back.
    pub(crate) fn completed(&self) -> Option<Timestamp> {
        self.completed
    }

    /// Whether somebody has to resume it: it has not ended, or nobody has said how its last moves did.
    pub(crate) fn is_open(&self) -> bool {
        !self.status.is_final() || self.progress().moving > 0
    }

    /// Every workspace and the outcome of it, in the order of the plan.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.workspaces
    }

    /// The same without secrets, ready for the disk. Names of workspaces stay, also where one looks like a secret.
    pub(crate) fn redacted(&self) -> Self {
        let mut run = self.clone();
        let Attribution { actor, reason, .. } = &mut run.attribution;
        for text in [actor, reason] {
            *text = Redacted::new(text).into_string();
        }
        run
    }

    /// How far it is.
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

    /// What is to be done next; begins it once its time has come. Nothing new is given out while a step is under way.
    /// An automatic migration to ACP waits while ACP is not healthy; the way back never does.
    pub(crate) fn next_step(&mut self, now: Timestamp, acp_is_healthy: bool) -> NextStep {
        let unsettled = self.those(|place| matches!(place, Place::Moving | Place::MovingBack), usize::MAX);
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
            let moved = self.those(|place| matches!(place, Place::Moved { detail: None }), batch);
            for id in &moved {
                self.put(id, Place::MovingBack);
            }
            return NextStep::MoveBack(moved);
        }
        if self.mode == MigrationMode::Automatic && self.target == Route::Acp && !acp_is_healthy {
            return NextStep::Wait(None);
        }
        NextStep::Move(self.those(|place| *place == Place::Untouched, batch))
    }

    /// Admits a workspace that [`Self::next_step`] gave out: its move is under way from now on. An error says why it is
    /// left out; that is noted, and the migration resumes the next. Nothing where it may not be moved just now:
    /// the migration was paused or ended in the meantime, or the workspace is not one whose turn it is.
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

    /// A move that was under way, forth or back, is done. Says whether it was one; also one that ends after a pause or
    /// a cancel counts.
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

    /// A move that was under way, forth or back, failed: the workspace is where it was. `detail` says why. Says whether
    /// it was one.
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

    /// Says where a workspace is about whose move nobody said how it ended. One that is where it was is moved later,
    /// if the migration continues. Says whether it was one.
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

    /// Begins a scheduled one before its time.
    #[cfg(test)]
    pub(crate) fn start(&mut self, attribution: Attribution, now: Timestamp) -> Result<(), IllegalChange> {
        self.allow(&[MigrationStatus::Scheduled], "started")?;
        self.attribution = attribution;
        self.begin(now);
        Ok(())
    }

    /// Moves nothing more until it is resumed; a move that is under way ends.
    pub(crate) fn pause(&mut self, attribution: Attribution) -> Result<(), IllegalChange> {
        self.allow(&[MigrationStatus::Scheduled, MigrationStatus::InProgress], "paused")?;
        (self.status, self.attribution) = (MigrationStatus::Paused, attribution);
        Ok(())
    }

    /// Continues where it was paused; one that had not begun waits for its time again.
    pub(crate) fn resume(&mut self, attribution: Attribution, now: Timestamp) -> Result<(), IllegalChange> {
        self.allow(&[MigrationStatus::Paused], "resumed")?;
        self.attribution = attribution;
        self.status = if self.started.is_some() { MigrationStatus::InProgress } else { MigrationStatus::Scheduled };
        self.conclude(now);
        Ok(())
    }

    /// Ends it, or its way back, here: who was moved stays moved, a move that is under way ends.
    pub(crate) fn cancel(&mut self, attribution: Attribution, now: Timestamp) -> Result<(), IllegalChange> {
        let open = [MigrationStatus::Scheduled, MigrationStatus::InProgress, MigrationStatus::Paused];
        self.allow(&open, "cancelled")?;
        self.attribution = attribution;
        self.end(MigrationStatus::Cancelled, now);
        Ok(())
    }

    /// Moves back exactly what it moved, also what is being moved just now, in steps of the same size. What could not
    /// be moved back before is tried again. One that has not begun is cancelled instead.
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

    /// Ends it where nothing is left to be done, or too much failed. A move that is under way is waited for.
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

    fn those(&self, are: impl Fn(&Place) -> bool, most: usize) -> Vec<WorkspaceId> {
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
