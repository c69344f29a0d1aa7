//! Adds the files of a workspace to an index, and leaves out what git cannot read.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use super::{
    git::{Call, Git, Input},
    large::LargeFiles,
    scratch::{MAX_SEARCHED_FOLDERS, PATHS_BYTES, Scratch, TIMEOUT, as_git, blocking, failed, whole_parts},
};
use crate::domain::{
    automation::omitted::Obstacle,
    turn::outcome::{ErrorCode, Failure},
};

/// The most paths that are left out: git compares each with each file.
const MAX_PATHS: usize = 1000;
/// Largest list of the entries of an index, in bytes: a third of a million paths of 45 bytes.
const ENTRIES_BYTES: usize = PATHS_BYTES;

/// Paths that git cannot read, relative to the workspace, as bytes without a slash at the end.
#[derive(Debug, Default)]
pub(super) struct Omitted(BTreeMap<Vec<u8>, Obstacle>);

impl Omitted {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], Obstacle)> {
        self.0.iter().map(|(path, obstacle)| (path.as_slice(), *obstacle))
    }

    /// # Errors
    /// There are more than [`MAX_PATHS`].
    fn add(&mut self, path: &[u8], obstacle: Obstacle) -> io::Result<()> {
        self.0.entry(path.to_vec()).or_insert(obstacle);
        match self.0.len() > MAX_PATHS {
            true => {
                let why = format!("git cannot read more than {MAX_PATHS} paths of the workspace");
                Err(io::Error::new(io::ErrorKind::InvalidData, why))
            }
            false => Ok(()),
        }
    }

    /// Adds the repositories among the paths, separated by NUL: git lists each with a slash at the end.
    fn add_repositories(&mut self, paths: &[u8]) -> io::Result<()> {
        let mut repositories = whole_parts(paths).filter_map(|path| path.strip_suffix(b"/"));
        repositories.try_for_each(|path| self.add(path, Obstacle::Repository))
    }

    /// Adds those of the paths, separated by NUL, that git cannot read.
    fn add_among(&mut self, paths: &[u8], workspace: &Path) -> io::Result<()> {
        self.add_repositories(paths)?;
        for path in whole_parts(paths).filter(|path| !path.ends_with(b"/")) {
            if let Some(obstacle) = obstacle_of(&workspace.join(OsStr::from_bytes(path))) {
                self.add(path, obstacle)?;
            }
        }
        Ok(())
    }
}

fn obstacle_of(path: &Path) -> Option<Obstacle> {
    let kind = fs::symlink_metadata(path).ok()?.file_type();
    if kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device() {
        return Some(Obstacle::Special);
    }
    if kind.is_symlink() && path.file_name() == Some(OsStr::new(".gitmodules")) {
        return Some(Obstacle::ModulesLink);
    }
    (kind.is_file() && is_unreadable(path)).then_some(Obstacle::Unreadable)
}

fn is_unreadable(file: &Path) -> bool {
    // A pipe that replaced the file meanwhile must not hang the thread.
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let opened = fs::File::options().read(true).custom_flags(flags).open(file);
    opened.is_err_and(|cause| cause.kind() == io::ErrorKind::PermissionDenied)
}

/// Finds the folders that cannot be listed, as paths relative to the workspace. Follows no link, and reads no repository
/// inside the workspace.
fn closed_folders(workspace: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![PathBuf::new()]);
    for _ in 0..MAX_SEARCHED_FOLDERS {
        let Some(relative) = open.pop() else { break };
        let folder = workspace.join(&relative);
        let is_top = relative.as_os_str().is_empty();
        if !is_top && fs::symlink_metadata(folder.join(".git")).is_ok() {
            continue;
        }
        match fs::read_dir(&folder) {
            Ok(entries) => {
                let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
                let names = folders.map(|entry| entry.file_name()).filter(|name| name != ".git");
                open.extend(names.map(|name| relative.join(name)));
            }
            Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied && !is_top => found.push(relative),
            Err(_) => {}
        }
    }
    found
}

/// The workspace whose files are added, and the index that gets them.
pub(super) struct Adding<'a> {
    pub git: &'a Git,
    pub scratch: &'a Scratch,
    pub workspace: &'a Path,
    /// Folder of new objects, and of older ones.
    pub objects: &'a Path,
    pub kept: Option<&'a Path>,
    /// Files that are not read.
    pub large: &'a LargeFiles,
    /// True if git warned when it listed the files: some folders cannot be listed.
    pub is_warned: bool,
}

