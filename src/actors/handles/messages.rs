//! Every message on one page: who sends it to whom, what comes back, and what happens when the mailbox is
//! full.
//!
//! Commands are imperative, facts are past. All of them are sent with `send`, which waits for room, except
//! [`SessionEnded`]: each guard owns a sender of its own, which always has one place.

use std::sync::Arc;

use actix::Message;
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
        automation::skip::{Automation, WantedMode},
        ids::{PromptId, SessionId},
        notify::toast::{Scope, Stream},
        routing::{Attribution, Route, Routing, success_window::WindowFigures, turn_route::TurnReport},
        turn::{TurnState, outcome::Failure, prompt::Prompt},
    },
    store::{EndSlot, Idempotency, PromptRow},
    transport::{AdoptedSession, AgentFacts},
};

/// http → session: runs one turn. Replies when the turn is on disk, not when it ends.
#[derive(Message)]
#[rtype(result = "Result<TurnBegun, PromptRefused>")]
pub(crate) struct RunPrompt {
    /// The new turn's id.
    pub prompt_id: PromptId,
    pub prompt: Prompt,
    /// What is to become of its changes.
    pub wanted: WantedMode,
    /// Key and hash of the body, where the caller gave a key.
    pub idempotency: Option<Idempotency>,
    /// Whether an earlier try may have been written to disk by an actor that died before it answered.
    pub again: bool,
    /// The request's span; the turn's span is its child.
    pub span: tracing::Span,
}

/// Outcome of a [`RunPrompt`].
pub(crate) enum TurnBegun {
    /// The turn is on disk and runs.
    Accepted(TurnHandle),
    /// The same key asked before, and that turn still runs.
    Joined(TurnHandle),
    /// The same key asked before, and that turn has ended.
    Ended(Box<PromptRow>),
}

/// For following a turn.
#[derive(Clone)]
pub(crate) struct TurnHandle {
    pub prompt_id: PromptId,
    /// The turn's events come after this one.
    pub after_event: u64,
    pub feed: EventFeed,
    /// Set once, after the end is on disk; a dropped sender means that the turn never began.
    pub ended: watch::Receiver<Option<Arc<TurnEnded>>>,
}

/// How a turn ended, for those who wait for it.
#[derive(Debug)]
pub(crate) struct TurnEnded {
    pub prompt_id: PromptId,
    /// The state in which the turn's row ended.
    #[cfg_attr(not(test), expect(dead_code, reason = "callers read it from the result; tests look at it alone"))]
    pub state: TurnState,
    /// `ACPSessionResult` as JSON.
    pub result: Box<RawValue>,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
    /// The id of its `result` event; absent where the end could not be written to disk.
    pub event_id: Option<u64>,
}

/// Why a prompt was refused; nothing was started and nothing written.
#[derive(Debug)]
pub(crate) struct PromptRefused {
    pub failure: Failure,
    /// The turn that is running, for `turn_in_progress`.
    pub running: Option<PromptId>,
}

impl From<Failure> for PromptRefused {
    fn from(failure: Failure) -> Self {
        Self { failure, running: None }
    }
}

/// http → session: ends the running turn. Replies at once whether there was one.
#[derive(Message)]
#[rtype(result = "bool")]
pub(crate) struct CancelTurn {
    /// Only this turn; whichever runs where absent.
    pub prompt_id: Option<PromptId>,
}

/// http → session: answers a permission request that waits.
#[derive(Message)]
#[rtype(result = "Result<(), Failure>")]
pub(crate) struct AnswerPermission {
    /// From the `permission_request` event.
    pub request_id: String,
    /// The chosen option; `None` cancels the request.
    pub option_id: Option<String>,
}

/// http → session: selects a mode. Replies with the agent's answer.
#[derive(Message)]
#[rtype(result = "Result<Box<RawValue>, Failure>")]
pub(crate) struct SetMode {
    /// One of the session's modes.
    pub mode_id: String,
}

/// http → session: sets an option. Replies with the agent's answer.
#[derive(Message)]
#[rtype(result = "Result<Box<RawValue>, Failure>")]
pub(crate) struct SetConfigOption {
    /// One of the session's options.
    pub config_id: String,
    /// A string or a boolean.
    pub value: serde_json::Value,
}

/// supervisor → session: end. A running turn is cancelled first. The end is told by [`SessionEnded`].
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct EndSession {
    /// Why: `Closed` or `Drained`.
    pub cause: EndCause,
}

/// supervisor → session: a sign of life. Waits for room; a session that takes nothing is what it looks for.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Probe;

/// session (its guard) → supervisor: the session ended. Sent exactly once, also by a panic; always accepted,
/// since each guard owns its sender.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub(crate) struct SessionEnded {
    pub session_id: SessionId,
    /// Which start of it; an older one's end is of no interest any more.
    pub generation: u64,
    pub cause: EndCause,
}

/// Why a session's actor ended.
#[derive(Debug, Clone)]
pub(crate) enum EndCause {
    /// Its agent could not be started.
    StartFailed(Failure),
    /// Its agent crashed, hung, broke the protocol, or did not confirm a cancel.
    Broken(Failure),
    /// A fault of ours.
    Panicked,
    /// Nobody used it for long.
    Idle,
    /// Somebody closed it.
    Closed,
    Drained,
}

