//! `Idempotency-Key`: one key, one execution.

use std::thread;

use crate::harness::{
    Answer, Program, Session, Value,
    database::{allow, change, refuse},
    eventually, json,
    program::PostgresDatabase,
};

fn send(session: &Session, prompt: &str, key: &str) -> Answer {
    session.call(prompt).header("idempotency-key", key).send()
}

#[test]
fn repeat_returns_the_same_answer_and_runs_nothing() {
    let program = Program::start();
    let session = program.api.open("ws");
    let first = send(&session, "count", "key-1").expect(200);
    let again = send(&session, "count", "key-1").expect(200);
    assert_eq!(first, again);
    assert_ne!(first, send(&session, "count", "key-2").expect(200));
    assert_eq!(session.conversation().len(), 4, "two turns ran");
}

#[test]
fn repeat_joins_the_running_turn() {
    let program = Program::start();
    let session = program.api.open("ws");
    let (one, two) = (session.clone(), session.clone());
    let one = thread::spawn(move || send(&one, "ticks 10 50 ; count", "key").expect(200));
    let two = thread::spawn(move || send(&two, "ticks 10 50 ; count", "key").expect(200));
    assert_eq!(one.join().unwrap(), two.join().unwrap());
    assert_eq!(session.conversation().iter().filter(|(kind, _)| kind == "user_message").count(), 1);
}

#[test]
fn key_with_a_different_body_is_rejected_with_422() {
    let program = Program::start();
    let session = program.api.open("ws");
    send(&session, "echo a", "key").expect(200);
    send(&session, "echo b", "key").problem(422, "idempotency_mismatch");
}

#[test]
fn repeat_of_a_failed_turn_returns_the_same_failure() {
    let program = Program::start();
    let session = program.api.open("ws");
    let first = send(&session, "error -32603 boom", "key").problem(502, "agent_error");
    let again = send(&session, "error -32603 boom", "key").problem(502, "agent_error");
    assert_eq!(first["promptId"], again["promptId"]);
}

#[test]
fn key_is_scoped_to_its_session() {
    let program = Program::start();
    let (one, two) = (program.api.open("ws"), program.api.open("ws"));
    let one = send(&one, "echo a", "key").expect(200);
    let two = send(&two, "echo a", "key").expect(200);
    assert_ne!(one["meta"]["promptId"], two["meta"]["promptId"]);
}

#[test]
fn key_survives_a_restart_of_the_program() {
    let program = Program::start();
    let session = program.api.open("ws");
    let first = send(&session, "echo once", "key").expect(200);
    let folder = program.stop();
    let program = Program::builder().folder(&folder).start();
    let body = json!({"sessionId": session.id, "prompt": "echo once"});
    let again = program.api.call("POST", "/acp/session/prompt").header("idempotency-key", "key").json(&body).send();
    assert_eq!(again.expect(200)["meta"]["promptId"], first["meta"]["promptId"]);
}

fn on_both_databases(test: impl Fn(&mut Program, &Option<PostgresDatabase>)) {
    for database in [None, Some(PostgresDatabase::create())] {
        let builder = Program::builder();
        let mut program = match &database {
            Some(database) => builder.set("database.url", database.url()).start(),
            None => builder.start(),
        };
        test(&mut program, &database);
    }
}

#[test]
fn repeat_of_a_turn_without_a_stored_end_gets_202_and_a_location() {
    on_both_databases(|program, database| {
        let session = program.api.open("ws");
        let first = send(&session, "echo once", "key").expect(200);
        let id = first["meta"]["promptId"].as_str().unwrap();
        // The turn of another process, or of one that died and is not recovered yet.
        let reopen = "UPDATE prompts SET state = 'accepted', ended_us = NULL, result = NULL";
        change(database, program, reopen);
        for is_live in [true, false] {
            for accept in ["application/json", "text/event-stream"] {
                let repeat = session.call("echo once").header("idempotency-key", "key").header("accept", accept);
                let answer = repeat.send();
                assert_eq!(answer.header("location"), format!("/acp/prompt/{id}"), "{}", answer.text);
                let body = answer.expect(202);
                assert_eq!((&body["promptId"], &body["duplicate"]), (&json!(id), &json!(true)));
            }
            if is_live {
                session.post("close", json!({})).expect(200);
            }
        }
        let recovered =
            "UPDATE prompts SET state = 'interrupted', error_code = 'interrupted', error_detail = 'x', ended_us = 9";
        change(database, program, recovered);
        send(&session, "echo once", "key").problem(503, "interrupted");
    });
}

