//! Shared state that outlives an actor and costs no hop to read, and the messages that actors exchange.
//!
//! Invariant: nothing here is an actor or imports one. The part that owns a handle creates it; every reader holds a
//! clone.

pub(crate) mod agent_handshakes;
pub(crate) mod capacity_guard;
pub(crate) mod client_tokens;
pub(crate) mod closing;
pub(crate) mod disk_use;
pub(crate) mod event_feed;
pub(crate) mod folder_use;
pub(crate) mod given_servers;
pub(crate) mod given_tokens;
pub(crate) mod index;
pub(crate) mod left_agents;
pub(crate) mod messages;
pub(crate) mod preparing;
pub(crate) mod rollback_storm;
pub(crate) mod route_gate;
pub(crate) mod runtime_availability;
pub(crate) mod session;
pub(crate) mod session_progress;
pub(crate) mod single_flight;
pub(crate) mod subscriber;
pub(crate) mod tenants;
