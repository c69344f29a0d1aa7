//! Locks by key: one creation at a time for each installation or token, and one step at a time for each run.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard},
    time::Instant,
};

use crate::{
    domain::clock::{Clock, Timestamp},
    telemetry::SystemClock,
};

/// Number of keys from which idle ones are removed.
const MANY: usize = 64;
/// The time after a creation from which the pace does not matter any more; several times the gap.
const LONG: Duration = Duration::from_secs(10);

/// The pace of one key.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// The end of the last creation.
    last: Option<Instant>,
    /// The end of the pause that GitHub demanded.
    pub(super) paused_until: Option<Timestamp>,
}

impl Pace {
    /// The time until the next creation may begin, `gap` after the last one.
    pub(super) fn wait(&self, gap: Duration) -> Duration {
        self.last.map_or(Duration::ZERO, |last| gap.saturating_sub(last.elapsed()))
    }

    /// Records the end of a creation.
    pub(super) fn created(&mut self) {
        self.last = Some(Instant::now());
    }
}

/// A held lock; dropping it releases it.
pub(crate) type Hold = OwnedMutexGuard<Pace>;

/// The locks of a process. An entry exists while its lock is held or awaited, and for a while after. Waiters are served in
/// order; there are at most as many as steps in progress.
#[derive(Debug, Default)]
pub(super) struct Locks {
    entries: Mutex<HashMap<String, Arc<AsyncMutex<Pace>>>>,
}

impl Locks {
    /// Waits for the lock of a key. Cancel-safe: a dropped future gives up its place.
    pub(super) async fn lock(&self, key: &str) -> Hold {
        let entry = {
            let mut entries = self.entries.lock();
            if entries.len() >= MANY {
                entries.retain(|_, entry| !is_idle(entry));
            }
            entries.entry(key.to_owned()).or_default().clone()
        };
        entry.lock_owned().await
    }
}

/// True if a lock is neither held nor awaited, and its pace does not matter any more.
fn is_idle(entry: &Arc<AsyncMutex<Pace>>) -> bool {
    let now = SystemClock.now();
    let is_old = |pace: &Pace| {
        pace.last.is_none_or(|last| last.elapsed() > LONG) && pace.paused_until.is_none_or(|until| until < now)
    };
    Arc::strong_count(entry) == 1 && entry.try_lock().is_ok_and(|pace| is_old(&pace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn locks_of_one_key_exclude_each_other_and_idle_keys_are_removed() {
        let locks = Locks::default();
        let first = locks.lock("a").await;
        let _other = locks.lock("b").await;
        let mut second = Box::pin(locks.lock("a"));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        let _second = second.await;
        for key in 0..1000 {
            drop(locks.lock(&key.to_string()).await);
        }
        assert!(locks.entries.lock().len() <= MANY + 1, "{}", locks.entries.lock().len());
    }
}
