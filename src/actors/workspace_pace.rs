//! How long the turns of one workspace take, for all of its sessions.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::domain::session::eta::TurnPace;

/// The pace of one workspace: fed by the end of each completed turn, read where one begins. Cheap to clone.
#[derive(Clone, Default)]
pub struct WorkspacePace(Arc<Mutex<TurnPace>>);

impl fmt::Debug for WorkspacePace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkspacePace").field("median", &self.median()).finish()
    }
}

impl WorkspacePace {
    /// Begins with what is known.
    pub fn new(pace: TurnPace) -> Self {
        Self(Arc::new(Mutex::new(pace)))
    }

    /// A turn was completed.
    pub fn add(&self, took: Duration) {
        self.lock().add(took);
    }

    /// How long a turn usually takes; `None` before the first.
    pub fn median(&self) -> Option<Duration> {
        self.lock().median()
    }

    fn lock(&self) -> MutexGuard<'_, TurnPace> {
        // Durations are put in and taken out one at a time, so a poisoned pace is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
