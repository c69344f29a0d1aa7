//! The audit API: records of decisions and actions, summary figures, and the explanation of one session.

use std::{collections::BTreeSet, process::Command};

use crate::harness::{Answer, DEADLINE, Program, Session, Value, eventually, json, lumilink, tokens, wait_for};

/// Starts a program in which three crashes roll a workspace back and nothing restores it (a cool-down of 30 minutes).
///
/// After one completed turn, the rollback comes at the eighth outcome (a handshake, the turn, and three times a crash
/// and a handshake); without one, it comes when half of six outcomes have failed.
fn start_without_recovery() -> Program {
    Program::builder().set("window.min_samples", 8).set("recovery.cooldown_s", 1800).start()
}

fn route(session: &Session) -> Value {
    session.api.get("/acp/workspaces/ws/protocol").expect(200)
}

/// Crashes the agent until the workspace is rolled back.
fn crashes_until_it_falls_back(session: &Session) {
    for _ in 0..3 {
        session.prompt("crash").problem(502, "agent_crashed");
        eventually("the session is usable again", || session.state()["state"] == "idle");
    }
    wait_for(DEADLINE, "the workspace is rolled back", || (route(session)["route"] == "http").then_some(()));
}

fn flip(session: &Session, verb: &str, reason: &str) {
    let body = json!({"actor": "alice", "reason": reason});
    session.api.post(&format!("/acp/workspaces/ws/{verb}"), body).expect(200);
}

fn read(program: &Program, path: &str) -> Answer {
    program.api.get(&format!("/acp/audit/{path}"))
}

fn items(program: &Program, path: &str) -> Vec<Value> {
    read(program, path).expect(200)["items"].as_array().expect("`items` is an array").clone()
}

/// Reads all pages of the records, following `nextCursor`.
fn read_pages(program: &Program, path: &str, limit: usize) -> Vec<Value> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = read(program, &format!("{path}?limit={limit}{cursor}")).expect(200);
        all.extend(page["items"].as_array().expect("items").iter().cloned());
        let Some(next) = page["nextCursor"].as_str() else { return all };
        cursor = format!("&cursor={next}");
    }
}

/// Parses CSV into rows of cells (RFC 4180).
fn cells(csv: &str) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut cell, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
    let mut left = csv.chars().peekable();
    while let Some(character) = left.next() {
        match (character, quoted) {
            ('"', true) if left.peek() == Some(&'"') => cell.extend(left.next()),
            ('"', _) => quoted = !quoted,
            (',', false) => row.push(std::mem::take(&mut cell)),
            ('\r', false) => {
                assert_eq!(left.next(), Some('\n'), "lines end with CR LF");
                row.push(std::mem::take(&mut cell));
                rows.push(std::mem::take(&mut row));
            }
            (character, _) => cell.push(character),
        }
    }
    assert!(row.is_empty() && cell.is_empty(), "the last line is terminated");
    rows
}

/// Formats a JSON member as the expected CSV cell, with formulas escaped.
fn as_cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) if text.starts_with(['=', '+', '-', '@', '\t', '\r']) => format!("'{text}"),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[test]
fn fr_006_each_flip_has_one_record_for_every_trigger() {
    let program = start_without_recovery();
    let session = program.api.open("ws");
    flip(&session, "rollback", "a drill");
    flip(&session, "rollback", "a drill, again");
    flip(&session, "restore", "the drill is over");
    crashes_until_it_falls_back(&session);
    for records in ["rollback-events", "migrations"] {
        let found = items(&program, records);
        let seen: Vec<_> = found.iter().map(|it| (it["epoch"].clone(), it["trigger"].clone())).collect();
        let flips = [(3, "autoThreshold"), (2, "manualOperator"), (1, "manualOperator")];
        assert_eq!(seen, flips.map(|(epoch, trigger)| (json!(epoch), json!(trigger))), "{records}, newest first");
        assert_eq!((&found[2]["actor"], &found[2]["actorNote"]), (&json!("server"), &json!("alice")), "{found:?}");
        assert_eq!(found[2]["reason"], "a drill", "{found:?}");
        assert!(
            found[0]["metrics"]["window"]["failures"].as_u64() >= Some(3),
            "the metrics at the flip: {}",
            found[0]
        );
    }
    let kinds: Vec<_> = items(&program, "rollback-events").iter().map(|it| it["kind"].clone()).collect();
    assert_eq!(kinds, ["rollback", "restore", "rollback"]);
}

