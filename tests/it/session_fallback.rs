//! The fallback of single sessions after a failed ACP handshake, and the lifecycle of sessions whose turns use HTTP.

use std::{fs, path::Path};

use crate::harness::{
    DEADLINE, Program, Session, Value, demo_agent, eventually, json, lumilink, program::Builder, wait_for,
};

/// Agents whose handshake fails: name, flags, and the reported error code.
const BROKEN: [(&str, &[&str], &str); 4] = [
    ("version", &["--protocol-version", "2"], "protocol_version"),
    ("refuses", &["--refuse-handshake"], "handshake_failed"),
    ("hangs", &["--hang-on-start"], "handshake_timeout"),
    ("exits", &["--exit-on-start"], "agent_start_failed"),
];

/// The broken agents, with or without a headless command.
fn broken(oneshot: bool) -> Builder {
    let mut toml = String::new();
    for (name, flags, _) in BROKEN {
        toml += &format!("[agents.{name}]\ncommand = {}\n", demo_agent(flags));
        if oneshot {
            toml += &format!("oneshot = {}\n", demo_agent(&["--oneshot"]));
        }
    }
    Program::builder().config(&toml).set("runtime.handshake_timeout_s", 1)
}

fn body(workspace: &str, agent: &str) -> Value {
    json!({"workspaceId": workspace, "installationId": "tenant-1", "agent": agent})
}

/// The route of a workspace.
fn route(session: &Session, workspace: &str) -> Value {
    session.api.get(&format!("/acp/workspaces/{workspace}/protocol")).expect(200)
}

fn roll_back(session: &Session) {
    let why = json!({"actor": "test", "reason": "test"});
    let rolled = session.api.post("/acp/workspaces/ws/rollback", why).expect(200);
    assert_eq!(rolled["route"], "http", "{rolled}");
}

fn lines_of(path: &Path) -> usize {
    fs::read_to_string(path).unwrap_or_default().lines().count()
}

/// Fails the test unless the fallback raised one notification for the session's user and one note, and the notification's cause is
/// the audit record of the handshake.
fn assert_notified_once(session: &Session, workspace: &str) {
    let query = format!("installationId=tenant-1&workspaceId={workspace}&userId=ann");
    let inbox = session.api.get(&format!("/acp/notifications?{query}")).expect(200);
    let [item] = inbox["items"].as_array().expect("items").as_slice() else { panic!("one notification: {inbox}") };
    let notification = &item["toast"];
    assert_eq!(
        (&notification["trigger"], &notification["severity"]),
        (&json!("handshakeFailed"), &json!("error")),
        "{notification}"
    );
    let others = format!("installationId=tenant-1&workspaceId={workspace}&userId=bob");
    assert_eq!(session.api.get(&format!("/acp/notifications?{others}")).expect(200)["items"], json!([]));
    let notes: Vec<_> = session.transcript().into_iter().filter(|entry| entry["eventType"] == "rollback").collect();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert_eq!(notes[0]["payload"]["summary"], notification["body"], "{notes:?}");
    let path = format!("/acp/audit/connections?sessionId={}", session.id);
    let record = wait_for(DEADLINE, "the handshake is recorded", || {
        session.api.get(&path).expect(200)["items"].get(0).cloned()
    });
    assert_eq!(record["connectionRowId"], notification["causeId"], "{record}");
}

#[test]
fn fr_001_failed_handshake_falls_back_to_headless_command_and_notifies_the_user() {
    let program = broken(true).start();
    for (name, _, code) in BROKEN {
        let mut body = body(name, name);
        body["userId"] = json!("ann");
        let session = program.api.open_with(body);
        assert_eq!(session.opened["protocol"], "http", "{name}: {}", session.opened);
        assert!(session.opened["protocolVersion"].is_null(), "{name}: {}", session.opened);
        let state = session.state();
        assert_eq!((&state["state"], &state["connectionStatus"]), (&json!("idle"), &json!("rolledBack")), "{state}");
        let mut events = session.api.events(&format!("/acp/session/{}/events", session.id));
        let received = events.until("the rollback event", |event| event.name == "rollback");
        let rollback = &received.last().unwrap().data["update"];
        assert_eq!(
            (&rollback["scope"], &rollback["errorCode"]),
            (&json!("session"), &json!(code)),
            "{name}: {rollback}"
        );
        assert_notified_once(&session, name);
        let result = session.completes("write a.txt content ; echo done");
        let meta = &result["meta"];
        assert_eq!((&meta["protocol"], &meta["route"]), (&json!("http"), &json!("acp")), "{name}: {result}");
        assert_eq!(fs::read_to_string(session.path().join("a.txt")).unwrap(), "content");
        let route = route(&session, name);
        assert_eq!(route["route"], "acp", "one session does not roll the workspace back: {route}");
        assert_eq!(route["window"]["failures"], 1, "the handshake counts as an outcome: {route}");
        session.post("close", json!({})).expect(200);
    }
    assert_eq!(program.metrics().sum("lumilink_session_fallbacks_total", &[]), BROKEN.len() as f64);
}

