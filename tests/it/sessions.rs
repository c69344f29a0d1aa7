//! Lifecycle of a session: close, load, hibernation, expiry, and restarts of the program.

use crate::harness::{DEADLINE, Program, Value, eventually, json, processes, wait_for};

#[test]
fn closing_ends_the_agent_and_a_closed_session_refuses_prompts() {
    let program = Program::start();
    let session = program.api.open("ws");
    let pid: i32 = session.says("pid").trim().parse().expect("a pid");
    session.post("close", json!({})).expect(200);
    eventually("the agent has ended", || !processes::is_alive(pid));
    assert_eq!(session.state()["state"], "closed");
    session.prompt("echo a").problem(409, "session_closed");
    session.post("load", json!({})).problem(409, "session_closed");
    assert_eq!(session.conversation().len(), 2, "its transcript is kept");
}

#[test]
fn closing_in_the_middle_of_a_turn_ends_the_turn() {
    let program = Program::start();
    let session = program.api.open("ws");
    let (prompt_id, mut stream) = session.is_busy_with("echo started ; sleep 60");
    session.post("close", json!({})).expect(200);
    stream.rest();
    let ended = session.ends(&prompt_id);
    assert!(["cancelled", "failed"].contains(&ended["state"].as_str().unwrap()), "{ended}");
}

#[test]
fn lists_are_filtered_and_paged() {
    let program = Program::builder().set("limits.page_entries", 2).start();
    for (workspace, tenant) in [("a", "one"), ("a", "one"), ("b", "one"), ("a", "two")] {
        program.api.open_with(json!({"workspaceId": workspace, "installationId": tenant, "userId": "u"}));
    }
    let count = |query: &str| {
        let (mut items, mut cursor) = (0, String::new());
        loop {
            let page = program.api.get(&format!("/acp/sessions?{query}{cursor}")).expect(200);
            let got = page["items"].as_array().unwrap().len();
            assert!(got <= 2, "a page has at most two: {page}");
            items += got;
            match page["nextCursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return items,
            }
        }
    };
    assert_eq!(count("installationId=one"), 3);
    assert_eq!(count("installationId=one&workspaceId=a"), 2);
    assert_eq!(count("installationId=two"), 1);
    assert_eq!(count("userId=u"), 4);
    assert_eq!(count("state=closed"), 0);
    let workspaces = program.api.get("/acp/workspaces?installationId=one").expect(200);
    assert_eq!(workspaces["items"].as_array().unwrap().len(), 2, "{workspaces}");
}

#[test]
fn malformed_cursor_or_filter_is_refused() {
    let program = Program::start();
    for query in ["cursor=%00", "state=asleep", "limit=0", "limit=x"] {
        let answer = program.api.get(&format!("/acp/sessions?{query}"));
        answer.problem(400, "invalid_request");
    }
}

#[test]
fn idle_session_hibernates_and_the_next_prompt_resumes_it() {
    let program = Program::builder().set("session.idle_timeout_s", 1).start();
    let session = program.api.open("ws");
    let pid: i32 = session.says("pid").trim().parse().expect("a pid");
    session.becomes("hibernated");
    eventually("the agent has ended", || !processes::is_alive(pid));
    assert_eq!(session.says("echo back"), "back");
}

#[test]
fn unused_session_expires_and_can_be_loaded() {
    let program = Program::builder().set("session.idle_timeout_s", 1).set("session.max_age_s", 1).start();
    let session = program.api.open("ws");
    session.completes("echo a");
    session.becomes("expired");
    session.prompt("echo b").problem(409, "session_not_loaded");
    session.post("load", json!({})).expect(200);
    assert_eq!(session.says("echo b"), "b");
}

#[test]
fn expiry_is_announced_once_and_list_and_state_agree_throughout() {
    let start = || Program::builder().set("session.idle_timeout_s", 1).set("session.max_age_s", 5);
    let program = start().start();
    let (session, busy) = (program.api.open("ws"), program.api.open("ws"));
    session.completes("echo a");
    // Longer than both limits together: neither applies to a session with a running turn.
    let (prompt_id, mut stream) = busy.is_busy_with("ticks 40 200");
    let listed = |state: &str| {
        let answer = program.api.get(&format!("/acp/sessions?installationId=tenant-1&state={state}")).expect(200);
        answer["items"].as_array().expect("a list").iter().any(|it| it["sessionId"] == json!(session.id))
    };
    session.becomes("hibernated");
    // The state changes with the decision, the list with the write to the database.
    eventually("the session is listed as hibernated", || listed("hibernated"));
    assert!(!listed("expired"));
    let mut seen = Vec::new();
    eventually("the expiry is counted", || {
        seen.push((session.state()["state"] == "expired", listed("expired")));
        program.metrics().sum("lumilink_sessions_expired_total", &[]) == 1.0
    });
    assert!(
        seen.iter().all(|(shown, listed)| !shown || *listed),
        "the list shows the expiry no later than the state: {seen:?}"
    );
    assert!(listed("expired") && !listed("hibernated"));
    let log = program.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("session expired")).collect();
    assert!(lines.len() == 1 && lines[0].contains("[ACP]") && lines[0].contains(&session.id), "{lines:?}");
    assert_eq!(busy.state()["state"], "running", "the other session is in its turn");
    stream.rest();
    assert_eq!(busy.ends(&prompt_id)["state"], "completed");
    // The expiry is persistent: a restart with a longer maximum age does not undo it.
    let folder = program.stop();
    let program = Program::builder().folder(&folder).start();
    let again = crate::harness::Session { api: program.api.clone(), ..session };
    assert_eq!(again.state()["state"], "expired");
    again.prompt("echo b").problem(409, "session_not_loaded");
    again.post("load", json!({})).expect(200);
    assert_eq!(again.says("echo b"), "b");
}

