//! ACP over any pipe, the client's side: the handshake, then a conversation.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, Stream, future::BoxFuture};
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};

use super::{
    AgentEvent, AgentFacts, AgentSession, CloseReason, OpenRequest, OpenedSession, SendError, Transport,
    pipe::{FrameReceiver, FrameSender, Incoming, Pipe},
    websocket::{self, Endpoint},
};
use crate::{
    acp::{
        jsonrpc::{self, Message, RpcError},
        schema::{InitializeResponse, PROTOCOL_VERSION, RequestId, agent_method, client_method},
    },
    contract::runtime::{AGENT_EXITED, AgentExited, InitializeMeta, META_KEY, RefusalMeta, STRAY_LINE, StrayLine},
    domain::{
        outcome::{ErrorCode, Failure, classify_agent_error},
        prompt::Kinds,
        text,
        turn::MAX_STRAY_LINES,
    },
};

/// ACP over WebSocket: one connection per session, to one runtime.
#[derive(Debug, Clone)]
pub struct AcpTransport {
    /// The runtime.
    pub endpoint: Endpoint,
    /// Limit for connecting and the whole handshake.
    pub handshake_timeout: Duration,
    /// For agents that want `authenticate`: the sign-in method, by agent name (`""` is the default agent).
    pub auth_methods: std::collections::BTreeMap<String, String>,
}

impl Transport for AcpTransport {
    fn open(&self, request: OpenRequest) -> BoxFuture<'static, Result<OpenedSession, Failure>> {
        let this = self.clone();
        async move {
            let limit = this.handshake_timeout;
            tokio::time::timeout(limit, this.connect_and_shake_hands(request)).await.unwrap_or_else(|_| {
                let detail = format!("the agent did not finish its handshake within {} s", limit.as_secs_f32());
                Err(Failure::new(ErrorCode::HandshakeTimeout, detail))
            })
        }
        .boxed()
    }
}

impl AcpTransport {
    async fn connect_and_shake_hands(self, request: OpenRequest) -> Result<OpenedSession, Failure> {
        let auth_method = self.auth_methods.get(request.agent.as_deref().unwrap_or_default()).cloned();
        let connected = websocket::connect(&self.endpoint, request.cookies.as_deref()).await?;
        let mut opened = shake_hands(connected.pipe, &request, auth_method.as_deref()).await?;
        opened.facts.connection_id = connected.connection_id;
        opened.facts.cookies = connected.cookies;
        Ok(opened)
    }
}

