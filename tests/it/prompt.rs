//! One prompt turn, from HTTP to the agent and back.

use crate::harness::{Program, Session, Value, eventually, json};

#[test]
fn fr_001_new_session_starts_on_acp_and_reports_what_was_negotiated() {
    let program = Program::start();
    let session = program.api.open("ws");
    let opened = &session.opened;
    assert_eq!((&opened["protocol"], &opened["protocolVersion"]), (&json!("acp"), &json!(1)), "{opened}");
    assert!(opened["connectionId"].as_str().is_some_and(|id| !id.is_empty()), "{opened}");
    assert!(opened["agentCapabilities"].is_object(), "{opened}");
    assert_eq!(opened["workspace"]["workspaceId"], "ws");
    assert_eq!(opened["workspace"]["installationId"], "tenant-1");
    assert!(session.path().is_dir(), "the workspace folder exists: {opened}");
}

#[test]
fn a_prompt_reaches_the_agent_and_its_result_comes_back() {
    let program = Program::start();
    let session = program.api.open("ws");
    let result = session.completes("echo hello there");
    let meta = &result["meta"];
    assert_eq!(meta["message"], "hello there");
    assert_eq!(meta["sessionId"], session.id.as_str());
    assert_eq!((&meta["protocol"], &meta["route"]), (&json!("acp"), &json!("acp")));
    assert_eq!((&meta["protocolVersion"], &meta["acpStopReason"]), (&json!(1), &json!("end_turn")));
    assert_eq!(meta["workspace"]["path"], session.opened["workspace"]["path"]);
    assert_eq!(meta["rollback"]["active"], false);
    assert!(meta["timings"]["totalMs"].as_f64().is_some_and(|ms| ms > 0.0), "{meta}");
    let known = ["stopReason", "usage", "githubAutomation", "meta", "diagnostics"];
    let keys: Vec<_> = result.as_object().unwrap().keys().collect();
    assert!(keys.iter().all(|key| known.contains(&key.as_str())), "no other top-level keys: {keys:?}");
}

#[test]
fn the_second_prompt_of_a_session_goes_to_the_same_agent() {
    let program = Program::start();
    let session = program.api.open("ws");
    assert_eq!(session.says("pid"), session.says("pid"));
    assert_eq!(session.says("just some words"), "just some words", "text without a steering word is echoed");
}

#[test]
fn two_sessions_have_two_agent_processes() {
    let program = Program::start();
    let (one, two) = (program.api.open("ws"), program.api.open("ws"));
    assert_ne!(one.says("pid"), two.says("pid"));
    assert_eq!(one.path(), two.path(), "sessions of one workspace share its folder");
}

#[test]
fn usage_is_reported_when_the_agent_sends_it_and_else_marked_unknown() {
    let program = Program::start();
    let session = program.api.open("ws");
    let reported = session.completes("usage 12 34");
    assert_eq!(reported["usage"], json!({"inputTokens": 12, "outputTokens": 34}));
    assert_eq!(reported["meta"]["usageKnown"], true);
    let unknown = session.completes("echo x");
    assert_eq!(unknown["usage"], json!({"inputTokens": 0, "outputTokens": 0}));
    assert_eq!(unknown["meta"]["usageKnown"], false);
}

#[test]
fn every_stop_reason_but_cancelled_is_a_completed_turn() {
    let program = Program::start();
    let session = program.api.open("ws");
    for (prompt, reason) in [("echo a", "end_turn"), ("refuse", "refusal"), ("max-tokens", "max_tokens")] {
        assert_eq!(session.completes(prompt)["meta"]["acpStopReason"], reason, "{prompt}");
    }
}

#[test]
fn content_blocks_are_accepted_unchanged() {
    let program = Program::start();
    let session = program.api.open("ws");
    let blocks = json!([
        {"type": "resource_link", "uri": "file:///a.txt", "name": "a.txt"},
        {"type": "text", "text": "echo from a block", "_meta": {"mine": 1}}
    ]);
    let result = session.call(blocks).send().expect(200);
    assert!(result["meta"]["message"].as_str().unwrap().contains("from a block"), "{result}");
}

#[test]
fn fr_011_malformed_request_is_refused_naming_the_invalid_member() {
    let program = Program::start();
    let session = program.api.open("ws");
    for (body, place) in [
        (json!({"sessionId": session.id, "prompt": ""}), "prompt"),
        (json!({"sessionId": session.id, "prompt": []}), "prompt"),
        (json!({"sessionId": session.id, "prompt": [{"type": "hologram"}]}), "prompt[0]"),
        (json!({"sessionId": session.id}), "prompt"),
        (json!({"prompt": "echo a"}), "sessionId"),
    ] {
        let problem = program.api.post("/acp/session/prompt", body).problem(400, "invalid_request");
        assert!(problem["detail"].as_str().unwrap().contains(place), "{problem}");
        assert_eq!(problem["class"], "application");
    }
    let not_json = program.api.call("POST", "/acp/session/prompt").header("content-type", "application/json");
    not_json.body("{not json").send().problem(400, "invalid_request");
}

