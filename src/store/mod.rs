//! What is kept, in SQLite or PostgreSQL: workspaces and their routes, sessions, turns, transcripts, and the records of
//! what was decided and done.
//!
//! Invariant: diesel, r2d2 and SQL are in this folder alone, and one thread writes. Writes queue for it
//! and are told after the commit; reads use a pool of connections that cannot write, on blocking threads.
//! No call blocks an arbiter; a full queue is [`StoreError::Busy`].

pub(crate) mod audit;
pub(crate) mod automation;
pub(crate) mod engine;
pub(crate) mod notifications;
mod retention;
pub(crate) mod routing;
#[rustfmt::skip]
mod schema;
mod sessions;
mod transcript;
pub(crate) mod turns;
mod workspaces;

use std::{fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::domain::turn::outcome::{ErrorCode, Failure};
use crate::telemetry::Metrics;

use self::engine::{
    connection::AnyConnection,
    grown::GrownStreams,
    job::{Job, Message, Outage},
    pool::ReadPool,
    writer::{WriteTx, Writer},
};
pub(crate) use self::{
    audit::{
        AuditFilter,
        capacity_alerts::{CapacityAlertFilter, NewCapacityAlert, OpenCapacityAlert},
        connections::{NewConnection, NewConnectionEvent},
        summary::{AuditDay, TurnFigures},
    },
    engine::{
        columns::{Cursor, Listed, MAX_PAGE, Page},
        connection::{BadDatabaseUrl, DatabaseUrl},
        pool::apart,
        upgrade::RenewedEpoch,
    },
    notifications::{
        NotificationRow, StoredNotification, StreamEnds, StreamPage, UnreadableNotification,
        deliveries::{ClaimDeliveries, Claimed, DueDelivery, GivenUpDelivery, TriedDelivery, WebhookDeliveryRow},
        inbox::InboxRows,
    },
    retention::Retained,
    routing::{
        RouteFilter, RouteRow, SaveRoute, SavedRoute,
        flips::{FlipRecord, UnendedStorm},
        migrations::{MigrationRunFilter, MigrationRunRow, SaveMigrationRun, SavedMigrationRun},
        tenants::TenantProtocol,
    },
    sessions::{KeptConnection, NewSession, SessionChange, SessionFilter, SessionRow},
    transcript::{TranscriptAppend, TranscriptRow},
    turns::{
        Acceptance, EndSlot, Idempotency, NewTurn, PromptRow, TurnEnd, outcomes::OutcomeCount, recovery::Unfinished,
    },
    workspaces::{NewWorkspace, WorkspaceFilter, WorkspaceRow},
};

/// Why the store did not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// Too much is queued already; nothing was done. Safe to retry later.
    #[error("too much waits for the database")]
    Busy,
    /// The database cannot be reached, or refuses for a reason of its own: locked, full, read-only.
    /// Safe to retry later.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// What is there contradicts what was to be written; a retry changes nothing.
    #[error("contradicts what is stored: {0}")]
    Conflict(String),
    /// What is stored, or was to be, is not what this version understands: a fault of ours.
    #[error("not as this version keeps it: {0}")]
    Corrupt(String),
    /// The database has the schema of another version, which this one cannot use; nothing was written. A complete
    /// sentence for the operator. A retry changes nothing.
    #[error("{0}")]
    OtherSchema(String),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl From<diesel::result::Error> for StoreError {
    fn from(cause: diesel::result::Error) -> Self {
        use diesel::result::{DatabaseErrorKind as Kind, Error};
        match &cause {
            Error::DatabaseError(kind, said) => match kind {
                Kind::UniqueViolation
                | Kind::ForeignKeyViolation
                | Kind::NotNullViolation
                | Kind::CheckViolation
                | Kind::RestrictViolation
                | Kind::ExclusionViolation => Self::Conflict(said.message().to_owned()),
                // SQLite tells these apart by their text alone.
                _ if said.message().contains("malformed") || said.message().contains("not a database") => {
                    Self::Corrupt(said.message().to_owned())
                }
                _ => Self::Unavailable(said.message().to_owned()),
            },
            Error::DeserializationError(_)
            | Error::SerializationError(_)
            | Error::QueryBuilderError(_)
            | Error::NotFound => Self::Corrupt(cause.to_string()),
            _ => Self::Unavailable(cause.to_string()),
        }
    }
}

/// How to open a store.
#[derive(Debug, Clone)]
pub(crate) struct StoreOptions {
    /// Where the database is.
    pub url: DatabaseUrl,
    /// Connections for reading; [`StoreOptions::DEFAULT_READERS`] unless something speaks against it.
    pub readers: u32,
    /// Writes that may wait, ends of running turns included (`[limits] write_queue`).
    pub write_queue: usize,
    /// How long the end of a turn may wait for a database that is away until it is told as not durable
    /// (`[database] patience_s`). It is written all the same as soon as that is possible.
    pub patience: Duration,
    /// Where toasts of operators are posted, without what may be secret: with each a delivery is kept. None: with none.
    pub webhook: Option<String>,
}

impl StoreOptions {
    /// Reads are short; 8 at a time keep two processors busy and a small PostgreSQL calm.
    pub(crate) const DEFAULT_READERS: u32 = 8;

    /// A SQLite file with small bounds and no webhook.
    #[cfg(test)]
    pub(crate) fn for_tests(file: &std::path::Path) -> Self {
        let url = DatabaseUrl::Sqlite(file.to_owned());
        Self { url, readers: 2, write_queue: 64, patience: Duration::from_secs(60), webhook: None }
    }
}

/// A place in the writer's queue.
#[derive(Debug)]
struct Place(mpsc::OwnedPermit<Message>);

impl Place {
    fn send(self, job: Job) {
        self.0.send(Message::Write(job));
    }
}

struct Inner {
    epoch: String,
    queue: mpsc::Sender<Message>,
    readers: ReadPool,
    metrics: Metrics,
    grown: GrownStreams,
    patience: Duration,
    /// Ends with the writer's thread.
    writer_ended: Mutex<Option<oneshot::Receiver<()>>>,
}

/// The store; clones are the same one. When the last is dropped, the writer finishes what is queued.
#[derive(Clone)]
pub(crate) struct Store {
    inner: Arc<Inner>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

/// How long a write of new work waits in the queue before it is withdrawn. A writer that gets no answer at all
/// (a server that is stopped, a disk that hangs) takes nothing more out of the queue. Longer than SQLite waits for
/// the lock of another process (5 s).
const QUEUE_PATIENCE: Duration = Duration::from_secs(6);

/// How long [`Store::close`] waits for the writer: for what is queued, and for turns that still hold a
/// place for their end.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

impl Store {
    /// Connects, upgrades the schema under a lock and starts the writer. Blocks, up to a minute while another process
    /// upgrades. Safe to retry.
    pub(crate) fn open(options: StoreOptions, metrics: Metrics) -> Result<Self, StoreError> {
        let StoreOptions { url, readers, write_queue, patience, webhook } = options;
        for name in engine::upgrade::run(&url)? {
            tracing::info!(%name, "schema upgraded");
        }
        let epoch = engine::upgrade::epoch(&url)?;
        let (queue, received) = mpsc::channel(write_queue.clamp(1, tokio::sync::Semaphore::MAX_PERMITS));
        let grown = GrownStreams::default();
        let writer = Writer::new(url.clone(), webhook, received, patience, metrics.clone(), grown.clone())?;
        let (ending, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || {
                writer.run();
                // Nobody listens where the store was dropped without being closed.
                let _ = ending.send(());
            })
            .map_err(|cause| StoreError::Unavailable(format!("the writer's thread: {cause}")))?;
        let readers = ReadPool::new(url, readers);
        let writer_ended = Mutex::new(Some(ended));
        Ok(Self { inner: Arc::new(Inner { epoch, queue, readers, metrics, grown, patience, writer_ended }) })
    }

    /// Opens a store on a SQLite file with the bounds of [`StoreOptions::for_tests`].
    #[cfg(test)]
    pub(crate) fn for_tests(file: &std::path::Path) -> Self {
        Self::open(StoreOptions::for_tests(file), Metrics::for_tests()).unwrap()
    }

    /// Upgrades the database to this version's schema, and returns the names of the steps that ran. Blocks. Safe to
    /// retry, and while other processes do the same.
    ///
    /// # Errors
    /// [`StoreError::OtherSchema`] for a database from before the baseline schema or of a newer version.
    pub(crate) fn upgrade_schema(url: &DatabaseUrl) -> Result<Vec<String>, StoreError> {
        engine::upgrade::run(url)
    }

    /// Gives a database of this version's schema a new [`Store::epoch`], after it was restored from a backup: its sequences
    /// go on with numbers that were given before, so that a cursor of then would pass over toasts without a word. A store
    /// that is open keeps the old one until it is opened anew. Blocks. Safe to retry: each time it is another one.
    pub(crate) fn renew_epoch(url: &DatabaseUrl) -> Result<RenewedEpoch, StoreError> {
        engine::upgrade::renew(url)
    }

    /// Finishes what is queued, and the ends of turns that still hold a place for it, for up to 10 s;
    /// then refuses everything with [`StoreError::Closed`]. Says whether all of it was finished. To be
    /// called last. A dropped future has closed the store all the same, or not at all.
    pub(crate) async fn close(&self) -> bool {
        self.inner.readers.close();
        let finished = tokio::time::timeout(CLOSE_PATIENCE, async {
            // An error means that the writer has ended.
            let _ = self.inner.queue.send(Message::Close).await;
            let ended = self.inner.writer_ended.lock().take();
            match ended {
                Some(ended) => ended.await.is_ok(),
                None => true,
            }
        })
        .await;
        let finished = finished.unwrap_or(false);
        if !finished {
            tracing::error!("the store was closed before everything was written");
        }
        finished
    }

    /// Names the database, whoever works with it: sequences and their numbers are of this one.
    pub(crate) fn epoch(&self) -> &str {
        &self.inner.epoch
    }

    /// The streams of notifications that have grown since they were last taken. Every caller gets the same one.
    pub(crate) fn grown_streams(&self) -> GrownStreams {
        self.inner.grown.clone()
    }

    /// Asks the database for a sign of life, through the connections for reading. Cancel-safe.
    pub(crate) async fn ping(&self) -> Result<(), StoreError> {
        self.read(|connection| {
            if connection.is_alive() { Ok(()) } else { Err(StoreError::Unavailable("no answer to a ping".into())) }
        })
        .await
    }

    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&mut AnyConnection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.inner.readers.read(query).await
    }

    /// Queues a write of new work and waits for its commit.
    async fn write<T: Send + 'static>(
        &self,
        run: impl FnMut(&mut WriteTx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, mut answered) = oneshot::channel();
        let place = self.place()?;
        let job = Job::new(Outage::Refuse, run, move |outcome| {
            // Nobody listens where the caller's future was dropped.
            let _ = answer.send(outcome);
        });
        let claim = job.claim_of();
        place.send(job);
        match tokio::time::timeout(QUEUE_PATIENCE, &mut answered).await {
            Ok(answer) => return answer.unwrap_or(Err(StoreError::Closed)),
            // Withdrawn in the queue, it is certain that nothing was written.
            Err(_) if claim.take() => {
                self.observe_failure();
                return Err(StoreError::Unavailable(format!("it took nothing for {QUEUE_PATIENCE:?}")));
            }
            Err(_) => {}
        }
        answered.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Queues a write that records the past, when there is room, and waits for its commit.
    async fn write_when_there_is_room<T: Send + 'static>(
        &self,
        run: impl FnMut(&mut WriteTx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        // Waits from now on, so that the wait for room is part of its patience.
        let job = Job::new(Outage::Keep, run, move |outcome| {
            let _ = answer.send(outcome);
        });
        let room = tokio::time::timeout(self.inner.patience, self.inner.queue.clone().reserve_owned());
        let place = room.await.map_err(|_| StoreError::Busy)?.map_err(|_| StoreError::Closed)?;
        Place(place).send(job);
        answered.await.unwrap_or(Err(StoreError::Closed))
    }

    fn place(&self) -> Result<Place, StoreError> {
        self.inner.queue.clone().try_reserve_owned().map(Place).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => StoreError::Busy,
            mpsc::error::TrySendError::Closed(_) => StoreError::Closed,
        })
    }

    fn observe_failure(&self) {
        self.inner.metrics.commit_failed();
    }
}

/// What a caller is told about a store that did not do something.
pub(crate) fn failure(cause: &StoreError) -> Failure {
    let code = match cause {
        StoreError::Busy | StoreError::Unavailable(_) | StoreError::Closed => ErrorCode::DatabaseUnavailable,
        StoreError::Conflict(_) | StoreError::Corrupt(_) | StoreError::OtherSchema(_) => ErrorCode::Internal,
    };
    Failure::new(code, cause.to_string())
}

#[cfg(test)]
mod tests;
