//! One ACP session: one agent, one turn at a time.
//!
//! The actor lives as long as its agent. Whatever breaks, it ends its turn, tells its supervisor through its
//! guard, and stops; a fresh one takes its place.

pub(crate) mod adoption;
pub(crate) mod agent_events;
pub(crate) mod automation;
mod connect;
pub(crate) mod connection_log;
pub(crate) mod notices;
mod turn;
pub(crate) mod turn_ticket;

use std::{sync::Arc, time::Duration};

use actix::{Actor, ActorContext, AsyncContext, Context, Handler, Recipient, SpawnHandle};
use serde_json::{json, value::RawValue};
use tokio::sync::watch;
use uuid::Uuid;

use self::turn::Turn;
use super::{
    handles::{
        messages::{Adopted, EndCause, EndSession, Later, Past, SessionEnded, TurnEnded},
        session::SessionShared,
    },
    services::Services,
};
use crate::{
    acp::correlator::Correlator,
    domain::{
        clock::Timestamp,
        ids::SessionId,
        routing::Route,
        session::{
            connection::{ConnectionHealth, ConnectionStatus, LatencyWatch},
            event::EventKind,
            lifecycle::SessionState,
            pending_permissions::PendingPermissions,
        },
        turn::{TurnOutcome, outcome::Failure},
    },
    transport::{AgentFacts, AgentSession},
};

/// Messages that wait for a session: prompts, cancels and answers of its callers. More than 16 at once on one
/// session is no use that we know; their senders wait.
const MAILBOX: usize = 16;
/// Calls of ours that wait for the agent's answer: one prompt, and mode or option changes of callers.
const MAX_CALLS: usize = 32;

pub(crate) struct Session {
    services: Arc<Services>,
    shared: Arc<SessionShared>,
    guard: EndGuard,
    start: Option<Start>,
    link: Option<Box<dyn AgentSession>>,
    /// What the link goes over, or went over last.
    line_route: Route,
    /// Where the link's events come from.
    stream: Option<SpawnHandle>,
    /// The record of the line, for what becomes of it.
    line_id: Option<Uuid>,
    /// How the line did so far.
    health: ConnectionHealth,
    latency: LatencyWatch,
    /// The id under which the agent knows the conversation over ACP; kept while turns go over the fallback.
    agent_session_id: Option<String>,
    /// Until when this session's turns go over the fallback by themselves, since a handshake failed.
    own_fallback: Option<Timestamp>,
    /// Whether the line before the one that is being made was the fallback.
    was_on_fallback: bool,
    facts: Option<Arc<AgentFacts>>,
    calls: Correlator<Call>,
    turn: Option<Turn>,
    /// How the turn before ended, once that is written to disk.
    last_end: Option<watch::Receiver<Option<Arc<TurnEnded>>>>,
    permissions: PendingPermissions,
    /// The conversation so far, for an agent that did not see it; goes ahead of the next prompt.
    context: Option<String>,
    /// Set once the session is to end, with the reason.
    ending: Option<EndCause>,
    idle_timer: Option<SpawnHandle>,
}

/// How a session's actor starts.
pub(crate) struct Start {
    /// Backoff of a restart.
    pub delay: Duration,
    /// What an earlier start left.
    pub past: Past,
    /// Cookies of the earlier connection.
    pub cookies: Option<String>,
    /// Told when the agent is ready, or why it is not.
    pub ready: Option<Later<Result<Arc<AgentFacts>, Failure>>>,
    /// An agent that works already, during a turn.
    pub adopted: Option<Box<Adopted>>,
}

/// A call that waits for the agent's answer.
enum Call {
    Prompt,
    /// For a caller who waits.
    Asked(Later<Result<Box<RawValue>, Failure>>),
    Close,
}

/// Tells the supervisor about the end of a session, exactly once; on drop it says that the actor panicked.
pub(crate) struct EndGuard {
    supervisor: Option<Recipient<SessionEnded>>,
    session_id: SessionId,
    generation: u64,
}