#[test]
fn malformed_and_unknown_ids_are_404() {
    let program = Program::start();
    let unknown = uuid::Uuid::now_v7().to_string();
    for id in ["not-an-id", unknown.as_str(), "..%2F..%2Fetc"] {
        program.api.get(&format!("/acp/session/{id}")).problem(404, "not_found");
        program.api.get(&format!("/acp/prompt/{id}")).problem(404, "not_found");
    }
    for id in ["not-an-id", unknown.as_str()] {
        let body = json!({"sessionId": id, "prompt": "echo a"});
        program.api.post("/acp/session/prompt", body).problem(404, "not_found");
        program.api.post("/acp/session/cancel", json!({"sessionId": id})).problem(404, "not_found");
    }
}

#[test]
fn a_second_prompt_on_a_busy_session_is_409_with_the_running_turn() {
    let program = Program::start();
    let session = program.api.open("ws");
    let (prompt_id, mut stream) = session.is_busy_with("echo started ; sleep 60");
    let problem = session.prompt("echo b").problem(409, "turn_running");
    assert_eq!(problem["promptId"], prompt_id.as_str());
    assert!(session.cancel());
    stream.rest();
    assert_eq!(session.says("echo b"), "b");
}

#[test]
fn respond_async_answers_202_with_a_location_to_poll() {
    let program = Program::start();
    let session = program.api.open("ws");
    let prompt_id = session.starts("echo later");
    let ended = session.ends(&prompt_id);
    assert_eq!(ended["state"], "completed");
    assert_eq!((&ended["promptId"], &ended["sessionId"]), (&json!(prompt_id), &json!(session.id)));
    assert_eq!(ended["result"]["meta"]["message"], "later");
    program.api.contract().check_component("ACPSessionResult", &ended["result"]);
}

#[test]
fn agent_error_is_a_classified_problem_that_carries_the_result() {
    let program = Program::start();
    let session = program.api.open("ws");
    for (prompt, status, code, class) in [
        ("error -32603 boom", 502, "agent_error", "protocol"),
        ("error -32602 odd parameters", 422, "agent_rejected", "application"),
        ("provider-error", 502, "model_provider", "application"),
        ("auth-error", 502, "agent_auth_required", "application"),
    ] {
        let problem = session.prompt(prompt).problem(status, code);
        assert_eq!(problem["class"], class, "{problem}");
        assert_eq!(problem["result"]["stopReason"], "error", "{problem}");
        assert_eq!(problem["result"]["meta"]["errorCode"], code, "{problem}");
        let ended = session.ends(problem["promptId"].as_str().unwrap());
        assert_eq!((&ended["state"], &ended["result"]["stopReason"]), (&json!("failed"), &json!("error")));
        assert_eq!(session.says("echo still here"), "still here", "the session is usable after `{prompt}`");
    }
}

#[test]
fn long_message_is_truncated_in_the_result_and_whole_in_the_transcript() {
    let program = Program::start();
    let session = program.api.open("ws");
    let answer = session.prompt("huge 200000");
    assert!(answer.text.len() <= 32_000, "a result stays under 32 KB, this has {}", answer.text.len());
    assert_eq!(answer.expect(200)["meta"]["messageTruncated"], true);
    let length: usize = agent_text(&session.transcript()).len();
    assert!(length >= 200_000, "the transcript has {length} bytes of the message");
}

#[test]
fn a_flood_of_updates_arrives_whole() {
    let program = Program::start();
    let session = program.api.open("ws");
    let result = session.completes("flood 5000");
    let updates = result["meta"]["timings"]["updates"].as_u64().unwrap();
    assert!(updates >= 5000, "only {updates} updates arrived");
}

#[test]
fn consecutive_chunks_are_one_transcript_entry() {
    let program = Program::start();
    let session = program.api.open("ws");
    session.completes("echo one ; echo two ; think ; echo three");
    let kinds: Vec<_> = session.conversation().into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["user_message", "agent_message", "agent_thought", "agent_message"]);
}

