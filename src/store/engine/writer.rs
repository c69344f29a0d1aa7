//! The one database writer: a thread with a connection of its own.
//!
//! It commits at once when it is idle; what queued while it was busy goes into the next transaction. It
//! never waits for company. A write that fails takes nobody with it: the transaction is rolled back and
//! every write of it is done again alone. While the database is away, what records the past is kept and tried
//! again for as long as that takes; whoever waits for it is told after a while that it is not durable.

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
    domain::{ids::SessionId, notify::toast::Stream},
    store::StoreError,
    telemetry::{Metrics, labels::Queue},
};

/// The most writes of one transaction: at 128 the cost of the commit is below a tenth of the whole, and
/// nobody waits longer than about 10 ms for the neighbours.
const MAX_BATCH: usize = 128;

/// How long until the database is asked again for kept writes when no new write asks it; doubles.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest such pause.
const LAST_RETRY: Duration = Duration::from_secs(2);

/// A database that took longer than this to refuse one write is not asked again for each of its
/// neighbours.
const SLOW_REFUSAL: Duration = Duration::from_secs(1);

/// Why a transaction was rolled back.
struct Failed {
    error: StoreError,
    /// Whether it was one of the writes; else the database refused the transaction as such.
    in_write: bool,
    /// Whether the connection was there, and is lost.
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
    /// Writes that the database has not taken yet. Once there are half as many as the queue has places, nothing
    /// more is taken out of it.
    kept: Vec<Job>,
    max_kept: usize,
    patience: Duration,
    retry: Duration,
    timer: Runtime,
}

impl Writer {
    /// Connects. Blocks. Who waits for a kept write is told after `patience` that it is not durable.
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
            max_kept: queue.max_capacity(),
            queue,
            metrics,
            grown,
            next_seq: HashMap::new(),
            kept: Vec::new(),
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

    /// Waits for something to write, and takes what else is there; kept writes come first.
    fn next_batch(&mut self) -> Option<Vec<Job>> {
        let first = if self.kept.is_empty() {
            Some(self.queue.blocking_recv()?)
        } else if self.kept.len() >= self.max_kept / 2 {
            // What more comes stays in the queue, which refuses new work at once and makes agents wait.
            self.pause();
            return Some(std::mem::take(&mut self.kept));
        } else {
            match self.timer.block_on(async { tokio::time::timeout(self.retry, self.queue.recv()).await }) {
                Ok(Some(message)) => Some(message),
                Ok(None) => {
                    // Closed: nothing paces the retries but this.
                    self.pause();
                    None
                }
                Err(_) => None,
            }
        };
        let mut batch = std::mem::take(&mut self.kept);
        let full = batch.len() + MAX_BATCH;
        let mut next = first;
        while let Some(message) = next {
            match message {
                // One that was withdrawn in the queue is dropped here.
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
            // Alone in its transaction, and the reason is not that somebody else was faster.
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

    /// One transaction of all these writes; on failure nothing of it remains.
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
            Ok((rows, told)) => {
                self.connection = Some(connection);
                self.retry = FIRST_RETRY;
                self.metrics.committed(rows, lag, started.elapsed());
                told.iter().for_each(|stream| self.grown.add(stream));
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

    /// The database does not take these writes: keeps what may be kept, and refuses the rest.
    fn give_up(&mut self, jobs: Vec<Job>, error: &StoreError) {
        self.retry = if self.retry < LAST_RETRY { self.retry * 2 } else { LAST_RETRY };
        let mut failed = 0;
        for mut job in jobs {
            let late = job.queued.elapsed() >= self.patience;
            let keep = matches!(error, StoreError::Unavailable(_))
                && job.outage == Outage::Keep
                && self.kept.len() < self.max_kept
                // Once the store is closed, somebody waits for the end of it.
                && !(late && self.queue.is_closed());
            if late || !keep {
                if !matches!(error, StoreError::Conflict(_)) && !job.is_told() {
                    failed += 1;
                    self.metrics.commit_failed();
                }
                job.tell(Err(error.clone()));
            }
            if keep {
                self.kept.push(job);
            }
        }
        if failed > 0 || !self.kept.is_empty() {
            tracing::error!(%error, failed, kept = self.kept.len(), "the database did not take writes");
        }
    }
}

fn finish_all(jobs: Vec<Job>) {
    let late = jobs.iter().filter(|job| job.is_told()).count();
    if late > 0 {
        tracing::warn!(late, "writes that were told as not durable are on disk now");
    }
    for mut job in jobs {
        job.tell(Ok(()));
    }
}

/// The rows written and the sequences that got toasts, or why not and whether a write was the reason.
fn transact(
    connection: &mut AnyConnection,
    next_seq: &mut HashMap<SessionId, i64>,
    webhook: Option<&str>,
    jobs: &mut [Job],
) -> Result<(usize, Vec<Stream>), (StoreError, bool)> {
    connection.begin_write().map_err(|cause| (StoreError::from(cause), false))?;
    let (mut rows, mut told, mut has_turn) = (0, Vec::new(), false);
    for job in jobs.iter_mut() {
        let mut tx = WriteTx {
            connection,
            next_seq,
            rows: 0,
            in_doubt: job.in_doubt,
            told: &mut told,
            has_turn: &mut has_turn,
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
    told.sort_unstable();
    told.dedup();
    Ok((rows, told))
}
