//! Explains which route carries a session's turns: a timeline of events, and one sentence for the current state.

use super::{
    clock::Timestamp,
    routing::{FlipTrigger, Initiator, Pin, Rollback, Route, Routing, Stage, initiator::named},
    session::lifecycle::SessionState,
    words::words,
};

words! {
    /// Kind of a timeline entry. Entries of the same microsecond are sorted in the order of this list.
    #[derive(PartialOrd, Ord)]
    EntryKind {
        /// The session was opened.
        Session = "session",
        /// A handshake ended.
        Connection = "connection",
        /// A connection changed.
        Transition = "transition",
        /// A turn ended, or was accepted and has not ended; the entry includes its outcome.
        Turn = "turn",
        /// The workspace's route was flipped.
        Flip = "flip",
        /// A note in the transcript.
        Note = "note",
        /// An automation run ended.
        Automation = "automation",
        /// A notification was appended.
        Notification = "notification",
    }
}

/// An entry of a timeline.
pub(crate) trait Placed {
    /// The sort key: time first, then kind.
    fn place(&self) -> (Timestamp, EntryKind);
}

/// Sorts entries oldest first and keeps the newest `most`. The flag is true if older entries were dropped.
pub(crate) fn timeline<T: Placed>(mut entries: Vec<T>, most: usize) -> (Vec<T>, bool) {
    entries.sort_by_key(Placed::place);
    let excluded = entries.len().saturating_sub(most);
    entries.drain(..excluded);
    (entries, excluded > 0)
}

/// The current state of a session and its workspace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CurrentState<'a> {
    pub state: SessionState,
    /// The route of the agent connection, or of the last one if there is none now.
    pub carrier: Route,
    pub routing: &'a Routing,
    /// The share of canary turns in basis points; 0 unless the workspace is recovering.
    pub canary_share_bp: u32,
    /// The reason of the latest handshake's failure; `None` if that handshake succeeded.
    pub failed_handshake: Option<&'a str>,
}

/// States in one sentence what carries a session's turns, and why.
pub(crate) fn answer(current: &CurrentState<'_>) -> String {
    if current.state == SessionState::Closed {
        return "The session is closed; nothing carries its turns.".to_owned();
    }
    let routing = current.routing;
    match routing.route() {
        Route::Http => match (routing.pin(), routing.rollback()) {
            (Some(pin), rollback) => {
                format!("The HTTP fallback carries this session's turns: {}.", pinned(pin, rollback))
            }
            (None, Some(rollback)) => {
                let Rollback { reason, since, .. } = rollback;
                format!(
                    "The HTTP fallback has carried this session's turns since {since}: {}; {}.",
                    reason.trim_end_matches('.'),
                    recovery(current)
                )
            }
            (None, None) => format!("HTTP carries this session's turns: {}.", default_of(routing)),
        },
        Route::Acp if current.carrier == Route::Http => match current.failed_handshake {
            Some(why) => format!(
                "The HTTP fallback carried this session last although the workspace's route is ACP: the handshake with \
                 its agent failed ({}); the next turn tries ACP.",
                why.trim_end_matches('.')
            ),
            None => {
                "The HTTP fallback carried this session last; the workspace's route is ACP again, and ACP carries \
                     the next turn."
                    .to_owned()
            }
        },
        Route::Acp => match routing.pin() {
            Some(pin) => format!("ACP carries this session's turns: {}.", pinned(pin, None)),
            None => {
                format!("ACP carries this session's turns: {}, and nothing overrides it.", default_of(routing))
            }
        },
    }
}

fn pinned(pin: &Pin, rollback: Option<&Rollback>) -> String {
    let who = match pin.attribution.initiator {
        Initiator::System => "LumiLink",
        Initiator::Operator => "an operator",
        Initiator::User => "a user",
    };
    let by_hand = [FlipTrigger::ManualOperator, FlipTrigger::ManualUser];
    let did = match rollback {
        Some(rollback) if by_hand.contains(&rollback.trigger) => "rolled the workspace back to it",
        _ => "pinned the workspace to it",
    };
    format!(
        "{who} ({}) {did} at {}: {}",
        named(&pin.attribution.actor, pin.attribution.actor_note.as_deref()),
        pin.since,
        pin.attribution.reason.trim_end_matches('.')
    )
}

fn default_of(routing: &Routing) -> &'static str {
    match routing.default_route() {
        Route::Acp => "it is the workspace's default protocol",
        Route::Http => "it is the workspace's default protocol, set by an administrator or the tenant",
    }
}

