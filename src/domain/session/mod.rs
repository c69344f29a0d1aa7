//! A session: its states, its connection, its events, and the permissions its agent asks for.

pub mod connection;
pub mod context;
pub mod eta;
pub mod event;
pub mod lifecycle;
pub mod mcp;
pub mod pending_permissions;
pub mod permission;
pub mod restart;
