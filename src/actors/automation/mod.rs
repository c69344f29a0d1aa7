//! Runs of GitHub automation: each step is decided in `domain/automation/saga`, carried out by the runtime, and stored
//! before the next one.

mod credentials;
mod outcome;
mod plan;
pub(crate) mod retries;

use std::sync::Arc;

use futures_util::{FutureExt, future::BoxFuture};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::sync::watch;

pub(crate) use self::credentials::Credentials;
use crate::{
    actors::handles::{
        closing::{AgentEnded, Automate, EndedRun, Run},
        folder_use::own_reference,
        given_tokens::GivenTokens,
    },
    config::{ReloadableSecret, sections::Github},
    contract::{
        runtime::WorkspaceRef,
        steps::{Remote, StepOrder},
    },
    domain::{
        automation::{
            order,
            saga::{Next, RUNTIME_UNAVAILABLE, Saga, SagaStatus, Verdict},
            signing::Signer,
            skip::Credential,
            step::{Remedy, StepFailure, StepName, StepOutcome, StepReport},
        },
        clock::Clock,
        ids::InstallationId,
        turn::outcome::{ErrorCode, Failure},
    },
    store::{SagaRow, SagaUpdate, Store, StoreError},
    telemetry::metrics::Metrics,
    transport::http::client::WorkspaceClient,
};

/// Automates the changes of turns. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Automation {
    pub store: Store,
    pub clock: Arc<dyn Clock>,
    pub runtime: WorkspaceClient,
    pub settings: Arc<Github>,
    pub credentials: Credentials,
    /// SSH key that signs commits.
    pub signing_key: ReloadableSecret,
    pub metrics: Metrics,
    /// Tokens of sessions, and of runs that may be tried again.
    pub given_tokens: GivenTokens,
    /// True once the service stops: attempts end after their running step.
    pub stopping: watch::Receiver<bool>,
}

/// A run that this process advances.
struct AdvancedRun {
    automation: Automation,
    row: SagaRow,
    saga: Saga,
    /// The outcome of a step that was not stored yet. The step is not carried out again.
    unstored: Option<Saga>,
    workspace: WorkspaceRef,
    /// The token that the caller gave.
    token: Option<SecretString>,
    /// The token of the App with which the last step was ordered.
    minted: Option<SecretString>,
    /// True for an attempt after the turn's end, which no open turn resumes.
    is_leased: bool,
}

impl Automate for Automation {
    fn credential(&self, tenant: &InstallationId, has_token: bool) -> Credential {
        if has_token { Credential::Present } else { self.credentials.of_tenant(tenant) }
    }

    fn open(&self, turn: &AgentEnded) -> BoxFuture<'static, Result<Box<dyn Run>, StoreError>> {
        let (this, turn) = (self.clone(), turn.clone());
        async move {
            let row = this.store.saga_of_prompt(turn.prompt_id).await?;
            let row = row.ok_or_else(|| missing("run"))?;
            let run = this.advance(row, turn.token).await?;
            Ok(Box::new(run) as Box<dyn Run>)
        }
        .boxed()
    }

    fn retry(&self, row: SagaRow, token: Option<SecretString>) -> BoxFuture<'static, Result<(), Failure>> {
        let this = self.clone();
        async move { this.begin_retry(row, token).await }.boxed()
    }

    fn clone_token(
        &self,
        tenant: &InstallationId,
        repository: &str,
    ) -> BoxFuture<'static, Result<Option<SecretString>, StepFailure>> {
        let (this, tenant, repository) = (self.clone(), tenant.clone(), repository.to_owned());
        async move {
            let (api_url, now) = (&this.settings.api_url, this.clock.now());
            this.credentials.for_clone(&tenant, &repository, api_url, now).await
        }
        .boxed()
    }
}

