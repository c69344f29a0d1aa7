//! The directory: from ids to live sessions, and from nothing to a session.
//!
//! A handle, not an actor: finding a session costs no hop. What starts, ends or restarts a session is asked
//! of its workspace's supervisor.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use actix::{Actor, Addr, Message, Recipient};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{
    adoption::{Found, kept_connection},
    capacity_guard::{CapacityGuard, Permit},
    messages::{Adopted, CancelTurn, CloseSession, DrainSessions, Past, StartSession},
    parts::Parts,
    session_index::{LiveSession, Mailbox},
    session_shared::{SessionSpec, SharedPolicy},
    workspace_folders::{self as folders, OpenSession},
    workspace_supervisor::WorkspaceSupervisor,
};
use crate::{
    contract::runtime::{DiffWorkspace, PreparedWorkspace, WorkspaceDiff},
    domain::{
        ids::{SessionId, WorkspaceKey},
        lifecycle::SessionState,
        mcp,
        outcome::{ErrorCode, Failure},
        permission::PermissionPolicy,
        redaction::Redacted,
        routing::Route,
    },
    store::{self, NewSession, SessionChange, SessionRow, WorkspaceRow},
    transport::{AgentFacts, workspace_door::WorkspaceDoor},
};

/// Supervisors that are kept for workspaces without live sessions before they are let go: each is a few
/// kilobytes, and more than the seats there are by default.
const MAX_SUPERVISORS: usize = 4096;
/// How long sessions may take to be written down, beyond the grace of their cancels, when the service stops.
const DRAIN_MARGIN: Duration = Duration::from_secs(3);
/// How long a caller waits for a session that is just being started again before it is told to retry.
const RESTART_WAIT: Duration = Duration::from_secs(10);

/// The directory. Cheap to clone.
#[derive(Clone)]
pub struct Workspaces(Arc<Inner>);

struct Inner {
    parts: Arc<Parts>,
    door: WorkspaceDoor,
    capacity: CapacityGuard,
    supervisors: Mutex<HashMap<WorkspaceKey, Supervised>>,
    draining: AtomicBool,
}

#[derive(Clone)]
struct Supervised {
    supervisor: Addr<WorkspaceSupervisor>,
    policy: SharedPolicy,
}

/// A session that is ready for prompts.
pub struct ReadySession {
    /// Its id.
    pub session_id: SessionId,
    /// Its workspace.
    pub workspace: WorkspaceKey,
    /// Where its agent works.
    pub path: String,
    /// Whether that folder goes with the session.
    pub is_ephemeral: bool,
    /// What its handshake told.
    pub facts: Arc<AgentFacts>,
}

impl Workspaces {
    /// Makes an empty directory whose supervisors live on `arbiters`.
    pub fn new(parts: Arc<Parts>, door: WorkspaceDoor, capacity: CapacityGuard) -> Self {
        let supervisors = Mutex::default();
        Self(Arc::new(Inner { parts, door, capacity, supervisors, draining: AtomicBool::new(false) }))
    }

    /// What sessions share.
    pub fn parts(&self) -> &Arc<Parts> {
        &self.0.parts
    }

    /// The seats.
    pub fn capacity(&self) -> &CapacityGuard {
        &self.0.capacity
    }

    /// The runtime's workspaces and status.
    pub fn door(&self) -> &WorkspaceDoor {
        &self.0.door
    }

    /// Refuses while the service is stopping.
    pub fn admission(&self) -> Result<(), Failure> {
        if self.0.draining.load(Ordering::Acquire) {
            return Err(Failure::new(ErrorCode::Draining, "the service is shutting down"));
        }
        Ok(())
    }

    /// Creates a session: seat, workspace, agent, row, in this order; what fails leaves nothing behind but
    /// the workspace.
    pub async fn open(&self, mut request: OpenSession) -> Result<ReadySession, Failure> {
        self.admission()?;
        request.agent = request.agent.filter(|name| name != DEFAULT_AGENT);
        let seat = self.0.capacity.admit()?;
        let parts = &self.0.parts;
        let (row, prepared) = folders::find_or_make(self.parts(), self.door(), &request).await?;
        let session_id = SessionId(Uuid::now_v7());
        let mcp = mcp::without_secrets(&request.mcp_servers);
        let (supervised, spec) = self.place(&row, &prepared, session_id, request.agent.clone(), request.mcp_servers);
        let facts = start(&supervised, spec, Past::default(), seat, None).await?;
        let new = NewSession {
            session_id,
            key: request.workspace.clone(),
            workspace: None,
            user_id: request.user_id,
            agent: request.agent.unwrap_or_else(|| DEFAULT_AGENT.to_owned()),
            mode: request.mode,
            enable_git_ops: request.enable_git_ops,
            state: SessionState::Idle,
            agent_session_id: Some(facts.agent_session_id.clone()),
            mcp_servers: mcp,
            protocol: Route::Acp,
            protocol_version: facts.protocol_version,
            agent_facts: Some(agent_facts(&facts)),
            connection: Some(kept_connection(&facts)),
            now: parts.clock.now(),
        };
        if let Err(cause) = parts.store.create_session(new).await {
            let _ = supervised.supervisor.send(CloseSession { session_id }).await;
            return Err(store::failure(&cause));
        }
        Ok(ready(session_id, request.workspace, prepared, facts))
    }

