//! A separate database for each test, and rows to write to it.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use diesel::{Connection, PgConnection, RunQueryDsl, SqliteConnection, connection::SimpleConnection};
use serde_json::json;
use uuid::Uuid;

use crate::{
    domain::{
        automation::skip::{Automation, WantedMode},
        clock::Timestamp,
        ids::{FolderId, PromptId, SessionId, WorkspaceKey},
        redaction::{Redacted, RedactedJson},
        routing::Route,
        session::{
            lifecycle::{SessionMode, SessionState},
            mcp::McpServers,
        },
        turn::{TurnInitiator, TurnState, transcript::TranscriptEntry},
    },
    store::{
        DatabaseUrl, EndStep, NewSession, NewTurn, NewWorkspace, Store, StoreError, StoreOptions, TranscriptAppend,
        TurnEnd,
    },
    telemetry::Metrics,
};

/// Defines each test twice: `name::sqlite` and `name::postgres`.
macro_rules! both_databases {
    ($(async fn $name:ident($database:ident: TestDatabase) $body:block)*) => {$(
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            async fn test($database: $crate::store::tests::TestDatabase) $body

            #[test]
            fn sqlite() {
                $crate::store::tests::fixture::run($crate::store::tests::TestDatabase::sqlite, test);
            }

            #[test]
            fn postgres() {
                $crate::store::tests::fixture::run($crate::store::tests::TestDatabase::postgres, test);
            }
        }
    )*};
}
pub(super) use both_databases;

/// Maximum duration of a test.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

pub(super) fn run<F: Future<Output = ()>>(make: fn() -> TestDatabase, test: fn(TestDatabase) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let database = make();
    runtime.block_on(async { tokio::time::timeout(DEADLINE, test(database)).await.expect("the test took too long") });
}

enum Kind {
    Sqlite(tempfile::TempDir),
    Postgres { server: String, name: String },
}

/// A database that starts empty and is deleted on drop.
pub(super) struct TestDatabase {
    kind: Kind,
    pub(super) metrics: Metrics,
}

impl TestDatabase {
    pub(super) fn sqlite() -> Self {
        Self { kind: Kind::Sqlite(tempfile::tempdir().unwrap()), metrics: Metrics::for_tests() }
    }

    pub(super) fn postgres() -> Self {
        #[expect(clippy::disallowed_methods, reason = "names the server of the tests and is no setting")]
        let server = std::env::var("LUMILINK_TEST_POSTGRES").unwrap_or_else(|_| {
            panic!(
                "LUMILINK_TEST_POSTGRES must be the URL of a PostgreSQL server, such as \
                 postgres://postgres@127.0.0.1:5432/postgres: run `tests/run`, which starts one"
            )
        });
        let name = format!("lumilink_test_{}", Uuid::new_v4().simple());
        PgConnection::establish(&server).unwrap().batch_execute(&format!("CREATE DATABASE {name}")).unwrap();
        Self { kind: Kind::Postgres { server, name }, metrics: Metrics::for_tests() }
    }

    pub(super) fn url(&self) -> DatabaseUrl {
        match &self.kind {
            Kind::Sqlite(folder) => DatabaseUrl::Sqlite(folder.path().join("test.db")),
            Kind::Postgres { server, name } => {
                let (server, parameters) = server.split_once('?').unwrap_or((server, ""));
                let (server, _) = server.rsplit_once('/').unwrap();
                format!("{server}/{name}?{parameters}").trim_end_matches('?').parse().unwrap()
            }
        }
    }

    pub(super) fn options(&self) -> StoreOptions {
        StoreOptions { url: self.url(), readers: 4, write_queue: 1024, patience: DEADLINE, webhook: None }
    }

    /// Number of failed writes of all stores opened with `metrics`.
    pub(super) fn failures(&self) -> usize {
        self.metrics.value("lumilink_writer_failures_total").unwrap() as usize
    }

    /// Numbers of committed transactions and of rows written in them.
    pub(super) fn commits(&self) -> (usize, usize) {
        let value = |name| self.metrics.value(name).unwrap() as usize;
        (value("lumilink_writer_commits_total"), value("lumilink_writer_rows_total"))
    }

    pub(super) fn open(&self) -> Store {
        Store::open(self.options(), self.metrics.clone()).unwrap()
    }

