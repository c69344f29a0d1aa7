//! The one database writer: a thread with a connection of its own.
//!
//! The writer commits at once when it is idle; writes that queued while it was busy share the next transaction. It never waits
//! for more of them. A failed write does not fail its neighbours: the transaction is rolled back, and each write is
//! retried alone. While the database is unavailable, writes that record the past are retained and retried without a
//! limit; their callers get an error after `[database] patience_s`.

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
    job::Message,
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

/// If the database takes longer than this to refuse one write, the remaining ones are not retried alone.
const SLOW_REFUSAL: Duration = Duration::from_secs(1);

/// Why a transaction was rolled back.
struct Failed {
    error: StoreError,
    /// True if a write failed; otherwise the database refused the transaction itself.
    in_write: bool,
    /// True if the connection was lost.
    lost: bool,
}

/// The writer's thread.
pub(crate) struct Writer {
    url: DatabaseUrl,
    connection: Option<AnyConnection>,
    webhook: Option<String>,
    queue: Receiver<Message>,
    metrics: Metrics,
    grown: GrownStreams,
    next_seq: HashMap<SessionId, i64>,
    /// Writes that the database has not accepted yet, retained for a retry. At half as many as the queue has places,
    /// nothing more is taken out of the queue.
    retained: Vec<Job>,
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
            connection: Some(connection),
            max_retained: queue.max_capacity(),
            queue,
            metrics,
            grown,
            next_seq: HashMap::new(),
            retained: Vec::new(),
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
        }
    }

    /// Waits for a write and takes whatever else is queued; retained writes come first.
    fn next_batch(&mut self) -> Option<Vec<Job>> {
        let first = if self.retained.is_empty() {
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
        let full = batch.len() + MAX_BATCH;
        let mut next = first;
        while let Some(message) = next {
            match message {
                // A withdrawn write is dropped here.
                Message::Write(job) => batch.extend(job.claim()),
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
        if matches!(&outcome, Err(failed) if failed.lost) {
            outcome = self.attempt(&mut batch);
        }
        match outcome {
            Ok(()) => finish_all(batch),
            Err(failed) if !failed.in_write => self.give_up(batch, &failed.error),
            // It was alone in its transaction already, and did not lose a race against another process.
            Err(failed) if batch.len() == 1 && !matches!(failed.error, StoreError::Conflict(_)) => {
                self.give_up(batch, &failed.error);
            }
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
                Err(failed) => self.give_up(alone, &failed.error),
            }
        }
    }

    /// Runs all writes in one transaction; a failure leaves nothing behind.
    fn attempt(&mut self, jobs: &mut [Job]) -> Result<(), Failed> {
        let started = Instant::now();
        let lag = jobs.iter().map(|job| started.saturating_duration_since(job.queued)).max().unwrap_or_default();
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                self.url.connect(Purpose::Write).map_err(|error| Failed { error, in_write: false, lost: false })?
            }
        };
        let outcome = transact(&mut connection, &mut self.next_seq, self.webhook.as_deref(), jobs);
        match outcome {
            Ok((rows, grown)) => {
                self.connection = Some(connection);
                self.retry = FIRST_RETRY;
                self.metrics.committed(rows, lag, started.elapsed());
                grown.iter().for_each(|stream| self.grown.add(stream));
                Ok(())
            }
            Err((error, in_write)) => {
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
                && self.retained.len() < self.max_retained
                // A closed store must come to an end, because `close` waits for it.
                && !(late && self.queue.is_closed());
            if late || !keep {
                if !matches!(error, StoreError::Conflict(_)) && !job.is_reported() {
                    failed += 1;
                    self.metrics.commit_failed();
                }
                job.report(Err(error.clone()));
            }
            if keep {
                self.retained.push(job);
            }
        }
        if failed > 0 || !self.retained.is_empty() {
            tracing::error!(%error, failed, retained = self.retained.len(), "the database did not take writes");
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
    webhook: Option<&str>,
    jobs: &mut [Job],
) -> Result<(usize, Vec<Stream>), (StoreError, bool)> {
    connection.begin_write().map_err(|cause| (StoreError::from(cause), false))?;
    let (mut rows, mut grown, mut has_lock) = (0, Vec::new(), false);
    for job in jobs.iter_mut() {
        let mut tx = WriteTx {
            connection,
            next_seq,
            rows: 0,
            in_doubt: job.in_doubt,
            grown: &mut grown,
            has_lock: &mut has_lock,
            webhook,
        };
        match catch_unwind(AssertUnwindSafe(|| job.run(&mut tx))) {
            Ok(Ok(())) => rows += tx.rows,
            Ok(Err(error)) => return Err((error, true)),
            Err(_) => return Err((StoreError::Corrupt("a write panicked".into()), true)),
        }
    }
    connection.commit().map_err(|cause| {
        for job in jobs.iter_mut() {
            job.in_doubt = true;
        }
        (StoreError::from(cause), false)
    })?;
    grown.sort_unstable();
    grown.dedup();
    Ok((rows, grown))
}