#[test]
fn fr_006_connection_records_include_their_transitions() {
    let program = start_without_recovery();
    let session = program.api.open("ws");
    session.completes("echo hello");
    crashes_until_it_falls_back(&session);
    let connections = wait_for(DEADLINE, "each crash has a transition in its connection record", || {
        let found = items(&program, &format!("connections?sessionId={}", session.id));
        let broken = found.iter().filter(|it| it["transitions"].as_array().is_some_and(|it| !it.is_empty())).count();
        (broken >= 3).then_some(found)
    });
    let oldest = connections.last().expect("a connection");
    assert_eq!((&oldest["outcome"], &oldest["protocolVersion"]), (&json!("connected"), &json!(1)), "{oldest}");
    assert_eq!(oldest["agentName"], "lumilink-demo-agent", "{oldest}");
    assert_eq!(oldest["capabilities"]["loadSession"], true, "{oldest}");
    let change = &oldest["transitions"][0];
    assert!(change["status"].is_string() && change["cause"].as_str().is_some_and(|it| !it.is_empty()), "{oldest}");
    assert!(oldest["health"].is_object(), "{oldest}");
    let last = oldest["transitions"].as_array().expect("transitions").last().expect("one").clone();
    assert_eq!(oldest["status"], last["status"]);
}

#[test]
fn records_are_filtered_by_tenant_workspace_session_and_time() {
    let program = start_without_recovery();
    let session = program.api.open("ws");
    let other = program.api.open_with(json!({"workspaceId": "ws", "installationId": "tenant-2"}));
    let body = json!({"actor": "alice", "reason": "one"});
    let flip = |tenant: &str, verb: &str| {
        program.api.post(&format!("/acp/workspaces/ws/{verb}?installationId={tenant}"), body.clone()).expect(200)
    };
    flip("tenant-1", "rollback");
    flip("tenant-1", "restore");
    flip("tenant-2", "rollback");
    let late = program.api.open("ws");
    flip("tenant-1", "rollback");
    let count = |filter: &str| items(&program, &format!("rollback-events{filter}")).len();
    assert_eq!(count(""), 4);
    assert_eq!((count("?installationId=tenant-1"), count("?installationId=tenant-2")), (3, 1));
    assert_eq!((count("?installationId=nobody"), count("?workspaceId=ws"), count("?workspaceId=x")), (0, 4, 0));
    assert_eq!(count(&format!("?sessionId={}", session.id)), 3, "all flips of its workspace since it was opened");
    assert_eq!(count(&format!("?sessionId={}", late.id)), 1, "flips before it was opened are excluded");
    assert_eq!(count(&format!("?sessionId={}&installationId=tenant-1", other.id)), 0);
    let all = items(&program, "rollback-events");
    let at = |index: usize| all[index]["createdAt"].as_str().expect("a time");
    assert_eq!(count(&format!("?from={}", at(1))), 2, "`from` is inclusive");
    assert_eq!(count(&format!("?until={}", at(1))), 2, "`until` is exclusive");
    assert_eq!(count(&format!("?from={}&until={}", at(2), at(0))), 2);
    for (tenant, connections) in [("tenant-1", 2), ("tenant-2", 1)] {
        let path = format!("connections?installationId={tenant}");
        eventually("the handshakes are recorded", || items(&program, &path).len() == connections);
    }
}

