//! The input of each step, made from the state of its run: names, texts and what must be there.

use std::time::Duration;

use uuid::Uuid;

use super::{
    branch::{BranchName, NewBranch},
    omitted::sentences,
    plan::Unconfirmed,
    saga::Saga,
    signing::{Signer, SigningWay},
    step::{Changes, Identity, StepFailure, StepInput, StepName},
    texts::{CommentText, CommitText, IssueText, MarkerKind, Origin, PullRequestText, TurnFigures, marker},
};
use crate::domain::{automation::step::Remedy, redaction::Redacted, routing::Route};

/// Labels of issues and pull requests, unless others are asked for.
pub(crate) const DEFAULT_LABELS: [&str; 2] = ["automated", "claude-prompt"];
/// Characters of a session's id that people see.
const SUFFIX_CHARS: usize = 6;

/// The texts of a run, redacted.
struct Texts {
    run: String,
    suffix: String,
    prompt: Redacted,
    summary: Option<Redacted>,
    title: Option<Redacted>,
    notes: Vec<Redacted>,
}

impl Texts {
    fn of(saga: &Saga, run: Uuid) -> Self {
        let session = saga.plan.session_id.to_string();
        let left = saga.facts.changes.as_ref().and_then(|changes| changes.summary.as_deref());
        let said = Some(saga.plan.message.as_str()).filter(|said| !said.trim().is_empty());
        Self {
            run: run.to_string(),
            suffix: session[session.len().saturating_sub(SUFFIX_CHARS)..].to_owned(),
            prompt: Redacted::new(&saga.plan.prompt),
            summary: left.or(said).map(Redacted::new),
            title: saga.plan.issue_title.as_deref().map(Redacted::new),
            notes: notes(saga).iter().map(|line| Redacted::new(line)).collect(),
        }
    }

    fn origin(&self) -> Origin<'_> {
        Origin { run: &self.run, session_suffix: &self.suffix }
    }
}

/// The remarks about the turn, and the paths that its commit does not have.
fn notes(saga: &Saga) -> Vec<String> {
    let changes = saga.facts.changes.iter();
    let omitted = changes.flat_map(|changes| sentences(&changes.omitted, changes.omitted_total));
    omitted.chain(saga.plan.figures.remarks.iter().cloned()).collect()
}

/// The input of the next step of a run.
///
/// # Errors
/// A fact that the step needs is missing, or no identity of commits is known.
pub(crate) fn input(saga: &Saga, run: Uuid, step: StepName, signer: Signer) -> Result<StepInput, StepFailure> {
    let missing = || failure("incomplete-run", "a fact of an earlier step is missing");
    let (plan, facts) = (&saga.plan, &saga.facts);
    let texts = Texts::of(saga, run);
    let changes = || facts.changes.as_ref().ok_or_else(missing);
    let commit = || facts.commit.as_ref().map(|commit| commit.sha.clone()).ok_or_else(missing);
    Ok(match step {
        StepName::Changes => StepInput::Changes { parent: plan.previous.as_ref().map(|it| it.head.clone()) },
        StepName::Preflight => StepInput::Preflight {
            branch: branch(saga, run),
            base: plan.base_branch.clone().or_else(|| cloned_branch(saga)),
            wants_issue: plan.wants_pull_request(),
            wants_pull_request: plan.wants_pull_request(),
            touches_workflows: touches_workflows(changes()?),
            pull_request: plan.previous.as_ref().and_then(|it| it.pull_request),
            target: plan.pull_request,
            tree: is_searched_for_twins(saga).then(|| changes().ok().map(|changes| changes.tree.clone())).flatten(),
            signing: signer.mode,
            has_signing_key: signer.has_key,
            api_obstacle: changes()?.api_obstacle.clone(),
            requester: plan.requester.clone(),
        },
        StepName::Issue => {
            let (title, summary) = (texts.title.as_ref(), texts.summary.as_ref());
            let text = IssueText { origin: texts.origin(), title, summary, prompt: &texts.prompt };
            StepInput::Issue {
                number: plan.issue,
                marker: marker(&texts.run, MarkerKind::Issue),
                title: text.title(),
                body: text.body(),
                labels: plan.labels.clone(),
                assignees: plan.assignees.clone(),
            }
        }
        StepName::Commit => commit_input(saga, &texts, changes()?)?,
        StepName::Push => {
            let expected = expected_head(saga, changes()?);
            let onto = saga.begins_anew().then(|| base(saga)).flatten();
            let branch = branch(saga, run);
            let unconfirmed = unconfirmed(saga).filter(|unconfirmed| unconfirmed.branch == branch);
            StepInput::Push {
                commit: commit()?,
                expected,
                unconfirmed: unconfirmed.map(|unconfirmed| unconfirmed.commits.clone()).unwrap_or_default(),
                branch,
                signing: saga.signing(),
                onto,
                is_twin: saga.twin().is_some(),
                fork: saga.target().and_then(|target| target.fork.clone()),
            }
        }
        StepName::PullRequest => {
            facts.preflight.as_ref().ok_or_else(missing)?;
            pull_request(saga, &texts)
        }
        StepName::Comment => {
            let (Some(issue), Some(request)) = (&facts.issue, &facts.pull_request) else { return Err(missing()) };
            let (number, url) = (request.number, request.url.as_str());
            let (is_update, waits) = (request.is_adopted, request.waits_for_approval);
            let text = CommentText { origin: texts.origin(), number, url, is_update, waits_for_approval: waits };
            let marker = marker(&texts.run, MarkerKind::Comment);
            StepInput::Comment { issue: issue.number, marker, body: text.body() }
        }
        StepName::Rescue => {
            let parent = changes()?.parent.clone();
            StepInput::Rescue { parent, commit: commit()?, branch: branch(saga, run) }
        }
    })
}

