//! Answers to an agent's permission requests: by policy, by the caller, or by the timeout.

use crate::harness::{Program, Session, api::result_of, json, sse::message_of};

fn open(program: &Program, policy: &str) -> Session {
    let body =
        json!({"workspaceId": format!("ws-{policy}"), "installationId": "tenant-1", "permissionPolicy": policy});
    program.api.open_with(body)
}

#[test]
fn permission_policy_answers_without_asking_the_caller() {
    let program = Program::start();
    for (policy, allows) in [("allow-once", true), ("allow-always", true), ("reject", false)] {
        let events = open(&program, policy).streams("ask").rest();
        let message = message_of(&events).to_lowercase();
        assert!(!events.iter().any(|event| event.name == "permission_request"), "no request event under {policy}");
        assert_eq!(message.contains("allow"), allows, "under {policy} the agent answered: {message}");
    }
}

#[test]
fn ask_policy_emits_the_request_and_forwards_the_answer_to_the_agent() {
    let program = Program::start();
    let session = open(&program, "ask");
    let mut stream = session.streams("ask");
    let seen = stream.until("the request", |event| event.name == "permission_request");
    let request = &seen.last().unwrap().data["update"];
    let options = request["options"].as_array().expect("options");
    let allow = options.iter().find(|option| option["kind"] == "allow_once").expect("an option that allows once");
    let answer = json!({"requestId": request["requestId"], "optionId": allow["optionId"]});
    session.post("permission", answer.clone()).expect(200);
    let rest = stream.rest();
    assert_eq!(result_of(&program.api, &rest)["stopReason"], "completed");
    assert!(rest.iter().any(|event| event.name == "permission_resolved"), "{rest:#?}");
    session.post("permission", answer).problem(409, "permission_not_pending");
}

#[test]
fn unknown_option_is_refused_and_the_request_stays_pending() {
    let program = Program::start();
    let session = open(&program, "ask");
    let mut stream = session.streams("ask");
    let seen = stream.until("the request", |event| event.name == "permission_request");
    let request_id = &seen.last().unwrap().data["update"]["requestId"];
    let refused = session.post("permission", json!({"requestId": request_id, "optionId": "no-such-option"}));
    assert!([400, 409].contains(&refused.status), "{}", refused.text);
    session.post("permission", json!({"requestId": request_id, "cancelled": true})).expect(200);
    result_of(&program.api, &stream.rest());
}

#[test]
fn unanswered_request_is_rejected_after_the_timeout() {
    let program = Program::builder().set("permission.timeout_s", 1).start();
    let session = open(&program, "ask");
    let events = session.streams("ask").rest();
    assert_eq!(result_of(&program.api, &events)["stopReason"], "completed");
    assert!(!message_of(&events).to_lowercase().contains("allow"), "{events:#?}");
}

#[test]
fn permission_decision_is_in_the_transcript() {
    let program = Program::start();
    let session = open(&program, "reject");
    session.completes("ask");
    assert!(session.conversation().iter().any(|(kind, _)| kind == "permission"), "{:?}", session.conversation());
}
