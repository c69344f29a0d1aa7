//! Workspaces: creates their folders, clones repositories into them, and computes what changed since.
//!
//! Of each clone the runtime keeps a bare repository of its own ([`repositories`]), from which automation commits.

mod delta;
pub(crate) mod diff;
pub(crate) mod folders;
pub(crate) mod git;
mod large;
mod measure;
mod omitted;
pub(crate) mod proxy;
pub(crate) mod repositories;
pub(crate) mod repository;
mod scratch;

use std::{
    collections::HashMap,
    ffi::OsString,
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use parking_lot::Mutex;
use secrecy::SecretString;
use tokio::sync::Mutex as AsyncMutex;

pub(crate) use self::delta::{Delta, SUMMARY, Summary};
use self::{
    diff::{Baseline, DiffLimits},
    folders::AllowedFolders,
    git::{Call, Git, ProgressSender},
    proxy::{Proxy, ProxyFailure, Services},
    repositories::BareRepository,
    repository::{Repository, Scheme, check_branch},
};
use crate::{
    contract::runtime::{
        Checkout, MeasuredWorkspace, PrepareWorkspace, PreparedWorkspace, RemovedWorkspace, WorkspaceDiff,
        WorkspaceRef,
    },
    domain::{
        automation::{
            branch::{pull_request_of, ref_of_pull_request},
            rejection,
        },
        ids::FolderId,
        turn::outcome::{ErrorCode, Failure},
    },
    process::{sandbox::scratch::remove_tree, user::RunAs},
    telemetry::{Metrics, labels::CloneResult},
};

/// Folder in the root that holds the baselines. Workspaces are named by UUIDs, so none has this name.
const BASELINES: &str = ".baselines";
/// Folder in the root that holds the repositories from which automation commits, named as the workspaces.
const REPOSITORIES: &str = ".repositories";
/// Folder in the root that holds commits that could not be delivered.
const RESCUES: &str = ".rescues";
/// Folder in the root that holds clones in progress and temporary git folders.
const INCOMING: &str = ".incoming";
/// Age after which a folder in [`INCOMING`] counts as left behind by an earlier run, if the clone timeout is not
/// longer. Everything else there is in use for minutes at most.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

/// The workspaces of one runtime.
#[derive(Debug)]
pub(crate) struct Workspaces {
    allowed: AllowedFolders,
    git: Git,
    git_hosts: Vec<String>,
    clone_timeout: Duration,
    diff: DiffLimits,
    metrics: Metrics,
    /// Running comparisons by folder; finished ones are removed when another begins.
    comparing: Mutex<HashMap<PathBuf, WeakShared<Comparison>>>,
    /// One lock per workspace, which serialises preparing and comparing it. Entries without a holder are removed when
    /// another is added.
    busy: Mutex<HashMap<PathBuf, Weak<AsyncMutex<()>>>>,
    /// Held while a workspace is measured: one at a time.
    measuring: AsyncMutex<()>,
}

/// Settings for creating and comparing workspaces.
#[derive(Debug, Clone)]
pub(crate) struct WorkspaceSettings {
    /// Hosts from which repositories may be cloned, each with an optional port.
    pub git_hosts: Vec<String>,
    /// Time limit of a clone.
    pub clone_timeout: Duration,
    pub diff: DiffLimits,
    /// True if agents run as other users, as whom git compares.
    pub has_other_users: bool,
    pub metrics: Metrics,
}

/// A repository to clone.
struct Source {
    repository: Repository,
    branch: Option<String>,
    token: Option<SecretString>,
    progress: Option<ProgressSender>,
}

/// Measures a clone. Dropped before its end, it counts as cancelled.
struct CloneTimer {
    metrics: Metrics,
    began: Instant,
    result: CloneResult,
}

impl CloneTimer {
    fn start(metrics: Metrics) -> Self {
        Self { metrics, began: Instant::now(), result: CloneResult::Cancelled }
    }

    fn end(mut self, is_done: bool) {
        self.result = if is_done { CloneResult::Done } else { CloneResult::Failed };
    }
}

impl Drop for CloneTimer {
    fn drop(&mut self) {
        self.metrics.cloned(self.result, self.began.elapsed());
    }
}

/// A comparison that several callers await.
type Comparison = BoxFuture<'static, Result<WorkspaceDiff, Failure>>;

fn unavailable(what: &str, cause: &dyn std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::WorkspaceUnavailable, format!("{what}: {cause}"))
}

