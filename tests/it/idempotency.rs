//! `Idempotency-Key`: one key, one execution.

use std::thread;

use crate::harness::{Answer, Program, Session, json};

fn send(session: &Session, prompt: &str, key: &str) -> Answer {
    session.call(prompt).header("idempotency-key", key).send()
}

#[test]
fn repeat_returns_the_same_answer_and_runs_nothing() {
    let program = Program::start();
    let session = program.api.open("ws");
    let first = send(&session, "count", "key-1").expect(200);
    let again = send(&session, "count", "key-1").expect(200);
    assert_eq!(first, again);
    assert_ne!(first, send(&session, "count", "key-2").expect(200));
    assert_eq!(session.conversation().len(), 4, "two turns ran");
}

#[test]
fn repeat_joins_the_running_turn() {
    let program = Program::start();
    let session = program.api.open("ws");
    let (one, two) = (session.clone(), session.clone());
    let one = thread::spawn(move || send(&one, "ticks 10 50 ; count", "key").expect(200));
    let two = thread::spawn(move || send(&two, "ticks 10 50 ; count", "key").expect(200));
    assert_eq!(one.join().unwrap(), two.join().unwrap());
    assert_eq!(session.conversation().iter().filter(|(kind, _)| kind == "user_message").count(), 1);
}

#[test]
fn key_with_a_different_body_is_rejected_with_422() {
    let program = Program::start();
    let session = program.api.open("ws");
    send(&session, "echo a", "key").expect(200);
    send(&session, "echo b", "key").problem(422, "idempotency_mismatch");
}

#[test]
fn repeat_of_a_failed_turn_returns_the_same_failure() {
    let program = Program::start();
    let session = program.api.open("ws");
    let first = send(&session, "error -32603 boom", "key").problem(502, "agent_error");
    let again = send(&session, "error -32603 boom", "key").problem(502, "agent_error");
    assert_eq!(first["promptId"], again["promptId"]);
}

#[test]
fn key_is_scoped_to_its_session() {
    let program = Program::start();
    let (one, two) = (program.api.open("ws"), program.api.open("ws"));
    let one = send(&one, "echo a", "key").expect(200);
    let two = send(&two, "echo a", "key").expect(200);
    assert_ne!(one["meta"]["promptId"], two["meta"]["promptId"]);
}

#[test]
fn key_survives_a_restart_of_the_program() {
    let program = Program::start();
    let session = program.api.open("ws");
    let first = send(&session, "echo once", "key").expect(200);
    let folder = program.stop();
    let program = Program::builder().folder(&folder).start();
    let body = json!({"sessionId": session.id, "prompt": "echo once"});
    let again = program.api.call("POST", "/acp/session/prompt").header("idempotency-key", "key").json(&body).send();
    assert_eq!(again.expect(200)["meta"]["promptId"], first["meta"]["promptId"]);
}
