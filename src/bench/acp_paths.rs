//! The two paths on which the load client itself speaks ACP: over an agent's pipes, and over WebSocket to a
//! runtime.

use std::{collections::BTreeMap, path::Path, pin::Pin, time::Duration};

use futures_util::{FutureExt, Stream, StreamExt, future::BoxFuture};
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};
use uuid::Uuid;

use super::{
    conversation::{BenchError, Conversation, TurnError, Turned},
    plan::Plan,
    program::{Program, Workplace},
};
use crate::{
    config::Config,
    contract::runtime::{PrepareWorkspace, WorkspaceRef},
    domain::{
        heartbeat::Heartbeat,
        ids::{FolderId, PromptId, SessionId},
        session::permission::PermissionPolicy,
        turn::{outcome::Failure, prompt::Prompt},
    },
    process::{
        self, AgentCommand,
        stdio::{self, StdioLimits},
    },
    transport::{
        AgentEvent, AgentSession, OpenRequest, OpenedSession, Transport, TurnRequest,
        acp::{
            AcpTransport,
            handshake::{Peer, shake_hands},
        },
        http::client::WorkspaceClient,
        pipe::PipeLimits,
        socket::websocket::{Endpoint, ResumeLimits},
    },
};

/// A workspace is an empty folder here.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(60);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);
/// The demo agent ends as soon as its input does.
const KILL_GRACE: Duration = Duration::from_secs(2);

/// Starts one agent and speaks with it over its pipes.
pub(crate) async fn open_on_stdio(
    workplace: &Workplace,
    folder: &Path,
    plan: &Plan,
) -> Result<Box<dyn Conversation>, BenchError> {
    let command = AgentCommand {
        program: workplace.program().into(),
        args: vec!["demo-agent".into()],
        env: workplace.environment().clone(),
        run_as: None,
        cwd: folder.to_owned(),
        kill_grace: KILL_GRACE,
    };
    let process = process::spawn(command, ()).await.map_err(|cause| BenchError::Open(cause.to_string()))?;
    let limits = StdioLimits { frame_bytes: Config::default().limits.frame_bytes, pipe: pipe_limits() };
    let pipe = stdio::connect(process, limits, None);
    let request = open_request(&folder.display().to_string());
    let peer = Peer::Agent { capabilities: json!({}) };
    let hands = tokio::time::timeout(HANDSHAKE_TIMEOUT, shake_hands(pipe, &request, peer, None)).await;
    let opened = hands.map_err(|_| BenchError::Open("the agent did not finish its handshake".into()))?;
    Ok(AcpConversation::boxed(opened.map_err(not_opened)?, &plan.prompt))
}

/// A runtime of its own, and what is needed to open sessions on it.
pub(crate) struct RuntimePath {
    /// The process.
    pub program: Program,
    transport: AcpTransport,
    door: WorkspaceClient,
}

impl RuntimePath {
    /// Starts it.
    pub(crate) async fn start(workplace: &Workplace, folder: &Path, settings: &[String]) -> Result<Self, BenchError> {
        let program = Program::start(workplace, "runtime", folder, settings).await?;
        let url = format!("ws://{}/acp", program.address());
        let failed = |failure: Failure| BenchError::Start(failure.detail);
        let door = WorkspaceClient::new(&url, None, PREPARE_TIMEOUT).map_err(failed)?;
        let endpoint = Endpoint {
            url,
            token: None,
            frame_bytes: Config::default().limits.frame_bytes,
            pipe: pipe_limits(),
            resume: resume_limits(),
            heartbeat: Heartbeat::ACP,
        };
        let transport =
            AcpTransport { endpoint, handshake_timeout: HANDSHAKE_TIMEOUT, auth_methods: BTreeMap::new() };
        Ok(Self { program, transport, door })
    }

    /// Makes a workspace for some sessions; gives its path.
    pub(crate) async fn prepare(&self) -> Result<String, BenchError> {
        let workspace = WorkspaceRef { folder_id: FolderId(Uuid::new_v4()), path: None };
        let prepared = self.door.prepare(&PrepareWorkspace { workspace, agent: None, checkout: None }).await;
        Ok(prepared.map_err(not_opened)?.path)
    }

