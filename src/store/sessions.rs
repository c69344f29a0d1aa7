use std::{collections::HashSet, time::Duration};

use diesel::{AsChangeset, ExpressionMethods, Insertable, OptionalExtension, QueryDsl, Queryable, RunQueryDsl};
use uuid::Uuid;

use super::{
    Store, StoreError,
    engine::{
        columns::{self, Cursor, Page, clean, clean_option, page_of},
        connection::AnyConnection,
        writer::{Job, Outage, WriteTx},
    },
    schema::{prompts, sessions},
    workspaces::{self, NewWorkspace},
};
use crate::domain::{
    clock::Timestamp,
    ids::{InstallationId, SessionId, UserId, WorkspaceId, WorkspaceKey},
    redaction::RedactedJson,
    routing::Route,
    session::{
        choices::Choices,
        lifecycle::{SessionMode, SessionState},
    },
    turn::{TurnInitiator, TurnPhase, outcome::Failure},
};

/// Ids in the condition of one read.
const IDS_PER_READ: usize = 500;

/// The row of a session that is being opened.
#[derive(Debug, Clone)]
pub(crate) struct NewSession {
    pub session_id: SessionId,
    pub key: WorkspaceKey,
    /// Creates the workspace in the same transaction if it does not exist; not needed after
    /// [`Store::find_or_create_workspace`].
    pub workspace: Option<NewWorkspace>,
    /// The user on whose behalf the session runs.
    pub user_id: Option<UserId>,
    /// The token that opened the session, if it has limits, in which the session counts.
    pub limited_token: Option<Uuid>,
    pub agent: String,
    pub mode: SessionMode,
    /// True if git may be used on behalf of the session.
    pub enable_git_ops: bool,
    pub state: SessionState,
    /// The agent's own id of the session, if it has one already.
    pub agent_session_id: Option<String>,
    /// The MCP servers that the agent gets, as a JSON array without their secrets.
    pub mcp_servers: RedactedJson,
    /// The protocol that carries the session.
    pub protocol: Route,
    /// The negotiated version, after a handshake.
    pub protocol_version: Option<u16>,
    /// The agent's description of itself, as a JSON object.
    pub agent_facts: Option<RedactedJson>,
    /// The mode, model and options of the agent. Stored unchanged: a value that looks like a secret is never kept.
    pub choices: Choices,
    /// The connection to the agent.
    pub connection: Option<KeptConnection>,
    /// The folder of an isolated session.
    pub own_folder: Option<OwnFolder>,
    pub now: Timestamp,
}

/// The folder of an isolated session, which no other session uses. Its id is that of the session.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct OwnFolder {
    /// The branch that is checked out; absent: the default branch.
    pub branch: Option<String>,
    /// The absolute path, once the folder was prepared and until it is removed.
    pub path: Option<String>,
    /// When the folder was removed, unless a later load created it again.
    pub removed: Option<Timestamp>,
}

/// Identifies the connection to the agent of a live session, so that the agent is found again after the supervisor
/// dies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeptConnection {
    /// The id that the runtime assigned.
    pub id: String,
    /// Cookies that route requests to the runtime's replica.
    pub cookies: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SessionRow {
    pub session_id: SessionId,
    pub key: WorkspaceKey,
    /// The user on whose behalf the session runs.
    pub user_id: Option<UserId>,
    /// The token that opened the session, if it has limits.
    pub limited_token: Option<Uuid>,
    pub agent: String,
    pub mode: SessionMode,
    /// True if git may be used on behalf of the session.
    pub enable_git_ops: bool,
    /// The current state, or the state in which the service stopped.
    pub state: SessionState,
    /// The reason of the failure, if the session failed.
    pub failure: Option<Failure>,
    /// The agent's own id of the session.
    pub agent_session_id: Option<String>,
    /// The MCP servers of the agent, as a JSON array without their secrets.
    pub mcp_servers: String,
    /// The protocol that carries the session.
    pub protocol: Route,
    pub protocol_version: Option<u16>,
    /// The agent's description of itself, as a JSON object.
    pub agent_facts: Option<String>,
    /// The last confirmed mode, model and options of the agent.
    pub choices: Choices,
    /// Number of restarts of the agent.
    pub restarts: u32,
    /// The last event that the session's readers got, as of the last time it was written. Outdated while the state is
    /// live: see [`SessionRow::next_event_after`].
    pub last_event_id: u64,
    /// The newest connection to the agent.
    pub connection: Option<KeptConnection>,
    /// Sequence number of the connection's last message whose content is known to be on disk.
    pub settled_seq: u64,
    /// The folder of an isolated session.
    pub own_folder: Option<OwnFolder>,
    pub created: Timestamp,
    /// The last use that was written; outdated while the session is live.
    pub last_used: Timestamp,
}

