//! Migrations of fleets: workspaces move to another default route in steps that do not affect running turns.

use std::collections::BTreeMap;

use diesel::{Connection, QueryableByName, RunQueryDsl, SqliteConnection, connection::SimpleConnection, sql_types};

use crate::harness::{Answer, DEADLINE, Program, Session, Value, eventually, json, program::Builder, wait_for};

const TENANT: &str = "tenant-1";

/// Opens sessions in `count` workspaces whose default is HTTP.
fn fleet(program: &Program, count: usize) -> Vec<Session> {
    (0..count).map(|n| on_http(program, &format!("ws-{n}"))).collect()
}

fn on_http(program: &Program, workspace: &str) -> Session {
    let session = program.api.open(workspace);
    put(program, workspace, json!({"defaultProtocol": "http"}));
    session
}

fn put(program: &Program, workspace: &str, mut body: Value) {
    body["actor"] = json!("admin");
    body["reason"] = json!("the start");
    program.api.call("PUT", &format!("/acp/workspaces/{workspace}/protocol")).json(&body).send().expect(200);
}

fn route(program: &Program, workspace: &str) -> Value {
    program.api.get(&format!("/acp/workspaces/{workspace}/protocol")).expect(200)
}

/// Counts the workspaces of the fleet with this default.
fn defaults(program: &Program, count: usize, protocol: &str) -> usize {
    (0..count).filter(|n| route(program, &format!("ws-{n}"))["defaultProtocol"] == protocol).count()
}

fn begin(program: &Program, more: Value) -> Answer {
    let mut body = json!({"installationId": TENANT, "target": "acp", "actor": "ann", "reason": "to ACP"});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    program.api.post("/acp/migrations", body)
}

fn begun(program: &Program, more: Value) -> String {
    let answer = begin(program, more);
    let location = answer.header("location");
    let body = answer.expect(202);
    let id = body["migrationId"].as_str().expect("an id").to_owned();
    assert_eq!(location, format!("/acp/migrations/{id}"));
    id
}

fn shown(program: &Program, id: &str) -> Value {
    program.api.get(&format!("/acp/migrations/{id}")).expect(200)
}

fn change(program: &Program, id: &str, verb: &str) -> Answer {
    let body = json!({"actor": "bob", "reason": "because", "initiatedBy": "user"});
    program.api.post(&format!("/acp/migrations/{id}/{verb}"), body)
}

fn becomes(program: &Program, id: &str, status: &str) -> Value {
    let mut last = Value::Null;
    wait_for(DEADLINE, &format!("the migration is {status}"), || {
        last = shown(program, id);
        assert!(last["status"] == status || !is_over(&last), "{last}");
        (last["status"] == status).then(|| last.clone())
    })
}

fn is_over(run: &Value) -> bool {
    ["succeeded", "rolledBack", "cancelled", "failed"].iter().any(|status| run["status"] == *status)
}

/// Returns the state of each workspace, with the reason if it was skipped.
fn states(run: &Value) -> BTreeMap<String, String> {
    let entries = run["workspaces"].as_array().expect("entries");
    let state = |entry: &Value| match entry["reason"].as_str() {
        Some(reason) => format!("{} {reason}", entry["state"].as_str().unwrap()),
        None => entry["state"].as_str().unwrap().to_owned(),
    };
    entries.iter().map(|entry| (entry["workspaceId"].as_str().unwrap().to_owned(), state(entry))).collect()
}

fn all_are(run: &Value, state: &str) {
    assert!(states(run).values().all(|it| it == state), "all {state}: {run}");
}

#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
struct Row {
    #[diesel(sql_type = sql_types::Text)]
    workspace_id: String,
    #[diesel(sql_type = sql_types::Text)]
    to_protocol: String,
    #[diesel(sql_type = sql_types::Nullable<sql_types::BigInt>)]
    epoch: Option<i64>,
    #[diesel(sql_type = sql_types::Text)]
    actor: String,
    #[diesel(sql_type = sql_types::Text)]
    trigger: String,
    #[diesel(sql_type = sql_types::Text)]
    status: String,
    #[diesel(sql_type = sql_types::Text)]
    reason: String,
}

