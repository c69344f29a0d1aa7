//! Handles and settings of every session, created once by `app/`.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::handles::{
    agent_handshakes::AgentHandshakes,
    client_tokens::ClientTokens,
    closing::{Automate, ClosingTurns},
    disk_use::DiskUse,
    folder_use::FolderUse,
    given_servers::GivenServers,
    given_tokens::GivenTokens,
    index::SessionIndex,
    left_agents::LeftAgents,
    preparing::PreparingSessions,
    rollback_storm::Storm,
    runtime_availability::RuntimeAvailability,
    session_progress::TelemetryFeed,
    tenants::{Tenants, UseGuard},
};
use uuid::Uuid;

use crate::{
    cluster::membership::Membership,
    config::{Config, Reloadable, sections::Github},
    domain::{
        ceilings::{CeilingRules, Choices},
        clock::Clock,
        ids::{InstallationId, SessionId},
        routing::{RecoveryRules, Route, success_window::WindowRules},
        session::{background::BackgroundLimits, permission::PermissionPolicy, restart::RestartLimits},
        tenant::TenantSettings,
        turn::{agent_error::name_credentials, outcome::Failure, transcript::TranscriptLimits},
    },
    store::Store,
    telemetry::metrics::Metrics,
    transport::{Transport, http::client::WorkspaceClient},
};

/// Handles and settings that sessions share. Cheap to clone behind an `Arc`.
pub(crate) struct Services {
    pub store: Store,
    /// Permission of this process to take work.
    pub membership: Membership,
    pub metrics: Metrics,
    /// Transport for turns over ACP.
    pub acp: Arc<dyn Transport>,
    /// Transport for turns over the HTTP fallback.
    pub http: Arc<dyn Transport>,
    pub clock: Arc<dyn Clock>,
    pub runtime: RuntimeAvailability,
    /// Asks the runtime about processes of agents; absent in tests without a runtime.
    pub runtime_client: Option<WorkspaceClient>,
    /// True from the begin of a drain on.
    pub draining: AtomicBool,
    pub index: SessionIndex,
    /// Sessions whose folder is being prepared.
    pub preparing: PreparingSessions,
    /// Turns whose agent has ended and whose automation runs.
    pub closing: ClosingTurns,
    /// Agents that an earlier process left idle.
    pub left: LeftAgents,
    /// The newest handshake with each agent.
    pub handshakes: AgentHandshakes,
    /// MCP servers with the secrets that rows do not have.
    pub given_servers: GivenServers,
    /// GitHub tokens of sessions.
    pub given_tokens: GivenTokens,
    /// Automation of the changes of turns; this version has no automation of its own.
    pub automate: Option<Arc<dyn Automate>>,
    /// Keeps the removal of folders and their use apart.
    pub folders: FolderUse,
    /// The same of isolated sessions.
    pub session_folders: FolderUse<SessionId>,
    /// Observes rollbacks of many workspaces at once.
    pub storm: Storm,
    /// Tokens of the API.
    pub tokens: ClientTokens,
    /// Publishes session progress to the subscribers that asked for it.
    pub telemetry: TelemetryFeed,
    pub settings: SessionSettings,
    /// Limits and ceilings of tenants.
    pub tenants: Tenants,
    /// Live sessions and turns by tenant.
    pub tenant_use: UseGuard<InstallationId>,
    /// Live sessions and turns by token, of tokens with limits.
    pub token_use: UseGuard<Uuid>,
    /// Bytes on disk of the workspaces in use.
    pub disk: DiskUse,
}

impl Services {
    /// Limits and ceilings of a tenant. Reads memory alone.
    pub(crate) fn tenant_settings(&self, tenant: &InstallationId) -> Arc<TenantSettings> {
        self.tenants.settings(tenant)
    }

    /// Checks the choices of a caller of `tenant` against the ceilings.
    ///
    /// # Errors
    /// `ceiling_exceeded`.
    pub(crate) fn check_choices(&self, tenant: &InstallationId, choices: &Choices<'_>) -> Result<(), Failure> {
        let own = self.tenant_settings(tenant);
        self.settings.ceilings.check(&own.ceilings, self.tokens.has_tenants(), choices)
    }

    /// The limits of transcripts of a tenant.
    pub(crate) fn transcript_limits(&self, tenant: &InstallationId) -> TranscriptLimits {
        self.settings.transcripts.replaced_by(self.tenant_settings(tenant).transcripts)
    }

    /// The folders in which a tenant may open others by `path`; `None` for all that the runtime allows.
    pub(crate) fn admitted_paths(&self, tenant: &InstallationId) -> Option<Vec<String>> {
        let own = self.tenant_settings(tenant);
        self.settings.ceilings.admitted_paths(&own.ceilings, self.tokens.has_tenants())
    }

    /// The permission policy of a workspace with `chosen`, within the ceilings of its tenant.
    pub(crate) fn policy(&self, tenant: &InstallationId, chosen: Option<PermissionPolicy>) -> PermissionPolicy {
        let own = self.tenant_settings(tenant);
        self.settings.ceilings.policy(&own.ceilings, chosen.unwrap_or(self.settings.default_policy))
    }