impl EndCause {
    /// Its name in records.
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

/// workspaces → supervisor: starts a session, or tells about one that is live already. Replies when its agent
/// is ready, or why it is not; then nothing is left of it.
#[derive(Message)]
#[rtype(result = "Result<Arc<AgentFacts>, Failure>")]
pub(crate) struct StartSession {
    pub spec: Arc<SessionSpec>,
    /// Restarts, event id and so on of an earlier start.
    pub past: Past,
    pub seat: super::capacity_guard::Permit,
    /// Its agent, where that works already.
    pub adopted: Option<Box<Adopted>>,
}

/// supervisor → itself: the first start of a session worked. Waits for room.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Proven(pub SessionId, pub Arc<AgentFacts>);

/// An agent that an earlier process left during a turn.
pub(crate) struct Adopted {
    /// The way to it.
    pub session: AdoptedSession,
    /// What its handshake told.
    pub facts: AgentFacts,
    pub prompt: PromptRow,
    /// The id of its request.
    pub call: u64,
    /// The place of its end in the writer's queue.
    pub slot: EndSlot,
    /// What the agent has said in it, as far as that is on disk.
    pub said: Vec<String>,
    /// What is to become of its changes; decided when its session is known.
    pub automation: Automation,
}

/// What a session that comes back brings along.
#[derive(Debug, Clone, Default)]
pub(crate) struct Past {
    /// The agent's own session id.
    pub agent_session_id: Option<String>,
    /// The newest event id that clients have seen.
    pub last_event_id: u64,
    /// Restarts so far.
    pub restarts: u32,
}

/// workspaces → supervisor: closes a session. Replies when its agent is released and its row says so; `false`
/// where it was not live.
#[derive(Message)]
#[rtype(result = "bool")]
pub(crate) struct CloseSession {
    pub session_id: SessionId,
}

/// workspaces → supervisor: ends every session; those with a running turn are cancelled. Replies when all are
/// gone.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct DrainSessions;

/// turn ticket, session → SuccessWindow: the outcome of a turn or a handshake, once it is on disk. Each sender is owned
/// by one turn and so has a place of its own: it is refused only by a window that is gone.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "()")]
pub(crate) struct OutcomeObserved(pub TurnReport);

/// SuccessWindow → ProtocolRouter: the success rate is too low. Replies when that is settled and written to disk;
/// `false` where a pin holds the route, or why it could not be written: then it is told again with the next outcome.
/// Waits for room.
#[derive(Message, Debug)]
#[rtype(result = "Result<bool, Failure>")]
pub(crate) struct WindowBreached {
    /// The epoch that was counted.
    pub epoch: u64,
    /// What the window held.
    pub figures: WindowFigures,
}

/// SuccessWindow → ProtocolRouter: the outcome of a canary, or of one of the first turns after a restore. Waits for
/// room.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub(crate) struct TurnObserved(pub TurnReport);

/// http → SuccessWindow: what it holds now. Waits for room.
#[derive(Message)]
#[rtype(result = "WindowFigures")]
pub(crate) struct ReadWindow;

/// http → ProtocolRouter: the route now. Waits for room.
#[derive(Message)]
#[rtype(result = "RouteView")]
pub(crate) struct ReadRoute;

/// migrations → ProtocolRouter: shakes hands with an agent of the workspace, whatever the route is. Waits for room.
#[derive(Message)]
#[rtype(result = "Result<(), Failure>")]
pub(crate) struct ProbeRoute;

/// http, migrations → ProtocolRouter: changes the route. Replies when it is on disk, or why it is not; then nothing has
/// changed. Waits for room.
#[derive(Message)]
#[rtype(result = "Result<RouteView, Failure>")]
pub(crate) struct ChangeRoute {
    /// What to change; all of it is one flip.
    pub changes: Vec<RouteChange>,
    /// Who wants it, and why.
    pub attribution: Attribution,
    /// The migration run of which it is a step.
    pub run_id: Option<Uuid>,
}

/// One change of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RouteChange {
    /// To HTTP, until it is restored.
    RollBack,
    /// Back to ACP, with a fresh window.
    Restore,
    /// Pins a route, or releases the pin.
    Pin(Option<Route>),
    /// The route where nothing overrides it.
    Default(Route),
    /// Whether a migration may move the workspace.
    MigrationEnabled(bool),
    /// Whether it is moved to ACP by itself while ACP is healthy.
    AutoRollout(bool),
}

/// A route as its router sees it.
#[derive(Debug, Clone)]
pub(crate) struct RouteView {
    pub routing: Routing,
    /// Whether a migration may move the workspace.
    pub migration_enabled: bool,
    /// Whether it is moved to ACP by itself while ACP is healthy.
    pub auto_rollout: bool,
    /// The share of turns that go over ACP while it is tried, in basis points.
    pub canary_share_bp: u32,
    /// Whether the change that this answers was a flip.
    pub is_flipped: bool,
}

/// writer's wakes → Notifications: these sequences of notifications have grown. Comes as a stream, so nothing waits for
/// it.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub(crate) struct StreamGrew(pub Vec<Stream>);

/// socket → Notifications: enters a subscriber that has everything until a number. Waits for room.
#[derive(Message)]
#[rtype(result = "Subscribed")]
pub(crate) struct Subscribe {
    /// What it wants to see.
    pub scope: Scope,
    pub after: u64,
    /// Whether it wants telemetry too.
    pub wants_telemetry: bool,
    /// Breaks its socket.
    pub cut: Cut,
}

/// Outcome of a [`Subscribe`].
#[derive(Debug)]
pub(crate) enum Subscribed {
    /// It is entered: what it has missed, and everything after that.
    Joined {
        /// In order.
        missed: Vec<Arc<NotificationFrame>>,
        outlet: Outlet,
    },
    /// Too much came meanwhile: it has to read on, and ask again.
    Behind,
}

/// app → Notifications: lets every subscriber go, and each that still comes. Replies when all are gone.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct CloseSubscribers;

/// A reply that is given later.
pub(crate) type Later<T> = oneshot::Sender<T>;
