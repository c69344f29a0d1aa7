//! Updates as server-sent events: in the response to a prompt, and from the session's event stream.

use crate::harness::{
    Program,
    api::result_of,
    json,
    sse::{Event, message_of},
};

fn ids(events: &[Event]) -> Vec<u64> {
    events.iter().filter_map(|event| event.id).collect()
}

#[test]
fn a_streamed_turn_shows_every_update_and_ends_with_the_result() {
    let program = Program::start();
    let session = program.api.open("ws");
    let events = session.streams("echo one ; think ; plan ; echo two").rest();
    let result = result_of(&program.api, &events);
    assert_eq!(result["stopReason"], "completed");
    assert!(message_of(&events).contains("one") && message_of(&events).contains("two"), "{events:#?}");
    for kind in ["agent_message_chunk", "agent_thought_chunk", "plan"] {
        assert!(events.iter().any(|event| event.data["update"]["sessionUpdate"] == kind), "no {kind}: {events:#?}");
    }
    assert_eq!(events[0].name, "accepted", "{events:#?}");
    let ids = ids(&events);
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "ids increase: {ids:?}");
    for event in events.iter().filter(|event| event.name == "update") {
        assert_eq!((&event.data["sessionId"], &event.data["type"]), (&json!(session.id), &json!("update")));
        assert!(event.data["promptId"].is_string());
    }
}

#[test]
fn failed_turn_ends_its_stream_with_a_result() {
    let program = Program::start();
    let session = program.api.open("ws");
    let events = session.streams("echo before ; error -32603 boom").rest();
    let result = result_of(&program.api, &events);
    assert_eq!((&result["stopReason"], &result["meta"]["errorCode"]), (&json!("error"), &json!("agent_error")));
    assert!(message_of(&events).contains("before"));
}

#[test]
fn updates_arrive_while_the_turn_runs() {
    let program = Program::start();
    let session = program.api.open("ws");
    let (_, mut stream) = session.is_busy_with("echo early ; sleep 60");
    assert_eq!(session.state()["state"], "running");
    assert!(session.cancel());
    assert_eq!(result_of(&program.api, &stream.rest())["stopReason"], "cancelled");
}

#[test]
fn reader_that_disconnects_does_not_end_the_turn() {
    let program = Program::start();
    let session = program.api.open("ws");
    let (prompt_id, stream) = session.is_busy_with("ticks 20 20 ; echo done");
    drop(stream);
    let ended = session.ends(&prompt_id);
    assert_eq!(ended["state"], "completed");
    assert!(ended["result"]["meta"]["message"].as_str().unwrap().contains("done"), "{ended}");
}

#[test]
fn late_reader_starts_at_the_oldest_retained_event() {
    let program = Program::start();
    let session = program.api.open("ws");
    session.completes("echo first");
    session.completes("echo second");
    let mut stream = program.api.events(&format!("/acp/session/{}/events", session.id));
    let mut results = 0;
    let mut seen = Vec::new();
    while results < 2 {
        let event = stream.next().expect("the stream stays open");
        results += u32::from(event.name == "result");
        seen.push(event);
    }
    assert!(message_of(&seen).contains("first") && message_of(&seen).contains("second"));
}

#[test]
fn nfr_004_resuming_after_the_last_id_delivers_each_event_exactly_once() {
    let program = Program::start();
    let session = program.api.open("ws");
    let path = format!("/acp/session/{}/events", session.id);
    session.completes("ticks 10 1");
    let mut whole = program.api.events(&path);
    let all = whole.until("the result", |event| event.name == "result");
    let middle = all[all.len() / 2].id.unwrap();
    let mut resumed = program.api.call("GET", &path).header("last-event-id", &middle.to_string()).stream();
    let rest = resumed.until("the result", |event| event.name == "result");
    let expected: Vec<_> = ids(&all).into_iter().filter(|id| *id > middle).collect();
    assert_eq!(ids(&rest), expected);
    session.completes("echo and live");
    let live = resumed.until("the next result", |event| event.name == "result");
    assert_eq!(
        ids(&live).first(),
        Some(&(all.last().unwrap().id.unwrap() + 1)),
        "live events follow the replay without a gap"
    );
}

#[test]
fn from_live_skips_earlier_events() {
    let program = Program::start();
    let session = program.api.open("ws");
    session.completes("echo old");
    let mut stream = program.api.events(&format!("/acp/session/{}/events?from=live", session.id));
    session.completes("echo new");
    let seen = stream.until("the result", |event| event.name == "result");
    assert!(message_of(&seen).contains("new") && !message_of(&seen).contains("old"), "{seen:#?}");
}

#[test]
fn reader_behind_the_replay_buffer_gets_a_gap_event() {
    let program = Program::builder().set("limits.replay_events", 10).start();
    let session = program.api.open("ws");
    session.completes("flood 100");
    let path = format!("/acp/session/{}/events", session.id);
    let mut stream = program.api.call("GET", &path).header("last-event-id", "1").stream();
    assert_eq!(stream.next().expect("an event").name, "gap");
}

#[test]
fn unknown_update_passes_through() {
    let program = Program::start();
    let session = program.api.open("ws");
    let events = session.streams("unknown-update").rest();
    let known = [
        "user_message_chunk",
        "agent_message_chunk",
        "agent_thought_chunk",
        "tool_call",
        "tool_call_update",
        "plan",
        "available_commands_update",
        "current_mode_update",
        "config_option_update",
        "session_info_update",
        "usage_update",
    ];
    let unknown = events.iter().filter(|event| event.name == "update").find(|event| {
        let kind = event.data["update"]["sessionUpdate"].as_str().unwrap_or_default();
        !known.contains(&kind)
    });
    assert!(unknown.is_some(), "the unknown update is among {events:#?}");
}

#[test]
fn last_event_id_of_the_state_covers_the_stream() {
    let program = Program::start();
    let session = program.api.open("ws");
    let events = session.streams("echo a").rest();
    let last = events.iter().filter_map(|event| event.id).max().unwrap();
    assert!(session.state()["lastEventId"].as_u64().is_some_and(|id| id >= last));
}
