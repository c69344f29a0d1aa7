//! What was settled and not yet told to the other end of a numbered connection: when that is worth a message of its
//! own.
//!
//! An acknowledgement rides on whatever goes anyway. Only when a quarter of what the other end can hold is settled
//! and untold does it get a message, since the other end has to wait once all of it is.

use std::collections::VecDeque;

/// Which part of the other end's limits is worth a message.
const PART: usize = 4;
/// How finely bytes are remembered, as a part of the same: they are added up between marks, not kept per message.
const MARKS: u64 = 4;

/// Counts what came, and says when to tell that it is settled.
#[derive(Debug)]
pub struct Untold {
    messages: u64,
    bytes: u64,
    told: Mark,
    settled: Mark,
    heard: Mark,
    /// Ascending; those that are settled are taken off.
    marks: VecDeque<Mark>,
    last_mark_bytes: u64,
}

/// A place in the stream of messages.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    seq: u64,
    /// All bytes up to it; for what is settled or told, those up to the last mark.
    bytes: u64,
}

impl Untold {
    /// For a peer that holds at most `max_messages` messages and `max_bytes` bytes of them, and was told nothing yet.
    /// Messages after `heard` are to come.
    pub fn new(max_messages: usize, max_bytes: usize, heard: u64) -> Self {
        Self {
            messages: (max_messages / PART).max(1) as u64,
            bytes: (max_bytes / PART).max(1) as u64,
            told: Mark::default(),
            settled: Mark::default(),
            heard: Mark { seq: heard, bytes: 0 },
            marks: VecDeque::new(),
            last_mark_bytes: 0,
        }
    }

    /// A message came.
    pub fn hear(&mut self, seq: u64, bytes: usize) {
        self.heard = Mark { seq, bytes: self.heard.bytes + bytes as u64 };
        if self.heard.bytes - self.last_mark_bytes >= (self.bytes / MARKS).max(1) {
            self.last_mark_bytes = self.heard.bytes;
            self.marks.push_back(self.heard);
        }
    }

    /// Everything up to `seq` is settled.
    pub fn settle(&mut self, seq: u64) {
        self.settled.seq = self.settled.seq.max(seq);
        while let Some(mark) = self.marks.front()
            && mark.seq <= seq
        {
            self.settled.bytes = mark.bytes;
            self.marks.pop_front();
        }
    }

    /// What is settled goes with a message.
    pub fn tell(&mut self) -> u64 {
        self.told = self.settled;
        self.told.seq
    }

    /// What was told may not have arrived: as if nothing had been.
    pub fn tell_again(&mut self) {
        self.told = Mark::default();
    }

    /// Whether what is settled and untold is worth a message of its own.
    pub fn is_due(&self) -> bool {
        self.is_much(self.settled)
    }

    /// Whether it would be if everything that came were settled now.
    pub fn may_come_due(&self) -> bool {
        self.is_much(self.heard)
    }

    fn is_much(&self, upto: Mark) -> bool {
        upto.seq.saturating_sub(self.told.seq) >= self.messages
            || upto.bytes.saturating_sub(self.told.bytes) >= self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_at_a_quarter_of_the_messages() {
        let mut untold = Untold::new(8, 1_000_000, 0);
        untold.hear(1, 10);
        untold.settle(1);
        assert!(!untold.is_due() && !untold.may_come_due());
        untold.hear(2, 10);
        assert!(!untold.is_due() && untold.may_come_due(), "it came and is not settled");
        untold.settle(2);
        assert!(untold.is_due());
        assert_eq!(untold.tell(), 2);
        assert!(!untold.is_due() && !untold.may_come_due());
    }

    #[test]
    fn it_is_due_at_about_a_quarter_of_the_bytes_and_remembers_few_marks() {
        let mut untold = Untold::new(1_000_000, 4000, 0);
        for seq in 1..=10_000 {
            untold.hear(seq, 10);
            untold.settle(seq);
            if untold.is_due() {
                assert_eq!(seq % 100, 0, "every 1,000 bytes");
                untold.tell();
            }
        }
        assert!(untold.marks.is_empty());
        for seq in 10_001..=10_400 {
            untold.hear(seq, 10);
        }
        assert!(untold.may_come_due() && untold.marks.len() <= 16);
    }

    #[test]
    fn a_single_message_may_be_a_quarter() {
        let mut untold = Untold::new(2048, 4000, 0);
        untold.hear(1, 5000);
        untold.settle(1);
        assert!(untold.is_due());
    }

    #[test]
    fn what_an_earlier_client_had_is_told_at_once_where_it_is_much() {
        let mut untold = Untold::new(2048, 4000, 600);
        untold.settle(600);
        assert!(untold.is_due());
        assert_eq!(untold.tell(), 600);
        assert!(!untold.is_due());
        untold.tell_again();
        assert!(untold.is_due(), "it may have been lost");
    }
}
