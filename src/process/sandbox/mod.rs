//! The jail of agents: every agent, its headless command and its `terminal/*` commands run in one, without root.
//!
//! ```text
//!  Sandbox (one per runtime)            what the kernel offers, what is hidden from every agent
//!    └─ AgentPlan (one per agent)       settings, preset, tools
//!        └─ Confinement (per process)   rules, TMPDIR, HOME; shared with the terminal commands of the agent
//!            └─ Enforcement             the ruleset as a descriptor: applied between fork and exec
//! ```
//!
//! [`rules`](AgentPlan::rules) describes a jail as a list of paths with their access; [`ruleset`] turns the list into a
//! Landlock ruleset before fork; [`Enforcement::apply`](enforce::Enforcement::apply) runs in the child, where nothing may
//! be allocated.
//!
//! An agent reads and runs the system, its package and its interpreter; it writes its workspace, a private `TMPDIR`, and
//! its `HOME`, or what its preset names there. Hidden are the data folder, the configuration, and all other workspaces. Not
//! covered: the network, apart from TCP connections with `agent.ports`; UNIX sockets with a path; metadata of files;
//! CPU time and memory.

pub(crate) mod enforce;
pub(crate) mod kernel;
mod package;
mod places;
pub(crate) mod ruleset;
pub(crate) mod scratch;
pub(crate) mod sockets;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, lchown},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use secrecy::{ExposeSecret, SecretString};

use self::{
    enforce::Enforcement,
    package::Packages,
    ruleset::{Access, Rule, around},
    scratch::{Scratch, Scratches},
};
use super::{inherited::Inherited, user::RunAs};
use crate::domain::jail::{
    JailMode, KernelRights,
    limits::ResourceLimits,
    presets::{Preset, State, tools},
};

/// Folder of the private `HOME`s in the root of the workspaces.
const HOMES: &str = ".homes";

/// Start of the name of a `HOME` that is being removed.
const REMOVED: &str = ".removed-";

/// The name of a tenant's `HOME`.
fn home_name(tenant: &str) -> String {
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, tenant.as_bytes()).to_string()
}

/// The environment of an agent.
pub(crate) type AgentEnvironment = BTreeMap<String, SecretString>;

/// The jail's settings of one agent.
#[derive(Debug, Clone, Default)]
pub(crate) struct JailSettings {
    pub mode: JailMode,
    /// Recognised by the command if absent.
    pub preset: Option<Preset>,
    /// Absolute paths that the agent reads and runs besides the usual ones.
    pub read: Vec<PathBuf>,
    /// Absolute paths that the agent writes besides the usual ones.
    pub write: Vec<PathBuf>,
    /// TCP ports to which it may connect; empty: all.
    pub ports: Vec<u16>,
    pub private_homes: PrivateHomes,
    /// Limits of its control group.
    pub limits: ResourceLimits,
}

/// When each tenant has a `HOME` of its own.
#[derive(Debug, Clone, Default)]
pub(crate) enum PrivateHomes {
    #[default]
    Never,
    Always,
    /// From the time on at which the flag is true: tenants then do not trust each other.
    Once(Arc<AtomicBool>),
}

impl PrivateHomes {
    fn now(&self) -> bool {
        match self {
            Self::Never => false,
            Self::Always => true,
            Self::Once(flag) => flag.load(Ordering::Acquire),
        }
    }
}

/// The paths of this program.
#[derive(Debug, Clone, Default)]
pub(crate) struct OwnPaths {
    /// Files and folders that no agent may read: data folder, database, configuration.
    pub hidden: Vec<PathBuf>,
    /// Folder in which the temporary files of agents are made.
    pub temporary: PathBuf,
    /// The executable, which every agent may run: it is the built-in agent.
    pub program: Option<PathBuf>,
}

/// The common part of all jails of a runtime. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Sandbox(Arc<Common>);

#[derive(Debug)]
struct Common {
    kernel: KernelRights,
    inherited: Inherited,
    /// Paths without links that no agent may read, whatever else is granted.
    hidden: Vec<PathBuf>,
    /// This program, which is the built-in agent.
    own_program: Option<PathBuf>,
    /// Folder of the private `HOME`s.
    homes: PathBuf,
    scratches: Arc<Scratches>,
}

/// The jail of one agent, in so far as it is the same for all its processes.
#[derive(Debug, Clone)]
pub(crate) struct AgentPlan {
    settings: JailSettings,
    /// Files and folders that the preset and the tools in `PATH` write below `HOME`.
    states: Vec<State>,
    environment: AgentEnvironment,
}

