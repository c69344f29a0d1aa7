//! Steps that use GitHub's REST API.
//!
//! Steps of one run exclude each other, also while a creation of a step that was dropped is under way. So the step that
//! follows sees what was created.

mod comment;
mod issue;
mod preflight;
mod pull_request;
mod signed;
mod target;
#[cfg(test)]
mod tests;

use std::time::Duration;

use uuid::Uuid;

pub(super) use self::signed::{SignedBranch, SignedCommit};
use super::{Made, Step, failure};
use crate::{
    contract::steps::Remote,
    domain::{
        automation::{
            github_answer::{Cause, Refusal},
            github_host,
            repository_pattern::RepositoryName,
            skip::SkipDetail,
            step::{Remedy, StepFailure, StepInput},
        },
        clock::Timestamp,
        redaction::Redacted,
        text,
    },
    github::{Access, Github, GithubClient, Repository},
};

/// Time before the begin of a run from which its issue is searched: the run may repeat an older one, whose marker it has.
const SEARCHED_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);

/// The means of one step.
struct Api<'a> {
    client: GithubClient,
    repository: Repository,
    remote: &'a Remote,
    /// The time from which an issue of the run is searched; `None`: from the beginning.
    since: Option<Timestamp>,
    /// Lines for the run's log.
    logs: Vec<String>,
}

impl<'a> Api<'a> {
    /// Prepares a step without sending a request.
    ///
    /// # Errors
    /// The repository is not on the GitHub of the order, or the order is malformed.
    fn new(github: &Github, remote: &'a Remote) -> Result<Self, StepFailure> {
        let name = RepositoryName::parse(&remote.repository);
        let Some(name) = name.filter(|_| github_host::is_at(&remote.repository, &remote.api_url)) else {
            let message = "The repository is not on the GitHub that is configured. Use a repository of it";
            return Err(skip(SkipDetail::MissingRepository, message));
        };
        let access = Access {
            api_url: &remote.api_url,
            token: &remote.token,
            installation: remote.app.as_ref().map(|app| app.id),
            max_wait: Duration::from_millis(remote.max_wait_ms),
        };
        let is_app = remote.app.is_some();
        let client = GithubClient::new(github, access).map_err(|refusal| refusal.failure(is_app))?;
        Ok(Self { client, repository: Repository::new(name), remote, since: None, logs: Vec::new() })
    }

    fn log(&mut self, line: &str) {
        self.logs.push(line.to_owned());
    }

    fn failure(&self, refusal: &Refusal) -> StepFailure {
        refusal.failure(self.remote.app.is_some())
    }
}

/// A failure for which the run is skipped; the message is redacted and cut.
fn skip(detail: SkipDetail, message: &str) -> StepFailure {
    StepFailure { skip: Some(detail), ..failure(detail.as_str(), message, Remedy::Never) }
}

/// True for a refusal that concerns one operation only.
fn is_unknown(refusal: &Refusal) -> bool {
    matches!(refusal.cause, Cause::NotFound | Cause::Permission { .. } | Cause::Gone | Cause::Other | Cause::Invalid)
}

/// A text that is sent to GitHub, redacted.
fn clean(text: &str) -> String {
    Redacted::new(text).into_string()
}

/// A text of GitHub for a fact: one line without markup.
fn shown(text: Option<&str>, max_chars: usize) -> String {
    text::plain(Redacted::new(text.unwrap_or_default()).as_str(), max_chars)
}

/// The address of a page at GitHub, for facts. Other addresses than those of the web are dropped.
fn page(address: Option<&str>) -> String {
    let is_plain = |url: &&str| url.bytes().all(|byte| byte.is_ascii_graphic() && !b"<>\"'`\\".contains(&byte));
    let is_web = |url: &&str| url.starts_with("https://") || url.starts_with("http://");
    address.filter(is_web).filter(is_plain).filter(|url| url.len() <= 500).unwrap_or_default().to_owned()
}

/// Carries out a step that uses the API: takes the lock of the run, and hands its log and its quota over.
pub(super) async fn request(step: &mut Step<'_>) -> Made {
    let mut api = Api::new(step.github, step.remote()?)?;
    api.client.keep(step.github.hold_run(&step.run.to_string()).await);
    api.since = begin_of(step.run).map(|begin| begin.minus(SEARCHED_BEFORE));
    let made = carry_out(&mut api, &step.order.input).await;
    for line in &api.logs {
        step.log(line);
    }
    step.rate_remaining = api.client.rate_remaining().or(step.rate_remaining);
    made
}

/// The time that the id of a run contains, if it does.
fn begin_of(run: Uuid) -> Option<Timestamp> {
    let (seconds, _) = run.get_timestamp().filter(|_| run.get_version_num() == 7)?.to_unix();
    i64::try_from(seconds).ok()?.checked_mul(1_000_000).map(Timestamp)
}

async fn carry_out(api: &mut Api<'_>, input: &StepInput) -> Made {
    match input {
        StepInput::Preflight { .. } => preflight::preflight(api, input).await,
        StepInput::Issue { .. } => issue::issue(api, input).await,
        StepInput::PullRequest { .. } => pull_request::pull_request(api, input).await,
        StepInput::Comment { .. } => comment::comment(api, input).await,
        _ => Err(wrong_step()),
    }
}

/// The failure of a step that was called for another one, which is a fault of this program.
fn wrong_step() -> StepFailure {
    failure("invalid-order", "the step does not use the API of GitHub", Remedy::Never)
}
