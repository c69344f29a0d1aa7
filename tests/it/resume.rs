//! Broken connections between supervisor and runtime, and kills of either: a turn resumes, or ends exactly once with
//! the true outcome.

use std::time::{Duration, Instant};

use diesel::{Connection, SqliteConnection, connection::SimpleConnection};

use crate::harness::{
    DEADLINE, Program, Session, Value, eventually, json, processes,
    program::Builder,
    proxy::{Mode, Way},
    sse::{Event, Sse, message_of},
    wait_for,
};

/// The demo agent's message for `ticks COUNT …`.
fn ticks(count: usize) -> String {
    (1..=count).map(|n| format!("tick {n} ")).collect()
}

fn with_proxy() -> Builder {
    Program::builder().behind_proxy()
}

/// A reader of a session's events, with the events that it has read.
struct Reader {
    stream: Sse,
    seen: Vec<Event>,
}

impl Reader {
    fn of(session: &Session) -> Self {
        let stream = session.api.events(&format!("/acp/session/{}/events?from=live", session.id));
        Self { stream, seen: Vec::new() }
    }

    fn until(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) {
        self.seen.extend(self.stream.until(what, wanted));
    }

    /// Reads up to the tick with this number; see [`ticks`].
    fn until_tick(&mut self, count: usize) {
        let tick = format!("tick {count} ");
        self.until(&tick, |event| event.data["update"]["content"]["text"] == tick.as_str());
    }

    fn until_connection(&mut self, status: &str) {
        self.until(status, |event| event.name == "status" && event.data["update"]["connection"] == status);
    }

    fn until_result(&mut self, prompt_id: &str) {
        self.until("the result", |event| event.name == "result" && event.data["promptId"] == prompt_id);
    }

    /// Reads up to the next break of the connection and the reconnect after it.
    fn until_reconnected(&mut self) {
        self.until_connection("reconnecting");
        self.until_connection("connected");
    }

    fn ids(&self) -> Vec<u64> {
        self.seen.iter().filter_map(|event| event.id).collect()
    }

    /// Fails the test if an event is missing or repeated.
    fn has_no_gap(&self) {
        let ids = self.ids();
        assert!(ids.windows(2).all(|pair| pair[1] == pair[0] + 1), "ids count up by one: {ids:?}");
    }

    fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.seen.iter().filter(|event| wanted(event)).count()
    }
}

fn starts_with_key(session: &Session, prompt: &str, key: &str) -> String {
    let call = session.call(prompt).header("idempotency-key", key).header("prefer", "respond-async");
    call.send().expect(202)["promptId"].as_str().expect("`promptId` is a string").to_owned()
}

/// Fails the test unless the turn completed with `text` as its message, and the transcript has prompt and message
/// once.
fn is_whole(session: &Session, prompt_id: &str, text: &str) {
    let turn = session.ends(prompt_id);
    assert_eq!(turn["state"], "completed", "{turn}");
    assert_eq!(turn["result"]["stopReason"], "completed", "{turn}");
    assert_eq!(turn["result"]["meta"]["message"], text);
    assert_eq!(transcript_of_turn(session, prompt_id), (1, text.to_owned()));
}

/// The number of user prompts and the concatenated agent messages of a turn in the transcript.
fn transcript_of_turn(session: &Session, prompt_id: &str) -> (usize, String) {
    let entries = session.transcript();
    let of_turn: Vec<_> = entries.iter().filter(|entry| entry["promptId"] == prompt_id).collect();
    let prompts = of_turn.iter().filter(|entry| entry["eventType"] == "user_message").count();
    let messages = of_turn.iter().filter(|entry| entry["eventType"] == "agent_message");
    (prompts, messages.filter_map(|entry| entry["text"].as_str()).collect())
}

/// Waits until the session completes a prompt; loads it if it has to be loaded.
fn is_usable_again(session: &Session) {
    wait_for(DEADLINE, "the session is usable again", || {
        let answer = session.prompt("echo back");
        if ["session_failed", "session_not_loaded"].iter().any(|code| answer.body["code"] == *code) {
            session.post("load", json!({}));
        }
        (answer.status == 200).then(|| assert_eq!(answer.body["meta"]["message"], "back"))
    });
}