impl Workspaces {
    /// Removes incomplete clones that an earlier run left behind. Blocks.
    ///
    /// # Errors
    /// The root cannot be written.
    pub(crate) fn new(allowed: AllowedFolders, git: Git, settings: WorkspaceSettings) -> io::Result<Self> {
        let WorkspaceSettings { git_hosts, clone_timeout, diff, has_other_users, metrics } = settings;
        let incoming = allowed.root().join(INCOMING);
        private_folders(&incoming)?;
        for name in [BASELINES, REPOSITORIES, RESCUES] {
            private_folders(&allowed.root().join(name))?;
        }
        if has_other_users {
            for folder in [&incoming, &allowed.root().join(BASELINES)] {
                // git passes through as the user of an agent; it cannot list the folder.
                fs::set_permissions(folder, fs::Permissions::from_mode(0o711))?;
            }
        }
        for entry in fs::read_dir(&incoming)?.flatten() {
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            // Another runtime may use the same root, so only old entries are removed.
            if modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > clone_timeout.max(ABANDONED_AFTER))) {
                remove_tree(&entry.path());
            }
        }
        remove_abandoned_repositories(allowed.root(), clone_timeout.max(ABANDONED_AFTER))?;
        let (comparing, busy, measuring) = Default::default();
        Ok(Self { allowed, git, git_hosts, clone_timeout, diff, metrics, comparing, busy, measuring })
    }

    /// Creates a workspace, or returns an existing one unchanged; `progress` gets that of its clone. `user` is that of the agent for which a folder given by
    /// `path` is read.
    ///
    /// # Errors
    /// `invalid_request` for a bad repository or branch, `path_not_allowed`, `ceiling_exceeded`, and `workspace_unavailable` if git or
    /// the file system fails. A retry is safe.
    ///
    /// # Cancel safety
    /// A dropped future leaves no incomplete workspace: a clone is moved into place once it is complete.
    pub(crate) async fn prepare(
        self: &Arc<Self>,
        request: PrepareWorkspace,
        user: Option<RunAs>,
        progress: Option<ProgressSender>,
    ) -> Result<PreparedWorkspace, Failure> {
        let PrepareWorkspace { workspace, checkout, github_token, .. } = request;
        if let Some(path) = workspace.path {
            if checkout.is_some() {
                return Err(Failure::new(ErrorCode::InvalidRequest, "`path` and `repository` exclude each other"));
            }
            return self.prepare_path(path, workspace.within, user).await;
        }
        // Checked even for an existing workspace, so that the answer does not depend on its state.
        let source = checkout.map(|checkout| self.check(&checkout)).transpose()?;
        let folder = self.folder(workspace.folder_id);
        let busy = self.busy_with(&folder);
        let _turn = busy.lock().await;
        if !is_real_folder(&folder).await? {
            match source {
                None => make_folder(folder.clone()).await?,
                Some((repository, branch)) => {
                    let timer = CloneTimer::start(self.metrics.clone());
                    let source = Source { repository, branch, token: github_token, progress };
                    let cloned = self.fetch_into(workspace.folder_id, source).await;
                    timer.end(cloned.is_ok());
                    cloned?;
                }
            }
        }
        Ok(PreparedWorkspace { path: folder.to_string_lossy().into_owned(), is_ephemeral: false, has_oneshot: false })
    }

    /// Returns the changes in a workspace since it was prepared, as its agent can read them: as the owner of the folder, or
    /// for one given by `path` as the user for whom it was prepared. A caller joins a comparison that runs already, so its
    /// answer may be as old as that comparison's start.
    ///
    /// # Errors
    /// `folder_missing`, `path_not_allowed`, `ceiling_exceeded`, and `workspace_unavailable` without a baseline or if
    /// git fails.
    pub(crate) async fn diff(self: &Arc<Self>, workspace: WorkspaceRef) -> Result<WorkspaceDiff, Failure> {
        let (folder, baseline, user) = match workspace.path {
            Some(path) => {
                let folder = self.open_allowed_path(path, workspace.within).await?;
                let baseline = self.baseline_of_path(&folder);
                if !baseline.exists() {
                    return Err(unavailable("diff", &"no baseline was taken when the workspace was prepared"));
                }
                let user = baseline.user();
                (folder, baseline, user)
            }
            None => {
                let folder = self.folder(workspace.folder_id);
                let user = self.owner(&folder).await?;
                (folder, self.baseline(workspace.folder_id), user)
            }
        };
        self.compare(folder, baseline, user).await
    }

    /// Joins the running comparison of a folder, or begins one. It ends when its last caller is dropped.
    fn compare(self: &Arc<Self>, folder: PathBuf, baseline: Baseline, user: Option<RunAs>) -> Shared<Comparison> {
        let mut comparing = self.comparing.lock();
        let running = comparing.get(&folder).and_then(WeakShared::upgrade);
        if let Some(running) = running.filter(|running| running.peek().is_none()) {
            return running;
        }
        let (workspaces, compared) = (self.clone(), folder.clone());
        let comparison: Comparison = Box::pin(async move {
            let busy = workspaces.busy_with(&compared);
            let _turn = busy.lock().await;
            baseline.diff(&workspaces.git, &compared, user, workspaces.diff).await
        });
        let comparison = comparison.shared();
        comparing.retain(|_, comparison| comparison.upgrade().is_some());
        if let Some(weak) = comparison.downgrade() {
            comparing.insert(folder, weak);
        }
        comparison
    }

    /// Measures a workspace on disk; workspaces are measured one after the other.
    ///
    /// # Errors
    /// `workspace_unavailable` if no thread can be started.
    ///
    /// # Cancel safety
    /// The measurement continues without the caller, and the next one waits for it.
    pub(crate) async fn measure(self: &Arc<Self>, id: FolderId) -> Result<MeasuredWorkspace, Failure> {
        let (this, folder) = (self.clone(), self.folder(id));
        let measuring = tokio::spawn(async move {
            let _one = this.measuring.lock().await;
            measure::measure(folder).await
        });
        let measured = measuring.await.map_err(io::Error::other).and_then(|measured| measured);
        measured.map_err(|cause| unavailable("measure", &cause))
    }

    /// Removes a workspace with its baseline and its repository. Their files are deleted later, by a thread.
    ///
    /// # Errors
    /// `path_not_allowed` for a folder that a caller gave by `path`, and `workspace_unavailable` if the file system fails.
    /// A retry is safe.
    ///
    /// # Cancel safety
    /// A dropped future may have removed the workspace.
    pub(crate) async fn remove(
        self: &Arc<Self>,
        workspace: WorkspaceRef,
        erase: bool,
    ) -> Result<RemovedWorkspace, Failure> {
        match workspace.path {
            Some(path) if erase => return self.erase_baseline_of_path(path).await,
            Some(_) => {
                let detail = "a folder that was given by `path` is never removed";
                return Err(Failure::new(ErrorCode::PathNotAllowed, detail));
            }
            None if erase => return self.erase(workspace.folder_id).await,
            None => {}
        }
        let folder = self.folder(workspace.folder_id);
        let busy = self.busy_with(&folder);
        let _turn = busy.lock().await;
        let of_workspace = |name: &str| self.allowed.root().join(name).join(workspace.folder_id.to_string());
        let incoming = self.allowed.root().join(INCOMING);
        let mut removed = false;
        let others = [BASELINES, REPOSITORIES].map(|name| (of_workspace(name), false));
        for (path, is_workspace) in [(folder, true)].into_iter().chain(others) {
            if tokio::fs::symlink_metadata(&path).await.is_err() {
                continue;
            }
            // Moved away first, so that the workspace is removed at once; the drop deletes it.
            let target = Incoming { folder: incoming.join(uuid::Uuid::new_v4().to_string()) };
            tokio::fs::rename(&path, &target.folder).await.map_err(|cause| unavailable("workspace", &cause))?;
            removed |= is_workspace;
        }
        Ok(RemovedWorkspace { removed })
    }

    /// Removes a workspace with its baseline and its repository, and deletes all files before it returns. All are renamed
    /// first, to names that a repeat finds again.
    async fn erase(self: &Arc<Self>, id: FolderId) -> Result<RemovedWorkspace, Failure> {
        let folder = self.folder(id);
        let busy = self.busy_with(&folder);
        let _turn = busy.lock().await;
        let (root, incoming) = (self.allowed.root(), self.allowed.root().join(INCOMING));
        let moves = [
            (folder.clone(), incoming.join(format!("{ERASED}{id}"))),
            (root.join(BASELINES).join(id.to_string()), incoming.join(format!("{ERASED}{id}-baseline"))),
            (root.join(REPOSITORIES).join(id.to_string()), incoming.join(format!("{ERASED}{id}-repository"))),
        ];
        let removed = tokio::fs::symlink_metadata(&folder).await.is_ok();
        delete_all(moves.to_vec()).await?;
        Ok(RemovedWorkspace { removed })
    }

    /// Deletes the baseline of a folder that a caller gave, and leaves the folder. One that is missing has no baseline
    /// that could be found.
    async fn erase_baseline_of_path(self: &Arc<Self>, path: String) -> Result<RemovedWorkspace, Failure> {
        let Ok(folder) = self.open_allowed_path(path, None).await else {
            return Ok(RemovedWorkspace { removed: false });
        };
        let busy = self.busy_with(&folder);
        let _turn = busy.lock().await;
        let name = baseline_name(&folder);
        let (baseline, incoming) =
            (self.allowed.root().join(BASELINES).join(&name), self.allowed.root().join(INCOMING));
        delete_all(vec![(baseline, incoming.join(format!("{ERASED}{name}")))]).await?;
        Ok(RemovedWorkspace { removed: false })
    }

    async fn prepare_path(
        self: &Arc<Self>,
        path: String,
        within: Option<Vec<String>>,
        user: Option<RunAs>,
    ) -> Result<PreparedWorkspace, Failure> {
        let folder = self.open_allowed_path(path, within).await?;
        let busy = self.busy_with(&folder);
        let _turn = busy.lock().await;
        let baseline = self.baseline_of_path(&folder);
        if !baseline.exists()
            && let Err(failure) = baseline.take(&self.git, &folder, user, self.diff.file_bytes).await
        {
            // The agent can work without a baseline; only `diff` fails.
            tracing::warn!(%failure, "taking the baseline of a folder failed");
        }
        Ok(PreparedWorkspace { path: folder.to_string_lossy().into_owned(), is_ephemeral: false, has_oneshot: false })
    }

    async fn open_allowed_path(
        self: &Arc<Self>,
        path: String,
        within: Option<Vec<String>>,
    ) -> Result<PathBuf, Failure> {
        let workspaces = self.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let opened = workspaces.allowed.open_allowed_path(&path, within.as_deref());
            opened.map(|folder| folder.path().to_owned())
        });
        opened.await.map_err(|cause| unavailable("path", &cause))?
    }

    fn check(&self, checkout: &Checkout) -> Result<(Repository, Option<String>), Failure> {
        let repository = Repository::parse(&checkout.repository, &self.git_hosts)?;
        if let Some(branch) = checkout.branch.as_ref().filter(|name| pull_request_of(name).is_none()) {
            check_branch(branch)?;
        }
        Ok((repository, checkout.branch.clone()))
    }

    /// Clones into [`INCOMING`] and renames the result into place, so that an existing workspace is always complete.
    async fn fetch_into(&self, id: FolderId, source: Source) -> Result<(), Failure> {
        // A folder of its own with mode 0700: git creates the work tree with the permissions of the umask.
        let target = self.temporary_folder().await?;
        let work_tree = target.path().join("workspace");
        self.clone_to(&work_tree, target.path(), source).await?;
        // Taken before the rename: an existing workspace always has its baseline and its repository.
        self.baseline(id).take(&self.git, &work_tree, None, self.diff.file_bytes).await?;
        let kept = target.path().join("repository");
        BareRepository::copy_clone(self.git.clone(), kept.clone(), &work_tree).await?;
        let (folder, repository) = (self.folder(id), self.kept_folder(id));
        let moved = tokio::task::spawn_blocking(move || {
            // git made it with a umask that may be wider than ours.
            fs::set_permissions(&work_tree, fs::Permissions::from_mode(0o700))?;
            // Left by a clone that was interrupted between the two renames.
            remove_tree(&repository);
            fs::rename(kept, repository)?;
            fs::rename(work_tree, folder)
        });
        let moved = moved.await;
        moved.map_err(io::Error::other).and_then(|moved| moved).map_err(|cause| unavailable("workspace", &cause))
    }

    /// Runs `git clone`. Files are written as the repository stores them: without filters, and with its line ends.
    async fn clone_to(&self, work_tree: &Path, around: &Path, source: Source) -> Result<(), Failure> {
        let Source { repository, branch, token, progress } = source;
        let proxy = token.as_ref().map(|token| Proxy::start(&repository, token, Services::Fetch)).transpose()?;
        let template = around.join("template");
        let attributes = template.join("info/attributes");
        let written = attributes.clone();
        in_thread(move || {
            private_folders(written.parent().unwrap_or(&written))?;
            fs::write(written, "* -text !eol !filter !ident !working-tree-encoding\n")
        })
        .await?;
        let mut args: Vec<OsString> = ["clone", "--depth=1", "--single-branch", "--no-tags"].map(Into::into).to_vec();
        args.push(if progress.is_some() { "--progress" } else { "--quiet" }.into());
        let mut from_template = OsString::from("--template=");
        from_template.push(&template);
        args.push(from_template);
        let pull_request = branch.as_deref().and_then(pull_request_of);
        match pull_request {
            Some(_) => args.push("--no-checkout".into()),
            None => args.extend(branch.map(|branch| OsString::from(format!("--branch={branch}")))),
        }
        let url = proxy.as_ref().map_or(repository.url(), Proxy::url);
        args.extend(["--".into(), url.into(), work_tree.into()]);
        // With this program's rights: ssh needs the keys of its user, and no agent has written anything yet.
        let call = Call {
            env: proxy.as_ref().map(Proxy::environment).unwrap_or_default(),
            scheme: Some(proxy.as_ref().map_or(repository.scheme(), Proxy::scheme)),
            progress,
            ..Call::local(around, args, self.clone_timeout)
        };
        let scheme = call.scheme;
        if let Err(failure) = self.git.run(call).await {
            return Err(proxy.and_then(|proxy| refused_clone(&proxy)).unwrap_or(failure));
        }
        if let Some(number) = pull_request {
            let env = proxy.as_ref().map(Proxy::environment).unwrap_or_default();
            self.check_out_pull_request(work_tree, url, number, (env, scheme)).await?;
        }
        if proxy.is_some() {
            let args = ["config", "--file"].map(OsString::from).into_iter();
            let args = args.chain([work_tree.join(".git/config").into(), "remote.origin.url".into()]);
            let args = args.chain([repository.upstream().as_str().into()]).collect();
            self.git.run(Call::local(around, args, self.clone_timeout)).await?;
        }
        // The agent's own git uses the attributes of the repository.
        let attributes = work_tree.join(".git/info/attributes");
        in_thread(move || fs::remove_file(attributes)).await
    }

    /// Checks out the head of a pull request on a branch of its own; no agent has worked in the clone yet.
    async fn check_out_pull_request(
        &self,
        work_tree: &Path,
        url: &str,
        number: u64,
        (env, scheme): (Vec<(&'static str, OsString)>, Option<Scheme>),
    ) -> Result<(), Failure> {
        let of = ref_of_pull_request(number);
        let args = ["fetch", "--quiet", "--depth=1", "--no-tags", "--", url, &of].map(OsString::from).to_vec();
        let call = Call { env, scheme, ..Call::local(work_tree, args, self.clone_timeout) };
        self.git.run(call).await.map_err(|cause| {
            let detail = format!("pull request {number} cannot be fetched: {}", cause.detail);
            Failure::new(ErrorCode::WorkspaceUnavailable, detail)
        })?;
        let branch = format!("pull/{number}");
        let args = ["checkout", "--quiet", "-B", &branch, "FETCH_HEAD", "--"].map(OsString::from).to_vec();
        self.git.run(Call::local(work_tree, args, self.clone_timeout)).await.map(drop)
    }

    /// Computes the changes of a clone since it was made, and writes their contents as a pack to `pack`.
    ///
    /// # Errors
    /// `folder_missing`, and `workspace_unavailable` if git or the file system fails.
    ///
    /// # Cancel safety
    /// A dropped future changes nothing but `pack`.
    pub(crate) async fn delta(self: &Arc<Self>, id: FolderId, pack: PathBuf) -> Result<Delta, Failure> {
        let folder = self.folder(id);
        let busy = self.busy_with(&folder);
        let _turn = busy.lock().await;
        let user = self.owner(&folder).await?;
        self.baseline(id).delta(&self.git, &folder, user, self.diff.file_bytes, pack).await
    }

    /// The owner of a workspace's folder, if it is another user than this program's own.
    async fn owner(&self, folder: &Path) -> Result<Option<RunAs>, Failure> {
        if !is_real_folder(folder).await? {
            return Err(Failure::new(ErrorCode::FolderMissing, "the folder of the workspace does not exist"));
        }
        let metadata = tokio::fs::symlink_metadata(folder).await;
        Ok(RunAs::owner(&metadata.map_err(|cause| unavailable("workspace", &cause))?))
    }

    /// The repository of a workspace, from which automation commits. It may not exist.
    pub(crate) fn kept(&self, id: FolderId) -> BareRepository {
        BareRepository::new(self.git.clone(), self.kept_folder(id))
    }

    fn kept_folder(&self, id: FolderId) -> PathBuf {
        self.allowed.root().join(REPOSITORIES).join(id.to_string())
    }

    /// Folder of the commits that could not be delivered.
    pub(crate) fn rescues(&self) -> PathBuf {
        self.allowed.root().join(RESCUES)
    }

    pub(crate) fn git(&self) -> &Git {
        &self.git
    }

    /// Time limit of a call of git over the network.
    pub(crate) fn network_timeout(&self) -> Duration {
        self.clone_timeout
    }

    /// Checks the address of a repository.
    ///
    /// # Errors
    /// `invalid_request`.
    pub(crate) fn address(&self, repository: &str) -> Result<Repository, Failure> {
        Repository::parse(repository, &self.git_hosts)
    }

    /// Makes a folder for temporary files, mode 0700, on the file system of the workspaces.
    ///
    /// # Errors
    /// `workspace_unavailable` if the file system fails.
    pub(crate) async fn temporary_folder(&self) -> Result<Incoming, Failure> {
        let incoming = self.allowed.root().join(INCOMING);
        let target = Incoming { folder: incoming.join(uuid::Uuid::new_v4().to_string()) };
        make_folder(target.folder.clone()).await?;
        Ok(target)
    }

    fn folder(&self, id: FolderId) -> PathBuf {
        self.allowed.root().join(id.to_string())
    }

    fn baseline(&self, id: FolderId) -> Baseline {
        self.baseline_named(&id.to_string())
    }

    /// Baseline of a caller's folder, named by a UUID of its path, since a path itself is not a valid file name.
    fn baseline_of_path(&self, folder: &Path) -> Baseline {
        self.baseline_named(&baseline_name(folder))
    }

    fn baseline_named(&self, name: &str) -> Baseline {
        let root = self.allowed.root();
        Baseline::new(root.join(BASELINES).join(name), root.join(INCOMING))
    }

    /// The lock of a folder, which serialises work on it.
    pub(crate) fn busy_with(&self, folder: &Path) -> Arc<AsyncMutex<()>> {
        let mut busy = self.busy.lock();
        if let Some(lock) = busy.get(folder).and_then(Weak::upgrade) {
            return lock;
        }
        // Locks without a holder are removed here, where the map grows anyway.
        busy.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(AsyncMutex::new(()));
        busy.insert(folder.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

/// Removes repositories without a workspace, which a process left that died while it made or removed one. Blocks.
fn remove_abandoned_repositories(root: &Path, age: Duration) -> io::Result<()> {
    for entry in fs::read_dir(root.join(REPOSITORIES))?.flatten() {
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let is_old = modified.is_ok_and(|at| at.elapsed().is_ok_and(|elapsed| elapsed > age));
        if is_old && fs::symlink_metadata(root.join(entry.file_name())).is_err() {
            remove_tree(&entry.path());
        }
    }
    Ok(())
}

/// Start of the names of folders in [`INCOMING`] that are being erased.
const ERASED: &str = "erased-";

/// Moves each folder to its second path and deletes it there, on a blocking thread.
///
/// # Errors
/// `workspace_unavailable` if not every file can be deleted. A retry continues.
async fn delete_all(moves: Vec<(PathBuf, PathBuf)>) -> Result<(), Failure> {
    let deleting = tokio::task::spawn_blocking(move || {
        for (from, to) in &moves {
            if fs::symlink_metadata(from).is_ok() {
                // Left by an erasure of the same folder that was interrupted.
                remove_tree(to);
                fs::rename(from, to)?;
            }
            remove_tree(to);
            if fs::symlink_metadata(to).is_ok() {
                return Err(io::Error::other("not every file could be deleted"));
            }
        }
        Ok(())
    });
    let deleted = deleting.await.map_err(io::Error::other).and_then(|deleted| deleted);
    deleted.map_err(|cause| unavailable("workspace", &cause))
}

fn baseline_name(folder: &Path) -> String {
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, folder.as_os_str().as_encoded_bytes()).to_string()
}

/// The reason that the host gave for refusing a clone.
fn refused_clone(proxy: &Proxy) -> Option<Failure> {
    let cause = match proxy.take_failure()? {
        ProxyFailure::Refused(answer) => {
            rejection::of_status(answer.status, &answer.text, answer.sso.as_deref()).message
        }
        ProxyFailure::Lost(cause) => format!("the host could not be reached: {cause}"),
    };
    Some(unavailable("clone", &cause))
}

/// Temporary folder, such as that of a clone in progress. Dropping it removes what is left in the folder.
#[derive(Debug)]
pub(crate) struct Incoming {
    folder: PathBuf,
}

impl Incoming {
    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let folder = std::mem::take(&mut self.folder);
        // Removing a large incomplete clone takes long, so a detached thread does it. A failure is cleaned up by a
        // later start.
        let removed = std::thread::Builder::new().spawn(move || remove_tree(&folder));
        drop(removed);
    }
}

/// True if the workspace exists as a folder.
///
/// # Errors
/// `workspace_unavailable` if a link or file is in its place, or if the disk cannot be read.
async fn is_real_folder(folder: &Path) -> Result<bool, Failure> {
    match tokio::fs::symlink_metadata(folder).await {
        Ok(metadata) if metadata.is_dir() => Ok(true),
        Ok(_) => Err(unavailable("workspace", &"its path exists and is not a folder")),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(unavailable("workspace", &cause)),
    }
}

/// Creates a folder, with those around it, that other users of the machine cannot enter (mode 0700). Blocks.
fn private_folders(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Creates a folder that other users of the machine cannot enter (mode 0700).
async fn make_folder(folder: PathBuf) -> Result<(), Failure> {
    in_thread(move || private_folders(&folder)).await
}

/// Does work that blocks.
async fn in_thread(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<(), Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other).and_then(|done| done).map_err(|cause| unavailable("workspace", &cause))
}

#[cfg(test)]
pub(crate) mod tests;
