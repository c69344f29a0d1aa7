//! Every metric by name, with a method for each event that it counts.

pub(crate) mod capacity;
pub(crate) mod family;
pub(crate) mod notifications;
pub(crate) mod routing;
pub(crate) mod service;

use std::{sync::Arc, time::Duration};

use prometheus::{
    Histogram, IntCounter, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder, process_collector::ProcessCollector,
};

use self::{
    capacity::CapacityMetrics,
    family::{Family, Maker},
    notifications::{NotificationMetrics, WebhookMetrics},
    routing::RouteMetrics,
    service::{Arbiters, Connections, Http, TURN_BUCKETS, Writer},
};
use super::labels::{
    HttpAnswer, HttpMethod, PermissionAnswer, Queue, RestartCause, RouteOutcome, StatusClass, UpdateKind,
};
use crate::domain::{
    routing::Route,
    session::lifecycle::SessionState,
    turn::{TurnOutcome, outcome::ErrorCode},
};

/// The media type of [`Metrics::render`].
pub(crate) const TEXT_FORMAT: &str = prometheus::TEXT_FORMAT;

/// Two metrics have the same name; no input can cause this.
#[derive(Debug, thiserror::Error)]
#[error("metrics: {0}")]
pub(crate) struct MetricsError(#[from] prometheus::Error);

/// Buckets in seconds, from the overhead of the service to a model that thinks for a minute.
const FIRST_UPDATE_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

/// All metrics of one process. Clones share their counts. No method blocks.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    all: Arc<All>,
}

#[derive(Debug)]
struct All {
    registry: Registry,
    active_sessions: Family<SessionState, IntGauge>,
    turns_started: Family<Route, IntCounter>,
    turns_ended: Family<RouteOutcome, IntCounter>,
    turn_duration: Family<Route, Histogram>,
    first_update: Histogram,
    updates: Family<UpdateKind, IntCounter>,
    errors: Family<ErrorCode, IntCounter>,
    restarts: Family<RestartCause, IntCounter>,
    connections: Connections,
    agent_processes: IntGauge,
    queue_depth: Family<Queue, IntGauge>,
    permissions: Family<PermissionAnswer, IntCounter>,
    writer: Writer,
    http: Http,
    event_subscribers: IntGauge,
    slow_readers: IntCounter,
    arbiters: Arbiters,
    sessions_expired: IntCounter,
    routes: RouteMetrics,
    capacity: CapacityMetrics,
    notifications: NotificationMetrics,
    webhooks: WebhookMetrics,
}

impl All {
    fn new(registry: Registry) -> prometheus::Result<Self> {
        let make = Maker(&registry);
        let route = &["route"];
        Ok(Self {
            active_sessions: make.gauges("lumilink_active_sessions", "Sessions that hold a seat.", &["state"])?,
            turns_started: make.counters("lumilink_turns_started_total", "Turns that started.", route)?,
            turns_ended: make.counters(
                "lumilink_turns_ended_total",
                "Turns that ended. Each started turn ends exactly once.",
                &["route", "outcome"],
            )?,
            turn_duration: make.histograms(
                "lumilink_turn_duration_seconds",
                "Time from the acceptance of a turn to its end.",
                route,
                &TURN_BUCKETS,
            )?,
            first_update: make.histogram(
                "lumilink_time_to_first_update_seconds",
                "Time from the acceptance of a turn to the agent's first update.",
                &FIRST_UPDATE_BUCKETS,
            )?,
            updates: make.counters(
                "lumilink_updates_total",
                "Session updates received from agents, by ACP kind.",
                &["kind"],
            )?,
            errors: make.counters(
                "lumilink_errors_total",
                "Errors that were answered to a request or ended a turn.",
                &["class", "code"],
            )?,
            connections: Connections::new(&make)?,
            restarts: make.counters(
                "lumilink_restarts_total",
                "Restarts of a session's agent and, with cause panic, of a part of the service.",
                &["cause"],
            )?,
            agent_processes: make.gauge(
                "lumilink_agent_processes",
                "Agent processes of the embedded runtime. A separate runtime has its own /metrics.",
            )?,
            queue_depth: make.gauges(
                "lumilink_queue_depth",
                "Entries in a queue; writes is the queue of database writes.",
                &["queue"],
            )?,
            permissions: make.counters(
                "lumilink_permission_requests_total",
                "Permission requests of agents, by answer.",
                &["answer"],
            )?,
            writer: Writer::new(&make)?,
            http: Http::new(&make)?,
            event_subscribers: make
                .gauge("lumilink_event_subscribers", "Open readers of event streams of sessions and turns.")?,
            slow_readers: make.counter(
                "lumilink_slow_readers_total",
                "Readers of event streams that were disconnected because they did not keep up.",
            )?,
            arbiters: Arbiters::new(&make)?,
            sessions_expired: make
                .counter("lumilink_sessions_expired_total", "Hibernated sessions that expired without use.")?,
            routes: RouteMetrics::new(&make)?,
            capacity: CapacityMetrics::new(&make)?,
            notifications: NotificationMetrics::new(&make)?,
            webhooks: WebhookMetrics::new(&make)?,
            registry,
        })
    }
}

