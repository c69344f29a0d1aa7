//! Requests to GitHub for a delivery: the permission of the sender, the state of a pull request, and the comment.

use std::time::Duration;

use secrecy::SecretString;
use serde_json::{Value, json};

use super::Triggers;
use crate::{
    domain::{
        automation::{
            github_answer::{Cause, Refusal},
            repository_pattern::RepositoryName,
            skip::SkipDetail,
            step::{Remedy, StepFailure},
            trigger::{IgnoreReason, Request, progress::Permission},
        },
        clock::Timestamp,
        turn::outcome::{ErrorCode, Failure},
    },
    github::{Access, Collaborator, GithubClient, Issue, PullRequest, Repository, Scope, comment_once},
    store::{DeliveryRow, StoreError},
};

/// Why a step of the work did not succeed.
#[derive(Debug)]
pub(super) enum Setback {
    /// The row could not be written, or another process works on it.
    Store(StoreError),
    /// No turn is to be started.
    Ignored(IgnoreReason),
    /// The step may succeed at a later time, that GitHub may have stated.
    Later { code: String, at: Option<Timestamp> },
    /// The session runs another turn.
    Busy,
    /// The session or the turn cannot be started.
    Failed(ErrorCode),
    /// Nothing can be done, and nothing can be written at GitHub.
    Refused { code: String },
}

impl From<StoreError> for Setback {
    fn from(cause: StoreError) -> Self {
        Self::Store(cause)
    }
}

impl From<Failure> for Setback {
    fn from(failure: Failure) -> Self {
        match failure.code {
            ErrorCode::TurnRunning => Self::Busy,
            code if code.retryable() => Self::Later { code: code.as_str().to_owned(), at: None },
            code => Self::Failed(code),
        }
    }
}

impl From<StepFailure> for Setback {
    fn from(failure: StepFailure) -> Self {
        match (failure.skip, failure.remedy) {
            (Some(SkipDetail::NoInstallation), _) => Self::Ignored(IgnoreReason::NoInstallation),
            // A refused token is minted again.
            (_, Remedy::Later | Remedy::NewToken) => Self::Later { code: failure.code, at: failure.retry_at },
            (_, Remedy::Never) => Self::Refused { code: failure.code },
        }
    }
}

/// A client with a token for the repository of a delivery.
pub(super) struct Connection {
    client: GithubClient,
    repository: Repository,
    token: SecretString,
    /// Name of the App, if GitHub reported it.
    pub name: Option<String>,
}

impl Triggers {
    /// Mints a token for the repository of a delivery. The installation must be the one that sent the delivery, and still be
    /// bound to the tenant.
    pub(super) async fn connect(&self, row: &DeliveryRow) -> Result<Connection, Setback> {
        let request = &row.request;
        let services = self.0.workspaces.services();
        let name = RepositoryName::parse(&request.repository).ok_or(Setback::Ignored(IgnoreReason::NoRepository))?;
        let scope = Scope { issues: true, pull_requests: true, workflows: false };
        let tenant = &row.key.installation_id;
        let is_bound = |installation| {
            installation == request.github_installation
                && services.tenants.settings(tenant).automation.binds(installation)
        };
        let token = self.0.app.token(&name, scope, is_bound, services.clock.now()).await?;
        let access = Access {
            api_url: self.0.settings.api_url.trim_end_matches('/'),
            token: &token.token,
            installation: Some(token.installation.id),
            max_wait: Duration::from_secs(self.0.settings.max_wait_s),
        };
        let client = GithubClient::new(&self.0.github, access).map_err(|refusal| refused(&refusal))?;
        let slug = token.installation.slug.clone();
        if let Some(slug) = &slug {
            *self.0.name.lock() = Some(slug.clone());
        }
        Ok(Connection { client, repository: Repository::new(name), token: token.token, name: slug })
    }

