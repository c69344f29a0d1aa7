//! Bare repositories of the runtime, from which commits are made and pushed. An agent never reads or writes them: they
//! get contents as packs whose names git verifies, and no configuration, hook or attribute comes from a workspace.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    git::{Call, Finished, Git, Input, Output},
    proxy::Proxy,
};
use crate::domain::{
    automation::step::Identity,
    clock::Timestamp,
    turn::outcome::{ErrorCode, Failure},
};

/// Time limit of a call without network.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Largest output of a call that names objects, in bytes.
const LINE_BYTES: usize = 4096;
/// Description of the clone, in the repository.
const CLONE: &str = "clone.json";
/// Folder in the repository, with a file for each commit that a step made: the tree of the workspace at that time.
const FOLDERS: &str = "folders";
/// Folder in the repository, with a file for each commit that was moved onto another one: the new commit.
const REBASED: &str = "rebased";
/// Description of the agent's summary that the newest run found, in the repository.
const SEEN_SUMMARY: &str = "summary.json";
/// Folder in the repository, with a file for each commit for which a branch was begun at its parent: the parent.
const BEGUN: &str = "begun";
/// Reference of the commit that was cloned.
const BASE_REF: &str = "refs/lumilink/base";

/// The commit that was cloned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Cloned {
    pub base: String,
    /// The branch; absent for the clone of a tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
}

/// The agent's summary that the newest run found.
#[derive(Debug, Serialize, Deserialize)]
struct SeenSummary {
    run: Uuid,
    mark: String,
    /// The mark that the run before it found.
    #[serde(default)]
    before: Option<String>,
}

/// A bare repository of the runtime.
#[derive(Debug, Clone)]
pub(crate) struct BareRepository {
    git: Git,
    folder: PathBuf,
}

/// One entry of a tree, or of a difference between two trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TreeEntry {
    pub path: Vec<u8>,
    /// `None` for a deleted path.
    pub mode: Option<u32>,
    /// 40 hexadecimal digits.
    pub object: String,
    /// The object of the older tree; absent if that has no such path, and for an entry of one tree.
    pub old: Option<String>,
    /// The mode in the older tree; absent as `old`.
    pub old_mode: Option<u32>,
}

/// A commit to make.
#[derive(Debug)]
pub(crate) struct NewCommit<'a> {
    pub tree: &'a str,
    pub parent: &'a str,
    pub message: &'a str,
    pub author: &'a Identity,
    pub committer: &'a Identity,
    pub at: Timestamp,
}

fn failed(cause: &dyn std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::WorkspaceUnavailable, format!("the repository of the workspace: {cause}"))
}

/// True for the full name of an object.
pub(crate) fn is_object_name(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other);
    done.and_then(|result| result).map_err(|cause| failed(&cause))
}

fn strings<const N: usize>(args: [&str; N]) -> Vec<OsString> {
    args.map(OsString::from).to_vec()
}

