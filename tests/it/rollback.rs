//! Rollback of a workspace to the HTTP fallback when ACP fails, and its recovery.

use crate::harness::{
    DEADLINE, Program, Session, Value, eventually, json, metrics::Scrape, program::Builder, wait_for,
};

/// Settings with a recovery of seconds instead of an hour.
fn quick() -> Builder {
    Program::builder()
        .set("recovery.cooldown_s", 1)
        .set("recovery.jitter_bp", 0)
        .set("recovery.canary_steps_bp", "[5000,10000]")
        .set("recovery.close_after_successes", 2)
}

/// Settings with a cooldown longer than any test, so that a rolled back workspace stays on the fallback.
fn held() -> Builder {
    Program::builder().set("window.min_samples", 5).set("recovery.cooldown_s", 1800)
}

fn route(session: &Session) -> Value {
    session.api.get("/acp/workspaces/ws/protocol").expect(200)
}

/// Crashes the agent, at most ten times, until the workspace is rolled back; returns its route.
fn crash_until_rolled_back(session: &Session) -> Value {
    for _ in 0..10 {
        session.prompt("crash").problem(502, "agent_crashed");
        eventually("the session is usable again", || session.state()["state"] == "idle");
        let route = route(session);
        if route["route"] == "http" {
            return route;
        }
    }
    panic!("ten crashes and no rollback: {}", route(session));
}

fn flips(scrape: &Scrape, to: &str, trigger: &str) -> f64 {
    scrape.sum("lumilink_route_flips_total", &[("to", to), ("trigger", trigger)])
}

