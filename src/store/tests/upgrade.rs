//! Schema upgrades: a fresh database, one from before the baseline schema, and one of a newer version.

use std::{collections::BTreeMap, path::Path};

use diesel::{QueryableByName, RunQueryDsl, SqliteConnection, connection::Connection, sql_types::BigInt};

use super::fixture::*;
use crate::store::{Store, StoreError, engine::connection::DatabaseUrl};

/// The versions that a development database had before the baseline schema.
const BEFORE_BASELINE: [&str; 12] = [
    "20261123000000",
    "20261123010000",
    "20261123020000",
    "20261125000000",
    "20261125010000",
    "20261125020000",
    "20261125030000",
    "20261125040000",
    "20261125050000",
    "20261125060000",
    "20261125070000",
    "20261125080000",
];

/// A minimal database with these versions, in WAL mode on SQLite as this program leaves it.
fn make(database: &TestDatabase, versions: &[&str]) {
    if matches!(database.url(), DatabaseUrl::Sqlite(_)) {
        database.execute("PRAGMA journal_mode = WAL");
    }
    database.execute(
        "CREATE TABLE __diesel_schema_migrations (version VARCHAR(50) PRIMARY KEY NOT NULL, \
         run_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP); \
         CREATE TABLE sessions (session_id TEXT NOT NULL PRIMARY KEY, state TEXT NOT NULL CHECK (state IN ('idle'))); \
         INSERT INTO sessions VALUES ('s', 'idle')",
    );
    for version in versions {
        database.execute(&format!("INSERT INTO __diesel_schema_migrations (version) VALUES ('{version}')"));
    }
}

/// Everything that a refused upgrade must leave alone: the bytes and times of SQLite's files, or `PostgreSQL`'s tables
/// and versions.
fn state(database: &TestDatabase) -> BTreeMap<String, (String, Vec<u8>)> {
    match database.url() {
        DatabaseUrl::Sqlite(path) => std::fs::read_dir(path.parent().unwrap())
            .unwrap()
            .map(|file| {
                let file = file.unwrap();
                let changed = file.metadata().unwrap().modified().unwrap();
                let content = std::fs::read(file.path()).unwrap();
                (file.file_name().into_string().unwrap(), (format!("{changed:?}"), content))
            })
            .collect(),
        DatabaseUrl::Postgres(_) => {
            let found = database.texts(
                "SELECT table_name || ' ' || column_name AS text FROM information_schema.columns \
                 WHERE table_schema = 'public' UNION ALL \
                 SELECT version || ' ' || run_on FROM __diesel_schema_migrations ORDER BY 1",
            );
            BTreeMap::from([("tables".to_owned(), (found.join("\n"), Vec::new()))])
        }
    }
}

fn refusal(database: &TestDatabase) -> String {
    let before = state(database);
    let opened = Store::open(database.options(), database.metrics.clone());
    let Err(StoreError::OtherSchema(from_open)) = opened else { panic!("not refused: {opened:?}") };
    assert_eq!(Store::upgrade_schema(&database.url()), Err(StoreError::OtherSchema(from_open.clone())));
    assert!(state(database) == before, "a refused database is left unchanged");
    assert!(from_open.contains(&database.url().name()), "{from_open}");
    from_open
}

