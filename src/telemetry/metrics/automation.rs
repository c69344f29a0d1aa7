//! Metrics of GitHub automation and of clones.

use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntGauge};

use super::{
    Metrics,
    family::{Family, Maker},
};
use crate::{
    domain::automation::{
        step::{StepName, StepOutcome, StepReport},
        trigger::DeliveryState,
    },
    telemetry::labels::{CloneResult, DeliveryOutcome, RunOutcome, StepResult, TriggerEnd},
};

/// Buckets in seconds, from a local step of a small repository to a push that takes minutes.
const STEP_BUCKETS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 180.0, 600.0];

#[derive(Debug)]
pub(in crate::telemetry) struct AutomationMetrics {
    runs: Family<RunOutcome, IntCounter>,
    steps: Family<StepResult, Histogram>,
    clones: Family<CloneResult, Histogram>,
    rate_remaining: IntGauge,
    deliveries: Family<DeliveryOutcome, IntCounter>,
    triggers: Family<TriggerEnd, IntCounter>,
}

impl AutomationMetrics {
    pub(in crate::telemetry) fn new(make: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            runs: make.counters(
                "lumilink_automation_runs_total",
                "Ended attempts of GitHub automation, by status and, for skips, by reason; skips before the run of a turn \
                 began are counted too.",
                &["status", "reason"],
            )?,
            steps: make.histograms(
                "lumilink_automation_step_seconds",
                "Duration of steps of GitHub automation, with the pauses that GitHub asked for.",
                &["step", "outcome"],
                &STEP_BUCKETS,
            )?,
            clones: make.histograms(
                "lumilink_clone_seconds",
                "Duration of clones of repositories into workspaces, with their baselines, by result.",
                &["result"],
                &STEP_BUCKETS,
            )?,
            rate_remaining: make.gauge(
                "lumilink_github_rate_limit_remaining",
                "Requests that GitHub still permitted in this hour, by its newest answer; -1 before the first one.",
            )?,
            deliveries: make.counters(
                "lumilink_github_deliveries_total",
                "Deliveries of GitHub's webhook that arrived, by event and by what became of them; `refused` has a wrong \
                 signature, or was not read: too slow, or too large.",
                &["event", "result"],
            )?,
            triggers: make.counters(
                "lumilink_github_triggers_total",
                "Queued deliveries of GitHub on which no work remains, by the end: the turn was answered, or none was started.",
                &["state"],
            )?,
        })
    }
}

impl Metrics {
    /// An attempt of a run ended, or automation was skipped; with the words of its status and its reason.
    pub(crate) fn automation_run(&self, status: &str, reason: Option<&str>) {
        if let Some(outcome) = RunOutcome::of(status, reason) {
            self.all.automation.runs.add(outcome, 1);
        }
    }

    /// A clone ended, or was given up.
    pub(crate) fn cloned(&self, result: CloneResult, took: Duration) {
        if let Some(histogram) = self.all.automation.clones.get(result) {
            histogram.observe(took.as_secs_f64());
        }
    }

    /// A delivery of GitHub arrived.
    pub(crate) fn github_delivery(&self, outcome: DeliveryOutcome) {
        self.all.automation.deliveries.add(outcome, 1);
    }

    /// The work on a queued delivery has ended.
    pub(crate) fn github_trigger(&self, state: DeliveryState) {
        self.all.automation.triggers.add(TriggerEnd(state), 1);
    }

    pub(crate) fn automation_step(&self, step: StepName, report: &StepReport, took: Duration) {
        let is_done = matches!(report.outcome, StepOutcome::Done(_));
        if let Some(histogram) = self.all.automation.steps.get(StepResult { step, is_done }) {
            histogram.observe(took.as_secs_f64());
        }
        if let Some(remaining) = report.rate_remaining {
            self.all.automation.rate_remaining.set(i64::try_from(remaining).unwrap_or(i64::MAX));
        }
    }
}
