//! Every message between actors: sender, receiver, reply, and behaviour when the mailbox is full.
//!
//! Commands are imperative, facts are past. All of them are sent with `send`, which waits for room, except
//! [`SessionEnded`]: each guard owns its own sender, and actix always accepts one message from each sender.

use std::sync::Arc;

use actix::Message;
use secrecy::SecretString;
use serde_json::value::RawValue;
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use super::{
    event_feed::EventFeed,
    session::SessionSpec,
    subscriber::{Cut, NotificationFrame, Outlet},
};
use crate::{
    domain::{
        access::LimitedUse,
        automation::wanted::Wanted,
        ids::{PromptId, SessionId},
        notify::notification::{Scope, Stream},
        routing::{Attribution, Route, Routing, success_window::WindowFigures, turn_route::TurnReport},
        session::{
            choices::{Chosen, Setting},
            mcp::McpServers,
        },
        turn::{CancelCause, TurnState, outcome::Failure, prompt::Prompt, transcript::KeptEntry},
    },
    store::{EndSlot, Idempotency, PromptRow},
    transport::{AdoptedSession, AgentFacts},
};

/// http → session: runs one turn. Replies when the turn is on disk, not when it ends.
#[derive(Message)]
#[rtype(result = "Result<TurnBegun, PromptRefused>")]
pub(crate) struct RunPrompt {
    pub prompt_id: PromptId,
    pub prompt: Prompt,
    /// Requested automation of the turn's changes.
    pub wanted: Wanted,
    /// GitHub token for that automation.
    pub token: Option<SecretString>,
    /// Key and hash of the body; absent if the caller sent no key.
    pub idempotency: Option<Idempotency>,
    /// True if an earlier attempt may have been written to disk by an actor that died before it replied.
    pub again: bool,
    /// The request's span; the turn's span is its child.
    pub span: tracing::Span,
    /// Token of the caller, if it has limits.
    pub limited: Option<LimitedUse>,
    /// Closed when the caller has disconnected: a prompt that waits for the end of a cancelled turn is then dropped.
    pub caller: watch::Receiver<()>,
}

pub(crate) enum TurnBegun {
    /// The turn is on disk and runs.
    Accepted(TurnHandle),
    /// A turn with the same idempotency key is still running.
    Joined(TurnHandle),
    /// The stored turn with the same idempotency key: it has ended, or its end is not on disk yet.
    Stored(Box<PromptRow>),
}

/// Handle for following a turn.
#[derive(Clone)]
pub(crate) struct TurnHandle {
    pub prompt_id: PromptId,
    /// The turn's events come after this one.
    pub after_event: u64,
    pub feed: EventFeed,
    /// Set once the end is on disk, or earlier with [`TurnEnded::is_open`]; a dropped sender means that the turn never
    /// began.
    pub ended: watch::Receiver<Option<Arc<TurnEnded>>>,
}

/// Result of a turn, for the callers that wait for it.
#[derive(Debug)]
pub(crate) struct TurnEnded {
    pub prompt_id: PromptId,
    /// The state in which the turn's row ended.
    #[cfg_attr(not(test), expect(dead_code, reason = "callers read it from the result; tests look at it alone"))]
    pub state: TurnState,
    /// `ACPSessionResult` as JSON.
    pub result: Box<RawValue>,
    /// Absent if the turn did not fail.
    pub failure: Option<Failure>,
    /// The id of its `result` event; absent where the end could not be written to disk.
    pub event_id: Option<u64>,
    /// True if the end was not written because another process had ended the turn.
    pub is_fenced: bool,
    /// True while the turn is open: the agent has ended, and the rest waits for the database. Callers are answered; the
    /// end replaces this value.
    pub is_open: bool,
}

/// True if a turn has ended, for those who wait for its end and not for an answer.
pub(crate) fn has_ended(seen: &Option<Arc<TurnEnded>>) -> bool {
    seen.as_ref().is_some_and(|seen| !seen.is_open)
}

/// Reason for refusing a prompt; nothing was started or written.
#[derive(Debug)]
pub(crate) struct PromptRefused {
    pub failure: Failure,
    /// The turn that is running, for `turn_running`.
    pub running: Option<PromptId>,
}

impl From<Failure> for PromptRefused {
    fn from(failure: Failure) -> Self {
        Self { failure, running: None }
    }
}

/// http, workspaces → session: cancels the running turn. Replies at once; `true` if a turn was running.
#[derive(Message)]
#[rtype(result = "bool")]
pub(crate) struct CancelTurn {
    /// The turn to cancel; absent for any running turn.
    pub prompt_id: Option<PromptId>,
    pub cause: CancelCause,
}