#[test]
fn paging_returns_each_record_once_and_newest_first() {
    let program = start_without_recovery();
    let session = program.api.open("ws");
    for round in 0..4 {
        flip(&session, "rollback", &format!("round {round}"));
        flip(&session, "restore", &format!("round {round}"));
    }
    let whole: Vec<_> = items(&program, "migrations");
    assert_eq!(whole.len(), 8);
    for limit in [1, 3, 8] {
        assert_eq!(read_pages(&program, "migrations", limit), whole, "{limit} on a page");
    }
    let ids: BTreeSet<_> = whole.iter().map(|it| it["migrationId"].to_string()).collect();
    assert_eq!(ids.len(), 8);
}

#[test]
fn csv_equals_the_json_and_escapes_formulas() {
    let program = start_without_recovery();
    let session = program.api.open("ws");
    let reasons = ["=HYPERLINK(\"http://x\",\"y\")", "+1", "-1", "@SUM(A1)", "plain, \"quoted\" text", "ends with ="];
    for reason in reasons {
        flip(&session, "rollback", reason);
        flip(&session, "restore", reason);
    }
    for (records, id) in
        [("migrations", "migrationId"), ("rollback-events", "eventId"), ("connections", "connectionRowId")]
    {
        let json = items(&program, records);
        let answer = read(&program, &format!("{records}?format=csv"));
        assert!(answer.header("content-type").starts_with("text/csv"), "{}", answer.header("content-type"));
        let rows = cells(&answer.text);
        let (head, rows) = rows.split_first().expect("a header");
        assert!(head.contains(&id.to_owned()) && rows.len() == json.len(), "{head:?}");
        for (row, item) in rows.iter().zip(&json) {
            assert_eq!(row.len(), item.as_object().expect("an object").len(), "every member has a column: {head:?}");
            for (name, cell) in head.iter().zip(row) {
                // The members of objects may be in another order.
                let same = match &item[name] {
                    value @ (Value::Object(_) | Value::Array(_)) => {
                        serde_json::from_str(cell).ok().as_ref() == Some(value)
                    }
                    value => as_cell(value) == *cell,
                };
                assert!(same, "{name}: {cell} and {}", item[name]);
                let is_formula = cell.starts_with(['=', '+', '-', '@', '\t', '\r']);
                assert!(!is_formula, "{name}: {cell}");
            }
        }
    }
    // Follows the `Link` header from page to page.
    let (mut path, mut rows) = ("/acp/audit/migrations?limit=5".to_owned(), Vec::new());
    loop {
        let answer = program.api.call("GET", &path).header("accept", "text/csv").send();
        let link = answer.header("link");
        rows.extend(cells(&answer.text).into_iter().skip(1));
        let Some(next) = link.strip_prefix('<').and_then(|it| it.strip_suffix(">; rel=\"next\"")) else {
            assert!(link.is_empty(), "{link}");
            break;
        };
        path = next.to_owned();
    }
    assert_eq!(rows, cells(&read(&program, "migrations?format=csv").text)[1..]);
}

#[test]
fn fr_010_capacity_alert_changes_are_listed() {
    let program = Program::builder().set("capacity.max_sessions", 1).start();
    let session = program.api.open("ws");
    let alerts = wait_for(DEADLINE, "both levels are recorded", || {
        let alerts = items(&program, "capacity-alerts");
        (alerts.len() == 2).then_some(alerts)
    });
    let mut levels: Vec<_> = alerts.iter().map(|it| it["level"].as_str().expect("a level")).collect();
    levels.sort_unstable();
    assert_eq!(levels, ["critical", "warning"]);
    assert!(alerts.iter().all(|it| it["kind"] == "raised" && it["taken"] == 1 && it["limit"] == 1), "{alerts:?}");
    assert_eq!(cells(&read(&program, "capacity-alerts?format=csv").text).len(), 3);
    read(&program, "capacity-alerts?workspaceId=ws").problem(400, "invalid_request");
    assert_eq!(items(&program, "automation-runs").len(), 0);
    assert_eq!(cells(&read(&program, "automation-runs?format=csv").text).len(), 1, "a header");
    // Operators get one notification for each change, with the change as its cause.
    let notifications = items(&program, "notifications");
    assert!(
        notifications.iter().all(|it| it["stream"] == "operators" && it["workspaceId"].is_null()),
        "{notifications:?}"
    );
    let causes: BTreeSet<_> = notifications.iter().map(|it| it["causeId"].as_str().expect("a cause")).collect();
    assert_eq!(causes, alerts.iter().map(|it| it["eventId"].as_str().expect("an id")).collect());
    assert_eq!(cells(&read(&program, "notifications?format=csv").text).len(), 3);
    session.post("close", json!({})).expect(200);
}

