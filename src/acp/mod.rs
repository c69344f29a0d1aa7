//! The Agent Client Protocol, version 1: frames, correlation, and the messages under their spec names.
//!
//! Invariant: nothing here waits, allocates without a bound, or knows the peer. Parts of a message that this crate
//! does not act on stay raw JSON and pass through unchanged.

pub(crate) mod correlator;
pub(crate) mod jsonrpc;
pub(crate) mod loose;
pub(crate) mod numbered;
pub(crate) mod request_id;
pub(crate) mod schema;
