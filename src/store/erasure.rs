//! The `erasures` table, and the removal of all rows of a session, a workspace or a tenant, in chunks.
//!
//! Invariant: every table is in one of the lists of this file, which tie it to sessions, workspaces or tenants, or say
//! that it is kept; a test compares them with the schema.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use diesel::{
    ExpressionMethods, Insertable, OptionalExtension, QueryDsl, Queryable, RunQueryDsl,
    connection::SimpleConnection,
    sql_types::{BigInt, Text},
};
use parking_lot::RwLock;
use uuid::Uuid;

use super::{
    Store, StoreError,
    engine::{
        columns::{self, Page, page_of},
        connection::AnyConnection,
        writer::WriteTx,
    },
    retention::release_free_pages,
    schema::{erasures, notification_tickets, sessions, tenant_protocols, tenant_settings, workspaces},
    sessions::Record as SessionRecord,
};
use crate::{
    contract::audit::ErasureItem,
    domain::{
        clock::Timestamp,
        erasure::{EraseCounts, EraseScope, EraseTarget},
        ids::{InstallationId, SessionId, WorkspaceKey},
    },
};

/// Kind of a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counted {
    TranscriptEntries,
    Turns,
    Notifications,
    Records,
}

/// A table with rows of sessions, workspaces or tenants.
struct Tied {
    table: &'static str,
    /// The columns of its primary key.
    key: &'static [&'static str],
    /// Joins `x`, the table, to another one; empty for a table with columns of its own for session, workspace and tenant.
    join: &'static str,
    counted: Counted,
    /// The smallest target whose erasure removes rows.
    from: EraseScope,
}

/// Tables whose rows are found by session alone; they have no index for a workspace or a tenant.
const OF_SESSIONS: [Tied; 3] = [
    Tied::new("transcript_entries", &["session_id", "seq"], Counted::TranscriptEntries, EraseScope::Session),
    Tied::new("prompts", &["prompt_id"], Counted::Turns, EraseScope::Session),
    Tied::new("session_keys", &["installation_id", "idempotency_key"], Counted::Records, EraseScope::Session),
];

/// The other tables, those that refer to others first.
const OF_TARGETS: [Tied; 19] = [
    Tied {
        join: "JOIN notifications o ON o.notification_id = x.notification_id",
        ..Tied::new("webhook_deliveries", &["delivery_id"], Counted::Records, EraseScope::Session)
    },
    Tied {
        join: "JOIN notifications o ON o.notification_id = x.notification_id",
        ..Tied::new("notification_reads", &["notification_id", "user_id"], Counted::Records, EraseScope::Session)
    },
    Tied::new("notifications", &["notification_id"], Counted::Notifications, EraseScope::Session),
    Tied {
        join: "JOIN acp_connections o ON o.connection_row_id = x.connection_row_id",
        ..Tied::new("connection_events", &["event_id"], Counted::Records, EraseScope::Session)
    },
    Tied::new("acp_connections", &["connection_row_id"], Counted::Records, EraseScope::Session),
    Tied::new("automation_runs", &["run_id"], Counted::Records, EraseScope::Session),
    Tied::new("automation_sagas", &["run_id"], Counted::Records, EraseScope::Session),
    Tied::new("github_deliveries", &["delivery_id"], Counted::Records, EraseScope::Session),
    Tied::new("protocol_migrations", &["migration_id"], Counted::Records, EraseScope::Workspace),
    Tied::new("rollback_events", &["event_id"], Counted::Records, EraseScope::Workspace),
    Tied::new(
        "outcome_buckets",
        &["installation_id", "workspace_id", "epoch", "route", "bucket_us"],
        Counted::Records,
        EraseScope::Workspace,
    ),
    Tied::new("workspace_routes", &["installation_id", "workspace_id"], Counted::Records, EraseScope::Workspace),
    Tied::new("client_tokens", &["token_id"], Counted::Records, EraseScope::Workspace),
    Tied::new("admin_changes", &["change_id"], Counted::Records, EraseScope::Workspace),
    Tied::new("migration_runs", &["run_id"], Counted::Records, EraseScope::Tenant),
    Tied::new("capacity_alerts", &["event_id"], Counted::Records, EraseScope::Tenant),
    Tied::new("tenant_protocols", &["installation_id"], Counted::Records, EraseScope::Tenant),
    Tied::new("tenant_settings", &["installation_id"], Counted::Records, EraseScope::Tenant),
    Tied::new("github_bindings", &["github_installation"], Counted::Records, EraseScope::Tenant),
];

