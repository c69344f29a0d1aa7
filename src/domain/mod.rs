//! Every rule, number and text that a test could want, as pure functions and plain values.
//!
//! Invariant: no I/O, no clock, no actor, no runtime, no database; `now` is an argument. Whoever changes
//! a decision changes it here and nowhere else.

pub mod backoff;
pub mod capacity;
pub mod clock;
pub mod connection;
pub mod context;
pub mod delivery;
pub mod eta;
pub mod event;
pub mod explain;
pub mod fallback;
pub mod flip_storm;
pub mod ids;
pub mod lifecycle;
pub mod mcp;
pub mod migration;
pub mod notice;
pub mod outcome;
pub mod permission;
pub mod prompt;
pub mod record;
pub mod redaction;
pub mod replay;
pub mod repository_pattern;
pub mod restart;
pub mod routing;
pub mod sampling;
pub mod skip;
pub mod subscription;
pub mod success_window;
pub mod text;
pub mod toast;
pub mod toast_reading;
pub mod transcript;
pub mod turn;
pub mod turn_route;
pub mod untold;
pub mod watchdog;
pub mod webhook;
