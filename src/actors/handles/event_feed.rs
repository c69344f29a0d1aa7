//! A session's events, for readers: backlog and live feed handed over in one step.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use crate::domain::{
    ids::{PromptId, SessionId},
    redaction,
    session::{
        event::{EventKind, Replay, ReplayBuffer, SessionEvent, event_data},
        pending_permissions::{Resolution, WaitingRequest},
    },
};

/// Events queued for one reader; a reader that is further behind is disconnected and resumes from its last id. An
/// agent that streams a lot sends this many updates in a few seconds.
const READER_QUEUE: usize = 256;

/// The events of one session. It outlives the session's actor, so ids continue across restarts of the agent.
/// Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct EventFeed {
    session: SessionId,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    buffer: ReplayBuffer,
    readers: Vec<mpsc::Sender<SessionEvent>>,
    /// Bounded by [`PendingPermissions`](crate::domain::session::pending_permissions).
    waiting: Vec<WaitingEvent>,
}

/// A permission request that waits for an answer, with its event, which later events may have pushed out of the buffer.
#[derive(Debug)]
struct WaitingEvent {
    request: Arc<WaitingRequest>,
    event: SessionEvent,
}

/// The place in the feed from which a reader reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadFrom {
    /// The oldest event in memory.
    Oldest,
    /// The event after this one, which the reader has.
    After(u64),
    /// New events.
    Live,
}

/// A reader's subscription: the backlog, then live events. The receiver ends if the reader was too slow.
#[derive(Debug)]
pub(crate) struct Subscription {
    /// The permission requests that wait, as events, apart from those that the reader has or gets by the replay.
    pub waiting: Vec<SessionEvent>,
    /// The id of the last event before the replay.
    pub after: u64,
    /// Events after the requested id that the feed still holds.
    pub replay: Replay,
    /// Events after the replay.
    pub live: mpsc::Receiver<SessionEvent>,
}

impl EventFeed {
    /// Starts a feed whose ids continue after `last_id`.
    pub(crate) fn new(session: SessionId, max_events: usize, max_bytes: usize, last_id: u64) -> Self {
        let inner = Inner {
            buffer: ReplayBuffer::new(max_events, max_bytes, last_id),
            readers: Vec::new(),
            waiting: Vec::new(),
        };
        Self { session, inner: Arc::new(Mutex::new(inner)) }
    }

    pub(crate) fn session(&self) -> SessionId {
        self.session
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code under this lock panics half-way, so the state is always consistent.
        self.inner.lock()
    }

    /// Numbers an event, redacts it and sends it to every reader; returns its id. Disconnects readers whose queue is full.
    pub(crate) fn publish(
        &self,
        prompt: Option<PromptId>,
        kind: EventKind,
        update: &RawValue,
        meta: Option<&RawValue>,
    ) -> u64 {
        let meta = meta.map(|meta| redaction::of_json(meta.get()));
        let data = event_data(self.session, prompt, kind, &redaction::of_json(update.get()), meta.as_deref());
        self.lock().push(prompt, kind, data)
    }

    /// Publishes an event of the service itself and returns its id.
    pub(crate) fn announce(&self, prompt: Option<PromptId>, kind: EventKind, update: &impl Serialize) -> u64 {
        match serde_json::value::to_raw_value(update) {
            Ok(update) => self.publish(prompt, kind, &update, None),
            Err(_) => self.last_id(),
        }
    }

    /// Publishes a permission request with the content `event`, and keeps it for later readers until [`Self::resolve`].
    pub(crate) fn ask(&self, request: Arc<WaitingRequest>, event: &serde_json::Value) {
        let (prompt_id, kind) = (request.prompt_id, EventKind::PermissionRequest);
        let data = |content: &serde_json::Value| {
            let content = serde_json::to_string(content).ok()?;
            Some(event_data(self.session, prompt_id, kind, &redaction::of_json(&content), None))
        };
        let (Some(whole), Some(kept)) = (data(event), data(&request.content(&request.tool_call))) else { return };
        let mut inner = self.lock();
        let id = inner.push(prompt_id, kind, whole);
        inner.waiting.push(WaitingEvent { request, event: SessionEvent { id, prompt_id, kind, data: kept } });
    }

    /// Publishes the end of a permission request, which does not wait any more.
    pub(crate) fn resolve(&self, resolution: &Resolution) {
        let Ok(content) = serde_json::to_string(&resolution.event()) else { return };
        let kind = EventKind::PermissionResolved;
        let data = event_data(self.session, resolution.prompt_id, kind, &redaction::of_json(&content), None);
        let mut inner = self.lock();
        inner.waiting.retain(|waiting| waiting.request.request_id != resolution.request_id);
        inner.push(resolution.prompt_id, kind, data);
    }

    /// The permission requests that wait for an answer, oldest first.
    pub(crate) fn waiting(&self) -> Vec<Arc<WaitingRequest>> {
        self.lock().waiting.iter().map(|waiting| waiting.request.clone()).collect()
    }