impl BareRepository {
    pub(crate) fn new(git: Git, folder: PathBuf) -> Self {
        Self { git, folder }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes an empty repository, mode 0700. Blocks.
    fn make(folder: &Path) -> io::Result<()> {
        for name in ["", "objects/pack", "objects/info", "refs/heads", "info", FOLDERS, REBASED, BEGUN] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder.join(name))?;
        }
        fs::write(folder.join("HEAD"), "ref: refs/heads/none\n")?;
        fs::write(folder.join("config"), "[core]\n\trepositoryformatversion = 0\n\tbare = true\n")?;
        // Attributes of the tree choose no merge driver.
        fs::write(folder.join("info/attributes"), "* !merge\n")
    }

    /// Makes an empty repository.
    ///
    /// # Errors
    /// `workspace_unavailable` if the file system fails.
    pub(crate) async fn create(git: Git, folder: PathBuf) -> Result<Self, Failure> {
        let made = folder.clone();
        blocking(move || Self::make(&made)).await?;
        Ok(Self { git, folder })
    }

    /// Copies the objects of a fresh clone, in which no agent has worked yet. A clone of an empty repository gets none.
    ///
    /// # Errors
    /// `workspace_unavailable` if git or the file system fails.
    pub(crate) async fn copy_clone(git: Git, folder: PathBuf, work_tree: &Path) -> Result<Self, Failure> {
        let repository = Self::create(git, folder).await?;
        let (from, to) = (work_tree.join(".git"), repository.folder.clone());
        let branch = blocking(move || {
            copy_files(&from.join("objects"), &to.join("objects"))?;
            if from.join("shallow").exists() {
                fs::copy(from.join("shallow"), to.join("shallow"))?;
            }
            let head = fs::read_to_string(from.join("HEAD"))?;
            Ok(head.trim().strip_prefix("ref: refs/heads/").map(str::to_owned))
        })
        .await?;
        let args = strings(["rev-parse", "--verify", "--quiet", "HEAD^{commit}"]);
        let env = vec![("GIT_DIR", work_tree.join(".git").into())];
        let call = Call { env, max_output: LINE_BYTES, ..Call::local(work_tree, args, TIMEOUT) };
        let head = repository.git.execute(call).await?;
        if head.exit_code() == Some(0) {
            let base = one_line(&head.output.bytes)?;
            repository.run(strings(["update-ref", BASE_REF, &base]), Input::Nothing, 0).await?;
            let text = serde_json::to_vec(&Cloned { base, branch }).map_err(|cause| failed(&cause))?;
            repository.write(CLONE, text).await?;
        }
        Ok(repository)
    }

    /// The commit that was cloned; `None` without one, for the clone of an empty repository.
    ///
    /// # Errors
    /// `workspace_unavailable` if the description cannot be read.
    pub(crate) async fn cloned(&self) -> Result<Option<Cloned>, Failure> {
        match tokio::fs::read(self.folder.join(CLONE)).await {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|cause| failed(&cause)),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(failed(&cause)),
        }
    }

    /// True if the repository exists. Blocks.
    pub(crate) fn exists(&self) -> bool {
        self.folder.join("HEAD").exists()
    }

    async fn write(&self, name: &str, text: Vec<u8>) -> Result<(), Failure> {
        let (to, incomplete) = (self.folder.join(name), self.folder.join(uuid::Uuid::new_v4().to_string()));
        blocking(move || {
            fs::write(&incomplete, text)?;
            fs::rename(incomplete, to)
        })
        .await
    }

    async fn read_name(&self, folder: &str, of: &str) -> Option<String> {
        let text = tokio::fs::read_to_string(self.folder.join(folder).join(of)).await.ok()?;
        Some(text).filter(|text| is_object_name(text))
    }

    /// Records the tree that the workspace had, relative to the clone, for a commit or for a tree with the same changes.
    ///
    /// # Errors
    /// `workspace_unavailable` if the file system fails.
    pub(crate) async fn record_folder(&self, of: &str, tree: &str) -> Result<(), Failure> {
        self.write(&format!("{FOLDERS}/{of}"), tree.into()).await
    }

    pub(crate) async fn recorded_folder(&self, of: &str) -> Option<String> {
        self.read_name(FOLDERS, of).await
    }

    /// Records that a commit was moved onto another one.
    ///
    /// # Errors
    /// `workspace_unavailable` if the file system fails.
    pub(crate) async fn record_rebased(&self, commit: &str, new: &str) -> Result<(), Failure> {
        self.write(&format!("{REBASED}/{commit}"), new.into()).await
    }

    pub(crate) async fn rebased(&self, commit: &str) -> Option<String> {
        self.read_name(REBASED, commit).await
    }

    /// True if no earlier run found a summary with this mark. A repeat of the run has the same answer.
    ///
    /// # Errors
    /// `workspace_unavailable` if the file system fails.
    pub(crate) async fn is_new_summary(&self, run: Uuid, mark: &str) -> Result<bool, Failure> {
        let seen = tokio::fs::read(self.folder.join(SEEN_SUMMARY)).await.ok();
        let seen = seen.and_then(|text| serde_json::from_slice::<SeenSummary>(&text).ok());
        let before = match seen {
            Some(seen) if seen.run == run => seen.before,
            seen => seen.map(|seen| seen.mark),
        };
        let is_new = before.as_deref() != Some(mark);
        let text = serde_json::to_vec(&SeenSummary { run, mark: mark.to_owned(), before });
        self.write(SEEN_SUMMARY, text.map_err(|cause| failed(&cause))?).await?;
        Ok(is_new)
    }

    /// The start of a file of a tree, of at most `max_bytes` bytes; `None` if the tree has no such file.
    ///
    /// # Errors
    /// As [`Git::execute`].
    pub(crate) async fn file_of(&self, tree: &str, path: &str, max_bytes: usize) -> Result<Option<Vec<u8>>, Failure> {
        let args = strings(["cat-file", "blob", &format!("{tree}:{path}")]);
        let found = self.execute(args, Input::Nothing, max_bytes).await?;
        let is_whole = found.exit_code() == Some(0);
        Ok((is_whole || found.output.cut).then_some(found.output.bytes))
    }

    /// Records that a branch for a commit is begun at its parent.
    ///
    /// # Errors
    /// `workspace_unavailable` if the file system fails.
    pub(crate) async fn record_begun(&self, commit: &str, parent: &str) -> Result<(), Failure> {
        let folder = self.folder.join(BEGUN);
        // Repositories of older versions have none.
        blocking(move || fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)).await?;
        self.write(&format!("{BEGUN}/{commit}"), parent.into()).await
    }

    pub(crate) async fn begun(&self, commit: &str) -> Option<String> {
        self.read_name(BEGUN, commit).await
    }

    fn call(&self, args: Vec<OsString>, max_output: usize) -> Call<'_> {
        let env = vec![("GIT_DIR", self.folder.clone().into())];
        Call { env, max_output, ..Call::local(&self.folder, args, TIMEOUT) }
    }

    /// Runs git on the repository, whatever its exit status.
    ///
    /// # Errors
    /// As [`Git::execute`].
    pub(crate) async fn execute(
        &self,
        args: Vec<OsString>,
        input: Input,
        max_output: usize,
    ) -> Result<Finished, Failure> {
        self.git.execute(Call { input, ..self.call(args, max_output) }).await
    }

    /// Runs git on the repository.
    ///
    /// # Errors
    /// As [`Git::run`].
    pub(crate) async fn run(&self, args: Vec<OsString>, input: Input, max_output: usize) -> Result<Output, Failure> {
        self.execute(args, input, max_output).await?.success()
    }

    /// Runs git on the repository, with its output in a new file. Returns true if the output is cut.
    ///
    /// # Errors
    /// As [`Git::run`].
    pub(crate) async fn run_into(
        &self,
        args: Vec<OsString>,
        target: PathBuf,
        max_output: usize,
    ) -> Result<bool, Failure> {
        let call = Call { target: Some(target), ..self.call(args, max_output) };
        Ok(self.git.execute(call).await?.success()?.cut)
    }

    /// Runs git against the host, with stdout and stderr as one text of at most 64 KiB.
    ///
    /// # Errors
    /// As [`Git::execute`].
    pub(crate) async fn remote(
        &self,
        proxy: &Proxy,
        args: Vec<OsString>,
        timeout: Duration,
    ) -> Result<Finished, Failure> {
        let mut call = self.call(args, 64 * 1024);
        call.env.extend(proxy.environment());
        self.git.execute(Call { timeout, scheme: Some(proxy.scheme()), is_merged: true, ..call }).await
    }

    /// Runs git, which prints the name of an object.
    ///
    /// # Errors
    /// As [`Git::run`], also for any other output.
    pub(crate) async fn name(&self, args: Vec<OsString>, input: Input) -> Result<String, Failure> {
        one_line(&self.run(args, input, LINE_BYTES).await?.bytes)
    }

    /// The tree of a commit that the repository has; `None` if it has not.
    ///
    /// # Errors
    /// As [`Git::execute`].
    pub(crate) async fn tree_of(&self, commit: &str) -> Result<Option<String>, Failure> {
        let revision = format!("{commit}^{{tree}}");
        let args = strings(["rev-parse", "--verify", "--quiet", "--end-of-options", &revision]);
        let found = self.execute(args, Input::Nothing, LINE_BYTES).await?;
        match found.exit_code() {
            Some(0) => one_line(&found.output.bytes).map(Some),
            _ => Ok(None),
        }
    }

    /// Adds a pack that another git wrote; git computes the names of its objects anew.
    ///
    /// # Errors
    /// As [`Git::run`].
    pub(crate) async fn add_pack(&self, pack: PathBuf) -> Result<(), Failure> {
        let args = strings(["index-pack", "--stdin", "--threads=1"]);
        self.run(args, Input::File(pack), LINE_BYTES).await.map(drop)
    }

    /// All files of a tree, of at most `max_output` bytes as git prints them.
    ///
    /// # Errors
    /// As [`Git::run`], also if there are more.
    pub(crate) async fn files(&self, tree: &str, max_output: usize) -> Result<Vec<TreeEntry>, Failure> {
        let listed =
            self.run(strings(["ls-tree", "-r", "-z", "--full-tree", tree]), Input::Nothing, max_output).await?;
        if listed.cut {
            return Err(failed(&"the repository has too many files"));
        }
        Ok(parts(&listed.bytes).filter_map(file_of_tree).collect())
    }

    /// The paths in which two trees differ.
    ///
    /// # Errors
    /// As [`Git::run`], also if git prints more than `max_output` bytes.
    pub(crate) async fn differences(
        &self,
        old: &str,
        new: &str,
        max_output: usize,
    ) -> Result<Vec<TreeEntry>, Failure> {
        let args = strings(["diff-tree", "-r", "-z", "--raw", "--no-abbrev", "--no-renames", old, new]);
        let listed = self.run(args, Input::Nothing, max_output).await?;
        if listed.cut {
            return Err(failed(&"the change has too many files"));
        }
        Ok(raw_entries(&listed.bytes))
    }

    /// Writes the tree of `base` with other entries at some paths. Deleted paths are removed first, and a file replaces a
    /// folder of its name. `index` is a new file.
    ///
    /// # Errors
    /// As [`Git::run`], also for an object that the repository does not have, and a path that git refuses.
    pub(crate) async fn write_tree(
        &self,
        base: &str,
        changes: &[TreeEntry],
        index: &Path,
    ) -> Result<String, Failure> {
        let with_index = |args: Vec<OsString>, input: Input| {
            let mut call = self.call(args, LINE_BYTES);
            call.env.push(("GIT_INDEX_FILE", index.to_owned().into()));
            Call { input, ..call }
        };
        self.git.run(with_index(strings(["read-tree", base]), Input::Nothing)).await?;
        let mut lines = Vec::new();
        let (deleted, written): (Vec<_>, Vec<_>) = changes.iter().partition(|change| change.mode.is_none());
        for change in deleted.into_iter().chain(written) {
            let head = match change.mode {
                Some(mode) => format!("{mode:o} {}\t", change.object),
                None => format!("0 {}\t", "0".repeat(40)),
            };
            lines.extend_from_slice(head.as_bytes());
            lines.extend_from_slice(&change.path);
            lines.push(0);
        }
        let args = strings(["update-index", "-z", "--replace", "--index-info"]);
        self.git.run(with_index(args, Input::Bytes(lines))).await?;
        one_line(&self.git.run(with_index(strings(["write-tree"]), Input::Nothing)).await?.bytes)
    }

    /// The paths among `paths` that `.gitattributes` of a tree give to Git LFS. `index` is a new file.
    ///
    /// # Errors
    /// As [`Git::run`].
    pub(crate) async fn lfs_paths(&self, tree: &str, paths: &[&[u8]], index: &Path) -> Result<Vec<Vec<u8>>, Failure> {
        let call = |args: Vec<OsString>, max_output: usize, input: Input| {
            let mut call = self.call(args, max_output);
            call.env.push(("GIT_INDEX_FILE", index.to_owned().into()));
            Call { input, ..call }
        };
        self.git.run(call(strings(["read-tree", tree]), 0, Input::Nothing)).await?;
        let mut names = Vec::new();
        paths.iter().for_each(|path| names.extend(path.iter().chain(&[0])));
        let room = names.len() + paths.len() * 256;
        let args = strings(["check-attr", "--cached", "--stdin", "-z", "filter"]);
        let listed = self.git.run(call(args, room, Input::Bytes(names))).await?;
        let mut fields = parts(&listed.bytes);
        let mut found = Vec::new();
        while let (Some(path), Some(_), Some(value)) = (fields.next(), fields.next(), fields.next()) {
            if value == b"lfs" {
                found.push(path.to_vec());
            }
        }
        Ok(found)
    }

    /// Sizes of objects in bytes, in the order of their names.
    ///
    /// # Errors
    /// As [`Git::run`], also for a missing object.
    pub(crate) async fn sizes(&self, objects: &[&str]) -> Result<Vec<u64>, Failure> {
        if objects.is_empty() {
            return Ok(Vec::new());
        }
        let args = strings(["cat-file", "--batch-check=%(objectsize)"]);
        let listed = self.run(args, Input::Bytes(lines_of(objects)), objects.len() * 64).await?;
        let sizes: Option<Vec<_>> =
            String::from_utf8_lossy(&listed.bytes).lines().map(|line| line.parse().ok()).collect();
        sizes.filter(|sizes| sizes.len() == objects.len()).ok_or_else(|| failed(&"an object is missing"))
    }

    /// Contents of objects of at most `max_bytes` bytes in all, in the order of their names.
    ///
    /// # Errors
    /// As [`Git::run`], also for a missing object, and if they are larger.
    pub(crate) async fn contents(&self, objects: &[&str], max_bytes: usize) -> Result<Vec<Vec<u8>>, Failure> {
        if objects.is_empty() {
            return Ok(Vec::new());
        }
        let args = strings(["cat-file", "--batch=%(objectsize)"]);
        let room = max_bytes + objects.len() * 32;
        let output = self.run(args, Input::Bytes(lines_of(objects)), room).await?;
        let mut rest = output.bytes.as_slice();
        let mut contents = Vec::new();
        for _ in objects {
            let read = memchr::memchr(b'\n', rest).and_then(|end| {
                let size: usize = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
                let content = rest.get(end + 1..end + 1 + size)?.to_vec();
                rest = rest.get(end + 2 + size..)?;
                Some(content)
            });
            contents.push(read.ok_or_else(|| failed(&"an object is missing"))?);
        }
        Ok(contents)
    }

    /// Merges `theirs` into `ours`, which both began as `base`: three trees. Uses no work tree and no merge driver.
    /// `None` if they conflict.
    ///
    /// # Errors
    /// As [`Git::run`].
    pub(crate) async fn merge(&self, base: &str, ours: &str, theirs: &str) -> Result<Option<String>, Failure> {
        if base == ours {
            return Ok(Some(theirs.to_owned()));
        }
        let base = self.commit_of(base, None).await?;
        let ours = self.commit_of(ours, Some(&base)).await?;
        let theirs = self.commit_of(theirs, Some(&base)).await?;
        let args = strings(["merge-tree", "--write-tree", "--no-messages", "--name-only", &ours, &theirs]);
        let merged = self.execute(args, Input::Nothing, 64 * 1024).await?;
        match merged.exit_code() {
            Some(0) => one_line(&merged.output.bytes).map(Some),
            Some(1) | None => Ok(None),
            Some(_) => merged.success().map(|_| None),
        }
    }

    /// A commit of a tree that only serves as an argument.
    async fn commit_of(&self, tree: &str, parent: Option<&str>) -> Result<String, Failure> {
        let parent = parent.map(|parent| format!("parent {parent}\n")).unwrap_or_default();
        let person = "lumilink <lumilink@invalid> 0 +0000";
        let text = format!("tree {tree}\n{parent}author {person}\ncommitter {person}\n\nmerge\n");
        self.write_commit(text.into_bytes()).await
    }

    /// Makes a commit. The same input makes the same commit.
    ///
    /// # Errors
    /// As [`Git::run`], also for an empty name and a missing object.
    pub(crate) async fn commit(&self, commit: &NewCommit<'_>) -> Result<String, Failure> {
        let at = format!("@{} +0000", commit.at.0.div_euclid(1_000_000));
        let mut call = self.call(strings(["commit-tree", commit.tree, "-p", commit.parent, "-F", "-"]), LINE_BYTES);
        call.env.extend([
            ("GIT_AUTHOR_NAME", commit.author.name.as_str().into()),
            ("GIT_AUTHOR_EMAIL", commit.author.email.as_str().into()),
            ("GIT_AUTHOR_DATE", at.as_str().into()),
            ("GIT_COMMITTER_NAME", commit.committer.name.as_str().into()),
            ("GIT_COMMITTER_EMAIL", commit.committer.email.as_str().into()),
            ("GIT_COMMITTER_DATE", at.as_str().into()),
        ]);
        let message = commit.message.replace('\0', "");
        one_line(&self.git.run(Call { input: Input::Bytes(message.into_bytes()), ..call }).await?.bytes)
    }

    /// The text of a commit, as git stores it, of at most `max_bytes` bytes.
    ///
    /// # Errors
    /// As [`Git::run`].
    pub(crate) async fn text_of_commit(&self, commit: &str, max_bytes: usize) -> Result<Vec<u8>, Failure> {
        Ok(self.run(strings(["cat-file", "commit", commit]), Input::Nothing, max_bytes).await?.bytes)
    }

    /// The first parent of a commit; `None` without one.
    ///
    /// # Errors
    /// As [`Git::execute`].
    pub(crate) async fn parent_of(&self, commit: &str) -> Result<Option<String>, Failure> {
        let revision = format!("{commit}^");
        let args = strings(["rev-parse", "--verify", "--quiet", "--end-of-options", &revision]);
        let found = self.execute(args, Input::Nothing, LINE_BYTES).await?;
        match found.exit_code() {
            Some(0) => one_line(&found.output.bytes).map(Some),
            _ => Ok(None),
        }
    }

    /// Writes a commit object, given as git stores it.
    ///
    /// # Errors
    /// As [`Git::run`], also for a malformed commit.
    pub(crate) async fn write_commit(&self, text: Vec<u8>) -> Result<String, Failure> {
        self.name(strings(["hash-object", "-t", "commit", "-w", "--stdin"]), Input::Bytes(text)).await
    }
}