#[test]
fn turn_that_another_process_ended_is_answered_as_fenced() {
    on_both_databases(|program, database| {
        program.expect_error("turn was ended by another process");
        let session = program.api.open("ws");
        let (prompt_id, mut stream) = session.is_busy_with("ticks 10 100");
        let ended =
            "UPDATE prompts SET state = 'interrupted', error_code = 'interrupted', error_detail = 'x', ended_us = 9";
        change(database, program, ended);
        let events = stream.rest();
        let last = events.last().expect("an end");
        assert_eq!((last.name.as_str(), &last.data["code"]), ("problem", &json!("fenced")), "{last:?}");
        assert_eq!(last.data["promptId"], json!(prompt_id));
        assert_eq!(session.ends(&prompt_id)["state"], "interrupted", "the stored end is valid");
        assert_eq!(session.says("echo on"), "on");
    });
}

fn open_with_key(program: &Program, key: &str, body: &Value) -> Answer {
    program.api.call("POST", "/acp/session/new").header("idempotency-key", key).json(body).send()
}

fn new_session(workspace: &str) -> Value {
    json!({"workspaceId": workspace, "installationId": "tenant-1"})
}

fn sessions_of(program: &Program) -> usize {
    program.api.get("/acp/sessions").expect(200)["items"].as_array().unwrap().len()
}

#[test]
fn repeat_of_session_new_returns_the_first_answer_and_takes_no_seat() {
    on_both_databases(|program, _| {
        let first = open_with_key(program, "key", &new_session("ws"));
        assert_eq!(first.header("idempotent-replayed"), "", "the first answer is no repetition");
        let (text, location) = (first.text.clone(), first.header("location"));
        let id = first.expect(201)["sessionId"].as_str().unwrap().to_owned();
        for _ in 0..2 {
            let again = open_with_key(program, "key", &new_session("ws"));
            assert_eq!((again.status, &again.text), (201, &text));
            assert_eq!(
                (again.header("idempotent-replayed"), again.header("location")),
                ("true".into(), location.clone())
            );
        }
        open_with_key(program, "key", &new_session("other")).problem(422, "idempotency_mismatch");
        assert_eq!(sessions_of(program), 1);
        assert_eq!(program.metrics().sum("lumilink_capacity_seats", &[("state", "taken")]), 1.0);
        // The key of a prompt is another one, also in the session that it names.
        let prompt = json!({"sessionId": id, "prompt": "echo a"});
        let call = || program.api.call("POST", "/acp/session/prompt").header("idempotency-key", "key");
        assert_eq!(call().json(&prompt).send().header("idempotent-replayed"), "");
        assert_eq!(call().json(&prompt).send().header("idempotent-replayed"), "true");
        let stranger = json!({"workspaceId": "ws", "installationId": "tenant-2"});
        let stranger = open_with_key(program, "key", &stranger).expect(201);
        assert_ne!(stranger["sessionId"], json!(id), "each tenant has its own keys");
        assert_eq!(open_with_key(program, "key-2", &new_session("ws")).header("idempotent-replayed"), "");
        assert_eq!(sessions_of(program), 3);
    });
}

#[test]
fn concurrent_repeats_of_session_new_open_one_session() {
    let program = Program::start();
    let calls: Vec<_> = (0..6)
        .map(|_| {
            let call = program.api.call("POST", "/acp/session/new").header("idempotency-key", "key");
            let call = call.json(&new_session("ws"));
            thread::spawn(move || call.send().expect(201)["sessionId"].clone())
        })
        .collect();
    let ids: Vec<_> = calls.into_iter().map(|call| call.join().unwrap()).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(sessions_of(&program), 1);
}

#[test]
fn key_of_session_new_survives_a_kill_and_is_free_after_a_refusal() {
    let mut program = Program::builder().separate_runtime("runtime-token-0123456789").start();
    let unknown = json!({"workspaceId": "ws", "installationId": "tenant-1", "agent": "nobody"});
    open_with_key(&program, "key", &unknown).problem(422, "unknown_agent");
    let first = open_with_key(&program, "key", &new_session("ws"));
    assert_eq!((first.status, first.header("idempotent-replayed").as_str()), (201, ""), "a refusal uses up no key");
    program.kill_supervisor();
    program.start_supervisor_again();
    let again = open_with_key(&program, "key", &new_session("ws"));
    assert_eq!((again.header("idempotent-replayed").as_str(), &again.text), ("true", &first.text));
    assert_eq!(sessions_of(&program), 1);
}

#[test]
fn key_of_session_new_is_free_again_after_24_hours() {
    on_both_databases(|program, database| {
        let first = open_with_key(program, "key", &new_session("ws")).expect(201);
        change(database, program, "UPDATE session_keys SET created_us = created_us - 86400000000");
        let second = open_with_key(program, "key", &new_session("other")).expect(201);
        assert_ne!(first["sessionId"], second["sessionId"]);
        assert_eq!(open_with_key(program, "key", &new_session("other")).expect(201), second);
    });
}

