//! The demonstration for new users, `lumilink demo --once`.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::harness::{eventually, lumilink, processes, program::Folder, wait_for};

#[test]
fn demo_once_shows_every_part_and_exits_0_within_40_s() {
    let folder = Folder::new();
    let begin = Instant::now();
    let mut child = Command::new(lumilink())
        .args(["demo", "--once", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(folder.path().join("data"))
        .env("HOME", folder.path())
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // The output is a few screens and fits into the pipes, so it can be read after the exit.
    let status = wait_for(Duration::from_secs(60), "the demo ends", || child.try_wait().ok().flatten());
    let output = child.wait_with_output().expect("its output");
    let stdout = String::from_utf8_lossy(&output.stdout).to_lowercase();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(status.success(), "{status}\n{stdout}\n{log}");
    assert!(begin.elapsed() < Duration::from_secs(40), "it took {:?}", begin.elapsed());
    for part in ["session", "cancel", "crash", "/docs/", "/metrics", "[github] delivered", "| pull request 2:"] {
        assert!(stdout.contains(part), "the demo shows `{part}`:\n{stdout}");
    }
    let repository = folder.path().join("data/demo-github/hello.git");
    let branches =
        Command::new("git").arg("-C").arg(repository).args(["branch", "--format=%(refname:short)"]).output();
    let branches = String::from_utf8(branches.expect("git").stdout).expect("names");
    assert!(branches.contains("claude-code/issue-1-"), "the branch is pushed: {branches}");
    eventually("no process is left", || processes::with_marker(folder.path()).is_empty());
}
