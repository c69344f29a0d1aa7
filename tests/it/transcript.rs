//! The transcript: one entry for each message, tool call and plan, whatever comes when.

use super::tenants::limit;
use crate::harness::{DEADLINE, Program, Session, Value, demo_agent, json, wait_for};

/// Entries of a turn.
fn of_turn(session: &Session, prompt_id: &Value) -> Vec<Value> {
    session.transcript().into_iter().filter(|entry| entry["promptId"] == *prompt_id).collect()
}

fn of_type<'a>(entries: &'a [Value], event_type: &str) -> Vec<&'a Value> {
    entries.iter().filter(|entry| entry["eventType"] == event_type).collect()
}

fn database_size(program: &Program) -> u64 {
    let size = |name: &str| std::fs::metadata(program.folder.path().join("data").join(name)).map_or(0, |it| it.len());
    size("lumilink.db") + size("lumilink.db-wal")
}

#[test]
fn hundreds_of_cumulative_updates_of_one_command_are_one_row_with_its_end() {
    let program = Program::start();
    let session = program.api.open("ws");
    session.completes("echo first");
    let before = database_size(&program);
    let result = session.completes("output 390 1200");
    let entries = of_turn(&session, &result["meta"]["promptId"]);
    let kinds: Vec<_> = entries.iter().map(|entry| entry["eventType"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["user_message", "tool_call", "agent_message"]);
    let call = &entries[1]["payload"];
    let output = call["content"][0]["content"]["text"].as_str().expect("the output");
    assert!(output.starts_with("line 1 ") && output.contains("left out"), "head and mark: {output:.60}");
    assert!(output.contains("line 390 "), "the end of the output: {}", &output[output.len() - 60..]);
    assert_eq!((&call["status"], &call["title"]), (&json!("completed"), &json!("Print much")));
    assert!(call["_meta"]["lumilink"]["originalBytes"].as_u64().unwrap() > 390 * 1200, "{}", call["_meta"]);
    let grown = database_size(&program).saturating_sub(before);
    // The write-ahead log keeps up to 4 MiB of revisions and is then used again.
    assert!(grown < 8 * 1024 * 1024, "the database grew by {grown} bytes");
}

#[test]
fn large_update_is_kept_as_valid_json_with_status_and_id() {
    let program = Program::start();
    let session = program.api.open("ws");
    let result = session.completes("output 1 100000");
    let entries = of_turn(&session, &result["meta"]["promptId"]);
    let call = &of_type(&entries, "tool_call")[0]["payload"];
    assert_eq!((&call["status"], &call["toolCallId"]), (&json!("completed"), &json!("tool-1-1")));
    assert_eq!(call["_meta"]["lumilink"]["truncated"], true);
}

#[test]
fn text_after_the_end_of_a_turn_is_in_the_transcript_of_that_turn() {
    let program = Program::start();
    let session = program.api.open("ws");
    let result = session.completes("echo the answer ; late  and its tail");
    let prompt_id = &result["meta"]["promptId"];
    let said = |session: &Session| -> String {
        let entries = of_turn(session, prompt_id);
        of_type(&entries, "agent_message").iter().filter_map(|entry| entry["text"].as_str()).collect()
    };
    wait_for(DEADLINE, "the tail", || said(&session).ends_with("and its tail").then_some(()));
    session.completes("echo another");
    assert!(said(&session).starts_with("the answer"), "{}", said(&session));
}

#[test]
fn tail_of_a_turn_does_not_become_part_of_the_next_turn() {
    let program = Program::start();
    let session = program.api.open("ws");
    let first = session.completes("message m1 one ; late tail");
    // The agent has this prompt before it says the tail, which has the id of the earlier message.
    let second = session.completes("echo two");
    let said = |turn: &Value| -> String {
        let entries = of_turn(&session, &turn["meta"]["promptId"]);
        of_type(&entries, "agent_message").iter().filter_map(|entry| entry["text"].as_str()).collect()
    };
    wait_for(DEADLINE, "the tail", || (said(&first) == "onetail").then_some(()));
    assert_eq!(said(&second), "two");
    assert_eq!(session.transcript()[1]["messageId"], "m1");
}

#[test]
fn emoji_cut_in_two_is_whole_in_message_and_transcript() {
    let program = Program::start();
    let session = program.api.open("ws");
    let result = session.completes("emoji");
    assert_eq!(result["meta"]["message"], "smile 😀 end");
    assert_eq!(session.conversation()[1], ("agent_message".to_owned(), "smile 😀 end".to_owned()));
}

#[test]
fn update_whose_id_is_null_is_kept() {
    let program = Program::start();
    let session = program.api.open("ws");
    assert_eq!(session.says("null-id all the same"), "all the same");
    assert_eq!(session.conversation()[1].1, "all the same");
}

#[test]
fn updates_before_the_answer_to_session_new_are_events_and_entries() {
    let program = Program::builder().set("agent.command", demo_agent(&["--early-updates"])).start();
    let session = program.api.open("ws");
    let mut events = program.api.events(&format!("/acp/session/{}/events", session.id));
    let seen = events.until("the welcome", |event| event.data["update"]["content"]["text"] == "Welcome!");
    assert!(seen.iter().any(|event| event.data["update"]["availableCommands"][0]["name"] == "review"));
    let welcome = wait_for(DEADLINE, "the welcome is written", || {
        session.transcript().into_iter().find(|entry| entry["text"] == "Welcome!")
    });
    assert_eq!((&welcome["eventType"], &welcome["promptId"]), (&json!("agent_message"), &Value::Null));
}

#[test]
fn reader_of_changes_gets_every_entry_and_later_revisions_of_it() {
    let program = Program::builder().set("runtime.replay_frames", 64).start();
    let session = program.api.open("ws");
    let changes = |after: i64| -> Vec<Value> {
        let page = session.get(&format!("/transcript?changedAfter={after}&limit=7")).expect(200);
        assert!(page["nextCursor"].is_null());
        page["entries"].as_array().unwrap().clone()
    };
    let prompt_id = session.starts("steps 30 5 ; ticks 200 5");
    let (mut known, mut after) = (std::collections::BTreeMap::new(), 0);
    let mut is_over = false;
    loop {
        let page = changes(after);
        let numbers: Vec<_> = page.iter().map(|entry| entry["changed"].as_i64().unwrap()).collect();
        assert!(numbers.iter().all(|changed| *changed > after) && numbers.is_sorted(), "{numbers:?} after {after}");
        after = numbers.last().copied().unwrap_or(after);
        for entry in page {
            let earlier: Option<Value> = known.insert(entry["seq"].as_i64().unwrap(), entry.clone());
            let revision = |entry: &Value| entry["revision"].as_i64().unwrap();
            assert!(earlier.is_none_or(|earlier| revision(&earlier) < revision(&entry)), "{entry}");
        }
        if numbers.is_empty() && is_over {
            break;
        }
        is_over = session.api.get(&format!("/acp/prompt/{prompt_id}")).expect(200)["state"] == "completed";
    }
    assert_eq!(known.into_values().collect::<Vec<_>>(), session.transcript(), "the reader has the transcript");
    assert!(session.transcript().iter().any(|entry| entry["revision"].as_i64() > Some(1)), "some entry has changed");
    session.get("/transcript?changedAfter=0&cursor=1").problem(400, "invalid_request");
    session.get("/transcript?changedAfter=x").problem(400, "invalid_request");
}

#[test]
fn payload_with_a_url_with_a_port_and_a_later_address_keeps_all_its_members() {
    let program = Program::start();
    let session = program.api.open("ws");
    let blocks = json!([
        {"type": "text", "text": "http://localhost:3000"},
        {"type": "text", "text": "risk-adjusted by admin@example.com"},
        {"type": "text", "text": "echo done"},
    ]);
    session.call(blocks.clone()).send().expect(200);
    let entries = session.transcript();
    assert_eq!(of_type(&entries, "user_message")[0]["payload"], blocks);
}

/// Bytes of the texts and payloads of entries.
fn bytes_of(entries: &[Value]) -> usize {
    let payload = |entry: &Value| if entry["payload"].is_null() { 0 } else { entry["payload"].to_string().len() };
    entries.iter().map(|entry| entry["text"].as_str().unwrap().len() + payload(entry)).sum()
}

fn cut_notes(entries: &[Value]) -> usize {
    let texts = entries.iter().filter_map(|entry| entry["text"].as_str());
    texts.filter(|text| text.contains("the transcript of this turn is cut here")).count()
}

#[test]
fn turn_over_its_transcript_limit_is_cut_with_one_note_and_completes() {
    let program = Program::builder().set("limits.transcript_turn_bytes", 64 * 1024).start();
    let session = program.api.open("ws");
    let huge = session.completes("huge 1000000 ; echo the end");
    let entries = of_turn(&session, &huge["meta"]["promptId"]);
    assert_eq!(cut_notes(&entries), 1);
    assert!(entries.last().unwrap()["text"].as_str().unwrap().contains("limits.transcript_turn_bytes"));
    assert!(bytes_of(&entries) < 70 * 1024, "{}", bytes_of(&entries));
    let mut stream = session.streams("huge 1000000");
    let streamed: usize = stream.rest().iter().map(|event| event.data.to_string().len()).sum();
    assert!(streamed > 1_000_000, "readers get everything: {streamed}");
    assert_eq!(cut_notes(&of_turn(&session, &session.completes("echo a")["meta"]["promptId"])), 0);
}

#[test]
fn tenant_with_a_transcript_limit_of_its_own_is_cut_there_and_others_are_not() {
    let program = Program::start();
    limit(&program.api, "acme", json!({"transcriptTurnBytes": 65_536, "transcriptSessionBytes": 100_000}));
    let open = |tenant: &str| program.api.open_with(json!({"installationId": tenant, "workspaceId": "ws"}));
    let (limited, other) = (open("acme"), open("other"));
    let turn = |session: &Session| of_turn(session, &session.completes("huge 300000")["meta"]["promptId"]);
    let entries = turn(&limited);
    assert_eq!(cut_notes(&entries), 1);
    assert!(entries.last().unwrap()["text"].as_str().unwrap().contains("`transcriptTurnBytes`"), "{entries:?}");
    assert!(bytes_of(&entries) < 70 * 1024, "{}", bytes_of(&entries));
    assert_eq!(cut_notes(&turn(&other)), 0);
    turn(&limited);
    let entries = turn(&limited);
    assert!(entries.last().unwrap()["text"].as_str().unwrap().contains("`transcriptSessionBytes`"), "{entries:?}");
    // Applies from the next turn on.
    limit(&program.api, "acme", json!({}));
    assert_eq!(cut_notes(&turn(&limited)), 0);
}

fn session_at_its_limit_keeps_the_prompts(builder: crate::harness::program::Builder) {
    let builder = builder.set("limits.transcript_session_bytes", 128 * 1024);
    let mut program = builder.start();
    let session = program.api.open("ws");
    session.completes("huge 100000");
    session.completes("huge 100000");
    let count = |session: &Session| bytes_of(&session.transcript());
    assert!(count(&session) < 140 * 1024, "{}", count(&session));
    program.kill_supervisor();
    program.start_supervisor_again();
    let result = session.completes("echo over the limit");
    let entries = of_turn(&session, &result["meta"]["promptId"]);
    assert_eq!((entries.len(), cut_notes(&entries)), (2, 1), "{entries:?}");
    assert_eq!(entries[0]["eventType"], "user_message");
    assert!(entries[1]["text"].as_str().unwrap().contains("limits.transcript_session_bytes"));
}

#[test]
fn session_over_its_transcript_limit_keeps_prompts_after_a_crash_on_sqlite() {
    session_at_its_limit_keeps_the_prompts(Program::builder());
}

#[test]
fn session_over_its_transcript_limit_keeps_prompts_after_a_crash_on_postgresql() {
    session_at_its_limit_keeps_the_prompts(Program::builder().postgres());
}
