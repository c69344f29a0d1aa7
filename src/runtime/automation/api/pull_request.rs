//! The pull request of a session: that of an earlier turn, one that exists for the branch, or a new one.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::{Api, clean, page, shown, skip, wrong_step};
use crate::{
    domain::automation::{
        github_answer::{Cause, Refusal},
        skip::SkipDetail,
        step::{PullRequestFact, Remedy, StepFact, StepFailure, StepInput},
    },
    github::{Creation, GithubClient, Name, PullRequest, Repository, WorkflowRuns, create_once, fit_body, fit_title},
    runtime::automation::{Made, failure},
};

/// The wait before a request is sent again because GitHub does not know yet what was just pushed or created.
const LAG: Duration = Duration::from_secs(1);
/// The most such waits of one step.
const MAX_LAGS: u32 = 3;

/// The parts of the input, as they are sent.
struct Wanted<'a> {
    marker: &'a str,
    head: &'a str,
    base: &'a str,
    title: String,
    body: String,
    is_draft: bool,
    labels: &'a [String],
    assignees: &'a [String],
    reviewers: &'a [String],
}

/// Finds, opens or updates the pull request. Only a pull request with the marker is changed.
pub(super) async fn pull_request(api: &mut Api<'_>, input: &StepInput) -> Made {
    let StepInput::PullRequest {
        number,
        marker,
        head,
        commit,
        base,
        title,
        body,
        is_draft,
        labels,
        assignees,
        reviewers,
    } = input
    else {
        return Err(wrong_step());
    };
    let body = clean(body);
    let wanted = Wanted {
        marker,
        head,
        base,
        title: fit_title(&clean(title)),
        body: fit_body(&body, marker).into_owned(),
        is_draft: *is_draft,
        labels,
        assignees,
        reviewers,
    };
    // The list for a branch needs the owner's name of today.
    api.repository.resolve(&mut api.client).await.map_err(|refusal| api.failure(&refusal))?;
    if let Some(number) = number
        && let Some(pull) = earlier(api, *number, &wanted).await?
    {
        update(api, &pull, &wanted).await;
        return Ok(fact(api, &pull, &wanted, true, commit).await);
    }
    let mut new = NewPullRequest {
        repository: &mut api.repository,
        wanted: &wanted,
        is_draft: wanted.is_draft,
        lags: 0,
        logs: &mut api.logs,
    };
    let (found, is_adopted) = match create_once(&mut api.client, &mut new).await {
        Ok(made) => made,
        Err(refusal) => return Err(refused(api, &refusal, &wanted)),
    };
    let pull = match found {
        Found::Open(pull) => *pull,
        Found::Closed(number) => return Err(closed(number)),
    };
    if is_ours(&pull, &wanted) || !is_adopted {
        if is_adopted {
            update(api, &pull, &wanted).await;
        }
        decorate(api, &pull, &wanted).await;
    }
    Ok(fact(api, &pull, &wanted, is_adopted, commit).await)
}

/// True if GitHub holds back workflows for the commit until a person approves them, as far as the token may see it. One
/// request, whose failure means no.
async fn waits_for_approval(api: &mut Api<'_>, commit: &str) -> bool {
    let path = api.repository.path(&["actions", "runs"]);
    let query = [("head_sha", commit), ("status", "action_required"), ("per_page", "1")];
    let waits = !commit.is_empty()
        && matches!(api.client.get_with::<WorkflowRuns>(&path, &query).await, Ok(runs) if runs.total_count > 0);
    if waits {
        api.log("checks of the pull request wait for the approval of a person with write permission");
    }
    waits
}

async fn fact(
    api: &mut Api<'_>,
    pull: &PullRequest,
    wanted: &Wanted<'_>,
    is_adopted: bool,
    commit: &str,
) -> StepFact {
    let waits_for_approval = waits_for_approval(api, commit).await;
    StepFact::PullRequest(PullRequestFact {
        waits_for_approval,
        number: pull.number,
        url: page(pull.html_url.as_deref()),
        branch: pull.head.branch.clone().unwrap_or_else(|| wanted.head.to_owned()),
        is_draft: pull.draft.unwrap_or(false),
        is_adopted,
    })
}

