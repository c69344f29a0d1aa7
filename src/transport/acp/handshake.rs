//! The handshake that begins every ACP conversation, over any pipe.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};

use super::connection::{Events, Link, closed_in_turn, exit_reason};
use crate::{
    acp::{
        jsonrpc::{self, RpcError},
        schema::{AgentCapabilities, InitializeResponse, PROTOCOL_VERSION, agent_method},
    },
    contract::runtime::{InitializeMeta, META_KEY, RefusalMeta},
    domain::{
        session::choices::{Choices, Offers, Reapplied},
        turn::{
            MAX_STRAY_LINES,
            agent_error::classify_agent_error,
            outcome::{ErrorCode, Failure},
            prompt::Kinds,
            update::view_update,
        },
    },
    transport::{
        AgentEvent, AgentFacts, CloseReason, Delivered, OpenRequest, OpenedSession,
        pipe::{FrameSender, Pipe},
    },
};

/// The other end of a handshake.
#[derive(Debug, Clone)]
pub(crate) enum Peer {
    /// A runtime. It starts the requested agent and offers the agent files and terminals itself.
    Runtime {
        /// True if an interrupted connection is to be resumed.
        resumable: bool,
    },
    Agent {
        /// The `clientCapabilities` to offer.
        capabilities: serde_json::Value,
    },
}

/// Runs the handshake over a pipe without sequence numbers: `initialize`, then `session/resume`, `session/load` or
/// `session/new`. Has no time limit of its own.
///
/// # Errors
/// The agent exits, requires a sign-in, speaks another protocol version, or answers with an error or with something
/// other than ACP.
///
/// # Cancel safety
/// A dropped future drops the pipe, which ends the agent.
pub(crate) async fn perform_handshake(
    pipe: Pipe,
    request: &OpenRequest,
    peer: Peer,
    auth_method: Option<&str>,
) -> Result<OpenedSession, Failure> {
    Handshake::new(pipe, Arc::default(), peer).run(request, auth_method).await
}

/// Derives the accepted content blocks, and whether the agent offers `session/close`, from its capabilities.
pub(crate) fn abilities(capabilities: &AgentCapabilities) -> (Kinds, bool) {
    let takes = &capabilities.prompt_capabilities;
    let takes = Kinds { image: takes.image, audio: takes.audio, embedded: takes.embedded_context };
    (takes, capabilities.session_capabilities.close.is_some())
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
    offers: Offers,
}

fn parse<'a, T: Deserialize<'a>>(answer: &'a RawValue, method: &str) -> Result<T, Failure> {
    serde_json::from_str(answer.get()).map_err(|cause| {
        Failure::new(ErrorCode::HandshakeFailed, format!("the agent's answer to `{method}` is malformed: {cause}"))
    })
}

/// Bytes of updates that are kept until the handshake is over, at most. Lists of commands are the largest of them, with
/// some ten kilobytes; beyond this, further ones are discarded.
const MAX_EARLY_BYTES: usize = 1024 * 1024;
/// The number of these updates, at most.
const MAX_EARLY: usize = 256;

/// Kinds of updates with the state of a session: no part of a replayed conversation.
const STATES: [&str; 4] =
    ["available_commands_update", "current_mode_update", "config_option_update", "session_info_update"];

/// Updates that come before the answer to the call that begins the conversation. Agents announce their commands and modes
/// then.
#[derive(Default)]
struct Early {
    events: Vec<AgentEvent>,
    bytes: usize,
}

impl Early {
    /// Keeps an update of the conversation that `method` begins. Only state is kept of another method
    /// than `session/new`, which replays a conversation.
    fn add(&mut self, method: &str, update: Box<RawValue>, meta: Option<Box<RawValue>>) {
        let is_state = || view_update(&update).is_some_and(|view| STATES.contains(&view.kind.as_str()));
        if method != agent_method::SESSION_NEW && !is_state() {
            return;
        }
        let bytes = update.get().len() + meta.as_ref().map_or(0, |meta| meta.get().len());
        if self.events.len() >= MAX_EARLY || self.bytes + bytes > MAX_EARLY_BYTES {
            tracing::warn!(method, bytes, "update discarded: too many before the handshake is over");
            return;
        }
        self.bytes += bytes;
        self.events.push(AgentEvent::Update { update, meta });
    }
}

/// One handshake in progress.
pub(crate) struct Handshake {
    to_agent: FrameSender,
    events: Events,
    delivered: Arc<Delivered>,
    peer: Peer,
    next_call: u64,
    stray_lines: u32,
    early: Early,
}

