//! Agents without a running turn that a killed supervisor left in a separate runtime.

use crate::harness::{Program, Session, eventually, json, processes, sse::Event};

fn entries(session: &Session) -> Vec<(String, String)> {
    session.conversation()
}

#[test]
fn loads_after_a_crash_adopt_idle_agents_and_need_no_second_seat() {
    let mut program = Program::builder().behind_proxy().set("runtime.max_agents", 4).start();
    // All four seats of the runtime are taken.
    let sessions: Vec<_> = (0..4).map(|n| program.api.open(&format!("ws-{n}"))).collect();
    let pids: Vec<String> = sessions.iter().map(|session| session.says("pid")).collect();
    let before: Vec<_> = sessions.iter().map(entries).collect();
    program.kill_supervisor();
    program.start_supervisor_again();
    for session in &sessions[..2] {
        assert_eq!(session.state()["state"], "hibernated");
        session.post("load", json!({})).expect(200);
    }
    let stored: Vec<_> = sessions.iter().map(entries).collect();
    assert_eq!(stored, before, "nothing is doubled");
    let after: Vec<String> = sessions.iter().map(|session| session.says("pid")).collect();
    assert_eq!(after, pids, "loads and prompts adopt the agents");
    assert_eq!(program.agents().len(), 4);
    for session in &sessions {
        let texts: Vec<_> = entries(session).into_iter().map(|(kind, _)| kind).collect();
        assert_eq!(texts, ["user_message", "agent_message", "user_message", "agent_message"]);
    }
}

#[test]
fn second_crash_finds_the_adopted_agents_again() {
    let mut program = Program::builder().behind_proxy().start();
    let session = program.api.open("ws");
    let pid = session.says("pid");
    for _ in 0..3 {
        program.kill_supervisor();
        program.start_supervisor_again();
        assert_eq!(session.says("pid"), pid);
    }
    assert_eq!(session.conversation().len(), 8, "{:?}", session.conversation());
}

#[test]
fn load_with_other_servers_ends_the_agent_that_was_left() {
    let mut program = Program::builder().behind_proxy().set("runtime.max_agents", 1).start();
    let session = program.api.open("ws");
    let pid: i32 = session.says("pid").trim().parse().expect("a pid");
    program.kill_supervisor();
    program.start_supervisor_again();
    eventually("the old agent's seat is free", || session.post("load", json!({"mcpServers": []})).status == 200);
    assert_ne!(session.says("pid").trim(), pid.to_string());
    eventually("the old agent has ended", || !processes::is_alive(pid));
}

#[test]
fn background_work_continues_over_a_killed_supervisor() {
    let mut program = Program::builder().behind_proxy().start();
    let session = program.api.open("ws");
    let pid = session.says("pid");
    let prompt_id =
        session.completes("background 3000 echo survived")["meta"]["promptId"].as_str().unwrap().to_owned();
    session.becomes("background");
    // Opened after the row of the first session was written.
    program.api.open("other");
    program.kill_supervisor();
    program.start_supervisor_again();
    assert_eq!(session.state()["state"], "background");
    let mut events = program.api.events(&format!("/acp/session/{}/events", session.id));
    let is_woken = |event: &Event| event.name == "result" && event.data["promptId"] != prompt_id.as_str();
    let seen = events.until("the result of the agent's turn", is_woken);
    assert_eq!(seen.last().unwrap().data["update"]["meta"]["message"], "survived");
    session.becomes("idle");
    assert_eq!(session.says("pid"), pid, "the agent never stopped");
    let kinds: Vec<_> = entries(&session).into_iter().map(|(kind, _)| kind).collect();
    assert!(!kinds.contains(&"info".to_owned()), "nothing was cut off: {kinds:?}");
}

#[test]
fn turn_that_an_agent_ends_without_a_supervisor_is_recorded_once_it_is_back() {
    let mut program = Program::builder().behind_proxy().start();
    let session = program.api.open("ws");
    let mut events = program.api.events(&format!("/acp/session/{}/events", session.id));
    session.completes("background 300 echo first half , sleep 2 , echo second half");
    events.until("the first half", |event| event.data["update"]["content"]["text"].as_str() == Some("alf"));
    program.kill_supervisor();
    program.start_supervisor_again();
    eventually("both halves are in the transcript, once", || {
        let said: String =
            entries(&session).into_iter().filter(|(kind, _)| kind == "agent_message").map(|(_, text)| text).collect();
        assert!(said.matches("first half").count() <= 1 && said.matches("second half").count() <= 1, "{said}");
        said.contains("first half") && said.contains("second half")
    });
}
