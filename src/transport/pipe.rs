//! A bounded way for ACP messages in both directions: what every transport is underneath.
//!
//! Bounded twice: by messages, so that many small ones cannot pile up, and by bytes, so that few large
//! ones cannot either. A full pipe makes its writer wait, and so the agent's own pipe fills: back-pressure
//! ends where the text is made.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use crate::contract::runtime::AgentExited;

/// How much may wait in one direction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PipeLimits {
    /// Messages.
    pub frames: usize,
    /// Bytes; one message that is larger than this passes alone.
    pub bytes: usize,
}

/// The text of one ACP message. It holds its share of the byte budget until it is dropped.
#[derive(Debug)]
pub(crate) struct Frame {
    text: String,
    seq: u64,
    _share: Option<OwnedSemaphorePermit>,
}

impl Frame {
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The number under which it came; 0 where its sender does not number.
    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    /// The message alone; its share of the budget is given back.
    pub(crate) fn into_text(self) -> String {
        self.text
    }
}

/// Why nothing more comes.
#[derive(Debug, Clone)]
pub(crate) enum CloseReason {
    /// The agent's process ended.
    AgentExited(AgentExited),
    /// The connection broke, or the other side closed it without saying why.
    Lost(String),
    /// The other side sent a message larger than the limit.
    FrameTooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
}

/// What the line under a pipe does while the pipe itself lives on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ConnectionState {
    /// It broke, and is being made again; the cause.
    Interrupted(String),
    /// It stands again.
    Resumed,
}

/// What comes out of a pipe.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A message.
    Frame(Frame),
    /// The line broke or stands again, between the messages before and after.
    Line(ConnectionState),
    /// The end, said once, after the last message.
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

/// Tells the reader when the last sender is gone, even while messages are still queued.
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
    writers_gone: Arc<Notify>,
}

/// A message could not be queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SendError {
    /// The reader is too slow; nothing was queued.
    #[error("the other side does not read")]
    Full,
    /// The reader is gone.
    #[error("the connection is closed")]
    Closed,
}

/// A message could not be queued, and comes back.
#[derive(Debug)]
pub(crate) enum Refused {
    /// As [`SendError::Full`], with the message.
    Full(String),
    /// As [`SendError::Closed`].
    Closed,
}

/// Both ends of one direction.
pub(crate) fn bounded(limits: PipeLimits) -> (FrameSender, FrameReceiver) {
    let (sender, receiver) = mpsc::channel(limits.frames);
    // A semaphore counts in u32 when it hands out many permits at once.
    let bytes = limits.bytes.clamp(1, u32::MAX as usize);
    let gone = Arc::new(Notify::new());
    let writers = Arc::new(Writers { gone: gone.clone() });
    let sender = FrameSender { queue: sender, budget: Arc::new(Semaphore::new(bytes)), bytes, _writers: writers };
    (sender, FrameReceiver { queue: receiver, writers_gone: gone })
}

impl FrameSender {
    fn share_of(&self, text: &str) -> u32 {
        u32::try_from(text.len().clamp(1, self.bytes)).unwrap_or(u32::MAX)
    }

    /// Queues a message, and waits while the pipe is full. Cancel-safe: a dropped future queued nothing.
    pub(crate) async fn send(&self, text: String) -> Result<(), SendError> {
        self.send_numbered(text, 0).await
    }

    /// [`FrameSender::send`] for a message that has a number.
    pub(crate) async fn send_numbered(&self, text: String, seq: u64) -> Result<(), SendError> {
        let share = self.budget.clone().acquire_many_owned(self.share_of(&text)).await;
        let share = share.map_err(|_| SendError::Closed)?;
        let frame = Frame { text, seq, _share: Some(share) };
        self.queue.send(Incoming::Frame(frame)).await.map_err(|_| SendError::Closed)
    }

    /// Queues a message if there is room now.
    pub(crate) fn try_send(&self, text: String) -> Result<(), SendError> {
        self.offer(text, 0).map_err(|refused| match refused {
            Refused::Full(_) => SendError::Full,
            Refused::Closed => SendError::Closed,
        })
    }

    /// Queues a message with its number if there is room now; else gives it back.
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

    /// Says what the line does. Waits for room like a message; cancel-safe.
    pub(crate) async fn send_state(&self, state: ConnectionState) -> Result<(), SendError> {
        self.queue.send(Incoming::Line(state)).await.map_err(|_| SendError::Closed)
    }

    /// Says that nothing more comes, and why. Waits for room like a message; nobody listening is fine.
    pub(crate) async fn close(self, reason: CloseReason) {
        let _ = self.queue.send(Incoming::Closed(reason)).await;
    }

    /// Ends when the reader is gone.
    pub(crate) async fn reader_gone(&self) {
        self.queue.closed().await;
    }
}

impl FrameReceiver {
    /// The next message or the end; `None` when the writer is gone. Cancel-safe.
    pub(crate) async fn recv(&mut self) -> Option<Incoming> {
        self.queue.recv().await
    }

    /// Ends when the last sender is gone, at once and not only after the queued messages: for a reader that
    /// is busy with something that may never end. Cancel-safe.
    pub(crate) async fn writers_gone(&self) {
        self.writers_gone.notified().await;
        // Keeps the answer for the next caller.
        self.writers_gone.notify_one();
    }

    /// Whether the last sender is gone; messages may still be queued.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.queue.is_closed()
    }

    /// [`FrameReceiver::recv`] for hand-written futures.
    pub(crate) fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Incoming>> {
        Poll::Ready(ready!(self.queue.poll_recv(cx)))
    }
}

/// Both directions, as the client of an agent holds them.
#[derive(Debug)]
pub(crate) struct Pipe {
    /// To the agent. Dropping the last clone ends the session behind the pipe.
    pub to_agent: FrameSender,
    /// From the agent.
    pub from_agent: FrameReceiver,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pipe_is_full_by_bytes_and_by_messages() {
        let (sender, mut receiver) = bounded(PipeLimits { frames: 2, bytes: 10 });
        sender.try_send("x".repeat(8)).unwrap();
        assert_eq!(sender.try_send("x".repeat(8)), Err(SendError::Full));
        drop(receiver.recv().await);
        sender.try_send("a".into()).unwrap();
        sender.try_send("b".into()).unwrap();
        assert_eq!(sender.try_send("c".into()), Err(SendError::Full));
    }

    #[tokio::test]
    async fn a_message_larger_than_the_budget_passes_alone() {
        let (sender, mut receiver) = bounded(PipeLimits { frames: 4, bytes: 10 });
        sender.send("x".repeat(100)).await.unwrap();
        assert_eq!(sender.try_send("y".into()), Err(SendError::Full));
        assert!(matches!(receiver.recv().await, Some(Incoming::Frame(frame)) if frame.text().len() == 100));
        sender.try_send("y".into()).unwrap();
    }
}