#[test]
fn invalid_audit_requests_are_rejected_with_a_problem() {
    let program = Program::start();
    for query in [
        "from=yesterday",
        "until=2026-13-01T00:00:00Z",
        "from=2026-11-25T00:00:00Z&until=2026-11-25T00:00:00Z",
        "limit=0",
        "limit=100000",
        "limit=x",
        "cursor=x",
        "cursor=1~%00",
        "sessionId=7",
        "installationId=a%2Fb",
        "format=xml",
        "unknown=1",
    ] {
        read(&program, &format!("migrations?{query}")).problem(400, "invalid_request");
    }
    read(&program, "summary?from=2026-11-25T00:00:00Z&until=2026-11-24T00:00:00Z").problem(400, "invalid_request");
    read(&program, "everything").problem(404, "not_found");
    for id in ["7", "01a20625-f96e-7117-bc62-6a98f49309e7", "------------------------------------"] {
        program.api.get(&format!("/acp/session/{id}/explain")).problem(404, "not_found");
    }
}

#[test]
fn fr_012_summary_aggregates_turns_and_flips() {
    let program = start_without_recovery();
    let session = program.api.open("ws");
    for _ in 0..3 {
        session.completes("echo hello");
    }
    flip(&session, "rollback", "a drill");
    flip(&session, "restore", "the drill is over");
    crashes_until_it_falls_back(&session);
    let summary = read(&program, "summary").expect(200);
    let total = &summary["total"];
    assert_eq!((&total["acp"]["completed"], &total["acp"]["failed"]), (&json!(3), &json!(3)), "{summary}");
    assert_eq!((&total["acp"]["turns"], &total["acp"]["successRate"]), (&json!(6), &json!(0.5)), "{summary}");
    assert_eq!((&total["flipsToHttp"], &total["flipsToAcp"]), (&json!(2), &json!(1)), "{summary}");
    assert_eq!(total["acpShare"], 1.0, "{summary}");
    assert_eq!(summary["truncated"], false);
    let days = summary["days"].as_array().expect("days");
    // One day, or two if midnight passed during the test.
    let turns: u64 = days.iter().filter_map(|day| day["acp"]["turns"].as_u64()).sum();
    assert_eq!(turns, 6, "{summary}");
    assert!(days.iter().all(|day| day["installationId"] == "tenant-1"), "{summary}");
    assert!(days[0]["acp"]["p50Ms"].as_f64() <= days[0]["acp"]["p95Ms"].as_f64(), "{summary}");
    let empty = read(&program, "summary?installationId=nobody").expect(200);
    assert_eq!((&empty["days"], &empty["total"]["acpShare"]), (&json!([]), &Value::Null), "{empty}");
    let health = program.api.get("/acp/health").expect(200);
    assert_eq!(health["workspaces"], json!({"onAcp": 0, "inFallback": 1, "flipsToHttp": 2, "flipsToAcp": 1}));
    assert!(health["protocols"]["acp"]["successRate"].as_f64() < Some(0.99), "{health}");
    assert_eq!(
        (&health["protocols"]["acp"]["share"], &health["protocols"]["http"]["share"]),
        (&json!(1.0), &json!(0.0))
    );
}

