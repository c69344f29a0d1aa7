//! Cancellation of turns: the result reports whether a turn was cancelled.

use std::time::{Duration, Instant};

use crate::harness::{DEADLINE, Program, api::result_of, json};

#[test]
fn running_turn_is_cancelled_and_reports_it() {
    let program = Program::start();
    let session = program.api.open("ws");
    let (prompt_id, mut stream) = session.is_busy_with("echo started ; sleep 60");
    assert!(session.cancel());
    let events = stream.rest();
    let result = result_of(&program.api, &events);
    assert_eq!(result["stopReason"], "cancelled");
    assert_eq!(result["meta"]["acpStopReason"], "cancelled");
    assert_eq!(session.ends(&prompt_id)["state"], "cancelled");
    assert_eq!(session.says("echo next"), "next");
}

#[test]
fn cancelling_an_idle_session_reports_that_nothing_ran() {
    let program = Program::start();
    let session = program.api.open("ws");
    assert!(!session.cancel());
    session.completes("echo a");
    assert!(!session.cancel());
}

#[test]
fn cancel_of_another_turn_does_not_affect_the_running_one() {
    let program = Program::start();
    let session = program.api.open("ws");
    let first = session.starts("echo first");
    session.ends(&first);
    let (second, mut stream) = session.is_busy_with("echo started ; sleep 60");
    let stale = session.post("cancel", json!({"promptId": first})).expect(200);
    assert_eq!(stale["cancelled"], false);
    assert_eq!(session.state()["state"], "running");
    let matching = session.post("cancel", json!({"promptId": second})).expect(200);
    assert_eq!(matching["cancelled"], true);
    stream.rest();
}

#[test]
fn agent_that_ignores_a_cancel_is_replaced_after_the_grace_period() {
    let program = Program::builder().set("turn.cancel_grace_s", 1).start();
    let session = program.api.open("ws");
    let before = session.says("pid");
    let (prompt_id, mut stream) = session.is_busy_with("echo started ; ignore-cancel ; sleep 60");
    let begin = Instant::now();
    assert!(session.cancel());
    stream.rest();
    let ended = session.ends(&prompt_id);
    assert!(begin.elapsed() < DEADLINE && begin.elapsed() >= Duration::from_millis(500), "{:?}", begin.elapsed());
    assert_eq!((&ended["state"], &ended["result"]["stopReason"]), (&json!("cancelled"), &json!("cancelled")));
    session.becomes("idle");
    assert_ne!(session.says("pid"), before, "the session has a fresh agent");
}

#[test]
fn cancel_resolves_a_pending_permission_request() {
    let program = Program::builder().set("permission.policy", "ask").start();
    let session = program.api.open("ws");
    let mut stream = session.streams("ask");
    stream.until("the request", |event| event.name == "permission_request");
    assert!(session.cancel());
    assert_eq!(result_of(&program.api, &stream.rest())["stopReason"], "cancelled");
    assert_eq!(session.says("echo next"), "next");
}

/// A program with a session on each route, whose agent has these flags.
fn on_each_route(flags: &[&str]) -> (Program, [crate::harness::Session; 2]) {
    let program = Program::builder().demo_agent(flags).start();
    let sessions = [program.api.open("acp"), program.api.open("http")];
    let why = json!({"actor": "test", "reason": "test"});
    program.api.post("/acp/workspaces/http/rollback", why).expect(200);
    (program, sessions)
}

#[test]
fn cancelled_turn_ends_cancelled_though_the_agent_answers_end_turn() {
    let (program, sessions) = on_each_route(&["--deny-cancel"]);
    for session in sessions {
        let (prompt_id, mut stream) = session.is_busy_with("echo started ; sleep 60");
        assert!(session.cancel());
        assert_eq!(result_of(&program.api, &stream.rest())["stopReason"], "cancelled");
        assert_eq!(session.ends(&prompt_id)["state"], "cancelled");
        assert_eq!(session.says("echo next"), "next");
    }
}

#[test]
fn prompt_right_after_a_cancel_is_taken() {
    let program = Program::start();
    let session = program.api.open("ws");
    let (first, _stream) = session.is_busy_with("echo started ; linger 300");
    assert!(session.cancel());
    assert_eq!(session.says("echo next"), "next");
    assert_eq!(session.ends(&first)["state"], "cancelled");
}
