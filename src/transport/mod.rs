//! Connections to agents: the traits that a session uses, and the transports that implement them.
//!
//! Invariant: a transport only frames and carries messages. It never decides the outcome of a turn and never repeats
//! a call, not even one whose answer was lost. It restores an interrupted connection if both ends number their
//! messages, so that each message arrives once. Events arrive in the order in which the agent sent the messages.

pub(crate) mod acp;
#[cfg(test)]
pub(crate) mod fake;
pub(crate) mod http;
pub(crate) mod pipe;
pub(crate) mod redacted;
pub(crate) mod request_id;
pub(crate) mod socket;

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, future::BoxFuture};
use serde_json::value::RawValue;
use tokio::sync::Notify;

use crate::{
    acp::{jsonrpc::RpcError, schema::RequestId},
    contract::runtime::ResumedPrompt,
    domain::{
        ids::{InstallationId, PromptId, SessionId},
        session::{
            choices::{Choices, Offers, Reapplied, Setting},
            mcp::McpServers,
            pending_permissions::Resolution,
            permission::PermissionPolicy,
        },
        turn::{
            Severity,
            outcome::Failure,
            prompt::{Kinds, Prompt},
        },
    },
};

pub(crate) use self::pipe::{CloseReason, SendError};

/// Opens conversations with agents.
pub(crate) trait Transport: Send + Sync {
    /// Starts an agent and a conversation with it, or resumes an earlier conversation. Takes at most the handshake
    /// timeout, and as long again for setting [`OpenRequest::choices`].
    ///
    /// # Errors
    /// A failure has no lasting side effect, so a retry is safe.
    ///
    /// # Cancel safety
    /// A dropped future ends the agent.
    fn open(&self, request: OpenRequest) -> BoxFuture<'static, Result<OpenedSession, Failure>>;

    /// Resumes a conversation whose previous client has exited, if the runtime still holds it. All messages of its
    /// newest turn after `request.received` are delivered again.
    ///
    /// # Errors
    /// [`ErrorCode::ConnectionLost`](crate::domain::turn::outcome::ErrorCode) if the runtime no longer holds the
    /// conversation. A retry is safe.
    fn adopt(&self, request: AdoptRequest) -> BoxFuture<'static, Result<AdoptedSession, Failure>>;

    /// Starts an agent and has it remove conversations from its own history, which no client may use. Returns how many
    /// it removed; 0 if it does not offer that. Takes at most the handshake timeout.
    ///
    /// # Errors
    /// The agent cannot be started. A retry is safe.
    ///
    /// # Cancel safety
    /// A dropped future ends the agent.
    fn delete(&self, request: DeleteRequest) -> BoxFuture<'static, Result<usize, Failure>> {
        drop(request);
        Box::pin(std::future::ready(Ok(0)))
    }
}

/// Conversations of one agent to remove from its history.
#[derive(Debug, Clone)]
pub(crate) struct DeleteRequest {
    /// The agent, its tenant and its folder.
    pub open: OpenRequest,
    /// The agent's own ids.
    pub conversations: Vec<String>,
}

/// The time limits of handshakes: connecting, the start of the agent and all its answers together.
#[derive(Debug, Clone, Default)]
pub(crate) struct HandshakeTimeouts {
    pub default: Duration,
    /// The limits of agents that have their own, by agent name (`""` is the default agent).
    pub by_agent: BTreeMap<String, Duration>,
}