fn failure(code: &str, message: &str) -> StepFailure {
    let (code, message) = (code.to_owned(), message.to_owned());
    StepFailure { code, message, skip: None, remedy: Remedy::Never, retry_at: None }
}

/// True if a change touches `.github/workflows/`.
pub(crate) fn touches_workflows(changes: &Changes) -> bool {
    changes.files.iter().any(|file| file.path.to_ascii_lowercase().starts_with(".github/workflows/"))
}

/// The branch that was cloned; `None` in a session on a pull request, which cloned no branch of the repository.
fn cloned_branch(saga: &Saga) -> Option<String> {
    let changes = saga.facts.changes.as_ref().filter(|_| saga.plan.pull_request.is_none());
    changes.and_then(|changes| changes.base_branch.clone())
}

/// The branch that the pull request of a run proposes to change.
fn base(saga: &Saga) -> Option<String> {
    let preflight = saga.facts.preflight.as_ref();
    let of_target = || preflight.and_then(|preflight| preflight.target_base.clone());
    let given = saga.plan.base_branch.clone().or_else(of_target).or_else(|| cloned_branch(saga));
    given.or_else(|| preflight.map(|preflight| preflight.default_branch.clone()))
}

/// True if an open pull request of another run may have the same content: the session has none of its own.
fn is_searched_for_twins(saga: &Saga) -> bool {
    let plan = &saga.plan;
    let has_own = plan.previous.as_ref().is_some_and(|previous| previous.pull_request.is_some());
    plan.wants_pull_request() && plan.pull_request.is_none() && !has_own && saga.facts.push.is_none()
}

/// The commit that the branch has before the push; `None` for a new branch.
fn expected_head(saga: &Saga, changes: &Changes) -> Option<String> {
    let previous = saga.open_previous().map(|previous| previous.head.clone());
    let of_target = || saga.target().map(|_| changes.parent.clone());
    previous.or_else(of_target).or_else(|| saga.twin().map(|twin| twin.head.clone()))
}

/// The commits of earlier turns that the branch may have; a branch that was merged has it, or is done.
fn unconfirmed(saga: &Saga) -> Option<&Unconfirmed> {
    let merged = saga.plan.previous.as_ref().filter(|_| saga.open_previous().is_none());
    saga.plan.unconfirmed.as_ref().filter(|it| merged.is_none_or(|merged| merged.branch != it.branch))
}

/// The branch of a run: that of the session's open pull request, else the caller's, else a new one.
pub(crate) fn branch(saga: &Saga, run: Uuid) -> String {
    if let Some(pushed) = &saga.facts.push {
        return pushed.branch.clone();
    }
    if let Some(target) = saga.target() {
        return target.branch.clone();
    }
    if let Some(previous) = saga.open_previous() {
        return previous.branch.clone();
    }
    if let Some(twin) = saga.twin() {
        return twin.branch.clone();
    }
    let given = saga.plan.branch_name.as_deref().and_then(|name| BranchName::parse(name).ok());
    let earlier = || BranchName::parse(&unconfirmed(saga)?.branch).ok();
    let name = given.or_else(earlier).unwrap_or_else(|| {
        let issue = saga.facts.issue.as_ref().map(|issue| issue.number);
        let session = saga.plan.session_id.to_string();
        BranchName::new(&NewBranch {
            template: &saga.plan.branch_template,
            issue,
            session: &session,
            at: saga.plan.at,
        })
    });
    match saga.has_other_name {
        true => name.alternative(None, &run.simple().to_string()[24..]).into_string(),
        false => name.into_string(),
    }
}

fn commit_input(saga: &Saga, texts: &Texts, changes: &Changes) -> Result<StepInput, StepFailure> {
    let identity = identity(saga)?;
    let requester = saga.facts.preflight.as_ref().and_then(|preflight| preflight.requester.as_ref());
    let text = CommitText {
        explicit: None,
        issue: saga.facts.issue.as_ref().map(|issue| issue.number),
        title: texts.title.as_ref(),
        summary: texts.summary.as_ref(),
        prompt: &texts.prompt,
        requester: requester.filter(|requester| requester.email != identity.email),
    };
    Ok(StepInput::Commit {
        parent: changes.parent.clone(),
        tree: changes.tree.clone(),
        message: text.message(),
        author: identity.clone(),
        committer: identity,
        at: saga.plan.at,
        is_signed: saga.signing() == Some(SigningWay::Key),
    })
}

