//! What a session tells its readers, written once and shared by all of them.

use std::{collections::VecDeque, sync::Arc};

use serde_json::value::RawValue;

use crate::domain::{
    ids::{PromptId, SessionId},
    words::words,
};

words! {
    /// The kinds of event, by which clients switch.
    EventKind {
        /// An update of the agent, raw.
        Update = "update",
        /// The agent asks for permission and somebody has to answer.
        PermissionRequest = "permission_request",
        /// A permission request was answered, by whomever.
        PermissionResolved = "permission_resolved",
        /// The session's state or connection changed.
        Status = "status",
        /// Something was tolerated.
        Diagnostic = "diagnostic",
        /// A notification of the agent that the protocol does not know, raw.
        Notification = "notification",
        /// How the turn gets on, and when it will have ended.
        Progress = "progress",
        /// The workspace's route was flipped: to the fallback, or back.
        Rollback = "rollback",
        /// A turn ended; the event carries its result.
        Result = "result",
    }
}

/// One event: `data` is the JSON that every reader gets.
#[derive(Debug, Clone)]
pub(crate) struct SessionEvent {
    /// Counts up by one within the session.
    pub id: u64,
    /// The turn that it belongs to, if any.
    pub prompt_id: Option<PromptId>,
    pub kind: EventKind,
    /// `{sessionId, promptId, type, update}`, and the agent's `_meta` where it stood beside the update.
    pub data: Arc<str>,
}

/// Writes an event's `data`: `update` is the agent's raw update, or our own event's content; `meta` is what the
/// agent put beside it.
pub(crate) fn event_data(
    session: SessionId,
    prompt: Option<PromptId>,
    kind: EventKind,
    update: &RawValue,
    meta: Option<&RawValue>,
) -> Arc<str> {
    let update = update.get();
    let mut data = String::with_capacity(update.len() + 160);
    data.push_str("{\"sessionId\":\"");
    data.push_str(&session.to_string());
    match prompt {
        Some(prompt) => {
            data.push_str("\",\"promptId\":\"");
            data.push_str(&prompt.to_string());
            data.push('"');
        }
        None => data.push_str("\",\"promptId\":null"),
    }
    data.push_str(",\"type\":\"");
    data.push_str(kind.as_str());
    data.push_str("\",\"update\":");
    data.push_str(update);
    if let Some(meta) = meta {
        data.push_str(",\"_meta\":");
        data.push_str(meta.get());
    }
    data.push('}');
    data.into()
}

/// The newest events of a session, bounded by count and by bytes.
#[derive(Debug)]
pub(crate) struct ReplayBuffer {
    max_events: usize,
    max_bytes: usize,
    bytes: usize,
    events: VecDeque<SessionEvent>,
    next_id: u64,
}

/// What a reader gets who wants everything after an id.
#[derive(Debug)]
pub(crate) struct Replay {
    /// The events, oldest first.
    pub events: Vec<SessionEvent>,
    /// The first id that the buffer still holds, where events between it and the wanted one are gone.
    pub gap_until: Option<u64>,
}

impl ReplayBuffer {
    /// Holds at most `max_events` events and about `max_bytes` bytes of them; the newest one always. Ids go
    /// on after `last_id`.
    pub(crate) fn new(max_events: usize, max_bytes: usize, last_id: u64) -> Self {
        Self { max_events, max_bytes, bytes: 0, events: VecDeque::new(), next_id: last_id + 1 }
    }

