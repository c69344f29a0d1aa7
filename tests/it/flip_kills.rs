//! The supervisor is killed around a flip, a hundred times: one epoch and one row of each kind, whatever was reached;
//! no prompt lost that was acknowledged, none executed twice.
//!
//! `LUMILINK_FAULT_SEED=NUMBER` draws the moments of an earlier run again (it prints its number); what each of them hits
//! is up to the machine.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use diesel::{Connection, QueryableByName, RunQueryDsl, SqliteConnection, connection::SimpleConnection, sql_types};

use crate::harness::{
    Answer, DEADLINE, Program, Session, Value, dice::Dice, eventually, json, program::Builder, wait_for,
};

/// With an embedded runtime, and again so many with one of their own.
const ROUNDS: usize = 50;
const TENANT: &str = "tenant-1";

/// One crash is too much, and nothing is tried again.
fn fragile(builder: Builder) -> Builder {
    builder
        .set("window.min_samples", 2)
        .set("recovery.cooldown_s", 1800)
        // What a dead supervisor left goes soon.
        .set("runtime.reconnect_grace_s", 5)
}

/// The moment of a kill: the only time that passes here without anything being waited for.
fn pass(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        thread::park_timeout(end.saturating_duration_since(Instant::now()));
    }
}

#[derive(Debug, QueryableByName)]
struct Flip {
    #[diesel(sql_type = sql_types::BigInt)]
    epoch: i64,
    #[diesel(sql_type = sql_types::Text)]
    what: String,
}

fn flips(program: &Program, query: &str, workspace: &str) -> Vec<(i64, String)> {
    let path = program.folder.path().join("data/lumilink.db");
    let mut connection = SqliteConnection::establish(path.to_str().expect("UTF-8")).expect("the database is there");
    connection.batch_execute("PRAGMA busy_timeout = 5000").expect("a pragma");
    let rows: Vec<Flip> = diesel::sql_query(query)
        .bind::<sql_types::Text, _>(TENANT)
        .bind::<sql_types::Text, _>(workspace)
        .load(&mut connection)
        .expect(query);
    rows.into_iter().map(|row| (row.epoch, row.what)).collect()
}

/// The migrations of a workspace, one row for each flip.
fn migrations(program: &Program, workspace: &str) -> Vec<(i64, String)> {
    let query = "SELECT epoch, trigger || ' ' || to_protocol || ' ' || status AS what FROM protocol_migrations \
                 WHERE installation_id = ? AND workspace_id = ?";
    flips(program, query, workspace)
}

fn rollback_events(program: &Program, workspace: &str) -> Vec<(i64, String)> {
    let query = "SELECT epoch, kind AS what FROM rollback_events WHERE installation_id = ? AND workspace_id = ?";
    flips(program, query, workspace)
}

fn routes(program: &Program, workspace: &str) -> Vec<(i64, String)> {
    let query = "SELECT epoch, route AS what FROM workspace_routes WHERE installation_id = ? AND workspace_id = ?";
    flips(program, query, workspace)
}

/// One workspace, with a session whose agent crashes and one that works.
struct Round<'a> {
    program: &'a mut Program,
    workspace: String,
    crasher: Session,
    worker: Session,
    /// Where each execution of the worker leaves a line.
    executions: PathBuf,
}

/// A turn of the worker, and what was answered, if anything.
struct Sent {
    key: String,
    answer: Option<Answer>,
}

const CRASH_KEY: &str = "crash";

fn prompt_of(round: &str, key: &str, executions: &std::path::Path) -> String {
    format!("run echo {round}-{key} >> {} ; echo {key}", executions.display())
}

fn send(session: &Session, prompt: &str, key: &str) -> Option<Answer> {
    session.call(prompt).header("idempotency-key", key).try_send().ok()
}

/// Sends a prompt until it is answered with what became of its turn, bringing its session back where it has to be.
fn settle(session: &Session, prompt: &str, key: &str) -> Answer {
    wait_for(DEADLINE, "a repeat is answered", || {
        let answer = send(session, prompt, key)?;
        match answer.body["code"].as_str() {
            Some("session_not_loaded" | "session_failed") => {
                session.post("load", json!({}));
                None
            }
            // Refused, and not for good: what failed in its turn says in which.
            Some(_) if answer.body["promptId"].is_null() || answer.body["code"] == "turn_in_progress" => None,
            _ => Some(answer),
        }
    })
}

impl<'a> Round<'a> {
    fn begin(program: &'a mut Program, name: &str) -> Self {
        let open = || program.api.open_with(json!({"workspaceId": name, "installationId": TENANT}));
        let (crasher, worker) = (open(), open());
        let executions = program.folder.path().join("executions");
        Self { program, workspace: name.to_owned(), crasher, worker, executions }
    }

    fn route(&self) -> Value {
        self.program.api.get(&format!("/acp/workspaces/{}/protocol", self.workspace)).expect(200)
    }

