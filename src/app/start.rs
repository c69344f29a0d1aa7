//! From a configuration to a service.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use secrecy::SecretString;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::{AppError, database_url, hold, make_data_dir, webhooks::webhooks};
use crate::{
    actors::{
        handles::{capacity_guard::CapacityGuard, index::SessionIndex, rollback_storm::Storm, session_progress},
        migrations::Migrations,
        notifications::{NotificationHub, hub::HubServices, webhook::WebhookStop},
        services::{Services, SessionSettings},
        session::adoption,
        upkeep::{
            capacity::CapacityWatch,
            keeper::Keeper,
            retention::{self, Ages},
        },
        workspaces::{DEFAULT_AGENT, Workspaces},
    },
    config::{Config, Loaded, environment::current_program, sections::Agent},
    domain::{clock::Clock, heartbeat::Heartbeat, watchdog::WatchdogLimits},
    http::{self, ApiState, EmbeddedListener, RunningHttp},
    runtime::{self, AgentSettings, EmbeddedRuntime, Retention, RunningRuntime, RuntimeOptions, ServedRequests},
    store::{DatabaseUrl, Store, StoreOptions},
    telemetry::{Metrics, SystemClock, watchdog::Watchdog},
    transport::{
        acp::AcpTransport,
        http::{FallbackLimits, HttpFallback, client::WorkspaceClient},
        pipe::PipeLimits,
        socket::websocket::{Endpoint, ResumeLimits},
    },
};

/// Everything that runs.
pub(crate) struct Service {
    pub(super) config: Config,
    pub(super) http: RunningHttp,
    pub(super) workspaces: Workspaces,
    pub(super) toasts: NotificationHub,
    pub(super) runtime: Option<RunningRuntime>,
    pub(super) store: Store,
    pub(super) sweep: JoinHandle<()>,
    pub(super) retention: JoinHandle<()>,
    pub(super) capacity: JoinHandle<()>,
    pub(super) migrations: JoinHandle<()>,
    /// Posts what operators are told, where that is configured.
    pub(super) webhooks: (WebhookStop, Option<JoinHandle<()>>),
    /// Goes last: until then nobody else may use the database.
    _held: Option<std::fs::File>,
}

impl Service {
    /// Starts every part, the ones first that others need.
    pub(crate) async fn start(loaded: &Loaded) -> Result<Self, AppError> {
        let config = &loaded.config;
        make_data_dir(loaded)?;
        let url = database_url(loaded)?;
        let held = hold(&url)?;
        let metrics = Metrics::new(env!("CARGO_PKG_VERSION"), option_env!("LUMILINK_COMMIT"))?;
        let watching = Watchdog::watch(WatchdogLimits::default(), metrics.clone());
        let watchdog = watching.map_err(AppError::io("the watchdog's thread"))?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let store = open_store(url, loaded, metrics.clone())?;
        let (telemetry, source) = session_progress::telemetry(metrics.clone());
        let (runtime, face, endpoint) = runtime_of(loaded, &metrics).await?;
        let clone_timeout = Duration::from_secs(config.workspaces.clone_timeout_s);
        let workspace_client = WorkspaceClient::new(&endpoint.url, endpoint.token.clone(), clone_timeout)?;
        let (acp, http) = transports(config, endpoint)?;
        let storm = Storm::take_up(store.clone(), metrics.clone(), clock.clone()).await?;
        let services = Services {
            store: store.clone(),
            metrics,
            acp: Arc::new(acp),
            http: Arc::new(http),
            clock,
            index: SessionIndex::default(),
            storm,
            telemetry,
            settings: SessionSettings::new(config),
        };
        let services = Arc::new(services);
        let guard = CapacityGuard::new(config.capacity.rules(), services.metrics.clone());
        let watch = CapacityWatch::take_up(guard.clone(), services.clone()).await?;
        let workspaces = Workspaces::new(services.clone(), workspace_client, guard);
        pick_up(&workspaces, runtime.is_none()).await?;
        let capacity = actix::spawn(watch.run());
        // What was picked up lives on this thread.
        watchdog.heartbeats_of_this_thread(tokio::time::sleep).map(actix::spawn);
        let max_age = Duration::from_secs(config.session.max_age_s);
        let sweep = actix::spawn(retention::sweep_expired(services.clone(), max_age));
        let ages = Ages::new(&config.retention, &services.settings.window);
        let retention = actix::spawn(retention::sweep(services, ages));
        let beside =
            face.map(|face| EmbeddedListener { routes: face.routes(), listener: face.listener, tune: runtime::tune });
        // Only a SQLite database is held for this process alone.
        let migrations = Migrations::new(workspaces.clone(), held.is_some(), config.migration.auto_look());
        let webhooks = webhooks(&config.webhook, workspaces.services())?;
        let keeper = Keeper::new(workspaces.services());
        let hub = HubServices::new(store.clone(), source, held.is_none());
        let toasts = NotificationHub::start(hub, keeper.clone(), config.notifications.max_subscribers);
        let faces =
            ApiState { workspaces: workspaces.clone(), migrations: migrations.clone(), toasts: toasts.clone() };
        let http = http::serve(faces, config, watchdog, beside)
            .map_err(AppError::io(format!("server.listen {}", config.server.listen)))?;
        let migrations = actix::spawn(migrations.run());
        let stop = WebhookStop::default();
        let webhooks = (stop.clone(), webhooks.map(|webhooks| webhooks.start(stop, keeper)));
        tracing::info!(marker = "[ACP]", address = %http.address, embedded_runtime = runtime.is_some(), "serves");
        let config = config.clone();
        Ok(Self {
            config,
            http,
            workspaces,
            toasts,
            runtime,
            store,
            sweep,
            retention,
            capacity,
            migrations,
            webhooks,
            _held: held,
        })
    }

