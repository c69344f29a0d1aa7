//! Messages that survive a broken connection: each end numbers its messages and holds each one until the other end
//! has acknowledged it.
//!
//! Both ends run the same two halves. [`Outbox`] holds sent messages that may have to be sent again; [`Inbox`]
//! records the last message that arrived. Every message arrives exactly once and in order, however often the
//! connection breaks, as long as both ends live.

use std::collections::VecDeque;

/// Messages that were sent and are not acknowledged, bounded by count and by bytes.
#[derive(Debug)]
pub(crate) struct Outbox<T> {
    unacknowledged: VecDeque<(T, usize)>,
    /// Number of the first unacknowledged message.
    first: u64,
    bytes: usize,
    max_messages: usize,
    max_bytes: usize,
}

/// The peer asks for messages that were dropped, or that were never sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer resumes after message {asked}; available are messages after {from} up to {to}")]
pub(crate) struct OutOfRange {
    /// Number of the last message that the peer has.
    pub asked: u64,
    /// Number of the last message that is no longer held.
    pub from: u64,
    pub to: u64,
}

impl<T> Outbox<T> {
    /// Holds at most `max_messages` messages and about `max_bytes` bytes, but always at least one message. Numbers
    /// continue after `last`.
    pub(crate) fn new(max_messages: usize, max_bytes: usize, last: u64) -> Self {
        Self { unacknowledged: VecDeque::new(), first: last + 1, bytes: 0, max_messages, max_bytes }
    }

    /// True if the next message has to wait for an acknowledgement.
    pub(crate) fn is_full(&self) -> bool {
        !self.unacknowledged.is_empty()
            && (self.unacknowledged.len() >= self.max_messages || self.bytes >= self.max_bytes)
    }

    /// Number of the newest message; before the first message, the number after which the outbox began.
    pub(crate) fn last(&self) -> u64 {
        self.first + self.unacknowledged.len() as u64 - 1
    }

    /// Number of the last message that is no longer held; 0 before any acknowledgement of a new conversation.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.first - 1
    }

    /// Holds a message of `bytes` bytes and returns its number. The caller checks [`Self::is_full`] first.
    pub(crate) fn push(&mut self, message: T, bytes: usize) -> u64 {
        self.unacknowledged.push_back((message, bytes));
        self.bytes += bytes;
        self.last()
    }

    /// Records that the peer has everything up to `seq`. A number that was acknowledged before, or that was never
    /// sent, changes nothing.
    pub(crate) fn acknowledge(&mut self, seq: u64) {
        // Ignored instead of clamped: a peer that is wrong about one number may be wrong about all of them.
        if seq > self.last() {
            return;
        }
        while self.first <= seq
            && let Some((_, bytes)) = self.unacknowledged.pop_front()
        {
            self.bytes -= bytes;
            self.first += 1;
        }
    }

    /// A message that is still held.
    pub(crate) fn get(&self, seq: u64) -> Option<&T> {
        let index = usize::try_from(seq.checked_sub(self.first)?).ok()?;
        self.unacknowledged.get(index).map(|(message, _)| message)
    }

    /// Returns the number of the first message to send to a peer that has everything up to `seq`.
    pub(crate) fn resume(&mut self, seq: u64) -> Result<u64, OutOfRange> {
        // Messages that were dropped cannot be sent again, so the caller must end the conversation.
        if seq.saturating_add(1) < self.first || seq > self.last() {
            return Err(OutOfRange { asked: seq, from: self.first - 1, to: self.last() });
        }
        Ok(seq + 1)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.unacknowledged.len()
    }

    /// True if no message is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.unacknowledged.is_empty()
    }
}

/// Result of checking the number of a message that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    New,
    /// The message arrived before and must be dropped.
    Again,
    /// Earlier messages are missing, so the peer violates the protocol.
    Gap,
}

/// Number of the last message that arrived from the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Inbox {
    last: u64,
}

impl Inbox {
    /// Continues after `last`.
    pub(crate) fn new(last: u64) -> Self {
        Self { last }
    }

    /// The number of the newest message that arrived; 0 before the first.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Checks the number of a message that arrived, and records it if it is the next one.
    pub(crate) fn arrive(&mut self, seq: u64) -> Arrival {
        if seq <= self.last {
            Arrival::Again
        } else if seq == self.last + 1 {
            self.last = seq;
            Arrival::New
        } else {
            Arrival::Gap
        }
    }
}

/// An acknowledgement is sent in a message of its own at this fraction of the peer's limits …
const LIMIT_FRACTION: usize = 4;
/// … or, if the limits are unknown, after this number of messages or bytes: far less than any peer is known to hold.
/// A peer that receives no other messages must not have to stop; one that receives messages gets its acknowledgements
/// with them.
const MESSAGES_BETWEEN_ACKS: u64 = 16;
/// Bytes after which an acknowledgement is sent if the peer's limits are unknown: 16 KiB.
const BYTES_BETWEEN_ACKS: u64 = 16 * 1024;
/// Byte counts are kept at marks, not for each message: this many between two acknowledgements.
const MARKS: u64 = 4;

