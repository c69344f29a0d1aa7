//! The cursor of a subscriber in a file, from which a later run resumes.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::NotificationScope;
use crate::domain::notify::reading::Place;

/// A file with the cursor of one stream.
#[derive(Debug)]
pub(crate) struct Bookmark {
    file: PathBuf,
    sequence: String,
    place: Option<Place>,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    sequence: String,
    #[serde(flatten)]
    place: Place,
}

impl Bookmark {
    /// Reads the file; a missing file has no cursor yet.
    ///
    /// # Errors
    /// The file cannot be read, is malformed, or belongs to another stream.
    pub(crate) fn open(file: &Path, scope: &NotificationScope) -> io::Result<Self> {
        let sequence = scope.sequence();
        let place = match fs::read(file) {
            Ok(text) => {
                let kept: Kept = serde_json::from_slice(&text).map_err(|cause| invalid(cause.to_string()))?;
                if kept.sequence != sequence {
                    return Err(invalid(format!("it belongs to {:?}, not to {sequence:?}", kept.sequence)));
                }
                Some(kept.place)
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => None,
            Err(cause) => return Err(cause),
        };
        Ok(Self { file: file.to_owned(), sequence, place })
    }

    pub(crate) fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }

    /// Replaces the cursor atomically and durably; after a crash the file holds this cursor or the previous one. Blocks for
    /// a write to the disk.
    ///
    /// # Errors
    /// The folder of the file cannot be written.
    pub(crate) fn keep(&mut self, place: &Place) -> io::Result<()> {
        if self.place.as_ref() == Some(place) {
            return Ok(());
        }
        let text = serde_json::to_string(&Kept { sequence: self.sequence.clone(), place: place.clone() })?;
        let mut temporary = self.file.clone().into_os_string();
        // The name contains the process id: two followers of one file must not write to the same temporary file.
        temporary.push(format!(".{}", std::process::id()));
        let written = write_through(Path::new(&temporary), &format!("{text}\n"));
        let written = written.and_then(|()| fs::rename(&temporary, &self.file));
        if written.is_err() {
            // The unfinished file is useless.
            let _ = fs::remove_file(&temporary);
        }
        written?;
        self.place = Some(place.clone());
        Ok(())
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn write_through(file: &Path, text: &str) -> io::Result<()> {
    let mut open = fs::File::create(file)?;
    io::Write::write_all(&mut open, text.as_bytes())?;
    open.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(tenant: &str) -> NotificationScope {
        NotificationScope { installation_id: Some(tenant.into()), ..NotificationScope::default() }
    }

    #[test]
    fn a_kept_cursor_is_read_back_and_no_other_file_remains() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("toasts.json");
        let mut bookmark = Bookmark::open(&file, &scope("acme")).unwrap();
        assert_eq!(bookmark.place(), None);
        for cursor in [7, 8, 8] {
            bookmark.keep(&Place { epoch: "e".into(), cursor }).unwrap();
        }
        let again = Bookmark::open(&file, &scope("acme")).unwrap();
        assert_eq!(again.place(), Some(&Place { epoch: "e".into(), cursor: 8 }));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text, "{\"sequence\":\"tenant:acme\",\"epoch\":\"e\",\"cursor\":8}\n");
    }

    #[test]
    fn a_foreign_file_is_refused_and_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("toasts.json");
        Bookmark::open(&file, &scope("acme")).unwrap().keep(&Place { epoch: "e".into(), cursor: 8 }).unwrap();
        let error = Bookmark::open(&file, &scope("other")).unwrap_err().to_string();
        assert_eq!(error, "it belongs to \"tenant:acme\", not to \"tenant:other\"");
        let operators = NotificationScope { operators: true, ..NotificationScope::default() };
        assert!(Bookmark::open(&file, &operators).is_err());
        fs::write(&file, "precious").unwrap();
        assert!(Bookmark::open(&file, &scope("acme")).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    }

    #[test]
    fn a_failed_write_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut bookmark = Bookmark::open(&folder.path().join("not/there"), &scope("acme")).unwrap();
        assert!(bookmark.keep(&Place { epoch: "e".into(), cursor: 8 }).is_err());
        assert_eq!(bookmark.place(), None, "the next write retries");
    }
}
