//! The second step of a turn's end: automation runs after the agent has ended, then the turn closes.
//!
//! Both facts are durable. The agent's end is on disk before the first step, so a turn whose process dies in between is
//! resumed by the next start. Without automation both facts are one write ([`super::turn_ticket`]).

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use tokio::sync::watch;

use crate::{
    acp::schema::StopReason,
    actors::{
        handles::{
            closing::{AgentEnded, DATABASE_PAUSE, Registered, Run, Stop},
            messages::TurnEnded,
            session::SessionShared,
        },
        services::Services,
    },
    domain::{
        automation::{
            saga::{Next, Verdict},
            step::StepName,
        },
        clock::Timestamp,
        routing::Route,
        session::{
            background::{QuietStep, quiet_step},
            event::EventKind,
        },
        turn::{Severity, TurnOutcome, TurnState},
    },
    store::{EndSlot, EndStep, RunEnd, StoreError, TurnEnd, Unfinished},
};

/// Time between two looks at the processes that an agent left.
const PROCESS_POLL: Duration = Duration::from_millis(250);

/// A turn whose agent has ended. Dropped in a panic of a step, it closes with what was made; dropped in any other way,
/// it stays open for the next start.
pub(crate) struct Closing {
    services: Arc<Services>,
    /// Absent for a turn of an earlier process, whose session may not be live.
    shared: Option<Arc<SessionShared>>,
    agent: AgentEnded,
    /// Labels of the turn's metrics.
    agent_name: String,
    first_carrier: Route,
    /// Present from the first step on.
    run: Option<Box<dyn Run>>,
    verdict: Option<Verdict>,
    open: Option<Open>,
    waits: Waits,
}

/// The wait of a turn for the database.
#[derive(Debug, Default)]
struct Waits {
    since: Option<Timestamp>,
    /// True once the callers were answered.
    are_notified: bool,
}

/// Present until the turn is closed.
struct Open {
    slot: EndSlot,
    ended: watch::Sender<Option<Arc<TurnEnded>>>,
    registered: Registered,
}

/// The parts of a [`Closing`] turn that begins in this process.
pub(crate) struct Begin {
    pub services: Arc<Services>,
    pub shared: Arc<SessionShared>,
    pub agent: AgentEnded,
    pub first_carrier: Route,
    pub slot: EndSlot,
    pub ended: watch::Sender<Option<Arc<TurnEnded>>>,
    pub registered: Registered,
    pub stop: watch::Receiver<Stop>,
}

/// Writes the end of the agent, then runs automation in a task of its own, which outlives the session's actor.
/// `durable` is called once the agent's end is on disk.
pub(crate) fn begin(begin: Begin, end: TurnEnd, durable: impl FnOnce() + Send + 'static) {
    let Begin { services, shared, agent, first_carrier, slot, ended, registered, mut stop } = begin;
    let open = Some(Open { slot, ended, registered });
    let agent_name = shared.spec.agent_name().to_owned();
    let mut turn = Closing {
        services: services.clone(),
        shared: Some(shared),
        agent,
        agent_name,
        first_carrier,
        run: None,
        verdict: None,
        open,
        waits: Waits::default(),
    };
    tokio::spawn(async move {
        let written = loop {
            match services.store.end_agent(end.clone()).await {
                // Nothing was written, because the queue had no room for long.
                Err(StoreError::Busy) => continue,
                written => break written,
            }
        };
        match written {
            Ok(()) => {
                durable();
                turn.run(stop).await;
            }
            Err(StoreError::Closed) => {}
            Err(StoreError::Fenced) => turn.close(false, None),
            // The write is retained.
            Err(StoreError::Unavailable(_)) => {
                turn.notify_callers();
                if turn.is_stored(&mut stop).await {
                    durable();
                    turn.run(stop).await;
                }
            }
            Err(cause) => turn.close(false, Some(&format!("automation was left out: {cause}"))),
        }
    });
}

/// Resumes the automation of turns that an earlier process left in this phase. A turn that cannot be resumed now stays
/// open for the next start.
pub(crate) fn resume(services: &Arc<Services>, turns: Vec<Unfinished>) {
    for Unfinished { prompt, session } in turns {
        let (Some(agent), Ok(slot)) = (AgentEnded::of_row(&prompt), services.store.reserve_end()) else {
            tracing::error!(marker = "[GITHUB-AUTO]", prompt_id = %prompt.prompt_id, "automation could not be resumed");
            continue;
        };
        let (ended, watching) = watch::channel(None);
        let turns = &services.closing;
        let (registered, stop) =
            turns.register(prompt.session_id, prompt.prompt_id, prompt.idempotency.clone(), watching);
        services.metrics.turn_started(&session.agent, agent.protocol);
        let first_carrier = agent.protocol;
        let open = Some(Open { slot, ended, registered });
        let turn = Closing {
            services: services.clone(),
            shared: None,
            agent,
            agent_name: session.agent,
            first_carrier,
            run: None,
            verdict: None,
            open,
            waits: Waits::default(),
        };
        tokio::spawn(turn.run(stop));
    }
}

