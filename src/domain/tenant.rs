//! Settings of a tenant: its limits, the ceilings that its callers cannot exceed, and its policy of automation.

use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use super::{
    automation::{
        policy::AutomationSettings,
        repository_pattern::{MAX_PATTERNS, RepositoryName, is_pattern},
    },
    limits::UseLimits,
    session::permission::PermissionPolicy,
    turn::transcript::OwnTranscriptLimits,
    words::words,
};

/// The most agents of a ceiling; a configuration has a handful.
pub(crate) const MAX_AGENTS: usize = 100;
/// The longest name of an agent, in characters.
pub(crate) const MAX_AGENT_CHARS: usize = 128;
/// The least bytes of a limit of transcripts, as in the configuration.
pub(crate) const MIN_TRANSCRIPT_BYTES: u64 = 64 << 10;
/// The most bytes of a turn's transcript.
pub(crate) const MAX_TRANSCRIPT_TURN_BYTES: u64 = 1 << 30;
/// The most bytes of a session's transcript.
pub(crate) const MAX_TRANSCRIPT_SESSION_BYTES: u64 = 1 << 40;
/// The most folders of a ceiling.
pub(crate) const MAX_PATHS: usize = 100;
/// The longest path of a folder, in characters.
pub(crate) const MAX_PATH_CHARS: usize = 4096;

words! {
    /// MCP servers that callers may give to a session.
    McpCeiling {
        Nothing = "none",
        /// The servers that the configuration names.
        Listed = "listed",
        Any = "any",
    }
}

words! {
    /// Existing folders that callers may open by `path`.
    PathCeiling {
        Nothing = "none",
        /// Folders in one of the listed paths.
        Listed = "listed",
        /// Folders in one of `workspaces.allow_paths`.
        Any = "any",
    }
}

/// The settings of a tenant. The default limits nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct TenantSettings {
    pub limits: UseLimits,
    pub transcripts: OwnTranscriptLimits,
    pub ceilings: Ceilings,
    pub automation: AutomationSettings,
}

/// Ceilings of the choices of a tenant's callers; `None` leaves the choice to them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Ceilings {
    /// Permission policies that a workspace may get.
    pub permission_policies: Option<Vec<PermissionPolicy>>,
    /// Names of the agents; `default` is the default agent.
    pub agents: Option<Vec<String>>,
    /// Patterns of repositories: `owner/name`, where `*` matches any characters.
    pub repositories: Option<Vec<String>>,
    pub mcp_servers: Option<McpCeiling>,
    pub paths: Option<PathCeiling>,
    /// Absolute paths whose folders [`PathCeiling::Listed`] admits, without `..`.
    pub listed_paths: Option<Vec<String>>,
}

/// True for an absolute path without `..`, so that its text decides what it is in unless there are links.
pub(crate) fn is_plain_path(path: &Path) -> bool {
    path.is_absolute() && !path.components().any(|part| part == Component::ParentDir)
}

impl Ceilings {
    pub(crate) fn admits_policy(&self, policy: PermissionPolicy) -> bool {
        self.permission_policies.as_ref().is_none_or(|admitted| admitted.contains(&policy))
    }

    pub(crate) fn admits_agent(&self, name: &str) -> bool {
        self.agents.as_ref().is_none_or(|admitted| admitted.iter().any(|it| it == name))
    }

    /// True for a repository, in any form of its address, that one of the patterns matches. With patterns, an address that
    /// names no `owner/name` is not admitted.
    pub(crate) fn admits_repository(&self, address: &str) -> bool {
        let Some(patterns) = &self.repositories else { return true };
        RepositoryName::parse(address).is_some_and(|name| patterns.iter().any(|pattern| name.matches(pattern)))
    }
}

