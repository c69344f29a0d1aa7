//! Reads the events of a session and counts them by their ids: from 1, each by one more, none lost, none twice.

use std::{net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinHandle};

use crate::bench::http_link::HttpLink;

/// The longest line that is looked at; an id stands in a short one of its own.
const MAX_LINE_BYTES: usize = 64;

/// What a reader has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The first id.
    pub first: u64,
    /// The last id.
    pub last: u64,
    /// Ids between them that did not come.
    pub missing: u64,
    /// Ids that came again, or out of order.
    pub doubled: u64,
}

impl Seen {
    fn take(&mut self, id: u64) {
        if self.last == 0 {
            (self.first, self.last) = (id, id);
        } else if id <= self.last {
            self.doubled += 1;
        } else {
            self.missing += id - self.last - 1;
            self.last = id;
        }
    }
}

/// Finds the ids in a stream of events, however it comes in parts.
#[derive(Debug, Default)]
struct Ids {
    line: Vec<u8>,
}

impl Ids {
    fn read(&mut self, bytes: &[u8], mut each: impl FnMut(u64)) {
        for byte in bytes {
            if *byte == b'\n' {
                let id = self.line.strip_prefix(b"id: ").and_then(|id| std::str::from_utf8(id).ok()?.parse().ok());
                id.into_iter().for_each(&mut each);
                self.line.clear();
            } else if self.line.len() < MAX_LINE_BYTES {
                self.line.push(*byte);
            }
        }
    }
}

/// A reader of one session's events, from the oldest that is held. Dropping it ends it.
pub(crate) struct Follower {
    /// The id of its session.
    pub session: String,
    seen: watch::Receiver<Seen>,
    why: Arc<Mutex<Option<String>>>,
    task: JoinHandle<()>,
}

impl Follower {
    /// Begins to read.
    pub(crate) fn start(address: SocketAddr, session: &str) -> Self {
        let (told, seen) = watch::channel(Seen::default());
        let why = Arc::new(Mutex::new(None));
        let (path, ended) = (format!("/acp/session/{session}/events"), why.clone());
        let task = tokio::spawn(async move {
            let mut ids = Ids::default();
            let read = |bytes: &[u8]| ids.read(bytes, |id| told.send_modify(|seen| seen.take(id)));
            let end = HttpLink::new(address).stream(&path, read).await;
            let end = end.err().unwrap_or_else(|| "the stream ended".into());
            *ended.lock() = Some(end);
        });
        Self { session: session.to_owned(), seen, why, task }
    }

    /// Waits until the event with this id has come. Cancel-safe.
    ///
    /// # Errors
    /// Where the stream ends before.
    pub(crate) async fn until(&mut self, last: u64) -> Result<Seen, String> {
        if let Ok(seen) = self.seen.wait_for(|seen| seen.last >= last).await {
            return Ok(*seen);
        }
        let why = self.why.lock().take();
        Err(why.unwrap_or_else(|| "its reader ended".into()))
    }

    /// What it has seen so far.
    pub(crate) fn seen(&self) -> Seen {
        *self.seen.borrow()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_in_parts_and_what_is_lost_or_doubled_is_counted() {
        let text =
            format!("event: a\nid: 1\ndata: {}\n\nid: 2\n\nid: 5\n: alive\nid: 5\nid: x\n", "id: 9".repeat(50));
        for size in [1, 3, 1000] {
            let (mut ids, mut seen) = (Ids::default(), Seen::default());
            text.as_bytes().chunks(size).for_each(|part| ids.read(part, |id| seen.take(id)));
            assert_eq!(seen, Seen { first: 1, last: 5, missing: 2, doubled: 1 }, "{size}");
        }
    }
}
