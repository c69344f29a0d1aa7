//! The push of one commit to one branch, and its proof: the branch is read back.
//!
//! Commits of others are never overwritten: a push states the commit that it replaces. If the branch has other commits,
//! the commit is moved onto them, once. A push whose answer is lost is recognised by the branch.

use std::{ffi::OsString, time::Duration};

use super::{
    Made, Step,
    api::{SignedBranch, SignedCommit},
    changes::file_of,
    failure,
    host::{of_host, over, text_of},
    local::{COMMIT_BYTES, broken, key, other_step, signed, skipped},
    rescue,
};
use crate::{
    domain::automation::{
        rejection::{self, Rejection},
        signing::{self, MAX_API_BYTES, MAX_API_FILES, SigningWay},
        skip::SkipDetail,
        ssh_key::{SshKey, without_signature},
        step::{PushFact, Remedy, StepFact, StepFailure, StepInput},
    },
    runtime::workspaces::{
        git::Input,
        proxy::{Proxy, Services},
        repositories::{BareRepository, is_object_name},
        repository::check_branch,
    },
};

/// Commits by which a fetch is deepened, until the branch and the commit have a common one.
const DEEPEN_BY: u32 = 100;
/// The most deepening fetches.
const MAX_DEEPENED: u32 = 10;
/// Reference of the branch as it was fetched.
const REMOTE_REF: &str = "refs/lumilink/remote";
/// Reference of the base as it was fetched.
const BASE_REF: &str = "refs/lumilink/new-base";
/// The most pushes of one step to a branch that others push to.
const MAX_PUSHES: u32 = 5;
/// Largest list of the changes of a commit that GitHub makes, in bytes.
const CHANGES_BYTES: usize = MAX_API_FILES * 8 * 1024;

/// A push in progress.
struct Push<'a> {
    repository: BareRepository,
    proxy: &'a Proxy,
    branch: &'a str,
    commit: &'a str,
    timeout: Duration,
    signature: Signature<'a>,
    /// The branch onto whose head the commit is moved, for a new branch.
    onto: Option<&'a str>,
    /// Commits of earlier turns that the branch may have.
    unconfirmed: &'a [String],
}

/// The signature of the commit that the branch gets.
enum Signature<'a> {
    /// The one of the commit itself, if it has one.
    Own,
    /// Of the service, which signs a commit that it moves.
    Key(SshKey),
    /// Of GitHub, which makes the commit.
    Github(Box<SignedBranch<'a>>),
}

/// A commit object without its signature.
struct Parts {
    tree: String,
    parent: String,
    /// Author, committer and message.
    rest: Vec<u8>,
}

/// The result of one push.
enum Pushed {
    /// The branch has this commit.
    Done(String),
    Moved,
}

fn arguments(args: &[&str]) -> Vec<OsString> {
    args.iter().map(OsString::from).collect()
}

pub(super) async fn push(step: &mut Step<'_>) -> Made {
    let StepInput::Push { branch, commit, expected, unconfirmed, signing, onto, is_twin, fork } = &step.order.input
    else {
        return Err(other_step());
    };
    let mut names = [Some(commit), expected.as_ref()].into_iter().flatten().chain(unconfirmed);
    if !names.all(|name| is_object_name(name)) {
        return Err(failure("invalid-order", "the commits must be given by their names", Remedy::Never));
    }
    for name in [Some(branch), onto.as_ref()].into_iter().flatten() {
        check_branch(name).map_err(broken)?;
    }
    let remote = step.remote()?;
    let repository = match fork {
        Some(fork) => address_of_fork(&remote.repository, fork),
        None => remote.repository.clone(),
    };
    let address = step.workspaces.address(&repository).map_err(broken)?;
    let proxy = Proxy::start(&address, &remote.token, Services::FetchAndPush).map_err(broken)?;
    let kept = step.workspaces.kept(step.order.workspace.folder_id);
    let busy = step.workspaces.busy_with(kept.folder());
    let _turn = busy.lock().await;
    let temporary = step.workspaces.temporary_folder().await.map_err(broken)?;
    let has_commit = kept.exists() && kept.tree_of(commit).await.map_err(broken)?.is_some();
    let repository = match has_commit {
        true => kept,
        false => {
            let restored = rescue::restore(step, &proxy, commit, temporary.path().join("repository")).await?;
            step.log("the commit was restored from its bundle");
            restored.ok_or_else(|| {
                let message = "The commit is neither in the workspace nor kept: it cannot be delivered";
                failure("commit-missing", message, Remedy::Never)
            })?
        }
    };
    let timeout = step.workspaces.network_timeout();
    let signature = match signing {
        None => Signature::Own,
        Some(SigningWay::Key) => Signature::Key(key(step)?),
        Some(SigningWay::Api) => Signature::Github(Box::new(SignedBranch::new(step, branch).await?)),
    };
    let onto = onto.as_deref();
    let mut push = Push { repository, proxy: &proxy, branch, commit, timeout, signature, onto, unconfirmed };
    let pushed = match is_twin {
        true => push.adopt_twin().await,
        false => push.deliver(expected.clone(), |line| step.log(line)).await,
    };
    pushed.map(StepFact::Push).map_err(|failure| match (failure.skip, fork) {
        (Some(SkipDetail::TokenRefused), Some(fork)) => {
            let message =
                format!("GitHub does not let the token push to {fork}. The commit is kept: fetch it as a patch");
            skipped(SkipDetail::ForkReadOnly, &message)
        }
        _ => failure,
    })
}

