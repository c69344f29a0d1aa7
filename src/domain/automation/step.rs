//! The steps of an automation run: the input of each, what it found or made, and how it failed.
//!
//! Every step is idempotent: run again, it finds what its first run made. Facts are stored with the run and sent between
//! supervisor and runtime, so their JSON is stable; unknown members are ignored.

use serde::{Deserialize, Serialize};

use super::{
    signing::{SigningMode, SigningWay},
    skip::SkipDetail,
};
use crate::domain::{clock::Timestamp, text, words::words};

words! {
    /// A step of a run.
    StepName {
        /// Computes what the turn changed. Local.
        Changes = "changes",
        /// Reads what GitHub permits on the repository, and refuses what cannot succeed. Changes nothing.
        Preflight = "preflight",
        /// Finds or opens the issue.
        Issue = "issue",
        /// Makes the commit. Local.
        Commit = "commit",
        /// Pushes the commit to the branch, and reads the branch back.
        Push = "push",
        /// Finds, opens or updates the pull request.
        PullRequest = "pull-request",
        /// Comments on the issue.
        Comment = "comment",
        /// Keeps the commit as a bundle and a patch. Local.
        Rescue = "rescue",
    }
}

impl StepName {
    /// True for a step that sends requests to GitHub, and needs a token.
    pub(crate) fn is_remote(self) -> bool {
        !matches!(self, Self::Changes | Self::Commit | Self::Rescue)
    }
}

/// A person or bot in a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Identity {
    /// At most 100 characters; without line breaks and angle brackets.
    pub name: String,
    /// An address of the same form.
    pub email: String,
}

/// The input of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub(crate) enum StepInput {
    Changes {
        /// The newest commit of the session's branch that an earlier turn pushed; absent: the commit that was cloned.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent: Option<String>,
    },
    Preflight {
        /// The branch that the push creates or updates.
        branch: String,
        /// The branch that the pull request proposes to change; absent: the default branch of the repository.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        base: Option<String>,
        /// True if an issue is needed.
        wants_issue: bool,
        /// True if a pull request is needed.
        wants_pull_request: bool,
        /// True if the change touches `.github/workflows/`.
        touches_workflows: bool,
        /// The pull request of an earlier turn of the session.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pull_request: Option<u64>,
        /// When commits are signed.
        #[serde(default)]
        signing: SigningMode,
        /// True if the service has an SSH key for signatures.
        #[serde(default)]
        has_signing_key: bool,
        /// As [`Changes::api_obstacle`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        api_obstacle: Option<String>,
        /// The pull request on which the session works: the branch is its head, and the base its base.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<u64>,
        /// The tree of the change, for which an open pull request of another run is searched; absent: none is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tree: Option<String>,
        /// Login of the person whom the commit credits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        requester: Option<String>,
    },
    Issue {
        /// Number of an existing issue that the caller or an earlier turn named; it is read and not changed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        number: Option<u64>,
        /// Text in the body by which an issue of this run is found again.
        marker: String,
        title: String,
        /// Markdown; contains the marker.
        body: String,
        labels: Vec<String>,
        assignees: Vec<String>,
    },
    Commit {
        /// The parent, as [`Changes::parent`].
        parent: String,
        /// The tree, as [`Changes::tree`].
        tree: String,
        message: String,
        author: Identity,
        committer: Identity,
        /// Author and committer date, so that a repeat makes the same commit.
        at: Timestamp,
        /// True to sign it with the key of the order.
        #[serde(default)]
        is_signed: bool,
    },
    Push {
        branch: String,
        /// The commit, as [`CommitFact::sha`].
        commit: String,
        /// The commit that the branch has on GitHub before the push; absent: the branch must not exist.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expected: Option<String>,
        /// Commits of earlier turns of the session that the branch may have: their pushes were not answered.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        unconfirmed: Vec<String>,
        /// The signer. With [`SigningWay::Api`] GitHub makes a commit with the same changes on the branch; with
        /// [`SigningWay::Key`] a commit that is moved is signed again with the key of the order.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signing: Option<SigningWay>,
        /// The branch onto whose head the commit is moved before it gets a new branch, because an earlier pull request was
        /// merged.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        onto: Option<String>,
        /// True to push nothing: the branch must have a commit with the same tree.
        #[serde(default)]
        is_twin: bool,
        /// The repository of the branch, `owner/name`, if that is a fork.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fork: Option<String>,
    },
    PullRequest {
        /// Number of the pull request of an earlier turn of the session; it is updated.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        number: Option<u64>,
        marker: String,
        head: String,
        /// The commit of the branch.
        #[serde(default)]
        commit: String,
        base: String,
        title: String,
        /// Markdown; contains the marker.
        body: String,
        is_draft: bool,
        labels: Vec<String>,
        assignees: Vec<String>,
        reviewers: Vec<String>,
    },
    Comment {
        issue: u64,
        /// Text in the body by which the comment is found again.
        marker: String,
        /// Markdown; contains the marker.
        body: String,
    },
    Rescue {
        parent: String,
        commit: String,
        branch: String,
    },
}

