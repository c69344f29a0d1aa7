//! Steps of the wall clock, while the program runs and across restarts: no decision changes, and rows expire.
//!
//! `libfaketime` (Debian package `faketime`) steps the clock of the program alone; the monotonic clock is unaffected.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::harness::{
    DEADLINE, Program, Session, Value, eventually, json, notifications::Subscriber, program::Builder, wait_for,
};

/// Time from a rollback to the first probe.
const COOLDOWN: Duration = Duration::from_secs(3);

/// Controls the wall clock of a program.
struct WallClock {
    offset: PathBuf,
    _folder: tempfile::TempDir,
}

impl WallClock {
    fn accurate() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let clock = Self { offset: folder.path().join("time"), _folder: folder };
        clock.step("+0");
        clock
    }

    /// Sets the offset from the real time, in seconds. Renames the file, so that no read sees a part of it.
    fn step(&self, offset: &str) {
        let new = self.offset.with_extension("new");
        fs::write(&new, format!("{offset}\n")).expect("a file");
        fs::rename(new, &self.offset).expect("a file");
    }

    fn attach(&self, builder: Builder) -> Builder {
        builder
            .env("LD_PRELOAD", &library())
            .env("FAKETIME_TIMESTAMP_FILE", &self.offset.display().to_string())
            .env("FAKETIME_NO_CACHE", "1")
            // The option has two names.
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1")
    }
}

fn library() -> String {
    let folders = fs::read_dir("/usr/lib").expect("/usr/lib").flatten().map(|it| it.path());
    let found = folders.map(|it| it.join("faketime/libfaketimeMT.so.1")).find(|it| it.exists());
    found.expect("libfaketime is missing: run tests/run, which installs the package `faketime`").display().to_string()
}

fn quick() -> Builder {
    Program::builder()
        .set("window.min_samples", 8)
        .set("recovery.cooldown_s", COOLDOWN.as_secs())
        .set("recovery.jitter_bp", 0)
}

fn route(session: &Session) -> Value {
    session.api.get("/acp/workspaces/ws/protocol").expect(200)
}

/// Returns the outcomes in the window and the failures among them.
fn counts(session: &Session) -> (u64, u64) {
    let window = route(session)["window"].clone();
    (window["samples"].as_u64().expect("a number"), window["failures"].as_u64().expect("a number"))
}

fn wait_for_counts(session: &Session, samples: u64, failures: u64) {
    eventually(&format!("{samples} outcomes, {failures} failed"), || counts(session) == (samples, failures));
}

/// Runs a turn and returns the offset of its time from the real time, in hours.
fn hours_off(session: &Session) -> i64 {
    let id = session.starts("echo a");
    let accepted = session.ends(&id)["acceptedAt"].as_str().expect("a time").to_owned();
    let format = &time::format_description::well_known::Rfc3339;
    let accepted = time::OffsetDateTime::parse(&accepted, format).expect("RFC 3339");
    let off = accepted - time::OffsetDateTime::now_utc();
    (off.as_seconds_f64() / 3600.0).round() as i64
}

fn crash(session: &Session) {
    session.prompt("crash").problem(502, "agent_crashed");
    eventually("the session is usable again", || session.state()["state"] == "idle");
}