/// Counts the messages that arrived, and decides when their acknowledgement is sent in a message of its own.
///
/// A message is acknowledged once it is *settled*: delivered, or written to disk, as the receiver needs it.
#[derive(Debug)]
pub(crate) struct PendingAck {
    /// Thresholds of an acknowledgement of its own.
    messages: u64,
    bytes: u64,
    acknowledged: Mark,
    settled: Mark,
    received: Mark,
    /// In ascending order; settled marks are removed.
    marks: VecDeque<Mark>,
    last_mark_bytes: u64,
}

/// A position in the stream of messages.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    seq: u64,
    /// Bytes up to this position. If only a part of the messages is settled or acknowledged, the bytes up to the last
    /// mark.
    bytes: u64,
}

impl PendingAck {
    /// For a peer that holds at most `max_messages` messages and `max_bytes` bytes. Numbers continue after
    /// `received`.
    pub(crate) fn new(max_messages: usize, max_bytes: usize, received: u64) -> Self {
        let part = |limit: usize| (limit / LIMIT_FRACTION).max(1) as u64;
        Self::after(part(max_messages), part(max_bytes), received)
    }

    /// For a peer whose limits are unknown, before its first message.
    pub(crate) fn of_unknown_limits() -> Self {
        Self::after(MESSAGES_BETWEEN_ACKS, BYTES_BETWEEN_ACKS, 0)
    }

    fn after(messages: u64, bytes: u64, received: u64) -> Self {
        Self {
            messages,
            bytes,
            acknowledged: Mark::default(),
            settled: Mark::default(),
            received: Mark { seq: received, bytes: 0 },
            marks: VecDeque::new(),
            last_mark_bytes: 0,
        }
    }

    /// Notes a message that arrived.
    pub(crate) fn receive(&mut self, seq: u64, bytes: usize) {
        // Marks bound the memory: sizes are exact at marks only, which is enough to decide on an acknowledgement.
        self.received = Mark { seq, bytes: self.received.bytes + bytes as u64 };
        if self.received.bytes - self.last_mark_bytes >= (self.bytes / MARKS).max(1) {
            self.last_mark_bytes = self.received.bytes;
            self.marks.push_back(self.received);
        }
    }

    /// Notes that everything up to `seq` is settled.
    pub(crate) fn settle(&mut self, seq: u64) {
        self.settled.seq = self.settled.seq.max(seq);
        while let Some(mark) = self.marks.front()
            && mark.seq <= seq
        {
            self.settled.bytes = mark.bytes;
            self.marks.pop_front();
        }
        // Everything is settled, so the exact count is known without a mark.
        if seq == self.received.seq {
            self.settled.bytes = self.received.bytes;
        }
    }

    /// The number to acknowledge in a message that is sent now; counts as sent.
    pub(crate) fn acknowledge(&mut self) -> u64 {
        self.acknowledged = self.settled;
        self.acknowledged.seq
    }

    /// Notes that the acknowledgements so far may have been lost.
    pub(crate) fn repeat(&mut self) {
        // From 0: all settled messages count as unacknowledged again.
        self.acknowledged = Mark::default();
    }

    /// True if enough is settled and not acknowledged for a message of its own.
    pub(crate) fn is_due(&self) -> bool {
        self.exceeds_threshold(self.settled)
    }

    /// True if an acknowledgement would be due once everything that arrived is settled.
    pub(crate) fn may_come_due(&self) -> bool {
        self.exceeds_threshold(self.received)
    }

    fn exceeds_threshold(&self, upto: Mark) -> bool {
        upto.seq.saturating_sub(self.acknowledged.seq) >= self.messages
            || upto.bytes.saturating_sub(self.acknowledged.bytes) >= self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, test_runner::RngAlgorithm};

    use super::*;

    #[test]
    fn outbox_is_full_by_count_and_bytes_and_always_takes_one() {
        let mut outbox = Outbox::new(2, 100, 0);
        assert!(!outbox.is_full());
        assert_eq!(outbox.push("large", 1000), 1);
        assert!(outbox.is_full());
        outbox.acknowledge(1);
        outbox.push("a", 1);
        outbox.push("b", 1);
        assert!(outbox.is_full());
        assert_eq!((outbox.get(1), outbox.get(2), outbox.last()), (None, Some(&"a"), 3));
    }

    #[test]
    fn peer_that_asks_for_unknown_messages_is_rejected() {
        let mut outbox = Outbox::new(10, 100, 5);
        for _ in 0..3 {
            outbox.push((), 1);
        }
        outbox.acknowledge(6);
        assert_eq!(outbox.resume(6), Ok(7));
        assert_eq!(outbox.resume(8), Ok(9));
        assert_eq!(outbox.resume(5), Err(OutOfRange { asked: 5, from: 6, to: 8 }));
        assert!(outbox.resume(9).is_err());
        assert!(outbox.resume(u64::MAX).is_err());
        outbox.acknowledge(99);
        assert_eq!(outbox.len(), 2, "a lie about the future changes nothing");
    }

