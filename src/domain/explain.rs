//! Why a session's turns go the way they go: one timeline, and one sentence.

use super::{
    clock::Timestamp,
    routing::{FlipTrigger, Initiator, Pin, Rollback, Route, Routing, Stage},
    session::lifecycle::SessionState,
    words::words,
};

words! {
    /// What an entry of a timeline is about. Of the same microsecond, what comes first here comes first.
    #[derive(PartialOrd, Ord)]
    EntryKind {
        /// The session was opened.
        Session = "session",
        /// A handshake ended.
        Connection = "connection",
        /// A connection changed.
        Transition = "transition",
        /// A turn was accepted; how it ended stands with it.
        Turn = "turn",
        /// The workspace's route was flipped.
        Flip = "flip",
        /// A note in the transcript.
        Note = "note",
        /// An automation run ended.
        Automation = "automation",
        /// Somebody was told something.
        Notification = "notification",
    }
}

/// Something that has a place in a timeline.
pub(crate) trait Placed {
    /// When, and what it is about.
    fn place(&self) -> (Timestamp, EntryKind);
}

/// Puts entries in order, oldest first, and keeps the newest `most`. Says whether some were skipped.
pub(crate) fn timeline<T: Placed>(mut entries: Vec<T>, most: usize) -> (Vec<T>, bool) {
    entries.sort_by_key(Placed::place);
    let left_out = entries.len().saturating_sub(most);
    entries.drain(..left_out);
    (entries, left_out > 0)
}

/// What is known of a session and its workspace now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing<'a> {
    pub state: SessionState,
    /// What carries its line to an agent now, or carried it last.
    pub carrier: Route,
    pub routing: &'a Routing,
    /// The share of turns that go over ACP while it is tried, in basis points.
    pub canary_share_bp: u32,
    /// Why its last handshake failed, where that was the last one.
    pub failed_handshake: Option<&'a str>,
}

/// What carries a session's turns, and why, in a sentence.
pub(crate) fn answer(standing: &Standing<'_>) -> String {
    if standing.state == SessionState::Closed {
        return "Nothing carries it any more: the session is closed.".to_owned();
    }
    let routing = standing.routing;
    match routing.route() {
        Route::Http => match (routing.pin(), routing.rollback()) {
            (Some(pin), rollback) => format!("HTTP carries it: {}.", pinned(pin, rollback)),
            (None, Some(rollback)) => {
                let Rollback { reason, since, .. } = rollback;
                format!("HTTP carries it since {since}: {}; {}.", reason.trim_end_matches('.'), recovery_of(standing))
            }
            (None, None) => format!("HTTP carries it: {}.", default_of(routing)),
        },
        Route::Acp if standing.carrier == Route::Http => match standing.failed_handshake {
            Some(why) => format!(
                "HTTP carried it last although the workspace's route is ACP: the handshake with its agent failed ({}); \
                 the next turn tries ACP.",
                why.trim_end_matches('.')
            ),
            None => {
                "HTTP carried it last; the workspace's route is ACP again, which carries the next turn.".to_owned()
            }
        },
        Route::Acp => match routing.pin() {
            Some(pin) => format!("ACP carries it: {}.", pinned(pin, None)),
            None => format!("ACP carries it: {}, and nothing speaks against it.", default_of(routing)),
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
        pin.attribution.actor,
        pin.since,
        pin.attribution.reason.trim_end_matches('.')
    )
}

fn default_of(routing: &Routing) -> &'static str {
    match routing.default_route() {
        Route::Acp => "it is the workspace's default protocol",
        Route::Http => "it is the workspace's default protocol, as an administrator or its tenant wants it",
    }
}

fn recovery_of(standing: &Standing<'_>) -> String {
    let routing = standing.routing;
    match (routing.stage(), routing.next_probe_at()) {
        (Stage::Open, Some(at)) => format!("ACP is probed next at {at}"),
        (Stage::HalfOpen, _) => "ACP is being probed".to_owned(),
        (Stage::Recovering, _) => {
            format!("{} % of the turns try ACP", f64::from(standing.canary_share_bp) / 100.0)
        }
        (Stage::Open | Stage::Closed, _) => "it stays so until it is restored".to_owned(),
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
    fn entries_are_ordered_and_the_oldest_are_dropped() {
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

    fn said(routing: &Routing, carrier: Route, failed: Option<&str>) -> String {
        let canary_share_bp = routing.canary_share_bp(&rules());
        let state = SessionState::Idle;
        answer(&Standing { state, carrier, routing, canary_share_bp, failed_handshake: failed })
    }

    fn attribution(initiator: Initiator) -> Attribution {
        Attribution { initiator, actor: "alice".into(), reason: "a drill.".into() }
    }

    #[test]
    fn the_sentence_names_what_carries_it_and_why() {
        let mut routing = Routing::new(Route::Acp);
        let fine = said(&routing, Route::Acp, None);
        assert!(fine.starts_with("ACP carries it") && fine.contains("default protocol"), "{fine}");
        let failed = said(&routing, Route::Http, Some("no version in common"));
        assert!(failed.starts_with("HTTP carried it last") && failed.contains("no version in common"), "{failed}");
        let figures = WindowFigures { state: WindowState::Breached, samples: 20, failures: 1, length_seconds: 3600 };
        routing.on_breach(figures, Timestamp(0), 0.5, &rules()).unwrap();
        let fallen = said(&routing, Route::Http, None);
        assert!(fallen.contains("1 of 20 outcomes failed") && fallen.contains("probed next at 1970"), "{fallen}");
        let probe = routing.on_tick(Timestamp(60_000_000), 0.5, &rules()).unwrap();
        assert!(said(&routing, Route::Http, None).contains("is being probed"));
        routing.on_probe(probe, Sample::Success, Timestamp(60_000_001), 0.5, &rules());
        assert!(said(&routing, Route::Http, None).contains("25 % of the turns try ACP"));
        routing.restore(attribution(Initiator::Operator), Timestamp(1));
        let restored = said(&routing, Route::Http, None);
        assert!(restored.contains("carries the next turn"), "{restored}");
        routing.roll_back(attribution(Initiator::User), Timestamp(1));
        let rolled = said(&routing, Route::Http, None);
        assert!(
            rolled.contains("a user (alice) rolled the workspace back to it") && rolled.ends_with("a drill."),
            "{rolled}"
        );
        routing.set_pin(Route::Acp, attribution(Initiator::Operator), Timestamp(2));
        let pinned = said(&routing, Route::Acp, None);
        assert!(pinned.contains("an operator (alice) pinned the workspace to it"), "{pinned}");
        let by_default = said(&Routing::new(Route::Http), Route::Http, None);
        assert!(by_default.starts_with("HTTP carries it: it is the workspace's default"), "{by_default}");
    }

    #[test]
    fn nothing_carries_a_closed_session() {
        let routing = Routing::new(Route::Acp);
        let standing = Standing {
            state: SessionState::Closed,
            carrier: Route::Acp,
            routing: &routing,
            canary_share_bp: 0,
            failed_handshake: None,
        };
        assert!(answer(&standing).contains("closed"));
    }
}
