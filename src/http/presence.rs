//! A subscriber of toasts is there: counted, and its place taken, for as long as that is so.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use crate::actors::services::Parts;

/// Held by its socket.
pub struct Presence {
    parts: Arc<Parts>,
    _seat: OwnedSemaphorePermit,
}

impl Presence {
    /// It has come.
    pub fn new(parts: Arc<Parts>, seat: OwnedSemaphorePermit) -> Self {
        parts.metrics.toasts().came();
        Self { parts, _seat: seat }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.parts.metrics.toasts().went();
    }
}
