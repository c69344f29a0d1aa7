//! The figures of all points, as values and as text.

use std::{fmt::Write, time::Duration};

use serde::Serialize;

use super::{
    compare::{AIM, Comparison, GOAL, compare},
    point::RoutePoint,
};
use crate::support::{
    conversation::BenchError,
    facts::Facts,
    report::{Report, TurnFigures},
};

/// Figures of a run.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RouteReport {
    /// Without the pause of the simulated model.
    prompt: String,
    /// In the order in which they were measured.
    points: Vec<RoutePoint>,
    /// ACP compared with HTTP, where both were measured.
    comparisons: Vec<Comparison>,
    unmeasured: Vec<Unmeasured>,
    /// Lines of level ERROR in the logs of supervisors and runtimes.
    errors_logged: u64,
}

/// A load that could not be measured completely; the report has its points that were.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Unmeasured {
    sessions: usize,
    model_ms: f64,
    reason: String,
}

impl Unmeasured {
    pub(super) fn new(sessions: usize, model: Duration, cause: &BenchError) -> Self {
        Self { sessions, model_ms: model.as_secs_f64() * 1e3, reason: cause.to_string() }
    }
}

impl RouteReport {
    pub(super) fn new(
        prompt: String,
        points: Vec<RoutePoint>,
        unmeasured: Vec<Unmeasured>,
        errors_logged: u64,
    ) -> Self {
        Self { prompt, comparisons: compare(&points), points, unmeasured, errors_logged }
    }

    fn turns(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "\nA turn\n{:<5}{:<6}{:>9}{:>10}{:>7}{:>9}{:>9}{:>9}{:>9}{:>12}{:>8}",
            "", "", "sessions", "model ms", "turns", "turns/s", "p50 ms", "p95 ms", "p99 ms", "1st upd. ms", "errors"
        );
        for point in &self.points {
            let TurnFigures { turns, turns_per_second, latency, errors, .. } = &point.turns;
            let _ = writeln!(
                out,
                "{}{turns:>7}{turns_per_second:>9.1}{:>9.2}{:>9.2}{:>9.2}{:>12.2}{errors:>8}",
                load_of(point),
                latency.p50_ms,
                latency.p95_ms,
                latency.p99_ms,
                point.first_update.p50_ms,
            );
        }
    }

    fn processors(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "\nProcessor time, ms a turn\n{:<11}{:>9}{:>10}{:>12}{:>9}{:>9}{:>9}",
            "", "sessions", "model ms", "supervisor", "runtime", "agents", "client"
        );
        for point in &self.points {
            let cpu = &point.cpu_ms_per_turn;
            let _ = writeln!(
                out,
                "{}{:>12.3}{:>9.3}{:>9.3}{:>9.3}",
                load_of(point),
                cpu.supervisor,
                cpu.runtime,
                cpu.agents,
                cpu.client
            );
        }
    }

    fn compared(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "\nACP compared with HTTP, %; goal: p50 {:+.0}, turns/s {:+.0}; aim: {:+.0}, {:+.0}\n\
             {:<6}{:>9}{:>10}{:>9}{:>9}{:>9}{:>10}{:>9}  reached",
            GOAL.latency_percent,
            GOAL.throughput_percent,
            AIM.latency_percent,
            AIM.throughput_percent,
            "",
            "sessions",
            "model ms",
            "p50",
            "p95",
            "p99",
            "1st upd.",
            "turns/s"
        );
        for it in &self.comparisons {
            let _ = writeln!(
                out,
                "{:<6}{:>9}{:>10.0}{:>+9.1}{:>+9.1}{:>+9.1}{:>+10.1}{:>+9.1}  {}",
                it.start.as_str(),
                it.sessions,
                it.model_ms,
                it.p50_percent,
                it.p95_percent,
                it.p99_percent,
                it.first_update_percent,
                it.throughput_percent,
                it.reached.as_str()
            );
        }
    }

    fn errors(&self, out: &mut String) {
        for point in &self.points {
            let TurnFigures { errors, sessions_lost, .. } = &point.turns;
            if errors + sessions_lost > 0 {
                let load = load_of(point);
                let _ = writeln!(out, "\nErrors: {load}: {errors} turns failed, {sessions_lost} sessions lost");
                point.turns.write_samples(out);
            }
        }
        for Unmeasured { sessions, model_ms, reason } in &self.unmeasured {
            let _ = writeln!(out, "\nIncomplete: {sessions} sessions, model {model_ms:.0} ms: {reason}");
        }
        let _ = writeln!(out, "\nLines of level ERROR logged: {}", self.errors_logged);
    }
}

impl Report for RouteReport {
    fn text(&self, _: &Facts) -> String {
        let mut out = format!(
            "prompt    {}\n\
             load      closed loop from one thread of this machine, answers as streams of events; warm-up not counted;\n\
             \x20         supervisor and runtime in processes of their own\n\
             cold      a new session and its first turn count as one; closing the session is not counted\n\
             warm      a turn of an open session\n",
            self.prompt
        );
        self.turns(&mut out);
        self.processors(&mut out);
        self.compared(&mut out);
        self.errors(&mut out);
        out
    }

    fn is_complete(&self) -> bool {
        self.unmeasured.is_empty()
    }
}

/// The first columns of a point: 30 characters.
fn load_of(point: &RoutePoint) -> String {
    format!("{:<5}{:<6}{:>9}{:>10.0}", point.route.as_str(), point.start.as_str(), point.sessions, point.model_ms)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Route, point::tests::point},
        *,
    };

    /// Both routes at ten sessions, one at a hundred, and a load that was not measured.
    fn sample() -> RouteReport {
        let points =
            vec![point(Route::Acp, 10, 1.0, 4000), point(Route::Http, 10, 8.0, 1000), point(Route::Acp, 100, 1.0, 1)];
        let missing = Unmeasured::new(100, Duration::ZERO, &BenchError::Trial("because".into()));
        RouteReport::new("echo".into(), points, vec![missing], 2)
    }

    #[test]
    fn json_has_every_point_with_its_shares_and_the_unmeasured_ones() {
        let json = serde_json::to_value(sample()).unwrap();
        assert_eq!(json["points"].as_array().map(Vec::len), Some(3));
        let point = &json["points"][1];
        assert_eq!((&point["route"], &point["start"]), (&"http".into(), &"warm".into()));
        assert_eq!(point["firstUpdate"]["p50Ms"], 4.0);
        assert_eq!(point["cpuMsPerTurn"]["agents"], 4.0);
        assert_eq!(json["comparisons"].as_array().map(Vec::len), Some(1));
        assert_eq!(json["unmeasured"][0]["reason"], "because");
    }

    #[test]
    fn text_has_all_figures_and_all_errors() {
        let text = sample().text(&Facts::sample());
        for expected in [
            "acp  warm         10         0   4000    800.0     1.00     2.00     3.00        0.50       1",
            "http warm         10         0       2.000    3.000    4.000    1.000",
            "goal: p50 -50, turns/s +30; aim: -80, +200",
            "warm         10         0    -87.5    -87.5    -87.5     -87.5   +300.0  aim",
            "1 turns failed, 0 sessions lost\n  1 times: status 503",
            "Incomplete: 100 sessions, model 0 ms: because",
            "Lines of level ERROR logged: 2",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
        }
        assert!(!sample().is_complete());
    }
}