impl HandshakeTimeouts {
    /// Returns the limit of an agent; `None` is the default agent.
    pub(crate) fn of(&self, agent: Option<&str>) -> Duration {
        self.by_agent.get(agent.unwrap_or_default()).copied().unwrap_or(self.default)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct AdoptRequest {
    /// The [`AgentFacts::connection_id`] of the conversation.
    pub connection_id: String,
    /// The agent's own session id.
    pub agent_session_id: String,
    /// The number of the last message that is persisted; 0 if none is.
    pub received: u64,
    /// The newest turn that has ended, with the number of the last message that its end covers. The number holds only if
    /// the prompt was sent over this connection.
    pub ended: Option<(PromptId, u64)>,
    /// The [`AgentFacts::cookies`] of the conversation.
    pub cookies: Option<String>,
}

/// A conversation that was resumed by a new client.
pub(crate) struct AdoptedSession {
    /// Sends to the agent.
    pub link: Box<dyn AgentSession>,
    /// The agent's events; the last is [`AgentEvent::Closed`].
    pub events: Pin<Box<dyn Stream<Item = AgentEvent> + Send>>,
    /// The first request id that the session may use.
    pub next_call: u64,
    /// The newest prompt that the agent received, if any. If it was answered, the answer is among the events.
    pub prompt: Option<ResumedPrompt>,
}

/// The agent and the conversation to start.
#[derive(Debug, Clone)]
pub(crate) struct OpenRequest {
    /// The session of this service that the conversation belongs to.
    pub session_id: SessionId,
    /// The tenant of the session.
    pub installation_id: Option<InstallationId>,
    /// True if the workspace is removed with its last session.
    pub is_ephemeral: bool,
    /// The name of a configured agent; `None`: the default agent.
    pub agent: Option<String>,
    /// The agent's working directory: an absolute path in the runtime's file system.
    pub cwd: String,
    pub mcp_servers: McpServers,
    /// The agent's own id of an earlier conversation to resume.
    pub previous: Option<String>,
    /// Cookies that the runtime set for this session earlier; a load balancer uses them to keep a session on its
    /// replica.
    pub cookies: Option<String>,
    /// The mode, model and options that the agent must have before its first prompt.
    pub choices: Choices,
}

/// A conversation that has started.
pub(crate) struct OpenedSession {
    /// Sends to the agent.
    pub link: Box<dyn AgentSession>,
    /// The agent's events. The last is [`AgentEvent::Closed`]; if each turn has its own agent, the stream ends
    /// without it when the link is dropped.
    pub events: Pin<Box<dyn Stream<Item = AgentEvent> + Send>>,
    /// The first request id that the session may use.
    pub next_call: u64,
    pub facts: AgentFacts,
}

/// Properties of an agent and its conversation, from the handshake.
#[derive(Debug, Clone)]
pub(crate) struct AgentFacts {
    /// The runtime's id of the connection.
    pub connection_id: String,
    /// The negotiated protocol version; `None` if each turn has its own agent, so that nothing is negotiated here.
    pub protocol_version: Option<u16>,
    /// The agent's own session id; empty if each turn has its own agent.
    pub agent_session_id: String,
    /// True if the agent resumed the earlier conversation and remembers it.
    pub remembers: bool,
    /// The content blocks that the agent accepts; all of them if each turn has its own agent, because only the turn
    /// shows it.
    pub takes: Kinds,
    /// True if the agent offers `session/close`.
    pub can_close: bool,
    /// `agentInfo`, raw.
    pub info: Option<Box<RawValue>>,
    /// `agentCapabilities`, raw.
    pub capabilities: Option<Box<RawValue>>,
    /// `modes`, `models` and `configOptions` of the session, after [`OpenRequest::choices`] were set.
    pub offers: Offers,
    /// The result of setting [`OpenRequest::choices`].
    pub reapplied: Reapplied,
    /// Cookies to send on the next connection of this session.
    pub cookies: Option<String>,
}

/// A request for one turn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TurnRequest<'a> {
    /// The id of the turn.
    pub prompt_id: PromptId,
    pub prompt: &'a Prompt,
    /// The conversation so far, for an agent that did not see it. It is sent ahead of the prompt, in a form that the
    /// agent accepts.
    pub context: Option<&'a str>,
    /// Decides permission requests if the carrier of the turn answers them itself, so that they do not arrive as
    /// [`AgentEvent::Request`].
    pub policy: PermissionPolicy,
    /// The mode, model and options that the agent must have, if the turn has its own agent.
    pub choices: &'a Choices,
}

/// The sending half of a conversation. Every method queues a message or fails; none waits.
///
/// # Errors
/// [`SendError::Full`] if the message cannot be taken now, and [`SendError::Closed`] after the connection has closed.
/// Nothing was queued, so a retry is safe.
pub(crate) trait AgentSession: Send {
    /// Requests one turn. The result arrives as [`AgentEvent::Answered`] or [`AgentEvent::Failed`] with the same
    /// `call`.
    fn prompt(&mut self, call: u64, turn: TurnRequest<'_>) -> Result<(), SendError>;
    /// True if the carrier of the turn enforces its limits (the agent's silence, the grace of a cancel) and reports a
    /// violation as [`AgentEvent::Failed`]. Otherwise the session enforces them.
    fn enforces_limits(&self) -> bool {
        false
    }
    /// Requests the end of the running turn.
    fn cancel(&mut self) -> Result<(), SendError>;
    /// Selects a mode (`session/set_mode`).
    fn set_mode(&mut self, call: u64, mode_id: &str) -> Result<(), SendError>;
    /// Sets an option (`session/set_config_option`). `value` is a string or a boolean.
    fn set_config_option(&mut self, call: u64, config_id: &str, value: &serde_json::Value) -> Result<(), SendError>;
    /// Selects a model (`session/set_model`, unstable).
    fn set_model(&mut self, call: u64, model_id: &str) -> Result<(), SendError>;
    /// Sends the call of a setting.
    fn set(&mut self, call: u64, setting: &Setting) -> Result<(), SendError> {
        match setting {
            Setting::Mode(id) => self.set_mode(call, id),
            Setting::Model(id) => self.set_model(call, id),
            Setting::Option { id, value } => self.set_config_option(call, id, value),
        }
    }
    /// Ends the conversation (`session/close`); only for agents that offer it.
    fn close(&mut self, call: u64) -> Result<(), SendError>;
    /// Sends the answer to a request of the agent.
    fn respond(&mut self, id: &RequestId, result: Result<serde_json::Value, RpcError>) -> Result<(), SendError>;
    /// The progress of the conversation, for settling messages.
    fn delivered(&self) -> Arc<Delivered>;
}

/// The progress of a conversation's messages. The runtime may discard settled messages: they are persisted or no
/// longer needed. If the peer does not number its messages, the progress stays at 0 and settling has no effect.
#[derive(Debug, Default)]
pub(crate) struct Delivered {
    handled: AtomicU64,
    settled: AtomicU64,
    changed: Notify,
}

impl Delivered {
    /// The number of the last message that was handed to the session as an event; 0 before the first.
    pub(crate) fn handled(&self) -> u64 {
        self.handled.load(Ordering::Acquire)
    }