fn recovery(current: &CurrentState<'_>) -> String {
    let routing = current.routing;
    match (routing.stage(), routing.next_probe_at()) {
        (Stage::Open, Some(at)) => format!("the next ACP probe is due at {at}"),
        (Stage::HalfOpen, _) => "ACP is being probed".to_owned(),
        (Stage::Recovering, _) => {
            format!("{} % of turns try ACP", f64::from(current.canary_share_bp) / 100.0)
        }
        (Stage::Open | Stage::Closed, _) => "the workspace uses it until a restore".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::routing::{
        Attribution, RecoveryRules,
        success_window::{Sample, WindowFigures, WindowState},
    };
    use super::*;

    impl Placed for (i64, EntryKind, &str) {
        fn place(&self) -> (Timestamp, EntryKind) {
            (Timestamp(self.0), self.1)
        }
    }

    #[test]
    fn timeline_is_sorted_and_drops_the_oldest_entries() {
        use EntryKind::{Flip, Note, Turn};
        let entries = || vec![(3, Note, "n"), (1, Turn, "a"), (3, Flip, "f"), (2, Turn, "b"), (2, Turn, "c")];
        let (all, cut) = timeline(entries(), 5);
        assert_eq!(all.iter().map(|entry| entry.2).collect::<String>(), "abcfn");
        assert!(!cut);
        let (newest, cut) = timeline(entries(), 2);
        assert_eq!((newest.iter().map(|entry| entry.2).collect::<String>(), cut), ("fn".into(), true));
    }

    fn rules() -> RecoveryRules {
        RecoveryRules {
            cooldown: Duration::from_secs(60),
            max_cooldown: Duration::from_secs(60),
            jitter_bp: 0,
            probe_timeout: Duration::from_secs(1),
            canary_steps_bp: vec![2500],
            close_after_successes: 1,
            reopen_failures: 1,
            reopen_within: 1,
        }
    }

    fn answer_for(routing: &Routing, carrier: Route, failed: Option<&str>) -> String {
        let canary_share_bp = routing.canary_share_bp(&rules());
        let state = SessionState::Idle;
        answer(&CurrentState { state, carrier, routing, canary_share_bp, failed_handshake: failed })
    }

    fn attribution(initiator: Initiator) -> Attribution {
        Attribution { initiator, actor: "alice".into(), actor_note: None, reason: "a drill.".into() }
    }

    #[test]
    fn answer_names_the_carrier_and_the_reason() {
        let mut routing = Routing::new(Route::Acp);
        let fine = answer_for(&routing, Route::Acp, None);
        assert!(fine.starts_with("ACP carries") && fine.contains("default protocol"), "{fine}");
        let failed = answer_for(&routing, Route::Http, Some("no version in common"));
        assert!(
            failed.starts_with("The HTTP fallback carried") && failed.contains("no version in common"),
            "{failed}"
        );
        let figures = WindowFigures { state: WindowState::Breached, samples: 20, failures: 1, length_seconds: 3600 };
        routing.on_breach(figures, Timestamp(0), 0.5, &rules()).unwrap();
        let rolled_back = answer_for(&routing, Route::Http, None);
        assert!(
            rolled_back.contains("1 of 20 outcomes failed") && rolled_back.contains("probe is due at 1970"),
            "{rolled_back}"
        );
        let probe = routing.on_tick(Timestamp(60_000_000), 0.5, &rules()).unwrap();
        assert!(answer_for(&routing, Route::Http, None).contains("is being probed"));
        routing.on_probe(probe, Sample::Success, Timestamp(60_000_001), 0.5, &rules());
        assert!(answer_for(&routing, Route::Http, None).contains("25 % of turns try ACP"));
        routing.restore(attribution(Initiator::Operator), Timestamp(1));
        let restored = answer_for(&routing, Route::Http, None);
        assert!(restored.contains("carries the next turn"), "{restored}");
        routing.roll_back(attribution(Initiator::User), Timestamp(1));
        let rolled = answer_for(&routing, Route::Http, None);
        assert!(
            rolled.contains("a user (alice) rolled the workspace back to it") && rolled.ends_with("a drill."),
            "{rolled}"
        );
        routing.set_pin(Route::Acp, attribution(Initiator::Operator), Timestamp(2));
        let pinned = answer_for(&routing, Route::Acp, None);
        assert!(pinned.contains("an operator (alice) pinned the workspace to it"), "{pinned}");
        let by_default = answer_for(&Routing::new(Route::Http), Route::Http, None);
        assert!(
            by_default.starts_with("HTTP carries this session's turns: it is the workspace's default"),
            "{by_default}"
        );
    }

    #[test]
    fn answer_for_a_closed_session_says_that_it_is_closed() {
        let routing = Routing::new(Route::Acp);
        let current = CurrentState {
            state: SessionState::Closed,
            carrier: Route::Acp,
            routing: &routing,
            canary_share_bp: 0,
            failed_handshake: None,
        };
        assert!(answer(&current).contains("closed"));
    }
}