/// The jail of one agent process and of the terminal commands that it requests. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Confinement {
    common: Arc<Common>,
    plan: Arc<AgentPlan>,
    /// Everything but the workspace.
    rules: Arc<[Rule]>,
    scratch: Arc<Scratch>,
    home: Option<PathBuf>,
}

impl Sandbox {
    /// `root` is that of the workspaces. Hidden paths that do not exist yet are taken as they are. Blocks.
    ///
    /// # Errors
    /// No folder for temporary files can be made.
    pub(crate) fn new(kernel: KernelRights, inherited: Inherited, root: &Path, paths: &OwnPaths) -> io::Result<Self> {
        let scratches = Arc::new(Scratches::new(&paths.temporary, root)?);
        let own_program = paths.program.clone();
        let hidden = paths.hidden.iter().map(|path| without_links(path));
        let hidden: BTreeSet<_> = hidden.chain([root.to_owned(), scratches.folder().to_owned()]).collect();
        let hidden = hidden.into_iter().collect();
        Ok(Self(Arc::new(Common { kernel, inherited, hidden, own_program, homes: root.join(HOMES), scratches })))
    }

    /// With the rights of this kernel.
    #[cfg(test)]
    pub(crate) fn for_tests(root: &Path) -> Self {
        let root = root.canonicalize().unwrap();
        Self::new(kernel::detect().unwrap(), Inherited::of_tests(), &root, &OwnPaths::default()).unwrap()
    }

    /// The rights that the kernel enforces.
    pub(crate) fn kernel(&self) -> KernelRights {
        self.0.kernel
    }

    /// Removes the folders for temporary files. Call it when no agent is left. Blocks.
    pub(crate) fn close(&self) {
        self.0.scratches.remove();
    }

    /// Makes the jail of a process of `agent` that runs `command` as `user`. Makes its `TMPDIR`, and its `HOME` if that is
    /// private: `tenant` names the folder. Blocks for about a millisecond.
    ///
    /// # Errors
    /// A folder cannot be made.
    pub(crate) fn confine(
        &self,
        plan: &Arc<AgentPlan>,
        command: &[String],
        tenant: &str,
        user: Option<RunAs>,
    ) -> io::Result<Confinement> {
        let scratch = Arc::new(self.0.scratches.make(user)?);
        let home = plan.settings.private_homes.now().then(|| self.private_home(tenant, user)).transpose()?;
        let rules = plan.rules(&self.0, command, user, home.as_deref(), Some(scratch.path()));
        Ok(Confinement { common: self.0.clone(), plan: plan.clone(), rules: rules.into(), scratch, home })
    }

    /// Makes the jail of a command of this program that works on what agents wrote, as `user`: besides the system it reads
    /// `reads` and writes `writes`. These paths must be without links. Blocks for about a millisecond.
    ///
    /// # Errors
    /// The kernel refuses the rules.
    pub(crate) fn of_tool(
        &self,
        command: &[String],
        path_variable: &str,
        user: Option<RunAs>,
        reads: &[&Path],
        writes: &[&Path],
    ) -> io::Result<Enforcement> {
        let Common { kernel, inherited, .. } = *self.0;
        let environment = [("PATH".to_owned(), path_variable.into())].into();
        let plan = AgentPlan { settings: JailSettings::default(), states: Vec::new(), environment };
        let mut rules = plan.rules(&self.0, command, user, None, None);
        let of =
            |paths: &[&Path], access| paths.iter().map(|path| Rule { path: path.into(), access }).collect::<Vec<_>>();
        rules.extend(of(reads, Access::Read).into_iter().chain(of(writes, Access::Write)));
        let ruleset = (kernel != KernelRights::default()).then(|| ruleset::build(kernel, &rules, &[])).transpose()?;
        let (inherited, limits) = (inherited.with_private_files(), ResourceLimits::default());
        Ok(Enforcement { ruleset, drops_privileges: true, inherited, limits })
    }

    /// Removes the private `HOME`s of a tenant, of all users that its agents ran as; none of them may run. Returns their
    /// number. Blocks.
    ///
    /// # Errors
    /// A folder cannot be removed. A retry continues.
    pub(crate) fn remove_homes(&self, tenant: &str) -> io::Result<u64> {
        let name = home_name(tenant);
        let of_tenant = |found: &str, removed: bool| {
            let found = if removed { found.strip_prefix(REMOVED).unwrap_or_default() } else { found };
            found == name || found.strip_prefix(&name).is_some_and(|rest| rest.starts_with('-'))
        };
        let list = |removed: bool| -> Vec<String> {
            let entries = fs::read_dir(&self.0.homes).into_iter().flatten().flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            names.filter(|found| of_tenant(found, removed)).collect()
        };
        let homes = list(false);
        for home in &homes {
            // Renamed first: a process that is still ending cannot add to it by its path.
            let removed = self.0.homes.join(format!("{REMOVED}{home}"));
            scratch::remove_tree(&removed);
            fs::rename(self.0.homes.join(home), removed)?;
        }
        // Also those that an earlier removal has left.
        for removed in list(true) {
            let path = self.0.homes.join(removed);
            scratch::remove_tree(&path);
            if path.exists() {
                return Err(io::Error::other("not every file could be deleted"));
            }
        }
        Ok(homes.len() as u64)
    }

