//! The agents that this runtime can start, and the seats they take.

pub(crate) mod files;
pub(crate) mod requests;
pub(crate) mod terminals;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    os::unix::fs::{MetadataExt, lchown},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use secrecy::SecretString;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::{
    requests::{ClientRequestSettings, ServedRequests},
    terminals::TerminalSettings,
};
use super::workspaces::folders::{AllowedFolders, Folder, SessionFolders};
use crate::{
    contract::runtime::InitializeMeta,
    domain::turn::outcome::{ErrorCode, Failure},
    process::{
        self, AgentCommand, AgentProcess,
        stdio::{self, StdioLimits},
        user::{RunAs, RunAsError},
    },
    telemetry::Metrics,
    transport::pipe::Pipe,
};

/// An agent's settings.
#[derive(Debug, Clone)]
pub(crate) struct AgentSettings {
    /// By which a client chooses it.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Program and arguments of its headless command for the fallback; empty where it has none.
    pub oneshot: Vec<String>,
    pub environment: BTreeMap<String, SecretString>,
    /// User as whom it runs, by name or number.
    pub run_as: Option<String>,
    /// Which of its client's methods the runtime answers.
    pub serves: ServedRequests,
}

/// Bounds that all agents share.
#[derive(Clone)]
pub(crate) struct AgentLimits {
    /// Processes at the same time.
    pub max_agents: usize,
    /// From SIGTERM to SIGKILL.
    pub kill_grace: Duration,
    /// Lines and queues.
    pub stdio: StdioLimits,
    /// Commands of one agent at the same time.
    pub terminals: usize,
    /// The environment of those commands.
    pub terminal_environment: Vec<(OsString, OsString)>,
}

pub(crate) struct Agents {
    agents: Vec<(AgentSettings, Option<RunAs>)>,
    seats: Arc<Semaphore>,
    limits: AgentLimits,
    folders: AllowedFolders,
    metrics: Metrics,
}

/// An agent that runs.
pub(crate) struct StartedAgent {
    /// To and from it; dropping the sender ends it.
    pub pipe: Pipe,
    /// What the runtime answers for it.
    pub serves: ServedRequests,
    /// Where its sessions may work.
    pub workplace: Workplace,
}

/// Where the sessions of one agent may work. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Workplace {
    /// The folders that they were given.
    pub folders: SessionFolders,
    /// The folder that the client named at the start; its sessions stay in it.
    pub home: Option<Folder>,
}

/// A seat for one agent, and what it is to run in: all that may be refused before anything is started.
pub(crate) struct Place<'a> {
    agent: &'a AgentSettings,
    user: Option<RunAs>,
    home: Option<Folder>,
    seat: Seat,
}

impl Place<'_> {
    /// Whether the agent has a headless command.
    pub(crate) fn has_oneshot(&self) -> bool {
        !self.agent.oneshot.is_empty()
    }
}

/// The place of one process group, given back when the group is gone.
struct Seat {
    _permit: OwnedSemaphorePermit,
    metrics: Metrics,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.metrics.agent_process_ended();
    }
}

impl Agents {
    /// Looks the agents' users up. Blocks.
    pub(crate) fn new(
        agents: Vec<AgentSettings>,
        limits: AgentLimits,
        folders: AllowedFolders,
        metrics: Metrics,
    ) -> Result<Self, RunAsError> {
        let with_user = |agent: AgentSettings| {
            let user = agent.run_as.as_deref().map(RunAs::resolve).transpose()?;
            Ok((agent, user))
        };
        let agents = agents.into_iter().map(with_user).collect::<Result<_, RunAsError>>()?;
        Ok(Self { agents, seats: Arc::new(Semaphore::new(limits.max_agents)), limits, folders, metrics })
    }

    /// The agents' names, the default one first.
    pub(crate) fn names(&self) -> Vec<String> {
        self.agents.iter().map(|(agent, _)| agent.name.clone()).collect()
    }

    /// How many processes run, those included that are just ending.
    pub(crate) fn running(&self) -> usize {
        self.limits.max_agents.saturating_sub(self.seats.available_permits())
    }

    /// How many may run.
    pub(crate) fn max(&self) -> usize {
        self.limits.max_agents
    }

    /// Waits until no process is left. New ones can still be started while it waits.
    pub(crate) async fn all_gone(&self) {
        let all = u32::try_from(self.limits.max_agents).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        let _ = self.seats.acquire_many(all).await;
    }

