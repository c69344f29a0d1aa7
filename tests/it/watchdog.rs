//! The watchdog of threads that run sessions: a stalled thread is reported once, and other threads keep serving.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use crate::harness::{DEADLINE, Program, eventually, metrics::Scrape, processes, tokens, wait_for};

const STALLS: &str = "lumilink_arbiter_stalls_total";
const LAG: &str = "lumilink_arbiter_lag_seconds";
const STALL_ERROR: &str = "a thread that runs sessions is stalled";

/// A stopped thread of the program, as if a handler blocked it. Dropping the value continues the thread, which only
/// the test thread that stopped it can do.
struct Frozen(i32);

impl Frozen {
    fn freeze(thread: i32) -> Self {
        let null = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: neither request touches memory of this process.
        let result = unsafe {
            libc::ptrace(libc::PTRACE_SEIZE, thread, null, null);
            libc::ptrace(libc::PTRACE_INTERRUPT, thread, null, null)
        };
        assert_eq!(result, 0, "ptrace stops a thread of the program: {}", std::io::Error::last_os_error());
        let mut status = 0;
        // SAFETY: `status` is a local variable.
        let waited = unsafe { libc::waitpid(thread, &mut status, libc::__WALL) };
        assert_eq!(waited, thread, "the thread is stopped");
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

/// The worker threads of a process.
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

/// The status and body of a response. Retries on new connections, because a frozen thread does not respond.
fn get(program: &Program, path: &str) -> (u16, String) {
    wait_for(DEADLINE, "a thread that answers", || {
        let mut stream = TcpStream::connect(program.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_millis(300))).ok()?;
        let token = tokens::of(program.address).expect("the program made a token");
        let head = format!("Host: {}\r\nAuthorization: Bearer {token}\r\nConnection: close", program.address);
        write!(stream, "GET {path} HTTP/1.1\r\n{head}\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    })
}

fn value(program: &Program, name: &str) -> f64 {
    let (status, body) = get(program, "/metrics");
    assert_eq!(status, 200);
    // Skips chunk framing.
    let lines = body.lines().filter(|line| line.starts_with("lumilink_"));
    Scrape::parse(&lines.collect::<Vec<_>>().join("\n")).sum(name, &[])
}

#[test]
fn stalled_thread_is_reported_once_while_others_keep_serving() {
    let mut program = Program::builder().set("server.workers", 2).start();
    program.expect_error(STALL_ERROR);
    let session = program.api.open("ws");
    session.completes("echo before");
    let workers = workers(program.pid());
    assert!(workers.len() >= 2, "{workers:?}");
    let frozen = Frozen::freeze(workers[0]);
    eventually("the stall is counted", || value(&program, STALLS) == 1.0);
    assert!(value(&program, LAG) >= 5.0);
    assert_eq!(get(&program, "/livez").0, 200, "a stalled thread may recover");
    drop(frozen);
    eventually("the thread runs again", || value(&program, LAG) < 1.0);
    assert_eq!(value(&program, STALLS), 1.0);
    let lines: Vec<_> = program.log().lines().filter(|line| line.contains(STALL_ERROR)).map(str::to_owned).collect();
    assert!(lines.len() == 1 && lines[0].contains("[ACP]"), "{lines:?}");
    assert_eq!(session.says("echo after"), "after");
    assert_eq!(program.api.get("/livez").status, 200);
}

#[test]
fn process_stopped_as_a_whole_reports_no_stalled_thread() {
    let program = Program::builder().set("server.workers", 2).start();
    let session = program.api.open("ws");
    program.signal(libc::SIGSTOP);
    let stopped = std::time::Instant::now();
    eventually("the stop exceeds the stall threshold", || stopped.elapsed() > Duration::from_secs(7));
    processes::signal(program.pid(), libc::SIGCONT);
    let woken = std::time::Instant::now();
    eventually("the watchdog has run again", || woken.elapsed() > Duration::from_secs(2));
    assert_eq!(value(&program, STALLS), 0.0);
    assert_eq!(session.says("echo on"), "on");
}

#[test]
fn separate_runtime_reports_its_stalled_threads() {
    let mut program = Program::builder().separate_runtime("runtime-token-0123456789").start();
    program.expect_error(STALL_ERROR);
    let session = program.api.open("ws");
    session.completes("echo before");
    // All workers: clients wait for a runtime that stalls for a while.
    let frozen: Vec<_> = workers(program.runtime().pid()).into_iter().map(Frozen::freeze).collect();
    assert!(!frozen.is_empty());
    eventually("the stall is logged", || program.runtime().log().contains(STALL_ERROR));
    drop(frozen);
    assert_eq!(session.says("echo after"), "after");
}