    /// The id that the next event will get.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Takes an event whose id is [`Self::next_id`].
    pub(crate) fn push(&mut self, event: SessionEvent) {
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
    pub(crate) fn after(&self, after: u64) -> Replay {
        let first_held = self.events.front().map_or(self.next_id, |event| event.id);
        // Any number may be asked for.
        let wanted = after.saturating_add(1);
        let gap_until = (first_held > wanted).then_some(first_held);
        let skip = usize::try_from(wanted.saturating_sub(first_held)).unwrap_or(usize::MAX);
        Replay { events: self.events.iter().skip(skip).cloned().collect(), gap_until }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::{EventKind, *};

    #[test]
    fn data_is_json_with_the_update_untouched() {
        let update = RawValue::from_string(r#"{"sessionUpdate":"x",  "n":1.0}"#.to_owned()).unwrap();
        let session = SessionId(Uuid::nil());
        let data = event_data(session, Some(PromptId(Uuid::nil())), EventKind::Update, &update, None);
        let value: serde_json::Value = serde_json::from_str(&data).unwrap();
        assert_eq!(value["type"], "update");
        assert_eq!(value["promptId"], Uuid::nil().to_string());
        assert!(data.contains(update.get()));
        assert!(event_data(session, None, EventKind::Status, &update, Some(&update)).contains("\"promptId\":null"));
    }

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
    fn late_reader_gets_the_start_of_the_buffer() {
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

    /// What a run of the ring does.
    #[derive(Debug, Clone)]
    enum Step {
        Push(usize),
        Read(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        // Ids far outside, and around the end of the numbers, come from readers too.
        let near = (0u64..90).prop_map(Step::Read);
        let far = prop_oneof![Just(u64::MAX), Just(u64::MAX - 1), any::<u64>()].prop_map(Step::Read);
        prop_oneof![5 => (0usize..60).prop_map(Step::Push), 1 => (200usize..900).prop_map(Step::Push), 3 => near, 1 => far]
    }

    /// The ids that are held after the events of these sizes: the longest run up to the newest within both bounds,
    /// and the newest in any case.
    fn held(sizes: &[usize], last_id: u64, max_events: usize, max_bytes: usize) -> std::ops::RangeInclusive<u64> {
        let mut bytes = 0;
        let fits = sizes.iter().rev().enumerate().take_while(|(index, size)| {
            bytes += **size;
            *index == 0 || (*index < max_events && bytes <= max_bytes)
        });
        let count = u64::try_from(fits.count()).unwrap();
        let newest = last_id + u64::try_from(sizes.len()).unwrap();
        newest + 1 - count..=newest
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn the_ring_does_what_its_model_does(
            steps in prop::collection::vec(step(), 0..40),
            max_events in 1usize..12,
            max_bytes in 1usize..400,
            last_id in prop_oneof![Just(0u64), 0u64..50, Just(10_000_000_000u64)],
        ) {
            let mut ring = ReplayBuffer::new(max_events, max_bytes, last_id);
            let mut sizes = Vec::new();
            for step in steps {
                match step {
                    Step::Push(size) => {
                        push(&mut ring, size);
                        sizes.push(size);
                    }
                    Step::Read(after) => {
                        let held = held(&sizes, last_id, max_events, max_bytes);
                        let replay = ring.after(after);
                        let ids: Vec<_> = replay.events.iter().map(|event| event.id).collect();
                        let expected: Vec<_> = held.clone().filter(|id| *id > after).collect();
                        prop_assert_eq!(ids, expected, "held are {:?}", held);
                        let gap = (*held.start() > after.saturating_add(1)).then_some(*held.start());
                        prop_assert_eq!(replay.gap_until, gap, "held are {:?}", held);
                        for event in &replay.events {
                            let index = usize::try_from(event.id - last_id - 1).unwrap();
                            prop_assert_eq!(event.data.len(), sizes[index], "each id stands for its event");
                        }
                    }
                }
                let held = held(&sizes, last_id, max_events, max_bytes);
                prop_assert_eq!(ring.next_id(), held.end() + 1);
                prop_assert!(ring.events.len() <= max_events);
                prop_assert!(ring.bytes <= max_bytes || ring.events.len() == 1, "{} bytes", ring.bytes);
                prop_assert_eq!(ring.bytes, ring.events.iter().map(|event| event.data.len()).sum::<usize>());
            }
        }
    }
}