/// The jump of a session's event ids after an end at which the last id was not written. An id must never be used for
/// two events, or a reader that resumes with `Last-Event-ID` would miss events. More ids than one process can use (a
/// thousand a second for a hundred days), and small enough for 900,000 such ends within the integers that JavaScript
/// represents exactly.
pub(super) const EVENT_ID_JUMP: i64 = 10_000_000_000;

impl SessionRow {
    /// The id after which events are numbered when the session is resumed.
    pub(crate) fn next_event_after(&self) -> u64 {
        let jump = if self.state.is_live() { EVENT_ID_JUMP.unsigned_abs() } else { 0 };
        self.last_event_id.saturating_add(jump)
    }

    /// The position of this row in [`Store::list_sessions`].
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { created: self.created, id: self.session_id.to_string() }
    }
}

/// A partial update of a session; absent fields stay unchanged.
#[derive(Debug, Clone)]
pub(crate) struct SessionChange {
    pub session_id: SessionId,
    /// The new state. A state without a failure clears the failure.
    pub state: Option<SessionState>,
    /// The reason of the failure; redacted when it is written.
    pub failure: Option<Failure>,
    /// The agent's own id of the session.
    pub agent_session_id: Option<String>,
    /// Other MCP servers, as a JSON array without their secrets.
    pub mcp_servers: Option<RedactedJson>,
    /// The protocol that carries the session.
    pub protocol: Option<Route>,
    pub protocol_version: Option<u16>,
    /// The agent's description of itself, as a JSON object.
    pub agent_facts: Option<RedactedJson>,
    /// The last confirmed mode, model and options of the agent.
    pub choices: Option<Choices>,
    /// Number of restarts of the agent.
    pub restarts: Option<u32>,
    /// A new connection to the agent.
    pub connection: Option<KeptConnection>,
    /// The last event that the session's readers got.
    pub last_event_id: Option<u64>,
    /// The absolute path of the folder of an isolated session, which was prepared.
    pub folder_path: Option<String>,
    pub last_used: Option<Timestamp>,
}

impl SessionChange {
    /// An update without any change.
    pub(crate) fn new(session_id: SessionId) -> Self {
        Self {
            session_id,
            state: None,
            failure: None,
            agent_session_id: None,
            mcp_servers: None,
            protocol: None,
            protocol_version: None,
            agent_facts: None,
            choices: None,
            restarts: None,
            connection: None,
            last_event_id: None,
            folder_path: None,
            last_used: None,
        }
    }
}

#[derive(Queryable, Insertable)]
#[diesel(table_name = sessions, treat_none_as_default_value = false)]
pub(super) struct Record {
    session_id: String,
    installation_id: String,
    workspace_id: String,
    user_id: Option<String>,
    agent: String,
    mode: String,
    enable_git_ops: bool,
    state: String,
    failure_code: Option<String>,
    failure_detail: Option<String>,
    agent_session_id: Option<String>,
    mcp_servers: String,
    protocol: String,
    protocol_version: Option<i32>,
    agent_facts: Option<String>,
    choices: Option<String>,
    restarts: i32,
    last_event_id: i64,
    created_us: i64,
    last_used_us: i64,
    connection_id: Option<String>,
    connection_cookies: Option<String>,
    settled_seq: i64,
    limited_token: Option<String>,
    is_isolated: bool,
    branch: Option<String>,
    folder_path: Option<String>,
    folder_removed_us: Option<i64>,
}

