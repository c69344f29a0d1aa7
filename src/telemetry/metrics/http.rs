//! Metrics of the HTTP API, by operation of the route table.

use std::{sync::OnceLock, time::Duration};

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};

use super::turns::TURN_BUCKETS;
use crate::telemetry::labels::{HttpMethod, StatusClass};

/// Label of requests that no operation takes: of unknown paths, and of methods that a path does not support.
const UNMATCHED: &str = "unmatched";

/// An operation: a method on a template of paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpOperation {
    pub method: HttpMethod,
    /// The template, such as `/acp/session/{id}`.
    pub route: String,
}

#[derive(Debug)]
pub(in crate::telemetry) struct Http {
    requests: IntCounterVec,
    duration: HistogramVec,
    unmatched: Vec<Series>,
    operations: OnceLock<Vec<Series>>,
}

/// The series of an operation. They are bounded by the route table, and never made from what a client sends. Durations
/// are exported once there is one, because most operations of a service are never used.
#[derive(Debug)]
struct Series {
    operation: HttpOperation,
    requests: OnceLock<Vec<IntCounter>>,
    duration: OnceLock<Histogram>,
}

impl Http {
    pub(in crate::telemetry) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let requests = Opts::new(
            "lumilink_http_requests_total",
            "HTTP requests answered, by route; unmatched: no route takes the path with this method.",
        );
        let requests = IntCounterVec::new(requests, &["method", "route", "status"])?;
        registry.register(Box::new(requests.clone()))?;
        let duration = HistogramOpts::new(
            "lumilink_http_request_duration_seconds",
            "Time from an HTTP request to the head of its answer, by route; exported from the first request on.",
        );
        let duration = HistogramVec::new(duration.buckets(TURN_BUCKETS.to_vec()), &["method", "route"])?;
        registry.register(Box::new(duration.clone()))?;
        let of = |method: &HttpMethod| Series::new(HttpOperation { method: *method, route: UNMATCHED.to_owned() });
        let http = Self {
            requests,
            duration,
            unmatched: HttpMethod::ALL.iter().map(of).collect(),
            operations: OnceLock::new(),
        };
        for series in &http.unmatched {
            http.counters(series);
        }
        http.duration.get_metric_with_label_values(&[HttpMethod::Get.as_str(), UNMATCHED])?;
        Ok(http)
    }

    /// Sets the operations, once; requests name them by their index. Their counters start at 0, except those of HEAD,
    /// which few clients use.
    pub(in crate::telemetry) fn set_operations(&self, operations: Vec<HttpOperation>) {
        let operations = self.operations.get_or_init(|| operations.into_iter().map(Series::new).collect());
        for series in operations.iter().filter(|series| series.operation.method != HttpMethod::Head) {
            self.counters(series);
        }
    }

    /// Counts an answer to an operation, or to a request that no operation takes.
    pub(in crate::telemetry) fn answered(
        &self,
        operation: Option<usize>,
        method: HttpMethod,
        status: u16,
        duration: Duration,
    ) {
        let operation = operation.and_then(|index| self.operations.get()?.get(index));
        let unmatched = || self.unmatched.iter().find(|series| series.operation.method == method);
        let Some(series) = operation.or_else(unmatched) else { return };
        let class = StatusClass::of(status);
        if let Some(at) = StatusClass::ALL.iter().position(|known| *known == class)
            && let Some(counter) = self.counters(series).get(at)
        {
            counter.inc();
        }
        let labels = series.labels();
        let histogram = series.duration.get_or_init(|| self.duration.with_label_values(&labels));
        histogram.observe(duration.as_secs_f64());
    }

    fn counters<'a>(&self, series: &'a Series) -> &'a [IntCounter] {
        series.requests.get_or_init(|| {
            let [method, route] = series.labels();
            let of = |class: &StatusClass| self.requests.with_label_values(&[method, route, class.as_str()]);
            StatusClass::ALL.iter().map(of).collect()
        })
    }
}

impl Series {
    fn new(operation: HttpOperation) -> Self {
        Self { operation, requests: OnceLock::new(), duration: OnceLock::new() }
    }

    fn labels(&self) -> [&str; 2] {
        [self.operation.method.as_str(), &self.operation.route]
    }
}