fn is_ours(pull: &PullRequest, wanted: &Wanted<'_>) -> bool {
    pull.body.as_deref().is_some_and(|body| body.contains(wanted.marker))
}

fn closed(number: u64) -> StepFailure {
    let message =
        format!("Pull request {number} was closed by a person, and is not opened again. Reopen it to continue");
    skip(SkipDetail::ClosedByPerson, &message)
}

/// The pull request of an earlier turn if it is open; `None` if it was merged or deleted, so that another is needed.
async fn earlier(api: &mut Api<'_>, number: u64, wanted: &Wanted<'_>) -> Result<Option<PullRequest>, StepFailure> {
    let text = number.to_string();
    let path = api.repository.path(&["pulls", &text]);
    let pull = match api.client.get::<PullRequest>(&path).await {
        Ok(pull) => pull,
        Err(refusal) if matches!(refusal.cause, Cause::NotFound | Cause::Gone) => return Ok(None),
        Err(refusal) => return Err(api.failure(&refusal)),
    };
    let is_of_branch = pull.head.branch.as_deref().is_none_or(|branch| branch == wanted.head);
    if pull.is_merged() || !is_of_branch {
        api.log(&format!("pull request {number} is merged, or of another branch"));
        return Ok(None);
    }
    if pull.is_open() { Ok(Some(pull)) } else { Err(closed(number)) }
}

/// Replaces title and body of our own pull request, as far as they differ. A failure leaves them as they are.
async fn update(api: &mut Api<'_>, pull: &PullRequest, wanted: &Wanted<'_>) {
    let is_current = pull.title.as_deref() == Some(&wanted.title) && pull.body.as_deref() == Some(&wanted.body);
    if !is_ours(pull, wanted) || is_current {
        return;
    }
    let number = pull.number.to_string();
    let path = api.repository.path(&["pulls", &number]);
    let request = json!({"title": wanted.title, "body": wanted.body});
    if let Err(refusal) = api.client.change(Method::PATCH, &path, &request).await {
        api.logs.push(format!("title and body of pull request {number} are unchanged: {refusal}"));
    }
}

/// Adds the labels, assignees and reviewers that are missing. A failure leaves them out.
async fn decorate(api: &mut Api<'_>, pull: &PullRequest, wanted: &Wanted<'_>) {
    let missing = |names: &[String], present: &Option<Vec<Name>>| -> Vec<String> {
        let has = |name: &String| present.iter().flatten().any(|it| it.is(name));
        names.iter().filter(|name| !has(name)).cloned().collect()
    };
    let number = pull.number.to_string();
    // A name with a slash is a team: `organisation/team`.
    let (teams, people): (Vec<_>, Vec<_>) =
        missing(wanted.reviewers, &pull.requested_reviewers).into_iter().partition(|name| name.contains('/'));
    let teams: Vec<_> = teams.iter().map(|team| team.rsplit('/').next().unwrap_or_default()).collect();
    let labels = missing(wanted.labels, &pull.labels);
    let assignees = missing(wanted.assignees, &pull.assignees);
    let reviewers = ["pulls", number.as_str(), "requested_reviewers"];
    // Teams by themselves: GitHub refuses people together with a team that it does not accept.
    let additions: [(&str, bool, [&str; 3], Value); 4] = [
        ("labels", labels.is_empty(), ["issues", &number, "labels"], json!({"labels": labels})),
        ("assignees", assignees.is_empty(), ["issues", &number, "assignees"], json!({"assignees": assignees})),
        ("reviewers", people.is_empty(), reviewers, json!({"reviewers": people})),
        ("team as reviewer", teams.is_empty(), reviewers, json!({"team_reviewers": teams})),
    ];
    for (name, is_empty, tail, request) in additions {
        if is_empty {
            continue;
        }
        let path = api.repository.path(&tail);
        if let Err(refusal) = api.client.change(Method::POST, &path, &request).await {
            api.logs.push(format!("pull request {number} has no {name}: {refusal}"));
        }
    }
}

