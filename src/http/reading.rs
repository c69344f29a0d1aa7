//! Places for bodies that are read before their senders are known: bounded, and never all kept by slow senders.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use actix_web::web::{Bytes, BytesMut, Payload};
use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::domain::automation::trigger::reading::{Progress, furthest_behind};

/// Places for bodies of a size.
#[derive(Debug)]
pub(super) struct Places {
    limit: usize,
    /// The largest body, in bytes.
    most: usize,
    readers: Mutex<(u64, BTreeMap<u64, Reader>)>,
}

#[derive(Debug)]
struct Reader {
    began: Instant,
    received: usize,
    /// Dropped if the reader gives way.
    _stays: oneshot::Sender<()>,
}

/// Why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// All places are taken, and the others are faster.
    Outpaced,
    TooLarge,
    TooSlow,
    Broken,
}

/// The place of one reader; free when it is dropped.
struct Place<'a> {
    of: &'a Places,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.of.readers.lock().1.remove(&self.id);
    }
}

impl Places {
    pub(super) const fn new(limit: usize, most: usize) -> Self {
        Self { limit, most, readers: Mutex::new((0, BTreeMap::new())) }
    }

    /// Takes a place: the reader that is furthest behind gives way if there is none.
    fn take(&self) -> (Place<'_>, oneshot::Receiver<()>) {
        let (stays, lost) = oneshot::channel();
        let mut readers = self.readers.lock();
        let (next, readers) = &mut *readers;
        if readers.len() >= self.limit {
            let progress = |it: &Reader| Progress { age: it.began.elapsed(), received: it.received };
            let behind = furthest_behind(readers.iter().map(|(id, it)| (*id, progress(it))));
            behind.map(|id| readers.remove(&id));
        }
        *next += 1;
        readers.insert(*next, Reader { began: Instant::now(), received: 0, _stays: stays });
        (Place { of: self, id: *next }, lost)
    }

    /// Reads a body. Cancel-safe.
    ///
    /// # Errors
    /// The body is too large, does not arrive within `limit`, or the reader gave way to a new one.
    pub(super) async fn read(&self, mut payload: Payload, limit: Duration) -> Result<Bytes, Unread> {
        let (place, mut lost) = self.take();
        let reading = async {
            let mut body = BytesMut::new();
            while let Some(chunk) = payload.next().await {
                let chunk = chunk.map_err(|_| Unread::Broken)?;
                if body.len() + chunk.len() > self.most {
                    return Err(Unread::TooLarge);
                }
                body.extend_from_slice(&chunk);
                if let Some(reader) = self.readers.lock().1.get_mut(&place.id) {
                    reader.received = body.len();
                }
            }
            Ok(body.freeze())
        };
        tokio::select! {
            biased;
            read = tokio::time::timeout(limit, reading) => read.unwrap_or(Err(Unread::TooSlow)),
            _ = &mut lost => Err(Unread::Outpaced),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newcomer_gets_a_place_and_its_end_frees_it() {
        let places = Places::new(2, 10);
        let (first, mut first_lost) = places.take();
        let (second, mut second_lost) = places.take();
        places.readers.lock().1.get_mut(&first.id).unwrap().received = 1_000_000;
        let (third, _lost) = places.take();
        assert!(second_lost.try_recv() == Err(oneshot::error::TryRecvError::Closed), "the slower one gave way");
        assert_eq!(first_lost.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        assert_eq!(places.readers.lock().1.len(), 2);
        drop((first, second, third));
        assert!(places.readers.lock().1.is_empty());
    }
}