/// The process id of the session's agent.
fn agent_of(session: &Session) -> i32 {
    session.says("pid").trim().parse().expect("the agent reports its pid")
}

fn ends_within(pid: i32, limit: Duration, why: &str) {
    wait_for(limit, why, || (!processes::is_alive(pid)).then_some(()));
}

// --- The connection -------------------------------------------------------------------------------------

/// Runs a turn during which `disrupt` breaks the connection at the fifth tick, and checks that nothing is lost;
/// returns the time until the break was detected.
fn disrupted_turn(
    program: &Program,
    session: &Session,
    count: usize,
    pause_ms: u64,
    disrupt: impl FnOnce(),
) -> Duration {
    let mut reader = Reader::of(session);
    let prompt_id = session.starts(&format!("ticks {count} {pause_ms}"));
    reader.until_tick(5);
    let begin = Instant::now();
    disrupt();
    reader.until_connection("reconnecting");
    let detected = begin.elapsed();
    reader.until_connection("connected");
    reader.until_result(&prompt_id);
    reader.has_no_gap();
    assert_eq!(message_of(&reader.seen), ticks(count));
    is_whole(session, &prompt_id, &ticks(count));
    assert_eq!(session.state()["restarts"], 0, "the agent was not restarted");
    assert_eq!(session.state()["connectionStatus"], "connected");
    assert_eq!(program.agents().len(), 1, "there is no other agent");
    detected
}

#[test]
fn nfr_003_connection_lost_in_mid_turn_loses_neither_turn_nor_text() {
    let program = with_proxy().start();
    let session = program.api.open("ws");
    for (turn, mode) in [Mode::Reset, Mode::Cut, Mode::CutAfter(Way::ToClient, 10)].into_iter().enumerate() {
        let detected = disrupted_turn(&program, &session, 40, 40, || program.proxy().set_open(mode));
        assert!(detected < Duration::from_secs(5), "{mode:?} was detected after {detected:?}");
        assert_eq!(session.says("count"), (2 * turn + 2).to_string(), "the agent received each prompt once");
    }
}

#[test]
fn nfr_003_half_open_connection_is_detected_in_15_s_and_the_turn_continues() {
    let program = with_proxy().start();
    let session = program.api.open("ws");
    let detected = disrupted_turn(&program, &session, 80, 200, || program.proxy().set_open(Mode::Swallow));
    assert!(detected < Duration::from_secs(15), "detected after {detected:?}");
}

#[test]
fn nfr_003_supervisor_that_stops_receiving_reconnects_and_misses_nothing() {
    let program = with_proxy().start();
    let session = program.api.open("ws");
    let detected =
        disrupted_turn(&program, &session, 80, 200, || program.proxy().set_open(Mode::Stall(Way::ToClient)));
    assert!(detected < Duration::from_secs(15), "detected after {detected:?}");
}

#[test]
fn nfr_003_runtime_that_stops_receiving_reconnects_and_the_turn_continues() {
    let program = with_proxy().start();
    let session = program.api.open("ws");
    let detected =
        disrupted_turn(&program, &session, 80, 200, || program.proxy().set_open(Mode::Stall(Way::ToServer)));
    assert!(detected < Duration::from_secs(15), "detected after {detected:?}");
}

#[test]
fn repeated_disconnects_in_one_turn_lose_nothing() {
    let program = with_proxy().start();
    let session = program.api.open("ws");
    let mut reader = Reader::of(&session);
    let prompt_id = session.starts("ticks 60 100");
    for disconnect in 1..=4 {
        reader.until_tick(disconnect * 5);
        program.proxy().set_open(if disconnect % 2 == 0 { Mode::Reset } else { Mode::Cut });
        reader.until_reconnected();
    }
    reader.until_result(&prompt_id);
    reader.has_no_gap();
    assert_eq!(message_of(&reader.seen), ticks(60));
    is_whole(&session, &prompt_id, &ticks(60));
}

