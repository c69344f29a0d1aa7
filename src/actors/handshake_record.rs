//! What is kept about each line to an agent, and what its handshake counts for.

use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use super::{messages::OutcomeObserved, parts::Parts, session_shared::SessionSpec, workspace_routing::WorkspaceRouting};
use crate::{
    domain::{
        connection::ConnectionHealth,
        ids::{SessionId, WorkspaceKey},
        outcome::Failure,
        redaction::Redacted,
        routing::Route,
        sampling::sample_of_handshake,
        success_window::bucket_start,
    },
    store::{ConnectionEvent, NewConnection, OutcomeCount},
    transport::AgentFacts,
};
