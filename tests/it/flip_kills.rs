//! Kills the supervisor around a flip, a hundred times: each flip leaves one epoch and one row of each kind, no
//! acknowledged prompt is lost, and none is executed twice.
//!
//! `LUMILINK_FAULT_SEED=NUMBER` draws the moments of an earlier run again (each run prints its number); the point that
//! each kill hits depends on the machine.

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

/// Kills with an embedded runtime, and as many with a separate one.
const ROUNDS: usize = 50;
const TENANT: &str = "tenant-1";

/// Configures one crash to cause a rollback, and a cool-down that outlasts the test.
fn fragile(builder: Builder) -> Builder {
    builder
        .set("window.min_samples", 2)
        .set("recovery.cooldown_s", 1800)
        // The runtime soon drops the conversations of a killed supervisor.
        .set("runtime.reconnect_grace_s", 5)
}

/// Delays a kill. These tests have no other wait without a condition.
fn delay(time: Duration) {
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

/// Returns the migration rows of a workspace, one for each flip.
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
    /// The file to which each execution of the worker appends a line.
    executions: PathBuf,
}

/// A turn of the worker, with its answer if there was one.
struct Sent {
    key: String,
    answer: Option<Answer>,
}

const CRASH_KEY: &str = "crash";

fn prompt_of(round: &str, key: &str, executions: &std::path::Path) -> String {
    // More short entries than one write has, so that a kill hits a turn of which a part is on disk.
    format!("run echo {round}-{key} >> {} ; steps 12 0 ; echo {key}", executions.display())
}

fn send(session: &Session, prompt: &str, key: &str) -> Option<Answer> {
    session.call(prompt).header("idempotency-key", key).try_send().ok()
}

/// Repeats a prompt until the answer holds the outcome of its turn, and loads the session where that is required.
fn settle(session: &Session, prompt: &str, key: &str) -> Answer {
    wait_for(DEADLINE, "a repeat is answered", || {
        let answer = send(session, prompt, key)?;
        match answer.body["code"].as_str() {
            Some("session_not_loaded" | "session_failed") => {
                session.post("load", json!({}));
                None
            }
            // A temporary refusal: the failure of a turn names its prompt id.
            Some(_) if answer.body["promptId"].is_null() || answer.body["code"] == "turn_running" => None,
            _ => Some(answer),
        }
    })
}

impl<'a> Round<'a> {
    fn begin(program: &'a mut Program, name: &str) -> Self {
        let open = || program.api.open_with(json!({"workspaceId": name, "installationId": TENANT}));
        let (crasher, worker) = (open(), open());
        let executions = program.folder.path().join("executions/log");
        Self { program, workspace: name.to_owned(), crasher, worker, executions }
    }

    fn route(&self) -> Value {
        self.program.api.get(&format!("/acp/workspaces/{}/protocol", self.workspace)).expect(200)
    }

    /// Crashes one session while the other works, and kills the supervisor: `early` after the crash was requested,
    /// or `late` after it was answered.
    fn kill_during_crash(&mut self, early: Option<Duration>, late: Duration) -> Vec<Sent> {
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
                Some(early) => delay(early),
                None => {
                    wait_for(DEADLINE, "the crash is answered", || crashing.is_finished().then_some(()));
                    delay(late);
                }
            }
            program.kill_supervisor();
            stopped.store(true, Ordering::SeqCst);
            crashing.join().expect("the crashing thread did not panic");
            working.join().expect("the working thread did not panic")
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

    /// Checks that each answered turn is unchanged, that each other one is known or runs now, and that none ran twice.
    fn check_turns(&self, sent: &[Sent]) {
        for Sent { key, answer } in sent {
            let again = settle(&self.worker, &prompt_of(&self.workspace, key, &self.executions), key);
            if let Some(answer) = answer {
                let ids = [&again, answer].map(|it| (it.status, it.body["meta"]["promptId"].clone()));
                assert_eq!(ids[0], ids[1], "{}: the acknowledged turn is kept", self.workspace);
            }
            let count = self.executed().get(key).copied().unwrap_or_default();
            let known = again.status == 200
                || ["interrupted", "connection_lost"].contains(&again.body["code"].as_str().unwrap_or_default());
            assert!(known, "{} {key}: {}", self.workspace, again.text);
            assert!(count <= 1, "{} {key} ran {count} times", self.workspace);
            assert!(again.status != 200 || count == 1, "{} {key} ran {count} times", self.workspace);
            let message = again.body["meta"]["message"].as_str().unwrap_or_default();
            let steps: String = (1..=12).map(|n| format!("step {n} ")).collect();
            let is_whole = message == format!("(exit 0){steps}{key}");
            assert!(again.status != 200 || is_whole, "{} {key}: {message}", self.workspace);
        }
    }

