//! Commits that GitHub makes and signs itself, by the mutation `createCommitOnBranch`.

use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Api, skip};
use crate::{
    domain::automation::{
        github_answer::{Cause, Refusal},
        skip::SkipDetail,
        step::{Remedy, StepFailure},
    },
    runtime::automation::{Step, failure},
};

const MUTATION: &str =
    "mutation ($input: CreateCommitOnBranchInput!) { createCommitOnBranch(input: $input) { commit { oid } } }";

/// Makes commits on one branch.
pub(in crate::runtime::automation) struct SignedBranch<'a> {
    api: Api<'a>,
    branch: &'a str,
}

/// A commit to make.
pub(in crate::runtime::automation) struct SignedCommit<'a> {
    /// The commit that the branch has, and that becomes the parent.
    pub parent: &'a str,
    pub message: &'a str,
    /// Paths with their new contents.
    pub written: Vec<(String, Vec<u8>)>,
    pub deleted: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Made {
    create_commit_on_branch: OfBranch,
}

#[derive(Deserialize)]
struct OfBranch {
    commit: Commit,
}

#[derive(Deserialize)]
struct Commit {
    oid: String,
}

impl<'a> SignedBranch<'a> {
    /// Reads the name of the repository, and takes the lock of the run.
    ///
    /// # Errors
    /// GitHub refuses, or does not answer.
    pub(in crate::runtime::automation) async fn new(step: &Step<'a>, branch: &'a str) -> Result<Self, StepFailure> {
        let mut api = Api::new(step.github, step.remote()?)?;
        api.client.keep(step.github.hold_run(&step.run.to_string()).await);
        api.repository.resolve(&mut api.client).await.map_err(|refusal| api.failure(&refusal))?;
        Ok(Self { api, branch })
    }

    /// Creates the branch at an existing commit. False if it may exist already: look at it.
    ///
    /// # Errors
    /// GitHub refuses. A retry is safe.
    pub(in crate::runtime::automation) async fn begin(&mut self, at: &str) -> Result<bool, StepFailure> {
        let Self { api, branch } = self;
        let body = json!({"ref": format!("refs/heads/{branch}"), "sha": at});
        match api.repository.create::<Value>(&mut api.client, &["git", "refs"], &body).await {
            Ok(_) => Ok(true),
            Err(refusal) if refusal.is_uncertain() || refusal.mentions("already exists") => Ok(false),
            Err(refusal) if refusal.mentions("reference update failed") => {
                let message = "A branch of the repository has the name of a folder of the branch, or the reverse";
                Err(failure("branch-name-taken", message, Remedy::Never))
            }
            Err(refusal) => Err(self.refused(&refusal)),
        }
    }

    /// Deletes the branch, which has only the commit at which it was begun. A failure leaves it.
    pub(in crate::runtime::automation) async fn abandon(&mut self) {
        let name = format!("heads/{}", self.branch);
        let path = self.api.repository.path(&["git", "refs", &name]);
        let _ = self.api.client.change(Method::DELETE, &path, &json!({})).await;
    }

    /// Makes a commit; returns its name, or `None` if the branch has another commit than the parent.
    ///
    /// # Errors
    /// GitHub refuses. After a failure that may pass the commit may exist: look at the branch.
    pub(in crate::runtime::automation) async fn commit(
        &mut self,
        commit: &SignedCommit<'_>,
    ) -> Result<Option<String>, StepFailure> {
        let (headline, body) = commit.message.split_once('\n').unwrap_or((commit.message, ""));
        let of =
            |(path, content): &(String, Vec<u8>)| json!({"path": path, "contents": BASE64_STANDARD.encode(content)});
        let written: Vec<_> = commit.written.iter().map(of).collect();
        let deleted: Vec<_> = commit.deleted.iter().map(|path| json!({"path": path})).collect();
        let input = json!({
            "branch": {"repositoryNameWithOwner": self.api.repository.name().to_string(), "branchName": self.branch},
            "expectedHeadOid": commit.parent,
            "message": {"headline": headline, "body": body.trim_start_matches('\n')},
            "fileChanges": {"additions": written, "deletions": deleted},
        });
        match self.api.client.mutate::<Made>(MUTATION, &json!({"input": input})).await {
            Ok(made) => Ok(Some(made.create_commit_on_branch.commit.oid.to_ascii_lowercase())),
            Err(refusal) if refusal.cause == Cause::Stale => Ok(None),
            Err(refusal) => Err(self.refused(&refusal)),
        }
    }

    fn refused(&self, refusal: &Refusal) -> StepFailure {
        let rule = |detail| skip(detail, &format!("Rules of the repository refuse the commit: {}", refusal.message));
        match () {
            () if refusal.mentions("verified signature") => rule(SkipDetail::SigningRequired),
            () if refusal.mentions("rule violation") || refusal.mentions("protected branch") => {
                rule(SkipDetail::Ruleset)
            }
            () if refusal.mentions("update workflow") => skip(SkipDetail::WorkflowPermission, &refusal.message),
            () => self.api.failure(refusal),
        }
    }
}