    /// Makes the `HOME` of a tenant. Its name is no text of a caller.
    fn private_home(&self, tenant: &str, user: Option<RunAs>) -> io::Result<PathBuf> {
        let name = home_name(tenant);
        // An agent of another user needs to pass through; it cannot list the folder.
        let homes = &self.0.homes;
        if !homes.is_dir() {
            DirBuilder::new().recursive(true).mode(0o711).create(homes)?;
            fs::set_permissions(homes, std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
        }
        let home = homes.join(match user {
            Some(user) => format!("{name}-{}", user.uid),
            None => name,
        });
        match DirBuilder::new().mode(0o700).create(&home) {
            Ok(()) => user.map_or(Ok(()), |user| lchown(&home, Some(user.uid), Some(user.gid)))?,
            // Made by a start that ended before it was given away.
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {
                let is_ours = fs::symlink_metadata(&home)?.uid() == rustix::process::geteuid().as_raw();
                if let Some(user) = user.filter(|_| is_ours) {
                    lchown(&home, Some(user.uid), Some(user.gid))?;
                }
            }
            Err(cause) => return Err(cause),
        }
        Ok(home)
    }
}

impl AgentPlan {
    /// Finds the preset and the tools, and makes the state folders of the preset that are missing in a shared `HOME`, if that
    /// is this program's own: in the jail the agent could not make them. Blocks.
    pub(crate) fn new(
        settings: JailSettings,
        command: &[String],
        environment: AgentEnvironment,
        is_other_user: bool,
    ) -> Self {
        let preset = settings.preset.unwrap_or_else(|| Preset::of_command(command));
        let mut plan = Self { settings, states: preset.states().to_vec(), environment };
        for path in plan.settings.read.iter().chain(&plan.settings.write).filter(|path| !path.exists()) {
            tracing::warn!(path = %path.display(), "path of `agent.read` or `agent.write` does not exist");
        }
        let path_variable = plan.variable("PATH").unwrap_or_default().to_owned();
        let packages = Packages { path_variable: &path_variable, is_broad: &|_| true };
        plan.states.extend(tools().filter(|(program, _)| packages.has(program)).flat_map(|(_, states)| states));
        let makes = plan.settings.mode != JailMode::Off && !plan.settings.private_homes.now() && !is_other_user;
        if makes && plan.home().is_some() {
            plan.states.iter().for_each(|state| plan.make(*state));
        }
        plan
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(|value| value.expose_secret())
    }

    /// The shared `HOME`, without links; `None` if there is none, or if it is no folder of one user.
    fn home(&self) -> Option<PathBuf> {
        let home = Path::new(self.variable("HOME")?);
        let home = home.is_absolute().then(|| home.canonicalize().ok()).flatten()?;
        (home.is_dir() && !is_broad(&home)).then_some(home)
    }

    /// Makes what is missing. A failure leaves it missing, and the agent reports it.
    fn make(&self, state: State) {
        let Some(path) = state.path(|name| self.variable(name)) else { return };
        let made = match state {
            State::Folder { .. } => DirBuilder::new().recursive(true).mode(0o700).create(&path),
            State::File { made_as, .. } => {
                let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
                file.and_then(|mut file| io::Write::write_all(&mut file, made_as.as_bytes()))
            }
        };
        if let Err(cause) = made.as_ref()
            && cause.kind() != io::ErrorKind::AlreadyExists
        {
            tracing::debug!(path = %path.display(), %cause, "state of an agent cannot be made");
        }
    }

