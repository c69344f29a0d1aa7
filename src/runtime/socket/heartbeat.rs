//! The pulse of one socket, which also counts the bytes of messages that have not arrived completely.

use std::{cell::Cell, rc::Rc};

use futures_util::{Stream, StreamExt};
use tokio::time::Instant;

use crate::domain::heartbeat::{Due, Heartbeat, Pulse};

#[derive(Debug)]
pub(crate) struct SocketPulse {
    opened: Instant,
    pulse: Pulse,
    last_bytes: Rc<Cell<Instant>>,
}

impl SocketPulse {
    /// Starts with a client that has just sent something.
    pub(crate) fn new(heartbeat: Heartbeat) -> Self {
        let opened = Instant::now();
        Self { opened, pulse: Pulse::new(heartbeat), last_bytes: Rc::new(Cell::new(opened)) }
    }

    /// Notes that a frame arrived.
    pub(crate) fn receive(&mut self) {
        self.pulse.receive(self.opened.elapsed());
    }

    /// Passes the client's bytes through and notes when they arrive: a large message on a slow connection takes longer
    /// than the allowed silence, and no other frame can pass it.
    pub(crate) fn watch<S: Stream>(&self, bytes: S) -> impl Stream<Item = S::Item> + use<S> {
        let last_bytes = self.last_bytes.clone();
        bytes.inspect(move |_| last_bytes.set(Instant::now()))
    }

    /// Takes over what [`SocketPulse::watch`] noted; true if bytes arrived since the last frame or call.
    pub(crate) fn receive_bytes(&mut self) -> bool {
        self.pulse.receive(self.last_bytes.get() - self.opened)
    }

    /// Returns the action that is due now. Each ping is due once.
    pub(crate) fn due(&mut self) -> Due {
        self.pulse.due(self.opened.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn bytes_of_an_incomplete_message_are_a_sign_of_life() {
        let mut pulse = SocketPulse::new(Heartbeat::ACP);
        let begin = pulse.opened;
        assert!(!pulse.receive_bytes());
        let mut bytes = Box::pin(pulse.watch(futures_util::stream::iter([1])));
        while Instant::now() == begin {}
        assert_eq!(futures_util::FutureExt::now_or_never(bytes.next()), Some(Some(1)));
        assert!(pulse.receive_bytes() && pulse.pulse.wait(Duration::from_secs(5)) == Duration::ZERO);
        assert!(!pulse.receive_bytes());
    }
}
