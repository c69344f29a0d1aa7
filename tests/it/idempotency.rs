//! `Idempotency-Key`: one key, one execution.

use std::thread;

use crate::harness::{Answer, Program, Session, json, program::PostgresDatabase};

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

/// Changes a row of the database, as another process of the service would.
fn change(database: &Option<PostgresDatabase>, program: &Program, sql: &str) {
    use diesel::{Connection, PgConnection, SqliteConnection, connection::SimpleConnection};
    match database {
        Some(database) => PgConnection::establish(&database.url()).unwrap().batch_execute(sql).unwrap(),
        None => {
            let file = program.folder.path().join("data/lumilink.db");
            let mut sqlite = SqliteConnection::establish(&file.display().to_string()).unwrap();
            sqlite.batch_execute(&format!("PRAGMA busy_timeout = 5000; {sql}")).unwrap();
        }
    }
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