impl Closing {
    /// Runs the steps and closes the turn; a drain leaves it open.
    async fn run(mut self, mut stop: watch::Receiver<Stop>) {
        let services = self.services.clone();
        self.wait_for_quiet(&mut stop).await;
        let Some(automate) = services.automate.clone() else { return self.close(false, None) };
        loop {
            let asked = *stop.borrow();
            match asked {
                Stop::Drain => return,
                Stop::Cancel => return self.close(true, None),
                Stop::No => {}
            }
            let next = self.run.as_ref().map(|run| run.next());
            let advanced = match next {
                None => automate.open(&self.agent).await.map(|run| self.run = Some(run)),
                Some(Next::Step(step)) => self.perform(step).await,
                Some(Next::Wait(until)) => {
                    wait_until(until, services.clock.now(), &mut stop).await;
                    Ok(())
                }
                Some(Next::End(verdict)) => {
                    self.verdict = Some(verdict);
                    return self.close(false, None);
                }
            };
            match advanced {
                Ok(()) => self.database_answers(),
                // Another process advances the run, and will close the turn.
                Err(StoreError::Fenced | StoreError::Closed) => return,
                // No repetition helps.
                Err(cause @ (StoreError::Conflict(_) | StoreError::Corrupt(_) | StoreError::OtherSchema(_))) => {
                    return self.close(false, Some(&format!("automation was left out: {cause}")));
                }
                Err(cause @ (StoreError::Unavailable(_) | StoreError::Busy)) => {
                    let prompt_id = self.agent.prompt_id;
                    tracing::warn!(marker = "[GITHUB-AUTO]", %prompt_id, %cause, "automation waits for the database");
                    self.wait_for_database(&mut stop).await;
                }
            }
        }
    }

    /// Waits until the agent's end, whose write is retained, is on disk. False if the turn stays open for the next start,
    /// or was closed by its cancel.
    async fn is_stored(&mut self, stop: &mut watch::Receiver<Stop>) -> bool {
        loop {
            match *stop.borrow() {
                Stop::Drain => return false,
                Stop::Cancel => {
                    self.close_once(true, None);
                    return false;
                }
                Stop::No => {}
            }
            if matches!(self.services.store.saga_of_prompt(self.agent.prompt_id).await, Ok(Some(_))) {
                self.database_answers();
                return true;
            }
            self.wait_for_database(stop).await;
        }
    }

    /// Pauses before the database is asked again. After its patience, callers are answered.
    async fn wait_for_database(&mut self, stop: &mut watch::Receiver<Stop>) {
        let now = self.services.clock.now();
        let since = *self.waits.since.get_or_insert(now);
        if now.since(since) >= self.services.settings.database_patience {
            self.notify_callers();
        }
        wait_until(now.plus(DATABASE_PAUSE), now, stop).await;
    }

    /// Answers the callers of a turn that waits for the database: with what the agent did. The turn stays open.
    fn notify_callers(&mut self) {
        let Some(open) = self.open.as_ref().filter(|_| !std::mem::replace(&mut self.waits.are_notified, true)) else {
            return;
        };
        let mut result = self.agent.result.clone();
        result.remark(Severity::Warn, "automation waits for the database, and continues when it is available");
        let took = self.services.clock.now().since(self.agent.accepted_at);
        let result = result.closed(None, false, took).into_redacted_json().into_raw();
        let (prompt_id, state) = (self.agent.prompt_id, TurnState::Completed);
        let ending =
            TurnEnded { prompt_id, state, result, failure: None, event_id: None, is_fenced: false, is_open: true };
        open.ended.send_replace(Some(Arc::new(ending)));
    }

    /// Ends a wait: later callers wait for the end of the turn again.
    fn database_answers(&mut self) {
        if std::mem::take(&mut self.waits).are_notified
            && let Some(open) = &self.open
        {
            open.ended.send_replace(None);
        }
    }

    /// Carries out a step, and shows its begin and its end to the session's readers.
    async fn perform(&mut self, step: StepName) -> Result<(), StoreError> {
        let Some(run) = &mut self.run else { return Ok(()) };
        let (feed, prompt_id) = (self.shared.as_ref().map(|shared| &shared.feed), self.agent.prompt_id);
        let announce = |progress: Value| {
            if let Some(feed) = feed {
                feed.announce(Some(prompt_id), EventKind::Automation, &progress);
            }
        };
        announce(run.progress(step, false));
        run.perform(step).await?;
        announce(run.progress(step, true));
        Ok(())
    }

