//! Ways to an agent: the traits by which a session sees one, and the transports behind them.
//!
//! Invariant: a transport frames and carries; it never decides how a turn ended and never repeats a call, also not one
//! whose answer was lost. A line that
//! breaks it makes again where both ends number their messages, so that each arrives once. What it reports, it reports
//! in the order in which the agent said it.

pub(crate) mod acp;
#[cfg(test)]
pub(crate) mod fake;
pub(crate) mod http;
pub(crate) mod pipe;
pub(crate) mod socket;

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::{Stream, future::BoxFuture};
use serde_json::value::RawValue;
use tokio::sync::Notify;

use crate::{
    acp::{jsonrpc::RpcError, schema::RequestId},
    contract::runtime::ResumedPrompt,
    domain::{
        ids::{PromptId, SessionId},
        session::permission::PermissionPolicy,
        turn::{
            Severity,
            outcome::Failure,
            prompt::{Kinds, Prompt},
        },
    },
};

pub(crate) use self::pipe::{CloseReason, SendError};

/// A way to agents.
pub(crate) trait Transport: Send + Sync {
    /// Starts an agent and a conversation with it, or brings one back. Ends within the handshake timeout.
    /// Dropping the future ends the agent. A failure has no side effect that outlives it, so a retry is
    /// safe.
    fn open(&self, request: OpenRequest) -> BoxFuture<'static, Result<OpenedSession, Failure>>;

    /// Resumes a conversation whose client died, if the runtime still holds it: everything of its newest turn that
    /// is not on disk (`request.received`) comes again. A conversation that is not held any more is
    /// [`ErrorCode::ConnectionLost`](crate::domain::turn::outcome::ErrorCode). Safe to retry.
    fn adopt(&self, request: AdoptRequest) -> BoxFuture<'static, Result<AdoptedSession, Failure>>;
}

/// Which conversation to resume.
#[derive(Debug, Clone)]
pub(crate) struct AdoptRequest {
    /// [`AgentFacts::connection_id`] of it.
    pub connection_id: String,
    /// The agent's own session id.
    pub agent_session_id: String,
    /// The number up to which everything is on disk; 0 for all.
    pub received: u64,
    /// [`AgentFacts::cookies`] of it.
    pub cookies: Option<String>,
}

/// A conversation that continues under a new client.
pub(crate) struct AdoptedSession {
    /// For saying things to the agent.
    pub link: Box<dyn AgentSession>,
    /// What the agent says, ending with [`AgentEvent::Closed`].
    pub events: Pin<Box<dyn Stream<Item = AgentEvent> + Send>>,
    /// The first request id that the session may use.
    pub next_call: u64,
    /// The newest prompt that the agent got, if any. It may have been answered: then its answer is among the events.
    pub prompt: Option<ResumedPrompt>,
}

#[derive(Debug, Clone)]
pub(crate) struct OpenRequest {
    /// The session of ours.
    pub session_id: SessionId,
    /// Whether its workspace is removed with its last session.
    pub is_ephemeral: bool,
    /// Name of the configured agent; the default one where absent.
    pub agent: Option<String>,
    /// The folder in which it works, absolute, as the runtime knows it.
    pub cwd: String,
    /// ACP `mcpServers`, raw.
    pub mcp_servers: Box<RawValue>,
    /// The agent's own id of an earlier conversation that is to continue.
    pub previous: Option<String>,
    /// Cookies that the runtime set for this session before; they keep a session on its replica.
    pub cookies: Option<String>,
}

/// A conversation that has begun.
pub(crate) struct OpenedSession {
    /// For saying things to the agent.
    pub link: Box<dyn AgentSession>,
    /// What the agent says, ending with [`AgentEvent::Closed`], or with the link where each turn has an agent of its
    /// own.
    pub events: Pin<Box<dyn Stream<Item = AgentEvent> + Send>>,
    /// The first request id that the session may use.
    pub next_call: u64,
    /// What the handshake told.
    pub facts: AgentFacts,
}

/// What a handshake told about an agent.
#[derive(Debug, Clone)]
pub(crate) struct AgentFacts {
    /// Id of the connection, as the runtime named it.
    pub connection_id: String,
    /// The negotiated version; absent where nothing was negotiated, since each turn has an agent of its own.
    pub protocol_version: Option<u16>,
    /// The agent's own session id; empty where each turn has an agent of its own.
    pub agent_session_id: String,
    /// Whether the agent itself still knows the earlier conversation.
    pub remembers: bool,
    /// The content blocks that it takes; all of them where only the turn will tell.
    pub takes: Kinds,
    /// Whether it offers `session/close`.
    pub can_close: bool,
    /// `agentInfo`, raw.
    pub info: Option<Box<RawValue>>,
    /// `agentCapabilities`, raw.
    pub capabilities: Option<Box<RawValue>>,
    /// `modes` of the session, raw.
    pub modes: Option<Box<RawValue>>,
    /// `configOptions` of the session, raw.
    pub config_options: Option<Box<RawValue>>,
    /// Cookies to send on the next connection of this session.
    pub cookies: Option<String>,
}

