//! Work of an agent outside a prompt turn: the state `background`, and turns that the agent begins by itself.

use crate::harness::{
    Program, Session, Value, block_on, eventually, json, processes,
    sse::{Event, message_of},
};

/// The result of a turn that the agent began by itself, from the events.
fn woken_result(events: &[Event], prompt_id: &str) -> Value {
    let result = events.iter().find(|event| event.name == "result" && event.data["promptId"] != prompt_id);
    result.unwrap_or_else(|| panic!("a result of the agent's turn in {events:#?}")).data["update"].clone()
}

/// The type, the text and whether it belongs to `prompt_id`, for each entry of the transcript.
fn entries(session: &Session, prompt_id: &str) -> Vec<(String, String, bool)> {
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    let row = |entry: &Value| (text(entry, "eventType"), text(entry, "text"), entry["promptId"] == prompt_id);
    session.transcript().iter().map(row).collect()
}

fn result_of_another(event: &Event, prompt_id: &str) -> bool {
    event.name == "result" && event.data["promptId"] != prompt_id
}

#[test]
fn turn_that_an_agent_begins_by_itself_is_a_turn_with_its_permission_and_result() {
    for announcement in ["background", "background-qwen"] {
        let program = Program::start();
        let session = program.api.open("ws");
        let mut events = program.api.events(&format!("/acp/session/{}/events", session.id));
        let prompt = format!("echo started ; {announcement} 300 ask , echo and ready");
        let prompt_id = session.completes(&prompt)["meta"]["promptId"].as_str().unwrap().to_owned();
        session.becomes("background");
        let seen = events.until("the result of the agent's turn", |event| result_of_another(event, &prompt_id));
        let result = woken_result(&seen, &prompt_id);
        let woken = result["meta"]["promptId"].as_str().unwrap().to_owned();
        assert_eq!(result["stopReason"], "completed", "{result}");
        assert_eq!(result["meta"]["acpStopReason"], Value::Null, "no answer ended it: {result}");
        assert!(result["meta"]["message"].as_str().unwrap().ends_with("and ready"), "{result}");
        assert!(
            result["meta"]["message"].as_str().unwrap().starts_with("allow"),
            "its permission was given: {result}"
        );
        let updates: Vec<_> = seen.iter().filter(|event| event.data["promptId"] == woken.as_str()).cloned().collect();
        assert!(message_of(&updates).ends_with("and ready"), "its updates name it: {updates:#?}");
        let turn = program.api.get(&format!("/acp/prompt/{woken}")).expect(200);
        assert_eq!(
            (turn["initiator"].as_str(), turn["state"].as_str()),
            (Some("agent"), Some("completed")),
            "{turn}"
        );
        let first = program.api.get(&format!("/acp/prompt/{prompt_id}")).expect(200);
        assert_eq!(first["initiator"], "user");
        let idle = session.becomes("idle");
        assert_eq!(idle["runningPromptId"], Value::Null);
        let entries = entries(&session, &woken);
        let place = entries.iter().position(|(kind, _, _)| kind == "agent_turn").expect("the note of its begin");
        assert!(entries[..place].iter().all(|(_, _, of_woken)| !of_woken), "{entries:?}");
        assert!(entries[place..].iter().all(|(_, _, of_woken)| *of_woken), "{entries:?}");
        assert!(entries.iter().any(|(kind, _, _)| kind == "permission"), "{entries:?}");
        assert_eq!(program.metrics().sum("lumilink_woken_turns_total", &[]), 1.0);
        assert_eq!(program.metrics().sum("lumilink_turns_ended_total", &[]), 1.0, "it counts in no rate");
        assert_eq!(session.says("echo next"), "next");
    }
}

#[test]
fn session_with_background_work_does_not_hibernate_before_it_ends() {
    let program = Program::builder().set("session.idle_timeout_s", 1).start();
    let session = program.api.open("ws");
    let pid: i32 = session.says("pid").trim().parse().expect("a pid");
    let mut events = program.api.events(&format!("/acp/session/{}/events?from=live", session.id));
    let prompt_id =
        session.completes("background 2500 echo survived")["meta"]["promptId"].as_str().unwrap().to_owned();
    let seen = events.until("the agent's turn", |event| result_of_another(event, &prompt_id));
    assert_eq!(woken_result(&seen, &prompt_id)["meta"]["message"], "survived");
    assert!(processes::is_alive(pid), "the same agent ran all the time");
    session.becomes("hibernated");
    eventually("the agent has ended", || !processes::is_alive(pid));
}

