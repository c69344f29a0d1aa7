//! What a tenant wants for its workspaces.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::{
    clock::Timestamp,
    ids::InstallationId,
    routing::{Initiator, Route},
};

/// `GET /acp/tenants/{installationId}/protocol`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TenantProtocolInfo {
    /// The tenant.
    #[schema(value_type = String)]
    pub installation_id: InstallationId,
    /// The route of its new workspaces, where nothing speaks against it.
    #[schema(value_type = String)]
    pub default_protocol: Route,
    /// Whether ACP is used at all; where not, its workspaces work over HTTP.
    pub enable_acp: bool,
    /// Whether migrations may move its workspaces.
    pub allow_migration: bool,
    /// Whether they are moved to ACP by themselves while it is healthy.
    pub auto_migration: bool,
    /// Repositories for which nothing is automated: `owner/name`, where `*` stands for any characters.
    pub blocked_repositories: Vec<String>,
    /// When it was said; null where the tenant never said anything and has the defaults.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub updated_at: Option<Timestamp>,
}

/// `PUT /acp/tenants/{installationId}/protocol`: what is left out stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TenantProtocolBody {
    /// The route of new workspaces. Those that are there keep theirs: moving them is what migrations are for.
    #[schema(value_type = Option<String>)]
    pub default_protocol: Option<Route>,
    /// `false` moves every workspace of the tenant to HTTP. `true` moves none back.
    pub enable_acp: Option<bool>,
    /// Whether migrations may move its workspaces.
    pub allow_migration: Option<bool>,
    /// Whether they are moved to ACP by themselves while it is healthy.
    pub auto_migration: Option<bool>,
    /// Repositories for which nothing is automated, at most 1,000: `owner/name`, where `*` stands for any characters.
    #[schema(max_items = 1000)]
    pub blocked_repositories: Option<Vec<String>>,
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

/// Answer to a change of it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TenantProtocolChanged {
    /// What holds now.
    #[serde(flatten)]
    pub protocol: TenantProtocolInfo,
    /// Workspaces that went from ACP to HTTP by it.
    pub moved: u64,
}
