//! The container side: prepares workspaces, runs one agent process for each connection, and serves ACP over
//! WebSocket; or runs one for each turn, over HTTP alone.
//!
//! Invariant: an agent process lives exactly as long as its turn over HTTP, or its connection, which for a client that
//! asked for it outlives a broken socket by `[runtime] reconnect_grace_s`; and it reaches files and starts commands
//! through this side only within the folders of its sessions.

pub(crate) mod agents;
pub(crate) mod conversations;
pub(crate) mod fallback;
pub(crate) mod reply;
mod routes;
pub(crate) mod socket;
pub(crate) mod workspaces;

use std::{
    any::Any,
    collections::BTreeMap,
    ffi::OsString,
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsRawFd,
    path::PathBuf,
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
    routes::RuntimeState,
    socket::SocketSettings,
    workspaces::{WorkspaceSettings, Workspaces, folders::AllowedFolders, git::Git},
};
pub(crate) use self::{
    agents::{AgentSettings, requests::ServedRequests},
    conversations::conversation::Retention,
};
use crate::{
    domain::heartbeat::Heartbeat,
    process::{group, stdio::StdioLimits, user::RunAsError},
    telemetry::{Metrics, watchdog::Watchdog},
    transport::pipe::PipeLimits,
};

/// How long sent bytes may stay unacknowledged, or unsent because the client does not read, before the connection is
/// dropped. A socket actor is polled only while its client reads, so nothing else would end it. As long as the silence
/// of [`Heartbeat::ACP`]: a ping goes out at most 5 s after the peer vanished, so 13 s later its socket is gone,
/// whether or not its actor runs.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(8);
/// How long the HTTP server may take for answers that are under way once every socket is closed.
const SERVER_STOP: Duration = Duration::from_secs(5);
/// From the closing of the sockets to the end of the agents, beyond the grace of the agents themselves.
const STOP_MARGIN: Duration = Duration::from_secs(2);

/// Everything that a runtime is told at its start.
#[derive(Clone)]
pub(crate) struct RuntimeOptions {
    /// Address; port 0 takes a free one. Beyond loopback a token is required.
    pub listen: SocketAddr,
    /// Bearer token that clients have to send.
    pub token: Option<SecretString>,
    /// Threads that serve connections; 0 is taken as 1.
    pub workers: usize,
    /// Folder of the workspaces; made if missing.
    pub root: PathBuf,
    /// Folders under which existing folders may be used.
    pub allow_paths: Vec<PathBuf>,
    /// Hosts from which repositories are cloned.
    pub git_hosts: Vec<String>,
    /// How long a clone may take.
    pub clone_timeout: Duration,
    /// The agents; the first is the default one.
    pub agents: Vec<AgentSettings>,
    /// The environment of git and of the commands that agents run through `terminal/*`.
    pub environment: BTreeMap<String, SecretString>,
    /// Agent processes at the same time.
    pub max_agents: usize,
    /// From SIGTERM to SIGKILL.
    pub kill_grace: Duration,
    /// Largest ACP message, in bytes.
    pub frame_bytes: usize,
    /// Largest request for a turn of the fallback, in bytes.
    pub body_bytes: usize,
    /// Whether ACP over WebSocket is offered.
    pub acp: bool,
    /// What may wait in each direction of a connection.
    pub pipe: PipeLimits,
    /// Largest patch of a diff, in bytes.
    pub diff_bytes: usize,
    /// Commands that one agent may run at the same time.
    pub terminals: usize,
    /// For how long a client may be away, and what is kept for it.
    pub retention: Retention,
    /// How a dead client is noticed.
    pub heartbeat: Heartbeat,
    /// What `GET /metrics` gives.
    pub metrics: Metrics,
}

/// Why a runtime does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// Listening beyond loopback without a token.
    #[error(
        "`runtime.listen` = {0} is reachable from other machines: set `runtime.token`, or listen on 127.0.0.1. \
         Whoever reaches the runtime can run commands"
    )]
    NoToken(SocketAddr),
    /// The address is taken or not ours.
    #[error("`runtime.listen` = {address}: {cause}")]
    Listen { address: SocketAddr, cause: io::Error },
    /// The root or an allowed path cannot be used.
    #[error("`[workspaces]`: {0}")]
    Folders(io::Error),
    /// An agent's user cannot be used.
    #[error(transparent)]
    RunAs(#[from] RunAsError),
    /// A thread that was needed did not finish.
    #[error("the start was interrupted: {0}")]
    Interrupted(String),
}

/// A runtime that serves.
pub(crate) struct RunningRuntime {
    address: SocketAddr,
    agents: Arc<Agents>,
    stop: watch::Sender<bool>,
    kill_grace: Duration,
    /// Its own server; absent where it shares another one's threads.
    server: Option<(ServerHandle, JoinHandle<io::Result<()>>)>,
}

/// The face of a runtime that shares the threads of another server.
pub(crate) struct EmbeddedRuntime {
    /// Where it is to be reached.
    pub listener: TcpListener,
    state: RuntimeState,
}

impl EmbeddedRuntime {
    /// What adds the routes to an application; to be called on each thread.
    pub(crate) fn routes(&self) -> impl Fn(&mut ServiceConfig) + Clone + Send + use<> {
        let state = self.state.clone();
        move |config| routes::configure(state.clone())(config)
    }
}

