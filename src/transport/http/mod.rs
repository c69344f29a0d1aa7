//! The HTTP transport: each turn is one request, answered by a stream of lines.
//!
//! A turn is requested only once. A request that may have left this process is never sent again: the runtime is
//! queried for the state of the turn until the outcome is known or the grace has expired.

pub(crate) mod client;
mod events;
pub(crate) mod turn;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use serde_json::{json, value::RawValue};
use tokio::{task::JoinHandle, time::sleep};
use tracing::Instrument;

use self::{
    client::{Connections, RuntimeClient},
    events::EventSender,
    turn::RequestedTurn,
};
use super::{
    AdoptRequest, AdoptedSession, AgentEvent, AgentFacts, AgentSession, Delivered, HandshakeTimeouts, OpenRequest,
    OpenedSession, SendError, Transport, TurnRequest,
};
use crate::{
    acp::{jsonrpc::RpcError, schema::RequestId},
    config::ReloadableSecret,
    contract::{fallback::ProcessPrompt, result::ResultWorkspace},
    domain::{
        ids::PromptId,
        session::choices::{Offers, Reapplied},
        turn::{
            outcome::{ErrorCode, Failure},
            prompt::Kinds,
        },
    },
};

/// The most attempts to deliver a cancel, because a cancel may overtake the turn that it ends. All attempts and
/// pauses together take less time than a session waits beyond the grace of a cancel.
const CANCEL_TRIES: u32 = 20;
/// The pause between two attempts.
const CANCEL_PAUSE: Duration = Duration::from_millis(200);

/// Runs turns over HTTP at one runtime. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct HttpFallback {
    client: RuntimeClient,
    limits: Arc<FallbackLimits>,
}

/// The limits of turns, and of the search for a lost one.
#[derive(Debug, Clone)]
pub(crate) struct FallbackLimits {
    /// `[turn] inactivity_timeout_s`; enforced by the runtime.
    pub inactivity_timeout: Duration,
    /// `[turn] cancel_grace_s`; enforced by the runtime.
    pub cancel_grace: Duration,
    /// `handshake_timeout_s` of `[runtime]` and of the agents; enforced by the runtime.
    pub handshake_timeouts: HandshakeTimeouts,
    /// `[runtime] reconnect_grace_s`: the time for querying the state of a turn whose connection broke; zero: no
    /// query.
    pub reconnect_grace: Duration,
    /// `[limits] frame_bytes`: the largest message in either direction, in bytes.
    pub frame_bytes: usize,
    /// `[limits] queue_bytes`: bytes of the events that wait for a session.
    pub queue_bytes: usize,
    /// The sign-in method of each agent that requires `authenticate`, by agent name (`""` is the default agent).
    pub auth_methods: BTreeMap<String, String>,
}

impl HttpFallback {
    /// Creates the transport to the runtime whose ACP endpoint is `acp_url` (`ws` or `wss`).
    ///
    /// # Errors
    /// `acp_url` is malformed or has another scheme.
    pub(crate) fn new(acp_url: &str, token: ReloadableSecret, limits: FallbackLimits) -> Result<Self, Failure> {
        let client = RuntimeClient::new(acp_url, token, Connections::OneEach)?;
        Ok(Self { client, limits: Arc::new(limits) })
    }
}

impl Transport for HttpFallback {
    /// Succeeds without any request: every turn has its own agent, so nothing is known about the agent yet.
    fn open(&self, request: OpenRequest) -> BoxFuture<'static, Result<OpenedSession, Failure>> {
        let (to_session, events) = events::queue(self.limits.queue_bytes);
        let facts = AgentFacts {
            connection_id: String::new(),
            protocol_version: None,
            agent_session_id: String::new(),
            remembers: false,
            // The runtime asks the agent during the turn.
            takes: Kinds { image: true, audio: true, embedded: true },
            can_close: false,
            info: None,
            capabilities: None,
            offers: Offers::default(),
            reapplied: Reapplied::default(),
            cookies: request.cookies.clone(),
        };
        let client = self.client.clone().with_cookies(request.cookies.clone());
        let fallback = Self { client, limits: self.limits.clone() };
        let link = Link { fallback, request, to_session, running: None };
        std::future::ready(Ok(OpenedSession { link: Box::new(link), events: Box::pin(events), next_call: 1, facts }))
            .boxed()
    }

    /// Always fails: no conversation outlives a turn here.
    fn adopt(&self, _: AdoptRequest) -> BoxFuture<'static, Result<AdoptedSession, Failure>> {
        let detail = "a turn over HTTP has no connection to resume";
        std::future::ready(Err(Failure::new(ErrorCode::ConnectionLost, detail))).boxed()
    }
}