/// Tables that other statements of this file remove from.
#[cfg(test)]
pub(super) const REMOVED_OTHERWISE: [&str; 3] = ["sessions", "workspaces", "notification_tickets"];

/// Tables whose rows are kept: the audit of removals, which has numbers and ids alone; the positions of streams, so that no
/// cursor becomes invalid; and those about no tenant, such as hashes by which a replayed delivery is recognised.
#[cfg(test)]
pub(super) const KEPT: [&str; 9] = [
    "erasures",
    "removals",
    "notification_streams",
    "github_delivery_hashes",
    "rollback_storm",
    "identity",
    "replicas",
    "schema_compatibility",
    "__diesel_schema_migrations",
];

/// The tables of the lists.
#[cfg(test)]
pub(super) fn tied_tables() -> impl Iterator<Item = &'static str> {
    OF_SESSIONS.iter().chain(&OF_TARGETS).map(|tied| tied.table)
}

impl Tied {
    const fn new(table: &'static str, key: &'static [&'static str], counted: Counted, from: EraseScope) -> Self {
        Self { table, key, join: "", counted, from }
    }

    /// The statement that removes rows of a target: its names as the first parameters, the most rows as the last.
    fn statement(&self, scope: EraseScope) -> String {
        let of = if self.join.is_empty() { "x" } else { "o" };
        let (condition, limit) = match scope {
            EraseScope::Session => (format!("{of}.session_id = $1"), "$2"),
            EraseScope::Workspace => (format!("{of}.installation_id = $1 AND {of}.workspace_id = $2"), "$3"),
            EraseScope::Tenant => (format!("{of}.installation_id = $1"), "$2"),
        };
        let keys = self.key.join(", ");
        let found: Vec<_> = self.key.iter().map(|column| format!("x.{column}")).collect();
        let (table, found, join) = (self.table, found.join(", "), self.join);
        format!(
            "DELETE FROM {table} WHERE ({keys}) IN (SELECT {found} FROM {table} x {join} WHERE {condition} LIMIT {limit})"
        )
    }

    fn is_of(&self, scope: EraseScope) -> bool {
        let rank = |scope| EraseScope::ALL.iter().position(|it| *it == scope);
        rank(self.from) <= rank(scope)
    }

    fn remove(
        &self,
        tx: &mut WriteTx<'_>,
        target: &EraseTarget,
        left: &mut i64,
        counts: &mut EraseCounts,
    ) -> diesel::QueryResult<()> {
        if *left <= 0 || !self.is_of(target.scope()) {
            return Ok(());
        }
        let statement = self.statement(target.scope());
        macro_rules! run {
            ($connection:expr) => {{
                let mut statement = diesel::sql_query(statement).into_boxed();
                for name in names(target) {
                    statement = statement.bind::<Text, _>(name);
                }
                statement.bind::<BigInt, _>(*left).execute($connection)?
            }};
        }
        let rows = match &mut *tx.connection {
            AnyConnection::Sqlite(connection) => run!(connection),
            AnyConnection::Postgres(connection) => run!(connection),
        };
        tx.rows += rows;
        let rows = rows as u64;
        match self.counted {
            Counted::TranscriptEntries => counts.transcript_entries += rows,
            Counted::Turns => counts.turns += rows,
            Counted::Notifications => counts.notifications += rows,
            Counted::Records => counts.records += rows,
        }
        *left -= i64::try_from(rows).unwrap_or(i64::MAX);
        Ok(())
    }
}

/// The names that identify a target, as the statements take them.
fn names(target: &EraseTarget) -> Vec<String> {
    match target {
        EraseTarget::Session(_, id) => vec![id.to_string()],
        EraseTarget::Workspace(key) => vec![key.installation_id.to_string(), key.workspace_id.to_string()],
        EraseTarget::Tenant(tenant) => vec![tenant.to_string()],
    }
}

#[derive(Queryable, Insertable)]
#[diesel(table_name = erasures, treat_none_as_default_value = false)]
pub(super) struct Record {
    erasure_id: String,
    scope: String,
    installation_id: String,
    workspace_id: Option<String>,
    session_id: Option<String>,
    actor: String,
    counts: String,
    created_us: i64,
    ended_us: Option<i64>,
}

const COUNTS: &str = "erasures.counts";

impl Record {
    pub(super) fn read(self) -> Result<ErasureItem, StoreError> {
        let counts: EraseCounts = columns::json(&self.counts, COUNTS)?;
        Ok(ErasureItem {
            erasure_id: columns::parse(&self.erasure_id, "erasures.erasure_id")?,
            scope: columns::named(EraseScope::from_name, &self.scope, "erasures.scope")?,
            installation_id: columns::parse(&self.installation_id, "erasures.installation_id")?,
            workspace_id: self.workspace_id.map(|id| columns::parse(&id, "erasures.workspace_id")).transpose()?,
            session_id: self.session_id.map(|id| columns::parse(&id, "erasures.session_id")).transpose()?,
            actor: self.actor,
            sessions: counts.sessions,
            turns: counts.turns,
            transcript_entries: counts.transcript_entries,
            notifications: counts.notifications,
            records: counts.records,
            workspaces: counts.workspaces,
            folders: counts.folders,
            homes: counts.homes,
            agent_histories: counts.agent_histories,
            agent_histories_left: counts.agent_histories_left,
            created_at: Timestamp(self.created_us),
            ended_at: self.ended_us.map(Timestamp),
        })
    }
}

/// An erasure that has not ended.
#[derive(Debug, Clone)]
pub(crate) struct OpenErasure {
    pub erasure_id: Uuid,
    pub target: EraseTarget,
}

/// True if there is something to erase.
fn exists(connection: &mut AnyConnection, target: &EraseTarget) -> diesel::QueryResult<bool> {
    Ok(match target {
        EraseTarget::Session(_, id) => {
            let row = sessions::table.find(id.to_string()).select(sessions::created_us);
            row.first::<i64>(connection).optional()?.is_some()
        }
        EraseTarget::Workspace(key) => {
            let row = workspaces::table.find((key.installation_id.as_str(), key.workspace_id.as_str()));
            row.select(workspaces::created_us).first::<i64>(connection).optional()?.is_some()
        }
        EraseTarget::Tenant(tenant) => {
            let name = tenant.as_str();
            let workspace = workspaces::table.filter(workspaces::installation_id.eq(name));
            let protocol = tenant_protocols::table.find(name).select(tenant_protocols::updated_us);
            let settings = tenant_settings::table.find(name).select(tenant_settings::updated_us);
            workspace.select(workspaces::created_us).first::<i64>(connection).optional()?.is_some()
                || protocol.first::<i64>(connection).optional()?.is_some()
                || settings.first::<i64>(connection).optional()?.is_some()
        }
    })
}

/// Adds to the counts of an erasure.
fn count(tx: &mut WriteTx<'_>, erasure_id: &str, more: EraseCounts) -> Result<(), StoreError> {
    if more == EraseCounts::default() {
        return Ok(());
    }
    let row = erasures::table.find(erasure_id);
    let kept: String = row.select(erasures::counts).first(tx.connection)?;
    let mut counts: EraseCounts = columns::json(&kept, COUNTS)?;
    counts += more;
    let counts = columns::json_text(&counts, COUNTS)?;
    tx.rows += diesel::update(row).set(erasures::counts.eq(counts)).execute(tx.connection)?;
    Ok(())
}

/// Sessions that one chunk looks at.
const SESSIONS_PER_CHUNK: i64 = 100;

fn sessions_of(
    connection: &mut AnyConnection,
    target: &EraseTarget,
) -> diesel::QueryResult<Vec<(String, String, String)>> {
    let rows = sessions::table.limit(SESSIONS_PER_CHUNK).into_boxed();
    let rows = match target {
        EraseTarget::Session(_, id) => rows.filter(sessions::session_id.eq(id.to_string())),
        EraseTarget::Workspace(key) => rows
            .filter(sessions::installation_id.eq(key.installation_id.to_string()))
            .filter(sessions::workspace_id.eq(key.workspace_id.to_string())),
        EraseTarget::Tenant(tenant) => rows.filter(sessions::installation_id.eq(tenant.to_string())),
    };
    rows.select((sessions::session_id, sessions::installation_id, sessions::workspace_id)).load(connection)
}

/// Tickets name their subscription as JSON. There are few, because they expire within a minute.
fn remove_tickets(tx: &mut WriteTx<'_>, target: &EraseTarget) -> diesel::QueryResult<u64> {
    let named = match target {
        EraseTarget::Session(_, id) => format!("\"sessionId\":\"{id}\""),
        EraseTarget::Workspace(key) => format!("\"workspaceId\":\"{}\"", key.workspace_id),
        EraseTarget::Tenant(tenant) => format!("\"installationId\":\"{tenant}\""),
    };
    let tenant = format!("\"installationId\":\"{}\"", target.tenant());
    let found: Vec<(String, String)> = notification_tickets::table
        .select((notification_tickets::ticket_hash, notification_tickets::scope))
        .load(tx.connection)?;
    // A subscription to a session need not name the tenant.
    let is_of_target =
        |scope: &str| scope.contains(&named) && (scope.contains(&tenant) || target.session().is_some());
    let ours = found.into_iter().filter(|(_, scope)| is_of_target(scope)).map(|(hash, _)| hash);
    let ours: Vec<_> = ours.collect();
    let rows = diesel::delete(notification_tickets::table.filter(notification_tickets::ticket_hash.eq_any(ours)));
    Ok(rows.execute(tx.connection)? as u64)
}

/// Removes one chunk of a target's rows, apart from workspaces.
fn remove_rows(tx: &mut WriteTx<'_>, target: &EraseTarget, limit: i64) -> Result<EraseCounts, StoreError> {
    let (mut left, mut counts) = (limit, EraseCounts::default());
    for (id, tenant, workspace) in sessions_of(tx.connection, target)? {
        let key = columns::workspace_key(tenant, workspace)?;
        let session = EraseTarget::Session(key, columns::parse(&id, "sessions.session_id")?);
        for tied in &OF_SESSIONS {
            tied.remove(tx, &session, &mut left, &mut counts)?;
        }
        if left <= 0 {
            return Ok(counts);
        }
        counts.sessions += diesel::delete(sessions::table.find(id)).execute(tx.connection)? as u64;
        left -= 1;
    }
    for tied in &OF_TARGETS {
        tied.remove(tx, target, &mut left, &mut counts)?;
    }
    counts.records += remove_tickets(tx, target)?;
    Ok(counts)
}

impl Store {
    /// Records an erasure that begins now; false if there is nothing to erase. Safe to retry with another id.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn begin_erasure(
        &self,
        erasure: OpenErasure,
        actor: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let OpenErasure { erasure_id, target } = erasure;
        let record = Record {
            erasure_id: erasure_id.to_string(),
            scope: target.scope().as_str().to_owned(),
            installation_id: target.tenant().to_string(),
            workspace_id: target.workspace().map(|key| key.workspace_id.to_string()),
            session_id: target.session().map(|id| id.to_string()),
            actor: columns::clean_text(actor),
            counts: columns::json_text(&EraseCounts::default(), COUNTS)?,
            created_us: now.0,
            ended_us: None,
        };
        self.write(move |tx| {
            if !exists(tx.connection, &target)? {
                return Ok(false);
            }
            tx.rows += diesel::insert_into(erasures::table).values(&record).execute(tx.connection)?;
            Ok(true)
        })
        .await
    }

