//! Which streams of notifications have grown: how a commit wakes the readers that follow them.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::domain::notify::notification::Stream;

/// The streams that have grown since they were last taken, each once: at most one per tenant, and the operators'.
/// Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct GrownStreams(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    streams: Mutex<BTreeSet<Stream>>,
    grown: Notify,
    operators: Notify,
}

impl GrownStreams {
    /// Records that a stream has grown, after the commit. Never blocks.
    pub(crate) fn add(&self, stream: &Stream) {
        self.0.streams.lock().insert(stream.clone());
        self.0.grown.notify_one();
        if *stream == Stream::Operators {
            self.0.operators.notify_one();
        }
    }

    /// Waits until a stream has grown, and takes all that have. For a single waiter.
    ///
    /// # Cancel safety
    /// A dropped future takes nothing.
    pub(crate) async fn next(&self) -> BTreeSet<Stream> {
        loop {
            let grown = std::mem::take(&mut *self.0.streams.lock());
            if !grown.is_empty() {
                return grown;
            }
            self.0.grown.notified().await;
        }
    }

    /// Waits until the operators' stream has grown since the last call. For a single waiter, beside the one of
    /// [`Self::next`].
    ///
    /// # Cancel safety
    /// A dropped future loses no growth.
    pub(crate) async fn operators(&self) {
        self.0.operators.notified().await;
    }
}