impl Automation {
    /// Takes up a run where it was left, and plans it if it has no plan.
    ///
    /// # Errors
    /// The database did not answer, or the turn or its workspace is not there.
    async fn advance(&self, row: SagaRow, token: Option<SecretString>) -> Result<AdvancedRun, StoreError> {
        let workspace = self.store.workspace(row.key.clone()).await?.ok_or_else(|| missing("workspace"))?;
        let planned = row.saga.clone();
        let mut saga = match planned {
            Some(saga) => saga,
            None => Saga::new(self.plan(&row, &workspace).await?, self.clock.now()),
        };
        let session = self.store.session(row.session_id).await?;
        let is_isolated = session.is_some_and(|session| session.own_folder.is_some());
        let workspace = match is_isolated {
            true => own_reference(row.session_id),
            false => WorkspaceRef { folder_id: workspace.folder_id, path: workspace.path, within: None },
        };
        if let Some(token) = &token {
            self.given_tokens.keep(row.run_id, token.clone());
            // A later attempt that has lost the token uses no other credential either.
            saga.plan.has_token = true;
        }
        let kept = || self.given_tokens.of(row.run_id).or_else(|| self.given_tokens.of(row.session_id.0));
        let token = token.or_else(|| kept().filter(|_| saga.plan.has_token));
        Ok(AdvancedRun {
            automation: self.clone(),
            row,
            saga,
            unstored: None,
            workspace,
            token,
            minted: None,
            is_leased: false,
        })
    }
}

impl AdvancedRun {
    /// The state of the run with the outcome that is not stored yet.
    fn newest(&self) -> &Saga {
        self.unstored.as_ref().unwrap_or(&self.saga)
    }

    /// Carries out a step at the runtime. An answer that does not come is a failure that may pass.
    async fn execute(&mut self, step: StepName) -> StepReport {
        self.minted = None;
        let order = match self.order(step).await {
            Ok(order) => order,
            Err(failure) => return report_of(failure),
        };
        let minted = order.remote.as_ref().filter(|remote| remote.app.is_some());
        self.minted = minted.map(|remote| remote.token.clone());
        match self.automation.runtime.automate(self.row.run_id, &order).await {
            Ok(report) => report,
            Err(cause) if cause.code == ErrorCode::FolderMissing => {
                failed("workspace-missing", "the folder of the workspace does not exist", Remedy::Never)
            }
            Err(cause) => failed(RUNTIME_UNAVAILABLE, &cause.detail, Remedy::Later),
        }
    }

    /// [`Self::execute`], once more if GitHub refused the token of the App: it ends after an hour, or was revoked.
    async fn execute_with_valid_token(&mut self, step: StepName) -> StepReport {
        let report = self.execute(step).await;
        let refused = self.minted.take().filter(|_| is_refused_token(&report));
        let Some(token) = refused else { return report };
        self.automation.credentials.invalidate(&token);
        self.execute(step).await
    }

    async fn order(&self, step: StepName) -> Result<StepOrder, StepFailure> {
        let key = self.automation.signing_key.get();
        let signer = Signer { mode: self.automation.settings.signing, has_key: key.is_some() };
        let input = order::input(&self.saga, self.row.run_id, step, signer)?;
        let signing_key = Option::clone(&key).filter(|_| order::needs_key(&self.saga, step));
        let remote = if step.is_remote() { Some(self.remote().await?) } else { None };
        let (workspace, session_id) = (self.workspace.clone(), self.row.session_id);
        Ok(StepOrder { workspace, session_id, remote, signing_key, input })
    }

    /// The repository with a token. A turn that was given a token uses no other credential.
    async fn remote(&self) -> Result<Remote, StepFailure> {
        let (plan, automation) = (&self.saga.plan, &self.automation);
        let api_url = &automation.settings.api_url;
        let (token, app) = match (&self.token, plan.has_token) {
            (Some(token), _) => (token.clone(), None),
            (None, true) => return Err(lost_token()),
            (None, false) => {
                let (tenant, now) = (&self.row.key.installation_id, automation.clock.now());
                let minted = automation.credentials.mint(tenant, &self.saga, api_url, now).await?;
                (minted.token, Some(minted.installation))
            }
        };
        Ok(Remote {
            repository: plan.repository.clone(),
            api_url: api_url.trim_end_matches('/').to_owned(),
            token,
            max_wait_ms: automation.settings.max_wait_s * 1000,
            app,
        })
    }