/// Readies a runtime whose routes are to be served by the caller, on its threads. Nobody is answered before that.
/// For a supervisor with its runtime inside: the two talk to each other several times a turn, and on threads of
/// their own each time would wake a thread.
pub(crate) async fn beside(options: RuntimeOptions) -> Result<(RunningRuntime, EmbeddedRuntime), StartError> {
    let listen = options.listen;
    let kill_grace = options.kill_grace;
    let refused = |cause| StartError::Listen { address: listen, cause };
    let listener = TcpListener::bind(listen).map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    let (stop, state) = ready(options).await?;
    let agents = state.sockets.agents.clone();
    let running = RunningRuntime { address, agents, stop, kill_grace, server: None };
    Ok((running, EmbeddedRuntime { listener, state }))
}

async fn ready(options: RuntimeOptions) -> Result<(watch::Sender<bool>, RuntimeState), StartError> {
    let listen = options.listen;
    if !listen.ip().is_loopback() && options.token.as_ref().is_none_or(|token| token.expose_secret().is_empty()) {
        return Err(StartError::NoToken(listen));
    }
    raise_open_files_limit();
    group::prepare().map_err(|cause| StartError::Interrupted(cause.to_string()))?;
    let (stop, stopping) = watch::channel(false);
    let state = tokio::task::spawn_blocking(move || build(options, stopping))
        .await
        .map_err(|cause| StartError::Interrupted(cause.to_string()))??;
    Ok((stop, state))
}

/// Starts a runtime whose threads `watchdog` watches. Needs an actix or tokio runtime around it, and leaves signals
/// alone. On an error nothing is left running.
pub(crate) async fn start(options: RuntimeOptions, watchdog: Option<Watchdog>) -> Result<RunningRuntime, StartError> {
    let (listen, kill_grace, workers) = (options.listen, options.kill_grace, options.workers.max(1));
    let (stop, state) = ready(options).await?;
    let agents = state.sockets.agents.clone();
    let refused = |cause| StartError::Listen { address: listen, cause };
    let server = HttpServer::new(move || {
        // Sockets live on these threads.
        watchdog
            .as_ref()
            .and_then(|watchdog| watchdog.heartbeats_of_this_thread(tokio::time::sleep))
            .map(actix::spawn);
        App::new().configure(routes::configure(state.clone()))
    })
    .workers(workers)
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
    Ok(RunningRuntime { address, agents, stop, kill_grace, server: Some((handle, server)) })
}

impl RunningRuntime {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Agent processes that run now.
    #[cfg(test)]
    pub(crate) fn agent_processes(&self) -> usize {
        self.agents.running()
    }

    /// Closes every socket with 1001, ends every agent's process group, then stops the server. Takes at most
    /// about `grace`, and the agents' own grace where that is longer.
    pub(crate) async fn stop(self, grace: Duration) {
        // Nobody listening means that no socket is open.
        let _ = self.stop.send(true);
        let patience = grace.max(self.kill_grace) + STOP_MARGIN;
        if tokio::time::timeout(patience, self.agents.all_gone()).await.is_err() {
            // A client that does not read keeps its socket from closing; the server drops it below.
            tracing::warn!(agents = self.agents.running(), "agents still running at the stop");
        }
        if let Some((handle, _)) = &self.server {
            handle.stop(self.agents.running() == 0).await;
        }
        let left = tokio::time::timeout(self.kill_grace + STOP_MARGIN, self.agents.all_gone()).await;
        if left.is_err() {
            tracing::error!(agents = self.agents.running(), "agents outlived the stop of the runtime");
        }
        if let Some((_, server)) = self.server {
            server.abort();
        }
    }
}

fn build(options: RuntimeOptions, stopping: watch::Receiver<bool>) -> Result<RuntimeState, StartError> {
    let folders = AllowedFolders::new(&options.root, &options.allow_paths).map_err(StartError::Folders)?;
    let environment: BTreeMap<String, OsString> = options
        .environment
        .iter()
        .map(|(name, value)| (name.clone(), OsString::from(value.expose_secret())))
        .collect();
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
    let agents = Arc::new(Agents::new(options.agents, limits, folders.clone(), options.metrics.clone())?);
    let retention = options.retention;
    let fallback = FallbackSettings {
        grace: retention.grace,
        lines: LineLimits { lines: retention.frames, bytes: retention.bytes },
        body_bytes: options.body_bytes,
    };
    let fallback = Arc::new(Fallback::new(agents.clone(), fallback, stopping.clone()));
    let settings = WorkspaceSettings {
        git_hosts: options.git_hosts,
        clone_timeout: options.clone_timeout,
        diff_bytes: options.diff_bytes,
    };
    let workspaces = Workspaces::new(folders, Git::new(environment), settings).map_err(StartError::Folders)?;
    let sockets = SocketSettings {
        agents,
        conversations,
        stopping,
        frame_bytes: options.frame_bytes,
        heartbeat: options.heartbeat,
    };
    Ok(RuntimeState {
        token: options.token,
        sockets,
        workspaces: Arc::new(workspaces),
        fallback,
        acp: options.acp,
        metrics: options.metrics,
    })
}

/// Messages are small and wait for answers, so they are sent at once; and a dead peer is noticed.
pub(crate) fn tune(stream: &TcpStream) {
    // Without it messages are only slower.
    let _ = stream.set_nodelay(true);
    crate::transport::socket::websocket::set_user_timeout(stream.as_raw_fd(), TCP_USER_TIMEOUT);
}

/// An agent takes six descriptors and the usual soft limit is 1,024, so the hard limit is asked for.
fn raise_open_files_limit() {
    // SAFETY: the structure lives through both calls.
    unsafe {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