    /// Drops the cached token of a delivery that GitHub refused, so that the next execution mints another.
    pub(super) async fn forget_token(&self, row: &DeliveryRow) {
        if let Ok(connection) = self.connect(row).await {
            self.0.app.invalidate(&connection.token);
        }
    }
}

fn refused(refusal: &Refusal) -> Setback {
    refusal.failure(true).into()
}

impl Connection {
    /// Checks that the repository is still the one of the event, that the sender may start turns, and that the issue or pull
    /// request is open; records the name of the repository in the request.
    pub(super) async fn check(&mut self, request: &mut Request) -> Result<(), Setback> {
        let facts = self.repository.resolve(&mut self.client).await.map_err(|refusal| refused(&refusal))?;
        if facts.id != Some(request.repository_id) {
            return Err(Setback::Ignored(IgnoreReason::NoRepository));
        }
        request.repository = self.repository.name().to_string();
        let path = self.repository.path(&["collaborators", &request.sender.login, "permission"]);
        let found: Collaborator = match self.client.get(&path).await {
            Ok(found) => found,
            Err(refusal) if refusal.cause == Cause::NotFound => {
                return Err(Setback::Ignored(IgnoreReason::NoPermission));
            }
            Err(refusal) => return Err(refused(&refusal)),
        };
        let user = found.user.as_ref();
        let permission = Permission {
            id: user.map(|user| user.id),
            kind: user.and_then(|user| user.kind.as_deref()),
            level: found.permission.as_deref().unwrap_or_default(),
        };
        if !permission.admits(request) {
            return Err(Setback::Ignored(IgnoreReason::NoPermission));
        }
        self.check_open(request).await
    }

    /// Checks that the issue or the pull request is still there and open.
    async fn check_open(&mut self, request: &Request) -> Result<(), Setback> {
        let digits = request.number.to_string();
        let state = if request.is_pull_request {
            let path = self.repository.path(&["pulls", &digits]);
            self.client.get::<PullRequest>(&path).await.map(|pull| pull.state)
        } else {
            let path = self.repository.path(&["issues", &digits]);
            let found = self.client.get::<Issue>(&path).await;
            // One that was moved to another repository is found there, by a redirect.
            let is_here =
                |found: &Issue| found.repository_url.as_deref().is_none_or(|url| self.repository.is_at(url));
            match found {
                Ok(found) if !is_here(&found) => return Err(Setback::Ignored(IgnoreReason::NoIssue)),
                found => found.map(|found| found.state),
            }
        };
        match state {
            Ok(state) if state.as_deref() == Some("open") => Ok(()),
            Ok(_) => Err(Setback::Ignored(IgnoreReason::Closed)),
            Err(refusal) if matches!(refusal.cause, Cause::NotFound | Cause::Gone) => {
                Err(Setback::Ignored(IgnoreReason::NoIssue))
            }
            Err(refusal) => Err(refused(&refusal)),
        }
    }

    /// Shows the sender that the delivery is being worked on: 👀 at the comment, or at the issue. GitHub keeps one reaction of
    /// each kind, so a repetition adds none. A refusal is ignored.
    pub(super) async fn react(&mut self, request: &Request) {
        let (number, comment) = (request.number.to_string(), request.comment_id.map(|id| id.to_string()));
        let path = match &comment {
            Some(id) => self.repository.path(&["issues", "comments", id, "reactions"]),
            None => self.repository.path(&["issues", &number, "reactions"]),
        };
        let reaction: Result<Value, _> = self.client.create(&path, &json!({"content": "eyes"})).await;
        if let Err(refusal) = reaction {
            tracing::debug!(marker = "[GITHUB-AUTO]", %refusal, "no reaction");
        }
    }

    /// Writes a comment, unless one with the marker is there.
    pub(super) async fn comment(&mut self, number: u64, marker: &str, body: &str) -> Result<(), Setback> {
        let body = crate::domain::redaction::Redacted::new(body).into_string();
        let written = comment_once(&mut self.client, &mut self.repository, number, marker, &body).await;
        written.map(drop).map_err(|refusal| refused(&refusal))
    }
}