    /// Brings a session back that is not live; tells about one that is.
    pub async fn load(&self, row: &SessionRow, mcp_servers: Option<Box<RawValue>>) -> Result<ReadySession, Failure> {
        self.admission()?;
        row.state
            .admits_load()
            .map_err(|code| Failure::new(code, format!("the session is {}", row.state.as_str())))?;
        if let Some(live) = self.live(row.session_id) {
            let (facts, spec) = (live.shared.view().facts.clone(), live.shared.spec.clone());
            if let Some(facts) = facts {
                let prepared =
                    PreparedWorkspace { path: spec.cwd.clone(), is_ephemeral: spec.is_ephemeral, has_oneshot: false };
                return Ok(ready(row.session_id, row.key.clone(), prepared, facts));
            }
        }
        let parts = &self.0.parts;
        let workspace = parts.store.workspace(row.key.clone()).await.map_err(|cause| store::failure(&cause))?;
        let workspace =
            workspace.ok_or_else(|| Failure::new(ErrorCode::NotFound, "the session's workspace is gone"))?;
        let seat = self.0.capacity.admit_returning();
        let prepared = folders::prepare(self.door(), &workspace).await?;
        let kept = || RawValue::from_string(row.mcp_servers.clone()).unwrap_or_else(|_| mcp::none());
        let mcp_servers = mcp_servers.unwrap_or_else(kept);
        let (supervised, spec) =
            self.place(&workspace, &prepared, row.session_id, agent_name(&row.agent), mcp_servers);
        let past = Past {
            agent_session_id: row.agent_session_id.clone(),
            last_event_id: row.next_event_after(),
            restarts: row.restarts,
        };
        let facts = start(&supervised, spec, past, seat, None).await?;
        let change = SessionChange {
            state: Some(SessionState::Idle),
            agent_session_id: Some(facts.agent_session_id.clone()),
            protocol_version: facts.protocol_version,
            agent_facts: Some(agent_facts(&facts)),
            connection: Some(kept_connection(&facts)),
            last_used: Some(parts.clock.now()),
            ..SessionChange::new(row.session_id)
        };
        parts.store.update_session(change).await.map_err(|cause| store::failure(&cause))?;
        Ok(ready(row.session_id, row.key.clone(), prepared, facts))
    }

    /// Goes on with a turn whose agent was found again. A failure leaves the turn open and ends its agent.
    pub async fn go_on(&self, found: Found) -> Result<(), Failure> {
        let Found { adopted, session } = found;
        let parts = &self.0.parts;
        let workspace = parts.store.workspace(session.key.clone()).await.map_err(|cause| store::failure(&cause))?;
        let workspace =
            workspace.ok_or_else(|| Failure::new(ErrorCode::NotFound, "the session's workspace is gone"))?;
        let prepared = folders::prepare(self.door(), &workspace).await?;
        let mcp_servers = RawValue::from_string(session.mcp_servers.clone()).unwrap_or_else(|_| mcp::none());
        let seat = self.0.capacity.admit_returning();
        let (supervised, spec) =
            self.place(&workspace, &prepared, session.session_id, agent_name(&session.agent), mcp_servers);
        let past = Past {
            agent_session_id: session.agent_session_id.clone(),
            last_event_id: session.next_event_after(),
            restarts: session.restarts,
        };
        start(&supervised, spec, past, seat, Some(Box::new(adopted))).await?;
        Ok(())
    }

    /// The live session with this id.
    pub fn live(&self, id: SessionId) -> Option<Arc<LiveSession>> {
        self.0.parts.index.get(id)
    }

    /// Sends a message to a session, waiting for its fresh actor while it is being started again. The message
    /// is made anew for each try and told whether it is a repeat: one that was lost with a dying actor may have
    /// had its effect. `None`: the session is not live any more.
    pub async fn ask<M>(
        &self,
        live: &LiveSession,
        taker: impl Fn(&Mailbox) -> Recipient<M>,
        make: impl Fn(bool) -> M,
    ) -> Option<M::Result>
    where
        M: Message + Send,
        M::Result: Send,
    {
        let mut mailbox = live.mailbox.clone();
        let asking = async {
            let mut again = false;
            loop {
                let now = taker(&mailbox.borrow_and_update());
                if let Ok(answer) = now.send(make(again)).await {
                    return Some(answer);
                }
                again = true;
                if mailbox.changed().await.is_err() {
                    return None;
                }
            }
        };
        tokio::time::timeout(RESTART_WAIT, asking).await.ok().flatten()
    }

    /// Closes a session. `false` where it was not live.
    pub async fn close(&self, id: SessionId) -> bool {
        match self.live(id) {
            Some(live) => live.supervisor.send(CloseSession { session_id: id }).await.unwrap_or(false),
            None => false,
        }
    }

