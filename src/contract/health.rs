//! How the service is.

use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::clock::Timestamp;

/// `GET /acp/health`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Health {
    /// `ok`, `degraded` (something below is not ok) or `draining`.
    pub status: &'static str,
    /// Version of the program.
    pub version: &'static str,
    /// Turns by protocol since the start.
    pub protocols: Protocols,
    /// Workspaces in use, and how often they changed their route.
    pub workspaces: WorkspacesHealth,
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
pub(crate) struct Protocols {
    /// ACP.
    pub acp: ProtocolHealth,
    /// The HTTP fallback.
    pub http: ProtocolHealth,
}

/// One protocol, since the start of this process.
#[derive(Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProtocolHealth {
    /// Turns that began.
    pub turns_started: u64,
    /// Turns that ended by themselves.
    pub turns_completed: u64,
    /// Turns that failed.
    pub turns_failed: u64,
    /// Turns that were cancelled.
    pub turns_cancelled: u64,
    /// The share of all turns that it carried, 0 to 1; null where none began.
    pub share: Option<f64>,
    /// The share of successes among the outcomes that count in a success window, 0 to 1; null where there was none.
    pub success_rate: Option<f64>,
}

/// Workspaces in use, and their routes.
#[derive(Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WorkspacesHealth {
    /// Those whose turns go over ACP now.
    pub on_acp: u64,
    /// Those whose turns go over the HTTP fallback now, for whatever reason.
    pub in_fallback: u64,
    /// Flips to HTTP since the start of this process.
    pub flips_to_http: u64,
    /// Flips back to ACP since the start of this process.
    pub flips_to_acp: u64,
}

/// Seats.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CapacityHealth {
    /// Sessions with a seat; those that come back may be more than the limit.
    pub taken: usize,
    /// The most to which new ones may bring it.
    pub limit: usize,
    /// `ok`, or the level of the open alert: `warning` or `critical`.
    pub level: &'static str,
    /// The open alert.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alert: Option<CapacityAlertHealth>,
    /// The most seats that one tenant may have.
    pub tenant_limit: usize,
    /// Tenants near their share, those with the most seats first, at most 20.
    pub tenants_near_limit: Vec<TenantSeats>,
}

/// An alert that is open.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CapacityAlertHealth {
    /// By which its rows are found.
    pub alert_id: String,
    /// Since when it is open.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
}

/// A tenant and its seats.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TenantSeats {
    /// The tenant.
    pub installation_id: String,
    /// Its sessions with a seat.
    pub taken: usize,
}

/// A part that works or does not.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PartHealth {
    /// `ok` or `unavailable`.
    pub status: &'static str,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The runtime.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RuntimeHealth {
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
pub(crate) struct Probe {
    /// `ok`, or why not.
    pub status: &'static str,
}
