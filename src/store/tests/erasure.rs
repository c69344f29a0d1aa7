//! Erasure: every table is covered, rows of others are unchanged, and late writes are dropped.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU32, Ordering},
};

use diesel::{Connection, PgConnection, RunQueryDsl, SqliteConnection, sql_types::Text};
use uuid::Uuid;

use super::{
    audit::{event, handshake},
    fixture::*,
};
use crate::{
    domain::{
        erasure::{EraseCounts, EraseTarget},
        ids::{SessionId, WorkspaceKey},
        session::connection::ConnectionStatus,
    },
    store::{
        AuditFilter, DatabaseUrl, NewConnection, OpenErasure, Page, Store,
        erasure::{KEPT, REMOVED_OTHERWISE, tied_tables},
    },
};

/// Reads the column `text` of a query's rows.
fn texts_of(database: &TestDatabase, sqlite: &str, postgres: &str) -> Vec<String> {
    #[derive(diesel::QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        text: String,
    }
    let rows: Vec<Row> = match database.url() {
        DatabaseUrl::Sqlite(path) => {
            let mut connection = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
            diesel::sql_query(sqlite).load(&mut connection).unwrap()
        }
        DatabaseUrl::Postgres(url) => {
            let mut connection = PgConnection::establish(secrecy::ExposeSecret::expose_secret(&*url.get())).unwrap();
            diesel::sql_query(postgres).load(&mut connection).unwrap()
        }
    };
    rows.into_iter().map(|row| row.text).collect()
}

fn tables(database: &TestDatabase) -> BTreeSet<String> {
    let sqlite = "SELECT name AS text FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'";
    let postgres = "SELECT table_name::text AS text FROM information_schema.tables WHERE table_schema = 'public'";
    texts_of(database, sqlite, postgres).into_iter().collect()
}

/// The columns of a table with their types, in capitals.
fn columns(database: &TestDatabase, table: &str) -> Vec<(String, String)> {
    let sqlite = format!("SELECT name || ' ' || upper(type) AS text FROM pragma_table_info('{table}')");
    let postgres = format!(
        "SELECT column_name || ' ' || upper(data_type) AS text FROM information_schema.columns \
         WHERE table_name = '{table}' AND table_schema = 'public' ORDER BY ordinal_position"
    );
    let found = texts_of(database, &sqlite, &postgres);
    found.iter().map(|text| text.split_once(' ').unwrap()).map(|(name, kind)| (name.into(), kind.into())).collect()
}

/// All rows of all tables that contain a text, by table.
fn rows_with(database: &TestDatabase, part: &str) -> BTreeMap<String, Vec<String>> {
    let dump = |table: &String| {
        let names: Vec<_> = columns(database, table).into_iter().map(|(name, _)| name).collect();
        let parts: Vec<_> = names.iter().map(|name| format!("coalesce(CAST(\"{name}\" AS TEXT), '-')")).collect();
        let query = format!("SELECT {} AS text FROM \"{table}\" ORDER BY 1", parts.join(" || '|' || "));
        let rows = texts_of(database, &query, &query).into_iter().filter(|row| row.contains(part));
        (table.clone(), rows.collect())
    };
    tables(database).iter().map(dump).filter(|(_, rows): &(_, Vec<_>)| !rows.is_empty()).collect()
}

/// Ids of the rows that [`fill`] has made.
struct Filled {
    key: WorkspaceKey,
    session: SessionId,
}

/// Sessions for which rows were made: their numbers are unique.
static FILLED: AtomicU32 = AtomicU32::new(0);

