//! Reads the events of a session and counts them by their ids, which start at 1 and have no gaps.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use super::{conversation::BenchError, http::HttpLink, program::Program};

/// Time limit for the last event of a session; longer than any takes on a busy machine.
const EVENTS_LIMIT: Duration = Duration::from_secs(30);

/// Bytes of a line that are kept; an id has a short line of its own.
const MAX_LINE_BYTES: usize = 64;

/// Ids that a reader has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub first: u64,
    pub last: u64,
    /// Ids between first and last that did not arrive.
    pub missing: u64,
    /// Ids that arrived again, or out of order.
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

/// Finds the ids in a stream of events that arrives in arbitrary parts.
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

/// A reader of one session's events, from the oldest that is held. Dropping it stops reading.
pub(crate) struct Follower {
    pub session: String,
    seen: watch::Receiver<Seen>,
    task: JoinHandle<String>,
}

impl Follower {
    pub(crate) fn start(address: SocketAddr, session: &str) -> Self {
        let (read, seen) = watch::channel(Seen::default());
        let path = format!("/acp/session/{session}/events");
        let task = tokio::spawn(async move {
            let mut ids = Ids::default();
            let part = |bytes: &[u8]| ids.read(bytes, |id| read.send_modify(|seen| seen.take(id)));
            let end = HttpLink::new(address).stream(&path, part).await;
            end.err().unwrap_or_else(|| "the stream ended".into())
        });
        Self { session: session.to_owned(), seen, task }
    }

    /// Waits until the event with this id has arrived. Cancel-safe.
    ///
    /// # Errors
    /// Where the stream ends earlier: the reason.
    pub(crate) async fn until(&mut self, last: u64) -> Result<Seen, String> {
        if let Ok(seen) = self.seen.wait_for(|seen| seen.last >= last).await {
            return Ok(*seen);
        }
        Err((&mut self.task).await.unwrap_or_else(|cause| format!("the reader failed: {cause}")))
    }

    /// The ids seen so far.
    pub(crate) fn seen(&self) -> Seen {
        *self.seen.borrow()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Events, counted by their ids.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Events {
    /// Events that sessions report as published.
    pub published: u64,
    /// Events that did not reach the reader.
    pub lost: u64,
    /// Events that arrived more than once.
    pub doubled: u64,
    /// Events that were no longer held when a session was read at the end: neither lost nor seen.
    pub not_held: u64,
}

impl std::ops::AddAssign for Events {
    fn add_assign(&mut self, other: Self) {
        self.published += other.published;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.not_held += other.not_held;
    }
}

/// Counts the events of one session, up to the last one that it reports. Events before the first that a reader saw are
/// lost if it read live from the beginning, else not held.
pub(crate) async fn count(program: &Program, mut follower: Follower, is_live: bool) -> Result<Events, BenchError> {
    let path = format!("/acp/session/{}", follower.session);
    let answer = HttpLink::new(program.address()).get(&path).await.map_err(BenchError::Trial)?;
    let state: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let published = state["lastEventId"].as_u64();
    let published = published.ok_or_else(|| BenchError::Trial(format!("{path} answered {}", answer.status)))?;
    let seen = match timeout(EVENTS_LIMIT, follower.until(published)).await {
        Ok(seen) => seen.map_err(|why| BenchError::Trial(format!("the events of {path}: {why}")))?,
        // An event that has not arrived by now is lost.
        Err(_) => follower.seen(),
    };
    let before = seen.first.saturating_sub(1);
    let lost = seen.missing + published.saturating_sub(seen.last);
    let (lost, not_held) = if is_live { (lost + before, 0) } else { (lost, before) };
    Ok(Events { published, lost, doubled: seen.doubled, not_held })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_in_any_parts_and_losses_and_duplicates_counted() {
        let text =
            format!("event: a\nid: 1\ndata: {}\n\nid: 2\n\nid: 5\n: alive\nid: 5\nid: x\n", "id: 9".repeat(50));
        for size in [1, 3, 1000] {
            let (mut ids, mut seen) = (Ids::default(), Seen::default());
            text.as_bytes().chunks(size).for_each(|part| ids.read(part, |id| seen.take(id)));
            assert_eq!(seen, Seen { first: 1, last: 5, missing: 2, doubled: 1 }, "{size}");
        }
    }
}