fn lines_of(objects: &[&str]) -> Vec<u8> {
    objects.iter().flat_map(|object| object.bytes().chain([b'\n'])).collect()
}

/// The name of an object that git printed.
fn one_line(bytes: &[u8]) -> Result<String, Failure> {
    let text = String::from_utf8_lossy(bytes).trim().to_owned();
    if is_object_name(&text) { Ok(text) } else { Err(failed(&"git printed no name of an object")) }
}

fn parts(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split_inclusive(|byte| *byte == 0).filter_map(|part| part.strip_suffix(b"\0"))
}

/// `100644 blob <name>`, TAB, path.
fn file_of_tree(line: &[u8]) -> Option<TreeEntry> {
    let at = memchr::memchr(b'\t', line)?;
    let mut fields = std::str::from_utf8(&line[..at]).ok()?.split(' ');
    let (mode, _, object) = (fields.next()?, fields.next()?, fields.next()?);
    let mode = u32::from_str_radix(mode, 8).ok()?;
    Some(TreeEntry {
        path: line[at + 1..].to_vec(),
        mode: Some(mode),
        object: object.to_owned(),
        old: None,
        old_mode: None,
    })
}

/// Reads `:100644 100644 <name> <name> M`, NUL, path, NUL.
pub(super) fn raw_entries(bytes: &[u8]) -> Vec<TreeEntry> {
    let mut fields = parts(bytes);
    let mut entries = Vec::new();
    while let (Some(head), Some(path)) = (fields.next(), fields.next()) {
        let Ok(head) = std::str::from_utf8(head) else { continue };
        let head: Vec<_> = head.trim_start_matches(':').split(' ').collect();
        let [old_mode, new, old, object, _] = head.as_slice() else { continue };
        let mode = |text: &str| u32::from_str_radix(text, 8).ok().filter(|mode| *mode != 0);
        let (mode, old_mode) = (mode(new), mode(old_mode));
        let object = (*object).to_owned();
        let old = Some((*old).to_owned()).filter(|old| old.bytes().any(|byte| byte != b'0'));
        entries.push(TreeEntry { path: path.to_vec(), mode, object, old, old_mode });
    }
    entries
}

/// Copies the regular files of a folder and of its folders, one level deep, as objects are stored.
fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() && entry.file_name() != "info" {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&target)?;
            copy_files(&source, &target)?;
        } else if kind.is_file() {
            fs::copy(source, target)?;
        }
    }
    Ok(())
}
