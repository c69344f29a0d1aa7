//! The tables of handshakes and of changes of connections. Rows are added and pruned, never updated.

use std::{collections::HashMap, time::Duration};

use diesel::{ExpressionMethods, Insertable, QueryDsl, Queryable, RunQueryDsl};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    contract::audit::{ConnectionItem, TransitionItem},
    domain::{
        clock::Timestamp,
        ids::{SessionId, WorkspaceKey},
        notify::notification::SessionNotice,
        redaction::RedactedJson,
        routing::Route,
        session::connection::ConnectionStatus,
        turn::outcome::Failure,
    },
    store::{
        Store, StoreError,
        engine::{
            columns::{self, clean_option, clean_text},
            connection::{AnyConnection, execute},
        },
        notifications::notes::SessionNoticeRows,
        schema::{acp_connections, connection_events},
        turns::outcomes::{self, OutcomeCount},
    },
};

/// A handshake to record, successful or not.
#[derive(Debug, Clone)]
pub(crate) struct NewConnection {
    /// New; later changes of the connection refer to it.
    pub connection_row_id: Uuid,
    pub key: WorkspaceKey,
    /// `None` for a probe of the workspace.
    pub session_id: Option<SessionId>,
    /// The runtime's name for the connection.
    pub connection_id: Option<String>,
    pub protocol: Route,
    pub protocol_version: Option<u16>,
    /// As the agent reported it; redacted when it is stored.
    pub agent_name: Option<String>,
    /// As the agent reported it; redacted when it is stored.
    pub agent_version: Option<String>,
    /// The capabilities of both sides, a JSON object.
    pub capabilities: Option<RedactedJson>,
    /// `None` for a successful handshake. Redacted when it is stored.
    pub failure: Option<Failure>,
    /// Duration; stored in whole milliseconds.
    pub handshake: Duration,
    /// True for a probe for the recovery of ACP.
    pub is_probe: bool,
    /// The notification and transcript note for the session's user.
    pub session_notice: Option<SessionNotice>,
    /// The end of the handshake.
    pub now: Timestamp,
}

#[derive(Queryable, Insertable)]
#[diesel(table_name = acp_connections, treat_none_as_default_value = false)]
pub(crate) struct ConnectionRecord {
    connection_row_id: String,
    installation_id: String,
    workspace_id: String,
    session_id: Option<String>,
    connection_id: Option<String>,
    protocol: String,
    outcome: String,
    protocol_version: Option<i32>,
    agent_name: Option<String>,
    agent_version: Option<String>,
    capabilities: Option<String>,
    error_code: Option<String>,
    error_detail: Option<String>,
    handshake_ms: i64,
    is_probe: bool,
    created_us: i64,
}

