//! Shared state that outlives an actor and costs no hop to read, and the messages that actors exchange.
//!
//! Invariant: nothing here is an actor or imports one. A handle is created by the part that owns it and cloned to
//! everybody who reads it.

pub mod capacity_guard;
pub mod event_feed;
pub mod index;
pub mod messages;
pub mod rollback_storm;
pub mod route_gate;
pub mod session;
pub mod session_progress;
pub mod subscriber;
