//! Everything that people are told without having asked: each text in one place.
//!
//! A text is one or two sentences: what happened and what it means. It names the HTTP fallback where a workspace was
//! rolled back to it, and holds no markup.

use super::toast::{MAX_BODY_CHARS, MAX_NOTE_CHARS, Notice, Severity, Trigger, session_suffix};
use crate::domain::{
    automation::{
        repository_pattern::RepositoryName,
        skip::{SkipDetail, SkipReason},
    },
    capacity::{AlertKind, AlertLevel, CapacityChange},
    ids::SessionId,
    redaction::Redacted,
    routing::{Flip, FlipTrigger, Route, storm::StormEnded},
    text::{one_line, plain},
    turn::outcome::ErrorCode,
};

/// Characters of a repository's name in a notification, so that the reason behind it is never cut; a note has it whole.
const REPOSITORY_CHARS: usize = 32;

fn notice(severity: Severity, trigger: Trigger, text: &str) -> Notice {
    Notice { severity, trigger, body: shown(text, MAX_BODY_CHARS) }
}

/// A text as people get it. Redacted before it is cut: a secret that was cut in the middle would not be known as one.
/// And before and after it was made one line, which can both part a secret and put one together.
fn shown(text: &str, max_chars: usize) -> Redacted {
    let line = one_line(Redacted::new(text).as_str());
    Redacted::new(&line).map(|line| plain(line, max_chars))
}

/// A workspace's route was flipped.
pub(crate) fn of_flip(flip: &Flip) -> Notice {
    let text = match (flip.to, flip.trigger) {
        (Route::Http, FlipTrigger::AutoThreshold) => match &flip.figures {
            Some(figures) => format!(
                "ACP succeeded in only {:.1} % of {} turns; prompts use the HTTP fallback until ACP recovers.",
                figures.success_rate() * 100.0,
                figures.samples
            ),
            None => "ACP failed again right after it was restored; prompts use the HTTP fallback for now.".into(),
        },
        (Route::Http, FlipTrigger::ManualUser) => "A user switched this workspace to the HTTP fallback.".into(),
        (Route::Http, FlipTrigger::Migration) => "This workspace now uses HTTP.".into(),
        (Route::Http, _) => "An operator switched this workspace to the HTTP fallback.".into(),
        (Route::Acp, FlipTrigger::Recovery) => "ACP has recovered; prompts use ACP again.".into(),
        (Route::Acp, FlipTrigger::Migration) => "This workspace now uses ACP.".into(),
        (Route::Acp, FlipTrigger::ManualUser) => "A user switched this workspace back to ACP.".into(),
        (Route::Acp, _) => "An operator switched this workspace back to ACP.".into(),
    };
    let severity = if flip.is_rollback() { Severity::Error } else { Severity::Info };
    let trigger = match flip.trigger {
        FlipTrigger::AutoThreshold => Trigger::AutoThreshold,
        FlipTrigger::Recovery => Trigger::Recovered,
        FlipTrigger::ManualUser => Trigger::ManualUser,
        FlipTrigger::ManualOperator | FlipTrigger::Pin => Trigger::ManualOperator,
        FlipTrigger::Migration => Trigger::Migrated,
    };
    notice(severity, trigger, &text)
}

/// Many workspaces were rolled back at once; for operators.
pub(crate) fn of_storm(flipped: usize, live: usize) -> Notice {
    let text = format!(
        "{flipped} of {live} workspaces switched to the HTTP fallback within 5 minutes: check the runtime, the \
         network and the agents' provider."
    );
    notice(Severity::Error, Trigger::SystemicRollback, &text)
}

/// They no longer are; for operators.
pub(crate) fn of_storm_end(ended: &StormEnded) -> Notice {
    let text =
        format!("Mass rollback is over; at its peak {} workspaces were on the HTTP fallback.", ended.most_flipped);
    notice(Severity::Info, Trigger::SystemicRollback, &text)
}

/// Seats are running out, or are free again; for operators. Nothing where another change follows at once: an alert is
/// resolved as a whole.
pub(crate) fn of_capacity(change: &CapacityChange) -> Option<Notice> {
    let CapacityChange { taken, limit, .. } = change;
    let (severity, text) = match (change.kind, change.level) {
        (AlertKind::Raised, AlertLevel::Warning) => {
            (Severity::Warning, format!("Capacity is near its limit: {taken} of {limit} seats are taken."))
        }
        (AlertKind::Raised, AlertLevel::Critical) => (
            Severity::Error,
            format!(
                "Capacity is nearly exhausted: {taken} of {limit} seats are taken. Sessions beyond the limit are refused."
            ),
        ),
        (AlertKind::Resolved, AlertLevel::Critical) => return None,
        (AlertKind::Resolved, AlertLevel::Warning) => {
            (Severity::Info, format!("Capacity is back to normal: {taken} of {limit} seats are taken."))
        }
    };
    Some(notice(severity, Trigger::Capacity, &text))
}

/// A session failed for good.
pub(crate) fn of_failed_session(session: SessionId, code: ErrorCode) -> Notice {
    let text = format!(
        "Session …{} failed too often and was stopped ({}). Load it to try again.",
        session_suffix(session),
        code.as_str()
    );
    notice(Severity::Error, Trigger::SessionFailed, &text)
}

