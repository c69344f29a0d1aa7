//! Starts the configured agents as processes and limits how many run at once.

pub(crate) mod files;
pub(crate) mod requests;
pub(crate) mod terminals;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use serde_json::value::RawValue;
use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore};

use self::{
    requests::{ClientRequestSettings, ServedRequests},
    terminals::{TerminalJail, TerminalSettings},
};
use super::workspaces::folders::{AllowedFolders, Folder, SessionFolders};
use crate::{
    config::{Reloadable, sections::Secret},
    contract::runtime::{AgentStatus, InitializeMeta, JailStatus},
    domain::{
        ids::InstallationId,
        jail::{self, JailMode, Right, limits::ControlGroupState},
        session::mcp::named,
        turn::outcome::{ErrorCode, Failure},
    },
    process::{
        self, AgentCommand, AgentProcess,
        members::Members,
        ownership::{self, HandOverError},
        pool::{PoolError, TenantUsers},
        sandbox::{AgentPlan, Confinement, JailSettings, Sandbox, enforce::Enforcement, sockets::reachable},
        stdio::{self, StdioLimits},
        user::{RunAs, RunAsError, RunsAs},
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
    /// User to run the agent as, by name or number, or a pool of users; `None` for the runtime's own user.
    pub run_as: Option<String>,
    /// Client requests that the runtime answers itself.
    pub serves: ServedRequests,
    /// The jail of the agent, its headless command and its terminal commands.
    pub jail: JailSettings,
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
    agents: Vec<Configured>,
    sandbox: Sandbox,
    control_groups: ControlGroupState,
    seats: Arc<Semaphore>,
    limits: AgentLimits,
    folders: AllowedFolders,
    tenant_users: Arc<TenantUsers>,
    /// Held while a workspace is handed over, so that of two users one gets it as a whole.
    handing_over: AsyncMutex<()>,
    secrets: NamedSecrets,
    metrics: Metrics,
}

/// The secrets that MCP servers get by name.
pub(crate) type NamedSecrets = Reloadable<BTreeMap<String, Secret>>;

/// An agent as configured, with what was found for it at the start.
struct Configured {
    settings: AgentSettings,
    runs_as: Option<RunsAs>,
    plan: Arc<AgentPlan>,
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
    /// Tenant of the sessions; empty if the client named none.
    pub tenant: String,
}

/// Reservation for one agent process, with its folder. Everything that can be refused is checked when it is made, so
/// a refusal starts nothing.
pub(crate) struct Place<'a> {
    agent: &'a Configured,
    home: Option<Folder>,
    /// Tenant of the session; empty if the client named none.
    tenant: String,
    /// The user of the process; `None`: the runtime's own.
    user: Option<RunAs>,
    seat: Seat,
}

/// A process with the jail that it runs in.
struct Jailed {
    process: AgentProcess,
    jail: TerminalJail,
}

