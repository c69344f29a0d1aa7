//! One route at one load: what was measured there.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::{Load, Start};
use crate::{
    bench::{closed_loop::Tally, latency::LatencySummary},
    domain::routing::Route,
};

/// A route at a load.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RoutePoint {
    /// The route.
    pub route: Route,
    /// Whether each turn had a new session.
    pub start: Start,
    /// Concurrent sessions.
    pub sessions: usize,
    /// How long the agent pretended to think in each turn.
    pub model_ms: f64,
    /// How long was counted.
    pub seconds: f64,
    /// Turns that completed within that time.
    pub turns: u64,
    /// The same by time.
    pub turns_per_second: f64,
    /// From the request to the result, of the turns that began within that time.
    pub latency: LatencySummary,
    /// From the request to the agent's first word.
    pub first_update: LatencySummary,
    /// Turns that failed, warm-up included.
    pub errors: u64,
    /// What the first different ones said, and how often.
    pub error_samples: BTreeMap<String, u64>,
    /// Sessions that were lost.
    pub sessions_lost: u64,
    /// Processor time, user and system, in milliseconds for one turn.
    pub cpu_ms_per_turn: CpuPerTurn,
}

/// Processor time for one turn, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct CpuPerTurn {
    /// Of the load client.
    pub client: f64,
    /// Of the supervisor.
    pub supervisor: f64,
    /// Of the runtime.
    pub runtime: f64,
    /// Of the agents, their start and their end included.
    pub agents: f64,
}

/// Processor time, as it was read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Processors {
    /// Of the load client.
    pub client: Duration,
    /// Of the supervisor.
    pub supervisor: Duration,
    /// Of the runtime.
    pub runtime: Duration,
    /// Of all agents, those that have ended included.
    pub agents: Duration,
}

impl Processors {
    /// What was used between two readings.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            client: self.client.saturating_sub(before.client),
            supervisor: self.supervisor.saturating_sub(before.supervisor),
            runtime: self.runtime.saturating_sub(before.runtime),
            agents: self.agents.saturating_sub(before.agents),
        }
    }

    fn per_turn(self, turns: u64) -> CpuPerTurn {
        let of = |time: Duration| if turns == 0 { 0.0 } else { time.as_secs_f64() * 1e3 / float(turns) };
        CpuPerTurn {
            client: of(self.client),
            supervisor: of(self.supervisor),
            runtime: of(self.runtime),
            agents: of(self.agents),
        }
    }
}

impl RoutePoint {
    pub(super) fn new(load: Load, measured: Duration, tally: &Tally, processors: Processors) -> Self {
        Self {
            route: load.route,
            start: load.start,
            sessions: load.sessions,
            model_ms: load.model.as_secs_f64() * 1e3,
            seconds: measured.as_secs_f64(),
            turns: tally.turns,
            turns_per_second: float(tally.turns) / measured.as_secs_f64(),
            latency: tally.latencies.summary(),
            first_update: tally.first_updates.summary(),
            errors: tally.errors,
            error_samples: tally.error_samples.clone(),
            sessions_lost: tally.sessions_lost,
            cpu_ms_per_turn: processors.per_turn(tally.turns),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with a few digits")]
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A point whose every latency is a multiple of `ms`.
    pub(crate) fn point(route: Route, sessions: usize, ms: f64, turns: u64) -> RoutePoint {
        let latency =
            LatencySummary { p50_ms: ms, p95_ms: ms * 2.0, p99_ms: ms * 3.0, max_ms: ms * 4.0, mean_ms: ms };
        let processors = Processors {
            client: Duration::from_secs(1),
            supervisor: Duration::from_secs(2),
            runtime: Duration::from_secs(3),
            agents: Duration::from_secs(4),
        };
        RoutePoint {
            route,
            start: Start::Warm,
            sessions,
            model_ms: 0.0,
            seconds: 5.0,
            turns,
            turns_per_second: float(turns) / 5.0,
            latency,
            first_update: LatencySummary { p50_ms: ms / 2.0, ..latency },
            errors: 1,
            error_samples: BTreeMap::from([("status 503".to_owned(), 1)]),
            sessions_lost: 0,
            cpu_ms_per_turn: processors.per_turn(turns),
        }
    }

    #[test]
    fn processor_time_is_a_share_of_each_turn() {
        let cpu = point(Route::Acp, 1, 1.0, 1000).cpu_ms_per_turn;
        assert_eq!((cpu.client, cpu.supervisor, cpu.runtime, cpu.agents), (1.0, 2.0, 3.0, 4.0));
        assert_eq!(Processors::default().per_turn(0).agents, 0.0);
    }
}
