//! Computes what changed in a workspace since it was cloned, for a commit: paths, modes and contents.
//!
//! Files are read as for a diff ([`super::diff`]): by git with a folder of its own, in a jail, with the rights of the
//! workspace's owner. New contents leave the jail as a pack, whose names are verified by the receiver.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::Read,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{
    diff::{Baseline, is_gone},
    git::{Call, Git, Input},
    large::LargeFiles,
    omitted::Adding,
    repositories::{TreeEntry, raw_entries},
    scratch::{PATHS_BYTES, Scratch, TIMEOUT, as_git, blocking, blocking_pipes, whole_parts},
};
use crate::{
    domain::{
        automation::{
            omitted::Obstacle,
            tree::{GITLINK, MAX_CHANGE_BYTES, MAX_CHANGE_FILES, MAX_FILE_BYTES, TreeChange, too_large, unsafe_path},
        },
        turn::outcome::{ErrorCode, Failure},
    },
    process::user::RunAs,
};

/// The agent's summary of its work, which is not committed.
pub(crate) const SUMMARY: &str = ".claude-pr-summary.md";
/// Largest part of the summary that is read, in bytes.
const SUMMARY_BYTES: u64 = 8 * 1024;
/// Largest list of changes, in bytes: 100,000 paths of 300 bytes.
const CHANGES_BYTES: usize = 64 * 1024 * 1024;
/// The most unsafe paths of a change.
const MAX_UNSAFE: usize = 100;
/// Largest list of ignored files, in bytes. More are not counted.
const IGNORED_BYTES: usize = 8 * 1024 * 1024;

/// Changes of a workspace since its clone.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    /// Changed paths with their new contents, in the pack.
    pub entries: Vec<TreeEntry>,
    /// Paths that git adds to no tree, or that no tree should have; some are in `entries`. At most [`MAX_UNSAFE`].
    pub unsafe_paths: Vec<Vec<u8>>,
    /// Paths that git cannot read: nothing of them is in `entries`.
    pub omitted: Vec<(Vec<u8>, Obstacle)>,
    /// Pipes that git waits for when it reads the workspace. If there are any, nothing else was read.
    pub pipes: Vec<Vec<u8>>,
    /// True if git's list of changed files is too long to read.
    pub is_incomplete: bool,
    /// Files that are too large for a commit; those of a change that is too large as a whole. They are not in `entries`.
    pub refused: Vec<TreeChange>,
    /// The files that git ignores.
    pub ignored: u64,
    pub summary: Option<Summary>,
}

/// The agent's summary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Summary {
    pub text: String,
    /// Changes whenever the file is written.
    pub mark: String,
}

impl Baseline {
    /// Computes the changes since the baseline, and writes their contents as a pack to `pack`, if there are any.
    ///
    /// # Errors
    /// `workspace_unavailable` if git or the file system fails, or the baseline is damaged.
    ///
    /// A pipe that git cannot read is no error: the changes then have nothing but its path.
    ///
    /// # Cancel safety
    /// A dropped future changes nothing but `pack`.
    pub(super) async fn delta(
        &self,
        git: &Git,
        workspace: &Path,
        user: Option<RunAs>,
        file_bytes: u64,
        pack: PathBuf,
    ) -> Result<Delta, Failure> {
        let computed = self.computed_delta(git, workspace, user, file_bytes, pack).await;
        if computed.is_ok() {
            return computed;
        }
        match blocking_pipes(workspace, user).await {
            pipes if pipes.is_empty() => computed,
            pipes => Ok(Delta { pipes, ..Delta::default() }),
        }
    }

    async fn computed_delta(
        &self,
        git: &Git,
        workspace: &Path,
        user: Option<RunAs>,
        file_bytes: u64,
        pack: PathBuf,
    ) -> Result<Delta, Failure> {
        let (baseline, git_of, top) = (self.clone(), git.clone(), workspace.to_owned());
        let (scratch, tree, then) = blocking(move || baseline.open(&git_of, &top, user)).await?;
        let kept = self.folder.join("objects");
        let objects = scratch.folder.join("objects");
        let run =
            |args: Vec<OsString>, limit: usize| scratch.call(git, workspace, &objects, Some(&kept), args, limit);
        // The owner of the files may have changed since: without this, each call would read them all. A status only
        // reports that some have changed.
        let refresh = ["update-index", "-q", "--refresh"].map(OsString::from).to_vec();
        let _ = run(refresh, 0).await;
        let listing = ["ls-files", "-z", "--modified", "--others", "--exclude-standard"].map(OsString::from);
        let listed = run(listing.to_vec(), PATHS_BYTES).await?;
        let (top, paths, rights) = (workspace.to_owned(), listed.bytes.clone(), scratch.rights.clone());
        let found = blocking(move || as_git(&rights, || Found::among(&paths, &top, file_bytes, &then))).await?;
        let mut delta = Delta { summary: found.summary, unsafe_paths: found.unsafe_paths, ..Delta::default() };
        delta.ignored = ignored(&scratch, git, workspace, &objects, &kept).await?;
        delta.is_incomplete = listed.cut;
        if listed.cut || !too_large(&found.small).is_empty() {
            delta.refused = found.small.into_iter().chain(found.oversized).collect();
            return Ok(delta);
        }
        delta.refused = found.oversized;
        let (large, is_warned) = (&found.excluded, listed.is_warned);
        let files =
            Adding { git, scratch: &scratch, workspace, objects: &objects, kept: Some(&kept), large, is_warned };
        let omitted = files.add_all(&listed.bytes).await?;
        delta.omitted = omitted.iter().map(|(path, obstacle)| (path.to_vec(), obstacle)).collect();
        // With the last word git does not read `.gitmodules`, which may be malformed.
        let fixed = [
            "diff",
            "--cached",
            "--raw",
            "-z",
            "--no-abbrev",
            "--no-renames",
            "--no-ext-diff",
            "--ignore-submodules=none",
        ];
        let args = fixed.iter().map(OsString::from).chain([tree.into(), "--".into()]).collect();
        let changed = run(args, CHANGES_BYTES).await?;
        delta.is_incomplete = changed.cut;
        delta.entries = raw_entries(&changed.bytes);
        let gone = found.gone.into_iter().map(|path| TreeEntry {
            path,
            mode: None,
            object: String::new(),
            old: None,
            old_mode: None,
        });
        delta.entries.extend(gone);
        delta.entries.retain(|entry| entry.path != SUMMARY.as_bytes());
        scratch.write_pack(git, workspace, &objects, &kept, &delta.entries, pack).await?;
        Ok(delta)
    }
}