/// Returns the rows of a run, oldest first.
fn rows(program: &Program, id: &str) -> Vec<Row> {
    let path = program.folder.path().join("data/lumilink.db");
    let mut connection = SqliteConnection::establish(path.to_str().expect("UTF-8")).expect("the database is there");
    connection.batch_execute("PRAGMA busy_timeout = 5000").expect("a pragma");
    let query = "SELECT workspace_id, to_protocol, epoch, actor, \"trigger\", status, reason \
                 FROM protocol_migrations WHERE run_id = ? ORDER BY started_us, migration_id";
    diesel::sql_query(query).bind::<sql_types::Text, _>(id).load(&mut connection).expect("the rows")
}

fn counted(program: &Program, outcome: &str) -> f64 {
    program.metrics().sum("lumilink_migrated_workspaces_total", &[("outcome", outcome)])
}

#[test]
fn fr_003_running_turn_ends_over_http_and_the_next_keeps_the_conversation() {
    let program = Program::start();
    let sessions = fleet(&program, 3);
    let first = &sessions[0];
    assert_eq!(first.completes("echo the word is maple")["meta"]["protocol"], "http");
    let turn = first.starts("echo begun ; sleep 3");
    eventually("the turn runs", || first.state()["state"] == "running");
    let id = begun(&program, json!({"batchSize": 1}));
    let run = becomes(&program, &id, "succeeded");
    all_are(&run, "moved");
    assert_eq!(run["progress"]["moved"], 3, "{run}");
    assert!(run["startedAt"].is_string() && run["completedAt"].is_string(), "{run}");
    assert_eq!(
        program.api.get(&format!("/acp/prompt/{turn}")).expect(200)["state"],
        "running",
        "the turn still runs"
    );
    let ended = first.ends(&turn);
    assert_eq!((&ended["state"], &ended["result"]["meta"]["protocol"]), (&json!("completed"), &json!("http")));
    let next = first.completes("context");
    assert_eq!(next["meta"]["protocol"], "acp", "{next}");
    assert!(next["meta"]["message"].as_str().unwrap().contains("maple"), "the conversation is known: {next}");
    assert_eq!(sessions[1].completes("echo on")["meta"]["protocol"], "acp");

    let rows = rows(&program, &id);
    assert_eq!(rows.len(), 3, "one row for each workspace: {rows:?}");
    for row in &rows {
        let fields = (row.trigger.as_str(), row.status.as_str(), row.to_protocol.as_str(), row.epoch);
        assert_eq!(fields, ("migration", "succeeded", "acp", Some(2)), "{row:?}");
        assert_eq!((row.actor.as_str(), row.reason.as_str()), ("server", "to ACP"));
    }
    assert_eq!(counted(&program, "moved"), 3.0);
    let listed = program.api.get("/acp/migrations?installationId=tenant-1&status=succeeded").expect(200);
    assert_eq!(listed["items"][0]["migrationId"], id.as_str(), "{listed}");
    assert!(listed["items"][0].get("workspaces").is_none(), "{listed}");
}

/// Configures an agent whose handshake takes at least 0.4 s, so that each step takes time.
fn slow() -> Builder {
    let script = format!("sleep 0.4; exec {} demo-agent", crate::harness::lumilink());
    Program::builder().set("agent.command", json!(["sh", "-c", script]))
}

