//! Answers to an agent's permission requests: by policy, by the caller, or by the timeout.

use crate::harness::{
    Program, Session, Value,
    api::result_of,
    eventually, json,
    sse::{Event, Sse, message_of},
};

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

/// The permission requests of the session that wait.
fn waiting(session: &Session) -> Vec<Value> {
    session.state()["permissionRequests"].as_array().cloned().unwrap_or_default()
}

fn request_in(stream: &mut Sse) -> Value {
    stream.until("the request", |event| event.name == "permission_request").pop().unwrap().data
}

fn resolved_in(events: &[Event]) -> &Value {
    &events.iter().find(|event| event.name == "permission_resolved").expect("it is resolved").data["update"]
}

fn late_reader(program: &Program, session: &Session) -> Sse {
    program.api.events(&format!("/acp/session/{}/events?from=live", session.id))
}

#[test]
fn waiting_permission_request_is_found_until_it_is_answered() {
    let program = Program::start();
    let session = open(&program, "ask");
    let mut stream = session.streams("flood 2000 ; ask");
    let event = request_in(&mut stream);
    let found = waiting(&session);
    assert_eq!(found.len(), 1, "{found:?}");
    for (member, expected) in [
        ("requestId", &event["update"]["requestId"]),
        ("promptId", &event["promptId"]),
        ("toolCall", &event["update"]["toolCall"]),
        ("options", &event["update"]["options"]),
        ("since", &event["update"]["since"]),
        ("deadline", &event["update"]["deadline"]),
    ] {
        assert_eq!(&found[0][member], expected, "{member}");
    }
    assert!(found[0]["since"].as_str() < found[0]["deadline"].as_str());
    let mut late = late_reader(&program, &session);
    let first = late.next().expect("an event");
    assert_eq!((first.name.as_str(), first.id), ("permission_request", None));
    assert_eq!(first.data, event);
    let answer = json!({"requestId": event["update"]["requestId"], "optionId": "reject"});
    session.post("permission", answer).expect(200);
    let resolved = late.next().expect("an event");
    assert_eq!(resolved.name, "permission_resolved");
    let expected = json!({
        "requestId": event["update"]["requestId"], "toolCallId": event["update"]["toolCall"]["toolCallId"],
        "outcome": "selected", "optionId": "reject", "by": "user",
        "option": {"optionId": "reject", "name": "Reject", "kind": "reject_once"},
    });
    assert_eq!(resolved.data["update"], expected);
    stream.rest();
    assert!(waiting(&session).is_empty());
}

#[test]
fn option_of_an_unknown_kind_does_not_spoil_the_request() {
    let program = Program::start();
    let session = open(&program, "ask");
    let mut stream = session.streams("ask allow_once allow_persistent reject_once");
    let event = request_in(&mut stream);
    assert_eq!(event["update"]["options"].as_array().unwrap().len(), 3, "{event}");
    let answer = json!({"requestId": event["update"]["requestId"], "optionId": "allow_persistent"});
    session.post("permission", answer).expect(200);
    assert_eq!(message_of(&stream.rest()), "allow_persistent");
}

#[test]
fn policy_chooses_the_best_offered_option_over_both_routes() {
    let program = Program::start();
    for route in ["acp", "http"] {
        for (policy, offered, expected) in [
            ("allow-once", "allow_always reject_once", "reject_once"),
            ("allow-once", "allow_persistent reject_always", "reject_always"),
            ("allow-always", "allow_persistent allow_once", "allow_once"),
            ("reject", "allow_once reject_always", "reject_always"),
            ("reject", "allow_once allow_persistent", "cancelled"),
        ] {
            let session = pinned(&program, policy, route);
            let events = session.streams(&format!("ask {offered}")).rest();
            assert_eq!(message_of(&events), expected, "{policy} of {offered} over {route}");
            let resolved = resolved_in(&events);
            assert!(resolved["requestId"].as_str().is_some_and(|id| id.len() == 36), "{resolved}");
            assert!(resolved["toolCallId"].is_string(), "{resolved}");
            assert_eq!(resolved["by"], policy);
            if expected != "cancelled" {
                let option = json!({"optionId": expected, "name": expected, "kind": expected});
                assert_eq!((&resolved["optionId"], &resolved["option"]), (&json!(expected), &option));
            }
        }
    }
}

