//! Reads git's lists of changed files.

use std::collections::HashMap;

use crate::contract::runtime::{ChangeStatus, ChangedFile};

/// The most files that a diff lists (contract of `WorkspaceDiff`).
const MAX_FILES: usize = 1000;

/// Joins `git diff --raw -z` and `--numstat -z`; says whether files were left out. An entry that is cut
/// in the middle is left out too.
pub fn read_files(raw: &[u8], numstat: &[u8]) -> (Vec<ChangedFile>, bool) {
    let mut counts = HashMap::new();
    for entry in whole_parts(numstat) {
        let mut fields = entry.splitn(3, |byte| *byte == b'\t');
        if let (Some(added), Some(deleted), Some(path)) = (fields.next(), fields.next(), fields.next()) {
            counts.insert(path, (number(added), number(deleted)));
        }
    }
    let mut files = Vec::new();
    let mut parts = whole_parts(raw);
    // ":100644 100644 <id> <id> M", then the path.
    while let (Some(head), Some(path)) = (parts.next(), parts.next()) {
        if files.len() == MAX_FILES {
            return (files, true);
        }
        let status = match head.last() {
            Some(b'A') => ChangeStatus::Added,
            Some(b'D') => ChangeStatus::Deleted,
            _ => ChangeStatus::Modified,
        };
        let (additions, deletions) = counts.get(path).copied().unwrap_or_default();
        files.push(ChangedFile { path: String::from_utf8_lossy(path).into_owned(), status, additions, deletions });
    }
    (files, false)
}

/// The parts that end with NUL.
fn whole_parts(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split_inclusive(|byte| *byte == 0).filter_map(|part| part.strip_suffix(b"\0"))
}

/// `None` for the `-` of a binary file.
fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_joined_and_a_cut_entry_is_left_out() {
        let raw = b":000000 100644 0 1 A\0new\tname\0:100644 000000 1 0 D\0gone\0:100644 100644 1 2 M\0bin\0:1 2";
        let numstat = b"3\t0\tnew\tname\x000\t2\tgone\0-\t-\tbin\x004\t";
        let (files, more) = read_files(raw, numstat);
        assert!(!more);
        let found: Vec<_> =
            files.iter().map(|file| (file.path.as_str(), file.status, file.additions, file.deletions)).collect();
        assert_eq!(
            found,
            [
                ("new\tname", ChangeStatus::Added, Some(3), Some(0)),
                ("gone", ChangeStatus::Deleted, Some(0), Some(2)),
                ("bin", ChangeStatus::Modified, None, None),
            ]
        );
    }

    #[test]
    fn a_thousand_files_are_enough() {
        let raw = ":000000 100644 0 1 A\0f\0".repeat(1001);
        let (files, more) = read_files(raw.as_bytes(), b"");
        assert_eq!((files.len(), more), (1000, true));
    }
}