#[test]
fn fr_003_pause_moves_nothing_resume_continues_and_rollback_reverts_the_moves() {
    let program = slow().start();
    fleet(&program, 4);
    put(&program, "ws-3", json!({"defaultProtocol": "acp"}));
    let id = begun(&program, json!({"workspaces": ["ws-0", "ws-3", "ws-1", "ws-2"], "batchSize": 1}));
    wait_for(DEADLINE, "the first workspace is moved", || {
        (shown(&program, &id)["progress"]["moved"] == 1).then_some(())
    });
    let paused = change(&program, &id, "pause").expect(200);
    assert_eq!((&paused["status"], &paused["actorNote"]), (&json!("paused"), &json!("bob")), "{paused}");
    eventually("the moves in progress have ended", || shown(&program, &id)["progress"]["moving"] == 0);
    let quiet = shown(&program, &id);
    assert_ne!(quiet["progress"]["untouched"], 0, "{quiet}");
    let on_acp = defaults(&program, 4, "acp");
    // Another migration runs to its end in the meantime.
    on_http(&program, "other");
    becomes(&program, &begun(&program, json!({"workspaces": ["other"]})), "succeeded");
    assert_eq!(defaults(&program, 4, "acp"), on_acp, "the paused migration moves nothing");
    assert_eq!(shown(&program, &id)["progress"], quiet["progress"]);
    change(&program, &id, "pause").problem(409, "migration_state");

    change(&program, &id, "resume").expect(200);
    let run = becomes(&program, &id, "succeeded");
    assert_eq!((&run["progress"]["moved"], &run["progress"]["skipped"]), (&json!(3), &json!(1)), "{run}");
    assert_eq!(states(&run)["ws-3"], "skipped alreadyThere");
    change(&program, &id, "resume").problem(409, "migration_state");
    change(&program, &id, "cancel").problem(409, "migration_state");

    change(&program, &id, "rollback").expect(200);
    let back = wait_for(DEADLINE, "the migration is rolled back", || {
        let run = shown(&program, &id);
        (run["status"] == "rolledBack").then_some(run)
    });
    assert_eq!(back["progress"]["movedBack"], 3, "{back}");
    assert_eq!(defaults(&program, 4, "http"), 3);
    assert_eq!(route(&program, "ws-3")["defaultProtocol"], "acp", "a skipped workspace is not moved back");
    let rows = rows(&program, &id);
    let of = |to: &str, status: &str| rows.iter().filter(|it| it.to_protocol == to && it.status == status).count();
    let counts = (of("acp", "succeeded"), of("http", "succeeded"), of("acp", "cancelled"));
    assert_eq!(counts, (3, 3, 1), "{rows:?}");
    let skip = rows.iter().find(|row| row.status == "cancelled").unwrap();
    assert_eq!((skip.reason.as_str(), skip.epoch), ("skipped: alreadyThere", None));
    assert_eq!((counted(&program, "movedBack"), counted(&program, "skipped")), (3.0, 1.0));
}

#[test]
fn fr_003_cancelled_migration_keeps_the_completed_moves() {
    let program = slow().start();
    fleet(&program, 3);
    let id = begun(&program, json!({"batchSize": 1}));
    wait_for(DEADLINE, "the first workspace is moved", || {
        (shown(&program, &id)["progress"]["moved"] == 1).then_some(())
    });
    change(&program, &id, "cancel").expect(200);
    eventually("the moves in progress have ended", || shown(&program, &id)["progress"]["moving"] == 0);
    let run = shown(&program, &id);
    assert_eq!(run["status"], "cancelled", "{run}");
    assert!(run["progress"]["untouched"].as_u64().unwrap() >= 1, "{run}");
    assert_eq!(defaults(&program, 3, "acp") as u64, run["progress"]["moved"].as_u64().unwrap());
}

#[test]
fn fr_003_scheduled_migration_begins_at_its_time_and_not_before() {
    let program = Program::start();
    fleet(&program, 1);
    let clock = time::OffsetDateTime::now_utc() + std::time::Duration::from_secs(2);
    let at = clock.format(&time::format_description::well_known::Rfc3339).unwrap();
    let id = begun(&program, json!({"mode": "at", "at": at}));
    let planned = shown(&program, &id);
    assert_eq!(planned["status"], "scheduled", "{planned}");
    assert_eq!(defaults(&program, 1, "http"), 1);
    let run = becomes(&program, &id, "succeeded");
    let text = |member: &str| run[member].as_str().unwrap().to_owned();
    assert!(text("startedAt") >= text("at"), "{run}");
    let far = begun(&program, json!({"mode": "at", "at": "2999-01-01T00:00:00Z", "workspaces": ["ws-0"]}));
    change(&program, &far, "rollback").problem(409, "migration_state");
    assert_eq!(change(&program, &far, "cancel").expect(200)["status"], "cancelled");
}