#[test]
fn session_new_whose_key_is_not_written_opens_one_session_on_a_retry() {
    on_both_databases(|program, database| {
        program.expect_error("the database did not take writes");
        refuse(database, program, "INSERT ON session_keys");
        open_with_key(program, "key", &new_session("ws")).problem(503, "database_unavailable");
        assert_eq!(sessions_of(program), 0, "a session without its key is not stored");
        eventually("its agent ends", || program.agents().is_empty());
        allow(database, program, "session_keys");
        let first = open_with_key(program, "key", &new_session("ws"));
        assert_eq!(first.header("idempotent-replayed"), "", "a failure does not bind the key");
        let first = first.expect(201);
        let again = open_with_key(program, "key", &new_session("ws")).expect(201);
        assert_eq!((&again["sessionId"], sessions_of(program)), (&first["sessionId"], 1));
        assert_eq!(program.metrics().sum("lumilink_capacity_seats", &[("state", "taken")]), 1.0);
    });
}

#[test]
fn malformed_key_is_refused_and_names_the_header() {
    let program = Program::start();
    let session = program.api.open("ws");
    let long = "k".repeat(10 * 1024);
    for key in [long.as_str(), "a b", ""] {
        for (path, body) in [
            ("/acp/session/new", new_session("ws")),
            ("/acp/session/prompt", json!({"sessionId": session.id, "prompt": "echo a"})),
        ] {
            let answer = program.api.call("POST", path).header("idempotency-key", key).json(&body).send();
            let problem = answer.problem(400, "invalid_request");
            assert!(problem["detail"].as_str().unwrap().starts_with("Idempotency-Key: "), "{problem}");
        }
    }
    let call =
        program.api.call("POST", "/acp/session/new").header("idempotency-key", "a").header("idempotency-key", "b");
    call.json(&new_session("ws")).send().problem(400, "invalid_request");
    assert_eq!((sessions_of(&program), session.conversation().len()), (1, 0));
}

#[test]
fn repeat_of_a_prompt_is_marked_as_replayed() {
    let program = Program::start();
    let session = program.api.open("ws");
    let marker = |answer: &Answer| answer.header("idempotent-replayed");
    for (prompt, status) in [("echo a", 200), ("error -32603 boom", 502)] {
        let (first, again) = (send(&session, prompt, prompt_key(prompt)), send(&session, prompt, prompt_key(prompt)));
        assert_eq!((first.status, again.status), (status, status));
        assert_eq!((marker(&first).as_str(), marker(&again).as_str()), ("", "true"), "{prompt}");
    }
    let call = || session.call("echo a").header("idempotency-key", "echo");
    assert_eq!(marker(&call().header("prefer", "respond-async").send()), "true");
}

/// A key that a header can have.
fn prompt_key(prompt: &str) -> &str {
    prompt.split(' ').next().unwrap()
}

#[test]
fn repeat_of_an_answer_with_a_secret_or_a_word_like_one_equals_the_first_answer() {
    let program = Program::start();
    let session = program.api.open("ws");
    let secret = "ghp_abcdefghijklmnopqrstuvwxyz0123456789";
    for (key, said, shown) in [
        ("1", format!("a {secret} b"), "a [redacted] b"),
        (
            "2",
            "risk-adjusted-returns.py task-notification-center.md".to_owned(),
            "risk-adjusted-returns.py task-notification-center.md",
        ),
        ("3", "http://localhost:3000 by admin@example.com".to_owned(), "http://localhost:3000 by admin@example.com"),
    ] {
        let prompt = format!("echo {said}");
        let first = send(&session, &prompt, key).expect(200);
        assert_eq!(first["meta"]["message"], shown);
        assert_eq!(send(&session, &prompt, key).expect(200), first, "{said}");
        let stored = program.api.get(&format!("/acp/prompt/{}", first["meta"]["promptId"].as_str().unwrap()));
        assert_eq!(stored.expect(200)["result"], first);
    }
    assert!(!session.transcript().iter().any(|entry| entry.to_string().contains("ghp_")));
}

#[test]
fn repeat_of_an_ended_turn_is_replayed_while_another_turn_runs() {
    let program = Program::start();
    let session = program.api.open("ws");
    let first = send(&session, "echo a", "a").expect(200);
    let running = session.starts("sleep 600");
    assert_eq!(send(&session, "echo a", "a").expect(200), first);
    send(&session, "echo b", "a").problem(422, "idempotency_mismatch");
    send(&session, "echo b", "b").problem(409, "turn_running");
    session.post("cancel", json!({})).expect(200);
    session.ends(&running);
}
