//! The disk use of a workspace.

use std::{fs, io, os::unix::fs::MetadataExt, path::PathBuf};

use tokio::sync::oneshot;

use crate::{contract::runtime::MeasuredWorkspace, process::priority::spawn_low_priority};

/// Entries of a workspace that are measured, at most: about two seconds on a slow disk, and more than large checkouts with
/// their dependencies have. The rest of a larger one is not counted.
const MAX_ENTRIES: usize = 1_000_000;
/// Bytes of a block in the metadata of a file.
const BLOCK: u64 = 512;

/// Measures a folder on a thread of low priority.
///
/// # Errors
/// The thread cannot be started.
pub(super) async fn measure(folder: PathBuf) -> io::Result<MeasuredWorkspace> {
    let (done, measured) = oneshot::channel();
    spawn_low_priority("measure", move || {
        // Without a receiver if the runtime is stopping.
        let _ = done.send(walk(folder, MAX_ENTRIES));
    })?;
    measured.await.map_err(io::Error::other)
}

/// Adds up the blocks of all entries, without following links and without leaving the file system of the folder. A file
/// with several names counts once. Entries that cannot be read are left out.
fn walk(folder: PathBuf, most: usize) -> MeasuredWorkspace {
    let Ok(root) = fs::symlink_metadata(&folder) else { return MeasuredWorkspace { bytes: 0, is_whole: true } };
    let (mut bytes, mut left, mut folders) = (0, most, vec![folder]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if left == 0 {
                return MeasuredWorkspace { bytes, is_whole: false };
            }
            left -= 1;
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() && metadata.dev() == root.dev() {
                folders.push(entry.path());
                bytes += metadata.blocks() * BLOCK;
            } else {
                bytes += metadata.blocks() * BLOCK / metadata.nlink().max(1);
            }
        }
    }
    MeasuredWorkspace { bytes, is_whole: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_counted_by_blocks_once_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("sub")).unwrap();
        fs::write(path("sub/file"), vec![1; 100_000]).unwrap();
        fs::hard_link(path("sub/file"), path("again")).unwrap();
        std::os::unix::fs::symlink("/", path("link")).unwrap();
        // Takes no blocks.
        fs::File::create(path("sparse")).unwrap().set_len(1 << 40).unwrap();
        let measured = walk(folder.path().to_owned(), 1000);
        assert!(measured.is_whole && (100_000..200_000).contains(&measured.bytes), "{measured:?}");
        assert!(!walk(folder.path().to_owned(), 3).is_whole);
        assert_eq!(walk(path("missing"), 3), MeasuredWorkspace { bytes: 0, is_whole: true });
    }

    #[tokio::test]
    async fn measurement_runs_on_its_own_thread() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "text").unwrap();
        assert!(measure(folder.path().to_owned()).await.unwrap().bytes > 0);
    }
}
