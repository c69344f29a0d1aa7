//! Our own wire types: requests and answers of the API, and messages between supervisor and runtime beside ACP.
//!
//! Invariant: types and rules of their form, no behaviour. Names are camelCase on the wire; each type belongs to the
//! OpenAPI document or to the interface of the runtime.

pub(crate) mod audit;
pub(crate) mod authorization;
pub(crate) mod automation;
pub(crate) mod browsers;
pub(crate) mod events;
pub(crate) mod explain;
pub(crate) mod exposed;
pub(crate) mod fallback;
pub(crate) mod health;
pub(crate) mod inputs;
pub(crate) mod keep_alive;
pub(crate) mod lists;
pub(crate) mod notifications;
pub(crate) mod problem;
pub(crate) mod result;
pub(crate) mod routing;
pub(crate) mod runs;
pub(crate) mod runtime;
pub(crate) mod session;
pub(crate) mod steps;
pub(crate) mod tenants;
pub(crate) mod tokens;
pub(crate) mod triggers;
mod words;
