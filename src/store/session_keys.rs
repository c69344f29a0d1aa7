//! The table of session keys: one `Idempotency-Key` of a tenant opens one session.

use diesel::{ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl};

use super::{
    Store, StoreError,
    engine::{
        columns::clean,
        writer::{Job, Outage, WriteTx},
    },
    schema::session_keys,
};
use crate::domain::{
    clock::Timestamp,
    ids::{InstallationId, SessionId},
    redaction::RedactedJson,
    retention::IDEMPOTENCY_PERIOD,
};

/// The key with which a session is opened, and the answer that a repeat gets.
#[derive(Debug, Clone)]
pub(crate) struct SessionKey {
    pub key: String,
    /// A digest of the request's body, as text.
    pub body_hash: String,
    /// The answer to the first request.
    pub answer: RedactedJson,
}

/// A session that was opened with a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OpenedBefore {
    pub session_id: String,
    /// The digest of the body that opened it.
    pub body_hash: String,
    /// The answer of then, as JSON.
    pub answer: String,
}

/// Binds a key to the session that is created in this transaction, and removes keys that have expired.
pub(super) fn bind(
    tx: &mut WriteTx<'_>,
    tenant: &InstallationId,
    session_id: SessionId,
    key: &SessionKey,
    now: Timestamp,
) -> Result<(), StoreError> {
    let session_id = session_id.to_string();
    let name = clean(key.key.clone());
    if tx.in_doubt {
        // The commit of an earlier attempt reported an error and took effect nevertheless.
        let holder: Option<String> = session_keys::table
            .find((tenant.as_str(), name.as_str()))
            .select(session_keys::session_id)
            .first(tx.connection)
            .optional()?;
        if holder.as_ref() == Some(&session_id) {
            return Ok(());
        }
    }
    let expired = session_keys::created_us.le(now.minus(IDEMPOTENCY_PERIOD).0);
    tx.rows += diesel::delete(session_keys::table.filter(expired)).execute(tx.connection)?;
    let record = (
        session_keys::installation_id.eq(tenant.as_str()),
        session_keys::idempotency_key.eq(name.as_str()),
        session_keys::body_hash.eq(key.body_hash.as_str()),
        session_keys::session_id.eq(session_id.as_str()),
        session_keys::answer.eq(clean(key.answer.as_str().to_owned())),
        session_keys::created_us.eq(now.0),
    );
    tx.rows += diesel::insert_into(session_keys::table).values(record).execute(tx.connection)?;
    Ok(())
}

impl Store {
    /// Releases the key of a session that could not be opened, without waiting: the commit that reported an error may
    /// have taken effect. Does nothing if the key is of another session.
    ///
    /// # Errors
    /// The queue is full or closed.
    pub(crate) fn try_release_key(
        &self,
        tenant: &InstallationId,
        key: String,
        session_id: SessionId,
    ) -> Result<(), StoreError> {
        let (tenant, key, session_id) = (tenant.to_string(), clean(key), session_id.to_string());
        let release = move |tx: &mut WriteTx<'_>| {
            let row = session_keys::table.find((&tenant, &key)).filter(session_keys::session_id.eq(&session_id));
            tx.rows += diesel::delete(row).execute(tx.connection)?;
            Ok(())
        };
        self.place()?.send(Job::new(Outage::Keep, release, |_| ()));
        Ok(())
    }

    /// Reads the session that a tenant opened with a key within 24 h. Cancel-safe.
    pub(crate) async fn opened_with_key(
        &self,
        tenant: InstallationId,
        key: String,
        now: Timestamp,
    ) -> Result<Option<OpenedBefore>, StoreError> {
        let key = clean(key);
        self.read(move |connection| {
            let found: Option<(String, String, String)> = session_keys::table
                .find((tenant.as_str(), key.as_str()))
                .filter(session_keys::created_us.gt(now.minus(IDEMPOTENCY_PERIOD).0))
                .select((session_keys::session_id, session_keys::body_hash, session_keys::answer))
                .first(connection)
                .optional()?;
            Ok(found.map(|(session_id, body_hash, answer)| OpenedBefore { session_id, body_hash, answer }))
        })
        .await
    }
}
