//! A toast with its note, written in the transaction of whatever caused it.

use super::{
    SessionChange, Store, StoreError, notifications, sessions,
    transcript::{Entries, TranscriptAppend},
    writer::{Outage, WriteTx},
};
use crate::domain::{
    clock::Timestamp,
    ids::{PromptId, SessionId, WorkspaceKey},
    toast::{NewToast, Telling},
};

/// A toast and its note, ready for SQL.
pub(super) struct TellingRows {
    toast: NewToast,
    note: Entries,
    now: Timestamp,
}

impl TellingRows {
    pub(super) fn new(
        key: WorkspaceKey,
        session_id: SessionId,
        prompt_id: Option<PromptId>,
        telling: Telling,
        now: Timestamp,
    ) -> Self {
        let Telling { toast, note } = telling;
        let note = TranscriptAppend { session_id, key, prompt_id, entries: vec![note], settles: 0, now };
        Self { toast, note: Entries::new(note), now }
    }

    /// Writes both, or neither where the cause was told before.
    pub(super) fn write(&mut self, tx: &mut WriteTx<'_>) -> Result<(), StoreError> {
        if notifications::add(tx, &self.toast, self.now)? {
            self.note.write(tx)?;
        }
        Ok(())
    }
}

impl Store {
    /// [`Store::settle_session`], and tells the session's user about it in the same transaction.
    pub async fn settle_session_and_tell(
        &self,
        changed: SessionChange,
        key: WorkspaceKey,
        telling: Telling,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut telling = TellingRows::new(key, changed.session_id, None, telling, now);
        let mut change = sessions::change(changed);
        self.write_as(Outage::Keep, move |tx| {
            change(tx)?;
            telling.write(tx)
        })
        .await
    }
}