#[test]
fn connection_cut_at_any_byte_runs_each_prompt_once() {
    let program = with_proxy().start();
    let session = program.api.open("ws");
    for (turn, bytes) in [0, 1, 40, 150, 333, 700].into_iter().enumerate() {
        for (half, way) in [Way::ToServer, Way::ToClient].into_iter().enumerate() {
            program.proxy().set_open(Mode::CutAfter(way, bytes));
            // The longest cuts exceed the bytes of a prompt, so the connection stays open.
            let counted = (2 * turn + half + 1).to_string();
            assert_eq!(
                session.says("echo once ; count"),
                format!("once{counted}"),
                "cut after {bytes} bytes {way:?}"
            );
            program.proxy().set_open(Mode::Pass);
        }
    }
    assert_eq!(session.state()["restarts"], 0);
}

#[test]
fn slow_connection_is_not_treated_as_broken() {
    let program = with_proxy().start();
    let session = program.api.open("ws");
    program.proxy().set(Mode::Delay(Duration::from_millis(700)));
    let mut reader = Reader::of(&session);
    let prompt_id = session.starts("ticks 40 100");
    reader.until_result(&prompt_id);
    assert_eq!(reader.count(|event| event.data["update"]["connection"] == "reconnecting"), 0);
    is_whole(&session, &prompt_id, &ticks(40));
    program.proxy().set(Mode::Pass);
}

#[test]
fn agent_output_during_an_outage_is_delivered_after_reconnect() {
    let program = with_proxy().start();
    let session = program.api.open("ws");
    let mut reader = Reader::of(&session);
    let prompt_id = session.starts("ticks 20 50 ; write done.txt x ; echo end");
    reader.until_tick(3);
    program.proxy().refuse();
    program.proxy().set_open(Mode::Reset);
    reader.until_connection("reconnecting");
    assert_eq!(session.state()["connectionStatus"], "reconnecting");
    eventually("the agent continues without a supervisor", || session.path().join("done.txt").exists());
    assert_eq!(program.api.get(&format!("/acp/prompt/{prompt_id}")).expect(200)["state"], "running");
    program.proxy().admit();
    reader.until_connection("connected");
    reader.until_result(&prompt_id);
    reader.has_no_gap();
    is_whole(&session, &prompt_id, &format!("{}wrote done.txtend", ticks(20)));
}

#[test]
fn reader_that_reconnects_after_a_break_gets_each_event_once() {
    let program = with_proxy().start();
    let session = program.api.open("ws");
    let path = format!("/acp/session/{}/events", session.id);
    let mut first = Reader::of(&session);
    let prompt_id = session.starts("ticks 30 60");
    first.until_tick(5);
    program.proxy().set_open(Mode::Reset);
    first.until_connection("reconnecting");
    let last = *first.ids().last().expect("an id");
    let stream = program.api.call("GET", &path).header("last-event-id", &last.to_string()).stream();
    let mut second = Reader { stream, seen: first.seen };
    second.until_connection("connected");
    second.until_result(&prompt_id);
    second.has_no_gap();
    assert_eq!(message_of(&second.seen), ticks(30));
}

#[test]
fn turn_that_overflows_the_replay_buffer_waits_and_loses_nothing() {
    let program = with_proxy().set("runtime.replay_frames", 64).start();
    let session = program.api.open("ws");
    let mut reader = Reader::of(&session);
    let prompt_id = session.starts("ticks 300 5");
    reader.until_tick(20);
    program.proxy().refuse();
    program.proxy().set_open(Mode::Reset);
    reader.until_connection("reconnecting");
    program.proxy().admit();
    reader.until_result(&prompt_id);
    reader.has_no_gap();
    is_whole(&session, &prompt_id, &ticks(300));
}

#[test]
fn agent_death_during_an_outage_is_reported_once_as_a_crash() {
    let program = with_proxy().start();
    let session = program.api.open("ws");
    let agent = agent_of(&session);
    let mut reader = Reader::of(&session);
    let prompt_id = session.starts("ticks 200 50");
    reader.until_tick(3);
    program.proxy().refuse();
    program.proxy().set_open(Mode::Reset);
    reader.until_connection("reconnecting");
    processes::signal(agent, libc::SIGKILL);
    ends_within(agent, DEADLINE, "the agent has ended");
    program.proxy().admit();
    reader.until_result(&prompt_id);
    let turn = session.ends(&prompt_id);
    assert_eq!((&turn["state"], &turn["failure"]["code"]), (&json!("failed"), &json!("agent_crashed")), "{turn}");
    is_usable_again(&session);
    assert_eq!(transcript_of_turn(&session, &prompt_id).0, 1);
}

