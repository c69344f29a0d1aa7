//! The push of one commit to one branch, and its proof: the branch is read back.
//!
//! Commits of others are never overwritten: a push states the commit that it replaces. If the branch has other commits,
//! the commit is moved onto them, once. A push whose answer is lost is recognised by the branch.

use std::{ffi::OsString, time::Duration};

use super::{
    Made, Step, failure,
    host::{of_host, over, text_of},
    local::{broken, other_step},
    rescue,
};
use crate::{
    domain::automation::{
        rejection::{self, Rejection},
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
/// Largest commit object that is read, in bytes: messages are far smaller.
const COMMIT_BYTES: usize = 256 * 1024;

/// A push in progress.
struct Push<'a> {
    repository: BareRepository,
    proxy: &'a Proxy,
    branch: &'a str,
    commit: &'a str,
    timeout: Duration,
}

/// The result of one `git push`.
enum Pushed {
    Done,
    Moved,
}

fn arguments(args: &[&str]) -> Vec<OsString> {
    args.iter().map(OsString::from).collect()
}

pub(super) async fn push(step: &mut Step<'_>) -> Made {
    let StepInput::Push { branch, commit, expected } = &step.order.input else { return Err(other_step()) };
    if !is_object_name(commit) || expected.as_deref().is_some_and(|expected| !is_object_name(expected)) {
        return Err(failure("invalid-order", "the commits must be given by their names", Remedy::Never));
    }
    check_branch(branch).map_err(broken)?;
    let remote = step.remote()?;
    let address = step.workspaces.address(&remote.repository).map_err(broken)?;
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
    let push = Push { repository, proxy: &proxy, branch, commit, timeout };
    let fact = push.deliver(expected.clone(), |line| step.log(line)).await?;
    Ok(StepFact::Push(fact))
}

impl Push<'_> {
    fn reference(&self) -> String {
        format!("refs/heads/{}", self.branch)
    }

    fn fact(&self, sha: String, is_rebased: bool) -> PushFact {
        PushFact { branch: self.branch.to_owned(), sha, is_rebased }
    }

    /// Pushes until the branch has the commit, or the commit with others before it.
    async fn deliver(&self, expected: Option<String>, mut log: impl FnMut(&str)) -> Result<PushFact, StepFailure> {
        let (mut sha, mut lease, mut is_rebased) = (self.commit.to_owned(), expected, false);
        loop {
            let head = self.head().await?;
            if let Some(head) = &head
                && let Some(fact) = self.adopted(head, &sha).await?
            {
                log("the branch has the commit already");
                return Ok(fact);
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
            match self.push_once(&sha, lease.as_deref()).await? {
                Pushed::Done => {}
                Pushed::Moved if is_rebased => {
                    return Err(behind("Others push to the branch at the same time", Remedy::Later));
                }
                Pushed::Moved => continue,
            }
            return match self.head().await? {
                Some(head) if head == sha => Ok(self.fact(head, is_rebased)),
                _ => {
                    Err(failure("not-delivered", "The branch does not have the commit after the push", Remedy::Later))
                }
            };
        }
    }

    /// The commit of the branch on the host.
    async fn head(&self) -> Result<Option<String>, StepFailure> {
        let reference = self.reference();
        let args = arguments(&["ls-remote", "--quiet", "--refs", "--", self.proxy.url(), &reference]);
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
        Ok((head == self.commit || is_rebased).then(|| self.fact(head.to_owned(), is_rebased)))
    }

    async fn is_ancestor(&self, old: &str, new: &str) -> Result<bool, StepFailure> {
        let args = arguments(&["merge-base", "--is-ancestor", old, new]);
        // A commit that the repository does not have is an error of git, and no ancestor.
        Ok(self.repository.execute(args, Input::Nothing, 0).await.map_err(broken)?.exit_code() == Some(0))
    }

    /// Fetches the branch until it has a commit in common with ours. Returns the fact if the branch contains ours.
    async fn connect(&self, head: &str, is_ours: bool) -> Result<Option<PushFact>, StepFailure> {
        let refspec = format!("+{}:{REMOTE_REF}", self.reference());
        let own = self.repository.rebased(self.commit).await.unwrap_or_else(|| self.commit.to_owned());
        for step in 1..=MAX_DEEPENED {
            let depth = format!("--depth={}", step * DEEPEN_BY);
            let url = self.proxy.url();
            let args = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", &depth, "--", url, &refspec];
            over(&self.repository, self.proxy, arguments(&args), self.timeout).await?;
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
        let args = arguments(&["cat-file", "commit", self.commit]);
        let raw = self.repository.run(args, Input::Nothing, COMMIT_BYTES).await.map_err(broken)?.bytes;
        let text = String::from_utf8_lossy(&raw);
        let mut lines = text.splitn(3, '\n');
        let tree = lines.next().and_then(|line| line.strip_prefix("tree "));
        let parent = lines.next().and_then(|line| line.strip_prefix("parent "));
        let (Some(tree), Some(parent), Some(_)) = (tree, parent, lines.next()) else {
            return Err(failure("git-failed", "git: the commit is malformed", Remedy::Never));
        };
        let of = |commit: String| async move {
            let missing = || failure("git-failed", "git: a commit is missing", Remedy::Later);
            self.repository.tree_of(&commit).await.map_err(broken)?.ok_or_else(missing)
        };
        let (base, ours) = (of(parent.to_owned()).await?, of(head.to_owned()).await?);
        let merged = self.repository.merge(&base, &ours, tree).await.map_err(broken)?;
        let merged = merged.ok_or_else(|| {
            let message = "The change conflicts with commits that others pushed to the branch";
            failure("conflict", message, Remedy::Never)
        })?;
        if merged == ours {
            return Ok(None);
        }
        let mut new = format!("tree {merged}\nparent {head}\n").into_bytes();
        new.extend_from_slice(&raw[tree.len() + parent.len() + "tree \nparent \n".len()..]);
        let moved = self.repository.write_commit(new).await.map_err(broken)?;
        // Before the push: if its answer is lost, the branch is recognised by this.
        self.record_same_folder(&moved).await?;
        self.repository.record_rebased(self.commit, &moved).await.map_err(broken)?;
        Ok(Some(moved))
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
            return Ok(Pushed::Done);
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
            return Ok(Pushed::Done);
        }
        Err(failure)
    }
}

fn behind(message: &str, remedy: Remedy) -> StepFailure {
    failure("behind", message, remedy)
}