    /// Lets one session crash while the other works, and kills the supervisor: `early` after the crash was asked for, or
    /// `late` after it was answered.
    fn is_killed(&mut self, early: Option<Duration>, late: Duration) -> Vec<Sent> {
        let stopped = AtomicBool::new(false);
        let (crasher, worker) = (&self.crasher, &self.worker);
        let (workspace, executions, stop) = (&self.workspace, &self.executions, &stopped);
        let program = &mut *self.program;
        thread::scope(|scope| {
            let working = scope.spawn(move || {
                let mut sent = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let key = format!("k{}", sent.len());
                    let answer = send(worker, &prompt_of(workspace, &key, executions), &key);
                    let is_dead = answer.is_none();
                    sent.push(Sent { key, answer });
                    if is_dead {
                        break;
                    }
                }
                sent
            });
            let crashing = scope.spawn(|| send(crasher, "crash", CRASH_KEY));
            match early {
                Some(early) => pass(early),
                None => {
                    wait_for(DEADLINE, "the crash is answered", || crashing.is_finished().then_some(()));
                    pass(late);
                }
            }
            program.kill_supervisor();
            stopped.store(true, Ordering::SeqCst);
            crashing.join().expect("it crashes or is not answered");
            working.join().expect("it works or is not answered")
        })
    }

    fn executed(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for line in fs::read_to_string(&self.executions).unwrap_or_default().lines() {
            if let Some(key) = line.strip_prefix(&format!("{}-", self.workspace)) {
                *counts.entry(key.to_owned()).or_default() += 1;
            }
        }
        counts
    }

    /// Every turn that was answered is found as it was; every other one is known, or runs now; none ran twice.
    fn holds(&self, sent: &[Sent]) {
        for Sent { key, answer } in sent {
            let again = settle(&self.worker, &prompt_of(&self.workspace, key, &self.executions), key);
            if let Some(answer) = answer {
                let ids = [&again, answer].map(|it| (it.status, it.body["meta"]["promptId"].clone()));
                assert_eq!(ids[0], ids[1], "{}: what was acknowledged is kept", self.workspace);
            }
            let count = self.executed().get(key).copied().unwrap_or_default();
            let known = again.status == 200
                || ["interrupted", "connection_lost"].contains(&again.body["code"].as_str().unwrap_or_default());
            assert!(known, "{} {key}: {}", self.workspace, again.text);
            assert!(count <= 1, "{} {key} ran {count} times", self.workspace);
            assert!(again.status != 200 || count == 1, "{} {key} ran {count} times", self.workspace);
        }
    }

    /// The crash was counted, or it is made again; then the workspace is rolled back without anybody's doing, once.
    fn falls_back_once(&self) {
        let mut tries = 0;
        while settle(&self.crasher, "crash", &format!("{CRASH_KEY}{}", "!".repeat(tries))).body["code"]
            != "agent_crashed"
        {
            tries += 1;
            assert!(tries < 5, "{}: a crash is a crash", self.workspace);
        }
        wait_for(DEADLINE, "the workspace is rolled back", || (self.route()["route"] == "http").then_some(()));
        let route = self.route();
        assert_eq!((&route["epoch"], &route["recovery"]["stage"]), (&json!(1), &json!("open")), "{route}");
        assert_eq!(route["rollback"]["trigger"], "autoThreshold", "{route}");
        let once = |what: &str| vec![(1, what.to_owned())];
        assert_eq!(migrations(self.program, &self.workspace), once("autoThreshold http succeeded"));
        assert_eq!(rollback_events(self.program, &self.workspace), once("rollback"));
        assert_eq!(routes(self.program, &self.workspace), once("http"));
        for session in [&self.crasher, &self.worker] {
            let notes = session.transcript().iter().filter(|entry| entry["eventType"] == "rollback").count();
            assert!(notes <= 1, "{}: {notes} notes", self.workspace);
        }
    }
}

/// Where the kills hit.
#[derive(Debug, Default)]
struct Hit {
    before_the_end_of_the_turn: usize,
    between_that_and_the_flip: usize,
    after_the_flip: usize,
}

impl Hit {
    /// Looks at what the dead supervisor has left.
    fn note(&mut self, round: &Round<'_>) {
        let query = "SELECT failures AS epoch, route AS what FROM outcome_buckets \
                     WHERE installation_id = ? AND workspace_id = ? AND failures > 0";
        let is_counted = !flips(round.program, query, &round.workspace).is_empty();
        match (is_counted, migrations(round.program, &round.workspace).len()) {
            (_, 1..) => self.after_the_flip += 1,
            (true, 0) => self.between_that_and_the_flip += 1,
            (false, 0) => self.before_the_end_of_the_turn += 1,
        }
    }
}

