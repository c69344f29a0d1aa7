//! Starts, monitors and restarts the sessions of one workspace; the only place with a restart rule.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, ResponseFuture, SpawnHandle,
    WrapFuture, fut::wrap_future,
};
use serde_json::json;
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
};

use super::liveness::{PROBE_EVERY, ProbeState, Step};
use crate::{
    actors::{
        handles::{
            capacity_guard::Permit,
            event_feed::EventFeed,
            index::{LiveSession, Mailbox},
            messages::{
                CloseSession, DrainSessions, EndCause, EndSession, Later, Past, Probe, Proven, SessionEnded,
                StartSession,
            },
            session::{SessionShared, SessionView},
        },
        routing::WorkspaceRouting,
        services::Services,
        session::{EndGuard, Session, Start, notices},
    },
    domain::{
        ids::{SessionId, WorkspaceKey},
        redaction::Redacted,
        session::{
            connection::ConnectionStatus,
            event::EventKind,
            lifecycle::SessionState,
            restart::{Remedy, RestartPolicy, Verdict, runtime_delay},
        },
        turn::outcome::{ErrorCode, Failure},
    },
    store::{self, SessionChange, StoreError},
    telemetry::labels::RestartCause,
    transport::AgentFacts,
};

/// Mailbox capacity for starts, closes and ends of sessions. Ends are always accepted, because each guard has a slot of
/// its own; other senders wait.
const MAILBOX: usize = 64;

/// The sessions of one workspace.
pub(crate) struct WorkspaceSupervisor {
    workspace: WorkspaceKey,
    services: Arc<Services>,
    routing: WorkspaceRouting,
    children: HashMap<SessionId, Child>,
    drained: Vec<Later<()>>,
    /// Timer of the liveness probes; runs only while there are sessions, because it keeps this actor alive.
    probing: Option<SpawnHandle>,
    /// Time of the last probe.
    probed: Instant,
    /// Asked when there has been no session for `idle_workspace`; absent in tests.
    release: Option<Release>,
    idle_timer: Option<SpawnHandle>,
}

/// Evicts an idle workspace; true if its supervisor may stop.
pub(crate) type Release = Box<dyn Fn() -> bool>;

impl WorkspaceSupervisor {
    /// Creates the supervisor of a workspace, without sessions.
    pub(crate) fn new(workspace: WorkspaceKey, services: Arc<Services>, routing: WorkspaceRouting) -> Self {
        Self {
            workspace,
            services,
            routing,
            children: HashMap::new(),
            drained: Vec::new(),
            probing: None,
            probed: Instant::now(),
            release: None,
            idle_timer: None,
        }
    }

    /// Sets the question that precedes the stop of an idle supervisor.
    pub(crate) fn stopping_when_idle(self, release: Release) -> Self {
        Self { release: Some(release), ..self }
    }

    /// Stops this actor, and with it the route's, once the workspace had no session for `supervision.idle_workspace_s`
    /// and no caller uses it.
    fn arm_idle_timer(&mut self, ctx: &mut Context<Self>) {
        if let Some(timer) = self.idle_timer.take() {
            ctx.cancel_future(timer);
        }
        self.idle_timer = Some(ctx.run_later(self.services.settings.idle_workspace, |this, ctx| {
            if !this.children.is_empty() {
                return;
            }
            match this.release.as_ref().is_some_and(|release| release()) {
                true => ctx.stop(),
                false => this.arm_idle_timer(ctx),
            }
        }));
    }

    fn spawn(
        &self,
        shared: &Arc<SessionShared>,
        generation: u64,
        start: Start,
        ctx: &mut Context<Self>,
    ) -> (Mailbox, JoinHandle<()>) {
        let guard = EndGuard::new(ctx.address().recipient(), shared.spec.session_id, generation);
        spawn(Session::new(self.services.clone(), shared.clone(), guard, start))
    }

