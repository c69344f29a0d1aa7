//! Every rule, number and text of the service, as pure functions and plain values.
//!
//! Invariant: no I/O, no clock, no actor, no runtime, no database; `now` is an argument. Decisions are made here and
//! nowhere else.

pub(crate) mod access;
pub(crate) mod automation;
pub(crate) mod capacity;
pub(crate) mod ceilings;
pub(crate) mod changes;
pub(crate) mod clock;
pub(crate) mod delivery;
pub(crate) mod erasure;
pub(crate) mod explain;
pub(crate) mod heartbeat;
pub(crate) mod ids;
pub(crate) mod jail;
pub(crate) mod limits;
pub(crate) mod log_limit;
pub(crate) mod membership;
pub(crate) mod migration;
pub(crate) mod newer;
pub(crate) mod notify;
pub(crate) mod redaction;
pub(crate) mod retention;
pub(crate) mod routing;
pub(crate) mod session;
pub(crate) mod share;
pub(crate) mod tenant;
pub(crate) mod text;
pub(crate) mod turn;
pub(crate) mod watchdog;
pub(crate) mod words;
