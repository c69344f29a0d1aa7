//! The one database writer: a thread with a connection of its own.
//!
//! It commits at once when it is idle; what queued while it was busy goes into the next transaction. It
//! never waits for company. A write that fails takes nobody with it: the transaction is rolled back and
//! every write of it is done again alone.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{runtime::Runtime, sync::mpsc::Receiver};

use super::{
    StoreError, StoreObserver,
    connection::{AnyConnection, DatabaseUrl, Purpose},
};
use crate::domain::ids::SessionId;

/// The most writes of one transaction: at 128 the cost of the commit is below a tenth of the whole, and
/// nobody waits longer than about 10 ms for the neighbours.
const MAX_BATCH: usize = 128;

/// How long turn ends and transcript entries are kept and tried again while the database is away: longer
/// than a PostgreSQL failover takes. Everything else is refused at once.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long until the database is asked again for kept writes when no new write asks it; doubles.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest such pause.
const LAST_RETRY: Duration = Duration::from_secs(2);

/// A database that took longer than this to refuse one write is not asked again for each of its
/// neighbours.
const SLOW_REFUSAL: Duration = Duration::from_secs(1);

/// Sessions whose next transcript number is remembered; beyond that all are forgotten and read again. The
/// mission's 1,000 live sessions four times over, at about 40 bytes each.
const MAX_REMEMBERED: usize = 4096;

/// What a write sees of the transaction that it is part of.
pub(super) struct WriteTx<'a> {
    /// The connection, with the transaction open.
    pub(super) connection: &'a mut AnyConnection,
    /// Next transcript number of sessions that wrote lately.
    next_seq: &'a mut HashMap<SessionId, i64>,
    /// Rows written so far.
    pub(super) rows: usize,
    /// Whether this write may have been committed before: the connection broke during the commit.
    pub(super) in_doubt: bool,
}

impl WriteTx<'_> {
    /// Takes `count` transcript numbers of a session, and gives the first; `read_last` reads the last
    /// number in use, where it is not remembered.
    pub(super) fn take_seqs(
        &mut self,
        session: SessionId,
        count: usize,
        read_last: impl FnOnce(&mut AnyConnection) -> diesel::QueryResult<Option<i64>>,
    ) -> diesel::QueryResult<i64> {
        let first = match self.next_seq.get(&session) {
            Some(next) => *next,
            None => read_last(self.connection)?.unwrap_or(0) + 1,
        };
        if self.next_seq.len() >= MAX_REMEMBERED {
            self.next_seq.clear();
        }
        self.next_seq.insert(session, first.saturating_add(i64::try_from(count).unwrap_or(i64::MAX)));
        Ok(first)
    }
}

/// One write, of whatever answer.
trait Write: Send {
    /// Writes; may be called again after a rollback.
    fn run(&mut self, tx: &mut WriteTx<'_>) -> Result<(), StoreError>;
    /// Tells whoever asked, after the commit.
    fn finish(self: Box<Self>, outcome: Result<(), StoreError>);
}

struct Task<T, Run, Done> {
    run: Run,
    answer: Option<T>,
    done: Done,
}

impl<T, Run, Done> Write for Task<T, Run, Done>
where
    T: Send,
    Run: FnMut(&mut WriteTx<'_>) -> Result<T, StoreError> + Send,
    Done: FnOnce(Result<T, StoreError>) + Send,
{
    fn run(&mut self, tx: &mut WriteTx<'_>) -> Result<(), StoreError> {
        self.answer = Some((self.run)(tx)?);
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), StoreError>) {
        let Self { answer, done, .. } = *self;
        done(outcome.and_then(|()| answer.ok_or(StoreError::Closed)));
    }
}

/// What to do with a write while the database is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outage {
    /// Refuse it: it is new work.
    Refuse,
    /// Keep it for a while: it records what has happened.
    Keep,
}

/// A queued write. Whatever becomes of it, whoever asked is told exactly once.
pub(super) struct Job {
    write: Option<Box<dyn Write>>,
    queued: Instant,
    outage: Outage,
    in_doubt: bool,
}

impl Job {
    /// `run` writes, and may be called again after a rollback; `done` is told after the commit, on the
    /// writer's thread.
    pub(super) fn new<T: Send + 'static>(
        outage: Outage,
        run: impl FnMut(&mut WriteTx<'_>) -> Result<T, StoreError> + Send + 'static,
        done: impl FnOnce(Result<T, StoreError>) + Send + 'static,
    ) -> Self {
        let write = Box::new(Task { run, answer: None, done });
        Self { write: Some(write), queued: Instant::now(), outage, in_doubt: false }
    }

