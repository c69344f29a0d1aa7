//! When to say something to a client, and when a silent one is taken for dead.

use std::{cell::Cell, rc::Rc, time::Duration};

use futures_util::{Stream, StreamExt};
use tokio::time::Instant;

/// The rhythm of one socket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heartbeats {
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
pub(crate) struct Pulse {
    rhythm: Heartbeats,
    heard: Instant,
    bytes_came: Rc<Cell<Instant>>,
    next_ping: Instant,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing until then.
    Nothing(Instant),
    /// A ping.
    Ping,
    /// The end: the client is silent for too long.
    End,
}

impl Pulse {
    /// Begins with a client that was heard just now.
    pub(crate) fn new(rhythm: Heartbeats, now: Instant) -> Self {
        Self { rhythm, heard: now, bytes_came: Rc::new(Cell::new(now)), next_ping: now + rhythm.every }
    }

    /// Something came.
    pub(crate) fn hear(&mut self, now: Instant) {
        self.heard = now;
    }

    /// The bytes of the client, as they were: each of them is noted. A large message on a slow line takes longer than
    /// a dead client is waited for, and no other frame passes while it is on its way.
    pub(crate) fn watch<S: Stream>(&self, bytes: S) -> impl Stream<Item = S::Item> + use<S> {
        let bytes_came = self.bytes_came.clone();
        bytes.inspect(move |_| bytes_came.set(Instant::now()))
    }

    /// Takes what [`Pulse::watch`] noted; whether it is news.
    pub(crate) fn hear_bytes(&mut self) -> bool {
        let came = self.bytes_came.get();
        let is_news = came > self.heard;
        self.heard = self.heard.max(came);
        is_news
    }

    /// What is due now; a ping is said once.
    pub(crate) fn due(&mut self, now: Instant) -> Due {
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
    fn bytes_of_a_message_that_is_still_on_its_way_are_a_sign_of_life() {
        let begin = Instant::now();
        let mut pulse = Pulse::new(Heartbeats::default(), begin);
        assert!(!pulse.hear_bytes());
        let mut bytes = Box::pin(pulse.watch(futures_util::stream::iter([1])));
        while Instant::now() == begin {}
        assert_eq!(futures_util::FutureExt::now_or_never(bytes.next()), Some(Some(1)));
        assert!(pulse.hear_bytes() && pulse.heard > begin);
        assert!(!pulse.hear_bytes());
    }

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
