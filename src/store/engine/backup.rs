//! A consistent copy of a live SQLite database.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use diesel::{QueryableByName, RunQueryDsl, connection::SimpleConnection, sql_types::Text};

use super::{
    connection::{AnyConnection, open_existing_sqlite},
    upgrade::applied,
};

/// Why a database was not copied. Nothing is left behind; a retry is safe.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackupError {
    /// Nothing is overwritten.
    #[error("{} exists; name a new file, or remove it", .0.display())]
    Exists(PathBuf),
    /// Another backup to the same file runs, or was killed.
    #[error("{} exists: another backup to the same file is running, or was killed; if none runs, remove it", .0.display())]
    Partial(PathBuf),
    /// The database cannot be read, or is not one of this program.
    #[error("{0}")]
    Source(String),
    /// The copy cannot be written.
    #[error("{}: {cause}", path.display())]
    Target { path: PathBuf, cause: io::Error },
    /// The copy has errors.
    #[error("the copy failed its check, so it was removed: {0}")]
    Damaged(String),
}

/// A copy in progress. The copy is `FILE.partial` until it is complete, checked and on disk; dropping this value
/// removes that file.
#[derive(Debug)]
pub(crate) struct Backup {
    source: PathBuf,
    file: PathBuf,
    partial: PathBuf,
}

impl Backup {
    /// Creates `FILE.partial` with mode 0600.
    ///
    /// # Errors
    /// The file or its partial form exists, or cannot be created.
    pub(crate) fn begin(source: &Path, file: &Path) -> Result<Self, BackupError> {
        if file.symlink_metadata().is_ok() {
            return Err(BackupError::Exists(file.to_owned()));
        }
        let partial = beside(file, ".partial");
        match create_private(&partial) {
            // SQLite writes into an empty file as into a new one, and keeps its mode.
            Ok(_) => Ok(Self { source: source.to_owned(), file: file.to_owned(), partial }),
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => Err(BackupError::Partial(partial)),
            Err(cause) => Err(BackupError::Target { path: partial, cause }),
        }
    }

    /// The size of the database in bytes. Its copy is at most as large, without the free pages.
    pub(crate) fn source_bytes(&self) -> u64 {
        bytes_of(&self.source)
    }

    /// The size of the copy so far, in bytes.
    pub(crate) fn copied_bytes(&self) -> u64 {
        bytes_of(&self.partial)
    }

    /// Copies the database as it is at the start of the call, with everything that was committed before, checks the
    /// copy, and gives it its name. Blocks: seconds for each gigabyte. Writers of the database are not delayed, but its
    /// write-ahead log grows meanwhile.
    ///
    /// # Errors
    /// Any [`BackupError`]; the database is unchanged.
    pub(crate) fn run(&self) -> Result<u64, BackupError> {
        let source = |cause: &dyn std::fmt::Display| BackupError::Source(cause.to_string());
        let target = |path: &Path| {
            let path = path.to_owned();
            move |cause| BackupError::Target { path, cause }
        };
        let partial = std::path::absolute(&self.partial).map_err(target(&self.partial))?;
        let Some(into) = partial.to_str() else {
            return Err(BackupError::Target { path: partial, cause: io::Error::other("the path is not UTF-8") });
        };
        if !self.source.is_file() {
            return Err(BackupError::Source(format!("there is no database {}", self.source.display())));
        }
        let mut connection = open_existing_sqlite(&self.source, "mode=rw").map_err(|cause| source(&cause))?;
        // One read transaction: the copy is the state of one moment. The online copy page by page would start again
        // whenever another process writes.
        connection
            .batch_execute(&format!("VACUUM INTO '{}'", into.replace('\'', "''")))
            .map_err(|cause| source(&cause))?;
        drop(connection);
        check(&partial)?;
        let bytes = bytes_of(&partial);
        File::open(&partial).and_then(|copy| copy.sync_all()).map_err(target(&partial))?;
        // Creating the name refuses a file that appeared meanwhile; renaming replaces the empty file in one step.
        create_private(&self.file).map_err(|cause| match cause.kind() {
            io::ErrorKind::AlreadyExists => BackupError::Exists(self.file.clone()),
            _ => target(&self.file)(cause),
        })?;
        fs::rename(&partial, &self.file).map_err(|cause| {
            let _ = fs::remove_file(&self.file);
            target(&self.file)(cause)
        })?;
        let folder = partial.parent().unwrap_or(Path::new("/"));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(target(folder))?;
        Ok(bytes)
    }

    /// Removes the partial copy.
    pub(crate) fn discard(&self) {
        for suffix in ["", "-journal", "-wal", "-shm"] {
            // Missing after success, and in the usual case without these side files.
            let _ = fs::remove_file(beside(&self.partial, suffix));
        }
    }
}

impl Drop for Backup {
    fn drop(&mut self) {
        self.discard();
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn bytes_of(path: &Path) -> u64 {
    path.metadata().map_or(0, |file| file.len())
}

fn create_private(path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new();
    file.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut file, 0o600);
    file.open(path)
}

/// Checks every page and index of the copy, and that it is a database of this program.
fn check(copy: &Path) -> Result<(), BackupError> {
    #[derive(QueryableByName)]
    struct Finding {
        #[diesel(sql_type = Text)]
        integrity_check: String,
    }
    let damaged = |cause: &dyn std::fmt::Display| BackupError::Damaged(cause.to_string());
    let mut connection = open_existing_sqlite(copy, "mode=ro&immutable=1").map_err(|cause| damaged(&cause))?;
    let findings: Vec<Finding> =
        diesel::sql_query("PRAGMA integrity_check(1)").load(&mut connection).map_err(|cause| damaged(&cause))?;
    if let Some(finding) = findings.iter().find(|finding| finding.integrity_check != "ok") {
        return Err(BackupError::Damaged(finding.integrity_check.clone()));
    }
    let mut connection = AnyConnection::Sqlite(connection);
    let versions = applied(&mut connection).map_err(|cause| damaged(&cause))?;
    if versions.is_empty() {
        return Err(BackupError::Source("the file has no tables of lumilink".into()));
    }
    Ok(())
}
