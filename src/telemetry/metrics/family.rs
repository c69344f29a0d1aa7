//! One metric for each member of a closed set of labels, all registered at the start.

use prometheus::{
    Counter, CounterVec, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

use crate::telemetry::labels::Label;

/// The metrics of one name. A lookup neither hashes nor locks: the sets are small.
#[derive(Debug)]
pub(crate) struct Family<L, M> {
    members: Vec<(L, M)>,
}

impl<L: Label, M> Family<L, M> {
    /// The metric of a label; `None` for a member that [`Label::all`] omits.
    pub(crate) fn get(&self, label: L) -> Option<&M> {
        self.members.iter().find(|(member, _)| *member == label).map(|(_, metric)| metric)
    }

    /// Makes the metric of each label from its values.
    pub(super) fn make(mut metric_of: impl FnMut(&[&str]) -> prometheus::Result<M>) -> prometheus::Result<Self> {
        let members = L::all().into_iter().map(|label| metric_of(&label.values()).map(|metric| (label, metric)));
        Ok(Self { members: members.collect::<prometheus::Result<_>>()? })
    }
}

impl<L: Label> Family<L, IntCounter> {
    pub(crate) fn add(&self, label: L, by: u64) {
        if let Some(counter) = self.get(label) {
            counter.inc_by(by);
        }
    }
}

impl<L: Label> Family<L, IntGauge> {
    pub(crate) fn change(&self, label: L, by: i64) {
        if let Some(gauge) = self.get(label) {
            gauge.add(by);
        }
    }
}

/// Makes metrics and registers them.
pub(crate) struct Maker<'a>(pub &'a Registry);

impl Maker<'_> {
    pub(crate) fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        let counter = IntCounter::new(name, help)?;
        self.0.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    pub(crate) fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        let gauge = IntGauge::new(name, help)?;
        self.0.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }

    pub(crate) fn real_gauge(&self, name: &str, help: &str) -> prometheus::Result<Gauge> {
        let gauge = Gauge::new(name, help)?;
        self.0.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }

    pub(crate) fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
        let histogram = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?;
        self.0.register(Box::new(histogram.clone()))?;
        Ok(histogram)
    }

    pub(crate) fn histograms<L: Label>(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> prometheus::Result<Family<L, Histogram>> {
        let vec = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?;
        self.0.register(Box::new(vec.clone()))?;
        Family::make(|values| vec.get_metric_with_label_values(values))
    }

    pub(crate) fn counters<L: Label>(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<Family<L, IntCounter>> {
        let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
        self.0.register(Box::new(vec.clone()))?;
        Family::make(|values| vec.get_metric_with_label_values(values))
    }

    pub(crate) fn real_counters<L: Label>(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<Family<L, Counter>> {
        let vec = CounterVec::new(Opts::new(name, help), labels)?;
        self.0.register(Box::new(vec.clone()))?;
        Family::make(|values| vec.get_metric_with_label_values(values))
    }

    pub(crate) fn gauges<L: Label>(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<Family<L, IntGauge>> {
        let vec = IntGaugeVec::new(Opts::new(name, help), labels)?;
        self.0.register(Box::new(vec.clone()))?;
        Family::make(|values| vec.get_metric_with_label_values(values))
    }
}
