//! Hibernated sessions that nobody used for long.

use std::time::Duration;

use diesel::{ExpressionMethods, QueryDsl, RunQueryDsl};

use super::{
    Store, StoreError,
    engine::{columns, writer::WriteTx},
    schema::sessions,
};
use crate::domain::{
    clock::Timestamp,
    ids::{SessionId, WorkspaceKey},
    session::lifecycle::SessionState,
};

/// A session that has just expired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpiredSession {
    /// Its id.
    pub session_id: SessionId,
    /// Its workspace.
    pub key: WorkspaceKey,
    /// When it was last used.
    pub last_used: Timestamp,
}

fn expire(tx: &mut WriteTx<'_>, unused_since: Timestamp, limit: usize) -> Result<Vec<ExpiredSession>, StoreError> {
    // Written out, so that both databases see that the index fits.
    let hibernated = diesel::dsl::sql::<diesel::sql_types::Bool>("state = 'hibernated'");
    let found: Vec<(String, String, String, i64)> = sessions::table
        .filter(hibernated)
        .filter(sessions::last_used_us.le(unused_since.0))
        .order(sessions::last_used_us.asc())
        .limit(columns::limit(limit))
        .select((sessions::session_id, sessions::installation_id, sessions::workspace_id, sessions::last_used_us))
        .load(tx.connection)?;
    let ids = found.iter().map(|(id, ..)| id.as_str());
    tx.rows += diesel::update(sessions::table.filter(sessions::session_id.eq_any(ids)))
        .filter(sessions::state.eq(SessionState::Hibernated.as_str()))
        .set(sessions::state.eq(SessionState::Expired.as_str()))
        .execute(tx.connection)?;
    found
        .into_iter()
        .map(|(id, tenant, workspace, last_used)| {
            Ok(ExpiredSession {
                session_id: columns::parse(&id, "sessions.session_id")?,
                key: columns::workspace_key(tenant, workspace)?,
                last_used: Timestamp(last_used),
            })
        })
        .collect()
}

impl Store {
    /// Moves hibernated sessions that were last used `max_age` before `now` or earlier to `expired`: at most
    /// `limit` of them, those first that wait longest. Safe to retry. A dropped future may have written.
    pub async fn expire_sessions(
        &self,
        now: Timestamp,
        max_age: Duration,
        limit: usize,
    ) -> Result<Vec<ExpiredSession>, StoreError> {
        self.write(move |tx| expire(tx, now.minus(max_age), limit)).await
    }
}
