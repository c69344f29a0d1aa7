//! Our own wire types: what clients send and get, and what supervisor and runtime say to each other
//! beside ACP.
//!
//! Invariant: types and the rules of their form, nothing that acts. Names are camelCase on the wire and each
//! type is part of the OpenAPI document or of the runtime's door.

pub mod audit;
pub mod automation;
pub mod explain;
pub mod fallback;
pub mod health;
pub mod lists;
pub mod notifications;
pub mod problem;
pub mod result;
pub mod routing;
pub mod runtime;
pub mod session;
mod words;
