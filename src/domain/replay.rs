//! The events that a session still holds for readers who come late or come back.

use std::collections::VecDeque;

use super::event::SessionEvent;

/// The newest events of a session, bounded by count and by bytes.
#[derive(Debug)]
pub struct ReplayBuffer {
    max_events: usize,
    max_bytes: usize,
    bytes: usize,
    events: VecDeque<SessionEvent>,
    next_id: u64,
}

/// What a reader gets who wants everything after an id.
#[derive(Debug)]
pub struct Replay {
    /// The events, oldest first.
    pub events: Vec<SessionEvent>,
    /// The first id that the buffer still holds, where events between it and the wanted one are gone.
    pub gap_until: Option<u64>,
}

impl ReplayBuffer {
    /// Holds at most `max_events` events and about `max_bytes` bytes of them; the newest one always. Ids go
    /// on after `last_id`.
    pub fn new(max_events: usize, max_bytes: usize, last_id: u64) -> Self {
        Self { max_events, max_bytes, bytes: 0, events: VecDeque::new(), next_id: last_id + 1 }
    }

    /// The id that the next event will get.
    pub fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Takes an event whose id is [`Self::next_id`].
    pub fn push(&mut self, event: SessionEvent) {
        debug_assert_eq!(event.id, self.next_id);
        self.next_id = event.id + 1;
        self.bytes += event.data.len();
        self.events.push_back(event);
        while self.events.len() > 1 && (self.events.len() > self.max_events || self.bytes > self.max_bytes) {
            if let Some(oldest) = self.events.pop_front() {
                self.bytes -= oldest.data.len();
            }
        }
    }

    /// Everything after `after`.
    pub fn after(&self, after: u64) -> Replay {
        let first_held = self.events.front().map_or(self.next_id, |event| event.id);
        let gap_until = (first_held > after + 1).then_some(first_held);
        let skip = usize::try_from((after + 1).saturating_sub(first_held)).unwrap_or(usize::MAX);
        Replay { events: self.events.iter().skip(skip).cloned().collect(), gap_until }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::event::EventKind;

    fn push(buffer: &mut ReplayBuffer, bytes: usize) {
        let event = SessionEvent {
            id: buffer.next_id(),
            prompt_id: None,
            kind: EventKind::Update,
            data: "x".repeat(bytes).into(),
        };
        buffer.push(event);
    }

    #[test]
    fn a_reader_who_missed_too_much_is_told_where_the_buffer_begins() {
        let mut buffer = ReplayBuffer::new(2, 1000, 0);
        (0..5).for_each(|_| push(&mut buffer, 1));
        let replay = buffer.after(1);
        assert_eq!(replay.gap_until, Some(4));
        assert_eq!(replay.events.iter().map(|event| event.id).collect::<Vec<_>>(), [4, 5]);
        assert!(buffer.after(3).gap_until.is_none());
        assert!(buffer.after(5).events.is_empty());
    }

    #[test]
    fn the_newest_event_is_held_however_large_it_is() {
        let mut buffer = ReplayBuffer::new(10, 10, 0);
        push(&mut buffer, 100);
        assert_eq!(buffer.after(0).events.len(), 1);
    }

    proptest! {
        #[test]
        fn a_replay_is_gap_free_up_to_the_newest(sizes in prop::collection::vec(0usize..50, 0..100), after in 0u64..120) {
            let mut buffer = ReplayBuffer::new(20, 300, 0);
            sizes.iter().for_each(|size| push(&mut buffer, *size));
            let replay = buffer.after(after);
            let first = replay.gap_until.unwrap_or(after + 1);
            let ids: Vec<_> = replay.events.iter().map(|event| event.id).collect();
            let newest = u64::try_from(sizes.len()).unwrap();
            prop_assert_eq!(ids, (first..=newest).collect::<Vec<_>>());
        }
    }
}
