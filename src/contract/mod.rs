//! Our own wire types: what clients send and get, and what supervisor and runtime say to each other
//! beside ACP.
//!
//! Invariant: types and the rules of their form, nothing that acts. Names are camelCase on the wire and each
//! type is part of the OpenAPI document or of the runtime's door.

pub(crate) mod audit;
pub(crate) mod automation;
pub(crate) mod explain;
pub(crate) mod fallback;
pub(crate) mod health;
pub(crate) mod lists;
pub(crate) mod notifications;
pub(crate) mod problem;
pub(crate) mod result;
pub(crate) mod routing;
pub(crate) mod runtime;
pub(crate) mod session;
mod words;
