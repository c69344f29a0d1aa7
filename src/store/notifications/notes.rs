//! A notification with its transcript note, written in the transaction of its cause.

use diesel::{BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl};

use crate::{
    domain::{
        clock::Timestamp,
        ids::{PromptId, SessionId, WorkspaceKey},
        notify::notification::{NewNotification, SessionNotice, coalescing_range},
    },
    store::{
        NewSession, SessionChange, SessionKey, Store, StoreError,
        engine::writer::WriteTx,
        notifications, schema, session_keys, sessions,
        transcript::{Entries, TranscriptAppend},
    },
};

/// The rows of a notification and its note.
pub(crate) struct SessionNoticeRows {
    notification: NewNotification,
    note: Entries,
    now: Timestamp,
}

impl SessionNoticeRows {
    pub(crate) fn new(
        key: WorkspaceKey,
        session_id: SessionId,
        prompt_id: Option<PromptId>,
        session_notice: SessionNotice,
        now: Timestamp,
    ) -> Self {
        let SessionNotice { notification, note } = session_notice;
        let note = TranscriptAppend { session_id, key, prompt_id, entries: vec![note], settles: 0, now };
        Self { notification, note: Entries::new(note), now }
    }

    /// Writes the note, and the notification unless an equivalent one exists: for events that concern many sessions at once.
    pub(crate) fn write_for_each(&mut self, tx: &mut WriteTx<'_>) -> Result<(), StoreError> {
        let (notification, now) = (self.notification.clone(), self.now);
        // The check needs the lock of the stream, so that a notification of another process is committed before it.
        tx.later(vec![notification.to.stream()], move |tx| {
            if !has_equivalent(tx, &notification, now)? {
                notifications::add(tx, &notification, now)?;
            } else if tx.in_doubt {
                // The existing one may be from an earlier attempt of this write, which notified no subscriber.
                tx.grown.push(notification.to.stream());
            }
            Ok(())
        });
        self.note.write(tx)
    }

    /// Writes both, or neither if the cause was notified before.
    pub(crate) fn write(&mut self, tx: &mut WriteTx<'_>) -> Result<(), StoreError> {
        if !notifications::is_notified(tx, &self.notification)? {
            self.note.write(tx)?;
        }
        notifications::add_later(tx, &self.notification, self.now);
        Ok(())
    }
}

fn has_equivalent(tx: &mut WriteTx<'_>, notification: &NewNotification, now: Timestamp) -> diesel::QueryResult<bool> {
    use schema::notifications::{created_us, dsl, installation_id, seq, trigger, workspace_id};
    let Some(key) = notification.to.workspace() else { return Ok(false) };
    let together = coalescing_range(now);
    let notifications = dsl::notifications
        .filter(installation_id.eq(key.installation_id.as_str()))
        .filter(workspace_id.eq(key.workspace_id.as_str()))
        .filter(created_us.ge(together.start.0).and(created_us.lt(together.end.0)))
        .filter(trigger.eq(notification.notice.trigger.as_str()));
    Ok(notifications.select(seq).first::<i64>(tx.connection).optional()?.is_some())
}

impl Store {
    /// Notifies a session's user of an event without a record of its own. Waits for room in the queue and for the commit, as
    /// [`Store::append`] does. Not safe to retry: it would add the note twice. A dropped future may have written.
    pub(crate) async fn add_session_notice(
        &self,
        key: WorkspaceKey,
        session_id: SessionId,
        session_notice: SessionNotice,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let erasures = self.erasures().clone();
        let mut session_notice = SessionNoticeRows::new(key.clone(), session_id, None, session_notice, now);
        self.write_when_there_is_room(move |tx| {
            if erasures.is_late(&key, Some(session_id)) { Ok(()) } else { session_notice.write_for_each(tx) }
        })
        .await
    }

    /// Writes a new session, and its workspace if that is new. In the same transaction notifies the session's user, and
    /// binds the key with which the session was requested.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if the session exists, if the workspace does not exist and is not given, or if the key has
    /// another session.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn create_session_with(
        &self,
        new: NewSession,
        session_notice: Option<SessionNotice>,
        key: Option<SessionKey>,
    ) -> Result<(), StoreError> {
        self.write_session_with(&new.clone(), sessions::create(new), session_notice, key).await
    }

    /// [`Store::create_session_with`] for a session whose row says that it is being prepared, and stays the same otherwise.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if the session is not being prepared any more.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn complete_session_with(
        &self,
        new: NewSession,
        session_notice: Option<SessionNotice>,
        key: Option<SessionKey>,
    ) -> Result<(), StoreError> {
        self.write_session_with(&new.clone(), sessions::complete(new), session_notice, key).await
    }

    /// Writes a session by `write`, with its notification and its key.
    async fn write_session_with(
        &self,
        new: &NewSession,
        mut write: impl FnMut(&mut WriteTx<'_>) -> Result<(), StoreError> + Send + 'static,
        session_notice: Option<SessionNotice>,
        key: Option<SessionKey>,
    ) -> Result<(), StoreError> {
        let (tenant, session_id, now) = (new.key.installation_id.clone(), new.session_id, new.now);
        let notice = |session_notice| SessionNoticeRows::new(new.key.clone(), session_id, None, session_notice, now);
        let mut session_notice = session_notice.map(notice);
        self.write(move |tx| {
            write(tx)?;
            if let Some(key) = &key {
                session_keys::bind(tx, &tenant, session_id, key, now)?;
            }
            session_notice.as_mut().map_or(Ok(()), |session_notice| session_notice.write(tx))
        })
        .await
    }

    /// [`Store::settle_session`], and notifies the session's user in the same transaction.
    pub(crate) async fn settle_session_with_notice(
        &self,
        changed: SessionChange,
        key: WorkspaceKey,
        session_notice: SessionNotice,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut session_notice = SessionNoticeRows::new(key, changed.session_id, None, session_notice, now);
        let mut change = sessions::change(changed);
        self.write_when_there_is_room(move |tx| {
            change(tx)?;
            session_notice.write(tx)
        })
        .await
    }
}