/// http → session: answers a pending permission request. Replies once the agent has the answer, or with the reason
/// for the failure.
#[derive(Message)]
#[rtype(result = "Result<(), Failure>")]
pub(crate) struct AnswerPermission {
    /// From the `permission_request` event.
    pub request_id: String,
    /// The chosen option; `None` cancels the request.
    pub option_id: Option<String>,
}

/// http → session: changes the mode, the model or an option. Replies with the agent's answer once the choice is on disk.
#[derive(Message)]
#[rtype(result = "Result<Box<RawValue>, Failure>")]
pub(crate) struct ChangeSetting(pub Setting);

/// workspaces → session: gives its next agent other MCP servers, and keeps them for later starts. An idle session gets a
/// fresh agent at once, one that works gets it before its next prompt. Replies when the fresh agent is ready.
#[derive(Message)]
#[rtype(result = "Result<ChangedServers, Failure>")]
pub(crate) struct ChangeServers(pub McpServers);

/// Reply to [`ChangeServers`]: the servers are changed, also if the fresh agent could not be started.
pub(crate) struct ChangedServers {
    /// Facts of the session's agent.
    pub facts: Result<Arc<AgentFacts>, Failure>,
    /// True if the agent is a fresh one.
    pub is_fresh: bool,
}

/// supervisor → session: ends the session, after cancelling a running turn. [`SessionEnded`] reports the end.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct EndSession {
    /// `Closed` or `Drained`.
    pub cause: EndCause,
}

/// supervisor → session: liveness probe. Waits for room; a missing reply means that the session is stuck.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Probe;

/// session (its guard) → supervisor: the session ended. Sent exactly once, also during a panic; always accepted,
/// since each guard owns its sender.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub(crate) struct SessionEnded {
    pub session_id: SessionId,
    /// Number of the start that ended; the supervisor ignores the end of an older one.
    pub generation: u64,
    pub cause: EndCause,
}

/// Cause of the end of a session's actor.
#[derive(Debug, Clone)]
pub(crate) enum EndCause {
    /// Its agent could not be started.
    StartFailed(Failure),
    /// Its agent crashed, hung, broke the protocol, or did not confirm a cancel.
    Broken(Failure),
    Panicked,
    /// The session was idle for too long.
    Idle,
    /// A caller closed the session.
    Closed,
    Drained,
}

impl EndCause {
    /// Name of the cause in logs and rows.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::StartFailed(failure) | Self::Broken(failure) => failure.code.as_str(),
            Self::Panicked => "panicked",
            Self::Idle => "idle",
            Self::Closed => "closed",
            Self::Drained => "drained",
        }
    }
}

/// workspaces → supervisor: starts a session, or returns the facts of one that is already live. Replies when its
/// agent is ready, or with the reason for the failure; after a failure nothing of the session remains.
#[derive(Message)]
#[rtype(result = "Result<Arc<AgentFacts>, Failure>")]
pub(crate) struct StartSession {
    pub spec: Arc<SessionSpec>,
    /// State from an earlier start.
    pub past: Past,
    pub seat: super::capacity_guard::Permit,
    /// An agent that is already running, if there is one to adopt.
    pub adopted: Option<Box<Adopted>>,
    /// The request's span.
    pub span: tracing::Span,
}

/// supervisor → itself: the first start of a session succeeded. Waits for room.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Proven(pub SessionId, pub Arc<AgentFacts>);

/// An agent that an earlier process left behind.
pub(crate) struct Adopted {
    pub session: AdoptedSession,
    pub facts: AgentFacts,
    /// The turn that the agent runs; `None` for an agent without a prompt.
    pub turn: Option<AdoptedTurn>,
    /// True if the agent worked outside a turn when it was left behind.
    pub in_background: bool,
}

/// The running turn of an adopted agent.
pub(crate) struct AdoptedTurn {
    pub prompt: PromptRow,
    /// Id of the turn's request.
    pub call: u64,
    /// Slot in the writer's queue for the end of the turn.
    pub slot: EndSlot,
    /// Agent messages of the turn, as far as they are on disk.
    pub said: Vec<String>,
    /// Entries of the turn on disk that its later updates may change, the oldest first.
    pub kept: Vec<KeptEntry>,
}

/// State that a returning session resumes with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Past {
    /// The agent's own session id.
    pub agent_session_id: Option<String>,
    /// The newest event id that clients have seen.
    pub last_event_id: u64,
    pub restarts: u32,
    /// The kept mode, model and options, for a session that is not live yet.
    pub chosen: Chosen,
    /// True if the session has a row.
    pub is_stored: bool,
    /// Bytes of the transcript on disk.
    pub transcript_bytes: u64,
    /// The events so far, of a session that was prepared.
    pub feed: Option<EventFeed>,
}