#[test]
fn fr_002_failed_handshake_without_headless_command_refuses_the_session() {
    let program = broken(false).start();
    for (name, _, code) in BROKEN {
        let refused = program.api.post("/acp/session/new", body(name, name));
        assert_eq!(refused.body["code"], code, "{name}: {}", refused.text);
        assert!([502, 504].contains(&refused.status), "{name}: {}", refused.text);
    }
    assert_eq!(program.metrics().sum("lumilink_session_fallbacks_total", &[]), 0.0);
}

#[test]
fn fr_002_runtime_without_acp_serves_sessions_over_http() {
    let program = Program::builder().set("runtime.acp", false).separate_runtime("runtime-token-0123456789").start();
    let session = program.api.open("ws");
    assert_eq!(session.opened["protocol"], "http", "{}", session.opened);
    session.completes("echo the word is maple");
    let context = session.completes("context");
    assert_eq!(context["meta"]["protocol"], "http", "{context}");
    assert!(context["meta"]["message"].as_str().unwrap().contains("maple"), "{context}");
    let (_, mut stream) = session.is_busy_with("echo started ; sleep 60");
    assert!(session.cancel());
    stream.rest();
    session.prompt("crash").problem(502, "agent_crashed");
    assert_eq!(session.says("echo still here"), "still here");
}

/// An agent whose handshake fails while `file` exists.
fn failing_while(file: &Path) -> Builder {
    fs::write(file, "").expect("a file");
    let program = lumilink();
    let script = format!(
        "if [ -e {} ]; then exec {program} demo-agent --refuse-handshake; fi; exec {program} demo-agent",
        file.display()
    );
    Program::builder()
        .set("agent.command", json!(["sh", "-c", script]))
        .set("agent.oneshot", demo_agent(&["--oneshot"]))
        .set("window.min_samples", 1000)
        .set("recovery.jitter_bp", 0)
}

#[test]
fn fr_002_session_on_fallback_retries_acp_after_the_cooldown() {
    let folder = tempfile::tempdir().expect("a folder");
    let marker = folder.path().join("ill");
    let program = failing_while(&marker).set("recovery.cooldown_s", 1).start();
    let session = program.api.open("ws");
    assert_eq!(session.opened["protocol"], "http", "{}", session.opened);
    session.completes("echo the word is maple");
    fs::remove_file(&marker).expect("the file exists");
    let back = wait_for(DEADLINE, "a turn over ACP", || {
        let result = session.completes("context");
        (result["meta"]["protocol"] == "acp").then_some(result)
    });
    assert!(
        back["meta"]["message"].as_str().unwrap().contains("maple"),
        "the agent gets the turns that it missed: {back}"
    );
    assert_eq!(session.state()["connectionStatus"], "connected");
    assert_eq!(session.completes("echo on")["meta"]["protocol"], "acp");
}

#[test]
fn fr_002_session_on_fallback_survives_a_kill_and_loads_over_a_working_route() {
    let folder = tempfile::tempdir().expect("a folder");
    let marker = folder.path().join("ill");
    let mut program = failing_while(&marker).start();
    let session = program.api.open("ws");
    session.completes("echo the word is maple");
    for (is_failing, protocol) in [(true, "http"), (false, "acp")] {
        if !is_failing {
            fs::remove_file(&marker).expect("the file exists");
        }
        program.kill_supervisor();
        program.start_supervisor_again();
        let loaded = session.post("load", json!({})).expect(200);
        assert_eq!(loaded["protocol"], protocol, "{loaded}");
        let result = session.completes("context");
        assert_eq!(result["meta"]["protocol"], protocol, "{result}");
        assert!(result["meta"]["message"].as_str().unwrap().contains("maple"), "{result}");
    }
}