/// Runs the handshake over a pipe: `initialize`, then `session/resume`, `session/load` or `session/new`.
pub async fn shake_hands(
    pipe: Pipe,
    request: &OpenRequest,
    auth_method: Option<&str>,
) -> Result<OpenedSession, Failure> {
    let mut hands = Hands {
        to_agent: pipe.to_agent,
        events: Events { from_agent: pipe.from_agent, exited: None },
        next_call: 1,
        stray_lines: 0,
    };
    let initialized = hands.initialize(request).await?;
    let agent: InitializeResponse = parse(&initialized, "initialize")?;
    let raw: RawInitialized = parse(&initialized, "initialize")?;
    // Some agents echo back whatever is offered, so what counts is that it is the one that we speak.
    if raw.protocol_version != PROTOCOL_VERSION {
        let detail = format!(
            "the agent speaks version {} of the protocol, this service version {PROTOCOL_VERSION}",
            raw.protocol_version
        );
        return Err(Failure::new(ErrorCode::ProtocolVersion, detail));
    }
    let begun = hands.begin(request, &agent, auth_method).await?;
    let takes = &agent.agent_capabilities.prompt_capabilities;
    Ok(OpenedSession {
        facts: AgentFacts {
            connection_id: String::new(),
            protocol_version: PROTOCOL_VERSION,
            agent_session_id: begun.agent_session_id.clone(),
            remembers: begun.remembers,
            takes: Kinds { image: takes.image, audio: takes.audio, embedded: takes.embedded_context },
            can_close: agent.agent_capabilities.session_capabilities.close.is_some(),
            info: raw.agent_info,
            capabilities: raw.agent_capabilities,
            modes: begun.modes,
            config_options: begun.config_options,
            cookies: None,
        },
        link: Box::new(Link { to_agent: hands.to_agent, session_id: begun.agent_session_id }),
        events: Box::pin(hands.events),
        next_call: hands.next_call,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawInitialized {
    protocol_version: u16,
    agent_info: Option<Box<RawValue>>,
    agent_capabilities: Option<Box<RawValue>>,
}

struct Begun {
    agent_session_id: String,
    remembers: bool,
    modes: Option<Box<RawValue>>,
    config_options: Option<Box<RawValue>>,
}

fn parse<'a, T: Deserialize<'a>>(answer: &'a RawValue, method: &str) -> Result<T, Failure> {
    serde_json::from_str(answer.get()).map_err(|cause| {
        Failure::new(ErrorCode::HandshakeFailed, format!("the agent's answer to `{method}` is not ACP: {cause}"))
    })
}

struct Hands {
    to_agent: FrameSender,
    events: Events,
    next_call: u64,
    stray_lines: u32,
}

impl Hands {
    async fn initialize(&mut self, request: &OpenRequest) -> Result<Box<RawValue>, Failure> {
        let meta = InitializeMeta { agent: request.agent.clone(), cwd: Some(request.cwd.clone()) };
        let params = json!({
            "protocolVersion": PROTOCOL_VERSION,
            // Files and terminals are the runtime's business: it is where the workspace is.
            "clientCapabilities": {},
            "clientInfo": {"name": "lumilink", "version": env!("CARGO_PKG_VERSION")},
            "_meta": {META_KEY: meta},
        });
        self.call(agent_method::INITIALIZE, params).await?.map_err(|error| {
            let code = refusal_code(&error).unwrap_or(ErrorCode::HandshakeFailed);
            Failure::new(code, format!("the handshake was refused: {}", error.message))
        })
    }

    async fn begin(
        &mut self,
        request: &OpenRequest,
        agent: &InitializeResponse,
        auth_method: Option<&str>,
    ) -> Result<Begun, Failure> {
        match self.begin_once(request, agent).await? {
            Ok(begun) => Ok(begun),
            Err(error) if error.code == jsonrpc::AUTH_REQUIRED => {
                self.authenticate(agent, auth_method, &error).await?;
                self.begin_once(request, agent).await?.map_err(|error| classify_agent_error(&error))
            }
            Err(error) => Err(handshake_failure(&error)),
        }
    }

    async fn begin_once(
        &mut self,
        request: &OpenRequest,
        agent: &InitializeResponse,
    ) -> Result<Result<Begun, RpcError>, Failure> {
        let capabilities = &agent.agent_capabilities;
        if let Some(previous) = &request.previous {
            let params = json!({"sessionId": previous, "cwd": request.cwd, "mcpServers": request.mcp_servers});
            let ways = [
                (capabilities.session_capabilities.resume.is_some(), agent_method::SESSION_RESUME),
                (capabilities.load_session, agent_method::SESSION_LOAD),
            ];
            for (_, method) in ways.into_iter().filter(|(offered, _)| *offered) {
                match self.call(method, &params).await? {
                    Ok(answer) => return begun(&answer, method, Some(previous.clone())).map(Ok),
                    Err(error) if error.code == jsonrpc::AUTH_REQUIRED => return Ok(Err(error)),
                    // Known agents advertise what then fails; a new conversation with the transcript as
                    // context serves the user better than no session.
                    Err(error) => {
                        tracing::info!(marker = "[ACP]", method, %error, "the agent cannot go on with its conversation")
                    }
                }
            }
        }
        let params = json!({"cwd": request.cwd, "mcpServers": request.mcp_servers});
        match self.call(agent_method::SESSION_NEW, params).await? {
            Ok(answer) => begun(&answer, agent_method::SESSION_NEW, None).map(Ok),
            Err(error) => Ok(Err(error)),
        }
    }

    async fn authenticate(
        &mut self,
        agent: &InitializeResponse,
        method: Option<&str>,
        wanted: &RpcError,
    ) -> Result<(), Failure> {
        let Some(method) = method else {
            let offered: Vec<_> = agent.auth_methods.iter().map(|method| method.id().to_string()).collect();
            let detail = format!(
                "the agent wants to be signed in ({}) and no `auth_method` is configured for it; it offers: {}",
                wanted.message,
                offered.join(", ")
            );
            return Err(Failure::new(ErrorCode::AgentAuthRequired, detail));
        };
        let answer = self.call(agent_method::AUTHENTICATE, json!({"methodId": method})).await?;
        answer.map(drop).map_err(|error| {
            Failure::new(ErrorCode::AgentAuthRequired, format!("the agent refused to sign in: {}", error.message))
        })
    }

    /// Sends a request and waits for its answer. Notifications until then are of an earlier conversation
    /// (a load replays it) and are not for the user; requests are refused.
    async fn call(
        &mut self,
        method: &str,
        params: impl Serialize,
    ) -> Result<Result<Box<RawValue>, RpcError>, Failure> {
        let call = self.next_call;
        self.next_call += 1;
        let closed =
            |_| Failure::new(ErrorCode::ConnectionLost, "the connection to the runtime broke in the handshake");
        self.to_agent.send(jsonrpc::request(call, method, params)).await.map_err(closed)?;
        loop {
            let event = std::future::poll_fn(|cx| Pin::new(&mut self.events).poll_next(cx)).await;
            match event {
                Some(AgentEvent::Answered { call: answered, result }) if answered == call => return Ok(result),
                Some(AgentEvent::Request { id, method, .. }) => {
                    let refusal = RpcError::new(jsonrpc::METHOD_NOT_FOUND, format!("no method {method} here"));
                    let _ = self.to_agent.try_send(jsonrpc::response(&id, Err::<(), _>(&refusal)));
                }
                Some(AgentEvent::StrayLine(line)) => {
                    self.stray_lines += 1;
                    if self.stray_lines > MAX_STRAY_LINES {
                        let detail = format!("the agent prints something else than ACP, for instance: {line}");
                        return Err(Failure::new(ErrorCode::HandshakeFailed, detail));
                    }
                }
                Some(AgentEvent::Violation(detail)) => return Err(Failure::new(ErrorCode::HandshakeFailed, detail)),
                Some(AgentEvent::Closed(reason)) => return Err(closed_in_handshake(&reason)),
                None => return Err(closed_in_handshake(&CloseReason::Lost("it ended without a word".into()))),
                Some(AgentEvent::Update(_) | AgentEvent::Notification { .. } | AgentEvent::Answered { .. }) => {}
            }
        }
    }
}

fn begun(answer: &RawValue, method: &str, previous: Option<String>) -> Result<Begun, Failure> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        session_id: Option<String>,
        modes: Option<Box<RawValue>>,
        config_options: Option<Box<RawValue>>,
    }
    // `session/load` may answer null.
    let answer: Option<Answer> = parse(answer, method)?;
    let answer = answer.unwrap_or(Answer { session_id: None, modes: None, config_options: None });
    let remembers = previous.is_some();
    let Some(agent_session_id) = previous.or(answer.session_id).filter(|id| !id.is_empty()) else {
        let detail = format!("the agent's answer to `{method}` has no session id");
        return Err(Failure::new(ErrorCode::HandshakeFailed, detail));
    };
    Ok(Begun { agent_session_id, remembers, modes: answer.modes, config_options: answer.config_options })
}

fn refusal_code(error: &RpcError) -> Option<ErrorCode> {
    #[derive(Deserialize)]
    struct Data {
        lumilink: RefusalMeta,
    }
    let data: Data = serde_json::from_str(error.data.as_ref()?.get()).ok()?;
    ErrorCode::from_name(&data.lumilink.code)
}

fn handshake_failure(error: &RpcError) -> Failure {
    match classify_agent_error(error) {
        Failure { code: ErrorCode::AgentError | ErrorCode::ProtocolViolation, detail } => {
            Failure::new(ErrorCode::HandshakeFailed, detail)
        }
        other => other,
    }
}

/// Why an agent went away, as a failure of the turn that was running.
pub fn closed_in_turn(reason: &CloseReason) -> Failure {
    match reason {
        CloseReason::AgentExited(exited) => match exited.code.as_deref().and_then(ErrorCode::from_name) {
            Some(code) => Failure::new(code, format!("the agent was ended: {}", how_it_ended(exited))),
            None => Failure::new(
                ErrorCode::AgentCrashed,
                format!("the agent ended in the middle: {}", how_it_ended(exited)),
            ),
        },
        CloseReason::Lost(cause) => Failure::new(ErrorCode::ConnectionLost, format!("the connection broke: {cause}")),
        CloseReason::FrameTooLarge { limit } => {
            Failure::new(ErrorCode::FrameTooLarge, format!("a message was larger than {limit} bytes"))
        }
    }
}

fn closed_in_handshake(reason: &CloseReason) -> Failure {
    match reason {
        CloseReason::AgentExited(exited) if exited.code.is_none() => Failure::new(
            ErrorCode::AgentStartFailed,
            format!("the agent ended before it was ready: {}", how_it_ended(exited)),
        ),
        other => closed_in_turn(other),
    }
}

fn how_it_ended(exited: &AgentExited) -> String {
    let how = match (exited.exit_code, exited.signal) {
        (_, Some(signal)) => format!("signal {signal}"),
        (Some(code), None) => format!("exit code {code}"),
        (None, None) => "its output ended".to_owned(),
    };
    let tail = exited.stderr_tail.trim();
    // The end of stderr says most; a detail has to stay readable.
    if tail.is_empty() { how } else { format!("{how}; its last words: {}", text::tail_bytes(tail, 500)) }
}

/// What the agent says, read from the pipe as it is asked for.
struct Events {
    from_agent: FrameReceiver,
    exited: Option<AgentExited>,
}

impl Stream for Events {
    type Item = AgentEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<AgentEvent>> {
        loop {
            return Poll::Ready(match std::task::ready!(self.from_agent.poll_recv(cx)) {
                None => None,
                Some(Incoming::Closed(reason)) => Some(AgentEvent::Closed(match self.exited.take() {
                    Some(exited) => CloseReason::AgentExited(exited),
                    None => reason,
                })),
                Some(Incoming::Frame(frame)) => match read(frame.text()) {
                    Read::Event(event) => Some(event),
                    Read::Exited(exited) => {
                        self.exited = Some(exited);
                        continue;
                    }
                },
            });
        }
    }
}

enum Read {
    Event(AgentEvent),
    Exited(AgentExited),
}

fn read(frame: &str) -> Read {
    let message = match jsonrpc::parse(frame) {
        Ok(message) => message,
        Err(cause) => return Read::Event(AgentEvent::Violation(format!("{cause}: {}", text::cut(frame, 200)))),
    };
    Read::Event(match message {
        Message::Notification { method, params } => match &*method {
            client_method::SESSION_UPDATE => match update_of(params) {
                Some(update) => AgentEvent::Update(update),
                None => {
                    AgentEvent::Violation(format!("a session/update without an update: {}", text::cut(frame, 200)))
                }
            },
            STRAY_LINE => match serde_json::from_str::<StrayLine>(params.get()) {
                Ok(stray) => AgentEvent::StrayLine(stray.line),
                Err(_) => AgentEvent::StrayLine(String::new()),
            },
            AGENT_EXITED => return Read::Exited(serde_json::from_str(params.get()).unwrap_or_default()),
            _ => AgentEvent::Notification { method: method.into_owned(), params: params.to_owned() },
        },
        Message::Request { id, method, params } => {
            AgentEvent::Request { id, method: method.into_owned(), params: params.to_owned() }
        }
        Message::Response { id, result } => match jsonrpc::own_id(&id) {
            Some(call) => AgentEvent::Answered { call, result: result.map(ToOwned::to_owned) },
            None => AgentEvent::Violation(format!("an answer to a request that was never sent: {id}")),
        },
    })
}

fn update_of(params: &RawValue) -> Option<Box<RawValue>> {
    #[derive(Deserialize)]
    struct Params<'a> {
        #[serde(borrow)]
        update: &'a RawValue,
    }
    let params: Params<'_> = serde_json::from_str(params.get()).ok()?;
    params.update.get().starts_with('{').then(|| params.update.to_owned())
}

struct Link {
    to_agent: FrameSender,
    session_id: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PromptParams<'a> {
    session_id: &'a str,
    prompt: &'a [Box<RawValue>],
}

impl AgentSession for Link {
    fn prompt(&mut self, call: u64, blocks: &[Box<RawValue>]) -> Result<(), SendError> {
        let params = PromptParams { session_id: &self.session_id, prompt: blocks };
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

    fn close(&mut self, call: u64) -> Result<(), SendError> {
        let params = json!({"sessionId": self.session_id});
        self.to_agent.try_send(jsonrpc::request(call, agent_method::SESSION_CLOSE, params))
    }

    fn respond(&mut self, id: &RequestId, result: Result<serde_json::Value, RpcError>) -> Result<(), SendError> {
        self.to_agent.try_send(jsonrpc::response(id, result.as_ref()))
    }
}
