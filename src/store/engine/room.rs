//! The bytes of writes that wait for the database, queued and retained. In an outage they are what fills the memory.
//!
//! Appends and new turns take a share or wait for one; ends of turns always get one. An end for which there is no room
//! owes its share: it gets the bytes that become free next, before every append that waits. So the bytes that wait are
//! at most [`MAX_WAITING_KIB`] and the ends of the turns that ran when it was reached, one for each: meanwhile no turn
//! is accepted, and sessions stop reading from their agents.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    task::unconstrained,
};

/// Bytes that may wait, in KiB: 64 MiB.
pub(crate) const MAX_WAITING_KIB: u32 = 64 * 1024;

/// Clones share the room.
#[derive(Debug, Clone)]
pub(crate) struct Room(Arc<Semaphore>);

/// A share of the room; returned on drop.
pub(crate) enum Share {
    Taken {
        _permit: OwnedSemaphorePermit,
    },
    /// Waits in the semaphore's queue, where it receives the permits that others return. It is not polled again, and
    /// its drop returns what it received.
    Owed {
        _acquiring: Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>,
    },
}

impl Room {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MAX_WAITING_KIB as usize)))
    }

    /// Takes a share of `bytes`; `None` if there is no room.
    pub(crate) fn try_take(&self, bytes: usize) -> Option<Share> {
        let permit = self.0.clone().try_acquire_many_owned(kib(bytes)).ok()?;
        Some(Share::Taken { _permit: permit })
    }

    /// Waits for a share of `bytes`.
    ///
    /// # Cancel safety
    /// A dropped future has taken nothing and loses its place in the queue.
    pub(crate) async fn take(&self, bytes: usize) -> Option<Share> {
        // Never closed.
        let permit = self.0.clone().acquire_many_owned(kib(bytes)).await.ok()?;
        Some(Share::Taken { _permit: permit })
    }

    /// Takes a share of `bytes`, or owes it. Never blocks.
    pub(crate) fn owe(&self, bytes: usize) -> Share {
        // Unconstrained, because a task that has used up its budget would not enter the queue.
        let mut acquiring = Box::pin(unconstrained(self.0.clone().acquire_many_owned(kib(bytes))));
        match acquiring.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(permit)) => Share::Taken { _permit: permit },
            Poll::Ready(Err(_)) | Poll::Pending => Share::Owed { _acquiring: acquiring },
        }
    }

    /// KiB that are free.
    #[cfg(test)]
    pub(crate) fn free_kib(&self) -> usize {
        self.0.available_permits()
    }
}

/// KiB of a write, at least 1; one that is larger than the whole room takes all of it.
fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).clamp(1, MAX_WAITING_KIB)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const ALL: usize = MAX_WAITING_KIB as usize * 1024;

    #[test]
    fn owed_share_gets_the_next_free_bytes_and_returns_them() {
        let room = Room::new();
        let (half, quarter, rest) = (room.try_take(ALL / 2), room.try_take(ALL / 4), room.try_take(ALL / 4));
        assert!(half.is_some() && quarter.is_some() && rest.is_some() && room.try_take(1).is_none());
        let owed = room.owe(ALL / 2);
        let mut waiting = Box::pin(room.take(1));
        drop(quarter);
        assert!(room.try_take(1).is_none() && (&mut waiting).now_or_never().is_none(), "the debt comes first");
        drop(rest);
        assert!(room.try_take(1).is_none() && (&mut waiting).now_or_never().is_none());
        drop(half);
        let appended = (&mut waiting).now_or_never().flatten();
        assert!(appended.is_some(), "the debt is paid");
        drop((owed, appended));
        assert!(room.try_take(ALL).is_some(), "nothing is lost");
    }

    #[test]
    fn owed_share_that_is_dropped_early_returns_what_it_received() {
        let room = Room::new();
        let (most, rest) = (room.try_take(ALL - 2048), room.try_take(2048));
        let owed = room.owe(ALL);
        drop(rest);
        assert_eq!(room.free_kib(), 0, "received by the debt");
        drop(owed);
        assert_eq!(room.free_kib(), 2);
        drop(most);
        assert_eq!(room.free_kib(), MAX_WAITING_KIB as usize);
    }
}
