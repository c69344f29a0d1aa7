//! The session and the turn of a delivery, and its outcome.

use secrecy::SecretString;
use serde_json::value::to_raw_value;
use tokio::sync::watch;
use uuid::Uuid;

use super::{Triggers, github::Setback};
use crate::{
    actors::{
        handles::messages::{RunPrompt, TurnBegun},
        workspaces::{OpenOnce, ReadySession, open::OpenSession},
    },
    contract::{
        automation::{AutomationMembers, AutomationStatus, SkipDetail},
        result::ACPSessionResult,
        runtime::Checkout,
    },
    domain::{
        automation::{
            branch::ref_of_pull_request,
            github_host,
            repository_pattern::RepositoryName,
            skip::WantedMode,
            trigger::{IgnoreReason, Request, texts, texts::Outcome},
            wanted::{Wanted, WantedOptions},
        },
        ids::{PromptId, SessionId},
        redaction::{Redacted, RedactedJson},
        session::{
            lifecycle::{SessionMode, SessionState},
            mcp::{self, McpServers},
        },
        turn::{
            outcome::{ErrorCode, Failure},
            prompt::Prompt,
        },
    },
    store::{DeliveryRow, Idempotency, PromptRow, SessionRow, StoreError},
};

/// Earlier sessions of a workspace that are looked at for one to continue.
const EARLIER_SESSIONS: usize = 20;

/// The key of a session or turn. It has one space: keys of callers have none, and those with a scope at least two.
fn key_of(row: &DeliveryRow) -> Idempotency {
    let id = row.delivery_id.to_string();
    Idempotency { key: format!("github-delivery {id}"), body_hash: id }
}

/// The answer that is kept with the key of a session; no caller reads it.
fn answer_of(opened: &ReadySession) -> RedactedJson {
    RedactedJson::of(&opened.session_id)
}

impl Triggers {
    /// The session for a delivery: the newest one that an earlier delivery opened for the same issue and that still takes
    /// prompts, else a new one, which is not prepared yet: its key is stored before its clone begins.
    pub(super) async fn session(&self, row: &DeliveryRow) -> Result<SessionId, Setback> {
        let services = self.0.workspaces.services();
        for id in services.store.sessions_of_deliveries(row.key.clone(), EARLIER_SESSIONS).await? {
            if let Some(found) = services.store.session(id).await?
                && self.takes_prompts(&found)
            {
                return Ok(id);
            }
        }
        let request = self.open_request(row).await?;
        let once = OpenOnce { idempotency: key_of(row), is_async: true, answer_of };
        let opened = self.0.workspaces.open_once(request, once).await?;
        opened.session_id.parse().map_err(|_| Setback::Failed(ErrorCode::Internal))
    }

    fn takes_prompts(&self, row: &SessionRow) -> bool {
        let unused = self.0.workspaces.services().clock.now().since(row.last_used);
        row.state.at_age(unused, self.0.max_age).admits_prompt().is_ok()
    }

    async fn open_request(&self, row: &DeliveryRow) -> Result<OpenSession, Setback> {
        let request = &row.request;
        let name = RepositoryName::parse(&request.repository);
        let address = name.and_then(|name| github_host::clone_address(&self.0.settings.api_url, &name));
        let mut repository = address.ok_or(Setback::Ignored(IgnoreReason::NoRepository))?;
        let known = self.0.workspaces.services().store.workspace(row.key.clone()).await?;
        if let Some(known) = known.and_then(|known| known.repository)
            && known.eq_ignore_ascii_case(&repository)
        {
            // The owner or the repository was renamed to the same name in other letters.
            repository = known;
        }
        let branch = request.is_pull_request.then(|| ref_of_pull_request(request.number));
        Ok(OpenSession {
            workspace: row.key.clone(),
            user_id: None,
            agent: None,
            mode: SessionMode::Development,
            enable_git_ops: true,
            checkout: Some(Checkout { repository, branch }),
            path: None,
            is_ephemeral: None,
            isolate: None,
            permission_policy: None,
            mcp_servers: McpServers::given(mcp::none()),
            is_of_delivery: true,
            github_token: None,
            limited: None,
        })
    }

