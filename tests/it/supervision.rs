//! Agents that crash, hang, lie and leave children; the session is usable again within a second.

use std::time::{Duration, Instant};

use crate::harness::{DEADLINE, Program, Session, api::result_of, eventually, json, processes, wait_for};

fn is_usable_again(session: &Session) {
    let begin = Instant::now();
    wait_for(DEADLINE, "the session is usable again", || {
        let answer = session.prompt("echo back");
        (answer.status == 200).then_some(())
    });
    // A second on an idle machine; two cores shared by other tests get three.
    assert!(begin.elapsed() < Duration::from_secs(3), "usable again after {:?}", begin.elapsed());
}

#[test]
fn crash_mid_prompt_answers_502_and_the_next_prompt_works() {
    let program = Program::start();
    let session = program.api.open("ws");
    for word in ["crash", "segv"] {
        let problem = session.prompt(&format!("echo before ; {word}")).problem(502, "agent_crashed");
        assert_eq!((&problem["class"], &problem["retryable"]), (&json!("connection"), &json!(true)));
        assert_eq!(problem["result"]["meta"]["errorCode"], "agent_crashed");
        assert!(problem["result"]["meta"]["message"].as_str().unwrap().contains("before"), "{problem}");
        is_usable_again(&session);
    }
    assert_eq!(session.state()["restarts"], 2);
}

#[test]
fn a_crash_ends_the_stream_with_one_result() {
    let program = Program::start();
    let session = program.api.open("ws");
    let events = session.streams("echo before ; crash").rest();
    assert_eq!(result_of(&program.api, &events)["stopReason"], "error");
    assert_eq!(events.iter().filter(|event| event.name == "result").count(), 1);
}

#[test]
fn a_silent_agent_is_given_up_after_the_inactivity_limit_and_a_talking_one_is_not() {
    let program = Program::builder().set("turn.inactivity_timeout_s", 2).start();
    let session = program.api.open("ws");
    let problem = session.prompt("hang").problem(504, "inactivity_timeout");
    assert_eq!(problem["class"], "connection");
    is_usable_again(&session);
    // Longer than the limit as a whole, never silent for as long.
    let begin = Instant::now();
    session.completes("ticks 12 250");
    assert!(begin.elapsed() > Duration::from_secs(2), "the turn outlasted the limit: {:?}", begin.elapsed());
}

#[test]
fn some_stray_lines_are_tolerated_with_a_diagnostic_and_many_are_not() {
    let program = Program::start();
    let session = program.api.open("ws");
    let result = session.completes("garbage 3 ; echo fine");
    assert!(result["diagnostics"].as_array().is_some_and(|it| !it.is_empty()), "{result}");
    let problem = session.prompt("garbage 50 ; echo fine").problem(502, "protocol_violation");
    assert_eq!(problem["class"], "protocol");
    is_usable_again(&session);
}

#[test]
fn a_frame_that_is_no_message_ends_the_turn_and_not_the_session() {
    let program = Program::start();
    let session = program.api.open("ws");
    let problem = session.prompt("bad-frame").problem(502, "protocol_violation");
    assert_eq!(problem["result"]["stopReason"], "error");
    is_usable_again(&session);
}

#[test]
fn a_frame_over_the_limit_is_refused_and_the_session_lives() {
    let program = Program::builder().set("limits.frame_bytes", 100_000).start();
    let session = program.api.open("ws");
    session.prompt("huge 200000").problem(502, "frame_too_large");
    is_usable_again(&session);
}

#[test]
fn agents_that_cannot_begin_are_refused_with_a_clear_reason() {
    let cases: [(&[&str], u16, &str); 6] = [
        (&["--refuse-handshake"], 502, "handshake_failed"),
        (&["--protocol-version", "2"], 502, "protocol_version"),
        (&["--exit-on-start"], 502, "agent_start_failed"),
        (&["--hang-on-start"], 504, "handshake_timeout"),
        (&["--require-auth"], 502, "agent_auth_required"),
        (&["--protocol-version", "0"], 502, "protocol_version"),
    ];
    for (flags, status, code) in cases {
        let program = Program::builder().demo_agent(flags).set("runtime.handshake_timeout_s", 2).start();
        let body = json!({"workspaceId": "ws", "installationId": "tenant-1"});
        program.api.post("/acp/session/new", body).problem(status, code);
        eventually("no agent is left", || processes::with_marker(program.folder.path()).len() == 1);
    }
}