struct Link {
    fallback: HttpFallback,
    request: OpenRequest,
    to_session: EventSender,
    running: Option<Running>,
}

struct Running {
    prompt_id: PromptId,
    task: JoinHandle<()>,
}

impl Link {
    fn refuse(&self, call: u64, what: &str) -> Result<(), SendError> {
        let detail = format!("{what} cannot be changed while turns use HTTP");
        let failure = Failure::new(ErrorCode::NotSupportedByAgent, detail);
        self.emit(AgentEvent::Failed { call, failure })
    }

    fn emit(&self, event: AgentEvent) -> Result<(), SendError> {
        self.to_session.try_send(event)
    }

    /// Asks the runtime to end a turn. A separate task repeats the request until the runtime has accepted it or the
    /// turn has ended.
    fn request_cancel(&self, running: &Running) {
        let (client, prompt_id, turn) =
            (self.fallback.client.clone(), running.prompt_id, running.task.abort_handle());
        // Outside a tokio runtime the link is only dropped while the program exits.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            // Repeated, because a cancel that overtakes the request of its turn finds no turn.
            for _ in 0..CANCEL_TRIES {
                if client.cancel_is_accepted(prompt_id).await || turn.is_finished() {
                    return;
                }
                sleep(CANCEL_PAUSE).await;
            }
            // The turn still ends by the limits of the session, or by those of the runtime once its client has
            // disconnected.
            tracing::warn!(marker = "[ACP]", %prompt_id, "cancel was not delivered to the runtime");
        });
    }
}

impl AgentSession for Link {
    fn prompt(&mut self, call: u64, turn: TurnRequest<'_>) -> Result<(), SendError> {
        if self.running.as_ref().is_some_and(|running| !running.task.is_finished()) {
            // The task of the previous turn still reports; two turns would mix their events.
            return Err(SendError::Full);
        }
        let (limits, request) = (&self.fallback.limits, &self.request);
        let milliseconds = |limit: Duration| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let body = ProcessPrompt {
            session_id: request.session_id,
            prompt_id: turn.prompt_id,
            prompt: turn.prompt.as_json(),
            conversation: turn.context.map(str::to_owned),
            workspace: ResultWorkspace { path: request.cwd.clone(), is_ephemeral: request.is_ephemeral },
            installation_id: request.installation_id.clone(),
            agent: request.agent.clone(),
            mcp_servers: request.mcp_servers.expose().to_owned(),
            auth_method: limits.auth_methods.get(request.agent.as_deref().unwrap_or_default()).cloned(),
            permission_policy: turn.policy,
            inactivity_timeout_ms: milliseconds(limits.inactivity_timeout),
            cancel_grace_ms: milliseconds(limits.cancel_grace),
            handshake_timeout_ms: milliseconds(limits.handshake_timeouts.of(request.agent.as_deref())),
            choices: Some(turn.choices).filter(|choices| !choices.are_initial()).cloned(),
            automation: None,
        };
        let requested = RequestedTurn::new(
            self.fallback.client.clone(),
            call,
            turn.prompt_id,
            self.to_session.clone(),
            limits.reconnect_grace,
            limits.frame_bytes,
        );
        let task = tokio::spawn(requested.run(body).in_current_span());
        self.running = Some(Running { prompt_id: turn.prompt_id, task });
        Ok(())
    }

    /// The runtime enforces the limits and reports violations in the result.
    fn enforces_limits(&self) -> bool {
        true
    }

    fn cancel(&mut self) -> Result<(), SendError> {
        if let Some(running) = &self.running {
            self.request_cancel(running);
        }
        Ok(())
    }

    fn set_mode(&mut self, call: u64, _: &str) -> Result<(), SendError> {
        self.refuse(call, "the mode")
    }

    fn set_config_option(&mut self, call: u64, _: &str, _: &serde_json::Value) -> Result<(), SendError> {
        self.refuse(call, "an option")
    }

    fn set_model(&mut self, call: u64, _: &str) -> Result<(), SendError> {
        self.refuse(call, "the model")
    }

    fn close(&mut self, call: u64) -> Result<(), SendError> {
        let nothing = serde_json::value::to_raw_value(&json!({})).unwrap_or_else(|_| RawValue::NULL.to_owned());
        self.emit(AgentEvent::Answered { call, result: Ok(nothing) })
    }

    /// Does nothing: no requests of an agent arrive here.
    fn respond(&mut self, _: &RequestId, _: Result<serde_json::Value, RpcError>) -> Result<(), SendError> {
        Ok(())
    }

    fn delivered(&self) -> Arc<Delivered> {
        Arc::default()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let Some(running) = self.running.take() else { return };
        if !running.task.is_finished() {
            running.task.abort();
            // The turn has no reader any more, so it must not continue.
            self.request_cancel(&running);
        }
    }
}
