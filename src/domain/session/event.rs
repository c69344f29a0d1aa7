//! Events of a session: serialised once, shared by all readers, and buffered for replay.

use std::{collections::VecDeque, fmt::Write, sync::Arc};

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
        /// A permission request was answered: by a caller, by a policy, or by its time limit.
        PermissionResolved = "permission_resolved",
        /// The mode, the model or an option was set, or was set again in a fresh agent, or could not be.
        Settings = "settings",
        /// Progress of the clone while the session is prepared.
        Preparation = "preparation",
        /// The session's state or connection changed.
        Status = "status",
        /// A fault was tolerated, or output was dropped.
        Diagnostic = "diagnostic",
        /// A notification of the agent that the protocol does not know, raw.
        Notification = "notification",
        /// Progress of the turn, and an estimate of when it ends.
        Progress = "progress",
        /// The workspace's route was flipped: to the fallback, or back.
        Rollback = "rollback",
        /// A step of GitHub automation began or ended.
        Automation = "automation",
        /// A turn ended; the event carries its result.
        Result = "result",
    }
}

/// One event of a session.
#[derive(Debug, Clone)]
pub(crate) struct SessionEvent {
    /// Sequence number within the session; increases by one.
    pub id: u64,
    /// The turn to which the event belongs, if any.
    pub prompt_id: Option<PromptId>,
    pub kind: EventKind,
    /// The JSON for every reader: `{sessionId, promptId, type, update}`, and the agent's `_meta` if it sent one beside the
    /// update.
    pub data: Arc<str>,
}

/// Serialises an event's `data`. `update` is the JSON of the agent's update or of an event of this service; `meta` is the
/// agent's `_meta` beside the update.
pub(crate) fn event_data(
    session: SessionId,
    prompt: Option<PromptId>,
    kind: EventKind,
    update: &str,
    meta: Option<&str>,
) -> Arc<str> {
    let mut data = String::with_capacity(update.len() + 160);
    data.push_str("{\"sessionId\":\"");
    // Writing to a text never fails.
    let _ = write!(data, "{session}");
    match prompt {
        Some(prompt) => {
            let _ = write!(data, "\",\"promptId\":\"{prompt}\"");
        }
        None => data.push_str("\",\"promptId\":null"),
    }
    data.push_str(",\"type\":\"");
    data.push_str(kind.as_str());
    data.push_str("\",\"update\":");
    data.push_str(update);
    if let Some(meta) = meta {
        data.push_str(",\"_meta\":");
        data.push_str(meta);
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

/// The buffered events after an id.
#[derive(Debug)]
pub(crate) struct Replay {
    /// Oldest first.
    pub events: Vec<SessionEvent>,
    /// The first buffered id, if events before it that the reader asked for were dropped.
    pub gap_until: Option<u64>,
}

impl ReplayBuffer {
    /// An empty buffer for at most `max_events` events and `max_bytes` bytes of data; when full, the oldest are dropped.
    /// The newest event is always held, whatever its size. Ids continue after `last_id`.
    pub(crate) fn new(max_events: usize, max_bytes: usize, last_id: u64) -> Self {
        Self { max_events, max_bytes, bytes: 0, events: VecDeque::new(), next_id: last_id + 1 }
    }

    /// The id of the next event.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Appends an event, whose id must be [`Self::next_id`].
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

    /// The events with an id above `after`.
    pub(crate) fn after(&self, after: u64) -> Replay {
        let first_held = self.events.front().map_or(self.next_id, |event| event.id);
        // `after` comes from the reader and may be any number.
        let wanted = after.saturating_add(1);
        let gap_until = (first_held > wanted).then_some(first_held);
        let skip = usize::try_from(wanted.saturating_sub(first_held)).unwrap_or(usize::MAX);
        Replay { events: self.events.iter().skip(skip).cloned().collect(), gap_until }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, test_runner::RngAlgorithm};
    use uuid::Uuid;

    use super::{EventKind, *};

    #[test]
    fn event_data_is_json_with_the_verbatim_update() {
        let update = r#"{"sessionUpdate":"x",  "n":1.0}"#;
        let session = SessionId(Uuid::nil());
        let data = event_data(session, Some(PromptId(Uuid::nil())), EventKind::Update, update, None);
        let value: serde_json::Value = serde_json::from_str(&data).unwrap();
        assert_eq!(value["type"], "update");
        assert_eq!(value["promptId"], Uuid::nil().to_string());
        assert!(data.contains(update));
        assert!(event_data(session, None, EventKind::Status, update, Some(update)).contains("\"promptId\":null"));
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
    fn replay_reports_a_gap_if_the_reader_missed_too_much() {
        let mut buffer = ReplayBuffer::new(2, 1000, 0);
        (0..5).for_each(|_| push(&mut buffer, 1));
        let replay = buffer.after(1);
        assert_eq!(replay.gap_until, Some(4));
        assert_eq!(replay.events.iter().map(|event| event.id).collect::<Vec<_>>(), [4, 5]);
        assert!(buffer.after(3).gap_until.is_none());
        assert!(buffer.after(5).events.is_empty());
    }

    #[test]
    fn newest_event_is_held_whatever_its_size() {
        let mut buffer = ReplayBuffer::new(10, 10, 0);
        push(&mut buffer, 100);
        assert_eq!(buffer.after(0).events.len(), 1);
    }

    /// An operation on the buffer.
    #[derive(Debug, Clone)]
    enum Step {
        Push(usize),
        Read(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        // Readers may also send ids far outside the buffer, up to the largest number.
        let near = (0u64..90).prop_map(Step::Read);
        let far = prop_oneof![Just(u64::MAX), Just(u64::MAX - 1), any::<u64>()].prop_map(Step::Read);
        prop_oneof![5 => (0usize..60).prop_map(Step::Push), 1 => (200usize..900).prop_map(Step::Push), 3 => near, 1 => far]
    }

    /// The ids that are held after events of these sizes: the longest run up to the newest within both bounds, and at
    /// least the newest.
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
        // XorShift instead of ChaCha: in a debug build the default generator takes most of the test's time.
        #![proptest_config(ProptestConfig { cases: 10_000, rng_algorithm: RngAlgorithm::XorShift, ..ProptestConfig::default() })]

        #[test]
        fn replay_buffer_matches_its_model(
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
                        prop_assert_eq!(ids, expected, "held: {:?}", held);
                        let gap = (*held.start() > after.saturating_add(1)).then_some(*held.start());
                        prop_assert_eq!(replay.gap_until, gap, "held: {:?}", held);
                        for event in &replay.events {
                            let index = usize::try_from(event.id - last_id - 1).unwrap();
                            prop_assert_eq!(event.data.len(), sizes[index], "each id has its own event");
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