impl ConnectionRecord {
    fn new(new: NewConnection) -> Self {
        Self {
            connection_row_id: new.connection_row_id.to_string(),
            installation_id: new.key.installation_id.to_string(),
            workspace_id: new.key.workspace_id.to_string(),
            session_id: new.session_id.map(|id| id.to_string()),
            connection_id: clean_option(new.connection_id),
            protocol: new.protocol.as_str().to_owned(),
            outcome: if new.failure.is_none() { "connected" } else { "failed" }.to_owned(),
            protocol_version: new.protocol_version.map(i32::from),
            agent_name: new.agent_name.as_deref().map(clean_text),
            agent_version: new.agent_version.as_deref().map(clean_text),
            capabilities: clean_option(new.capabilities.map(RedactedJson::into_string)),
            error_code: new.failure.as_ref().map(|failure| failure.code.as_str().to_owned()),
            error_detail: new.failure.as_ref().map(columns::clean_detail),
            handshake_ms: i64::try_from(new.handshake.as_millis()).unwrap_or(i64::MAX),
            is_probe: new.is_probe,
            created_us: new.now.0,
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.connection_row_id
    }

    /// The handshake with its connection's changes of status, oldest first. The last change gives the status, and the
    /// last one that was measured the health.
    pub(crate) fn read(self, transitions: Vec<TransitionItem>) -> Result<ConnectionItem, StoreError> {
        let key = columns::workspace_key(self.installation_id, self.workspace_id)?;
        let failure = columns::failure(self.error_code, self.error_detail);
        let began = if failure.is_none() { "connected" } else { "error" };
        let measured = transitions.iter().rev().find(|change| !change.health.is_null());
        let (error_code, error_detail) = failure.map(|failure| (failure.code.as_str(), failure.detail)).unzip();
        Ok(ConnectionItem {
            connection_row_id: columns::parse(&self.connection_row_id, "acp_connections.connection_row_id")?,
            installation_id: key.installation_id,
            workspace_id: key.workspace_id,
            session_id: self.session_id.map(|id| columns::parse(&id, "acp_connections.session_id")).transpose()?,
            connection_id: self.connection_id,
            protocol: Route::tolerant(&self.protocol),
            outcome: if error_code.is_none() { "connected" } else { "failed" },
            status: transitions.last().map_or_else(|| began.to_owned(), |change| change.status.clone()),
            protocol_version: self.protocol_version.and_then(|version| u16::try_from(version).ok()),
            agent_name: self.agent_name,
            agent_version: self.agent_version,
            capabilities: self.capabilities.as_deref().map_or(Value::Null, columns::json_or_null),
            error_code,
            error_detail,
            handshake_ms: columns::unsigned(self.handshake_ms),
            is_probe: self.is_probe,
            created_at: Timestamp(self.created_us),
            health: measured.map_or(Value::Null, |change| change.health.clone()),
            transitions,
        })
    }
}

impl Store {
    /// Records a handshake, counts its outcome and notifies the session's user in one transaction. Waits for room in the
    /// queue and for the commit, as [`Store::append`] does. Safe to retry: one id is one row and one count. A dropped
    /// future may have written.
    pub(crate) async fn record_handshake(
        &self,
        mut new: NewConnection,
        counts: Option<OutcomeCount>,
    ) -> Result<(), StoreError> {
        let (key, session, erasures) = (new.key.clone(), new.session_id, self.erasures().clone());
        let session_notice = new.session_id.zip(new.session_notice.take());
        let mut session_notice = session_notice
            .map(|(id, session_notice)| SessionNoticeRows::new(key.clone(), id, None, session_notice, new.now));
        let record = ConnectionRecord::new(new);
        self.write_when_there_is_room(move |tx| {
            if erasures.is_late(&key, session) {
                return Ok(());
            }
            let insert = diesel::insert_into(acp_connections::table).values(&record).on_conflict_do_nothing();
            let inserted = execute!(tx.connection, insert)?;
            tx.rows += inserted;
            if let Some(counts) = counts.filter(|_| inserted > 0) {
                outcomes::count(tx, &key, counts)?;
            }
            if let Some(session_notice) = session_notice.as_mut().filter(|_| inserted > 0) {
                session_notice.write(tx)?;
            }
            Ok(())
        })
        .await
    }
}

/// A change of a connection's status.
#[derive(Debug, Clone)]
pub(crate) struct NewConnectionEvent {
    pub event_id: Uuid,
    pub connection_row_id: Uuid,
    pub key: WorkspaceKey,
    pub session_id: Option<SessionId>,
    pub status: ConnectionStatus,
    /// Redacted when it is stored.
    pub cause: String,
    /// Success rate, latency, throughput and last heartbeat at that moment, a JSON object.
    pub health: Option<RedactedJson>,
    /// The notification and transcript note for the session's user.
    pub session_notice: Option<SessionNotice>,
    pub now: Timestamp,
}

#[derive(Queryable, Insertable)]
#[diesel(table_name = connection_events, treat_none_as_default_value = false)]
pub(crate) struct ConnectionEventRecord {
    event_id: String,
    connection_row_id: String,
    installation_id: String,
    workspace_id: String,
    session_id: Option<String>,
    status: String,
    cause: String,
    health: Option<String>,
    created_us: i64,
}

/// The most changes that are read for one page of connections.
const MAX_EVENTS: i64 = 10_000;

/// The changes of connections by connection, oldest first; only the newest [`MAX_EVENTS`] of all.
pub(crate) fn of<'a>(
    connection: &mut AnyConnection,
    connections: impl Iterator<Item = &'a str>,
) -> diesel::QueryResult<HashMap<String, Vec<TransitionItem>>> {
    let newest: Vec<ConnectionEventRecord> = connection_events::table
        .filter(connection_events::connection_row_id.eq_any(connections))
        .order((connection_events::created_us.desc(), connection_events::event_id.desc()))
        .limit(MAX_EVENTS)
        .load(connection)?;
    let mut changes: HashMap<String, Vec<TransitionItem>> = HashMap::new();
    for ConnectionEventRecord { connection_row_id, status, cause, health, created_us, .. } in newest.into_iter().rev()
    {
        let health = health.as_deref().map_or(Value::Null, columns::json_or_null);
        let change = TransitionItem { status, cause, health, at: Timestamp(created_us) };
        changes.entry(connection_row_id).or_default().push(change);
    }
    Ok(changes)
}

