//! Route defaults of a tenant.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    contract::inputs::{Actor, ChangeInitiator, Reason, RepositoryPattern},
    domain::{
        clock::Timestamp,
        ids::InstallationId,
        routing::{Initiator, Route},
    },
};

/// Answer to `GET /acp/tenants/{installationId}/protocol`: the defaults of a tenant's workspaces.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TenantProtocolInfo {
    /// Name of the tenant.
    pub installation_id: InstallationId,
    /// Default route of new workspaces.
    pub default_protocol: Route,
    /// True if ACP is used; `false`: all workspaces of the tenant use HTTP.
    pub enable_acp: bool,
    /// True if migrations may move workspaces of the tenant.
    pub allow_migration: bool,
    /// True if workspaces are moved to ACP automatically while ACP is healthy.
    pub auto_migration: bool,
    /// Repositories that are never automated: `owner/name`, where `*` matches any characters.
    #[schema(value_type = Vec<RepositoryPattern>)]
    pub blocked_repositories: Vec<String>,
    /// Time of the last change, RFC 3339 in UTC; null for a tenant with the defaults.
    pub updated_at: Option<Timestamp>,
}

/// `PUT /acp/tenants/{installationId}/protocol`: absent members stay unchanged.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(examples(json!({"allowMigration": true, "actor": "alice", "reason": "planned maintenance"})))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TenantProtocolBody {
    /// Default route of new workspaces. Existing workspaces keep theirs: migrations move them.
    pub default_protocol: Option<Route>,
    /// `false` moves every workspace of the tenant to HTTP; `true` moves none back.
    pub enable_acp: Option<bool>,
    /// True if migrations may move workspaces of the tenant.
    pub allow_migration: Option<bool>,
    /// True if workspaces are moved to ACP automatically while ACP is healthy.
    pub auto_migration: Option<bool>,
    /// Repositories that are never automated, at most 1,000: `owner/name`, where `*` matches any characters.
    #[schema(value_type = Option<Vec<RepositoryPattern>>, max_items = 1000)]
    pub blocked_repositories: Option<Vec<String>>,
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

/// Answer to a change of a tenant's defaults.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TenantProtocolChanged {
    /// The defaults after the change.
    #[serde(flatten)]
    pub protocol: TenantProtocolInfo,
    /// Workspaces that were moved from ACP to HTTP.
    pub moved: u64,
}