#[test]
fn cancel_during_an_outage_ends_the_turn_as_cancelled() {
    let program = with_proxy().start();
    let session = program.api.open("ws");
    let mut reader = Reader::of(&session);
    let prompt_id = session.starts("ticks 2000 50");
    reader.until_tick(3);
    program.proxy().refuse();
    program.proxy().set_open(Mode::Reset);
    reader.until_connection("reconnecting");
    assert!(session.cancel());
    program.proxy().admit();
    assert_eq!(session.ends(&prompt_id)["state"], "cancelled");
    is_usable_again(&session);
}

#[test]
fn agent_death_is_reported_at_once_though_its_connection_is_resumable() {
    let program = with_proxy().start();
    let session = program.api.open("ws");
    session.completes("echo a");
    let begin = Instant::now();
    session.prompt("crash").problem(502, "agent_crashed");
    // It takes milliseconds on an idle machine; waiting for a reconnect would take 120 s.
    assert!(begin.elapsed() < Duration::from_secs(5), "reported after {:?}", begin.elapsed());
    is_usable_again(&session);
}

// --- Grace ----------------------------------------------------------------------------------------------

#[test]
fn expired_grace_fails_the_turn_and_ends_the_agent() {
    let program = with_proxy().set("runtime.reconnect_grace_s", 2).start();
    let session = program.api.open("ws");
    let agent = agent_of(&session);
    let mut reader = Reader::of(&session);
    let prompt_id = session.starts("ticks 2000 50");
    reader.until_tick(3);
    program.proxy().refuse();
    program.proxy().set_open(Mode::Reset);
    reader.until_connection("reconnecting");
    reader.until_result(&prompt_id);
    program.proxy().admit();
    let turn = session.ends(&prompt_id);
    assert_eq!(
        (&turn["state"], &turn["failure"]["code"]),
        (&json!("failed"), &json!("runtime_unavailable")),
        "{turn}"
    );
    assert_eq!(turn["result"]["stopReason"], "error");
    assert!(turn["result"]["meta"]["message"].as_str().unwrap().starts_with(&ticks(3)), "{turn}");
    ends_within(agent, Duration::from_secs(15), "the agent ends with the grace");
    is_usable_again(&session);
    assert_eq!(reader.count(|event| event.name == "result" && event.data["promptId"] == prompt_id.as_str()), 1);
}

#[test]
fn disconnect_without_a_grace_ends_turn_and_agent_at_once() {
    let program = with_proxy().set("runtime.reconnect_grace_s", 0).start();
    let session = program.api.open("ws");
    let agent = agent_of(&session);
    let (prompt_id, _stream) = session.is_busy_with("ticks 2000 50");
    program.proxy().set_open(Mode::Reset);
    let turn = session.ends(&prompt_id);
    assert_eq!((&turn["state"], &turn["failure"]["code"]), (&json!("failed"), &json!("connection_lost")), "{turn}");
    ends_within(agent, Duration::from_secs(10), "the agent ends");
    is_usable_again(&session);
}

#[test]
fn closing_or_hibernating_a_session_ends_its_agent_without_grace() {
    let program = with_proxy().set("session.idle_timeout_s", 1).start();
    for closes in [true, false] {
        let session = program.api.open("ws");
        let agent = agent_of(&session);
        if closes {
            session.post("close", json!({})).expect(200);
        } else {
            session.becomes("hibernated");
        }
        // Well below the grace, which defaults to two minutes.
        ends_within(agent, Duration::from_secs(10), "the agent ends at once");
    }
}

#[test]
fn agent_of_a_session_closed_during_an_outage_ends_with_the_grace() {
    let program = with_proxy().set("runtime.reconnect_grace_s", 3).start();
    let session = program.api.open("ws");
    let agent = agent_of(&session);
    let mut reader = Reader::of(&session);
    program.proxy().refuse();
    program.proxy().set_open(Mode::Reset);
    reader.until_connection("reconnecting");
    session.post("close", json!({})).expect(200);
    ends_within(agent, Duration::from_secs(20), "the agent ends with the grace");
    program.proxy().admit();
}

