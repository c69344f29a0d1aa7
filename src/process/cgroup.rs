//! Control groups (cgroup v2): no process of an agent outlives it, even if this program is killed.
//!
//! If this program may create control groups below its own (it runs as root, or the directory is delegated to it),
//! each process group gets its own control group. Its processes cannot leave it by changing their session, process
//! group or environment. Otherwise no control group is created, and [`orphans`](crate::process::orphans) finds processes
//! that left their group by parentage.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::{AsRawFd, RawFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::run::run_lives;
use crate::domain::jail::limits::{ControlGroupState, Controller, ResourceLimits};

/// Prefix of the directories that hold the control groups of one run.
const PREFIX: &str = "lumilink-";
/// Attempts to remove a control group whose last process was just killed. With pauses that double from 1 ms, they
/// take a quarter of a second in total.
const REMOVALS: u32 = 8;

/// Creates control groups if the system allows it. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct ControlGroups {
    /// The directory of this run; `None` if control groups cannot be created.
    folder: Option<Arc<Path>>,
    /// Controllers that are on in the directory of this run.
    controllers: Arc<[Controller]>,
}

/// The control group of one process group.
#[derive(Debug)]
pub(crate) struct ControlGroup {
    folder: PathBuf,
    /// The file `cgroup.procs`: a process that writes `0` to it enters the group.
    entrance: File,
}

impl ControlGroups {
    /// Checks whether control groups can be created, and kills the processes in the control groups of dead runs.
    /// `run` identifies this run, as in [`orphans`](crate::process::orphans).
    pub(crate) fn find(run: &str) -> Self {
        let Some(own) = own_folder() else { return Self { folder: None, controllers: Arc::default() } };
        remove_those_of_dead_runs(&own);
        let folder = own.join(format!("{PREFIX}{run}"));
        // Kernels before 5.14 have no `cgroup.kill`, so a control group cannot be killed as a whole.
        let allowed = fs::create_dir_all(&folder).is_ok() && folder.join("cgroup.kill").exists();
        let controllers = if allowed { turn_on(&own, &folder) } else { Vec::new() };
        // The directory is created again with the first group; one that cannot be used is not left behind.
        let _ = fs::remove_dir(&folder);
        Self { folder: allowed.then(|| folder.into()), controllers: controllers.into() }
    }

    /// The state of control groups on this machine.
    pub(crate) fn state(&self) -> ControlGroupState {
        ControlGroupState { is_allowed: self.folder.is_some(), controllers: self.controllers.to_vec() }
    }

    /// Creates the control group of the process group number `group`, with its limits as far as their controllers are on.
    /// `None` if control groups are not allowed or this one cannot be created.
    pub(crate) fn make(&self, group: u64, limits: ResourceLimits) -> Option<ControlGroup> {
        let run = self.folder.as_ref()?;
        let folder = run.join(group.to_string());
        if fs::create_dir(&folder).is_err() {
            // The directory of the run is removed with its last group.
            fs::create_dir_all(&folder).ok()?;
            switch_on(run, &self.controllers);
        }
        if let Err(cause) = write_limits(&folder, limits, &self.controllers) {
            tracing::warn!(%cause, "a limit of an agent's control group cannot be set");
        }
        let entrance = File::options().write(true).open(folder.join("cgroup.procs")).ok()?;
        Some(ControlGroup { folder, entrance })
    }
}

impl ControlGroup {
    /// The descriptor for [`enter`], which the child calls between fork and exec.
    pub(crate) fn entrance(&self) -> RawFd {
        self.entrance.as_raw_fd()
    }

    /// The directory of the group.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Sends SIGKILL to every process in the group.
    pub(crate) fn kill(&self) {
        kill(&self.folder);
    }