    /// Reads the erasures that have not ended, the oldest first, at most [`MAX_PAGE`](super::MAX_PAGE). Cancel-safe.
    pub(crate) async fn open_erasures(&self) -> Result<Vec<OpenErasure>, StoreError> {
        self.read(move |connection| {
            let rows = erasures::table.filter(erasures::ended_us.is_null()).order(erasures::created_us);
            let records: Vec<Record> = rows.limit(columns::limit(columns::MAX_PAGE)).load(connection)?;
            records.into_iter().map(|record| open_of(record.read()?)).collect()
        })
        .await
    }

    /// Removes one chunk of a target's rows, and counts them; everything but workspaces, whose folders are removed first.
    /// Zero counts once there are none left. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have removed.
    pub(crate) async fn erase_rows(&self, erasure: &OpenErasure, limit: usize) -> Result<EraseCounts, StoreError> {
        let (id, target, limit) = (erasure.erasure_id.to_string(), erasure.target.clone(), columns::limit(limit));
        self.write(move |tx| {
            let counts = remove_rows(tx, &target, limit)?;
            count(tx, &id, counts)?;
            Ok(counts)
        })
        .await
    }

    /// Removes the row of a workspace that has no sessions any more, and adds to the counts. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have removed.
    pub(crate) async fn erase_workspace(
        &self,
        erasure_id: Uuid,
        key: WorkspaceKey,
        mut counts: EraseCounts,
    ) -> Result<(), StoreError> {
        self.write(move |tx| {
            let row = workspaces::table.find((key.installation_id.as_str(), key.workspace_id.as_str()));
            counts.workspaces = diesel::delete(row).execute(tx.connection)? as u64;
            count(tx, &erasure_id.to_string(), counts)
        })
        .await
    }

