//! Ceilings: what callers may choose for a session at most.

use std::path::Path;

use serde_json::Value;
use url::Url;

use super::{
    session::{mcp::has_vetted_form, permission::PermissionPolicy},
    tenant::{Ceilings, McpCeiling, PathCeiling, is_plain_path},
    turn::outcome::{ErrorCode, Failure},
};

/// The ceilings of the configuration.
#[derive(Debug, Clone, Default)]
pub(crate) struct CeilingRules {
    /// For tenants without a ceiling of their own.
    pub defaults: Ceilings,
    /// MCP servers that `listed` admits: each a URL, or a command with its arguments, separated by spaces.
    pub listed: Vec<String>,
}

/// Choices of a caller.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choices<'a> {
    /// The permission policy, if the caller chooses one.
    pub policy: Option<PermissionPolicy>,
    /// Name of the agent.
    pub agent: &'a str,
    /// Address of the repository, if there is one.
    pub repository: Option<&'a str>,
    /// An existing folder, if the caller names one or the workspace was opened by one.
    pub path: Option<&'a str>,
    /// The MCP servers as a JSON array.
    pub mcp_servers: &'a str,
}

/// Policies from the strictest to the laxest.
const BY_STRICTNESS: [PermissionPolicy; 4] =
    [PermissionPolicy::Reject, PermissionPolicy::Ask, PermissionPolicy::AllowOnce, PermissionPolicy::AllowAlways];

impl CeilingRules {
    /// The ceilings of a tenant with `own` settings. `has_tenants` is true once tenants have tokens of their own: then MCP
    /// servers and paths have to be listed unless a setting says otherwise.
    fn of<'a>(&'a self, own: &'a Ceilings, has_tenants: bool) -> (Ceilings, McpCeiling) {
        let usual = if has_tenants { McpCeiling::Listed } else { McpCeiling::Any };
        let mcp = own.mcp_servers.or(self.defaults.mcp_servers).unwrap_or(usual);
        let usual = if has_tenants { PathCeiling::Listed } else { PathCeiling::Any };
        let ceilings = Ceilings {
            permission_policies: own
                .permission_policies
                .clone()
                .or_else(|| self.defaults.permission_policies.clone()),
            agents: own.agents.clone().or_else(|| self.defaults.agents.clone()),
            repositories: own.repositories.clone().or_else(|| self.defaults.repositories.clone()),
            mcp_servers: Some(mcp),
            paths: own.paths.or(self.defaults.paths).or(Some(usual)),
            listed_paths: own.listed_paths.clone().or_else(|| self.defaults.listed_paths.clone()),
        };
        (ceilings, mcp)
    }

    /// The folders in which a tenant may open others by `path`, without links; `None` for all that the runtime allows.
    pub(crate) fn admitted_paths(&self, own: &Ceilings, has_tenants: bool) -> Option<Vec<String>> {
        let (ceilings, _) = self.of(own, has_tenants);
        match ceilings.paths {
            Some(PathCeiling::Nothing) => Some(Vec::new()),
            Some(PathCeiling::Listed) => Some(ceilings.listed_paths.unwrap_or_default()),
            Some(PathCeiling::Any) | None => None,
        }
    }

    /// Checks the choices of a caller.
    ///
    /// # Errors
    /// `ceiling_exceeded`, with the member that exceeds one.
    pub(crate) fn check(&self, own: &Ceilings, has_tenants: bool, choices: &Choices<'_>) -> Result<(), Failure> {
        let (ceilings, mcp) = self.of(own, has_tenants);
        let exceeds = |detail: String| Err(Failure::new(ErrorCode::CeilingExceeded, detail));
        if let Some(policy) = choices.policy.filter(|policy| !ceilings.admits_policy(*policy)) {
            return exceeds(format!("permissionPolicy: {} is not admitted", policy.as_str()));
        }
        if !ceilings.admits_agent(choices.agent) {
            return exceeds(format!("agent: {} is not admitted", choices.agent));
        }
        if choices.repository.is_some_and(|repository| !ceilings.admits_repository(repository)) {
            return exceeds("repository: it is not admitted".into());
        }
        let paths = self.admitted_paths(own, has_tenants);
        // By the text alone: the runtime follows links, and refuses those that lead elsewhere.
        if paths.zip(choices.path).is_some_and(|(paths, path)| !is_below_one_of(&paths, path)) {
            return exceeds(PATH_NOT_ADMITTED.into());
        }
        let servers: Vec<Value> = serde_json::from_str(choices.mcp_servers).unwrap_or_default();
        match servers.iter().position(|server| !self.admits_server(mcp, server)) {
            Some(index) => {
                exceeds(format!("mcpServers[{index}]: it is not admitted, the ceiling is {}", mcp.as_str()))
            }
            None => Ok(()),
        }
    }

    /// The policy that a workspace gets: `wanted` if it is admitted, else the strictest one that is.
    pub(crate) fn policy(&self, own: &Ceilings, wanted: PermissionPolicy) -> PermissionPolicy {
        let (ceilings, _) = self.of(own, false);
        let admitted = BY_STRICTNESS.into_iter().find(|policy| ceilings.admits_policy(*policy));
        if ceilings.admits_policy(wanted) { wanted } else { admitted.unwrap_or(PermissionPolicy::Reject) }
    }

    fn admits_server(&self, ceiling: McpCeiling, server: &Value) -> bool {
        match ceiling {
            McpCeiling::Any => true,
            McpCeiling::Nothing => false,
            McpCeiling::Listed => has_vetted_form(server) && self.listed.iter().any(|entry| is_listed(entry, server)),
        }
    }
}