    fn adopt(&mut self, message: StartSession, ready: Later<Started>, ctx: &mut Context<Self>) {
        let StartSession { spec, past, seat, adopted, span } = message;
        let settings = &self.services.settings;
        let new_feed =
            || EventFeed::new(spec.session_id, settings.replay_events, settings.replay_bytes, past.last_event_id);
        let feed = past.feed.clone().unwrap_or_else(new_feed);
        let mut view = SessionView::starting(past.restarts, self.services.clock.now());
        view.chosen = past.chosen.clone();
        let id = spec.session_id;
        let shared = Arc::new(SessionShared::new(spec, feed, view));
        if past.is_stored {
            shared.mark_stored();
        }
        shared.add_transcript_bytes(past.transcript_bytes);
        // An adopted agent has already started; its end may be among the events that it sent meanwhile, and then
        // arrives before the start can be recorded as successful.
        let proven = adopted.is_some();
        let start = Start { delay: Duration::ZERO, past, cookies: None, ready: Some(ready), adopted, span };
        let (mailbox, actor) = self.spawn(&shared, 0, start, ctx);
        let (mailbox, watching) = watch::channel(mailbox);
        let child = Child {
            shared: shared.clone(),
            restarts: RestartPolicy::new(settings.restart),
            free_restarts: 0,
            generation: 0,
            mailbox,
            actor,
            probe: ProbeState::default(),
            is_stuck: false,
            proven,
            waiting: Vec::new(),
            closing: Vec::new(),
            _seat: seat,
        };
        self.children.insert(id, child);
        if self.probing.is_none() {
            self.probed = Instant::now();
            // Not longer than `stuck_after`, so that a small setting takes effect.
            self.probing = Some(ctx.run_interval(PROBE_EVERY.min(self.services.settings.stuck_after), Self::probe));
        }
        let live = LiveSession { shared, supervisor: ctx.address().recipient(), mailbox: watching };
        // Published last: from here on callers send to the session.
        self.services.index.insert(Arc::new(live));
        self.services.metrics.session_changed(None, Some(SessionState::Starting));
    }

    fn on_broken(&mut self, id: SessionId, cause: RestartCause, failure: Failure, ctx: &mut Context<Self>) {
        let now = self.services.clock.now();
        let Some(child) = self.children.get_mut(&id) else { return };
        let remedy = Remedy::of(failure.code);
        let verdict = match remedy {
            Remedy::GiveUp => Verdict::GiveUp,
            Remedy::Restart => child.restarts.on_end(now),
            Remedy::Wait => {
                child.free_restarts += 1;
                // The fresh session waits for the runtime itself.
                let waits_itself = failure.code == ErrorCode::RuntimeUnavailable;
                let delay = runtime_delay(child.free_restarts - 1, 0.5);
                Verdict::Restart(if waits_itself { Duration::ZERO } else { delay })
            }
        };
        match verdict {
            Verdict::GiveUp => {
                let detail = match remedy {
                    Remedy::GiveUp => failure.detail,
                    Remedy::Restart | Remedy::Wait => {
                        format!("the session failed too often in a short time; last failure: {}", failure.detail)
                    }
                };
                self.settle(id, SessionState::Failed, Some(Failure::new(failure.code, detail)), ctx);
            }
            Verdict::Restart(delay) => {
                self.services.metrics.restarted(cause);
                // A late report of the previous actor carries the old number and is ignored.
                child.generation += 1;
                let shared = child.shared.clone();
                let past = {
                    let mut view = shared.move_to(SessionState::Starting, &self.services.metrics);
                    view.connection = ConnectionStatus::Reconnecting;
                    view.running = None;
                    view.restarts += 1;
                    let cookies = view.facts.as_ref().and_then(|facts| facts.cookies.clone());
                    (view.agent_session_id.clone(), cookies, view.restarts)
                };
                let (agent_session_id, cookies, restarts) = past;
                tracing::warn!(
                    marker = "[ACP]",
                    session_id = %id,
                    workspace = %self.workspace,
                    cause = cause.as_str(),
                    detail = %Redacted::new(&failure.detail),
                    restarts,
                    delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
                    "session restarted"
                );
                let update = json!({
                    "state": SessionState::Starting,
                    "connection": ConnectionStatus::Reconnecting.as_str(),
                    "cause": cause.as_str(),
                });
                shared.feed.announce(None, EventKind::Status, &update);
                self.services.telemetry.publish(&shared, now);
                // The feed in `shared` outlives the restart and continues its numbers, so the last event id is not
                // needed.
                let past = Past { agent_session_id, restarts, ..Past::default() };
                let generation = child.generation;
                let start = Start { delay, past, cookies, ready: None, adopted: None, span: tracing::Span::none() };
                let (mailbox, actor) = self.spawn(&shared, generation, start, ctx);
                if let Some(child) = self.children.get_mut(&id) {
                    (child.actor, child.probe, child.is_stuck) = (actor, ProbeState::default(), false);
                    child.mailbox.send_replace(mailbox);
                }
            }
        }
    }

