//! Metrics of the writer, connections and threads.

use prometheus::{Gauge, Histogram, IntCounter, IntGauge};

use super::family::Maker;

/// Buckets in seconds, from a commit without a sync to a stuck disk.
const WRITER_BUCKETS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

#[derive(Debug)]
pub(in crate::telemetry) struct Writer {
    pub lag: Histogram,
    pub commit_duration: Histogram,
    pub rows: IntCounter,
    pub commits: IntCounter,
    pub failures: IntCounter,
    pub quarantined: IntCounter,
}

impl Writer {
    pub(crate) fn new(make: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            lag: make.histogram(
                "lumilink_writer_lag_seconds",
                "Time a write waited before its transaction began.",
                &WRITER_BUCKETS,
            )?,
            commit_duration: make.histogram(
                "lumilink_writer_commit_duration_seconds",
                "Duration of a transaction, including its commit.",
                &WRITER_BUCKETS,
            )?,
            rows: make.counter("lumilink_writer_rows_total", "Rows written by committed transactions.")?,
            commits: make.counter("lumilink_writer_commits_total", "Transactions committed.")?,
            failures: make.counter("lumilink_writer_failures_total", "Transactions that failed.")?,
            quarantined: make.counter(
                "lumilink_writer_quarantined_total",
                "Writes that the database never accepts and that were dropped with an error in the log.",
            )?,
        })
    }
}

#[derive(Debug)]
pub(in crate::telemetry) struct Connections {
    pub reconnects: IntCounter,
    pub adopted_turns: IntCounter,
    pub woken_turns: IntCounter,
    pub held: IntGauge,
    pub runtime_available: IntGauge,
}

impl Connections {
    pub(crate) fn new(make: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            reconnects: make.counter(
                "lumilink_reconnects_total",
                "Connections to a runtime that broke and were resumed without loss.",
            )?,
            adopted_turns: make.counter(
                "lumilink_adopted_turns_total",
                "Running turns adopted after a restart of the supervisor.",
            )?,
            woken_turns: make
                .counter("lumilink_woken_turns_total", "Turns that agents began by themselves, without a prompt.")?,
            held: make.gauge(
                "lumilink_held_conversations",
                "Conversations with agents that the embedded runtime keeps for a disconnected supervisor.",
            )?,
            runtime_available: make.gauge(
                "lumilink_runtime_available",
                "1 if the runtime answers; 0 while it does not, or sessions wait for it.",
            )?,
        })
    }
}

#[derive(Debug)]
pub(in crate::telemetry) struct Arbiters {
    pub stalls: IntCounter,
    pub lag: Gauge,
}

impl Arbiters {
    pub(crate) fn new(make: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            stalls: make.counter(
                "lumilink_arbiter_stalls_total",
                "Times a thread that runs sessions (an arbiter) did not respond for 5 s.",
            )?,
            lag: make.real_gauge(
                "lumilink_arbiter_lag_seconds",
                "Delay of the heartbeat of the slowest thread that runs sessions (an arbiter).",
            )?,
        })
    }
}

#[derive(Debug)]
pub(in crate::telemetry) struct Workspaces {
    pub largest_bytes: IntGauge,
    pub full: IntGauge,
}

impl Workspaces {
    pub(crate) fn new(make: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            largest_bytes: make.gauge(
                "lumilink_workspace_largest_bytes",
                "Bytes on disk of the largest workspace in use, as last measured.",
            )?,
            full: make.gauge(
                "lumilink_workspaces_full",
                "Workspaces in use that take no turn because they are larger than workspaces.max_bytes.",
            )?,
        })
    }
}

pub(in crate::telemetry) fn expiring_tokens(make: &Maker<'_>) -> prometheus::Result<IntGauge> {
    make.gauge(
        "lumilink_client_tokens_expiring",
        "Client tokens with a life of 30 days or more that expire within 7 days.",
    )
}