    /// True while the service is stopping. Outcomes are not counted then: this process ends agents and connections.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

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
        let clock: Arc<dyn Clock> = Arc::new(crate::telemetry::SystemClock);
        let storm = Storm::new(store.clone(), metrics.clone(), clock.clone());
        let is_up = Arc::new(|| -> futures_util::future::BoxFuture<'static, bool> { Box::pin(async { true }) });
        let runtime = RuntimeAvailability::new(is_up, clock.clone(), metrics.clone());
        let (telemetry, _) = super::handles::session_progress::telemetry(metrics.clone());
        let membership = Membership::unlimited();
        Self {
            store,
            membership,
            metrics,
            acp,
            http,
            clock,
            runtime,
            runtime_client: None,
            draining: AtomicBool::new(false),
            index: SessionIndex::default(),
            preparing: PreparingSessions::default(),
            closing: ClosingTurns::default(),
            left: LeftAgents::default(),
            given_servers: GivenServers::default(),
            given_tokens: GivenTokens::default(),
            handshakes: AgentHandshakes::default(),
            automate: None,
            folders: FolderUse::default(),
            session_folders: FolderUse::default(),
            storm,
            tokens: ClientTokens::default(),
            telemetry,
            settings,
            tenants: Tenants::default(),
            tenant_use: UseGuard::default(),
            token_use: UseGuard::default(),
            disk: DiskUse::default(),
        }
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
    /// Limits of work outside a turn.
    pub background: BackgroundLimits,
    /// Time for a person to answer a permission request.
    pub permission_timeout: Duration,
    /// Permission policy of workspaces that did not choose one.
    pub default_policy: PermissionPolicy,
    /// Limits of what callers may choose.
    pub ceilings: CeilingRules,
    /// Time without taking a message from its mailbox after which a session's actor is replaced.
    pub stuck_after: Duration,
    /// Time that the end of a turn waits for the database before its caller is answered.
    pub database_patience: Duration,
    pub restart: RestartLimits,
    /// Time without a session after which the actors of a workspace stop.
    pub idle_workspace: Duration,
    /// Thresholds below which ACP is degraded.
    pub window: WindowRules,
    /// Steps by which a workspace returns to ACP.
    pub recovery: RecoveryRules,
    /// Names of the variables that each agent (`""` is the default one) gets by configuration.
    pub variables: BTreeMap<String, Vec<String>>,
    /// Settings for turning an agent's changes into pull requests.
    pub github: Github,
    /// Repositories that are never automated; a reload replaces them.
    pub blocked_repositories: Reloadable<Vec<String>>,
    /// Events held for replay, per session.
    pub replay_events: usize,
    /// Bytes of events held for replay, per session.
    pub replay_bytes: usize,
    /// Largest workspace on disk, in bytes; 0: no limit.
    pub workspace_bytes: u64,
    /// Limits of the bytes of transcripts.
    pub transcripts: TranscriptLimits,
    /// Agent messages after which the transcript is persisted, so that the runtime can drop its copies.
    pub settle_messages: u64,
    /// Bytes of agent messages after which the transcript is persisted.
    pub settle_bytes: usize,
}

/// The variables in `agent.env` and `agent.inherit_env` of each agent.
fn variables(config: &Config) -> BTreeMap<String, Vec<String>> {
    let agents = config.agents.iter().map(|(name, agent)| (name.clone(), agent));
    let agents = agents.chain([(String::new(), &config.agent)]);
    agents.map(|(name, agent)| (name, agent.env.keys().chain(&agent.inherit_env).cloned().collect())).collect()
}

impl SessionSettings {
    /// Adds the names of the variables with credentials of an agent to the failure that a bad key causes.
    pub(crate) fn name_credentials(&self, agent: Option<&str>, failure: Failure) -> Failure {
        name_credentials(failure, self.variables.get(agent.unwrap_or_default()).map_or(&[], Vec::as_slice))
    }

    pub(crate) fn new(config: &Config) -> Self {
        Self {
            inactivity_timeout: config.turn.inactivity_timeout(),
            cancel_grace: config.turn.cancel_grace(),
            idle_timeout: Duration::from_secs(config.session.idle_timeout_s),
            background: BackgroundLimits {
                silence: config.turn.inactivity_timeout(),
                longest: Duration::from_secs(config.session.background_max_s),
                quiet: Duration::from_secs(config.turn.quiet_s),
                quiet_max: Duration::from_secs(config.turn.quiet_max_s),
            },
            permission_timeout: Duration::from_secs(config.permission.timeout_s),
            default_policy: config.permission.policy,
            ceilings: config.ceilings.rules(),
            stuck_after: Duration::from_secs(config.database.patience_s) + STUCK_MARGIN,
            database_patience: Duration::from_secs(config.database.patience_s),
            restart: RestartLimits {
                max_restarts: config.supervision.max_restarts,
                within: Duration::from_secs(config.supervision.within_s),
            },
            idle_workspace: Duration::from_secs(config.supervision.idle_workspace_s),
            window: config.window.rules(),
            recovery: config.recovery.rules(),
            variables: variables(config),
            github: config.github.clone(),
            blocked_repositories: Reloadable::new(config.github.blocked_repositories.clone()),
            replay_events: config.limits.replay_events,
            replay_bytes: config.limits.replay_bytes,
            workspace_bytes: config.workspaces.max_bytes,
            transcripts: TranscriptLimits::new(
                config.limits.transcript_turn_bytes as u64,
                config.limits.transcript_session_bytes as u64,
            ),
            // A quarter of the runtime's replay buffer: the agent waits for us only when the disk is slow.
            settle_messages: (config.runtime.replay_frames as u64 / 4).max(1),
            settle_bytes: (config.runtime.replay_bytes / 4).max(1),
        }
    }
}
