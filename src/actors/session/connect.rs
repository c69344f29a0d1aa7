//! Connects a session to its agent, and releases the agent.

use std::{sync::Arc, time::Duration};

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use serde_json::json;
use tracing::Instrument;
use uuid::Uuid;

use super::{
    Call, Session, Start, adoption::kept_connection, connection_log, notices, turn::Turn, turn_ticket::TurnTicket,
};
use crate::{
    actors::{
        handles::{
            messages::{Adopted, AdoptedTurn, EndCause, Later},
            session::SessionSpec,
        },
        services::Services,
    },
    domain::{
        clock::Timestamp,
        notify::{notice, notification::SessionNotice},
        redaction::Redacted,
        routing::{
            Route,
            turn_route::{self, Handshake, TurnRoute},
        },
        session::{
            connection::{ConnectionHealth, ConnectionStatus},
            context::Missing,
            event::EventKind,
            lifecycle::SessionState,
            restart::reconnect_delay,
        },
        turn::{
            CancelCause, TurnOutcome,
            outcome::{ErrorCode, Failure},
            replay::Replay,
        },
    },
    store::{self, SessionChange, StoreError},
    transport::{
        AdoptedSession, AgentFacts, OpenRequest, OpenedSession, redacted::RedactedEvents, socket::random_fraction,
    },
};

/// Messages of the conversation that are read for the context, at most; the context itself is bounded in bytes.
const CONTEXT_MESSAGES: usize = 200;
/// Time limit for the agent's answer to `session/close`; the agent is released without it afterwards.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// A connection to an agent that is to be opened.
pub(super) struct Opening {
    pub route: Route,
    pub delay: Duration,
    /// Cookies of the previous connection.
    pub cookies: Option<String>,
    /// Receives the agent's facts when it is ready, or the failure.
    pub ready: Option<Later<Result<Arc<AgentFacts>, Failure>>>,
    /// True if the session has no conversation yet.
    pub is_new: bool,
    /// True if the runtime has just answered.
    pub runtime_answers: bool,
    /// The span of the request for which it is opened.
    pub span: tracing::Span,
}

impl Opening {
    /// Connection of a session that is already live.
    pub(crate) fn over(route: Route) -> Self {
        let (delay, span) = (Duration::ZERO, tracing::Span::none());
        Self { route, delay, cookies: None, ready: None, is_new: false, runtime_answers: false, span }
    }
}

impl Session {
    pub(super) fn connect(&mut self, ctx: &mut Context<Self>) {
        let Some(start) = self.start.take() else { return };
        let Start { delay, past, cookies, ready, adopted, span } = start;
        if let Some(adopted) = adopted {
            self.take_over(*adopted, ctx);
            if let (Some(ready), Some(facts)) = (ready, self.facts.clone()) {
                let _ = ready.send(Ok(facts));
            }
            return;
        }
        let route = self.shared.spec.gate.route();
        // Only a session without a past has certainly no conversation that a fresh agent could miss.
        let is_new = past.agent_session_id.is_none() && past.last_event_id == 0 && past.restarts == 0;
        let runtime_answers = ready.is_some();
        self.agent_session_id = past.agent_session_id;
        if ready.is_none() {
            // A session that waits for its runtime may hibernate meanwhile.
            self.arm_idle_timer(ctx);
        }
        self.open(Opening { route, delay, cookies, ready, is_new, runtime_answers, span }, ctx);
    }

