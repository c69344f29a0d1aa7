//! Whatever an agent sends, supervisor and runtime hold a bounded part of it.

use std::fs;

use crate::harness::Program;

/// The most that either process may grow by at its peak: some copies of a line as long as the limit (16 MiB by default)
/// on its way, which is less than half of what is sent.
const MOST_MIB: u64 = 30;

/// The most memory that a process ever had, in MiB.
fn peak_mib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    peak.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") / 1024
}

/// Runs a prompt against both processes, and checks how much each has grown at its peak.
fn stays_small(prompt: &str, check: impl FnOnce(&crate::harness::Session)) {
    let mut program = Program::builder().separate_runtime("runtime-token-0123456789").start();
    let session = program.api.open("ws");
    session.completes("echo warm");
    let pids = [program.pid(), program.runtime().pid()];
    let before = pids.map(peak_mib);
    check(&session);
    let after = pids.map(peak_mib);
    for (before, after) in before.into_iter().zip(after) {
        assert!(after - before <= MOST_MIB, "{prompt}: from {before} to {after} MiB");
    }
    assert_eq!(session.says("echo after"), "after");
}

#[test]
fn a_line_of_64_mb_is_refused_and_never_held() {
    let prompt = "huge 64000000";
    stays_small(prompt, |session| drop(session.prompt(prompt).problem(502, "frame_too_large")));
}

#[test]
fn a_line_that_never_ends_is_refused_and_never_held() {
    let prompt = "endless 64000000";
    stays_small(prompt, |session| drop(session.prompt(prompt).problem(502, "frame_too_large")));
}

#[test]
fn a_million_updates_pass_and_are_never_held() {
    let prompt = "flood 1000000";
    stays_small(prompt, |session| {
        let result = session.completes(prompt);
        assert_eq!(result["meta"]["timings"]["updates"], 1_000_000, "{result}");
    });
}
