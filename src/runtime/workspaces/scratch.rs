//! The temporary git folder in which git reads a workspace, in place of the workspace's own `.git`.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::{DirBuilderExt, FileTypeExt},
    path::{Path, PathBuf},
    time::Duration,
};

use super::git::{Call, Git, Output, Rights};
use crate::{
    domain::{
        automation::tree::shown,
        turn::outcome::{ErrorCode, Failure},
    },
    process::{capabilities, ownership, user::RunAs},
};

/// Time limit of one git call. Adding a checkout of 100,000 files, the slowest call, takes 20 s.
pub(super) const TIMEOUT: Duration = Duration::from_secs(120);
/// Largest list of all files of a workspace, in bytes: half a million paths of 60 bytes.
pub(super) const PATHS_BYTES: usize = 32 * 1024 * 1024;
/// Largest number of folders of a workspace that one search reads, which bounds its time.
pub(super) const MAX_SEARCHED_FOLDERS: usize = 50_000;
/// Time that a git call runs before pipes that could block it are searched for; most calls take milliseconds.
const PIPE_AFTER: Duration = Duration::from_secs(3);
/// The most pipes that a search returns; the first one shows what is wrong.
const MAX_PIPES: usize = 20;

/// Temporary git folder, with the rights of the calls that use it. Dropping it removes the folder.
pub(super) struct Scratch {
    pub(super) folder: PathBuf,
    pub(super) rights: Rights,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A folder that cannot be removed now is removed when a later runtime starts.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The failure of work on the baseline or on the workspace. An error of the kind `InvalidData` is one of the files
/// themselves, which a repeat meets again.
pub(super) fn failed(cause: &io::Error) -> Failure {
    let code = match cause.kind() {
        io::ErrorKind::InvalidData => ErrorCode::WorkspaceUnreadable,
        _ => ErrorCode::WorkspaceUnavailable,
    };
    Failure::new(code, format!("the baseline of the workspace: {cause}"))
}

/// Does work on files with the rights of a user, if one is given.
pub(super) fn as_user<T>(user: Option<RunAs>, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let _identity = user.map(RunAs::assume_for_files).transpose()?;
    work()
}

/// Does work on files as git does with these rights: in the jail a process of root has no capabilities.
pub(super) fn as_git<T>(rights: &Rights, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let is_bare = rights.user.is_none() && rights.jail.is_some();
    let _laid_down = is_bare.then(capabilities::lay_down).transpose()?;
    as_user(rights.user, work)
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other);
    done.and_then(|result| result).map_err(|cause| failed(&cause))
}

/// Gives a folder of this program to the user, unless it is given already.
pub(super) fn give(folder: &Path, user: Option<RunAs>) -> io::Result<()> {
    let Some(user) = user else { return Ok(()) };
    let given = ownership::belongs_to(folder, user);
    given.and_then(|given| if given { Ok(()) } else { ownership::hand_over(folder, user) }).map_err(io::Error::other)
}

/// Splits at NUL and drops a last part without one.
pub(super) fn whole_parts(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split_inclusive(|byte| *byte == 0).filter_map(|part| part.strip_suffix(b"\0"))
}

impl Scratch {
    /// Creates a minimal git folder of `user`. Its attributes override those of the workspace, whose filters and encodings
    /// could run commands, fail or hide content.
    pub(super) fn new(parent: &Path, user: Option<RunAs>) -> io::Result<Self> {
        let folder = parent.join(format!("scratch-{}", uuid::Uuid::new_v4()));
        fs::DirBuilder::new().mode(0o700).create(&folder)?;
        let scratch = Self { folder, rights: Rights::default() };
        give(&scratch.folder, user)?;
        let at = |name: &str| scratch.folder.join(name);
        as_user(user, || {
            fs::create_dir(at("info"))?;
            fs::create_dir(at("refs"))?;
            fs::write(at("HEAD"), "ref: refs/heads/baseline\n")?;
            // Names that other systems take for `.git` are compared like others; no commit gets them.
            let config = "[core]\n\trepositoryformatversion = 0\n\tbare = false\n\tprotectNTFS = false\n\tprotectHFS = false\n";
            fs::write(at("config"), config)?;
            fs::write(at("info/attributes"), "* -text !eol !filter !ident !working-tree-encoding !diff !merge\n")
        })?;
        Ok(scratch)
    }