    /// Persists the final state of a session, then removes it: a lookup finds either the live session or the row.
    fn settle(&mut self, id: SessionId, state: SessionState, failure: Option<Failure>, ctx: &mut Context<Self>) {
        let Some(child) = self.children.get(&id) else { return };
        let shared = child.shared.clone();
        {
            let mut view = shared.move_to(state, &self.services.metrics);
            view.connection = ConnectionStatus::Error;
            view.running = None;
        }
        shared.feed.announce(None, EventKind::Status, &json!({"state": state}));
        self.services.telemetry.publish(&shared, self.services.clock.now());
        tracing::info!(marker = "[ACP]", session_id = %id, workspace = %self.workspace, state = state.as_str(), "session ended");
        let services = self.services.clone();
        let writing = async move { persist_final_state(&services, &shared, state, failure).await };
        ctx.spawn(writing.into_actor(self).map(move |written, this, ctx| {
            if let Err(cause) = &written {
                // Recovery at the next start, or the next load, corrects the row.
                tracing::error!(marker = "[ACP]", session_id = %id, %cause, "end of session was not written");
            }
            let is_closing = this.children.get(&id).is_some_and(|child| !child.closing.is_empty());
            if is_closing && state != SessionState::Closed {
                // The close arrived while another end was being written.
                return this.settle(id, SessionState::Closed, None, ctx);
            }
            this.forget(id, written.map_err(|cause| store::failure(&cause)), ctx);
        }));
    }

    /// Ends a session whose first start failed: its callers receive the failure, and nothing is persisted.
    fn give_up_start(&mut self, id: SessionId, cause: EndCause, ctx: &mut Context<Self>) {
        let failure = match cause {
            EndCause::StartFailed(failure) | EndCause::Broken(failure) => failure,
            EndCause::Panicked => Failure::new(ErrorCode::Internal, "the session's actor panicked"),
            EndCause::Idle | EndCause::Closed | EndCause::Drained => {
                Failure::new(ErrorCode::SessionClosed, "the session was closed while it was starting")
            }
        };
        for later in self.children.get_mut(&id).map(|child| std::mem::take(&mut child.waiting)).unwrap_or_default() {
            let _ = later.send(Err(failure.clone()));
        }
        self.forget(id, Ok(()), ctx);
    }

    fn forget(&mut self, id: SessionId, written: Result<(), Failure>, ctx: &mut Context<Self>) {
        // First, because a caller that is woken below must no longer find the session.
        self.services.index.remove(id);
        let Some(child) = self.children.remove(&id) else { return };
        self.services.metrics.session_changed(Some(child.shared.view().state), None);
        for later in child.closing {
            let _ = later.send(written.clone());
        }
        if self.children.is_empty() {
            self.arm_idle_timer(ctx);
            for later in self.drained.drain(..) {
                let _ = later.send(());
            }
        }
    }

    /// Probes every session, and drops the actor of one that has not answered within `stuck_after`. The drop ends its
    /// turn and reports its end, as a panic does.
    fn probe(&mut self, ctx: &mut Context<Self>) {
        if self.children.is_empty() {
            self.probing.take().map(|probing| ctx.cancel_future(probing));
            return;
        }
        ctx.spawn(wrap_future(self.routing.clone().look_after(self.services.clone())));
        let now = Instant::now();
        let stuck_after = self.services.settings.stuck_after;
        let period = PROBE_EVERY.min(stuck_after);
        let was_late = now.saturating_duration_since(self.probed) > period * 2;
        self.probed = now;
        for (id, child) in &mut self.children {
            match child.probe.step(now, stuck_after, was_late) {
                Step::Wait => {}
                Step::Ask => {
                    let (id, generation) = (*id, child.generation);
                    let asking = child.mailbox.borrow().probe.send(Probe);
                    ctx.spawn(wrap_future::<_, Self>(asking).map(move |answer, this, _| {
                        // The answer of an earlier actor does not prove that its successor is alive.
                        let child = this.children.get_mut(&id).filter(|child| child.generation == generation);
                        if let (Some(child), Ok(())) = (child, answer) {
                            child.probe.answered();
                        }
                    }));
                }
                Step::Replace => {
                    // Set before the abort, whose drop reports the same cause as a panic.
                    child.is_stuck = true;
                    child.actor.abort();
                }
            }
        }
    }

