//! One subscriber of toasts: where it begins, when it is asked for a sign of life, and when it is let go.

use std::time::Duration;

use crate::domain::words::words;

words! {
    /// Why a cursor cannot be gone on from.
    ResetReason {
        /// Toasts after it have been removed, since they were too old.
        TooOld = "tooOld",
        /// It is of another database, or its epoch was not told.
        OtherEpoch = "otherEpoch",
        /// It is after the newest toast.
        Ahead = "ahead",
        /// The next toast is there and cannot be read.
        Unreadable = "unreadable",
    }
}

words! {
    /// Why a subscriber was let go.
    Eviction {
        /// More waited for it than it may.
        TooSlow = "tooSlow",
        /// It took nothing at all for too long.
        Stalled = "stalled",
        /// It gave no sign of life.
        Silent = "silent",
        /// What it sent was no frame, or came at the wrong time.
        BadFrame = "badFrame",
        /// What it was opened with holds no longer.
        Expired = "expired",
    }
}

/// Frames that may wait for one subscriber (issue: 256).
pub(crate) const QUEUE_FRAMES: usize = 256;
/// Bytes of them (issue: 1 MiB).
pub(crate) const QUEUE_BYTES: usize = 1 << 20;

/// Where a subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Start {
    /// What comes after this number is sent.
    pub after: u64,
    /// Why the subscriber's own cursor was of no use.
    pub reset: Option<ResetReason>,
}

/// Where a subscriber goes on that comes with a cursor and the epoch in which it got it, in a sequence that holds the
/// numbers after `tail` until `head`. Never in the middle: either everything after its cursor is there, or it has to
/// begin anew.
pub(crate) fn start(cursor: Option<(u64, Option<&str>)>, epoch: &str, head: u64, tail: u64) -> Start {
    let Some((cursor, its_epoch)) = cursor else { return Start { after: head, reset: None } };
    let reset = if its_epoch != Some(epoch) {
        Some(ResetReason::OtherEpoch)
    } else if cursor > head {
        Some(ResetReason::Ahead)
    } else if cursor < tail {
        Some(ResetReason::TooOld)
    } else {
        None
    };
    Start { after: if reset.is_some() { head } else { cursor }, reset }
}

/// When a subscriber is asked for a sign of life, and how long it may take to give one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PulseRules {
    /// From a sign of life to the next ping (issue: 25 s).
    pub every: Duration,
    /// From a ping to a sign of life (issue: 8 s).
    pub patience: Duration,
    /// From the first frame that was sent since a sign of life to the next ping. With the patience it makes less than
    /// the 30 s after which a reader that does not read has to be gone.
    pub after_frame: Duration,
}

impl Default for PulseRules {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(25),
            patience: Duration::from_secs(8),
            after_frame: Duration::from_secs(20),
        }
    }
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PulseDue {
    /// Nothing, for so long.
    Nothing(Duration),
    /// A ping.
    Ping,
    /// It is to be let go.
    End,
}

/// One subscriber's pulse; every time is one since the subscription began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pulse {
    rules: PulseRules,
    heard: Duration,
    next_ping: Duration,
    asked: Option<Duration>,
}

impl Pulse {
    /// Begins.
    pub(crate) fn new(rules: PulseRules) -> Self {
        Self { rules, heard: Duration::ZERO, next_ping: rules.every, asked: None }
    }

    /// It said something.
    pub(crate) fn hear(&mut self, now: Duration) {
        (self.heard, self.asked, self.next_ping) = (now, None, now + self.rules.every);
    }

    /// Whether it has been silent for so long as nobody is who reads: such a one answers pings before.
    pub(crate) fn is_stalled(&self, now: Duration) -> bool {
        now.saturating_sub(self.heard) >= STALL
    }

    /// A frame was sent to it.
    pub(crate) fn send(&mut self, now: Duration) {
        self.next_ping = self.next_ping.min(now + self.rules.after_frame);
    }

    /// What is due now; a ping is told once, and counts as sent.
    pub(crate) fn due(&mut self, now: Duration) -> PulseDue {
        if let Some(asked) = self.asked {
            let end = asked + self.rules.patience;
            return if now >= end { PulseDue::End } else { PulseDue::Nothing(end - now) };
        }
        if now >= self.next_ping {
            self.asked = Some(now);
            return PulseDue::Ping;
        }
        PulseDue::Nothing(self.next_ping - now)
    }
}

/// How long frames may wait for a subscriber of which nothing takes one (issue: gone in 30 s, whatever its window says).
pub(crate) const STALL: Duration = Duration::from_secs(25);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_cursor_is_gone_on_from_or_refused_and_never_in_between() {
        let of = |cursor, epoch: &str| start(Some((cursor, Some(epoch))), "e", 10, 4);
        assert_eq!(start(None, "e", 10, 4), Start { after: 10, reset: None });
        for cursor in 4..=10 {
            assert_eq!(of(cursor, "e"), Start { after: cursor, reset: None });
        }
        assert_eq!(of(3, "e"), Start { after: 10, reset: Some(ResetReason::TooOld) });
        assert_eq!(of(11, "e"), Start { after: 10, reset: Some(ResetReason::Ahead) });
        assert_eq!(of(7, "other"), Start { after: 10, reset: Some(ResetReason::OtherEpoch) });
        assert_eq!(start(Some((7, None)), "e", 10, 4).reset, Some(ResetReason::OtherEpoch));
        assert_eq!(start(Some((0, Some("e"))), "e", 0, 0), Start { after: 0, reset: None });
    }

    #[test]
    fn who_gets_frames_and_says_nothing_counts_as_stalled_and_who_answers_the_ping_that_follows_does_not() {
        let s = Duration::from_secs;
        let mut pulse = Pulse::new(PulseRules::default());
        pulse.hear(s(1));
        pulse.send(s(2));
        assert_eq!(pulse.due(s(22)), PulseDue::Ping);
        assert!(!pulse.is_stalled(s(22)) && pulse.is_stalled(s(26)));
        pulse.hear(s(23));
        assert!(!pulse.is_stalled(s(26)));
    }

    proptest! {
        /// Whatever a subscriber does, one that says nothing is let go within 33 s, and one that gets a frame and does
        /// not read it within 28 s of that frame; one that answers each ping stays.
        #[test]
        fn nobody_who_is_silent_stays_and_nobody_who_answers_goes(frames in prop::collection::vec(0u64..60_000, 0..40), answers: bool) {
            let mut pulse = Pulse::new(PulseRules::default());
            let (mut frames, mut now) = (frames, Duration::ZERO);
            frames.sort_unstable();
            let first = frames.first().copied();
            let mut ended = None;
            let mut frames = frames.into_iter().map(Duration::from_millis).peekable();
            while now <= Duration::from_secs(120) {
                match pulse.due(now) {
                    PulseDue::End => { ended = Some(now); break; }
                    PulseDue::Ping if answers => pulse.hear(now),
                    PulseDue::Ping => {}
                    PulseDue::Nothing(wait) => {
                        match frames.next_if(|at| *at <= now + wait) {
                            Some(at) => { now = now.max(at); pulse.send(now); }
                            None => now += wait,
                        }
                    }
                }
            }
            if answers {
                prop_assert_eq!(ended, None);
            } else {
                let ended = ended.expect("let go");
                prop_assert!(ended <= Duration::from_secs(33));
                if let Some(first) = first.filter(|first| *first <= 25_000) {
                    prop_assert!(ended <= Duration::from_millis(first) + Duration::from_secs(28), "{:?}", ended);
                }
            }
        }
    }
}