/// A row in every table for a session of a workspace. Each text contains `mark`, and ids are unique.
fn fill(database: &TestDatabase, tenant: &str, workspace: &str, mark: &str) -> Filled {
    let (session, id) = (SessionId(Uuid::now_v7()), format!("{mark}-{}", Uuid::now_v7()));
    let number = FILLED.fetch_add(1, Ordering::Relaxed) + 1;
    let value = |table: &str, column: &str, kind: &str| {
        let text = match (table, column) {
            (_, "installation_id") => tenant.to_owned(),
            (_, "workspace_id") => workspace.to_owned(),
            (_, "session_id") => session.to_string(),
            ("workspaces", "folder_id") => Uuid::new_v4().to_string(),
            ("notifications" | "notification_streams", "stream") => format!("tenant:{tenant}"),
            ("notification_tickets", "scope") => format!(
                "{{\"installationId\":\"{tenant}\",\"workspaceId\":\"{workspace}\",\"sessionId\":\"{session}\"}}"
            ),
            ("erasures", "counts") => "{}".to_owned(),
            _ => format!("{id}-{}", column.replace("_id", "")),
        };
        match kind {
            "BOOLEAN" => "TRUE".to_owned(),
            kind if kind.contains("INT") => number.to_string(),
            _ => format!("'{text}'"),
        }
    };
    // Parents first; a table of the whole service has one row already, or gets one.
    let parents = ["workspaces", "sessions"];
    let of_service = ["identity", "rollback_storm", "schema_compatibility", "__diesel_schema_migrations"];
    let all = tables(database);
    let others = all.iter().map(String::as_str).filter(|table| !parents.contains(table));
    for table in parents.into_iter().chain(others).filter(|table| !of_service.contains(table)) {
        let columns = columns(database, table);
        let names: Vec<_> = columns.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let values: Vec<_> = columns.iter().map(|(name, kind)| value(table, name, kind)).collect();
        let on_conflict = if table == "notification_streams" { "ON CONFLICT DO NOTHING" } else { "" };
        let (names, values) = (names.join(", "), values.join(", "));
        // The erasures and tenants' settings of a second workspace conflict with those of the first.
        let is_of_tenant = ["tenant_protocols", "tenant_settings"].contains(&table);
        let on_conflict = if is_of_tenant { "ON CONFLICT DO NOTHING" } else { on_conflict };
        database.execute(&format!("INSERT INTO \"{table}\" ({names}) VALUES ({values}) {on_conflict}"));
    }
    Filled { key: key(tenant, workspace), session }
}

/// Erases rows until none is left, in chunks of two rows.
async fn erase(store: &Store, target: EraseTarget) -> EraseCounts {
    let erasure = OpenErasure { erasure_id: Uuid::now_v7(), target };
    assert!(store.begin_erasure(erasure.clone(), "ada", at(5)).await.unwrap());
    let mut counts = EraseCounts::default();
    loop {
        let removed = store.erase_rows(&erasure, 2).await.unwrap();
        if removed == EraseCounts::default() {
            break;
        }
        counts += removed;
    }
    if erasure.target.session().is_none() {
        let of_tenant = |row: &crate::store::WorkspaceRow| erasure.target.covers(&row.key, None);
        let page = crate::store::Page { limit: 10, after: None };
        for row in store.list_workspaces(Default::default(), page).await.unwrap().into_iter().filter(of_tenant) {
            store.erase_workspace(erasure.erasure_id, row.key, EraseCounts::default()).await.unwrap();
        }
    }
    let item = store.end_erasure(erasure.erasure_id, at(9)).await.unwrap();
    assert_eq!((item.sessions, item.turns, item.records), (counts.sessions, counts.turns, counts.records));
    assert_eq!((item.actor.as_str(), item.ended_at), ("ada", Some(at(9))));
    counts
}

/// The tables with rows of a mark, apart from those that are kept.
fn left(database: &TestDatabase, mark: &str) -> Vec<String> {
    rows_with(database, mark).into_keys().filter(|table| !KEPT.contains(&table.as_str())).collect()
}

