//! Control groups (cgroup v2): the one guarantee that nothing of a process group outlives it.
//!
//! Where this program may make control groups below its own (as root, or where the folder was delegated to it), each
//! process group gets one of its own, which its processes cannot leave whatever they do to their session, their group
//! or their environment. Elsewhere nothing is made, and the marks of [`orphans`](crate::process::orphans) are what
//! there is.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::{AsRawFd, RawFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::orphans;

/// What the folders of this program's runs begin with.
const PREFIX: &str = "lumilink-";
/// Tries to remove a folder whose last process has just been killed; with pauses that double from 1 ms, a quarter of a
/// second.
const REMOVALS: u32 = 8;

/// Where control groups are made, if they may be. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct ControlGroups {
    /// The folder of this run.
    folder: Option<Arc<Path>>,
}

#[derive(Debug)]
pub(crate) struct ControlGroup {
    folder: PathBuf,
    /// Who writes to it enters.
    entrance: File,
}

impl ControlGroups {
    /// Looks whether control groups may be made, and kills what is in those of runs that are dead. `run` names this
    /// run as [`orphans`] does.
    pub(crate) fn find(run: &str) -> Self {
        let Some(own) = own_folder() else { return Self { folder: None } };
        remove_those_of_dead_runs(&own);
        let folder = own.join(format!("{PREFIX}{run}"));
        // A kernel before 5.14 cannot kill a whole one.
        let allowed = fs::create_dir_all(&folder).is_ok() && folder.join("cgroup.kill").exists();
        // Empty until the first group is made; a folder that cannot be used is not left behind.
        let _ = fs::remove_dir(&folder);
        Self { folder: allowed.then(|| folder.into()) }
    }

    /// Whether they may be made.
    pub(crate) fn are_allowed(&self) -> bool {
        self.folder.is_some()
    }

    /// Makes one; `None` where they may not be made, or this one cannot.
    pub(crate) fn make(&self, group: u64) -> Option<ControlGroup> {
        let folder = self.folder.as_ref()?.join(group.to_string());
        fs::create_dir_all(&folder).ok()?;
        let entrance = File::options().write(true).open(folder.join("cgroup.procs")).ok()?;
        Some(ControlGroup { folder, entrance })
    }
}

impl ControlGroup {
    /// For [`enter`], between fork and exec.
    pub(crate) fn entrance(&self) -> RawFd {
        self.entrance.as_raw_fd()
    }

    /// Kills every process in it.
    pub(crate) fn kill(&self) {
        kill(&self.folder);
    }

    /// Kills what is left and removes it.
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
    /// Removes the folder of one that nothing ever entered, and the folder of the run with the last one.
    fn drop(&mut self) {
        // Both are refused as long as something is in there.
        let _ = fs::remove_dir(&self.folder);
        let _ = self.folder.parent().map(fs::remove_dir);
    }
}

/// Puts the calling process into a control group. Makes one system call and allocates nothing.
pub(crate) fn enter(entrance: RawFd) {
    // SAFETY: the buffer lives through the call; a refusal leaves the process where it is, which is no worse than
    // where control groups are not allowed.
    unsafe { libc::write(entrance, c"0".as_ptr().cast(), 1) };
}

fn kill(folder: &Path) {
    // An error means that it is gone.
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
        // What was just killed may hold them for a moment; then the next start removes them.
        folders(&run).for_each(|group| drop(fs::remove_dir(group)));
        let _: io::Result<()> = fs::remove_dir(run);
    }
}

fn folders(of: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(of).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_dir())
}
