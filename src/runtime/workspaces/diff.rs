//! Records a workspace's files when it is prepared (the baseline) and computes what changed since.
//!
//! git never uses the workspace's own `.git`, which the agent may have written: every call gets a fresh git folder
//! (`scratch`), created without git and removed afterwards. Only objects, an index and the name of a tree are kept
//! between calls.
//!
//! Files that an agent wrote are read with no more rights than the agent's user has: git and every access to a baseline
//! run as that user, who owns baseline and scratch, and git runs in a jail. A file that the user cannot read is left out.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    git::{Git, Output},
    large::LargeFiles,
    omitted::{Adding, Omitted},
    scratch::{PATHS_BYTES, Scratch, as_git, as_user, blocking, failed, give, whole_parts},
};
use crate::{
    contract::runtime::{ChangeStatus, ChangedFile, OmittedPath, WorkspaceDiff},
    domain::{
        automation::{
            omitted::{MAX_OMITTED, Obstacle},
            tree::shown,
        },
        turn::outcome::Failure,
    },
    process::user::RunAs,
};

/// Id of the empty tree, which git knows without an object.
const EMPTY_TREE: &str = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";
/// Largest file list of a diff, in bytes. Enough for [`MAX_FILES`] entries of 500 bytes; one takes about 200.
const LIST_BYTES: usize = 512 * 1024;
/// Paths in one command line: of 4 KiB each they take a quarter of what the kernel allows.
const PATHS_IN_CALL: usize = 100;

/// Limits of a comparison.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DiffLimits {
    /// Largest patch, in bytes.
    pub patch_bytes: usize,
    /// Largest file that is read, in bytes.
    pub file_bytes: u64,
}

/// Location of one workspace's baseline.
#[derive(Debug, Clone)]
pub(crate) struct Baseline {
    pub(super) folder: PathBuf,
    scratch: PathBuf,
}

impl Baseline {
    /// Baseline in `folder`, which need not exist yet. Temporary git folders are created in `scratch`, which must be
    /// on the same file system.
    pub(crate) fn new(folder: PathBuf, scratch: PathBuf) -> Self {
        Self { folder, scratch }
    }

    /// True if a complete baseline was taken.
    pub(crate) fn exists(&self) -> bool {
        self.folder.join("tree").exists()
    }

    /// The user who owns the baseline, if it is another one than this program's own. Blocks.
    pub(crate) fn user(&self) -> Option<RunAs> {
        fs::symlink_metadata(&self.folder).ok().as_ref().and_then(RunAs::owner)
    }

    /// Records the current files of `workspace`, as far as `user` can read them, replacing an earlier baseline. Of files of
    /// more than `file_bytes` bytes it records size and time.
    ///
    /// # Errors
    /// `workspace_unavailable` if git or the file system fails. A retry is safe.
    ///
    /// # Cancel safety
    /// Safe to drop: an unfinished first baseline does not count as taken, and an earlier one stays valid.
    pub(crate) async fn take(
        &self,
        git: &Git,
        workspace: &Path,
        user: Option<RunAs>,
        file_bytes: u64,
    ) -> Result<(), Failure> {
        let (Self { folder, scratch }, git_of, top) = (self.clone(), git.clone(), workspace.to_owned());
        let scratch = blocking(move || {
            fs::create_dir_all(folder.join("objects"))?;
            give(&folder, user)?;
            let mut scratch = Scratch::new(&scratch, user)?;
            scratch.rights = git_of.rights(user, &[&top], &[&scratch.folder, &folder])?;
            Ok(scratch)
        })
        .await?;
        let objects = self.folder.join("objects");
        let index = scratch.folder.join("index");
        let (large, listed) = scratch.large_files(git, workspace, &objects, None, file_bytes).await?;
        let is_warned = listed.is_warned;
        // What is left out now is named by each comparison. Repositories are recorded, so that moves are seen.
        let files =
            Adding { git, scratch: &scratch, workspace, objects: &objects, kept: None, large: &large, is_warned };
        files.add_all(b"").await?;
        let tree = scratch.run(git, workspace, &objects, None, vec!["write-tree".into()], 100).await?;
        let folder = self.folder.clone();
        let work = move || {
            // The index is moved before the tree is written: an index without a tree does not count as a baseline.
            fs::rename(index, folder.join("index"))?;
            fs::write(folder.join("large"), large.to_bytes())?;
            // Written last, because its presence marks the baseline as complete.
            fs::write(folder.join("tree"), tree.trim_ascii())
        };
        blocking(move || as_user(user, work)).await
    }

