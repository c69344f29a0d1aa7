//! Starts the configured agents as processes and limits how many run at once.

pub(crate) mod files;
pub(crate) mod requests;
pub(crate) mod terminals;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt, lchown},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::{
    requests::{ClientRequestSettings, ServedRequests},
    terminals::TerminalSettings,
};
use super::workspaces::folders::{AllowedFolders, Folder, SessionFolders};
use crate::{
    contract::runtime::{AgentStatus, InitializeMeta},
    domain::turn::outcome::{ErrorCode, Failure},
    process::{
        self, AgentCommand, AgentProcess,
        members::Members,
        stdio::{self, StdioLimits},
        user::{RunAs, RunAsError},
    },
    telemetry::Metrics,
    transport::pipe::Pipe,
};

#[derive(Debug, Clone)]
pub(crate) struct AgentSettings {
    /// Name by which clients select the agent.
    pub name: String,
    /// Program and arguments of the agent in ACP mode.
    pub command: Vec<String>,
    /// Program and arguments of the agent's headless command for the HTTP fallback; empty if the agent has none.
    pub oneshot: Vec<String>,
    /// Complete environment; nothing is inherited from the runtime.
    pub environment: BTreeMap<String, SecretString>,
    /// User to run the agent as, by name or number; `None` for the runtime's own user.
    pub run_as: Option<String>,
    /// Client requests that the runtime answers itself.
    pub serves: ServedRequests,
}

/// Limits shared by all agents of a runtime.
#[derive(Clone)]
pub(crate) struct AgentLimits {
    /// Largest number of concurrent agent processes.
    pub max_agents: usize,
    /// Time between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
    /// Limits of a message and of the queues of an agent's pipes.
    pub stdio: StdioLimits,
    /// Largest number of concurrent `terminal/*` commands of one agent.
    pub terminals: usize,
    /// Environment of those commands.
    pub terminal_environment: Vec<(OsString, OsString)>,
}

/// Starts agents and counts their processes.
pub(crate) struct Agents {
    agents: Vec<(AgentSettings, Option<RunAs>)>,
    seats: Arc<Semaphore>,
    limits: AgentLimits,
    folders: AllowedFolders,
    metrics: Metrics,
}

/// True if a program exists and can be executed; `None` for a path that is relative to the workspace.
fn is_installed(program: &str, path: &str) -> Option<bool> {
    let is_program =
        |file: &Path| std::fs::metadata(file).is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0);
    match program.contains('/') {
        true if program.starts_with('/') => Some(is_program(Path::new(program))),
        true => None,
        false => Some(path.split(':').any(|folder| is_program(&Path::new(folder).join(program)))),
    }
}

/// A running agent in ACP mode.
pub(crate) struct StartedAgent {
    /// Messages to and from the agent. Dropping the sender ends the process.
    pub pipe: Pipe,
    /// Client requests that the runtime answers itself.
    pub serves: ServedRequests,
    pub workplace: Workplace,
    /// The processes of the agent.
    pub members: Members,
}

/// Folders in which the sessions of one agent may work. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Workplace {
    /// Folders of the sessions so far, including `home`.
    pub folders: SessionFolders,
    /// Folder that the client named in `initialize`. If set, every session folder must be inside it.
    pub home: Option<Folder>,
}

/// Reservation for one agent process, with its folder. Everything that can be refused is checked when it is made, so
/// a refusal starts nothing.
pub(crate) struct Place<'a> {
    agent: &'a AgentSettings,
    user: Option<RunAs>,
    home: Option<Folder>,
    seat: Seat,
}

impl Place<'_> {
    /// True if the agent has a headless command.
    pub(crate) fn has_oneshot(&self) -> bool {
        !self.agent.oneshot.is_empty()
    }
}