    /// Waits until the agent and the processes that it started in the turn are quiet, so that automation sees finished
    /// files; at most `[turn] quiet_max_s`. The agent of a resumed turn has ended.
    async fn wait_for_quiet(&mut self, stop: &mut watch::Receiver<Stop>) {
        let Some(shared) = self.shared.clone() else { return };
        let (limits, ended) = (self.services.settings.background, self.services.clock.now());
        let mut activity = shared.activity();
        while *stop.borrow() == Stop::No {
            let seen = *activity.borrow_and_update();
            let wait = match quiet_step(seen, ended, self.services.clock.now(), limits) {
                QuietStep::Wait(wait) => wait,
                QuietStep::CheckProcesses if !self.has_processes(&shared).await => return,
                QuietStep::CheckProcesses => PROCESS_POLL,
                QuietStep::GiveUp => {
                    let message =
                        "not-quiet: the agent, or a process that it started, still worked when automation began";
                    return self.agent.result.remark(Severity::Warn, message);
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                Ok(()) = activity.changed() => {}
                _ = stop.changed() => {}
            }
        }
    }

    /// True if a process that the agent started in the turn still runs. A runtime that does not answer knows of none.
    async fn has_processes(&self, shared: &SessionShared) -> bool {
        let Some(client) = &self.services.runtime_client else { return false };
        let connection = shared.view().facts.as_ref().and_then(|facts| facts.connection_id.parse().ok());
        let Some(connection) = connection.filter(|_| self.agent.protocol == Route::Acp) else { return false };
        let age = self.services.clock.now().since(self.agent.accepted_at);
        client.processes(connection, age).await.is_ok_and(|processes| processes > 0)
    }

    /// Writes the whole end of the turn, then notifies its callers. A cancelled turn keeps what was made.
    fn close(mut self, is_cancelled: bool, remark: Option<&str>) {
        self.close_once(is_cancelled, remark);
    }

    fn close_once(&mut self, is_cancelled: bool, remark: Option<&str>) {
        let Some(Open { slot, ended, registered }) = self.open.take() else { return };
        let now = self.services.clock.now();
        let took = now.since(self.agent.accepted_at);
        let mut result = self.agent.result.clone();
        remark.into_iter().for_each(|message| result.remark(Severity::Warn, message));
        let verdict = self.verdict.take();
        let ended_run = self.run.take().and_then(|run| run.end(verdict));
        let (automation, rows) = ended_run.map(|ended| (ended.automation, ended.rows)).unzip();
        let metrics = self.services.metrics.clone();
        let counted = rows.as_ref().map(|rows: &RunEnd| (rows.run.status.clone(), rows.run.skip_reason.clone()));
        let result = result.closed(automation, is_cancelled, took).into_redacted_json();
        let outcome = match is_cancelled {
            true => TurnOutcome::Cancelled { confirmed: true },
            false => TurnOutcome::Completed(StopReason::EndTurn),
        };
        self.services.metrics.turn_ended(&self.agent_name, self.first_carrier, &outcome, took);
        let (prompt_id, state) = (self.agent.prompt_id, outcome.state());
        let end = TurnEnd {
            step: EndStep::Turn,
            prompt_id,
            protocol: self.agent.protocol,
            known_by: self.agent.known_by.clone(),
            session_id: self.agent.session_id,
            key: self.agent.key.clone(),
            state,
            result: Some(result.clone()),
            error: None,
            entries: Vec::new(),
            run: rows,
            counts: None,
            settles: 0,
            now,
        };
        let feed = self.shared.as_ref().map(|shared| {
            shared.turn_ends(None, now, &self.services.metrics);
            self.services.telemetry.publish(shared, now);
            shared.feed.clone()
        });
        let done = move |written: Result<(), StoreError>| {
            let published = feed.map_or(0, |feed| match written.is_ok() {
                true => feed.publish(Some(prompt_id), EventKind::Result, result.as_raw(), None),
                false => 0,
            });
            let event_id = written.is_ok().then_some(published);
            if let (Ok(()), Some((status, reason))) = (&written, counted) {
                metrics.automation_run(&status, reason.as_deref());
            }
            let is_fenced = written == Err(StoreError::Fenced);
            let result = result.into_raw();
            let ending = TurnEnded { prompt_id, state, result, failure: None, event_id, is_fenced, is_open: false };
            ended.send_replace(Some(Arc::new(ending)));
        };
        slot.end_turn(end, Box::new(done));
        drop(registered);
    }
}

/// Waits until a time, or until something is asked of automation.
async fn wait_until(until: Timestamp, now: Timestamp, stop: &mut watch::Receiver<Stop>) {
    tokio::select! {
        () = tokio::time::sleep(until.since(now)) => {}
        _ = stop.changed() => {}
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.close_once(false, Some("automation stopped: a step panicked"));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
