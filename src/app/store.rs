//! The database: its URL, the hold on a SQLite file, and the store.

use std::{
    fs::{File, TryLockError},
    path::Path,
    time::Duration,
};

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

/// Creates the data folder, holds a SQLite database and opens the store, whose schema it upgrades.
pub(super) fn start_store(loaded: &Loaded, metrics: Metrics) -> Result<StoreHandle, AppError> {
    make_data_dir(loaded)?;
    let url = database_url(loaded)?;
    let held = lock_database(&url)?;
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
pub(super) fn lock_database(url: &DatabaseUrl) -> Result<Option<File>, AppError> {
    let DatabaseUrl::Sqlite(path) = url else { return Ok(None) };
    let mut name = path.clone().into_os_string();
    name.push(".lock");
    let failed = |cause| AppError::Io { what: format!("lock file {}", Path::new(&name).display()), cause };
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&name).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => {
            let member = holder(url).map(|member| format!(": {member}")).unwrap_or_default();
            Err(AppError::InUse { path: path.clone(), member })
        }
        Err(TryLockError::Error(cause)) => Err(failed(cause)),
    }
}

pub(super) fn database_url(loaded: &Loaded) -> Result<DatabaseUrl, AppError> {
    use secrecy::ExposeSecret;
    Ok(match &loaded.config.database.url {
        Some(url) => url.expose_secret().parse()?,
        None => DatabaseUrl::Sqlite(loaded.data_dir.join("lumilink.db")),
    })
}