impl Metrics {
    /// Makes all metrics in a registry of their own, counters at 0. `commit` is for `lumilink_build_info`.
    ///
    /// # Errors
    /// Only a mistake in this folder.
    pub(crate) fn new(version: &str, commit: Option<&str>) -> Result<Self, MetricsError> {
        let all = All::new(Registry::new())?;
        let build = IntGaugeVec::new(
            Opts::new("lumilink_build_info", "Always 1; the labels are version and commit of the program."),
            &["version", "commit"],
        )?;
        build.get_metric_with_label_values(&[version, commit.unwrap_or("unknown")])?.set(1);
        all.registry.register(Box::new(build))?;
        all.registry.register(Box::new(ProcessCollector::for_self()))?;
        Ok(Self { all: Arc::new(all) })
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self::new("0", None).unwrap()
    }

    /// The value of a series of `/metrics`, such as `lumilink_queue_depth{queue="writes"}`.
    #[cfg(test)]
    pub(crate) fn value(&self, series: &str) -> Option<f64> {
        let text = self.render().unwrap();
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    /// A session was created (`from` is `None`), changed its state, or was removed (`to` is `None`). States without a seat
    /// are not counted.
    pub(crate) fn session_changed(&self, from: Option<SessionState>, to: Option<SessionState>) {
        if let Some(from) = from {
            self.all.active_sessions.change(from, -1);
        }
        if let Some(to) = to {
            self.all.active_sessions.change(to, 1);
        }
    }

    pub(crate) fn webhooks(&self) -> &WebhookMetrics {
        &self.all.webhooks
    }

    pub(crate) fn routes(&self) -> &RouteMetrics {
        &self.all.routes
    }

    pub(crate) fn turn_started(&self, route: Route) {
        self.all.turns_started.add(route, 1);
    }

    /// Turns started on a route since the start of the process.
    pub(crate) fn turns_started(&self, route: Route) -> u64 {
        self.all.turns_started.get(route).map_or(0, |counter| counter.get())
    }

    /// Turns that ended on a route with one of [`TurnOutcome::LABELS`] since the start of the process.
    pub(crate) fn turns_ended(&self, route: Route, outcome: &'static str) -> u64 {
        self.all.turns_ended.get(RouteOutcome { route, outcome }).map_or(0, |counter| counter.get())
    }

    /// A turn ended, `duration` after its acceptance. Called once per started turn; counts the error of a failed turn too.
    pub(crate) fn turn_ended(&self, route: Route, outcome: &TurnOutcome, duration: Duration) {
        self.all.turns_ended.add(RouteOutcome { route, outcome: outcome.label() }, 1);
        if let Some(histogram) = self.all.turn_duration.get(route) {
            histogram.observe(duration.as_secs_f64());
        }
        if let TurnOutcome::Failed(failure) = outcome {
            self.error(failure.code);
        }
    }

    /// The first update of a turn arrived, `after` its acceptance.
    pub(crate) fn first_update(&self, after: Duration) {
        self.all.first_update.observe(after.as_secs_f64());
    }

    /// An update arrived; `session_update` is its discriminator as the agent wrote it.
    pub(crate) fn update(&self, session_update: &str) {
        self.all.updates.add(UpdateKind::of(session_update), 1);
    }

    /// An error was answered to a request. [`Self::turn_ended`] counts those of failed turns.
    pub(crate) fn error(&self, code: ErrorCode) {
        self.all.errors.add(code, 1);
    }

    pub(crate) fn restarted(&self, cause: RestartCause) {
        self.all.restarts.add(cause, 1);
    }

    /// A broken connection to a runtime was resumed.
    pub(crate) fn reconnected(&self) {
        self.all.connections.reconnects.inc();
    }

    /// A turn of a former supervisor was adopted.
    pub(crate) fn turn_adopted(&self) {
        self.all.connections.adopted_turns.inc();
    }

    /// An agent began a turn by itself.
    pub(crate) fn woken_turn_began(&self) {
        self.all.connections.woken_turns.inc();
    }

    pub(crate) fn agent_process_started(&self) {
        self.all.agent_processes.inc();
    }

    /// The process of an agent was reaped.
    pub(crate) fn agent_process_ended(&self) {
        self.all.agent_processes.dec();
    }

    /// The runtime became available or unavailable.
    pub(crate) fn runtime_available(&self, is_available: bool) {
        self.all.connections.runtime_available.set(i64::from(is_available));
    }

    /// A conversation with an agent is kept for a disconnected client.
    pub(crate) fn conversation_held(&self) {
        self.all.connections.held.inc();
    }

    /// The client reconnected, or the grace ended.
    pub(crate) fn conversation_released(&self) {
        self.all.connections.held.dec();
    }

    pub(crate) fn queue_depth(&self, queue: Queue, items: usize) {
        if let Some(gauge) = self.all.queue_depth.get(queue) {
            gauge.set(i64::try_from(items).unwrap_or(i64::MAX));
        }
    }

    pub(crate) fn permission_settled(&self, answer: PermissionAnswer) {
        self.all.permissions.add(answer, 1);
    }

    /// The writer committed `rows` writes in a transaction of `duration`; the oldest write had waited for `lag`.
    pub(crate) fn committed(&self, rows: usize, lag: Duration, duration: Duration) {
        let writer = &self.all.writer;
        writer.commits.inc();
        writer.rows.inc_by(rows as u64);
        writer.lag.observe(lag.as_secs_f64());
        writer.commit_duration.observe(duration.as_secs_f64());
    }

    /// A write that never succeeds was dropped.
    pub(crate) fn write_quarantined(&self) {
        self.all.writer.quarantined.inc();
    }

    pub(crate) fn commit_failed(&self) {
        self.all.writer.failures.inc();
    }

    pub(crate) fn http_answered(&self, method: &str, status: u16, duration: Duration) {
        let method = HttpMethod::of(method);
        self.all.http.requests.add(HttpAnswer { method, status: StatusClass::of(status) }, 1);
        if let Some(histogram) = self.all.http.duration.get(method) {
            histogram.observe(duration.as_secs_f64());
        }
    }

    /// A reader of an event stream connected.
    pub(crate) fn subscriber_added(&self) {
        self.all.event_subscribers.inc();
    }

    /// A reader of an event stream disconnected.
    pub(crate) fn subscriber_removed(&self) {
        self.all.event_subscribers.dec();
    }

    /// A reader was disconnected because it did not keep up; [`Self::subscriber_removed`] follows.
    pub(crate) fn slow_reader(&self) {
        self.all.slow_readers.inc();
    }

    /// A thread that runs sessions is stalled.
    pub(crate) fn arbiter_stalled(&self) {
        self.all.arbiters.stalls.inc();
    }

    /// Delay of the heartbeat of the slowest thread that runs sessions.
    pub(crate) fn arbiter_lag(&self, lag: Duration) {
        self.all.arbiters.lag.set(lag.as_secs_f64());
    }

    pub(crate) fn sessions_expired(&self, sessions: usize) {
        self.all.sessions_expired.inc_by(sessions as u64);
    }

    pub(crate) fn notifications(&self) -> &NotificationMetrics {
        &self.all.notifications
    }

    pub(crate) fn capacity(&self) -> &CapacityMetrics {
        &self.all.capacity
    }

    /// Renders all metrics as [`TEXT_FORMAT`]. Reads `/proc`, which takes some tens of microseconds.
    ///
    /// # Errors
    /// Only a mistake in this folder.
    pub(crate) fn render(&self) -> Result<String, MetricsError> {
        Ok(TextEncoder::new().encode_to_string(&self.all.registry.gather())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::turn::outcome::Failure;

    fn metrics() -> Metrics {
        Metrics::new("1.2.3", None).unwrap()
    }

    fn value(metrics: &Metrics, series: &str) -> Option<f64> {
        let text = metrics.render().unwrap();
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    #[test]
    fn every_series_starts_at_zero() {
        let metrics = metrics();
        for code in ErrorCode::ALL {
            let series =
                format!("lumilink_errors_total{{class=\"{}\",code=\"{}\"}}", code.class().as_str(), code.as_str());
            assert_eq!(value(&metrics, &series), Some(0.0), "{series}");
        }
        for outcome in TurnOutcome::LABELS {
            for route in ["acp", "http"] {
                let series = format!("lumilink_turns_ended_total{{outcome=\"{outcome}\",route=\"{route}\"}}");
                assert_eq!(value(&metrics, &series), Some(0.0), "{series}");
            }
        }
        for series in [
            "lumilink_active_sessions{state=\"running\"}",
            "lumilink_turn_duration_seconds_count{route=\"acp\"}",
            "lumilink_updates_total{kind=\"other\"}",
            "lumilink_restarts_total{cause=\"panic\"}",
            "lumilink_reconnects_total",
            "lumilink_adopted_turns_total",
            "lumilink_woken_turns_total",
            "lumilink_queue_depth{queue=\"writes\"}",
            "lumilink_permission_requests_total{answer=\"timed_out\"}",
            "lumilink_http_requests_total{method=\"GET\",status=\"5xx\"}",
            "lumilink_writer_failures_total",
            "lumilink_slow_readers_total",
            "lumilink_event_subscribers",
            "lumilink_agent_processes",
            "lumilink_held_conversations",
            "lumilink_capacity_seats{state=\"taken\"}",
            "lumilink_capacity_alerts{level=\"critical\"}",
            "lumilink_capacity_alert_changes_total{kind=\"resolved\",level=\"warning\"}",
            "lumilink_capacity_refused_total{reason=\"tenant\"}",
            "lumilink_webhook_attempts_total{outcome=\"dead\"}",
            "lumilink_webhook_deliveries{state=\"pending\"}",
        ] {
            assert_eq!(value(&metrics, series), Some(0.0), "{series}");
        }
        assert_eq!(value(&metrics, "lumilink_build_info{commit=\"unknown\",version=\"1.2.3\"}"), Some(1.0));
        assert!(value(&metrics, "process_resident_memory_bytes").unwrap() > 0.0);
    }

    #[test]
    fn a_failed_turn_is_one_outcome_and_one_error() {
        let metrics = metrics();
        let outcome = TurnOutcome::Failed(Failure::new(ErrorCode::AgentCrashed, "gone"));
        metrics.turn_started(Route::Acp);
        metrics.clone().turn_ended(Route::Acp, &outcome, Duration::from_millis(3));
        for series in [
            "lumilink_turns_started_total{route=\"acp\"}",
            "lumilink_turns_ended_total{outcome=\"failed\",route=\"acp\"}",
            "lumilink_errors_total{class=\"connection\",code=\"agent_crashed\"}",
            "lumilink_turn_duration_seconds_bucket{route=\"acp\",le=\"0.005\"}",
        ] {
            assert_eq!(value(&metrics, series), Some(1.0), "{series}");
        }
        assert_eq!(value(&metrics, "lumilink_turn_duration_seconds_bucket{route=\"acp\",le=\"0.002\"}"), Some(0.0));
    }

    #[test]
    fn sessions_are_counted_only_while_they_hold_a_seat() {
        let metrics = metrics();
        let idle = "lumilink_active_sessions{state=\"idle\"}";
        metrics.session_changed(None, Some(SessionState::Starting));
        metrics.session_changed(Some(SessionState::Starting), Some(SessionState::Idle));
        assert_eq!(value(&metrics, idle), Some(1.0));
        metrics.session_changed(Some(SessionState::Idle), Some(SessionState::Hibernated));
        assert_eq!(value(&metrics, idle), Some(0.0));
        assert!(!metrics.render().unwrap().contains("hibernated"));
    }

    #[test]
    fn unknown_values_count_as_other() {
        let metrics = metrics();
        let before = metrics.render().unwrap().lines().count();
        metrics.update("brand_new_update");
        metrics.http_answered("PROPFIND", 405, Duration::ZERO);
        assert_eq!(metrics.render().unwrap().lines().count(), before);
        assert_eq!(value(&metrics, "lumilink_updates_total{kind=\"other\"}"), Some(1.0));
        assert_eq!(value(&metrics, "lumilink_http_requests_total{method=\"other\",status=\"4xx\"}"), Some(1.0));
    }

    #[test]
    fn names_follow_conventions_and_have_help() {
        let text = metrics().render().unwrap();
        for line in text.lines().filter(|line| line.starts_with("# TYPE ")) {
            let mut words = line.split(' ').skip(2);
            let (name, kind) = (words.next().unwrap(), words.next().unwrap());
            assert!(name.starts_with("lumilink_") || name.starts_with("process_"), "{name}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            assert!(text.contains(&format!("# HELP {name} ")), "{name}");
        }
    }
}