    /// Returns the changes in `workspace` since the baseline, or all files as added if none was taken, as far as `user` can
    /// read them. `truncated` is set if the patch or the file list is incomplete. Files over the limit are listed, without
    /// lines and patch.
    ///
    /// # Errors
    /// `workspace_unavailable` if git or the file system fails, or the baseline is damaged.
    ///
    /// # Cancel safety
    /// A dropped future changes nothing.
    pub(crate) async fn diff(
        &self,
        git: &Git,
        workspace: &Path,
        user: Option<RunAs>,
        DiffLimits { patch_bytes, file_bytes }: DiffLimits,
    ) -> Result<WorkspaceDiff, Failure> {
        let (baseline, git_of, top) = (self.clone(), git.clone(), workspace.to_owned());
        let (scratch, tree, then) = blocking(move || baseline.open(&git_of, &top, user)).await?;
        let kept = self.folder.join("objects");
        let objects = scratch.folder.join("objects");
        let (large, listed) = scratch.large_files(git, workspace, &objects, Some(&kept), file_bytes).await?;
        let changed = scratch.changed_large_files(git, workspace, &objects, &large, &then).await?;
        let (of_scratch, older, is_warned) = (&scratch, Some(kept.as_path()), listed.is_warned);
        let files =
            Adding { git, scratch: of_scratch, workspace, objects: &objects, kept: older, large: &large, is_warned };
        let omitted = files.add_all(&listed.bytes).await?;
        let compare = |how: &[&str]| -> Vec<OsString> {
            // With that word git does not read `.gitmodules`, which may be malformed.
            let submodules = "--ignore-submodules=none";
            let fixed =
                ["diff", "--cached", "--no-ext-diff", "--no-textconv", "--no-renames", "--no-color", submodules];
            fixed.iter().chain(how).map(OsString::from).chain([tree.clone().into(), "--".into()]).collect()
        };
        let list = compare(&["-z", "--raw", "--no-abbrev"]);
        let list = scratch.call(git, workspace, &objects, Some(&kept), list, LIST_BYTES).await?;
        let counts = compare(&["-z", "--numstat"]);
        let counts = scratch.call(git, workspace, &objects, Some(&kept), counts, LIST_BYTES).await?;
        let patch = compare(&["--patch", "--src-prefix=a/", "--dst-prefix=b/"]);
        let patch = scratch.call(git, workspace, &objects, Some(&kept), patch, patch_bytes).await?;
        let (files, more) = read_files(&list.bytes, &counts.bytes);
        let (files, more) = with_large_files(files, changed, &then, workspace, more);
        let patch_text = String::from_utf8_lossy(&patch.bytes);
        Ok(WorkspaceDiff {
            files,
            patch: crate::domain::text::cut_bytes(&patch_text, patch_bytes).to_owned(),
            truncated: more || list.cut || patch.cut,
            omitted: named(&omitted),
        })
    }

    /// Makes a temporary git folder with the index of the baseline, and reads the name of its tree and its large files.
    pub(super) fn open(
        &self,
        git: &Git,
        workspace: &Path,
        user: Option<RunAs>,
    ) -> io::Result<(Scratch, String, LargeFiles)> {
        if self.folder.exists() {
            give(&self.folder, user)?;
        }
        let mut scratch = Scratch::new(&self.scratch, user)?;
        scratch.rights = git.rights(user, &[workspace, &self.folder], &[&scratch.folder])?;
        let (tree, then) = as_user(user, || {
            fs::create_dir(scratch.folder.join("objects"))?;
            let tree = match fs::read_to_string(self.folder.join("tree")) {
                Ok(tree) if tree.len() == 40 && tree.bytes().all(|byte| byte.is_ascii_hexdigit()) => tree,
                Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "is damaged")),
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => EMPTY_TREE.to_owned(),
                Err(cause) => return Err(cause),
            };
            let index = self.folder.join("index");
            if index.exists() {
                // With the index, git reads only files whose metadata changed.
                let copy = scratch.folder.join("index");
                fs::copy(&index, &copy)?;
                // git compares times by seconds, and reads files that changed in the second in which the index was written.
                fs::File::options().write(true).open(copy)?.set_modified(fs::metadata(&index)?.modified()?)?;
            }
            // Baselines of earlier versions have no such list.
            Ok((tree, LargeFiles::from_bytes(&fs::read(self.folder.join("large")).unwrap_or_default())))
        })?;
        Ok((scratch, tree, then))
    }
}