#[test]
fn stopped_supervisor_ends_its_agents_without_grace() {
    let mut program = with_proxy().start();
    let agent = agent_of(&program.api.open("ws"));
    assert_eq!(program.terminate(DEADLINE), Some(0));
    ends_within(agent, Duration::from_secs(10), "the agent ends at once");
    program.runtime().assert_running();
}

// --- Kills of the supervisor ----------------------------------------------------------------------------

#[test]
fn nfr_003_restarted_supervisor_resumes_a_running_turn() {
    let mut program = with_proxy().start();
    let session = program.api.open("ws");
    let mut reader = Reader::of(&session);
    let prompt_id = starts_with_key(&session, "ticks 60 50 ; count", "key");
    reader.until_tick(5);
    program.kill_supervisor();
    program.start_supervisor_again();
    let text = format!("{}1", ticks(60));
    is_whole(&session, &prompt_id, &text);
    let repeat = session.call("ticks 60 50 ; count").header("idempotency-key", "key").send().expect(200);
    assert_eq!((&repeat["meta"]["promptId"], &repeat["meta"]["message"]), (&json!(prompt_id), &json!(text)));
    assert_eq!(session.says("count"), "2", "the same agent received the prompt once");
    assert_eq!(session.conversation().iter().filter(|(kind, _)| kind == "user_message").count(), 2);
    assert_eq!(program.agents().len(), 1);
}

#[test]
fn turn_that_ended_without_a_supervisor_is_recovered_after_restart() {
    let mut program = with_proxy().start();
    let session = program.api.open("ws");
    let mut reader = Reader::of(&session);
    let prompt_id = starts_with_key(&session, "ticks 10 30 ; write done.txt x", "key");
    reader.until_tick(2);
    program.kill_supervisor();
    eventually("the agent continues without a supervisor", || session.path().join("done.txt").exists());
    program.start_supervisor_again();
    is_whole(&session, &prompt_id, &format!("{}wrote done.txt", ticks(10)));
    is_usable_again(&session);
}

#[test]
fn supervisor_killed_twice_in_one_turn_recovers_it_whole() {
    let mut program = with_proxy().set("runtime.replay_frames", 64).start();
    let session = program.api.open("ws");
    let mut reader = Reader::of(&session);
    let prompt_id = starts_with_key(&session, "ticks 400 20", "key");
    // More than the runtime's replay buffer: by then a part of the turn is only on disk.
    reader.until_tick(100);
    for start in 2..=3 {
        let last = *reader.ids().last().expect("an id");
        program.kill_supervisor();
        program.start_supervisor_again();
        reader = Reader::of(&session);
        reader.until("an event of the turn", |event| event.data["promptId"] == prompt_id.as_str());
        let first = reader.ids()[0];
        assert!(first > last, "no event id is reused: {first} after start {start}, {last} before");
        let state = program.api.get(&format!("/acp/prompt/{prompt_id}")).expect(200)["state"].clone();
        assert_eq!(state, "running", "after start {start}");
    }
    is_whole(&session, &prompt_id, &ticks(400));
}

/// Kinds and texts of a turn's entries; tool calls with their title and status.
fn entries_of(session: &Session, prompt_id: &str) -> Vec<String> {
    let shown = |entry: &Value| {
        let payload = &entry["payload"];
        let call = format!("{} {}", payload["title"], payload["status"]);
        let what = if payload["title"].is_null() { entry["text"].to_string() } else { call };
        format!("{} {what}", entry["eventType"].as_str().expect("a string"))
    };
    session.transcript().iter().filter(|entry| entry["promptId"] == prompt_id).map(shown).collect()
}