#[test]
fn a_turn_is_never_cut_short_by_the_idle_timeout() {
    let program = Program::builder().set("session.idle_timeout_s", 1).start();
    let session = program.api.open("ws");
    assert_eq!(session.says("sleep 3 ; echo done"), "done");
}

#[test]
fn nfr_004_sessions_and_transcripts_survive_a_restart_of_the_program() {
    let program = Program::start();
    let session = program.api.open("ws");
    session.completes("write kept.txt content ; echo said before");
    let folder = program.stop();
    let program = Program::builder().folder(&folder).start();
    let again = crate::harness::Session { api: program.api.clone(), ..session };
    assert_eq!(again.state()["state"], "hibernated");
    assert!(again.conversation().iter().any(|(_, text)| text.contains("said before")));
    assert!(again.says("read kept.txt").contains("content"), "the next prompt resumes it");
}

#[test]
fn nfr_004_turn_ended_by_a_power_cut_is_interrupted_and_its_session_loads() {
    let mut program = Program::start();
    let session = program.api.open("ws");
    let (prompt_id, stream) = session.is_busy_with("echo started ; sleep 60");
    let last = session.state()["lastEventId"].as_u64().expect("an id");
    program.kill();
    drop(stream);
    let folder = program.folder.clone();
    drop(program);
    let program = Program::builder().folder(&folder).start();
    let again = crate::harness::Session { api: program.api.clone(), ..session };
    assert_eq!(again.ends(&prompt_id)["state"], "interrupted");
    assert_eq!(again.state()["state"], "interrupted");
    again.prompt("echo a").problem(409, "session_not_loaded");
    again.post("load", json!({})).expect(200);
    let next = again.state()["lastEventId"].as_u64().expect("an id");
    assert!(next > last, "no event id is reused: {next} after {last}");
    assert_eq!(again.says("echo a"), "a");
}

#[test]
fn agent_with_session_load_keeps_its_own_conversation() {
    let program = Program::start();
    let memory = program.folder.path().join("agent-memory");
    std::fs::create_dir(&memory).unwrap();
    let flags = ["--persist", memory.to_str().unwrap()];
    let program =
        Program::builder().agent_writes(&memory).demo_agent(&flags).set("session.idle_timeout_s", 1).start();
    let session = program.api.open("ws");
    session.completes("echo a");
    session.becomes("hibernated");
    let result = session.completes("echo b");
    assert_eq!(result["meta"]["contextInjected"], false, "the agent has its own memory: {result}");
    assert_eq!(session.conversation().len(), 4, "the replay of the load is not written to the transcript");
}

#[test]
fn nfr_002_session_over_capacity_is_refused_and_a_resume_is_not() {
    let program = Program::builder().set("capacity.max_sessions", 2).start();
    let (one, _two) = (program.api.open("ws"), program.api.open("ws"));
    let body = json!({"workspaceId": "ws", "installationId": "tenant-1"});
    let refused = program.api.post("/acp/session/new", body.clone());
    assert!(!refused.header("retry-after").is_empty());
    refused.problem(503, "capacity_exhausted");
    one.prompt("crash").problem(502, "agent_crashed");
    one.becomes("idle");
    one.post("load", json!({})).expect(200);
    one.post("close", json!({})).expect(200);
    wait_for(DEADLINE, "capacity is available again", || {
        (program.api.post("/acp/session/new", body.clone()).status == 201).then_some(())
    });
}

