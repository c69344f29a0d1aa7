//! The container side: a separate runtime, or one embedded on a loopback port, and the transports to it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use super::AppError;
use crate::{
    config::{
        Config, DEFAULT_AGENT, Loaded, Reloadable, ReloadableSecret, environment::current_program, sections::Agent,
    },
    domain::{
        heartbeat::Heartbeat,
        jail::{limits::ResourceLimits, pool::UserPool},
    },
    process::{
        inherited::Inherited,
        sandbox::{JailSettings, OwnPaths, PrivateHomes},
    },
    runtime::{
        self, AgentSettings, EmbeddedRuntime, NamedSecrets, Retention, RunningRuntime, RuntimeOptions,
        ServedRequests, workspaces::diff::DiffLimits,
    },
    telemetry::Metrics,
    transport::{
        HandshakeTimeouts,
        acp::AcpTransport,
        http::{FallbackLimits, HttpFallback},
        pipe::PipeLimits,
        socket::websocket::{Endpoint, ResumeLimits},
    },
};

/// The runtime that this process uses.
pub(super) struct RuntimeHandle {
    /// `None` where the runtime is separate.
    running: Option<RunningRuntime>,
    kill_grace: Duration,
    /// The secrets that MCP servers get by name, of an embedded runtime.
    pub(super) secrets: Option<NamedSecrets>,
}

/// Connects to the configured runtime, or starts one on a loopback port that no other process can use: its token is
/// random and never leaves this process. Also gives the routes of an embedded runtime, which the API server serves.
pub(super) async fn start_runtime(
    loaded: &Loaded,
    inherited: Inherited,
    has_tenants: Arc<AtomicBool>,
    metrics: &Metrics,
) -> Result<(RuntimeHandle, Option<EmbeddedRuntime>, Endpoint), AppError> {
    let config = &loaded.config;
    let endpoint = |url: String, token| Endpoint {
        url,
        token: ReloadableSecret::new(token),
        frame_bytes: config.limits.frame_bytes,
        pipe: pipe_limits(config),
        resume: ResumeLimits {
            grace: Duration::from_secs(config.runtime.reconnect_grace_s),
            frames: config.runtime.replay_frames,
            bytes: config.runtime.replay_bytes,
        },
        heartbeat: Heartbeat::ACP,
    };
    let kill_grace = kill_grace(config);
    if let Some(url) = &config.runtime.url {
        let endpoint = endpoint(url.clone(), config.runtime.token.clone());
        return Ok((RuntimeHandle { running: None, kill_grace, secrets: None }, None, endpoint));
    }
    let token = SecretString::from(format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple()));
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let place = Place {
        listen,
        serves_on: config.server.listen,
        is_separate: false,
        has_tenants: Some(has_tenants),
        inherited,
    };
    let options = runtime_options(loaded, place, Some(token.clone()), metrics)?;
    let secrets = Some(options.secrets.clone());
    let (running, embedded) = runtime::beside(options).await?;
    let url = format!("ws://{}/acp", running.address());
    Ok((RuntimeHandle { running: Some(running), kill_grace, secrets }, Some(embedded), endpoint(url, Some(token))))
}

impl RuntimeHandle {
    /// True if the runtime is part of this process, so that its agents died with the last one.
    pub(super) fn is_embedded(&self) -> bool {
        self.running.is_some()
    }

    /// Ends the agents of an embedded runtime: SIGTERM, and SIGKILL after `[runtime] kill_grace_ms`.
    pub(super) async fn stop(self) {
        if let Some(running) = self.running {
            running.stop(self.kill_grace).await;
        }
    }
}

/// From SIGTERM to SIGKILL of an agent.
pub(super) fn kill_grace(config: &Config) -> Duration {
    Duration::from_millis(config.runtime.kill_grace_ms)
}

/// Worker threads of the runtime: half of the processors; the other half serves HTTP and sessions.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

/// The two transports: ACP over one WebSocket per session, and the fallback over one HTTP request per turn.
pub(super) fn transports(config: &Config, endpoint: Endpoint) -> Result<(AcpTransport, HttpFallback), AppError> {
    let auth_methods = config.agents.iter().map(|(name, agent)| (name.clone(), agent.auth_method.clone()));
    let auth_methods = auth_methods.chain([(String::new(), config.agent.auth_method.clone())]);
    let auth_methods: BTreeMap<_, _> = auth_methods.filter_map(|(name, method)| Some((name, method?))).collect();
    let handshake_timeouts = handshake_timeouts(config);
    let limits = FallbackLimits {
        inactivity_timeout: config.turn.inactivity_timeout(),
        cancel_grace: config.turn.cancel_grace(),
        handshake_timeouts: handshake_timeouts.clone(),
        reconnect_grace: Duration::from_secs(config.runtime.reconnect_grace_s),
        frame_bytes: config.limits.frame_bytes,
        queue_bytes: config.limits.queue_bytes,
        auth_methods: auth_methods.clone(),
    };
    let fallback = HttpFallback::new(&endpoint.url, endpoint.token.clone(), limits)?;
    Ok((AcpTransport { endpoint, handshake_timeouts, auth_methods }, fallback))
}

