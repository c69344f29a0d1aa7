//! The issue of a run: an existing one, the one that an earlier execution opened, or a new one.

use serde_json::{Value, json};

use super::{Api, clean, page, shown, wrong_step};
use crate::{
    domain::{
        automation::{
            github_answer::{Cause, Refusal},
            step::{IssueFact, Remedy, StepFact, StepFailure, StepInput},
        },
        text,
    },
    github::{Creation, GithubClient, Issue, Repository, create_once, fit_body, fit_title},
    runtime::automation::{Made, failure},
};

/// Pages of the newest issues in which an issue of the run is searched: 200 issues. Lists are used since the search of
/// GitHub lags more.
const SEARCHED_PAGES: usize = 2;
/// The longest title of a fact, in characters.
const MAX_TITLE: usize = 256;

/// Finds or opens the issue.
pub(super) async fn issue(api: &mut Api<'_>, input: &StepInput) -> Made {
    let StepInput::Issue { number, marker, title, body, labels, assignees } = input else {
        return Err(wrong_step());
    };
    if let Some(number) = number {
        let issue = existing(api, *number).await?;
        return Ok(StepFact::Issue(fact(&issue, true)));
    }
    let body = clean(body);
    // Without the fraction of a second, as GitHub documents times.
    let since = api.since.map(|since| format!("{}Z", text::cut_bytes(&since.to_string(), 19)));
    let mut new = NewIssue {
        since,
        repository: &mut api.repository,
        marker,
        title: fit_title(&clean(title)),
        body: fit_body(&body, marker).into_owned(),
        labels,
        assignees,
        logs: &mut api.logs,
    };
    match create_once(&mut api.client, &mut new).await {
        Ok((issue, is_adopted)) => Ok(StepFact::Issue(fact(&issue, is_adopted))),
        Err(refusal) => Err(api.failure(&refusal)),
    }
}

fn fact(issue: &Issue, is_adopted: bool) -> IssueFact {
    let (url, title) = (page(issue.html_url.as_deref()), shown(issue.title.as_deref(), MAX_TITLE));
    IssueFact { id: issue.id, number: issue.number, url, title, is_adopted }
}

/// Reads an issue that the caller or an earlier turn named.
async fn existing(api: &mut Api<'_>, number: u64) -> Result<Issue, StepFailure> {
    let missing = || {
        let message = format!("Issue {number} does not exist in this repository, or was moved. Name another");
        failure("issue-missing", &message, Remedy::Never)
    };
    let digits = number.to_string();
    let path = api.repository.path(&["issues", &digits]);
    let issue = match api.client.get::<Issue>(&path).await {
        Ok(issue) => issue,
        Err(refusal) if matches!(refusal.cause, Cause::NotFound | Cause::Gone) => return Err(missing()),
        Err(refusal) => return Err(api.failure(&refusal)),
    };
    // GitHub redirects to the issue of another repository if this one was transferred.
    let is_elsewhere = |api: &Api<'_>| issue.repository_url.as_deref().is_some_and(|url| !api.repository.is_at(url));
    if is_elsewhere(api) {
        api.repository.resolve(&mut api.client).await.map_err(|refusal| api.failure(&refusal))?;
    }
    if issue.number != number || is_elsewhere(api) { Err(missing()) } else { Ok(issue) }
}

struct NewIssue<'a> {
    /// Only issues that changed after this time are searched: in a busy repository, the others are many.
    since: Option<String>,
    repository: &'a mut Repository,
    marker: &'a str,
    title: String,
    body: String,
    labels: &'a [String],
    assignees: &'a [String],
    logs: &'a mut Vec<String>,
}

impl NewIssue<'_> {
    fn request(&self) -> Value {
        let mut request = json!({"title": self.title, "body": self.body});
        if !self.labels.is_empty() {
            request["labels"] = json!(self.labels);
        }
        if !self.assignees.is_empty() {
            request["assignees"] = json!(self.assignees);
        }
        request
    }
}

impl Creation for NewIssue<'_> {
    type Made = Issue;

    async fn find(&mut self, client: &mut GithubClient) -> Result<Option<Issue>, Refusal> {
        let mut newest = vec![("state", "all"), ("sort", "created"), ("direction", "desc")];
        newest.extend(self.since.as_deref().map(|since| ("since", since)));
        let issues: Vec<Issue> = client.list(&self.repository.path(&["issues"]), &newest, SEARCHED_PAGES).await?;
        let is_ours = |issue: &Issue| {
            let has_marker = issue.body.as_deref().is_some_and(|body| body.contains(self.marker));
            has_marker && issue.pull_request.is_none()
        };
        // The oldest, in case that there are several.
        Ok(issues.into_iter().filter(is_ours).min_by_key(|issue| issue.number))
    }

    async fn create(&mut self, client: &mut GithubClient) -> Result<Issue, Refusal> {
        let request = self.request();
        self.repository.create(client, &["issues"], &request).await
    }

    /// Leaves out labels and assignees that do not exist or may not be set.
    async fn adapt(&mut self, _: &mut GithubClient, refusal: &Refusal) -> bool {
        if !matches!(refusal.cause, Cause::Invalid | Cause::Permission { .. } | Cause::NotFound) {
            return false;
        }
        let (labels, assignees) = (refusal.is_about("labels"), refusal.is_about("assignees"));
        // A refusal that names neither may be about both.
        let is_unclear = labels == assignees;
        let mut is_changed = false;
        if (labels || is_unclear) && !self.labels.is_empty() {
            (self.labels, is_changed) = (&[], true);
            self.logs.push(format!("the issue is opened without labels: {refusal}"));
        }
        if (assignees || is_unclear) && !self.assignees.is_empty() {
            (self.assignees, is_changed) = (&[], true);
            self.logs.push(format!("the issue is opened without assignees: {refusal}"));
        }
        is_changed
    }
}