    /// Subscribes to the events from a place on: waiting requests, backlog and live events without a gap between them.
    pub(crate) fn subscribe(&self, from: ReadFrom) -> Subscription {
        let (sender, live) = mpsc::channel(READER_QUEUE);
        let mut inner = self.lock();
        // A session without events would otherwise keep every reader that has left.
        inner.readers.retain(|reader| !reader.is_closed());
        // Registered and read under one lock: no event falls between the replay and the live events.
        inner.readers.push(sender);
        let (after, seen) = match from {
            ReadFrom::Oldest => (0, 0),
            ReadFrom::After(id) => (id, id),
            ReadFrom::Live => (inner.buffer.next_id() - 1, 0),
        };
        let replay = inner.buffer.after(after);
        let first = replay.events.first().map_or(u64::MAX, |event| event.id);
        let waiting = inner.waiting.iter().map(|waiting| &waiting.event);
        let waiting = waiting.filter(|event| event.id > seen && event.id < first).cloned().collect();
        Subscription { waiting, after, replay, live }
    }

    /// Id of the newest event; 0 before the first.
    pub(crate) fn last_id(&self) -> u64 {
        self.lock().buffer.next_id() - 1
    }
}

impl Inner {
    /// Numbers an event and sends it to every reader.
    fn push(&mut self, prompt_id: Option<PromptId>, kind: EventKind, data: Arc<str>) -> u64 {
        let event = SessionEvent { id: self.buffer.next_id(), prompt_id, kind, data };
        let id = event.id;
        // Under the lock, so that all readers get the events in the order of their ids.
        self.readers.retain(|reader| reader.try_send(event.clone()).is_ok());
        self.buffer.push(event);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{clock::Timestamp, session::permission::AnsweredBy};
    use uuid::Uuid;

    fn waiting(id: &str) -> Arc<WaitingRequest> {
        let null = RawValue::NULL.to_owned();
        let (since, deadline) = (Timestamp(0), Timestamp(1));
        let request_id = id.to_owned();
        Arc::new(WaitingRequest {
            request_id,
            prompt_id: None,
            tool_call: null,
            options: Vec::new(),
            since,
            deadline,
        })
    }

    fn ids(events: &[SessionEvent]) -> Vec<u64> {
        events.iter().map(|event| event.id).collect()
    }

    #[test]
    fn waiting_request_is_the_first_event_of_a_late_reader_until_it_is_resolved() {
        let feed = EventFeed::new(SessionId(Uuid::nil()), 3, 1 << 20, 7);
        feed.ask(waiting("r"), &serde_json::json!({"whole": true}));
        assert_eq!(ids(&feed.subscribe(ReadFrom::Oldest).replay.events), [8]);
        assert!(feed.subscribe(ReadFrom::Oldest).waiting.is_empty(), "the replay has it");
        for _ in 0..5 {
            feed.announce(None, EventKind::Status, &serde_json::json!({}));
        }
        for from in [ReadFrom::Oldest, ReadFrom::Live, ReadFrom::After(7)] {
            assert_eq!(ids(&feed.subscribe(from).waiting), [8], "{from:?}");
        }
        assert!(feed.subscribe(ReadFrom::After(8)).waiting.is_empty(), "the reader has it");
        assert_eq!(feed.waiting().len(), 1);
        let (request_id, by) = ("r".to_owned(), AnsweredBy::User);
        feed.resolve(&Resolution { request_id, prompt_id: None, tool_call_id: None, option: None, by });
        assert!(feed.subscribe(ReadFrom::Live).waiting.is_empty() && feed.waiting().is_empty());
    }

    fn feed() -> EventFeed {
        EventFeed::new(SessionId(Uuid::nil()), 1000, 1 << 20, 7)
    }

    #[test]
    fn backlog_and_live_feed_meet_without_a_gap() {
        let feed = feed();
        feed.announce(None, EventKind::Status, &serde_json::json!({}));
        let mut reader = feed.subscribe(ReadFrom::After(7));
        feed.announce(None, EventKind::Status, &serde_json::json!({}));
        assert_eq!(reader.replay.events.iter().map(|event| event.id).collect::<Vec<_>>(), [8]);
        assert_eq!(reader.live.try_recv().unwrap().id, 9);
        assert_eq!(feed.last_id(), 9);
    }

    #[test]
    fn disconnected_readers_of_a_silent_session_are_dropped() {
        let feed = feed();
        for _ in 0..100 {
            drop(feed.subscribe(ReadFrom::After(7)));
        }
        let _reader = feed.subscribe(ReadFrom::After(7));
        assert_eq!(feed.lock().readers.len(), 1);
    }

    #[test]
    fn slow_reader_is_disconnected_and_others_are_not() {
        let feed = feed();
        let mut slow = feed.subscribe(ReadFrom::After(7));
        for _ in 0..=READER_QUEUE {
            feed.announce(None, EventKind::Status, &serde_json::json!({}));
        }
        let mut late = feed.subscribe(ReadFrom::Live);
        feed.announce(None, EventKind::Status, &serde_json::json!({}));
        assert!(late.live.try_recv().is_ok());
        let got = std::iter::from_fn(|| slow.live.try_recv().ok()).count();
        assert_eq!(got, READER_QUEUE);
        assert_eq!(slow.live.try_recv().unwrap_err(), mpsc::error::TryRecvError::Disconnected);
    }
}
