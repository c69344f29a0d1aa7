//! Keeps the removal of a folder and its use apart, within this process.

use std::{collections::HashMap, hash::Hash, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::timeout};

use crate::{
    contract::runtime::WorkspaceRef,
    domain::{
        ids::{FolderId, SessionId, WorkspaceKey},
        turn::outcome::{ErrorCode, Failure},
    },
};

/// Reference to the folder of an isolated session: its id is that of the session.
pub(crate) fn own_reference(session_id: SessionId) -> WorkspaceRef {
    WorkspaceRef { folder_id: FolderId(session_id.0), path: None, within: None }
}

#[derive(Debug, Clone, Copy)]
enum Use {
    /// Sessions that are being opened or loaded.
    Opening(usize),
    Removing,
}

/// Longest wait for a removal. The folder is renamed first, which takes milliseconds; a runtime that does not answer
/// must not hold a caller for long.
const REMOVAL_WAIT: Duration = Duration::from_secs(5);

/// Folders that are about to be used or removed, by workspace or by isolated session. Cheap to clone. Holds one entry for
/// each call in progress.
#[derive(Debug, Clone)]
pub(crate) struct FolderUse<K = WorkspaceKey>(Arc<Inner<K>>);

#[derive(Debug)]
struct Inner<K> {
    used: Mutex<HashMap<K, Use>>,
    /// Wakes those that wait for a removal or a use to end.
    removed: Notify,
    /// Wakes the sweep that removes folders.
    offered: Notify,
}

/// Ends the use or the removal when it is dropped.
#[derive(Debug)]
pub(crate) struct FolderGuard<K: Eq + Hash = WorkspaceKey> {
    of: FolderUse<K>,
    key: K,
}

impl<K> Default for FolderUse<K> {
    fn default() -> Self {
        Self(Arc::new(Inner { used: Mutex::default(), removed: Notify::default(), offered: Notify::default() }))
    }
}

impl<K: Eq + Hash + Clone> FolderUse<K> {
    /// Holds the folder for a session that is being opened, until the session is live and has its row. Waits for a
    /// removal, at most [`REMOVAL_WAIT`].
    ///
    /// # Errors
    /// `workspace_unavailable` if the removal does not end in time. A retry is safe.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(crate) async fn open(&self, key: &K) -> Result<FolderGuard<K>, Failure> {
        let opened = async {
            loop {
                // Registered before the look, so that no end of a removal is missed.
                let mut removed = std::pin::pin!(self.0.removed.notified());
                removed.as_mut().enable();
                if let Some(guard) = self.try_open(key) {
                    return guard;
                }
                removed.await;
            }
        };
        timeout(REMOVAL_WAIT, opened).await.map_err(|_| {
            let detail = "the folder of the workspace is being removed; try again";
            Failure::new(ErrorCode::WorkspaceUnavailable, detail)
        })
    }

    fn try_open(&self, key: &K) -> Option<FolderGuard<K>> {
        match self.0.used.lock().entry(key.clone()).or_insert(Use::Opening(0)) {
            Use::Opening(count) => *count += 1,
            Use::Removing => return None,
        }
        Some(FolderGuard { of: Self(self.0.clone()), key: key.clone() })
    }

    /// Waits until no session is being opened or loaded in the folder, and no removal runs.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(crate) async fn unused(&self, key: &K) {
        loop {
            let mut ended = std::pin::pin!(self.0.removed.notified());
            ended.as_mut().enable();
            if !self.0.used.lock().contains_key(key) {
                return;
            }
            ended.await;
        }
    }

    /// Has the sweep look for folders now.
    pub(crate) fn offer(&self) {
        self.0.offered.notify_one();
    }

    /// Waits for an [`offer`](Self::offer); one that was made before counts. Cancel-safe.
    pub(crate) async fn offered(&self) {
        self.0.offered.notified().await;
    }

    /// Holds the folder for its removal; `None` while a session is being opened in it, or another removal runs.
    pub(crate) fn remove(&self, key: &K) -> Option<FolderGuard<K>> {
        let mut used = self.0.used.lock();
        if used.contains_key(key) {
            return None;
        }
        used.insert(key.clone(), Use::Removing);
        Some(FolderGuard { of: Self(self.0.clone()), key: key.clone() })
    }
}

impl<K: Eq + Hash> Drop for FolderGuard<K> {
    fn drop(&mut self) {
        let mut used = self.of.0.used.lock();
        match used.get_mut(&self.key) {
            Some(Use::Opening(count)) if *count > 1 => *count -= 1,
            _ => drop(used.remove(&self.key)),
        }
        drop(used);
        self.of.0.removed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn folder_is_not_removed_while_a_session_opens_nor_used_while_it_is_removed() {
        let key = WorkspaceKey { installation_id: "acme".parse().unwrap(), workspace_id: "web".parse().unwrap() };
        let used = FolderUse::<WorkspaceKey>::default();
        let (first, second) = (used.open(&key).await.unwrap(), used.open(&key).await.unwrap());
        drop(first);
        assert!(used.remove(&key).is_none());
        drop(second);
        let removing = used.remove(&key).unwrap();
        assert!(used.remove(&key).is_none());
        let opening = tokio::spawn({
            let (used, key) = (used.clone(), key.clone());
            async move { used.open(&key).await }
        });
        tokio::task::yield_now().await;
        assert!(!opening.is_finished(), "an opening waits for the removal");
        drop(removing);
        assert!(opening.await.unwrap().is_ok());
    }
}
