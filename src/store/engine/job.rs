//! A queued write: what it does, how its outcome is reported, and what an outage of the database means to it.
//!
//! Invariant: the outcome is reported to the caller exactly once, also when the job is dropped.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use super::{connection::AnyConnection, room::Share};
use crate::{
    domain::{ids::SessionId, notify::notification::Stream},
    store::StoreError,
};

/// Sessions whose next transcript number is cached; when the cache is full it is emptied, and numbers are read again.
/// Four times the required 1,000 live sessions, at about 40 bytes each.
const MAX_REMEMBERED: usize = 4096;

/// The transaction that a write is part of.
pub(crate) struct WriteTx<'a> {
    /// The connection, with the transaction open.
    pub(crate) connection: &'a mut AnyConnection,
    /// Next transcript number of sessions that wrote recently.
    pub(crate) next_seq: &'a mut HashMap<SessionId, i64>,
    pub(crate) rows: usize,
    /// True if an earlier attempt may have been committed: the connection broke during the commit.
    pub(crate) in_doubt: bool,
    /// Streams that got notifications, whose subscribers are notified after the commit.
    pub(crate) grown: &'a mut Vec<Stream>,
    /// Parts that run at the end of the transaction.
    pub(crate) late: &'a mut Vec<Late>,
    /// The endpoint for the operators' notifications.
    pub(crate) webhook: Option<&'a str>,
}

/// A part of a write that appends to streams of notifications. It runs at the end of the transaction, after the other
/// writes of the batch: only then are the streams locked, in sorted order, so that a stream is held for a short time and
/// two processes cannot deadlock.
pub(crate) struct Late {
    pub(crate) streams: Vec<Stream>,
    pub(crate) in_doubt: bool,
    pub(crate) run: LateRun,
}

type LateRun = Box<dyn FnOnce(&mut WriteTx<'_>) -> Result<(), StoreError>>;

impl WriteTx<'_> {
    /// Runs `run` at the end of this transaction, with `streams` locked. A part that is deferred by a late part is lost.
    pub(crate) fn later(
        &mut self,
        streams: Vec<Stream>,
        run: impl FnOnce(&mut WriteTx<'_>) -> Result<(), StoreError> + 'static,
    ) {
        self.late.push(Late { streams, in_doubt: self.in_doubt, run: Box::new(run) });
    }

    /// Takes `count` transcript numbers of a session and returns the first. `read_last` reads the last number in use, if
    /// it is not cached.
    pub(crate) fn take_seqs(
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
            // Emptied as a whole: finding the oldest entry would cost more than reading some numbers again.
            self.next_seq.clear();
        }
        self.next_seq.insert(session, first.saturating_add(i64::try_from(count).unwrap_or(i64::MAX)));
        Ok(first)
    }
}

/// A write with any type of answer.
trait Write: Send {
    /// Writes; may be called again after a rollback.
    fn run(&mut self, tx: &mut WriteTx<'_>) -> Result<(), StoreError>;
    /// Reports the outcome; only the first call has an effect.
    fn report(&mut self, outcome: Result<(), StoreError>);
}

struct Task<T, Run, Done> {
    run: Run,
    answer: Option<T>,
    done: Option<Done>,
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

    fn report(&mut self, outcome: Result<(), StoreError>) {
        if let Some(done) = self.done.take() {
            done(outcome.and_then(|()| self.answer.take().ok_or(StoreError::Closed)));
        }
    }
}

/// Treatment of a write while the database is unavailable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outage {
    /// Refuse it, because it is new work.
    Refuse,
    /// Keep it until it is written, because it records the past.
    Keep,
}

/// Decides a race for a queued write: the writer takes it out of the queue, or the caller withdraws it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claim(Arc<AtomicBool>);

impl Claim {
    /// Claims the write; `false` if the other side was first.
    pub(crate) fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

pub(crate) struct Job {
    write: Box<dyn Write>,
    claim: Claim,
    reported: bool,
    pub(crate) queued: Instant,
    pub(crate) outage: Outage,
    /// True if an earlier attempt may have been committed.
    pub(crate) in_doubt: bool,
    /// Refusals of this write alone, with commits of other writes between them.
    pub(crate) refusals: u32,
    /// Commits of the writer at the last refusal.
    pub(crate) refused_at: Option<u64>,
    /// Returned on drop.
    _share: Option<Share>,
}

impl Job {
    /// `run` writes, and may be called again after a rollback. `done` gets the outcome after the commit, on the writer's
    /// thread.
    pub(crate) fn new<T: Send + 'static>(
        outage: Outage,
        run: impl FnMut(&mut WriteTx<'_>) -> Result<T, StoreError> + Send + 'static,
        done: impl FnOnce(Result<T, StoreError>) + Send + 'static,
    ) -> Self {
        let write = Box::new(Task { run, answer: None, done: Some(done) });
        Self {
            write,
            claim: Claim::default(),
            reported: false,
            queued: Instant::now(),
            outage,
            in_doubt: false,
            refusals: 0,
            refused_at: None,
            _share: None,
        }
    }

    /// Holds `share` until the write is done or dropped.
    #[expect(clippy::used_underscore_binding, reason = "set once, and then held for its drop")]
    pub(crate) fn with_share(mut self, share: impl Into<Option<Share>>) -> Self {
        self._share = share.into();
        self
    }

    /// The claim by which the caller can withdraw the write while it is queued.
    pub(crate) fn claim_of(&self) -> Claim {
        self.claim.clone()
    }

    /// Takes the write out of the queue; `None` if it was withdrawn.
    pub(crate) fn claim(self) -> Option<Self> {
        self.claim.take().then_some(self)
    }

    pub(crate) fn run(&mut self, tx: &mut WriteTx<'_>) -> Result<(), StoreError> {
        self.write.run(tx)
    }

    /// True if the caller has the outcome.
    pub(crate) fn is_reported(&self) -> bool {
        self.reported
    }

    /// Reports the outcome to the caller, unless it was reported before.
    pub(crate) fn report(&mut self, outcome: Result<(), StoreError>) {
        if !std::mem::replace(&mut self.reported, true) {
            guarded("reporting the outcome of a write", || self.write.report(outcome));
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.report(Err(StoreError::Closed));
    }
}

/// A message to the writer; each takes one place in its queue.
pub(crate) enum Message {
    Write(Job),
    /// Finish all queued writes and reserved places, then end.
    Close,
}

/// Runs a callback; a panic in it is logged and not propagated.
pub(crate) fn guarded(what: &'static str, run: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(run)).is_err() {
        tracing::error!("{what} panicked");
    }
}