/// Runs a turn of hundreds of short entries, kills the supervisor in the middle of it, `kills` times, and checks that
/// each entry is there once.
fn killed_turn_of_short_entries(builder: Builder, steps: usize, kills: usize) {
    let mut program = builder.start();
    let session = program.api.open("ws");
    let mut reader = Reader::of(&session);
    let prompt_id = starts_with_key(&session, &format!("steps {steps} 40"), "key");
    for kill in 1..=kills {
        let step = format!("step {} ", kill * steps / (kills + 1));
        reader.until(&step, |event| event.data["update"]["content"]["text"] == step.as_str());
        program.kill_supervisor();
        program.start_supervisor_again();
        let stream = program.api.events(&format!("/acp/session/{}/events", session.id));
        reader = Reader { stream, seen: Vec::new() };
    }
    let message: String = (1..=steps).map(|n| format!("step {n} ")).collect();
    is_whole(&session, &prompt_id, &message);
    let steps = (1..=steps).flat_map(|n| {
        [
            format!("agent_thought \"thought {n}\""),
            format!("tool_call \"call {n}\" \"completed\""),
            format!("agent_message \"step {n} \""),
        ]
    });
    let prompt = entries_of(&session, &prompt_id)[0].clone();
    assert_eq!(entries_of(&session, &prompt_id), [prompt].into_iter().chain(steps).collect::<Vec<_>>());
}

#[test]
fn short_entries_are_neither_doubled_nor_lost_by_a_supervisor_kill() {
    killed_turn_of_short_entries(with_proxy(), 80, 1);
}

#[test]
fn short_entries_are_whole_after_three_supervisor_kills_on_postgres() {
    killed_turn_of_short_entries(with_proxy().set("runtime.replay_frames", 64).postgres(), 100, 3);
}

#[test]
fn tool_call_stays_one_entry_over_a_supervisor_kill() {
    let mut program = with_proxy().set("runtime.replay_frames", 64).start();
    let session = program.api.open("ws");
    let mut reader = Reader::of(&session);
    // The call is on disk before the kill, and ends after it.
    let prompt_id = session.starts("steps 40 1 ; sleep 2 ; echo end");
    reader.until("the long call", |event| event.data["update"]["title"] == "Working");
    program.kill_supervisor();
    program.start_supervisor_again();
    session.ends(&prompt_id);
    let entries = entries_of(&session, &prompt_id);
    let calls: Vec<_> = entries.iter().filter(|entry| entry.contains("Working")).collect();
    assert_eq!(calls, ["tool_call \"Working\" \"completed\""], "{entries:?}");
    assert!(!entries.iter().any(|entry| entry.starts_with("tool_call_update")), "{entries:?}");
}

#[test]
fn restarted_supervisor_resumes_every_session() {
    let mut program = with_proxy().start();
    let running: Vec<_> = (0..6)
        .map(|n| {
            let session = program.api.open(&format!("ws-{}", n % 3));
            let (prompt_id, _) = session.is_busy_with("ticks 40 50");
            (session, prompt_id)
        })
        .collect();
    program.kill_supervisor();
    program.start_supervisor_again();
    for (session, prompt_id) in &running {
        is_whole(session, prompt_id, &ticks(40));
    }
    assert_eq!(program.agents().len(), running.len());
}

#[test]
fn idle_session_survives_a_killed_supervisor_and_leaks_no_agent() {
    let mut program = with_proxy().set("runtime.reconnect_grace_s", 3).start();
    let session = program.api.open("ws");
    session.completes("echo the magic word is xyzzy");
    program.kill_supervisor();
    program.start_supervisor_again();
    is_usable_again(&session);
    let texts: Vec<_> = session.conversation().into_iter().map(|(_, text)| text).collect();
    assert!(texts.iter().any(|text| text.contains("xyzzy")), "{texts:?}");
    eventually("one agent is left", || program.agents().len() == 1);
}

#[test]
fn pending_permission_can_be_answered_after_a_supervisor_restart() {
    let mut program = with_proxy().start();
    let body = json!({"workspaceId": "ws", "installationId": "tenant-1", "permissionPolicy": "ask"});
    let session = program.api.open_with(body);
    let mut reader = Reader::of(&session);
    let prompt_id = session.starts("echo before ; ask");
    reader.until("the request", |event| event.name == "permission_request");
    program.kill_supervisor();
    program.start_supervisor_again();
    let mut reader =
        Reader { stream: program.api.events(&format!("/acp/session/{}/events", session.id)), seen: vec![] };
    reader.until("the request again", |event| event.name == "permission_request");
    let request = reader.seen.last().expect("an event").data["update"]["requestId"].clone();
    session.post("permission", json!({"requestId": request, "optionId": "allow"})).expect(200);
    is_whole(&session, &prompt_id, "beforeallow");
}