    /// Opens a connection. After a failed handshake the session uses the fallback if that does not depend on the failed
    /// part; otherwise the session ends.
    pub(super) fn open(&mut self, opening: Opening, ctx: &mut Context<Self>) {
        let Opening { route, delay, cookies, ready, is_new, runtime_answers, span } = opening;
        let spec = self.shared.spec.clone();
        let servers = spec.mcp_servers.get();
        self.servers.begin(&servers);
        let request = OpenRequest {
            session_id: spec.session_id,
            installation_id: Some(spec.workspace.installation_id.clone()),
            is_ephemeral: spec.is_ephemeral,
            agent: spec.agent.clone(),
            cwd: spec.cwd.clone(),
            mcp_servers: servers,
            previous: self.agent_session_id.clone(),
            cookies,
            choices: self.shared.view().chosen.choices().clone(),
        };
        // A caller that waits for the first start gets its failure; a live session waits for runtime and database.
        let waits = ready.is_none();
        let services = self.services.clone();
        let opening = async move {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let (opened, took) = connect(&services, route, request, waits).instrument(span).await;
            let (missing, replay) = match &opened {
                Ok(_) if route == Route::Http => (Missing::Unread, None),
                Ok(opened) if !is_new => memory(&services, &spec, remembered(&opened.facts)).await,
                _ => (Missing::Nothing, None),
            };
            (opened, (missing, replay), took)
        };
        ctx.spawn(opening.into_actor(self).map(move |(opened, memory, took), this, ctx| {
            let opened = opened.map_err(|failure| this.with_credentials_named(failure));
            let outcome = opened.as_ref().map(|opened| &opened.facts);
            if route == Route::Acp {
                let now = this.services.clock.now();
                this.services.handshakes.record(this.shared.spec.agent_name(), outcome, took, now);
                let counted_for = this.route_of_handshake(outcome.is_err());
                let id = Uuid::now_v7();
                let session_notice =
                    this.notice_of_handshake(id, outcome.err(), runtime_answers, is_new && ready.is_some());
                connection_log::note(
                    &this.services,
                    &this.shared.spec,
                    counted_for,
                    outcome,
                    took,
                    (id, session_notice),
                );
                this.connection_row_id = outcome.is_ok().then_some(id);
            }
            match opened {
                Ok(opened) => {
                    (this.missing, this.replay) = memory;
                    this.remembered = remembered(&opened.facts);
                    this.connected(route, opened, false, ctx);
                    match (ready, this.facts.clone()) {
                        (Some(ready), Some(facts)) => drop(ready.send(Ok(facts))),
                        (None, Some(facts)) => this.record_connection(&facts, ctx),
                        (_, None) => {}
                    }
                }
                Err(failure) => this.not_connected(route, failure, ready, runtime_answers, is_new, ctx),
            }
        }));
    }

    /// Returns the route for which a handshake counts.
    fn route_of_handshake(&self, failed: bool) -> TurnRoute {
        match &self.turn {
            Some(turn) => turn.route.of_handshake(failed),
            None => self.shared.spec.gate.outside_turns(),
        }
    }

    /// Returns the notification that a failed handshake moved the session to the fallback; it is repeated only after
    /// ACP has recovered. For the first handshake it is deferred and written with the session's row, which does not
    /// exist yet.
    fn notice_of_handshake(
        &self,
        handshake: Uuid,
        failure: Option<&Failure>,
        runtime_answers: bool,
        is_first: bool,
    ) -> Option<SessionNotice> {
        let failure =
            failure.filter(|failure| self.own_fallback.is_none() && self.bypasses(failure, runtime_answers))?;
        let spec = &self.shared.spec;
        let session_notice = notices::of_failed_handshake(spec, failure.code, handshake, self.services.clock.now());
        if is_first {
            self.shared.defer_notice(session_notice);
            return None;
        }
        Some(session_notice)
    }

    /// True if the session uses the fallback after this failure of an ACP handshake.
    fn bypasses(&self, failure: &Failure, runtime_answers: bool) -> bool {
        let handshake = Handshake {
            has_oneshot: self.shared.spec.has_oneshot,
            runtime_answers,
            was_on_fallback: self.was_on_fallback,
        };
        self.ending.is_none() && turn_route::bypasses(failure.code, handshake)
    }

