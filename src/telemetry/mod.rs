//! Metrics, logs, the clock, and the watchdog.
//!
//! Invariant: metric names and the metrics library stand here alone, nothing is global but the log, and no
//! label carries an id.

pub(crate) mod clock;
pub(crate) mod labels;
pub(crate) mod logging;
pub(crate) mod metrics;
pub(crate) mod watchdog;

pub(crate) use self::{clock::SystemClock, metrics::Metrics};
