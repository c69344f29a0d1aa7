//! One ACP session: one agent, one turn at a time.
//!
//! The actor lives as long as its agent. On any failure it ends its turn, reports to its supervisor through its guard,
//! and stops; the supervisor starts a fresh actor.

pub(crate) mod adoption;
pub(crate) mod agent_events;
pub(crate) mod automation;
mod background;
mod choices;
pub(crate) mod closing;
mod connect;
pub(crate) mod connection_log;
mod late_updates;
mod mcp_servers;
pub(crate) mod notices;
mod turn;
pub(crate) mod turn_ticket;
mod woken;

use std::{sync::Arc, time::Duration};

use actix::{Actor, ActorContext, AsyncContext, Context, Handler, Recipient, SpawnHandle};
use serde_json::{json, value::RawValue};
use tokio::sync::watch;
use uuid::Uuid;

use self::{
    background::{Outside, reason_of},
    choices::{ChoiceWrites, Restoring},
    late_updates::LateUpdates,
    mcp_servers::AgentServers,
    turn::Turn,
};
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
            choices::Setting,
            connection::{ConnectionHealth, ConnectionStatus, LatencyWatch},
            context::Missing,
            event::EventKind,
            lifecycle::SessionState,
            pending_permissions::{PendingPermissions, Resolution},
            permission::AnsweredBy,
        },
        turn::{CancelCause, TurnOutcome, outcome::Failure, replay::Replay},
    },
    transport::{AgentFacts, AgentSession},
};

/// Mailbox capacity: prompts, cancels and answers of callers. No known use sends more than 16 at once to one session;
/// further senders wait.
const MAILBOX: usize = 16;
/// Mode and option changes of callers that may be pending at the agent. A prompt and the close of the session have slots
/// of their own, which unanswered changes do not take.
const MAX_CALLS: usize = 32;

pub(crate) struct Session {
    services: Arc<Services>,
    shared: Arc<SessionShared>,
    guard: EndGuard,
    start: Option<Start>,
    link: Option<Box<dyn AgentSession>>,
    /// Carrier of the current or last connection.
    connection_route: Route,
    /// Stream of the connection's events.
    stream: Option<SpawnHandle>,
    /// Id of the connection's record, for later changes of its state.
    connection_row_id: Option<Uuid>,
    /// Health of the current connection.
    health: ConnectionHealth,
    latency: LatencyWatch,
    /// The agent's id of the conversation over ACP; kept while turns use the fallback.
    agent_session_id: Option<String>,
    /// End of this session's own use of the fallback after a failed handshake.
    own_fallback: Option<Timestamp>,
    /// True if the previous connection used the fallback.
    was_on_fallback: bool,
    facts: Option<Arc<AgentFacts>>,
    calls: Correlator<Call>,
    turn: Option<Turn>,
    /// Updates outside a turn.
    late: LateUpdates,
    /// Work of the agent outside a prompt turn.
    outside: Outside,
    /// End of the previous turn; set once it is on disk.
    last_end: Option<watch::Receiver<Option<Arc<TurnEnded>>>>,
    permissions: PendingPermissions,
    /// Prompts that wait for the end of a cancelled turn; at most [`MAX_WAITING`](crate::domain::turn::arrival).
    prompts_waiting: usize,
    choice_writes: ChoiceWrites,
    /// Choices that are to be set again in an agent that was found again.
    restoring: Restoring,
    servers: AgentServers,
    /// The part of the conversation that the agent lacks.
    missing: Missing,
    /// The agent's own conversation if it remembers turns: it knows the session up to the newest one that it completed.
    remembered: Option<String>,
    /// History that the agent may still replay; present from a load to the end of the first turn after it.
    replay: Option<Replay>,
    /// Reason for the end of the session; set when it starts to end.
    ending: Option<EndCause>,
    idle_timer: Option<SpawnHandle>,
}

/// Start parameters of a session's actor.
pub(crate) struct Start {
    pub delay: Duration,
    /// State kept from an earlier start.
    pub past: Past,
    /// Cookies of the previous connection.
    pub cookies: Option<String>,
    /// Receives the agent's facts when it is ready, or the failure.
    pub ready: Option<Later<Result<Arc<AgentFacts>, Failure>>>,
    /// An agent that already runs a turn of an earlier process.
    pub adopted: Option<Box<Adopted>>,
    /// The span of the request for which it starts.
    pub span: tracing::Span,
}

/// A call that is pending at the agent.
enum Call {
    Prompt,
    /// A setting, for a caller that waits for the answer.
    Set(Setting, Later<Result<Box<RawValue>, Failure>>),
    /// A kept choice, for an agent that was found again.
    Restore(Setting),
    Close,
}

/// Reports the end of a session to its supervisor exactly once; on drop it reports that the actor panicked.
pub(crate) struct EndGuard {
    supervisor: Option<Recipient<SessionEnded>>,
    session_id: SessionId,
    generation: u64,
}

