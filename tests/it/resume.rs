//! The cable between supervisor and runtime is pulled, one of the two is killed: the turn goes on, or ends once and
//! honestly.

use std::time::{Duration, Instant};

use diesel::{Connection, SqliteConnection, connection::SimpleConnection};

use crate::harness::{
    DEADLINE, Program, Session, eventually, json, processes,
    program::Builder,
    proxy::{Mode, Way},
    sse::{Event, Sse, message_of},
    wait_for,
};

/// What the demo agent says at `ticks COUNT …`.
fn ticks(count: usize) -> String {
    (1..=count).map(|n| format!("tick {n} ")).collect()
}

fn apart() -> Builder {
    Program::builder().behind_proxy()
}

/// Somebody who looks at the events of a session.
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

    /// Until the agent has said so much of [`ticks`].
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

    /// The connection breaks and stands again.
    fn until_it_stands_again(&mut self) {
        self.until_connection("reconnecting");
        self.until_connection("connected");
    }

    fn ids(&self) -> Vec<u64> {
        self.seen.iter().filter_map(|event| event.id).collect()
    }

    /// Nothing was left out and nothing came twice.
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

/// The turn completed, and what the agent said is in its result and in the transcript, whole and once.
fn is_whole(session: &Session, prompt_id: &str, text: &str) {
    let turn = session.ends(prompt_id);
    assert_eq!(turn["state"], "completed", "{turn}");
    assert_eq!(turn["result"]["stopReason"], "completed", "{turn}");
    assert_eq!(turn["result"]["meta"]["message"], text);
    assert_eq!(said_in_transcript(session, prompt_id), (1, text.to_owned()));
}

/// How many prompts of the user and what text of the agent the transcript has of a turn.
fn said_in_transcript(session: &Session, prompt_id: &str) -> (usize, String) {
    let entries = session.transcript();
    let of_turn: Vec<_> = entries.iter().filter(|entry| entry["promptId"] == prompt_id).collect();
    let prompts = of_turn.iter().filter(|entry| entry["eventType"] == "user_message").count();
    let said = of_turn.iter().filter(|entry| entry["eventType"] == "agent_message");
    (prompts, said.filter_map(|entry| entry["text"].as_str()).collect())
}

/// The session takes a prompt again, loaded where it says that it has to be.
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
    session.says("pid").trim().parse().expect("the agent says its pid")
}

fn ends_within(pid: i32, limit: Duration, why: &str) {
    wait_for(limit, why, || (!processes::is_alive(pid)).then_some(()));
}

// --- The cable ---------------------------------------------------------------------------------------------

/// A turn during which `pull` does something to the cable at the fifth tick; the reader's events, and how long it
/// took until it was noticed.
fn turn_over(program: &Program, session: &Session, count: usize, pause_ms: u64, pull: impl FnOnce()) -> Duration {
    let mut reader = Reader::of(session);
    let prompt_id = session.starts(&format!("ticks {count} {pause_ms}"));
    reader.until_tick(5);
    let begin = Instant::now();
    pull();
    reader.until_connection("reconnecting");
    let noticed = begin.elapsed();
    reader.until_connection("connected");
    reader.until_result(&prompt_id);
    reader.has_no_gap();
    assert_eq!(message_of(&reader.seen), ticks(count));
    is_whole(session, &prompt_id, &ticks(count));
    assert_eq!(session.state()["restarts"], 0, "the agent is the same");
    assert_eq!(session.state()["connectionStatus"], "connected");
    assert_eq!(program.agents().len(), 1, "and there is no other");
    noticed
}

#[test]
fn nfr_003_a_cable_pulled_in_mid_turn_costs_neither_the_turn_nor_a_word() {
    let program = apart().start();
    let session = program.api.open("ws");
    for (turn, mode) in [Mode::Reset, Mode::Cut, Mode::CutAfter(Way::ToClient, 10)].into_iter().enumerate() {
        let noticed = turn_over(&program, &session, 40, 40, || program.proxy().set_open(mode));
        assert!(noticed < Duration::from_secs(5), "{mode:?} was noticed after {noticed:?}");
        assert_eq!(session.says("count"), (2 * turn + 2).to_string(), "each prompt reached the agent once");
    }
}

#[test]
fn nfr_003_a_half_open_connection_is_noticed_within_15_seconds_and_the_turn_goes_on() {
    let program = apart().start();
    let session = program.api.open("ws");
    let noticed = turn_over(&program, &session, 80, 200, || program.proxy().set_open(Mode::Swallow));
    assert!(noticed < Duration::from_secs(15), "noticed after {noticed:?}");
}

#[test]
fn nfr_003_a_supervisor_that_gets_nothing_any_more_comes_back_and_misses_nothing() {
    let program = apart().start();
    let session = program.api.open("ws");
    let noticed = turn_over(&program, &session, 80, 200, || program.proxy().set_open(Mode::Stall(Way::ToClient)));
    assert!(noticed < Duration::from_secs(15), "noticed after {noticed:?}");
}

