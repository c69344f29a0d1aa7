//! Limits of what an agent uses, which control groups enforce.

use crate::domain::words::words;

words! {
    /// A controller of control groups (cgroup v2).
    Controller {
        /// Number of processes and threads.
        Pids = "pids",
        /// Memory, with caches of files and without swap.
        Memory = "memory",
        /// CPU time.
        Cpu = "cpu",
    }
}

/// Period in which CPU time is limited, in microseconds: the default of the kernel.
const CPU_PERIOD_US: u64 = 100_000;

/// Limits of one agent process with everything that it starts, and the same again of each terminal command. 0: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ResourceLimits {
    /// Processes and threads.
    pub processes: u64,
    pub memory_bytes: u64,
    /// CPU time in percent of one core.
    pub cpu_percent: u64,
}

impl ResourceLimits {
    /// The files of a control group, with their contents, that set the limits which are not 0.
    pub(crate) fn files(self) -> impl Iterator<Item = (Controller, &'static str, String)> {
        let cpu = self.cpu_percent.saturating_mul(CPU_PERIOD_US / 100);
        let all = [
            (Controller::Pids, "pids.max", self.processes, self.processes.to_string()),
            (Controller::Memory, "memory.max", self.memory_bytes, self.memory_bytes.to_string()),
            (Controller::Cpu, "cpu.max", self.cpu_percent, format!("{cpu} {CPU_PERIOD_US}")),
        ];
        all.into_iter()
            .filter(|(_, _, limit, _)| *limit != 0)
            .map(|(controller, file, _, text)| (controller, file, text))
    }
}

/// The state of control groups on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ControlGroupState {
    /// True if each agent gets a control group.
    pub is_allowed: bool,
    /// The controllers that limit agents.
    pub controllers: Vec<Controller>,
}

impl ControlGroupState {
    /// The state of each mechanism by name: `processes` for the end of all processes with the agent, and the controllers.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&'static str, bool)> {
        let controllers = Controller::ALL.into_iter();
        let controllers = controllers.map(|controller| (controller.as_str(), self.controllers.contains(&controller)));
        [("processes", self.is_allowed)].into_iter().chain(controllers)
    }

    /// The limit that an administrator set and that has no effect here, as a sentence. The default limit of processes is
    /// none of them.
    pub(crate) fn warning(&self, limits: impl IntoIterator<Item = ResourceLimits>) -> Option<&'static str> {
        let is_set = |of: fn(ResourceLimits) -> u64, controller| {
            move |limits: &ResourceLimits| of(*limits) != 0 && !self.controllers.contains(&controller)
        };
        let memory = is_set(|it| it.memory_bytes, Controller::Memory);
        let cpu = is_set(|it| it.cpu_percent, Controller::Cpu);
        let has_no_effect = limits.into_iter().any(|limits| memory(&limits) || cpu(&limits));
        has_no_effect.then_some(
            "no control group with the controllers memory and cpu can be made here: `agent.max_memory_bytes` and \
             `agent.max_cpu_percent` have no effect",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_limits_that_are_set_are_written() {
        let limits = ResourceLimits { processes: 512, memory_bytes: 0, cpu_percent: 150 };
        let files: Vec<_> = limits.files().map(|(_, file, text)| format!("{file}={text}")).collect();
        assert_eq!(files, ["pids.max=512", "cpu.max=150000 100000"]);
        assert_eq!(ResourceLimits::default().files().count(), 0);
    }

    #[test]
    fn limits_without_their_controller_are_reported() {
        let none = ControlGroupState { is_allowed: true, controllers: vec![Controller::Pids] };
        let limits = |memory_bytes, cpu_percent| [ResourceLimits { processes: 512, memory_bytes, cpu_percent }];
        assert!(none.warning(limits(0, 0)).is_none());
        assert!(none.warning(limits(1, 0)).is_some() && none.warning(limits(0, 1)).is_some());
        let all = ControlGroupState { is_allowed: true, controllers: Controller::ALL.into_iter().collect() };
        assert!(all.warning(limits(1, 1)).is_none());
        let named: Vec<_> = none.named().collect();
        assert_eq!(named, [("processes", true), ("pids", true), ("memory", false), ("cpu", false)]);
    }
}
