//! The table of what became of connections: one row for each change of status. Rows are added and pruned, never changed.

use std::collections::HashMap;

use diesel::{ExpressionMethods, Insertable, QueryDsl, Queryable, RunQueryDsl};
use uuid::Uuid;

use super::{
    Store, StoreError,
    cached::execute,
    engine::{
        columns::{clean_option, clean_text},
        connection::AnyConnection,
    },
    notifications::notes::TellingRows,
    schema::connection_events,
};
use crate::domain::{
    clock::Timestamp,
    ids::{SessionId, WorkspaceKey},
    notify::toast::Telling,
    redaction::Redacted,
    session::connection::ConnectionStatus,
};

/// A change of a connection's status.
#[derive(Debug, Clone)]
pub struct NewConnectionEvent {
    /// New.
    pub event_id: Uuid,
    /// Of which connection.
    pub connection_row_id: Uuid,
    /// The workspace.
    pub key: WorkspaceKey,
    /// The session.
    pub session_id: Option<SessionId>,
    /// The new status.
    pub status: ConnectionStatus,
    /// Why; redacted on the way in.
    pub cause: String,
    /// Success rate, latency, throughput and last heartbeat at that moment, as a JSON object.
    pub health: Option<Redacted>,
    /// What the session's user is told about it.
    pub telling: Option<Telling>,
    /// When.
    pub now: Timestamp,
}

/// A change of a connection's status as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionEventRow {
    /// The new status.
    pub status: String,
    /// Why.
    pub cause: String,
    /// What was measured at that moment, as a JSON object.
    pub health: Option<String>,
    /// When.
    pub created: Timestamp,
}

#[derive(Queryable, Insertable)]
#[diesel(table_name = connection_events, treat_none_as_default_value = false)]
pub(super) struct Record {
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

/// Changes that are read for one page of connections.
const MAX_EVENTS: i64 = 10_000;

/// What became of connections, oldest first: of all of it the newest [`MAX_EVENTS`].
pub(super) fn of<'a>(
    connection: &mut AnyConnection,
    connections: impl Iterator<Item = &'a str>,
) -> diesel::QueryResult<HashMap<String, Vec<ConnectionEventRow>>> {
    let newest: Vec<Record> = connection_events::table
        .filter(connection_events::connection_row_id.eq_any(connections))
        .order((connection_events::created_us.desc(), connection_events::event_id.desc()))
        .limit(MAX_EVENTS)
        .load(connection)?;
    let mut events: HashMap<String, Vec<ConnectionEventRow>> = HashMap::new();
    for Record { connection_row_id, status, cause, health, created_us, .. } in newest.into_iter().rev() {
        let event = ConnectionEventRow { status, cause, health, created: Timestamp(created_us) };
        events.entry(connection_row_id).or_default().push(event);
    }
    Ok(events)
}

impl Store {
    /// Keeps a change of status: waits for room in the queue and for the commit, as [`Store::append`] does. Safe to
    /// retry: one id is one row. A dropped future may have written.
    pub async fn record_connection_event(&self, new: NewConnectionEvent) -> Result<(), StoreError> {
        let telling = new.session_id.zip(new.telling);
        let mut telling = telling.map(|(id, telling)| TellingRows::new(new.key.clone(), id, None, telling, new.now));
        let record = Record {
            event_id: new.event_id.to_string(),
            connection_row_id: new.connection_row_id.to_string(),
            installation_id: new.key.installation_id.to_string(),
            workspace_id: new.key.workspace_id.to_string(),
            session_id: new.session_id.map(|id| id.to_string()),
            status: new.status.as_str().to_owned(),
            cause: clean_text(&new.cause),
            health: clean_option(new.health.map(Redacted::into_string)),
            created_us: new.now.0,
        };
        self.write_when_there_is_room(move |tx| {
            let insert = diesel::insert_into(connection_events::table).values(&record).on_conflict_do_nothing();
            let inserted = execute!(tx.connection, insert)?;
            tx.rows += inserted;
            match telling.as_mut().filter(|_| inserted > 0) {
                // The event is new, and with it the note; a break of many connections is one toast.
                Some(telling) => telling.write_for_each(tx),
                None => Ok(()),
            }
        })
        .await
    }
}