#[test]
fn explain_lists_in_order_why_a_session_fell_back() {
    let program = start_without_recovery();
    let session = program.api.open("ws");
    session.completes("echo hello");
    let story = || session.get("/explain").expect(200);
    let fine = story();
    assert!(fine["answer"].as_str().is_some_and(|it| it.starts_with("ACP carries this session")), "{fine}");
    crashes_until_it_falls_back(&session);
    let explanation = wait_for(DEADLINE, "the timeline has the connection transitions", || {
        let explanation = story();
        let changes =
            explanation["timeline"].as_array().expect("a timeline").iter().filter(|it| it["kind"] == "transition");
        (changes.count() >= 3).then_some(explanation)
    });
    let answer = explanation["answer"].as_str().expect("an answer");
    assert!(answer.starts_with("The HTTP fallback has carried") && answer.contains("outcomes failed"), "{answer}");
    assert_eq!(
        (&explanation["route"], &explanation["epoch"], &explanation["truncated"]),
        (&json!("http"), &json!(1), &json!(false))
    );
    let timeline = explanation["timeline"].as_array().expect("a timeline");
    let times: Vec<_> = timeline.iter().map(|it| it["at"].as_str().expect("a time")).collect();
    assert!(times.is_sorted(), "the timeline is oldest first: {times:?}");
    let of = |kind: &str| timeline.iter().filter(|it| it["kind"] == kind).collect::<Vec<_>>();
    let position = |kind: &str| timeline.iter().position(|it| it["kind"] == kind).expect(kind);
    assert_eq!(
        (of("session").len(), of("turn").len(), of("flip").len(), of("note").len()),
        (1, 4, 1, 1),
        "{explanation}"
    );
    let crash = of("turn")[3];
    assert_eq!(crash["details"]["errorCode"], "agent_crashed", "{crash}");
    assert_eq!((&crash["details"]["protocol"], &crash["details"]["epoch"]), (&json!("acp"), &json!(0)), "{crash}");
    let flip = of("flip")[0];
    assert_eq!(flip["details"]["trigger"], "autoThreshold", "{flip}");
    assert_eq!(flip["details"]["reasonCode"], "threshold", "the reason code comes from the rollback event: {flip}");
    assert!(flip["details"]["metrics"]["window"]["samples"].as_u64() > Some(0), "{flip}");
    assert!(
        position("session") < position("turn")
            && position("turn") < position("flip")
            && position("flip") < position("note"),
        "{explanation}"
    );

    let printed = run(&program, &["session", "explain", &session.id]);
    assert!(printed.starts_with("The HTTP fallback has carried") && printed.contains("agent_crashed"), "{printed}");
    session.api.post("/acp/workspaces/ws/restore", json!({"actor": "bob", "reason": "fixed"})).expect(200);
    let restored = story();
    assert!(restored["answer"].as_str().is_some_and(|it| it.contains("ACP")), "{restored}");
    session.post("close", json!({})).expect(200);
    assert!(story()["answer"].as_str().is_some_and(|it| it.contains("closed")));
}

fn run(program: &Program, arguments: &[&str]) -> String {
    let output = Command::new(lumilink())
        .args(arguments)
        .envs(tokens::variables(&program.api.base()))
        .env("HOME", program.folder.path())
        .current_dir(program.folder.path())
        .output()
        .expect("the program runs");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    stdout
}

