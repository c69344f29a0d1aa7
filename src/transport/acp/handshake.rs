//! The handshake that begins every ACP conversation, over any pipe.

use std::{borrow::Cow, pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};
use tokio::time::{Instant, timeout_at};

use super::connection::{Events, Link, answer_unserved, closed_in_turn, exit_reason};
use crate::{
    acp::{
        jsonrpc::{self, RpcError},
        loose::{self, Object},
        schema::{AgentCapabilities, PROTOCOL_VERSION, agent_method},
    },
    contract::runtime::{InitializeMeta, META_KEY, RefusalMeta},
    domain::{
        session::{
            choices::{Choices, Offers, Reapplied},
            mcp::{self, RemoteTransports},
        },
        text,
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

/// The time limit of a handshake, from the start of the agent on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HandshakeLimit {
    length: Duration,
    end: Instant,
}

impl HandshakeLimit {
    /// Starts the limit.
    pub(crate) fn start(length: Duration) -> Self {
        // Ten years, for a limit that ends beyond what the clock can hold.
        let end = Instant::now().checked_add(length);
        Self { length, end: end.unwrap_or_else(|| Instant::now() + Duration::from_secs(10 * 366 * 24 * 3600)) }
    }

    /// Waits for a part of the handshake.
    ///
    /// # Errors
    /// `handshake_timeout` at the end of the limit, or the failure of the part.
    pub(crate) async fn keep<T>(&self, part: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        timeout_at(self.end, part).await.unwrap_or_else(|_| {
            let detail = format!("the agent did not finish its handshake within {} s", self.length.as_secs_f32());
            Err(Failure::new(ErrorCode::HandshakeTimeout, detail))
        })
    }
}

/// Runs the handshake over a pipe without sequence numbers: `initialize`, then `session/resume`, `session/load` or
/// `session/new`.
///
/// # Errors
/// The limit is over; the agent exits, requires a sign-in, speaks another protocol version, or answers with an error or
/// with something other than ACP.
///
/// # Cancel safety
/// A dropped future drops the pipe, which ends the agent.
pub(crate) async fn perform_handshake(
    pipe: Pipe,
    request: &OpenRequest,
    peer: Peer,
    auth_method: Option<&str>,
    limit: HandshakeLimit,
) -> Result<OpenedSession, Failure> {
    Handshake::new(pipe, Arc::default(), peer).run(request, auth_method, limit).await
}

/// Derives the accepted content blocks, and whether the agent offers `session/close`, from its capabilities.
pub(crate) fn abilities(capabilities: &AgentCapabilities) -> (Kinds, bool) {
    let takes = &capabilities.prompt_capabilities;
    let takes = Kinds { image: takes.image, audio: takes.audio, embedded: takes.embedded_context };
    (takes, capabilities.session_capabilities.close.is_some())
}

/// The answer to `initialize`. Only the version is essential.
#[derive(Debug, Default)]
struct Initialized {
    agent_info: Option<Box<RawValue>>,
    raw_capabilities: Option<Box<RawValue>>,
    agent_capabilities: AgentCapabilities,
    /// The ids of the sign-in methods.
    auth_methods: Vec<String>,
}

impl Initialized {
    /// Reads the answer. Parts other than the version that cannot be read count as missing.
    fn read(answer: &RawValue) -> Result<Self, Failure> {
        let members = Object::read(answer).ok_or_else(|| malformed(agent_method::INITIALIZE, answer))?;
        let version = members.get("protocolVersion").ok_or_else(|| malformed(agent_method::INITIALIZE, answer))?;
        // Some agents echo the offered version, so the check is for the version that this crate speaks.
        if loose::integer(version) != Some(i64::from(PROTOCOL_VERSION)) {
            let detail = format!(
                "the agent speaks protocol version {}, this service supports version {PROTOCOL_VERSION}",
                text::cut(version.get(), 64)
            );
            return Err(Failure::new(ErrorCode::ProtocolVersion, detail));
        }
        let raw = |name: &str| shown(&members, name, '{');
        let raw_capabilities = raw("agentCapabilities");
        let methods = members.get("authMethods").and_then(|list| serde_json::from_str(list.get()).ok());
        let methods: Vec<&RawValue> = methods.unwrap_or_default();
        let id = |method: &RawValue| Some(Object::read(method)?.text("id")?.into_owned());
        Ok(Self {
            agent_info: raw("agentInfo"),
            agent_capabilities: raw_capabilities.as_deref().map(read_capabilities).unwrap_or_default(),
            raw_capabilities,
            auth_methods: methods.into_iter().filter_map(id).collect(),
        })
    }
}

/// Returns a member that this service shows to its own clients; one that does not begin as they expect is left out.
fn shown(members: &Object<'_>, name: &str, begin: char) -> Option<Box<RawValue>> {
    let given = members.get(name)?;
    if !given.get().starts_with(begin) {
        tracing::warn!(
            marker = "[ACP]",
            member = name,
            "a part of the agent's answer cannot be read and is left out"
        );
        return None;
    }
    Some(given.to_owned())
}

/// Reads capabilities; those that cannot be read count as missing.
pub(crate) fn read_capabilities(raw: &RawValue) -> AgentCapabilities {
    serde_json::from_str(raw.get()).unwrap_or_else(|cause| {
        tracing::warn!(marker = "[ACP]", %cause, "the agent's capabilities cannot be read; none is used");
        AgentCapabilities::default()
    })
}

struct Begun {
    agent_session_id: String,
    remembers: bool,
    offers: Offers,
}

fn malformed(method: &str, answer: &RawValue) -> Failure {
    let answer = text::cut(answer.get(), 200);
    let detail = format!("the agent's answer to `{method}` is malformed: {answer}");
    Failure::new(ErrorCode::HandshakeFailed, detail)
}

/// Lines that an agent may print before its first answer: banners, and the log of an installer. Afterwards
/// [`MAX_STRAY_LINES`] more until the end of the handshake.
const MAX_BANNER_LINES: u32 = 100;
/// Of these lines, those that the failure of the handshake quotes, and the length of each in characters.
const QUOTED_LINES: usize = 3;
const QUOTED_CHARS: usize = 160;

/// The lines of an agent that are not ACP.
#[derive(Debug, Default)]
struct Noise {
    /// The first [`QUOTED_LINES`].
    first: Vec<String>,
    count: u32,
    /// Lines that are tolerated.
    tolerated: u32,
}

impl Noise {
    fn add(&mut self, line: &str) -> Result<(), Failure> {
        self.count += 1;
        if self.first.len() < QUOTED_LINES {
            self.first.push(text::cut(line, QUOTED_CHARS));
        }
        if self.count > self.tolerated {
            // A program that prints only text is no ACP agent.
            return Err(Failure::new(ErrorCode::HandshakeFailed, "the agent prints text that is not ACP"));
        }
        Ok(())
    }

    /// Adds the lines to the failure of the handshake: they are often the reason.
    fn quoted_in(&self, failure: Failure) -> Failure {
        if self.first.is_empty() {
            return failure;
        }
        let more = match self.count as usize - self.first.len() {
            0 => String::new(),
            more => format!(" (and {more} more lines)"),
        };
        let detail = format!("{}; the agent printed: {}{more}", failure.detail, self.first.join(" / "));
        Failure { detail, ..failure }
    }
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
    noise: Arc<Mutex<Noise>>,
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
            noise: Arc::new(Mutex::new(Noise { tolerated: MAX_BANNER_LINES, ..Noise::default() })),
            early: Early::default(),
        }
    }

    /// Runs the handshake within the limit. A failure quotes what the agent printed instead of ACP.
    pub(crate) async fn run(
        self,
        request: &OpenRequest,
        auth_method: Option<&str>,
        limit: HandshakeLimit,
    ) -> Result<OpenedSession, Failure> {
        let noise = self.noise.clone();
        let opened = limit.keep(self.converse(request, auth_method)).await;
        opened.map_err(|failure| noise.lock().quoted_in(failure))
    }

    /// Has the agent remove conversations from its history, and returns how many it removed before the limit; 0 if it does
    /// not offer that.
    pub(crate) async fn delete(
        mut self,
        request: &OpenRequest,
        conversations: &[String],
        auth_method: Option<&str>,
        limit: HandshakeLimit,
    ) -> Result<usize, Failure> {
        let agent = Initialized::read(&limit.keep(self.initialize(request)).await?)?;
        if agent.agent_capabilities.session_capabilities.delete.is_none() {
            return Ok(0);
        }
        let mut removed = 0;
        for id in conversations {
            let params = json!({"sessionId": id});
            let answer = match limit.keep(self.call(agent_method::SESSION_DELETE, &params)).await {
                Ok(Err(error)) if error.code == jsonrpc::AUTH_REQUIRED && auth_method.is_some() => {
                    limit.keep(self.authenticate(&agent, auth_method, &error)).await?;
                    limit.keep(self.call(agent_method::SESSION_DELETE, &params)).await
                }
                answer => answer,
            };
            match answer {
                Ok(Ok(_)) => removed += 1,
                Ok(Err(error)) => tracing::info!(marker = "[ACP]", %error, "agent did not remove a conversation"),
                // The rest would fail too.
                Err(_) => break,
            }
        }
        Ok(removed)
    }

    async fn converse(mut self, request: &OpenRequest, auth_method: Option<&str>) -> Result<OpenedSession, Failure> {
        let agent = Initialized::read(&self.initialize(request).await?)?;
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
                info: agent.agent_info,
                capabilities: agent.raw_capabilities,
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
                    installation_id: request.installation_id.clone(),
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
        agent: &Initialized,
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
        agent: &Initialized,
    ) -> Result<Result<Begun, RpcError>, Failure> {
        let capabilities = &agent.agent_capabilities;
        let (servers, remote) = (request.mcp_servers.expose(), &capabilities.mcp_capabilities);
        mcp::check_taken_by(servers, RemoteTransports { http: remote.http, sse: remote.sse })?;
        if let Some(previous) = &request.previous {
            let params = json!({"sessionId": previous, "cwd": request.cwd, "mcpServers": servers});
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
        let params = json!({"cwd": request.cwd, "mcpServers": servers});
        match self.call(agent_method::SESSION_NEW, params).await? {
            Ok(answer) => begun(&answer, agent_method::SESSION_NEW, None).map(Ok),
            Err(error) => Ok(Err(error)),
        }
    }

    async fn authenticate(
        &mut self,
        agent: &Initialized,
        method: Option<&str>,
        required: &RpcError,
    ) -> Result<(), Failure> {
        let Some(method) = method else {
            let detail = format!(
                "the agent requires a sign-in ({}) and has no `auth_method` configured; it offers: {}",
                required.message,
                agent.auth_methods.join(", ")
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
            if matches!(event, Some(AgentEvent::Answered { .. })) {
                let mut noise = self.noise.lock();
                noise.tolerated = noise.tolerated.min(noise.count + MAX_STRAY_LINES);
            }
            match event {
                Some(AgentEvent::Answered { call: answered, result }) if answered == call => return Ok(result),
                Some(AgentEvent::Request { id, method, .. }) => {
                    let _ = self.to_agent.try_send(jsonrpc::response(&id, answer_unserved(&method).as_ref()));
                }
                Some(AgentEvent::StrayLine(line)) => self.noise.lock().add(&line)?,
                // Only this request is open.
                Some(AgentEvent::Unassigned(error)) => return Ok(Err(error)),
                Some(AgentEvent::Violation(detail)) => return Err(Failure::new(ErrorCode::HandshakeFailed, detail)),
                Some(AgentEvent::Closed(reason)) => return Err(closed_in_handshake(&reason)),
                None => return Err(closed_in_handshake(&CloseReason::Lost("no reason was given".into()))),
                Some(AgentEvent::Update { update, meta }) => self.early.add(method, update, meta),
                Some(
                    AgentEvent::Notification { .. }
                    | AgentEvent::Answered { .. }
                    | AgentEvent::Failed { .. }
                    | AgentEvent::Remark { .. }
                    | AgentEvent::Permission(_)
                    | AgentEvent::Interrupted(_)
                    | AgentEvent::Resumed,
                ) => {}
            }
        }
    }
}

/// Reads the answer that begins a conversation. Only the session id of a new one is essential.
fn begun(answer: &RawValue, method: &str, previous: Option<String>) -> Result<Begun, Failure> {
    // `session/load` may answer null.
    let answer = Object::read(answer).unwrap_or_default();
    let part = |name, begin| shown(&answer, name, begin);
    let (modes, models, options) = (part("modes", '{'), part("models", '{'), part("configOptions", '['));
    let offers = Offers::read(modes.as_deref(), models.as_deref(), options.as_deref());
    let remembers = previous.is_some();
    let given = || answer.text("sessionId").map(Cow::into_owned);
    let Some(agent_session_id) = previous.or_else(given).filter(|id| !id.is_empty()) else {
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
    // The runtime refuses it in place of the agent.
    if refusal_code(error) == Some(ErrorCode::UnknownSecret) {
        return Failure::new(ErrorCode::UnknownSecret, error.message.clone());
    }
    match classify_agent_error(error) {
        // An agent without `session/new` does not speak ACP.
        Failure {
            code: ErrorCode::AgentError | ErrorCode::ProtocolViolation | ErrorCode::NotSupportedByAgent,
            detail,
            ..
        } => Failure::new(ErrorCode::HandshakeFailed, detail),
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
