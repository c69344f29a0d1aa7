//! A bounded, bidirectional pipe for ACP messages, the base of every transport.
//!
//! Each direction is bounded by messages, so that many small ones cannot pile up, and by bytes, so that a few large
//! ones cannot either. A full pipe makes its writer wait, which in turn fills the agent's own pipe: back-pressure
//! reaches the source of the text.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use crate::contract::runtime::AgentExited;

/// The queue limits of one direction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PipeLimits {
    /// The largest number of queued messages.
    pub frames: usize,
    /// The total size of queued messages in bytes. A single message that is larger passes alone.
    pub bytes: usize,
}

/// The text of one ACP message. Holds its share of the byte budget until it is dropped.
#[derive(Debug)]
pub(crate) struct Frame {
    text: String,
    seq: u64,
    _share: Option<OwnedSemaphorePermit>,
}

impl Frame {
    /// The text of the message.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The sequence number of the message; 0 if the sender does not number its messages.
    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    /// Takes the text and releases the message's share of the byte budget.
    pub(crate) fn into_text(self) -> String {
        self.text
    }
}

/// Reasons for the end of a connection.
#[derive(Debug, Clone)]
pub(crate) enum CloseReason {
    AgentExited(AgentExited),
    /// The connection broke, or the peer closed it without a reason; the text is the cause.
    Lost(String),
    /// The runtime stopped, restarted, or cannot be reached; the text is the cause.
    RuntimeUnavailable(String),
    /// The peer sent a message larger than the limit.
    FrameTooLarge {
        /// Largest frame of the connection, in bytes.
        limit: usize,
    },
}

/// A change of the connection under a pipe while the pipe itself stays open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ConnectionState {
    /// The connection was interrupted and is being restored; the text is the cause.
    Interrupted(String),
    Resumed,
}

/// Items read from a pipe.
#[derive(Debug)]
pub(crate) enum Incoming {
    Frame(Frame),
    /// The connection changed state between the preceding and the following message.
    State(ConnectionState),
    /// The end of the connection; sent once, after the last message.
    Closed(CloseReason),
}

/// The writing end of one direction. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct FrameSender {
    queue: mpsc::Sender<Incoming>,
    budget: Arc<Semaphore>,
    bytes: usize,
    _writers: Arc<Writers>,
}

/// Notifies the reader when the last sender is dropped, even while messages are still queued.
#[derive(Debug)]
struct Writers {
    gone: Arc<Notify>,
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.gone.notify_one();
    }
}

/// The reading end of one direction.
#[derive(Debug)]
pub(crate) struct FrameReceiver {
    queue: mpsc::Receiver<Incoming>,
    writers_dropped: Arc<Notify>,
}

/// Reasons why a message was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SendError {
    /// The pipe is full because the reader is too slow. A retry is safe.
    #[error("the other side does not read")]
    Full,
    #[error("the connection is closed")]
    Closed,
}

/// Reasons why a message was not queued, with the message for a later attempt.
#[derive(Debug)]
pub(crate) enum Refused {
    /// As [`SendError::Full`], with the text of the message.
    Full(String),
    /// As [`SendError::Closed`].
    Closed,
}

/// Creates both ends of one direction.
pub(crate) fn bounded(limits: PipeLimits) -> (FrameSender, FrameReceiver) {
    let (sender, receiver) = mpsc::channel(limits.frames);
    // A semaphore counts in u32 when it acquires many permits at once.
    let bytes = limits.bytes.clamp(1, u32::MAX as usize);
    let gone = Arc::new(Notify::new());
    let writers = Arc::new(Writers { gone: gone.clone() });
    let sender = FrameSender { queue: sender, budget: Arc::new(Semaphore::new(bytes)), bytes, _writers: writers };
    (sender, FrameReceiver { queue: receiver, writers_dropped: gone })
}

impl FrameSender {
    fn share_of(&self, text: &str) -> u32 {
        // At most the whole budget, so that a message larger than the budget can be sent when the pipe is empty.
        u32::try_from(text.len().clamp(1, self.bytes)).unwrap_or(u32::MAX)
    }

    /// Queues a message; waits while the pipe is full.
    ///
    /// # Errors
    /// Only [`SendError::Closed`].
    ///
    /// # Cancel safety
    /// A dropped future has queued nothing.
    pub(crate) async fn send(&self, text: String) -> Result<(), SendError> {
        self.send_numbered(text, 0).await
    }

