//! Private folders for temporary files, one for each agent process: its `TMPDIR`.
//!
//! They are in one folder per run of the program, which holds a lock while the program lives: a later run removes the
//! folders of dead ones.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt, lchown},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use uuid::Uuid;

use super::ruleset::{is_noexec, is_own};
use crate::process::user::RunAs;

/// Prefix of the folder of a run.
const PREFIX: &str = "lumilink-tmp-";
/// File in that folder which the run has locked.
const LOCK: &str = ".lock";
/// Longest path of the folder in which runs make theirs, in bytes: agents put UNIX sockets into `TMPDIR`, whose paths
/// have at most 107.
const MAX_PARENT_BYTES: usize = 32;

/// Makes the folders of one run.
#[derive(Debug)]
pub(crate) struct Scratches {
    folder: PathBuf,
    _lock: File,
    made: AtomicU64,
}

/// One private folder. Dropping it deletes the folder, on a thread.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    /// Keeps the lock of the run.
    _of: Arc<Scratches>,
}

impl Scratches {
    /// Makes the folder of this run in `parent`, or in `/tmp` or `otherwise` if programs cannot be run from the ones
    /// before, and removes those of dead runs. Blocks.
    ///
    /// # Errors
    /// None of the folders can be written.
    pub(crate) fn new(parent: &Path, otherwise: &Path) -> io::Result<Self> {
        let short = Some(parent).filter(|it| it.is_absolute() && it.as_os_str().len() <= MAX_PARENT_BYTES);
        let mut last = None;
        for parent in short.into_iter().chain([Path::new("/tmp"), otherwise]) {
            if is_noexec(parent) {
                continue;
            }
            match Self::make_in(parent) {
                Ok(made) => {
                    remove_those_of_dead_runs(parent, &made.folder);
                    return Ok(made);
                }
                Err(cause) => last = Some(cause),
            }
        }
        Err(last.unwrap_or_else(|| io::Error::other("no folder for temporary files can hold programs")))
    }

    fn make_in(parent: &Path) -> io::Result<Self> {
        let name = format!("{PREFIX}{:.12}", Uuid::new_v4().simple().to_string());
        let folder = parent.canonicalize()?.join(name);
        DirBuilder::new().mode(0o700).create(&folder)?;
        let lock = File::create(folder.join(LOCK))?;
        lock.lock()?;
        // Users that agents run as pass through; what is inside has the rights of its owner.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o711))?;
        Ok(Self { folder, _lock: lock, made: AtomicU64::new(0) })
    }

    /// Makes a folder that only the agent's user can enter. Blocks.
    pub(crate) fn make(self: &Arc<Self>, user: Option<RunAs>) -> io::Result<Scratch> {
        let path = self.folder.join(self.made.fetch_add(1, Ordering::Relaxed).to_string());
        DirBuilder::new().mode(0o700).create(&path)?;
        if let Some(user) = user {
            lchown(&path, Some(user.uid), Some(user.gid))?;
        }
        Ok(Scratch { path, _of: self.clone() })
    }

    /// The folder of this run.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Removes the folder of this run, which must have no agents any more. Blocks.
    pub(crate) fn remove(&self) {
        remove_tree(&self.folder);
    }
}

impl Scratch {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        // An agent may leave many files. The end of the program removes the rest with the folder of the run.
        drop(std::thread::Builder::new().spawn(move || remove_tree(&path)));
    }
}

/// Removes a folder, also one whose folders its user made read-only, as module caches do.
pub(crate) fn remove_tree(path: &Path) {
    if fs::remove_dir_all(path).is_err() && path.is_dir() {
        make_writable(path);
        let _ = fs::remove_dir_all(path);
    }
}

fn make_writable(folder: &Path) {
    let _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o700));
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .for_each(|it| make_writable(&it.path()));
}

fn remove_those_of_dead_runs(parent: &Path, own: &Path) {
    let uid = rustix::process::geteuid().as_raw();
    let of_dead_run = |path: &PathBuf| {
        let is_ours = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()));
        is_ours
            && path != own
            && fs::symlink_metadata(path).is_ok_and(|it| is_own(&it, uid))
            && File::open(path.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok())
    };
    let entries = fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path());
    let left: Vec<_> = entries.filter(of_dead_run).collect();
    if !left.is_empty() {
        drop(std::thread::Builder::new().spawn(move || left.iter().for_each(|path| remove_tree(path))));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::MetadataExt,
        time::{Duration, Instant},
    };

    use super::*;

    fn eventually(what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !condition() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn folder_is_private_and_removed_with_read_only_folders_in_it() {
        let parent = tempfile::Builder::new().prefix("s").rand_bytes(4).tempdir().unwrap();
        let scratches = Arc::new(Scratches::new(parent.path(), parent.path()).unwrap());
        let scratch = scratches.make(None).unwrap();
        let path = scratch.path().to_owned();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        fs::create_dir(path.join("module")).unwrap();
        fs::write(path.join("module/file"), "").unwrap();
        fs::set_permissions(path.join("module"), fs::Permissions::from_mode(0o555)).unwrap();
        drop(scratch);
        eventually("the folder is removed", || !path.exists());
        scratches.remove();
        assert!(fs::read_dir(parent.path()).unwrap().next().is_none());
    }

    #[test]
    fn folders_of_dead_runs_are_removed_at_the_next_start() {
        let parent = tempfile::Builder::new().prefix("s").rand_bytes(4).tempdir().unwrap();
        let make = || Scratches::new(parent.path(), parent.path()).unwrap();
        let (dead, alive) = (make(), make());
        let left = dead.folder.clone();
        fs::write(left.join("file"), "").unwrap();
        drop(dead);
        let newest = make();
        eventually("the folder of the dead run is removed", || !left.exists());
        assert!(alive.folder.exists() && newest.folder.exists());
    }
}
