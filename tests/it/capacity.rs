//! Capacity: seats are released at every session end, refusals are immediate and carry the figures, and each alert
//! change is reported exactly once.

use std::{
    collections::BTreeMap,
    sync::Mutex,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use diesel::{Connection, QueryableByName, RunQueryDsl, SqliteConnection, connection::SimpleConnection, sql_types};

use crate::harness::{
    Answer, DEADLINE, Program, Session, Value, eventually,
    hostile::{RawAnswer, RawRequest},
    json, lumilink, wait_for,
};

fn body(tenant: &str) -> Value {
    json!({"workspaceId": "ws", "installationId": tenant})
}

fn health(program: &Program) -> Value {
    program.api.get("/acp/health").expect(200)["capacity"].clone()
}

fn taken(program: &Program) -> u64 {
    health(program)["taken"].as_u64().expect("a number")
}

/// Waits until `seats` seats are taken and checks that the metric agrees.
fn wait_for_taken(program: &Program, seats: u64) {
    eventually(&format!("{seats} seats are taken"), || taken(program) == seats);
    let shown = program.metrics().sum("lumilink_capacity_seats", &[("state", "taken")]);
    assert_eq!(shown, seats as f64);
}

fn assert_refused(answer: Answer, figures: &Value) {
    let seconds: u64 = answer.header("retry-after").parse().expect("`Retry-After` in seconds");
    assert!((1..=60).contains(&seconds));
    let problem = answer.problem(503, "capacity_exhausted");
    assert_eq!(&problem["capacity"], figures);
    assert_eq!((&problem["class"], &problem["retryable"]), (&json!("system"), &json!(true)));
}

/// A row of `capacity_alerts`: one change of an alert, with the seats taken and the limit at that time.
#[derive(Debug, PartialEq, Eq, QueryableByName)]
struct Row {
    #[diesel(sql_type = sql_types::Text)]
    alert_id: String,
    #[diesel(sql_type = sql_types::Text)]
    level: String,
    #[diesel(sql_type = sql_types::Text)]
    kind: String,
    #[diesel(sql_type = sql_types::BigInt)]
    taken: i64,
    #[diesel(sql_type = sql_types::BigInt)]
    seat_limit: i64,
}

fn database(program: &Program) -> SqliteConnection {
    let path = program.folder.path().join("data/lumilink.db");
    let mut connection = SqliteConnection::establish(path.to_str().expect("UTF-8")).expect("the database is there");
    connection.batch_execute("PRAGMA busy_timeout = 5000").expect("a pragma");
    connection
}

fn rows(program: &Program) -> Vec<Row> {
    let query = "SELECT alert_id, level, kind, taken, seat_limit FROM capacity_alerts \
                 WHERE installation_id IS NULL ORDER BY created_us, event_id";
    diesel::sql_query(query).load(&mut database(program)).expect("the rows")
}

/// Returns level, kind and seats taken of each row; all rows have to be of one alert.
fn changes(program: &Program) -> Vec<(String, String, i64)> {
    let rows = rows(program);
    assert!(rows.iter().all(|row| row.alert_id == rows[0].alert_id), "one alert: {rows:?}");
    rows.into_iter().map(|row| (row.level, row.kind, row.taken)).collect()
}

fn change(level: &str, kind: &str, taken: i64) -> (String, String, i64) {
    (level.to_owned(), kind.to_owned(), taken)
}

/// Counts the log lines about alert changes, by level and kind.
fn logged(program: &Program) -> BTreeMap<(String, String), usize> {
    let mut counts = BTreeMap::new();
    for line in program.log().lines().filter(|line| line.contains("[CAPACITY]")) {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let field = |name: &str| line[name].as_str().map(str::to_owned);
        if let Some(kind) = field("kind") {
            assert_eq!(line["level"], if kind == "raised" { "WARN" } else { "INFO" }, "{line}");
            *counts.entry((field("alert").expect("a level"), kind)).or_default() += 1;
        }
    }
    counts
}

fn counted(program: &Program, level: &str, kind: &str) -> f64 {
    program.metrics().sum("lumilink_capacity_alert_changes_total", &[("level", level), ("kind", kind)])
}

fn open_levels(program: &Program) -> [f64; 2] {
    let scrape = program.metrics();
    ["warning", "critical"].map(|level| scrape.sum("lumilink_capacity_alerts", &[("level", level)]))
}

fn close(session: &Session) {
    session.post("close", json!({})).expect(200);
}

#[test]
fn nfr_002_seat_is_released_at_every_kind_of_session_end() {
    let agents = format!(
        "[agents.missing]\ncommand = [\"/nonexistent/agent\"]\n\
         [agents.refuses]\ncommand = [{:?}, \"demo-agent\", \"--refuse-handshake\"]\n",
        lumilink()
    );
    let mut program = Program::builder().config(&agents).set("session.idle_timeout_s", 2).start();
    program.expect_error("session");
    for agent in ["missing", "refuses"] {
        let mut body = body("tenant-1");
        body["agent"] = json!(agent);
        assert_eq!(program.api.post("/acp/session/new", body).status, 502);
        wait_for_taken(&program, 0);
    }
    let closed = program.api.open("ws");
    assert_eq!(taken(&program), 1);
    close(&closed);
    wait_for_taken(&program, 0);
    let (busy, mut stream) = {
        let session = program.api.open("ws");
        let (_, stream) = session.is_busy_with("echo started ; sleep 60");
        (session, stream)
    };
    close(&busy);
    stream.rest();
    wait_for_taken(&program, 0);
    let failed = program.api.open_on_acp("ws");
    wait_for(DEADLINE, "the session fails permanently", || {
        failed.prompt("crash");
        (failed.state()["state"] == "failed").then_some(())
    });
    wait_for_taken(&program, 0);
    let idle = program.api.open("ws");
    idle.becomes("hibernated");
    wait_for_taken(&program, 0);
    assert_eq!(idle.says("echo back"), "back");
    assert_eq!(taken(&program), 1, "the session has a seat again");
    idle.becomes("hibernated");
    wait_for_taken(&program, 0);
}

#[test]
fn nfr_002_refusals_carry_the_figures_and_take_under_50_ms() {
    let program = Program::builder().set("capacity.max_sessions", 2).start();
    let sessions = [program.api.open("ws"), program.api.open("ws")];
    let figures = json!({"taken": 2, "limit": 2, "tenantTaken": 0, "tenantLimit": 2});
    let mut latencies: Vec<_> = (0..101)
        .map(|_| {
            let begin = Instant::now();
            let answer = program.api.post("/acp/session/new", body("another"));
            let took = begin.elapsed();
            assert_refused(answer, &figures);
            took
        })
        .collect();
    latencies.sort();
    assert!(latencies[50] < Duration::from_millis(50), "the median refusal took {:?}", latencies[50]);
    let refused = |reason| program.metrics().sum("lumilink_capacity_refused_total", &[("reason", reason)]);
    assert_eq!((refused("service"), refused("tenant")), (101.0, 0.0));
    sessions.iter().for_each(|session| assert_eq!(session.says("echo fine"), "fine"));
    close(&sessions[0]);
    wait_for(DEADLINE, "the seat is available again", || {
        (program.api.post("/acp/session/new", body("another")).status == 201).then_some(())
    });
}

#[test]
fn nfr_002_restored_sessions_are_never_refused() {
    let program = Program::start();
    let sessions: Vec<_> = (0..3).map(|_| program.api.open("ws")).collect();
    let folder = program.stop();
    let program = Program::builder().folder(&folder).set("capacity.max_sessions", 1).start();
    let back = sessions.into_iter().map(|session| Session { api: program.api.clone(), ..session });
    for (n, session) in back.enumerate() {
        if n == 0 {
            session.post("load", json!({})).expect(200);
        }
        assert_eq!(session.says("echo back"), "back", "restored by a load or by the next prompt");
    }
    let figures = json!({"taken": 3, "limit": 1, "tenantTaken": 3, "tenantLimit": 1});
    assert_refused(program.api.post("/acp/session/new", body("tenant-1")), &figures);
    assert_eq!((taken(&program), health(&program)["limit"].as_u64()), (3, Some(1)));
}

#[test]
fn tenant_is_limited_to_its_share_and_others_are_unaffected() {
    let program = Program::builder().set("capacity.max_sessions", 10).set("capacity.tenant_share_bp", 3000).start();
    let sessions: Vec<_> = (0..3).map(|_| program.api.open_with(body("large"))).collect();
    let figures = json!({"taken": 3, "limit": 10, "tenantTaken": 3, "tenantLimit": 3});
    assert_refused(program.api.post("/acp/session/new", body("large")), &figures);
    program.api.open_with(body("small"));
    let health = health(&program);
    assert_eq!(health["tenantsNearLimit"], json!([{"installationId": "large", "taken": 3}]));
    assert_eq!((&health["tenantLimit"], &health["level"]), (&json!(3), &json!("ok")));
    let refused = program.metrics().sum("lumilink_capacity_refused_total", &[("reason", "tenant")]);
    assert_eq!(refused, 1.0);
    close(&sessions[0]);
    program.api.open_with(body("large"));
}

#[test]
fn fr_010_alerts_are_raised_escalated_and_resolved_exactly_once() {
    let program = Program::builder().set("capacity.max_sessions", 10).set("capacity.resolve_after_s", 1).start();
    let mut sessions: Vec<_> = (0..8).map(|_| program.api.open("ws")).collect();
    assert_eq!(health(&program)["level"], "ok");
    sessions.push(program.api.open("ws"));
    eventually("the level is warning", || health(&program)["level"] == "warning");
    assert!(health(&program)["alert"]["since"].is_string());
    // Falling below the warning level and reaching it again changes nothing: the alert is still open.
    close(&sessions.pop().expect("a session"));
    sessions.extend([program.api.open("ws"), program.api.open("ws")]);
    eventually("the level is critical", || health(&program)["level"] == "critical");
    eventually("the rows are written", || rows(&program).len() == 2);
    let raised = [change("warning", "raised", 9), change("critical", "raised", 10)];
    assert_eq!(changes(&program), raised);
    assert_eq!(health(&program)["alert"]["alertId"], json!(rows(&program)[0].alert_id));
    assert_eq!(open_levels(&program), [1.0, 1.0]);
    program.api.post("/acp/session/new", body("tenant-1")).problem(503, "capacity_exhausted");
    sessions.drain(..3).for_each(|session| close(&session));
    wait_for_taken(&program, 7);
    assert_eq!(health(&program)["level"], "critical", "70 % is not under 70 %");
    let begin = Instant::now();
    close(&sessions[0]);
    eventually("the alert is resolved", || health(&program)["level"] == "ok");
    assert!(begin.elapsed() >= Duration::from_secs(1), "resolved too early: {:?}", begin.elapsed());
    eventually("all rows are written", || rows(&program).len() == 4);
    let resolved = [change("critical", "resolved", 6), change("warning", "resolved", 6)];
    assert_eq!(changes(&program), [raised, resolved].concat());
    assert_eq!((open_levels(&program), health(&program)["alert"].is_null()), ([0.0, 0.0], true));
    for level in ["warning", "critical"] {
        for kind in ["raised", "resolved"] {
            assert_eq!(counted(&program, level, kind), 1.0, "{level} {kind}");
            let lines = logged(&program);
            assert_eq!(lines.get(&(level.into(), kind.into())), Some(&1), "{level} {kind}: {lines:?}");
        }
    }
    // The next warning belongs to a new alert.
    let more: Vec<_> = (0..3).map(|_| program.api.open("ws")).collect();
    eventually("a new warning", || rows(&program).len() == 5);
    let rows = rows(&program);
    assert_ne!(rows[4].alert_id, rows[0].alert_id);
    assert_eq!((rows[4].seat_limit, more.len()), (10, 3));
}

#[test]
fn fr_010_open_alert_survives_a_kill_and_is_resolved_after_the_restart() {
    let start = || Program::builder().set("capacity.max_sessions", 2).set("capacity.resolve_after_s", 2);
    let mut program = start().start();
    let _sessions = [program.api.open("ws"), program.api.open("ws")];
    eventually("the rows are written", || rows(&program).len() == 2);
    program.kill();
    let folder = program.folder.clone();
    drop(program);
    let program = start().folder(&folder).start();
    assert_eq!(open_levels(&program), [1.0, 1.0], "the open alert is restored");
    let one = program.api.open("ws");
    let two = program.api.open("ws");
    assert_eq!(health(&program)["level"], "critical");
    close(&one);
    close(&two);
    eventually("the alert is resolved", || health(&program)["level"] == "ok");
    eventually("all rows are written", || rows(&program).len() == 4);
    let expected = [
        change("warning", "raised", 2),
        change("critical", "raised", 2),
        change("critical", "resolved", 0),
        change("warning", "resolved", 0),
    ];
    assert_eq!(changes(&program), expected, "not raised a second time");
    assert_eq!(counted(&program, "warning", "raised"), 0.0, "not since the restart");
    let folder = program.stop();
    let program = start().folder(&folder).start();
    assert_eq!(
        (health(&program)["level"].as_str(), rows(&program).len()),
        (Some("ok"), 4),
        "the resolved alert is not restored"
    );
}

#[test]
fn fr_010_alert_is_raised_without_a_database_and_stored_once() {
    let mut program = Program::builder().set("capacity.max_sessions", 2).start();
    program.expect_error("the database did not take writes");
    let _one = program.api.open("ws");
    let mut held = database(&program);
    held.batch_execute("BEGIN IMMEDIATE").expect("the lock");
    // The session holds a seat until its write fails, which is long enough to raise the critical alert.
    program.api.post("/acp/session/new", body("tenant-1")).problem(503, "database_unavailable");
    eventually("both changes are logged", || logged(&program).values().sum::<usize>() == 2);
    assert!(program.log().contains("\"on_disk\":false"), "{}", program.log());
    assert_eq!((health(&program)["level"].as_str(), rows(&program)), (Some("critical"), vec![]));
    drop(held);
    eventually("the rows are written", || !rows(&program).is_empty());
    program.api.open("ws").completes("echo fine");
    assert_eq!(changes(&program), [change("warning", "raised", 2), change("critical", "raised", 2)]);
    assert_eq!(logged(&program).values().sum::<usize>(), 2, "not logged a second time");
}

/// Sends a request without the harness's contract checks, which would dominate the measured time.
fn raw(program: &Program, path: &str, body: &Value) -> (RawAnswer, Value) {
    let request = RawRequest::new("POST", path).header("Host", &program.address.to_string());
    let answer = request.header("Content-Type", "application/json").body(&body.to_string()).send(program.address);
    let body = serde_json::from_str(&answer.body).unwrap_or_default();
    (answer, body)
}

/// Runs `task` with each number below `numbers`, eight at a time.
fn eight_at_a_time(numbers: usize, task: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let n = next.fetch_add(1, Ordering::Relaxed)
                    && n < numbers
                {
                    task(n);
                }
            });
        }
    });
}

