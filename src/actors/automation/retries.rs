//! Later attempts of runs: those that the service begins by itself, and those that a caller asks for.
//!
//! The result of the turn does not change: an attempt has its own record in the audit and its own notification.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use secrecy::SecretString;
use tokio::sync::watch;
use uuid::Uuid;

use super::{AdvancedRun, Automation};
use crate::{
    actors::handles::closing::{DATABASE_PAUSE, Run},
    domain::{
        automation::saga::{Next, SagaStatus},
        clock::Timestamp,
        turn::outcome::{ErrorCode, Failure},
    },
    store::{self, RunEnd, SagaRow, StoreError},
};

/// Time between two looks for attempts that are due.
const LOOK: Duration = Duration::from_secs(5);
/// Attempts that run at once.
const ATTEMPTS_AT_ONCE: usize = 4;
/// The most attempts that one look takes up.
const TAKEN_AT_ONCE: usize = 100;
/// Time after which an attempt of a process that died is taken up again. Longer than the longest step.
pub(super) const LEASE: Duration = Duration::from_secs(1200);

/// Reason to refuse the retry of a run that is not the newest of its session.
const SUPERSEDED: &str = "a later run of the session delivers these changes, too; retry that one";

/// Reason to refuse the retry of a run whose workspace has no row any more.
const WITHOUT_WORKSPACE: &str =
    "the workspace of the run was removed by its age; apply the kept commit from GET /acp/automation/{id}/rescue";

/// Begins attempts when they are due, until `stopping` is true; running steps end first.
///
/// # Cancel safety
/// An attempt that is dropped is taken up again after its lease.
pub(crate) async fn run_due_attempts(automation: Automation) {
    let mut stopping = automation.stopping.clone();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = stopping.wait_for(|stopping| *stopping) => return,
        }
        let due = match automation.store.due_sagas(automation.clock.now(), TAKEN_AT_ONCE).await {
            Ok(due) => due,
            Err(cause) => {
                tracing::warn!(marker = "[GITHUB-AUTO]", %cause, "runs that are due could not be read");
                continue;
            }
        };
        let attempts = due.into_iter().map(|row| {
            let automation = automation.clone();
            async move {
                let run_id = row.run_id;
                if let Err(cause) = automation.attempt(row).await {
                    tracing::warn!(marker = "[GITHUB-AUTO]", %run_id, %cause, "attempt of a run was left");
                }
            }
        });
        stream::iter(attempts).for_each_concurrent(ATTEMPTS_AT_ONCE, |attempt| attempt).await;
    }
}

impl Automation {
    /// As [`Automate::retry`](crate::actors::handles::closing::Automate::retry).
    pub(super) async fn begin_retry(&self, row: SagaRow, token: Option<SecretString>) -> Result<(), Failure> {
        let refused = |code, why: &str| Err(Failure::new(code, why));
        match row.status {
            SagaStatus::Running => return refused(ErrorCode::TurnRunning, "an attempt of the run is in progress"),
            SagaStatus::Success => return refused(ErrorCode::InvalidRequest, "the run has succeeded"),
            SagaStatus::Superseded => return refused(ErrorCode::InvalidRequest, SUPERSEDED),
            SagaStatus::Waiting | SagaStatus::Skipped | SagaStatus::Error => {}
        }
        if row.saga.as_ref().is_none_or(|saga| saga.facts.changes.is_some() && !saga.has_changes()) {
            return refused(ErrorCode::InvalidRequest, "the run has nothing to deliver");
        }
        if self.is_superseded(&row).await.map_err(|cause| store::failure(&cause))? {
            return refused(ErrorCode::InvalidRequest, SUPERSEDED);
        }
        if self.store.workspace(row.key.clone()).await.map_err(|cause| store::failure(&cause))?.is_none() {
            return refused(ErrorCode::NotFound, WITHOUT_WORKSPACE);
        }
        let begun = self.begin_attempt(row, token).await;
        let run = begun.map_err(|cause| match cause {
            StoreError::Fenced => Failure::new(ErrorCode::TurnRunning, "an attempt of the run was just begun"),
            cause => store::failure(&cause),
        })?;
        let (this, run_id) = (self.clone(), run.row.run_id);
        tokio::spawn(async move {
            if let Err(cause) = this.run_to_end(run).await {
                tracing::warn!(marker = "[GITHUB-AUTO]", %run_id, %cause, "attempt of a run was left");
            }
        });
        Ok(())
    }

