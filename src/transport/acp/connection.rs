//! An ACP conversation over any pipe: the agent's events, and the messages to the agent.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::Stream;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};

use crate::{
    acp::{
        jsonrpc::{self, Message, RpcError},
        loose::Object,
        numbered,
        schema::{RequestId, agent_method, client_method},
    },
    contract::runtime::{AGENT_EXITED, AgentExited, META_KEY, PromptMeta, STRAY_LINE, StrayLine},
    domain::{
        text,
        turn::{
            Severity,
            outcome::{ErrorCode, Failure},
            prompt::Kinds,
        },
    },
    transport::{
        AgentEvent, AgentSession, CloseReason, Delivered, SendError, TurnRequest,
        pipe::{ConnectionState, FrameReceiver, FrameSender, Incoming},
    },
};

/// Converts a close reason to the failure of the turn that was running.
pub(crate) fn closed_in_turn(reason: &CloseReason) -> Failure {
    match reason {
        CloseReason::AgentExited(exited) => match exited.code.as_deref().and_then(ErrorCode::from_name) {
            Some(code) => Failure::new(code, format!("the agent was terminated: {}", exit_reason(exited))),
            None => Failure::new(
                ErrorCode::AgentCrashed,
                format!("the agent exited during the turn: {}", exit_reason(exited)),
            ),
        },
        CloseReason::Lost(cause) => Failure::new(ErrorCode::ConnectionLost, format!("the connection broke: {cause}")),
        CloseReason::RuntimeUnavailable(cause) => Failure::new(ErrorCode::RuntimeUnavailable, cause.clone()),
        CloseReason::FrameTooLarge { limit } => {
            Failure::new(ErrorCode::FrameTooLarge, format!("a message was larger than {limit} bytes"))
        }
    }
}

/// Describes the end of an agent in a few words, with the last 500 bytes of its stderr.
pub(crate) fn exit_reason(exited: &AgentExited) -> String {
    let how = match (exited.exit_code, exited.signal) {
        (_, Some(signal)) => format!("signal {signal}"),
        (Some(code), None) => format!("exit code {code}"),
        (None, None) => "its output closed".to_owned(),
    };
    let tail = exited.stderr_tail.trim();
    // The end of stderr is the most informative part, and the detail has to stay readable.
    if tail.is_empty() { how } else { format!("{how}; end of stderr: {}", text::tail_bytes(tail, 500)) }
}

/// The stream of the agent's events. Reads the pipe on demand.
pub(crate) struct Events {
    from_agent: FrameReceiver,
    delivered: Arc<Delivered>,
    exited: Option<AgentExited>,
    /// The rest of a message that is two events.
    next: Option<AgentEvent>,
}

impl Events {
    /// Creates the stream, which records in `delivered` the number of each message that it yields.
    pub(crate) fn new(from_agent: FrameReceiver, delivered: Arc<Delivered>) -> Self {
        Self { from_agent, delivered, exited: None, next: None }
    }
}

impl Stream for Events {
    type Item = AgentEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<AgentEvent>> {
        if let Some(next) = self.next.take() {
            return Poll::Ready(Some(next));
        }
        loop {
            return Poll::Ready(match std::task::ready!(self.from_agent.poll_recv(cx)) {
                None => None,
                Some(Incoming::Closed(reason)) => Some(AgentEvent::Closed(match self.exited.take() {
                    Some(exited) => CloseReason::AgentExited(exited),
                    None => reason,
                })),
                Some(Incoming::State(ConnectionState::Interrupted(cause))) => Some(AgentEvent::Interrupted(cause)),
                Some(Incoming::State(ConnectionState::Resumed)) => Some(AgentEvent::Resumed),
                Some(Incoming::Frame(frame)) => {
                    let read = read(frame.text());
                    if frame.seq() > 0 {
                        self.delivered.handle(frame.seq());
                    }
                    match read {
                        Read::Event(event) => Some(event),
                        Read::Events(first, next) => {
                            self.next = Some(next);
                            Some(first)
                        }
                        Read::Exited(exited) => {
                            // Kept for the close that follows, which by itself does not know how the agent ended.
                            self.exited = Some(exited);
                            continue;
                        }
                    }
                }
            });
        }
    }
}

enum Read {
    Event(AgentEvent),
    Events(AgentEvent, AgentEvent),
    Exited(AgentExited),
}

fn read(frame: &str) -> Read {
    let message = match jsonrpc::parse(frame) {
        Ok(message) => message,
        Err(cause) => return Read::Event(AgentEvent::Violation(format!("{cause}: {}", quoted(frame)))),
    };
    Read::Event(match message {
        Message::Notification { method, params } => match &*method {
            client_method::SESSION_UPDATE => read_update(params, frame),
            STRAY_LINE => match serde_json::from_str::<StrayLine>(params.get()) {
                Ok(stray) => AgentEvent::StrayLine(stray.line),
                Err(_) => AgentEvent::StrayLine(String::new()),
            },
            AGENT_EXITED => return Read::Exited(serde_json::from_str(params.get()).unwrap_or_default()),
            _ => AgentEvent::Notification { method: method.into_owned(), params: params.to_owned() },
        },
        Message::Request { id, method, params } if method == client_method::SESSION_UPDATE => {
            let (method, nothing) = (method.into_owned(), RawValue::NULL.to_owned());
            return Read::Events(read_update(params, frame), AgentEvent::Request { id, method, params: nothing });
        }
        Message::Request { id, method, params } => {
            AgentEvent::Request { id, method: method.into_owned(), params: params.to_owned() }
        }
        Message::Response { id, result } => match (jsonrpc::own_id(&id), result) {
            (Some(call), result) => AgentEvent::Answered { call, result: result.map(ToOwned::to_owned) },
            (None, Err(error)) if id == RequestId::Null => AgentEvent::Unassigned(error),
            // No request of this side had this id: the entry of a log, for example.
            (None, _) => AgentEvent::StrayLine(quoted(frame)),
        },
    })
}