    /// Adds to the counts of an erasure.
    pub(crate) async fn count_erased(&self, erasure_id: Uuid, counts: EraseCounts) -> Result<(), StoreError> {
        self.write(move |tx| count(tx, &erasure_id.to_string(), counts)).await
    }

    /// Records the end of an erasure, and returns its row. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn end_erasure(&self, erasure_id: Uuid, now: Timestamp) -> Result<ErasureItem, StoreError> {
        self.write(move |tx| {
            let row = || erasures::table.find(erasure_id.to_string());
            let ended = diesel::update(row()).set(erasures::ended_us.eq(now.0));
            tx.rows += ended.execute(tx.connection)?;
            row().first::<Record>(tx.connection)?.read()
        })
        .await
    }

    /// Reads a page of the sessions of a target, newest first; also while they are hidden by their erasure. Cancel-safe.
    pub(crate) async fn sessions_to_erase(
        &self,
        target: EraseTarget,
        page: Page,
    ) -> Result<Vec<super::SessionRow>, StoreError> {
        self.read(move |connection| {
            let rows = sessions::table.into_boxed();
            let rows = match &target {
                EraseTarget::Session(_, id) => rows.filter(sessions::session_id.eq(id.to_string())),
                EraseTarget::Workspace(key) => rows
                    .filter(sessions::installation_id.eq(key.installation_id.to_string()))
                    .filter(sessions::workspace_id.eq(key.workspace_id.to_string())),
                EraseTarget::Tenant(tenant) => rows.filter(sessions::installation_id.eq(tenant.to_string())),
            };
            let records: Vec<SessionRecord> =
                page_of!(rows, page, sessions::created_us, sessions::session_id).load(connection)?;
            records.into_iter().map(SessionRecord::read).collect()
        })
        .await
    }

    /// True if a workspace of another name, or of another tenant, works in the same folder. Cancel-safe.
    pub(crate) async fn shares_path(&self, key: WorkspaceKey, path: String) -> Result<bool, StoreError> {
        self.read(move |connection| {
            let with_path = workspaces::table.filter(workspaces::workspace_path.eq(path));
            let with_path = with_path.select((workspaces::installation_id, workspaces::workspace_id)).limit(2);
            let found: Vec<(String, String)> = with_path.load(connection)?;
            let is_other =
                |it: &(String, String)| it.0 != key.installation_id.as_str() || it.1 != key.workspace_id.as_str();
            Ok(found.iter().any(is_other))
        })
        .await
    }

    /// Returns free pages of a SQLite file to the file system, one chunk, and returns their number before that. `PostgreSQL`
    /// reuses space by itself. Safe to retry.
    pub(crate) async fn shrink(&self) -> Result<u64, StoreError> {
        self.write(|tx| {
            let free = columns::unsigned(free_pages(tx.connection)?);
            if free > 0 {
                tx.later(Vec::new(), |tx| Ok(release_free_pages(tx)?));
            }
            Ok(free)
        })
        .await
    }

    /// Empties the write-ahead log of SQLite, so that no removed text is left in it. Gives up if readers keep the log in
    /// use for half a second; a later erasure, and the end of the process, empty it too.
    pub(crate) async fn truncate_log(&self) -> Result<(), StoreError> {
        let url = self.inner.url.clone();
        let truncate = move || {
            if let AnyConnection::Sqlite(mut connection) = url.connect(super::engine::connection::Purpose::Write)? {
                connection.batch_execute(&format!(
                    "PRAGMA busy_timeout = {}; PRAGMA wal_checkpoint(TRUNCATE)",
                    TRUNCATE_TIMEOUT.as_millis()
                ))?;
            }
            Ok(())
        };
        let done = tokio::task::spawn_blocking(truncate).await;
        done.unwrap_or_else(|cause| Err(StoreError::Unavailable(cause.to_string())))
    }
}

