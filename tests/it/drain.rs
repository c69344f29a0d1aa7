//! Shutdown on SIGTERM: the program drains, stores every outcome and exits.

use std::time::{Duration, Instant};

use crate::harness::{DEADLINE, Program, eventually, json, processes, program::Folder, wait_for};

#[test]
fn sigterm_without_running_turns_exits_0_at_once() {
    let mut program = Program::start();
    program.api.open("ws").completes("echo a");
    let begin = Instant::now();
    assert_eq!(program.terminate(DEADLINE), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[test]
fn turn_that_ends_before_the_drain_deadline_is_completed_and_stored() {
    let mut program = Program::start();
    let session = program.api.open("ws");
    let (prompt_id, mut stream) = session.is_busy_with("echo started ; sleep 2 ; echo finished");
    assert_eq!(program.terminate(DEADLINE), Some(0));
    let events = stream.rest();
    assert!(crate::harness::sse::message_of(&events).contains("finished"), "{events:#?}");
    let folder = program.folder.clone();
    drop(program);
    let program = Program::builder().folder(&folder).start();
    let turn = program.api.get(&format!("/acp/prompt/{prompt_id}")).expect(200);
    assert_eq!(turn["state"], "completed", "{turn}");
}

#[test]
fn turn_that_exceeds_the_drain_deadline_is_ended_and_its_end_is_stored() {
    let mut program = Program::builder().set("drain.timeout_s", 1).start();
    let session = program.api.open("ws");
    let (prompt_id, stream) = session.is_busy_with("echo started ; sleep 60");
    assert_eq!(program.terminate(DEADLINE), Some(0));
    drop(stream);
    let folder = program.folder.clone();
    drop(program);
    let program = Program::builder().folder(&folder).start();
    let turn = program.api.get(&format!("/acp/prompt/{prompt_id}")).expect(200);
    assert!(["cancelled", "interrupted"].contains(&turn["state"].as_str().unwrap()), "{turn}");
}

#[test]
fn draining_program_is_not_ready_and_refuses_new_work() {
    let mut program = Program::start();
    program.turns_may_run();
    let session = program.api.open("ws");
    let (_, mut stream) = session.is_busy_with("echo started ; sleep 4");
    program.signal(libc::SIGTERM);
    wait_for(DEADLINE, "readiness is off", || (program.api.get("/readyz").status == 503).then_some(()));
    program.api.get("/livez").expect(200);
    let refused = program.api.post("/acp/session/new", json!({"workspaceId": "w", "installationId": "t"}));
    assert!(!refused.header("retry-after").is_empty());
    refused.problem(503, "draining");
    stream.rest();
    assert_eq!(program.ends(DEADLINE), Some(0));
}

#[test]
fn open_event_streams_do_not_delay_the_exit() {
    let mut program = Program::start();
    let session = program.api.open("ws");
    let mut stream = program.api.events(&format!("/acp/session/{}/events", session.id));
    let begin = Instant::now();
    assert_eq!(program.terminate(DEADLINE), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    stream.rest();
}

#[test]
fn agents_exit_when_the_program_is_killed() {
    let folder = Folder::new();
    let mut program = Program::builder().folder(&folder).start();
    let pid: i32 = program.api.open("ws").says("pid").trim().parse().expect("a pid");
    program.turns_may_run();
    program.signal(libc::SIGKILL);
    eventually("the agent has exited", || !processes::is_alive(pid));
    program.kill();
}

#[test]
fn second_signal_ends_the_program_at_once() {
    let mut program = Program::start();
    program.turns_may_run();
    let session = program.api.open("ws");
    let (_, _stream) = session.is_busy_with("echo started ; sleep 60");
    program.signal(libc::SIGTERM);
    wait_for(DEADLINE, "the program drains", || (program.api.get("/readyz").status == 503).then_some(()));
    let begin = Instant::now();
    assert_eq!(program.terminate(DEADLINE), Some(130));
    // The first signal alone would let the turn run for 20 s.
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[test]
fn shutdown_under_load_ends_every_turn_once_before_the_deadline() {
    let mut program = Program::builder().set("drain.timeout_s", 2).start();
    let prompts =
        ["echo started ; sleep 1 ; echo finished", "echo started ; sleep 60", "echo started ; ticks 100000 1"];
    let sessions: Vec<_> = (0..12).map(|n| program.api.open(&format!("ws-{n}"))).collect();
    let running: Vec<_> =
        sessions.iter().zip(prompts.iter().cycle()).map(|(it, prompt)| it.is_busy_with(prompt)).collect();
    let begin = Instant::now();
    assert_eq!(program.terminate(DEADLINE), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(12), "{:?}", begin.elapsed());
    let ids: Vec<_> = running.into_iter().map(|(id, _)| id).collect();
    let folder = program.folder.clone();
    drop(program);
    let program = Program::builder().folder(&folder).start();
    for (id, n) in ids.iter().zip(0..) {
        let turn = program.api.get(&format!("/acp/prompt/{id}")).expect(200);
        let wanted = if n % prompts.len() == 0 { "completed" } else { "cancelled" };
        assert_eq!(turn["state"], wanted, "{turn}");
    }
}
