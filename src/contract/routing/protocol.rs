//! The route of a workspace: what carries its turns, why, and how to change it.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{
    contract::inputs::{Actor, ChangeInitiator, Reason},
    domain::{
        clock::Timestamp,
        ids::{InstallationId, WorkspaceId},
        routing::{FlipTrigger, Initiator, Route, Stage, success_window::WindowState},
    },
};

/// Answer to `GET /acp/workspaces/{id}/protocol`: the route of a workspace, and why it is used.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WorkspaceProtocol {
    /// Name of the tenant.
    pub installation_id: InstallationId,
    /// Name of the workspace, unique within its tenant.
    pub workspace_id: WorkspaceId,
    /// Protocol that carries the next turn, unless it is a canary: `acp` or `http`.
    pub route: Route,
    /// Number of flips of the workspace so far.
    pub epoch: u64,
    /// The route when the workspace is neither pinned nor rolled back.
    pub default_protocol: Route,
    /// True if migrations may move the workspace.
    pub migration_enabled: bool,
    /// True if the workspace is moved to ACP automatically while ACP is healthy.
    pub auto_rollout: bool,
    /// The pinned route, which overrides the success window; null if not pinned.
    pub pin: Option<PinInfo>,
    /// The rollback, while the workspace is rolled back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackInfo>,
    /// The success window of ACP.
    pub window: WindowInfo,
    /// Progress of the recovery of ACP after a rollback.
    pub recovery: RecoveryInfo,
}

/// A route that an operator or a user has fixed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PinInfo {
    /// The pinned route: `acp` or `http`.
    pub protocol: Route,
    /// Subject of the token with which the route was pinned.
    pub actor: String,
    /// The name that the request gave as `actor`, if it differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor_note: Option<String>,
    /// The reason that was given, as a sentence.
    pub reason: String,
    /// Time of the change, RFC 3339 in UTC.
    pub since: Timestamp,
}

/// Why a workspace is rolled back.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RollbackInfo {
    /// Trigger of the rollback.
    pub trigger: FlipTrigger,
    /// The reason, in a sentence.
    pub reason: String,
    /// Time of the change, RFC 3339 in UTC.
    pub since: Timestamp,
}

/// The success window of a workspace.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WindowInfo {
    /// `unknown` (too few outcomes), `healthy`, `degraded` or `breached`.
    pub state: WindowState,
    /// Outcomes of ACP turns in the window.
    pub samples: u64,
    /// Number of failures among the samples.
    pub failures: u64,
    /// Share of successes, 0 to 1; null without an outcome.
    pub success_rate: Option<f64>,
    /// Length of the window, in seconds.
    pub length_seconds: u64,
}

/// Progress of the recovery of ACP after a rollback.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RecoveryInfo {
    /// `closed` (ACP carries the turns), `open` (cooling down), `halfOpen` (a probe is under way) or `recovering` (some
    /// turns go over ACP).
    pub stage: Stage,
    /// Failed attempts to recover; each doubles the cool-down.
    pub attempt: u32,
    /// Time of the next probe of ACP, RFC 3339 in UTC; null if none is planned.
    pub next_probe_at: Option<Timestamp>,
    /// Share of turns that use ACP during the canary phase, in hundredths of a percent.
    pub canary_share_bp: u32,
}

/// The tenant of a workspace.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct TenantQuery {
    /// Name of the tenant; optional while only one tenant has a workspace of this name.
    pub installation_id: Option<InstallationId>,
}

/// `PUT /acp/workspaces/{id}/protocol`: absent members stay unchanged.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(examples(json!({"autoRollout": false, "actor": "alice", "reason": "planned maintenance"})))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ProtocolBody {
    /// Name of the tenant, here or in the query; optional while only one tenant has a workspace of this name.
    pub installation_id: Option<InstallationId>,
    /// The route when the workspace is neither pinned nor rolled back.
    pub default_protocol: Option<Route>,
    /// True if migrations may move the workspace.
    pub migration_enabled: Option<bool>,
    /// True if the workspace is moved to ACP automatically while ACP is healthy.
    pub auto_rollout: Option<bool>,
    /// Pins a route; null removes the pin.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<PinBody>)]
    pub pin: Option<Option<PinBody>>,
    /// A name for the audit beside the subject of the token, such as that of the person for whom a program acts. At most 128
    /// characters.
    #[schema(value_type = Option<Actor>)]
    pub actor: Option<String>,
    /// Why; recorded in the audit. At most 500 characters.
    #[schema(value_type = Reason)]
    pub reason: String,
    /// Initiator of the change: `operator` (default) or `user`.
    #[schema(value_type = Option<ChangeInitiator>)]
    pub initiated_by: Option<Initiator>,
}

/// Body of a request to pin the route of a workspace.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PinBody {
    /// The route to pin: `acp` or `http`.
    pub protocol: Route,
}

/// Body of `POST /acp/workspaces/{id}/rollback` and `/restore`: the author and the reason of the change.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(examples(json!({"actor": "alice", "reason": "planned maintenance"})))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct FlipBody {
    /// Name of the tenant, here or in the query; optional while only one tenant has a workspace of this name.
    pub installation_id: Option<InstallationId>,
    /// A name for the audit beside the subject of the token, such as that of the person for whom a program acts. At most 128
    /// characters.
    #[schema(value_type = Option<Actor>)]
    pub actor: Option<String>,
    /// Why; recorded in the audit. At most 500 characters.
    #[schema(value_type = Reason)]
    pub reason: String,
    /// Initiator of the change: `operator` (default) or `user`.
    #[schema(value_type = Option<ChangeInitiator>)]
    pub initiated_by: Option<Initiator>,
}

/// Distinguishes a member that is null from an absent one.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(from).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_set_released_or_left_alone() {
        let of = |pin: &str| -> ProtocolBody {
            serde_json::from_str(&format!(r#"{{"actor":"a","reason":"r"{pin}}}"#)).unwrap()
        };
        assert!(of("").pin.is_none());
        assert!(matches!(of(r#","pin":null"#).pin, Some(None)));
        assert!(matches!(of(r#","pin":{"protocol":"http"}"#).pin, Some(Some(PinBody { protocol: Route::Http }))));
    }
}