impl Scratch {
    /// Finds the large files that git would read: those that are tracked or not ignored. Returns the list of these, too.
    async fn large_files(
        &self,
        git: &Git,
        workspace: &Path,
        objects: &Path,
        kept: Option<&Path>,
        file_bytes: u64,
    ) -> Result<(LargeFiles, Output), Failure> {
        let args = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"].map(OsString::from).to_vec();
        let paths = self.call(git, workspace, objects, kept, args, PATHS_BYTES).await?;
        if paths.cut {
            let why = "the workspace has too many files to compare";
            return Err(failed(&io::Error::new(io::ErrorKind::InvalidData, why)));
        }
        let (workspace, rights) = (workspace.to_owned(), self.rights.clone());
        let search = move || {
            as_git(&rights, || LargeFiles::among(&paths.bytes, &workspace, file_bytes)).map(|large| (large, paths))
        };
        blocking(search).await
    }

    /// The large files that changed since the baseline, which had the large files `then`. The index is that of the baseline.
    async fn changed_large_files(
        &self,
        git: &Git,
        workspace: &Path,
        objects: &Path,
        large: &LargeFiles,
        then: &LargeFiles,
    ) -> Result<Vec<ChangedFile>, Failure> {
        let changed: Vec<_> =
            large.paths().filter(|path| !large.has_same(path.as_encoded_bytes(), then)).map(OsString::from).collect();
        let mut files = Vec::new();
        for paths in changed.chunks(PATHS_IN_CALL) {
            // Files that were small then; git compares them by their size.
            let args = ["--literal-pathspecs", "ls-files", "-z", "-t", "--others", "--modified", "--"];
            let args = args.map(OsString::from).into_iter().chain(paths.iter().cloned()).collect();
            let listed = self.run(git, workspace, objects, None, args, PATHS_BYTES).await?;
            for entry in whole_parts(&listed) {
                let Some((tag, path)) = entry.split_at_checked(2) else { continue };
                let is_new = tag.starts_with(b"?") && !then.contains(path);
                let status = if is_new { ChangeStatus::Added } else { ChangeStatus::Modified };
                let path = String::from_utf8_lossy(path).into_owned();
                files.push(ChangedFile { path, status, additions: None, deletions: None });
            }
        }
        Ok(files)
    }
}

/// Largest number of files that a diff lists, as documented for `WorkspaceDiff`.
const MAX_FILES: usize = 1000;

/// Joins the output of `git diff --raw -z` and `--numstat -z`. Returns at most [`MAX_FILES`] files, and true if that
/// limit left some out. An entry without its end is skipped.
pub(crate) fn read_files(raw: &[u8], numstat: &[u8]) -> (Vec<ChangedFile>, bool) {
    let mut counts = HashMap::new();
    for entry in whole_parts(numstat) {
        let mut fields = entry.splitn(3, |byte| *byte == b'\t');
        if let (Some(added), Some(deleted), Some(path)) = (fields.next(), fields.next(), fields.next()) {
            counts.insert(path, (number(added), number(deleted)));
        }
    }
    let mut files = Vec::new();
    let mut parts = whole_parts(raw);
    // `:100644 100644 <id> <id> M`, NUL, path, NUL.
    while let (Some(head), Some(path)) = (parts.next(), parts.next()) {
        if files.len() == MAX_FILES {
            return (files, true);
        }
        let status = match head.last() {
            Some(b'A') => ChangeStatus::Added,
            Some(b'D') => ChangeStatus::Deleted,
            _ => ChangeStatus::Modified,
        };
        let (additions, deletions) = counts.get(path).copied().unwrap_or_default();
        files.push(ChangedFile { path: String::from_utf8_lossy(path).into_owned(), status, additions, deletions });
    }
    (files, false)
}

/// True if there is no such file. One in a folder that cannot be read may be there.
pub(super) fn is_gone(file: &Path) -> bool {
    let gone = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
    fs::symlink_metadata(file).is_err_and(|cause| gone.contains(&cause.kind()))
}

/// The first paths that were left out, as text.
fn named(omitted: &Omitted) -> Vec<OmittedPath> {
    let to_named =
        |(path, obstacle): (&[u8], Obstacle)| OmittedPath { path: shown(path), why: obstacle.why().to_owned() };
    omitted.iter().take(MAX_OMITTED).map(to_named).collect()
}