    /// Number of deadlocks, counted after all stores are dropped; 0 on SQLite, which has a single writer.
    pub(super) fn deadlocks(&self) -> i64 {
        #[derive(diesel::QueryableByName)]
        struct Counted {
            #[diesel(sql_type = diesel::sql_types::BigInt)]
            deadlocks: i64,
        }
        let Kind::Postgres { server, name } = &self.kind else { return 0 };
        let mut other = PgConnection::establish(server).unwrap();
        let end = Instant::now() + DEADLINE;
        // A connection has reported its counts once it is no longer listed.
        let query = format!(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = '{name}' \
             AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = '{name}' AND backend_type = 'client backend')"
        );
        loop {
            if let Some(counted) = diesel::sql_query(&query).load::<Counted>(&mut other).unwrap().pop() {
                return counted.deadlocks;
            }
            assert!(Instant::now() < end, "the connections did not end");
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// Makes the database refuse writes until the guard is dropped.
    pub(super) fn take_down(&self) -> Outage {
        match &self.kind {
            Kind::Sqlite(folder) => {
                let path = folder.path().join("test.db");
                let mut other = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
                other.batch_execute("PRAGMA busy_timeout = 5000; BEGIN IMMEDIATE").unwrap();
                Outage::Sqlite(other)
            }
            Kind::Postgres { server, name } => {
                let mut maintenance = PgConnection::establish(server).unwrap();
                maintenance.batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).unwrap();
                end_connections(&mut maintenance, name);
                Outage::Postgres { maintenance, name: name.clone() }
            }
        }
    }

    /// Executes statements on a connection outside the store.
    pub(super) fn execute(&self, statement: &str) {
        match &self.kind {
            Kind::Sqlite(folder) => {
                let path = folder.path().join("test.db");
                let mut other = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
                other.batch_execute(&format!("PRAGMA busy_timeout = 5000; {statement}")).unwrap();
            }
            Kind::Postgres { server, name } => {
                let (server, _) = server.split_once('?').unwrap_or((server, ""));
                let (server, _) = server.rsplit_once('/').unwrap();
                PgConnection::establish(&format!("{server}/{name}")).unwrap().batch_execute(statement).unwrap();
            }
        }
    }

    /// Reads the column `text` of a query's rows; `PostgreSQL` only.
    pub(super) fn texts(&self, query: &str) -> Vec<String> {
        #[derive(diesel::QueryableByName)]
        struct Row {
            #[diesel(sql_type = diesel::sql_types::Text)]
            text: String,
        }
        let Kind::Postgres { server, name } = &self.kind else { unreachable!("only for PostgreSQL") };
        let (server, _) = server.split_once('?').unwrap_or((server, ""));
        let (server, _) = server.rsplit_once('/').unwrap();
        let mut other = PgConnection::establish(&format!("{server}/{name}")).unwrap();
        let rows: Vec<Row> = diesel::sql_query(query).load(&mut other).unwrap();
        rows.into_iter().map(|row| row.text).collect()
    }

    /// Terminates all connections to this database; does nothing on SQLite.
    pub(super) fn cut_connections(&self) {
        if let Kind::Postgres { server, name } = &self.kind {
            end_connections(&mut PgConnection::establish(server).unwrap(), name);
        }
    }
}

fn end_connections(maintenance: &mut PgConnection, name: &str) {
    maintenance
        .batch_execute(&format!(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'"
        ))
        .unwrap();
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        if let Kind::Postgres { server, name } = &self.kind {
            let dropped = PgConnection::establish(server)
                .map(|mut server| server.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")));
            if !matches!(dropped, Ok(Ok(()))) && !std::thread::panicking() {
                panic!("the database {name} could not be dropped");
            }
        }
    }
}

/// The database refuses writes until this is dropped.
pub(super) enum Outage {
    Sqlite(SqliteConnection),
    Postgres { maintenance: PgConnection, name: String },
}

impl Drop for Outage {
    fn drop(&mut self) {
        match self {
            Self::Sqlite(other) => other.batch_execute("ROLLBACK").unwrap(),
            Self::Postgres { maintenance, name } => {
                maintenance.batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).unwrap();
            }
        }
    }
}

/// A write that keeps the writer busy until it is released.
pub(super) struct Held {
    release: mpsc::SyncSender<()>,
    task: tokio::task::JoinHandle<Result<(), StoreError>>,
}

impl Held {
    pub(super) async fn release(self) {
        self.release.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

pub(super) async fn hold(store: &Store) -> Held {
    let (started, starts) = tokio::sync::oneshot::channel();
    let (release, released) = mpsc::sync_channel(1);
    let mut started = Some(started);
    let store = store.clone();
    let task = tokio::spawn(async move {
        store
            .write(move |_| {
                if let Some(started) = started.take() {
                    started.send(()).unwrap();
                    released.recv_timeout(DEADLINE).unwrap();
                }
                Ok(())
            })
            .await
    });
    starts.await.unwrap();
    Held { release, task }
}

/// Waits until a condition holds; `what` names it in the panic after [`DEADLINE`].
pub(super) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        tokio::task::yield_now().await;
    }
}