#[test]
fn turn_cancelled_before_a_kill_ends_cancelled_after_the_restart() {
    let mut program = with_proxy().demo_agent(&["--deny-cancel"]).set("turn.cancel_grace_s", 30).start();
    let session = program.api.open("ws");
    let mut reader = Reader::of(&session);
    // Works for 3 s whatever it reads, then answers `end_turn`.
    let prompt_id = session.starts("run sleep 3");
    reader.until("the command", |event| event.data["update"]["sessionUpdate"] == "tool_call");
    assert!(session.cancel());
    program.kill_supervisor();
    program.start_supervisor_again();
    let turn = session.ends(&prompt_id);
    assert_eq!((&turn["state"], &turn["result"]["stopReason"]), (&json!("cancelled"), &json!("cancelled")), "{turn}");
    is_usable_again(&session);
}

#[test]
fn nfr_004_event_ids_are_not_reused_after_a_supervisor_kill() {
    let mut program = with_proxy().start();
    let session = program.api.open("ws");
    let mut reader = Reader::of(&session);
    let prompt_id = session.starts("ticks 60 50");
    reader.until_tick(5);
    let last = *reader.ids().last().expect("an id");
    program.kill_supervisor();
    program.start_supervisor_again();
    let path = format!("/acp/session/{}/events", session.id);
    let stream = program.api.call("GET", &path).header("last-event-id", &last.to_string()).stream();
    let mut reader = Reader { stream, seen: Vec::new() };
    reader.until_result(&prompt_id);
    let ids = reader.ids();
    assert!(ids.first().is_some_and(|first| *first > last), "no event id is reused: {last}, {ids:?}");
    reader.has_no_gap();
    // Events that the killed supervisor may have sent and the new one does not know are announced as a gap.
    let has_gap_event = reader.seen.iter().any(|event| event.name == "gap");
    assert!(has_gap_event || ids[0] == last + 1, "a gap without its event: {:#?}", reader.seen.first());
    is_whole(&session, &prompt_id, &ticks(60));
}

#[test]
fn event_ids_are_not_reused_when_a_session_failed_in_mid_turn_is_loaded() {
    let program = Program::start();
    let session = program.api.open_on_acp("ws");
    let path = format!("/acp/session/{}/events", session.id);
    let mut stream = program.api.events(&path);
    for _ in 0..5 {
        wait_for(DEADLINE, "a crash", || (session.prompt("crash").status == 502).then_some(()));
    }
    let _ = session.is_busy_with("echo before ; sleep 0.3 ; crash");
    let database = program.folder.path().join("data/lumilink.db");
    let mut database = SqliteConnection::establish(&database.display().to_string()).expect("the database");
    // The lock keeps the end of the turn from being written before the session has failed.
    database.batch_execute("PRAGMA busy_timeout = 5000; BEGIN IMMEDIATE").expect("a lock");
    session.becomes("failed");
    database.batch_execute("ROLLBACK").expect("no lock");
    let ids = |stream: &mut Sse, what: &str, wanted: fn(&Event) -> bool| -> Vec<u64> {
        stream.until(what, wanted).iter().filter_map(|event| event.id).collect()
    };
    // The result of the turn that failed the session comes shortly before or after the end of the session.
    let mut before = ids(&mut stream, "the end", |event| event.data["update"]["state"] == "failed");
    before.extend(stream.rest().iter().filter_map(|event| event.id));
    session.post("load", json!({})).expect(200);
    let mut again = program.api.events(&path);
    session.completes("echo back");
    let after = ids(&mut again, "a result", |event| event.name == "result");
    assert_eq!(after[0], before[before.len() - 1] + 1, "{after:?} continues {before:?}");
}