both_databases! {
    async fn database_from_before_the_baseline_is_refused_and_left_unchanged(database: TestDatabase) {
        make(&database, &BEFORE_BASELINE);
        let sentence = refusal(&database);
        assert!(sentence.contains("from before the baseline schema") && sentence.contains("a new database"), "{sentence}");
    }

    async fn database_of_a_newer_version_is_refused_and_left_unchanged(database: TestDatabase) {
        Store::upgrade_schema(&database.url()).unwrap();
        database.execute("INSERT INTO __diesel_schema_migrations (version) VALUES ('29991231000000')");
        database.execute("UPDATE schema_compatibility SET oldest = '29991231000000'");
        let sentence = refusal(&database);
        assert!(sentence.contains("a newer version of lumilink, to schema 29991231000000"), "{sentence}");
    }

    async fn database_of_a_newer_version_that_only_added_is_used(database: TestDatabase) {
        Store::upgrade_schema(&database.url()).unwrap();
        database.execute("INSERT INTO __diesel_schema_migrations (version) VALUES ('29991231000000')");
        database.execute("ALTER TABLE sessions ADD COLUMN of_the_newer_version TEXT");
        assert_eq!(Store::upgrade_schema(&database.url()).unwrap(), [""; 0]);
        let store = database.open();
        store.create_session(new_session(1)).await.unwrap();
        database.execute("DROP TABLE schema_compatibility");
        drop(store);
        let opened = Store::open(database.options(), database.metrics.clone());
        assert!(matches!(opened, Err(StoreError::OtherSchema(_))), "{opened:?}");
    }

    async fn upgrade_runs_each_step_once(database: TestDatabase) {
        assert_eq!(Store::upgrade_schema(&database.url()).unwrap(), ["2026-12-01-013000_baseline"]);
        assert_eq!(Store::upgrade_schema(&database.url()).unwrap(), [""; 0]);
    }
}

/// A value of a SQLite pragma.
fn pragma(path: &Path, name: &str) -> i64 {
    #[derive(QueryableByName)]
    struct Value {
        #[diesel(sql_type = BigInt)]
        value: i64,
    }
    let mut connection = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    let query = format!("SELECT {name} AS value FROM pragma_{name}");
    let value: Value = diesel::sql_query(query).get_result(&mut connection).unwrap();
    value.value
}

#[test]
fn refused_upgrade_keeps_the_wal_of_a_killed_process() {
    let database = TestDatabase::sqlite();
    let DatabaseUrl::Sqlite(path) = database.url() else { unreachable!() };
    make(&database, &[]);
    // As a kill leaves them: the versions are in the log alone, and nothing has moved them into the database.
    let mut held = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    for version in BEFORE_BASELINE {
        let insert = format!("INSERT INTO __diesel_schema_migrations (version) VALUES ('{version}')");
        diesel::sql_query(insert).execute(&mut held).unwrap();
    }
    let killed = TestDatabase::sqlite();
    let DatabaseUrl::Sqlite(copy) = killed.url() else { unreachable!() };
    for suffix in ["", "-wal"] {
        std::fs::copy(format!("{}{suffix}", path.display()), format!("{}{suffix}", copy.display())).unwrap();
    }
    let bytes = || (std::fs::read(&copy).unwrap(), std::fs::read(format!("{}-wal", copy.display())).unwrap());
    let before = bytes();
    let refused = Store::upgrade_schema(&killed.url());
    assert!(matches!(refused, Err(StoreError::OtherSchema(_))), "{refused:?}");
    assert!(bytes() == before, "the log and the database are left unchanged");
}

#[test]
fn retention_shrinks_a_sqlite_file() {
    run(TestDatabase::sqlite, |database| async move {
        let DatabaseUrl::Sqlite(path) = database.url() else { unreachable!() };
        let store = database.open();
        assert_eq!(pragma(&path, "auto_vacuum"), 2, "incremental");
        let row = |n: i64| {
            format!(
                "INSERT INTO automation_runs (run_id, installation_id, workspace_id, session_id, status, mode, \
                 duration_ms, attempts, logs, created_us) VALUES ('{n}', 'acme', 'web', 's', 'success', 'github', 1, 1, \
                 '{}', {});",
                "x".repeat(2000),
                at(n).0
            )
        };
        database.execute(&(0..500).map(row).collect::<String>());
        let pages = pragma(&path, "page_count");
        assert_eq!(store.prune(crate::store::Retained::AutomationRuns, at(1000), 1000).await, Ok(500));
        let left = pragma(&path, "page_count");
        assert!(pages - left > 100, "from {pages} to {left} pages");
    });
}