/// The connection to an agent of a workspace is broken and is being made again, while a turn runs.
pub(crate) fn of_reconnecting() -> Notice {
    let text = "The connection to an agent was interrupted and is being restored; the running turn continues.";
    notice(Severity::Warning, Trigger::Reconnecting, text)
}

/// A session's handshake failed, so that it goes over the fallback by itself.
pub(crate) fn of_failed_handshake(session: SessionId, code: ErrorCode) -> Notice {
    let text = format!(
        "The agent's handshake failed ({}); prompts of session …{} use the HTTP fallback for now.",
        code.as_str(),
        session_suffix(session)
    );
    notice(Severity::Error, Trigger::HandshakeFailed, &text)
}

/// Automation was skipped. `repository` is the session's, in any form; one that cannot be read is not shown.
pub(crate) fn of_skip(reason: SkipReason, detail: Option<SkipDetail>, repository: Option<&str>) -> Notice {
    let (why, _) = texts_of_skip(reason, detail);
    let text = skipped(why, repository, REPOSITORY_CHARS);
    notice(Severity::Warning, Trigger::AutomationSkipped, &text)
}

/// What the transcript says beside [`of_skip`]: the same, and what to do about it. 1 to [`MAX_NOTE_CHARS`] characters,
/// without secrets, control characters and markup.
pub(crate) fn note_of_skip(reason: SkipReason, detail: Option<SkipDetail>, repository: Option<&str>) -> String {
    let (why, what_to_do) = texts_of_skip(reason, detail);
    let stays = if detail == Some(SkipDetail::NoChanges) { "" } else { " The changes stay in the workspace." };
    let text = format!("{} {what_to_do}{stays}", skipped(why, repository, usize::MAX));
    shown(&text, MAX_NOTE_CHARS).into_string()
}

fn skipped(why: &str, repository: Option<&str>, max_chars: usize) -> String {
    match repository.and_then(RepositoryName::parse) {
        Some(name) => {
            format!("GitHub automation for {} was skipped: {why}.", shown(&name.to_string(), max_chars).as_str())
        }
        None => format!("GitHub automation was skipped: {why}."),
    }
}

/// Why automation was skipped, and what to do about it. The detail says it where there is one.
fn texts_of_skip(reason: SkipReason, detail: Option<SkipDetail>) -> (&'static str, &'static str) {
    match (detail, reason) {
        (Some(detail), _) => texts_of_detail(detail),
        (None, SkipReason::RepoBlocked) => texts_of_detail(SkipDetail::BlockedByPattern),
        (None, SkipReason::WorkspaceRollback) => texts_of_detail(SkipDetail::FallbackCannot),
        (None, SkipReason::MissingCredential) => (
            "no GitHub credential is available",
            "This version accepts no credential yet; send automation.mode none with the prompt to stop these notices.",
        ),
        (None, SkipReason::AutomationDisabled) => ("it is disabled", "An operator can enable it."),
        (None, SkipReason::RateLimited) => ("GitHub limits the request rate", "Send the prompt again in an hour."),
        (None, SkipReason::Other) => ("it was not possible", "The diagnostics of the turn have the details."),
    }
}

fn texts_of_detail(detail: SkipDetail) -> (&'static str, &'static str) {
    match detail {
        SkipDetail::EnvDisabled => (
            "it is disabled for the whole service",
            "An operator has set GITHUB_AUTOMATION_DISABLED and can unset it.",
        ),
        SkipDetail::ConfigDisabled => ("it is disabled in the configuration", "An operator can enable it there."),
        SkipDetail::GitopsOff => (
            "this session was opened without git",
            "For pull requests, open a session of mode development with enableGitOps. This notice appears once per session.",
        ),
        SkipDetail::CallerSkip => (
            "the prompt asked for none",
            "For a pull request, send automation.mode github with the prompt. This notice appears once per session.",
        ),
        SkipDetail::MissingRepository => (
            "the session has no repository on GitHub",
            "Open a session with a GitHub repository, such as owner/name.",
        ),
        SkipDetail::NoChanges => {
            ("the turn changed nothing", "No action is needed. If you expected changes, describe them in the prompt.")
        }
        SkipDetail::NothingStaged => {
            ("git ignores every changed file", "Check .gitignore and which files the turn wrote.")
        }
        SkipDetail::BlockedByPattern => (
            "the repository is blocked",
            "A pattern in the tenant's blockedRepositories or in the configuration matches it; ask its administrator.",
        ),
        SkipDetail::NoInstallation => (
            "the GitHub App is not installed for it",
            "Install it for the repository, or send a githubToken with the prompt.",
        ),
        SkipDetail::TokenRefused => (
            "GitHub refused the token",
            "Send a valid token that may write contents, issues and pull requests of the repository.",
        ),
        SkipDetail::PrimaryLimit => {
            ("GitHub's hourly quota is used up", "It resets within the hour; send the prompt again then.")
        }
        SkipDetail::SecondaryLimit => (
            "GitHub's secondary rate limit was reached",
            "Send the prompt again in a few minutes, with fewer turns at a time.",
        ),
        SkipDetail::FallbackCannot => {
            ("the HTTP fallback cannot automate here", "Send the prompt again once the workspace is back on ACP.")
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
