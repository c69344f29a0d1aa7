//! A session's events, for readers: backlog and live feed handed over in one step.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use crate::domain::{
    ids::{PromptId, SessionId},
    session::event::{EventKind, Replay, ReplayBuffer, SessionEvent, event_data},
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
}

/// A reader's subscription: the backlog, then live events. The receiver ends if the reader was too slow.
#[derive(Debug)]
pub(crate) struct Subscription {
    /// Events after the requested id that the feed still holds.
    pub replay: Replay,
    /// Events after the replay.
    pub live: mpsc::Receiver<SessionEvent>,
}

impl EventFeed {
    /// Starts a feed whose ids continue after `last_id`.
    pub(crate) fn new(session: SessionId, max_events: usize, max_bytes: usize, last_id: u64) -> Self {
        let inner = Inner { buffer: ReplayBuffer::new(max_events, max_bytes, last_id), readers: Vec::new() };
        Self { session, inner: Arc::new(Mutex::new(inner)) }
    }

    pub(crate) fn session(&self) -> SessionId {
        self.session
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code under this lock panics half-way, so the state is always consistent.
        self.inner.lock()
    }

    /// Numbers an event and sends it to every reader; returns its id. Disconnects readers whose queue is full.
    pub(crate) fn publish(
        &self,
        prompt: Option<PromptId>,
        kind: EventKind,
        update: &RawValue,
        meta: Option<&RawValue>,
    ) -> u64 {
        let data = event_data(self.session, prompt, kind, update, meta);
        let mut inner = self.lock();
        let event = SessionEvent { id: inner.buffer.next_id(), prompt_id: prompt, kind, data };
        let id = event.id;
        // Under the lock, so that all readers get the events in the order of their ids.
        inner.readers.retain(|reader| reader.try_send(event.clone()).is_ok());
        inner.buffer.push(event);
        id
    }

    /// Publishes an event of the service itself and returns its id.
    pub(crate) fn announce(&self, prompt: Option<PromptId>, kind: EventKind, update: &impl Serialize) -> u64 {
        match serde_json::value::to_raw_value(update) {
            Ok(update) => self.publish(prompt, kind, &update, None),
            Err(_) => self.last_id(),
        }
    }

    /// Subscribes to the events after `after`: backlog and live events without a gap between the two.
    pub(crate) fn subscribe(&self, after: u64) -> Subscription {
        let (sender, live) = mpsc::channel(READER_QUEUE);
        let mut inner = self.lock();
        // A session without events would otherwise keep every reader that has left.
        inner.readers.retain(|reader| !reader.is_closed());
        // Registered and read under one lock: no event falls between the replay and the live events.
        inner.readers.push(sender);
        Subscription { replay: inner.buffer.after(after), live }
    }

    /// Id of the newest event; 0 before the first.
    pub(crate) fn last_id(&self) -> u64 {
        self.lock().buffer.next_id() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn feed() -> EventFeed {
        EventFeed::new(SessionId(Uuid::nil()), 1000, 1 << 20, 7)
    }

    #[test]
    fn backlog_and_live_feed_meet_without_a_gap() {
        let feed = feed();
        feed.announce(None, EventKind::Status, &serde_json::json!({}));
        let mut reader = feed.subscribe(7);
        feed.announce(None, EventKind::Status, &serde_json::json!({}));
        assert_eq!(reader.replay.events.iter().map(|event| event.id).collect::<Vec<_>>(), [8]);
        assert_eq!(reader.live.try_recv().unwrap().id, 9);
        assert_eq!(feed.last_id(), 9);
    }

    #[test]
    fn disconnected_readers_of_a_silent_session_are_dropped() {
        let feed = feed();
        for _ in 0..100 {
            drop(feed.subscribe(7));
        }
        let _reader = feed.subscribe(7);
        assert_eq!(feed.lock().readers.len(), 1);
    }

    #[test]
    fn slow_reader_is_disconnected_and_others_are_not() {
        let feed = feed();
        let mut slow = feed.subscribe(7);
        for _ in 0..=READER_QUEUE {
            feed.announce(None, EventKind::Status, &serde_json::json!({}));
        }
        let mut late = feed.subscribe(feed.last_id());
        feed.announce(None, EventKind::Status, &serde_json::json!({}));
        assert!(late.live.try_recv().is_ok());
        let got = std::iter::from_fn(|| slow.live.try_recv().ok()).count();
        assert_eq!(got, READER_QUEUE);
        assert_eq!(slow.live.try_recv().unwrap_err(), mpsc::error::TryRecvError::Disconnected);
    }
}