    fn not_connected(
        &mut self,
        route: Route,
        failure: Failure,
        ready: Option<Later<Result<Arc<AgentFacts>, Failure>>>,
        runtime_answers: bool,
        is_new: bool,
        ctx: &mut Context<Self>,
    ) {
        if route == Route::Acp && self.bypasses(&failure, runtime_answers) {
            self.fall_back(&failure);
            return self.open(Opening { ready, is_new, ..Opening::over(Route::Http) }, ctx);
        }
        self.end_turn(TurnOutcome::Failed(failure.clone()), None, ctx);
        if let Some(ready) = ready {
            let _ = ready.send(Err(failure.clone()));
        }
        let cause = self.ending.take().unwrap_or(EndCause::StartFailed(failure));
        self.stop(cause, ctx);
    }

    /// Sends this session's turns over the fallback for the cool-down of a rollback, regardless of the workspace's
    /// route, and notifies its user.
    fn fall_back(&mut self, failure: &Failure) {
        let until = self.services.clock.steady().plus(self.services.settings.recovery.cooldown);
        self.own_fallback = Some(until);
        if let Some(turn) = &mut self.turn {
            turn.carrier = Route::Http;
            turn.ticket.iter_mut().for_each(TurnTicket::fell_back);
        }
        self.services.metrics.routes().session_fell_back();
        let spec = &self.shared.spec;
        let reason = Redacted::new(&failure.detail);
        tracing::warn!(marker = "[ROLLBACK]", session_id = %spec.session_id, workspace = %spec.workspace,
            error_code = failure.code.as_str(), %reason, "handshake failed; session uses the fallback");
        let update = json!({
            "route": Route::Http, "status": "active", "scope": "session", "trigger": "handshake",
            "errorCode": failure.code.as_str(), "reason": reason.as_str(), "nextProbeAt": until,
            "summary": notice::of_failed_handshake(spec.session_id, failure.code).body.as_str(),
        });
        let prompt = self.turn.as_ref().map(|turn| turn.prompt_id());
        self.shared.feed.announce(prompt, EventKind::Rollback, &update);
    }

    /// Returns the carrier of a turn for which the router chose `chosen`: the fallback while this session has fallen
    /// back on its own.
    pub(super) fn carrier_of(&self, chosen: Route, now: Timestamp) -> Route {
        match self.own_fallback {
            Some(until) if now < until => Route::Http,
            _ => chosen,
        }
    }

    /// Replaces the connection with one over `route`. Pending work is kept.
    pub(super) fn change_connection(&mut self, route: Route, ctx: &mut Context<Self>) {
        self.replace_connection(Opening::over(route), ctx);
    }

    /// Replaces the connection. Pending work is kept.
    pub(super) fn replace_connection(&mut self, opening: Opening, ctx: &mut Context<Self>) {
        self.was_on_fallback = self.connection_route == Route::Http;
        let is_other_route = self.connection_route != opening.route;
        let cause =
            if is_other_route { "the workspace's route changed" } else { "the session got other MCP servers" };
        self.drop_connection(cause, ctx);
        let status = ConnectionStatus::Connecting;
        self.announce(SessionState::Starting, status);
        self.limit_runtime_wait(ctx);
        self.open(opening, ctx);
    }

    fn drop_connection(&mut self, cause: &str, ctx: &mut Context<Self>) {
        if let Some(stream) = self.stream.take() {
            // Late events of the old connection, its end above all, must not reach the new one.
            ctx.cancel_future(stream);
        }
        self.link = None;
        self.cut_off_background("the connection to the agent was replaced", None);
        // Its agent answers none of them any more.
        self.calls.clear();
        let status = self.shared.connection_status();
        self.close_record(status, cause);
    }

    /// Closes the record of the connection, with its final health.
    pub(super) fn close_record(&mut self, status: ConnectionStatus, cause: &str) {
        let health = std::mem::take(&mut self.health);
        if let Some(connection) = self.connection_row_id.take() {
            let last_heard = self.shared.view().last_heard;
            let health = ConnectionHealth { last_heard, ..health };
            connection_log::changed(&self.services, &self.shared.spec, connection, status, cause, Some(health), None);
        }
    }