#[test]
fn offered_modes_and_options_are_set_and_unknown_ones_are_refused() {
    let program = Program::start();
    let session = program.api.open("ws");
    let mode = &session.opened["modes"]["availableModes"][0]["id"];
    if mode.is_string() {
        session.post("mode", json!({"modeId": mode})).expect(200);
    }
    let refused = session.post("mode", json!({"modeId": "no-such-mode"}));
    assert!([400, 422].contains(&refused.status), "{}", refused.text);
    let refused = session.post("config", json!({"configId": "no-such-option", "value": "x"}));
    assert!([400, 422].contains(&refused.status), "{}", refused.text);
    assert_eq!(session.says("echo fine"), "fine");
}

#[test]
fn list_by_state_reflects_current_states() {
    let program = Program::start();
    let (busy, idle) = (program.api.open("busy"), program.api.open("idle"));
    let listed = |state: &str| {
        let page = program.api.get(&format!("/acp/sessions?state={state}")).expect(200);
        let items = page["items"].as_array().expect("items").clone();
        items.iter().map(|item| item["sessionId"].as_str().expect("an id").to_owned()).collect::<Vec<_>>()
    };
    let turn = busy.starts("sleep 60");
    busy.becomes("running");
    assert_eq!(listed("running"), [busy.id.as_str()]);
    assert_eq!(listed("idle"), [idle.id.as_str()]);
    assert_eq!(listed("running,idle").len(), 2);
    for wrong in ["idle,asleep", "idle,", ","] {
        let problem = program.api.get(&format!("/acp/sessions?state={wrong}")).problem(400, "invalid_request");
        assert!(
            problem["detail"].as_str().is_some_and(|it| it.contains("state") && it.contains("hibernated")),
            "{problem}"
        );
    }
    busy.post("cancel", json!({})).expect(200);
    busy.ends(&turn);
    idle.post("close", json!({})).expect(200);
    assert_eq!(listed("closed"), [idle.id.as_str()]);
    assert_eq!(listed("running"), Vec::<String>::new());
}

#[test]
fn session_closed_while_it_loads_stays_closed() {
    let flags = ["--start-delay-ms", "1500"];
    let program = Program::builder().demo_agent(&flags).set("session.idle_timeout_s", 1).start();
    let session = program.api.open("ws");
    session.becomes("hibernated");
    eventually("the session is not live any more", || session.state()["connectionStatus"].is_null());
    let loading = session.clone();
    let loading = std::thread::spawn(move || loading.post("load", json!({})));
    session.becomes("starting");
    session.post("close", json!({})).expect(200);
    assert_eq!(session.state()["state"], "closed");
    loading.join().unwrap().problem(409, "session_closed");
    session.prompt("echo a").problem(409, "session_closed");
    let folder = program.stop();
    let program = Program::builder().folder(&folder).start();
    let again = crate::harness::Session { api: program.api.clone(), ..session };
    assert_eq!(again.state()["state"], "closed", "the close is on disk");
}

#[test]
fn forty_unanswered_calls_leave_room_for_a_prompt_and_free_their_slots() {
    let flags = ["--mute-modes"];
    let program = Program::builder().demo_agent(&flags).set("turn.inactivity_timeout_s", 1).start();
    let session = program.api.open("ws");
    let calls = |count: usize| -> Vec<u16> {
        let call = |_| {
            let session = session.clone();
            std::thread::spawn(move || session.post("mode", json!({"modeId": "code"})).status)
        };
        let running: Vec<_> = (0..count).map(call).collect();
        running.into_iter().map(|call| call.join().unwrap()).collect()
    };
    let statuses = calls(40);
    assert!(statuses.iter().all(|status| [409, 504].contains(status)), "{statuses:?}");
    assert!(statuses.iter().filter(|status| **status == 504).count() >= 32, "{statuses:?}");
    assert_eq!(session.says("echo fine"), "fine");
    assert_eq!(calls(32), [504; 32], "every slot is free again");
    assert_eq!(session.says("echo fine"), "fine");
    assert_eq!(session.state()["restarts"], 0);
}

#[test]
fn remote_mcp_server_is_refused_for_an_agent_that_does_not_support_it() {
    let program = Program::start();
    let body = |servers: Value| json!({"workspaceId": "ws", "installationId": "tenant-1", "mcpServers": servers});
    let http = json!({"type": "http", "name": "search", "url": "https://mcp.example.com", "headers": []});
    let stdio = json!({"name": "files", "command": "true", "args": [], "env": []});
    for _ in 0..5 {
        let answer = program.api.post("/acp/session/new", body(json!([stdio, http])));
        let problem = answer.problem(422, "not_supported_by_agent");
        assert!(problem["detail"].as_str().unwrap().contains("mcpServers[1]"), "{problem}");
    }
    let session = program.api.open_with(body(json!([stdio])));
    session.completes("echo hello");
    // The mistake of a caller says nothing about ACP.
    let window = program.api.get("/acp/health").expect(200)["successRate"].clone();
    assert!(window.is_null() || window == 1.0, "{window}");
}
