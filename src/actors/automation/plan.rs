//! Makes the plan of a run from the rows of its turn.

use super::{Automation, missing};
use crate::{
    contract::result::ACPSessionResult,
    domain::{
        automation::{
            branch,
            order::branch,
            plan::{Figures, MAX_PROMPT_CHARS, MAX_UNCONFIRMED, Plan, Previous, Unconfirmed},
            step::IssueFact,
        },
        redaction::Redacted,
        routing::{FlipTrigger, Route},
        text,
    },
    store::{PromptRow, SagaRow, StoreError, WorkspaceRow},
};

/// The most earlier runs of a session that are searched for its branch. Runs without changes leave none.
const EARLIER_RUNS: usize = 50;
/// The most remarks about the turn in a pull request.
const MAX_REMARKS: usize = 10;

impl Automation {
    /// The plan of a run.
    ///
    /// # Errors
    /// The database did not answer, or the turn is not there.
    pub(super) async fn plan(&self, row: &SagaRow, workspace: &WorkspaceRow) -> Result<Plan, StoreError> {
        let turn = self.store.prompt(row.prompt_id).await?.ok_or_else(|| missing("turn"))?;
        let prompt = self.store.text_of_prompt(row.session_id, row.prompt_id).await?;
        let Earlier { previous, issue, unconfirmed } = self.earlier(row).await?;
        let (figures, message) = figures(&turn);
        let (wanted, settings) = (turn.wanted.options, &self.settings);
        let policy = self.credentials.settings_of(&row.key.installation_id).automation.over(settings.policy());
        let mut labels = policy.labels;
        for label in wanted.labels {
            if !labels.contains(&label) {
                labels.push(label);
            }
        }
        Ok(Plan {
            session_id: row.session_id,
            repository: workspace.repository.clone().unwrap_or_default(),
            mode: turn.wanted.mode,
            is_dry_run: wanted.is_dry_run,
            at: row.created,
            prompt: shortened(prompt.as_deref().unwrap_or(&turn.preview)),
            message: shortened(&message),
            figures,
            has_token: wanted.has_token,
            branch_name: wanted.branch_name,
            base_branch: wanted.base_branch,
            issue: wanted.issue,
            issue_title: wanted.issue_title,
            requester: wanted.requester,
            pull_request: workspace.branch.as_deref().and_then(branch::pull_request_of),
            branch_template: policy.branch_template,
            author: settings.author(),
            is_draft: policy.is_draft,
            labels,
            assignees: policy.assignees,
            reviewers: policy.reviewers,
            protected_paths: policy.protected_paths,
            protection: policy.protection,
            previous,
            earlier_issue: issue,
            unconfirmed,
        })
    }

    /// The session's earlier runs, as far as a new one continues them.
    async fn earlier(&self, row: &SagaRow) -> Result<Earlier, StoreError> {
        let rows = self.store.sagas_of_session(row.session_id, row.created, EARLIER_RUNS).await?;
        let mut earlier = Earlier::default();
        for (run, saga) in rows.into_iter().filter_map(|row| Some((row.run_id, row.saga?))) {
            let facts = &saga.facts;
            earlier.issue = earlier.issue.or(facts.issue.clone());
            if let Some(pushed) = &facts.push {
                earlier.previous = Some(Previous {
                    branch: pushed.branch.clone(),
                    head: pushed.sha.clone(),
                    issue: facts.issue.clone(),
                    pull_request: facts.pull_request.as_ref().map(|request| request.number),
                });
                break;
            }
            if let Some(commit) = facts.commit.as_ref().filter(|_| !saga.plan.is_dry_run) {
                let newest = || Unconfirmed { branch: branch(&saga, run), commits: Vec::new() };
                let unconfirmed = earlier.unconfirmed.get_or_insert_with(newest);
                if unconfirmed.commits.len() < MAX_UNCONFIRMED {
                    unconfirmed.commits.push(commit.sha.clone());
                }
            }
        }
        Ok(earlier)
    }
}

/// Traces of a session's earlier runs at GitHub.
#[derive(Default)]
struct Earlier {
    /// The branch and pull request.
    previous: Option<Previous>,
    /// The newest issue of the runs after `previous`, which pushed nothing.
    issue: Option<IssueFact>,
    /// The commits of these runs.
    unconfirmed: Option<Unconfirmed>,
}

fn shortened(text: &str) -> String {
    Redacted::new(text).map(|text| text::cut(text, MAX_PROMPT_CHARS)).into_string()
}

/// Facts about a turn, and the agent's last message.
fn figures(turn: &PromptRow) -> (Figures, String) {
    let result = turn.result.as_deref().and_then(|result| serde_json::from_str::<ACPSessionResult>(result).ok());
    let Some(result) = result else { return (Figures::default(), String::new()) };
    let Some(meta) = result.meta else { return (Figures::default(), String::new()) };
    let tokens = meta.usage_known.then_some((result.usage.input_tokens, result.usage.output_tokens));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a duration of a turn in milliseconds"
    )]
    let duration_ms = meta.timings.total_ms.max(0.0) as u64;
    let figures = Figures {
        carrier: Route::from_name(&meta.protocol),
        stop_reason: meta.acp_stop_reason.unwrap_or_default(),
        duration_ms,
        updates: meta.timings.updates,
        tokens,
        rollback: meta.rollback.trigger.as_deref().and_then(FlipTrigger::from_name).filter(|_| meta.rollback.active),
        remarks: result.diagnostics.into_iter().map(|remark| remark.message).take(MAX_REMARKS).collect(),
    };
    (figures, meta.message)
}