#[test]
fn fr_003_automatic_migration_moves_opted_in_workspaces_while_acp_is_healthy() {
    let program = Program::builder().set("migration.auto_look_s", 1).start();
    fleet(&program, 2);
    // One of three workspaces in use is rolled back: ACP is unhealthy.
    program.api.open("ill");
    let why = json!({"actor": "a", "reason": "drill"});
    program.api.post("/acp/workspaces/ill/rollback", why.clone()).expect(200);
    put(&program, "ws-0", json!({"autoRollout": true}));
    let requested = begun(&program, json!({"mode": "automatic", "workspaces": ["ws-0", "ws-1"]}));
    eventually("the migration has begun and waits", || shown(&program, &requested)["status"] == "inProgress");
    on_http(&program, "other");
    becomes(&program, &begun(&program, json!({"workspaces": ["other"]})), "succeeded");
    assert_eq!(
        shown(&program, &requested)["progress"]["untouched"],
        2,
        "an immediate migration does not wait for ACP, an automatic one does"
    );
    program.api.post("/acp/workspaces/ill/restore", why).expect(200);
    let run = becomes(&program, &requested, "succeeded");
    assert_eq!(states(&run)["ws-0"], "moved", "{run}");
    assert_eq!(states(&run)["ws-1"], "skipped autoRolloutOff", "{run}");

    put(&program, "ws-1", json!({"autoRollout": true}));
    eventually("the workspace is moved without a request", || route(&program, "ws-1")["route"] == "acp");
    let newest = &program.api.get("/acp/migrations?limit=1").expect(200)["items"][0];
    let initiator = (&newest["mode"], &newest["initiatedBy"], &newest["actor"]);
    assert_eq!(initiator, (&json!("automatic"), &json!("system"), &json!("lumilink")), "{newest}");
    becomes(&program, newest["migrationId"].as_str().unwrap(), "succeeded");
}

#[test]
fn fr_003_fleet_with_an_http_only_runtime_is_skipped() {
    let program = Program::builder().set("runtime.acp", false).separate_runtime("runtime-token-0123456789").start();
    let sessions = fleet(&program, 2);
    let id = begun(&program, json!({}));
    all_are(&becomes(&program, &id, "succeeded"), "skipped httpOnly");
    assert_eq!(defaults(&program, 2, "http"), 2);
    assert_eq!(sessions[0].completes("echo on")["meta"]["protocol"], "http");
    assert!(rows(&program, &id).iter().all(|row| row.status == "cancelled" && row.reason == "skipped: httpOnly"));
}

#[test]
fn fr_003_excluded_workspaces_are_skipped_with_the_reason() {
    let program = Program::start();
    fleet(&program, 3);
    put(&program, "ws-0", json!({"migrationEnabled": false}));
    put(&program, "ws-1", json!({"pin": {"protocol": "http"}}));
    let id = begun(&program, json!({"workspaces": ["ws-0", "ws-1", "ws-2", "nowhere"]}));
    let run = becomes(&program, &id, "succeeded");
    let expected = [
        ("nowhere", "skipped unknownWorkspace"),
        ("ws-0", "skipped migrationDisabled"),
        ("ws-1", "skipped pinned"),
        ("ws-2", "moved"),
    ];
    let expected: BTreeMap<_, _> = expected.map(|(name, state)| (name.to_owned(), state.to_owned())).into();
    assert_eq!(states(&run), expected);
}

