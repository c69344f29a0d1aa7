//! What is known about a live session outside its actor.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use parking_lot::{Mutex, MutexGuard};
use serde_json::{json, value::RawValue};

use super::{
    event_feed::EventFeed,
    route_gate::{RouteGate, WorkspacePace},
};
use crate::{
    contract::notifications::frames::TurnProgress,
    domain::{
        clock::Timestamp,
        ids::{PromptId, SessionId, UserId, WorkspaceKey},
        notify::toast::SessionNotice,
        routing::Route,
        session::{
            connection::ConnectionStatus,
            eta::{PlanProgress, Progress},
            event::EventKind,
            lifecycle::{SessionMode, SessionState},
            permission::PermissionPolicy,
        },
        turn::outcome::ErrorClass,
    },
    telemetry::Metrics,
    transport::AgentFacts,
};

/// What a session is; it does not change while the session lives.
#[derive(Debug)]
pub(crate) struct SessionSpec {
    pub session_id: SessionId,
    pub workspace: WorkspaceKey,
    /// For whom it works.
    pub user_id: Option<UserId>,
    /// What it is for.
    pub mode: SessionMode,
    /// Whether its changes are to become pull requests.
    pub enable_git_ops: bool,
    /// What its workspace was checked out from.
    pub repository: Option<String>,
    /// Name of its agent; the default one where absent.
    pub agent: Option<String>,
    /// The folder in which the agent works.
    pub cwd: String,
    /// Whether that folder goes with the session.
    pub is_ephemeral: bool,
    /// ACP `mcpServers`, raw.
    pub mcp_servers: Box<RawValue>,
    /// How its workspace answers permission requests.
    pub policy: SharedPolicy,
    /// What carries its workspace's turns.
    pub gate: RouteGate,
    /// How long its workspace's turns take.
    pub pace: WorkspacePace,
    /// Whether its agent has a headless command, which needs no handshake.
    pub has_oneshot: bool,
}

/// A workspace's permission policy; one for all of its sessions, and changeable while they live.
#[derive(Debug, Clone)]
pub(crate) struct SharedPolicy(Arc<AtomicU8>);

const POLICIES: [PermissionPolicy; 4] =
    [PermissionPolicy::AllowOnce, PermissionPolicy::AllowAlways, PermissionPolicy::Reject, PermissionPolicy::Ask];

impl SharedPolicy {
    /// Starts with a policy.
    pub(crate) fn new(policy: PermissionPolicy) -> Self {
        let shared = Self(Arc::default());
        shared.set(policy);
        shared
    }

    pub(crate) fn get(&self) -> PermissionPolicy {
        POLICIES.get(usize::from(self.0.load(Ordering::Acquire))).copied().unwrap_or_default()
    }

    /// Changes it for all sessions of the workspace.
    pub(crate) fn set(&self, policy: PermissionPolicy) {
        let index = POLICIES.iter().position(|it| *it == policy).unwrap_or_default();
        self.0.store(u8::try_from(index).unwrap_or_default(), Ordering::Release);
    }
}

/// What can be told about a session at any time.
#[derive(Debug, Clone)]
pub(crate) struct SessionView {
    pub state: SessionState,
    /// How the connection to its agent is.
    pub connection: ConnectionStatus,
    /// The class of the error with which the last turn failed; absent where it did not.
    pub last_failure: Option<ErrorClass>,
    /// The turn that runs.
    pub running: Option<PromptId>,
    /// How that turn gets on, once its agent got the prompt.
    pub progress: Option<Progress>,
    /// When its agent last said something.
    pub last_heard: Option<Timestamp>,
    /// When it was opened, loaded, or its last turn began or ended.
    pub last_used: Timestamp,
    /// Restarts since it was created.
    pub restarts: u32,
    /// What the last line told.
    pub facts: Option<Arc<AgentFacts>>,
    /// The id under which its agent knows the conversation over ACP.
    pub agent_session_id: Option<String>,
    /// What carries its turns now.
    pub carrier: Route,
    /// Whether its turns take twice as long as they did.
    pub is_slow: bool,
}

impl SessionView {
    /// That of a session whose agent is being started, `restarts` times so far.
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
    /// What its user is to be told with the row of the session, which is written once it is ready.
    deferred_notice: Mutex<Option<SessionNotice>>,
}

impl SessionShared {
    /// Starts with a view.
    pub(crate) fn new(spec: Arc<SessionSpec>, feed: EventFeed, view: SessionView) -> Self {
        Self { spec, feed, view: Mutex::new(view), deferred_notice: Mutex::default() }
    }

    /// Leaves something to be told with the row of the session.
    pub(crate) fn defer_notice(&self, session_notice: SessionNotice) {
        *self.deferred_notice.lock() = Some(session_notice);
    }

    /// Takes what was left to be told.
    pub(crate) fn take_deferred_notice(&self) -> Option<SessionNotice> {
        self.deferred_notice.lock().take()
    }

    /// Changes the state, counts the change, and gives the view for what goes with it.
    pub(crate) fn move_to(&self, state: SessionState, metrics: &Metrics) -> MutexGuard<'_, SessionView> {
        let mut view = self.view();
        metrics.session_changed(Some(view.state), Some(state));
        view.state = state;
        view
    }

    /// Notes that the agent got a turn, and tells the readers when it is likely to have ended.
    pub(crate) fn turn_begins(&self, prompt: PromptId, accepted_at: Timestamp, now: Timestamp) {
        let progress = Progress { accepted_at, plan: None, usual: self.spec.pace.median() };
        self.view().progress = Some(progress);
        if progress.is_published_at_start(now) {
            self.publish(prompt, &progress, now);
        }
    }

    /// Notes how much of its plan the agent has done, and tells the readers; `None` where it has no plan any more.
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

    /// How the connection to its agent is, as it is shown: rolled back while its next turn goes over the fallback.
    pub(crate) fn connection_status(&self) -> ConnectionStatus {
        let is_rolled_back = self.spec.gate.route() == Route::Http;
        let view = self.view();
        let may_be = view.state.is_live() && view.connection != ConnectionStatus::Error;
        if may_be && (is_rolled_back || view.carrier == Route::Http) {
            return ConnectionStatus::RolledBack;
        }
        view.connection.after(view.last_failure, view.is_slow)
    }

    /// The view, to read or to change; not to be held across an await.
    pub(crate) fn view(&self) -> MutexGuard<'_, SessionView> {
        // Fields are set one by one and each is valid, so a poisoned view is still whole.
        self.view.lock()
    }
}
