//! What a subscriber marks as read: all that waits is written together, one write at a time.

use std::sync::Arc;

use uuid::Uuid;

use crate::{
    actors::{notifications::ToastHub, services::Parts},
    contract::notifications::frames::ServerFrame,
    domain::notify::{subscription::QUEUE_FRAMES, toast::Scope},
    store::StoreError,
};

/// Acknowledgements that may wait while others are written: a whole queue of toasts, marked one by one.
const MAX_ACKS: usize = QUEUE_FRAMES;

/// Those of one subscriber.
#[derive(Debug, Default)]
pub struct Acks {
    waiting: Vec<Uuid>,
    is_writing: bool,
}

impl Acks {
    /// Takes one; `false` where too many wait.
    pub fn add(&mut self, id: Uuid) -> bool {
        let has_room = self.waiting.len() < MAX_ACKS;
        if has_room {
            self.waiting.push(id);
        }
        has_room
    }

    /// What is to be written now; nothing while something is.
    pub fn begin(&mut self) -> Option<Vec<Uuid>> {
        if self.is_writing || self.waiting.is_empty() {
            return None;
        }
        self.is_writing = true;
        Some(std::mem::take(&mut self.waiting))
    }

    /// It was written, or could not be.
    pub fn end(&mut self) {
        self.is_writing = false;
    }
}

/// Writes down that they were read, and gives the answers. Safe to retry. A dropped future may have written.
pub async fn write(
    parts: Arc<Parts>,
    hub: ToastHub,
    scope: Arc<Scope>,
    ids: Vec<Uuid>,
) -> Result<Vec<ServerFrame>, StoreError> {
    let found = parts.store.mark_read((*scope).clone(), ids.clone(), parts.clock.now()).await?;
    let unread = hub.read(async move { parts.store.unread((*scope).clone()).await }).await?;
    let answer = |(id, found)| ServerFrame::Ack { id, found, unread };
    Ok(ids.into_iter().zip(found).map(answer).collect())
}