#[test]
fn fr_003_failed_handshakes_stay_on_http_and_too_many_fail_the_migration() {
    let folder = crate::harness::program::Folder::new();
    let works = folder.path().join("works");
    std::fs::write(&works, "").unwrap();
    let script = format!("test -e {} && exec {} demo-agent", works.display(), crate::harness::lumilink());
    let program = Program::builder().folder(&folder).set("agent.command", json!(["sh", "-c", script])).start();
    fleet(&program, 3);
    std::fs::remove_file(&works).unwrap();
    let id = begun(&program, json!({"batchSize": 1, "maxFailures": 1}));
    let run = becomes(&program, &id, "failed");
    let progress = &run["progress"];
    assert_eq!((&progress["failed"], &progress["untouched"]), (&json!(2), &json!(1)), "{run}");
    let detail = run["workspaces"].as_array().unwrap().iter().find_map(|entry| entry["detail"].as_str());
    assert!(detail.is_some_and(|detail| detail.len() > 10), "the detail gives the cause: {run}");
    assert_eq!(defaults(&program, 3, "http"), 3);
    let rows = rows(&program, &id);
    assert!(rows.len() == 2 && rows.iter().all(|row| row.status == "failed" && row.epoch.is_none()), "{rows:?}");
    assert_eq!(counted(&program, "failed"), 2.0);
}

#[test]
fn fr_003_migration_survives_a_kill_with_one_row_for_each_epoch() {
    const COUNT: usize = 6;
    for moved in 0..3 {
        let mut program = slow().start();
        fleet(&program, COUNT);
        let id = begun(&program, json!({"batchSize": 3}));
        wait_for(DEADLINE, "part of the fleet is moved", || {
            (defaults(&program, COUNT, "acp") >= moved * 2).then_some(())
        });
        program.kill_supervisor();
        program.start_supervisor_again();
        let run = becomes(&program, &id, "succeeded");
        all_are(&run, "moved");
        let mut rows = rows(&program, &id);
        rows.sort_by(|a, b| a.workspace_id.cmp(&b.workspace_id));
        let found: Vec<_> =
            rows.iter().map(|row| (row.workspace_id.as_str(), row.epoch, row.status.as_str())).collect();
        let names: Vec<_> = (0..COUNT).map(|n| format!("ws-{n}")).collect();
        let expected: Vec<_> = names.iter().map(|name| (name.as_str(), Some(2), "succeeded")).collect();
        assert_eq!(found, expected);
        for name in &names {
            assert_eq!(route(&program, name)["epoch"], 2, "{name}");
        }
    }
}

#[test]
fn fr_003_invalid_plan_is_rejected_and_unknown_migration_is_not_found() {
    let program = Program::start();
    begin(&program, json!({})).problem(400, "invalid_request");
    fleet(&program, 1);
    let many: Vec<_> = (0..5001).map(|n| format!("w-{n}")).collect();
    for (body, why) in [
        (json!({"target": "smoke"}), "an unknown route"),
        (json!({"mode": "later"}), "an unknown mode"),
        (json!({"mode": "at"}), "a missing time"),
        (json!({"at": "2999-01-01T00:00:00Z"}), "a time without its mode"),
        (json!({"mode": "at", "at": "tomorrow"}), "a malformed time"),
        (json!({"batchSize": 0}), "an empty step"),
        (json!({"batchSize": 1001}), "too large a step"),
        (json!({"maxFailures": -1}), "a negative limit"),
        (json!({"workspaces": []}), "an empty list"),
        (json!({"workspaces": ["ws-0", "ws-0"]}), "a duplicate"),
        (json!({"workspaces": many}), "too many"),
        (json!({"workspaces": ["../x"]}), "a malformed name"),
        (json!({"actor": ""}), "an empty actor"),
        (json!({"reason": "a\nb"}), "a line break"),
        (json!({"initiatedBy": "system"}), "a reserved initiator"),
        (json!({"unknown": 1}), "an unknown member"),
    ] {
        let answer = begin(&program, body);
        assert_eq!(answer.status, 400, "{why}: {}", answer.text);
    }
    for id in ["nothing", "01a20625-f96e-7117-bc62-6a98f49309e7"] {
        program.api.get(&format!("/acp/migrations/{id}")).problem(404, "not_found");
        change(&program, id, "pause").problem(404, "not_found");
    }
    program.api.get("/acp/migrations?status=great").problem(400, "invalid_request");
    program.api.get("/acp/migrations?cursor=x").problem(400, "invalid_request");
    assert_eq!(program.api.get("/acp/migrations").expect(200)["items"], json!([]), "no migration was begun");
}

