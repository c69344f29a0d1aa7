//! The processes of a group, wherever they have moved: found by their mark, and in the group's control group.

use std::{collections::HashSet, fs, time::Duration};

use super::orphans::{Mark, mark_of, stat};

/// Finds the processes of one group. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Members {
    pub(super) leader: u32,
    pub(super) mark: Mark,
}

impl Members {
    /// Counts the processes of the group that started within `age` and still run, apart from the group's leader. Blocks
    /// while it reads `/proc`. A process that has cleared its environment is counted only with a control group.
    pub(crate) fn younger_than(&self, age: Duration) -> usize {
        let Some(since) = ticks_of_now().map(|now| now.saturating_sub(ticks(age))) else { return 0 };
        let in_group: HashSet<u32> = self.in_control_group().into_iter().collect();
        let is_member =
            |pid: &u32| in_group.contains(pid) || mark_of(*pid).is_some_and(|(run, group)| self.mark.is(&run, group));
        let Ok(processes) = fs::read_dir("/proc") else { return 0 };
        processes
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| *pid != self.leader)
            .filter(|pid| stat(*pid).is_some_and(|stat| !stat.zombie && stat.started >= since))
            .filter(is_member)
            .count()
    }

    /// The processes in the leader's control group, if it is one of this program.
    fn in_control_group(&self) -> Vec<u32> {
        let own = fs::read_to_string(format!("/proc/{}/cgroup", self.leader)).unwrap_or_default();
        let Some(folder) = own.lines().find_map(|line| line.strip_prefix("0::")) else { return Vec::new() };
        if !folder.ends_with(&format!("/{}", self.mark.group())) || !folder.contains(self.mark.run()) {
            return Vec::new();
        }
        let listed = fs::read_to_string(format!("/sys/fs/cgroup{folder}/cgroup.procs")).unwrap_or_default();
        listed.lines().filter_map(|pid| pid.parse().ok()).collect()
    }
}

/// The time since the boot, in the unit of a process's start time.
fn ticks_of_now() -> Option<u64> {
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = uptime.split_ascii_whitespace().next()?.parse().ok()?;
    Some(ticks(Duration::from_secs_f64(seconds)))
}

fn ticks(time: Duration) -> u64 {
    // SAFETY: a system call without pointers.
    let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100);
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 1000).saturating_mul(per_second) / 1000
}