#[test]
fn nfr_003_a_runtime_that_gets_nothing_any_more_lets_the_connection_go_and_the_turn_goes_on() {
    let program = apart().start();
    let session = program.api.open("ws");
    let noticed = turn_over(&program, &session, 80, 200, || program.proxy().set_open(Mode::Stall(Way::ToServer)));
    assert!(noticed < Duration::from_secs(15), "noticed after {noticed:?}");
}

#[test]
fn a_cable_pulled_again_and_again_in_one_turn_costs_nothing() {
    let program = apart().start();
    let session = program.api.open("ws");
    let mut reader = Reader::of(&session);
    let prompt_id = session.starts("ticks 60 100");
    for pull in 1..=4 {
        reader.until_tick(pull * 5);
        program.proxy().set_open(if pull % 2 == 0 { Mode::Reset } else { Mode::Cut });
        reader.until_it_stands_again();
    }
    reader.until_result(&prompt_id);
    reader.has_no_gap();
    assert_eq!(message_of(&reader.seen), ticks(60));
    is_whole(&session, &prompt_id, &ticks(60));
}

#[test]
fn a_connection_may_break_at_any_byte_in_either_direction() {
    let program = apart().start();
    let session = program.api.open("ws");
    for (turn, bytes) in [0, 1, 40, 150, 333, 700].into_iter().enumerate() {
        for (half, way) in [Way::ToServer, Way::ToClient].into_iter().enumerate() {
            program.proxy().set_open(Mode::CutAfter(way, bytes));
            // A prompt is shorter than the longest of these: then nothing breaks in this direction.
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
fn a_slow_cable_is_not_a_broken_one() {
    let program = apart().start();
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
fn what_an_agent_does_while_nobody_can_be_reached_is_told_afterwards() {
    let program = apart().start();
    let session = program.api.open("ws");
    let mut reader = Reader::of(&session);
    let prompt_id = session.starts("ticks 20 50 ; write done.txt x ; echo end");
    reader.until_tick(3);
    program.proxy().refuse();
    program.proxy().set_open(Mode::Reset);
    reader.until_connection("reconnecting");
    assert_eq!(session.state()["connectionStatus"], "reconnecting");
    eventually("the agent works on alone", || session.path().join("done.txt").exists());
    assert_eq!(program.api.get(&format!("/acp/prompt/{prompt_id}")).expect(200)["state"], "running");
    program.proxy().admit();
    reader.until_connection("connected");
    reader.until_result(&prompt_id);
    reader.has_no_gap();
    is_whole(&session, &prompt_id, &format!("{}wrote done.txtend", ticks(20)));
}

#[test]
fn a_reader_that_comes_back_after_a_break_misses_nothing_and_gets_nothing_twice() {
    let program = apart().start();
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
fn a_turn_that_says_more_than_is_kept_waits_for_its_supervisor_and_loses_nothing() {
    let program = apart().set("runtime.replay_frames", 64).start();
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
fn an_agent_that_dies_while_the_cable_is_out_is_told_as_a_crash_once() {
    let program = apart().start();
    let session = program.api.open("ws");
    let agent = agent_of(&session);
    let mut reader = Reader::of(&session);
    let prompt_id = session.starts("ticks 200 50");
    reader.until_tick(3);
    program.proxy().refuse();
    program.proxy().set_open(Mode::Reset);
    reader.until_connection("reconnecting");
    processes::signal(agent, libc::SIGKILL);
    ends_within(agent, DEADLINE, "the agent is gone");
    program.proxy().admit();
    reader.until_result(&prompt_id);
    let turn = session.ends(&prompt_id);
    assert_eq!((&turn["state"], &turn["failure"]["code"]), (&json!("failed"), &json!("agent_crashed")), "{turn}");
    is_usable_again(&session);
    assert_eq!(said_in_transcript(&session, &prompt_id).0, 1);
}

#[test]
fn a_cancel_while_the_cable_is_out_ends_the_turn_as_cancelled() {
    let program = apart().start();
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
fn an_agent_that_dies_is_told_at_once_though_its_connection_could_be_gone_on_with() {
    let program = apart().start();
    let session = program.api.open("ws");
    session.completes("echo a");
    let begin = Instant::now();
    session.prompt("crash").problem(502, "agent_crashed");
    assert!(begin.elapsed() < Duration::from_millis(1500), "told after {:?}", begin.elapsed());
    is_usable_again(&session);
}

// --- The grace ---------------------------------------------------------------------------------------------

#[test]
fn after_the_grace_the_turn_ends_honestly_and_so_does_the_agent() {
    let program = apart().set("runtime.reconnect_grace_s", 2).start();
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
    assert_eq!((&turn["state"], &turn["failure"]["code"]), (&json!("failed"), &json!("connection_lost")), "{turn}");
    assert_eq!(turn["result"]["stopReason"], "error");
    assert!(turn["result"]["meta"]["message"].as_str().unwrap().starts_with(&ticks(3)), "{turn}");
    ends_within(agent, Duration::from_secs(15), "the agent ends with the grace");
    is_usable_again(&session);
    assert_eq!(reader.count(|event| event.name == "result" && event.data["promptId"] == prompt_id.as_str()), 1);
}

#[test]
fn without_a_grace_a_break_ends_turn_and_agent_at_once() {
    let program = apart().set("runtime.reconnect_grace_s", 0).start();
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
fn an_agent_whose_session_is_closed_or_hibernates_is_not_held() {
    let program = apart().set("session.idle_timeout_s", 1).start();
    for closes in [true, false] {
        let session = program.api.open("ws");
        let agent = agent_of(&session);
        if closes {
            session.post("close", json!({})).expect(200);
        } else {
            session.becomes("hibernated");
        }
        // The grace is two minutes.
        ends_within(agent, Duration::from_secs(10), "the agent ends at once");
    }
}

#[test]
fn an_agent_whose_session_is_closed_while_the_cable_is_out_ends_with_the_grace() {
    let program = apart().set("runtime.reconnect_grace_s", 3).start();
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
fn a_supervisor_that_is_stopped_leaves_no_agent_to_the_grace() {
    let mut program = apart().start();
    let agent = agent_of(&program.api.open("ws"));
    assert_eq!(program.terminate(DEADLINE), Some(0));
    ends_within(agent, Duration::from_secs(10), "the agent ends at once");
    program.runtime().assert_running();
}

// --- The supervisor is killed ------------------------------------------------------------------------------

#[test]
fn nfr_003_a_turn_is_picked_up_by_the_next_life_of_a_killed_supervisor() {
    let mut program = apart().start();
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
    assert_eq!(session.says("count"), "2", "the agent is the same, and has seen the prompt once");
    assert_eq!(session.conversation().iter().filter(|(kind, _)| kind == "user_message").count(), 2);
    assert_eq!(program.agents().len(), 1);
}

#[test]
fn a_turn_that_ended_while_there_was_no_supervisor_is_found_by_the_next() {
    let mut program = apart().start();
    let session = program.api.open("ws");
    let mut reader = Reader::of(&session);
    let prompt_id = starts_with_key(&session, "ticks 10 30 ; write done.txt x", "key");
    reader.until_tick(2);
    program.kill_supervisor();
    eventually("the agent works on alone", || session.path().join("done.txt").exists());
    program.start_supervisor_again();
    is_whole(&session, &prompt_id, &format!("{}wrote done.txt", ticks(10)));
    is_usable_again(&session);
}

#[test]
fn a_supervisor_that_is_killed_twice_in_one_turn_still_has_it_whole() {
    let mut program = apart().set("runtime.replay_frames", 64).start();
    let session = program.api.open("ws");
    let mut reader = Reader::of(&session);
    let prompt_id = starts_with_key(&session, "ticks 400 20", "key");
    // More than what the runtime keeps: a part of the turn is on disk alone by then.
    reader.until_tick(100);
    for life in 2..=3 {
        let last = *reader.ids().last().expect("an id");
        program.kill_supervisor();
        program.start_supervisor_again();
        reader = Reader::of(&session);
        reader.until("the turn goes on", |event| event.data["promptId"] == prompt_id.as_str());
        let first = reader.ids()[0];
        assert!(first > last, "no id stands for two events: {first} in life {life}, {last} before");
        let state = program.api.get(&format!("/acp/prompt/{prompt_id}")).expect(200)["state"].clone();
        assert_eq!(state, "running", "in life {life}");
    }
    is_whole(&session, &prompt_id, &ticks(400));
}

#[test]
fn every_session_of_a_killed_supervisor_is_picked_up() {
    let mut program = apart().start();
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
fn an_idle_session_of_a_killed_supervisor_goes_on_and_leaves_no_agent_behind() {
    let mut program = apart().set("runtime.reconnect_grace_s", 3).start();
    let session = program.api.open("ws");
    session.completes("echo the magic word is xyzzy");
    program.kill_supervisor();
    program.start_supervisor_again();
    is_usable_again(&session);
    let said: Vec<_> = session.conversation().into_iter().map(|(_, text)| text).collect();
    assert!(said.iter().any(|text| text.contains("xyzzy")), "{said:?}");
    eventually("one agent is left", || program.agents().len() == 1);
}

#[test]
fn a_permission_that_nobody_gave_yet_can_be_given_in_the_next_life() {
    let mut program = apart().start();
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
fn nfr_004_event_ids_never_stand_for_two_events_across_a_killed_supervisor() {
    let mut program = apart().start();
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
    assert!(ids.first().is_some_and(|first| *first > last), "ids of before do not come again: {last}, {ids:?}");
    reader.has_no_gap();
    // What the first life may have shown and the second does not know is said to be missing.
    let told = reader.seen.iter().any(|event| event.name == "gap");
    assert!(told || ids[0] == last + 1, "a gap is told: {:#?}", reader.seen.first());
    is_whole(&session, &prompt_id, &ticks(60));
}

#[test]
fn event_ids_never_stand_for_two_events_when_a_session_failed_in_mid_turn_and_is_loaded() {
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
    // The end of the turn cannot be written down before the session has ended.
    database.batch_execute("PRAGMA busy_timeout = 5000; BEGIN IMMEDIATE").expect("a lock");
    session.becomes("failed");
    database.batch_execute("ROLLBACK").expect("no lock");
    let ids = |stream: &mut Sse, what: &str, wanted: fn(&Event) -> bool| -> Vec<u64> {
        stream.until(what, wanted).iter().filter_map(|event| event.id).collect()
    };
    // The result of the turn that was the last straw comes with the end of the session, on whichever side of it.
    let mut before = ids(&mut stream, "the end", |event| event.data["update"]["state"] == "failed");
    before.extend(stream.rest().iter().filter_map(|event| event.id));
    session.post("load", json!({})).expect(200);
    let mut again = program.api.events(&path);
    session.completes("echo back");
    let after = ids(&mut again, "a result", |event| event.name == "result");
    assert_eq!(after[0], before[before.len() - 1] + 1, "{before:?} goes on as {after:?}");
}

#[test]
fn a_turn_whose_agent_is_gone_when_the_supervisor_comes_back_reads_interrupted() {
    let mut program = apart().set("runtime.reconnect_grace_s", 1).start();
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

/// The turn reads `interrupted`, a repeat under its key says the same and runs nothing, and the session can be
/// brought back.
fn is_interrupted(session: &Session, prompt_id: &str, prompt: &str) {
    let turn = session.ends(prompt_id);
    assert_eq!(turn["state"], "interrupted", "{turn}");
    assert_eq!(turn["result"]["stopReason"], "error", "{turn}");
    assert_eq!(turn["result"]["meta"]["errorCode"], "interrupted", "{turn}");
    let repeat = session.call(prompt).header("idempotency-key", "key").send();
    assert!(repeat.status >= 500, "{}", repeat.text);
    assert_eq!((&repeat.body["code"], &repeat.body["promptId"]), (&json!("interrupted"), &json!(prompt_id)));
    is_usable_again(session);
    assert_eq!(said_in_transcript(session, prompt_id).0, 1, "the prompt was never run again");
}

#[test]
fn a_turn_of_an_embedded_runtime_reads_interrupted_after_a_kill_and_is_never_run_again() {
    let mut program = Program::start();
    let session = program.api.open("ws");
    let mut reader = Reader::of(&session);
    let prompt_id = starts_with_key(&session, "ticks 2000 50", "key");
    reader.until_tick(5);
    let agents = program.agents();
    program.kill_supervisor();
    for agent in agents {
        ends_within(agent, DEADLINE, "no agent outlives the runtime in the supervisor");
    }
    program.start_supervisor_again();
    is_interrupted(&session, &prompt_id, "ticks 2000 50");
}

// --- The runtime is killed ---------------------------------------------------------------------------------

#[test]
fn nfr_003_a_killed_runtime_ends_its_turns_once_and_the_session_goes_on_when_it_is_back() {
    let mut program = apart().start();
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
    assert_eq!((&turn["state"], &turn["failure"]["code"]), (&json!("failed"), &json!("connection_lost")), "{turn}");
    assert_eq!(turn["result"]["stopReason"], "error", "{turn}");
    let repeat = session.call("ticks 2000 50").header("idempotency-key", "key").send();
    assert_eq!(repeat.problem(502, "connection_lost")["promptId"], json!(prompt_id));
    is_usable_again(&session);
    let results = |event: &Event| event.name == "result" && event.data["promptId"] == prompt_id.as_str();
    assert_eq!(reader.count(results), 1);
    assert_eq!(said_in_transcript(&session, &prompt_id).0, 1);
    assert!(ends_are_counted_once(&program));
}

/// Whether as many turns ended as began, as the metrics say.
fn ends_are_counted_once(program: &Program) -> bool {
    let scrape = program.metrics();
    scrape.sum(crate::harness::program::TURNS_STARTED, &[]) == scrape.sum(crate::harness::program::TURNS_ENDED, &[])
}

#[test]
fn supervisor_and_runtime_killed_together_leave_an_interrupted_turn_and_a_session_that_goes_on() {
    let mut program = apart().start();
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
