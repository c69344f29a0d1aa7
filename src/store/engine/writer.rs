//! The one database writer: a thread with a connection of its own.
//!
//! The writer commits at once when it is idle; writes that queued while it was busy share the next transaction. It never waits
//! for more of them. A failed write does not fail its neighbours: the transaction is rolled back, and each write is
//! retried alone. While the database is unavailable, writes that record the past are retained and retried without a
//! limit; their callers get an error after `[database] patience_s`. Their bytes are bounded by
//! [`Room`](super::room::Room), their number by the queue.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use tokio::{runtime::Runtime, sync::mpsc::Receiver};

pub(crate) use super::job::{Job, Outage, WriteTx};
use super::{
    connection::{AnyConnection, DatabaseUrl, Purpose},
    grown::GrownStreams,
    job::{Late, Message},
};
use crate::{
    domain::{ids::SessionId, notify::notification::Stream},
    store::StoreError,
    telemetry::{Metrics, labels::Queue},
};

/// The most writes in one transaction: at 128 the commit costs less than a tenth of the whole, and no write waits longer
/// than about 10 ms for its neighbours.
const MAX_BATCH: usize = 128;

/// First pause before retained writes are retried, if no new write comes first; doubles with each failure.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// Longest pause before a retry.
const LAST_RETRY: Duration = Duration::from_secs(2);

/// Refusals of one write, each in a transaction of its own with commits of other writes between them, after which it
/// counts as one that never succeeds. It must also be older than [`PATIENCES`] times the patience.
const MAX_REFUSALS: u32 = 3;
/// Age of a write that is quarantined, in patiences: 10 minutes by default, longer than a usual outage.
const PATIENCES: u32 = 10;

/// If the database takes longer than this to refuse one write, the remaining ones are not retried alone.
const SLOW_REFUSAL: Duration = Duration::from_secs(1);

/// Locks streams of notifications, which are sorted, until the end of the transaction.
pub(crate) type LockStreams = fn(&mut AnyConnection, &[Stream]) -> Result<(), StoreError>;

/// Why a transaction was rolled back.
struct Failed {
    error: StoreError,
    /// True if a write failed; otherwise the database refused the transaction itself.
    in_write: bool,
    /// True if the connection was lost.
    lost: bool,
}

pub(crate) struct Writer {
    url: DatabaseUrl,
    connection: Option<AnyConnection>,
    webhook: Option<String>,
    lock_streams: LockStreams,
    queue: Receiver<Message>,
    metrics: Metrics,
    grown: GrownStreams,
    next_seq: HashMap<SessionId, i64>,
    /// Writes that the database has not accepted yet, retained for a retry. At half as many as the queue has places,
    /// nothing more is taken out of the queue.
    retained: Vec<Job>,
    /// Retained writes that were refused repeatedly while other writes succeeded. They are retried alone, every
    /// [`LAST_RETRY`], so that they slow no batch.
    suspects: Vec<Job>,
    suspects_tried: Instant,
    /// Transactions committed so far.
    commits: u64,
    max_retained: usize,
    patience: Duration,
    retry: Duration,
    timer: Runtime,
}

impl Writer {
    /// Connects. Blocks. The caller of a retained write gets an error after `patience`.
    pub(crate) fn new(
        url: DatabaseUrl,
        webhook: Option<String>,
        lock_streams: LockStreams,
        queue: Receiver<Message>,
        patience: Duration,
        metrics: Metrics,
        grown: GrownStreams,
    ) -> Result<Self, StoreError> {
        let connection = url.connect(Purpose::Write)?;
        let timer = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let timer = timer.map_err(|cause| StoreError::Unavailable(format!("a timer for the writer: {cause}")))?;
        Ok(Self {
            url,
            webhook,
            lock_streams,
            connection: Some(connection),
            max_retained: queue.max_capacity(),
            queue,
            metrics,
            grown,
            next_seq: HashMap::new(),
            retained: Vec::new(),
            suspects: Vec::new(),
            suspects_tried: Instant::now(),
            commits: 0,
            patience,
            retry: FIRST_RETRY,
            timer,
        })
    }

    /// Writes until the queue is closed and empty.
    pub(crate) fn run(mut self) {
        while let Some(batch) = self.next_batch() {
            self.metrics.queue_depth(Queue::Writes, self.queue.len());
            if !batch.is_empty() {
                self.write(batch);
            }
            self.retry_suspects();
        }
    }

