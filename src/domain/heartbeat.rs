//! Decides when a connection is pinged and when its peer counts as dead.
//!
//! Two rules. [`Pulse`] pings at a fixed rate and ends after silence: both ends of ACP over WebSocket, and the command
//! line's own subscriber. [`SubscriberPulse`] pings a notification subscriber only after silence or after a frame, and
//! ends when a ping stays unanswered. Every `now` is a time since the connection opened.

use std::time::Duration;

/// Intervals by which one end keeps a connection alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heartbeat {
    /// From one ping to the next.
    pub every: Duration,
    /// A peer that sends nothing at all for this long is dead.
    pub silence: Duration,
}

impl Heartbeat {
    /// ACP over WebSocket, both ends: 5 s and 8 s. One lost ping or answer is tolerated, two are not, and a
    /// half-open connection is noticed in under 15 s.
    pub(crate) const ACP: Self = Self { every: Duration::from_secs(5), silence: Duration::from_secs(8) };
    /// A subscriber's end of a notification socket: 20 s and 30 s. The server pings a silent subscriber after 25 s.
    pub(crate) const SUBSCRIBER: Self = Self { every: Duration::from_secs(20), silence: Duration::from_secs(30) };
}

/// Action that is due on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing is due before this time has passed.
    Nothing(Duration),
    Ping,
    /// End it: the peer is dead.
    End,
}

/// Pings at a fixed rate, and ends a connection whose peer is silent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pulse {
    heartbeat: Heartbeat,
    received: Duration,
    next_ping: Duration,
}

impl Pulse {
    /// Starts with a peer that has just sent something.
    pub(crate) fn new(heartbeat: Heartbeat) -> Self {
        Self { heartbeat, received: Duration::ZERO, next_ping: heartbeat.every }
    }

    /// Notes that something arrived; true if that is later than everything before.
    pub(crate) fn receive(&mut self, now: Duration) -> bool {
        let is_news = now > self.received;
        self.received = self.received.max(now);
        is_news
    }

    /// Time until something is due; zero if something is.
    pub(crate) fn wait(&self, now: Duration) -> Duration {
        self.next_ping.min(self.received + self.heartbeat.silence).saturating_sub(now)
    }

    /// Returns the action that is due now. Each ping is due once.
    pub(crate) fn due(&mut self, now: Duration) -> Due {
        if now >= self.received + self.heartbeat.silence {
            return Due::End;
        }
        if now >= self.next_ping {
            self.next_ping = now + self.heartbeat.every;
            return Due::Ping;
        }
        Due::Nothing(self.wait(now))
    }
}

/// When a notification subscriber is pinged, and how long it has to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SubscriberHeartbeat {
    /// From a sign of life to the next ping. Default 25 s.
    pub every: Duration,
    /// From a ping to the sign of life that answers it. Default 8 s.
    pub patience: Duration,
    /// From the first frame sent since a sign of life to the next ping. With `patience` that is under the 30 s within
    /// which a subscriber that does not read is evicted.
    pub after_frame: Duration,
}

impl Default for SubscriberHeartbeat {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(25),
            patience: Duration::from_secs(8),
            after_frame: Duration::from_secs(20),
        }
    }
}

/// Maximum wait of frames for a subscriber that takes none: a subscriber that does not read is evicted within 30 s.
pub(crate) const STALL: Duration = Duration::from_secs(25);

/// Pings a notification subscriber that is silent, and ends it when it does not answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SubscriberPulse {
    heartbeat: SubscriberHeartbeat,
    received: Duration,
    next_ping: Duration,
    pinged: Option<Duration>,
}

impl SubscriberPulse {
    /// Starts with a subscriber that has just sent something.
    pub(crate) fn new(heartbeat: SubscriberHeartbeat) -> Self {
        Self { heartbeat, received: Duration::ZERO, next_ping: heartbeat.every, pinged: None }
    }

    /// Notes that the subscriber sent something.
    pub(crate) fn receive(&mut self, now: Duration) {
        (self.received, self.pinged, self.next_ping) = (now, None, now + self.heartbeat.every);
    }

    /// True if the subscriber has been silent for 25 s: one that reads would have answered a ping before.
    pub(crate) fn is_stalled(&self, now: Duration) -> bool {
        now.saturating_sub(self.received) >= STALL
    }

    /// Notes that a frame was sent to it.
    pub(crate) fn send(&mut self, now: Duration) {
        self.next_ping = self.next_ping.min(now + self.heartbeat.after_frame);
    }

    /// Returns the action that is due now. A ping is due once, and counts as sent.
    pub(crate) fn due(&mut self, now: Duration) -> Due {
        if let Some(pinged) = self.pinged {
            let end = pinged + self.heartbeat.patience;
            return if now >= end { Due::End } else { Due::Nothing(end - now) };
        }
        if now >= self.next_ping {
            self.pinged = Some(now);
            return Due::Ping;
        }
        Due::Nothing(self.next_ping - now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn silent_peer_is_pinged_at_the_rate_and_then_ended() {
        let mut pulse = Pulse::new(Heartbeat::ACP);
        assert_eq!(pulse.due(s(0)), Due::Nothing(s(5)));
        assert_eq!(pulse.due(s(5)), Due::Ping);
        assert_eq!(pulse.due(s(5)), Due::Nothing(s(3)));
        assert!(pulse.receive(s(6)) && !pulse.receive(s(6)) && !pulse.receive(s(2)));
        assert_eq!(pulse.due(s(8)), Due::Nothing(s(2)));
        assert_eq!((pulse.wait(s(9)), pulse.wait(s(11))), (s(1), s(0)));
        assert_eq!(pulse.due(s(13)), Due::Ping);
        assert_eq!(pulse.due(s(14)), Due::End);
    }

    #[test]
    fn dead_acp_peer_is_noticed_in_under_15_s() {
        let Heartbeat { every, silence } = Heartbeat::ACP;
        assert!(every < silence && every + silence < s(15));
    }

    #[test]
    fn silent_subscriber_is_stalled_unless_it_answers_the_next_ping() {
        let mut pulse = SubscriberPulse::new(SubscriberHeartbeat::default());
        pulse.receive(s(1));
        pulse.send(s(2));
        assert_eq!(pulse.due(s(22)), Due::Ping);
        assert!(!pulse.is_stalled(s(22)) && pulse.is_stalled(s(26)));
        pulse.receive(s(23));
        assert!(!pulse.is_stalled(s(26)));
    }

    proptest! {
        /// A subscriber that sends nothing is ended within 33 s, and within 28 s of a frame that it does not read; one
        /// that answers each ping stays.
        #[test]
        fn silent_subscriber_is_ended_and_answering_one_stays(frames in prop::collection::vec(0u64..60_000, 0..40), answers: bool) {
            let mut pulse = SubscriberPulse::new(SubscriberHeartbeat::default());
            let (mut frames, mut now) = (frames, Duration::ZERO);
            frames.sort_unstable();
            let first = frames.first().copied();
            let mut ended = None;
            let mut frames = frames.into_iter().map(Duration::from_millis).peekable();
            while now <= s(120) {
                match pulse.due(now) {
                    Due::End => { ended = Some(now); break; }
                    Due::Ping if answers => pulse.receive(now),
                    Due::Ping => {}
                    Due::Nothing(wait) => {
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
                let ended = ended.expect("ended");
                prop_assert!(ended <= s(33));
                if let Some(first) = first.filter(|first| *first <= 25_000) {
                    prop_assert!(ended <= Duration::from_millis(first) + s(28), "{:?}", ended);
                }
            }
        }
    }
}
