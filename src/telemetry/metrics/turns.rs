//! Metrics of turns, by agent.

use std::{sync::Arc, time::Duration};

use parking_lot::RwLock;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};

use super::family::Family;
use crate::{
    domain::{routing::Route, turn::TurnOutcome},
    telemetry::labels::RouteOutcome,
};

/// Buckets in seconds, from the fastest turn of the demo agent to a turn of an hour; close together where agents take
/// most of their time.
pub(in crate::telemetry) const TURN_BUCKETS: [f64; 19] = [
    0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0,
    3600.0,
];
/// Agents that get series of their own although the configuration does not name them: those of a separate runtime.
const MAX_LEARNED: usize = 32;
/// Label of agents beyond [`MAX_LEARNED`].
const OTHER: &str = "other";

/// Turns, with the configured name of their agent as a label. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::telemetry) struct Turns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: IntCounterVec,
    ended: IntCounterVec,
    duration: HistogramVec,
    agents: RwLock<Agents>,
}

#[derive(Debug, Default)]
struct Agents {
    known: Vec<(String, Arc<Series>)>,
    learned: usize,
}

/// The series of one agent.
#[derive(Debug)]
pub(in crate::telemetry) struct Series {
    started: Family<Route, IntCounter>,
    ended: Family<RouteOutcome, IntCounter>,
    duration: Family<Route, Histogram>,
}

impl Turns {
    pub(in crate::telemetry) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counters = |name, help, labels: &[&str]| -> prometheus::Result<IntCounterVec> {
            let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok(vec)
        };
        let duration =
            HistogramOpts::new("lumilink_turn_duration_seconds", "Time from the acceptance of a turn to its end.");
        let duration = HistogramVec::new(duration.buckets(TURN_BUCKETS.to_vec()), &["agent", "route"])?;
        registry.register(Box::new(duration.clone()))?;
        Ok(Self(Arc::new(Inner {
            started: counters("lumilink_turns_started_total", "Turns that started.", &["agent", "route"])?,
            ended: counters(
                "lumilink_turns_ended_total",
                "Turns that ended. Each started turn ends exactly once.",
                &["agent", "route", "outcome"],
            )?,
            duration,
            agents: RwLock::default(),
        })))
    }

    /// Makes the series of a configured agent, counters at 0.
    pub(in crate::telemetry) fn configure(&self, agent: &str) -> prometheus::Result<()> {
        let mut agents = self.0.agents.write();
        if agents.find(agent).is_none() {
            let series = self.0.series(agent)?;
            agents.known.push((agent.to_owned(), Arc::new(series)));
        }
        Ok(())
    }

    /// The series of an agent. An agent that is not configured gets its own until there are [`MAX_LEARNED`] of them, and
    /// then those of [`OTHER`].
    fn of(&self, agent: &str) -> Option<Arc<Series>> {
        if let Some(series) = self.0.agents.read().find(agent) {
            return Some(series);
        }
        let mut agents = self.0.agents.write();
        if let Some(series) = agents.find(agent) {
            return Some(series);
        }
        let name = if agents.learned < MAX_LEARNED { agent } else { OTHER };
        if let Some(series) = agents.find(name) {
            return Some(series);
        }
        let series = Arc::new(self.0.series(name).ok()?);
        agents.known.push((name.to_owned(), series.clone()));
        agents.learned += 1;
        Some(series)
    }

    pub(in crate::telemetry) fn started(&self, agent: &str, route: Route) {
        if let Some(series) = self.of(agent) {
            series.started.add(route, 1);
        }
    }

    pub(in crate::telemetry) fn ended(&self, agent: &str, route: Route, outcome: &TurnOutcome, duration: Duration) {
        let Some(series) = self.of(agent) else { return };
        series.ended.add(RouteOutcome { route, outcome: outcome.label() }, 1);
        if let Some(histogram) = series.duration.get(route) {
            histogram.observe(duration.as_secs_f64());
        }
    }

    /// Started turns of all agents.
    pub(in crate::telemetry) fn count_started(&self, route: Route) -> u64 {
        let agents = self.0.agents.read();
        agents.known.iter().filter_map(|(_, series)| series.started.get(route)).map(IntCounter::get).sum()
    }

    /// Turns of all agents that ended with this outcome.
    pub(in crate::telemetry) fn count_ended(&self, route: Route, outcome: &'static str) -> u64 {
        let label = RouteOutcome { route, outcome };
        let agents = self.0.agents.read();
        agents.known.iter().filter_map(|(_, series)| series.ended.get(label)).map(IntCounter::get).sum()
    }
}

impl Agents {
    fn find(&self, agent: &str) -> Option<Arc<Series>> {
        self.known.iter().find(|(name, _)| name == agent).map(|(_, series)| series.clone())
    }
}

impl Inner {
    fn series(&self, agent: &str) -> prometheus::Result<Series> {
        let with = |values: &[&str]| -> Vec<String> {
            std::iter::once(agent).chain(values.iter().copied()).map(str::to_owned).collect()
        };
        Ok(Series {
            started: Family::make(|values| self.started.get_metric_with_label_values(&with(values)))?,
            ended: Family::make(|values| self.ended.get_metric_with_label_values(&with(values)))?,
            duration: Family::make(|values| self.duration.get_metric_with_label_values(&with(values)))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_beyond_the_bound_share_one_label() {
        let registry = Registry::new();
        let turns = Turns::new(&registry).unwrap();
        turns.configure("configured").unwrap();
        for agent in 0..10_000 {
            turns.started(&format!("agent-{agent}"), Route::Acp);
        }
        turns.started("configured", Route::Acp);
        assert_eq!(turns.count_started(Route::Acp), 10_001, "none is lost");
        assert_eq!(turns.0.agents.read().known.len(), MAX_LEARNED + 2, "and no label is added");
    }
}
