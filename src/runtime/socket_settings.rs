//! What the sockets of one runtime share.

use std::sync::Arc;

use tokio::sync::watch;

use super::{agents::Agents, conversations::Conversations, socket::heartbeat::Heartbeats};

/// What every socket is given.
#[derive(Clone)]
pub struct SocketSettings {
    /// Starts agents.
    pub agents: Arc<Agents>,
    /// Keeps those whose client is away.
    pub conversations: Arc<Conversations>,
    /// Turns true when the runtime stops.
    pub stopping: watch::Receiver<bool>,
    /// The largest message, in bytes.
    pub frame_bytes: usize,
    /// How a dead client is noticed.
    pub heartbeats: Heartbeats,
}
