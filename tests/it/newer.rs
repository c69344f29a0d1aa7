//! Rows of a newer version: words that this version does not know.

use diesel::{Connection, PgConnection, SqliteConnection, connection::SimpleConnection};

use crate::harness::{
    Program, Session, json,
    program::{Builder, PostgresDatabase},
};

/// Every column with a closed list of words, and JSON that contains some.
const COLUMNS: [(&str, &str); 24] = [
    ("sessions", "mode"),
    ("sessions", "state"),
    ("sessions", "protocol"),
    ("prompts", "state"),
    ("prompts", "route"),
    ("prompts", "protocol"),
    ("prompts", "automation"),
    ("transcript_entries", "event_type"),
    ("workspaces", "permission_policy"),
    ("workspace_routes", "route"),
    ("workspace_routes", "default_protocol"),
    ("workspace_routes", "stage"),
    ("protocol_migrations", "from_protocol"),
    ("protocol_migrations", "to_protocol"),
    ("protocol_migrations", "initiated_by"),
    ("protocol_migrations", "trigger"),
    ("rollback_events", "kind"),
    ("rollback_events", "trigger"),
    ("rollback_events", "reason_code"),
    ("rollback_events", "follow_up"),
    ("outcome_buckets", "route"),
    ("acp_connections", "protocol"),
    ("acp_connections", "outcome"),
    ("connection_events", "status"),
];

const ROUTING: &str = r#"{"epoch":2,"default":"acp","breaker":{"stage":"shadow"},"attempt":0}"#;

/// Writes the unknown words, while no program runs.
fn of_a_newer_version() -> String {
    let words = COLUMNS.map(|(table, column)| format!("UPDATE {table} SET {column} = 'ofNewer';"));
    let more = [
        format!("UPDATE workspace_routes SET routing = '{ROUTING}';"),
        "UPDATE protocol_migrations SET status = 'ofNewer';".into(),
        "UPDATE capacity_alerts SET level = 'ofNewer', kind = 'ofNewer';".into(),
        "UPDATE notifications SET severity = 'ofNewer', trigger = 'ofNewer';".into(),
        "UPDATE migration_runs SET status = 'ofNewer', run = '{}';".into(),
        "UPDATE tenant_protocols SET default_protocol = 'ofNewer';".into(),
        // A turn that the newer version left open.
        "UPDATE prompts SET ended_us = NULL, result = NULL WHERE preview LIKE 'echo open%';".into(),
    ];
    words.into_iter().chain(more).collect()
}

/// Leaves a row in every table: turns, flips, a migration, notifications, and a tenant's settings.
fn fill(program: &Program) -> Session {
    let session = program.api.open("ws");
    session.completes("echo first");
    session.completes("echo open");
    session.prompt("crash").problem(502, "agent_crashed");
    for verb in ["rollback", "restore"] {
        let why = json!({"actor": "ada", "reason": "drill"});
        program.api.post(&format!("/acp/workspaces/ws/{verb}"), why).expect(200);
    }
    let tenant = json!({"allowMigration": true, "actor": "ada", "reason": "drill"});
    program.api.call("PUT", "/acp/tenants/tenant-1/protocol").json(&tenant).send().expect(200);
    let run = json!({"installationId": "tenant-1", "target": "http", "workspaces": ["ws"], "actor": "ada",
                     "reason": "drill", "mode": "at", "at": "2999-01-01T00:00:00Z"});
    program.api.post("/acp/migrations", run).expect(202);
    session
}

fn rows_of_a_newer_version(builder: impl Fn() -> Builder, execute: impl FnOnce(&Program, &str)) {
    let mut program = builder().start();
    program.api.tolerate_word("ofNewer");
    let session = fill(&program);
    assert_eq!(program.terminate(crate::harness::DEADLINE), Some(0));
    execute(&program, &of_a_newer_version());
    program.start_supervisor_again();
    program.expect_error("a notification cannot be read");

    let other = program.api.open("other");
    assert_eq!(other.says("echo other"), "other");
    for path in [
        "/acp/sessions?installationId=tenant-1",
        "/acp/workspaces?installationId=tenant-1",
        "/acp/workspaces/ws/protocol?installationId=tenant-1",
        "/acp/tenants/tenant-1/protocol",
        "/acp/migrations",
        "/acp/notifications?installationId=tenant-1",
        "/acp/audit/migrations",
        "/acp/audit/rollback-events",
        "/acp/audit/connections",
        "/acp/audit/capacity-alerts",
        "/acp/audit/automation-runs",
        "/acp/audit/notifications",
        "/acp/audit/summary",
        "/acp/health",
    ] {
        program.api.get(path).expect(200);
    }
    assert_eq!(session.state()["state"], "interrupted", "an unknown state is loadable");
    assert!(session.transcript().len() >= 6);
    session.get("/explain").expect(200);
    // The session itself works again after a load.
    session.post("load", json!({})).expect(200);
    assert_eq!(session.says("echo again"), "again");
}

#[test]
fn unknown_words_of_a_newer_version_stop_nothing_on_sqlite() {
    rows_of_a_newer_version(Program::builder, |program, statements| {
        let path = program.folder.path().join("data/lumilink.db");
        let mut database = SqliteConnection::establish(path.to_str().expect("UTF-8")).expect("the database");
        database.batch_execute(statements).expect("no constraint forbids a new word");
    });
}

#[test]
fn unknown_words_of_a_newer_version_stop_nothing_on_postgresql() {
    let database = PostgresDatabase::create();
    let builder = || Program::builder().set("database.url", database.url());
    rows_of_a_newer_version(builder, |_, statements| {
        let mut connection = PgConnection::establish(&database.url()).expect("the database");
        connection.batch_execute(statements).expect("no constraint forbids a new word");
    });
}
