//! The end of an attempt as the turn's result, the audit and people get it.

use serde_json::json;
use uuid::Uuid;

use super::{AdvancedRun, TOKEN_LOST};
use crate::{
    actors::{handles::closing::EndedRun, session::notices},
    contract::{
        audit::AutomationRunItem,
        automation::{
            AutomationChecks, AutomationCommit, AutomationDiagnostics, AutomationError, AutomationIssue,
            AutomationMembers, AutomationMode, AutomationPullRequest, AutomationRescue, AutomationStatus,
            GithubAutomation,
        },
        notifications::notification::{NoteDetails, NoteKind, NoteStatus},
    },
    domain::{
        automation::{
            order,
            saga::{Saga, SagaStatus, Verdict},
            skip::{self, SkipDetail, SkipReason, WantedMode},
            step::{Remedy, StepFailure},
            texts::FailedRun,
        },
        clock::Timestamp,
        notify::{
            notice,
            notification::{Addressee, Notice, SessionNotice},
        },
        redaction::Redacted,
    },
    store::RunEnd,
};

/// The end of an attempt.
struct Ended {
    status: AutomationStatus,
    skip: Option<(SkipReason, Option<SkipDetail>)>,
    failure: Option<StepFailure>,
}

impl Ended {
    fn of(verdict: Option<Verdict>) -> Self {
        let skipped = |skip| Self { status: AutomationStatus::Skipped, skip: Some(skip), failure: None };
        let failed = |failure| Self { status: AutomationStatus::Error, skip: None, failure: Some(failure) };
        match verdict {
            Some(Verdict::Success) => Self { status: AutomationStatus::Success, skip: None, failure: None },
            Some(Verdict::Skipped(detail)) => skipped((detail.reason(), Some(detail))),
            Some(Verdict::Failed(failure)) if failure.code == TOKEN_LOST => {
                skipped((SkipReason::MissingCredential, None))
            }
            Some(Verdict::Failed(failure)) => failed(failure),
            None => failed(StepFailure {
                code: "cancelled".into(),
                message: "automation was cut off before it had delivered the changes".into(),
                skip: None,
                remedy: Remedy::Never,
                retry_at: None,
            }),
        }
    }
}

/// The end of the attempt of a run. `None` if its parts violate the contract, which is a bug and is logged.
pub(super) fn of(run: &AdvancedRun, verdict: Option<Verdict>) -> Option<EndedRun> {
    let (saga, now) = (run.newest(), run.automation.clock.now());
    let retry_at = verdict.as_ref().and_then(|verdict| saga.next_attempt(verdict, now));
    let ended = Ended::of(verdict);
    let branch = saga.facts.commit.is_some().then(|| order::branch(saga, run.row.run_id));
    let (notice, note) = texts(run, &ended, branch.as_deref(), retry_at).unzip();
    let is_skip = ended.status == AutomationStatus::Skipped;
    let members = AutomationMembers {
        toast_message: notice.as_ref().filter(|_| is_skip).map(|notice| notice.body.as_str().to_owned()),
        transcript_note: note.clone().filter(|_| is_skip),
        ..members(run, &ended, branch.as_deref(), retry_at, now)
    };
    let automation = GithubAutomation::new(members)
        .map_err(|cause| tracing::error!(marker = "[GITHUB-AUTO]", %cause, "outcome of a run could not be built"))
        .ok()?;
    let session_notice = notice.zip(note).map(|(notice, note)| announcement(run, &ended, notice, &note, now));
    let status = match (retry_at, ended.status) {
        (Some(_), _) => SagaStatus::Waiting,
        (None, AutomationStatus::Success) => SagaStatus::Success,
        (None, AutomationStatus::Skipped) => SagaStatus::Skipped,
        (None, AutomationStatus::Error) => SagaStatus::Error,
    };
    if status != SagaStatus::Waiting {
        run.automation.given_tokens.drop_of(run.row.run_id);
    }
    let item = item(run, &automation, now);
    let (reason, detail) = (item.skip_reason.clone(), item.skip_detail.clone());
    tracing::info!(marker = "[GITHUB-AUTO]", run_id = %run.row.run_id, status = item.status, reason, detail, "automation ended");
    let update = run.update(saga.clone(), status, retry_at);
    Some(EndedRun { automation, rows: RunEnd { run: item, notice: session_notice, saga: Some(update) } })
}

fn members(
    run: &AdvancedRun,
    ended: &Ended,
    branch: Option<&str>,
    retry_at: Option<Timestamp>,
    now: Timestamp,
) -> AutomationMembers {
    let (saga, facts) = (run.newest(), &run.newest().facts);
    let kept = facts.rescue.as_ref().zip(facts.commit.as_ref()).filter(|_| facts.push.is_none());
    AutomationMembers {
        status: ended.status,
        mode: mode(saga),
        issue: facts.issue.as_ref().map(|issue| AutomationIssue {
            id: issue.id,
            number: issue.number,
            url: issue.url.clone(),
            title: issue.title.clone(),
        }),
        branch: branch.map(str::to_owned),
        commit: facts.commit.as_ref().map(|commit| AutomationCommit {
            sha: facts.push.as_ref().map_or_else(|| commit.sha.clone(), |push| push.sha.clone()),
            message: commit.message.clone(),
        }),
        pull_request: facts.pull_request.as_ref().map(|request| AutomationPullRequest {
            number: request.number,
            url: request.url.clone(),
            branch: request.branch.clone(),
        }),
        checks: facts
            .pull_request
            .as_ref()
            .filter(|request| request.waits_for_approval)
            .map(|_| AutomationChecks::WaitingForApproval),
        skip_reason: ended.skip.map(|(reason, _)| reason),
        skip_detail: ended.skip.and_then(|(_, detail)| detail),
        toast_message: None,
        transcript_note: None,
        rollback: None,
        diagnostics: AutomationDiagnostics {
            duration_ms: u64::try_from(now.since(saga.attempt_began).as_millis()).unwrap_or(u64::MAX),
            attempts: saga.attempt,
            logs: saga.logs.clone(),
            error_code: ended.failure.as_ref().map(|failure| failure.code.clone()),
        },
        error: ended.failure.as_ref().map(|failure| AutomationError {
            code: failure.code.clone(),
            message: failure.message.clone(),
            retryable: failure.remedy != Remedy::Never || kept.is_some(),
        }),
        rescue: kept.zip(branch).map(|((_, commit), branch)| AutomationRescue {
            id: run.row.run_id,
            branch: branch.to_owned(),
            commit: commit.sha.clone(),
        }),
        retry_at,
        dry_run: saga.plan.is_dry_run,
    }
}