impl Record {
    fn new(new: NewSession) -> Self {
        let (connection_id, connection_cookies) = columns_of(new.connection);
        let is_isolated = new.own_folder.is_some();
        let OwnFolder { branch, path, removed } = new.own_folder.unwrap_or_default();
        Self {
            session_id: new.session_id.to_string(),
            installation_id: new.key.installation_id.to_string(),
            workspace_id: new.key.workspace_id.to_string(),
            user_id: new.user_id.map(|user| user.to_string()),
            agent: clean(new.agent),
            mode: new.mode.as_str().to_owned(),
            enable_git_ops: new.enable_git_ops,
            state: new.state.as_str().to_owned(),
            failure_code: None,
            failure_detail: None,
            agent_session_id: clean_option(new.agent_session_id),
            mcp_servers: clean(new.mcp_servers.into_string()),
            protocol: new.protocol.as_str().to_owned(),
            protocol_version: new.protocol_version.map(i32::from),
            agent_facts: clean_option(new.agent_facts.map(RedactedJson::into_string)),
            choices: clean_option(Some(new.choices.as_json())),
            restarts: 0,
            last_event_id: 0,
            created_us: new.now.0,
            last_used_us: new.now.0,
            connection_id,
            connection_cookies,
            settled_seq: 0,
            limited_token: new.limited_token.map(|id| id.to_string()),
            is_isolated,
            branch: clean_option(branch),
            folder_path: clean_option(path),
            folder_removed_us: removed.map(|at| at.0),
        }
    }

    pub(super) fn read(self) -> Result<SessionRow, StoreError> {
        let (path, removed) = (self.folder_path, self.folder_removed_us.map(Timestamp));
        let own_folder = self.is_isolated.then_some(OwnFolder { branch: self.branch, path, removed });
        Ok(SessionRow {
            own_folder,
            session_id: columns::parse(&self.session_id, "sessions.session_id")?,
            key: columns::workspace_key(self.installation_id, self.workspace_id)?,
            user_id: self.user_id.map(|user| columns::parse(&user, "sessions.user_id")).transpose()?,
            // One that does not parse names no token that could have a limit.
            limited_token: self.limited_token.and_then(|id| id.parse().ok()),
            agent: self.agent,
            mode: SessionMode::tolerant(&self.mode),
            enable_git_ops: self.enable_git_ops,
            state: SessionState::tolerant(&self.state),
            failure: columns::failure(self.failure_code, self.failure_detail),
            agent_session_id: self.agent_session_id,
            mcp_servers: self.mcp_servers,
            protocol: Route::tolerant(&self.protocol),
            protocol_version: self.protocol_version.and_then(|version| u16::try_from(version).ok()),
            agent_facts: self.agent_facts,
            choices: Choices::of_row(self.choices.as_deref()),
            restarts: u32::try_from(self.restarts).unwrap_or(0),
            last_event_id: columns::unsigned(self.last_event_id),
            connection: self.connection_id.map(|id| KeptConnection { id, cookies: self.connection_cookies }),
            settled_seq: columns::unsigned(self.settled_seq),
            created: Timestamp(self.created_us),
            last_used: Timestamp(self.last_used_us),
        })
    }
}

/// The outer `Option` is `None` if the column stays unchanged; the inner one is the new value.
#[derive(AsChangeset)]
#[diesel(table_name = sessions)]
struct Changes {
    state: Option<&'static str>,
    failure_code: Option<Option<&'static str>>,
    failure_detail: Option<Option<String>>,
    agent_session_id: Option<String>,
    mcp_servers: Option<String>,
    protocol: Option<&'static str>,
    protocol_version: Option<i32>,
    agent_facts: Option<String>,
    choices: Option<String>,
    restarts: Option<i32>,
    last_event_id: Option<i64>,
    last_used_us: Option<i64>,
    connection_id: Option<String>,
    connection_cookies: Option<Option<String>>,
    settled_seq: Option<i64>,
    folder_path: Option<String>,
    folder_removed_us: Option<Option<i64>>,
}