/// True if the order of a step needs the key for signatures.
pub(crate) fn needs_key(saga: &Saga, step: StepName) -> bool {
    matches!(step, StepName::Commit | StepName::Push) && saga.signing() == Some(SigningWay::Key)
}

/// The identity of commits. A commit that is only kept, because no step before it could ask GitHub, has one that names no
/// person; its delivery is a commit of its own then.
fn identity(saga: &Saga) -> Result<Identity, StepFailure> {
    let known = saga.facts.preflight.as_ref().map(|preflight| preflight.identity.clone());
    match (saga.plan.author.clone(), known) {
        (Some(author), _) | (None, Some(Some(author))) => Ok(author),
        (None, None) => Ok(Identity { name: "LumiLink".into(), email: "noreply@lumilink.invalid".into() }),
        (None, Some(None)) => Err(failure(
            "no-identity",
            "GitHub names no identity for the credential: set `github.author_name` and `github.author_email`",
        )),
    }
}

fn pull_request(saga: &Saga, texts: &Texts) -> StepInput {
    let (plan, facts) = (&saga.plan, &saga.facts);
    let figures = TurnFigures {
        route: plan.figures.carrier.unwrap_or(Route::Acp),
        stop_reason: &plan.figures.stop_reason,
        duration: Duration::from_millis(plan.figures.duration_ms),
        updates: plan.figures.updates,
        tokens: plan.figures.tokens,
        rollback: plan.figures.rollback,
    };
    let text = PullRequestText {
        origin: texts.origin(),
        title: texts.title.as_ref(),
        summary: texts.summary.as_ref(),
        prompt: &texts.prompt,
        figures,
        notes: &texts.notes,
        issue: facts.issue.as_ref().map(|issue| issue.number),
    };
    let adopted = saga.target().or(saga.twin()).map(|pull| pull.number);
    StepInput::PullRequest {
        number: adopted.or_else(|| saga.open_previous().and_then(|previous| previous.pull_request)),
        marker: marker(&texts.run, MarkerKind::PullRequest),
        head: facts.push.as_ref().map(|push| push.branch.clone()).unwrap_or_default(),
        commit: facts.push.as_ref().map(|push| push.sha.clone()).unwrap_or_default(),
        base: base(saga).unwrap_or_default(),
        title: text.title(),
        body: text.body(),
        is_draft: plan.is_draft || saga.touches_protected(),
        labels: plan.labels.clone(),
        assignees: plan.assignees.clone(),
        reviewers: plan.reviewers.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::automation::{
        saga::tests::{NOW, fact_of, plan},
        step::{StepOutcome, StepReport},
    };

    const RUN: Uuid = Uuid::from_u128(0x0197_7c2e_7c1a_7d3b_9b1e_3f0a_5c2d_4e6f);

    fn saga_after(steps: &[StepName]) -> Saga {
        let mut saga = Saga::new(plan(), NOW);
        for step in steps {
            let outcome = StepOutcome::Done(fact_of(*step));
            saga.apply(*step, StepReport { outcome, logs: Vec::new(), rate_remaining: None }, NOW);
        }
        saga
    }

    #[test]
    fn branch_commit_and_pull_request_name_the_issue() {
        let mut saga = saga_after(&[StepName::Changes, StepName::Preflight, StepName::Issue]);
        saga.plan.author = Some(Identity { name: "bot".into(), email: "bot@users.noreply.github.com".into() });
        let name = branch(&saga, RUN);
        assert_eq!(name, "claude-code/issue-4-2023-11-14-221320");
        let Ok(StepInput::Commit { message, .. }) = input(&saga, RUN, StepName::Commit, Signer::default()) else {
            panic!("a commit")
        };
        assert!(message.starts_with("Fix issue #4") && !message.contains("Co-authored-by"), "{message}");
        let person = Identity { name: "Octo Cat".into(), email: "7+octocat@users.noreply.github.com".into() };
        saga.facts.preflight.as_mut().unwrap().requester = Some(person);
        let Ok(StepInput::Commit { message, .. }) = input(&saga, RUN, StepName::Commit, Signer::default()) else {
            panic!("a commit")
        };
        assert!(message.ends_with("\n\nCo-authored-by: Octo Cat <7+octocat@users.noreply.github.com>"), "{message}");
        let Ok(StepInput::PullRequest { body, base, .. }) =
            input(&saga, RUN, StepName::PullRequest, Signer::default())
        else {
            panic!("a pull request")
        };
        assert!(body.contains("Fixes #4") && base == "main", "{body}");
        saga.has_other_name = true;
        assert_ne!(branch(&saga, RUN), name);
    }

    #[test]
    fn unknown_identity_fails_the_commit_before_the_push() {
        let saga = saga_after(&[StepName::Changes, StepName::Preflight]);
        assert_eq!(input(&saga, RUN, StepName::Commit, Signer::default()).unwrap_err().code, "no-identity");
        assert_eq!(input(&saga, RUN, StepName::Push, Signer::default()).unwrap_err().code, "incomplete-run");
    }
}
