//! Every metric by name, with a method for each event that it counts.

mod automation;
pub(crate) mod capacity;
pub(crate) mod family;
pub(crate) mod http;
pub(crate) mod notifications;
pub(crate) mod routing;
pub(crate) mod service;
mod turns;

use std::{sync::Arc, time::Duration};

use prometheus::{
    Histogram, IntCounter, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder, process_collector::ProcessCollector,
};

use self::{
    automation::AutomationMetrics,
    capacity::CapacityMetrics,
    family::{Family, Maker},
    http::{Http, HttpOperation},
    notifications::{NotificationMetrics, WebhookMetrics},
    routing::RouteMetrics,
    service::{Arbiters, Connections, Workspaces, Writer},
    turns::Turns,
};
use super::labels::{HttpMethod, PermissionAnswer, Queue, RestartCause, UpdateKind};
use crate::domain::{
    jail::Right,
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

/// Buckets in seconds, from the overhead of the service to a model that thinks for minutes.
const FIRST_UPDATE_BUCKETS: [f64; 16] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 120.0];

/// The metrics of a process that is a runtime alone, beside those of the process itself.
const OF_RUNTIME: [&str; 7] = [
    "lumilink_agent_jail",
    "lumilink_agent_processes",
    "lumilink_agent_processes_left_total",
    "lumilink_arbiter_lag_seconds",
    "lumilink_arbiter_stalls_total",
    "lumilink_build_info",
    "lumilink_held_conversations",
];

/// All metrics of one process. Clones share their counts. No method blocks.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    all: Arc<All>,
    /// The names of ours that [`Self::render`] exports; all if absent.
    exported: Option<&'static [&'static str]>,
}

#[derive(Debug)]
struct All {
    registry: Registry,
    active_sessions: Family<SessionState, IntGauge>,
    turns: Turns,
    first_update: Histogram,
    updates: Family<UpdateKind, IntCounter>,
    errors: Family<ErrorCode, IntCounter>,
    restarts: Family<RestartCause, IntCounter>,
    connections: Connections,
    agent_processes: IntGauge,
    agent_processes_left: IntCounter,
    agent_jail: Family<Right, IntGauge>,
    queue_depth: Family<Queue, IntGauge>,
    permissions: Family<PermissionAnswer, IntCounter>,
    writer: Writer,
    http: Http,
    event_subscribers: IntGauge,
    slow_readers: IntCounter,
    arbiters: Arbiters,
    sessions_expired: IntCounter,
    workspaces: Workspaces,
    expiring_tokens: IntGauge,
    routes: RouteMetrics,
    capacity: CapacityMetrics,
    notifications: NotificationMetrics,
    webhooks: WebhookMetrics,
    automation: AutomationMetrics,
}

impl All {
    fn new(registry: Registry) -> prometheus::Result<Self> {
        let make = Maker(&registry);
        Ok(Self {
            active_sessions: make.gauges("lumilink_active_sessions", "Sessions that hold a seat.", &["state"])?,
            turns: Turns::new(&registry)?,
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
                "Errors that were answered to a request or ended a turn; the answer about a turn that failed is not \
                 counted again.",
                &["class", "code"],
            )?,
            connections: Connections::new(&make)?,
            restarts: restarts(&make)?,
            agent_processes: make.gauge(
                "lumilink_agent_processes",
                "Agent processes that this process runs; those of a separate runtime are at the runtime's own /metrics.",
            )?,
            agent_processes_left: make.counter(
                "lumilink_agent_processes_left_total",
                "Processes of ended agents that could not be killed within 2 s; those of a separate runtime are at the \
                 runtime's own /metrics.",
            )?,
            agent_jail: make.gauges(
                "lumilink_agent_jail",
                "1 if the jail enforces the right on every agent of this process; tcp_connect only with agent.ports. The \
                 jail of a separate runtime is at the runtime's own /metrics.",
                &["right"],
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
            http: Http::new(&registry)?,
            event_subscribers: make
                .gauge("lumilink_event_subscribers", "Open readers of event streams of sessions and turns.")?,
            slow_readers: make.counter(
                "lumilink_slow_readers_total",
                "Readers of event streams that were disconnected because they did not keep up.",
            )?,
            arbiters: Arbiters::new(&make)?,
            sessions_expired: make
                .counter("lumilink_sessions_expired_total", "Hibernated sessions that expired without use.")?,
            workspaces: Workspaces::new(&make)?,
            expiring_tokens: service::expiring_tokens(&make)?,
            routes: RouteMetrics::new(&make)?,
            capacity: CapacityMetrics::new(&make)?,
            notifications: NotificationMetrics::new(&make)?,
            webhooks: WebhookMetrics::new(&make)?,
            automation: AutomationMetrics::new(&make)?,
            registry,
        })
    }
}