fn mode(saga: &Saga) -> AutomationMode {
    match saga.plan.mode {
        WantedMode::CommitOnly => AutomationMode::CommitOnly,
        WantedMode::Github | WantedMode::None => AutomationMode::Github,
    }
}

/// The notification of an end and the text of its note. A success is reported by the turn's result alone, unless a later
/// attempt achieved it.
fn texts(
    run: &AdvancedRun,
    ended: &Ended,
    branch: Option<&str>,
    retry_at: Option<Timestamp>,
) -> Option<(Notice, String)> {
    let (saga, repository) = (run.newest(), Some(run.newest().plan.repository.as_str()));
    let kept = saga.facts.rescue.is_some() && saga.facts.push.is_none();
    let rescued_as = kept.then(|| run.row.run_id.to_string());
    match (ended.skip, &ended.failure) {
        (Some((reason, detail)), _) => {
            Some((notice::of_skip(reason, detail, repository), notice::note_of_skip(reason, detail, repository)))
        }
        (None, Some(failure)) => {
            let message = Redacted::new(&failure.message);
            let (code, rescued_as) = (failure.code.as_str(), rescued_as.as_deref());
            let text = FailedRun { repository, code, message: &message, rescued_as, retry_at };
            Some((notice::of_failed_run(&text.notification()), text.note()))
        }
        (None, None) if saga.attempt > 1 => {
            let request = saga.facts.pull_request.as_ref().map(|request| request.number);
            let notice = notice::of_delivered_run(repository, branch.unwrap_or_default(), request);
            let text = notice.body.as_str().to_owned();
            Some((notice, text))
        }
        (None, None) => None,
    }
}

fn announcement(run: &AdvancedRun, ended: &Ended, notice: Notice, text: &str, now: Timestamp) -> SessionNotice {
    let row = &run.row;
    let status = match ended.status {
        AutomationStatus::Success => NoteStatus::Success,
        AutomationStatus::Skipped => NoteStatus::Skipped,
        AutomationStatus::Error => NoteStatus::Error,
    };
    let facts = &run.newest().facts;
    let details = NoteDetails {
        skip_reason: ended.skip.map(|(reason, _)| reason),
        issue_url: facts.issue.as_ref().map(|issue| issue.url.clone()),
        pr_url: facts.pull_request.as_ref().map(|request| request.url.clone()),
        ..NoteDetails::default()
    };
    let note = notices::note(&notice, NoteKind::Automation, Some(status), details, now).with_text(text);
    let cause = match (ended.skip, run.newest().attempt) {
        (Some((reason, detail)), 1) => skip::cause_of_skip(row.session_id, row.prompt_id, reason, detail),
        // Every later attempt has a notification of its own.
        (_, attempt) => Uuid::new_v5(&row.run_id, &attempt.to_be_bytes()),
    };
    notices::session_notice(Addressee::Session(row.key.clone(), row.session_id), notice, cause, note)
}

/// The record of an attempt for the audit.
fn item(run: &AdvancedRun, automation: &GithubAutomation, now: Timestamp) -> AutomationRunItem {
    let row = &run.row;
    AutomationRunItem {
        run_id: Uuid::now_v7(),
        automation_id: Some(row.run_id),
        installation_id: row.key.installation_id.clone(),
        workspace_id: row.key.workspace_id.clone(),
        session_id: row.session_id,
        prompt_id: Some(row.prompt_id),
        status: automation.status.as_str().to_owned(),
        mode: automation.mode.as_str().to_owned(),
        issue_number: automation.issue.as_ref().map(|issue| issue.number),
        issue_url: automation.issue.as_ref().map(|issue| issue.url.clone()),
        pull_request_number: automation.pull_request.as_ref().map(|request| request.number),
        pull_request_url: automation.pull_request.as_ref().map(|request| request.url.clone()),
        branch: automation.branch.clone(),
        commit_sha: automation.commit.as_ref().map(|commit| commit.sha.clone()),
        skip_reason: automation.skip_reason.map(|reason| reason.as_str().to_owned()),
        skip_detail: automation.skip_detail.map(|detail| detail.as_str().to_owned()),
        duration_ms: automation.diagnostics.duration_ms,
        attempts: automation.diagnostics.attempts,
        error_code: automation.diagnostics.error_code.clone(),
        logs: json!(automation.diagnostics.logs),
        created_at: now,
    }
}
