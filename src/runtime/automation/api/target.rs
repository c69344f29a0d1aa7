//! Open pull requests whose branches a run uses: the one on which its session works, and one of another run with the same
//! content.

use super::{Api, is_unknown, skip};
use crate::{
    domain::automation::{
        github_answer::Cause,
        repository_pattern::RepositoryName,
        skip::SkipDetail,
        step::{PullRequestState, PullTarget, Remedy, StepFailure},
        texts::{MarkerKind, is_marked},
    },
    github::{CommitObject, PullRequest},
    runtime::{automation::failure, workspaces::repositories::is_object_name},
};

/// The most open pull requests of other runs whose content is compared.
const MAX_COMPARED: usize = 20;

/// The pull request on which a session works.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// `None` without one.
    pub state: Option<PullRequestState>,
    pub base: Option<String>,
    /// Set while it is open.
    pub target: Option<PullTarget>,
}

/// Reads the pull request on which a session works.
///
/// # Errors
/// It does not exist; or it is of a fork to which the credential may not push, so that nothing is pushed at all: a branch
/// with the commits of a stranger in the repository itself would run their workflows with the repository's secrets.
pub(super) async fn open(api: &mut Api<'_>, number: u64) -> Result<Found, StepFailure> {
    let digits = number.to_string();
    let path = api.repository.path(&["pulls", &digits]);
    let pull = match api.client.get::<PullRequest>(&path).await {
        Ok(pull) => pull,
        Err(refusal) if matches!(refusal.cause, Cause::NotFound | Cause::Gone) => {
            let message = format!("Pull request {number} does not exist in this repository");
            return Err(failure("pull-request-missing", &message, Remedy::Never));
        }
        Err(refusal) => return Err(api.failure(&refusal)),
    };
    let (base, state) = (pull.base.branch.clone(), pull.state());
    if state != PullRequestState::Open {
        return Ok(Found { state: Some(state), base, target: None });
    }
    let fork = fork_of(api, &pull, number)?;
    let (Some(branch), Some(head)) = (pull.head.branch, pull.head.sha.filter(|sha| is_object_name(sha))) else {
        let message = format!("GitHub does not name the branch of pull request {number}");
        return Err(failure("github-unavailable", &message, Remedy::Later));
    };
    Ok(Found { state: Some(state), base, target: Some(PullTarget { number, branch, head, fork }) })
}

/// The fork of a pull request's branch; `None` for a branch of the repository itself.
fn fork_of(api: &Api<'_>, pull: &PullRequest, number: u64) -> Result<Option<String>, StepFailure> {
    let refused = |why: &str| {
        let message = format!("Pull request {number} is of a fork, {why}. The commit is kept: fetch it as a patch");
        Err(skip(SkipDetail::ForkReadOnly, &message))
    };
    let full_name = pull.head.repo.as_ref().and_then(|repository| repository.full_name.as_deref());
    let Some(full_name) = full_name.filter(|name| RepositoryName::parse(name).is_some()) else {
        return refused("which was deleted");
    };
    if full_name.eq_ignore_ascii_case(&api.repository.name().to_string()) {
        return Ok(None);
    }
    if api.remote.app.is_some() {
        return refused("which the App's token does not reach; send the token of a maintainer");
    }
    if pull.maintainer_can_modify != Some(true) {
        return refused("and its author does not allow edits by maintainers");
    }
    Ok(Some(full_name.to_owned()))
}

/// Finds an open pull request of another run for this base whose head has this tree.
pub(super) async fn twin(api: &mut Api<'_>, base: &str, tree: &str) -> Result<Option<PullTarget>, StepFailure> {
    let query = [("state", "open"), ("base", base), ("sort", "created"), ("direction", "desc")];
    let pulls = match api.client.list::<PullRequest>(&api.repository.path(&["pulls"]), &query, 1).await {
        Ok(pulls) => pulls,
        Err(refusal) if is_unknown(&refusal) => return Ok(None),
        Err(refusal) => return Err(api.failure(&refusal)),
    };
    let here = api.repository.name().to_string();
    let is_ours = |pull: &PullRequest| {
        let full_name = pull.head.repo.as_ref().and_then(|repository| repository.full_name.as_deref());
        let is_marked = pull.body.as_deref().is_some_and(|body| is_marked(body, MarkerKind::PullRequest));
        let is_here = full_name.is_some_and(|name| name.eq_ignore_ascii_case(&here));
        is_marked && is_here && pull.is_open() && pull.base.branch.as_deref() == Some(base)
    };
    for pull in pulls.into_iter().filter(is_ours).take(MAX_COMPARED) {
        let (Some(branch), Some(head)) = (pull.head.branch, pull.head.sha.filter(|sha| is_object_name(sha))) else {
            continue;
        };
        let path = api.repository.path(&["git", "commits", &head]);
        match api.client.get::<CommitObject>(&path).await {
            Ok(commit) if commit.tree.sha.eq_ignore_ascii_case(tree) => {
                let number = pull.number;
                api.log(&format!("pull request {number} of another run has the same content, and is adopted"));
                return Ok(Some(PullTarget { number, branch, head, fork: None }));
            }
            Ok(_) => {}
            Err(refusal) if is_unknown(&refusal) => {}
            Err(refusal) => return Err(api.failure(&refusal)),
        }
    }
    Ok(None)
}