impl Place<'_> {
    /// True if the agent has a headless command.
    pub(crate) fn has_oneshot(&self) -> bool {
        !self.agent.settings.oneshot.is_empty()
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
    /// Resolves the users that agents run as, and prepares their jails. Blocks while the user database is read.
    ///
    /// # Errors
    /// A user is unknown or the runtime does not run as root.
    pub(crate) fn new(
        agents: Vec<AgentSettings>,
        limits: AgentLimits,
        folders: AllowedFolders,
        (sandbox, control_groups): (Sandbox, ControlGroupState),
        secrets: NamedSecrets,
        metrics: Metrics,
    ) -> Result<Self, RunAsError> {
        let configured = |settings: AgentSettings| {
            let runs_as = settings.run_as.as_deref().map(RunsAs::resolve).transpose()?;
            let AgentSettings { jail, command, environment, .. } = &settings;
            let plan = Arc::new(AgentPlan::new(jail.clone(), command, environment.clone(), runs_as.is_some()));
            Ok(Configured { settings, runs_as, plan })
        };
        let agents = agents.into_iter().map(configured).collect::<Result<_, RunAsError>>()?;
        let seats = Arc::new(Semaphore::new(limits.max_agents));
        let tenant_users = Arc::new(TenantUsers::new(folders.root()));
        let handing_over = AsyncMutex::default();
        Ok(Self {
            agents,
            sandbox,
            seats,
            control_groups,
            limits,
            folders,
            tenant_users,
            handing_over,
            secrets,
            metrics,
        })
    }

    /// State of the jail. Blocks for microseconds, while sockets are looked for.
    pub(crate) fn jail(&self) -> JailStatus {
        let kernel = self.sandbox.kernel();
        let settings = || self.agents.iter().map(|agent| &agent.settings);
        let unconfined = settings().filter(|agent| agent.jail.mode == JailMode::Off);
        let users: BTreeSet<_> = self
            .agents
            .iter()
            .map(|agent| agent.runs_as.map(RunsAs::example))
            .map(|user| user.map(|it| (it.uid, it.gid)))
            .collect();
        let sockets = users.into_iter().flat_map(|user| reachable(user.map(|(uid, gid)| RunAs { uid, gid })));
        let sockets: BTreeSet<_> = sockets.map(|path| path.display().to_string()).collect();
        let limits_ports = settings().any(|agent| !agent.jail.ports.is_empty());
        let of_limits = self.control_groups.warning(settings().map(|agent| agent.jail.limits));
        JailStatus {
            state: jail::state(settings().map(|agent| agent.jail.mode), kernel),
            rights: Right::ALL.iter().map(|right| (right.as_str().to_owned(), kernel.has(*right))).collect(),
            unconfined_agents: unconfined.map(|agent| agent.name.clone()).collect(),
            reachable_sockets: sockets.into_iter().collect(),
            control_groups: self.control_groups.named().map(|(name, is_on)| (name.to_owned(), is_on)).collect(),
            warnings: jail::warnings(kernel, limits_ports).into_iter().chain(of_limits).map(str::to_owned).collect(),
        }
    }

    /// Logs the state of the jail, and sets its metric.
    pub(crate) fn announce_jail(&self) {
        let status = self.jail();
        let names = |is_on: bool| {
            let named = status.rights.iter().filter(|(_, on)| **on == is_on).map(|(name, _)| name.as_str());
            named.collect::<Vec<_>>().join(" ")
        };
        let groups =
            self.control_groups.named().map(|(name, is_on)| format!("{name}={}", if is_on { "on" } else { "off" }));
        let groups = groups.collect::<Vec<_>>().join(" ");
        let (on, off, state) = (names(true), names(false), status.state.as_str());
        let sockets = status.reachable_sockets.join(" ");
        tracing::info!(marker = "[ACP]", state, on, off, control_groups = groups, sockets, "jail of agents");
        for agent in &status.unconfined_agents {
            tracing::warn!(marker = "[ACP]", agent, "agent runs without a jail: `jail = \"off\"`");
        }
        for warning in &status.warnings {
            tracing::warn!(marker = "[ACP]", warning, "jail is incomplete");
        }
        for right in Right::ALL {
            let is_enforced = self.sandbox.kernel().has(right) && status.unconfined_agents.is_empty();
            self.metrics.jailed(right, is_enforced);
        }
    }

    /// Removes the temporary files of all agents, none of which may run. Blocks.
    pub(crate) fn remove_temporary_files(&self) {
        self.sandbox.close();
    }

    /// Removes the private `HOME`s of a tenant, none of whose agents may run; returns their number. Blocks.
    pub(crate) fn remove_homes(&self, tenant: &str) -> io::Result<u64> {
        self.sandbox.remove_homes(tenant)
    }

    /// Names of the configured agents, the default first.
    pub(crate) fn names(&self) -> Vec<String> {
        self.agents.iter().map(|agent| agent.settings.name.clone()).collect()
    }

    /// The configured agents, the default first. Blocks while the file system is read.
    pub(crate) fn details(&self) -> Vec<AgentStatus> {
        let details = self.agents.iter().map(|agent| {
            let agent = &agent.settings;
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

    /// Puts the values of named secrets into the MCP servers of a tenant; `None` if no secret is named.
    ///
    /// # Errors
    /// `unknown_secret`.
    pub(crate) fn with_secrets(&self, servers: &RawValue, tenant: &str) -> Result<Option<Box<RawValue>>, Failure> {
        let secrets = self.secrets.get();
        named::resolve(servers, tenant, |name| secrets.get(name)?.rule())
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

    /// Opens a folder by a path that `prepare` returned. It has no links then: one that is there now was put in its place,
    /// by an agent that may write around the folder, and would lead to another workspace.
    async fn open_prepared(&self, path: &str) -> Result<Folder, Failure> {
        let folder = self.open_folder(path.to_owned(), None).await?;
        if folder.path() != Path::new(path) {
            let detail = format!("{path}: a link has replaced a part of it");
            return Err(Failure::new(ErrorCode::PathNotAllowed, detail));
        }
        Ok(folder)
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

    fn find(&self, name: Option<&str>) -> Option<&Configured> {
        match name {
            None => self.agents.first(),
            Some(name) => self.agents.iter().find(|agent| agent.settings.name == name),
        }
    }

    /// True if the named agent (the default one for `None`) exists and has a headless command.
    pub(crate) fn has_oneshot(&self, name: Option<&str>) -> bool {
        self.find(name).is_some_and(|agent| !agent.settings.oneshot.is_empty())
    }

    /// The user of an agent (the default one for `None`) for a tenant; `None` for the runtime's own. Gives the tenant a user
    /// of the agent's pool if it has none.
    ///
    /// # Errors
    /// `unknown_agent`; `capacity_exhausted` if the pool has no user left; `internal` if the record of the users fails.
    pub(crate) async fn user_of(
        &self,
        agent: Option<&str>,
        tenant: Option<&InstallationId>,
    ) -> Result<Option<RunAs>, Failure> {
        let agent = self.configured(agent)?;
        self.user_for(agent, tenant.map_or("", InstallationId::as_str)).await
    }

    async fn user_for(&self, agent: &Configured, tenant: &str) -> Result<Option<RunAs>, Failure> {
        let pool = match agent.runs_as {
            None => return Ok(None),
            Some(RunsAs::User(user)) => return Ok(Some(user)),
            Some(RunsAs::Pool(pool)) => pool,
        };
        if let Some(user) = self.tenant_users.known(pool, tenant) {
            return Ok(Some(user));
        }
        let (users, tenant) = (self.tenant_users.clone(), tenant.to_owned());
        let found = tokio::task::spawn_blocking(move || users.user_of(pool, &tenant)).await;
        match found.map_err(io::Error::other).map_err(PoolError::from).flatten() {
            Ok(user) => Ok(Some(user)),
            Err(cause) => {
                let code = match cause {
                    PoolError::Exhausted(_) => ErrorCode::CapacityExhausted,
                    PoolError::Record(_) => ErrorCode::Internal,
                };
                Err(Failure::new(code, cause.to_string()))
            }
        }
    }

    fn configured(&self, name: Option<&str>) -> Result<&Configured, Failure> {
        self.find(name).ok_or_else(|| {
            let name = name.unwrap_or("default");
            Failure::new(ErrorCode::UnknownAgent, format!("agent `{name}` is not configured in this runtime"))
        })
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
    /// `unknown_agent`, `path_not_allowed`, `capacity_exhausted` (no seat, or no user left in the agent's pool), `internal`.
    /// Nothing was started.
    pub(crate) async fn reserve(&self, asked: &InitializeMeta) -> Result<Place<'_>, Failure> {
        let agent = self.configured(asked.agent.as_deref())?;
        let home = match &asked.cwd {
            Some(cwd) => Some(self.open_prepared(cwd).await?),
            None => None,
        };
        let permit = self.seats.clone().try_acquire_owned().map_err(|_| {
            let detail = format!("all {} agent processes of this runtime are in use", self.limits.max_agents);
            Failure::new(ErrorCode::CapacityExhausted, detail)
        })?;
        self.metrics.agent_process_started();
        let seat = Seat { _permit: permit, metrics: self.metrics.clone() };
        let tenant = asked.installation_id.as_ref().map_or_else(String::new, |tenant| tenant.as_str().to_owned());
        let user = self.user_for(agent, &tenant).await?;
        Ok(Place { agent, home, tenant, user, seat })
    }

    /// Starts the agent in ACP mode.
    ///
    /// # Errors
    /// `agent_start_failed` if its process cannot be started; `workspace_owner` if its folder belongs to another user than
    /// the agent's, and `workspace_unavailable` if it cannot be handed over for another reason.
    ///
    /// # Cancel safety
    /// A dropped future leaves no process behind.
    pub(crate) async fn start_in(&self, place: Place<'_>) -> Result<StartedAgent, Failure> {
        let (agent, user, home, tenant) = (place.agent, place.user, place.home.clone(), place.tenant.clone());
        let folders = SessionFolders::default();
        if let Some(home) = &home {
            folders.add(home.clone())?;
        }
        let Jailed { process, jail } = self.spawn(place, &agent.settings.command).await?;
        let (members, serves) = (process.life.members(), agent.settings.serves);
        let settings = self.client_request_settings(serves, user, jail);
        let interceptor = requests::open(settings, folders.clone(), self.limits.stdio.pipe);
        let pipe = stdio::connect(process, self.limits.stdio, Some(interceptor));
        Ok(StartedAgent { pipe, serves, workplace: Workplace { folders, home, tenant }, members })
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
        Ok(self.spawn(place, &agent.settings.oneshot).await?.process)
    }

    /// Largest message of an agent, in bytes.
    pub(crate) fn frame_bytes(&self) -> usize {
        self.limits.stdio.frame_bytes
    }

    async fn spawn(&self, place: Place<'_>, command: &[String]) -> Result<Jailed, Failure> {
        let Place { agent, home, tenant, user, seat } = place;
        let cwd = home.as_ref().map_or(self.folders.root(), Folder::path).to_owned();
        if let Some(user) = user
            && home.is_some()
        {
            self.hand_over(cwd.clone(), user).await?;
        }
        let Some((program, args)) = command.split_first() else {
            let detail = format!("agent `{}` has no command", agent.settings.name);
            return Err(Failure::new(ErrorCode::AgentStartFailed, detail));
        };
        let workspace = home.map(|home| home.path().to_owned());
        let covers_sessions = workspace.is_some();
        let (confinement, jail) = self.confine(agent, command, (tenant, user), workspace).await?;
        let mut env = agent.settings.environment.clone();
        env.extend(
            confinement.variables().map(|(name, value)| (name.to_owned(), value.display().to_string().into())),
        );
        let command = AgentCommand {
            program: program.into(),
            args: args.iter().map(Into::into).collect(),
            env,
            run_as: user,
            cwd,
            kill_grace: self.limits.kill_grace,
            jail: Some(jail.clone()),
        };
        // The folder for temporary files outlives the process group.
        let process = process::spawn(command, (seat, confinement.clone()))
            .await
            .map_err(|cause| Failure::new(ErrorCode::AgentStartFailed, cause.to_string()))?;
        Ok(Jailed { process, jail: TerminalJail { confinement, of_agent: jail, covers_sessions } })
    }

    /// Makes the jail of a process that runs `command`. Without a `workspace` the process cannot write any: the jail cannot
    /// be widened once it runs.
    async fn confine(
        &self,
        agent: &Configured,
        command: &[String],
        (tenant, user): (String, Option<RunAs>),
        workspace: Option<PathBuf>,
    ) -> Result<(Confinement, Arc<Enforcement>), Failure> {
        let (sandbox, plan, command) = (self.sandbox.clone(), agent.plan.clone(), command.to_vec());
        let making = tokio::task::spawn_blocking(move || {
            let confinement = sandbox.confine(&plan, &command, &tenant, user)?;
            let jail = confinement.enforcement(workspace.as_slice())?;
            Ok((confinement, Arc::new(jail)))
        });
        making.await.map_err(io::Error::other).and_then(|made| made).map_err(|cause| {
            Failure::new(ErrorCode::AgentStartFailed, format!("the jail of the agent cannot be made: {cause}"))
        })
    }

    fn client_request_settings(
        &self,
        serves: ServedRequests,
        run_as: Option<RunAs>,
        jail: TerminalJail,
    ) -> ClientRequestSettings {
        let terminals = TerminalSettings {
            running: self.limits.terminals,
            inherited: self.limits.terminal_environment.clone(),
            run_as,
            kill_grace: self.limits.kill_grace,
            jail,
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
        let failed = |cause: HandOverError| {
            let code = match &cause {
                HandOverError::OtherOwner { .. } | HandOverError::HardLink => ErrorCode::WorkspaceOwner,
                HandOverError::Io(_) => ErrorCode::WorkspaceUnavailable,
            };
            Failure::new(code, format!("the workspace cannot be handed over to the agent's user: {cause}"))
        };
        // Usual: the user has it already, which needs neither the lock nor a thread.
        if ownership::belongs_to(&folder, user).map_err(failed)? {
            return Ok(());
        }
        let _alone = self.handing_over.lock().await;
        let changed = tokio::task::spawn_blocking(move || ownership::hand_over(&folder, user)).await;
        changed.map_err(io::Error::other).map_err(HandOverError::from).flatten().map_err(failed)
    }
}
