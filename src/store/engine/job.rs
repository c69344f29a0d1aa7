//! One write on its way through the queue: what it does, who is told, and what an outage means to it.
//!
//! Whatever becomes of it, whoever asked is told exactly once.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use super::connection::AnyConnection;
use crate::{
    domain::{ids::SessionId, notify::toast::Stream},
    store::StoreError,
};

/// Sessions whose next transcript number is remembered; beyond that all are forgotten and read again. The
/// mission's 1,000 live sessions four times over, at about 40 bytes each.
const MAX_REMEMBERED: usize = 4096;

/// What a write sees of the transaction that it is part of.
pub(crate) struct WriteTx<'a> {
    /// The connection, with the transaction open.
    pub(crate) connection: &'a mut AnyConnection,
    /// Next transcript number of sessions that wrote lately.
    pub(crate) next_seq: &'a mut HashMap<SessionId, i64>,
    /// Rows written so far.
    pub(crate) rows: usize,
    /// Whether this write may have been committed before: the connection broke during the commit.
    pub(crate) in_doubt: bool,
    /// The sequences to which toasts were added, for who hands them on after the commit.
    pub(crate) told: &'a mut Vec<Stream>,
    /// Whether the transaction has its turn to add toasts.
    pub(crate) has_turn: &'a mut bool,
    /// Where toasts of operators are posted, if they are.
    pub(crate) webhook: Option<&'a str>,
}

impl WriteTx<'_> {
    /// Takes `count` transcript numbers of a session, and gives the first; `read_last` reads the last
    /// number in use, where it is not remembered.
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
    /// Tells whoever asked; the first time counts.
    fn tell(&mut self, outcome: Result<(), StoreError>);
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

    fn tell(&mut self, outcome: Result<(), StoreError>) {
        if let Some(done) = self.done.take() {
            done(outcome.and_then(|()| self.answer.take().ok_or(StoreError::Closed)));
        }
    }
}

/// What to do with a write while the database is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outage {
    /// Refuse it: it is new work.
    Refuse,
    /// Keep it until it is written: it records what has happened.
    Keep,
}

/// Says who was first: the writer, which takes a write out of the queue, or the caller, who no longer wants it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claim(Arc<AtomicBool>);

impl Claim {
    /// Takes it; `false` where the other one was first.
    pub(crate) fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// A queued write.
pub(crate) struct Job {
    write: Box<dyn Write>,
    claim: Claim,
    told: bool,
    /// Since when it waits.
    pub(crate) queued: Instant,
    /// What an outage means to it.
    pub(crate) outage: Outage,
    /// Whether it may have been committed already.
    pub(crate) in_doubt: bool,
}

impl Job {
    /// `run` writes, and may be called again after a rollback; `done` is told after the commit, on the
    /// writer's thread.
    pub(crate) fn new<T: Send + 'static>(
        outage: Outage,
        run: impl FnMut(&mut WriteTx<'_>) -> Result<T, StoreError> + Send + 'static,
        done: impl FnOnce(Result<T, StoreError>) + Send + 'static,
    ) -> Self {
        let write = Box::new(Task { run, answer: None, done: Some(done) });
        Self { write, claim: Claim::default(), told: false, queued: Instant::now(), outage, in_doubt: false }
    }

    /// By which it can be withdrawn as long as it waits.
    pub(crate) fn claim_of(&self) -> Claim {
        self.claim.clone()
    }

    /// Takes it out of the queue; nothing where it was withdrawn.
    pub(crate) fn claim(self) -> Option<Self> {
        self.claim.take().then_some(self)
    }

    /// Writes.
    pub(crate) fn run(&mut self, tx: &mut WriteTx<'_>) -> Result<(), StoreError> {
        self.write.run(tx)
    }

    /// Whether whoever asked knows already.
    pub(crate) fn is_told(&self) -> bool {
        self.told
    }

    /// Tells whoever asked, unless that has been done.
    pub(crate) fn tell(&mut self, outcome: Result<(), StoreError>) {
        if !std::mem::replace(&mut self.told, true) {
            guarded("telling the outcome of a write", || self.write.tell(outcome));
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.tell(Err(StoreError::Closed));
    }
}

/// What travels to the writer.
pub(crate) enum Message {
    /// Something to write.
    Write(Job),
    /// Finish what is queued and what still holds a place in the queue, then end.
    Close,
}

/// Runs code of others; a panic in it is logged and goes no further.
pub(crate) fn guarded(what: &'static str, run: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(run)).is_err() {
        tracing::error!("{what} panicked");
    }
}