    /// Waits for a write and takes whatever else is queued; retained writes come first.
    fn next_batch(&mut self) -> Option<Vec<Job>> {
        let first = if self.retained.is_empty() && self.suspects.is_empty() {
            Some(self.queue.blocking_recv()?)
        } else if self.retained.len() >= self.max_retained / 2 {
            // Further writes stay in the queue: when it is full it refuses new work and makes agents wait.
            self.pause();
            return Some(std::mem::take(&mut self.retained));
        } else {
            match self.timer.block_on(async { tokio::time::timeout(self.retry, self.queue.recv()).await }) {
                Ok(Some(message)) => Some(message),
                Ok(None) => {
                    // The queue is closed, so only this pause paces the retries.
                    self.pause();
                    None
                }
                Err(_) => None,
            }
        };
        let mut batch = std::mem::take(&mut self.retained);
        // Retained writes do not count, or an outage would leave no room for new ones.
        let full = batch.len() + MAX_BATCH;
        let mut next = first;
        while let Some(message) = next {
            match message {
                // A withdrawn write is dropped here.
                Message::Write(job) => batch.extend(job.claim()),
                // Refuses further writes; those in the queue are still received.
                Message::Close => self.queue.close(),
            }
            next = if batch.len() < full { self.queue.try_recv().ok() } else { None };
        }
        Some(batch)
    }

    #[expect(clippy::disallowed_methods, reason = "a thread of its own, which has nothing else to do")]
    fn pause(&self) {
        std::thread::sleep(self.retry);
    }

    fn write(&mut self, mut batch: Vec<Job>) {
        let mut outcome = self.attempt(&mut batch);
        // The connection broke, for example because the server restarted: a second attempt opens a new one.
        if matches!(&outcome, Err(failed) if failed.lost) {
            outcome = self.attempt(&mut batch);
        }
        match outcome {
            Ok(()) => finish_all(batch),
            // The transaction failed as a whole, so running each write alone would fail as well.
            Err(failed) if !failed.in_write => self.give_up(batch, &failed.error),
            // It was alone in its transaction already, and did not lose a race against another process.
            Err(failed) if batch.len() == 1 && !matches!(failed.error, StoreError::Conflict(_)) => {
                self.refuse_alone(batch, &failed.error);
            }
            // One write failed and rolled back the others, which must not suffer from it.
            Err(_) => self.write_alone(batch),
        }
    }

    fn write_alone(&mut self, batch: Vec<Job>) {
        let mut rest = batch.into_iter();
        while let Some(job) = rest.next() {
            let started = Instant::now();
            let mut alone = vec![job];
            match self.attempt(&mut alone) {
                Ok(()) => finish_all(alone),
                Err(failed) if !failed.in_write || started.elapsed() > SLOW_REFUSAL => {
                    alone.extend(rest.by_ref());
                    self.give_up(alone, &failed.error);
                }
                Err(failed) => self.refuse_alone(alone, &failed.error),
            }
        }
    }

    fn retry_suspects(&mut self) {
        if !self.suspects.is_empty() && self.suspects_tried.elapsed() >= LAST_RETRY {
            self.suspects_tried = Instant::now();
            let suspects = std::mem::take(&mut self.suspects);
            self.write_alone(suspects);
        }
    }

    /// Gives up a write that failed alone and fast, although the database began its transaction. One that failed so
    /// repeatedly while other writes succeeded is quarantined: it is dropped with an alarm.
    fn refuse_alone(&mut self, alone: Vec<Job>, error: &StoreError) {
        let (commits, limit, may_pass) = (self.commits, self.patience * PATIENCES, error.may_pass());
        let never_succeeds = |mut job: Job| {
            if !may_pass && job.refused_at.replace(commits) != Some(commits) {
                job.refusals += 1;
            }
            let is_hopeless = matches!(error, StoreError::Corrupt(_))
                || (!may_pass && job.refusals >= MAX_REFUSALS && job.queued.elapsed() >= limit);
            (job.outage == Outage::Keep && is_hopeless, job)
        };
        let (hopeless, others): (Vec<_>, Vec<_>) = alone.into_iter().map(never_succeeds).partition(|it| it.0);
        for (_, mut job) in hopeless {
            self.metrics.write_quarantined();
            if !job.is_reported() {
                self.metrics.commit_failed();
            }
            tracing::error!(%error, refusals = job.refusals, "a write that never succeeds was quarantined");
            job.report(Err(StoreError::Corrupt(error.to_string())));
        }
        if !others.is_empty() {
            self.give_up(others.into_iter().map(|it| it.1).collect(), error);
        }
    }