fn handshake_timeouts(config: &Config) -> HandshakeTimeouts {
    let named = config.agents.iter().map(|(name, agent)| (name.clone(), agent.handshake_timeout_s));
    let all = named.chain([(String::new(), config.agent.handshake_timeout_s)]);
    HandshakeTimeouts {
        default: Duration::from_secs(config.runtime.handshake_timeout_s),
        by_agent: all.filter_map(|(name, seconds)| Some((name, Duration::from_secs(seconds?)))).collect(),
    }
}

fn pipe_limits(config: &Config) -> PipeLimits {
    PipeLimits { frames: config.limits.queue_frames, bytes: config.limits.queue_bytes }
}

/// Process in which a runtime runs.
pub(super) struct Place {
    /// The runtime's own address.
    pub listen: SocketAddr,
    /// The address by which callers reach the agents.
    pub serves_on: SocketAddr,
    /// True if the supervisor is another process.
    pub is_separate: bool,
    /// True once tenants have tokens; absent if the supervisor is another process.
    pub has_tenants: Option<Arc<AtomicBool>>,
    pub inherited: Inherited,
}

/// The runtime's part of the configuration.
pub(super) fn runtime_options(
    loaded: &Loaded,
    place: Place,
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
            jail: jail_of(agent, &place),
            name,
        })
    });
    let root = config.workspaces.root.clone().unwrap_or_else(|| loaded.data_dir.join("workspaces"));
    Ok(RuntimeOptions {
        listen: place.listen,
        token,
        workers: threads(),
        root,
        allow_paths: config.workspaces.allow_paths.clone(),
        git_hosts: config.workspaces.git_hosts.clone(),
        clone_timeout: Duration::from_secs(config.workspaces.clone_timeout_s),
        agents: agents.collect::<Result<_, AppError>>()?,
        own: OwnPaths {
            hidden: loaded.own_files.clone(),
            temporary: temporary(loaded),
            program: current_program().ok(),
        },
        serves_on: place.serves_on,
        inherited: place.inherited,
        environment: loaded.base_environment.clone(),
        secrets: Reloadable::new(config.secrets.clone()),
        max_agents: config.runtime.max_agents,
        kill_grace: Duration::from_millis(config.runtime.kill_grace_ms),
        frame_bytes: config.limits.frame_bytes,
        acp: config.runtime.acp,
        pipe: pipe_limits(config),
        diff: DiffLimits { patch_bytes: config.limits.diff_bytes, file_bytes: config.limits.diff_file_bytes },
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

fn jail_of(agent: &Agent, place: &Place) -> JailSettings {
    // The users of a pool have no `HOME` of their own.
    let is_private = |one_domain| agent.home.is_private(one_domain, agent.env.contains_key("HOME"));
    let has_pool = agent.run_as.as_deref().is_some_and(UserPool::is_meant);
    JailSettings {
        mode: agent.jail,
        preset: agent.preset,
        read: agent.read.clone(),
        write: agent.write.clone(),
        ports: agent.ports.clone(),
        limits: ResourceLimits {
            processes: agent.max_processes,
            memory_bytes: agent.max_memory_bytes,
            cpu_percent: agent.max_cpu_percent,
        },
        private_homes: match (has_pool || is_private(!place.is_separate), is_private(false), &place.has_tenants) {
            (true, ..) => PrivateHomes::Always,
            (false, true, Some(flag)) => PrivateHomes::Once(flag.clone()),
            (false, ..) => PrivateHomes::Never,
        },
    }
}

/// The folder for temporary files of this process.
fn temporary(loaded: &Loaded) -> PathBuf {
    let named = loaded.base_environment.get("TMPDIR").map(|path| PathBuf::from(path.expose_secret()));
    named.filter(|path| path.is_absolute()).unwrap_or_else(|| "/tmp".into())
}

/// An agent's command; the built-in agent is this program.
fn command_of(agent: &Agent) -> Result<Vec<String>, AppError> {
    if !agent.command.is_empty() {
        return Ok(agent.command.clone());
    }
    let program = current_program().map_err(AppError::io("the path of this program"))?;
    Ok(vec![program.display().to_string(), "demo-agent".to_owned()])
}
