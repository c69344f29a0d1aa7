//! Metrics, logs, the clock, and the watchdog.
//!
//! Invariant: metric names and the metrics library stand here alone, nothing is global but the log, and no
//! label carries an id.

pub mod capacity_metrics;
pub mod clock;
mod family;
mod groups;
pub mod labels;
pub mod logging;
pub mod metrics;
pub mod route_metrics;
pub mod toast_metrics;
pub mod watchdog;
pub mod webhook_metrics;

pub use clock::SystemClock;
pub use metrics::Metrics;
