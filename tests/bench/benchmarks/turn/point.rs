//! One point: a path at a number of sessions, from the start of its processes to their resource usage.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    PathKind, TurnPlan, acp,
    report::{CpuUse, MemoryUse, Point},
};
use crate::support::{
    api,
    cli::warm_up,
    closed_loop::{self, Window},
    conversation::{BenchError, Conversation},
    processes,
    program::{Program, Workplace},
    report::{TurnFigures, float},
};

/// Sessions that are opened at the same time: enough to keep two processors busy with starting agents.
const OPENED_AT_ONCE: usize = 8;
/// Sessions that share a workspace.
const SESSIONS_PER_WORKSPACE: usize = 10;
/// Idle time of all sessions before their memory is read.
const IDLE: Duration = Duration::from_millis(200);

/// The processes between the load client and the agents.
pub(crate) enum Stage<'a> {
    /// None.
    Stdio(&'a Workplace, PathBuf),
    Runtime(Program),
    Supervisor(Program),
}

/// A session, and the process id of its agent where the load client started it.
type Opened = (Box<dyn Conversation>, Option<u32>);

impl<'a> Stage<'a> {
    pub(crate) async fn start(
        path: PathKind,
        plan: &TurnPlan,
        workplace: &'a Workplace,
        folder: &Path,
    ) -> Result<Self, BenchError> {
        let settings = &plan.common.settings;
        Ok(match path {
            PathKind::Stdio => Self::Stdio(workplace, folder.to_owned()),
            PathKind::Runtime => Self::Runtime(Program::start(workplace, "runtime", folder, settings).await?),
            PathKind::Supervisor => Self::Supervisor(Program::start(workplace, "serve", folder, settings).await?),
        })
    }

    fn server(&self) -> Option<u32> {
        match self {
            Self::Stdio(..) => None,
            Self::Runtime(program) | Self::Supervisor(program) => Some(program.pid()),
        }
    }

    async fn open_workspace(&self, number: usize) -> Result<String, BenchError> {
        match self {
            Self::Stdio(_, folder) => Ok(folder.display().to_string()),
            Self::Runtime(runtime) => acp::prepare_workspace(runtime).await,
            Self::Supervisor(_) => Ok(format!("bench-{number}")),
        }
    }

    async fn open_session(&self, workspace: &str, prompt: &str) -> Result<Opened, BenchError> {
        Ok(match self {
            Self::Stdio(workplace, folder) => {
                let mut session = acp::open_on_stdio(workplace, folder, prompt).await?;
                let agent = session.agent();
                (Box::new(session), agent)
            }
            Self::Runtime(runtime) => (Box::new(acp::open_on_runtime(runtime, workspace, prompt).await?), None),
            Self::Supervisor(supervisor) => {
                let session = api::open_session(supervisor, workspace.to_owned()).await?;
                (api::converse(supervisor, &session, prompt), None)
            }
        })
    }

    async fn open(&self, sessions: usize, prompt: &str) -> Result<Vec<Opened>, BenchError> {
        let workspaces = (0..sessions.div_ceil(SESSIONS_PER_WORKSPACE)).map(|number| self.open_workspace(number));
        let workspaces: Vec<_> = stream::iter(workspaces).buffered(OPENED_AT_ONCE).try_collect().await?;
        let opened =
            (0..sessions).map(|number| self.open_session(&workspaces[number / SESSIONS_PER_WORKSPACE], prompt));
        stream::iter(opened).buffer_unordered(OPENED_AT_ONCE).try_collect().await
    }

    /// Stops the process under test; returns the number of errors that it logged.
    pub(crate) async fn stop(self) -> Result<u64, BenchError> {
        match self {
            Self::Stdio(..) => Ok(0),
            Self::Runtime(program) | Self::Supervisor(program) => program.stop().await,
        }
    }
}

/// Opens the sessions, loads them, and reads the resource usage of all processes. `errors_logged` is 0 until the process
/// under test has stopped.
pub(crate) async fn measure(
    stage: &Stage<'_>,
    plan: &TurnPlan,
    path: PathKind,
    sessions: usize,
) -> Result<Point, BenchError> {
    let server = stage.server();
    let own = std::process::id();
    let of_server = || server.map(|pid| processes::memory(&[pid]));
    let server_before = of_server();

    let opening = Instant::now();
    let (conversations, agents): (Vec<_>, Vec<_>) = stage.open(sessions, &plan.prompt).await?.into_iter().unzip();
    let opening = opening.elapsed();
    tokio::time::sleep(IDLE).await;
    let agents = server.map_or_else(|| agents.into_iter().flatten().collect(), processes::descendants);
    let (server_live, agents_live) = (of_server(), processes::memory(&agents));
    let open_files = processes::open_files(server.unwrap_or(own));

    let think = plan.think(sessions);
    let window = Window::now(warm_up(plan.measured, think), plan.measured);
    let sampled = agents.clone();
    let processors = tokio::spawn(processes::used_within(window, move || {
        let server = server.map_or(Duration::ZERO, |pid| processes::cpu_time(&[pid]));
        [processes::cpu_time(&[own]), server, processes::cpu_time(&sampled)]
    }));
    let (conversations, tally) = closed_loop::run(conversations, window, think).await;
    let [client, used, agents_used] = processors.await.unwrap_or_default();
    let (server_after, agents_after) = (of_server(), processes::memory(&agents));
    drop(conversations);
    Ok(Point {
        path,
        sessions,
        seconds: plan.measured.as_secs_f64(),
        think_ms: think.as_secs_f64() * 1e3,
        offered_per_second: (!think.is_zero()).then(|| float(sessions) / think.as_secs_f64()),
        turns: TurnFigures::new(&tally, plan.measured),
        errors_logged: 0,
        opening_seconds: opening.as_secs_f64(),
        cpu: CpuUse::new([client, agents_used], server.map(|_| used), tally.turns),
        memory: MemoryUse::new(sessions, [server_before, server_live, server_after], [agents_live, agents_after]),
        open_files,
    })
}
