//! The figures of one route at one load.

use std::time::Duration;

use serde::Serialize;

use super::{Load, Route, Start};
use crate::support::{
    closed_loop::Tally,
    latency::LatencySummary,
    report::{TurnFigures, ms_per_turn},
};

/// A route at a load.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RoutePoint {
    pub route: Route,
    pub start: Start,
    pub sessions: usize,
    /// Pause of the simulated model in each turn.
    pub model_ms: f64,
    /// Measured time.
    pub seconds: f64,
    #[serde(flatten)]
    pub turns: TurnFigures,
    /// Time from the request to the agent's first update.
    pub first_update: LatencySummary,
    pub cpu_ms_per_turn: CpuPerTurn,
}

/// Processor time of one turn, user and system, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct CpuPerTurn {
    pub client: f64,
    pub supervisor: f64,
    pub runtime: f64,
    /// Includes the start and the end of agents.
    pub agents: f64,
}

impl CpuPerTurn {
    /// From the time of the client, the supervisor, the runtime and all agents.
    pub(super) fn new(used: [Duration; 4], turns: u64) -> Self {
        let [client, supervisor, runtime, agents] = used.map(|time| ms_per_turn(time, turns));
        Self { client, supervisor, runtime, agents }
    }
}

impl RoutePoint {
    pub(super) fn new(load: Load, measured: Duration, tally: &Tally, used: [Duration; 4]) -> Self {
        Self {
            route: load.route,
            start: load.start,
            sessions: load.sessions,
            model_ms: load.model.as_secs_f64() * 1e3,
            seconds: measured.as_secs_f64(),
            turns: TurnFigures::new(tally, measured),
            first_update: tally.first_updates.summary(),
            cpu_ms_per_turn: CpuPerTurn::new(used, tally.turns),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::support::report::{float, tests::turns as figures};

    /// A warm point of 5 s whose latencies are multiples of `ms`.
    pub(crate) fn point(route: Route, sessions: usize, ms: f64, turns: u64) -> RoutePoint {
        let figures = TurnFigures { turns, turns_per_second: float(turns) / 5.0, ..figures(ms) };
        RoutePoint {
            route,
            start: Start::Warm,
            sessions,
            model_ms: 0.0,
            seconds: 5.0,
            first_update: LatencySummary { p50_ms: ms / 2.0, ..figures.latency },
            turns: figures,
            cpu_ms_per_turn: CpuPerTurn::new([1, 2, 3, 4].map(Duration::from_secs), turns),
        }
    }

    #[test]
    fn processor_time_is_a_share_of_each_turn() {
        let cpu = point(Route::Acp, 1, 1.0, 1000).cpu_ms_per_turn;
        assert_eq!((cpu.client, cpu.supervisor, cpu.runtime, cpu.agents), (1.0, 2.0, 3.0, 4.0));
    }
}