impl StepInput {
    pub(crate) fn name(&self) -> StepName {
        match self {
            Self::Changes { .. } => StepName::Changes,
            Self::Preflight { .. } => StepName::Preflight,
            Self::Issue { .. } => StepName::Issue,
            Self::Commit { .. } => StepName::Commit,
            Self::Push { .. } => StepName::Push,
            Self::PullRequest { .. } => StepName::PullRequest,
            Self::Comment { .. } => StepName::Comment,
            Self::Rescue { .. } => StepName::Rescue,
        }
    }
}

/// The changes of a turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Changes {
    /// The commit on which the changes are based.
    pub parent: String,
    /// The tree of `parent` with the changes; equals the parent's tree if nothing changed.
    pub tree: String,
    /// At most [`MAX_CHANGED_PATHS`].
    pub files: Vec<ChangedPath>,
    /// Number of all changed files.
    pub total: u64,
    /// Number of changed files that are ignored by the repository's rules, and are in no commit.
    pub ignored: u64,
    /// The content of the agent's `.claude-pr-summary.md`, at most 8 KiB; that file is never in the tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// The branch that was cloned; absent for a folder without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_branch: Option<String>,
    /// Reasons not to commit, found in the tree; the first decides.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// Changed paths that must not be in a commit, and are not in `tree`: at most 20. A run with one fails with the code
    /// `unsafe-path`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unsafe_paths: Vec<RefusedPath>,
    /// Changed paths that git cannot read; `tree` has them as `parent` does. At most
    /// [`MAX_OMITTED`](super::omitted::MAX_OMITTED).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub omitted: Vec<RefusedPath>,
    /// Number of all such paths.
    #[serde(default)]
    pub omitted_total: u64,
    /// Why GitHub cannot make this commit itself; see [`api_obstacle`](super::signing::api_obstacle).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_obstacle: Option<String>,
}

/// The most files of [`Changes::files`].
pub(crate) const MAX_CHANGED_PATHS: usize = 1000;

/// One file of [`Changes`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ChangedPath {
    /// Path relative to the repository; invalid UTF-8 is replaced.
    pub path: String,
    /// Bytes of the new content; 0 for a deleted file.
    pub bytes: u64,
    pub is_deleted: bool,
}

/// A changed path that is not in a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RefusedPath {
    /// As [`ChangedPath::path`], without control characters.
    pub path: String,
    /// The reason and advice, as a part of a sentence whose subject is the path.
    pub why: String,
}

impl RefusedPath {
    /// The path in quotes, cut so that a message has room for the reason.
    pub(crate) fn name(&self) -> String {
        format!("{:?}", text::cut(&self.path, MAX_NAME_CHARS))
    }
}

/// The longest path in a message, in characters.
const MAX_NAME_CHARS: usize = 120;

/// Something in a change that cannot or must not be pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Finding {
    pub detail: SkipDetail,
    pub path: String,
    /// Line, from 1, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// The rule, or the measured and the allowed size; never the content.
    pub rule: String,
}