/// Permit for one process group, released when the group has ended.
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
    /// Resolves the users that agents run as. Blocks while the user database is read.
    ///
    /// # Errors
    /// A user is unknown or the runtime does not run as root.
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

    /// Names of the configured agents, the default first.
    pub(crate) fn names(&self) -> Vec<String> {
        self.agents.iter().map(|(agent, _)| agent.name.clone()).collect()
    }

    /// The configured agents, the default first. Blocks while the file system is read.
    pub(crate) fn details(&self) -> Vec<AgentStatus> {
        let details = self.agents.iter().map(|(agent, _)| {
            let program = agent.command.first().cloned().unwrap_or_default();
            let path = agent.environment.get("PATH").map(ExposeSecret::expose_secret);
            AgentStatus {
                name: agent.name.clone(),
                is_installed: is_installed(&program, path.unwrap_or_default()),
                program,
                has_oneshot: !agent.oneshot.is_empty(),
            }
        });
        details.collect()
    }

    /// Number of agent processes, including those that are exiting.
    pub(crate) fn running(&self) -> usize {
        self.limits.max_agents.saturating_sub(self.seats.available_permits())
    }

    /// Largest number of concurrent agent processes.
    pub(crate) fn max(&self) -> usize {
        self.limits.max_agents
    }

    /// Waits until no agent process is left. Does not prevent new ones from being started.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(crate) async fn all_exited(&self) {
        let all = u32::try_from(self.limits.max_agents).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        let _ = self.seats.acquire_many(all).await;
    }

    /// Opens a session's folder and checks that it is inside `home`, if the client named one. Disk access runs on a
    /// blocking thread.
    async fn open_folder(&self, path: String, home: Option<Folder>) -> Result<Folder, Failure> {
        let allowed = self.folders.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let folder = allowed.open(&path)?;
            if home.is_some_and(|home| !home.contains(&folder)) {
                let detail = format!("{path}: is outside the folder named in `initialize`");
                return Err(Failure::new(ErrorCode::PathNotAllowed, detail));
            }
            Ok(folder)
        });
        opened.await.map_err(|cause| Failure::new(ErrorCode::Internal, cause.to_string()))?
    }

    /// Adds a session's folder to those in which its agent may work.
    ///
    /// # Errors
    /// `path_not_allowed` for a folder that is not allowed or is outside `home`; `invalid_request` for more folders
    /// than one connection may use.
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

    /// True if the named agent (the default one for `None`) exists and has a headless command.
    pub(crate) fn has_oneshot(&self, name: Option<&str>) -> bool {
        self.find(name).is_some_and(|(agent, _)| !agent.oneshot.is_empty())
    }

    /// Reserves and starts the agent that `initialize` requests.
    ///
    /// # Errors
    /// Those of [`reserve`](Self::reserve) and [`start_in`](Self::start_in).
    ///
    /// # Cancel safety
    /// A dropped future leaves no process behind.
    pub(crate) async fn start(&self, asked: &InitializeMeta) -> Result<StartedAgent, Failure> {
        self.start_in(self.reserve(asked).await?).await
    }

    /// Finds the agent, opens its folder and takes one of the permits for agent processes.
    ///
    /// # Errors
    /// `unknown_agent`, `path_not_allowed`, `capacity_exhausted`. Nothing was started.
    pub(crate) async fn reserve(&self, asked: &InitializeMeta) -> Result<Place<'_>, Failure> {
        let (agent, user) = self.find(asked.agent.as_deref()).ok_or_else(|| {
            let name = asked.agent.as_deref().unwrap_or("default");
            Failure::new(ErrorCode::UnknownAgent, format!("agent `{name}` is not configured in this runtime"))
        })?;
        let home = match &asked.cwd {
            Some(cwd) => Some(self.open_folder(cwd.clone(), None).await?),
            None => None,
        };
        let permit = self.seats.clone().try_acquire_owned().map_err(|_| {
            let detail = format!("all {} agent processes of this runtime are in use", self.limits.max_agents);
            Failure::new(ErrorCode::CapacityExhausted, detail)
        })?;
        self.metrics.agent_process_started();
        let seat = Seat { _permit: permit, metrics: self.metrics.clone() };
        Ok(Place { agent, user: *user, home, seat })
    }

    /// Starts the agent in ACP mode.
    ///
    /// # Errors
    /// `agent_start_failed` if its process cannot be started; `workspace_unavailable` if its folder cannot be handed
    /// to the user that the agent runs as.
    ///
    /// # Cancel safety
    /// A dropped future leaves no process behind.
    pub(crate) async fn start_in(&self, place: Place<'_>) -> Result<StartedAgent, Failure> {
        let (agent, user, home) = (place.agent, place.user, place.home.clone());
        let folders = SessionFolders::default();
        if let Some(home) = &home {
            folders.add(home.clone())?;
        }
        let process = self.spawn(place, &agent.command).await?;
        let members = process.life.members();
        let interceptor =
            requests::open(self.client_request_settings(agent.serves, user), folders.clone(), self.limits.stdio.pipe);
        let pipe = stdio::connect(process, self.limits.stdio, Some(interceptor));
        Ok(StartedAgent { pipe, serves: agent.serves, workplace: Workplace { folders, home }, members })
    }

    /// Starts the agent's headless command, with the same user, folder and environment as the agent itself.
    ///
    /// # Errors
    /// As for [`start_in`](Self::start_in).
    ///
    /// # Cancel safety
    /// A dropped future leaves no process behind.
    pub(crate) async fn start_oneshot_in(&self, place: Place<'_>) -> Result<AgentProcess, Failure> {
        let agent = place.agent;
        self.spawn(place, &agent.oneshot).await
    }

    /// Largest message of an agent, in bytes.
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
        // JSON may escape one byte of a file as six (`\u0000`), and the answer has to fit a frame.
        ClientRequestSettings { serves, terminals, file_bytes: self.limits.stdio.frame_bytes / 6 }
    }

    /// Changes the owner of a workspace that this runtime created to the agent's user. Folders outside the root
    /// belong to the caller and keep their owner; a workspace that the user already owns is left as it is.
    async fn hand_over(&self, folder: PathBuf, user: RunAs) -> Result<(), Failure> {
        if folder.parent() != Some(self.folders.root()) {
            return Ok(());
        }
        let changed = tokio::task::spawn_blocking(move || {
            if fs::symlink_metadata(&folder)?.uid() == user.uid {
                return Ok(());
            }
            change_owner(&folder, user)
        });
        changed.await.map_err(io::Error::other).and_then(|changed| changed).map_err(|cause| {
            let detail = format!("changing the owner of the workspace to the agent's user failed: {cause}");
            Failure::new(ErrorCode::WorkspaceUnavailable, detail)
        })
    }
}

/// Changes the owner of a folder tree, the folder itself last: its owner marks the change as complete, so an
/// interrupted one is repeated by the next start.
fn change_owner(folder: &Path, user: RunAs) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            change_owner(&entry.path(), user)?;
        } else {
            lchown(entry.path(), Some(user.uid), Some(user.gid))?;
        }
    }
    lchown(folder, Some(user.uid), Some(user.gid))
}
