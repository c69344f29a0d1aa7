//! The route of a workspace: what carries its turns, why, and how it is changed.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::domain::{
    clock::Timestamp,
    ids::{InstallationId, WorkspaceId},
    routing::{FlipTrigger, Initiator, Route, Stage, success_window::WindowState},
};

/// The longest actor of a change, in characters: a name or an address.
pub(crate) const MAX_ACTOR_CHARS: usize = 128;
/// The longest reason of a change, in characters: a sentence or two.
pub(crate) const MAX_REASON_CHARS: usize = 500;

/// `GET /acp/workspaces/{id}/protocol`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WorkspaceProtocol {
    /// The tenant.
    #[schema(value_type = String)]
    pub installation_id: InstallationId,
    /// The tenant's name for the workspace.
    #[schema(value_type = String)]
    pub workspace_id: WorkspaceId,
    /// What carries the next turn, canaries aside: `acp` or `http`.
    #[schema(value_type = String)]
    pub route: Route,
    /// Counts up with each flip.
    pub epoch: u64,
    /// The route where nothing speaks against it.
    #[schema(value_type = String)]
    pub default_protocol: Route,
    /// Whether a migration may move it.
    pub migration_enabled: bool,
    /// Whether it is moved to ACP by itself while ACP is healthy.
    pub auto_rollout: bool,
    /// A route that beats the window until it is released; null where there is none.
    pub pin: Option<PinInfo>,
    /// Why it is rolled back, while it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackInfo>,
    /// How well ACP does.
    pub window: WindowInfo,
    /// The way back to ACP.
    pub recovery: RecoveryInfo,
}

/// A pinned route.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PinInfo {
    /// Which route.
    #[schema(value_type = String)]
    pub protocol: Route,
    /// Who pinned it.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// Since when, RFC 3339 in UTC.
    #[schema(value_type = String, format = "date-time")]
    pub since: Timestamp,
}

/// Why a workspace is rolled back.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RollbackInfo {
    /// What flipped it.
    #[schema(value_type = String)]
    pub trigger: FlipTrigger,
    /// Why, in a sentence.
    pub reason: String,
    /// Since when, RFC 3339 in UTC.
    #[schema(value_type = String, format = "date-time")]
    pub since: Timestamp,
}

/// What the success window holds.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WindowInfo {
    /// `unknown` (too few outcomes), `healthy`, `degraded` or `breached`.
    #[schema(value_type = String)]
    pub state: WindowState,
    /// Outcomes over ACP.
    pub samples: u64,
    /// Those that failed.
    pub failures: u64,
    /// The share of successes, 0 to 1; null where there was no outcome.
    pub success_rate: Option<f64>,
    /// How far back it looks.
    pub length_seconds: u64,
}

/// The way back to ACP.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RecoveryInfo {
    /// `closed` (ACP carries the turns), `open` (cooling down), `halfOpen` (a probe is under way) or `recovering` (some
    /// turns go over ACP).
    #[schema(value_type = String)]
    pub stage: Stage,
    /// Tries to recover that failed lately; each doubles the cool-down.
    pub attempt: u32,
    /// When ACP is probed next, RFC 3339 in UTC; null where no probe is due.
    #[schema(value_type = Option<String>, format = "date-time")]
    pub next_probe_at: Option<Timestamp>,
    /// The share of turns that go over ACP while it is tried, in hundredths of a percent.
    pub canary_share_bp: u32,
}

/// Which tenant's workspace.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct TenantQuery {
    /// The tenant; may be left out where the workspace's name is not ambiguous.
    #[param(value_type = Option<String>)]
    pub installation_id: Option<InstallationId>,
}

/// `PUT /acp/workspaces/{id}/protocol`: what is left out stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ProtocolBody {
    /// The route where nothing speaks against it.
    #[schema(value_type = Option<String>)]
    pub default_protocol: Option<Route>,
    /// Whether a migration may move it.
    pub migration_enabled: Option<bool>,
    /// Whether it is moved to ACP by itself while ACP is healthy.
    pub auto_rollout: Option<bool>,
    /// Pins a route; null releases the pin.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<PinBody>)]
    pub pin: Option<Option<PinBody>>,
    /// Who wants it, at most 128 characters.
    #[schema(max_length = 128)]
    pub actor: String,
    /// Why, at most 500 characters.
    #[schema(max_length = 500)]
    pub reason: String,
    /// In whose name: `operator` (default) or `user`.
    #[schema(value_type = Option<String>)]
    pub initiated_by: Option<Initiator>,
}

/// A route to pin.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PinBody {
    /// `acp` or `http`.
    #[schema(value_type = String)]
    pub protocol: Route,
}

/// `POST /acp/workspaces/{id}/rollback` and `/restore`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct FlipBody {
    /// Who wants it, at most 128 characters.
    #[schema(max_length = 128)]
    pub actor: String,
    /// Why, at most 500 characters.
    #[schema(max_length = 500)]
    pub reason: String,
    /// In whose name: `operator` (default) or `user`.
    #[schema(value_type = Option<String>)]
    pub initiated_by: Option<Initiator>,
}

/// Tells a member that is null from one that is left out.
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