impl EndGuard {
    /// Creates the guard of one start of a session.
    pub(crate) fn new(supervisor: Recipient<SessionEnded>, session_id: SessionId, generation: u64) -> Self {
        Self { supervisor: Some(supervisor), session_id, generation }
    }

    fn report(&mut self, cause: EndCause) {
        if let Some(supervisor) = self.supervisor.take() {
            let ended = SessionEnded { session_id: self.session_id, generation: self.generation, cause };
            // Fails only if the supervisor has exited, and then nothing can restart the session.
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
    /// Creates the actor of a session; it connects when it is started.
    pub(crate) fn new(services: Arc<Services>, shared: Arc<SessionShared>, guard: EndGuard, start: Start) -> Self {
        Self {
            services,
            shared,
            guard,
            start: Some(start),
            link: None,
            connection_route: Route::Acp,
            stream: None,
            connection_row_id: None,
            health: ConnectionHealth::default(),
            latency: LatencyWatch::default(),
            agent_session_id: None,
            own_fallback: None,
            was_on_fallback: false,
            facts: None,
            calls: Correlator::new(MAX_CALLS),
            turn: None,
            late: LateUpdates::default(),
            outside: Outside::default(),
            last_end: None,
            permissions: PendingPermissions::default(),
            prompts_waiting: 0,
            choice_writes: ChoiceWrites::default(),
            restoring: Restoring::default(),
            servers: AgentServers::default(),
            missing: Missing::Nothing,
            remembered: None,
            replay: None,
            ending: None,
            idle_timer: None,
        }
    }

    /// Ends the running turn, if any, with a failure, then the session.
    fn fail(&mut self, failure: Failure, ctx: &mut Context<Self>) {
        self.services.runtime.on_failure(&failure);
        let cancelled = self.turn.as_ref().is_some_and(Turn::is_cancelled);
        // A cancelled turn may end by a failure, because the agent was killed or did not answer the cancel.
        let outcome = TurnOutcome::of_failure(failure.clone(), cancelled);
        self.end_turn(outcome, None, ctx);
        let cause = self.ending.take().unwrap_or(EndCause::Broken(failure));
        self.stop(cause, ctx);
    }

    /// Releases the agent and stops the actor.
    fn stop(&mut self, cause: EndCause, ctx: &mut Context<Self>) {
        let status = match &cause {
            EndCause::StartFailed(_) | EndCause::Broken(_) | EndCause::Panicked => ConnectionStatus::Error,
            EndCause::Idle | EndCause::Closed | EndCause::Drained => self.shared.connection_status(),
        };
        let ended = self.permissions.cancel_all(AnsweredBy::TurnEnd);
        self.end_permissions(ended);
        self.link = None;
        match reason_of(&cause) {
            Some(reason) => self.cut_off_background(reason, None),
            None => {
                self.cut_off_background("the session was closed", Some(TurnOutcome::Cancelled { confirmed: true }))
            }
        }
        self.write_late_updates();
        self.write_choices(usize::MAX);
        self.close_record(status, cause.name());
        self.ending = Some(cause.clone());
        // The supervisor learns of the end before the actor stops; the guard's drop then reports nothing.
        self.guard.report(cause);
        ctx.stop();
    }

    /// Ends the permission requests of an actor that died before it could.
    fn drop_left_permissions(&self) {
        for request in self.shared.feed.waiting() {
            let (request_id, prompt_id) = (request.request_id.clone(), request.prompt_id);
            let (tool_call_id, option, by) = (None, None, AnsweredBy::TurnEnd);
            self.shared.feed.resolve(&Resolution { request_id, prompt_id, tool_call_id, option, by });
        }
    }

    /// Names the variables of this session's agent in the failure that a bad key causes.
    fn with_credentials_named(&self, failure: Failure) -> Failure {
        self.services.settings.name_credentials(self.shared.spec.agent.as_deref(), failure)
    }

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
            // The request has a limit of its own, which may be later than that of the agent's work.
            if this.services.closing.get(this.shared.spec.session_id).is_some() || this.permissions.is_waiting() {
                return this.arm_idle_timer(ctx);
            }
            if this.outside.is_working() {
                this.settle_background(ctx);
                // The end of the background work starts the timer again.
                if this.shared.view().state != SessionState::Background {
                    this.arm_idle_timer(ctx);
                }
                return;
            }
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
        self.drop_left_permissions();
        self.connect(ctx);
    }
}

impl Handler<EndSession> for Session {
    type Result = ();

    fn handle(&mut self, message: EndSession, ctx: &mut Self::Context) {
        self.ending = Some(message.cause.clone());
        if self.turn.is_some() {
            let is_drain = matches!(message.cause, EndCause::Drained);
            self.cancel_turn(if is_drain { CancelCause::Drain } else { CancelCause::Close }, ctx);
            return;
        }
        self.release(message.cause, ctx);
    }
}