#[test]
fn fr_003_fleet_migrates_on_postgresql() {
    let program = Program::builder().postgres().start();
    let sessions = fleet(&program, 4);
    let id = begun(&program, json!({"batchSize": 2}));
    all_are(&becomes(&program, &id, "succeeded"), "moved");
    assert_eq!(sessions[3].completes("echo on")["meta"]["protocol"], "acp");
    change(&program, &id, "rollback").expect(200);
    let back = wait_for(DEADLINE, "the migration is rolled back", || {
        let run = shown(&program, &id);
        (run["status"] == "rolledBack").then_some(run)
    });
    all_are(&back, "movedBack");
}

#[test]
fn fr_003_supervisor_that_takes_over_makes_each_remaining_step_once() {
    let database = crate::harness::program::PostgresDatabase::create();
    let script = format!("sleep 0.2; exec {} demo-agent", crate::harness::lumilink());
    let builder = || {
        let builder = Program::builder().set("database.url", database.url());
        builder.set("agent.command", json!(["sh", "-c", script]))
    };
    const TOKEN: &str = "runtime-token-0123456789";
    let mut one = builder().separate_runtime(TOKEN).start();
    // The second supervisor waits for the database from now on.
    let two = builder().set("runtime.url", one.runtime_url()).set("runtime.token", TOKEN);
    let two = std::thread::spawn(move || two.start());
    fleet(&one, 4);
    let ids: Vec<_> = ["ws-0", "ws-1", "ws-2", "ws-3"].chunks(2).map(|names| json!({"workspaces": names})).collect();
    let ids = [begun(&one, ids[0].clone()), begun(&one, ids[1].clone())];
    eventually("some steps are made", || ids.iter().any(|id| shown(&one, id)["progress"]["moved"] != 0));
    one.kill_supervisor();
    let two = two.join().expect("the second supervisor takes over");
    for id in &ids {
        let run = becomes(&two, id, "succeeded");
        all_are(&run, "moved");
        assert_eq!(run["progress"]["moved"], 2);
    }
    let flips = two.api.get("/acp/audit/migrations?installationId=tenant-1&limit=200").expect(200);
    let flips = flips["items"].as_array().expect("a list").iter();
    let moves = flips.filter(|flip| ids.iter().any(|id| flip["runId"] == id.as_str())).count();
    assert_eq!(moves, 4, "each workspace was moved once");
    drop(two);
    one.start_supervisor_again();
}

#[test]
fn fr_003_migration_commands_control_a_migration() {
    let program = Program::start();
    fleet(&program, 2);
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(crate::harness::lumilink())
            .arg("migration")
            .args(arguments)
            .envs(crate::harness::tokens::variables(&program.api.base()))
            .output()
            .expect("the program runs");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let initiator = ["--actor", "ann", "--reason", "to ACP"];
    let begin = ["start", "--installation", TENANT, "--workspace", "ws-0", "--workspace", "ws-1"];
    let id = run(&[&begin[..], &["--batch-size", "1"], &initiator].concat()).trim().to_owned();
    becomes(&program, &id, "succeeded");
    let printed = run(&["show", &id]);
    assert!(printed.contains("status: succeeded") && printed.contains("progress.moved: 2"), "{printed}");
    assert!(printed.contains("\nws-0: moved\n"), "{printed}");
    let listed: Value = serde_json::from_str(run(&["list", "--json"]).trim()).expect("one line of JSON");
    assert_eq!(listed["migrationId"], id.as_str(), "{listed}");
    assert!(run(&["list", "--installation", TENANT]).contains("2 of 2 moved"));
    run(&[&["rollback", &id][..], &initiator].concat());
    wait_for(DEADLINE, "the migration is rolled back", || {
        (shown(&program, &id)["status"] == "rolledBack").then_some(())
    });
    let later = run(&[&begin[..], &["--at", "2999-01-01T00:00:00Z"], &initiator].concat()).trim().to_owned();
    run(&[&["pause", &later][..], &initiator].concat());
    run(&[&["resume", &later][..], &initiator].concat());
    let cancelled = run(&[&["cancel", &later, "--json"][..], &initiator].concat());
    assert!(cancelled.contains(r#""status":"cancelled""#), "{cancelled}");
}
