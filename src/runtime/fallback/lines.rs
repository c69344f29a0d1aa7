//! What is told of one turn, held for readers who come late or come back, and how it ended.
//!
//! Bounded by lines and bytes. A line goes once it is too much and every reader of the stream has it; while one of
//! them is behind, or nobody is there who could say that he does not want it, the agent waits.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, MutexGuard};
use serde_json::value::RawValue;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{contract::fallback::TurnLine, domain::turn::outcome::Failure};

/// Bytes of lines that a reader takes at once: what a socket takes in one write.
const PORTION_BYTES: usize = 64 * 1024;

/// How much is held.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LineLimits {
    /// Lines.
    pub lines: usize,
    /// Their bytes; one line that is larger is held alone.
    pub bytes: usize,
}

/// How a turn ended.
#[derive(Debug, Clone)]
pub(crate) enum Ended {
    /// It did not begin; it may be asked for again.
    Refused(Failure),
    /// Its task died, so that nobody knows what it did; it is not run again.
    Died(Failure),
    /// It has a result.
    WithResult {
        /// The [`ACPSessionResult`](crate::contract::result::ACPSessionResult).
        result: Arc<RawValue>,
        /// Why it failed, if it did.
        failure: Option<Failure>,
    },
}

/// What a reader gets.
#[derive(Debug)]
pub(crate) enum ReaderItem {
    /// Whole lines.
    Lines(Bytes),
    Ended(Ended),
}

#[derive(Debug)]
enum Stage {
    Admitting,
    Running,
    Ended(Ended),
}

/// The lines of one turn.
#[derive(Debug)]
pub(crate) struct Lines {
    limits: LineLimits,
    held: Mutex<Held>,
    /// Changes when there is more to read.
    told: watch::Sender<()>,
    /// Changes when somebody has read, came or left.
    read: watch::Sender<()>,
}

#[derive(Debug)]
struct Held {
    stage: Stage,
    lines: VecDeque<Bytes>,
    bytes: usize,
    /// The number of the first of them, counted from 0.
    first: u64,
    /// Readers of the stream, with the number of the line that each gets next.
    streams: BTreeMap<u64, u64>,
    next_reader: u64,
    /// All readers, those included that only wait for the end.
    readers: usize,
    /// Since when there is none.
    unattended_since: Instant,
}

impl Held {
    fn next(&self) -> u64 {
        self.first + u64::try_from(self.lines.len()).unwrap_or(u64::MAX)
    }

    fn is_full(&self, limits: LineLimits) -> bool {
        self.lines.len() >= limits.lines || self.bytes >= limits.bytes
    }

    /// Whether nobody needs the first line any more.
    fn first_may_go(&self) -> bool {
        self.readers > 0 && self.streams.values().all(|next| *next > self.first)
    }
}

impl Lines {
    /// Nothing yet.
    pub(crate) fn new(limits: LineLimits) -> Self {
        let held = Held {
            stage: Stage::Admitting,
            lines: VecDeque::new(),
            bytes: 0,
            first: 0,
            streams: BTreeMap::new(),
            next_reader: 0,
            readers: 0,
            unattended_since: Instant::now(),
        };
        Self { limits, held: Mutex::new(held), told: watch::Sender::new(()), read: watch::Sender::new(()) }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock()
    }

    /// The turn was admitted.
    pub(crate) fn begin(&self) {
        self.lock().stage = Stage::Running;
        self.told.send_replace(());
    }

    /// The turn is over. Only the first end counts.
    pub(crate) fn end(&self, ended: Ended) {
        let mut held = self.lock();
        if !matches!(held.stage, Stage::Ended(_)) {
            held.stage = Stage::Ended(ended);
        }
        drop(held);
        self.told.send_replace(());
    }