impl TenantSettings {
    /// Checks settings that a caller gives.
    ///
    /// # Errors
    /// The member and what it must be.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.automation.check()?;
        let OwnTranscriptLimits { turn_bytes, session_bytes } = self.transcripts;
        for (name, bytes, most) in [
            ("transcriptTurnBytes", turn_bytes, MAX_TRANSCRIPT_TURN_BYTES),
            ("transcriptSessionBytes", session_bytes, MAX_TRANSCRIPT_SESSION_BYTES),
        ] {
            if bytes.is_some_and(|bytes| !(MIN_TRANSCRIPT_BYTES..=most).contains(&bytes)) {
                return Err(format!("limits.{name}: must be {MIN_TRANSCRIPT_BYTES} to {most}"));
            }
        }
        let Ceilings { agents, repositories, listed_paths, .. } = &self.ceilings;
        let is_agent = |name: &String| {
            (1..=MAX_AGENT_CHARS).contains(&name.chars().count()) && !name.chars().any(char::is_control)
        };
        if agents.as_ref().is_some_and(|agents| agents.len() > MAX_AGENTS || !agents.iter().all(is_agent)) {
            return Err(format!(
                "ceilings.agents: at most {MAX_AGENTS} names of 1 to {MAX_AGENT_CHARS} characters each"
            ));
        }
        let is_path = |path: &String| path.chars().count() <= MAX_PATH_CHARS && is_plain_path(Path::new(path));
        if listed_paths.as_ref().is_some_and(|paths| paths.len() > MAX_PATHS || !paths.iter().all(is_path)) {
            return Err(format!("ceilings.listedPaths: at most {MAX_PATHS} absolute paths without .."));
        }
        let patterns = repositories.as_deref().unwrap_or_default();
        if patterns.len() > MAX_PATTERNS {
            return Err(format!("ceilings.repositories: at most {MAX_PATTERNS}"));
        }
        match patterns.iter().position(|pattern| !is_pattern(pattern)) {
            Some(place) => Err(format!(
                "ceilings.repositories: number {} is not owner/name, where * matches any characters",
                place + 1
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_ceiling_admits_everything_and_an_empty_one_nothing() {
        let (open, closed) = (
            Ceilings::default(),
            Ceilings {
                permission_policies: Some(Vec::new()),
                agents: Some(Vec::new()),
                repositories: Some(Vec::new()),
                mcp_servers: Some(McpCeiling::Nothing),
                paths: Some(PathCeiling::Nothing),
                listed_paths: Some(Vec::new()),
            },
        );
        for (ceilings, admits) in [(open, true), (closed, false)] {
            assert_eq!(ceilings.admits_policy(PermissionPolicy::AllowAlways), admits);
            assert_eq!(ceilings.admits_agent("codex"), admits);
            assert_eq!(ceilings.admits_repository("octo/hello"), admits);
        }
    }

    #[test]
    fn repository_ceiling_matches_every_form_of_an_address() {
        let ceilings = Ceilings { repositories: Some(vec!["octo/*".into()]), ..Ceilings::default() };
        for address in ["octo/hello", "https://github.com/Octo/hello.git", "git@github.com:octo/hello.git"] {
            assert!(ceilings.admits_repository(address), "{address}");
        }
        for address in ["other/hello", "https://github.com/octo", "/srv/octo/hello/x"] {
            assert!(!ceilings.admits_repository(address), "{address}");
        }
    }

    #[test]
    fn malformed_ceilings_are_rejected_by_name() {
        let of =
            |ceilings| TenantSettings { ceilings, ..TenantSettings::default() }.check().err().unwrap_or_default();
        let repositories = Some(vec!["a/b".into(), "a".into()]);
        assert!(of(Ceilings { repositories, ..Ceilings::default() }).starts_with("ceilings.repositories: number 2"));
        let agents = Some(vec![String::new()]);
        assert!(of(Ceilings { agents, ..Ceilings::default() }).starts_with("ceilings.agents"));
        for path in ["relative", "", "/srv/../etc"] {
            let listed_paths = Some(vec![path.to_owned()]);
            assert!(
                of(Ceilings { listed_paths, ..Ceilings::default() }).starts_with("ceilings.listedPaths"),
                "{path}"
            );
        }
        assert_eq!(of(Ceilings::default()), "");
    }

    #[test]
    fn settings_read_back_and_unknown_members_are_ignored() {
        let text = r#"{"limits":{"turns":2,"later":1},"ceilings":{"mcpServers":"listed"},"budget":{}}"#;
        let settings: TenantSettings = serde_json::from_str(text).unwrap();
        assert_eq!(settings.limits.turns, Some(2));
        assert_eq!(settings.ceilings.mcp_servers, Some(McpCeiling::Listed));
        let again = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<TenantSettings>(&again).unwrap(), settings);
    }
}
