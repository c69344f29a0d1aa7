//! Tells that sequences of toasts have grown. It only wakes: what there is stands in the database.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;

use crate::domain::notify::toast::Stream;

/// The sequences that have grown since they were last taken, each once: as many as there are tenants at the most. Cheap
/// to clone.
#[derive(Debug, Clone, Default)]
pub struct ToastWakes(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    streams: Mutex<BTreeSet<Stream>>,
    grown: Notify,
}

impl ToastWakes {
    /// A sequence has grown. Never blocks.
    pub fn wake(&self, stream: &Stream) {
        self.0.streams.lock().unwrap_or_else(PoisonError::into_inner).insert(stream.clone());
        self.0.grown.notify_one();
    }

    /// Waits until a sequence has grown, and takes all that have. For one waiter. Cancel-safe.
    pub async fn grown(&self) -> BTreeSet<Stream> {
        loop {
            let grown = std::mem::take(&mut *self.0.streams.lock().unwrap_or_else(PoisonError::into_inner));
            if !grown.is_empty() {
                return grown;
            }
            self.0.grown.notified().await;
        }
    }
}
