//! Comments on issues and pull requests, each written once.

use serde_json::json;

use super::{
    client::GithubClient,
    create::{Creation, create_once},
    fit::fit_body,
    model::Comment,
    repository::Repository,
};
use crate::domain::automation::github_answer::Refusal;

/// Finds the comment with `marker`, which is in `body`, or writes it. `body` is redacted; it is cut if it is too long.
///
/// # Errors
/// As [`create_once`].
///
/// # Cancel safety
/// As [`GithubClient::create`].
pub(crate) async fn comment_once(
    client: &mut GithubClient,
    repository: &mut Repository,
    issue: u64,
    marker: &str,
    body: &str,
) -> Result<Comment, Refusal> {
    let body = fit_body(body, marker).into_owned();
    let mut new = NewComment { repository, issue: issue.to_string(), marker, body };
    create_once(client, &mut new).await.map(|(comment, _)| comment)
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
