//! Our own wire types: what clients send and get, and what supervisor and runtime say to each other
//! beside ACP.
//!
//! Invariant: types and the rules of their form, nothing that acts. Names are camelCase on the wire and each
//! type is part of the OpenAPI document or of the runtime's door.

pub mod audit;
pub mod audit_query;
pub mod audit_summary;
pub mod automation;
pub mod csv;
pub mod explain;
pub mod fallback;
pub mod health;
pub mod lists;
pub mod migration;
pub mod notifications;
pub mod problem;
pub mod protocol;
pub mod result;
pub mod runtime;
pub mod session;
pub mod tenant;
pub mod toast;
pub mod toast_frames;
pub mod webhook;
mod words;
