//! Memory bounds: supervisor and runtime buffer a bounded part of an agent's output.

use std::fs;

use crate::harness::Program;

/// Maximum growth of either process's peak memory, in MiB: a few copies of a line of the maximum length (16 MiB by
/// default) in transit, which is less than half of the data sent.
const MAX_GROWTH_MIB: u64 = 30;

/// Returns a process's peak resident memory, in MiB.
fn peak_mib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    peak.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") / 1024
}

/// Runs `check` and asserts that neither process's peak memory grew by more than [`MAX_GROWTH_MIB`].
fn stays_small(prompt: &str, inactivity_s: u32, check: impl FnOnce(&crate::harness::Session)) {
    let mut program = Program::builder()
        .separate_runtime("runtime-token-0123456789")
        .set("turn.inactivity_timeout_s", inactivity_s)
        .set("turn.cancel_grace_s", 1)
        .start();
    let session = program.api.open("ws");
    session.completes("echo warm");
    let pids = [program.pid(), program.runtime().pid()];
    let before = pids.map(peak_mib);
    check(&session);
    let after = pids.map(peak_mib);
    for (before, after) in before.into_iter().zip(after) {
        assert!(after - before <= MAX_GROWTH_MIB, "{prompt}: from {before} to {after} MiB");
    }
    assert_eq!(session.says("echo after"), "after");
}

#[test]
fn line_of_64_mb_is_refused_without_being_buffered() {
    let prompt = "huge 64000000";
    stays_small(prompt, 600, |session| drop(session.prompt(prompt).problem(502, "frame_too_large")));
}

#[test]
fn endless_line_is_refused_without_being_buffered() {
    let prompt = "endless 64000000";
    stays_small(prompt, 600, |session| drop(session.prompt(prompt).problem(502, "frame_too_large")));
}

/// 400,000 updates are about as many bytes as the lines above.
#[test]
fn flood_of_400_000_updates_passes_without_being_buffered() {
    let prompt = "flood 400000";
    stays_small(prompt, 600, |session| {
        let result = session.completes(prompt);
        assert_eq!(result["meta"]["timings"]["updates"], 400_000, "{result}");
    });
}

#[test]
fn unread_answers_to_300_reads_of_2_mb_do_not_fill_the_memory() {
    let prompt = "unread 300 big.txt";
    stays_small(prompt, 3, |session| {
        session.completes("run head -c 2000000 /dev/zero | tr '\\0' x > big.txt");
        session.prompt(prompt).problem(504, "inactivity_timeout");
    });
}