/// Time that the emptying of the log waits for readers; the writer waits meanwhile.
const TRUNCATE_TIMEOUT: Duration = Duration::from_millis(500);

fn free_pages(connection: &mut AnyConnection) -> diesel::QueryResult<i64> {
    #[derive(diesel::QueryableByName)]
    struct Free {
        #[diesel(sql_type = BigInt)]
        free: i64,
    }
    match connection {
        AnyConnection::Sqlite(connection) => {
            let query = diesel::sql_query("SELECT freelist_count AS free FROM pragma_freelist_count");
            Ok(query.get_result::<Free>(connection)?.free)
        }
        AnyConnection::Postgres(_) => Ok(0),
    }
}

fn open_of(item: ErasureItem) -> Result<OpenErasure, StoreError> {
    let ErasureItem { erasure_id, scope, installation_id, workspace_id, session_id, .. } = item;
    let key =
        workspace_id.map(|workspace_id| WorkspaceKey { installation_id: installation_id.clone(), workspace_id });
    let target = match (scope, key, session_id) {
        (EraseScope::Tenant, ..) => EraseTarget::Tenant(installation_id),
        (EraseScope::Workspace, Some(key), _) => EraseTarget::Workspace(key),
        (EraseScope::Session, Some(key), Some(id)) => EraseTarget::Session(key, id),
        _ => return Err(StoreError::Corrupt("erasures: a row without its workspace or session".into())),
    };
    Ok(OpenErasure { erasure_id, target })
}