    /// Everything that the agent may access but its workspace. `home` is the private one.
    fn rules(
        &self,
        common: &Common,
        command: &[String],
        user: Option<RunAs>,
        home: Option<&Path>,
        scratch: Option<&Path>,
    ) -> Vec<Rule> {
        let mut rules = BTreeSet::new();
        let mut grant = |path: &Path, access: Access, hidden: &[PathBuf]| {
            if let Ok(path) = path.canonicalize() {
                rules.extend(around(&path, access, hidden));
            }
        };
        let of_system = hidden_in_the_system(common, user);
        for path in places::SYSTEM.into_iter().chain(places::SYSTEM_LINKS) {
            grant(Path::new(path), Access::Read, &of_system);
        }
        // Programs list it, and its names are no secret.
        grant(Path::new("/etc"), Access::List, &[]);
        for (path, access) in places::DEVICES {
            grant(Path::new(path), access, &[]);
        }
        let shared = self.home();
        let is_broad = |folder: &Path| {
            let holds_home = shared.iter().any(|home| home.starts_with(folder));
            is_broad(folder) || holds_home || common.hidden.iter().any(|hidden| hidden.starts_with(folder))
        };
        let path_variable = self.variable("PATH").unwrap_or_default();
        let packages = Packages { path_variable, is_broad: &is_broad };
        let programs = packages.of_command(command).into_iter().chain(packages.of_path_variable());
        let own = common.own_program.iter().cloned();
        for path in programs.chain(own).chain(self.settings.read.iter().cloned()) {
            grant(&path, Access::Read, &of_system);
        }
        match (home, &shared) {
            (Some(home), _) => grant(home, Access::Write, &[]),
            (None, Some(home)) => {
                grant(home, Access::Read, &common.hidden);
                let states = self.states.iter().filter_map(|state| state.path(|name| self.variable(name)));
                states.filter(|path| is_place(path)).for_each(|path| grant(&path, Access::Write, &common.hidden));
            }
            (None, None) => {}
        }
        self.settings.write.iter().for_each(|path| grant(path, Access::Write, &common.hidden));
        scratch.iter().for_each(|scratch| grant(scratch, Access::Write, &[]));
        without_covered(rules)
    }
}

/// Hidden paths, with those that only file modes protect if the agent is root.
fn hidden_in_the_system(common: &Common, user: Option<RunAs>) -> Vec<PathBuf> {
    let uid = user.map_or_else(|| rustix::process::geteuid().as_raw(), |user| user.uid);
    let of_root = places::OF_ROOT.iter().map(|path| without_links(Path::new(path))).filter(|path| path.exists());
    let of_root: Vec<_> = if uid == 0 { of_root.collect() } else { Vec::new() };
    common.hidden.iter().cloned().chain(of_root).collect()
}

impl Confinement {
    /// The variables that the agent and its terminal commands get: `TMPDIR`, and `HOME` if it is private.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        [("TMPDIR", self.scratch.path())].into_iter().chain(self.home.iter().map(|home| ("HOME", home.as_path())))
    }

    /// Makes the jail for work in these folders, which must be without links. Blocks.
    ///
    /// # Errors
    /// The kernel refuses the rules.
    pub(crate) fn enforcement(&self, workspaces: &[PathBuf]) -> io::Result<Enforcement> {
        let kernel = self.common.kernel;
        let is_on = self.plan.settings.mode != JailMode::Off;
        let ruleset = if is_on && kernel != KernelRights::default() {
            let writes = workspaces.iter().map(|path| Rule { path: path.clone(), access: Access::Write });
            let rules: Vec<_> = self.rules.iter().cloned().chain(writes).collect();
            Some(ruleset::build(kernel, &rules, &self.plan.settings.ports)?)
        } else {
            None
        };
        let (inherited, limits) = (self.common.inherited, self.plan.settings.limits);
        Ok(Enforcement { ruleset, drops_privileges: is_on, inherited, limits })
    }
}

fn is_broad(folder: &Path) -> bool {
    // Both hold credentials beside programs.
    let of_user = folder.file_name().is_some_and(|name| name == ".local" || name == ".cargo");
    of_user || places::BROAD.iter().any(|broad| folder == Path::new(broad))
}

/// True if the path exists and its last part is no link: an agent must not extend its rights by a link that it made.
fn is_place(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_symlink())
}

/// The path without links; its existing part is resolved. Blocks.
pub(crate) fn without_links(path: &Path) -> PathBuf {
    if let Ok(whole) = path.canonicalize() {
        return whole;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => without_links(parent).join(name),
        _ => path.to_owned(),
    }
}

/// Drops rules for which a folder above has the same access.
fn without_covered(rules: BTreeSet<Rule>) -> Vec<Rule> {
    let is_covered = |rule: &Rule| {
        let mut above = rule.path.ancestors().skip(1);
        above.any(|folder| rules.contains(&Rule { path: folder.to_owned(), access: rule.access }))
    };
    rules.iter().filter(|rule| !is_covered(rule)).cloned().collect()
}

#[cfg(test)]
mod tests;