    /// The output of [`Self::call`].
    pub(super) async fn run(
        &self,
        git: &Git,
        workspace: &Path,
        objects: &Path,
        kept: Option<&Path>,
        args: Vec<OsString>,
        max_output: usize,
    ) -> Result<Vec<u8>, Failure> {
        Ok(self.call(git, workspace, objects, kept, args, max_output).await?.bytes)
    }

    /// Runs git on the workspace, with objects in `objects`, and those of `kept` besides.
    ///
    /// # Errors
    /// `workspace_unreadable` if git refuses the files, else `workspace_unavailable`.
    pub(super) async fn call(
        &self,
        git: &Git,
        workspace: &Path,
        objects: &Path,
        kept: Option<&Path>,
        args: Vec<OsString>,
        max_output: usize,
    ) -> Result<Output, Failure> {
        let (env, rights) = (self.variables(workspace, objects, kept), self.rights.clone());
        let running = git.execute(Call { env, max_output, rights, ..Call::local(workspace, args, TIMEOUT) });
        tokio::select! {
            finished = running => finished?.read(),
            pipe = self.blocking_pipe(workspace) => {
                let path = shown(&pipe);
                let why = format!("git cannot read {path:?}, which is a pipe: remove it");
                Err(failed(&io::Error::new(io::ErrorKind::InvalidData, why)))
            }
        }
    }

    /// Returns once a call runs for [`PIPE_AFTER`] and there is a pipe that blocks git; else never.
    async fn blocking_pipe(&self, workspace: &Path) -> Vec<u8> {
        tokio::time::sleep(PIPE_AFTER).await;
        match blocking_pipes(workspace, self.rights.user).await.into_iter().next() {
            Some(pipe) => pipe,
            None => std::future::pending().await,
        }
    }

    /// Variables by which git uses this folder, and not that of the workspace.
    pub(super) fn variables(
        &self,
        workspace: &Path,
        objects: &Path,
        kept: Option<&Path>,
    ) -> Vec<(&'static str, OsString)> {
        let mut env = vec![
            ("GIT_DIR", self.folder.clone().into()),
            ("GIT_WORK_TREE", workspace.to_owned().into()),
            ("GIT_INDEX_FILE", self.folder.join("index").into()),
            ("GIT_OBJECT_DIRECTORY", objects.to_owned().into()),
        ];
        if let Some(kept) = kept {
            env.push(("GIT_ALTERNATE_OBJECT_DIRECTORIES", kept.to_owned().into()));
        }
        env
    }
}

/// Finds the pipes that block git, as paths relative to the workspace: it opens each `.gitignore` and `.gitattributes`, and
/// an open pipe without a writer waits for one. Does not follow links.
pub(super) async fn blocking_pipes(workspace: &Path, user: Option<RunAs>) -> Vec<Vec<u8>> {
    let top = workspace.to_owned();
    let search = move || as_user(user, || Ok(pipes_in(&top)));
    blocking(search).await.unwrap_or_default()
}

fn pipes_in(workspace: &Path) -> Vec<Vec<u8>> {
    let (mut found, mut open) = (Vec::new(), vec![PathBuf::new()]);
    for _ in 0..MAX_SEARCHED_FOLDERS {
        let Some(relative) = open.pop() else { break };
        let Ok(entries) = fs::read_dir(workspace.join(&relative)) else { continue };
        for entry in entries.flatten() {
            let (name, Ok(kind)) = (entry.file_name(), entry.file_type()) else { continue };
            if kind.is_dir() {
                open.push(relative.join(name));
            } else if kind.is_fifo() && (name == ".gitignore" || name == ".gitattributes") {
                found.push(relative.join(name).into_os_string().into_encoded_bytes());
            }
        }
    }
    found.truncate(MAX_PIPES);
    found
}
