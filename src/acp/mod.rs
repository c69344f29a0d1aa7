//! The Agent Client Protocol, version 1: frames, correlation, and the messages under their spec names.
//!
//! Invariant: nothing here waits, allocates without a bound, or knows who is at the other end. What
//! this crate does not act on stays raw JSON and passes through untouched.

pub(crate) mod correlator;
pub(crate) mod jsonrpc;
pub(crate) mod numbered;
pub(crate) mod schema;