    /// What changed in a session's workspace.
    pub async fn diff(&self, row: &WorkspaceRow) -> Result<WorkspaceDiff, Failure> {
        self.0.door.diff(&DiffWorkspace { workspace: folders::reference(row) }).await
    }

    /// Stops: admission closes, running turns may end until `deadline` passes, the rest is cancelled, and
    /// every agent is let go.
    pub async fn drain(&self, deadline: impl Future<Output = ()>) {
        self.0.draining.store(true, Ordering::Release);
        let mut deadline = std::pin::pin!(deadline);
        let index = &self.0.parts.index;
        let mut look = tokio::time::interval(Duration::from_millis(50));
        while index.all().iter().any(|live| live.shared.view().running.is_some()) {
            tokio::select! {
                () = &mut deadline => break,
                _ = look.tick() => {}
            }
        }
        let running = index.all().into_iter().filter(|live| live.shared.view().running.is_some());
        let cancelling = running.map(|live| live.mailbox.borrow().cancel_turn.send(CancelTurn { prompt_id: None }));
        // All at once, and not for ever: a session that waits for the database, or is stuck, does not listen.
        let _ = tokio::time::timeout(DRAIN_MARGIN, futures_util::future::join_all(cancelling)).await;
        let supervisors: Vec<_> = {
            let supervisors = self.0.supervisors.lock().unwrap_or_else(PoisonError::into_inner);
            supervisors.values().map(|it| it.supervisor.clone()).collect()
        };
        // All at once: each may take the grace of a cancel.
        let draining = supervisors.iter().map(|supervisor| supervisor.send(DrainSessions));
        let patience = self.0.parts.settings.cancel_grace + DRAIN_MARGIN;
        if tokio::time::timeout(patience, futures_util::future::join_all(draining)).await.is_err() {
            tracing::error!(marker = "[ACP]", "sessions are left at the end; their agents end with the runtime");
        }
    }

    /// The supervisor of the workspace, made where there is none, and the spec of a session in it.
    fn place(
        &self,
        row: &WorkspaceRow,
        prepared: &PreparedWorkspace,
        session_id: SessionId,
        agent: Option<String>,
        mcp_servers: Box<RawValue>,
    ) -> (Supervised, Arc<SessionSpec>) {
        let policy = row.permission_policy.unwrap_or(self.0.parts.settings.default_policy);
        let supervised = self.supervised(&row.key, policy);
        let spec = SessionSpec {
            session_id,
            workspace: row.key.clone(),
            agent,
            cwd: prepared.path.clone(),
            is_ephemeral: prepared.is_ephemeral,
            mcp_servers,
            policy: supervised.policy.clone(),
        };
        (supervised, Arc::new(spec))
    }

    fn supervised(&self, key: &WorkspaceKey, policy: PermissionPolicy) -> Supervised {
        let mut supervisors = self.0.supervisors.lock().unwrap_or_else(PoisonError::into_inner);
        let found = supervisors.get(key).filter(|it| it.supervisor.connected()).cloned();
        let supervised = found.unwrap_or_else(|| {
            if supervisors.len() >= MAX_SUPERVISORS {
                let live: HashSet<_> =
                    self.0.parts.index.all().iter().map(|live| live.shared.spec.workspace.clone()).collect();
                supervisors.retain(|key, _| live.contains(key));
            }
            // On the thread that asked, which serves HTTP: between a request and its session there is no hop, and
            // hops are what a turn pays for. Requests are spread over the threads, and so are sessions.
            let supervisor = WorkspaceSupervisor::new(key.clone(), self.0.parts.clone()).start();
            let supervised = Supervised { supervisor, policy: SharedPolicy::new(policy) };
            supervisors.insert(key.clone(), supervised.clone());
            supervised
        });
        supervised.policy.set(policy);
        supervised
    }
}

async fn start(
    supervised: &Supervised,
    spec: Arc<SessionSpec>,
    past: Past,
    seat: Permit,
    adopted: Option<Box<Adopted>>,
) -> Result<Arc<AgentFacts>, Failure> {
    let gone = |_| Failure::new(ErrorCode::Internal, "the workspace's supervisor is gone");
    supervised.supervisor.send(StartSession { spec, past, seat, adopted }).await.map_err(gone)?
}

fn ready(
    session_id: SessionId,
    workspace: WorkspaceKey,
    prepared: PreparedWorkspace,
    facts: Arc<AgentFacts>,
) -> ReadySession {
    ReadySession { session_id, workspace, path: prepared.path, is_ephemeral: prepared.is_ephemeral, facts }
}

/// What is kept of an agent's handshake.
fn agent_facts(facts: &AgentFacts) -> Redacted {
    let facts = serde_json::json!({
        "agentInfo": facts.info,
        "agentCapabilities": facts.capabilities,
        "modes": facts.modes,
        "configOptions": facts.config_options,
    });
    Redacted::new(&facts.to_string())
}

/// The name under which a session keeps that it named no agent.
pub const DEFAULT_AGENT: &str = "default";

fn agent_name(kept: &str) -> Option<String> {
    (kept != DEFAULT_AGENT).then(|| kept.to_owned())
}
