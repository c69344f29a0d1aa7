//! Makes the plan of a run from the rows of its turn.

use super::{Automation, missing};
use crate::{
    contract::result::ACPSessionResult,
    domain::{
        automation::{
            plan::{Figures, MAX_PROMPT_CHARS, Plan, Previous},
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
        let (previous, earlier_issue) = self.previous(row).await?;
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
            is_continued: wanted.is_continued,
            base_branch: wanted.base_branch,
            issue: wanted.issue,
            issue_title: wanted.issue_title,
            branch_template: policy.branch_template,
            author: settings.author(),
            is_draft: policy.is_draft,
            labels,
            assignees: policy.assignees,
            reviewers: policy.reviewers,
            protected_paths: policy.protected_paths,
            protection: policy.protection,
            previous,
            earlier_issue,
        })
    }

    /// The branch and pull request that the session has at GitHub, and the newest issue of the runs after it, which pushed
    /// nothing.
    async fn previous(&self, row: &SagaRow) -> Result<(Option<Previous>, Option<IssueFact>), StoreError> {
        let earlier = self.store.sagas_of_session(row.session_id, row.created, EARLIER_RUNS).await?;
        let mut issue = None;
        for facts in earlier.into_iter().filter_map(|earlier| Some(earlier.saga?.facts)) {
            issue = issue.or(facts.issue.clone());
            if let Some(pushed) = facts.push {
                let pull_request = facts.pull_request.as_ref().map(|request| request.number);
                let previous = Previous { branch: pushed.branch, head: pushed.sha, issue: facts.issue, pull_request };
                return Ok((Some(previous), issue));
            }
        }
        Ok((None, issue))
    }
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