    /// Persists the identity of a restarted agent's connection; after a first start the waiting caller persists it.
    fn record_connection(&self, facts: &AgentFacts, ctx: &mut Context<Self>) {
        let change = SessionChange {
            agent_session_id: self.agent_session_id.clone(),
            protocol_version: facts.protocol_version,
            connection: Some(kept_connection(facts)),
            ..SessionChange::new(self.shared.spec.session_id)
        };
        let services = self.services.clone();
        let writing = async move {
            if let Err(cause) = services.store.update_session(change).await {
                // Harmless beyond this: the next start of the service would not find the agent and interrupt its turn.
                tracing::warn!(marker = "[ACP]", %cause, "connection was not written");
            }
        };
        ctx.spawn(writing.into_actor(self));
    }

    /// Resumes an agent that an earlier process left behind.
    fn take_over(&mut self, adopted: Adopted, ctx: &mut Context<Self>) {
        let Adopted { session, facts, turn, in_background } = adopted;
        let AdoptedSession { link, events, next_call, prompt: _ } = session;
        // The earlier process may have sent a part of the conversation ahead of the prompt.
        (self.missing, self.remembered) = (Missing::Unread, remembered(&facts));
        let opened = |link| OpenedSession { link, events, next_call, facts };
        let Some(AdoptedTurn { prompt, call, slot, said, kept }) = turn else {
            self.connected(Route::Acp, opened(link), true, ctx);
            self.outside.resume(in_background, self.services.clock.now());
            // An agent that is found again replays nothing: what it says is new.
            self.late.takes_updates = true;
            return self.settle_background(ctx);
        };
        // Before the events are read: the answer to the prompt may be among those that are replayed.
        self.calls.reopen(call, Call::Prompt);
        self.services.metrics.turn_adopted();
        self.resume_turn(&prompt, slot, (&said, &kept));
        let known = link.delivered().handled();
        if let Some(turn) = &mut self.turn {
            turn.settled_seq = known;
        }
        self.connected(Route::Acp, opened(link), true, ctx);
        self.watch_inactivity(self.services.settings.inactivity_timeout, ctx);
        if prompt.cancel_asked {
            // The earlier process may not have delivered the cancel.
            self.cancel_turn(CancelCause::User, ctx);
        }
    }

    fn connected(&mut self, route: Route, opened: OpenedSession, is_adopted: bool, ctx: &mut Context<Self>) {
        self.calls.start_at(opened.next_call);
        self.link = Some(opened.link);
        (self.connection_route, self.was_on_fallback) = (route, route == Route::Http);
        let facts = Arc::new(opened.facts);
        if route == Route::Acp {
            self.own_fallback = None;
            self.agent_session_id = Some(facts.agent_session_id.clone());
        }
        self.facts = Some(facts.clone());
        {
            let mut view = self.shared.view();
            view.facts = Some(facts.clone());
            view.agent_session_id = self.agent_session_id.clone();
            view.carrier = route;
            view.last_heard = Some(self.services.clock.now());
        }
        self.take_offers(route, &facts, is_adopted);
        self.write_late_updates();
        self.outside.work.begin(self.services.clock.now());
        let limits = self.services.transcript_limits(&self.shared.spec.workspace.installation_id);
        let transcript = self.shared.new_transcript(limits);
        self.late.begin(!facts.remembers || self.turn.as_ref().is_some_and(Turn::is_sent), transcript);
        self.stream = Some(ctx.add_stream(RedactedEvents::new(opened.events)));
        let state = if self.turn.is_some() { SessionState::Running } else { SessionState::Idle };
        self.announce(state, ConnectionStatus::Connected);
        if self.turn.is_some() {
            self.dispatch(ctx);
        } else {
            self.arm_idle_timer(ctx);
        }
    }