#[test]
fn session_in_a_rolled_back_workspace_survives_hibernation_load_and_restart() {
    let mut program = Program::builder().set("session.idle_timeout_s", 1).set("recovery.cooldown_s", 1800).start();
    let session = program.api.open("ws");
    session.completes("echo the word is maple");
    roll_back(&session);
    assert_eq!(session.completes("echo over http")["meta"]["protocol"], "http");
    session.becomes("hibernated");
    let woken = session.completes("context");
    assert_eq!(woken["meta"]["protocol"], "http", "a prompt wakes it: {woken}");
    assert!(woken["meta"]["message"].as_str().unwrap().contains("maple"), "{woken}");
    session.becomes("hibernated");
    let loaded = session.post("load", json!({})).expect(200);
    assert_eq!(loaded["protocol"], "http", "{loaded}");
    program.kill_supervisor();
    program.start_supervisor_again();
    let loaded = session.post("load", json!({})).expect(200);
    assert_eq!(loaded["protocol"], "http", "{loaded}");
    let result = session.completes("context");
    assert!(result["meta"]["message"].as_str().unwrap().contains("maple"), "{result}");
    let restored = session.api.post("/acp/workspaces/ws/restore", json!({"actor": "a", "reason": "r"})).expect(200);
    assert_eq!(restored["route"], "acp", "{restored}");
    let result = session.completes("context");
    assert_eq!(result["meta"]["protocol"], "acp", "{result}");
    assert!(
        result["meta"]["message"].as_str().unwrap().contains("over http"),
        "the agent gets the turns that it missed: {result}"
    );
}

#[test]
fn drain_waits_for_http_turns_and_cancels_them_at_the_deadline() {
    let mut program = Program::builder().set("drain.timeout_s", 3).start();
    let (short, long) = (program.api.open("ws"), program.api.open("ws"));
    roll_back(&short);
    let (ends, _one) = short.is_busy_with("echo started ; sleep 1 ; echo finished");
    let (outlasts, _two) = long.is_busy_with("echo started ; sleep 60");
    assert_eq!(program.terminate(DEADLINE), Some(0));
    let folder = program.folder.clone();
    drop(program);
    let program = Program::builder().folder(&folder).start();
    let read = |id: &str| program.api.get(&format!("/acp/prompt/{id}")).expect(200);
    let (ended, cancelled) = (read(&ends), read(&outlasts));
    assert_eq!(
        (&ended["state"], &ended["result"]["meta"]["protocol"]),
        (&json!("completed"), &json!("http")),
        "{ended}"
    );
    assert_eq!(cancelled["state"], "cancelled", "{cancelled}");
}

#[test]
fn killed_supervisor_interrupts_an_http_turn_that_never_runs_twice() {
    for builder in [Program::builder(), Program::builder().behind_proxy()] {
        let mut program = builder.set("runtime.reconnect_grace_s", 1).start();
        let session = program.api.open("ws");
        roll_back(&session);
        let ran = session.path().join("ran.txt");
        let prompt = "run echo x >> ran.txt ; ticks 100000 20";
        let call = || session.call(prompt).header("idempotency-key", "key");
        let begun = call().header("prefer", "respond-async").send().expect(202);
        eventually("the prompt runs", || lines_of(&ran) == 1);
        program.kill_supervisor();
        program.start_supervisor_again();
        let path = format!("/acp/prompt/{}", begun["promptId"].as_str().unwrap());
        let row = session.api.get(&path).expect(200);
        assert_eq!(row["state"], "interrupted", "{row}");
        session.post("load", json!({})).expect(200);
        let again = call().send();
        assert_eq!(again.body["promptId"], begun["promptId"], "a repeat returns the same turn: {}", again.text);
        assert_eq!(again.body["code"], "interrupted", "{}", again.text);
        eventually("its agent has ended", || program.agents().is_empty());
        assert_eq!(lines_of(&ran), 1, "the prompt ran once");
        assert_eq!(session.says("echo on"), "on");
    }
}

#[test]
fn http_turn_of_a_killed_supervisor_is_stopped_and_not_left_running_beside_its_row() {
    // The grace is longer than the test waits, so that only the new supervisor can have stopped the agent.
    let mut program =
        Program::builder().separate_runtime("runtime-token-0123456789").set("runtime.reconnect_grace_s", 300).start();
    let session = program.api.open("ws");
    roll_back(&session);
    // The agent of the turn has answered, so it is not the one of the earlier connection over ACP.
    let (prompt_id, _) = session.is_busy_with("ticks 100000 20");
    eventually("only the agent of the turn is left", || program.agents().len() == 1);
    program.kill_supervisor();
    program.start_supervisor_again();
    let row = session.api.get(&format!("/acp/prompt/{prompt_id}")).expect(200);
    assert_eq!(row["state"], "interrupted", "{row}");
    eventually("its agent has ended", || program.agents().is_empty());
}
