//! Reads: a pool of connections that cannot write, used on blocking threads.

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use super::connection::{AnyConnection, DatabaseUrl, Purpose};
use crate::store::StoreError;

/// Reads that may wait for a connection. At a millisecond a read and 8 connections, the last one waits for 32 ms; further
/// reads get `Busy`, because a longer queue only makes every answer late.
const MAX_WAITING: usize = 256;

/// Time that a read waits for the pool to make a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// Time that a read may take, including the wait for a connection. Every read takes milliseconds; a stopped server never
/// answers.
const READ_PATIENCE: Duration = Duration::from_secs(5);

/// Makes connections for the pool.
#[derive(Debug)]
struct Readers {
    url: DatabaseUrl,
}

impl r2d2::ManageConnection for Readers {
    type Connection = AnyConnection;
    type Error = StoreError;

    fn connect(&self) -> Result<AnyConnection, StoreError> {
        self.url.connect(Purpose::Read)
    }

    fn is_valid(&self, connection: &mut AnyConnection) -> Result<(), StoreError> {
        if connection.is_alive() { Ok(()) } else { Err(StoreError::Unavailable("the connection is lost".into())) }
    }

    fn has_broken(&self, connection: &mut AnyConnection) -> bool {
        std::thread::panicking() || diesel::r2d2::R2D2Connection::is_broken(connection)
    }
}

/// Logs why the pool has no connection.
#[derive(Debug)]
struct LogPoolErrors;

impl r2d2::HandleError<StoreError> for LogPoolErrors {
    fn handle_error(&self, cause: StoreError) {
        tracing::warn!(%cause, "no connection for reading");
    }
}

/// The reading side of the store.
#[derive(Debug)]
pub(crate) struct ReadPool {
    pool: r2d2::Pool<Readers>,
    waiting: Arc<Semaphore>,
    running: Arc<Semaphore>,
}

fn panicked(cause: &tokio::task::JoinError) -> StoreError {
    StoreError::Corrupt(format!("a read panicked: {cause}"))
}

/// Runs a read in a task of its own, which starts at once and is aborted with the returned future. The task releases its
/// connection even if the future is not polled, such as the body of a response that the client does not read. The future
/// is small, however large the read is. Cancel-safe.
pub(crate) fn apart<T, R>(reading: R) -> impl Future<Output = Result<T, StoreError>> + use<T, R>
where
    T: Send + 'static,
    R: Future<Output = Result<T, StoreError>> + Send + 'static,
{
    let mut task = tokio::task::JoinSet::new();
    task.spawn(reading);
    async move {
        task.join_next().await.unwrap_or(Ok(Err(StoreError::Closed))).unwrap_or_else(|cause| Err(panicked(&cause)))
    }
}

impl ReadPool {
    /// Its first connections are made in the background.
    pub(crate) fn new(url: DatabaseUrl, readers: u32) -> Self {
        let readers = readers.max(1);
        let pool = r2d2::Pool::builder()
            .max_size(readers)
            .min_idle(Some(1))
            .connection_timeout(CONNECT_PATIENCE)
            // A SQLite connection cannot be lost, and checking a PostgreSQL one costs a round trip.
            .test_on_check_out(matches!(url, DatabaseUrl::Postgres(_)))
            .error_handler(Box::new(LogPoolErrors))
            .build_unchecked(Readers { url });
        let readers = readers as usize;
        Self {
            pool,
            waiting: Arc::new(Semaphore::new(readers + MAX_WAITING)),
            running: Arc::new(Semaphore::new(readers)),
        }
    }

    /// Runs a query on a blocking thread. Only as many run as there are connections, so that no blocking thread waits for
    /// another. The query proceeds whether or not the caller polls.
    ///
    /// # Cancel safety
    /// A query whose caller is gone runs to its end and holds its connection until then.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&mut AnyConnection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let waiting = self.waiting.clone().try_acquire_owned().map_err(|refused| match refused {
            tokio::sync::TryAcquireError::NoPermits => StoreError::Busy,
            tokio::sync::TryAcquireError::Closed => StoreError::Closed,
        })?;
        let (running, pool) = (self.running.clone(), self.pool.clone());
        let reading = async move {
            let running = running.acquire_owned().await.map_err(|_| StoreError::Closed)?;
            let reading = tokio::task::spawn_blocking(move || {
                // Held by the query and not by the caller, because a query whose caller has stopped waiting still
                // uses a connection.
                let _places = (waiting, running);
                let mut connection = pool.get().map_err(|cause| StoreError::Unavailable(cause.to_string()))?;
                query(&mut connection)
            });
            reading.await.unwrap_or_else(|cause| Err(panicked(&cause)))
        };
        let late = |_| StoreError::Unavailable(format!("it did not answer a read within {READ_PATIENCE:?}"));
        apart(async move { tokio::time::timeout(READ_PATIENCE, reading).await.map_err(late)? }).await
    }

    /// Refuses further reads with [`StoreError::Closed`].
    pub(crate) fn close(&self) {
        self.waiting.close();
        self.running.close();
    }
}