both_databases! {
    async fn every_table_is_tied_to_a_target_or_kept_on_purpose(database: TestDatabase) {
        drop(database.open());
        let listed = tied_tables().chain(REMOVED_OTHERWISE).chain(KEPT).map(str::to_owned);
        let (listed, tables): (BTreeSet<_>, _) = (listed.collect(), tables(&database));
        assert_eq!(listed, tables, "a new table belongs in a list of `store/erasure.rs`");
    }

    async fn erased_tenant_leaves_no_row_and_rows_of_others_are_unchanged(database: TestDatabase) {
        let store = database.open();
        for (tenant, workspace, mark) in [("acme", "web", "canary"), ("acme", "api", "canary"), ("other", "web", "kept")] {
            fill(&database, tenant, workspace, mark);
        }
        let (before, filled) = (rows_with(&database, "kept"), left(&database, "canary"));
        assert_eq!(filled.len(), tied_tables().count() + REMOVED_OTHERWISE.len(), "{filled:?}");
        let counts = erase(&store, EraseTarget::Tenant("acme".parse().unwrap())).await;
        assert_eq!((counts.sessions, counts.turns, counts.transcript_entries, counts.notifications), (2, 2, 2, 2));
        assert_eq!(left(&database, "canary"), [""; 0]);
        assert!(rows_with(&database, "kept") == before);
        let erasure = OpenErasure { erasure_id: Uuid::now_v7(), target: EraseTarget::Tenant("acme".parse().unwrap()) };
        assert!(!store.begin_erasure(erasure, "ada", at(10)).await.unwrap(), "nothing is left to erase");
    }

    async fn erased_workspace_leaves_the_rows_of_other_workspaces_and_of_its_tenant(database: TestDatabase) {
        let store = database.open();
        let web = fill(&database, "acme", "web", "canary");
        fill(&database, "acme", "api", "kept");
        let before = rows_with(&database, "kept");
        erase(&store, EraseTarget::Workspace(web.key)).await;
        let of_tenant = ["capacity_alerts", "github_bindings", "migration_runs", "tenant_protocols", "tenant_settings"];
        assert_eq!(left(&database, "canary"), of_tenant);
        assert!(rows_with(&database, "kept") == before);
    }

    async fn erased_session_leaves_its_workspace_and_the_records_of_routes(database: TestDatabase) {
        let store = database.open();
        let web = fill(&database, "acme", "web", "canary");
        fill(&database, "other", "web", "kept");
        let before = rows_with(&database, "kept");
        erase(&store, EraseTarget::Session(web.key, web.session)).await;
        let of_workspace = [
            "admin_changes", "capacity_alerts", "client_tokens", "github_bindings", "migration_runs", "outcome_buckets", "protocol_migrations", "rollback_events", "tenant_protocols",
            "tenant_settings", "workspace_routes", "workspaces",
        ];
        assert_eq!(left(&database, "canary"), of_workspace);
        assert!(rows_with(&database, "kept") == before);
        assert!(rows_with(&database, &web.session.to_string()).into_keys().all(|table| KEPT.contains(&table.as_str())));
    }

    async fn late_writes_about_an_erased_session_are_dropped(database: TestDatabase) {
        let store = database.open();
        let (ours, others) = (key("acme", "web"), key("acme", "api"));
        let session = SessionId(Uuid::now_v7());
        let target = EraseTarget::Session(ours.clone(), session);
        let claim = store.erasures().begin(OpenErasure { erasure_id: Uuid::now_v7(), target }).unwrap();
        let late = NewConnection { session_id: Some(session), ..handshake(ours.clone(), 1) };
        let other = NewConnection { session_id: Some(SessionId(Uuid::now_v7())), ..handshake(others.clone(), 1) };
        let count = async || store.connections(AuditFilter::default(), Page { limit: 9, after: None }).await.unwrap().len();
        for attempt in [1, 2] {
            store.record_handshake(NewConnection { connection_row_id: Uuid::now_v7(), ..late.clone() }, None).await.unwrap();
            store.record_connection_event(event(&late, ConnectionStatus::Error, 2)).await.unwrap();
            store.record_handshake(NewConnection { connection_row_id: Uuid::now_v7(), ..other.clone() }, None).await.unwrap();
            assert_eq!(count().await, attempt, "those of others are written");
        }
        claim.ended();
        store.record_handshake(late, None).await.unwrap();
        assert_eq!(count().await, 2);
        assert_eq!(rows_with(&database, &session.to_string()), BTreeMap::new());
        store.record_handshake(handshake(ours, 3), None).await.unwrap();
        assert_eq!(count().await, 3, "the workspace is not erased");
    }

    async fn open_erasure_hides_its_target_and_survives_a_restart(database: TestDatabase) {
        let store = database.open();
        let web = fill(&database, "acme", "web", "canary");
        let erasure = OpenErasure { erasure_id: Uuid::now_v7(), target: EraseTarget::Workspace(web.key.clone()) };
        // The rows that were filled in are no erasures of this program.
        database.execute("DELETE FROM erasures");
        assert!(store.begin_erasure(erasure.clone(), "ada", at(5)).await.unwrap());
        drop(store);
        let store = database.open();
        let open = store.open_erasures().await.unwrap();
        assert_eq!(open.iter().map(|it| (it.erasure_id, &it.target)).collect::<Vec<_>>(), [(erasure.erasure_id, &erasure.target)]);
        store.erasures().recover(open);
        assert!(store.session(web.session).await.unwrap().is_none());
        assert!(store.workspace(web.key.clone()).await.unwrap().is_none());
        assert!(store.erasures().begin(erasure).is_none(), "it is in progress");
        let claim = store.erasures().claim().unwrap();
        assert!(store.erasures().claim().is_none(), "a task works on it");
        claim.ended();
        assert!(store.erasures().hides(&web.key, web.session), "a late write of an erased session is dropped");
        assert!(!store.erasures().hides(&web.key, SessionId(Uuid::now_v7())), "a new session is no late one");
        assert_eq!(store.erasures().open(), 0);
    }
}