#[test]
fn fr_007_stepping_the_wall_clock_changes_no_decision() {
    let clock = WallClock::accurate();
    let program = clock.attach(quick()).start();
    let session = program.api.open("ws");
    assert_eq!(hours_off(&session), 0);
    // Two handshakes, a turn and a crash.
    crash(&session);
    wait_for_counts(&session, 4, 1);
    clock.step("+3600");
    assert_eq!(hours_off(&session), 1, "the program sees the step");
    wait_for_counts(&session, 5, 1);
    clock.step("-3600");
    assert_eq!(hours_off(&session), -1);
    wait_for_counts(&session, 6, 1);
    assert_eq!(route(&session)["route"], "acp");

    // The eighth outcome breaches the threshold, whatever the wall-clock times of the others.
    let begin = Instant::now();
    crash(&session);
    let rolled_back = wait_for(DEADLINE, "rolled back", || {
        let route = route(&session);
        (route["route"] == "http").then_some(route)
    });
    assert_eq!(
        (&rolled_back["epoch"], &rolled_back["recovery"]["stage"]),
        (&json!(1), &json!("open")),
        "{rolled_back}"
    );
    for offset in ["+3600", "-3600", "+0"] {
        clock.step(offset);
        let now = route(&session);
        let early = begin.elapsed() < COOLDOWN;
        assert!(!early || now["recovery"]["stage"] == "open", "no step ends the cool-down: {now}");
    }
    clock.step("-3600");
    wait_for(DEADLINE, "a probe after the cool-down", || {
        (route(&session)["recovery"]["stage"] == "recovering").then_some(())
    });
    assert!(begin.elapsed() >= COOLDOWN, "after {:?}", begin.elapsed());
    assert_eq!((&route(&session)["route"], &route(&session)["epoch"]), (&json!("http"), &json!(1)));
}

#[test]
fn fr_007_backward_step_before_a_restart_counts_as_no_elapsed_time() {
    let clock = WallClock::accurate();
    let mut program = clock.attach(quick()).start();
    let session = program.api.open("ws");
    crash(&session);
    assert_eq!(hours_off(&session), 0);
    wait_for_counts(&session, 4, 1);
    program.kill_supervisor();
    clock.step("-3600");
    program.start_supervisor_again();
    wait_for_counts(&session, 4, 1);
    session.post("load", json!({})).expect(200);
    assert_eq!(hours_off(&session), -1);
    wait_for_counts(&session, 6, 1);
    crash(&session);
    wait_for(DEADLINE, "rolled back", || (route(&session)["route"] == "http").then_some(()));

    // The probe is due after the cool-down, not an hour later, which would exceed the deadline of the wait.
    program.kill_supervisor();
    clock.step("-7200");
    program.start_supervisor_again();
    let again = route(&session);
    assert_eq!((&again["route"], &again["epoch"]), (&json!("http"), &json!(1)), "{again}");
    wait_for(DEADLINE, "a probe", || (route(&session)["recovery"]["stage"] == "recovering").then_some(()));

    // A step ahead counts as elapsed time: the workspace stays rolled back.
    program.kill_supervisor();
    clock.step("+3600");
    program.start_supervisor_again();
    let again = route(&session);
    assert_eq!((&again["route"], &again["epoch"]), (&json!("http"), &json!(1)), "{again}");
}

#[test]
fn fr_007_window_survives_a_successor_whose_wall_clock_differs_from_the_database() {
    let clock = WallClock::accurate();
    let mut program = clock.attach(quick().postgres()).start();
    let session = program.api.open("ws");
    assert_eq!(hours_off(&session), 0);
    crash(&session);
    wait_for_counts(&session, 4, 1);
    // The next supervisor runs on a machine whose clock is two hours ahead; by the database's clock no time has passed.
    program.kill_supervisor();
    clock.step("+7200");
    program.start_supervisor_again();
    assert_eq!(counts(&session), (4, 1), "the window still has the outcomes of the last minute");
    session.post("load", json!({})).expect(200);
    assert_eq!(hours_off(&session), 2, "the program sees the step");
    wait_for_counts(&session, 6, 1);
    crash(&session);
    wait_for(DEADLINE, "rolled back", || (route(&session)["route"] == "http").then_some(()));

    // A cool-down is not over early on a machine that is ahead.
    program.kill_supervisor();
    clock.step("+14400");
    let begin = Instant::now();
    program.start_supervisor_again();
    let stage = route(&session)["recovery"]["stage"].clone();
    assert!(begin.elapsed() >= COOLDOWN || stage == "open", "{stage} after {:?}", begin.elapsed());
    wait_for(DEADLINE, "a probe", || (route(&session)["recovery"]["stage"] == "recovering").then_some(()));
}