    fn end(&self, id: SessionId, cause: EndCause) {
        if let Some(child) = self.children.get(&id) {
            let end = child.mailbox.borrow().end.clone();
            // An actor that has exited has already reported its end, which settles the session.
            actix::spawn(async move { end.send(EndSession { cause }).await });
        }
    }
}

impl Actor for WorkspaceSupervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        self.arm_idle_timer(ctx);
    }
}

impl Handler<StartSession> for WorkspaceSupervisor {
    type Result = ResponseFuture<Started>;

    fn handle(&mut self, message: StartSession, ctx: &mut Self::Context) -> Self::Result {
        let closed = |_| Failure::new(ErrorCode::SessionClosed, "the session was closed while it was starting");
        let (ready, answer) = oneshot::channel();
        if let Some(child) = self.children.get_mut(&message.spec.session_id) {
            // The session is live, or another caller is starting it already.
            let facts = child.shared.view().facts.clone();
            match facts {
                Some(facts) => return Box::pin(std::future::ready(Ok(facts))),
                None => child.waiting.push(ready),
            }
            return Box::pin(async move { answer.await.map_err(closed)? });
        }
        let id = message.spec.session_id;
        self.adopt(message, ready, ctx);
        let this = ctx.address();
        Box::pin(async move {
            let started = answer.await.map_err(closed)?;
            if let Ok(facts) = &started {
                // Awaited before the caller gets its answer: a failure that follows is then a restart and no failed
                // start.
                let _ = this.send(Proven(id, facts.clone())).await;
            }
            started
        })
    }
}

impl Handler<Proven> for WorkspaceSupervisor {
    type Result = ();

    fn handle(&mut self, Proven(id, facts): Proven, _: &mut Self::Context) {
        if let Some(child) = self.children.get_mut(&id) {
            child.proven = true;
            for later in child.waiting.drain(..) {
                let _ = later.send(Ok(facts.clone()));
            }
        }
    }
}

impl Handler<SessionEnded> for WorkspaceSupervisor {
    type Result = ();

    fn handle(&mut self, message: SessionEnded, ctx: &mut Self::Context) {
        let SessionEnded { session_id: id, generation, cause } = message;
        let Some(child) = self.children.get(&id) else { return };
        // The actor that reports has been replaced already.
        if child.generation != generation {
            return;
        }
        if !child.closing.is_empty() {
            // The caller asked for the end, so the session counts as closed, whatever the cause, and also if it was
            // being loaded: callers of the load get an error when the session is removed.
            return self.settle(id, SessionState::Closed, None, ctx);
        }
        if !child.proven {
            return self.give_up_start(id, cause, ctx);
        }
        match cause {
            EndCause::StartFailed(failure) => self.on_broken(id, RestartCause::of(failure.code), failure, ctx),
            EndCause::Broken(failure) => self.on_broken(id, RestartCause::of(failure.code), failure, ctx),
            EndCause::Panicked if child.is_stuck => {
                tracing::error!(marker = "[ACP]", session_id = %id, "session stopped answering probes and is replaced");
                let failure = Failure::new(ErrorCode::Internal, "the session's actor stopped answering");
                self.on_broken(id, RestartCause::Stuck, failure, ctx);
            }
            EndCause::Panicked => {
                let failure = Failure::new(ErrorCode::Internal, "the session's actor panicked");
                self.on_broken(id, RestartCause::Panic, failure, ctx);
            }
            EndCause::Idle | EndCause::Drained => self.settle(id, SessionState::Hibernated, None, ctx),
            EndCause::Closed => self.settle(id, SessionState::Closed, None, ctx),
        }
    }
}

impl Handler<CloseSession> for WorkspaceSupervisor {
    type Result = ResponseFuture<Result<bool, Failure>>;

