//! Health of the service.

use serde::Serialize;
use utoipa::ToSchema;

use super::runtime::JailStatus;
use crate::domain::{capacity::AlertLevel, clock::Timestamp, ids::InstallationId};

/// Answer to `GET /acp/health`: the state of the service and of its parts.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Health {
    /// State of the whole.
    pub status: ServiceStatus,
    /// Version of the program (semver).
    pub version: &'static str,
    /// Turns by protocol since the start. Absent for a token of a tenant, as are all figures of the whole service.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub protocols: Option<Protocols>,
    /// Workspaces in use, and flips of their routes. Absent for a token of a tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub workspaces: Option<WorkspacesHealth>,
    /// Seats that sessions take, and alerts about them. Absent for a token of a tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub capacity: Option<CapacityHealth>,
    /// State of the database, by a read that was made for this answer.
    pub database: PartHealth,
    /// State of the runtime, as it answered to this request.
    pub runtime: RuntimeHealth,
    /// The jail of the agents; absent if the runtime is unavailable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jail: Option<JailStatus>,
}

/// State of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) enum ServiceStatus {
    /// Everything works.
    Ok,
    /// The database or the runtime is unavailable.
    Degraded,
    /// The service finishes running turns and accepts no new ones.
    Draining,
}

/// State of a part of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) enum PartStatus {
    /// The part works.
    Ok,
    /// The part does not answer.
    Unavailable,
}

/// Level of the open capacity alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) enum CapacityLevel {
    /// No alert is open.
    Ok,
    /// Seats become scarce.
    Warning,
    /// Few or no seats are left.
    Critical,
}

impl From<AlertLevel> for CapacityLevel {
    fn from(level: AlertLevel) -> Self {
        match level {
            AlertLevel::Warning => Self::Warning,
            AlertLevel::Critical => Self::Critical,
        }
    }
}

/// Turns since the start of this process, by protocol.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Protocols {
    /// ACP.
    pub acp: ProtocolHealth,
    /// The HTTP fallback.
    pub http: ProtocolHealth,
}

/// Figures of one protocol since the start of the process.
#[derive(Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProtocolHealth {
    /// Turns that began since the start of this process.
    pub turns_started: u64,
    /// Turns that the agent completed.
    pub turns_completed: u64,
    /// Turns that ended with an error.
    pub turns_failed: u64,
    /// Turns that ended because a caller cancelled them.
    pub turns_cancelled: u64,
    /// Share of all turns that this protocol carried, 0 to 1; null before the first turn.
    pub share: Option<f64>,
    /// Share of successes among the outcomes that decide about a workspace's route, 0 to 1; null before the first one. It
    /// differs from the share of completed turns: handshakes count too; cancelled turns do not count, nor do errors that are
    /// not the protocol's, such as those of a model provider.
    pub success_rate: Option<f64>,
}

/// Workspaces in use, and their routes.
#[derive(Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WorkspacesHealth {
    /// Workspaces whose turns use ACP.
    pub on_acp: u64,
    /// Workspaces whose turns use the HTTP fallback, for any reason.
    pub in_fallback: u64,
    /// Flips to HTTP since the start of this process.
    pub flips_to_http: u64,
    /// Flips back to ACP since the start of this process.
    pub flips_to_acp: u64,
}

/// Seats that sessions take, and alerts about them.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CapacityHealth {
    /// Taken seats. Sessions that are loaded again may exceed the limit.
    pub taken: usize,
    /// Seats up to which new sessions are admitted.
    pub limit: usize,
    /// `ok`, or the level of the open alert.
    pub level: CapacityLevel,
    /// The open alert, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alert: Option<CapacityAlertHealth>,
    /// Seats that one tenant may take.
    pub tenant_limit: usize,
    /// Tenants near their limit, those with most seats first, at most 20.
    pub tenants_near_limit: Vec<TenantSeats>,
}

/// An alert that is open.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CapacityAlertHealth {
    /// Id of the alert in the audit.
    #[schema(value_type = uuid::Uuid)]
    pub alert_id: String,
    /// Time at which it was raised, RFC 3339 in UTC.
    pub since: Timestamp,
}

/// A tenant and its seats.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TenantSeats {
    /// Name of the tenant.
    #[schema(value_type = InstallationId)]
    pub installation_id: String,
    /// Taken seats of the tenant.
    pub taken: usize,
}

/// Health of a part of the service.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PartHealth {
    /// State of the part.
    pub status: PartStatus,
    /// The error, if the part is unavailable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// State of the runtime, as it answered to this request.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RuntimeHealth {
    /// State of the part.
    pub status: PartStatus,
    /// The error, if the part is unavailable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Version of the runtime; absent if it is unavailable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Seconds for which sessions have been waiting for the runtime; absent while it is available.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unavailable_for_s: Option<u64>,
    /// Agent processes that run in the runtime; absent if it is unavailable, and for a token of a tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_processes: Option<u64>,
}

/// `GET /livez` and `GET /readyz`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Probe {
    /// `ok`; otherwise the answer is a problem.
    pub status: PartStatus,
    /// `unavailable` while the runtime does not answer; absent otherwise. The status does not change with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub runtime: Option<PartStatus>,
}