    /// Events on the connection between two ends.
    #[derive(Debug, Clone)]
    enum Step {
        Send,
        Deliver,
        Acknowledge,
        Break,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Send),
            4 => Just(Step::Deliver),
            2 => Just(Step::Acknowledge),
            1 => Just(Step::Break),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        // XorShift instead of ChaCha: in a debug build the default generator takes most of the test's time.
        #![proptest_config(ProptestConfig { cases: 10_000, rng_algorithm: RngAlgorithm::XorShift, ..ProptestConfig::default() })]

        /// The model: what was sent is what arrives, in order, once, whatever the line loses.
        #[test]
        fn everything_arrives_once_and_in_order_however_often_the_line_breaks(steps in steps(), room in 1usize..20) {
            let mut outbox = Outbox::new(room, 1000, 0);
            let mut inbox = Inbox::default();
            let mut line: VecDeque<u64> = VecDeque::new();
            let mut sent = 0u64;
            let mut arrived = Vec::new();
            for step in steps {
                match step {
                    Step::Send if !outbox.is_full() => {
                        sent += 1;
                        line.push_back(outbox.push(sent, 1));
                    }
                    Step::Send => prop_assert_eq!(outbox.len(), room, "it is full of what is not acknowledged"),
                    Step::Deliver => {
                        let Some(seq) = line.pop_front() else { continue };
                        // What was overtaken by an acknowledgement after a break is a repeat.
                        let arrival = inbox.arrive(seq);
                        prop_assert_ne!(arrival, Arrival::Gap);
                        if arrival == Arrival::New {
                            arrived.push(*outbox.get(seq).unwrap());
                        }
                    }
                    Step::Acknowledge => outbox.acknowledge(inbox.last()),
                    Step::Break => {
                        line.clear();
                        let from = outbox.resume(inbox.last()).unwrap();
                        line.extend(from..=outbox.last());
                    }
                }
            }
            line.clear();
            line.extend(outbox.resume(inbox.last()).unwrap()..=outbox.last());
            for seq in line {
                if inbox.arrive(seq) == Arrival::New {
                    arrived.push(*outbox.get(seq).unwrap());
                }
            }
            prop_assert_eq!(arrived, (1..=sent).collect::<Vec<_>>());
        }
    }

    #[test]
    fn acknowledgement_is_due_at_a_quarter_of_the_messages() {
        let mut pending = PendingAck::new(8, 1_000_000, 0);
        pending.receive(1, 10);
        pending.settle(1);
        assert!(!pending.is_due() && !pending.may_come_due());
        pending.receive(2, 10);
        assert!(!pending.is_due() && pending.may_come_due(), "it came and is not settled");
        pending.settle(2);
        assert!(pending.is_due());
        assert_eq!(pending.acknowledge(), 2);
        assert!(!pending.is_due() && !pending.may_come_due());
    }

    #[test]
    fn acknowledgement_is_due_at_a_quarter_of_the_bytes_and_keeps_few_marks() {
        let mut pending = PendingAck::new(1_000_000, 4000, 0);
        for seq in 1..=10_000 {
            pending.receive(seq, 10);
            pending.settle(seq);
            if pending.is_due() {
                assert_eq!(seq % 100, 0, "every 1,000 bytes");
                pending.acknowledge();
            }
        }
        assert!(pending.marks.is_empty());
        for seq in 10_001..=10_400 {
            pending.receive(seq, 10);
        }
        assert!(pending.may_come_due() && pending.marks.len() <= 16);
    }

    #[test]
    fn acknowledgement_is_due_after_one_large_message() {
        let mut pending = PendingAck::new(2048, 4000, 0);
        pending.receive(1, 5000);
        pending.settle(1);
        assert!(pending.is_due());
    }

    #[test]
    fn messages_of_an_earlier_client_are_acknowledged_at_once() {
        let mut pending = PendingAck::new(2048, 4000, 600);
        pending.settle(600);
        assert!(pending.is_due());
        assert_eq!(pending.acknowledge(), 600);
        assert!(!pending.is_due());
        pending.repeat();
        assert!(pending.is_due(), "it may have been lost");
    }

    #[test]
    fn peer_of_unknown_limits_is_acknowledged_after_16_messages_or_16_kib() {
        let mut pending = PendingAck::of_unknown_limits();
        for seq in 1..=16 {
            assert!(!pending.is_due());
            pending.receive(seq, 10);
            pending.settle(seq);
        }
        assert!(pending.is_due());
        assert_eq!(pending.acknowledge(), 16);
        pending.receive(17, 16 * 1024 - 1);
        pending.settle(17);
        assert!(!pending.is_due());
        pending.receive(18, 1);
        pending.settle(18);
        assert!(pending.is_due());
    }
}
