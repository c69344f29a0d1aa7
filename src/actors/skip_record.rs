//! What is kept and told where a turn's changes are left where they are, on purpose.

use std::time::Duration;

use uuid::Uuid;

use super::{handles::session::SessionSpec, session::notices};
use crate::{
    contract::{
        automation::{AutomationDiagnostics, AutomationMembers, AutomationMode, AutomationStatus, GithubAutomation},
        notifications::toast::{NoteDetails, NoteKind, NoteStatus},
    },
    domain::{
        automation::skip::{self, SkipDetail, SkipReason, WantedMode},
        clock::Timestamp,
        ids::PromptId,
        notify::{
            notice,
            toast::{Addressee, Telling},
        },
    },
    store::AutomationRunRow,
};

/// A skip: what the result says, what is kept, and what the user is told.
pub struct SkipRecord {
    /// Why.
    pub why: (SkipReason, Option<SkipDetail>),
    /// For the result.
    pub automation: GithubAutomation,
    /// For the audit.
    pub row: AutomationRunRow,
    /// For the user.
    pub telling: Telling,
}

/// The record of a skip; none where its parts do not fit the contract, which is a fault of ours.
pub fn of(
    spec: &SessionSpec,
    prompt_id: PromptId,
    wanted: WantedMode,
    (reason, detail): (SkipReason, Option<SkipDetail>),
    now: Timestamp,
) -> Option<SkipRecord> {
    let repository = spec.repository.as_deref();
    let notice = notice::of_skip(reason, detail, repository);
    let long = notice::note_of_skip(reason, detail, repository);
    let mode = match wanted {
        WantedMode::CommitOnly => AutomationMode::CommitOnly,
        WantedMode::Github | WantedMode::None => AutomationMode::Github,
    };
    let automation = GithubAutomation::new(AutomationMembers {
        status: AutomationStatus::Skipped,
        mode,
        issue: None,
        branch: None,
        commit: None,
        pull_request: None,
        skip_reason: Some(reason),
        skip_detail: detail,
        toast_message: Some(notice.body.as_str().to_owned()),
        transcript_note: Some(long.clone()),
        rollback: None,
        diagnostics: AutomationDiagnostics::default(),
        error: None,
    });
    let automation = automation.map_err(|cause| tracing::error!(marker = "[GITHUB-AUTO]", %cause, "no skip")).ok()?;
    let details = NoteDetails { skip_reason: Some(reason), ..NoteDetails::default() };
    let note = notices::note(&notice, NoteKind::Automation, Some(NoteStatus::Skipped), details, now).with_text(&long);
    let cause = skip::cause_of_skip(spec.session_id, prompt_id, reason, detail);
    let to = Addressee::Session(spec.workspace.clone(), spec.session_id);
    let row = AutomationRunRow {
        run_id: Uuid::now_v7(),
        key: spec.workspace.clone(),
        session_id: spec.session_id,
        prompt_id: Some(prompt_id),
        status: "skipped".into(),
        mode: if mode == AutomationMode::CommitOnly { "commit-only" } else { "github" }.into(),
        issue_number: None,
        issue_url: None,
        pull_request_number: None,
        pull_request_url: None,
        branch: None,
        commit_sha: None,
        skip_reason: Some(reason.as_str().to_owned()),
        skip_detail: detail.map(|detail| detail.as_str().to_owned()),
        took: Duration::ZERO,
        attempts: 0,
        error_code: None,
        logs: "[]".into(),
        created: now,
    };
    Some(SkipRecord { why: (reason, detail), automation, row, telling: notices::telling(to, notice, cause, note) })
}