    /// The number of the last message that the runtime may discard; 0 if there is none.
    pub(crate) fn settled(&self) -> u64 {
        self.settled.load(Ordering::Acquire)
    }

    /// Records that the message `seq` is being handed to the session.
    pub(crate) fn handle(&self, seq: u64) {
        self.handled.fetch_max(seq, Ordering::AcqRel);
    }

    /// Allows the runtime to discard all messages up to `seq`. The runtime is notified with the next message to it,
    /// or once enough messages are settled. Never blocks; may be called from any thread.
    pub(crate) fn settle(&self, seq: u64) {
        self.settled.fetch_max(seq, Ordering::AcqRel);
        self.changed.notify_one();
    }

    /// Waits until more messages are settled than at the last call. For one caller at a time.
    ///
    /// # Cancel safety
    /// Cancel-safe: a dropped future loses no notification.
    pub(crate) async fn settled_more(&self) {
        self.changed.notified().await;
    }
}

/// Events of an agent, and of the connection to it.
#[derive(Debug)]
pub(crate) enum AgentEvent {
    /// A `session/update`: progress of the turn, raw.
    Update {
        update: Box<RawValue>,
        /// The member `_meta` of the same message.
        meta: Option<Box<RawValue>>,
    },
    /// Any other notification.
    Notification {
        /// Name of the method, as the agent sent it.
        method: String,
        params: Box<RawValue>,
    },
    /// A request, which must be answered by [`AgentSession::respond`].
    Request {
        /// The id to repeat in the answer.
        id: RequestId,
        method: String,
        params: Box<RawValue>,
    },
    /// The answer to a call.
    Answered {
        /// The number of the call.
        call: u64,
        /// The result, raw, or the agent's error.
        result: Result<Box<RawValue>, RpcError>,
    },
    /// A call failed, but the link remains usable: the next turn can be requested.
    Failed {
        /// The number of the call.
        call: u64,
        failure: Failure,
    },
    /// A diagnostic about the running turn from the carrier of the turn.
    Remark {
        severity: Severity,
        /// One sentence for people.
        message: String,
    },
    /// The carrier of the turn answered a permission request itself.
    Permission(Resolution),
    /// A line of the agent's output that is no message, truncated.
    StrayLine(String),
    /// An error of the agent that names no request: it could not read a message, or not its id.
    Unassigned(RpcError),
    /// JSON that violates the protocol; the agent can no longer be trusted.
    Violation(String),
    /// The connection was interrupted and is being restored; the text is the cause. Messages sent meanwhile follow
    /// [`AgentEvent::Resumed`].
    Interrupted(String),
    /// The connection was restored without loss.
    Resumed,
    /// The end of the conversation; the last event.
    Closed(CloseReason),
}
