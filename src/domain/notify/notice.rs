//! The texts of all notifications and notes, in one place.
//!
//! A text is one or two sentences without markup: the event, and its consequence. Texts about rollbacks name the HTTP
//! fallback.

use super::notification::{Figures, MAX_BODY_CHARS, MAX_NOTE_CHARS, Notice, Severity, Trigger, session_suffix};
use crate::domain::{
    automation::{
        repository_pattern::RepositoryName,
        skip::{SkipDetail, SkipReason},
    },
    capacity::{AlertKind, AlertLevel, CapacityChange},
    ids::SessionId,
    redaction::Redacted,
    routing::{Flip, FlipTrigger, Route},
    text::{one_line, plain},
    turn::outcome::ErrorCode,
};

/// Characters of a repository's name in a notification, so that the reason after it is never cut; notes have the whole
/// name.
const REPOSITORY_CHARS: usize = 32;

fn notice(severity: Severity, trigger: Trigger, text: &str) -> Notice {
    Notice { severity, trigger, body: shown(text, MAX_BODY_CHARS), figures: None }
}

/// Redacts a text, makes it one line and cuts it. Redaction comes before the cut, since half a secret is not recognised;
/// and both before and after `one_line`, which can split a secret as well as join one.
fn shown(text: &str, max_chars: usize) -> Redacted {
    let line = one_line(Redacted::new(text).as_str());
    Redacted::new(&line).map(|line| plain(line, max_chars))
}

