//! Settings that a reload replaces while the process runs.

use std::{fmt, sync::Arc};

use parking_lot::RwLock;
use secrecy::SecretString;

/// A setting that its readers share, so that a reload reaches all of them. Cheap to clone.
pub(crate) struct Reloadable<T>(Arc<RwLock<Arc<T>>>);

/// A secret, or none.
pub(crate) type ReloadableSecret = Reloadable<Option<SecretString>>;

impl<T> Reloadable<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(value))))
    }

    /// The current value.
    pub(crate) fn get(&self) -> Arc<T> {
        self.0.read().clone()
    }

    pub(crate) fn set(&self, value: T) {
        *self.0.write() = Arc::new(value);
    }
}

impl<T> Clone for Reloadable<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The value may be a secret.
impl<T> fmt::Debug for Reloadable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloadable").finish_non_exhaustive()
    }
}