    /// Stores the state of the running attempt. After an error the state is kept, and may be stored later.
    async fn store(&mut self, saga: Saga) -> Result<(), StoreError> {
        let lease = self.is_leased.then(|| self.automation.clock.now().plus(retries::LEASE));
        let is_repeated = self.unstored.replace(saga.clone()).is_some();
        let update = self.update(saga.clone(), SagaStatus::Running, lease);
        self.automation.store.save_saga(SagaUpdate { is_repeated, ..update }).await?;
        (self.saga, self.unstored) = (saga, None);
        self.row.version += 1;
        Ok(())
    }

    fn update(
        &self,
        saga: Saga,
        status: SagaStatus,
        retry_at: Option<crate::domain::clock::Timestamp>,
    ) -> SagaUpdate {
        let (run_id, version, now) = (self.row.run_id, self.row.version, self.automation.clock.now());
        SagaUpdate { run_id, version, status, saga, retry_at, is_repeated: false, now }
    }
}

impl Run for AdvancedRun {
    fn next(&self) -> Next {
        self.saga.next(self.automation.clock.now())
    }

    fn perform(&mut self, step: StepName) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            if let Some(saga) = self.unstored.clone() {
                return self.store(saga).await;
            }
            let began = self.automation.clock.now();
            let report = self.execute_with_valid_token(step).await;
            let now = self.automation.clock.now();
            let (run_id, prompt_id) = (self.row.run_id, self.row.prompt_id);
            self.automation.metrics.automation_step(step, &report, now.since(began));
            if let StepOutcome::Failed(failure) = &report.outcome {
                let (code, message) = (failure.code.as_str(), failure.message.as_str());
                tracing::warn!(marker = "[GITHUB-AUTO]", %run_id, %prompt_id, step = step.as_str(), code, message, "step of automation failed");
            } else {
                tracing::info!(marker = "[GITHUB-AUTO]", %run_id, %prompt_id, step = step.as_str(), "step of automation done");
            }
            let mut saga = self.saga.clone();
            saga.apply(step, report, now);
            self.store(saga).await
        }
        .boxed()
    }

    fn progress(&self, step: StepName, has_ended: bool) -> Value {
        let failure = self.saga.failures.iter().find(|failed| failed.step == step).filter(|_| has_ended);
        let state = match (has_ended, failure) {
            (false, _) => "started",
            (true, None) => "done",
            (true, Some(_)) => "failed",
        };
        let mut progress =
            json!({"runId": self.row.run_id, "attempt": self.saga.attempt, "step": step.as_str(), "state": state});
        if let Some(failed) = failure {
            progress["code"] = failed.failure.code.as_str().into();
        }
        progress
    }

    fn end(&self, verdict: Option<Verdict>) -> Option<EndedRun> {
        outcome::of(self, verdict)
    }
}

fn report_of(failure: StepFailure) -> StepReport {
    StepReport { outcome: StepOutcome::Failed(failure), logs: Vec::new(), rate_remaining: None }
}

fn failed(code: &str, message: &str, remedy: Remedy) -> StepReport {
    let (code, message) = (code.to_owned(), crate::domain::text::cut(message, 300));
    report_of(StepFailure { code, message, skip: None, remedy, retry_at: None })
}

/// Code of the failure of a step whose token was lost with the process that had it.
pub(crate) const TOKEN_LOST: &str = "token-lost";

fn lost_token() -> StepFailure {
    StepFailure {
        code: TOKEN_LOST.into(),
        message: "the githubToken of the turn was lost with a restart of the service; retry the run with a token"
            .into(),
        skip: None,
        remedy: Remedy::NewToken,
        retry_at: None,
    }
}

fn is_refused_token(report: &StepReport) -> bool {
    matches!(&report.outcome, StepOutcome::Failed(failure) if failure.remedy == Remedy::NewToken)
}

/// A row that a run needs is not there: it was erased.
fn missing(what: &str) -> StoreError {
    StoreError::Conflict(format!("the {what} of a run of automation does not exist"))
}