/// workspaces → supervisor: closes a session, also one that is starting or ending. Replies when its agent is released
/// and its row says `closed`, or with the reason why that could not be written; `false` if the session was not live.
#[derive(Message)]
#[rtype(result = "Result<bool, Failure>")]
pub(crate) struct CloseSession {
    pub session_id: SessionId,
}

/// workspaces → supervisor: ends every session and cancels running turns. Replies when all sessions have ended.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct DrainSessions;

/// turn ticket, session → `SuccessWindow`: the outcome of a turn or a handshake, once it is on disk. Each sender
/// belongs to one turn and so has its own mailbox slot: only a stopped window refuses the message.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "()")]
pub(crate) struct OutcomeObserved(pub TurnReport);

/// `SuccessWindow` → `ProtocolRouter`: the success rate is too low. Replies when the decision is on disk: `true` if the
/// route follows it, `false` if a pin holds the route. After an error the window repeats the message with the next
/// outcome. Waits for room.
#[derive(Message, Debug)]
#[rtype(result = "Result<bool, Failure>")]
pub(crate) struct WindowBreached {
    /// Epoch that the figures belong to.
    pub epoch: u64,
    /// Contents of the window at the breach.
    pub figures: WindowFigures,
}

/// `SuccessWindow` → `ProtocolRouter`: the outcome of a canary, or of one of the first turns after a restore. Waits for
/// room.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub(crate) struct TurnObserved(pub TurnReport);

/// routing → `SuccessWindow`, `ProtocolRouter`: stops the actor of a workspace that is no longer in use. Sent from a
/// drop, in a slot of its own.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct StopRouting;

/// http → `SuccessWindow`: reads the window's figures. Waits for room.
#[derive(Message)]
#[rtype(result = "WindowFigures")]
pub(crate) struct ReadWindow;

/// http → `ProtocolRouter`: reads the current route. Waits for room.
#[derive(Message)]
#[rtype(result = "RouteView")]
pub(crate) struct ReadRoute;

/// migrations → `ProtocolRouter`: performs a handshake with an agent of the workspace, whatever the route is. Waits for
/// room.
#[derive(Message)]
#[rtype(result = "Result<(), Failure>")]
pub(crate) struct ProbeRoute;

/// http, migrations → `ProtocolRouter`: changes the route. Replies when the change is on disk; an error means that
/// nothing has changed. Waits for room.
#[derive(Message)]
#[rtype(result = "Result<RouteView, Failure>")]
pub(crate) struct ChangeRoute {
    /// Changes to apply; together they are one flip.
    pub changes: Vec<RouteChange>,
    pub attribution: Attribution,
    /// Migration run that this change is a step of.
    pub run_id: Option<Uuid>,
}

/// One change of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RouteChange {
    /// Moves the workspace to HTTP until it is restored.
    RollBack,
    /// Returns the workspace to ACP with a fresh window.
    Restore,
    /// Pins a route, or releases the pin.
    Pin(Option<Route>),
    /// Sets the route that applies without an override.
    Default(Route),
    /// True if a migration may move the workspace.
    MigrationEnabled(bool),
    /// True if the workspace moves to ACP automatically while ACP is healthy.
    AutoRollout(bool),
}

/// A route as its router sees it.
#[derive(Debug, Clone)]
pub(crate) struct RouteView {
    pub routing: Routing,
    /// True if a migration may move the workspace.
    pub migration_enabled: bool,
    /// True if the workspace moves to ACP automatically while ACP is healthy.
    pub auto_rollout: bool,
    /// Share of turns that use ACP during a canary, in basis points.
    pub canary_share_bp: u32,
    /// True if the change that this replies to was a flip.
    pub is_flipped: bool,
}

/// store's writer → notification hub: these notification streams have grown. Delivered as a stream, so that the
/// writer never waits.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub(crate) struct StreamGrew(pub Vec<Stream>);

/// socket → notification hub: registers a subscriber that has everything up to `after`. Waits for room.
#[derive(Message)]
#[rtype(result = "Subscribed")]
pub(crate) struct Subscribe {
    pub scope: Scope,
    pub after: u64,
    /// True if the subscriber also wants session progress.
    pub wants_telemetry: bool,
    /// Breaks the subscriber's socket.
    pub cut: Cut,
}

#[derive(Debug)]
pub(crate) enum Subscribed {
    /// Registered: the notifications missed since `after`, and an outlet for later ones.
    Joined {
        /// In ascending order.
        missed: Vec<Arc<NotificationFrame>>,
        outlet: Outlet,
    },
    /// Too many notifications were written meanwhile: the socket reads more from the store and subscribes again.
    Behind,
}

/// app → notification hub: evicts every subscriber, and each one that joins later. Replies when all are disconnected.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct CloseSubscribers;

/// A deferred reply.
pub(crate) type Later<T> = oneshot::Sender<T>;
