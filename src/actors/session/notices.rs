//! Notifications to a session's user, each with its transcript note; both are written in the transaction of their
//! cause.

use serde_json::json;
use uuid::Uuid;

use crate::{
    actors::handles::session::SessionSpec,
    contract::{
        audit::AutomationRunItem,
        automation::{AutomationDiagnostics, AutomationMembers, AutomationMode, AutomationStatus, GithubAutomation},
        notifications::notification::{NoteDetails, NoteKind, NoteStatus, TranscriptNote},
    },
    domain::{
        automation::skip::{self, SkipDetail, SkipReason, WantedMode},
        clock::Timestamp,
        ids::PromptId,
        notify::{
            notice,
            notification::{Addressee, NewNotification, Notice, SessionNotice},
        },
        redaction::RedactedJson,
        turn::{outcome::ErrorCode, transcript::TranscriptEntry},
    },
};

/// Notification that a session failed permanently.
pub(crate) fn of_failed_session(spec: &SessionSpec, code: ErrorCode, now: Timestamp) -> SessionNotice {
    let notice = notice::of_failed_session(spec.session_id, code);
    let note = note(&notice, NoteKind::Info, Some(NoteStatus::Error), NoteDetails::default(), now);
    session_notice(to_session(spec), notice, Uuid::now_v7(), note)
}

/// Notification that a session uses the fallback because its handshake failed; `handshake` is the id of that record.
pub(crate) fn of_failed_handshake(
    spec: &SessionSpec,
    code: ErrorCode,
    handshake: Uuid,
    now: Timestamp,
) -> SessionNotice {
    let notice = notice::of_failed_handshake(spec.session_id, code);
    let note = note(&notice, NoteKind::Rollback, None, NoteDetails::default(), now);
    session_notice(to_session(spec), notice, handshake, note)
}

/// Notification that the agent connection of a running turn broke and is being re-established. Breaks in quick
/// succession are reported once.
pub(crate) fn of_reconnecting(spec: &SessionSpec, now: Timestamp) -> SessionNotice {
    let notice = notice::of_reconnecting();
    let note = note(&notice, NoteKind::Info, None, NoteDetails::default(), now);
    session_notice(Addressee::Workspace(spec.workspace.clone()), notice, Uuid::now_v7(), note)
}

fn to_session(spec: &SessionSpec) -> Addressee {
    Addressee::Session(spec.workspace.clone(), spec.session_id)
}

/// Combines a notification and its note; notifications are deduplicated by `cause`.
pub(crate) fn session_notice(
    to: Addressee,
    notice: Notice,
    cause: impl std::fmt::Display,
    note: TranscriptEntry,
) -> SessionNotice {
    SessionNotice { notification: NewNotification::new(Uuid::now_v7(), to, notice, cause), note }
}

/// Builds the transcript note that accompanies a notification.
pub(crate) fn note(
    notice: &Notice,
    kind: NoteKind,
    status: Option<NoteStatus>,
    details: NoteDetails,
    now: Timestamp,
) -> TranscriptEntry {
    let summary = notice.body.as_str();
    let event_type = match kind {
        NoteKind::Automation => "automation",
        NoteKind::Notification => "toast",
        NoteKind::Rollback => "rollback",
        NoteKind::Info => "info",
    };
    let note =
        TranscriptNote { timestamp: now.to_string(), event_type: kind, summary: summary.to_owned(), status, details };
    TranscriptEntry::with_payload(event_type, summary, RedactedJson::of(&note))
}

/// A skipped automation: its part of the result, its audit row and its notification.
pub(crate) struct SkipRecord {
    pub why: (SkipReason, Option<SkipDetail>),
    /// Member `githubAutomation` of the turn's result.
    pub automation: GithubAutomation,
    /// Row of the run for the audit.
    pub run: AutomationRunItem,
    /// Notification to the session's user.
    pub session_notice: SessionNotice,
}

/// Builds the record of a skip. `None` if its parts violate the contract, which is a bug and is logged.
pub(crate) fn of(
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
        checks: None,
        skip_reason: Some(reason),
        skip_detail: detail,
        toast_message: Some(notice.body.as_str().to_owned()),
        transcript_note: Some(long.clone()),
        rollback: None,
        diagnostics: AutomationDiagnostics::default(),
        error: None,
        rescue: None,
        retry_at: None,
        dry_run: false,
    });
    let automation = automation
        .map_err(|cause| tracing::error!(marker = "[GITHUB-AUTO]", %cause, "skip record could not be built"))
        .ok()?;
    let details = NoteDetails { skip_reason: Some(reason), ..NoteDetails::default() };
    let note = note(&notice, NoteKind::Automation, Some(NoteStatus::Skipped), details, now).with_text(&long);
    let cause = skip::cause_of_skip(spec.session_id, prompt_id, reason, detail);
    let to = Addressee::Session(spec.workspace.clone(), spec.session_id);
    let run = AutomationRunItem {
        run_id: Uuid::now_v7(),
        automation_id: None,
        installation_id: spec.workspace.installation_id.clone(),
        workspace_id: spec.workspace.workspace_id.clone(),
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
        duration_ms: 0,
        attempts: 0,
        error_code: None,
        logs: json!([]),
        created_at: now,
    };
    Some(SkipRecord {
        why: (reason, detail),
        automation,
        run,
        session_notice: session_notice(to, notice, cause, note),
    })
}