/// Adds the changed large files to those that git compared, in the order of their paths. A file that was large `then` and is
/// small now counts as modified, and a missing one as deleted.
fn with_large_files(
    mut files: Vec<ChangedFile>,
    changed: Vec<ChangedFile>,
    then: &LargeFiles,
    workspace: &Path,
    more: bool,
) -> (Vec<ChangedFile>, bool) {
    for file in files.iter_mut().filter(|file| then.contains(file.path.as_bytes())) {
        file.status = ChangeStatus::Modified;
    }
    let gone = then.paths().filter(|path| is_gone(&workspace.join(path)));
    let gone = gone.map(|path| ChangedFile {
        path: path.to_string_lossy().into_owned(),
        status: ChangeStatus::Deleted,
        additions: None,
        deletions: None,
    });
    let known = files.len();
    files.extend(changed.into_iter().chain(gone));
    if files.len() > known {
        files.sort_by(|a, b| a.path.cmp(&b.path));
    }
    let is_cut = files.len() > MAX_FILES;
    files.truncate(MAX_FILES);
    (files, more || is_cut)
}

/// Parses a count; `None` for the `-` that git prints for a binary file.
fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;
    use crate::contract::runtime::ChangeStatus;

    const FILE_BYTES: u64 = 1024 * 1024;
    const LIMITS: DiffLimits = DiffLimits { patch_bytes: 10_000, file_bytes: FILE_BYTES };

    struct Place {
        base: tempfile::TempDir,
        git: Git,
        baseline: Baseline,
    }

    fn place() -> Place {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir_all(base.path().join("ws/sub")).unwrap();
        fs::create_dir_all(base.path().join("scratch")).unwrap();
        let path = ["/usr/local/bin:/usr/bin:/bin"].map(OsString::from)[0].clone();
        let git = Git::new(BTreeMap::from([("PATH".to_owned(), path)]));
        let baseline = Baseline::new(base.path().join("baseline"), base.path().join("scratch"));
        Place { base, git, baseline }
    }

    impl Place {
        fn workspace(&self) -> PathBuf {
            self.base.path().join("ws")
        }

        fn put(&self, name: &str, text: &str) {
            let path = self.workspace().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        async fn take(&self) {
            self.baseline.take(&self.git, &self.workspace(), None, FILE_BYTES).await.unwrap();
        }

        async fn diff(&self) -> WorkspaceDiff {
            self.baseline.diff(&self.git, &self.workspace(), None, LIMITS).await.unwrap()
        }
    }

    fn statuses(diff: &WorkspaceDiff) -> Vec<(&str, ChangeStatus)> {
        diff.files.iter().map(|file| (file.path.as_str(), file.status)).collect()
    }

    #[tokio::test]
    async fn diff_returns_the_same_changes_when_repeated() {
        let place = place();
        place.put("kept", "same\n");
        place.put("changed", "one\ntwo\n");
        place.put("sub/gone", "x\n");
        place.take().await;
        assert!(place.diff().await.files.is_empty());
        place.put("changed", "one\nthree\nfour\n");
        place.put("new file ü", "x\n");
        fs::remove_file(place.workspace().join("sub/gone")).unwrap();
        for _ in 0..2 {
            let diff = place.diff().await;
            let expected = [
                ("changed", ChangeStatus::Modified),
                ("new file ü", ChangeStatus::Added),
                ("sub/gone", ChangeStatus::Deleted),
            ];
            assert_eq!(statuses(&diff), expected);
            assert_eq!((diff.files[0].additions, diff.files[0].deletions), (Some(2), Some(1)));
            assert!(diff.patch.contains("+three\n") && diff.patch.contains("b/new file ü"), "{}", diff.patch);
            assert!(!diff.truncated);
        }
        assert_eq!(fs::read_dir(place.base.path().join("scratch")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn change_of_the_same_size_in_the_second_of_the_baseline_is_found_later() {
        use std::os::unix::fs::MetadataExt;
        let place = place();
        let second = |name: &str| fs::metadata(place.base.path().join(name)).unwrap().ctime();
        loop {
            place.put("a", "1\n");
            place.take().await;
            place.put("a", "2\n");
            if second("ws/a") == second("baseline/index") {
                break;
            }
        }
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        fs::write(place.base.path().join("probe"), "x").unwrap();
        while second("probe") <= second("ws/a") {
            assert!(std::time::Instant::now() < deadline, "the clock does not move");
            tokio::time::sleep(Duration::from_millis(5)).await;
            fs::write(place.base.path().join("probe"), "x").unwrap();
        }
        assert_eq!(statuses(&place.diff().await), [("a", ChangeStatus::Modified)]);
    }

    #[tokio::test]
    async fn diff_without_a_baseline_lists_all_files_as_added() {
        let place = place();
        place.put("a", "x\n");
        assert_eq!(statuses(&place.diff().await), [("a", ChangeStatus::Added)]);
    }

    #[tokio::test]
    async fn patch_is_truncated_to_its_limit() {
        let place = place();
        place.put("a", &"line\n".repeat(10_000));
        let diff = place.diff().await;
        assert!(diff.truncated && diff.patch.len() <= 10_000 && diff.files.len() == 1);
    }

    #[tokio::test]
    async fn git_files_of_the_agent_run_nothing_and_hide_no_changes() {
        let place = place();
        place.put("file", "before\n");
        place.take().await;
        let ran = place.base.path().join("ran");
        let hostile = format!("touch {}; cat", ran.display());
        place.put(
            ".git/config",
            &format!(
                "[core]\nfsmonitor = {hostile}\nhooksPath = hooks\nworktree = /\n[filter \"x\"]\nclean = {hostile}\n\
             process = {hostile}\nrequired = true\n[diff \"x\"]\ntextconv = {hostile}\ncommand = {hostile}\n"
            ),
        );
        place.put(".git/HEAD", "ref: refs/heads/main\n");
        place.put(".git/hooks/post-index-change", &format!("#!/bin/sh\n{hostile}\n"));
        place.put(".gitattributes", "* filter=x diff=x -diff working-tree-encoding=UTF-16\n");
        place.put(".gitmodules", "[submodule \"x\"]\npath = sub\nurl = ext::sh -c id\nupdate = !touch\n");
        place.put("sub/.git/config", &format!("[core]\nfsmonitor = {hostile}\n"));
        place.put("sub/inner", "x\n");
        place.put("file", "after\n");
        let diff = place.diff().await;
        assert!(diff.patch.contains("-before\n+after\n"), "{}", diff.patch);
        assert!(diff.files.iter().all(|file| !file.path.starts_with(".git/")));
        assert!(!ran.exists(), "the agent's command ran");
    }

    #[tokio::test]
    async fn inner_repository_without_a_commit_is_excluded() {
        let place = place();
        let made =
            std::process::Command::new("git").args(["init", "-q"]).arg(place.workspace().join("inner")).status();
        assert!(made.unwrap().success());
        place.put("inner/file", "x\n");
        place.put("outer", "x\n");
        assert_eq!(statuses(&place.diff().await), [("outer", ChangeStatus::Added)]);
    }

    #[tokio::test]
    async fn link_in_place_of_the_list_of_submodules_hides_no_other_change() {
        let place = place();
        place.put("outer", "x\n");
        std::os::unix::fs::symlink("outer", place.workspace().join(".gitmodules")).unwrap();
        let diff = place.diff().await;
        assert!(diff.files.iter().any(|file| file.path == "outer"), "{diff:?}");
    }

    #[test]
    fn file_lists_are_joined_and_an_incomplete_entry_is_skipped() {
        let raw = b":000000 100644 0 1 A\0new\tname\0:100644 000000 1 0 D\0gone\0:100644 100644 1 2 M\0bin\0:1 2";
        let numstat = b"3\t0\tnew\tname\x000\t2\tgone\0-\t-\tbin\x004\t";
        let (files, more) = read_files(raw, numstat);
        assert!(!more);
        let found: Vec<_> =
            files.iter().map(|file| (file.path.as_str(), file.status, file.additions, file.deletions)).collect();
        assert_eq!(
            found,
            [
                ("new\tname", ChangeStatus::Added, Some(3), Some(0)),
                ("gone", ChangeStatus::Deleted, Some(0), Some(2)),
                ("bin", ChangeStatus::Modified, None, None),
            ]
        );
    }

    #[test]
    fn file_list_stops_at_a_thousand_entries() {
        let raw = ":000000 100644 0 1 A\0f\0".repeat(1001);
        let (files, more) = read_files(raw.as_bytes(), b"");
        assert_eq!((files.len(), more), (1000, true));
    }
}