fn columns_of(connection: Option<KeptConnection>) -> (Option<String>, Option<String>) {
    let (id, cookies) = connection.map(|connection| (connection.id, connection.cookies)).unzip();
    (clean_option(id), clean_option(cookies.flatten()))
}

/// Updates a session; may be called again after a rollback. The answer is false if it is unknown or closed.
pub(super) fn change(change: SessionChange) -> impl FnMut(&mut WriteTx<'_>) -> Result<bool, StoreError> {
    let failure = change.failure.as_ref().map(|failure| (failure.code.as_str(), columns::clean_detail(failure)));
    let touches_failure = failure.is_some() || change.state.is_some();
    let (code, detail) = failure.unzip();
    let session_id = change.session_id.to_string();
    let is_new = change.connection.is_some();
    let (connection_id, connection_cookies) = columns_of(change.connection);
    let folder_path = clean_option(change.folder_path);
    let changes = Changes {
        folder_removed_us: folder_path.is_some().then_some(None),
        folder_path,
        state: change.state.map(SessionState::as_str),
        failure_code: touches_failure.then_some(code),
        failure_detail: touches_failure.then_some(detail),
        agent_session_id: clean_option(change.agent_session_id),
        mcp_servers: clean_option(change.mcp_servers.map(RedactedJson::into_string)),
        protocol: change.protocol.map(Route::as_str),
        protocol_version: change.protocol_version.map(i32::from),
        agent_facts: clean_option(change.agent_facts.map(RedactedJson::into_string)),
        choices: clean_option(change.choices.map(|choices| choices.as_json())),
        restarts: change.restarts.map(|restarts| i32::try_from(restarts).unwrap_or(i32::MAX)),
        last_event_id: change.last_event_id.map(columns::signed),
        last_used_us: change.last_used.map(|at| at.0),
        connection_id,
        connection_cookies: is_new.then_some(connection_cookies),
        settled_seq: is_new.then_some(0),
    };
    move |tx| {
        let changed = diesel::update(open(&session_id)).set(&changes).execute(tx.connection)?;
        tx.rows += changed;
        Ok(changed > 0)
    }
}

/// The row of a session that is not closed: late updates must not change a closed session.
#[diesel::dsl::auto_type(no_type_alias)]
fn open<'a>(session_id: &'a str) -> _ {
    let state: &'static str = "closed";
    sessions::table.filter(sessions::session_id.eq(session_id)).filter(sessions::state.ne(state))
}

/// Sessions whose rows are in a live state and name a connection to an agent.
pub(super) fn live_rows(connection: &mut AnyConnection) -> Result<Vec<SessionRow>, StoreError> {
    let live = SessionState::ALL.into_iter().filter(|state| state.is_live()).map(SessionState::as_str);
    let rows: Vec<Record> = sessions::table
        .filter(sessions::state.eq_any(live))
        .filter(sessions::connection_id.is_not_null())
        .load(connection)?;
    rows.into_iter().map(Record::read).collect()
}

/// Sessions with a turn of a user that has not ended and is in this phase.
pub(super) fn rows_with_open_turn(
    connection: &mut AnyConnection,
    phase: TurnPhase,
) -> Result<Vec<SessionRow>, StoreError> {
    let unfinished = prompts::table
        .filter(prompts::ended_us.is_null())
        .filter(prompts::phase.eq(phase.as_str()))
        .filter(prompts::initiator.eq(TurnInitiator::User.as_str()))
        .select(prompts::session_id);
    let rows: Vec<Record> = sessions::table.filter(sessions::session_id.eq_any(unfinished)).load(connection)?;
    rows.into_iter().map(Record::read).collect()
}

/// Records that all output of a session's agent up to message `seq` of the connection is on disk.
pub(super) fn settle(tx: &mut WriteTx<'_>, session_id: &str, seq: u64) -> Result<(), StoreError> {
    let settled = diesel::update(open(session_id)).set(sessions::settled_seq.eq(columns::signed(seq)));
    tx.rows += settled.execute(tx.connection)?;
    Ok(())
}

fn exists(connection: &mut AnyConnection, session_id: &str) -> diesel::QueryResult<bool> {
    let found = sessions::table.find(session_id).select(sessions::created_us).first::<i64>(connection);
    Ok(found.optional()?.is_some())
}