    /// Same as [`FrameSender::send`], for a message with a sequence number.
    pub(crate) async fn send_numbered(&self, text: String, seq: u64) -> Result<(), SendError> {
        // The budget before the place in the queue: a sender that waits for bytes must not occupy a place.
        let share = self.budget.clone().acquire_many_owned(self.share_of(&text)).await;
        let share = share.map_err(|_| SendError::Closed)?;
        let frame = Frame { text, seq, _share: Some(share) };
        self.queue.send(Incoming::Frame(frame)).await.map_err(|_| SendError::Closed)
    }

    /// Queues a message without waiting.
    pub(crate) fn try_send(&self, text: String) -> Result<(), SendError> {
        self.offer(text, 0).map_err(|refused| match refused {
            Refused::Full(_) => SendError::Full,
            Refused::Closed => SendError::Closed,
        })
    }

    /// Queues a message with its sequence number without waiting. A full pipe returns the message with the error.
    pub(crate) fn offer(&self, text: String, seq: u64) -> Result<(), Refused> {
        let Ok(share) = self.budget.clone().try_acquire_many_owned(self.share_of(&text)) else {
            return Err(Refused::Full(text));
        };
        let frame = Frame { text, seq, _share: Some(share) };
        self.queue.try_send(Incoming::Frame(frame)).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(Incoming::Frame(frame)) => Refused::Full(frame.text),
            mpsc::error::TrySendError::Full(_) | mpsc::error::TrySendError::Closed(_) => Refused::Closed,
        })
    }

    /// Queues a change of the connection's state; waits while the queue is full.
    ///
    /// # Cancel safety
    /// A dropped future has queued nothing.
    pub(crate) async fn send_state(&self, state: ConnectionState) -> Result<(), SendError> {
        self.queue.send(Incoming::State(state)).await.map_err(|_| SendError::Closed)
    }

    /// Queues the end of the connection; waits while the queue is full. Does nothing if the reader was dropped.
    pub(crate) async fn close(self, reason: CloseReason) {
        let _ = self.queue.send(Incoming::Closed(reason)).await;
    }

    /// Waits until the reader is dropped.
    pub(crate) async fn reader_dropped(&self) {
        self.queue.closed().await;
    }
}

impl FrameReceiver {
    /// Returns the next item; `None` if all senders were dropped without a close reason.
    ///
    /// # Cancel safety
    /// A dropped future has taken nothing from the queue.
    pub(crate) async fn recv(&mut self) -> Option<Incoming> {
        self.queue.recv().await
    }

    /// Waits until the last sender is dropped, even while messages are still queued: for a reader that is busy with
    /// an operation that may never finish.
    ///
    /// # Cancel safety
    /// Cancel-safe: a dropped future loses no notification.
    pub(crate) async fn writers_dropped(&self) {
        self.writers_dropped.notified().await;
        // Keeps the notification for the next caller.
        self.writers_dropped.notify_one();
    }

    /// True if the last sender was dropped; messages may still be queued.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.queue.is_closed()
    }

    /// Same as [`FrameReceiver::recv`], for hand-written futures.
    pub(crate) fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Incoming>> {
        Poll::Ready(ready!(self.queue.poll_recv(cx)))
    }
}

/// Both directions, from the point of view of an agent's client.
#[derive(Debug)]
pub(crate) struct Pipe {
    /// Sends to the agent. Dropping the last clone ends the session behind the pipe.
    pub to_agent: FrameSender,
    pub from_agent: FrameReceiver,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pipe_is_bounded_by_bytes_and_by_messages() {
        let (sender, mut receiver) = bounded(PipeLimits { frames: 2, bytes: 10 });
        sender.try_send("x".repeat(8)).unwrap();
        assert_eq!(sender.try_send("x".repeat(8)), Err(SendError::Full));
        drop(receiver.recv().await);
        sender.try_send("a".into()).unwrap();
        sender.try_send("b".into()).unwrap();
        assert_eq!(sender.try_send("c".into()), Err(SendError::Full));
    }

    #[tokio::test]
    async fn message_larger_than_the_budget_passes_alone() {
        let (sender, mut receiver) = bounded(PipeLimits { frames: 4, bytes: 10 });
        sender.send("x".repeat(100)).await.unwrap();
        assert_eq!(sender.try_send("y".into()), Err(SendError::Full));
        assert!(matches!(receiver.recv().await, Some(Incoming::Frame(frame)) if frame.text().len() == 100));
        sender.try_send("y".into()).unwrap();
    }
}