/// The notification about a flip.
pub(crate) fn of_flip(flip: &Flip) -> Notice {
    let text = match (flip.to, flip.trigger) {
        (Route::Http, FlipTrigger::AutoThreshold) => match &flip.figures {
            Some(figures) => format!(
                "ACP succeeded in only {:.1} % of {} turns; prompts use the HTTP fallback until ACP recovers.",
                figures.success_rate() * 100.0,
                figures.samples
            ),
            None => {
                "ACP failed again right after its restore; prompts use the HTTP fallback until ACP recovers.".into()
            }
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

/// The operators' notification about a rollback storm.
pub(crate) fn of_storm(flipped: usize, live: usize) -> Notice {
    let text = format!(
        "{flipped} of {live} workspaces switched to the HTTP fallback within 5 minutes: check the runtime, the network \
         and the agents' provider."
    );
    let figures = Figures::RollbackStorm { kind: AlertKind::Raised, rolled_back: flipped, in_use: Some(live) };
    Notice { figures: Some(figures), ..notice(Severity::Error, Trigger::SystemicRollback, &text) }
}

/// The operators' notification about the end of a rollback storm.
pub(crate) fn of_storm_end(most_flipped: usize) -> Notice {
    let text = format!(
        "The rollback storm is over; at its peak, {most_flipped} workspaces had switched to the HTTP fallback within 5 \
         minutes."
    );
    let figures = Figures::RollbackStorm { kind: AlertKind::Resolved, rolled_back: most_flipped, in_use: None };
    Notice { figures: Some(figures), ..notice(Severity::Info, Trigger::SystemicRollback, &text) }
}

/// The operators' notification about a capacity alert. `None` for the resolution of the critical level: that of the
/// warning follows at once and covers both.
pub(crate) fn of_capacity(change: &CapacityChange) -> Option<Notice> {
    let CapacityChange { taken, limit, .. } = change;
    let (severity, text) = match (change.kind, change.level) {
        (AlertKind::Raised, AlertLevel::Warning) => {
            (Severity::Warning, format!("Capacity nears its limit: {taken} of {limit} seats are taken."))
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
    let figures = Some(Figures::Capacity(*change));
    Some(Notice { figures, ..notice(severity, Trigger::Capacity, &text) })
}

/// The notification about a session that failed and is not restarted.
pub(crate) fn of_failed_session(session: SessionId, code: ErrorCode) -> Notice {
    let text = format!(
        "Session …{} failed too often and was stopped ({}). Load it to try again.",
        session_suffix(session),
        code.as_str()
    );
    notice(Severity::Error, Trigger::SessionFailed, &text)
}

/// The notification about a connection that broke during a turn and is being restored.
pub(crate) fn of_reconnecting() -> Notice {
    let text = "The connection to an agent was interrupted and is being restored; the running turn continues.";
    notice(Severity::Warning, Trigger::Reconnecting, text)
}

/// The notification about a failed handshake, after which the session alone uses the fallback.
pub(crate) fn of_failed_handshake(session: SessionId, code: ErrorCode) -> Notice {
    let text = format!(
        "The agent's handshake failed ({}); prompts of session …{} use the HTTP fallback for now.",
        code.as_str(),
        session_suffix(session)
    );
    notice(Severity::Error, Trigger::HandshakeFailed, &text)
}

/// The notification about skipped automation. `repository` is the session's, in any form; a malformed one is not shown.
pub(crate) fn of_skip(reason: SkipReason, detail: Option<SkipDetail>, repository: Option<&str>) -> Notice {
    let (why, _) = texts_of_skip(reason, detail);
    let text = skipped(why, repository, REPOSITORY_CHARS);
    notice(Severity::Warning, Trigger::AutomationSkipped, &text)
}

/// The notification about failed automation, with the text of [`FailedRun`](crate::domain::automation::texts::FailedRun).
pub(crate) fn of_failed_run(text: &str) -> Notice {
    notice(Severity::Error, Trigger::AutomationFailed, text)
}

/// The notification that a later attempt delivered the changes of a turn.
pub(crate) fn of_delivered_run(repository: Option<&str>, branch: &str, pull_request: Option<u64>) -> Notice {
    let name = repository.and_then(RepositoryName::parse).map_or_else(String::new, |name| format!(" for {name}"));
    let name = shown(&name, REPOSITORY_CHARS);
    let text = match pull_request {
        Some(number) => format!("GitHub automation{name} delivered kept changes: pull request {number}."),
        None => format!("GitHub automation{name} delivered kept changes to the branch {branch}."),
    };
    notice(Severity::Info, Trigger::AutomationDelivered, &text)
}

/// The transcript's note for [`of_skip`]: the same text followed by advice. 1 to [`MAX_NOTE_CHARS`] characters without
/// secrets, control characters and markup.
pub(crate) fn note_of_skip(reason: SkipReason, detail: Option<SkipDetail>, repository: Option<&str>) -> String {
    let (why, advice) = texts_of_skip(reason, detail);
    let stays = if detail == Some(SkipDetail::NoChanges) { "" } else { " The changes stay in the workspace." };
    let text = format!("{} {advice}{stays}", skipped(why, repository, usize::MAX));
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

/// The reason of a skip and advice; by the detail if there is one, else by the reason.
fn texts_of_skip(reason: SkipReason, detail: Option<SkipDetail>) -> (&'static str, &'static str) {
    match (detail, reason) {
        (Some(detail), _) => texts_of_detail(detail),
        (None, SkipReason::RepoBlocked) => texts_of_detail(SkipDetail::BlockedByPattern),
        (None, SkipReason::WorkspaceRollback) => texts_of_detail(SkipDetail::FallbackCannot),
        (None, SkipReason::MissingCredential) => (
            "no GitHub credential is available",
            "This version accepts no credential yet. API clients avoid this note with automation.mode none in the \
             prompt request.",
        ),
        (None, SkipReason::AutomationDisabled) => ("it is disabled", "An operator can enable it."),
        (None, SkipReason::RateLimited) => ("GitHub's rate limit is reached", "Prompt again in an hour."),
        (None, SkipReason::Other) => ("it was not possible", "See the diagnostics of the turn."),
    }
}

fn texts_of_detail(detail: SkipDetail) -> (&'static str, &'static str) {
    match detail {
        SkipDetail::EnvDisabled => (
            "it is disabled for the whole service",
            "An operator has set GITHUB_AUTOMATION_DISABLED and can remove it.",
        ),
        SkipDetail::ConfigDisabled => ("it is disabled in the configuration", "An operator can enable it there."),
        SkipDetail::GitopsOff => (
            "this session was opened without git",
            "For pull requests, open a session in mode development, and without enableGitOps false in an API request. \
             This note appears once per session.",
        ),
        SkipDetail::CallerSkip => (
            "the prompt disabled it",
            "For a pull request, prompt again without automation.mode none; the command line never sends it. This note \
             appears once per session.",
        ),
        SkipDetail::MissingRepository => {
            ("the session has no GitHub repository", "Open a session with a GitHub repository, such as owner/name.")
        }
        SkipDetail::NoChanges => (
            "the turn changed nothing",
            "No action is needed. If you expected changes, state in the prompt what to change.",
        ),
        SkipDetail::NothingStaged => {
            ("git ignores every changed file", "Check .gitignore and the files that the turn wrote.")
        }
        SkipDetail::BlockedByPattern => (
            "the repository is blocked",
            "A pattern of the tenant's settings or of the configuration matches it; ask an administrator.",
        ),
        SkipDetail::NoInstallation => (
            "the GitHub App is not installed for this tenant",
            "Install it on the repository, and have an administrator bind the installation to the tenant; or send a \
             githubToken with the prompt.",
        ),
        SkipDetail::TokenRefused => (
            "GitHub rejected the token",
            "Send a valid token that may write contents, issues and pull requests of the repository.",
        ),
        SkipDetail::PrimaryLimit => {
            ("GitHub's hourly quota is used up", "The quota resets within the hour; prompt again then.")
        }
        SkipDetail::SecondaryLimit => {
            ("GitHub's secondary rate limit is reached", "Prompt again in a few minutes, with fewer turns at a time.")
        }
        SkipDetail::FallbackCannot => {
            ("the HTTP fallback does not support it", "Prompt again once the workspace is back on ACP.")
        }
        _ => texts_of_refusal(detail),
    }
}

/// The texts of what GitHub, or a check before the push, refuses.
fn texts_of_refusal(detail: SkipDetail) -> (&'static str, &'static str) {
    match detail {
        SkipDetail::EmptyRepository => ("the repository is empty", "Push a first commit to its default branch."),
        SkipDetail::Archived => ("the repository is archived", "Its owner can unarchive it."),
        SkipDetail::Ruleset => (
            "a rule of the repository forbids the push",
            "The log of the run names the rule; change it, or the branch name in the tenant's settings.",
        ),
        SkipDetail::PushProtection => (
            "the change contains a secret",
            "The log of the run names path and line. Remove the secret, and replace it where it is valid.",
        ),
        SkipDetail::TooLarge => (
            "the change is too large for GitHub",
            "The log of the run names the files. Remove or ignore them, and prompt again.",
        ),
        SkipDetail::ProtectedPath => (
            "the change touches a protected path",
            "The log of the run names the paths. An administrator can permit them in the tenant's settings.",
        ),
        SkipDetail::WorkflowPermission => (
            "the credential may not change workflows",
            "Grant the permission workflows, and accept it in the settings of the installation.",
        ),
        SkipDetail::SigningRequired => {
            ("the repository demands signed commits", "An operator can configure a key for signatures.")
        }
        SkipDetail::Sso => (
            "the token is not authorised for single sign-on",
            "Authorise it for the organisation at GitHub, then retry the run.",
        ),
        SkipDetail::IpAllowList => (
            "the organisation does not permit this network address",
            "Its owner can add the address of the runtime to the IP allow list.",
        ),
        SkipDetail::Lfs => (
            "the change touches a file of Git LFS",
            "Change such files outside the session, and the others in a new turn.",
        ),
        SkipDetail::ClosedByPerson => (
            "a person closed the pull request of the session",
            "Reopen it, or open a new session for a new pull request.",
        ),
        SkipDetail::ForkReadOnly => (
            "the pull request is of a fork that takes no push",
            "Its author can allow edits by maintainers; a token of a maintainer is needed, too.",
        ),
        _ => ("it was not possible", "See the diagnostics of the turn."),
    }
}

#[cfg(test)]
pub(crate) mod tests;
