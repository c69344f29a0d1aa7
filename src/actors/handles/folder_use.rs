//! Keeps the removal of a workspace's folder and its use apart, within this process.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::domain::{
    ids::WorkspaceKey,
    turn::outcome::{ErrorCode, Failure},
};

#[derive(Debug, Clone, Copy)]
enum Use {
    /// Sessions that are being opened or loaded.
    Opening(usize),
    Removing,
}

/// Workspaces whose folder is about to be used or removed. Cheap to clone. Holds one entry for each call in progress.
#[derive(Debug, Clone, Default)]
pub(crate) struct FolderUse(Arc<Mutex<HashMap<WorkspaceKey, Use>>>);

/// Ends the use or the removal when it is dropped.
#[derive(Debug)]
pub(crate) struct FolderGuard {
    of: FolderUse,
    key: WorkspaceKey,
}

impl FolderUse {
    /// Holds the folder for a session that is being opened, until the session is live and has its row.
    ///
    /// # Errors
    /// `workspace_unavailable` while the folder is being removed, which takes less than a second. A retry is safe.
    pub(crate) fn open(&self, key: &WorkspaceKey) -> Result<FolderGuard, Failure> {
        let mut used = self.0.lock();
        match used.entry(key.clone()).or_insert(Use::Opening(0)) {
            Use::Opening(count) => *count += 1,
            Use::Removing => {
                let detail = "the folder of the workspace is being removed; try again";
                return Err(Failure::new(ErrorCode::WorkspaceUnavailable, detail));
            }
        }
        Ok(FolderGuard { of: self.clone(), key: key.clone() })
    }

    /// Holds the folder for its removal; `None` while a session is being opened in it, or another removal runs.
    pub(crate) fn remove(&self, key: &WorkspaceKey) -> Option<FolderGuard> {
        let mut used = self.0.lock();
        if used.contains_key(key) {
            return None;
        }
        used.insert(key.clone(), Use::Removing);
        Some(FolderGuard { of: self.clone(), key: key.clone() })
    }
}

impl Drop for FolderGuard {
    fn drop(&mut self) {
        let mut used = self.of.0.lock();
        match used.get_mut(&self.key) {
            Some(Use::Opening(count)) if *count > 1 => *count -= 1,
            _ => drop(used.remove(&self.key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_is_not_removed_while_a_session_opens_nor_used_while_it_is_removed() {
        let key = WorkspaceKey { installation_id: "acme".parse().unwrap(), workspace_id: "web".parse().unwrap() };
        let used = FolderUse::default();
        let (first, second) = (used.open(&key).unwrap(), used.open(&key).unwrap());
        drop(first);
        assert!(used.remove(&key).is_none());
        drop(second);
        let removing = used.remove(&key).unwrap();
        assert!(used.remove(&key).is_none());
        assert_eq!(used.open(&key).unwrap_err().code, ErrorCode::WorkspaceUnavailable);
        drop(removing);
        assert!(used.open(&key).is_ok());
    }
}
