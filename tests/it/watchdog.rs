//! Threads that run sessions and stand still: noticed, told once, and borne as long as another one works.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use crate::harness::{DEADLINE, Program, eventually, metrics::Scrape, processes, wait_for};

const STALLS: &str = "lumilink_arbiter_stalls_total";
const LAG: &str = "lumilink_arbiter_lag_seconds";
const SAYS: &str = "a thread that runs sessions is stalled";

/// A thread of the program that is stopped, as by a handler that blocks; it goes on when this is dropped. Only the
/// thread that stopped it can let it go.
struct Frozen(i32);

impl Frozen {
    fn freeze(thread: i32) -> Self {
        let null = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: neither request touches memory of ours.
        let result = unsafe {
            libc::ptrace(libc::PTRACE_SEIZE, thread, null, null);
            libc::ptrace(libc::PTRACE_INTERRUPT, thread, null, null)
        };
        assert_eq!(result, 0, "one thread of a child can be stopped: {}", std::io::Error::last_os_error());
        let mut status = 0;
        // SAFETY: the status is ours.
        let waited = unsafe { libc::waitpid(thread, &mut status, libc::__WALL) };
        assert_eq!(waited, thread, "it is stopped");
        Self(thread)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let null = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: as above.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, null, null) };
    }
}

/// The threads of a process that serve.
fn workers(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the program runs");
    let mut found: Vec<i32> = tasks
        .flatten()
        .filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("actix-rt|")))
        .filter_map(|task| task.file_name().to_string_lossy().parse().ok())
        .collect();
    found.sort_unstable();
    found
}

/// The body of an answer, from whichever thread gives one soon; a frozen one does not.
fn get(program: &Program, path: &str) -> (u16, String) {
    wait_for(DEADLINE, "a thread that answers", || {
        let mut stream = TcpStream::connect(program.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_millis(300))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", program.address).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    })
}

fn value(program: &Program, name: &str) -> f64 {
    let (status, body) = get(program, "/metrics");
    assert_eq!(status, 200);
    // Chunk marks are not samples.
    let lines = body.lines().filter(|line| line.starts_with("lumilink_"));
    Scrape::parse(&lines.collect::<Vec<_>>().join("\n")).sum(name, &[])
}

#[test]
fn a_thread_that_stands_still_is_told_once_and_the_others_serve_on() {
    let mut program = Program::builder().set("server.workers", 2).start();
    program.expect_error(SAYS);
    let session = program.api.open("ws");
    session.completes("echo before");
    let workers = workers(program.pid());
    assert!(workers.len() >= 2, "{workers:?}");
    let frozen = Frozen::freeze(workers[0]);
    eventually("the stall is counted", || value(&program, STALLS) == 1.0);
    assert!(value(&program, LAG) >= 5.0);
    assert_eq!(get(&program, "/livez").0, 200, "it may come back");
    drop(frozen);
    eventually("it runs again", || value(&program, LAG) < 1.0);
    assert_eq!(value(&program, STALLS), 1.0);
    let lines: Vec<_> = program.log().lines().filter(|line| line.contains(SAYS)).map(str::to_owned).collect();
    assert!(lines.len() == 1 && lines[0].contains("[ACP]"), "{lines:?}");
    assert_eq!(session.says("echo after"), "after");
    assert_eq!(program.api.get("/livez").status, 200);
}

#[test]
fn a_process_that_was_stopped_as_a_whole_blames_none_of_its_threads() {
    let program = Program::builder().set("server.workers", 2).start();
    let session = program.api.open("ws");
    program.signal(libc::SIGSTOP);
    let stopped = std::time::Instant::now();
    eventually("longer than a stall takes", || stopped.elapsed() > Duration::from_secs(7));
    processes::signal(program.pid(), libc::SIGCONT);
    let woken = std::time::Instant::now();
    eventually("the watchdog has looked again", || woken.elapsed() > Duration::from_secs(2));
    assert_eq!(value(&program, STALLS), 0.0);
    assert_eq!(session.says("echo on"), "on");
}

#[test]
fn a_separate_runtime_watches_its_threads_too() {
    let mut program = Program::builder().separate_runtime("runtime-token-0123456789").start();
    program.expect_error(SAYS);
    let session = program.api.open("ws");
    session.completes("echo before");
    // All of them: a runtime that serves nobody for a while is one for whom its clients wait.
    let frozen: Vec<_> = workers(program.runtime().pid()).into_iter().map(Frozen::freeze).collect();
    assert!(!frozen.is_empty());
    eventually("the stall is told", || program.runtime().log().contains(SAYS));
    drop(frozen);
    assert_eq!(session.says("echo after"), "after");
}