    fn finish(mut self, outcome: Result<(), StoreError>) {
        if let Some(write) = self.write.take() {
            guarded("telling the outcome of a write", || write.finish(outcome));
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Some(write) = self.write.take() {
            guarded("telling that a write was dropped", || write.finish(Err(StoreError::Closed)));
        }
    }
}

/// What travels to the writer.
pub(super) enum Message {
    /// Something to write.
    Write(Job),
    /// Finish what is queued and what still holds a place in the queue, then end.
    Close,
}

/// Runs code of others; a panic in it is logged and goes no further.
fn guarded(what: &'static str, run: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(run)).is_err() {
        tracing::error!("{what} panicked");
    }
}

/// Why a transaction was rolled back.
struct Failed {
    error: StoreError,
    /// Whether it was one of the writes; else the database refused the transaction as such.
    in_write: bool,
    /// Whether the connection was there, and is lost.
    lost: bool,
}

/// The writer's thread.
pub(super) struct Writer {
    url: DatabaseUrl,
    connection: Option<AnyConnection>,
    queue: Receiver<Message>,
    observer: Arc<dyn StoreObserver>,
    next_seq: HashMap<SessionId, i64>,
    kept: Vec<Job>,
    max_kept: usize,
    retry: Duration,
    timer: Runtime,
}

impl Writer {
    /// Connects. Blocks.
    pub(super) fn new(
        url: DatabaseUrl,
        queue: Receiver<Message>,
        observer: Arc<dyn StoreObserver>,
    ) -> Result<Self, StoreError> {
        let connection = url.connect(Purpose::Write)?;
        let timer = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let timer = timer.map_err(|cause| StoreError::Unavailable(format!("a timer for the writer: {cause}")))?;
        Ok(Self {
            url,
            connection: Some(connection),
            max_kept: queue.max_capacity(),
            queue,
            observer,
            next_seq: HashMap::new(),
            kept: Vec::new(),
            retry: FIRST_RETRY,
            timer,
        })
    }

    /// Writes until the queue is closed and empty.
    pub(super) fn run(mut self) {
        while let Some(batch) = self.next_batch() {
            let observer = self.observer.clone();
            let waiting = self.queue.len();
            guarded("observing the queue", || observer.on_queue_depth(waiting));
            if !batch.is_empty() {
                self.write(batch);
            }
        }
    }

    /// Waits for something to write, and takes what else is there; kept writes come first.
    fn next_batch(&mut self) -> Option<Vec<Job>> {
        let first = if self.kept.is_empty() {
            Some(self.queue.blocking_recv()?)
        } else {
            match self.timer.block_on(async { tokio::time::timeout(self.retry, self.queue.recv()).await }) {
                Ok(Some(message)) => Some(message),
                Ok(None) => {
                    // Closed: nothing paces the retries but this.
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "a thread of its own, which has nothing else to do"
                    )]
                    std::thread::sleep(self.retry);
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
                Message::Write(job) => batch.push(job),
                Message::Close => self.queue.close(),
            }
            next = if batch.len() < full { self.queue.try_recv().ok() } else { None };
        }
        Some(batch)
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
        let outcome = transact(&mut connection, &mut self.next_seq, jobs);
        match outcome {
            Ok(rows) => {
                self.connection = Some(connection);
                self.retry = FIRST_RETRY;
                let observer = &self.observer;
                guarded("observing a commit", || observer.on_commit(rows, lag, started.elapsed()));
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
        for job in jobs {
            let keep = matches!(error, StoreError::Unavailable(_))
                && job.outage == Outage::Keep
                && job.queued.elapsed() < PATIENCE
                && self.kept.len() < self.max_kept;
            if keep {
                self.kept.push(job);
                continue;
            }
            if !matches!(error, StoreError::Conflict(_)) {
                failed += 1;
                let observer = &self.observer;
                guarded("observing a failure", || observer.on_failure());
            }
            job.finish(Err(error.clone()));
        }
        if failed > 0 || !self.kept.is_empty() {
            tracing::error!(%error, failed, kept = self.kept.len(), "the database did not take writes");
        }
    }
}

fn finish_all(jobs: Vec<Job>) {
    for job in jobs {
        job.finish(Ok(()));
    }
}

/// The rows written, or why not and whether a write was the reason.
fn transact(
    connection: &mut AnyConnection,
    next_seq: &mut HashMap<SessionId, i64>,
    jobs: &mut [Job],
) -> Result<usize, (StoreError, bool)> {
    connection.begin_write().map_err(|cause| (StoreError::from(cause), false))?;
    let mut rows = 0;
    for job in jobs.iter_mut() {
        let Some(write) = &mut job.write else { continue };
        let mut tx = WriteTx { connection, next_seq, rows: 0, in_doubt: job.in_doubt };
        match catch_unwind(AssertUnwindSafe(|| write.run(&mut tx))) {
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
    Ok(rows)
}