    /// Repeats the crash if it was not counted, and checks that the workspace is then rolled back once, automatically.
    fn check_one_rollback(&self) {
        let mut tries = 0;
        while settle(&self.crasher, "crash", &format!("{CRASH_KEY}{}", "!".repeat(tries))).body["code"]
            != "agent_crashed"
        {
            tries += 1;
            assert!(tries < 5, "{}: the crash is reported", self.workspace);
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

/// Number of kills, by the point that they hit.
#[derive(Debug, Default)]
struct Hits {
    before_turn_end: usize,
    between_turn_end_and_flip: usize,
    after_flip: usize,
}

impl Hits {
    /// Counts a kill by the rows that the killed supervisor left.
    fn count(&mut self, round: &Round<'_>) {
        let query = "SELECT failures AS epoch, route AS what FROM outcome_buckets \
                     WHERE installation_id = ? AND workspace_id = ? AND failures > 0";
        let is_counted = !flips(round.program, query, &round.workspace).is_empty();
        match (is_counted, migrations(round.program, &round.workspace).len()) {
            (_, 1..) => self.after_flip += 1,
            (true, 0) => self.between_turn_end_and_flip += 1,
            (false, 0) => self.before_turn_end += 1,
        }
    }
}

fn kill_around_flips(builder: Builder, name: &str, mut dice: Dice) {
    let begin = Instant::now();
    let mut program = fragile(builder).agent_writes_below("executions").start();
    let mut hits = Hits::default();
    for n in 0..ROUNDS {
        let mut round = Round::begin(&mut program, &format!("ws-{n}"));
        // Half of the kills come after the answer to the crash, at about the time of the flip.
        let early = (n % 2 == 0).then(|| dice.up_to(Duration::from_millis(60)));
        let sent = round.kill_during_crash(early, dice.up_to(Duration::from_millis(2)));
        hits.count(&round);
        round.program.start_supervisor_again();
        round.check_one_rollback();
        round.check_turns(&sent);
        if n % 10 == 0 {
            let after = settle(&round.worker, "echo on", "after").expect(200);
            assert_eq!(after["meta"]["protocol"], "http", "{after}");
        }
        for session in [&round.crasher, &round.worker] {
            session.post("close", json!({})).expect(200);
        }
    }
    println!("{name}: {ROUNDS} kills in {:.0?}: {hits:?}", begin.elapsed());
    eventually("no agent is left", || program.agents().is_empty());
}

#[test]
fn fr_007_kills_around_a_flip_lose_and_repeat_nothing_with_an_embedded_runtime() {
    kill_around_flips(Program::builder(), "embedded", Dice::of_environment("flip kills"));
}

#[test]
fn fr_007_kills_around_a_flip_lose_and_repeat_nothing_with_a_separate_runtime() {
    kill_around_flips(Program::builder().behind_proxy(), "separate", Dice::of_environment("flip kills"));
}

#[test]
fn fr_007_flip_missed_before_a_restart_is_made_after_it() {
    // The flip is due under the settings of the second run and not under those of the first, as after a kill just
    // before the flip.
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
    // The first use of the workspace loads its window.
    let loaded = session.post("load", json!({})).expect(200);
    let route = || session.api.get("/acp/workspaces/ws/protocol").expect(200);
    wait_for(DEADLINE, "rolled back", || (route()["route"] == "http").then_some(()));
    assert_eq!(route()["rollback"]["trigger"], "autoThreshold", "{loaded}");
    assert_eq!(migrations(&program, "ws"), [(1, "autoThreshold http succeeded".to_owned())]);
    assert_eq!(rollback_events(&program, "ws"), [(1, "rollback".to_owned())]);
    assert_eq!(session.completes("echo on")["meta"]["protocol"], "http");
}

#[test]
fn fr_007_simultaneous_breaches_make_one_flip_on_both_databases() {
    for builder in [Program::builder(), Program::builder().postgres()] {
        let mut program = fragile(builder).start();
        // A session that starts late crashes over the fallback.
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
        let rolled_back = wait_for(DEADLINE, "rolled back", || {
            let route = route();
            (route["route"] == "http").then_some(route)
        });
        sessions.iter().for_each(|session| drop(session.becomes("idle")));
        assert_eq!(rolled_back["epoch"], 1, "{rolled_back}");
        let flipped = program.metrics().sum("lumilink_route_flips_total", &[]);
        assert_eq!(flipped, 1.0, "the metric counts one flip");
        let logged = program.log().lines().filter(|line| line.contains("\"trigger\":\"autoThreshold\"")).count();
        assert_eq!(logged, 1, "the flip is logged once");
        for session in &sessions {
            let notes = session.transcript().iter().filter(|entry| entry["eventType"] == "rollback").count();
            assert_eq!(notes, 1, "each live session has one note");
        }
        program.kill_supervisor();
        program.start_supervisor_again();
        let again = program.api.get("/acp/workspaces/ws/protocol").expect(200);
        for member in ["route", "epoch", "rollback", "recovery", "pin"] {
            assert_eq!(rolled_back[member], again[member], "{member}");
        }
        let session = &sessions[0];
        session.post("load", json!({})).expect(200);
        assert_eq!(session.completes("echo on")["meta"]["protocol"], "http");
    }
}