pub(super) fn at(us: i64) -> Timestamp {
    Timestamp(1_800_000_000_000_000 + us)
}

pub(super) fn key(tenant: &str, name: &str) -> WorkspaceKey {
    WorkspaceKey { installation_id: tenant.parse().unwrap(), workspace_id: name.parse().unwrap() }
}

pub(super) fn new_workspace(key: &WorkspaceKey, us: i64) -> NewWorkspace {
    NewWorkspace {
        key: key.clone(),
        folder_id: FolderId(Uuid::now_v7()),
        repository: Some("octo/repo".into()),
        branch: None,
        path: None,
        permission_policy: None,
        is_ephemeral: false,
        now: at(us),
    }
}

pub(super) fn new_session(us: i64) -> NewSession {
    let key = key("acme", "web");
    NewSession {
        session_id: SessionId(Uuid::now_v7()),
        workspace: Some(new_workspace(&key, us)),
        key,
        user_id: Some("ada".parse().unwrap()),
        limited_token: None,
        own_folder: None,
        agent: "demo".into(),
        mode: SessionMode::Development,
        enable_git_ops: true,
        state: SessionState::Idle,
        agent_session_id: Some("agent-1".into()),
        mcp_servers: McpServers::none().without_secrets(),
        protocol: Route::Acp,
        protocol_version: Some(1),
        agent_facts: Some(RedactedJson::of(&json!({"agentInfo": {"name": "demo"}}))),
        choices: Default::default(),
        connection: None,
        now: at(us),
    }
}

pub(super) async fn session(store: &Store) -> SessionId {
    let new = new_session(0);
    let id = new.session_id;
    store.create_session(new).await.unwrap();
    id
}

/// An id with the timestamp of a turn that was accepted at `time`.
pub(super) fn prompt_at(time: Timestamp) -> PromptId {
    let random = Uuid::new_v4().into_bytes();
    let ms = u64::try_from(time.0 / 1000).expect("a time after 1970");
    PromptId(uuid::Builder::from_unix_timestamp_millis(ms, random[..10].try_into().expect("ten bytes")).into_uuid())
}

pub(super) fn new_turn(session_id: SessionId, us: i64) -> NewTurn {
    NewTurn {
        initiator: TurnInitiator::User,
        again: false,
        prompt_id: prompt_at(at(us)),
        session_id,
        key: key("acme", "web"),
        idempotency: None,
        preview: Redacted::new("fix it"),
        route: Route::Acp,
        protocol: Route::Acp,
        epoch: 0,
        is_canary: false,
        wanted: WantedMode::Github.into(),
        decision: Automation::Nothing,
        first_entry: TranscriptEntry::with_payload(
            "user_message",
            "fix it",
            RedactedJson::of(&json!([{"type": "text"}])),
        ),
        now: at(us),
    }
}

pub(super) fn turn_end(session_id: SessionId, prompt_id: PromptId, us: i64) -> TurnEnd {
    TurnEnd {
        step: EndStep::Whole,
        run: None,
        prompt_id,
        protocol: Route::Acp,
        known_by: None,
        session_id,
        key: key("acme", "web"),
        state: TurnState::Completed,
        result: Some(RedactedJson::of(&json!({"stopReason": "completed"}))),
        error: None,
        entries: vec![TranscriptEntry::text("agent_message", "done")],
        counts: None,
        settles: 0,
        now: at(us),
    }
}

pub(super) fn append(session_id: SessionId, texts: &[&str]) -> TranscriptAppend {
    TranscriptAppend {
        session_id,
        key: key("acme", "web"),
        prompt_id: None,
        entries: texts.iter().map(|text| TranscriptEntry::text("agent_message", text)).collect(),
        settles: 0,
        now: at(0),
    }
}

pub(super) async fn texts(store: &Store, session_id: SessionId) -> Vec<String> {
    let rows = store.transcript(session_id, 0, 1000).await.unwrap();
    for (index, row) in rows.iter().enumerate() {
        assert_eq!(row.seq, index as u64 + 1, "sequence numbers must have no gaps");
    }
    rows.into_iter().map(|row| row.entry.text.into_string()).collect()
}

/// Ends a turn and waits for the outcome.
pub(super) async fn end(store: &Store, end: TurnEnd) -> Result<(), StoreError> {
    let (done, outcome) = tokio::sync::oneshot::channel();
    store.reserve_end().unwrap().end_turn(end, Box::new(|result| done.send(result).unwrap()));
    outcome.await.unwrap()
}
