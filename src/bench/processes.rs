//! What processes use, as the kernel tells it under `/proc`.

use std::{collections::BTreeMap, fs, time::Duration};

use serde::Serialize;

/// Memory of one or more processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Memory {
    /// How many processes.
    pub processes: usize,
    /// Resident set, in bytes. What several processes share, their program for instance, is counted in each.
    pub rss_bytes: u64,
    /// Proportional set, in bytes: what is shared is counted once in all. Absent where the kernel does not
    /// tell it.
    pub pss_bytes: Option<u64>,
}

/// Memory now. A process that has ended has none.
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

/// Processor time that processes have used so far, user and system. The kernel tells it of a process in steps
/// of 10 ms, of each thread to the nanosecond: an agent uses less than one step in many turns, so a thousand of
/// them would seem to use nothing.
pub(crate) fn cpu_time(pids: &[u32]) -> Duration {
    pids.iter().filter_map(|pid| of_threads(*pid).max(of_process(*pid))).sum()
}

/// Threads that have ended are not in it; in the time of the process they are.
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
    // SAFETY: it only asks for a constant of the system.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u32::try_from(ticks).ok().filter(|ticks| *ticks > 0).unwrap_or(100)
}

/// Open file descriptors of a process.
pub(crate) fn open_files(pid: u32) -> Option<usize> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

/// Processor time of what a process has started, in the whole: of what lives, and of what has ended and was waited
/// for, which the kernel tells in steps of 10 ms of the sum.
pub(crate) fn cpu_time_below(of: u32) -> Duration {
    let ended = stat(of).map_or(Duration::ZERO, |stat| Duration::from_secs(stat.ended_ticks) / ticks_per_second());
    ended + cpu_time(&descendants(of))
}

/// Every process that descends from this one, itself left out.
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
    /// Of children that were waited for.
    ended_ticks: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Fields as in proc_pid_stat(5): the name in parentheses may hold anything, so it is skipped from the end.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, after_name) = text.rsplit_once(')')?;
    // The first one is field 3, the state.
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
    fn a_stat_line_is_read_whatever_the_program_is_called() {
        let line = "42 (a) S 1 (x) R 7 42 42 0 -1 4194560 1 0 0 0 150 50 9 9 20 0 1 0 100";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.parent, stat.ticks, stat.ended_ticks), (7, 200, 18));
        assert!(parse_stat("42 (short) R 7").is_none());
    }

    #[test]
    fn a_process_is_seen_with_its_child_and_what_both_use() {
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
