//! `lumilink toasts` against a running server.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
};

use crate::harness::{
    DEADLINE, Program, Value, eventually, json, lumilink, processes,
    proxy::{Mode, Proxy, Way},
    tokens, wait_for,
};

fn command(program: &Program, base: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(lumilink());
    command
        .args(["toasts", "--installation", "tenant-1"])
        .args(arguments)
        .envs(tokens::variables(base))
        .env("HOME", program.folder.path())
        .current_dir(program.folder.path());
    command
}

fn lines(program: &Program, arguments: &[&str]) -> Vec<String> {
    let output: Output = command(program, &program.api.base(), arguments).output().expect("the program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// A running `lumilink toasts --follow`, and the lines that it has printed.
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

    /// Waits until it has printed `count` notifications; returns their sequence numbers.
    fn notifications(&self, count: usize) -> Vec<u64> {
        let seqs = || {
            self.of("toast")
                .iter()
                .map(|notification| notification["seq"].as_u64().expect("a number"))
                .collect::<Vec<_>>()
        };
        wait_for(DEADLINE, &format!("{count} notifications"), || (seqs().len() >= count).then(seqs))
    }

    fn until_welcome(&self) {
        eventually("the follower has its welcome", || !self.of("welcome").is_empty());
    }

    /// Sends SIGINT and waits for exit code 0.
    fn ends(mut self) {
        processes::signal(i32::try_from(self.child.id()).expect("a process id"), libc::SIGINT);
        let status = wait_for(DEADLINE, "the follower ends", || self.child.try_wait().expect("a child"));
        assert_eq!(status.code(), Some(0), "SIGINT is an orderly end");
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Raises two notifications, by a rollback and a restore.
fn provoke(program: &Program) {
    for verb in ["rollback", "restore"] {
        let why = json!({"actor": "alice", "reason": "drill"});
        program.api.post(&format!("/acp/workspaces/ws/{verb}"), why).expect(200);
    }
}

#[test]
fn inbox_is_printed_newest_last_and_ack_marks_it_as_read() {
    let program = Program::start();
    program.api.open("ws");
    provoke(&program);
    let printed = lines(&program, &["--ack"]);
    assert_eq!(printed.len(), 2, "{printed:?}");
    assert!(printed[0].starts_with("* ") && printed[0].contains("  error    ws  "), "{printed:?}");
    assert!(printed[1].starts_with("* ") && printed[1].contains("  info     ws  "), "{printed:?}");
    assert!(!printed.concat().contains('\u{1b}'), "no colours without a terminal");
    assert_eq!(lines(&program, &["--unread"]), [""; 0]);
    provoke(&program);
    let newest = lines(&program, &["--limit", "3", "--json"]);
    let newest: Vec<Value> = newest.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let seen: Vec<_> = newest.iter().map(|it| (it["toast"]["seq"].as_u64(), it["read"].as_bool())).collect();
    assert_eq!(seen, [(Some(2), Some(true)), (Some(3), Some(false)), (Some(4), Some(false))]);
    assert_eq!(lines(&program, &["--workspace", "another"]), [""; 0]);
}

#[test]
fn follower_resumes_from_its_state_file_and_rejects_one_of_another_stream() {
    let program = Program::start();
    let base = program.api.base();
    program.api.open("ws");
    let state = ["--state", "place.json"];
    let first = Following::start(&program, &base, &state);
    first.until_welcome();
    provoke(&program);
    assert_eq!(first.notifications(2), [1, 2]);
    first.ends();
    provoke(&program);
    let second = Following::start(&program, &base, &[&state[..], &["--ack"]].concat());
    assert_eq!(second.notifications(2), [3, 4], "only the notifications raised meanwhile");
    provoke(&program);
    assert_eq!(second.notifications(4), [3, 4, 5, 6]);
    eventually("all of it is marked as read", || {
        let inbox = program.api.get("/acp/notifications?installationId=tenant-1").expect(200);
        inbox["items"]
            .as_array()
            .expect("items")
            .iter()
            .all(|it| it["read"] == (it["toast"]["seq"].as_u64() > Some(2)))
    });
    second.ends();
    let position: Value =
        serde_json::from_slice(&std::fs::read(program.folder.path().join("place.json")).expect("a state file"))
            .expect("JSON");
    assert_eq!(position["cursor"], 6, "{position}");

    let cursor = ["--since-cursor", "4", "--epoch", position["epoch"].as_str().expect("an epoch")];
    let third = Following::start(&program, &base, &cursor);
    assert_eq!(third.notifications(2), [5, 6]);
    third.ends();
    let other = Command::new(lumilink())
        .args(["toasts", "--operators", "--follow", "--state", "place.json"])
        .envs(tokens::variables(&base))
        .current_dir(program.folder.path())
        .output()
        .expect("the program runs");
    let stderr = String::from_utf8_lossy(&other.stderr);
    assert!(!other.status.success() && stderr.contains("tenant:tenant-1"), "{stderr}");
    let no_scope = Command::new(lumilink())
        .args(["toasts", "--follow"])
        .envs(tokens::variables(&base))
        .output()
        .expect("the program runs");
    let stderr = String::from_utf8_lossy(&no_scope.stderr);
    assert!(!no_scope.status.success() && stderr.contains("installationId"), "{stderr}");
}

#[test]
fn follower_survives_cut_connections_and_a_kill_and_prints_each_notification_once() {
    let mut program = Program::start();
    program.api.open("ws");
    let proxy = Proxy::start(program.address);
    let follower = Following::start(&program, &format!("http://{}", proxy.address()), &[]);
    follower.until_welcome();
    let mut raised = 0;
    // The second fault cuts the connection within a frame.
    for fault in [Mode::Cut, Mode::CutAfter(Way::ToClient, 100), Mode::Reset] {
        proxy.set_open(fault);
        provoke(&program);
        raised += 2;
        follower.notifications(raised);
    }
    assert_eq!(follower.of("restored").len(), 3, "each fault is detected");
    program.kill_supervisor();
    program.start_supervisor_again();
    proxy.target(program.address);
    provoke(&program);
    assert_eq!(follower.notifications(raised + 2), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert!(follower.of("restored").len() == 4 && follower.of("reset").is_empty());
    follower.ends();
}
