//! Holds the lines of one turn and its end for readers that join late or reconnect.
//!
//! Limited in lines and in bytes. At a limit, the oldest line is dropped once every streaming reader has received it.
//! While a streaming reader lags, or while the turn has no reader at all, nothing is dropped and the agent waits.

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

/// Largest number of bytes that a reader takes at once, if the first line is not longer: about one socket write.
const PORTION_BYTES: usize = 64 * 1024;

/// Limits of the lines that a turn holds. At either limit the agent waits for the readers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LineLimits {
    pub lines: usize,
    /// Total size in bytes. The line that reaches the limit is still added, whatever its size.
    pub bytes: usize,
}

#[derive(Debug, Clone)]
pub(crate) enum Ended {
    /// The turn did not begin; the same request may be sent again.
    Refused(Failure),
    /// The task of the turn died, so the effects of the turn are unknown; it is not run again.
    Died(Failure),
    /// The turn has a result.
    WithResult {
        /// JSON of the [`ACPSessionResult`](crate::contract::result::ACPSessionResult).
        result: Arc<RawValue>,
        /// Cause, if the turn failed.
        failure: Option<Failure>,
    },
}

#[derive(Debug)]
pub(crate) enum ReaderItem {
    /// One or more whole lines.
    Lines(Bytes),
    Ended(Ended),
}

#[derive(Debug)]
enum Stage {
    Admitting,
    Running,
    Ended(Ended),
}

/// Lines and stage of one turn.
#[derive(Debug)]
pub(crate) struct Lines {
    limits: LineLimits,
    held: Mutex<Held>,
    /// Notified when a line is added or the stage changes.
    written: watch::Sender<()>,
    /// Notified when a reader joins, leaves or has received lines.
    read: watch::Sender<()>,
}

#[derive(Debug)]
struct Held {
    stage: Stage,
    lines: VecDeque<Bytes>,
    bytes: usize,
    /// Number of the first line that is held, counted from 0.
    first: u64,
    /// Streaming readers by id, with the number of the line that each receives next.
    streams: BTreeMap<u64, u64>,
    next_reader: u64,
    /// Number of readers, including those that wait for the end only.
    readers: usize,
    /// Time at which the last reader left; meaningful while `readers` is 0.
    unattended_since: Instant,
}

impl Held {
    fn next(&self) -> u64 {
        self.first + u64::try_from(self.lines.len()).unwrap_or(u64::MAX)
    }

    fn is_full(&self, limits: LineLimits) -> bool {
        self.lines.len() >= limits.lines || self.bytes >= limits.bytes
    }

    /// True if the first line may be dropped: every streaming reader has received it, and there is a reader. Without
    /// one, the line is held for a client that reconnects.
    fn can_drop_first(&self) -> bool {
        self.readers > 0 && self.streams.values().all(|next| *next > self.first)
    }
}

impl Lines {
    /// Creates the empty lines of a turn that waits for admission.
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
        Self { limits, held: Mutex::new(held), written: watch::Sender::new(()), read: watch::Sender::new(()) }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock()
    }

    /// Records that the turn was admitted.
    pub(crate) fn begin(&self) {
        self.lock().stage = Stage::Running;
        self.written.send_replace(());
    }

    /// Records the end of the turn. Has no effect if an end was recorded before.
    pub(crate) fn end(&self, ended: Ended) {
        let mut held = self.lock();
        if !matches!(held.stage, Stage::Ended(_)) {
            held.stage = Stage::Ended(ended);
        }
        drop(held);
        self.written.send_replace(());
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.lock().stage, Stage::Ended(_))
    }

    /// True if the turn ended before it began.
    pub(crate) fn was_refused(&self) -> bool {
        matches!(self.lock().stage, Stage::Ended(Ended::Refused(_)))
    }

    /// Adds a line, even above the limits. Callers wait for [`room`](Self::room) before they take an event that may
    /// add lines.
    pub(crate) fn push(&self, line: &TurnLine) {
        let mut text = serde_json::to_vec(line).unwrap_or_default();
        text.push(b'\n');
        let mut held = self.lock();
        while held.is_full(self.limits) && held.can_drop_first() {
            if let Some(dropped) = held.lines.pop_front() {
                held.bytes -= dropped.len();
                held.first += 1;
            }
        }
        // Added above the limits if a reader lags: an event may add several lines, and none may be lost.
        held.bytes += text.len();
        held.lines.push_back(text.into());
        drop(held);
        self.written.send_replace(());
    }

    /// True if a line may be added now.
    pub(crate) fn has_room(&self) -> bool {
        let held = self.lock();
        !held.is_full(self.limits) || held.can_drop_first()
    }

    /// Waits until a line may be added.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(crate) async fn room(&self) {
        let mut read = self.read.subscribe();
        while !self.has_room() {
            // Cannot fail: `self` holds the sender.
            let _ = read.changed().await;
        }
    }

    /// Waits until the turn has had no reader for `grace`. The time is counted from when the last reader left, not
    /// from the call.
    ///
    /// # Cancel safety
    /// Cancel-safe.
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

    /// Total size of the lines that are held, in bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Drops the lines of a turn that has ended; its end is kept. Readers that lag get a `missed` line.
    pub(crate) fn forget(&self) {
        let mut held = self.lock();
        // The numbers continue, so that a reader learns how many lines it missed.
        held.first = held.next();
        held.lines.clear();
        held.bytes = 0;
    }

    /// Adds a streaming reader that has received the first `after` lines. `None` skips everything written so far. If
    /// lines after `after` are not held any more, the reader first gets a line with their number (`missed`).
    pub(crate) fn stream(self: &Arc<Self>, after: Option<u64>) -> Reader {
        let mut held = self.lock();
        // A number beyond the last line is no error: it is treated as the end.
        let wanted = after.unwrap_or(u64::MAX).min(held.next());
        let missed = held.first.saturating_sub(wanted);
        let id = held.next_reader;
        held.next_reader += 1;
        let next = wanted.max(held.first);
        held.streams.insert(id, next);
        self.reader(held, Some(id), missed)
    }

    /// Adds a reader that waits for the end only and never delays the agent.
    pub(crate) fn wait(self: &Arc<Self>) -> Reader {
        self.reader(self.lock(), None, 0)
    }

    fn reader(self: &Arc<Self>, mut held: MutexGuard<'_, Held>, stream: Option<u64>, missed: u64) -> Reader {
        held.readers += 1;
        drop(held);
        self.read.send_replace(());
        Reader { written: self.written.subscribe(), lines: self.clone(), stream, missed }
    }
}

