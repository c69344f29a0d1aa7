//! Backups of the database while the service runs.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::signal::unix::{SignalKind, signal};

use super::{AppError, store::database_url};
use crate::{
    config::Loaded,
    store::{Backup, BackupError, DatabaseUrl},
};

/// Interval of progress reports.
const REPORT: Duration = Duration::from_secs(2);

/// Bytes of a copy so far and of the database.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CopyProgress {
    pub copied: u64,
    pub database: u64,
}

/// Copies a live SQLite database to a new file, and returns its size in bytes; `None` if a signal stopped the copy. A
/// failure leaves no file behind. Reports progress every 2 s.
///
/// # Errors
/// The database is not one of SQLite, or cannot be copied. Safe to retry.
pub(crate) async fn back_up(
    loaded: &Loaded,
    file: &Path,
    mut progress: impl FnMut(CopyProgress),
) -> Result<Option<u64>, AppError> {
    let url = database_url(loaded)?;
    let source = match &url {
        DatabaseUrl::Sqlite(path) => path,
        DatabaseUrl::Postgres(_) => return Err(AppError::NotSqlite(pg_dump(&url, file))),
    };
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()));
    let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)) = signals else {
        return Err(AppError::Io { what: "signals".into(), cause: std::io::Error::last_os_error() });
    };
    let backup = Arc::new(Backup::begin(source, file)?);
    let copying = backup.clone();
    let mut copying = tokio::task::spawn_blocking(move || copying.run());
    loop {
        tokio::select! {
            done = &mut copying => {
                let stopped = |cause: tokio::task::JoinError| BackupError::Source(cause.to_string());
                return Ok(Some(done.map_err(stopped)??));
            }
            () = tokio::time::sleep(REPORT) => {
                progress(CopyProgress { copied: backup.copied_bytes(), database: backup.source_bytes() });
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => break,
        }
    }
    // The copying thread cannot be interrupted; it ends with the process.
    backup.discard();
    Ok(None)
}

/// The command that copies a `PostgreSQL` database, without its password.
fn pg_dump(url: &DatabaseUrl, file: &Path) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let file = quoted(&file.display().to_string());
    format!("pg_dump --format=custom --file={file} {}", quoted(&url.without_secrets()))
}
