//! Comparison of ACP with HTTP, and with the targets (NFR-001).

use serde::Serialize;

use super::{Route, Start, point::RoutePoint};

/// Required: ACP halves the latency of a turn over HTTP and raises the throughput by 30 %.
pub(super) const GOAL: Target = Target { latency_percent: -50.0, throughput_percent: 30.0 };
/// Aimed at.
pub(super) const AIM: Target = Target { latency_percent: -80.0, throughput_percent: 200.0 };

/// A target, as changes in percent of the figures over HTTP.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    /// Change of the median latency, at most.
    pub latency_percent: f64,
    /// Change of the turns a second, at least.
    pub throughput_percent: f64,
}

/// Target that both figures reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Reached {
    Aim,
    Goal,
    Neither,
}

impl Reached {
    /// Name in the report.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Aim => "aim",
            Self::Goal => "goal",
            Self::Neither => "neither",
        }
    }
}

/// ACP compared with HTTP at the same load: changes in percent, negative for less.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Comparison {
    pub start: Start,
    pub sessions: usize,
    /// Pause of the simulated model in each turn.
    pub model_ms: f64,
    pub p50_percent: f64,
    pub p95_percent: f64,
    pub p99_percent: f64,
    /// Change of the median time to the agent's first update.
    pub first_update_percent: f64,
    pub throughput_percent: f64,
    pub reached: Reached,
}

/// Compares each point over ACP with the point over HTTP at the same load, where both have turns.
pub(super) fn compare(points: &[RoutePoint]) -> Vec<Comparison> {
    let of = |route: Route| points.iter().filter(move |point| point.route == route && point.turns.turns > 0);
    let pair = |acp: &RoutePoint| {
        let load = |point: &RoutePoint| (point.start, point.sessions, point.model_ms.to_bits());
        of(Route::Http).find(|http| load(http) == load(acp)).map(|http| comparison(acp, http))
    };
    of(Route::Acp).filter_map(pair).collect()
}

fn comparison(acp: &RoutePoint, http: &RoutePoint) -> Comparison {
    let p50_percent = change(acp.turns.latency.p50_ms, http.turns.latency.p50_ms);
    let throughput_percent = change(acp.turns.turns_per_second, http.turns.turns_per_second);
    let reaches =
        |target: Target| p50_percent <= target.latency_percent && throughput_percent >= target.throughput_percent;
    Comparison {
        start: acp.start,
        sessions: acp.sessions,
        model_ms: acp.model_ms,
        p50_percent,
        p95_percent: change(acp.turns.latency.p95_ms, http.turns.latency.p95_ms),
        p99_percent: change(acp.turns.latency.p99_ms, http.turns.latency.p99_ms),
        first_update_percent: change(acp.first_update.p50_ms, http.first_update.p50_ms),
        throughput_percent,
        reached: match (reaches(AIM), reaches(GOAL)) {
            (true, _) => Reached::Aim,
            (_, true) => Reached::Goal,
            _ => Reached::Neither,
        },
    }
}

/// Change in percent; 0 without a figure over HTTP.
fn change(acp: f64, http: f64) -> f64 {
    if http > 0.0 { (acp - http) * 100.0 / http } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::{super::point::tests::point, *};

    #[test]
    fn changes_are_percents_of_http_and_a_target_needs_both_figures() {
        let http = point(Route::Http, 10, 10.0, 1000);
        for (ms, turns, p50, throughput, reached) in [
            (2.0, 3000, -80.0, 200.0, Reached::Aim),
            (2.0, 2999, -80.0, 199.9, Reached::Goal),
            (5.0, 1300, -50.0, 30.0, Reached::Goal),
            (5.1, 1300, -49.0, 30.0, Reached::Neither),
            (1.0, 1299, -90.0, 29.9, Reached::Neither),
            (20.0, 500, 100.0, -50.0, Reached::Neither),
        ] {
            let compared = compare(&[point(Route::Acp, 10, ms, turns), http.clone()]);
            let [found] = compared.as_slice() else { panic!("{compared:?}") };
            assert!((found.p50_percent - p50).abs() < 0.01, "{found:?}");
            assert!((found.p99_percent - p50).abs() < 0.01 && (found.first_update_percent - p50).abs() < 0.01);
            assert!((found.throughput_percent - throughput).abs() < 0.01, "{found:?}");
            assert_eq!(found.reached, reached, "{found:?}");
        }
    }

    #[test]
    fn only_points_with_the_same_load_and_with_turns_are_compared() {
        let (acp, http) = (point(Route::Acp, 10, 1.0, 10), point(Route::Http, 10, 1.0, 10));
        assert_eq!(compare(&[acp.clone(), http.clone()]).len(), 1);
        let others = [
            point(Route::Http, 11, 1.0, 10),
            point(Route::Http, 10, 1.0, 0),
            RoutePoint { start: Start::Cold, ..http.clone() },
            RoutePoint { model_ms: 50.0, ..http },
        ];
        assert!(compare(&[&[acp], &others[..]].concat()).is_empty());
    }
}