impl Store {
    /// Records a change of status. Waits for room in the queue and for the commit, as [`Store::append`] does. Safe to retry:
    /// one id is one row. A dropped future may have written.
    pub(crate) async fn record_connection_event(&self, new: NewConnectionEvent) -> Result<(), StoreError> {
        let (key, session, erasures) = (new.key.clone(), new.session_id, self.erasures().clone());
        let session_notice = new.session_id.zip(new.session_notice);
        let mut session_notice = session_notice
            .map(|(id, session_notice)| SessionNoticeRows::new(new.key.clone(), id, None, session_notice, new.now));
        let record = ConnectionEventRecord {
            event_id: new.event_id.to_string(),
            connection_row_id: new.connection_row_id.to_string(),
            installation_id: new.key.installation_id.to_string(),
            workspace_id: new.key.workspace_id.to_string(),
            session_id: new.session_id.map(|id| id.to_string()),
            status: new.status.as_str().to_owned(),
            cause: clean_text(&new.cause),
            health: clean_option(new.health.map(RedactedJson::into_string)),
            created_us: new.now.0,
        };
        self.write_when_there_is_room(move |tx| {
            if erasures.is_late(&key, session) {
                return Ok(());
            }
            let insert = diesel::insert_into(connection_events::table).values(&record).on_conflict_do_nothing();
            let inserted = execute!(tx.connection, insert)?;
            tx.rows += inserted;
            match session_notice.as_mut().filter(|_| inserted > 0) {
                // Each session gets a note; many connections that break together are one notification.
                Some(session_notice) => session_notice.write_for_each(tx),
                None => Ok(()),
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ConnectionRecord {
        ConnectionRecord::new(NewConnection {
            connection_row_id: Uuid::nil(),
            key: WorkspaceKey { installation_id: "acme".parse().unwrap(), workspace_id: "web".parse().unwrap() },
            session_id: None,
            connection_id: None,
            protocol: Route::Acp,
            protocol_version: Some(1),
            agent_name: None,
            agent_version: None,
            capabilities: Some(RedactedJson::of(&serde_json::json!({"loadSession": true}))),
            failure: None,
            handshake: Duration::from_millis(7),
            is_probe: false,
            session_notice: None,
            now: Timestamp(1),
        })
    }

    #[test]
    fn a_connection_has_the_status_and_health_of_its_last_changes() {
        let change = |status: &str, health: Value| {
            let (status, cause, at) = (status.to_owned(), "why".to_owned(), Timestamp(2));
            TransitionItem { status, cause, health, at }
        };
        let changes = vec![change("degraded", serde_json::json!({"turns": 3})), change("error", Value::Null)];
        let item = record().read(changes).unwrap();
        assert_eq!((item.status.as_str(), item.outcome), ("error", "connected"));
        assert_eq!(item.health["turns"], 3, "the last figures there are");
        assert_eq!(item.capabilities["loadSession"], true);
        let unchanged = record().read(Vec::new()).unwrap();
        assert_eq!((unchanged.status.as_str(), unchanged.health), ("connected", Value::Null));
    }
}