impl Adding<'_> {
    /// Adds the workspace's files to the index, and returns what it left out: the repositories among the `listed` paths, which
    /// are separated by NUL, and folders that git cannot list. git adds nothing at all if it meets a file that it cannot
    /// read, or a repository without a commit: what could be the cause is searched for then, and left out.
    ///
    /// # Errors
    /// `workspace_unreadable` if git refuses the files for another reason, or too many; else `workspace_unavailable`.
    pub(super) async fn add_all(&self, listed: &[u8]) -> Result<Omitted, Failure> {
        let mut omitted = if self.is_warned { self.closed().await? } else { Omitted::default() };
        omitted.add_repositories(listed).map_err(|cause| failed(&cause))?;
        let Err(first) = self.add_without(&omitted).await else { return Ok(omitted) };
        let known = omitted.0.len();
        omitted = self.with_unreadable(omitted).await?;
        let second = match omitted.0.len() > known {
            true => self.add_without(&omitted).await,
            false => Err(first),
        };
        let Err(second) = second else { return Ok(omitted) };
        // A repository that the index has, and that lost its commit.
        let known = omitted.0.len();
        omitted = self.with_recorded_repositories(omitted).await?;
        match omitted.0.len() > known {
            true => self.add_without(&omitted).await.map(|()| omitted),
            false => Err(second),
        }
    }

    async fn add_without(&self, omitted: &Omitted) -> Result<(), Failure> {
        // In a file, because a command line is limited.
        let file = self.scratch.folder.join("paths");
        let mut from = OsString::from("--pathspec-from-file=");
        from.push(&file);
        // git adds no path with `.git` in any case, and fails on it.
        let mut specs = b".\0:(exclude,icase,glob,top)**/.git\0:(exclude,icase,glob,top)**/.git/**".to_vec();
        let paths = omitted.iter().map(|(path, _)| path);
        for path in paths.chain(self.large.paths().map(OsStr::as_encoded_bytes)) {
            specs.extend_from_slice(b"\0:(exclude,literal,top)");
            specs.extend_from_slice(path);
        }
        // As its reader, which otherwise could not read it.
        as_git(&self.scratch.rights, || fs::write(&file, specs)).map_err(|cause| failed(&cause))?;
        let add = vec!["add".into(), "--all".into(), "--pathspec-file-nul".into(), from];
        self.run(add, 0).await.map(drop)
    }

    async fn run(&self, args: Vec<OsString>, max_output: usize) -> Result<Vec<u8>, Failure> {
        self.scratch.run(self.git, self.workspace, self.objects, self.kept, args, max_output).await
    }

    /// Does work on the workspace's files with the rights of git.
    async fn search<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let (rights, top) = (self.scratch.rights.clone(), self.workspace.to_owned());
        blocking(move || as_git(&rights, || work(&top))).await
    }

    async fn with_unreadable(&self, mut omitted: Omitted) -> Result<Omitted, Failure> {
        let args = ["ls-files", "-z", "--modified", "--others", "--exclude-standard"].map(OsString::from).to_vec();
        let paths = self.run(args, PATHS_BYTES).await?;
        self.search(move |top| omitted.add_among(&paths, top).map(|()| omitted)).await
    }

    async fn with_recorded_repositories(&self, mut omitted: Omitted) -> Result<Omitted, Failure> {
        let args = ["ls-files", "-z", "--stage"].map(OsString::from).to_vec();
        let entries = self.run(args, ENTRIES_BYTES).await?;
        for entry in whole_parts(&entries).filter(|entry| entry.starts_with(b"160000 ")) {
            let path = entry.splitn(2, |byte| *byte == b'\t').nth(1).unwrap_or_default();
            omitted.add(path, Obstacle::Repository).map_err(|cause| failed(&cause))?;
        }
        Ok(omitted)
    }

    /// The folders that cannot be listed and are not ignored.
    async fn closed(&self) -> Result<Omitted, Failure> {
        let found = self.search(|top| Ok(closed_folders(top))).await?;
        let mut names = Vec::new();
        for path in &found {
            names.extend_from_slice(path.as_os_str().as_bytes());
            names.push(0);
        }
        let ignored = self.ignored(names.clone()).await?;
        let ignored: std::collections::HashSet<_> = whole_parts(&ignored).collect();
        let mut omitted = Omitted::default();
        for path in whole_parts(&names).filter(|path| !ignored.contains(path)) {
            omitted.add(path, Obstacle::Unreadable).map_err(|cause| failed(&cause))?;
        }
        Ok(omitted)
    }

    /// The ignored ones of the paths, each ended by NUL.
    async fn ignored(&self, paths: Vec<u8>) -> Result<Vec<u8>, Failure> {
        if paths.is_empty() {
            return Ok(paths);
        }
        let args = ["check-ignore", "-z", "--stdin"].map(OsString::from).to_vec();
        let finished = self.git.execute(Call {
            env: self.scratch.variables(self.workspace, self.objects, self.kept),
            rights: self.scratch.rights.clone(),
            max_output: paths.len(),
            input: Input::Bytes(paths),
            ..Call::local(self.workspace, args, TIMEOUT)
        });
        let finished = finished.await?;
        match finished.exit_code() {
            Some(0) => Ok(finished.output.bytes),
            // None is ignored.
            Some(1) => Ok(Vec::new()),
            _ => Err(Failure::new(ErrorCode::WorkspaceUnavailable, "git: the ignored folders are not known")),
        }
    }
}