    /// Where the API is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.http.address
    }
}

/// Brings what the last stop left in order: turns whose agents still work go on, where there is a separate runtime
/// that kept them; the others are interrupted.
async fn pick_up(workspaces: &Workspaces, may_go_on: bool) -> Result<(), AppError> {
    let services = workspaces.services();
    let mut unfinished = services.store.unfinished().await?;
    let found = if may_go_on { adoption::find_again(services, unfinished.clone()).await } else { Vec::new() };
    let mut kept = Vec::new();
    for found in found {
        let session_id = found.session.session_id;
        match workspaces.go_on(found).await {
            Ok(()) => kept.push(session_id),
            Err(cause) => tracing::warn!(marker = "[ACP]", %session_id, %cause, "a turn does not go on"),
        }
    }
    unfinished.retain(|one| !kept.contains(&one.session.session_id));
    let results = adoption::results_of_interrupted(services, &unfinished).await?;
    let recovered = services.store.recover(services.clock.now(), &kept, results).await?;
    tracing::info!(
        marker = "[ACP]",
        turns = recovered.interrupted_turns,
        sessions = recovered.sessions,
        went_on = kept.len(),
        "recovered"
    );
    Ok(())
}

/// Threads of the runtime: half of the processors, since the other half serves HTTP and sessions.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

fn open_store(url: DatabaseUrl, loaded: &Loaded, metrics: Metrics) -> Result<Store, AppError> {
    let options = StoreOptions {
        url,
        readers: StoreOptions::DEFAULT_READERS,
        write_queue: loaded.config.limits.write_queue,
        patience: Duration::from_secs(loaded.config.database.patience_s),
        webhook: loaded.config.webhook.endpoint(),
    };
    Ok(Store::open(options, metrics)?)
}

/// The runtime to use: the configured one, or one that is started here on a loopback port that nobody else
/// can use, since its token is made up now and never leaves this process.
async fn runtime_of(
    loaded: &Loaded,
    metrics: &Metrics,
) -> Result<(Option<RunningRuntime>, Option<EmbeddedRuntime>, Endpoint), AppError> {
    let config = &loaded.config;
    let endpoint = |url: String, token| Endpoint {
        url,
        token,
        frame_bytes: config.limits.frame_bytes,
        pipe: pipe_limits(config),
        resume: ResumeLimits {
            grace: Duration::from_secs(config.runtime.reconnect_grace_s),
            frames: config.runtime.replay_frames,
            bytes: config.runtime.replay_bytes,
        },
        heartbeat: Heartbeat::ACP,
    };
    if let Some(url) = &config.runtime.url {
        return Ok((None, None, endpoint(url.clone(), config.runtime.token.clone())));
    }
    let token = SecretString::from(format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple()));
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let options = runtime_options(loaded, listen, Some(token.clone()), metrics)?;
    let (running, face) = runtime::beside(options).await?;
    let url = format!("ws://{}/acp", running.address());
    Ok((Some(running), Some(face), endpoint(url, Some(token))))
}

