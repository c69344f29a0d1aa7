//! The database: its URL, the hold on a SQLite file, and the store.

use std::{
    fs::{File, TryLockError},
    path::Path,
    time::Duration,
};

use tokio::time::Instant;

use super::{AppError, membership::holder};
use crate::{
    config::Loaded,
    store::{DatabaseUrl, Store, StoreOptions},
    telemetry::Metrics,
};

pub(super) struct StoreHandle {
    pub store: Store,
    pub url: DatabaseUrl,
    /// Released last: until then no other supervisor may use the database. `None` on `PostgreSQL`.
    pub held: Option<File>,
}

/// Time for which a lock of the database may be the rest of a killed supervisor: a child process that it was starting has
/// the lock too, until the child runs its own program or dies. That takes milliseconds on an idle machine.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// Time between two attempts to take the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Creates the data folder, holds a SQLite database and opens the store, whose schema it upgrades.
pub(super) async fn start_store(loaded: &Loaded, metrics: Metrics) -> Result<StoreHandle, AppError> {
    make_data_dir(loaded)?;
    let url = database_url(loaded)?;
    let held = lock_database(&url).await?;
    let options = StoreOptions {
        url: url.clone(),
        readers: StoreOptions::DEFAULT_READERS,
        write_queue: loaded.config.limits.write_queue,
        patience: Duration::from_secs(loaded.config.database.patience_s),
        webhook: loaded.config.webhook.endpoint(),
    };
    Ok(StoreHandle { store: Store::open(options, metrics)?, url, held })
}

impl StoreHandle {
    /// Writes what is queued, for at most `flush`. Returns the lock of the file, to be released last.
    pub(super) async fn stop(self, flush: Duration) -> Option<File> {
        if tokio::time::timeout(flush, self.store.close()).await != Ok(true) {
            tracing::error!(marker = "[ACP]", "database closed with rows unwritten");
        }
        self.held
    }
}

pub(super) fn make_data_dir(loaded: &Loaded) -> Result<(), AppError> {
    std::fs::create_dir_all(&loaded.data_dir)
        .map_err(AppError::io(format!("data folder {}", loaded.data_dir.display())))
}

/// Locks a SQLite database for this process: a second supervisor would take the turns of the first one for abandoned.
/// The system releases the lock with the process, however that ends. `PostgreSQL` is not locked.
///
/// # Errors
/// Another process holds the lock for [`LOCK_PATIENCE`], or the file cannot be locked.
pub(super) async fn lock_database(url: &DatabaseUrl) -> Result<Option<File>, AppError> {
    let DatabaseUrl::Sqlite(path) = url else { return Ok(None) };
    let mut name = path.clone().into_os_string();
    name.push(".lock");
    let failed = |cause| AppError::Io { what: format!("lock file {}", Path::new(&name).display()), cause };
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&name).map_err(failed)?;
    let end = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if Instant::now() < end => tokio::time::sleep(LOCK_PAUSE).await,
            Err(TryLockError::WouldBlock) => {
                let member = holder(url).map(|member| format!(": {member}")).unwrap_or_default();
                return Err(AppError::InUse { path: path.clone(), member });
            }
            Err(TryLockError::Error(cause)) => return Err(failed(cause)),
        }
    }
}

pub(super) fn database_url(loaded: &Loaded) -> Result<DatabaseUrl, AppError> {
    use secrecy::ExposeSecret;
    Ok(match &loaded.config.database.url {
        Some(url) => url.expose_secret().parse()?,
        None => DatabaseUrl::Sqlite(loaded.data_dir.join("lumilink.db")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn successor_of_a_killed_supervisor_waits_for_a_child_that_has_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::Sqlite(folder.path().join("lumilink.db"));
        let held = lock_database(&url).await.unwrap();
        let released = async {
            tokio::time::sleep(LOCK_PAUSE).await;
            drop(held);
        };
        let (taken, ()) = tokio::join!(lock_database(&url), released);
        assert!(taken.unwrap().is_some());
    }

    #[tokio::test]
    async fn lock_of_a_running_supervisor_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::Sqlite(folder.path().join("lumilink.db"));
        let _held = lock_database(&url).await.unwrap();
        assert!(matches!(lock_database(&url).await, Err(AppError::InUse { .. })));
    }
}
