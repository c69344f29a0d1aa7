//! The container side: prepares workspaces and runs agents, either one process per connection for ACP over WebSocket,
//! or one process per turn for the HTTP fallback.
//!
//! Invariants:
//! - An agent process lives exactly as long as its turn (HTTP) or its connection (ACP). A resumable connection
//!   outlives a broken socket by `[runtime] reconnect_grace_s`.
//! - The files that the runtime reads and writes for an agent, and the working directories of the commands that it
//!   starts for an agent, are inside the folders of that agent's sessions.

pub(crate) mod agents;
mod automation;
pub(crate) mod conversations;
pub(crate) mod fallback;
mod preparing;
pub(crate) mod reply;
mod routes;
pub(crate) mod socket;
pub(crate) mod workspaces;

use std::{
    any::Any,
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    net::{SocketAddr, TcpListener},
    os::{fd::AsRawFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use actix_web::{App, HttpServer, dev::ServerHandle, rt::net::TcpStream, web::ServiceConfig};
use secrecy::{ExposeSecret, SecretString};
use tokio::{sync::watch, task::JoinHandle};

use self::{
    agents::{AgentLimits, Agents},
    conversations::Conversations,
    fallback::{Fallback, FallbackSettings, LineLimits},
    routes::{RuntimeState, Strangers},
    socket::SocketSettings,
    workspaces::{WorkspaceSettings, Workspaces, diff::DiffLimits, folders::AllowedFolders, git::Git},
};
pub(crate) use self::{
    agents::{AgentSettings, NamedSecrets, requests::ServedRequests},
    conversations::conversation::Retention,
};
use crate::{
    config::{DEFAULT_AGENT, Reloadable, ReloadableSecret},
    contract::keep_alive::SERVER_KEEP_ALIVE,
    domain::{
        heartbeat::Heartbeat,
        jail::{self, JailMode, JailRefusal, KernelRights, limits::ControlGroupState},
    },
    github::{Github, GithubLimits},
    process::{
        group,
        inherited::Inherited,
        sandbox::{OwnPaths, Sandbox, kernel, without_links},
        stdio::StdioLimits,
        user::RunAsError,
    },
    telemetry::{Metrics, watchdog::Watchdog},
    transport::pipe::PipeLimits,
};

/// Time that sent bytes may stay unacknowledged, or unsent because the client does not read, before the kernel drops
/// the TCP connection.
///
/// A socket actor is polled only while its client reads, so nothing else would close the socket of a client that
/// stopped reading. Equals the silence limit of [`Heartbeat::ACP`]: the runtime pings at most 5 s after the peer
/// vanished, so the socket is closed within 13 s whether or not its actor runs.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(8);
/// Time that the HTTP server gets to complete responses in progress after every socket is closed.
const SERVER_STOP: Duration = Duration::from_secs(5);
/// Time between closing the sockets and the exit of the last agent, in addition to the kill grace of the agents.
const STOP_MARGIN: Duration = Duration::from_secs(2);

/// Configuration of a runtime, fixed at its start.
#[derive(Clone)]
pub(crate) struct RuntimeOptions {
    /// Address to listen on. Port 0 selects a free port. A non-loopback address requires a token.
    pub listen: SocketAddr,
    /// Bearer token that clients must send; `None` accepts requests without one.
    pub token: Option<SecretString>,
    /// Number of threads that serve connections; 0 means 1.
    pub workers: usize,
    /// Folder that contains the workspaces; created if missing.
    pub root: PathBuf,
    /// Folders that sessions may use besides the workspaces, including everything below them.
    pub allow_paths: Vec<PathBuf>,
    /// Hosts from which repositories may be cloned, each with an optional port.
    pub git_hosts: Vec<String>,
    /// Time limit of a clone.
    pub clone_timeout: Duration,
    /// Configured agents; the first is the default.
    pub agents: Vec<AgentSettings>,
    /// The paths of this program.
    pub own: OwnPaths,
    /// The address on which the program serves; without file rules of the jail it must be loopback.
    pub serves_on: SocketAddr,
    /// Limits with which this process was started; agents get them back.
    pub inherited: Inherited,
    /// Environment of git and of the commands that agents run through `terminal/*`.
    pub environment: BTreeMap<String, SecretString>,
    /// The secrets that MCP servers get by name.
    pub secrets: NamedSecrets,
    /// Largest number of concurrent agent processes.
    pub max_agents: usize,
    /// Time between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
    /// Largest message to or from an agent, in bytes.
    pub frame_bytes: usize,
    /// True if ACP over WebSocket is offered; otherwise only the HTTP fallback is.
    pub acp: bool,
    /// Queue limits for each direction of a connection.
    pub pipe: PipeLimits,
    pub diff: DiffLimits,
    /// Largest number of concurrent `terminal/*` commands of one agent.
    pub terminals: usize,
    /// Reconnect grace of a disconnected client, and the limits of what is kept for it.
    pub retention: Retention,
    /// Intervals by which a dead client is detected.
    pub heartbeat: Heartbeat,
    /// Metrics of this process, rendered by `GET /metrics`.
    pub metrics: Metrics,
}

/// Reason that a runtime failed to start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The address is not loopback and no token is set.
    #[error(
        "`runtime.listen` = {0} is reachable from other machines: set `runtime.token`, or listen on 127.0.0.1. \
         Anyone who can connect to the runtime can run commands"
    )]
    NoToken(SocketAddr),
    /// Binding the address failed, for instance because it is in use or does not belong to this machine.
    #[error("`runtime.listen` = {address}: {cause}")]
    Listen { address: SocketAddr, cause: io::Error },
    /// The root or an allowed path is missing or inaccessible.
    #[error("`[workspaces]`: {0}")]
    Folders(io::Error),
    /// The user that an agent runs as is unknown, or the runtime does not run as root.
    #[error(transparent)]
    RunAs(#[from] RunAsError),
    /// The agents cannot be confined as the settings demand.
    #[error(transparent)]
    Jail(#[from] JailRefusal),
    /// Preparing process groups or a blocking task of the start failed.
    #[error("the runtime's start was interrupted: {0}")]
    Interrupted(String),
}

/// A running runtime. Call [`RunningRuntime::stop`] to end its agents before the process exits.
pub(crate) struct RunningRuntime {
    address: SocketAddr,
    agents: Arc<Agents>,
    stop: watch::Sender<bool>,
    kill_grace: Duration,
    token: ReloadableSecret,
    /// HTTP server of this runtime; `None` if the routes are served by another server.
    server: Option<(ServerHandle, JoinHandle<io::Result<()>>)>,
}

/// Listener and routes of a runtime that is served on the threads of another server.
pub(crate) struct EmbeddedRuntime {
    /// Bound listener on which the other server must serve the routes.
    pub listener: TcpListener,
    state: RuntimeState,
}

impl EmbeddedRuntime {
    /// Returns a function that adds the routes to an application. Call it once per server thread.
    pub(crate) fn routes(&self) -> impl Fn(&mut ServiceConfig) + Clone + Send + use<> {
        let state = self.state.clone();
        move |config| routes::configure(state.clone())(config)
    }
}

/// Prepares a runtime whose routes the caller serves on its own threads. Clients can connect at once and are
/// answered when the caller starts to serve.
///
/// Used by `serve` with an embedded runtime: supervisor and runtime exchange several messages per turn, and separate
/// threads would cost a thread wake-up for each.
///
/// # Errors
/// Any [`StartError`]; nothing is left running.
pub(crate) async fn beside(options: RuntimeOptions) -> Result<(RunningRuntime, EmbeddedRuntime), StartError> {
    let listen = options.listen;
    let kill_grace = options.kill_grace;
    let refused = |cause| StartError::Listen { address: listen, cause };
    let listener = TcpListener::bind(listen).map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    let (stop, state) = ready(options, None).await?;
    let agents = state.sockets.agents.clone();
    let token = state.token.clone();
    let running = RunningRuntime { address, agents, stop, kill_grace, token, server: None };
    Ok((running, EmbeddedRuntime { listener, state }))
}

async fn ready(
    options: RuntimeOptions,
    watchdog: Option<Watchdog>,
) -> Result<(watch::Sender<bool>, RuntimeState), StartError> {
    let listen = options.listen;
    if !listen.ip().is_loopback() && options.token.as_ref().is_none_or(|token| token.expose_secret().is_empty()) {
        return Err(StartError::NoToken(listen));
    }
    Inherited::raise_open_files();
    let metrics = options.metrics.clone();
    let report = Box::new(move |processes| metrics.agent_processes_left(processes));
    let groups = group::prepare(report).map_err(|cause| StartError::Interrupted(cause.to_string()))?;
    let (stop, stopping) = watch::channel(false);
    let state = tokio::task::spawn_blocking(move || build(options, groups, stopping, watchdog))
        .await
        .map_err(|cause| StartError::Interrupted(cause.to_string()))??;
    Ok((stop, state))
}

/// Starts a runtime with its own HTTP server, whose threads `watchdog` monitors. Must be called inside an actix or
/// tokio runtime. Installs no signal handlers.
///
/// # Errors
/// Any [`StartError`]; nothing is left running.
pub(crate) async fn start(options: RuntimeOptions, watchdog: Option<Watchdog>) -> Result<RunningRuntime, StartError> {
    let (listen, kill_grace, workers) = (options.listen, options.kill_grace, options.workers.max(1));
    let (stop, state) = ready(options, watchdog.clone()).await?;
    let (agents, token) = (state.sockets.agents.clone(), state.token.clone());
    let refused = |cause| StartError::Listen { address: listen, cause };
    let server = HttpServer::new(move || {
        // Socket actors run on these threads, so a blocked thread would stall every socket on it.
        watchdog
            .as_ref()
            .and_then(|watchdog| watchdog.heartbeats_of_this_thread(tokio::time::sleep))
            .map(actix::spawn);
        App::new().configure(routes::configure(state.clone()))
    })
    .workers(workers)
    .keep_alive(SERVER_KEEP_ALIVE)
    .on_connect(|connection: &dyn Any, _| {
        if let Some(stream) = connection.downcast_ref::<TcpStream>() {
            tune(stream);
        }
    })
    .disable_signals()
    .shutdown_timeout(SERVER_STOP.as_secs())
    .bind(listen)
    .map_err(refused)?;
    let address = server.addrs().first().copied().unwrap_or(listen);
    let server = server.run();
    let handle = server.handle();
    let server = tokio::spawn(server);
    Ok(RunningRuntime { address, agents, stop, kill_grace, token, server: Some((handle, server)) })
}

impl RunningRuntime {
    /// Bound address, with the real port if port 0 was configured.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The token that clients must send.
    pub(crate) fn token(&self) -> &ReloadableSecret {
        &self.token
    }

    /// Number of agent processes, including those that are exiting.
    #[cfg(test)]
    pub(crate) fn agent_processes(&self) -> usize {
        self.agents.running()
    }

    /// Closes every socket with 1001, ends the process group of every agent, then stops the server.
    ///
    /// Waits for the longer of `grace` and the agents' kill grace, plus [`STOP_MARGIN`]; agents that are left then
    /// get one more kill grace while the server drops their connections.
    ///
    /// # Cancel safety
    /// Not cancel-safe: if the future is dropped early, the server keeps running.
    pub(crate) async fn stop(self, grace: Duration) {
        // Sending fails only if there is no receiver, and then there is no socket and no turn to stop.
        let _ = self.stop.send(true);
        let patience = grace.max(self.kill_grace) + STOP_MARGIN;
        if tokio::time::timeout(patience, self.agents.all_exited()).await.is_err() {
            // A client that does not read keeps its socket from closing; the server drops it below.
            tracing::warn!(agents = self.agents.running(), "agents still running after the stop grace");
        }
        if let Some((handle, _)) = &self.server {
            handle.stop(self.agents.running() == 0).await;
        }
        let left = tokio::time::timeout(self.kill_grace + STOP_MARGIN, self.agents.all_exited()).await;
        if left.is_err() {
            tracing::error!(agents = self.agents.running(), "agents still running after the runtime stopped");
        }
        if let Some((_, server)) = self.server {
            server.abort();
        }
        let agents = self.agents;
        let removed = tokio::task::spawn_blocking(move || agents.remove_temporary_files()).await;
        if let Err(cause) = removed {
            tracing::warn!(%cause, "temporary files of agents were not removed");
        }
    }
}

/// The environment of processes that are not agents.
fn exposed(environment: &BTreeMap<String, SecretString>) -> BTreeMap<String, OsString> {
    environment.iter().map(|(name, value)| (name.clone(), OsString::from(value.expose_secret()))).collect()
}

/// git for baselines and diffs, confined unless an agent is not.
fn git(agents: &[AgentSettings], environment: BTreeMap<String, OsString>, sandbox: Sandbox) -> Git {
    let git = Git::new(environment);
    match agents.iter().all(|agent| agent.jail.mode != JailMode::Off) {
        true => git.confined_by(sandbox),
        false => git,
    }
}

fn build(
    options: RuntimeOptions,
    control_groups: ControlGroupState,
    stopping: watch::Receiver<bool>,
    watchdog: Option<Watchdog>,
) -> Result<RuntimeState, StartError> {
    let folders =
        AllowedFolders::new(&options.root, &options.allow_paths, &options.own.hidden).map_err(StartError::Folders)?;
    let sandbox = sandbox(&options, &folders)?;
    let has_other_users = options.agents.iter().any(|agent| agent.run_as.is_some());
    if has_other_users {
        open_to_other_users(folders.root(), &options.own.hidden).map_err(StartError::Folders)?;
    }
    let environment = exposed(&options.environment);
    let limits = AgentLimits {
        max_agents: options.max_agents,
        kill_grace: options.kill_grace,
        stdio: StdioLimits { frame_bytes: options.frame_bytes, pipe: options.pipe },
        terminals: options.terminals,
        terminal_environment: environment.iter().map(|(name, value)| (name.into(), value.clone())).collect(),
    };
    let conversations = Arc::new(Conversations::new(
        options.retention,
        options.heartbeat.silence,
        options.max_agents,
        options.metrics.clone(),
        stopping.clone(),
    ));
    let git = git(&options.agents, environment, sandbox.clone());
    let agents = Arc::new(Agents::new(
        options.agents,
        limits,
        folders.clone(),
        (sandbox, control_groups),
        options.secrets,
        options.metrics.clone(),
    )?);
    agents.announce_jail();
    let fallback = FallbackSettings {
        grace: options.retention.grace,
        lines: LineLimits { lines: options.retention.frames, bytes: options.retention.bytes },
        frame_bytes: options.frame_bytes,
    };
    let fallback = Arc::new(Fallback::new(agents.clone(), fallback, stopping.clone()));
    let settings = WorkspaceSettings {
        git_hosts: options.git_hosts,
        clone_timeout: options.clone_timeout,
        diff: options.diff,
        has_other_users,
        metrics: options.metrics.clone(),
    };
    let sockets = SocketSettings {
        agents,
        conversations,
        stopping,
        frame_bytes: options.frame_bytes,
        heartbeat: options.heartbeat,
    };
    Ok(RuntimeState {
        token: Reloadable::new(options.token),
        sockets,
        workspaces: Arc::new(Workspaces::new(folders, git, settings).map_err(StartError::Folders)?),
        github: Github::new(GithubLimits::default()),
        fallback,
        acp: options.acp,
        metrics: options.metrics,
        watchdog,
        strangers: Strangers::new(),
    })
}

/// Lets other users pass through the root of the workspaces, and through the folder of this program that contains it, to
/// the workspaces of their agents. They can list neither.
fn open_to_other_users(root: &Path, own: &[PathBuf]) -> io::Result<()> {
    let around = own.iter().map(|own| without_links(own)).filter(|own| own.is_dir() && root.starts_with(own));
    for folder in around.chain([root.to_owned()]) {
        let mode = fs::metadata(&folder)?.permissions().mode();
        fs::set_permissions(&folder, fs::Permissions::from_mode(mode | 0o011))?;
    }
    Ok(())
}

/// Finds what the kernel offers for the jail of the agents.
///
/// # Errors
/// An agent must not run without a jail here.
fn sandbox(options: &RuntimeOptions, folders: &AllowedFolders) -> Result<Sandbox, StartError> {
    let rights = kernel::detect().unwrap_or_else(|cause| {
        tracing::warn!(%cause, "Landlock does not work here");
        KernelRights::default()
    });
    let section = |agent: &AgentSettings| match agent.name.as_str() {
        DEFAULT_AGENT => "agent".to_owned(),
        name => format!("agents.{name}"),
    };
    let modes: Vec<_> = options.agents.iter().map(|agent| (section(agent), agent.jail.mode)).collect();
    let modes = modes.iter().map(|(section, mode)| (section.as_str(), *mode));
    jail::check_start(modes, rights, options.serves_on.ip().is_loopback())?;
    Sandbox::new(rights, options.inherited, folders.root(), &options.own).map_err(StartError::Folders)
}

/// Disables Nagle's algorithm, because messages are small and their senders wait for the answer, and sets
/// [`TCP_USER_TIMEOUT`], so that the kernel detects a dead peer.
pub(crate) fn tune(stream: &TcpStream) {
    // Best effort: without TCP_NODELAY messages are slower, not wrong.
    let _ = stream.set_nodelay(true);
    crate::transport::socket::websocket::set_user_timeout(stream.as_raw_fd(), TCP_USER_TIMEOUT);
}
