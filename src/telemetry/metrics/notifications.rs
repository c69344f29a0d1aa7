//! Metrics of notifications, their subscribers, and webhook deliveries.

use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntGauge};

use super::family::{Family, Maker};
use crate::{
    domain::notify::{
        subscription::{Eviction, ResetReason},
        webhook::Verdict,
    },
    telemetry::labels::Label,
};

/// Buckets in seconds, from a fan-out to one subscriber to a stalled connection.
const LAG_BUCKETS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

impl Label for Eviction {
    fn all() -> Vec<Self> {
        Self::ALL.to_vec()
    }

    fn values(&self) -> Vec<&'static str> {
        vec![self.as_str()]
    }
}

impl Label for ResetReason {
    fn all() -> Vec<Self> {
        Self::ALL.to_vec()
    }

    fn values(&self) -> Vec<&'static str> {
        vec![self.as_str()]
    }
}

/// Metrics of notifications and their subscribers.
#[derive(Debug)]
pub(crate) struct NotificationMetrics {
    subscribers: IntGauge,
    sent: IntCounter,
    replayed: IntCounter,
    telemetry: IntCounter,
    telemetry_dropped: IntCounter,
    resets: Family<ResetReason, IntCounter>,
    evictions: Family<Eviction, IntCounter>,
    lag: Histogram,
}

impl NotificationMetrics {
    pub(crate) fn new(make: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            subscribers: make.gauge("lumilink_toast_subscribers", "Open WebSockets that read notifications.")?,
            sent: make
                .counter("lumilink_toasts_sent_total", "Notifications sent live, counted once per subscriber.")?,
            replayed: make.counter(
                "lumilink_toasts_replayed_total",
                "Notifications replayed to a subscriber that had missed them.",
            )?,
            telemetry: make
                .counter("lumilink_telemetry_sent_total", "Session progress frames sent to subscribers.")?,
            telemetry_dropped: make.counter(
                "lumilink_telemetry_left_out_total",
                "Session progress frames dropped because a subscriber or the hub was behind.",
            )?,
            resets: make.counters("lumilink_toast_resets_total", "Cursors rejected, by reason.", &["reason"])?,
            evictions: make.counters(
                "lumilink_toast_evictions_total",
                "Subscribers evicted, by reason.",
                &["reason"],
            )?,
            lag: make.histogram(
                "lumilink_toast_delivery_lag_seconds",
                "Time from the cause of a notification until it was sent to a subscriber.",
                &LAG_BUCKETS,
            )?,
        })
    }

    /// A subscriber connected.
    pub(crate) fn subscribed(&self) {
        self.subscribers.inc();
    }

    /// A subscriber disconnected.
    pub(crate) fn unsubscribed(&self) {
        self.subscribers.dec();
    }

    /// A live notification was sent, `lag` after its cause.
    pub(crate) fn sent(&self, lag: Duration) {
        self.sent.inc();
        self.lag.observe(lag.as_secs_f64());
    }

    /// A missed notification was sent.
    pub(crate) fn replayed(&self) {
        self.replayed.inc();
    }

    pub(crate) fn telemetry_sent(&self) {
        self.telemetry.inc();
    }

    pub(crate) fn telemetry_dropped(&self, frames: u64) {
        self.telemetry_dropped.inc_by(frames);
    }

    /// A cursor was rejected.
    pub(crate) fn reset(&self, reason: ResetReason) {
        self.resets.add(reason, 1);
    }

    pub(crate) fn evicted(&self, reason: Eviction) {
        self.evictions.add(reason, 1);
    }
}

/// Metrics of webhook deliveries.
#[derive(Debug)]
pub(crate) struct WebhookMetrics {
    attempts: Family<Attempt, IntCounter>,
    deliveries: Family<Waiting, IntGauge>,
}

/// Result of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Delivered,
    Retried,
    Dead,
}

impl Label for Attempt {
    fn all() -> Vec<Self> {
        vec![Self::Delivered, Self::Retried, Self::Dead]
    }

    fn values(&self) -> Vec<&'static str> {
        vec![match self {
            Self::Delivered => "delivered",
            Self::Retried => "retried",
            Self::Dead => "dead",
        }]
    }
}

/// Deliveries that need an attempt or an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Pending,
    Dead,
}

impl Label for Waiting {
    fn all() -> Vec<Self> {
        vec![Self::Pending, Self::Dead]
    }

    fn values(&self) -> Vec<&'static str> {
        vec![match self {
            Self::Pending => "pending",
            Self::Dead => "dead",
        }]
    }
}

impl WebhookMetrics {
    pub(crate) fn new(make: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            attempts: make.counters(
                "lumilink_webhook_attempts_total",
                "Attempts to post to the operators' webhook, by result of the delivery.",
                &["outcome"],
            )?,
            deliveries: make.gauges(
                "lumilink_webhook_deliveries",
                "Deliveries to the operators' webhook that are pending or were given up (dead).",
                &["state"],
            )?,
        })
    }

    /// An attempt ended.
    pub(crate) fn tried(&self, verdict: Verdict) {
        let attempt = match verdict {
            Verdict::Delivered => Attempt::Delivered,
            Verdict::Retry(_) => Attempt::Retried,
            Verdict::Dead => Attempt::Dead,
        };
        self.attempts.add(attempt, 1);
    }

    /// Sets the numbers of open deliveries.
    pub(crate) fn backlog(&self, pending: u64, dead: u64) {
        for (waiting, count) in [(Waiting::Pending, pending), (Waiting::Dead, dead)] {
            if let Some(gauge) = self.deliveries.get(waiting) {
                gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
    }
}
