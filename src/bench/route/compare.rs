//! ACP against HTTP, and both against what is wanted (NFR-001).

use serde::Serialize;

use super::{Start, point::RoutePoint};
use crate::domain::routing::Route;

/// What has to be reached: the latency of a turn over ACP less than over HTTP by half, and throughput more by 30 %.
pub(crate) const GOAL: Wanted = Wanted { latency_percent: -50.0, throughput_percent: 30.0 };
/// What is aimed at.
pub(crate) const AIM: Wanted = Wanted { latency_percent: -80.0, throughput_percent: 200.0 };

/// A change that is wanted, in percent of the HTTP route's figure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    /// Of the median latency; at most this.
    pub latency_percent: f64,
    /// Of the turns a second; at least this.
    pub throughput_percent: f64,
}

/// How far the change goes: both figures count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reached {
    /// What is aimed at.
    Aim,
    /// What has to be reached.
    Goal,
    /// Neither.
    Neither,
}

impl Reached {
    /// Its name in the report.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Aim => "aim",
            Self::Goal => "goal",
            Self::Neither => "neither",
        }
    }
}

/// ACP at a load, as a change from HTTP at the same load, in percent: below 0 is less.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Comparison {
    /// Whether each turn had a new session.
    pub start: Start,
    /// Concurrent sessions.
    pub sessions: usize,
    /// How long the agent pretended to think in each turn.
    pub model_ms: f64,
    /// Of the median latency.
    pub p50_percent: f64,
    /// Of the 95th percentile.
    pub p95_percent: f64,
    /// Of the 99th percentile.
    pub p99_percent: f64,
    /// Of the median time to the agent's first word.
    pub first_update_percent: f64,
    /// Of the turns a second.
    pub throughput_percent: f64,
    /// How far that goes.
    pub reached: Reached,
}

/// Compares every point over ACP with the one over HTTP at the same load, where both had turns.
pub(crate) fn compare(points: &[RoutePoint]) -> Vec<Comparison> {
    let of = |route: Route| points.iter().filter(move |point| point.route == route && point.turns > 0);
    let pair = |acp: &RoutePoint| {
        let load = |point: &RoutePoint| (point.start, point.sessions, point.model_ms.to_bits());
        of(Route::Http).find(|http| load(http) == load(acp)).map(|http| comparison(acp, http))
    };
    of(Route::Acp).filter_map(pair).collect()
}

fn comparison(acp: &RoutePoint, http: &RoutePoint) -> Comparison {
    let p50_percent = change(acp.latency.p50_ms, http.latency.p50_ms);
    let throughput_percent = change(acp.turns_per_second, http.turns_per_second);
    let reaches =
        |wanted: Wanted| p50_percent <= wanted.latency_percent && throughput_percent >= wanted.throughput_percent;
    Comparison {
        start: acp.start,
        sessions: acp.sessions,
        model_ms: acp.model_ms,
        p50_percent,
        p95_percent: change(acp.latency.p95_ms, http.latency.p95_ms),
        p99_percent: change(acp.latency.p99_ms, http.latency.p99_ms),
        first_update_percent: change(acp.first_update.p50_ms, http.first_update.p50_ms),
        throughput_percent,
        reached: match (reaches(AIM), reaches(GOAL)) {
            (true, _) => Reached::Aim,
            (_, true) => Reached::Goal,
            _ => Reached::Neither,
        },
    }
}

/// 0 where there is nothing to compare with.
fn change(acp: f64, http: f64) -> f64 {
    if http > 0.0 { (acp - http) * 100.0 / http } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::{super::point::tests::point, *};

    #[test]
    fn the_change_is_told_in_percent_of_http_and_both_figures_have_to_reach() {
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
    fn only_the_same_load_is_compared_and_only_where_there_were_turns() {
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