    /// Begins the turn of a delivery in its session, which is loaded if it hibernates, and prepared again if that failed; or finds
    /// the turn that was begun before. `None` while the session is prepared.
    pub(super) async fn prompt(&self, row: &DeliveryRow, session_id: SessionId) -> Result<Option<PromptId>, Setback> {
        let workspaces = &self.0.workspaces;
        workspaces.admission()?;
        let text = to_raw_value(&texts::prompt(&row.request, &row.delivery_id.to_string()))
            .map_err(|_| Setback::Failed(ErrorCode::Internal))?;
        let prompt = Prompt::parse(&text)?;
        let (wanted, key) = (wanted_of(&row.request), key_of(row));
        let (_present, presence) = watch::channel(());
        let span = tracing::Span::current();
        let prompt_id = PromptId(Uuid::now_v7());
        // Twice: a session can hibernate between the lookup and the request.
        for _ in 0..2 {
            if let Some(live) = workspaces.live(session_id) {
                let make = |again| RunPrompt {
                    prompt_id,
                    prompt: prompt.clone(),
                    wanted: wanted.clone(),
                    token: None::<SecretString>,
                    idempotency: Some(key.clone()),
                    again,
                    span: span.clone(),
                    limited: None,
                    caller: presence.clone(),
                };
                match workspaces.ask(&live, |it| it.run_prompt.clone(), make).await {
                    Some(Ok(TurnBegun::Accepted(turn) | TurnBegun::Joined(turn))) => return Ok(Some(turn.prompt_id)),
                    Some(Ok(TurnBegun::Stored(turn))) => return Ok(Some(turn.prompt_id)),
                    Some(Err(refusal)) => {
                        // The refusal is of a new turn, and this one may have begun before.
                        return self.begun(session_id, &key).await?.map(Some).ok_or_else(|| refusal.failure.into());
                    }
                    None => {}
                }
            }
            if let Some(begun) = self.begun(session_id, &key).await? {
                return Ok(Some(begun));
            }
            let session = workspaces.services().store.session(session_id).await?;
            let session = session.ok_or_else(|| Failure::new(ErrorCode::NotFound, "the session was erased"))?;
            match session.state {
                SessionState::Preparing => return Ok(None),
                SessionState::Failed => {}
                state => state.admits_prompt().map_err(Setback::Failed)?,
            }
            workspaces.load(&session, None).await?;
        }
        Err(Setback::Later { code: ErrorCode::ConnectionLost.as_str().to_owned(), at: None })
    }

    async fn begun(&self, session_id: SessionId, key: &Idempotency) -> Result<Option<PromptId>, StoreError> {
        let services = self.0.workspaces.services();
        let found = services.store.prompt_with_key(session_id, key.key.clone(), services.clock.now()).await?;
        Ok(found.map(|turn| turn.prompt_id))
    }

    /// The outcome of a turn that has ended, and true if its run has commented on the issue; `None` while it runs.
    ///
    /// # Errors
    /// The database did not answer, or the turn was erased.
    pub(super) async fn outcome(&self, prompt_id: PromptId) -> Result<Option<(Outcome, bool)>, StoreError> {
        let store = &self.0.workspaces.services().store;
        let turn = store.prompt(prompt_id).await?.ok_or(StoreError::Fenced)?;
        if turn.ended.is_none() {
            return Ok(None);
        }
        let run = store.saga_of_prompt(prompt_id).await?;
        let has_comment = run.and_then(|run| run.saga).is_some_and(|saga| saga.facts.comment_url.is_some());
        Ok(Some((outcome_of(&turn), has_comment)))
    }
}

/// The automation of a delivery: a pull request for an issue, and a commit on the branch of a pull request.
fn wanted_of(request: &Request) -> Wanted {
    let options = WantedOptions {
        issue: (!request.is_pull_request).then_some(request.number),
        requester: Some(request.sender.login.clone()),
        ..WantedOptions::default()
    };
    Wanted { mode: WantedMode::Github, options }
}

fn outcome_of(turn: &PromptRow) -> Outcome {
    let session = turn.session_id.to_string();
    let session_suffix = session[session.len() - 6..].to_owned();
    let failure = turn.error.as_ref().map(|error| error.code);
    let result = turn.result.as_deref().and_then(|result| serde_json::from_str::<ACPSessionResult>(result).ok());
    let Some(result) = result else {
        let failure = failure.or(Some(ErrorCode::Interrupted));
        return Outcome { failure, session_suffix, ..Outcome::default() };
    };
    let message = result.meta.map(|meta| Redacted::new(&meta.message));
    let outcome = Outcome { failure, message, session_suffix, ..Outcome::default() };
    match &result.github_automation {
        Some(automation) => with_automation(outcome, automation),
        None => outcome,
    }
}

fn with_automation(outcome: Outcome, automation: &AutomationMembers) -> Outcome {
    let request = automation.pull_request.as_ref().map(|request| request.url.clone());
    let pushed = automation.branch.clone().zip(automation.commit.as_ref().map(|commit| commit.sha.clone()));
    let is_success = automation.status == AutomationStatus::Success;
    let unchanged = [Some(SkipDetail::NoChanges), Some(SkipDetail::NothingStaged)];
    Outcome {
        pull_request: request.filter(|_| is_success),
        pushed: pushed.filter(|_| is_success),
        is_unchanged: automation.status == AutomationStatus::Skipped && unchanged.contains(&automation.skip_detail),
        note: automation.transcript_note.as_deref().map(Redacted::new),
        error: automation.error.as_ref().map(|error| (error.code.clone(), Redacted::new(&error.message))),
        ..outcome
    }
}
