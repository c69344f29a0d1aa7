//! Metrics of routes: outcomes, flips, probes, workspaces, migrations.

use std::time::Instant;

use parking_lot::Mutex;
use prometheus::{Counter, IntCounter, IntGauge};

use super::family::{Family, Maker};
use crate::{
    domain::routing::{FlipTrigger, Route, success_window::Sample},
    telemetry::labels::Label,
};

#[derive(Debug)]
pub(crate) struct RouteMetrics {
    outcomes: Family<Outcome, IntCounter>,
    flips: Family<Flipped, IntCounter>,
    probes: Family<Sample, IntCounter>,
    workspaces: Family<Route, IntGauge>,
    workspace_seconds: Family<Route, Counter>,
    /// The time up to which `workspace_seconds` is counted.
    counted_until: Mutex<Instant>,
    actors: IntGauge,
    both_failing: IntCounter,
    session_fallbacks: IntCounter,
    storm: IntGauge,
    migrated: Family<MigrationStep, IntCounter>,
}

/// Outcome of a step of a migration for a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MigrationStep {
    Moved,
    MovedBack,
    Skipped,
    /// Moving it or moving it back failed.
    Failed,
}

impl Label for MigrationStep {
    fn all() -> Vec<Self> {
        vec![Self::Moved, Self::MovedBack, Self::Skipped, Self::Failed]
    }

    fn values(&self) -> Vec<&'static str> {
        vec![match self {
            Self::Moved => "moved",
            Self::MovedBack => "movedBack",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
        }]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outcome {
    protocol: Route,
    sample: Sample,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flipped {
    to: Route,
    trigger: FlipTrigger,
}

fn name(sample: Sample) -> &'static str {
    match sample {
        Sample::Success => "success",
        Sample::Failure => "failure",
    }
}

impl Label for Sample {
    fn all() -> Vec<Self> {
        vec![Self::Success, Self::Failure]
    }

    fn values(&self) -> Vec<&'static str> {
        vec![name(*self)]
    }
}

impl Label for Outcome {
    fn all() -> Vec<Self> {
        let of = |protocol| Sample::all().into_iter().map(move |sample| Self { protocol, sample });
        Route::ALL.into_iter().flat_map(of).collect()
    }

    fn values(&self) -> Vec<&'static str> {
        vec![self.protocol.as_str(), name(self.sample)]
    }
}

impl Label for Flipped {
    fn all() -> Vec<Self> {
        let of = |to| FlipTrigger::ALL.into_iter().map(move |trigger| Self { to, trigger });
        Route::ALL.into_iter().flat_map(of).collect()
    }

    fn values(&self) -> Vec<&'static str> {
        vec![self.to.as_str(), self.trigger.as_str()]
    }
}

