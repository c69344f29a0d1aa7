//! When to say something to a client, and when a silent one is taken for dead.

use std::time::Duration;

use tokio::time::Instant;

/// The rhythm of one socket.
#[derive(Debug, Clone, Copy)]
pub struct Heartbeats {
    /// From one ping to the next.
    pub every: Duration,
    /// A client from which nothing at all came for so long is taken for dead.
    pub silence: Duration,
}

impl Default for Heartbeats {
    /// A lost ping, or its answer, is not yet the end; two are. Both ends do the same.
    fn default() -> Self {
        Self { every: Duration::from_secs(5), silence: Duration::from_secs(8) }
    }
}

/// One socket's pulse.
#[derive(Debug)]
pub struct Pulse {
    rhythm: Heartbeats,
    heard: Instant,
    next_ping: Instant,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing until then.
    Nothing(Instant),
    /// A ping.
    Ping,
    /// The end: the client is silent for too long.
    End,
}

impl Pulse {
    /// Begins with a client that was heard just now.
    pub fn new(rhythm: Heartbeats, now: Instant) -> Self {
        Self { rhythm, heard: now, next_ping: now + rhythm.every }
    }

    /// Something came.
    pub fn hear(&mut self, now: Instant) {
        self.heard = now;
    }

    /// Something came `at` that time; whether that is news.
    pub fn hear_since(&mut self, at: Instant) -> bool {
        let is_news = at > self.heard;
        self.heard = self.heard.max(at);
        is_news
    }

    /// What is due now; a ping is said once.
    pub fn due(&mut self, now: Instant) -> Due {
        let end = self.heard + self.rhythm.silence;
        if now >= end {
            return Due::End;
        }
        if now >= self.next_ping {
            self.next_ping = now + self.rhythm.every;
            return Due::Ping;
        }
        Due::Nothing(self.next_ping.min(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_pinged_in_rhythm_and_given_up_when_it_is_silent() {
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(Heartbeats::default(), begin);
        assert_eq!(pulse.due(begin), Due::Nothing(after(5)));
        assert_eq!(pulse.due(after(5)), Due::Ping);
        assert_eq!(pulse.due(after(5)), Due::Nothing(after(8)));
        pulse.hear(after(6));
        assert_eq!(pulse.due(after(8)), Due::Nothing(after(10)));
        assert_eq!(pulse.due(after(13)), Due::Ping);
        assert_eq!(pulse.due(after(14)), Due::End);
    }
}
