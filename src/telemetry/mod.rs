//! Metrics, logs, the clock, and the watchdog.
//!
//! Invariant: only this folder uses the metrics library and names metrics; nothing but the log is global; no label has an
//! id as value.

pub(crate) mod clock;
mod json_line;
pub(crate) mod labels;
pub(crate) mod logging;
pub(crate) mod metrics;
pub(crate) mod request_ids;
pub(crate) mod watchdog;

pub(crate) use self::{
    clock::{DatabaseClock, SystemClock},
    metrics::Metrics,
};
