//! Metrics, logs, the clock, and the watchdog.
//!
//! Invariant: metric names and the metrics library stand here alone, nothing is global but the log, and no
//! label carries an id.

pub mod clock;
pub mod labels;
pub mod logging;
pub mod metrics;
pub mod watchdog;

pub use self::{clock::SystemClock, metrics::Metrics};
