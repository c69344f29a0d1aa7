//! State of a live session outside its actor.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
};

use parking_lot::{Mutex, MutexGuard};
use serde_json::json;
use tokio::sync::watch;

use super::{
    event_feed::EventFeed,
    route_gate::{RouteGate, WorkspacePace},
};
use crate::{
    config::DEFAULT_AGENT,
    contract::notifications::frames::TurnProgress,
    domain::{
        clock::Timestamp,
        ids::{PromptId, SessionId, UserId, WorkspaceKey},
        notify::notification::SessionNotice,
        routing::Route,
        session::{
            background::Activity,
            choices::Chosen,
            connection::ConnectionStatus,
            eta::{PlanProgress, Progress},
            event::EventKind,
            lifecycle::{SessionMode, SessionState},
            mcp::McpServers,
            permission::PermissionPolicy,
        },
        turn::{
            outcome::ErrorClass,
            transcript::{KeptEntry, TranscriptBuilder, TranscriptLimits},
        },
    },
    telemetry::Metrics,
    transport::AgentFacts,
};

/// Properties of a session that do not change while it lives.
#[derive(Debug)]
pub(crate) struct SessionSpec {
    pub session_id: SessionId,
    pub workspace: WorkspaceKey,
    /// User that the session belongs to.
    pub user_id: Option<UserId>,
    pub mode: SessionMode,
    /// True if its changes may become pull requests.
    pub enable_git_ops: bool,
    /// Repository that its workspace was checked out from.
    pub repository: Option<String>,
    /// Name of its agent; absent for the default agent.
    pub agent: Option<String>,
    /// Folder in which the agent works.
    pub cwd: String,
    /// True if that folder is deleted with the session.
    pub is_ephemeral: bool,
    /// True if no other session works in that folder.
    pub is_isolated: bool,
    pub mcp_servers: SharedServers,
    /// Permission policy of its workspace.
    pub policy: SharedPolicy,
    pub gate: RouteGate,
    /// Durations of its workspace's turns.
    pub pace: WorkspacePace,
    /// True if its agent has a headless command, which needs no handshake.
    pub has_oneshot: bool,
}

impl SessionSpec {
    /// The session whose folder it works in; `None` for that of the workspace.
    pub(crate) fn folder_owner(&self) -> Option<SessionId> {
        self.is_isolated.then_some(self.session_id)
    }

    /// The configured name of its agent.
    pub(crate) fn agent_name(&self) -> &str {
        self.agent.as_deref().unwrap_or(DEFAULT_AGENT)
    }
}

/// A workspace's permission policy, shared by all its sessions and changeable while they live.
#[derive(Debug, Clone)]
pub(crate) struct SharedPolicy(Arc<AtomicU8>);

const POLICIES: [PermissionPolicy; 4] =
    [PermissionPolicy::AllowOnce, PermissionPolicy::AllowAlways, PermissionPolicy::Reject, PermissionPolicy::Ask];

impl SharedPolicy {
    pub(crate) fn new(policy: PermissionPolicy) -> Self {
        let shared = Self(Arc::default());
        shared.set(policy);
        shared
    }

    pub(crate) fn get(&self) -> PermissionPolicy {
        POLICIES.get(usize::from(self.0.load(Ordering::Acquire))).copied().unwrap_or_default()
    }

    /// Changes the policy for all sessions of the workspace.
    pub(crate) fn set(&self, policy: PermissionPolicy) {
        let index = POLICIES.iter().position(|it| *it == policy).unwrap_or_default();
        self.0.store(u8::try_from(index).unwrap_or_default(), Ordering::Release);
    }
}

/// The MCP servers that the next agent of a session gets; a load may change them while the session lives.
#[derive(Debug, Clone)]
pub(crate) struct SharedServers(Arc<Mutex<McpServers>>);

impl SharedServers {
    pub(crate) fn new(servers: McpServers) -> Self {
        Self(Arc::new(Mutex::new(servers)))
    }

    pub(crate) fn get(&self) -> McpServers {
        self.0.lock().clone()
    }

    pub(crate) fn set(&self, servers: McpServers) {
        *self.0.lock() = servers;
    }
}

/// Snapshot of the state of a session.
#[derive(Debug, Clone)]
pub(crate) struct SessionView {
    pub state: SessionState,
    /// State of the connection to its agent.
    pub connection: ConnectionStatus,
    /// Class of the error with which the last turn failed; absent if that turn did not fail.
    pub last_failure: Option<ErrorClass>,
    pub running: Option<PromptId>,
    /// Progress of the running turn, once its agent has the prompt.
    pub progress: Option<Progress>,
    /// Time of the last message from its agent.
    pub last_heard: Option<Timestamp>,
    /// Time at which the session was opened or loaded, or at which its last turn began or ended.
    pub last_used: Timestamp,
    /// Restarts since the session was created.
    pub restarts: u32,
    /// Facts from the last handshake.
    pub facts: Option<Arc<AgentFacts>>,
    /// Its mode, model and options: what is kept, and what the agent has.
    pub chosen: Chosen,
    /// Id under which its agent knows the conversation over ACP.
    pub agent_session_id: Option<String>,
    /// Current carrier of its turns.
    pub carrier: Route,
    /// True if its turns take twice as long as they used to.
    pub is_slow: bool,
}

impl SessionView {
    /// View of a session whose agent is starting, after `restarts` restarts.
    pub(crate) fn starting(restarts: u32, now: Timestamp) -> Self {
        Self {
            state: SessionState::Starting,
            connection: ConnectionStatus::Connecting,
            last_failure: None,
            running: None,
            progress: None,
            last_heard: None,
            last_used: now,
            restarts,
            facts: None,
            chosen: Chosen::default(),
            agent_session_id: None,
            carrier: Route::Acp,
            is_slow: false,
        }
    }
}