pub(super) fn create(mut new: NewSession) -> impl FnMut(&mut WriteTx<'_>) -> Result<(), StoreError> {
    let workspace = new.workspace.take();
    let record = Record::new(new);
    move |tx| {
        // The commit of an earlier attempt reported an error and took effect nevertheless.
        if tx.in_doubt && exists(tx.connection, &record.session_id)? {
            return Ok(());
        }
        if let Some(workspace) = &workspace {
            workspaces::find_or_create(tx, workspace)?;
        }
        tx.rows += diesel::insert_into(sessions::table).values(&record).execute(tx.connection)?;
        Ok(())
    }
}

/// Replaces the row of a session that was being prepared by that of one that is ready; may be called again after a rollback.
/// A conflict if the session is not being prepared any more.
pub(super) fn complete(new: NewSession) -> impl FnMut(&mut WriteTx<'_>) -> Result<(), StoreError> {
    let record = Record::new(new);
    move |tx| {
        let row = sessions::table.find(&record.session_id);
        let found: Option<String> = row.select(sessions::state).first(tx.connection).optional()?;
        let Some(state) = found else {
            return Err(StoreError::Conflict("the session that was prepared does not exist".to_owned()));
        };
        if state != SessionState::Preparing.as_str() {
            // The commit of an earlier attempt reported an error and took effect nevertheless.
            let is_done = tx.in_doubt && state == record.state;
            let other = || StoreError::Conflict(format!("the session that was prepared is {state}"));
            return if is_done { Ok(()) } else { Err(other()) };
        }
        let changes = Completed {
            state: &record.state,
            agent_session_id: record.agent_session_id.as_deref(),
            protocol: &record.protocol,
            protocol_version: record.protocol_version,
            agent_facts: record.agent_facts.as_deref(),
            choices: record.choices.as_deref(),
            last_used_us: record.last_used_us,
            connection_id: record.connection_id.as_deref(),
            connection_cookies: record.connection_cookies.as_deref(),
            folder_path: record.folder_path.as_deref(),
        };
        tx.rows += diesel::update(row).set(&changes).execute(tx.connection)?;
        Ok(())
    }
}

#[derive(AsChangeset)]
#[diesel(table_name = sessions, treat_none_as_null = true)]
struct Completed<'a> {
    state: &'a str,
    agent_session_id: Option<&'a str>,
    protocol: &'a str,
    protocol_version: Option<i32>,
    agent_facts: Option<&'a str>,
    choices: Option<&'a str>,
    last_used_us: i64,
    connection_id: Option<&'a str>,
    connection_cookies: Option<&'a str>,
    folder_path: Option<&'a str>,
}

impl Store {
    /// Removes the row of a session that could not be prepared and whose id nobody has, and its workspace if it was made for
    /// the session. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have removed.
    pub(crate) async fn discard_preparing(&self, session_id: SessionId, key: WorkspaceKey) -> Result<(), StoreError> {
        self.write(move |tx| {
            let preparing = sessions::table
                .find(session_id.to_string())
                .filter(sessions::state.eq(SessionState::Preparing.as_str()));
            tx.rows += diesel::delete(preparing).execute(tx.connection)?;
            tx.rows += workspaces::remove_unprepared(tx, &key)?;
            Ok(())
        })
        .await
    }

    /// Writes a new session, and its workspace if that is new.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if the session exists, or if the workspace does not exist and is not given.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    #[cfg(test)]
    pub(crate) async fn create_session(&self, new: NewSession) -> Result<(), StoreError> {
        self.write(create(new)).await
    }

