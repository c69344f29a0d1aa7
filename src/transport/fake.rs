//! A transport for tests: the test plays the agent.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::{FutureExt, future::BoxFuture, stream};
use parking_lot::Mutex;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::{
    AdoptRequest, AdoptedSession, AgentEvent, AgentFacts, AgentSession, Delivered, OpenRequest, OpenedSession,
    SendError, Transport, TurnRequest,
};
use crate::{
    acp::{jsonrpc::RpcError, schema::RequestId},
    contract::runtime::ResumedPrompt,
    domain::{
        ids::SessionId,
        session::{
            choices::{Choices, Offers, Reapplied},
            mcp::McpServers,
        },
        turn::{
            outcome::{ErrorCode, Failure},
            prompt::Kinds,
        },
    },
};

/// Calls that a session made on its agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sent {
    Prompt { call: u64, blocks: Vec<String> },
    Cancel,
    Respond(String),
    Close,
}

/// One started agent, as the test controls it.
pub(crate) struct FakeAgent {
    pub request: OpenRequest,
    pub says: mpsc::Sender<AgentEvent>,
    pub heard: mpsc::Receiver<Sent>,
    pub delivered: Arc<Delivered>,
}

impl FakeAgent {
    /// Waits for a prompt and returns its call.
    pub(crate) async fn prompted(&mut self) -> u64 {
        loop {
            match self.heard.recv().await.expect("a prompt") {
                Sent::Prompt { call, .. } => return call,
                _ => continue,
            }
        }
    }

    /// Answers a call, which ends its turn.
    pub(crate) async fn answer(&self, call: u64, json: &str) {
        let result = RawValue::from_string(json.to_owned()).unwrap();
        self.says.send(AgentEvent::Answered { call, result: Ok(result) }).await.unwrap();
    }
}

/// Starts agents and hands each of them to the test.
pub(crate) struct FakeTransport {
    started: mpsc::Sender<FakeAgent>,
    /// The number of coming prompts that make the link panic.
    pub panics: Arc<AtomicUsize>,
    /// Failures of the next starts, taken from the end.
    pub failures: Arc<Mutex<Vec<Failure>>>,
    /// Conversations that can be adopted, by connection id.
    pub held: Arc<Mutex<HashMap<String, Option<ResumedPrompt>>>>,
}

impl FakeTransport {
    /// Returns the transport and a queue of at most 16 started agents.
    pub(crate) fn new() -> (Self, mpsc::Receiver<FakeAgent>) {
        let (started, agents) = mpsc::channel(16);
        (Self { started, panics: Arc::default(), failures: Arc::default(), held: Arc::default() }, agents)
    }
}

impl Transport for FakeTransport {
    fn open(&self, request: OpenRequest) -> BoxFuture<'static, Result<OpenedSession, Failure>> {
        let failure = self.failures.lock().pop();
        let (started, panics) = (self.started.clone(), self.panics.clone());
        async move {
            if let Some(failure) = failure {
                return Err(failure);
            }
            let (agent, link, events) = pair(request, panics);
            started.send(agent).await.expect("the test plays the agent");
            Ok(OpenedSession {
                link,
                events,
                next_call: 1,
                facts: AgentFacts {
                    connection_id: "fake".into(),
                    protocol_version: Some(1),
                    agent_session_id: "fake-session".into(),
                    remembers: false,
                    takes: Kinds::default(),
                    can_close: false,
                    info: None,
                    capabilities: None,
                    offers: Offers::default(),
                    reapplied: Reapplied::default(),
                    cookies: None,
                },
            })
        }
        .boxed()
    }

    fn adopt(&self, request: AdoptRequest) -> BoxFuture<'static, Result<AdoptedSession, Failure>> {
        let held = self.held.lock().remove(&request.connection_id);
        let (started, panics) = (self.started.clone(), self.panics.clone());
        async move {
            let Some(prompt) = held else {
                return Err(Failure::new(ErrorCode::ConnectionLost, "nothing is held"));
            };
            let previous = Some(request.agent_session_id);
            let request = OpenRequest {
                session_id: SessionId(uuid::Uuid::nil()),
                installation_id: None,
                is_ephemeral: false,
                agent: None,
                cwd: String::new(),
                mcp_servers: McpServers::none(),
                previous,
                cookies: None,
                choices: Choices::default(),
            };
            let (agent, link, events) = pair(request, panics);
            started.send(agent).await.expect("the test plays the agent");
            Ok(AdoptedSession { link, events, next_call: 1000, prompt })
        }
        .boxed()
    }
}

type Events = std::pin::Pin<Box<dyn futures_util::Stream<Item = AgentEvent> + Send>>;

/// Creates an agent and the two halves of its conversation.
fn pair(request: OpenRequest, panics: Arc<AtomicUsize>) -> (FakeAgent, Box<dyn AgentSession>, Events) {
    let (says, events) = mpsc::channel(16);
    let (to_agent, heard) = mpsc::channel(16);
    let delivered = Arc::<Delivered>::default();
    let agent = FakeAgent { request, says, heard, delivered: delivered.clone() };
    let events = stream::unfold(events, |mut events| async {
        let event = events.recv().await?;
        Some((event, events))
    });
    (agent, Box::new(FakeLink { to_agent, panics, delivered }), Box::pin(events))
}

struct FakeLink {
    to_agent: mpsc::Sender<Sent>,
    delivered: Arc<Delivered>,
    panics: Arc<AtomicUsize>,
}

impl FakeLink {
    fn say(&self, said: Sent) -> Result<(), SendError> {
        self.to_agent.try_send(said).map_err(|_| SendError::Closed)
    }
}

impl AgentSession for FakeLink {
    fn prompt(&mut self, call: u64, turn: TurnRequest<'_>) -> Result<(), SendError> {
        let left = self.panics.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
        assert!(left.is_err(), "a planted panic");
        let blocks = turn.prompt.with_context(turn.context, Kinds::default());
        self.say(Sent::Prompt { call, blocks: blocks.iter().map(|block| block.get().to_owned()).collect() })
    }

    fn cancel(&mut self) -> Result<(), SendError> {
        self.say(Sent::Cancel)
    }

    fn set_mode(&mut self, _: u64, _: &str) -> Result<(), SendError> {
        Err(SendError::Full)
    }

    fn set_config_option(&mut self, _: u64, _: &str, _: &serde_json::Value) -> Result<(), SendError> {
        Err(SendError::Full)
    }

    fn set_model(&mut self, _: u64, _: &str) -> Result<(), SendError> {
        Err(SendError::Full)
    }

    fn close(&mut self, _: u64) -> Result<(), SendError> {
        self.say(Sent::Close)
    }

    fn respond(&mut self, id: &RequestId, _: Result<serde_json::Value, RpcError>) -> Result<(), SendError> {
        self.say(Sent::Respond(id.to_string()))
    }

    fn delivered(&self) -> Arc<Delivered> {
        self.delivered.clone()
    }
}