impl Scratch {
    /// Writes the contents of the entries as a pack.
    async fn write_pack(
        &self,
        git: &Git,
        workspace: &Path,
        objects: &Path,
        kept: &Path,
        entries: &[TreeEntry],
        pack: PathBuf,
    ) -> Result<(), Failure> {
        let blobs = entries.iter().filter(|entry| entry.mode.is_some_and(|mode| mode != GITLINK));
        let names: Vec<u8> = blobs.flat_map(|entry| entry.object.bytes().chain([b'\n'])).collect();
        if names.is_empty() {
            return Ok(());
        }
        let args = ["pack-objects", "--stdout", "--quiet", "--window=0", "--threads=1"].map(OsString::from).to_vec();
        let env = self.variables(workspace, objects, Some(kept));
        let rights = self.rights.clone();
        // Headers of objects take a few bytes each.
        let max_output = usize::try_from(MAX_CHANGE_BYTES).unwrap_or(usize::MAX).saturating_add(names.len());
        let call = Call {
            env,
            rights,
            max_output,
            input: Input::Bytes(names),
            target: Some(pack),
            ..Call::local(workspace, args, TIMEOUT)
        };
        match git.execute(call).await?.read()?.cut {
            true => Err(Failure::new(ErrorCode::WorkspaceUnreadable, "pack: the change is too large")),
            false => Ok(()),
        }
    }
}

async fn ignored(
    scratch: &Scratch,
    git: &Git,
    workspace: &Path,
    objects: &Path,
    kept: &Path,
) -> Result<u64, Failure> {
    let args = ["ls-files", "-z", "--others", "--ignored", "--exclude-standard"].map(OsString::from).to_vec();
    let listed = scratch.call(git, workspace, objects, Some(kept), args, IGNORED_BYTES).await?;
    Ok(whole_parts(&listed.bytes).filter(|path| *path != SUMMARY.as_bytes()).count() as u64)
}

/// The changed files of a workspace, by size.
struct Found {
    /// Changed files that are small enough to read.
    small: Vec<TreeChange>,
    /// Changed files that are too large for a commit.
    oversized: Vec<TreeChange>,
    /// Files that are not read: those too large, and large ones that have not changed.
    excluded: LargeFiles,
    /// Files that were large when the baseline was taken, and are deleted.
    gone: Vec<Vec<u8>>,
    unsafe_paths: Vec<Vec<u8>>,
    summary: Option<Summary>,
}

impl Found {
    /// Sorts the changed paths, separated by NUL. Blocks.
    fn among(paths: &[u8], workspace: &Path, file_bytes: u64, then: &LargeFiles) -> std::io::Result<Self> {
        let large = LargeFiles::among(paths, workspace, file_bytes)?;
        let excluded = large.only(|path, bytes| bytes > MAX_FILE_BYTES || large.has_same(path, then));
        let (mut small, mut oversized) = (Vec::new(), Vec::new());
        for path in whole_parts(paths).filter(|path| !path.ends_with(b"/") && *path != SUMMARY.as_bytes()) {
            let metadata = fs::symlink_metadata(workspace.join(OsStr::from_bytes(path)));
            // A folder in place of a file is listed by its files.
            if large.has_same(path, then) || metadata.as_ref().is_ok_and(fs::Metadata::is_dir) {
                continue;
            }
            let bytes = metadata.as_ref().map_or(0, MetadataExt::size);
            let mode = metadata.is_ok().then_some(0o100_644);
            let change = TreeChange { path: path.to_vec(), mode, bytes, is_added: false };
            if bytes > MAX_FILE_BYTES { &mut oversized } else { &mut small }.push(change);
            if small.len() > MAX_CHANGE_FILES {
                break;
            }
        }
        let gone = then.paths().filter(|path| is_gone(&workspace.join(path)));
        let gone = gone.map(|path| path.as_bytes().to_vec()).collect();
        let wrong =
            whole_parts(paths).filter(|path| unsafe_path(path.strip_suffix(b"/").unwrap_or(path), None).is_some());
        let unsafe_paths = wrong.take(MAX_UNSAFE).map(<[u8]>::to_vec).collect();
        Ok(Self { small, oversized, excluded, gone, unsafe_paths, summary: read_summary(workspace) })
    }
}

/// Reads the start of the summary; a link, a pipe and a missing file have none.
fn read_summary(workspace: &Path) -> Option<Summary> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = fs::File::options().read(true).custom_flags(flags).open(workspace.join(SUMMARY)).ok()?;
    let metadata = file.metadata().ok().filter(fs::Metadata::is_file)?;
    let mut bytes = Vec::new();
    file.take(SUMMARY_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    let mark = format!("{:x} {}.{}", Sha256::digest(&text), metadata.mtime(), metadata.mtime_nsec());
    (!text.is_empty()).then_some(Summary { text, mark })
}