    fn handle(&mut self, message: CloseSession, _: &mut Self::Context) -> Self::Result {
        let (later, closed) = oneshot::channel();
        let Some(child) = self.children.get_mut(&message.session_id) else {
            return Box::pin(std::future::ready(Ok(false)));
        };
        child.closing.push(later);
        self.end(message.session_id, EndCause::Closed);
        let stopped = |_| Failure::new(ErrorCode::Internal, "the workspace's supervisor has exited");
        Box::pin(async move { closed.await.map_err(stopped)?.map(|()| true) })
    }
}

impl Handler<DrainSessions> for WorkspaceSupervisor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: DrainSessions, _: &mut Self::Context) -> Self::Result {
        if self.children.is_empty() {
            return Box::pin(std::future::ready(()));
        }
        let (later, drained) = oneshot::channel();
        self.drained.push(later);
        for id in self.children.keys() {
            self.end(*id, EndCause::Drained);
        }
        Box::pin(async move {
            let _ = drained.await;
        })
    }
}

/// Result of a session's start.
pub(crate) type Started = Result<Arc<AgentFacts>, Failure>;

pub(crate) struct Child {
    /// State that outlives restarts.
    pub shared: Arc<SessionShared>,
    pub restarts: RestartPolicy,
    /// Restarts that spent nothing of the policy.
    pub free_restarts: u32,
    /// Number of this start; incremented by each restart.
    pub generation: u64,
    /// Publishes the mailbox of a fresh actor to callers.
    pub mailbox: watch::Sender<Mailbox>,
    /// Task of the actor; aborted if the session is stuck.
    pub actor: JoinHandle<()>,
    pub probe: ProbeState,
    /// True if the actor was dropped because it stopped answering probes.
    pub is_stuck: bool,
    /// True once the first start has succeeded; until then a failure is returned to the caller and not restarted.
    pub proven: bool,
    /// Callers that wait for the start.
    pub waiting: Vec<Later<Started>>,
    /// Callers that wait for the end.
    pub closing: Vec<Later<Result<(), Failure>>>,
    /// Released on drop.
    pub _seat: Permit,
}

/// Starts an actor as `Actor::start` does, and returns its task, so that an actor that waits forever can be aborted.
pub(crate) fn spawn(session: Session) -> (Mailbox, JoinHandle<()>) {
    let running = Context::new().into_future(session);
    let address = running.address();
    (mailbox(&address), actix::spawn(running))
}

fn mailbox(actor: &Addr<Session>) -> Mailbox {
    Mailbox {
        run_prompt: actor.clone().recipient(),
        cancel_turn: actor.clone().recipient(),
        answer_permission: actor.clone().recipient(),
        change_setting: actor.clone().recipient(),
        change_servers: actor.clone().recipient(),
        end: actor.clone().recipient(),
        probe: actor.clone().recipient(),
    }
}

/// Persists the final state of a session; a permanent failure is notified to its user in the same transaction.
///
/// # Errors
/// [`StoreError::Unavailable`] if the database is down for longer than its patience; the writes stay queued and are
/// executed once it is back.
pub(crate) async fn persist_final_state(
    services: &Services,
    shared: &SessionShared,
    state: SessionState,
    failure: Option<Failure>,
) -> Result<(), StoreError> {
    let (id, now) = (shared.spec.session_id, services.clock.now());
    let kept = {
        let view = shared.view();
        SessionChange {
            agent_session_id: view.agent_session_id.clone(),
            restarts: Some(view.restarts),
            last_used: Some(view.last_used),
            ..SessionChange::new(id)
        }
    };
    // The result of a turn that ended with the session is published once it is written, which is before the first of
    // these two writes. Only then is the last event id known; until the second write the row marks it as unknown.
    let kept = services.store.settle_session(kept).await;
    let last_event_id = kept.is_ok().then(|| shared.feed.last_id());
    let notified = failure.as_ref().filter(|_| state == SessionState::Failed);
    let session_notice = notified.map(|failure| notices::of_failed_session(&shared.spec, failure.code, now));
    let end = SessionChange { state: Some(state), failure, last_event_id, ..SessionChange::new(id) };
    let ended = match session_notice {
        Some(session_notice) => {
            services.store.settle_session_with_notice(end, shared.spec.workspace.clone(), session_notice, now).await
        }
        None => services.store.settle_session(end).await,
    };
    kept.and(ended)
}
