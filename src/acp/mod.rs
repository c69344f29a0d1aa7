//! The Agent Client Protocol, version 1: frames, correlation, and the messages under their spec names.
//!
//! Invariant: nothing here waits, allocates without a bound, or knows who is at the other end. What
//! this crate does not act on stays raw JSON and passes through untouched.

pub mod correlator;
pub mod jsonrpc;
pub mod numbered;
pub mod schema;
