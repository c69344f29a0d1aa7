//! Memory, processor time and open files of processes, from `/proc`.

use std::{collections::BTreeMap, fs, time::Duration};

use serde::Serialize;
use tokio::time::sleep_until;

use super::closed_loop::Window;

/// Memory of one or more processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Memory {
    /// Number of processes.
    pub processes: usize,
    /// Resident sets, in bytes. Memory that processes share, such as their program, is counted in each.
    pub rss_bytes: u64,
    /// Proportional sets, in bytes: shared memory is counted once. Absent where the kernel does not report it.
    pub pss_bytes: Option<u64>,
}

/// Memory now. A process that has ended is left out.
pub(crate) fn memory(pids: &[u32]) -> Memory {
    let mut sum = Memory { processes: 0, rss_bytes: 0, pss_bytes: Some(0) };
    for pid in pids {
        let Some(rss) = kilobytes(&format!("/proc/{pid}/status"), "VmRSS:") else { continue };
        let pss = kilobytes(&format!("/proc/{pid}/smaps_rollup"), "Pss:");
        sum.processes += 1;
        sum.rss_bytes += rss * 1024;
        sum.pss_bytes = sum.pss_bytes.zip(pss).map(|(sum, pss)| sum + pss * 1024);
    }
    sum
}

fn kilobytes(file: &str, field: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(field))?;
    rest.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Processor time that processes have used so far, user and system.
///
/// The kernel reports the time of a process in steps of 10 ms and the time of each thread to the nanosecond. An agent uses
/// less than one step in many turns, so a thousand agents would seem to use nothing; hence the larger of both.
pub(crate) fn cpu_time(pids: &[u32]) -> Duration {
    pids.iter().filter_map(|pid| of_threads(*pid).max(of_process(*pid))).sum()
}

/// Excludes threads that have ended; the time of the process includes them.
fn of_threads(pid: u32) -> Option<Duration> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let run = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        Some(Duration::from_nanos(text.split(' ').next()?.parse().ok()?))
    };
    threads.map(run).sum()
}

fn of_process(pid: u32) -> Option<Duration> {
    Some(Duration::from_secs(stat(pid)?.ticks) / ticks_per_second())
}

fn ticks_per_second() -> u32 {
    // SAFETY: sysconf with this name only reads a constant.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u32::try_from(ticks).ok().filter(|ticks| *ticks > 0).unwrap_or(100)
}

/// Samples processor times at both ends of the measured window; returns the time used in between.
pub(crate) async fn used_within<const N: usize>(
    window: Window,
    sample: impl Fn() -> [Duration; N] + Clone + Send + 'static,
) -> [Duration; N] {
    // A sample may read a thousand small files: not on the thread that carries the load.
    let read = || async { tokio::task::spawn_blocking(sample.clone()).await.unwrap_or([Duration::ZERO; N]) };
    sleep_until(window.from).await;
    let before = read().await;
    sleep_until(window.until).await;
    let after = read().await;
    std::array::from_fn(|at| after[at].saturating_sub(before[at]))
}

/// Number of open file descriptors of a process.
pub(crate) fn open_files(pid: u32) -> Option<usize> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

/// Processor time of all descendants of a process: those that live, and those that have ended and were waited for. The
/// kernel reports the latter as a sum, in steps of 10 ms.
pub(crate) fn cpu_time_below(of: u32) -> Duration {
    let ended = stat(of).map_or(Duration::ZERO, |stat| Duration::from_secs(stat.ended_ticks) / ticks_per_second());
    ended + cpu_time(&descendants(of))
}

/// Every descendant of a process.
pub(crate) fn descendants(of: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(stat) = stat(pid) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut next = vec![of];
    while let Some(pid) = next.pop() {
        let below = children.remove(&pid).unwrap_or_default();
        found.extend(&below);
        next.extend(below);
    }
    found
}

struct Stat {
    parent: u32,
    ticks: u64,
    /// Ticks of children that were waited for.
    ended_ticks: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Parses fields as in `proc_pid_stat(5)`. The name in parentheses may hold anything, so its end is searched from the right.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, after_name) = text.rsplit_once(')')?;
    // The first is field 3, the state.
    let fields: Vec<_> = after_name.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        parent: u32::try_from(number(4)?).ok()?,
        ticks: number(14)? + number(15)?,
        ended_ticks: number(16)? + number(17)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_line_is_parsed_whatever_the_program_is_called() {
        let line = "42 (a) S 1 (x) R 7 42 42 0 -1 4194560 1 0 0 0 150 50 9 9 20 0 1 0 100";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.parent, stat.ticks, stat.ended_ticks), (7, 200, 18));
        assert!(parse_stat("42 (short) R 7").is_none());
    }

    #[test]
    fn usage_of_a_process_and_its_child_is_read() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let own = std::process::id();
        let is_seen = descendants(own).contains(&child.id());
        let memory = memory(&[own, child.id()]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_seen);
        assert_eq!(memory.processes, 2);
        assert!(memory.rss_bytes > 1024 * 1024 && memory.pss_bytes.unwrap() <= memory.rss_bytes, "{memory:?}");
        let (fine, coarse) = (of_threads(own).unwrap_or_default(), of_process(own).unwrap());
        assert!(cpu_time(&[own]) > Duration::ZERO && fine < coarse + Duration::from_secs(5), "{fine:?} {coarse:?}");
        assert!(!descendants(own).contains(&child.id()));
        assert!(open_files(own).unwrap() > 2);
    }
}
