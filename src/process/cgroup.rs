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

use super::orphans;

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
    /// `run` identifies this run, as in [`orphans`].
    pub(crate) fn find(run: &str) -> Self {
        let Some(own) = own_folder() else { return Self { folder: None } };
        remove_those_of_dead_runs(&own);
        let folder = own.join(format!("{PREFIX}{run}"));
        // Kernels before 5.14 have no `cgroup.kill`, so a control group cannot be killed as a whole.
        let allowed = fs::create_dir_all(&folder).is_ok() && folder.join("cgroup.kill").exists();
        // The directory is created again with the first group; one that cannot be used is not left behind.
        let _ = fs::remove_dir(&folder);
        Self { folder: allowed.then(|| folder.into()) }
    }

    /// True if control groups can be created.
    pub(crate) fn are_allowed(&self) -> bool {
        self.folder.is_some()
    }

    /// Creates the control group of the process group number `group`. `None` if control groups are not allowed or
    /// this one cannot be created.
    pub(crate) fn make(&self, group: u64) -> Option<ControlGroup> {
        let folder = self.folder.as_ref()?.join(group.to_string());
        fs::create_dir_all(&folder).ok()?;
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

impl Drop for ControlGroup {
    /// Removes the directory of a group that no process entered, and the directory of the run with its last group.
    fn drop(&mut self) {
        // The kernel refuses to remove a directory that still contains groups or processes.
        let _ = fs::remove_dir(&self.folder);
        let _ = self.folder.parent().map(fs::remove_dir);
    }
}

/// Moves the calling process into a control group. False if the kernel refuses that; the process stays where it is.
/// Async-signal-safe: one system call, no allocation.
pub(crate) fn enter(entrance: RawFd) -> bool {
    // SAFETY: the buffer is valid for the whole call.
    unsafe { libc::write(entrance, c"0".as_ptr().cast(), 1) == 1 }
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
    let _ = File::options().write(true).open(folder.join("cgroup.kill")).and_then(|mut file| file.write_all(b"1"));
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
        name.and_then(|name| name.strip_prefix(PREFIX)).is_some_and(|run| !orphans::run_lives(run))
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