/// One turn, as it is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TurnRequest<'a> {
    /// Which turn it is.
    pub prompt_id: PromptId,
    /// What the user wants.
    pub prompt: &'a Prompt,
    /// The conversation so far, for an agent that did not see it; goes ahead of the prompt, in the form that the agent
    /// takes.
    pub context: Option<&'a str>,
    /// Who answers permission requests where the session cannot be asked: where they do not come as
    /// [`AgentEvent::Request`].
    pub policy: PermissionPolicy,
}

/// A conversation, for saying things. Every method queues at once or fails; none waits.
pub(crate) trait AgentSession: Send {
    /// Asks for one turn. The answer comes as [`AgentEvent::Answered`] or [`AgentEvent::Failed`] with `call`.
    fn prompt(&mut self, call: u64, turn: TurnRequest<'_>) -> Result<(), SendError>;
    /// Whether whoever carries the turn watches its limits, the agent's silence and the grace of a cancel, and reports
    /// by [`AgentEvent::Failed`] what they did. Else the session has to.
    fn keeps_time(&self) -> bool {
        false
    }
    /// Asks for the end of the running turn.
    fn cancel(&mut self) -> Result<(), SendError>;
    /// Selects a mode (`session/set_mode`).
    fn set_mode(&mut self, call: u64, mode_id: &str) -> Result<(), SendError>;
    /// Sets an option (`session/set_config_option`); `value` is a string or a boolean.
    fn set_config_option(&mut self, call: u64, config_id: &str, value: &serde_json::Value) -> Result<(), SendError>;
    /// Ends the conversation (`session/close`), for agents that offer it.
    fn close(&mut self, call: u64) -> Result<(), SendError>;
    /// Answers a request of the agent.
    fn respond(&mut self, id: &RequestId, result: Result<serde_json::Value, RpcError>) -> Result<(), SendError>;
    /// How far the conversation has come, for settling it.
    fn delivered(&self) -> Arc<Delivered>;
}

/// How far a conversation has come. What is settled need not be kept by the runtime any longer: it is on disk, or
/// nobody wants it. A conversation whose peer does not number its messages stays at 0, where settling does nothing.
#[derive(Debug, Default)]
pub(crate) struct Delivered {
    handled: AtomicU64,
    settled: AtomicU64,
    changed: Notify,
}

impl Delivered {
    /// The number of the last message that was handed to the session as an event.
    pub(crate) fn handled(&self) -> u64 {
        self.handled.load(Ordering::Acquire)
    }

    /// The number up to which the runtime may forget.
    pub(crate) fn settled(&self) -> u64 {
        self.settled.load(Ordering::Acquire)
    }

    /// Notes that a message is handed over.
    pub(crate) fn handle(&self, seq: u64) {
        self.handled.fetch_max(seq, Ordering::AcqRel);
    }

    /// Lets the runtime forget everything up to `seq`, when there is next something to tell it, or enough of it.
    /// Never blocks; from any thread.
    pub(crate) fn settle(&self, seq: u64) {
        self.settled.fetch_max(seq, Ordering::AcqRel);
        self.changed.notify_one();
    }

    /// Ends when something was settled since the last call. Cancel-safe; for one caller.
    pub(crate) async fn settled_more(&self) {
        self.changed.notified().await;
    }
}

/// What an agent says.
#[derive(Debug)]
pub(crate) enum AgentEvent {
    /// `session/update`: progress of the turn, raw.
    Update {
        update: Box<RawValue>,
        /// `_meta` beside it.
        meta: Option<Box<RawValue>>,
    },
    /// Any other notification, raw.
    Notification { method: String, params: Box<RawValue> },
    /// A request; it has to be answered.
    Request {
        /// To be repeated in the answer.
        id: RequestId,
        method: String,
        params: Box<RawValue>,
    },
    /// An answer to a call of ours.
    Answered {
        call: u64,
        /// Outcome of it.
        result: Result<Box<RawValue>, RpcError>,
    },
    /// A call of ours failed, and the link lives on: the next turn can be asked for.
    Failed { call: u64, failure: Failure },
    /// A remark about the running turn by whoever carries it.
    Remark {
        /// How bad it is.
        severity: Severity,
        message: String,
    },
    /// A permission request was answered by whoever carries the turn.
    Permission {
        /// The option that was chosen; `None` where the request was cancelled.
        option_id: Option<String>,
        /// Whether that option allows.
        allows: bool,
        by: String,
    },
    /// A line that is not JSON; `line` is cut.
    StrayLine(String),
    /// JSON that is not the protocol; the agent cannot be trusted any more.
    Violation(String),
    /// The connection broke and is being made again; what was said meanwhile comes after [`AgentEvent::Resumed`].
    Interrupted(String),
    /// The connection stands again; nothing was lost.
    Resumed,
    /// The end; nothing follows.
    Closed(CloseReason),
}