fn read_update(params: &RawValue, frame: &str) -> AgentEvent {
    match update_of(params) {
        Some((update, meta)) => AgentEvent::Update { update, meta },
        None => AgentEvent::Remark {
            severity: Severity::Warn,
            message: format!("the agent sent a session/update without an update: {}", quoted(frame)),
        },
    }
}

/// The answer to an agent's request that is not served here. An update is a notification; an agent that sends it as a
/// request waits for an answer, after the update was read.
///
/// # Errors
/// -32601 for every other method.
pub(crate) fn answer_unserved(method: &str) -> Result<serde_json::Value, RpcError> {
    match method {
        client_method::SESSION_UPDATE => Ok(json!({})),
        _ => Err(RpcError::new(jsonrpc::METHOD_NOT_FOUND, format!("this client has no method {method}"))),
    }
}

/// The first 200 characters of a message, without its sequence number.
fn quoted(frame: &str) -> String {
    let message = numbered::take(frame).map_or(Cow::Borrowed(frame), |(_, message)| message);
    text::cut(&message, 200)
}

fn update_of(params: &RawValue) -> Option<(Box<RawValue>, Option<Box<RawValue>>)> {
    #[derive(Deserialize)]
    struct Params<'a> {
        #[serde(borrow)]
        update: &'a RawValue,
        #[serde(borrow, default, rename = "_meta")]
        meta: Option<&'a RawValue>,
    }
    let (update, meta) = match serde_json::from_str::<Params<'_>>(params.get()) {
        Ok(Params { update, meta }) => (update, meta),
        // Repeated members, for example.
        Err(_) => {
            let params = Object::read(params)?;
            (params.get("update")?, params.get("_meta"))
        }
    };
    update.get().starts_with('{').then(|| (update.to_owned(), meta.map(ToOwned::to_owned)))
}

pub(crate) struct Link {
    to_agent: FrameSender,
    session_id: String,
    takes: Kinds,
    delivered: Arc<Delivered>,
}

impl Link {
    pub(crate) fn new(to_agent: FrameSender, session_id: String, takes: Kinds, delivered: Arc<Delivered>) -> Self {
        Self { to_agent, session_id, takes, delivered }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PromptParams<'a> {
    session_id: &'a str,
    prompt: &'a [Box<RawValue>],
    #[serde(rename = "_meta")]
    meta: BTreeMap<&'static str, PromptMeta>,
}

impl AgentSession for Link {
    fn prompt(&mut self, call: u64, turn: TurnRequest<'_>) -> Result<(), SendError> {
        let meta = BTreeMap::from([(META_KEY, PromptMeta { prompt_id: turn.prompt_id })]);
        let blocks = turn.prompt.with_context(turn.context, self.takes);
        let params = PromptParams { session_id: &self.session_id, prompt: &blocks, meta };
        self.to_agent.try_send(jsonrpc::request(call, agent_method::SESSION_PROMPT, params))
    }

    fn cancel(&mut self) -> Result<(), SendError> {
        let params = json!({"sessionId": self.session_id});
        self.to_agent.try_send(jsonrpc::notification(agent_method::SESSION_CANCEL, params))
    }

    fn set_mode(&mut self, call: u64, mode_id: &str) -> Result<(), SendError> {
        let params = json!({"sessionId": self.session_id, "modeId": mode_id});
        self.to_agent.try_send(jsonrpc::request(call, agent_method::SESSION_SET_MODE, params))
    }

    fn set_config_option(&mut self, call: u64, config_id: &str, value: &serde_json::Value) -> Result<(), SendError> {
        let mut params = json!({"sessionId": self.session_id, "configId": config_id, "value": value});
        if value.is_boolean() {
            params["type"] = json!("boolean");
        }
        self.to_agent.try_send(jsonrpc::request(call, agent_method::SESSION_SET_CONFIG_OPTION, params))
    }

    fn set_model(&mut self, call: u64, model_id: &str) -> Result<(), SendError> {
        let params = json!({"sessionId": self.session_id, "modelId": model_id});
        self.to_agent.try_send(jsonrpc::request(call, agent_method::SESSION_SET_MODEL, params))
    }

    fn close(&mut self, call: u64) -> Result<(), SendError> {
        let params = json!({"sessionId": self.session_id});
        self.to_agent.try_send(jsonrpc::request(call, agent_method::SESSION_CLOSE, params))
    }

    fn respond(&mut self, id: &RequestId, result: Result<serde_json::Value, RpcError>) -> Result<(), SendError> {
        self.to_agent.try_send(jsonrpc::response(id, result.as_ref()))
    }

    fn delivered(&self) -> Arc<Delivered> {
        self.delivered.clone()
    }
}
