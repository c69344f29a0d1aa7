//! The steps of automation: what a turn changed becomes a commit, a branch, an issue and a pull request.
//!
//! The supervisor decides which step follows and sends every text; this module carries one step out. Each step finds
//! what an earlier execution of it made.

mod api;
mod changes;
mod host;
mod local;
mod push;
pub(super) mod rescue;

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, web};
use uuid::Uuid;

use super::{
    reply::{answer, answer_failure, read, refuse},
    workspaces::Workspaces,
};
use crate::{
    contract::steps::{Remote, StepOrder},
    domain::{
        automation::{
            github_host,
            step::{Remedy, StepFact, StepFailure, StepInput, StepName, StepOutcome, StepReport},
        },
        redaction::Redacted,
        text,
        turn::outcome::ErrorCode,
    },
    github::Github,
};

/// Largest order, in bytes: two bodies of GitHub's largest size, 64 KiB, with room for escapes and the token.
const MAX_ORDER_BYTES: usize = 512 * 1024;
/// The most log lines of one step.
const MAX_LOG_LINES: usize = 20;
/// The longest log line and failure message, in characters.
const MAX_LINE_CHARS: usize = 300;

/// Carries out steps. Cheap to clone.
#[derive(Clone)]
pub(super) struct Automation {
    workspaces: Arc<Workspaces>,
    github: Github,
}

/// One execution of a step.
struct Step<'a> {
    workspaces: &'a Arc<Workspaces>,
    github: &'a Github,
    run: Uuid,
    order: &'a StepOrder,
    logs: Vec<String>,
    /// Requests that GitHub still permits in this hour, if it said so.
    rate_remaining: Option<u64>,
}

type Made = Result<StepFact, StepFailure>;

impl<'a> Step<'a> {
    /// Adds a line to the run's log, redacted and cut; lines beyond the limit are dropped.
    fn log(&mut self, line: &str) {
        if self.logs.len() < MAX_LOG_LINES {
            self.logs.push(text::cut(Redacted::new(line).as_str(), MAX_LINE_CHARS));
        }
    }

    /// The repository at GitHub.
    ///
    /// # Errors
    /// The order has none, which is a fault of the supervisor; or the repository is at another host, which gets no token.
    fn remote(&self) -> Result<&'a Remote, StepFailure> {
        let remote = self.order.remote.as_ref();
        if let Some(remote) = remote.filter(|remote| !github_host::is_at(&remote.repository, &remote.api_url)) {
            let message =
                format!("the repository is not at the GitHub of {}, to which tokens are sent", remote.api_url);
            return Err(failure("other-host", &message, Remedy::Never));
        }
        remote.ok_or_else(|| failure("invalid-order", "the order names no repository", Remedy::Never))
    }
}

/// A failure that is no skip; the message is redacted and cut.
fn failure(code: &str, message: &str, remedy: Remedy) -> StepFailure {
    let message = text::cut(Redacted::new(message).as_str(), MAX_LINE_CHARS);
    StepFailure { code: code.to_owned(), message, skip: None, remedy, retry_at: None }
}

impl Automation {
    pub(super) fn new(workspaces: Arc<Workspaces>, github: Github) -> Self {
        Self { workspaces, github }
    }

    /// Carries out one step.
    async fn perform(&self, run: Uuid, order: &StepOrder) -> StepReport {
        let (logs, rate_remaining) = (Vec::new(), None);
        let (workspaces, github) = (&self.workspaces, &self.github);
        let mut step = Step { workspaces, github, run, order, logs, rate_remaining };
        let made = match &order.input {
            StepInput::Changes { .. } => changes::changes(&mut step).await,
            StepInput::Commit { parent, .. } => match local::commit(&mut step).await {
                Err(missing) if missing.code == local::REPOSITORY_MISSING => {
                    rescue::kept_commit(&mut step, parent).await.ok_or(missing)
                }
                made => made,
            },
            StepInput::Rescue { .. } => rescue::rescue(&mut step).await,
            StepInput::Push { .. } => push::push(&mut step).await,
            StepInput::Preflight { .. }
            | StepInput::Issue { .. }
            | StepInput::PullRequest { .. }
            | StepInput::Comment { .. } => api::request(&mut step).await,
        };
        let Step { logs, rate_remaining, .. } = step;
        StepReport { outcome: made.map_or_else(StepOutcome::Failed, StepOutcome::Done), logs, rate_remaining }
    }
}

/// `POST /automation/{run}/{step}`.
pub(super) async fn perform(
    request: HttpRequest,
    body: web::Payload,
    path: web::Path<(String, String)>,
    automation: web::Data<Automation>,
) -> HttpResponse {
    let (run, step) = path.into_inner();
    match StepName::from_name(&step) {
        Some(step) => perform_step(&request, body, &run, step, &automation).await,
        None => refuse(ErrorCode::NotFound, "no such step of automation"),
    }
}

/// `POST /automation/{run}/rescue`.
pub(super) async fn perform_rescue(
    request: HttpRequest,
    body: web::Payload,
    run: web::Path<String>,
    automation: web::Data<Automation>,
) -> HttpResponse {
    perform_step(&request, body, &run, StepName::Rescue, &automation).await
}

async fn perform_step(
    request: &HttpRequest,
    body: web::Payload,
    run: &str,
    step: StepName,
    automation: &Automation,
) -> HttpResponse {
    let Ok(run) = run.parse::<Uuid>() else {
        return refuse(ErrorCode::NotFound, "no such step of automation");
    };
    match read::<StepOrder>(request, body, MAX_ORDER_BYTES, "a step of automation").await {
        Ok(order) if order.input.name() != step => refuse(ErrorCode::InvalidRequest, "the body is of another step"),
        Ok(order) => answer(Ok(automation.perform(run, &order).await)),
        Err(failure) => answer_failure(&failure),
    }
}

#[cfg(test)]
mod tests;
