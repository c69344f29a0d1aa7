//! The comment on the issue.

use serde_json::json;

use super::{Api, clean, page, wrong_step};
use crate::{
    domain::automation::{
        github_answer::Refusal,
        step::{StepFact, StepInput},
    },
    github::{Comment, Creation, GithubClient, Repository, create_once, fit_body},
    runtime::automation::Made,
};

/// Finds or writes the comment.
pub(super) async fn comment(api: &mut Api<'_>, input: &StepInput) -> Made {
    let StepInput::Comment { issue, marker, body } = input else { return Err(wrong_step()) };
    let body = clean(body);
    let body = fit_body(&body, marker).into_owned();
    let mut new = NewComment { repository: &mut api.repository, issue: issue.to_string(), marker, body };
    match create_once(&mut api.client, &mut new).await {
        Ok((comment, _)) => Ok(StepFact::Comment { url: page(comment.html_url.as_deref()) }),
        Err(refusal) => Err(api.failure(&refusal)),
    }
}

struct NewComment<'a> {
    repository: &'a mut Repository,
    issue: String,
    marker: &'a str,
    body: String,
}

impl Creation for NewComment<'_> {
    type Made = Comment;

    async fn find(&mut self, client: &mut GithubClient) -> Result<Option<Comment>, Refusal> {
        let path = self.repository.path(&["issues", &self.issue, "comments"]);
        let comments: Vec<Comment> = client.list_end(&path).await?;
        let is_ours = |comment: &Comment| comment.body.as_deref().is_some_and(|body| body.contains(self.marker));
        Ok(comments.into_iter().find(is_ours))
    }

    async fn create(&mut self, client: &mut GithubClient) -> Result<Comment, Refusal> {
        let request = json!({"body": self.body});
        self.repository.create(client, &["issues", &self.issue, "comments"], &request).await
    }

    async fn adapt(&mut self, _: &mut GithubClient, _: &Refusal) -> bool {
        false
    }
}