#[test]
fn fr_007_crashing_turns_roll_back_and_the_next_prompt_keeps_context_over_http() {
    let program = held().start();
    let session = program.api.open("ws");
    session.completes("echo the word is maple");
    let before = route(&session);
    assert_eq!((&before["route"], &before["epoch"]), (&json!("acp"), &json!(0)), "{before}");
    assert_eq!(before["window"]["state"], "unknown", "{before}");
    let rolled_back = crash_until_rolled_back(&session);
    assert_eq!(
        (&rolled_back["epoch"], &rolled_back["recovery"]["stage"]),
        (&json!(1), &json!("open")),
        "{rolled_back}"
    );
    assert_eq!(rolled_back["rollback"]["trigger"], "autoThreshold", "{rolled_back}");
    assert_eq!(session.state()["connectionStatus"], "rolledBack");

    let result = session.completes("context");
    assert_eq!((&result["meta"]["protocol"], &result["meta"]["route"]), (&json!("http"), &json!("http")), "{result}");
    assert_eq!(result["meta"]["rollback"]["active"], true, "{result}");
    assert!(
        result["meta"]["message"].as_str().unwrap().contains("maple"),
        "the agent gets the conversation: {result}"
    );
    let files = session.completes("write over-http.txt hello");
    assert_eq!(files["meta"]["protocol"], "http");
    assert!(session.path().join("over-http.txt").exists());

    assert_eq!(flips(&program.metrics(), "http", "autoThreshold"), 1.0);
    let notes: Vec<_> = session.transcript().into_iter().filter(|entry| entry["eventType"] == "rollback").collect();
    assert_eq!(notes.len(), 1, "one note: {notes:?}");
    assert_eq!(notes[0]["payload"]["details"]["rollbackTrigger"], "autoThreshold", "{notes:?}");
    let lines = program.log();
    let logged = lines.lines().filter(|line| line.contains(r#""trigger":"autoThreshold""#)).count();
    assert_eq!(logged, 1, "one log line");
}

#[test]
fn fr_007_bad_key_and_provider_faults_alone_do_not_roll_a_workspace_back() {
    let program = held().config("[agent.env]\nDEMO_API_KEY = \"wrong\"\n").start();
    let session = program.api.open("ws");
    for (prompt, status, code) in [
        ("error 401 no", 502, "authentication"),
        ("error -31002 no key", 502, "authentication"),
        (r#"error-data -32603 {"errorName":"APIError","statusCode":401}"#, 502, "authentication"),
        ("error -32603 Incorrect API key provided", 502, "authentication"),
        ("error 500 failed", 502, "model_provider"),
        (r#"error-data -32603 {"error":{"code":503}}"#, 502, "model_provider"),
        ("error -32603 unexpected status 500", 502, "model_provider"),
        ("error 400 prompt is too long", 422, "agent_rejected"),
    ] {
        let problem = session.prompt(prompt).problem(status, code);
        if code == "authentication" {
            assert_eq!(problem["retryable"], false, "{problem}");
            assert!(problem["detail"].as_str().unwrap().contains("DEMO_API_KEY"), "{problem}");
        }
    }
    let healthy = route(&session);
    assert_eq!((&healthy["route"], &healthy["window"]["failures"]), (&json!("acp"), &json!(0)), "{healthy}");
    session.prompt("error -32603 TypeError at turn.js:429:12").problem(502, "agent_error");
    session.prompt("error -32800 cancelled").problem(502, "agent_error");
    eventually("failures of the agent itself count", || route(&session)["window"]["failures"] == 2);
}

#[test]
fn fr_007_recovered_agent_is_restored_by_canaries_not_by_a_handshake() {
    let program = quick().start();
    let session = program.api.open("ws");
    let mut events = session.api.events(&format!("/acp/session/{}/events?from=live", session.id));
    crash_until_rolled_back(&session);
    wait_for(DEADLINE, "a probe succeeded", || (route(&session)["recovery"]["stage"] == "recovering").then_some(()));
    assert_eq!(route(&session)["route"], "http", "a handshake alone does not restore");
    let mut carried = Vec::new();
    let restored = wait_for(DEADLINE, "the workspace is restored", || {
        let meta = &session.completes("echo still here")["meta"];
        let protocol = meta["protocol"].as_str().unwrap();
        carried.push(format!("{protocol} {}", meta["contextInjected"]));
        let route = route(&session);
        (route["route"] == "acp").then_some(route)
    });
    // Two canaries at one in two turns, then two at every turn. An agent that missed turns gets them as context.
    let expected = ["http true", "acp true", "http true", "acp true", "acp false", "acp false"];
    assert_eq!(carried, expected, "canaries are selected by count");
    assert_eq!((&restored["epoch"], &restored["recovery"]["stage"]), (&json!(2), &json!("closed")), "{restored}");
    assert_eq!(restored["window"]["failures"], 0, "the window is empty: {restored}");
    assert_eq!(flips(&program.metrics(), "acp", "recovery"), 1.0);
    let received = events
        .until("the restore event", |event| event.name == "rollback" && event.data["update"]["status"] == "resolved");
    let rollbacks: Vec<_> = received.iter().filter(|event| event.name == "rollback").collect();
    assert_eq!(rollbacks.len(), 2, "one event for each of the two flips: {rollbacks:?}");
}

#[test]
fn fr_007_workspace_can_be_rolled_back_pinned_and_restored_manually() {
    let program = held().start();
    let session = program.api.open("ws");
    let flip = |verb: &str, body: Value| session.api.post(&format!("/acp/workspaces/ws/{verb}"), body);
    let why = json!({"actor": "alice", "reason": "drill", "initiatedBy": "user"});
    let rolled = flip("rollback", why.clone()).expect(200);
    assert_eq!((&rolled["route"], &rolled["epoch"]), (&json!("http"), &json!(1)), "{rolled}");
    assert_eq!(
        (&rolled["pin"]["actor"], &rolled["pin"]["actorNote"]),
        (&json!("server"), &json!("alice")),
        "{rolled}"
    );
    assert_eq!(rolled["rollback"]["trigger"], "manualUser", "{rolled}");
    assert_eq!(flip("rollback", why.clone()).expect(200)["epoch"], 1, "a second rollback changes nothing");
    assert_eq!(session.completes("echo a")["meta"]["protocol"], "http");
    let restored = flip("restore", why).expect(200);
    assert_eq!((&restored["route"], &restored["epoch"]), (&json!("acp"), &json!(2)), "{restored}");
    let back = session.completes("context");
    assert_eq!(back["meta"]["protocol"], "acp");
    assert!(
        back["meta"]["message"].as_str().unwrap().contains("echo a"),
        "the agent gets the turns that it missed: {back}"
    );

    let put = |body: Value| session.api.call("PUT", "/acp/workspaces/ws/protocol").json(&body).send();
    let pinned = put(json!({"pin": {"protocol": "acp"}, "actor": "bob", "reason": "test"})).expect(200);
    assert_eq!((&pinned["route"], &pinned["epoch"]), (&json!("acp"), &json!(2)), "no flip: {pinned}");
    for _ in 0..4 {
        session.prompt("crash").problem(502, "agent_crashed");
        eventually("the session is usable again", || session.state()["state"] == "idle");
    }
    assert_eq!(route(&session)["window"]["state"], "breached");
    assert_eq!(route(&session)["route"], "acp", "a pin overrides the window");
    put(json!({"pin": null, "actor": "bob", "reason": "done"})).expect(200);
    session.completes("echo c");
    eventually("without the pin, the window decides", || route(&session)["route"] == "http");
    for (body, why) in [
        (json!({"actor": "", "reason": "x"}), "no actor"),
        (json!({"actor": "a", "reason": "x\ny"}), "two lines"),
        (json!({"actor": "a"}), "no reason"),
        (json!({"actor": "a", "reason": "r", "initiatedBy": "system"}), "not the system"),
    ] {
        assert_eq!(flip("rollback", body).status, 400, "{why}");
    }
    flip("rollback", json!({"actor": "a", "reason": "r", "tenant": "x"})).problem(400, "invalid_request");
    session.api.get("/acp/workspaces/unknown/protocol").problem(404, "not_found");
}

#[test]
fn fr_007_route_epoch_pin_and_window_survive_a_kill() {
    let mut program = held().set("window.min_samples", 6).start();
    let session = program.api.open("ws");
    session.completes("echo one");
    session.prompt("crash").problem(502, "agent_crashed");
    eventually("the session is usable again", || session.state()["state"] == "idle");
    let before = wait_for(DEADLINE, "four outcomes are counted", || {
        let route = route(&session);
        (route["window"]["samples"] == 4).then_some(route)
    });
    program.turns_may_run();
    program.kill_supervisor();
    program.start_supervisor_again();
    let after = route(&session);
    assert_eq!(before["window"], after["window"], "the window survives the kill");
    session.api.post("/acp/session/load", json!({"sessionId": session.id})).expect(200);
    session.prompt("crash").problem(502, "agent_crashed");
    wait_for(DEADLINE, "rolled back", || (route(&session)["route"] == "http").then_some(()));
    let rolled_back = route(&session);
    program.kill_supervisor();
    program.start_supervisor_again();
    let again = route(&session);
    for member in ["route", "epoch", "rollback", "recovery", "pin"] {
        assert_eq!(rolled_back[member], again[member], "{member}");
    }
    session.api.post("/acp/session/load", json!({"sessionId": session.id})).expect(200);
    assert_eq!(session.completes("echo over http")["meta"]["protocol"], "http");
}

#[test]
fn failure_of_both_routes_holds_the_route_and_raises_an_alarm() {
    let mut program = quick().set("window.min_samples", 5).start();
    program.expect_error("fallback fails as well");
    let session = program.api.open("ws");
    crash_until_rolled_back(&session);
    for _ in 0..12 {
        session.prompt("crash").problem(502, "agent_crashed");
    }
    let scrape = program.metrics();
    assert_eq!(flips(&scrape, "http", "autoThreshold"), 1.0);
    assert_eq!(flips(&scrape, "acp", "recovery"), 0.0, "no oscillation");
    assert_eq!(scrape.sum("lumilink_both_routes_failing_total", &[]), 1.0);
    assert_eq!(route(&session)["route"], "http");
    session.becomes("idle");
}

#[test]
fn actors_of_idle_workspaces_stop_and_their_routes_are_kept() {
    let program = held().set("supervision.idle_workspace_s", 1).start();
    let sessions: Vec<_> = ["ws", "ws-2", "ws-3"].map(|name| program.api.open(name)).into();
    crash_until_rolled_back(&sessions[0]);
    let actors = || program.metrics().sum("lumilink_route_actors", &[]);
    assert_eq!(actors(), 6.0);
    for session in &sessions {
        session.post("close", json!({})).expect(200);
    }
    eventually("no actor is left", || actors() == 0.0);
    let again = program.api.open("ws");
    assert_eq!(again.opened["protocol"], "http", "{}", again.opened);
    assert_eq!(route(&again)["recovery"]["stage"], "open");
}

#[test]
fn tenant_of_a_change_is_named_in_the_query_or_the_body() {
    let program = Program::start();
    for tenant in ["tenant-1", "tenant-2"] {
        program.api.open_with(json!({"workspaceId": "ws", "installationId": tenant}));
    }
    let body = |tenant: Option<&str>| {
        let mut body = json!({"actor": "test", "reason": "test"});
        tenant.into_iter().for_each(|tenant| body["installationId"] = json!(tenant));
        body
    };
    let path = |action: &str, query: &str| format!("/acp/workspaces/ws/{action}{query}");
    program.api.post(&path("rollback", ""), body(None)).problem(409, "ambiguous_workspace");
    let rolled = program.api.post(&path("rollback", ""), body(Some("tenant-2"))).expect(200);
    assert_eq!((&rolled["installationId"], &rolled["route"]), (&json!("tenant-2"), &json!("http")));
    program
        .api
        .post(&path("restore", "?installationId=tenant-1"), body(Some("tenant-2")))
        .problem(400, "invalid_request");
    program.api.post(&path("restore", "?installationId=tenant-2"), body(Some("tenant-2"))).expect(200);
    let mut pin = body(Some("tenant-1"));
    pin["autoRollout"] = json!(false);
    let changed = program.api.call("PUT", &path("protocol", "")).json(&pin).send().expect(200);
    assert_eq!((&changed["installationId"], &changed["autoRollout"]), (&json!("tenant-1"), &json!(false)));
}
