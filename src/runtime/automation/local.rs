//! The commit, and the parts that the local steps share.

use secrecy::ExposeSecret;

use super::{Made, Step, failure};
use crate::{
    domain::{
        automation::{
            skip::SkipDetail,
            ssh_key::SshKey,
            step::{CommitFact, Remedy, StepFact, StepFailure, StepInput},
        },
        turn::outcome::{ErrorCode, Failure},
    },
    runtime::workspaces::repositories::{BareRepository, NewCommit, is_object_name},
};

/// Largest commit object that is read, in bytes: messages are far smaller.
pub(super) const COMMIT_BYTES: usize = 256 * 1024;

/// The failure of a step for a failed call of git or of the file system.
pub(super) fn broken(cause: Failure) -> StepFailure {
    let (code, remedy) = match cause.code {
        ErrorCode::FolderMissing => ("folder-missing", Remedy::Never),
        ErrorCode::InvalidRequest => ("invalid-repository", Remedy::Never),
        ErrorCode::WorkspaceUnreadable => ("workspace-unreadable", Remedy::Never),
        _ => ("git-failed", Remedy::Later),
    };
    failure(code, &cause.detail, remedy)
}

/// A failure for which the run is skipped.
pub(super) fn skipped(detail: SkipDetail, message: &str) -> StepFailure {
    StepFailure { skip: Some(detail), ..failure(detail.as_str(), message, Remedy::Never) }
}

/// The failure of an order that is executed as another step.
pub(super) fn other_step() -> StepFailure {
    failure("invalid-order", "the input is of another step", Remedy::Never)
}

pub(super) fn missing_parent(commit: &str) -> StepFailure {
    let message = format!("The commit {commit} was not made in this workspace: open a new session");
    failure("parent-missing", &message, Remedy::Never)
}

/// Code of the failure of a step whose clone was removed.
pub(super) const REPOSITORY_MISSING: &str = "repository-missing";

/// The runtime's repository of the workspace.
///
/// # Errors
/// `repository-missing`.
pub(super) fn repository(step: &Step<'_>) -> Result<BareRepository, StepFailure> {
    let workspace = &step.order.workspace;
    let repository = step.workspaces.kept(workspace.folder_id);
    if workspace.path.is_none() && repository.exists() {
        return Ok(repository);
    }
    let message = "The workspace is not a clone that this version made: open a new session with `repository`";
    Err(failure(REPOSITORY_MISSING, message, Remedy::Never))
}

/// The key for signatures, of the order.
///
/// # Errors
/// The order has none, or it is not usable.
pub(super) fn key(step: &Step<'_>) -> Result<SshKey, StepFailure> {
    let refused = |why: &str| failure("signing-key", &format!("The key for signatures {why}"), Remedy::Never);
    let text = step.order.signing_key.as_ref().ok_or_else(|| refused("is not configured any more"))?;
    SshKey::parse(text.expose_secret()).map_err(|cause| refused(&cause.to_string()))
}

/// Writes a commit, given as git stores it, with a signature.
pub(super) async fn signed(repository: &BareRepository, key: &SshKey, text: &[u8]) -> Result<String, StepFailure> {
    let malformed = || failure("git-failed", "git: the commit is malformed", Remedy::Never);
    let signed = key.sign_commit(text).ok_or_else(malformed)?;
    repository.write_commit(signed).await.map_err(broken)
}

pub(super) async fn commit(step: &mut Step<'_>) -> Made {
    let StepInput::Commit { parent, tree, message, author, committer, at, is_signed } = &step.order.input else {
        return Err(other_step());
    };
    let repository = repository(step)?;
    let busy = step.workspaces.busy_with(repository.folder());
    let _turn = busy.lock().await;
    if !is_object_name(parent) || !is_object_name(tree) {
        return Err(failure("invalid-order", "parent and tree must be names of objects", Remedy::Never));
    }
    let parent_tree = repository.tree_of(parent).await.map_err(broken)?.ok_or_else(|| missing_parent(parent))?;
    if parent_tree == *tree {
        return Err(skipped(SkipDetail::NoChanges, "The commit would change nothing"));
    }
    let new = NewCommit { tree, parent, message, author, committer, at: *at };
    let mut sha = repository.commit(&new).await.map_err(broken)?;
    if *is_signed {
        let text = repository.text_of_commit(&sha, COMMIT_BYTES).await.map_err(broken)?;
        sha = signed(&repository, &key(step)?, &text).await?;
    }
    let folder = repository.recorded_folder(tree).await;
    repository.record_folder(&sha, folder.as_deref().unwrap_or(tree)).await.map_err(broken)?;
    Ok(StepFact::Commit(CommitFact { sha, message: message.clone(), is_signed: *is_signed }))
}
