//! What was measured, as values; the JSON of `--json` is these.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::{
    super::{closed_loop::Tally, conversation::BenchError, facts::Facts, latency::LatencySummary},
    Load, RoutePlan, Start,
    compare::{Comparison, compare},
};
use crate::domain::routing::Route;

/// A whole run.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteReport {
    /// On what.
    pub facts: Facts,
    /// By what command.
    pub command: Vec<String>,
    /// What stands for something else.
    pub mocked: &'static str,
    /// What every prompt said, the pause of the pretended model aside.
    pub prompt: String,
    /// What the figures need to be read with.
    pub warnings: Vec<String>,
    /// The points, in the order in which they were measured.
    pub points: Vec<RoutePoint>,
    /// ACP against HTTP, where both were measured.
    pub comparisons: Vec<Comparison>,
    /// What could not be measured.
    pub unmeasured: Vec<Unmeasured>,
    /// Lines of level ERROR in the logs of supervisors and runtimes.
    pub errors_logged: u64,
}

/// A route at a load.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RoutePoint {
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
pub struct CpuPerTurn {
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
pub struct Processors {
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
    pub fn since(self, before: Self) -> Self {
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

/// What could not be measured; points of it that were are in the report.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unmeasured {
    /// Concurrent sessions.
    pub sessions: usize,
    /// How long the agent was to pretend to think.
    pub model_ms: f64,
    /// Why.
    pub reason: String,
}

impl Unmeasured {
    pub(super) fn new(sessions: usize, model: Duration, cause: &BenchError) -> Self {
        Self { sessions, model_ms: model.as_secs_f64() * 1e3, reason: cause.to_string() }
    }
}

impl RouteReport {
    /// Makes a report without points.
    pub(super) fn new(facts: Facts, command: Vec<String>, plan: &RoutePlan) -> Self {
        let mut warnings = Vec::new();
        if facts.profile == "debug" {
            warnings.push("built without optimisation (debug): these figures say little; use --release".to_owned());
        }
        if facts.file_system == "tmpfs" {
            warnings.push("the database is on tmpfs, where a commit costs next to nothing; see --folder".to_owned());
        }
        Self {
            facts,
            command,
            mocked: "the agent: the built-in demo agent (over ACP one process a session, over HTTP one a turn); the \
                     model: a pause; the load: this process, on the same machine",
            prompt: plan.prompt.clone(),
            warnings,
            points: Vec::new(),
            comparisons: Vec::new(),
            unmeasured: Vec::new(),
            errors_logged: 0,
        }
    }

    /// Compares the routes where both were measured.
    pub(super) fn compare(&mut self) {
        self.comparisons = compare(&self.points);
    }

    /// For programs.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
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
    use crate::bench::open_files::OpenFiles;

    /// A point whose every latency is a multiple of `ms`.
    pub fn point(route: Route, sessions: usize, ms: f64, turns: u64) -> RoutePoint {
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

    /// A report with both routes at ten sessions, one at a hundred, and something that was not measured.
    pub fn sample() -> RouteReport {
        let facts = Facts {
            cores: 2,
            processor: "Example".into(),
            memory_bytes: 8 << 30,
            kernel: "6.1".into(),
            load_average: 0.5,
            file_system: "tmpfs".into(),
            open_files: OpenFiles { limit: 1024, hard_limit: 1024 },
            version: "0.1.0",
            commit: "abc".into(),
            profile: "debug",
        };
        let plan = RoutePlan {
            sessions: vec![10],
            models: vec![Duration::ZERO],
            measured: Duration::from_secs(5),
            prompt: "echo".into(),
            settings: Vec::new(),
            folder: None,
        };
        let mut report = RouteReport::new(facts, vec!["lumilink".into(), "bench".into(), "route".into()], &plan);
        report.points =
            vec![point(Route::Acp, 10, 1.0, 4000), point(Route::Http, 10, 8.0, 1000), point(Route::Acp, 100, 1.0, 1)];
        report.unmeasured.push(Unmeasured::new(100, Duration::ZERO, &BenchError::Trial("because".into())));
        report.errors_logged = 2;
        report.compare();
        report
    }

    #[test]
    fn json_has_every_point_with_its_shares_and_what_was_not_measured() {
        let json: serde_json::Value = serde_json::from_str(&sample().json()).unwrap();
        assert_eq!(json["points"].as_array().map(Vec::len), Some(3));
        let point = &json["points"][1];
        assert_eq!((&point["route"], &point["start"]), (&"http".into(), &"warm".into()));
        assert_eq!(point["firstUpdate"]["p50Ms"], 4.0);
        assert_eq!(point["cpuMsPerTurn"]["agents"], 4.0);
        assert_eq!(json["comparisons"].as_array().map(Vec::len), Some(1));
        assert_eq!(json["unmeasured"][0]["reason"], "because");
        assert_eq!(json["warnings"].as_array().map(Vec::len), Some(2));
        assert_eq!(Processors::default().per_turn(0).agents, 0.0);
    }
}
