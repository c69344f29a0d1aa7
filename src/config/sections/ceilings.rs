//! `[ceilings]`: limits of what callers may choose for a session.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{check::Check, workspaces::Workspaces};
use crate::domain::{
    ceilings::CeilingRules,
    session::permission::PermissionPolicy,
    tenant::{self, McpCeiling, PathCeiling, TenantSettings},
};

/// Limits of what callers may choose for a session. A tenant may have ceilings of its own, which replace these: `PUT
/// /acp/tenants/{installationId}`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Ceilings {
    /// Permission policies that a workspace may get; all if not set. A workspace with another one gets the strictest of
    /// these.
    pub permission_policies: Option<Vec<PermissionPolicy>>,
    /// Names of the agents that sessions may use, `default` for the default agent; all if not set. At most 100.
    pub agents: Option<Vec<String>>,
    /// Repositories that may be checked out: `owner/name`, where `*` matches any characters; all if not set. At most 1,000.
    pub repositories: Option<Vec<String>>,
    /// MCP servers that callers may give: `none`, `listed` or `any`. If not set: `any`, and `listed` once a tenant has a
    /// token.
    pub mcp_servers: Option<McpCeiling>,
    /// MCP servers that `listed` admits. Each is a command with its arguments, separated by spaces, or a URL, which admits
    /// URLs of the same origin at or below its path.
    pub listed_mcp_servers: Vec<String>,
    /// Existing folders that callers may open by `path`: `none`, `listed` or `any`. If not set: `any`, and `listed` once a
    /// tenant has a token. Each must be in one of `workspaces.allow_paths`, too.
    pub paths: Option<PathCeiling>,
    /// Folders that `listed` admits for tenants without a list of their own, with the folders in them; none if not set.
    /// Each must be in one of `workspaces.allow_paths`. At most 100.
    pub listed_paths: Option<Vec<PathBuf>>,
}

impl Ceilings {
    pub(crate) fn rules(&self) -> CeilingRules {
        CeilingRules { defaults: self.defaults(), listed: self.listed_mcp_servers.clone() }
    }

    fn defaults(&self) -> tenant::Ceilings {
        tenant::Ceilings {
            permission_policies: self.permission_policies.clone(),
            agents: self.agents.clone(),
            repositories: self.repositories.clone(),
            mcp_servers: self.mcp_servers,
            paths: self.paths,
            listed_paths: self
                .listed_paths
                .as_ref()
                .map(|paths| paths.iter().map(|path| path.to_string_lossy().into_owned()).collect()),
        }
    }

    /// `workspaces` are the folders of the runtime in this process, if there is one.
    pub(super) fn validate(&self, check: &mut Check<'_>, workspaces: Option<&Workspaces>) {
        for (index, path) in self.listed_paths.iter().flatten().enumerate() {
            let is_allowed = workspaces.is_none_or(|workspaces| workspaces.allows(path));
            let what = "must be in one of `workspaces.allow_paths`";
            check.require(is_allowed, format!("ceilings.listed_paths.{index}"), what);
        }
        let settings = TenantSettings { ceilings: self.defaults(), ..TenantSettings::default() };
        if let Err(detail) = settings.check() {
            let (name, rule) = detail.split_once(": ").unwrap_or(("ceilings", &detail));
            check.require(false, name, rule);
        }
        let is_blank = |entry: &String| entry.trim().is_empty();
        let fits = !self.listed_mcp_servers.iter().any(is_blank);
        check.require(fits, "ceilings.listed_mcp_servers", "must not have an empty entry");
    }
}