#[test]
fn audit_commands_print_records_and_the_summary() {
    let program = start_without_recovery();
    let session = program.api.open("ws");
    // More records than the command reads in one page.
    for round in 0..26 {
        flip(&session, "rollback", &format!("round {round}"));
        flip(&session, "restore", "over");
    }
    let audit = |arguments: &[&str]| run(&program, &[&["audit"], arguments].concat());
    let rows = audit(&["rollbacks", "--workspace", "ws"]);
    assert_eq!(rows.lines().count(), 52, "{rows}");
    assert!(rows.lines().last().is_some_and(|line| line.contains("round 0")), "{rows}");
    let json = audit(&["migrations", "--json", "--limit", "51"]);
    let lines: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(lines.len(), 51);
    assert_eq!(lines[0]["epoch"], 52);
    let csv = cells(&audit(&["migrations", "--csv", "--installation", "tenant-1"]));
    assert_eq!(csv.len(), 53, "one header");
    assert_eq!(audit(&["connections", "--session", &session.id]).lines().count(), 1);
    for records in ["capacity", "runs"] {
        assert!(audit(&[records]).is_empty(), "{records}");
    }
    assert_eq!(audit(&["notifications"]).lines().count(), 52, "one notification per flip");
    assert!(audit(&["summary"]).contains("flips to http 26, back 26"));
}

#[test]
fn fr_009_tenant_defaults_apply_to_new_workspaces_and_acp_can_be_disabled() {
    let program = start_without_recovery();
    let path = "/acp/tenants/tenant-1/protocol";
    let put = |mut body: Value| {
        body["actor"] = json!("alice");
        body["reason"] = json!("policy");
        program.api.call("PUT", path).json(&body).send()
    };
    let route_of = |workspace: &str| {
        let route = program.api.get(&format!("/acp/workspaces/{workspace}/protocol")).expect(200);
        route["route"].as_str().expect("a route").to_owned()
    };
    let initial = program.api.get(path).expect(200);
    assert_eq!(
        initial,
        json!({"installationId": "tenant-1", "defaultProtocol": "acp", "enableAcp": true, "allowMigration": true,
            "autoMigration": false, "blockedRepositories": [], "updatedAt": null})
    );
    let old = program.api.open("old");
    program.api.open_with(json!({"workspaceId": "elsewhere", "installationId": "tenant-2"}));
    let changed = put(json!({"defaultProtocol": "http", "blockedRepositories": ["octo/*"]})).expect(200);
    assert_eq!((&changed["moved"], &changed["defaultProtocol"]), (&json!(0), &json!("http")), "{changed}");
    assert_eq!(route_of("old"), "acp", "an existing workspace keeps its route");
    old.post("close", json!({})).expect(200);
    let program_api = &program.api;
    let pinned = json!({"pin": {"protocol": "acp"}, "actor": "bob", "reason": "test"});
    program_api.call("PUT", "/acp/workspaces/old/protocol").json(&pinned).send().expect(200);
    let moved = put(json!({"enableAcp": false})).expect(200);
    assert_eq!((&moved["moved"], &moved["enableAcp"]), (&json!(1), &json!(false)), "{moved}");
    assert_eq!((route_of("old"), route_of("elsewhere")), ("http".into(), "acp".into()));
    assert_eq!(put(json!({"enableAcp": false})).expect(200)["moved"], 0, "a repeat moves nothing");
    let flips = items(&program, "migrations?installationId=tenant-1");
    assert_eq!(flips.len(), 1, "{flips:?}");
    assert_eq!((&flips[0]["trigger"], &flips[0]["actorNote"]), (&json!("migration"), &json!("alice")), "{flips:?}");
    put(json!({"enableAcp": true, "defaultProtocol": "acp"})).expect(200);
    assert_eq!(route_of("old"), "http", "nothing is moved back");
    let kept = program.api.get(path).expect(200);
    assert_eq!((&kept["blockedRepositories"], &kept["enableAcp"]), (&json!(["octo/*"]), &json!(true)));
    assert!(kept["updatedAt"].is_string());

    for body in [
        json!({}),
        json!({"blockedRepositories": ["octo"]}),
        json!({"blockedRepositories": ["octo/repo", "a/../b"]}),
        json!({"blockedRepositories": vec!["octo/repo"; 1001]}),
        json!({"defaultProtocol": "carrier-pigeon"}),
        json!({"enableAcp": "no"}),
    ] {
        put(body).problem(400, "invalid_request");
    }
    program.api.get("/acp/tenants/..%2Fx/protocol").problem(404, "not_found");
}
