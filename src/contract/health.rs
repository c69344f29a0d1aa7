//! How the service is.

use serde::Serialize;
use utoipa::ToSchema;

/// `GET /acp/health`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// `ok`, `degraded` (something below is not ok) or `draining`.
    pub status: &'static str,
    /// Version of the program.
    pub version: &'static str,
    /// Turns by protocol since the start.
    pub protocols: Protocols,
    /// Seats.
    pub capacity: CapacityHealth,
    /// The database.
    pub database: PartHealth,
    /// The runtime.
    pub runtime: RuntimeHealth,
}

/// By protocol.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Protocols {
    /// ACP.
    pub acp: ProtocolHealth,
    /// The HTTP fallback.
    pub http: ProtocolHealth,
}

/// One protocol, since the start of this process.
#[derive(Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProtocolHealth {
    /// Turns that began.
    pub turns_started: u64,
    /// Turns that ended by themselves.
    pub turns_completed: u64,
    /// Turns that failed.
    pub turns_failed: u64,
    /// Turns that were cancelled.
    pub turns_cancelled: u64,
}

/// Seats.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CapacityHealth {
    /// Live sessions.
    pub sessions: usize,
    /// The most there may be.
    pub max_sessions: usize,
}

/// A part that works or does not.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PartHealth {
    /// `ok` or `unavailable`.
    pub status: &'static str,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The runtime.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeHealth {
    /// `ok` or `unavailable`.
    pub status: &'static str,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Agent processes that run now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_processes: Option<u64>,
}

/// `GET /livez` and `GET /readyz`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// `ok`, or why not.
    pub status: &'static str,
}