    /// Runs all writes in one transaction; a failure leaves nothing behind.
    fn attempt(&mut self, jobs: &mut [Job]) -> Result<(), Failed> {
        let started = Instant::now();
        let lag = jobs.iter().map(|job| started.saturating_duration_since(job.queued)).max().unwrap_or_default();
        // Put back only while it is usable.
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                self.url.connect(Purpose::Write).map_err(|error| Failed { error, in_write: false, lost: false })?
            }
        };
        let settings = (self.webhook.as_deref(), self.lock_streams);
        let outcome = transact(&mut connection, &mut self.next_seq, settings, jobs);
        match outcome {
            Ok((rows, grown)) => {
                self.connection = Some(connection);
                self.retry = FIRST_RETRY;
                self.commits += 1;
                self.metrics.committed(rows, lag, started.elapsed());
                grown.iter().for_each(|stream| self.grown.add(stream));
                Ok(())
            }
            Err((error, in_write)) => {
                // The rollback also undid the numbers that were given out; they are read again.
                self.next_seq.clear();
                let usable = connection.roll_back();
                if usable {
                    self.connection = Some(connection);
                }
                Err(Failed { error, in_write, lost: !usable })
            }
        }
    }

    /// Retains the writes that record the past and refuses the others, after the database did not accept them.
    fn give_up(&mut self, jobs: Vec<Job>, error: &StoreError) {
        self.retry = if self.retry < LAST_RETRY { self.retry * 2 } else { LAST_RETRY };
        let mut failed = 0;
        for mut job in jobs {
            let late = job.queued.elapsed() >= self.patience;
            let keep = matches!(error, StoreError::Unavailable(_))
                && job.outage == Outage::Keep
                && self.retained.len() + self.suspects.len() < self.max_retained
                // A closed store must come to an end, because `close` waits for it.
                && !(late && self.queue.is_closed());
            // A late write is reported as failed and may be retained nevertheless: its caller must not wait longer.
            if late || !keep {
                // A conflict is the caller's fault and no failure of the database.
                if !matches!(error, StoreError::Conflict(_)) && !job.is_reported() {
                    failed += 1;
                    self.metrics.commit_failed();
                }
                job.report(Err(error.clone()));
            }
            match keep {
                true if job.refusals > 1 => self.suspects.push(job),
                true => self.retained.push(job),
                false => {}
            }
        }
        if failed > 0 || !self.retained.is_empty() || !self.suspects.is_empty() {
            tracing::error!(%error, failed, retained = self.retained.len() + self.suspects.len(), "the database did not take writes");
        }
    }
}

fn finish_all(jobs: Vec<Job>) {
    let late = jobs.iter().filter(|job| job.is_reported()).count();
    if late > 0 {
        tracing::warn!(late, "late writes are on disk now");
    }
    for mut job in jobs {
        job.report(Ok(()));
    }
}

/// Returns the number of rows written and the streams that got notifications; or the error, and whether a write caused it.
fn transact(
    connection: &mut AnyConnection,
    next_seq: &mut HashMap<SessionId, i64>,
    (webhook, lock_streams): (Option<&str>, LockStreams),
    jobs: &mut [Job],
) -> Result<(usize, Vec<Stream>), (StoreError, bool)> {
    connection.begin_write().map_err(|cause| (StoreError::from(cause), false))?;
    let (mut rows, mut grown, mut late) = (0, Vec::new(), Vec::new());
    for job in jobs.iter_mut() {
        let mut tx = WriteTx {
            connection,
            next_seq,
            rows: 0,
            in_doubt: job.in_doubt,
            grown: &mut grown,
            late: &mut late,
            webhook,
        };
        run(|| job.run(&mut tx))?;
        rows += tx.rows;
    }
    rows += finish_late(connection, next_seq, (webhook, lock_streams), late, &mut grown)?;
    connection.commit().map_err(|cause| {
        for job in jobs.iter_mut() {
            // A commit that reports an error may have taken effect; the next attempt checks before it inserts.
            job.in_doubt = true;
        }
        (StoreError::from(cause), false)
    })?;
    // Each stream is announced once for each commit.
    grown.sort_unstable();
    grown.dedup();
    Ok((rows, grown))
}

/// Runs a part of a write; a panic is an error of the write, because it must not end the thread and all later writes.
fn run(part: impl FnOnce() -> Result<(), StoreError>) -> Result<(), (StoreError, bool)> {
    match catch_unwind(AssertUnwindSafe(part)) {
        Ok(outcome) => outcome.map_err(|error| (error, true)),
        Err(_) => Err((StoreError::Corrupt("a write panicked".into()), true)),
    }
}

/// Runs the late parts of a transaction in their order, with all their streams locked; returns the rows written.
fn finish_late(
    connection: &mut AnyConnection,
    next_seq: &mut HashMap<SessionId, i64>,
    (webhook, lock_streams): (Option<&str>, LockStreams),
    late: Vec<Late>,
    grown: &mut Vec<Stream>,
) -> Result<usize, (StoreError, bool)> {
    let mut streams: Vec<_> = late.iter().flat_map(|part| part.streams.iter().cloned()).collect();
    streams.sort_unstable();
    streams.dedup();
    lock_streams(connection, &streams).map_err(|error| (error, true))?;
    let (mut rows, mut none) = (0, Vec::new());
    for part in late {
        let in_doubt = part.in_doubt;
        let mut tx = WriteTx { connection, next_seq, rows: 0, in_doubt, grown, late: &mut none, webhook };
        run(|| (part.run)(&mut tx))?;
        rows += tx.rows;
    }
    Ok(rows)
}