impl Handshake {
    pub(crate) fn new(pipe: Pipe, delivered: Arc<Delivered>, peer: Peer) -> Self {
        let events = Events::new(pipe.from_agent, delivered.clone());
        Self {
            to_agent: pipe.to_agent,
            events,
            delivered,
            peer,
            next_call: 1,
            stray_lines: 0,
            early: Early::default(),
        }
    }

    pub(crate) async fn run(
        mut self,
        request: &OpenRequest,
        auth_method: Option<&str>,
    ) -> Result<OpenedSession, Failure> {
        let initialized = self.initialize(request).await?;
        let agent: InitializeResponse = parse(&initialized, "initialize")?;
        let raw: RawInitialized = parse(&initialized, "initialize")?;
        // Some agents echo the offered version, so the check is for the version that this crate speaks.
        if raw.protocol_version != PROTOCOL_VERSION {
            let detail = format!(
                "the agent speaks protocol version {}, this service supports version {PROTOCOL_VERSION}",
                raw.protocol_version
            );
            return Err(Failure::new(ErrorCode::ProtocolVersion, detail));
        }
        let begun = self.begin(request, &agent, auth_method).await?;
        let (takes, can_close) = abilities(&agent.agent_capabilities);
        let mut offers = begun.offers;
        if request.choices != Choices::default() {
            // Later than the answer or earlier, they are the state of a fresh process and no choice.
            self.early.events.retain(|event| match event {
                AgentEvent::Update { update, .. } => !offers.on_update(update),
                _ => true,
            });
        }
        Ok(OpenedSession {
            facts: AgentFacts {
                connection_id: String::new(),
                protocol_version: Some(PROTOCOL_VERSION),
                agent_session_id: begun.agent_session_id.clone(),
                remembers: begun.remembers,
                takes,
                can_close,
                info: raw.agent_info,
                capabilities: raw.agent_capabilities,
                offers,
                reapplied: Reapplied::default(),
                cookies: None,
            },
            link: Box::new(Link::new(self.to_agent, begun.agent_session_id, takes, self.delivered)),
            events: Box::pin(stream::iter(self.early.events).chain(self.events)),
            next_call: self.next_call,
        })
    }