/// The two ways to agents: over one line for each session, and over one request for each turn.
fn transports(config: &Config, endpoint: Endpoint) -> Result<(AcpTransport, HttpFallback), AppError> {
    let auth_methods = config.agents.iter().map(|(name, agent)| (name.clone(), agent.auth_method.clone()));
    let auth_methods = auth_methods.chain([(String::new(), config.agent.auth_method.clone())]);
    let auth_methods: BTreeMap<_, _> = auth_methods.filter_map(|(name, method)| Some((name, method?))).collect();
    let handshake_timeout = Duration::from_secs(config.runtime.handshake_timeout_s);
    let limits = FallbackLimits {
        inactivity_timeout: config.turn.inactivity_timeout(),
        cancel_grace: config.turn.cancel_grace(),
        handshake_timeout,
        reconnect_grace: Duration::from_secs(config.runtime.reconnect_grace_s),
        frame_bytes: config.limits.frame_bytes,
        auth_methods: auth_methods.clone(),
    };
    let fallback = HttpFallback::new(&endpoint.url, endpoint.token.clone(), limits)?;
    Ok((AcpTransport { endpoint, handshake_timeout, auth_methods }, fallback))
}

fn pipe_limits(config: &Config) -> PipeLimits {
    PipeLimits { frames: config.limits.queue_frames, bytes: config.limits.queue_bytes }
}

/// The runtime's part of the configuration.
pub(super) fn runtime_options(
    loaded: &Loaded,
    listen: SocketAddr,
    token: Option<SecretString>,
    metrics: &Metrics,
) -> Result<RuntimeOptions, AppError> {
    let config = &loaded.config;
    let environment_of = |name: &str| loaded.agent_environments.get(name).cloned().unwrap_or_default();
    let default = [(DEFAULT_AGENT.to_owned(), &config.agent)];
    let named = config.agents.iter().map(|(name, agent)| (name.clone(), agent));
    let agents = default.into_iter().chain(named).map(|(name, agent)| {
        Ok(AgentSettings {
            command: command_of(agent)?,
            oneshot: agent.oneshot.clone(),
            environment: environment_of(&name),
            run_as: agent.run_as.clone(),
            serves: ServedRequests { fs: agent.fs, terminal: agent.terminal },
            name,
        })
    });
    let root = config.workspaces.root.clone().unwrap_or_else(|| loaded.data_dir.join("workspaces"));
    Ok(RuntimeOptions {
        listen,
        token,
        workers: threads(),
        root,
        allow_paths: config.workspaces.allow_paths.clone(),
        git_hosts: config.workspaces.git_hosts.clone(),
        clone_timeout: Duration::from_secs(config.workspaces.clone_timeout_s),
        agents: agents.collect::<Result<_, AppError>>()?,
        environment: loaded.base_environment.clone(),
        max_agents: config.runtime.max_agents,
        kill_grace: Duration::from_millis(config.runtime.kill_grace_ms),
        frame_bytes: config.limits.frame_bytes,
        body_bytes: config.limits.body_bytes,
        acp: config.runtime.acp,
        pipe: pipe_limits(config),
        diff_bytes: config.limits.diff_bytes,
        terminals: config.limits.terminals,
        retention: Retention {
            grace: Duration::from_secs(config.runtime.reconnect_grace_s),
            frames: config.runtime.replay_frames,
            bytes: config.runtime.replay_bytes,
        },
        heartbeat: Heartbeat::ACP,
        metrics: metrics.clone(),
    })
}

/// An agent's command; the built-in agent is this program.
fn command_of(agent: &Agent) -> Result<Vec<String>, AppError> {
    if !agent.command.is_empty() {
        return Ok(agent.command.clone());
    }
    let program = current_program().map_err(AppError::io("the path of this program"))?;
    Ok(vec![program.display().to_string(), "demo-agent".to_owned()])
}