#[test]
fn cursor_older_than_expired_notifications_is_reset_and_later_ones_resume() {
    const TENANT: &str = "installationId=tenant-1";
    let clock = WallClock::accurate();
    let mut program = clock.attach(quick().set("retention.notifications_days", 1)).start();
    program.api.open("ws");
    let flip = |program: &Program, verb: &str| {
        let why = json!({"actor": "ada", "reason": "drill"});
        program.api.post(&format!("/acp/workspaces/ws/{verb}"), why).expect(200);
    };
    ["rollback", "restore", "rollback"].into_iter().for_each(|verb| flip(&program, verb));
    let epoch = Subscriber::open(&program.api.base(), TENANT, &[]).unwrap().hello(json!({}))["epoch"].clone();
    assert_eq!(program.terminate(DEADLINE), Some(0));
    // Expired notifications are removed at the start.
    clock.step("+172800");
    program.start_supervisor_again();
    let list = || program.api.get(&format!("/acp/notifications?{TENANT}")).expect(200);
    eventually("expired notifications are removed", || list()["items"] == json!([]));
    assert_eq!((&list()["head"], &list()["unread"]), (&json!(3), &json!(0)));
    ["restore", "rollback"].into_iter().for_each(|verb| flip(&program, verb));
    let connect_at = |cursor: u64| {
        let mut subscriber = Subscriber::open(&program.api.base(), TENANT, &[]).unwrap();
        let welcome = subscriber.hello(json!({"epoch": epoch, "cursor": cursor}));
        (subscriber, welcome["cursor"].as_u64().expect("a number"))
    };
    for cursor in [0, 2] {
        let (mut late, from) = connect_at(cursor);
        let reset = late.next();
        assert_eq!((from, &reset["type"], &reset["reason"]), (5, &json!("reset"), &json!("tooOld")), "{reset}");
        assert_eq!((&reset["epoch"], &reset["cursor"]), (&epoch, &json!(5)), "{reset}");
    }
    for cursor in [3, 4] {
        let (mut in_time, from) = connect_at(cursor);
        assert_eq!((from, &in_time.next()["seq"]), (cursor, &json!(cursor + 1)));
    }
    assert_eq!(program.metrics().sum("lumilink_toast_resets_total", &[("reason", "tooOld")]), 2.0);
}

#[test]
fn end_of_a_rollback_storm_is_notified_once_across_restarts() {
    let clock = WallClock::accurate();
    let mut program = clock.attach(Program::builder().set("window.min_samples", 5)).start();
    program.expect_error("many workspaces fall back at once");
    for n in 0..5 {
        let session = program.api.open(&format!("ws-{n}"));
        let path = format!("/acp/workspaces/ws-{n}/protocol?installationId=tenant-1");
        while program.api.get(&path).expect(200)["route"] == "acp" {
            crash(&session);
        }
    }
    let notifications = |program: &Program| {
        let list = program.api.get("/acp/notifications?stream=operators").expect(200);
        let items = list["items"].as_array().expect("a list").iter().map(|item| item["toast"].clone());
        items.collect::<Vec<Value>>()
    };
    eventually("operators are notified", || notifications(&program).len() == 1);
    program.kill_supervisor();
    program.start_supervisor_again();
    assert_eq!(
        program.metrics().sum("lumilink_rollback_storm", &[]),
        1.0,
        "the storm continues: five rollbacks within five minutes"
    );
    // After five minutes the storm has ended; another restart does not repeat the notification of its end.
    for _ in 0..2 {
        program.kill_supervisor();
        clock.step("+400");
        program.start_supervisor_again();
        eventually("operators are notified of the end", || notifications(&program).len() == 2);
        assert_eq!(program.metrics().sum("lumilink_rollback_storm", &[]), 0.0);
    }
    let notifications = notifications(&program);
    assert_eq!(
        (&notifications[0]["severity"], &notifications[1]["severity"]),
        (&json!("info"), &json!("error")),
        "{notifications:?}"
    );
    assert_eq!(
        notifications[0]["causeId"],
        format!("{}:resolved", notifications[1]["causeId"].as_str().expect("text"))
    );
}