#[test]
fn an_agent_that_prints_a_banner_or_takes_its_time_is_fine() {
    for flags in [["--garbage-on-start"].as_slice(), &["--start-delay-ms", "700"], &["--echo-version"]] {
        let program = Program::builder().demo_agent(flags).start();
        assert_eq!(program.api.open("ws").says("echo up"), "up", "{flags:?}");
    }
}

#[test]
fn a_command_that_does_not_exist_says_so() {
    let program = Program::builder().set("agent.command", json!(["/nonexistent/agent"])).start();
    let body = json!({"workspaceId": "ws", "installationId": "tenant-1"});
    let problem = program.api.post("/acp/session/new", body).problem(502, "agent_start_failed");
    assert!(problem["detail"].as_str().unwrap().contains("/nonexistent/agent"), "{problem}");
}

#[test]
fn a_grandchild_does_not_outlive_the_agent_whether_it_crashes_or_is_closed() {
    let program = Program::start();
    for crash in [true, false] {
        let session = program.api.open("ws");
        let said = session.says("grandchild");
        let pid: i32 = said.split(|c: char| !c.is_ascii_digit()).find_map(|it| it.parse().ok()).expect("a pid");
        assert!(processes::is_alive(pid), "{said}");
        if crash {
            session.prompt("crash").problem(502, "agent_crashed");
        } else {
            session.post("close", json!({})).expect(200);
        }
        eventually("the grandchild is gone", || !processes::is_alive(pid));
    }
}

#[test]
fn too_many_crashes_fail_the_session_until_it_is_loaded() {
    let mut program = Program::start();
    // The end of a session that failed too often is worth an error line.
    program.expect_error("session");
    let session = program.api.open_on_acp("ws");
    for n in 0..6 {
        wait_for(DEADLINE, "a crash", || (session.prompt("crash").status == 502).then_some(()));
        assert!(n == 5 || session.state()["state"] != "failed", "failed too early, after {} crashes", n + 1);
    }
    session.becomes("failed");
    session.prompt("echo a").problem(409, "session_failed");
    session.post("load", json!({})).expect(200);
    assert_eq!(session.says("echo alive"), "alive");
}

#[test]
fn a_crash_of_one_session_is_nothing_to_another() {
    let program = Program::start();
    let (one, two) = (program.api.open("ws"), program.api.open("ws"));
    let (_, mut stream) = two.is_busy_with("ticks 20 50");
    one.prompt("crash").problem(502, "agent_crashed");
    assert_eq!(result_of(&program.api, &stream.rest())["stopReason"], "completed");
    assert_eq!(two.state()["restarts"], 0);
}

#[test]
fn a_fresh_agent_gets_the_conversation_so_far_as_context() {
    let program = Program::builder().demo_agent(&["--no-load", "--no-resume"]).start();
    let session = program.api.open("ws");
    session.completes("echo the magic word is xyzzy");
    session.prompt("crash").problem(502, "agent_crashed");
    session.becomes("idle");
    let result = session.completes("context");
    assert_eq!(result["meta"]["contextInjected"], true, "{result}");
    assert!(result["meta"]["message"].as_str().unwrap().contains("xyzzy"), "{result}");
    assert_eq!(session.completes("echo b")["meta"]["contextInjected"], false, "only once");
}

#[test]
fn an_agent_that_dies_while_idle_is_replaced_before_the_next_prompt() {
    let program = Program::start();
    let session = program.api.open("ws");
    let pid: i32 = session.says("pid").trim().parse().expect("the agent says its pid");
    processes::signal(pid, libc::SIGKILL);
    eventually("it is gone", || !processes::is_alive(pid));
    is_usable_again(&session);
}

#[test]
fn an_agent_that_wants_to_be_signed_in_is_signed_in_by_the_configured_method() {
    let program = Program::builder().demo_agent(&["--require-auth"]).set("agent.auth_method", "demo").start();
    assert_eq!(program.api.open("ws").says("echo in"), "in");
    let named = json!({"workspaceId": "named", "installationId": "tenant-1", "agent": "default"});
    assert_eq!(program.api.open_with(named).says("echo in"), "in");
}
