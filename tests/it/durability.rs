//! A locked, unreachable or unresponsive database, and a full disk: new work is refused, acknowledged turns stay
//! stored, running turns end, and the service recovers without a restart.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use diesel::{Connection, SqliteConnection, connection::SimpleConnection};

use crate::harness::{
    Answer, DEADLINE, Program, Session, Value,
    api::result_of,
    disk::Disk,
    eventually,
    gate::Gate,
    github::{GitHub, faults::Fault},
    json,
    program::PostgresDatabase,
    wait_for,
};

/// Every failed attempt of the writer is an ERROR line: the operator has to know.
const WRITER_SAYS: &str = "the database did not take writes";

/// A turn whose completion was acknowledged to the client.
#[derive(Debug)]
struct Acknowledged {
    prompt_id: String,
    text: String,
}

impl Acknowledged {
    fn is_found(&self, session: &Session) {
        let turn = session.api.get(&format!("/acp/prompt/{}", self.prompt_id)).expect(200);
        assert_eq!((&turn["state"], &turn["result"]["meta"]["message"]), (&json!("completed"), &json!(self.text)));
        let conversation = session.conversation();
        let times = |kind: &str| conversation.iter().filter(|(it, text)| it == kind && *text == self.text).count();
        assert_eq!(times("agent_message"), 1, "{} in {conversation:?}", self.text);
    }
}

/// Runs a turn that echoes `text`.
///
/// # Errors
/// The answer, if the turn was refused.
fn turn(session: &Session, text: &str) -> Result<Acknowledged, Box<Answer>> {
    let answer = session.prompt(&format!("echo {text}"));
    if answer.status != 200 {
        return Err(Box::new(answer));
    }
    let prompt_id = answer.body["meta"]["promptId"].as_str().expect("`promptId` is a string").to_owned();
    Ok(Acknowledged { prompt_id, text: text.to_owned() })
}

fn assert_refused(answer: Answer) {
    let seconds: u64 = answer.header("retry-after").parse().expect("`Retry-After` in seconds");
    assert!((1..=60).contains(&seconds));
    let problem = answer.problem(503, "database_unavailable");
    assert_eq!((&problem["class"], &problem["retryable"]), (&json!("system"), &json!(true)));
}

fn assert_new_work_refused(session: &Session) {
    let begin = Instant::now();
    assert_refused(session.prompt("echo refused"));
    assert_refused(
        session.api.post("/acp/session/new", json!({"workspaceId": "other", "installationId": "tenant-1"})),
    );
    // Each of the two requests waits for SQLite's lock twice: behind the queued write, and for its own write.
    assert!(begin.elapsed() < Duration::from_secs(30), "refused after {:?}", begin.elapsed());
    assert_eq!(session.api.get("/livez").status, 200, "the process itself is live");
}

/// Runs one outage with turns acknowledged before, running during, and sent after it, and checks that none is lost.
fn outage(program: &mut Program, begin: impl FnOnce(&Program), end: impl FnOnce(&Program)) {
    program.expect_error(WRITER_SAYS);
    let (session, busy) = (program.api.open("ws"), program.api.open("ws"));
    let before: Vec<_> = (0..12).map(|n| turn(&session, &format!("before-{n}")).expect("acknowledged")).collect();
    let (running, mut stream) = busy.is_busy_with("ticks 10 100");
    begin(program);
    assert_new_work_refused(&session);
    eventually("the running turn has ended and waits for the database", || {
        program.metrics().sum("lumilink_turns_ended_total", &[("outcome", "completed")]) >= 13.0
    });
    assert_refused(session.prompt("echo still refused"));
    end(program);
    assert_eq!(result_of(&program.api, &stream.rest())["stopReason"], "completed");
    assert_eq!(busy.ends(&running)["state"], "completed");
    let after = wait_for(DEADLINE, "new work is accepted again", || turn(&session, "after").ok());
    program.api.open("other").completes("echo new");
    assert_eq!(program.api.get("/readyz").status, 200);
    before.iter().chain([&after]).for_each(|it| it.is_found(&session));
    let conversation = session.conversation();
    let refused = conversation.iter().filter(|(_, text)| text.contains("refused")).count();
    assert_eq!(refused, 0, "no refused prompt is stored: {conversation:?}");
}