/// A session of a workspace of its own that is pinned to a route.
fn pinned(program: &Program, policy: &str, route: &str) -> Session {
    let workspace = format!("ws-{policy}-{route}");
    let body = json!({"workspaceId": workspace, "installationId": "tenant-1", "permissionPolicy": policy});
    let first = program.api.open_with(body.clone());
    let pin = json!({"pin": {"protocol": route}, "actor": "test", "reason": "to choose the route"});
    program.api.call("PUT", &format!("/acp/workspaces/{workspace}/protocol")).json(&pin).send().expect(200);
    first.post("close", json!({})).expect(200);
    program.api.open_with(body)
}

#[test]
fn request_that_the_agent_withdraws_does_not_wait_any_more() {
    let program = Program::start();
    let session = open(&program, "ask");
    let events = session.streams("withdraw").rest();
    assert_eq!(message_of(&events), "1 error -32800", "the own request is answered, the unknown one ignored");
    let resolved = resolved_in(&events);
    assert_eq!((&resolved["by"], &resolved["outcome"]), (&json!("withdrawn"), &json!("cancelled")));
    assert!(waiting(&session).is_empty());
    let request = json!({"requestId": resolved["requestId"], "optionId": "allow"});
    session.post("permission", request).problem(409, "permission_not_pending");
    assert_eq!(session.says("echo next"), "next");
}

#[test]
fn withdrawal_over_the_fallback_disturbs_nothing() {
    let program = Program::start();
    let session = pinned(&program, "reject", "http");
    assert_eq!(session.says("withdraw"), "1 reject");
}

#[test]
fn cancel_ends_a_waiting_request() {
    let program = Program::start();
    let session = open(&program, "ask");
    let mut stream = session.streams("ask");
    let event = request_in(&mut stream);
    assert!(session.cancel());
    let events = stream.rest();
    let resolved = resolved_in(&events);
    assert_eq!((&resolved["by"], &resolved["outcome"]), (&json!("cancel"), &json!("cancelled")));
    assert_eq!(resolved["requestId"], event["update"]["requestId"]);
    assert!(waiting(&session).is_empty());
}

#[test]
fn crash_of_the_agent_ends_a_waiting_request() {
    let program = Program::start();
    let session = open(&program, "ask");
    let pid: i32 = session.says("pid").parse().unwrap();
    let mut stream = session.streams("ask");
    request_in(&mut stream);
    // SAFETY: sends a signal to the agent of this test, which waits for the answer.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
    let events = stream.rest();
    assert_eq!(resolved_in(&events)["by"], "turn_end");
    session.becomes("idle");
    assert!(waiting(&session).is_empty());
}

#[test]
fn waiting_request_of_a_killed_supervisor_is_found_again() {
    let mut program = Program::builder().separate_runtime("runtime-token-of-the-tests").start();
    let session = open(&program, "ask");
    let (prompt_id, mut stream) = session.is_busy_with("echo started ; ask");
    request_in(&mut stream);
    program.kill_supervisor();
    program.start_supervisor_again();
    eventually("the request waits again", || waiting(&session).len() == 1);
    let found = waiting(&session).remove(0);
    assert_eq!(found["promptId"], prompt_id.as_str());
    session.post("permission", json!({"requestId": found["requestId"], "optionId": "allow"})).expect(200);
    assert_eq!(session.ends(&prompt_id)["state"], "completed");
}

#[test]
fn request_in_a_turn_that_the_agent_began_is_found_too() {
    let program = Program::start();
    let session = open(&program, "ask");
    let mut events = program.api.events(&format!("/acp/session/{}/events", session.id));
    let prompt_id = session.completes("background 200 ask")["meta"]["promptId"].clone();
    request_in(&mut events);
    let found = waiting(&session).remove(0);
    assert!(found["promptId"].is_string() && found["promptId"] != prompt_id, "{found}");
    session.post("permission", json!({"requestId": found["requestId"], "cancelled": true})).expect(200);
    let resolved = events.until("the end", |event| event.name == "permission_resolved").pop().unwrap();
    assert_eq!(resolved.data["promptId"], found["promptId"]);
    assert!(waiting(&session).is_empty());
}