/// Erasures in progress, and the newest that have ended. Reads of their sessions and workspaces find nothing, and late
/// writes about them are dropped. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Erasures(Arc<RwLock<State>>);

#[derive(Debug, Default)]
struct State {
    active: Vec<Active>,
    /// Targets that were erased, with the time. A session of one of them that is younger belongs to a new workspace or
    /// tenant of the same name.
    ended: VecDeque<(EraseTarget, Timestamp)>,
}

#[derive(Debug)]
struct Active {
    erasure: OpenErasure,
    /// True while a task works on it.
    is_running: bool,
}

/// Ended erasures that are remembered, for writes that are late: those of sessions that were live.
const REMEMBERED: usize = 1024;

/// The right to work on an erasure; returned on drop.
#[derive(Debug)]
pub(crate) struct EraseClaim {
    of: Erasures,
    pub erasure: OpenErasure,
}

impl Erasures {
    /// Registers an erasure that begins, and claims it; `None` if one in progress covers it already.
    pub(crate) fn begin(&self, erasure: OpenErasure) -> Option<EraseClaim> {
        let mut state = self.0.write();
        if state.active.iter().any(|active| active.erasure.target.includes(&erasure.target)) {
            return None;
        }
        state.active.push(Active { erasure: erasure.clone(), is_running: true });
        Some(EraseClaim { of: self.clone(), erasure })
    }