    /// Kills the remaining processes and removes the group. Gives up after about 250 ms; the next start of the
    /// program removes it then.
    pub(crate) async fn remove(self) {
        self.kill();
        let mut pause = Duration::from_millis(1);
        for _ in 0..REMOVALS {
            if fs::remove_dir(&self.folder).is_ok() {
                break;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }
}

/// Turns the controllers on for the groups of this run. Those that another program keeps from us stay off: the root of a
/// delegated part that holds processes itself, for instance, passes none on.
fn turn_on(own: &Path, run: &Path) -> Vec<Controller> {
    switch_on(own, &Controller::ALL);
    let offered = fs::read_to_string(run.join("cgroup.controllers")).unwrap_or_default();
    let offered = |it: &Controller| offered.split_ascii_whitespace().any(|name| name == it.as_str());
    switch_on(run, &Controller::ALL);
    Controller::ALL.into_iter().filter(offered).collect()
}

/// Passes controllers on to the groups in `folder`, each by itself: one that is refused does not refuse the others.
fn switch_on(folder: &Path, controllers: &[Controller]) {
    for controller in controllers {
        let _ = write(&folder.join("cgroup.subtree_control"), &format!("+{}", controller.as_str()));
    }
}

fn write_limits(folder: &Path, limits: ResourceLimits, controllers: &[Controller]) -> io::Result<()> {
    for (_, file, text) in limits.files().filter(|(controller, ..)| controllers.contains(controller)) {
        write(&folder.join(file), &text)?;
    }
    Ok(())
}

fn write(file: &Path, text: &str) -> io::Result<()> {
    File::options().write(true).open(file)?.write_all(text.as_bytes())
}

impl Drop for ControlGroup {
    /// Removes the directory of a group that no process entered, and the directory of the run with its last group.
    fn drop(&mut self) {
        // The kernel refuses to remove a directory that still contains groups or processes.
        let _ = fs::remove_dir(&self.folder);
        let _ = self.folder.parent().map(fs::remove_dir);
    }
}

/// Moves the calling process into a control group, and gives it a view in which that is the root, where the kernel allows
/// that (root). False if it cannot be moved; the process stays where it is. Async-signal-safe: two system calls, no
/// allocation.
pub(crate) fn enter(entrance: RawFd) -> bool {
    // SAFETY: the buffer is valid for the whole call, and the second call has no pointers.
    unsafe {
        let is_inside = libc::write(entrance, c"0".as_ptr().cast(), 1) == 1;
        is_inside.then(|| libc::unshare(libc::CLONE_NEWCGROUP));
        is_inside
    }
}

/// The number of the group of this run in whose control group a process is.
pub(super) fn group_of(pid: u32, run: &str) -> Option<u64> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let below = path.split_once(&format!("/{PREFIX}{run}/"))?.1;
    below.split('/').next()?.parse().ok()
}

fn kill(folder: &Path) {
    // An error means that the group no longer exists.
    let _ = write(&folder.join("cgroup.kill"), "1");
}

/// The control group of this process, in the hierarchy of version 2.
fn own_folder() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let at = fields.next()?;
        (fields.next()? == "cgroup2").then_some(at)
    })?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(Path::new(mount).join(own.trim_start_matches('/')))
}

fn remove_those_of_dead_runs(own: &Path) {
    for run in folders(own).filter(|folder| {
        let name = folder.file_name().and_then(|name| name.to_str());
        name.and_then(|name| name.strip_prefix(PREFIX)).is_some_and(|run| !run_lives(run))
    }) {
        kill(&run);
        // Processes that were just killed may keep their groups busy for a moment; then the next start removes them.
        folders(&run).for_each(|group| drop(fs::remove_dir(group)));
        let _: io::Result<()> = fs::remove_dir(run);
    }
}

fn folders(of: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(of).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_written_for_the_controllers_that_are_on() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        for name in ["pids.max", "memory.max", "cpu.max", "cgroup.subtree_control"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let limits = ResourceLimits { processes: 512, memory_bytes: 1 << 30, cpu_percent: 50 };
        write_limits(folder.path(), limits, &[Controller::Pids, Controller::Cpu]).unwrap();
        assert_eq!((read("pids.max").as_str(), read("memory.max").as_str()), ("512", ""));
        assert_eq!(read("cpu.max"), "50000 100000");
        fs::remove_file(folder.path().join("memory.max")).unwrap();
        assert!(write_limits(folder.path(), limits, &Controller::ALL).is_err(), "a limit that fails is reported");
    }

    #[test]
    fn controllers_of_this_machine_are_reported_as_they_are() {
        let groups = ControlGroups::find(&crate::process::run::run_of_this_process());
        let Some(group) = groups.make(u64::MAX, ResourceLimits { processes: 77, ..ResourceLimits::default() }) else {
            eprintln!("NOT CHECKED: control groups cannot be created here");
            return;
        };
        let limit = fs::read_to_string(group.folder().join("pids.max"));
        let is_on = groups.state().controllers.contains(&Controller::Pids);
        assert_eq!(limit.ok().as_deref().map(str::trim), is_on.then_some("77"));
    }
}
