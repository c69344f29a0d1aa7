//! A session: its states, its connection, its events, and the permissions its agent asks for.

pub(crate) mod background;
pub(crate) mod choices;
pub(crate) mod connection;
pub(crate) mod context;
pub(crate) mod eta;
pub(crate) mod event;
pub(crate) mod lifecycle;
pub(crate) mod mcp;
pub(crate) mod pending_permissions;
pub(crate) mod permission;
pub(crate) mod preparation;
pub(crate) mod restart;