    /// Registers the erasures that an earlier process left.
    pub(crate) fn recover(&self, open: Vec<OpenErasure>) {
        self.0.write().active.extend(open.into_iter().map(|erasure| Active { erasure, is_running: false }));
    }

    /// Claims an erasure on which no task works.
    pub(crate) fn claim(&self) -> Option<EraseClaim> {
        let mut state = self.0.write();
        let idle = state.active.iter_mut().find(|active| !active.is_running)?;
        idle.is_running = true;
        Some(EraseClaim { of: self.clone(), erasure: idle.erasure.clone() })
    }

    /// Number of erasures in progress.
    pub(crate) fn open(&self) -> usize {
        self.0.read().active.len()
    }

    /// True if the workspace is being erased.
    pub(crate) fn is_erasing(&self, key: &WorkspaceKey) -> bool {
        self.0.read().active.iter().any(|active| active.erasure.target.covers(key, None))
    }

    /// True if the tenant is being erased.
    pub(crate) fn is_erasing_tenant(&self, tenant: &InstallationId) -> bool {
        let target = EraseTarget::Tenant(tenant.clone());
        self.0.read().active.iter().any(|active| active.erasure.target == target)
    }

    /// True if the session is being erased, or was.
    pub(crate) fn hides(&self, key: &WorkspaceKey, id: SessionId) -> bool {
        self.is_late(key, Some(id))
    }

    /// True if a write about the workspace, or its session, comes after the erasure of either.
    pub(crate) fn is_late(&self, key: &WorkspaceKey, session: Option<SessionId>) -> bool {
        let state = self.0.read();
        let is_active = |active: &Active| active.erasure.target.covers(key, session);
        let is_old = |(target, at): &(EraseTarget, Timestamp)| {
            session.is_some_and(|id| target.covers(key, session) && began(id) < *at)
        };
        state.active.iter().any(is_active) || state.ended.iter().any(is_old)
    }

    fn finish(&self, erasure: &OpenErasure, has_erased: bool) {
        let mut state = self.0.write();
        state.active.retain(|active| active.erasure.erasure_id != erasure.erasure_id);
        if has_erased {
            if state.ended.len() >= REMEMBERED {
                state.ended.pop_front();
            }
            // By the clock that ids of sessions are made with.
            state.ended.push_back((erasure.target.clone(), began(SessionId(Uuid::now_v7()))));
        }
    }
}

/// The time in the id of a session, which is a UUID of version 7.
fn began(id: SessionId) -> Timestamp {
    let (seconds, nanos) = id.0.get_timestamp().map_or((0, 0), |time| time.to_unix());
    Timestamp(i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000) + i64::from(nanos / 1000))
}

impl EraseClaim {
    /// The erasure has ended.
    pub(crate) fn ended(self) {
        self.of.finish(&self.erasure, true);
    }

    /// There was nothing to erase.
    pub(crate) fn abandon(self) {
        self.of.finish(&self.erasure, false);
    }
}

impl Drop for EraseClaim {
    fn drop(&mut self) {
        let id = self.erasure.erasure_id;
        let mut state = self.of.0.write();
        if let Some(active) = state.active.iter_mut().find(|active| active.erasure.erasure_id == id) {
            active.is_running = false;
        }
    }
}