#[test]
fn waiting_permission_request_holds_hibernation_off() {
    let settings = [("session.idle_timeout_s", 1), ("session.background_max_s", 1), ("permission.timeout_s", 120)];
    let program = settings.into_iter().fold(Program::builder(), |it, (name, value)| it.set(name, value)).start();
    let (session, clock) = (open(&program, "ask"), program.api.open("clock"));
    // Longer than the idle timeout: another session hibernates meanwhile.
    let still_waits = || {
        clock.completes("echo tick");
        clock.becomes("hibernated");
        waiting(&session).remove(0)
    };
    let (prompt_id, mut stream) = session.is_busy_with("echo started ; ask");
    request_in(&mut stream);
    let found = still_waits();
    session.post("permission", json!({"requestId": found["requestId"], "optionId": "allow"})).expect(200);
    assert_eq!(session.ends(&prompt_id)["state"], "completed");
    // In a turn that the agent began, whose session counts as idle after `background_max_s`.
    let mut events = late_reader(&program, &session);
    session.completes("background 200 ask");
    let asked = request_in(&mut events);
    session.becomes("idle");
    let found = still_waits();
    assert_eq!(found["requestId"], asked["update"]["requestId"]);
    session.post("permission", json!({"requestId": found["requestId"], "optionId": "allow"})).expect(200);
    session.becomes("hibernated");
    assert!(waiting(&session).is_empty());
}

#[test]
fn agent_that_asks_without_end_gets_a_no_and_is_shown_bounded() {
    let program = Program::start();
    let session = open(&program, "ask");
    let mut stream = session.streams("ask-many 300");
    stream.until("the last rejection", {
        let count = std::cell::Cell::new(0);
        move |event| {
            count.set(count.get() + u32::from(event.name == "permission_resolved"));
            count.get() == 300 - 32
        }
    });
    let found = waiting(&session);
    assert_eq!(found.len(), 32);
    for request in found {
        session.post("permission", json!({"requestId": request["requestId"], "optionId": "allow"})).expect(200);
    }
    assert_eq!(message_of(&stream.rest()), "32 allow, 268 reject");
}

#[test]
fn request_that_is_sent_twice_is_asked_and_answered_once() {
    let program = Program::start();
    let session = open(&program, "ask");
    let mut stream = session.streams("ask-twice");
    let event = request_in(&mut stream);
    let repeated = |event: &Event| event.name == "diagnostic" && event.data.to_string().contains("waits already");
    stream.until("the diagnostic", repeated);
    assert_eq!(waiting(&session).len(), 1);
    let answer = json!({"requestId": event["update"]["requestId"], "optionId": "allow"});
    session.post("permission", answer.clone()).expect(200);
    session.post("permission", answer).problem(409, "permission_not_pending");
    assert_eq!(message_of(&stream.rest()), "1 allow");
}

#[test]
fn request_with_a_title_of_megabytes_is_shown_cut() {
    let program = Program::start();
    let session = open(&program, "ask");
    let mut stream = session.streams("ask-huge 4000000 10000");
    let event = request_in(&mut stream);
    assert_eq!(event["update"]["options"].as_array().unwrap().len(), 32);
    let found = waiting(&session).remove(0);
    assert!(found.to_string().len() < 128 * 1024, "{} bytes", found.to_string().len());
    assert_eq!(found["toolCall"]["_meta"]["lumilink"]["truncated"], true);
    let first = late_reader(&program, &session).next().unwrap();
    assert_eq!(first.data["update"]["toolCall"], found["toolCall"]);
    session.post("permission", json!({"requestId": found["requestId"], "optionId": "o31"})).expect(200);
    assert_eq!(message_of(&stream.rest()), "1 o31");
}