fn refused(api: &Api<'_>, refusal: &Refusal, wanted: &Wanted<'_>) -> StepFailure {
    let (head, base) = (shown(Some(wanted.head), 80), shown(Some(wanted.base), 80));
    if refusal.mentions("no commits between") {
        return skip(SkipDetail::NoChanges, &format!("The branch {base} already has the changes of {head}"));
    }
    if refusal.mentions("pull request already exists") {
        let message = format!("A pull request for {head} exists, and GitHub does not list it yet. Try again later");
        return failure("pull-request-unlisted", &message, Remedy::Later);
    }
    if refusal.is_about("head") {
        let message = format!("GitHub does not know the branch {head}. Try again later");
        return failure("branch-missing", &message, Remedy::Later);
    }
    if refusal.is_about("base") {
        return failure("base-missing", &format!("The branch {base} does not exist"), Remedy::Never);
    }
    api.failure(refusal)
}

/// A pull request of the branch.
enum Found {
    Open(Box<PullRequest>),
    /// Our own, closed without a merge; with its number.
    Closed(u64),
}

struct NewPullRequest<'a> {
    repository: &'a mut Repository,
    wanted: &'a Wanted<'a>,
    is_draft: bool,
    lags: u32,
    logs: &'a mut Vec<String>,
}

impl Creation for NewPullRequest<'_> {
    type Made = Found;

    async fn find(&mut self, client: &mut GithubClient) -> Result<Option<Found>, Refusal> {
        let head = format!("{}:{}", self.repository.name().owner(), self.wanted.head);
        let query = [("head", head.as_str()), ("state", "all"), ("sort", "created"), ("direction", "desc")];
        let pulls: Vec<PullRequest> = client.list(&self.repository.path(&["pulls"]), &query, 2).await?;
        Ok(choose(pulls, self.wanted, &self.repository.name().to_string()))
    }

    async fn create(&mut self, client: &mut GithubClient) -> Result<Found, Refusal> {
        let wanted = self.wanted;
        let mut request =
            json!({"title": wanted.title, "body": wanted.body, "head": wanted.head, "base": wanted.base});
        if self.is_draft {
            request["draft"] = json!(true);
        }
        let pull: PullRequest = self.repository.create(client, &["pulls"], &request).await?;
        Ok(Found::Open(Box::new(pull)))
    }

    async fn adapt(&mut self, _: &mut GithubClient, refusal: &Refusal) -> bool {
        if refusal.cause != Cause::Invalid {
            return false;
        }
        if self.is_draft && refusal.mentions("draft pull requests are not supported") {
            self.is_draft = false;
            self.logs.push("the repository has no draft pull requests".to_owned());
            return true;
        }
        // The branch was pushed just now, or the pull request opened: GitHub's parts learn of it one after another.
        let lags = refusal.is_about("head") || refusal.mentions("pull request already exists");
        if !lags || self.lags == MAX_LAGS {
            return false;
        }
        self.lags += 1;
        tokio::time::sleep(LAG).await;
        true
    }
}

/// Chooses the pull request of the branch: an open one, first our own, then one with the same base, which the agent or a
/// person opened; else our own that was closed without a merge. GitHub ignores a filter that it cannot read, so the branch
/// is compared.
fn choose(pulls: Vec<PullRequest>, wanted: &Wanted<'_>, repository: &str) -> Option<Found> {
    let is_of_branch = |pull: &PullRequest| {
        let full_name = pull.head.repo.as_ref().and_then(|repo| repo.full_name.as_deref());
        let is_here = full_name.is_none_or(|name| name.eq_ignore_ascii_case(repository));
        is_here && pull.head.branch.as_deref() == Some(wanted.head)
    };
    let (open, other): (Vec<_>, Vec<_>) = pulls.into_iter().filter(is_of_branch).partition(PullRequest::is_open);
    let rank = |pull: &PullRequest| {
        let has_base = pull.base.branch.as_deref() == Some(wanted.base);
        (!is_ours(pull, wanted), !has_base, pull.number)
    };
    if let Some(pull) = open.into_iter().min_by_key(rank) {
        return Some(Found::Open(Box::new(pull)));
    }
    let closed = other.into_iter().find(|pull| is_ours(pull, wanted) && !pull.is_merged());
    closed.map(|pull| Found::Closed(pull.number))
}
