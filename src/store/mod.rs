//! The database, SQLite or `PostgreSQL`: workspaces and their routes, sessions, turns, transcripts, notifications and audit
//! records.
//!
//! Invariant: diesel, r2d2 and SQL are in this folder alone, and one thread writes. Writes queue for it, and their
//! outcome is reported after the commit; reads use a pool of connections that cannot write, on blocking threads. No call
//! blocks an arbiter; a full queue is [`StoreError::Busy`].

pub(crate) mod audit;
pub(crate) mod automation;
mod changes;
pub(crate) mod engine;
mod erasure;
mod history;
pub(crate) mod notifications;
mod replicas;
mod retention;
pub(crate) mod routing;
#[rustfmt::skip]
mod schema;
mod session_keys;
mod sessions;
mod tenants;
mod tokens;
mod transcript;
pub(crate) mod turns;
mod workspaces;

use std::{fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::domain::{
    clock::Timestamp,
    turn::outcome::{ErrorCode, Failure},
};
use crate::telemetry::Metrics;

use self::engine::{
    connection::AnyConnection,
    grown::GrownStreams,
    job::{Job, Message, Outage},
    pool::ReadPool,
    room::{Room, Share},
    writer::{WriteTx, Writer},
};
pub(crate) use self::{
    audit::{
        AuditFilter, SagaFilter,
        capacity_alerts::{CapacityAlertFilter, NewCapacityAlert, OpenCapacityAlert},
        connections::{NewConnection, NewConnectionEvent},
        summary::{AuditDay, AutomationFigures, TurnFigures},
    },
    automation::{
        deliveries::{DeliveryRow, QueueLimits, QueuedDelivery},
        sagas::{RunEnd, SagaRow, SagaUpdate},
    },
    changes::NewChange,
    engine::{
        backup::{Backup, BackupError},
        columns::{Cursor, Listed, MAX_PAGE, Page},
        connection::{BadDatabaseUrl, DatabaseUrl},
        pool::apart,
        upgrade::RenewedEpoch,
    },
    erasure::{EraseClaim, Erasures, OpenErasure},
    history::{PruneHistory, Removal, UnusedFolders},
    notifications::{
        NotificationRow, StoredNotification, StreamEnds, StreamPage, UnreadableNotification,
        deliveries::{ClaimDeliveries, Claimed, DueDelivery, GivenUpDelivery, TriedDelivery, WebhookDeliveryRow},
        inbox::InboxRows,
    },
    replicas::{Claimant, Replicas},
    retention::Retained,
    routing::{
        RouteFilter, RouteRow, SaveRoute, SavedRoute,
        flips::FlipRecord,
        migrations::{MigrationRunFilter, MigrationRunRow, SaveMigrationRun, SavedMigrationRun},
        tenants::TenantProtocol,
    },
    session_keys::{OpenedBefore, SessionKey},
    sessions::{KeptConnection, NewSession, OwnFolder, SessionChange, SessionFilter, SessionRow},
    tokens::TokenRow,
    transcript::{TranscriptAppend, TranscriptRow},
    turns::{
        AGENT_TURN, Acceptance, EndSlot, EndStep, Idempotency, NewTurn, PromptRow, TurnEnd, outcomes::OutcomeCount,
        recovery::Unfinished,
    },
    workspaces::{NewWorkspace, WorkspaceFilter, WorkspaceRow},
};

/// Why the store did not read or write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// The queue is full; nothing was done. Safe to retry later.
    #[error("the queue for the database is full")]
    Busy,
    /// The database cannot be reached, or is locked, full or read-only.
    /// Safe to retry later.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// The write contradicts stored rows; a retry changes nothing.
    #[error("contradicts what is stored: {0}")]
    Conflict(String),
    /// A stored value, or one to be written, is malformed for this version: a defect of the program.
    #[error("malformed in the database: {0}")]
    Corrupt(String),
    /// The database has the schema of another version, which this one cannot use; nothing was written. A complete
    /// sentence for the operator. A retry changes nothing.
    #[error("{0}")]
    OtherSchema(String),
    /// The end of a turn was not written, because the turn has another end, or is unknown: another process of the
    /// service took it over. A retry changes nothing.
    #[error("the turn was ended by another process of the service")]
    Fenced,
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// True for an outage by its message: a full disk, missing memory, a lock, a timeout, a server that stops. Such a
    /// write is kept however often it is refused.
    fn may_pass(&self) -> bool {
        const MESSAGES: [&str; 18] = [
            "disk is full",
            "disk i/o",
            "no space left",
            "could not extend",
            "could not write",
            "out of memory",
            "shared memory",
            "locked",
            "busy",
            "readonly",
            "read-only",
            "unable to open",
            "interrupted",
            "canceling statement",
            "deadlock",
            "timeout",
            "terminating connection",
            "recovery mode",
        ];
        let message = self.to_string().to_lowercase();
        MESSAGES.iter().any(|it| message.contains(it))
    }
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
                // SQLite distinguishes these by their text alone.
                _ if said.message().contains("malformed") || said.message().contains("not a database") => {
                    Self::Corrupt(said.message().to_owned())
                }
                _ if never_succeeds(said.message()) => Self::Corrupt(said.message().to_owned()),
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

/// True if the database refuses a value itself, so that a retry fails the same way. Diesel passes no SQLSTATE and no
/// result code on, so their messages are compared: `SQLITE_TOOBIG`, `SQLITE_MISMATCH`, `SQLITE_RANGE`; SQLSTATE classes
/// 22 (data exception) and 54 (limit exceeded). In another language a message is not recognised, and the writer
/// quarantines the write after repeated refusals.
fn never_succeeds(message: &str) -> bool {
    const MESSAGES: [&str; 9] = [
        "string or blob too big",
        "datatype mismatch",
        "column index out of range",
        "too many SQL variables",
        "invalid byte sequence",
        "value too long",
        "out of range",
        "invalid input syntax",
        "exceeds maximum",
    ];
    MESSAGES.iter().any(|it| message.contains(it))
}

#[derive(Debug, Clone)]
pub(crate) struct StoreOptions {
    pub url: DatabaseUrl,
    /// Connections for reading; default [`StoreOptions::DEFAULT_READERS`].
    pub readers: u32,
    /// Places in the writer's queue, including those reserved for ends of running turns (`[limits] write_queue`).
    pub write_queue: usize,
    /// Time that the end of a turn may wait for an unavailable database before it is reported as not durable
    /// (`[database] patience_s`). It is written nevertheless, as soon as that is possible.
    pub patience: Duration,
    /// The webhook's endpoint without secrets: each notification of operators gets a delivery. `None`: no deliveries.
    pub webhook: Option<String>,
}

impl StoreOptions {
    /// Reads are short; 8 at a time keep two processors busy and a small `PostgreSQL` calm.
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
    url: DatabaseUrl,
    epoch: String,
    queue: mpsc::Sender<Message>,
    room: Room,
    readers: ReadPool,
    metrics: Metrics,
    grown: GrownStreams,
    erasures: Erasures,
    patience: Duration,
    /// Resolves when the writer's thread ends.
    writer_ended: Mutex<Option<oneshot::Receiver<()>>>,
}

/// The store; clones share one writer. When the last clone is dropped, the writer finishes the queued writes and ends.
#[derive(Clone)]
pub(crate) struct Store {
    inner: Arc<Inner>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

/// Time that a write of new work waits in the queue before it is withdrawn: a writer that waits for a stopped server or a
/// hanging disk takes nothing out of the queue. Longer than SQLite waits for another process's lock (5 s).
const QUEUE_TIMEOUT: Duration = Duration::from_secs(6);

/// Time that [`Store::close`] waits for the queued writes and for turns that hold a reserved place for their end.
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
        let lock = notifications::lock_streams;
        let writer = Writer::new(url.clone(), webhook, lock, received, patience, metrics.clone(), grown.clone())?;
        let (ending, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || {
                writer.run();
                // Without a receiver if the store was dropped without `close`.
                let _ = ending.send(());
            })
            .map_err(|cause| StoreError::Unavailable(format!("the writer's thread: {cause}")))?;
        let readers = ReadPool::new(url.clone(), readers);
        let writer_ended = Mutex::new(Some(ended));
        Ok(Self {
            inner: Arc::new(Inner {
                url,
                epoch,
                queue,
                room: Room::new(),
                readers,
                metrics,
                grown,
                erasures: Erasures::default(),
                patience,
                writer_ended,
            }),
        })
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

    /// Gives a database that was restored from a backup a new [`Store::epoch`]. Its streams reuse numbers that were given
    /// out before, so that an old cursor would silently skip notifications. An open store keeps the old epoch until it is
    /// reopened. Blocks. Safe to retry: each call makes another epoch.
    pub(crate) fn renew_epoch(url: &DatabaseUrl) -> Result<RenewedEpoch, StoreError> {
        engine::upgrade::renew(url)
    }

    /// Finishes the queued writes and the ends of turns that hold a reserved place, for up to 10 s, then refuses everything
    /// with [`StoreError::Closed`]. Returns whether all writes were finished. Must be the last call.
    ///
    /// # Cancel safety
    /// A dropped future has closed the store, or not at all.
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

    /// Identifies the database: numbers of streams are valid within one epoch only.
    pub(crate) fn epoch(&self) -> &str {
        &self.inner.epoch
    }

    /// The streams of notifications that have grown since they were last taken. Every caller gets the same one.
    pub(crate) fn grown_streams(&self) -> GrownStreams {
        self.inner.grown.clone()
    }

    /// The erasures in progress. Every caller gets the same ones.
    pub(crate) fn erasures(&self) -> &Erasures {
        &self.inner.erasures
    }

    /// Reads the time by the database's clock: of its server, or of this machine for a file. Cancel-safe.
    pub(crate) async fn time(&self) -> Result<Timestamp, StoreError> {
        self.read(replicas::database_time).await
    }

    /// Checks that the database answers, through a connection for reading. Cancel-safe.
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
        self.write_with_share(None, run).await
    }

    /// [`Self::write`] of a write that is not small.
    async fn write_with_share<T: Send + 'static>(
        &self,
        share: Option<Share>,
        run: impl FnMut(&mut WriteTx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, mut answered) = oneshot::channel();
        let place = self.place()?;
        let job = Job::new(Outage::Refuse, run, move |outcome| {
            // Without a receiver if the caller's future was dropped.
            let _ = answer.send(outcome);
        });
        let job = job.with_share(share);
        let claim = job.claim_of();
        place.send(job);
        match tokio::time::timeout(QUEUE_TIMEOUT, &mut answered).await {
            Ok(answer) => return answer.unwrap_or(Err(StoreError::Closed)),
            // It was withdrawn in the queue, so nothing was written.
            Err(_) if claim.take() => {
                self.observe_failure();
                return Err(StoreError::Unavailable(format!("the writer accepted nothing for {QUEUE_TIMEOUT:?}")));
            }
            Err(_) => {}
        }
        answered.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Waits for room in the queue, queues a write that records the past, and waits for its commit.
    async fn write_when_there_is_room<T: Send + 'static>(
        &self,
        run: impl FnMut(&mut WriteTx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.keep(None, run).await
    }

    /// [`Self::write_when_there_is_room`] of a write that is not small.
    async fn keep<T: Send + 'static>(
        &self,
        share: Option<Share>,
        run: impl FnMut(&mut WriteTx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        // Created before the wait for room, which counts towards its patience.
        let job = Job::new(Outage::Keep, run, move |outcome| {
            let _ = answer.send(outcome);
        });
        // Held by the write and not by the caller, who gets an error while the write is still retained.
        let job = job.with_share(share);
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

    /// Takes a share of the bytes that may wait; `Busy` if there is no room.
    fn share(&self, bytes: usize) -> Result<Share, StoreError> {
        self.inner.room.try_take(bytes).ok_or(StoreError::Busy)
    }

    /// [`Self::share`], waiting for room as long as the patience allows.
    async fn share_when_there_is_room(&self, bytes: usize) -> Result<Share, StoreError> {
        let share = tokio::time::timeout(self.inner.patience, self.inner.room.take(bytes)).await;
        share.map_err(|_| StoreError::Busy)?.ok_or(StoreError::Closed)
    }

    fn observe_failure(&self) {
        self.inner.metrics.commit_failed();
    }
}

/// The failure that callers of the API get for an error of the store.
pub(crate) fn failure(cause: &StoreError) -> Failure {
    let code = match cause {
        StoreError::Busy | StoreError::Unavailable(_) | StoreError::Closed => ErrorCode::DatabaseUnavailable,
        StoreError::Fenced => ErrorCode::Fenced,
        StoreError::Conflict(_) | StoreError::Corrupt(_) | StoreError::OtherSchema(_) => ErrorCode::Internal,
    };
    Failure::new(code, cause.to_string())
}

#[cfg(test)]
mod tests;