    /// Opens one session in a workspace.
    pub(crate) async fn open(&self, workspace: &str, plan: &Plan) -> Result<Box<dyn Conversation>, BenchError> {
        let opened = self.transport.open(open_request(workspace)).await;
        Ok(AcpConversation::boxed(opened.map_err(not_opened)?, &plan.prompt))
    }
}

fn not_opened(failure: Failure) -> BenchError {
    BenchError::Open(format!("{}: {}", failure.code.as_str(), failure.detail))
}

/// The same as a supervisor has by default.
fn pipe_limits() -> PipeLimits {
    let limits = Config::default().limits;
    PipeLimits { frames: limits.queue_frames, bytes: limits.queue_bytes }
}

/// The same as a supervisor has by default.
fn resume_limits() -> ResumeLimits {
    let runtime = Config::default().runtime;
    let grace = Duration::from_secs(runtime.reconnect_grace_s);
    ResumeLimits { grace, frames: runtime.replay_frames, bytes: runtime.replay_bytes }
}

fn open_request(cwd: &str) -> OpenRequest {
    let mcp_servers = raw(&json!([]));
    OpenRequest {
        // One that no supervisor has.
        session_id: SessionId(Uuid::nil()),
        is_ephemeral: false,
        agent: None,
        cwd: cwd.to_owned(),
        mcp_servers,
        previous: None,
        cookies: None,
    }
}

fn raw(value: &impl Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// A session on which we speak ACP.
struct AcpConversation {
    link: Box<dyn AgentSession>,
    events: Pin<Box<dyn Stream<Item = AgentEvent> + Send>>,
    next_call: u64,
    prompt: Prompt,
}

impl AcpConversation {
    fn boxed(opened: OpenedSession, prompt: &str) -> Box<dyn Conversation> {
        let OpenedSession { link, events, next_call, facts: _ } = opened;
        Box::new(Self { link, events, next_call, prompt: Prompt::of_text(prompt) })
    }

    async fn ask(&mut self) -> Result<(), TurnError> {
        let call = self.next_call;
        self.next_call += 1;
        let turn = TurnRequest {
            // One that belongs to no turn of a supervisor.
            prompt_id: PromptId(Uuid::nil()),
            prompt: &self.prompt,
            context: None,
            policy: PermissionPolicy::default(),
        };
        self.link.prompt(call, turn).map_err(|cause| TurnError::Gone(cause.to_string()))?;
        loop {
            match self.events.next().await {
                Some(AgentEvent::Answered { call: answered, result }) if answered == call => {
                    // Nothing of it is wanted again, as when a supervisor has it on disk.
                    let delivered = self.link.delivered();
                    delivered.settle(delivered.handled());
                    let answer = result.map_err(|cause| TurnError::Failed(cause.to_string()))?;
                    return check(&answer);
                }
                Some(AgentEvent::Failed { call: failed, failure }) if failed == call => {
                    return Err(TurnError::Failed(failure.detail));
                }
                Some(AgentEvent::Closed(reason)) => return Err(TurnError::Gone(format!("{reason:?}"))),
                Some(AgentEvent::Violation(what)) => return Err(TurnError::Gone(what)),
                None => return Err(TurnError::Gone("the connection ended".into())),
                Some(_) => {}
            }
        }
    }
}

fn check(answer: &RawValue) -> Result<(), TurnError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer<'a> {
        stop_reason: &'a str,
    }
    match serde_json::from_str::<Answer<'_>>(answer.get()) {
        Ok(Answer { stop_reason: "end_turn" }) => Ok(()),
        Ok(Answer { stop_reason }) => Err(TurnError::Failed(format!("stopReason is {stop_reason}"))),
        Err(cause) => Err(TurnError::Failed(format!("the agent's answer: {cause}"))),
    }
}

impl Conversation for AcpConversation {
    fn turn(&mut self) -> BoxFuture<'_, Result<Turned, TurnError>> {
        async { self.ask().await.map(|()| Turned::default()) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_turn_that_ended_counts() {
        assert_eq!(check(&raw(&json!({"stopReason": "end_turn", "usage": {}}))), Ok(()));
        for answer in [json!({"stopReason": "cancelled"}), json!({}), json!(null)] {
            assert!(matches!(check(&raw(&answer)), Err(TurnError::Failed(_))), "{answer}");
        }
    }
}