impl RouteMetrics {
    pub(crate) fn new(make: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            outcomes: make.counters(
                "lumilink_outcomes_total",
                "Outcomes recorded in success windows, by route of the turn. Only those over acp can roll back.",
                &["protocol", "outcome"],
            )?,
            flips: make.counters(
                "lumilink_route_flips_total",
                "Flips of a workspace to another route, by target and trigger.",
                &["to", "trigger"],
            )?,
            probes: make.counters(
                "lumilink_route_probes_total",
                "Probes (handshakes that test whether ACP has recovered), by outcome.",
                &["outcome"],
            )?,
            workspaces: make.gauges(
                "lumilink_workspaces",
                "Workspaces with a session opened, loaded or prompted since the start, by current route.",
                &["route"],
            )?,
            workspace_seconds: make.real_counters(
                "lumilink_workspace_seconds_total",
                "Time that workspaces were in use, summed over them, by route. Time on http counts against ACP.",
                &["route"],
            )?,
            counted_until: Mutex::new(Instant::now()),
            actors: make.gauge(
                "lumilink_route_actors",
                "Actors that run the routes of workspaces: two for each workspace in use.",
            )?,
            both_failing: make.counter(
                "lumilink_both_routes_failing_total",
                "Times the fallback of a workspace failed while ACP was failing too.",
            )?,
            session_fallbacks: make.counter(
                "lumilink_session_fallbacks_total",
                "Sessions that switched to the fallback because a handshake failed.",
            )?,
            storm: make.gauge(
                "lumilink_rollback_storm",
                "1 while more than 10 % of the workspaces in use, and at least 5, rolled back within 5 minutes.",
            )?,
            migrated: make.counters(
                "lumilink_migrated_workspaces_total",
                "Workspaces processed by fleet migrations, by outcome.",
                &["outcome"],
            )?,
        })
    }

    /// A success window recorded an outcome.
    pub(crate) fn outcome(&self, protocol: Route, sample: Sample) {
        self.outcomes.add(Outcome { protocol, sample }, 1);
    }

    pub(crate) fn flipped(&self, to: Route, trigger: FlipTrigger) {
        self.flips.add(Flipped { to, trigger }, 1);
    }

    pub(crate) fn probed(&self, sample: Sample) {
        self.probes.add(sample, 1);
    }

    /// A workspace came into use.
    pub(crate) fn appeared(&self, route: Route) {
        self.change(&[(route, 1)]);
    }

    /// A workspace is no longer in use.
    pub(crate) fn vanished(&self, route: Route) {
        self.change(&[(route, -1)]);
    }

    /// A workspace in use changed its route.
    pub(crate) fn moved(&self, from: Route, to: Route) {
        self.change(&[(from, -1), (to, 1)]);
    }

    /// Changes numbers of workspaces; the time until now counts with the old ones.
    fn change(&self, changes: &[(Route, i64)]) {
        let mut until = self.counted_until.lock();
        self.count_time(&mut until, Instant::now());
        changes.iter().for_each(|(route, by)| self.workspaces.change(*route, *by));
    }

    /// Counts the time of workspaces up to now, for a reader of the metrics.
    pub(super) fn count_time_until_now(&self) {
        self.count_time(&mut self.counted_until.lock(), Instant::now());
    }

    fn count_time(&self, until: &mut Instant, now: Instant) {
        let passed = now.saturating_duration_since(std::mem::replace(until, now.max(*until))).as_secs_f64();
        for route in Route::ALL {
            if let Some(seconds) = self.workspace_seconds.get(route) {
                seconds.inc_by(self.workspaces(route) as f64 * passed);
            }
        }
    }

    /// An actor of a workspace's route was created.
    pub(crate) fn actor_created(&self) {
        self.actors.inc();
    }

    /// An actor of a workspace's route was dropped.
    pub(crate) fn actor_dropped(&self) {
        self.actors.dec();
    }

    /// Actors of routes that exist.
    #[cfg(test)]
    pub(crate) fn actors(&self) -> i64 {
        self.actors.get()
    }

    /// Workspaces in use on a route.
    pub(crate) fn workspaces(&self, route: Route) -> u64 {
        self.workspaces.get(route).map_or(0, |gauge| u64::try_from(gauge.get()).unwrap_or(0))
    }

    /// The fallback of a workspace failed while ACP was failing too.
    pub(crate) fn both_failing(&self) {
        self.both_failing.inc();
    }

    /// A session switched to the fallback after a failed handshake.
    pub(crate) fn session_fell_back(&self) {
        self.session_fallbacks.inc();
    }

    /// A storm of rollbacks started or ended.
    pub(crate) fn storm(&self, is_active: bool) {
        self.storm.set(i64::from(is_active));
    }

    pub(crate) fn migrated(&self, step: MigrationStep) {
        self.migrated.add(step, 1);
    }

    /// Flips to a route since the start of the process.
    pub(crate) fn flips(&self, to: Route) -> u64 {
        let of = |trigger| self.flips.get(Flipped { to, trigger }).map_or(0, |counter| counter.get());
        FlipTrigger::ALL.into_iter().map(of).sum()
    }

    /// Outcomes since the start of the process.
    pub(crate) fn outcomes(&self, protocol: Route, sample: Sample) -> u64 {
        self.outcomes.get(Outcome { protocol, sample }).map_or(0, |counter| counter.get())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn time_of_workspaces_counts_with_their_number_and_route_at_the_time() {
        let routes = RouteMetrics::new(&Maker(&prometheus::Registry::new())).unwrap();
        let seconds = |route| routes.workspace_seconds.get(route).unwrap().get();
        let passes = |seconds: u64| {
            let mut until = routes.counted_until.lock();
            let now = *until + Duration::from_secs(seconds);
            routes.count_time(&mut until, now);
        };
        passes(5);
        assert_eq!((seconds(Route::Acp), seconds(Route::Http)), (0.0, 0.0));
        routes.workspaces.change(Route::Acp, 3);
        passes(10);
        routes.workspaces.change(Route::Acp, -1);
        routes.workspaces.change(Route::Http, 1);
        passes(4);
        // A clock that seems to step back counts nothing, and nothing twice.
        let mut until = routes.counted_until.lock();
        let earlier = *until - Duration::from_secs(2);
        routes.count_time(&mut until, earlier);
        drop(until);
        passes(1);
        assert_eq!((seconds(Route::Acp), seconds(Route::Http)), (40.0, 5.0));
        // A change counts the time before it.
        routes.moved(Route::Http, Route::Acp);
        assert!(seconds(Route::Http) >= 5.0 && routes.workspaces(Route::Acp) == 3);
    }
}
