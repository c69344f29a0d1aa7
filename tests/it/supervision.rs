//! Agents that crash, hang, violate the protocol or leave child processes: the session is usable again within
//! seconds.

use std::time::{Duration, Instant};

use crate::harness::{DEADLINE, Program, Session, api::result_of, eventually, json, processes, wait_for};

/// Fails the test unless the session completes a prompt within 3 s.
fn is_usable_again(session: &Session) {
    let begin = Instant::now();
    wait_for(DEADLINE, "the session is usable again", || {
        let answer = session.prompt("echo back");
        (answer.status == 200).then_some(())
    });
    // It takes up to one second on an idle machine; other tests share the two cores.
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
fn silent_agent_times_out_after_the_inactivity_limit_and_a_busy_one_does_not() {
    let program = Program::builder().set("turn.inactivity_timeout_s", 2).start();
    let session = program.api.open("ws");
    let problem = session.prompt("hang").problem(504, "inactivity_timeout");
    assert_eq!(problem["class"], "connection");
    is_usable_again(&session);
    // The turn as a whole exceeds the limit, but each pause in it is shorter.
    let begin = Instant::now();
    session.completes("ticks 12 250");
    assert!(begin.elapsed() > Duration::from_secs(2), "the turn outlasted the limit: {:?}", begin.elapsed());
}

#[test]
fn few_stray_lines_yield_a_diagnostic_and_many_fail_the_turn() {
    let program = Program::start();
    let session = program.api.open("ws");
    let result = session.completes("garbage 3 ; echo fine");
    assert!(result["diagnostics"].as_array().is_some_and(|it| !it.is_empty()), "{result}");
    let problem = session.prompt("garbage 50 ; echo fine").problem(502, "protocol_violation");
    assert_eq!(problem["class"], "protocol");
    is_usable_again(&session);
}

#[test]
fn malformed_frame_fails_the_turn_and_not_the_session() {
    let program = Program::start();
    let session = program.api.open("ws");
    let problem = session.prompt("bad-frame").problem(502, "protocol_violation");
    assert_eq!(problem["result"]["stopReason"], "error");
    is_usable_again(&session);
}

#[test]
fn oversized_frame_fails_the_turn_and_not_the_session() {
    let program = Program::builder().set("limits.frame_bytes", 100_000).start();
    let session = program.api.open("ws");
    session.prompt("huge 200000").problem(502, "frame_too_large");
    is_usable_again(&session);
}

#[test]
fn agent_that_fails_to_start_is_refused_with_a_specific_code() {
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
fn agent_with_a_banner_or_a_slow_start_is_accepted() {
    for flags in [["--garbage-on-start"].as_slice(), &["--start-delay-ms", "700"], &["--echo-version"]] {
        let program = Program::builder().demo_agent(flags).start();
        assert_eq!(program.api.open("ws").says("echo up"), "up", "{flags:?}");
    }
}

#[test]
fn missing_agent_command_is_named_in_the_problem() {
    let program = Program::builder().set("agent.command", json!(["/nonexistent/agent"])).start();
    let body = json!({"workspaceId": "ws", "installationId": "tenant-1"});
    let problem = program.api.post("/acp/session/new", body).problem(502, "agent_start_failed");
    assert!(problem["detail"].as_str().unwrap().contains("/nonexistent/agent"), "{problem}");
}

#[test]
fn grandchild_does_not_outlive_a_crashed_or_closed_agent() {
    let program = Program::start();
    for crash in [true, false] {
        let session = program.api.open("ws");
        let message = session.says("grandchild");
        let pid: i32 = message.split(|c: char| !c.is_ascii_digit()).find_map(|it| it.parse().ok()).expect("a pid");
        assert!(processes::is_alive(pid), "{message}");
        if crash {
            session.prompt("crash").problem(502, "agent_crashed");
        } else {
            session.post("close", json!({})).expect(200);
        }
        eventually("the grandchild has ended", || !processes::is_alive(pid));
    }
}

#[test]
fn too_many_crashes_fail_the_session_until_it_is_loaded() {
    let mut program = Program::start();
    // The failure of the session is logged as an error.
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
fn crash_of_one_session_does_not_affect_another() {
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
    let pid: i32 = session.says("pid").trim().parse().expect("the agent reports its pid");
    processes::signal(pid, libc::SIGKILL);
    eventually("the agent has ended", || !processes::is_alive(pid));
    is_usable_again(&session);
}

#[test]
fn agent_that_requires_authentication_uses_the_configured_method() {
    let program = Program::builder().demo_agent(&["--require-auth"]).set("agent.auth_method", "demo").start();
    assert_eq!(program.api.open("ws").says("echo in"), "in");
    let named = json!({"workspaceId": "named", "installationId": "tenant-1", "agent": "default"});
    assert_eq!(program.api.open_with(named).says("echo in"), "in");
}
