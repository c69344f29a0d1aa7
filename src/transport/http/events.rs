//! The events that wait for a session, bounded by number and by bytes.

use std::sync::Arc;

use futures_util::{Stream, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::transport::{AgentEvent, SendError};

/// Events queued for the session. When the queue is full, the runtime is not read, and finally its agent waits.
const EVENTS: usize = 16;

type Queued = (AgentEvent, Option<OwnedSemaphorePermit>);

#[derive(Debug, Clone)]
pub(crate) struct EventSender {
    queue: mpsc::Sender<Queued>,
    room: Arc<Semaphore>,
    bytes: u32,
}

/// Creates a queue of events that hold at most `bytes` bytes; a single larger event passes alone.
pub(crate) fn queue(bytes: usize) -> (EventSender, impl Stream<Item = AgentEvent> + Send + use<>) {
    let (queue, events) = mpsc::channel::<Queued>(EVENTS);
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).max(1);
    let room = Arc::new(Semaphore::new(bytes as usize));
    let events = stream::unfold(events, |mut events| async {
        let (event, _) = events.recv().await?;
        Some((event, events))
    });
    (EventSender { queue, room, bytes }, events)
}

impl EventSender {
    /// Waits for room and queues an event that was read from `bytes` bytes.
    ///
    /// # Errors
    /// The session dropped its events.
    ///
    /// # Cancel safety
    /// A dropped future has queued nothing, and the event is lost.
    pub(crate) async fn send(&self, event: AgentEvent, bytes: usize) -> Result<(), SendError> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.bytes);
        // The room before the place: a sender that waits for bytes must not occupy a place.
        let room = self.room.clone().acquire_many_owned(bytes).await.map_err(|_| SendError::Closed)?;
        self.queue.send((event, Some(room))).await.map_err(|_| SendError::Closed)
    }

    /// Queues a small event without waiting.
    pub(crate) fn try_send(&self, event: AgentEvent) -> Result<(), SendError> {
        self.queue.try_send((event, None)).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => SendError::Full,
            mpsc::error::TrySendError::Closed(_) => SendError::Closed,
        })
    }

    /// Waits until the session drops its events. Cancel-safe.
    pub(crate) async fn closed(&self) {
        self.queue.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};

    use super::*;

    fn event() -> AgentEvent {
        AgentEvent::Interrupted("x".into())
    }

    #[tokio::test]
    async fn large_events_wait_for_the_session_to_take_earlier_ones() {
        let (sender, events) = queue(100);
        let mut events = Box::pin(events);
        sender.send(event(), 60).await.unwrap();
        assert!(sender.send(event(), 60).now_or_never().is_none());
        sender.send(event(), 40).await.unwrap();
        events.next().await.unwrap();
        events.next().await.unwrap();
        sender.send(event(), 1000).await.unwrap();
        assert!(sender.send(event(), 1).now_or_never().is_none(), "a larger event passes alone");
        drop(events);
        assert!(sender.send(event(), 1).await.is_err() && sender.closed().now_or_never().is_some());
    }
}
