//! Single flight: tasks that make the same thing wait for each other; tasks that make different things do not.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

/// One lock for each key in use. Holds nothing for other keys, so its size is bounded by the number of waiting tasks.
#[derive(Debug)]
pub(crate) struct SingleFlight<K: Eq + Hash>(Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>);

impl<K: Eq + Hash> Default for SingleFlight<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// Permission to make the thing of one key; released on drop.
pub(crate) struct Flight<'a, K: Eq + Hash> {
    locks: &'a SingleFlight<K>,
    key: K,
    guard: Option<OwnedMutexGuard<()>>,
}

impl<K: Eq + Hash + Clone> SingleFlight<K> {
    /// Waits until no other task makes the thing of this key.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(crate) async fn begin(&self, key: &K) -> Flight<'_, K> {
        let lock = self.0.lock().entry(key.clone()).or_default().clone();
        // Before the wait, so that a dropped future removes an unused lock too.
        let mut flight = Flight { locks: self, key: key.clone(), guard: None };
        flight.guard = Some(lock.lock_owned().await);
        flight
    }
}

impl<K: Eq + Hash> Drop for Flight<'_, K> {
    fn drop(&mut self) {
        let mut locks = self.locks.0.lock();
        self.guard = None;
        // Clones are made under the same lock, and each waiting task holds one.
        if locks.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn slow_task_delays_only_tasks_of_its_key_and_leaves_no_lock() {
        let locks = SingleFlight::default();
        let slow = locks.begin(&"a").await;
        assert!(locks.begin(&"b").now_or_never().is_some(), "another key does not wait");
        assert!(locks.begin(&"a").now_or_never().is_none(), "the same key waits");
        {
            let mut second = Box::pin(locks.begin(&"a"));
            assert!((&mut second).now_or_never().is_none());
            drop(slow);
            drop(second.await);
        }
        assert!(locks.0.lock().is_empty());
    }
}
