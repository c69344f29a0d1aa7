//! What was measured, as values; the JSON of `--json` is these.

use std::time::Duration;

use serde::Serialize;

use super::{
    RoutePlan,
    compare::{Comparison, compare},
    point::RoutePoint,
};
use crate::bench::{conversation::BenchError, facts::Facts};

/// A whole run.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RouteReport {
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

/// What could not be measured; points of it that were are in the report.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Unmeasured {
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
    pub(crate) fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{super::point::tests::point, *};
    use crate::{bench::open_files::OpenFiles, domain::routing::Route};

    /// A report with both routes at ten sessions, one at a hundred, and something that was not measured.
    pub(crate) fn sample() -> RouteReport {
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
    }
}