#[test]
fn call_that_an_agent_leaves_open_delays_hibernation_until_the_inactivity_limit() {
    let program = Program::builder().set("session.idle_timeout_s", 1).set("turn.inactivity_timeout_s", 2).start();
    let session = program.api.open("ws");
    session.completes("open-call 3600000");
    assert_eq!(session.state()["state"], "background");
    session.becomes("hibernated");
    let notes: Vec<_> = session.conversation().into_iter().filter(|(kind, _)| kind == "info").collect();
    assert!(notes.is_empty(), "a call that is never ended is no loss: {notes:?}");
}

#[test]
fn background_work_keeps_a_session_no_longer_than_its_limit_and_its_end_is_reported() {
    let program = Program::builder().set("session.idle_timeout_s", 1).set("session.background_max_s", 1).start();
    let session = program.api.open("ws");
    session.completes("background 3600000 echo never");
    session.becomes("background");
    session.becomes("hibernated");
    let entries = entries(&session, "");
    let note = entries.iter().find(|(kind, _, _)| kind == "info").unwrap_or_else(|| panic!("a note in {entries:?}"));
    assert!(note.1.contains("1 background task") && note.1.contains("hibernated"), "{note:?}");
    assert_eq!(session.says("echo back"), "back");
}

#[test]
fn updates_of_a_call_that_stays_open_change_its_entry_and_begin_no_turn() {
    let program = Program::start();
    let session = program.api.open("ws");
    let prompt_id = session.completes("open-call 1500")["meta"]["promptId"].as_str().unwrap().to_owned();
    session.becomes("background");
    session.becomes("idle");
    eventually("the call is completed in the transcript", || {
        let calls = session.transcript();
        calls.iter().any(|entry| entry["payload"]["status"] == "completed" && entry["promptId"] == prompt_id.as_str())
    });
    assert_eq!(program.metrics().sum("lumilink_woken_turns_total", &[]), 0.0);
}

#[test]
fn output_long_after_a_turn_is_a_turn_of_the_agent_that_ends_by_silence() {
    let program = Program::builder().set("turn.quiet_max_s", 1).start();
    let session = program.api.open("ws");
    let mut events = program.api.events(&format!("/acp/session/{}/events", session.id));
    let prompt_id =
        session.completes("unannounced 1500 echo by the way")["meta"]["promptId"].as_str().unwrap().to_owned();
    let seen = events.until("the agent's turn", |event| result_of_another(event, &prompt_id));
    let result = woken_result(&seen, &prompt_id);
    assert_eq!(result["meta"]["message"], "by the way");
    assert!(result["diagnostics"].to_string().contains("fell silent"), "{result}");
}

#[test]
fn prompt_during_background_work_gets_its_own_output_and_the_other_turn_follows() {
    let program = Program::start();
    let session = program.api.open("ws");
    let mut events = program.api.events(&format!("/acp/session/{}/events", session.id));
    let first =
        session.completes("background 300 echo from the task")["meta"]["promptId"].as_str().unwrap().to_owned();
    // The task ends in the middle of this turn; the agent begins its own turn right after the answer.
    let result = session.completes("echo one ; sleep 1 ; echo two");
    let second = result["meta"]["promptId"].as_str().unwrap().to_owned();
    assert_eq!(result["meta"]["message"], "onetwo");
    let is_woken = |event: &Event| {
        event.name == "result"
            && event.data["promptId"] != first.as_str()
            && event.data["promptId"] != second.as_str()
    };
    let seen = events.until("the agent's turn", is_woken);
    assert_eq!(seen.last().unwrap().data["update"]["meta"]["message"], "from the task");
}

#[test]
fn permission_request_outside_a_turn_waits_for_a_person_under_the_ask_policy() {
    let program = Program::start();
    let body = json!({"workspaceId": "ws", "installationId": "tenant-1", "permissionPolicy": "ask"});
    let session = program.api.open_with(body);
    let mut events = program.api.events(&format!("/acp/session/{}/events", session.id));
    let prompt_id = session.completes("background 200 ask")["meta"]["promptId"].as_str().unwrap().to_owned();
    let seen = events.until("the request", |event| event.name == "permission_request");
    let request = &seen.last().unwrap().data;
    assert!(request["promptId"].is_string() && request["promptId"] != prompt_id.as_str(), "{request}");
    session.post("permission", json!({"requestId": request["update"]["requestId"], "optionId": "allow"})).expect(200);
    let seen = events.until("the agent's turn", |event| result_of_another(event, &prompt_id));
    assert_eq!(woken_result(&seen, &prompt_id)["meta"]["message"], "allow");
}

#[test]
fn cancel_of_a_turn_that_the_agent_began_ends_it_as_cancelled() {
    let program = Program::start();
    let session = program.api.open("ws");
    let mut events = program.api.events(&format!("/acp/session/{}/events", session.id));
    let prompt_id =
        session.completes("background 100 echo begun , sleep 60")["meta"]["promptId"].as_str().unwrap().to_owned();
    events.until("its output", |event| event.name == "update" && event.data["promptId"] != prompt_id.as_str());
    assert!(session.cancel());
    let seen = events.until("its end", |event| result_of_another(event, &prompt_id));
    assert_eq!(woken_result(&seen, &prompt_id)["stopReason"], "cancelled");
}