/// The address of a fork on the host of a repository, in the same form.
fn address_of_fork(repository: &str, fork: &str) -> String {
    if let Ok(mut url) = url::Url::parse(repository) {
        url.set_path(&format!("/{fork}.git"));
        return url.into();
    }
    match repository.split_once(':') {
        Some((host, _)) => format!("{host}:{fork}.git"),
        None => fork.to_owned(),
    }
}

impl Push<'_> {
    fn reference(&self) -> String {
        format!("refs/heads/{}", self.branch)
    }

    fn fact(&self, sha: String, is_rebased: bool) -> PushFact {
        PushFact { branch: self.branch.to_owned(), sha, is_rebased }
    }

    /// Pushes until the branch has the commit, or the commit with others before it.
    async fn deliver(
        &mut self,
        expected: Option<String>,
        mut log: impl FnMut(&str),
    ) -> Result<PushFact, StepFailure> {
        let (mut sha, mut lease, mut is_rebased) = (self.commit.to_owned(), expected, false);
        for _ in 0..MAX_PUSHES {
            let head = self.head().await?;
            if let Some(head) = &head
                && let Some(fact) = self.adopted(head, &sha).await?
            {
                log("the branch has the commit already");
                return Ok(fact);
            }
            if head.is_none()
                && lease.is_none()
                && let Some(base) = self.onto.filter(|_| !is_rebased)
            {
                sha = self.begin_anew(base).await?;
                (is_rebased, _) =
                    (true, log("an earlier pull request was merged; the commit is moved onto the base"));
            }
            if let Some(head) = head.as_deref().filter(|_| !is_rebased)
                && self.is_unconfirmed(head).await?
            {
                log("the branch has the commit of an earlier turn, whose push was not answered");
                let Some(following) = self.follow(head).await? else { return self.adopt_head(head.to_owned()).await };
                (sha, lease, is_rebased) = (following, Some(head.to_owned()), true);
            }
            if lease.is_none() && self.is_begun(head.as_deref()).await {
                lease.clone_from(&head);
            }
            if head.is_none() && lease.is_some() {
                let message = "The branch was deleted on GitHub. The commit is not pushed to a new one of its name";
                return Err(failure("branch-missing", message, Remedy::Never));
            }
            let follows = match &lease {
                Some(lease) => self.is_ancestor(lease, &sha).await?,
                None => true,
            };
            if let Some(head) = head.filter(|head| lease.as_ref() != Some(head) || !follows) {
                let onto = self.connect(&head, lease.is_some()).await?;
                if let Some(fact) = onto {
                    log("the branch has the commit, with others after it");
                    return Ok(fact);
                }
                if is_rebased {
                    return Err(behind("Others push to the branch at the same time", Remedy::Later));
                }
                log("the branch has commits of others; the commit is moved onto them");
                match self.rebase(&head).await? {
                    Some(moved) => sha = moved,
                    None => return self.adopt_head(head).await,
                }
                (lease, is_rebased) = (Some(head), true);
            }
            let pushed = match &self.signature {
                Signature::Github(_) => self.commit_at_github(&sha, lease.as_deref()).await?,
                Signature::Own | Signature::Key(_) => self.push_once(&sha, lease.as_deref()).await?,
            };
            let Pushed::Done(pushed) = pushed else { continue };
            return match self.head().await? {
                Some(head) if head == pushed => Ok(self.fact(head, is_rebased)),
                _ => {
                    Err(failure("not-delivered", "The branch does not have the commit after the push", Remedy::Later))
                }
            };
        }
        Err(behind("Others push to the branch at the same time", Remedy::Later))
    }

    /// Adopts the branch of another run, which must have a commit of the same tree. Nothing is pushed.
    async fn adopt_twin(&self) -> Result<PushFact, StepFailure> {
        let changed = || {
            let message = "The pull request with the same content has changed meanwhile. The run is tried again";
            failure("twin-changed", message, Remedy::Later)
        };
        let head = self.head().await?.ok_or_else(changed)?;
        self.fetch(Some(1)).await?;
        if !self.has_same_tree(&head, self.commit).await? {
            return Err(changed());
        }
        self.record_moved(&head).await?;
        Ok(self.fact(head, false))
    }

    /// Makes the commit anew on the head of the base, which has what was merged.
    async fn begin_anew(&self, base: &str) -> Result<String, StepFailure> {
        let reference = format!("refs/heads/{base}");
        let missing = || failure("base-missing", &format!("The branch {base} does not exist"), Remedy::Never);
        let head = self.head_of(&reference).await?.ok_or_else(missing)?;
        let refspec = format!("+{reference}:{BASE_REF}");
        let args = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--depth=1", "--"];
        let args = args.into_iter().chain([self.proxy.url(), &refspec]).map(OsString::from).collect();
        over(&self.repository, self.proxy, args, self.timeout).await?;
        let moved = self.rebase(&head).await?;
        moved.ok_or_else(|| skipped(SkipDetail::NoChanges, "The base already has the changes of the turn"))
    }

    /// The commit of the branch on the host.
    async fn head(&self) -> Result<Option<String>, StepFailure> {
        self.head_of(&self.reference()).await
    }

    async fn head_of(&self, reference: &str) -> Result<Option<String>, StepFailure> {
        let args = arguments(&["ls-remote", "--quiet", "--refs", "--", self.proxy.url(), reference]);
        let output = over(&self.repository, self.proxy, args, self.timeout).await?;
        // The server matches the end of names; others may come before.
        let mut found = output.lines().filter_map(|line| line.split_once('\t'));
        let head = found.find(|(sha, name)| is_object_name(sha) && *name == reference);
        Ok(head.map(|(sha, _)| sha.to_owned()))
    }

    /// The fact of an earlier push, if the branch has its commit.
    async fn adopted(&self, head: &str, sha: &str) -> Result<Option<PushFact>, StepFailure> {
        let rebased = self.repository.rebased(self.commit).await;
        let is_rebased = rebased.as_deref() == Some(head) || (head == sha && sha != self.commit);
        let is_of_github = matches!(self.signature, Signature::Github(_));
        if head == self.commit || is_rebased {
            return Ok(Some(self.fact(head.to_owned(), is_rebased && !is_of_github)));
        }
        if is_of_github && self.has_same_change(head, sha).await? {
            self.record_moved(head).await?;
            return Ok(Some(self.fact(head.to_owned(), false)));
        }
        Ok(None)
    }

    /// True if GitHub made a commit of this change, and its answer was lost: the branch has one with the same parent and the
    /// same tree.
    async fn has_same_change(&self, head: &str, sha: &str) -> Result<bool, StepFailure> {
        let parent = self.repository.parent_of(sha).await.map_err(broken)?;
        if parent.as_deref() == Some(head) {
            return Ok(false);
        }
        self.fetch(Some(2)).await?;
        Ok(self.has_same_tree(head, sha).await? && self.repository.parent_of(head).await.map_err(broken)? == parent)
    }

    async fn has_same_tree(&self, one: &str, two: &str) -> Result<bool, StepFailure> {
        let (one, two) = (self.repository.tree_of(one).await, self.repository.tree_of(two).await);
        Ok(one.map_err(broken)? == two.map_err(broken)?)
    }

    /// Fetches the branch, with `depth` commits, or up to a commit that the repository has.
    async fn fetch(&self, depth: Option<u32>) -> Result<(), StepFailure> {
        let refspec = format!("+{}:{REMOTE_REF}", self.reference());
        let depth = depth.map(|depth| format!("--depth={depth}"));
        let args = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head"].into_iter().chain(depth.as_deref());
        let args = args.chain(["--", self.proxy.url(), &refspec]).map(OsString::from).collect();
        over(&self.repository, self.proxy, args, self.timeout).await.map(drop)
    }

    /// Records that the branch has `new` in place of the commit.
    async fn record_moved(&self, new: &str) -> Result<(), StepFailure> {
        self.record_same_folder(new).await?;
        self.repository.record_rebased(self.commit, new).await.map_err(broken)
    }

    async fn is_ancestor(&self, old: &str, new: &str) -> Result<bool, StepFailure> {
        let args = arguments(&["merge-base", "--is-ancestor", old, new]);
        // A commit that the repository does not have is an error of git, and no ancestor.
        Ok(self.repository.execute(args, Input::Nothing, 0).await.map_err(broken)?.exit_code() == Some(0))
    }

    /// Fetches the branch until it has a commit in common with ours. Returns the fact if the branch contains ours.
    async fn connect(&self, head: &str, is_ours: bool) -> Result<Option<PushFact>, StepFailure> {
        let own = self.repository.rebased(self.commit).await.unwrap_or_else(|| self.commit.to_owned());
        for step in 1..=MAX_DEEPENED {
            self.fetch(Some(step * DEEPEN_BY)).await?;
            if self.is_ancestor(&own, head).await? {
                self.record_same_folder(head).await?;
                return Ok(Some(self.fact(head.to_owned(), own != self.commit)));
            }
            if !is_ours {
                let message = "The branch exists on GitHub, with commits of others";
                return Err(failure("branch-name-taken", message, Remedy::Never));
            }
            let args = arguments(&["merge-base", head, self.commit]);
            let found = self.repository.execute(args, Input::Nothing, 4096).await.map_err(broken)?;
            if found.exit_code() == Some(0) {
                return Ok(None);
            }
        }
        let message =
            format!("The branch has no commit in common with the change within {} commits", MAX_DEEPENED * DEEPEN_BY);
        Err(behind(&message, Remedy::Never))
    }

    /// Makes the commit anew on top of `head`, from trees alone. `None` if the branch has its changes already.
    async fn rebase(&self, head: &str) -> Result<Option<String>, StepFailure> {
        let commit = self.parts().await?;
        let of = |commit: String| async move {
            let missing = || failure("git-failed", "git: a commit is missing", Remedy::Later);
            self.repository.tree_of(&commit).await.map_err(broken)?.ok_or_else(missing)
        };
        let (base, ours) = (of(commit.parent.clone()).await?, of(head.to_owned()).await?);
        let merged = self.repository.merge(&base, &ours, &commit.tree).await.map_err(broken)?;
        let merged = merged.ok_or_else(|| {
            let message = "The change conflicts with newer commits of the branch, or of the base after a merge";
            failure("conflict", message, Remedy::Never)
        })?;
        if merged == ours { Ok(None) } else { self.write(&commit, &merged, head).await.map(Some) }
    }

    /// Makes the commit anew on top of `head`, an earlier state of the same folder, so that its tree stays. `None` if the trees
    /// are equal.
    async fn follow(&self, head: &str) -> Result<Option<String>, StepFailure> {
        let commit = self.parts().await?;
        if self.repository.tree_of(head).await.map_err(broken)?.is_none() {
            self.fetch(Some(1)).await?;
        }
        if self.repository.tree_of(head).await.map_err(broken)?.as_ref() == Some(&commit.tree) {
            return Ok(None);
        }
        self.write(&commit, &commit.tree, head).await.map(Some)
    }

    /// True if the branch has the commit of an earlier turn: as it was made, behind another such commit, or as GitHub made it.
    async fn is_unconfirmed(&self, head: &str) -> Result<bool, StepFailure> {
        for commit in self.unconfirmed {
            let is_moved = self.repository.rebased(commit).await.as_deref() == Some(head);
            if commit == head || (is_moved && self.has_same_tree(head, commit).await?) {
                return Ok(true);
            }
        }
        if self.unconfirmed.is_empty() {
            return Ok(false);
        }
        self.fetch(Some(2)).await?;
        for commit in self.unconfirmed {
            let moved = self.repository.rebased(commit).await;
            for ours in [Some(commit), moved.as_ref()].into_iter().flatten() {
                if self.is_copy(head, ours).await? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// True if GitHub made `head` of our commit. It chooses author, committer and signature, so that the name differs; tree,
    /// parent and the first line of the message are ours.
    async fn is_copy(&self, head: &str, ours: &str) -> Result<bool, StepFailure> {
        if self.repository.tree_of(ours).await.map_err(broken)?.is_none() || !self.has_same_tree(head, ours).await? {
            return Ok(false);
        }
        let (theirs, own) = (self.repository.parent_of(head).await, self.repository.parent_of(ours).await);
        let has_same_parent = theirs.map_err(broken)? == own.map_err(broken)?;
        Ok(has_same_parent && self.subject(head).await? == self.subject(ours).await?)
    }

    /// The first line of a commit's message.
    async fn subject(&self, commit: &str) -> Result<String, StepFailure> {
        let raw = self.repository.text_of_commit(commit, COMMIT_BYTES).await.map_err(broken)?;
        let text = String::from_utf8_lossy(&raw);
        let message = text.split_once("\n\n").map_or("", |(_, message)| message);
        Ok(message.lines().next().unwrap_or_default().trim_end().to_owned())
    }

    /// True if the branch is where it was begun for this commit, or for one of an earlier turn, and has nothing else.
    async fn is_begun(&self, head: Option<&str>) -> bool {
        for commit in std::iter::once(self.commit).chain(self.unconfirmed.iter().map(String::as_str)) {
            if head.is_some() && self.repository.begun(commit).await.as_deref() == head {
                return true;
            }
        }
        false
    }

    async fn parts(&self) -> Result<Parts, StepFailure> {
        let raw = self.repository.text_of_commit(self.commit, COMMIT_BYTES).await.map_err(broken)?;
        let raw = without_signature(&raw);
        let text = String::from_utf8_lossy(&raw);
        let mut lines = text.splitn(3, '\n');
        let tree = lines.next().and_then(|line| line.strip_prefix("tree ")).map(str::to_owned);
        let parent = lines.next().and_then(|line| line.strip_prefix("parent ")).map(str::to_owned);
        let (Some(tree), Some(parent), Some(_)) = (tree, parent, lines.next()) else {
            return Err(failure("git-failed", "git: the commit is malformed", Remedy::Never));
        };
        let rest = raw[tree.len() + parent.len() + "tree \nparent \n".len()..].to_vec();
        Ok(Parts { tree, parent, rest })
    }

    /// Writes the commit with another tree and another parent, and signs it if that is configured.
    async fn write(&self, commit: &Parts, tree: &str, parent: &str) -> Result<String, StepFailure> {
        let mut new = format!("tree {tree}\nparent {parent}\n").into_bytes();
        new.extend_from_slice(&commit.rest);
        let moved = match &self.signature {
            Signature::Key(key) => signed(&self.repository, key, &new).await?,
            Signature::Own | Signature::Github(_) => self.repository.write_commit(new).await.map_err(broken)?,
        };
        // Before the push: if its answer is lost, the branch is recognised by this.
        self.record_moved(&moved).await?;
        Ok(moved)
    }

    async fn adopt_head(&self, head: String) -> Result<PushFact, StepFailure> {
        self.record_same_folder(&head).await?;
        Ok(self.fact(head, true))
    }

    /// Records that the workspace was at `commit` as it was at ours.
    async fn record_same_folder(&self, commit: &str) -> Result<(), StepFailure> {
        match self.repository.recorded_folder(self.commit).await {
            Some(folder) => self.repository.record_folder(commit, &folder).await.map_err(broken),
            None => Ok(()),
        }
    }

    /// Has GitHub make the commit `sha` on the branch, which is created at the parent if it is new.
    async fn commit_at_github(&mut self, sha: &str, lease: Option<&str>) -> Result<Pushed, StepFailure> {
        let malformed = || failure("git-failed", "git: the commit is malformed", Remedy::Never);
        let parent = self.repository.parent_of(sha).await.map_err(broken)?.ok_or_else(malformed)?;
        let raw = self.repository.text_of_commit(sha, COMMIT_BYTES).await.map_err(broken)?;
        let text = String::from_utf8_lossy(&raw);
        let (_, message) = text.split_once("\n\n").ok_or_else(malformed)?;
        let (written, deleted) = self.contents(&parent, sha).await?;
        let commit = SignedCommit { parent: &parent, message: message.trim_end(), written, deleted };
        if lease.is_none() {
            // Before the request: a branch whose creation was not answered is recognised by this.
            self.repository.record_begun(self.commit, &parent).await.map_err(broken)?;
        }
        let Signature::Github(branch) = &mut self.signature else { return Err(malformed()) };
        if lease.is_none() && !branch.begin(&parent).await? {
            return Ok(Pushed::Moved);
        }
        let made = branch.commit(&commit).await;
        let made = match made {
            Ok(None) => return Ok(Pushed::Moved),
            Ok(Some(made)) => made,
            Err(failure) => match self.head().await {
                // The commit was made, and the answer was lost.
                Ok(Some(head)) if head != parent && self.has_same_change(&head, sha).await.unwrap_or(false) => head,
                Ok(Some(head)) if head == parent && lease.is_none() && failure.remedy != Remedy::Later => {
                    if let Signature::Github(branch) = &mut self.signature {
                        branch.abandon().await;
                    }
                    return Err(failure);
                }
                _ => return Err(failure),
            },
        };
        self.fetch(None).await?;
        if !self.has_same_tree(&made, sha).await? {
            let message = "GitHub made a commit whose content differs from the change";
            return Err(failure("not-delivered", message, Remedy::Never));
        }
        self.record_moved(&made).await?;
        Ok(Pushed::Done(made))
    }

    /// The files of a commit that GitHub makes: written ones with their contents, and deleted ones.
    async fn contents(&self, parent: &str, sha: &str) -> Result<(Vec<(String, Vec<u8>)>, Vec<String>), StepFailure> {
        let changed = self.repository.differences(parent, sha, CHANGES_BYTES).await.map_err(broken)?;
        let (written, deleted): (Vec<_>, Vec<_>) = changed.iter().partition(|entry| entry.mode.is_some());
        let objects: Vec<_> = written.iter().map(|entry| entry.object.as_str()).collect();
        let is_file = |mode: Option<u32>| mode.is_none_or(|mode| mode & 0o170_000 == 0o100_000);
        let sizes = match written.iter().all(|entry| is_file(entry.mode)) {
            true => self.repository.sizes(&objects).await.map_err(broken)?,
            false => vec![0; written.len()],
        };
        let files = written.iter().zip(&sizes).map(|(entry, bytes)| file_of(entry, *bytes));
        if let Some(why) = signing::api_obstacle(files.chain(deleted.iter().map(|entry| file_of(entry, 0)))) {
            return Err(skipped(SkipDetail::SigningRequired, &format!("GitHub cannot make this commit: {why}")));
        }
        let room = usize::try_from(MAX_API_BYTES).unwrap_or(usize::MAX);
        let contents = self.repository.contents(&objects, room).await.map_err(broken)?;
        let name = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        let written = written.iter().map(|entry| name(&entry.path)).zip(contents).collect();
        Ok((written, deleted.iter().map(|entry| name(&entry.path)).collect()))
    }

    async fn push_once(&self, sha: &str, lease: Option<&str>) -> Result<Pushed, StepFailure> {
        let reference = self.reference();
        let lease = format!("--force-with-lease={reference}:{}", lease.unwrap_or_default());
        let refspec = format!("{sha}:{reference}");
        let options = ["push", "--porcelain", "--no-verify", "--no-progress", "--recurse-submodules=no"];
        let args = options.iter().copied().chain([lease.as_str(), "--", self.proxy.url(), &refspec]);
        drop(self.proxy.take_failure());
        let args = args.map(OsString::from).collect();
        let finished = self.repository.remote(self.proxy, args, self.timeout).await;
        let (exit_code, output) = match &finished {
            Ok(finished) => (finished.exit_code(), text_of(finished)),
            Err(_) => (None, String::new()),
        };
        if exit_code == Some(0) {
            return Ok(Pushed::Done(sha.to_owned()));
        }
        let failure = match (of_host(self.proxy), finished) {
            (Some(failure), _) => failure,
            (None, Err(cause)) => broken(cause),
            (None, Ok(_)) => match rejection::of_push(&output) {
                Rejection::Moved => return Ok(Pushed::Moved),
                Rejection::Refused(failure) => failure,
            },
        };
        // The host may have taken the push, and its answer was lost.
        let is_unknown = failure.remedy == Remedy::Later;
        if is_unknown && matches!(self.head().await, Ok(Some(head)) if head == sha) {
            return Ok(Pushed::Done(sha.to_owned()));
        }
        Err(failure)
    }
}

fn behind(message: &str, remedy: Remedy) -> StepFailure {
    failure("behind", message, remedy)
}