#[test]
fn acknowledged_turn_is_in_the_transcript_at_once_and_in_order() {
    let program = Program::start();
    let session = program.api.open("ws");
    for n in 0..5 {
        session.completes(&format!("echo answer {n}"));
        let conversation = session.conversation();
        assert_eq!(conversation.len(), 2 * (n + 1), "{conversation:?}");
        assert_eq!(conversation.last().unwrap(), &("agent_message".to_owned(), format!("answer {n}")));
    }
    let seqs: Vec<_> = session.transcript().iter().map(|entry| entry["seq"].as_u64().unwrap()).collect();
    assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]), "{seqs:?}");
}

#[test]
fn the_transcript_is_paged() {
    let program = Program::builder().set("limits.page_entries", 3).start();
    let session = program.api.open("ws");
    for n in 0..5 {
        session.completes(&format!("echo {n}"));
    }
    let first = session.get("/transcript").expect(200);
    assert_eq!(first["entries"].as_array().unwrap().len(), 3);
    assert!(first["nextCursor"].is_string());
    assert_eq!(session.transcript().len(), 10);
}

#[test]
fn unknown_updates_and_requests_of_an_agent_do_not_disturb_a_turn() {
    let program = Program::start();
    let session = program.api.open("ws");
    assert!(session.says("unknown-update ; echo after").contains("after"));
    assert!(session.says("unknown-request ; echo after").contains("after"));
}

#[test]
fn secret_in_a_prompt_reaches_neither_transcript_nor_log() {
    let program = Program::start();
    let session = program.api.open("ws");
    let secret = format!("ghp_{}", "a1B2".repeat(9));
    session.completes(&format!("echo token {secret}"));
    assert!(!session.get("/transcript").text.contains(&secret));
    assert!(!program.log().contains(&secret));
}

#[test]
fn probes_and_health_answer_when_the_database_is_available() {
    let program = Program::start();
    program.api.get("/livez").expect(200);
    eventually("the program is ready", || program.api.get("/readyz").status == 200);
    let health = program.api.get("/acp/health").expect(200);
    assert!(health.is_object(), "{health}");
}

fn agent_text(entries: &[Value]) -> String {
    let of_agent = entries.iter().filter(|entry| entry["eventType"] == "agent_message");
    of_agent.filter_map(|entry| entry["text"].as_str()).collect()
}

/// Sessions on both routes, whose agent has these flags.
fn on_both_routes(flags: &[&str]) -> (Program, [Session; 2]) {
    let program = Program::builder().demo_agent(flags).start();
    let sessions = [program.api.open("acp"), program.api.open("http")];
    let why = json!({"actor": "test", "reason": "test"});
    program.api.post("/acp/workspaces/http/rollback", why).expect(200);
    (program, sessions)
}

#[test]
fn turn_without_output_says_so_in_a_diagnostic() {
    let (_program, sessions) = on_both_routes(&[]);
    for session in sessions {
        let result = session.completes("silent");
        let diagnostics = result["diagnostics"].as_array().expect("diagnostics");
        assert_eq!(diagnostics.len(), 1, "{result}");
        assert_eq!(diagnostics[0]["message"], "the agent ended the turn without output");
        assert!(session.completes("think").get("diagnostics").is_none(), "a thought is output");
    }
}

#[test]
fn echoed_prompt_is_stored_once() {
    let (_program, sessions) = on_both_routes(&["--echo-prompts"]);
    for session in sessions {
        assert_eq!(session.says("echo hello"), "hello");
        assert_eq!(session.says("echo again"), "again");
        let mut kinds: Vec<_> = session.conversation().into_iter().map(|(kind, _)| kind).collect();
        kinds.retain(|kind| kind != "rollback");
        assert_eq!(kinds, ["user_message", "agent_message", "user_message", "agent_message"]);
    }
}

#[test]
fn turns_of_a_session_are_listed_in_pages() {
    let program = Program::start();
    let (session, other) = (program.api.open("ws"), program.api.open("ws"));
    other.completes("echo other");
    let mut expected: Vec<_> =
        (0..5).map(|n| session.completes(&format!("echo {n}"))["meta"]["promptId"].clone()).collect();
    session.prompt("error -32603 no");
    expected.reverse();
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = session.get(&format!("/prompts?limit=2{cursor}")).expect(200);
        seen.extend(page["items"].as_array().unwrap().iter().cloned());
        match page["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!((&seen[0]["state"], seen.len()), (&json!("failed"), 6), "{seen:?}");
    assert_eq!(seen[1..].iter().map(|turn| turn["promptId"].clone()).collect::<Vec<_>>(), expected);
    assert!(seen.iter().all(|turn| turn.get("result").is_none() && turn["sessionId"] == session.id.as_str()));
    program.api.get("/acp/session/01a20c11-0000-7000-8000-000000000000/prompts").problem(404, "not_found");
}