#[test]
fn closing_a_session_ends_the_turn_that_its_agent_began() {
    let program = Program::start();
    let session = program.api.open("ws");
    let mut events = program.api.events(&format!("/acp/session/{}/events", session.id));
    let prompt_id =
        session.completes("background 100 echo begun , sleep 60")["meta"]["promptId"].as_str().unwrap().to_owned();
    let seen =
        events.until("its output", |event| event.name == "update" && event.data["promptId"] != prompt_id.as_str());
    let woken = seen.last().unwrap().data["promptId"].as_str().unwrap().to_owned();
    session.post("close", json!({})).expect(200);
    assert_eq!(session.ends(&woken)["state"], "cancelled");
}

fn crash_reports_background_work(postgres: bool) {
    let builder = Program::builder();
    let mut program = if postgres { builder.postgres().start() } else { builder.start() };
    let (announced, begun) = (program.api.open("announced"), program.api.open("begun"));
    announced.completes("background 3600000 echo never");
    announced.becomes("background");
    let mut events = program.api.events(&format!("/acp/session/{}/events", begun.id));
    let prompt_id =
        begun.completes("background 100 echo begun , sleep 60")["meta"]["promptId"].as_str().unwrap().to_owned();
    let seen =
        events.until("its output", |event| event.name == "update" && event.data["promptId"] != prompt_id.as_str());
    let woken = seen.last().unwrap().data["promptId"].as_str().unwrap().to_owned();
    begun.becomes("background");
    // The rows of both are written before this session, whose opening is answered after its commit.
    program.api.open("last");
    program.kill_supervisor();
    program.start_supervisor_again();
    for session in [&announced, &begun] {
        assert_eq!(session.state()["state"], "hibernated", "no turn of a user was interrupted");
        let entries = entries(session, "");
        assert!(entries.iter().any(|(kind, text, _)| kind == "info" && text.contains("cut off")), "{entries:?}");
    }
    let turn = program.api.get(&format!("/acp/prompt/{woken}")).expect(200);
    assert_eq!((turn["state"].as_str(), turn["initiator"].as_str()), (Some("interrupted"), Some("agent")), "{turn}");
    assert_eq!(begun.says("echo back"), "back");
}

#[test]
fn background_work_that_died_with_the_service_is_reported_on_sqlite() {
    crash_reports_background_work(false);
}

#[test]
fn background_work_that_died_with_the_service_is_reported_on_postgres() {
    crash_reports_background_work(true);
}

#[test]
fn background_work_that_died_with_its_agent_is_reported() {
    let program = Program::start();
    let session = program.api.open("ws");
    let pid: i32 = session.says("pid").trim().parse().expect("a pid");
    session.completes("background 3600000 echo never");
    session.becomes("background");
    processes::signal(pid, libc::SIGKILL);
    eventually("the loss is noted", || {
        entries(&session, "").iter().any(|(kind, text, _)| kind == "info" && text.contains("the agent stopped"))
    });
}

#[test]
fn runtime_counts_the_processes_that_a_turn_left_behind() {
    const TOKEN: &str = "runtime-token-0123456789";
    let program = Program::builder().separate_runtime(TOKEN).start();
    let opened =
        program.api.post("/acp/session/new", json!({"workspaceId": "ws", "installationId": "tenant-1"})).expect(201);
    let base = program.runtime_url().replace("ws://", "http://").replace("/acp", "");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let ask = |token: &str, body: &Value| {
        let request = client.post(format!("{base}/agent/processes")).bearer_auth(token).json(body);
        block_on(async {
            let answer = request.send().await.unwrap();
            (answer.status().as_u16(), answer.json::<Value>().await.unwrap_or_default())
        })
    };
    let count = |within_ms: u64| {
        let (status, answer) = ask(TOKEN, &json!({"connectionId": opened["connectionId"], "withinMs": within_ms}));
        assert_eq!(status, 200, "{answer}");
        answer["processes"].clone()
    };
    assert_eq!(count(3_600_000), 0, "the agent itself does not count");
    let prompt = json!({"sessionId": opened["sessionId"], "prompt": "leave 1000"});
    program.api.post("/acp/session/prompt", prompt).expect(200);
    assert_eq!(count(3_600_000), 1);
    let unknown = json!({"connectionId": "01a22ab0-b42f-7027-bf89-b90c6fe426e6", "withinMs": 1});
    assert_eq!(ask(TOKEN, &unknown).0, 404);
    assert_eq!(ask("another", &unknown).0, 401);
}