    /// Reads the part of the conversation that the agent lacks, then dispatches the turn.
    pub(super) fn read_conversation(&mut self, ctx: &mut Context<Self>) {
        let (services, id) = (self.services.clone(), self.shared.spec.session_id);
        let Some(prompt_id) = self.turn.as_ref().map(|turn| turn.prompt_id()) else { return };
        let remembered = self.remembered.clone().filter(|_| self.connection_route == Route::Acp);
        let reading = async move { services.store.unknown_to(remembered, id, CONTEXT_MESSAGES).await };
        ctx.spawn(reading.into_actor(self).map(move |said, this, ctx| {
            if this.turn.as_ref().is_none_or(|turn| turn.prompt_id() != prompt_id) {
                // Cancelled meanwhile; the next turn reads for itself.
                return;
            }
            match said {
                Ok(said) => {
                    this.missing = said.into();
                    this.dispatch(ctx);
                }
                Err(cause) => this.end_turn(TurnOutcome::Failed(store::failure(&cause)), None, ctx),
            }
        }));
    }

    /// Ends a session without a running turn: sends `session/close` if the agent supports it, then releases the agent.
    pub(super) fn release(&mut self, cause: EndCause, ctx: &mut Context<Self>) {
        let closes = matches!(cause, EndCause::Closed) && self.facts.as_ref().is_some_and(|facts| facts.can_close);
        if let (true, Some(link)) = (closes, &mut self.link)
            && link.close(self.calls.open_reserved(Call::Close)).is_ok()
        {
            // The answer to the close, or its failure, ends the session with this cause.
            self.ending = Some(cause.clone());
            ctx.run_later(CLOSE_WAIT, move |this, ctx| this.stop(cause, ctx));
            return;
        }
        self.stop(cause, ctx);
    }
}

/// Opens a connection; returns the duration of the handshake too. If `waits`, waits as long as the runtime is unavailable.
async fn connect(
    services: &Services,
    route: Route,
    request: OpenRequest,
    waits: bool,
) -> (Result<OpenedSession, Failure>, Duration) {
    loop {
        if waits && route == Route::Acp && services.runtime.unavailable_for().is_some() {
            services.runtime.available().await;
            // Sessions that waited together do not reconnect at once.
            tokio::time::sleep(reconnect_delay(0, random_fraction())).await;
        }
        let begun = services.clock.steady();
        let opened = services.transport(route).open(request.clone()).await;
        let took = services.clock.steady().since(begun);
        match &opened {
            Err(failure) if failure.code == ErrorCode::RuntimeUnavailable => {
                services.runtime.on_failure(failure);
                if waits && route == Route::Acp {
                    continue;
                }
            }
            Ok(_) if route == Route::Acp => services.runtime.on_connected(),
            _ => {}
        }
        return (opened, took);
    }
}

/// The agent's own conversation, if it remembers an earlier connection.
fn remembered(facts: &AgentFacts) -> Option<String> {
    facts.remembers.then(|| facts.agent_session_id.clone())
}

/// Reads the part of the conversation that a freshly connected agent does not know, which are the turns after the newest
/// one that its own conversation completed, and the part that it may replay. After a failure the former is read again
/// with the next turn, because the agent is healthy.
async fn memory(services: &Services, spec: &SessionSpec, remembered: Option<String>) -> (Missing, Option<Replay>) {
    let (id, store) = (spec.session_id, &services.store);
    let read = async {
        let said = store.unknown_to(remembered.clone(), id, CONTEXT_MESSAGES).await?;
        let past = match remembered {
            Some(conversation) => Some(store.replayable(id, conversation).await?),
            None => None,
        };
        Ok::<_, StoreError>((said.into(), past.filter(|past| !past.is_empty()).map(Replay::new)))
    };
    read.await.unwrap_or_else(|cause| {
        tracing::warn!(marker = "[ACP]", session_id = %id, %cause, "conversation was not read");
        (Missing::Unread, None)
    })
}