    /// Whether the turn is over.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.lock().stage, Stage::Ended(_))
    }

    /// Whether the turn did not begin.
    pub(crate) fn was_refused(&self) -> bool {
        matches!(self.lock().stage, Stage::Ended(Ended::Refused(_)))
    }

    /// Adds a line. To be called when there is [room](Self::room): nothing is refused.
    pub(crate) fn push(&self, line: &TurnLine) {
        let mut text = serde_json::to_vec(line).unwrap_or_default();
        text.push(b'\n');
        let mut held = self.lock();
        while held.is_full(self.limits) && held.first_may_go() {
            if let Some(gone) = held.lines.pop_front() {
                held.bytes -= gone.len();
                held.first += 1;
            }
        }
        held.bytes += text.len();
        held.lines.push_back(text.into());
        drop(held);
        self.told.send_replace(());
    }

    /// Whether a line may be added.
    pub(crate) fn has_room(&self) -> bool {
        let held = self.lock();
        !held.is_full(self.limits) || held.first_may_go()
    }

    /// Waits until a line may be added. Cancel-safe.
    pub(crate) async fn room(&self) {
        let mut read = self.read.subscribe();
        while !self.has_room() {
            // The sender is ours.
            let _ = read.changed().await;
        }
    }

    /// Waits until nobody has read for so long. Cancel-safe, and the time continues between calls.
    pub(crate) async fn abandoned_for(&self, grace: Duration) {
        let mut read = self.read.subscribe();
        loop {
            let since = {
                let held = self.lock();
                (held.readers == 0).then_some(held.unattended_since)
            };
            match since {
                Some(since) if since.elapsed() >= grace => return,
                Some(since) => tokio::select! {
                    () = sleep_until(since + grace) => {}
                    _ = read.changed() => {}
                },
                None => drop(read.changed().await),
            }
        }
    }

    /// Bytes that are held.
    pub(crate) fn held_bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Lets the lines go of a turn that has ended; its end stays.
    pub(crate) fn forget(&self) {
        let mut held = self.lock();
        held.first = held.next();
        held.lines.clear();
        held.bytes = 0;
    }

    /// A reader of the stream after so many lines, or from now on.
    pub(crate) fn stream(self: &Arc<Self>, after: Option<u64>) -> Reader {
        let mut held = self.lock();
        let wanted = after.unwrap_or(u64::MAX).min(held.next());
        let missed = held.first.saturating_sub(wanted);
        let id = held.next_reader;
        held.next_reader += 1;
        let next = wanted.max(held.first);
        held.streams.insert(id, next);
        self.reader(held, Some(id), missed)
    }

    /// A reader who waits for the end alone.
    pub(crate) fn wait(self: &Arc<Self>) -> Reader {
        self.reader(self.lock(), None, 0)
    }

    fn reader(self: &Arc<Self>, mut held: MutexGuard<'_, Held>, stream: Option<u64>, missed: u64) -> Reader {
        held.readers += 1;
        drop(held);
        self.read.send_replace(());
        Reader { told: self.told.subscribe(), lines: self.clone(), stream, missed }
    }
}

/// Reads the lines of a turn, or waits for its end. Gone when dropped.
#[derive(Debug)]
pub(crate) struct Reader {
    lines: Arc<Lines>,
    told: watch::Receiver<()>,
    stream: Option<u64>,
    missed: u64,
}

impl Reader {
    /// Whether it gets lines.
    pub(crate) fn is_stream(&self) -> bool {
        self.stream.is_some()
    }

    /// Waits until the turn was admitted. Cancel-safe.
    ///
    /// # Errors
    /// Why it was not.
    pub(crate) async fn begun(&mut self) -> Result<(), Failure> {
        loop {
            match &self.lines.lock().stage {
                Stage::Admitting => {}
                Stage::Ended(Ended::Refused(failure) | Ended::Died(failure)) => return Err(failure.clone()),
                Stage::Running | Stage::Ended(Ended::WithResult { .. }) => return Ok(()),
            }
            let _ = self.told.changed().await;
        }
    }

    /// What comes next: lines, and then the end again and again. Cancel-safe.
    pub(crate) async fn next(&mut self) -> ReaderItem {
        loop {
            if let Some(told) = self.take() {
                return told;
            }
            let _ = self.told.changed().await;
        }
    }