#[test]
fn nfr_002_of_1500_sessions_1000_are_admitted_and_complete_a_turn() {
    let program = Program::start();
    let (admitted, refused) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    let begin = Instant::now();
    eight_at_a_time(1500, |n| {
        let new = json!({"workspaceId": format!("ws-{}", n / 50), "installationId": "tenant-1"});
        let (answer, body) = raw(&program, "/acp/session/new", &new);
        if answer.status == 201 {
            admitted.lock().unwrap().push(body["sessionId"].clone());
            return;
        }
        assert_eq!((answer.status, &body["code"]), (503, &json!("capacity_exhausted")), "{}", answer.body);
        assert!(answer.header("retry-after").is_some() && body["capacity"]["taken"] == 1000, "{}", answer.body);
        refused.fetch_add(1, Ordering::Relaxed);
    });
    let (opened, admitted) = (begin.elapsed(), admitted.into_inner().unwrap());
    assert_eq!((admitted.len(), refused.into_inner()), (1000, 500));
    assert_eq!((taken(&program), health(&program)["level"].as_str()), (1000, Some("critical")));
    let begin = Instant::now();
    eight_at_a_time(admitted.len(), |n| {
        let prompt = json!({"sessionId": admitted[n], "prompt": "echo works"});
        let (answer, body) = raw(&program, "/acp/session/prompt", &prompt);
        assert_eq!((answer.status, &body["meta"]["message"]), (200, &json!("works")), "{}", answer.body);
    });
    println!("1,500 sessions offered in {opened:.1?}, 1,000 turns in {:.1?}", begin.elapsed());
    assert_eq!(program.metrics().sum("lumilink_agent_processes", &[]), 1000.0);
    eventually("the rows are written", || rows(&program).len() == 2);
    let raised: Vec<_> = rows(&program).into_iter().map(|row| (row.level, row.taken, row.kind)).collect();
    // More sessions may have been opened before the level was evaluated.
    let is = |n: usize, level: &str, from: i64| raised[n].0 == level && (from..from + 20).contains(&raised[n].1);
    assert!(is(0, "warning", 850) && is(1, "critical", 950), "{raised:?}");
}