#[test]
fn turn_reads_interrupted_when_its_agent_ended_before_the_restart() {
    let mut program = with_proxy().set("runtime.reconnect_grace_s", 1).start();
    let session = program.api.open("ws");
    let agent = agent_of(&session);
    let mut reader = Reader::of(&session);
    let prompt_id = starts_with_key(&session, "ticks 2000 50", "key");
    reader.until_tick(5);
    program.kill_supervisor();
    ends_within(agent, DEADLINE, "the agent ends with the grace");
    program.start_supervisor_again();
    is_interrupted(&session, &prompt_id, "ticks 2000 50");
}

/// Fails the test unless the turn reads `interrupted`, a repeat under its key returns the same without running, and
/// the session is usable after a load.
fn is_interrupted(session: &Session, prompt_id: &str, prompt: &str) {
    let turn = session.ends(prompt_id);
    assert_eq!(turn["state"], "interrupted", "{turn}");
    assert_eq!(turn["result"]["stopReason"], "error", "{turn}");
    assert_eq!(turn["result"]["meta"]["errorCode"], "interrupted", "{turn}");
    let repeat = session.call(prompt).header("idempotency-key", "key").send();
    assert!(repeat.status >= 500, "{}", repeat.text);
    assert_eq!((&repeat.body["code"], &repeat.body["promptId"]), (&json!("interrupted"), &json!(prompt_id)));
    is_usable_again(session);
    assert_eq!(transcript_of_turn(session, prompt_id).0, 1, "the prompt did not run again");
}

#[test]
fn killed_embedded_runtime_leaves_the_turn_interrupted_and_never_rerun() {
    let mut program = Program::start();
    let session = program.api.open("ws");
    let mut reader = Reader::of(&session);
    let prompt_id = starts_with_key(&session, "ticks 2000 50", "key");
    reader.until_tick(5);
    let agents = program.agents();
    program.kill_supervisor();
    for agent in agents {
        ends_within(agent, DEADLINE, "no agent outlives the embedded runtime");
    }
    program.start_supervisor_again();
    is_interrupted(&session, &prompt_id, "ticks 2000 50");
}

// --- Kills of the runtime -------------------------------------------------------------------------------

#[test]
fn nfr_003_killed_runtime_ends_its_turn_once_and_the_session_recovers() {
    let mut program = with_proxy().start();
    let session = program.api.open("ws");
    let mut reader = Reader::of(&session);
    let prompt_id = starts_with_key(&session, "ticks 2000 50", "key");
    reader.until_tick(5);
    let agents = program.agents();
    program.kill_runtime();
    for agent in agents {
        ends_within(agent, DEADLINE, "no agent outlives its runtime");
    }
    program.start_runtime_again();
    reader.until_result(&prompt_id);
    let turn = session.ends(&prompt_id);
    assert_eq!(
        (&turn["state"], &turn["failure"]["code"]),
        (&json!("failed"), &json!("runtime_unavailable")),
        "{turn}"
    );
    assert_eq!(turn["result"]["stopReason"], "error", "{turn}");
    let repeat = session.call("ticks 2000 50").header("idempotency-key", "key").send();
    assert_eq!(repeat.problem(503, "runtime_unavailable")["promptId"], json!(prompt_id));
    is_usable_again(&session);
    let results = |event: &Event| event.name == "result" && event.data["promptId"] == prompt_id.as_str();
    assert_eq!(reader.count(results), 1);
    assert_eq!(transcript_of_turn(&session, &prompt_id).0, 1);
    assert!(ends_are_counted_once(&program));
}

/// Whether the metrics count as many ended as started turns.
fn ends_are_counted_once(program: &Program) -> bool {
    let scrape = program.metrics();
    scrape.sum(crate::harness::program::TURNS_STARTED, &[]) == scrape.sum(crate::harness::program::TURNS_ENDED, &[])
}

#[test]
fn killing_supervisor_and_runtime_interrupts_the_turn_and_keeps_the_session() {
    let mut program = with_proxy().start();
    let session = program.api.open("ws");
    let mut reader = Reader::of(&session);
    let prompt_id = starts_with_key(&session, "ticks 2000 50", "key");
    reader.until_tick(5);
    program.kill_supervisor();
    program.kill_runtime();
    program.start_runtime_again();
    program.start_supervisor_again();
    is_interrupted(&session, &prompt_id, "ticks 2000 50");
}
