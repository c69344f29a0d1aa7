//! What every session needs, made once by `app/`.

use std::{sync::Arc, time::Duration};

use super::handles::{index::SessionIndex, rollback_storm::Storm, session_progress::TelemetryFeed};
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
    /// Where turns are kept.
    pub store: Store,
    pub metrics: Metrics,
    /// The way to agents over ACP.
    pub acp: Arc<dyn Transport>,
    /// The way over the fallback.
    pub http: Arc<dyn Transport>,
    pub clock: Arc<dyn Clock>,
    pub index: SessionIndex,
    /// Rollbacks of many workspaces at once.
    pub storm: Storm,
    /// How sessions are doing, for those who watch.
    pub telemetry: TelemetryFeed,
    /// Timing and bounds.
    pub settings: SessionSettings,
}

impl Services {
    /// The way of a route.
    pub(crate) fn transport(&self, route: Route) -> &Arc<dyn Transport> {
        match route {
            Route::Acp => &self.acp,
            Route::Http => &self.http,
        }
    }
}

#[cfg(test)]
impl Services {
    /// Those of a test, with metrics and a clock of their own.
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
        Self { store, metrics, acp, http, clock, index: SessionIndex::default(), storm, telemetry, settings }
    }
}

/// A session takes nothing while it waits for the database to take its transcript, at most as long as that is
/// kept; beyond that nothing of it takes a second.
const STUCK_MARGIN: Duration = Duration::from_secs(30);

/// Timing and bounds of sessions, from the configuration.
#[derive(Debug, Clone)]
pub(crate) struct SessionSettings {
    /// Silence after which a turn fails.
    pub inactivity_timeout: Duration,
    /// How long a cancel may stay unconfirmed.
    pub cancel_grace: Duration,
    /// How long a session may be idle before it hibernates.
    pub idle_timeout: Duration,
    /// How long a permission request waits for a person.
    pub permission_timeout: Duration,
    /// For workspaces that did not choose one.
    pub default_policy: PermissionPolicy,
    /// How long a session's actor may take nothing out of its mailbox before it is replaced.
    pub stuck_after: Duration,
    pub restart: RestartLimits,
    /// When ACP counts as not well.
    pub window: WindowRules,
    /// How a workspace comes back to it.
    pub recovery: RecoveryRules,
    /// What is to become of an agent's changes.
    pub github: Github,
    /// Events held per session.
    pub replay_events: usize,
    /// Bytes of them.
    pub replay_bytes: usize,
    /// Messages of the agent after which what it said is put on disk, so that the runtime need not keep them.
    pub settle_messages: u64,
    /// The same in bytes.
    pub settle_bytes: usize,
}

impl SessionSettings {
    /// Reads them from the configuration.
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
            // A quarter of what the runtime keeps: the agent never waits for us unless the disk is slow.
            settle_messages: (config.runtime.replay_frames as u64 / 4).max(1),
            settle_bytes: (config.runtime.replay_bytes / 4).max(1),
        }
    }
}