    /// One attempt that is due, to its end.
    async fn attempt(&self, row: SagaRow) -> Result<(), StoreError> {
        if row.status != SagaStatus::Running && self.is_superseded(&row).await? {
            let run = self.advance(row, None).await?;
            return self.store.save_saga(run.update(run.saga.clone(), SagaStatus::Superseded, None)).await;
        }
        let run = self.begin_attempt(row, None).await?;
        self.run_to_end(run).await
    }

    /// True if the session has a later run: its changes include those of this one, which were not pushed.
    async fn is_superseded(&self, row: &SagaRow) -> Result<bool, StoreError> {
        let newest = self.store.sagas_of_session(row.session_id, Timestamp(i64::MAX), 1).await?;
        Ok(newest.first().is_some_and(|newest| newest.run_id != row.run_id))
    }

    /// Claims a run for an attempt. A run whose attempt was cut off continues with it.
    async fn begin_attempt(&self, row: SagaRow, token: Option<SecretString>) -> Result<AdvancedRun, StoreError> {
        if self.store.erasures().hides(&row.key, row.session_id) {
            return Err(StoreError::Fenced);
        }
        let is_cut_off = row.status == SagaStatus::Running;
        let mut run = self.advance(row, token).await?;
        run.is_leased = true;
        let mut saga = run.saga.clone();
        if !is_cut_off {
            saga.retry(self.clock.now());
        }
        run.store(saga).await?;
        Ok(run)
    }

    async fn run_to_end(&self, mut run: AdvancedRun) -> Result<(), StoreError> {
        let mut stopping = self.stopping.clone();
        let verdict = loop {
            if *stopping.borrow() {
                return Ok(());
            }
            match run.next() {
                Next::Step(step) => match run.perform(step).await {
                    Err(StoreError::Unavailable(_) | StoreError::Busy) => {
                        self.pause(self.clock.now().plus(DATABASE_PAUSE), &mut stopping).await;
                    }
                    performed => performed?,
                },
                Next::Wait(until) => self.pause(until, &mut stopping).await,
                Next::End(verdict) => break verdict,
            }
        };
        let is_kept = run.saga.facts.rescue.is_some();
        let Some(ended) = run.end(Some(verdict)) else { return Ok(()) };
        let is_delivered = run.saga.facts.push.is_some();
        let (status, reason) = (ended.rows.run.status.clone(), ended.rows.run.skip_reason.clone());
        self.store_end(&run.row, ended.rows, &mut stopping).await?;
        self.metrics.automation_run(&status, reason.as_deref());
        if is_kept && is_delivered {
            self.discard_rescue(run.row.run_id).await;
        }
        Ok(())
    }

    /// Writes the end of an attempt, as soon as the database takes it.
    async fn store_end(
        &self,
        row: &SagaRow,
        mut end: RunEnd,
        stopping: &mut watch::Receiver<bool>,
    ) -> Result<(), StoreError> {
        loop {
            match self.store.end_attempt(row, end.clone(), self.clock.now()).await {
                Err(StoreError::Unavailable(_) | StoreError::Busy) if !*stopping.borrow() => {
                    if let Some(saga) = &mut end.saga {
                        saga.is_repeated = true;
                    }
                    self.pause(self.clock.now().plus(DATABASE_PAUSE), stopping).await;
                }
                written => return written,
            }
        }
    }

    /// Waits until a time, or until the service stops.
    async fn pause(&self, until: Timestamp, stopping: &mut watch::Receiver<bool>) {
        tokio::select! {
            () = tokio::time::sleep(until.since(self.clock.now())) => {}
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
    }

    /// Removes the kept commit of a run that was delivered. One that cannot be removed now is removed by its age.
    async fn discard_rescue(&self, run_id: Uuid) {
        if let Err(cause) = self.runtime.discard_rescue(run_id).await {
            tracing::warn!(marker = "[GITHUB-AUTO]", %run_id, %cause, "kept commit could not be removed");
        }
    }
}