/// Takes the write lock of the program's database from outside, as a backup tool or an operator with `sqlite3` does.
fn lock(program: &Program) -> SqliteConnection {
    let path = program.folder.path().join("data/lumilink.db");
    let mut other = SqliteConnection::establish(path.to_str().expect("UTF-8")).expect("the database is there");
    other.batch_execute("PRAGMA busy_timeout = 5000; BEGIN IMMEDIATE").expect("the lock");
    other
}

#[test]
fn foreign_lock_on_the_sqlite_file_refuses_new_work_and_loses_nothing() {
    let mut program = Program::start();
    let held = std::cell::RefCell::new(None);
    outage(&mut program, |program| *held.borrow_mut() = Some(lock(program)), |_| drop(held.take()));
    let folder = program.stop();
    let program = Program::builder().folder(&folder).start();
    let states = program.api.get("/acp/sessions?installationId=tenant-1").expect(200);
    for session in states["items"].as_array().expect("a list") {
        assert_eq!(session["state"], "hibernated", "nothing was interrupted: {session}");
    }
}

#[test]
fn turn_that_ends_in_a_long_outage_is_reported_as_not_durable_and_stored_later() {
    let mut program = Program::builder().set("database.patience_s", 1).start();
    program.expect_error(WRITER_SAYS);
    let session = program.api.open("ws");
    let (prompt_id, mut stream) = session.is_busy_with("ticks 5 100");
    let held = lock(&program);
    let events = stream.rest();
    let last = events.last().expect("an end");
    assert_eq!((last.name.as_str(), &last.data["code"]), ("problem", &json!("database_unavailable")), "{last:?}");
    assert_eq!((&last.data["promptId"], &last.data["status"]), (&json!(prompt_id), &json!(503)));
    assert!(last.data["detail"].as_str().is_some_and(|it| it.contains("not on disk")), "{last:?}");
    let result: &Value = &last.data["result"];
    assert_eq!(result["stopReason"], "completed");
    assert!(events.iter().all(|event| event.name != "result"), "the turn has one end");
    let turn = program.api.get(&format!("/acp/prompt/{prompt_id}")).expect(200);
    assert!(turn.get("result").is_none(), "a result is not returned before it is stored: {turn}");
    drop(held);
    let turn = session.ends(&prompt_id);
    assert_eq!((&turn["state"], &turn["result"]), (&json!("completed"), result));
    assert_eq!(session.says("echo on"), "on");
}

/// Fills the disk of the data folder, frees it again, and checks that no acknowledged turn is lost.
fn full_disk(disk: Disk) {
    let mut program = Program::builder().disk(disk).start();
    program.expect_error(WRITER_SAYS);
    let (session, busy) = (program.api.open("ws"), program.api.open("ws"));
    let mut acknowledged: Vec<_> =
        (0..12).map(|n| turn(&session, &format!("before-{n}")).expect("acknowledged")).collect();
    let (running, mut stream) = busy.is_busy_with("ticks 20 100");
    disk.fill(program.pid(), &program.folder);
    // The database files may have free pages: turns accepted until they are full are acknowledged as well.
    let refusal = wait_for(DEADLINE, "the disk is full", || {
        match turn(&session, &format!("meanwhile-{}", acknowledged.len())) {
            Ok(accepted) => {
                acknowledged.push(accepted);
                None
            }
            Err(refusal) => Some(refusal),
        }
    });
    assert_refused(*refusal);
    assert_new_work_refused(&session);
    eventually("the running turn has ended", || {
        let ended = program.metrics().sum("lumilink_turns_ended_total", &[]);
        ended > acknowledged.len() as f64
    });
    acknowledged.iter().for_each(|it| it.is_found(&session));
    disk.free(program.pid(), &program.folder);
    assert_eq!(result_of(&program.api, &stream.rest())["stopReason"], "completed");
    assert_eq!(busy.ends(&running)["state"], "completed");
    acknowledged.push(wait_for(DEADLINE, "new work is accepted again", || turn(&session, "after").ok()));
    acknowledged.iter().for_each(|it| it.is_found(&session));
    let conversation = session.conversation();
    assert!(conversation.iter().all(|(_, text)| !text.contains("refused")), "{conversation:?}");
}

