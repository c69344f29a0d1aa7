//! `lumilink toasts` against a running server.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
};

use crate::harness::{
    DEADLINE, Program, Value, eventually, json, lumilink, processes,
    proxy::{Mode, Proxy, Way},
    wait_for,
};

fn command(program: &Program, base: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(lumilink());
    command
        .args(["toasts", "--installation", "tenant-1"])
        .args(arguments)
        .env("LUMILINK_URL", base)
        .env("HOME", program.folder.path())
        .current_dir(program.folder.path());
    command
}

fn lines(program: &Program, arguments: &[&str]) -> Vec<String> {
    let output: Output = command(program, &program.api.base(), arguments).output().expect("the program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// A follower, and what it has printed.
struct Following {
    child: Child,
    printed: Arc<Mutex<Vec<Value>>>,
}

impl Following {
    fn start(program: &Program, base: &str, arguments: &[&str]) -> Self {
        let arguments = [&["--follow", "--json"], arguments].concat();
        let mut child = command(program, base, &arguments).stdout(Stdio::piped()).spawn().expect("the program runs");
        let out = BufReader::new(child.stdout.take().expect("its output"));
        let printed = Arc::new(Mutex::new(Vec::new()));
        let lines = printed.clone();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                lines.lock().expect("lines").push(serde_json::from_str(&line).expect("a line of JSON"));
            }
        });
        Self { child, printed }
    }

    fn of(&self, kind: &str) -> Vec<Value> {
        self.printed.lock().expect("lines").iter().filter(|line| line["type"] == kind).cloned().collect()
    }

    /// Waits until it has printed so many toasts; gives their numbers.
    fn toasts(&self, count: usize) -> Vec<u64> {
        let seqs =
            || self.of("toast").iter().map(|toast| toast["seq"].as_u64().expect("a number")).collect::<Vec<_>>();
        wait_for(DEADLINE, &format!("{count} toasts"), || (seqs().len() >= count).then(seqs))
    }

    fn is_welcome(&self) {
        eventually("the follower is welcome", || !self.of("welcome").is_empty());
    }

    /// Ctrl-C.
    fn ends(mut self) {
        processes::signal(i32::try_from(self.child.id()).expect("a process id"), libc::SIGINT);
        let status = wait_for(DEADLINE, "the follower ends", || self.child.try_wait().expect("a child"));
        assert_eq!(status.code(), Some(0), "it did what it was asked");
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two toasts: a rollback and a restore.
fn provoke(program: &Program) {
    for verb in ["rollback", "restore"] {
        let why = json!({"actor": "alice", "reason": "drill"});
        program.api.post(&format!("/acp/workspaces/ws/{verb}"), why).expect(200);
    }
}

#[test]
fn the_inbox_is_printed_newest_last_and_marked_as_read_where_that_is_asked_for() {
    let program = Program::start();
    program.api.open("ws");
    provoke(&program);
    let printed = lines(&program, &["--ack"]);
    assert_eq!(printed.len(), 2, "{printed:?}");
    assert!(printed[0].starts_with("* ") && printed[0].contains("  error    ws  "), "{printed:?}");
    assert!(printed[1].starts_with("* ") && printed[1].contains("  info     ws  "), "{printed:?}");
    assert!(!printed.concat().contains('\u{1b}'), "no colours where there is no terminal");
    assert_eq!(lines(&program, &["--unread"]), [""; 0]);
    provoke(&program);
    let newest = lines(&program, &["--limit", "3", "--json"]);
    let newest: Vec<Value> = newest.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let seen: Vec<_> = newest.iter().map(|it| (it["toast"]["seq"].as_u64(), it["read"].as_bool())).collect();
    assert_eq!(seen, [(Some(2), Some(true)), (Some(3), Some(false)), (Some(4), Some(false))]);
    assert_eq!(lines(&program, &["--workspace", "another"]), [""; 0]);
}

#[test]
fn a_follower_goes_on_where_an_earlier_one_ended_and_a_stranger_is_told_why_not() {
    let program = Program::start();
    let base = program.api.base();
    program.api.open("ws");
    let state = ["--state", "place.json"];
    let first = Following::start(&program, &base, &state);
    first.is_welcome();
    provoke(&program);
    assert_eq!(first.toasts(2), [1, 2]);
    first.ends();
    provoke(&program);
    let second = Following::start(&program, &base, &[&state[..], &["--ack"]].concat());
    assert_eq!(second.toasts(2), [3, 4], "what came meanwhile, and nothing twice");
    provoke(&program);
    assert_eq!(second.toasts(4), [3, 4, 5, 6]);
    eventually("all of it is marked as read", || {
        let inbox = program.api.get("/acp/notifications?installationId=tenant-1").expect(200);
        inbox["items"]
            .as_array()
            .expect("items")
            .iter()
            .all(|it| it["read"] == (it["toast"]["seq"].as_u64() > Some(2)))
    });
    second.ends();
    let place: Value =
        serde_json::from_slice(&std::fs::read(program.folder.path().join("place.json")).expect("a place"))
            .expect("JSON");
    assert_eq!(place["cursor"], 6, "{place}");

    let cursor = ["--since-cursor", "4", "--epoch", place["epoch"].as_str().expect("an epoch")];
    let third = Following::start(&program, &base, &cursor);
    assert_eq!(third.toasts(2), [5, 6]);
    third.ends();
    let other = Command::new(lumilink())
        .args(["toasts", "--operators", "--follow", "--state", "place.json"])
        .env("LUMILINK_URL", &base)
        .current_dir(program.folder.path())
        .output()
        .expect("the program runs");
    let said = String::from_utf8_lossy(&other.stderr);
    assert!(!other.status.success() && said.contains("tenant:tenant-1"), "{said}");
    let nobody = Command::new(lumilink())
        .args(["toasts", "--follow"])
        .env("LUMILINK_URL", &base)
        .output()
        .expect("the program runs");
    let said = String::from_utf8_lossy(&nobody.stderr);
    assert!(!nobody.status.success() && said.contains("installationId"), "{said}");
}

#[test]
fn a_follower_outlives_cut_cables_and_a_killed_server_and_shows_each_toast_once() {
    let mut program = Program::start();
    program.api.open("ws");
    let cable = Proxy::start(program.address);
    let follower = Following::start(&program, &format!("http://{}", cable.address()), &[]);
    follower.is_welcome();
    let mut told = 0;
    // The second of the three is cut within a frame.
    for broken in [Mode::Cut, Mode::CutAfter(Way::ToClient, 100), Mode::Reset] {
        cable.set_open(broken);
        provoke(&program);
        told += 2;
        follower.toasts(told);
    }
    assert_eq!(follower.of("restored").len(), 3, "each of them was noticed");
    program.kill_supervisor();
    program.start_supervisor_again();
    cable.target(program.address);
    provoke(&program);
    assert_eq!(follower.toasts(told + 2), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert!(follower.of("restored").len() == 4 && follower.of("reset").is_empty());
    follower.ends();
}
