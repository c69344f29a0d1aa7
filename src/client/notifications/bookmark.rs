//! The place of a reader in a file, so that a later one goes on there.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::NotificationScope;
use crate::domain::notify::reading::Place;

/// A file with a place, for one sequence of toasts.
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
    /// Reads it. A file that is not there is one that begins.
    ///
    /// # Errors
    /// Where it cannot be read, is no such file, or is of another sequence.
    pub(crate) fn open(file: &Path, scope: &NotificationScope) -> io::Result<Self> {
        let sequence = scope.sequence();
        let place = match fs::read(file) {
            Ok(text) => {
                let kept: Kept = serde_json::from_slice(&text).map_err(|cause| wrong(cause.to_string()))?;
                if kept.sequence != sequence {
                    return Err(wrong(format!("it is of {:?}, not of {sequence:?}", kept.sequence)));
                }
                Some(kept.place)
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => None,
            Err(cause) => return Err(cause),
        };
        Ok(Self { file: file.to_owned(), sequence, place })
    }

    /// What it holds.
    pub(crate) fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }

    /// Writes a place down where it is another one, whole or not at all: whatever happens, the file holds this place or
    /// the one before. Blocks for a write to the disk.
    ///
    /// # Errors
    /// Where the file's folder cannot be written to.
    pub(crate) fn keep(&mut self, place: &Place) -> io::Result<()> {
        if self.place.as_ref() == Some(place) {
            return Ok(());
        }
        let text = serde_json::to_string(&Kept { sequence: self.sequence.clone(), place: place.clone() })?;
        let mut beside = self.file.clone().into_os_string();
        beside.push(format!(".{}", std::process::id()));
        let written = write_through(Path::new(&beside), &format!("{text}\n"));
        let written = written.and_then(|()| fs::rename(&beside, &self.file));
        if written.is_err() {
            // What is left of it helps nobody.
            let _ = fs::remove_file(&beside);
        }
        written?;
        self.place = Some(place.clone());
        Ok(())
    }
}

fn wrong(what: String) -> io::Error {
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
    fn what_was_kept_is_found_again_and_nothing_else_is_left() {
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
    fn a_file_of_another_tenant_or_of_something_else_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("toasts.json");
        Bookmark::open(&file, &scope("acme")).unwrap().keep(&Place { epoch: "e".into(), cursor: 8 }).unwrap();
        let said = Bookmark::open(&file, &scope("other")).unwrap_err().to_string();
        assert_eq!(said, "it is of \"tenant:acme\", not of \"tenant:other\"");
        let operators = NotificationScope { operators: true, ..NotificationScope::default() };
        assert!(Bookmark::open(&file, &operators).is_err());
        fs::write(&file, "precious").unwrap();
        assert!(Bookmark::open(&file, &scope("acme")).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    }

    #[test]
    fn a_place_that_cannot_be_written_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let mut bookmark = Bookmark::open(&folder.path().join("not/there"), &scope("acme")).unwrap();
        assert!(bookmark.keep(&Place { epoch: "e".into(), cursor: 8 }).is_err());
        assert_eq!(bookmark.place(), None, "it is tried again");
    }
}