#[test]
fn full_disk_refuses_new_work_and_loses_nothing() {
    full_disk(Disk::best());
}

#[test]
fn file_size_limit_is_handled_like_a_full_disk() {
    full_disk(Disk::Limited);
}

#[test]
fn unreachable_postgresql_refuses_new_work_and_loses_nothing() {
    let database = PostgresDatabase::create();
    let gate = Gate::to(database.server());
    let mut program = Program::builder().set("database.url", database.url_at(gate.address())).start();
    let shut = |program: &Program| {
        gate.shut();
        assert_refused(program.api.get("/readyz"));
    };
    outage(&mut program, shut, |_| gate.open());
}

#[test]
fn unresponsive_postgresql_refuses_new_work_and_loses_nothing() {
    let database = PostgresDatabase::create();
    let gate = Gate::to(database.server());
    let mut program = Program::builder().set("database.url", database.url_at(gate.address())).start();
    program.expect_error(WRITER_SAYS);
    let (session, busy) = (program.api.open("ws"), program.api.open("ws"));
    let before = turn(&session, "before").expect("acknowledged");
    let (running, mut stream) = busy.is_busy_with("ticks 3 100");
    gate.silence();
    // The writer is blocked by the end of the running turn.
    eventually("the running turn has ended", || {
        program.metrics().sum("lumilink_turns_ended_total", &[("outcome", "completed")]) >= 2.0
    });
    assert_new_work_refused(&session);
    assert_refused(program.api.get("/readyz"));
    gate.open();
    assert_eq!(result_of(&program.api, &stream.rest())["stopReason"], "completed");
    assert_eq!(busy.ends(&running)["state"], "completed");
    let after = wait_for(DEADLINE, "new work is accepted again", || turn(&session, "after").ok());
    [before, after].iter().for_each(|it| it.is_found(&session));
    assert!(session.conversation().iter().all(|(_, text)| !text.contains("refused")));
}

/// Runs one `sqlite3` command on the live database, as an operator does.
fn sqlite3(program: &Program, command: &str) {
    let database = program.folder.path().join("data/lumilink.db");
    let output = Command::new("sqlite3").arg(&database).arg(command).output().expect("sqlite3 is installed");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn foreign_backup_read_and_checkpoint_lose_no_acknowledged_turn() {
    let mut program = Program::start();
    program.turns_may_run();
    let session = program.api.open("ws");
    let copy = program.folder.path().join("copy.db");
    let mut acknowledged = Vec::new();
    for (number, command) in
        [&format!(".backup {}", copy.display()), "SELECT count(*) FROM prompts", "PRAGMA wal_checkpoint(TRUNCATE)"]
            .into_iter()
            .cycle()
            .take(6)
            .enumerate()
    {
        let (running, mut stream) = session.is_busy_with(&format!("ticks 3 20 ; echo during-{number}"));
        sqlite3(&program, command);
        assert_eq!(result_of(&program.api, &stream.rest())["stopReason"], "completed");
        session.ends(&running);
        acknowledged.push(turn(&session, &format!("after-{number}")).expect("acknowledged"));
    }
    let deleted: Vec<_> = std::fs::read_dir(format!("/proc/{}/fd", program.pid()))
        .expect("the process runs")
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| {
            let target = target.to_string_lossy();
            target.contains("lumilink.db") && target.ends_with("(deleted)")
        })
        .collect();
    let late = program.api.open("late");
    let late_turn = turn(&late, "late").expect("acknowledged");
    program.kill_supervisor();
    program.start_supervisor_again();
    acknowledged.iter().for_each(|it| it.is_found(&session));
    late_turn.is_found(&late);
    assert!(deleted.is_empty(), "live files of the database were unlinked: {deleted:?}");
}