    /// Updates a session. Returns false, without an error, for an unknown or closed session, which is left unchanged.
    /// Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn update_session(&self, changed: SessionChange) -> Result<bool, StoreError> {
        self.write(change(changed)).await
    }

    /// [`Store::update_session`] for a session that has already ended: waits for room in the queue and for the
    /// commit, as [`Store::append`] does.
    pub(crate) async fn settle_session(&self, changed: SessionChange) -> Result<(), StoreError> {
        self.write_when_there_is_room(change(changed)).await.map(drop)
    }

    /// [`Store::update_session`] of the past, without waiting: queued behind the writes before it and ahead of those after
    /// it. `done` is called by the writer's thread after the commit.
    ///
    /// # Errors
    /// The queue is full or closed; `done` is not called.
    pub(crate) fn try_update_session(
        &self,
        changed: SessionChange,
        done: impl FnOnce(Result<bool, StoreError>) + Send + 'static,
    ) -> Result<(), StoreError> {
        self.place()?.send(Job::new(Outage::Keep, change(changed), done));
        Ok(())
    }

    /// Reads one session; one that is being erased is not found. Cancel-safe.
    pub(crate) async fn session(&self, session_id: SessionId) -> Result<Option<SessionRow>, StoreError> {
        let row: Option<SessionRow> = self
            .read(move |connection| {
                let row = sessions::table.find(session_id.to_string());
                row.first::<Record>(connection).optional()?.map(Record::read).transpose()
            })
            .await?;
        Ok(row.filter(|row| !self.erasures().hides(&row.key, session_id)))
    }
}

impl Store {
    /// Returns those of the sessions that have no row. Cancel-safe.
    pub(crate) async fn removed_sessions(&self, mut ids: Vec<SessionId>) -> Result<Vec<SessionId>, StoreError> {
        self.read(move |connection| {
            let mut left = HashSet::new();
            for some in ids.chunks(IDS_PER_READ) {
                let wanted = sessions::session_id.eq_any(some.iter().map(SessionId::to_string));
                left.extend(sessions::table.filter(wanted).select(sessions::session_id).load::<String>(connection)?);
            }
            ids.retain(|id| !left.contains(&id.to_string()));
            Ok(std::mem::take(&mut ids))
        })
        .await
    }
}

/// A session that has just expired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExpiredSession {
    pub session_id: SessionId,
    pub key: WorkspaceKey,
    pub last_used: Timestamp,
}

fn expire(tx: &mut WriteTx<'_>, unused_since: Timestamp, limit: usize) -> Result<Vec<ExpiredSession>, StoreError> {
    // A literal, because both databases use the partial index only if they see its condition.
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
    /// Moves hibernated sessions whose last use is at least `max_age` before `now` to `expired`: at most `limit` of
    /// them, the least recently used first. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn expire_sessions(
        &self,
        now: Timestamp,
        max_age: Duration,
        limit: usize,
    ) -> Result<Vec<ExpiredSession>, StoreError> {
        self.write(move |tx| expire(tx, now.minus(max_age), limit)).await
    }
}

/// Conditions on listed sessions; all of them must hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct SessionFilter {
    /// Only sessions of this tenant.
    pub installation_id: Option<InstallationId>,
    /// Only sessions of workspaces with this id.
    pub workspace_id: Option<WorkspaceId>,
    /// Only sessions of this user.
    pub user_id: Option<UserId>,
    /// Only sessions whose stored state is one of these; any state if empty.
    pub states: Vec<SessionState>,
}

impl Store {
    /// Reads a page of sessions, newest first. Cancel-safe.
    pub(crate) async fn list_sessions(
        &self,
        filter: SessionFilter,
        page: Page,
    ) -> Result<Vec<SessionRow>, StoreError> {
        self.read(move |connection| {
            let mut rows = sessions::table.into_boxed();
            if let Some(tenant) = &filter.installation_id {
                rows = rows.filter(sessions::installation_id.eq(tenant.as_str()));
            }
            if let Some(workspace) = &filter.workspace_id {
                rows = rows.filter(sessions::workspace_id.eq(workspace.as_str()));
            }
            if let Some(user) = &filter.user_id {
                rows = rows.filter(sessions::user_id.eq(user.as_str()));
            }
            if !filter.states.is_empty() {
                rows = rows.filter(sessions::state.eq_any(filter.states.iter().map(|state| state.as_str())));
            }
            let records: Vec<Record> =
                page_of!(rows, page, sessions::created_us, sessions::session_id).load(connection)?;
            records.into_iter().map(Record::read).collect()
        })
        .await
    }
}