impl EndGuard {
    /// Makes the guard of one start of a session.
    pub(crate) fn new(supervisor: Recipient<SessionEnded>, session_id: SessionId, generation: u64) -> Self {
        Self { supervisor: Some(supervisor), session_id, generation }
    }

    fn report(&mut self, cause: EndCause) {
        if let Some(supervisor) = self.supervisor.take() {
            let ended = SessionEnded { session_id: self.session_id, generation: self.generation, cause };
            // Refused only by a supervisor that is gone, and then nobody is left to restart anything.
            let _ = supervisor.try_send(ended);
        }
    }
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.report(EndCause::Panicked);
    }
}

impl Session {
    /// Makes the actor of a session; it connects when it is started.
    pub(crate) fn new(services: Arc<Services>, shared: Arc<SessionShared>, guard: EndGuard, start: Start) -> Self {
        Self {
            services,
            shared,
            guard,
            start: Some(start),
            link: None,
            line_route: Route::Acp,
            stream: None,
            line_id: None,
            health: ConnectionHealth::default(),
            latency: LatencyWatch::default(),
            agent_session_id: None,
            own_fallback: None,
            was_on_fallback: false,
            facts: None,
            calls: Correlator::new(MAX_CALLS),
            turn: None,
            last_end: None,
            permissions: PendingPermissions::default(),
            context: None,
            ending: None,
            idle_timer: None,
        }
    }

    /// Ends the running turn with a failure, if there is one, and the session.
    fn fail(&mut self, failure: Failure, ctx: &mut Context<Self>) {
        let cancelled = self.turn.as_ref().is_some_and(Turn::is_cancelled);
        let outcome = TurnOutcome::of_failure(failure.clone(), cancelled);
        self.end_turn(outcome, None, ctx);
        let cause = self.ending.take().unwrap_or(EndCause::Broken(failure));
        self.stop(cause, ctx);
    }

    /// Lets the agent go and ends the actor.
    fn stop(&mut self, cause: EndCause, ctx: &mut Context<Self>) {
        let status = match &cause {
            EndCause::StartFailed(_) | EndCause::Broken(_) | EndCause::Panicked => ConnectionStatus::Error,
            EndCause::Idle | EndCause::Closed | EndCause::Drained => self.shared.connection_status(),
        };
        self.link = None;
        self.close_record(status, cause.name());
        self.ending = Some(cause.clone());
        self.guard.report(cause);
        ctx.stop();
    }

    /// Publishes where the session stands.
    fn announce(&self, state: SessionState, connection: ConnectionStatus) {
        self.shared.move_to(state, &self.services.metrics).connection = connection;
        let connection = self.shared.connection_status();
        let update = json!({"state": state, "connection": connection.as_str()});
        self.shared.feed.announce(None, EventKind::Status, &update);
        self.services.telemetry.publish(&self.shared, self.services.clock.now());
    }

    fn arm_idle_timer(&mut self, ctx: &mut Context<Self>) {
        self.disarm_idle_timer(ctx);
        let idle = self.services.settings.idle_timeout;
        self.idle_timer = Some(ctx.run_later(idle, |this, ctx| {
            if this.turn.is_none() {
                this.stop(EndCause::Idle, ctx);
            }
        }));
    }

    fn disarm_idle_timer(&mut self, ctx: &mut Context<Self>) {
        if let Some(timer) = self.idle_timer.take() {
            ctx.cancel_future(timer);
        }
    }
}

impl Actor for Session {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        self.connect(ctx);
    }
}

impl Handler<EndSession> for Session {
    type Result = ();

    fn handle(&mut self, message: EndSession, ctx: &mut Self::Context) {
        self.ending = Some(message.cause.clone());
        if self.turn.is_some() {
            self.cancel_turn(ctx);
            return;
        }
        self.release(message.cause, ctx);
    }
}
