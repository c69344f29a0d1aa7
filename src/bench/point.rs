//! One point: a path at a number of sessions, from the start of its processes to what they used.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::sleep_until;

use super::{
    acp_paths::{self, RuntimePath},
    closed_loop::{self, Window},
    conversation::{BenchError, Conversation},
    http_path,
    plan::{PathKind, Plan},
    processes,
    program::{Program, Workplace},
    report::{MemoryUse, Point, ProcessorUse},
};

/// Sessions that are opened at the same time: enough to keep two processors busy with starting agents.
const OPENED_AT_ONCE: usize = 8;
/// Sessions that share a workspace.
const SESSIONS_PER_WORKSPACE: usize = 10;
/// How long all sessions are left alone before their memory is read.
const IDLE: Duration = Duration::from_millis(200);

/// What stands between the load client and the agents.
pub(crate) enum Stage<'a> {
    /// Nothing.
    Stdio(&'a Workplace, PathBuf),
    /// A runtime.
    Runtime(Box<RuntimePath>),
    /// A supervisor.
    Supervisor(Program),
}

impl<'a> Stage<'a> {
    /// Starts it.
    pub(crate) async fn start(
        path: PathKind,
        plan: &Plan,
        workplace: &'a Workplace,
        folder: &Path,
    ) -> Result<Self, BenchError> {
        Ok(match path {
            PathKind::Stdio => Self::Stdio(workplace, folder.to_owned()),
            PathKind::Runtime => {
                Self::Runtime(Box::new(RuntimePath::start(workplace, folder, &plan.settings).await?))
            }
            PathKind::Supervisor => {
                Self::Supervisor(Program::start(workplace, "serve", folder, &plan.settings).await?)
            }
        })
    }

    fn server(&self) -> Option<u32> {
        match self {
            Self::Stdio(..) => None,
            Self::Runtime(runtime) => Some(runtime.program.pid()),
            Self::Supervisor(program) => Some(program.pid()),
        }
    }

    async fn open_workspace(&self, number: usize) -> Result<String, BenchError> {
        match self {
            Self::Stdio(_, folder) => Ok(folder.display().to_string()),
            Self::Runtime(runtime) => runtime.prepare().await,
            Self::Supervisor(_) => Ok(format!("bench-{number}")),
        }
    }

    async fn open_session(&self, workspace: &str, plan: &Plan) -> Result<Box<dyn Conversation>, BenchError> {
        match self {
            Self::Stdio(workplace, folder) => acp_paths::open_on_stdio(workplace, folder, plan).await,
            Self::Runtime(runtime) => runtime.open(workspace, plan).await,
            Self::Supervisor(program) => http_path::open(program, workspace, plan).await,
        }
    }

    async fn open(&self, sessions: usize, plan: &Plan) -> Result<Vec<Box<dyn Conversation>>, BenchError> {
        let workspaces = (0..sessions.div_ceil(SESSIONS_PER_WORKSPACE)).map(|number| self.open_workspace(number));
        let workspaces: Vec<_> = stream::iter(workspaces).buffered(OPENED_AT_ONCE).try_collect().await?;
        let conversations =
            (0..sessions).map(|number| self.open_session(&workspaces[number / SESSIONS_PER_WORKSPACE], plan));
        stream::iter(conversations).buffer_unordered(OPENED_AT_ONCE).try_collect().await
    }

    /// Ends it; gives the number of errors that it logged.
    pub(crate) async fn stop(self) -> Result<u64, BenchError> {
        match self {
            Self::Stdio(..) => Ok(0),
            Self::Runtime(runtime) => runtime.program.stop().await,
            Self::Supervisor(program) => program.stop().await,
        }
    }
}

/// Opens the sessions, loads them, and reads what everything used.
pub(crate) async fn measure(
    stage: &Stage<'_>,
    plan: &Plan,
    path: PathKind,
    sessions: usize,
) -> Result<Point, BenchError> {
    let server = stage.server();
    let own = std::process::id();
    let of_server = || server.map(|pid| processes::memory(&[pid]));
    let server_before = of_server();

    let opening = Instant::now();
    let conversations = stage.open(sessions, plan).await?;
    let opening = opening.elapsed();
    tokio::time::sleep(IDLE).await;
    let agents = processes::descendants(server.unwrap_or(own));
    let (server_live, agents_live) = (of_server(), processes::memory(&agents));
    let open_files = processes::open_files(server.unwrap_or(own));

    let think = plan.think(sessions);
    let window = Window::now(plan.warm_up(sessions), plan.measured);
    let processors = tokio::spawn(processor_use(window, own, server, agents.clone()));
    let (conversations, tally) = closed_loop::run(conversations, window, think).await;
    let processors = processors.await.unwrap_or_default();
    let (server_after, agents_after) = (of_server(), processes::memory(&agents));
    drop(conversations);
    Ok(Point::new(
        (path, sessions, plan.measured, think),
        opening,
        &tally,
        processors,
        MemoryUse::new(sessions, [server_before, server_live, server_after], [agents_live, agents_after]),
        open_files,
    ))
}

/// Processor time within the window: of this process, the one under test, and the agents.
pub(crate) async fn processor_use(window: Window, own: u32, server: Option<u32>, agents: Vec<u32>) -> ProcessorUse {
    let agents = Arc::new(agents);
    let read = || {
        let agents = agents.clone();
        // A thousand small files are read: not on the thread that carries the load.
        tokio::task::spawn_blocking(move || ProcessorUse {
            client: processes::cpu_time(&[own]),
            server: server.map(|pid| processes::cpu_time(&[pid])),
            agents: processes::cpu_time(&agents),
        })
    };
    sleep_until(window.from).await;
    let before = read().await.unwrap_or_default();
    sleep_until(window.until).await;
    read().await.unwrap_or_default().since(before)
}
