//! Every rule, number and text that a test could want, as pure functions and plain values.
//!
//! Invariant: no I/O, no clock, no actor, no runtime, no database; `now` is an argument. Whoever changes
//! a decision changes it here and nowhere else.

pub mod automation;
pub mod capacity;
pub mod clock;
pub mod delivery;
pub mod explain;
pub mod ids;
pub mod migration;
pub mod notify;
pub mod redaction;
pub mod routing;
pub mod session;
pub mod text;
pub mod turn;
pub mod watchdog;
pub mod words;