/// Detail of the refusal of a `path`. It says nothing about what exists.
pub(crate) const PATH_NOT_ADMITTED: &str = "path: it is not in a folder that the ceilings of the tenant list";

/// True if the text of a path is one of `folders` or below it.
pub(crate) fn is_below_one_of(folders: &[String], path: &str) -> bool {
    let path = Path::new(path);
    is_plain_path(path) && folders.iter().any(|folder| path.starts_with(folder))
}

/// True if an entry of the list names a server: the same command with the same arguments, or a URL of the same origin at
/// or below the same path.
fn is_listed(entry: &str, server: &Value) -> bool {
    match (server["url"].as_str(), server["command"].as_str()) {
        (Some(url), None) => is_below(entry, url),
        (None, Some(command)) => {
            let arguments = server["args"].as_array().into_iter().flatten().map(|it| it.as_str().unwrap_or("\0"));
            entry.split_whitespace().eq(std::iter::once(command).chain(arguments))
        }
        _ => false,
    }
}

fn is_below(entry: &str, url: &str) -> bool {
    let (Ok(entry), Ok(url)) = (Url::parse(entry), Url::parse(url)) else { return false };
    let folder = entry.path().trim_end_matches('/');
    let rest = url.path().strip_prefix(folder);
    entry.origin().is_tuple()
        && entry.origin() == url.origin()
        && rest.is_some_and(|it| it.is_empty() || it.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rules(listed: &[&str]) -> CeilingRules {
        CeilingRules { defaults: Ceilings::default(), listed: listed.iter().map(|it| (*it).to_owned()).collect() }
    }

    fn choices(servers: &str) -> Choices<'_> {
        Choices { policy: None, agent: "default", repository: None, path: None, mcp_servers: servers }
    }

    #[test]
    fn folders_must_be_listed_once_tenants_have_tokens() {
        let rules = rules(&[]);
        let listed = |paths: &[&str]| Some(paths.iter().map(|it| (*it).to_owned()).collect());
        let own = Ceilings { listed_paths: listed(&["/srv/b"]), ..Ceilings::default() };
        let check = |own: &Ceilings, has_tenants, path| {
            rules.check(own, has_tenants, &Choices { path: Some(path), ..choices("[]") })
        };
        for path in ["/srv/b", "/srv/b/", "/srv/b/project"] {
            assert!(check(&own, true, path).is_ok(), "{path}");
        }
        for path in ["/srv/a", "/srv", "/srv/bb", "/srv/b/../a", "srv/b", ""] {
            assert_eq!(check(&own, true, path).unwrap_err().code, ErrorCode::CeilingExceeded, "{path}");
            assert!(check(&own, false, path).is_ok(), "{path}");
        }
        let nothing = Ceilings { paths: Some(PathCeiling::Nothing), ..own.clone() };
        assert!(check(&nothing, false, "/srv/b").is_err() && check(&Ceilings::default(), true, "/srv/b").is_err());
        let any = Ceilings { paths: Some(PathCeiling::Any), ..own };
        assert!(check(&any, true, "/srv/a").is_ok());
    }

    #[test]
    fn listed_servers_match_whole_commands_and_origins() {
        let rules = rules(&["npx -y @acme/mcp", "https://mcp.example.com/tools/"]);
        let own = Ceilings { mcp_servers: Some(McpCeiling::Listed), ..Ceilings::default() };
        let admits = |server: Value| {
            let servers = json!([server]).to_string();
            rules.check(&own, false, &choices(&servers)).is_ok()
        };
        assert!(admits(json!({"name": "a", "command": "npx", "args": ["-y", "@acme/mcp"], "env": []})));
        for url in ["https://mcp.example.com/tools", "https://mcp.example.com/tools/a?b"] {
            assert!(admits(json!({"name": "a", "type": "http", "url": url})), "{url}");
        }
        for server in [
            json!({"name": "a", "command": "npx", "args": ["-y @acme/mcp"]}),
            json!({"name": "a", "command": "npx", "args": ["-y", "@acme/mcp", "--evil"]}),
            json!({"name": "a", "command": "npx", "args": ["-y", "@acme/mcp", 7]}),
            json!({"name": "a", "command": "/tmp/npx", "args": ["-y", "@acme/mcp"]}),
            json!({"name": "a", "type": "http", "url": "https://mcp.example.com/toolsx"}),
            json!({"name": "a", "type": "http", "url": "https://mcp.example.com.evil/tools"}),
            json!({"name": "a", "type": "http", "url": "http://mcp.example.com/tools"}),
            json!({"name": "a", "type": "http", "url": "https://mcp.example.com/tools/../other"}),
            json!({"name": "a", "url": "https://mcp.example.com/tools", "command": "sh"}),
            json!({"name": "a", "command": "npx", "args": ["-y", "@acme/mcp"], "env": [{"name": "PATH", "value": "."}]}),
            json!({"name": "a"}),
        ] {
            assert!(!admits(server.clone()), "{server}");
        }
    }

    #[test]
    fn servers_must_be_listed_once_tenants_have_tokens() {
        let (rules, own) = (rules(&[]), Ceilings::default());
        let servers = json!([{"name": "a", "command": "sh"}]).to_string();
        assert!(rules.check(&own, false, &choices(&servers)).is_ok());
        let refused = rules.check(&own, true, &choices(&servers)).unwrap_err();
        assert!(refused.code == ErrorCode::CeilingExceeded && refused.detail.contains("mcpServers[0]"), "{refused}");
        let any = Ceilings { mcp_servers: Some(McpCeiling::Any), ..Ceilings::default() };
        assert!(rules.check(&any, true, &choices(&servers)).is_ok());
        assert!(rules.check(&own, true, &choices("[]")).is_ok());
    }

    #[test]
    fn policy_beyond_the_ceiling_is_replaced_by_the_strictest_admitted_one() {
        let of = |policies: Option<Vec<PermissionPolicy>>, wanted| {
            let own = Ceilings { permission_policies: policies, ..Ceilings::default() };
            rules(&[]).policy(&own, wanted)
        };
        let (ask, once) = (PermissionPolicy::Ask, PermissionPolicy::AllowOnce);
        assert_eq!(of(None, once), once);
        assert_eq!(of(Some(vec![once, ask]), once), once);
        assert_eq!(of(Some(vec![once, ask]), PermissionPolicy::AllowAlways), ask);
        assert_eq!(of(Some(vec![]), once), PermissionPolicy::Reject);
    }

    #[test]
    fn ceiling_of_the_tenant_replaces_that_of_the_configuration() {
        let only = |agent: &str| Ceilings { agents: Some(vec![agent.to_owned()]), ..Ceilings::default() };
        let rules = CeilingRules { defaults: only("codex"), listed: Vec::new() };
        let check = |own: &Ceilings, agent| rules.check(own, false, &Choices { agent, ..choices("[]") }).is_ok();
        assert!(check(&Ceilings::default(), "codex") && !check(&Ceilings::default(), "goose"));
        assert!(check(&only("goose"), "goose") && !check(&only("goose"), "codex"));
    }
}
