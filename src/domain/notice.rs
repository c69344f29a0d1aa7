//! Everything that people are told without having asked: each text in one place.
//!
//! A text is one or two sentences: what happened and what it means. It names the HTTP fallback where a workspace was
//! rolled back to it, and holds no markup.

use super::{
    capacity::{AlertKind, AlertLevel, CapacityChange},
    flip_storm::StormEnded,
    ids::SessionId,
    outcome::ErrorCode,
    redaction::Redacted,
    routing::{Flip, FlipTrigger, Route},
    text::plain,
    toast::{MAX_BODY_CHARS, Notice, Severity, Trigger, session_suffix},
};

fn notice(severity: Severity, trigger: Trigger, text: &str) -> Notice {
    // Redacted first: a secret that was cut in the middle would not be known as one.
    Notice { severity, trigger, body: Redacted::new(text).map(|text| plain(text, MAX_BODY_CHARS)) }
}

/// A workspace's route was flipped.
pub fn of_flip(flip: &Flip) -> Notice {
    let text = match (flip.to, flip.trigger) {
        (Route::Http, FlipTrigger::AutoThreshold) => match &flip.figures {
            Some(figures) => format!(
                "ACP succeeded in only {:.1} % of {} turns; prompts go over the HTTP fallback until it is well again.",
                figures.success_rate() * 100.0,
                figures.samples
            ),
            None => "ACP failed again right after it was restored; prompts go over the HTTP fallback for now.".into(),
        },
        (Route::Http, FlipTrigger::ManualUser) => "A user switched this workspace to the HTTP fallback.".into(),
        (Route::Http, FlipTrigger::Migration) => "This workspace now works over HTTP.".into(),
        (Route::Http, _) => "An operator switched this workspace to the HTTP fallback.".into(),
        (Route::Acp, FlipTrigger::Recovery) => "ACP is well again; prompts go over it as before.".into(),
        (Route::Acp, FlipTrigger::Migration) => "This workspace now works over ACP.".into(),
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
pub fn of_storm(flipped: usize, live: usize) -> Notice {
    let text = format!(
        "{flipped} of {live} workspaces fell back to the HTTP fallback within 5 minutes: look at the runtime, the \
         network and the agents' provider."
    );
    notice(Severity::Error, Trigger::SystemicRollback, &text)
}

/// They no longer are; for operators.
pub fn of_storm_end(ended: &StormEnded) -> Notice {
    let text = format!("Workspaces no longer fall back in numbers; {} had at the worst.", ended.most_flipped);
    notice(Severity::Info, Trigger::SystemicRollback, &text)
}

/// Seats are running out, or are free again; for operators. Nothing where another change follows at once: an alert is
/// resolved as a whole.
pub fn of_capacity(change: &CapacityChange) -> Option<Notice> {
    let CapacityChange { taken, limit, .. } = change;
    let (severity, text) = match (change.kind, change.level) {
        (AlertKind::Raised, AlertLevel::Warning) => {
            (Severity::Warning, format!("Capacity nears its limit: {taken} of {limit} seats are taken."))
        }
        (AlertKind::Raised, AlertLevel::Critical) => (
            Severity::Error,
            format!("Capacity is nearly used up: {taken} of {limit} seats are taken. Sessions beyond are refused."),
        ),
        (AlertKind::Resolved, AlertLevel::Critical) => return None,
        (AlertKind::Resolved, AlertLevel::Warning) => {
            (Severity::Info, format!("Capacity is fine again: {taken} of {limit} seats are taken."))
        }
    };
    Some(notice(severity, Trigger::Capacity, &text))
}

/// A session failed for good.
pub fn of_failed_session(session: SessionId, code: ErrorCode) -> Notice {
    let text = format!(
        "Session …{} failed too often and was stopped ({}). Load it to try again.",
        session_suffix(session),
        code.as_str()
    );
    notice(Severity::Error, Trigger::SessionFailed, &text)
}

/// The way to an agent of a workspace is broken and is being made again, while a turn runs.
pub fn of_reconnecting() -> Notice {
    let text = "The connection to an agent was interrupted and is being restored; the running turn goes on.";
    notice(Severity::Warning, Trigger::Reconnecting, text)
}

/// A session's handshake failed, so that it goes over the fallback by itself.
pub fn of_failed_handshake(session: SessionId, code: ErrorCode) -> Notice {
    let text = format!(
        "The agent's handshake failed ({}); prompts of session …{} go over the HTTP fallback for now.",
        code.as_str(),
        session_suffix(session)
    );
    notice(Severity::Error, Trigger::HandshakeFailed, &text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        routing::Wish,
        success_window::{WindowFigures, WindowState},
    };

    #[test]
    fn every_text_fits_and_a_rollback_names_the_fallback() {
        for to in Route::ALL {
            for trigger in FlipTrigger::ALL {
                for figures in [None, Some((u64::MAX, u64::MAX / 3))] {
                    let figures = figures.map(|(samples, failures)| WindowFigures {
                        state: WindowState::Breached,
                        samples,
                        failures,
                        length_seconds: 3600,
                    });
                    let from = if to == Route::Acp { Route::Http } else { Route::Acp };
                    let wish = Wish::of_system("x");
                    let flip = Flip { from, to, epoch: 1, trigger, wish, figures, attempt: 0 };
                    let told = of_flip(&flip);
                    let text = told.body.as_str();
                    assert!((1..=MAX_BODY_CHARS).contains(&text.chars().count()), "{text}");
                    assert_eq!(text.contains("HTTP fallback"), flip.is_rollback(), "{text}");
                    assert_eq!(told.severity == Severity::Error, flip.is_rollback());
                }
            }
        }
    }
}
