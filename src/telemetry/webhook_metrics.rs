//! What is counted about webhooks: tries, and deliveries that wait or were given up.

use prometheus::{IntCounter, IntGauge};

use super::{
    labels::Label,
    metrics::family::{Family, Maker},
};
use crate::domain::notify::webhook::Verdict;

/// Metrics of webhooks; a part of [`super::Metrics`]. Nothing blocks.
#[derive(Debug)]
pub struct WebhookMetrics {
    attempts: Family<Attempt, IntCounter>,
    deliveries: Family<Waiting, IntGauge>,
}

/// What became of a try.
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

/// Deliveries with which something is to be done, by us or by an operator.
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
    pub(super) fn new(make: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            attempts: make.counters(
                "lumilink_webhook_attempts_total",
                "Posts to the operators' webhook, by what became of the delivery.",
                &["outcome"],
            )?,
            deliveries: make.gauges(
                "lumilink_webhook_deliveries",
                "Deliveries to the operators' webhook that wait for a post, or were given up.",
                &["state"],
            )?,
        })
    }

    /// A post was made, or could not be.
    pub fn tried(&self, verdict: Verdict) {
        let attempt = match verdict {
            Verdict::Delivered => Attempt::Delivered,
            Verdict::Retry(_) => Attempt::Retried,
            Verdict::Dead => Attempt::Dead,
        };
        self.attempts.add(attempt, 1);
    }

    /// So many deliveries there are.
    pub fn backlog(&self, pending: u64, dead: u64) {
        for (waiting, count) in [(Waiting::Pending, pending), (Waiting::Dead, dead)] {
            if let Some(gauge) = self.deliveries.get(waiting) {
                gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
    }
}