/// Facts about the repository at GitHub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Preflight {
    /// `owner/name` as GitHub spells it today.
    pub full_name: String,
    pub default_branch: String,
    pub has_issues: bool,
    pub is_fork: bool,
    /// The commit of the branch, if it exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch_head: Option<String>,
    /// The identity of commits: the App's bot, or the user of the token. Absent if GitHub does not name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// State of [`StepInput::Preflight::pull_request`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_request: Option<PullRequestState>,
    /// The signer of the commit; absent if it is not signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing: Option<SigningWay>,
    /// The signer, if a push shows that a signature is demanded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub could_sign: Option<SigningWay>,
    /// [`StepInput::Preflight::target`], while it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<PullTarget>,
    /// The base of [`StepInput::Preflight::target`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_base: Option<String>,
    /// An open pull request of another run with the same content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub twin: Option<PullTarget>,
    /// The person whom the commit credits; absent if GitHub does not report that they may write to the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requester: Option<Identity>,
}

/// An open pull request whose branch is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PullTarget {
    pub number: u64,
    /// The head branch.
    pub branch: String,
    /// The commit of that branch.
    pub head: String,
    /// The repository of that branch, `owner/name`, if it is a fork.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork: Option<String>,
}

words! {
    /// State of a pull request.
    PullRequestState {
        Open = "open",
        /// Closed without a merge.
        Closed = "closed",
        Merged = "merged",
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct IssueFact {
    pub id: u64,
    pub number: u64,
    pub url: String,
    pub title: String,
    /// True if it existed before this step.
    #[serde(default)]
    pub is_adopted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CommitFact {
    /// 40 hexadecimal digits in lower case.
    pub sha: String,
    pub message: String,
    /// True if the service signed it.
    #[serde(default)]
    pub is_signed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PushFact {
    pub branch: String,
    /// The commit that the branch has on GitHub, read back after the push.
    pub sha: String,
    /// True if the commit was moved onto newer commits of the branch.
    #[serde(default)]
    pub is_rebased: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PullRequestFact {
    pub number: u64,
    pub url: String,
    /// The head branch.
    pub branch: String,
    #[serde(default)]
    pub is_draft: bool,
    /// True if it existed before this step.
    #[serde(default)]
    pub is_adopted: bool,
    /// True if checks of the commit wait for the approval of a person.
    #[serde(default)]
    pub waits_for_approval: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RescueFact {
    /// Bytes of the bundle and of the patch.
    pub bundle_bytes: u64,
    pub patch_bytes: u64,
    /// True if the patch is cut at its limit; the bundle is whole.
    #[serde(default)]
    pub is_patch_cut: bool,
    /// The commit that is kept; absent in records of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
}

/// The fact of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "made", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub(crate) enum StepFact {
    Changes(Changes),
    Preflight(Box<Preflight>),
    Issue(IssueFact),
    Commit(CommitFact),
    Push(PushFact),
    PullRequest(PullRequestFact),
    Comment { url: String },
    Rescue(RescueFact),
}

words! {
    /// The remedy of a failed step.
    Remedy {
        /// Nothing that the service can do.
        Never = "never",
        /// The same step later.
        Later = "later",
        /// The same step with a new token.
        NewToken = "new-token",
    }
}

/// The failure of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StepFailure {
    /// A stable code in kebab case, such as `github-unavailable`, `push-rejected`, `behind`; that of `skip` if there is one.
    pub code: String,
    /// The event and advice, in one or two sentences without secrets; at most 300 characters.
    pub message: String,
    /// Set if the run is skipped for this reason, rather than failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip: Option<SkipDetail>,
    pub remedy: Remedy,
    /// The earliest time of a repetition, as GitHub stated it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Timestamp>,
}

/// The end of one execution of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StepReport {
    /// The fact, or the failure.
    pub outcome: StepOutcome,
    /// Lines for the run's log: at most 20 lines of at most 300 characters, redacted.
    #[serde(default)]
    pub logs: Vec<String>,
    /// Requests that GitHub still permits in this hour, if it said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_remaining: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum StepOutcome {
    Done(StepFact),
    Failed(StepFailure),
}