/// Reader of a turn's lines, or of its end only. Dropping it leaves the turn.
#[derive(Debug)]
pub(crate) struct Reader {
    lines: Arc<Lines>,
    written: watch::Receiver<()>,
    /// Id in [`Held::streams`]; `None` for a reader of the end only.
    stream: Option<u64>,
    /// Number of dropped lines that the reader has not been notified of.
    missed: u64,
}

impl Reader {
    /// True if the reader receives lines.
    pub(crate) fn is_stream(&self) -> bool {
        self.stream.is_some()
    }

    /// Waits until the turn is admitted.
    ///
    /// # Errors
    /// The failure of a turn that was refused or whose task died.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(crate) async fn begun(&mut self) -> Result<(), Failure> {
        loop {
            match &self.lines.lock().stage {
                Stage::Admitting => {}
                Stage::Ended(Ended::Refused(failure) | Ended::Died(failure)) => return Err(failure.clone()),
                Stage::Running | Stage::Ended(Ended::WithResult { .. }) => return Ok(()),
            }
            // Cannot fail: `self.lines` holds the sender.
            let _ = self.written.changed().await;
        }
    }

    /// Waits for the next lines. After the last line, every call returns the end.
    ///
    /// # Cancel safety
    /// Cancel-safe: no line is lost.
    pub(crate) async fn next(&mut self) -> ReaderItem {
        loop {
            if let Some(item) = self.take() {
                return item;
            }
            let _ = self.written.changed().await;
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
        // `forget` drops lines that a lagging reader has not received; report them as missed.
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
            // At least one line, however large, or the reader would never advance.
            if taken > 0 && portion.len() + line.len() > PORTION_BYTES {
                break;
            }
            portion.extend_from_slice(line);
            taken += 1;
        }
        if taken == 0 {
            // The end is returned only after all lines.
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
    async fn lagging_reader_blocks_the_agent_and_late_readers_get_held_lines() {
        let lines = Arc::new(Lines::new(LIMITS));
        let mut slow = lines.stream(Some(0));
        (0..3).for_each(|n| lines.push(&line(n)));
        assert!(!lines.has_room());
        assert_eq!(text(&mut slow).await, "{\"update\":0}\n{\"update\":1}\n{\"update\":2}\n");
        lines.room().await;
        lines.push(&line(3));
        drop(slow);
        assert!(!lines.has_room(), "without a reader, no line is dropped");
        let mut back = lines.stream(Some(2));
        assert_eq!(text(&mut back).await, "{\"update\":2}\n{\"update\":3}\n");
        let mut late = lines.stream(Some(0));
        assert_eq!(text(&mut late).await, "{\"missed\":1}\n");
        assert_eq!(text(&mut late).await, "{\"update\":1}\n{\"update\":2}\n{\"update\":3}\n");
    }

    #[tokio::test]
    async fn reader_of_the_end_alone_never_blocks_the_agent() {
        let lines = Arc::new(Lines::new(LIMITS));
        let mut waits = lines.wait();
        for n in 0..100 {
            lines.room().await;
            lines.push(&line(n));
        }
        lines.end(Ended::Refused(Failure::new(crate::domain::turn::outcome::ErrorCode::Internal, "x")));
        assert_eq!(text(&mut waits).await, "end");
        assert_eq!(text(&mut lines.stream(None)).await, "end", "no lines after the end");
    }

    #[tokio::test]
    async fn turn_is_abandoned_when_no_reader_returns_within_the_grace() {
        let lines = Arc::new(Lines::new(LIMITS));
        let grace = Duration::from_millis(200);
        let reader = lines.wait();
        assert!(tokio::time::timeout(grace * 2, lines.abandoned_for(grace)).await.is_err(), "the turn has a reader");
        drop(reader);
        let left = Instant::now();
        assert!(tokio::time::timeout(grace / 10, lines.abandoned_for(grace)).await.is_err(), "the grace still runs");
        lines.abandoned_for(grace).await;
        assert!(left.elapsed() + Duration::from_millis(10) >= grace);
    }
}