    async fn initialize(&mut self, request: &OpenRequest) -> Result<Box<RawValue>, Failure> {
        let mut params = json!({
            "protocolVersion": PROTOCOL_VERSION,
            // The runtime offers files and terminals, because it holds the workspace.
            "clientCapabilities": {},
            "clientInfo": {"name": "lumilink", "version": env!("CARGO_PKG_VERSION")},
        });
        match &self.peer {
            Peer::Runtime { resumable } => {
                let meta = InitializeMeta {
                    agent: request.agent.clone(),
                    cwd: Some(request.cwd.clone()),
                    resumable: *resumable,
                };
                params["_meta"] = json!({META_KEY: meta});
            }
            Peer::Agent { capabilities } => params["clientCapabilities"] = capabilities.clone(),
        }
        self.call(agent_method::INITIALIZE, params).await?.map_err(|error| {
            let code = refusal_code(&error).unwrap_or_else(|| match classify_agent_error(&error).code {
                code @ (ErrorCode::AgentAuthRequired | ErrorCode::Authentication | ErrorCode::ModelProvider) => code,
                _ => ErrorCode::HandshakeFailed,
            });
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
            // Resume before load: a load replays the whole conversation, which is then discarded.
            let methods = [
                (capabilities.session_capabilities.resume.is_some(), agent_method::SESSION_RESUME),
                (capabilities.load_session, agent_method::SESSION_LOAD),
            ];
            for (_, method) in methods.into_iter().filter(|(offered, _)| *offered) {
                match self.call(method, &params).await? {
                    Ok(answer) => return begun(&answer, method, Some(previous.clone())).map(Ok),
                    Err(error) if error.code == jsonrpc::AUTH_REQUIRED => return Ok(Err(error)),
                    // Some known agents advertise these methods and then fail. A new conversation with the transcript
                    // as context serves the user better than no session.
                    Err(error) => {
                        tracing::info!(marker = "[ACP]", method, %error, "agent cannot resume the conversation")
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
        required: &RpcError,
    ) -> Result<(), Failure> {
        let Some(method) = method else {
            let offered: Vec<_> = agent.auth_methods.iter().map(|method| method.id().to_string()).collect();
            let detail = format!(
                "the agent requires a sign-in ({}) and has no `auth_method` configured; it offers: {}",
                required.message,
                offered.join(", ")
            );
            return Err(Failure::new(ErrorCode::AgentAuthRequired, detail));
        };
        let answer = self.call(agent_method::AUTHENTICATE, json!({"methodId": method})).await?;
        answer.map(drop).map_err(|error| {
            Failure::new(ErrorCode::AgentAuthRequired, format!("the agent refused the sign-in: {}", error.message))
        })
    }

    /// Sends a request and waits for its answer. Updates before the answer are kept unless they replay an earlier
    /// conversation; requests of the agent are refused.
    async fn call(
        &mut self,
        method: &str,
        params: impl Serialize,
    ) -> Result<Result<Box<RawValue>, RpcError>, Failure> {
        let call = self.next_call;
        self.next_call += 1;
        // Those of a call that failed are of no conversation.
        self.early = Early::default();
        let closed =
            |_| Failure::new(ErrorCode::ConnectionLost, "the connection to the runtime broke during the handshake");
        self.to_agent.send(jsonrpc::request(call, method, params)).await.map_err(closed)?;
        loop {
            let event = std::future::poll_fn(|cx| Pin::new(&mut self.events).poll_next(cx)).await;
            // A handshake is never replayed, and a load may send more than the runtime keeps.
            self.delivered.settle(self.delivered.handled());
            match event {
                Some(AgentEvent::Answered { call: answered, result }) if answered == call => return Ok(result),
                Some(AgentEvent::Request { id, method, .. }) => {
                    let refusal =
                        RpcError::new(jsonrpc::METHOD_NOT_FOUND, format!("no method {method} during a handshake"));
                    let _ = self.to_agent.try_send(jsonrpc::response(&id, Err::<(), _>(&refusal)));
                }
                Some(AgentEvent::StrayLine(line)) => {
                    self.stray_lines += 1;
                    // Some agents print a banner; a program that prints only text is no ACP agent.
                    if self.stray_lines > MAX_STRAY_LINES {
                        let detail = format!("the agent prints text that is not ACP, for example: {line}");
                        return Err(Failure::new(ErrorCode::HandshakeFailed, detail));
                    }
                }
                Some(AgentEvent::Violation(detail)) => return Err(Failure::new(ErrorCode::HandshakeFailed, detail)),
                Some(AgentEvent::Closed(reason)) => return Err(closed_in_handshake(&reason)),
                None => return Err(closed_in_handshake(&CloseReason::Lost("no reason was given".into()))),
                Some(AgentEvent::Update { update, meta }) => self.early.add(method, update, meta),
                Some(
                    AgentEvent::Notification { .. }
                    | AgentEvent::Answered { .. }
                    | AgentEvent::Failed { .. }
                    | AgentEvent::Remark { .. }
                    | AgentEvent::Permission { .. }
                    | AgentEvent::Interrupted(_)
                    | AgentEvent::Resumed,
                ) => {}
            }
        }
    }
}

fn begun(answer: &RawValue, method: &str, previous: Option<String>) -> Result<Begun, Failure> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        session_id: Option<String>,
        modes: Option<Box<RawValue>>,
        models: Option<Box<RawValue>>,
        config_options: Option<Box<RawValue>>,
    }
    // `session/load` may answer null.
    let answer: Option<Answer> = parse(answer, method)?;
    let answer = answer.unwrap_or_default();
    let offers = Offers::read(answer.modes.as_deref(), answer.models.as_deref(), answer.config_options.as_deref());
    let remembers = previous.is_some();
    let Some(agent_session_id) = previous.or(answer.session_id).filter(|id| !id.is_empty()) else {
        let detail = format!("the agent's answer to `{method}` has no session id");
        return Err(Failure::new(ErrorCode::HandshakeFailed, detail));
    };
    Ok(Begun { agent_session_id, remembers, offers })
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
        Failure { code: ErrorCode::AgentError | ErrorCode::ProtocolViolation, detail, .. } => {
            Failure::new(ErrorCode::HandshakeFailed, detail)
        }
        other => other,
    }
}

pub(super) fn closed_in_handshake(reason: &CloseReason) -> Failure {
    match reason {
        CloseReason::AgentExited(exited) if exited.code.is_none() => Failure::new(
            ErrorCode::AgentStartFailed,
            format!("the agent exited before it was ready: {}", exit_reason(exited)),
        ),
        other => closed_in_turn(other),
    }
}
