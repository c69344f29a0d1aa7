//! The processes of a group, wherever they have moved: found by parentage, by their mark, and in the group's control group.

use std::{collections::HashSet, fs, path::Path, sync::Arc, time::Duration};

use super::{
    orphans::{Mark, mark_of},
    tree::Tree,
};

/// Finds the processes of one group. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Members {
    pub(super) leader: u32,
    pub(super) mark: Mark,
    /// The directory of its control group, if it has one.
    pub(super) control_group: Option<Arc<Path>>,
}

impl Members {
    /// Counts the processes of the group that started within `age` and still run, apart from the group's leader. Blocks
    /// while it reads `/proc`.
    pub(crate) fn younger_than(&self, age: Duration) -> usize {
        let Some(since) = ticks_of_now().map(|now| now.saturating_sub(ticks(age))) else { return 0 };
        let in_group = self.in_control_group();
        let leader = HashSet::from([self.leader]);
        let tree = Tree::read();
        let is_member = |pid: u32| {
            tree.descends(pid, &leader)
                || in_group.contains(&pid)
                || mark_of(pid).is_some_and(|(run, group)| self.mark.is(&run, group))
        };
        let young = tree.processes.iter().filter(|(_, stat)| !stat.zombie && stat.started >= since);
        young.filter(|(pid, _)| **pid != self.leader && is_member(**pid)).count()
    }

    fn in_control_group(&self) -> HashSet<u32> {
        let Some(folder) = &self.control_group else { return HashSet::new() };
        let listed = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
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