fn restarts(make: &Maker<'_>) -> prometheus::Result<Family<RestartCause, IntCounter>> {
    let help = "Restarts of a session's agent and, with cause panic, of a part of the service.";
    make.counters("lumilink_restarts_total", help, &["cause"])
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
        Ok(Self { all: Arc::new(all), exported: None })
    }

    /// The same metrics for a process that is a runtime alone: those of the supervisor are not exported, because their
    /// zeros would spoil averages over processes.
    ///
    /// # Errors
    /// Only a mistake in this folder.
    pub(crate) fn of_runtime(version: &str, commit: Option<&str>) -> Result<Self, MetricsError> {
        Ok(Self { exported: Some(&OF_RUNTIME), ..Self::new(version, commit)? })
    }

    /// Makes the series of configured agents, so that their counters start at 0.
    ///
    /// # Errors
    /// Only a mistake in this folder.
    pub(crate) fn configure_agents<'a>(&self, agents: impl IntoIterator<Item = &'a str>) -> Result<(), MetricsError> {
        agents.into_iter().try_for_each(|agent| self.all.turns.configure(agent))?;
        Ok(())
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

    /// The workspaces in use were measured: bytes of the largest, and the number of those over the limit.
    pub(crate) fn workspaces_measured(&self, largest: u64, full: usize) {
        self.all.workspaces.largest_bytes.set(i64::try_from(largest).unwrap_or(i64::MAX));
        self.all.workspaces.full.set(i64::try_from(full).unwrap_or(i64::MAX));
    }

    /// The client tokens were looked at: so many expire soon.
    pub(crate) fn tokens_expire(&self, soon: usize) {
        self.all.expiring_tokens.set(i64::try_from(soon).unwrap_or(i64::MAX));
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

    /// A turn started; `agent` is the configured name of its agent.
    pub(crate) fn turn_started(&self, agent: &str, route: Route) {
        self.all.turns.started(agent, route);
    }

    /// Turns started on a route since the start of the process.
    pub(crate) fn turns_started(&self, route: Route) -> u64 {
        self.all.turns.count_started(route)
    }

    /// Turns that ended on a route with one of [`TurnOutcome::LABELS`] since the start of the process.
    pub(crate) fn turns_ended(&self, route: Route, outcome: &'static str) -> u64 {
        self.all.turns.count_ended(route, outcome)
    }

    /// A turn ended, `duration` after its acceptance. Called once per started turn; counts the error of a failed turn too.
    pub(crate) fn turn_ended(&self, agent: &str, route: Route, outcome: &TurnOutcome, duration: Duration) {
        self.all.turns.ended(agent, route, outcome, duration);
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

    /// An error was answered to a request. [`Self::turn_ended`] counts those of failed turns, also where they are answered.
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

    /// Processes of ended agents could not be killed.
    pub(crate) fn agent_processes_left(&self, processes: u64) {
        self.all.agent_processes_left.inc_by(processes);
    }

    /// Sets whether the jail enforces a right on every agent.
    pub(crate) fn jailed(&self, right: Right, is_enforced: bool) {
        if let Some(gauge) = self.all.agent_jail.get(right) {
            gauge.set(i64::from(is_enforced));
        }
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

    /// Sets the operations of the API, once, before it serves.
    pub(crate) fn set_http_operations(&self, operations: Vec<HttpOperation>) {
        self.all.http.set_operations(operations);
    }

    /// A request was answered: by the operation with this index in [`Self::set_http_operations`], or by none.
    pub(crate) fn http_answered(&self, operation: Option<usize>, method: &str, status: u16, duration: Duration) {
        self.all.http.answered(operation, HttpMethod::of(method), status, duration);
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
        self.all.routes.count_time_until_now();
        let mut families = self.all.registry.gather();
        if let Some(exported) = self.exported {
            families.retain(|family| !family.name().starts_with("lumilink_") || exported.contains(&family.name()));
        }
        Ok(TextEncoder::new().encode_to_string(&families)?)
    }
}

#[cfg(test)]
mod tests {
    use super::{turns::TURN_BUCKETS, *};
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
        metrics.configure_agents(["default"]).unwrap();
        let operation = HttpOperation { method: HttpMethod::Get, route: "/acp/session/{id}".into() };
        metrics.set_http_operations(vec![operation]);
        for code in ErrorCode::ALL {
            let series =
                format!("lumilink_errors_total{{class=\"{}\",code=\"{}\"}}", code.class().as_str(), code.as_str());
            assert_eq!(value(&metrics, &series), Some(0.0), "{series}");
        }
        for outcome in TurnOutcome::LABELS {
            for route in ["acp", "http"] {
                let series = format!(
                    "lumilink_turns_ended_total{{agent=\"default\",outcome=\"{outcome}\",route=\"{route}\"}}"
                );
                assert_eq!(value(&metrics, &series), Some(0.0), "{series}");
            }
        }
        for series in [
            "lumilink_active_sessions{state=\"running\"}",
            "lumilink_turn_duration_seconds_count{agent=\"default\",route=\"acp\"}",
            "lumilink_updates_total{kind=\"other\"}",
            "lumilink_restarts_total{cause=\"panic\"}",
            "lumilink_reconnects_total",
            "lumilink_adopted_turns_total",
            "lumilink_woken_turns_total",
            "lumilink_queue_depth{queue=\"writes\"}",
            "lumilink_permission_requests_total{answer=\"timed_out\"}",
            "lumilink_http_requests_total{method=\"GET\",route=\"unmatched\",status=\"5xx\"}",
            "lumilink_http_requests_total{method=\"GET\",route=\"/acp/session/{id}\",status=\"4xx\"}",
            "lumilink_writer_failures_total",
            "lumilink_slow_readers_total",
            "lumilink_event_subscribers",
            "lumilink_agent_processes",
            "lumilink_agent_processes_left_total",
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
        metrics.turn_started("codex", Route::Acp);
        metrics.clone().turn_ended("codex", Route::Acp, &outcome, Duration::from_millis(3));
        for series in [
            "lumilink_turns_started_total{agent=\"codex\",route=\"acp\"}",
            "lumilink_turns_ended_total{agent=\"codex\",outcome=\"failed\",route=\"acp\"}",
            "lumilink_errors_total{class=\"connection\",code=\"agent_crashed\"}",
            "lumilink_turn_duration_seconds_bucket{agent=\"codex\",route=\"acp\",le=\"0.005\"}",
        ] {
            assert_eq!(value(&metrics, series), Some(1.0), "{series}");
        }
        let faster = "lumilink_turn_duration_seconds_bucket{agent=\"codex\",route=\"acp\",le=\"0.002\"}";
        assert_eq!(value(&metrics, faster), Some(0.0));
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
        for method in ["PROPFIND", "X".repeat(1000).as_str()] {
            metrics.http_answered(None, method, 405, Duration::ZERO);
        }
        let durations = TURN_BUCKETS.len() + 3;
        assert_eq!(metrics.render().unwrap().lines().count(), before + durations, "one duration, no other series");
        assert_eq!(value(&metrics, "lumilink_updates_total{kind=\"other\"}"), Some(1.0));
        assert_eq!(
            value(&metrics, "lumilink_http_requests_total{method=\"other\",route=\"unmatched\",status=\"4xx\"}"),
            Some(2.0)
        );
    }

    #[test]
    fn runtime_exports_no_metric_of_the_supervisor() {
        let text = Metrics::of_runtime("1.2.3", None).unwrap().render().unwrap();
        let ours = text.lines().filter_map(|line| line.strip_prefix("# TYPE lumilink_"));
        assert_eq!(ours.count(), OF_RUNTIME.len(), "{text}");
        assert!(text.contains("process_resident_memory_bytes"));
    }

    #[test]
    fn names_follow_conventions_and_have_help() {
        let metrics = metrics();
        metrics.configure_agents(["default"]).unwrap();
        let text = metrics.render().unwrap();
        for line in text.lines().filter(|line| line.starts_with("# TYPE ")) {
            let mut words = line.split(' ').skip(2);
            let (name, kind) = (words.next().unwrap(), words.next().unwrap());
            assert!(name.starts_with("lumilink_") || name.starts_with("process_"), "{name}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            assert!(text.contains(&format!("# HELP {name} ")), "{name}");
        }
    }
}