fn hundred(builder: Builder, name: &str, mut dice: Dice) {
    let begin = Instant::now();
    let mut program = fragile(builder).start();
    let mut hit = Hit::default();
    for n in 0..ROUNDS {
        let mut round = Round::begin(&mut program, &format!("ws-{n}"));
        // Every other time about when the flip is written.
        let early = (n % 2 == 0).then(|| dice.up_to(Duration::from_millis(60)));
        let sent = round.is_killed(early, dice.up_to(Duration::from_millis(2)));
        hit.note(&round);
        round.program.start_supervisor_again();
        round.falls_back_once();
        round.holds(&sent);
        if n % 10 == 0 {
            let after = settle(&round.worker, "echo on", "after").expect(200);
            assert_eq!(after["meta"]["protocol"], "http", "{after}");
        }
        for session in [&round.crasher, &round.worker] {
            session.post("close", json!({})).expect(200);
        }
    }
    println!("{name}: {ROUNDS} kills in {:.0?}: {hit:?}", begin.elapsed());
    eventually("no agent is left", || program.agents().is_empty());
}

#[test]
fn fr_007_killed_around_a_flip_with_an_embedded_runtime_there_is_one_epoch_one_row_and_no_prompt_lost_or_doubled() {
    hundred(Program::builder(), "embedded", Dice::of_environment("flip kills"));
}

#[test]
fn fr_007_killed_around_a_flip_with_a_separate_runtime_there_is_one_epoch_one_row_and_no_prompt_lost_or_doubled() {
    hundred(Program::builder().behind_proxy(), "separate", Dice::of_environment("flip kills"));
}

#[test]
fn fr_007_a_flip_that_was_due_and_not_made_is_made_after_the_restart_by_itself() {
    // What is due under the rules of the second life was not under those of the first: as if it had died in between.
    let program = Program::builder().set("window.min_samples", 100).start();
    let session = program.api.open("ws");
    session.prompt("crash").problem(502, "agent_crashed");
    session.becomes("idle");
    let counted = || session.api.get("/acp/workspaces/ws/protocol").expect(200);
    eventually("both handshakes and the crash are counted", || counted()["window"]["samples"] == 3);
    assert_eq!((&counted()["route"], &counted()["window"]["failures"]), (&json!("acp"), &json!(1)));
    let folder = program.stop();
    let program = fragile(Program::builder().folder(&folder)).start();
    let session = Session { api: program.api.clone(), ..session };
    // Whoever uses the workspace first wakes its window.
    let woken = session.post("load", json!({})).expect(200);
    let route = || session.api.get("/acp/workspaces/ws/protocol").expect(200);
    wait_for(DEADLINE, "rolled back", || (route()["route"] == "http").then_some(()));
    assert_eq!(route()["rollback"]["trigger"], "autoThreshold", "{woken}");
    assert_eq!(migrations(&program, "ws"), [(1, "autoThreshold http succeeded".to_owned())]);
    assert_eq!(rollback_events(&program, "ws"), [(1, "rollback".to_owned())]);
    assert_eq!(session.completes("echo on")["meta"]["protocol"], "http");
}

#[test]
fn fr_007_sessions_that_cross_the_line_in_the_same_moment_make_one_flip_on_both_databases() {
    for builder in [Program::builder(), Program::builder().postgres()] {
        let mut program = fragile(builder).start();
        // Who comes late crashes over the fallback.
        program.expect_error("fallback fails as well");
        let sessions: Vec<_> = (0..6).map(|_| program.api.open("ws")).collect();
        let start = std::sync::Barrier::new(sessions.len());
        thread::scope(|scope| {
            for session in &sessions {
                scope.spawn(|| {
                    start.wait();
                    session.prompt("crash").problem(502, "agent_crashed");
                });
            }
        });
        let route = || program.api.get("/acp/workspaces/ws/protocol").expect(200);
        let fallen = wait_for(DEADLINE, "rolled back", || {
            let route = route();
            (route["route"] == "http").then_some(route)
        });
        sessions.iter().for_each(|session| drop(session.becomes("idle")));
        assert_eq!(fallen["epoch"], 1, "{fallen}");
        let flipped = program.metrics().sum("lumilink_route_flips_total", &[]);
        assert_eq!(flipped, 1.0, "the metric is told once");
        let told = program.log().lines().filter(|line| line.contains("\"trigger\":\"autoThreshold\"")).count();
        assert_eq!(told, 1, "one line of the log");
        for session in &sessions {
            let notes = session.transcript().iter().filter(|entry| entry["eventType"] == "rollback").count();
            assert_eq!(notes, 1, "each live session has one note");
        }
        program.kill_supervisor();
        program.start_supervisor_again();
        let again = program.api.get("/acp/workspaces/ws/protocol").expect(200);
        for member in ["route", "epoch", "rollback", "recovery", "pin"] {
            assert_eq!(fallen[member], again[member], "{member}");
        }
        let session = &sessions[0];
        session.post("load", json!({})).expect(200);
        assert_eq!(session.completes("echo on")["meta"]["protocol"], "http");
    }
}