    fn take(&mut self) -> Option<ReaderItem> {
        if self.missed > 0 {
            let line = TurnLine { missed: Some(std::mem::take(&mut self.missed)), ..TurnLine::default() };
            let mut text = serde_json::to_vec(&line).unwrap_or_default();
            text.push(b'\n');
            return Some(ReaderItem::Lines(text.into()));
        }
        let mut held = self.lines.lock();
        let cursor = self.stream.and_then(|id| held.streams.get(&id).copied()).unwrap_or(u64::MAX);
        // Lines may have been forgotten at the end, but not under a reader who is behind: he is told what he missed.
        if let Some(id) = self.stream
            && cursor < held.first
        {
            self.missed = held.first - cursor;
            let first = held.first;
            held.streams.insert(id, first);
            drop(held);
            return self.take();
        }
        let skip = usize::try_from(cursor.saturating_sub(held.first)).unwrap_or(usize::MAX);
        let mut portion = BytesMut::new();
        let mut taken = 0;
        for line in held.lines.iter().skip(skip) {
            if taken > 0 && portion.len() + line.len() > PORTION_BYTES {
                break;
            }
            portion.extend_from_slice(line);
            taken += 1;
        }
        if taken == 0 {
            return match &held.stage {
                Stage::Ended(ended) => Some(ReaderItem::Ended(ended.clone())),
                Stage::Admitting | Stage::Running => None,
            };
        }
        if let Some(next) = self.stream.and_then(|id| held.streams.get_mut(&id)) {
            *next += taken;
        }
        drop(held);
        self.lines.read.send_replace(());
        Some(ReaderItem::Lines(portion.freeze()))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut held = self.lines.lock();
        held.readers -= 1;
        if let Some(id) = self.stream {
            held.streams.remove(&id);
        }
        if held.readers == 0 {
            held.unattended_since = Instant::now();
        }
        drop(held);
        self.lines.read.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: LineLimits = LineLimits { lines: 3, bytes: 10_000 };

    fn line(n: u64) -> TurnLine {
        let raw = |text: String| RawValue::from_string(text).unwrap();
        TurnLine { update: Some(raw(n.to_string())), ..TurnLine::default() }
    }

    async fn text(reader: &mut Reader) -> String {
        match reader.next().await {
            ReaderItem::Lines(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            ReaderItem::Ended(_) => "end".into(),
        }
    }

    #[tokio::test]
    async fn slow_reader_blocks_the_agent_and_resumes_from_the_buffer() {
        let lines = Arc::new(Lines::new(LIMITS));
        let mut slow = lines.stream(Some(0));
        (0..3).for_each(|n| lines.push(&line(n)));
        assert!(!lines.has_room());
        assert_eq!(text(&mut slow).await, "{\"update\":0}\n{\"update\":1}\n{\"update\":2}\n");
        lines.room().await;
        lines.push(&line(3));
        drop(slow);
        assert!(!lines.has_room(), "nobody is there, so everything is held");
        let mut back = lines.stream(Some(2));
        assert_eq!(text(&mut back).await, "{\"update\":2}\n{\"update\":3}\n");
        let mut late = lines.stream(Some(0));
        assert_eq!(text(&mut late).await, "{\"missed\":1}\n");
        assert_eq!(text(&mut late).await, "{\"update\":1}\n{\"update\":2}\n{\"update\":3}\n");
    }

    #[tokio::test]
    async fn end_waiter_blocks_nobody() {
        let lines = Arc::new(Lines::new(LIMITS));
        let mut waits = lines.wait();
        for n in 0..100 {
            lines.room().await;
            lines.push(&line(n));
        }
        lines.end(Ended::Refused(Failure::new(crate::domain::turn::outcome::ErrorCode::Internal, "x")));
        assert_eq!(text(&mut waits).await, "end");
        assert_eq!(text(&mut lines.stream(None)).await, "end", "from now on there is nothing");
    }

    #[tokio::test]
    async fn turn_is_abandoned_after_the_grace() {
        let lines = Arc::new(Lines::new(LIMITS));
        let grace = Duration::from_millis(200);
        let reader = lines.wait();
        assert!(tokio::time::timeout(grace * 2, lines.abandoned_for(grace)).await.is_err(), "somebody is there");
        drop(reader);
        let left = Instant::now();
        assert!(tokio::time::timeout(grace / 10, lines.abandoned_for(grace)).await.is_err(), "he may come back");
        lines.abandoned_for(grace).await;
        assert!(left.elapsed() + Duration::from_millis(10) >= grace);
    }
}