    /// Checks a session's folder, and that it is in `home` where the client named one. Touches the disk on
    /// another thread.
    async fn open_folder(&self, path: String, home: Option<Folder>) -> Result<Folder, Failure> {
        let allowed = self.folders.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let folder = allowed.open(&path)?;
            if home.is_some_and(|home| !home.contains(&folder)) {
                let detail = format!("{path}: is not in the folder that `initialize` named");
                return Err(Failure::new(ErrorCode::PathNotAllowed, detail));
            }
            Ok(folder)
        });
        opened.await.map_err(|cause| Failure::new(ErrorCode::Internal, cause.to_string()))?
    }

    /// Lets a session work in a folder, if it may.
    pub(crate) async fn admit(&self, path: String, workplace: Workplace) -> Result<(), Failure> {
        let folder = self.open_folder(path, workplace.home).await?;
        workplace.folders.add(folder)
    }

    fn find(&self, name: Option<&str>) -> Option<&(AgentSettings, Option<RunAs>)> {
        match name {
            None => self.agents.first(),
            Some(name) => self.agents.iter().find(|(agent, _)| agent.name == name),
        }
    }

    /// Whether an agent, the default one where none is named, has a headless command.
    pub(crate) fn has_oneshot(&self, name: Option<&str>) -> bool {
        self.find(name).is_some_and(|(agent, _)| !agent.oneshot.is_empty())
    }

    /// Starts the agent that `initialize` asks for. A dropped future leaves no process behind.
    pub(crate) async fn start(&self, asked: &InitializeMeta) -> Result<StartedAgent, Failure> {
        self.start_in(self.reserve(asked).await?).await
    }

    /// Finds the agent and a seat for it, and checks its folder.
    ///
    /// # Errors
    /// `unknown_agent`, `path_not_allowed`, `capacity_exhausted`.
    pub(crate) async fn reserve(&self, asked: &InitializeMeta) -> Result<Place<'_>, Failure> {
        let (agent, user) = self.find(asked.agent.as_deref()).ok_or_else(|| {
            let name = asked.agent.as_deref().unwrap_or("default");
            Failure::new(ErrorCode::UnknownAgent, format!("there is no agent `{name}` in this runtime"))
        })?;
        let home = match &asked.cwd {
            Some(cwd) => Some(self.open_folder(cwd.clone(), None).await?),
            None => None,
        };
        let permit = self.seats.clone().try_acquire_owned().map_err(|_| {
            let detail = format!("{} agent processes run, which is the limit", self.limits.max_agents);
            Failure::new(ErrorCode::CapacityExhausted, detail)
        })?;
        self.metrics.agent_process_started();
        let seat = Seat { _permit: permit, metrics: self.metrics.clone() };
        Ok(Place { agent, user: *user, home, seat })
    }

    /// Starts the agent in ACP. A dropped future leaves no process behind.
    pub(crate) async fn start_in(&self, place: Place<'_>) -> Result<StartedAgent, Failure> {
        let (agent, user, home) = (place.agent, place.user, place.home.clone());
        let folders = SessionFolders::default();
        if let Some(home) = &home {
            folders.add(home.clone())?;
        }
        let process = self.spawn(place, &agent.command).await?;
        let interceptor =
            requests::open(self.client_request_settings(agent.serves, user), folders.clone(), self.limits.stdio.pipe);
        let pipe = stdio::connect(process, self.limits.stdio, Some(interceptor));
        Ok(StartedAgent { pipe, serves: agent.serves, workplace: Workplace { folders, home } })
    }

    /// Starts the agent's headless command, under the same rules. A dropped future leaves no process behind.
    pub(crate) async fn start_oneshot_in(&self, place: Place<'_>) -> Result<AgentProcess, Failure> {
        let agent = place.agent;
        self.spawn(place, &agent.oneshot).await
    }

    /// The largest message of an agent, in bytes.
    pub(crate) fn frame_bytes(&self) -> usize {
        self.limits.stdio.frame_bytes
    }

    async fn spawn(&self, place: Place<'_>, command: &[String]) -> Result<AgentProcess, Failure> {
        let Place { agent, user, home, seat } = place;
        let cwd = home.as_ref().map_or(self.folders.root(), Folder::path).to_owned();
        if let Some(user) = user
            && home.is_some()
        {
            self.hand_over(cwd.clone(), user).await?;
        }
        let command = self.command(agent, command, user, cwd)?;
        process::spawn(command, seat)
            .await
            .map_err(|cause| Failure::new(ErrorCode::AgentStartFailed, cause.to_string()))
    }

    fn command(
        &self,
        agent: &AgentSettings,
        command: &[String],
        run_as: Option<RunAs>,
        cwd: PathBuf,
    ) -> Result<AgentCommand, Failure> {
        let Some((program, args)) = command.split_first() else {
            let detail = format!("agent `{}` has no command", agent.name);
            return Err(Failure::new(ErrorCode::AgentStartFailed, detail));
        };
        Ok(AgentCommand {
            program: program.into(),
            args: args.iter().map(Into::into).collect(),
            env: agent.environment.clone(),
            run_as,
            cwd,
            kill_grace: self.limits.kill_grace,
        })
    }

    fn client_request_settings(&self, serves: ServedRequests, run_as: Option<RunAs>) -> ClientRequestSettings {
        let terminals = TerminalSettings {
            running: self.limits.terminals,
            inherited: self.limits.terminal_environment.clone(),
            run_as,
            kill_grace: self.limits.kill_grace,
        };
        // Every character of a file may need six in JSON.
        ClientRequestSettings { serves, terminals, file_bytes: self.limits.stdio.frame_bytes / 6 }
    }

    /// Gives a workspace that we made to the agent's user, once, before any agent has been in it.
    async fn hand_over(&self, folder: PathBuf, user: RunAs) -> Result<(), Failure> {
        if folder.parent() != Some(self.folders.root()) {
            return Ok(());
        }
        let given = tokio::task::spawn_blocking(move || {
            if fs::symlink_metadata(&folder)?.uid() == user.uid {
                return Ok(());
            }
            give(&folder, user)
        });
        given.await.map_err(io::Error::other).and_then(|given| given).map_err(|cause| {
            let detail = format!("the workspace could not be given to the agent's user: {cause}");
            Failure::new(ErrorCode::WorkspaceUnavailable, detail)
        })
    }
}

/// The folder itself goes last: its owner says whether the work is done.
fn give(folder: &Path, user: RunAs) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            give(&entry.path(), user)?;
        } else {
            lchown(entry.path(), Some(user.uid), Some(user.gid))?;
        }
    }
    lchown(folder, Some(user.uid), Some(user.gid))
}