/// The part of a live session that outlives its actor's restarts.
#[derive(Debug)]
pub(crate) struct SessionShared {
    pub spec: Arc<SessionSpec>,
    pub feed: EventFeed,
    view: Mutex<SessionView>,
    /// Notification for its user that is written with the row of the session, once the session is ready.
    deferred_notice: Mutex<Option<SessionNotice>>,
    is_stored: AtomicBool,
    /// Bytes of its transcript.
    transcript_bytes: AtomicU64,
    activity: watch::Sender<Activity>,
}

impl SessionShared {
    pub(crate) fn new(spec: Arc<SessionSpec>, feed: EventFeed, view: SessionView) -> Self {
        Self {
            spec,
            feed,
            view: Mutex::new(view),
            deferred_notice: Mutex::default(),
            is_stored: AtomicBool::new(false),
            transcript_bytes: AtomicU64::new(0),
            activity: watch::Sender::default(),
        }
    }

    /// Publishes the agent's work outside a turn to those who wait for a quiet turn.
    pub(crate) fn set_activity(&self, activity: Activity) {
        self.activity.send_replace(activity);
    }

    pub(crate) fn activity(&self) -> watch::Receiver<Activity> {
        self.activity.subscribe()
    }

    /// Adds to the bytes of the transcript.
    pub(crate) fn add_transcript_bytes(&self, bytes: u64) {
        self.transcript_bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// The transcript of a turn that begins, with the limits of turn and session.
    pub(crate) fn new_transcript(&self, limits: TranscriptLimits) -> TranscriptBuilder {
        TranscriptBuilder::default().limited(limits, self.transcript_bytes.load(Ordering::Acquire))
    }

    /// [`Self::new_transcript`] of a turn of which these entries are on disk.
    pub(crate) fn resumed_transcript(&self, kept: &[KeptEntry], limits: TranscriptLimits) -> TranscriptBuilder {
        TranscriptBuilder::resume(kept).limited(limits, self.transcript_bytes.load(Ordering::Acquire))
    }

    /// Records that the session has a row, to which rows of its transcript may refer.
    pub(crate) fn mark_stored(&self) {
        self.is_stored.store(true, Ordering::Release);
    }

    /// True once the session has a row.
    pub(crate) fn is_stored(&self) -> bool {
        self.is_stored.load(Ordering::Acquire)
    }

    /// Defers a notification until the row of the session is written.
    pub(crate) fn defer_notice(&self, session_notice: SessionNotice) {
        *self.deferred_notice.lock() = Some(session_notice);
    }

    pub(crate) fn take_deferred_notice(&self) -> Option<SessionNotice> {
        self.deferred_notice.lock().take()
    }

    /// Changes the state, updates the metrics, and returns the view for further changes under the same lock.
    pub(crate) fn move_to(&self, state: SessionState, metrics: &Metrics) -> MutexGuard<'_, SessionView> {
        let mut view = self.view();
        metrics.session_changed(Some(view.state), Some(state));
        view.state = state;
        view
    }

    /// Records that the agent received a turn, and publishes the expected end to readers.
    pub(crate) fn turn_begins(&self, prompt: PromptId, accepted_at: Timestamp, now: Timestamp) {
        let progress = Progress { accepted_at, plan: None, usual: self.spec.pace.median() };
        self.view().progress = Some(progress);
        if progress.is_published_at_start(now) {
            self.publish(prompt, &progress, now);
        }
    }

    /// Records the end of a turn, with the class of the error if it failed: no turn runs any more.
    pub(crate) fn turn_ends(&self, failure: Option<ErrorClass>, now: Timestamp, metrics: &Metrics) {
        let state = self.view().state;
        let state = if state == SessionState::Running { SessionState::Idle } else { state };
        let mut view = self.move_to(state, metrics);
        (view.running, view.progress) = (None, None);
        (view.last_used, view.last_failure) = (now, failure);
    }

    /// Records and publishes the progress of the plan; `None` if the agent has no plan any more.
    pub(crate) fn on_plan(&self, prompt: PromptId, plan: Option<PlanProgress>, now: Timestamp) {
        let noted = {
            let mut view = self.view();
            view.progress = view.progress.map(|progress| Progress { plan, ..progress });
            view.progress
        };
        if let Some(progress) = noted {
            self.publish(prompt, &progress, now);
        }
    }

    fn publish(&self, prompt: PromptId, progress: &Progress, now: Timestamp) {
        self.feed.announce(Some(prompt), EventKind::Progress, &json!(TurnProgress::of(progress, now)));
    }

    /// Status of the connection to its agent, as clients see it: rolled back while its next turn uses the fallback.
    pub(crate) fn connection_status(&self) -> ConnectionStatus {
        let is_rolled_back = self.spec.gate.route() == Route::Http;
        let view = self.view();
        let may_be = view.state.is_live() && view.connection != ConnectionStatus::Error;
        if may_be && (is_rolled_back || view.carrier == Route::Http) {
            return ConnectionStatus::RolledBack;
        }
        view.connection.after(view.last_failure, view.is_slow)
    }

    /// Locks the view for reading or changing; must not be held across an await.
    pub(crate) fn view(&self) -> MutexGuard<'_, SessionView> {
        // Each field is valid on its own, so the view is always consistent.
        self.view.lock()
    }
}
