//! Files of a workspace that are too large to compare: they are listed by size and time of change, and never read.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

/// The most large files of a workspace; more are an error, since each makes git slower.
pub(super) const MAX_LARGE: usize = 1000;

/// Large files by path, relative to the workspace, as bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LargeFiles(BTreeMap<Vec<u8>, State>);

/// Size in bytes, and the time of the last change of the content, in nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    bytes: u64,
    changed: i128,
}

impl LargeFiles {
    /// Finds those of `paths`, separated by NUL, that are regular files of more than `limit` bytes. Blocks.
    ///
    /// # Errors
    /// There are more than [`MAX_LARGE`].
    pub(super) fn among(paths: &[u8], workspace: &Path, limit: u64) -> io::Result<Self> {
        let mut found = BTreeMap::new();
        for path in paths.split(|byte| *byte == 0).filter(|path| !path.is_empty()) {
            // A file may be deleted meanwhile.
            let Ok(metadata) = fs::symlink_metadata(workspace.join(OsStr::from_bytes(path))) else { continue };
            if metadata.is_file() && metadata.len() > limit {
                let changed = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
                found.insert(path.to_vec(), State { bytes: metadata.len(), changed });
            }
            if found.len() > MAX_LARGE {
                let what =
                    format!("more than {MAX_LARGE} files are larger than `limits.diff_file_bytes` ({limit} bytes)");
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
        }
        Ok(Self(found))
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &OsStr> {
        self.0.keys().map(|path| OsStr::from_bytes(path))
    }

    pub(super) fn contains(&self, path: &[u8]) -> bool {
        self.0.contains_key(path)
    }

    /// The files for whose path and size `keep` is true.
    pub(super) fn only(&self, keep: impl Fn(&[u8], u64) -> bool) -> Self {
        let kept = self.0.iter().filter(|(path, state)| keep(path, state.bytes));
        Self(kept.map(|(path, state)| (path.clone(), *state)).collect())
    }

    /// True if a file of the same path is as it was then.
    pub(super) fn has_same(&self, path: &[u8], then: &Self) -> bool {
        self.0.get(path).is_some_and(|state| then.0.get(path) == Some(state))
    }

    /// One file per record: size, time and path, separated by spaces and ended by NUL.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (path, State { bytes: size, changed }) in &self.0 {
            bytes.extend_from_slice(format!("{size} {changed} ").as_bytes());
            bytes.extend_from_slice(path);
            bytes.push(0);
        }
        bytes
    }

    /// Reads [`Self::to_bytes`]; malformed records are skipped.
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let record = |record: &[u8]| {
            let mut parts = record.splitn(3, |byte| *byte == b' ');
            let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse::<i128>().ok();
            let (size, changed) = (u64::try_from(number()?).ok()?, number()?);
            Some((parts.next()?.to_vec(), State { bytes: size, changed }))
        };
        Self(bytes.split(|byte| *byte == 0).filter_map(record).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_files_are_found_by_size_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in [("small", 10), ("large one", 11), ("sparse", 1 << 40)] {
            fs::File::create(folder.path().join(name)).unwrap().set_len(bytes).unwrap();
        }
        std::os::unix::fs::symlink("sparse", folder.path().join("link")).unwrap();
        let large = LargeFiles::among(b"small\0large one\0sparse\0link\0gone\0", folder.path(), 10).unwrap();
        assert_eq!(large.paths().collect::<Vec<_>>(), ["large one", "sparse"]);
        let again = LargeFiles::from_bytes(&large.to_bytes());
        assert_eq!(again, large);
        assert!(again.has_same(b"sparse", &large) && !again.has_same(b"small", &large));
        assert_eq!(LargeFiles::from_bytes(b"x y z\0\x005 \0"), LargeFiles::default());
    }
}
