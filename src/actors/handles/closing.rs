//! Turns whose agent has ended and whose automation runs: the phase of a turn in which no agent runs.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use secrecy::SecretString;
use serde_json::Value;
use tokio::sync::watch;

use super::messages::{TurnEnded, has_ended};
use crate::{
    contract::{automation::GithubAutomation, result::ACPSessionResult},
    domain::{
        automation::{
            saga::{Next, Verdict},
            skip::Credential,
            step::{StepFailure, StepName},
        },
        clock::Timestamp,
        ids::{InstallationId, PromptId, SessionId, WorkspaceKey},
        routing::Route,
        turn::outcome::Failure,
    },
    store::{Idempotency, PromptRow, RunEnd, SagaRow, StoreError},
};

/// The end of a turn's agent, which is on disk before automation begins.
#[derive(Debug, Clone)]
pub(crate) struct AgentEnded {
    pub prompt_id: PromptId,
    pub session_id: SessionId,
    pub key: WorkspaceKey,
    /// Carrier of the turn.
    pub protocol: Route,
    /// The agent's own conversation that completed the turn.
    pub known_by: Option<String>,
    pub accepted_at: Timestamp,
    /// Result of the turn without its automation.
    pub result: ACPSessionResult,
    /// The GitHub token that the turn was given, which is in memory alone.
    pub token: Option<SecretString>,
}

impl AgentEnded {
    /// Reads the fact back from a stored turn; `None` if its result is malformed.
    pub(crate) fn of_row(row: &PromptRow) -> Option<Self> {
        Some(Self {
            prompt_id: row.prompt_id,
            session_id: row.session_id,
            key: row.key.clone(),
            protocol: row.protocol,
            known_by: row.known_by.clone(),
            accepted_at: row.accepted,
            result: serde_json::from_str(row.result.as_deref()?).ok()?,
            token: None,
        })
    }
}

/// Automates the changes of turns.
pub(crate) trait Automate: Send + Sync {
    /// True if a turn of this tenant can be automated: with a token of its own, or with the service's credential.
    fn credential(&self, tenant: &InstallationId, has_token: bool) -> Credential;

    /// Opens the run of a turn, with everything that earlier steps made.
    ///
    /// # Errors
    /// The database did not answer, or has no run of the turn.
    fn open(&self, turn: &AgentEnded) -> BoxFuture<'static, Result<Box<dyn Run>, StoreError>>;

    /// Begins another attempt of a run whose turn is closed, with a new token if one is given. Answers once the begin is on
    /// disk.
    ///
    /// # Errors
    /// `turn_running` while an attempt runs; `invalid_request` for a run that succeeded, or has nothing to deliver.
    fn retry(&self, row: SagaRow, token: Option<SecretString>) -> BoxFuture<'static, Result<(), Failure>>;

    /// A token of the service's own credential with which a repository is cloned; `None` if there is no such credential for
    /// it.
    ///
    /// # Errors
    /// The reason why the credential does not reach the repository, for the caller.
    fn clone_token(
        &self,
        tenant: &InstallationId,
        repository: &str,
    ) -> BoxFuture<'static, Result<Option<SecretString>, StepFailure>>;
}

/// Pause before the outcome of a step is stored again that the database did not take.
pub(crate) const DATABASE_PAUSE: Duration = Duration::from_secs(1);

/// The run of one turn.
pub(crate) trait Run: Send + Sync {
    fn next(&self) -> Next;

    /// Carries out a step. It may run again after a crash of the service, so it must be idempotent.
    ///
    /// # Errors
    /// The outcome could not be stored: [`StoreError::Fenced`] if another process advances the run. After any other error
    /// the next call stores it, and does not carry out the step again.
    fn perform(&mut self, step: StepName) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Progress for readers of the session, as JSON.
    fn progress(&self, step: StepName, has_ended: bool) -> Value;

    /// The end of the attempt: with its verdict, or without one if it was cut off. `None` if its parts violate the
    /// contract, which is a bug and is logged.
    fn end(&self, verdict: Option<Verdict>) -> Option<EndedRun>;
}

/// The end of an attempt of a run.
#[derive(Debug, Clone)]
pub(crate) struct EndedRun {
    /// Member `githubAutomation` of the turn's result.
    pub automation: GithubAutomation,
    /// Its rows.
    pub rows: RunEnd,
}

/// A request to automation, which obeys it after the running step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// No request.
    No,
    /// Close the turn with what was made so far.
    Cancel,
    /// Leave the turn open; the next start of the service resumes it.
    Drain,
}

/// The turn of one session in this phase.
#[derive(Clone)]
pub(crate) struct ClosingTurn {
    pub prompt_id: PromptId,
    pub idempotency: Option<Idempotency>,
    stop: Arc<watch::Sender<Stop>>,
    /// Set once the whole end is on disk; the sender is dropped without a value in a drain.
    pub ended: watch::Receiver<Option<Arc<TurnEnded>>>,
}

impl ClosingTurn {
    /// Closes the turn after the running step.
    pub(crate) fn cancel(&self) {
        self.stop.send_replace(Stop::Cancel);
    }

    /// True once a caller cancelled the turn.
    pub(crate) fn is_cancelled(&self) -> bool {
        *self.stop.borrow() == Stop::Cancel
    }

    /// Waits up to `grace` for the end of the turn.
    pub(crate) async fn ends_within(mut self, grace: Duration) {
        let _ = tokio::time::timeout(grace, self.ended.wait_for(has_ended)).await;
    }

    /// Waits up to `grace` for the end of the turn, then cancels it and waits for the end of the running step.
    pub(crate) async fn cancel_after(mut self, grace: Duration) {
        let in_time = tokio::time::timeout(grace, self.ended.wait_for(has_ended)).await.is_ok();
        if !in_time {
            self.cancel();
            let _ = self.ended.wait_for(has_ended).await;
        }
    }
}

/// The turns in this phase, at most one for each session. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct ClosingTurns(Arc<Mutex<HashMap<SessionId, ClosingTurn>>>);

impl ClosingTurns {
    pub(crate) fn get(&self, session_id: SessionId) -> Option<ClosingTurn> {
        self.0.lock().get(&session_id).cloned()
    }

    /// Registers a turn until the returned value is dropped, and returns the requests to its automation.
    pub(crate) fn register(
        &self,
        session_id: SessionId,
        prompt_id: PromptId,
        idempotency: Option<Idempotency>,
        ended: watch::Receiver<Option<Arc<TurnEnded>>>,
    ) -> (Registered, watch::Receiver<Stop>) {
        let (stop, stopped) = watch::channel(Stop::No);
        let turn = ClosingTurn { prompt_id, idempotency, stop: Arc::new(stop), ended };
        self.0.lock().insert(session_id, turn);
        (Registered { turns: self.clone(), session_id }, stopped)
    }

    /// Lets the running steps end, and leaves their turns open for the next start of the service.
    pub(crate) async fn drain(&self) {
        let turns: Vec<_> = self.0.lock().values().cloned().collect();
        let ending = turns.into_iter().map(|mut turn| async move {
            turn.stop.send_replace(Stop::Drain);
            let _ = turn.ended.wait_for(has_ended).await;
        });
        join_all(ending).await;
    }
}

/// A registered turn; removed on drop.
pub(crate) struct Registered {
    turns: ClosingTurns,
    session_id: SessionId,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.turns.0.lock().remove(&self.session_id);
    }
}