/// Fills the disk while a turn is automated: while the agent works, or at this request to GitHub.
fn full_disk_in_automation(at: Option<(&str, &str)>) {
    let (disk, github) = (Disk::best(), GitHub::start());
    let program = crate::automation::with(&github).set("database.patience_s", 1).disk(disk);
    let mut program = program.start();
    program.expect_error(WRITER_SAYS);
    let session = program.api.open_with(json!({
        "workspaceId": "ws", "installationId": "tenant-1", "repository": github.url("octo/hello"),
        "githubToken": github.user_token("octocat"),
    }));
    if let Some((method, path)) = at {
        github.fault(method, path, Fault::HoldAfter);
    }
    let (prompt_id, mut stream) = session.is_busy_with("write a.txt hello ; echo started ; sleep 1 ; echo done");
    if at.is_some() {
        eventually("the request is held", || github.held() == 1);
    }
    disk.fill(program.pid(), &program.folder);
    github.release();
    let last = stream.rest().pop().expect("an answer");
    let answered = github.requests().len();
    assert_eq!((last.name.as_str(), &last.data["code"]), ("problem", &json!("database_unavailable")), "{last:?}");
    assert_eq!((&last.data["promptId"], &last.data["status"]), (&json!(prompt_id), &json!(503)), "{last:?}");
    assert_eq!(last.data["result"]["stopReason"], "completed", "{last:?}");
    // The step whose outcome cannot be stored is not carried out again: GitHub hears nothing.
    let waits = |log: &str| log.matches("automation waits for the database").count();
    let before = waits(&program.log());
    if at.is_some() {
        eventually("the run waited twice more", || waits(&program.log()) >= before + 2);
        assert_eq!(github.requests().len(), answered);
    }
    disk.free(program.pid(), &program.folder);
    let turn = session.ends(&prompt_id);
    assert_eq!(turn["result"]["githubAutomation"]["status"], "success", "{turn:#}");
    assert_eq!((github.issues("octo/hello").len(), github.pulls("octo/hello").len()), (1, 1));
    assert_eq!(github.requests_of("POST", "/api/v3/repos/octo/hello/issues").len(), 1);
    assert_eq!(session.completes("write b.txt more")["githubAutomation"]["status"], "success");
}

#[test]
fn full_disk_at_the_end_of_a_turn_delays_its_automation() {
    full_disk_in_automation(None);
}

#[test]
fn full_disk_in_a_step_delays_automation_and_repeats_nothing() {
    for at in [
        ("GET", "/api/v3/repos/octo/hello"),
        ("POST", "/api/v3/repos/octo/hello/issues"),
        ("POST", "/api/v3/repos/octo/hello/pulls"),
    ] {
        full_disk_in_automation(Some(at));
    }
}

#[test]
fn load_of_a_session_whose_end_is_not_written_is_refused() {
    let mut program = Program::builder().set("database.patience_s", 1).set("supervision.max_restarts", 1).start();
    program.expect_error(WRITER_SAYS);
    program.expect_error("end of session was not written");
    let session = program.api.open("ws");
    // The first crash uses up the restart.
    session.prompt("crash").problem(502, "agent_crashed");
    session.becomes("idle");
    let (_, mut stream) = session.is_busy_with("echo started ; sleep 1 ; crash");
    let held = lock(&program);
    stream.rest();
    session.becomes("failed");
    let exited = session.state()["connectionId"].clone();
    session.post("load", json!({})).problem(503, "database_unavailable");
    drop(held);
    let loaded = wait_for(DEADLINE, "the session is loaded", || {
        let answer = session.post("load", json!({}));
        (answer.status == 200).then_some(answer.body)
    });
    assert_ne!(loaded["connectionId"], exited, "the agent of before has exited");
    assert_eq!(session.says("echo on"), "on");
}
