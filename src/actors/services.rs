//! Handles and settings of every session, created once by `app/`.

use std::{sync::Arc, time::Duration};

use super::handles::{
    folder_use::FolderUse, index::SessionIndex, rollback_storm::Storm, session_progress::TelemetryFeed,
};
use crate::{
    config::{Config, sections::Github},
    domain::{
        clock::Clock,
        routing::{RecoveryRules, Route, success_window::WindowRules},
        session::{permission::PermissionPolicy, restart::RestartLimits},
    },
    store::Store,
    telemetry::metrics::Metrics,
    transport::Transport,
};

/// Handles and settings that sessions share. Cheap to clone behind an `Arc`.
pub(crate) struct Services {
    pub store: Store,
    pub metrics: Metrics,
    /// Transport for turns over ACP.
    pub acp: Arc<dyn Transport>,
    /// Transport for turns over the HTTP fallback.
    pub http: Arc<dyn Transport>,
    pub clock: Arc<dyn Clock>,
    pub index: SessionIndex,
    /// Keeps the removal of folders and their use apart.
    pub folders: FolderUse,
    /// Detects rollbacks of many workspaces at once.
    pub storm: Storm,
    /// Publishes session progress to the subscribers that asked for it.
    pub telemetry: TelemetryFeed,
    pub settings: SessionSettings,
}

impl Services {
    /// The transport of a route.
    pub(crate) fn transport(&self, route: Route) -> &Arc<dyn Transport> {
        match route {
            Route::Acp => &self.acp,
            Route::Http => &self.http,
        }
    }
}

#[cfg(test)]
impl Services {
    /// Services for a test, with their own metrics and clock.
    pub(crate) fn of_test(
        store: Store,
        acp: Arc<dyn Transport>,
        http: Arc<dyn Transport>,
        settings: SessionSettings,
    ) -> Self {
        let metrics = Metrics::new("test", None).unwrap();
        let clock = Arc::new(crate::telemetry::SystemClock);
        let storm = Storm::new(store.clone(), metrics.clone(), clock.clone());
        let (telemetry, _) = super::handles::session_progress::telemetry(metrics.clone());
        let (index, folders) = (SessionIndex::default(), FolderUse::default());
        Self { store, metrics, acp, http, clock, index, folders, storm, telemetry, settings }
    }
}

/// Added to the database's patience to get `stuck_after`. While a session waits for the database to accept its
/// transcript, for at most that patience, it takes no message; apart from that wait, no message takes a session more
/// than a second.
const STUCK_MARGIN: Duration = Duration::from_secs(30);

/// Timeouts and limits of sessions, from the configuration.
#[derive(Debug, Clone)]
pub(crate) struct SessionSettings {
    /// Silence of the agent after which a turn fails.
    pub inactivity_timeout: Duration,
    /// Time for the agent to confirm a cancel.
    pub cancel_grace: Duration,
    /// Idle time after which a session hibernates.
    pub idle_timeout: Duration,
    /// Time for a person to answer a permission request.
    pub permission_timeout: Duration,
    /// Permission policy of workspaces that did not choose one.
    pub default_policy: PermissionPolicy,
    /// Time without taking a message from its mailbox after which a session's actor is replaced.
    pub stuck_after: Duration,
    pub restart: RestartLimits,
    /// Thresholds below which ACP is degraded.
    pub window: WindowRules,
    /// Steps by which a workspace returns to ACP.
    pub recovery: RecoveryRules,
    /// Settings for turning an agent's changes into pull requests.
    pub github: Github,
    /// Events held for replay, per session.
    pub replay_events: usize,
    /// Bytes of events held for replay, per session.
    pub replay_bytes: usize,
    /// Agent messages after which the transcript is persisted, so that the runtime can drop its copies.
    pub settle_messages: u64,
    /// Bytes of agent messages after which the transcript is persisted.
    pub settle_bytes: usize,
}

impl SessionSettings {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            inactivity_timeout: config.turn.inactivity_timeout(),
            cancel_grace: config.turn.cancel_grace(),
            idle_timeout: Duration::from_secs(config.session.idle_timeout_s),
            permission_timeout: Duration::from_secs(config.permission.timeout_s),
            default_policy: config.permission.policy,
            stuck_after: Duration::from_secs(config.database.patience_s) + STUCK_MARGIN,
            restart: RestartLimits {
                max_restarts: config.supervision.max_restarts,
                within: Duration::from_secs(config.supervision.within_s),
            },
            window: config.window.rules(),
            recovery: config.recovery.rules(),
            github: config.github.clone(),
            replay_events: config.limits.replay_events,
            replay_bytes: config.limits.replay_bytes,
            // A quarter of the runtime's replay buffer: the agent waits for us only when the disk is slow.
            settle_messages: (config.runtime.replay_frames as u64 / 4).max(1),
            settle_bytes: (config.runtime.replay_bytes / 4).max(1),
        }
    }
}
