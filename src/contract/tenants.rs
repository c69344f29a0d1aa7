//! Settings of a tenant: limits, ceilings and automation.

use std::fmt::Display;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, Error},
};
use serde_json::Value;
use utoipa::ToSchema;

use super::inputs::{
    AbsolutePath, Actor, AgentName, AutomationLabel, InstallationNumber, Login, ProtectedPath, Reason,
    RepositoryPattern, Reviewer,
};
use crate::domain::{
    automation::{plan::Protection, policy::AutomationSettings},
    clock::Timestamp,
    ids::InstallationId,
    limits::UseLimits,
    session::permission::PermissionPolicy,
    tenant::{Ceilings, McpCeiling, PathCeiling, TenantSettings},
    turn::transcript::OwnTranscriptLimits,
};

/// Limits of a tenant. Null or an absent member is unlimited, and for transcripts the limit of the service.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TenantLimits {
    /// Live sessions up to which new ones are admitted. Sessions that come back are always admitted.
    #[serde(default, deserialize_with = "whole")]
    #[schema(value_type = Option<u64>, maximum = 4_294_967_295_u64)]
    pub sessions: Option<u32>,
    /// Turns that run at the same time.
    #[serde(default, deserialize_with = "whole")]
    #[schema(value_type = Option<u64>, maximum = 4_294_967_295_u64)]
    pub turns: Option<u32>,
    /// Prompts that are accepted within 60 s.
    #[serde(default, deserialize_with = "whole")]
    #[schema(value_type = Option<u64>, maximum = 4_294_967_295_u64)]
    pub prompts_per_minute: Option<u32>,
    /// Largest transcript of one turn, in bytes; null: `limits.transcript_turn_bytes`. Then the transcript of the turn is cut
    /// with a note, and the turn continues.
    #[serde(default, deserialize_with = "whole_bytes")]
    #[schema(minimum = 65_536, maximum = 1_073_741_824_u64)]
    pub transcript_turn_bytes: Option<u64>,
    /// Largest transcript of one session, in bytes; null: `limits.transcript_session_bytes`.
    #[serde(default, deserialize_with = "whole_bytes")]
    #[schema(minimum = 65_536, maximum = 1_099_511_627_776_u64)]
    pub transcript_session_bytes: Option<u64>,
}

impl TenantLimits {
    /// The limits of transcripts.
    pub(crate) fn transcripts(&self) -> OwnTranscriptLimits {
        OwnTranscriptLimits { turn_bytes: self.transcript_turn_bytes, session_bytes: self.transcript_session_bytes }
    }

    /// The limits of a tenant with these settings.
    pub(crate) fn of(settings: &TenantSettings) -> Self {
        let UseLimits { sessions, turns, prompts_per_minute } = settings.limits;
        let OwnTranscriptLimits { turn_bytes, session_bytes } = settings.transcripts;
        Self {
            sessions,
            turns,
            prompts_per_minute,
            transcript_turn_bytes: turn_bytes,
            transcript_session_bytes: session_bytes,
        }
    }
}

/// Limits of a token; null or an absent member is unlimited.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TokenLimits {
    /// Live sessions that the token opened, up to which it opens new ones. Sessions that come back are always admitted, and
    /// counted.
    #[serde(default, deserialize_with = "whole")]
    #[schema(value_type = Option<u64>, maximum = 4_294_967_295_u64)]
    pub sessions: Option<u32>,
    /// Turns that run at the same time.
    #[serde(default, deserialize_with = "whole")]
    #[schema(value_type = Option<u64>, maximum = 4_294_967_295_u64)]
    pub turns: Option<u32>,
    /// Prompts that are accepted within 60 s.
    #[serde(default, deserialize_with = "whole")]
    #[schema(value_type = Option<u64>, maximum = 4_294_967_295_u64)]
    pub prompts_per_minute: Option<u32>,
}

/// Ceilings of the choices of a tenant's callers; null or an absent member leaves the choice to them.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TenantCeilings {
    /// Permission policies that a workspace may get.
    pub permission_policies: Option<Vec<PermissionPolicy>>,
    /// Names of the agents, at most 100; `default` is the default agent.
    #[schema(value_type = Option<Vec<AgentName>>, max_items = 100)]
    pub agents: Option<Vec<String>>,
    /// Patterns of repositories, at most 1,000: `owner/name`, where `*` matches any characters.
    #[schema(value_type = Option<Vec<RepositoryPattern>>, max_items = 1000)]
    pub repositories: Option<Vec<String>>,
    /// MCP servers that callers may give.
    pub mcp_servers: Option<McpCeiling>,
    /// Existing folders that callers may open by `path`; each must also be in one of `workspaces.allow_paths`.
    pub paths: Option<PathCeiling>,
    /// Folders that `listed` admits, with those in them, at most 100: absolute paths without `..`, each in one of
    /// `workspaces.allow_paths`. Null: `ceilings.listed_paths` of the configuration.
    #[schema(value_type = Option<Vec<AbsolutePath>>, max_items = 100)]
    pub listed_paths: Option<Vec<String>>,
}

/// Automation of a tenant. Null or an absent member is the value of `[github]`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TenantAutomation {
    /// Installations of the GitHub App that are bound to the tenant, at most 100 ids. Runs without a `githubToken` use the
    /// App for repositories of these installations alone; null is an empty list.
    #[serde(default, deserialize_with = "ids")]
    #[schema(value_type = Option<Vec<InstallationNumber>>, max_items = 100)]
    pub installations: Vec<u64>,
    /// True to open pull requests as drafts; null: `github.draft`.
    pub draft: Option<bool>,
    /// Labels of issues and pull requests, at most 20; null: `automated` and `claude-prompt`.
    #[schema(value_type = Option<Vec<AutomationLabel>>, max_items = 20)]
    pub labels: Option<Vec<String>>,
    /// Logins of the assignees, at most 10; null: none.
    #[schema(value_type = Option<Vec<Login>>, max_items = 10)]
    pub assignees: Option<Vec<String>>,
    /// Logins of reviewers, and teams as `owner/team`, at most 15; null: none.
    #[schema(value_type = Option<Vec<Reviewer>>, max_items = 15)]
    pub reviewers: Option<Vec<String>>,
    /// Name of branches: a prefix, or text with `{name}`, `{issue}`, `{session}` and `{timestamp}`; null:
    /// `github.branch_template`. It must make a valid name, and another one for each session.
    #[schema(max_length = 200)]
    pub branch_template: Option<String>,
    /// Patterns of protected paths, at most 200: `.github/` is a folder, `docs/owners.txt` a path, and `CODEOWNERS` a name in
    /// any folder; null: `github.protected_paths`.
    #[schema(value_type = Option<Vec<ProtectedPath>>, max_items = 200)]
    pub protected_paths: Option<Vec<String>>,
    /// Treatment of a change of a protected path: `draft` opens the pull request as a draft, `refuse` skips the run and
    /// keeps the commit; null: `github.protection`.
    pub protection: Option<Protection>,
}

/// Answer to `GET /acp/tenants/{installationId}`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TenantInfo {
    /// Name of the tenant.
    pub installation_id: InstallationId,
    pub limits: TenantLimits,
    pub ceilings: TenantCeilings,
    pub automation: TenantAutomation,
    /// Live sessions of the tenant.
    pub live_sessions: u32,
    /// Turns of the tenant that run.
    pub running_turns: u32,
    /// Time of the last change, RFC 3339 in UTC; null for a tenant with the defaults.
    pub updated_at: Option<Timestamp>,
}

/// `PUT /acp/tenants/{installationId}`: each part that is given replaces the earlier one as a whole.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(examples(json!({
    "limits": {"sessions": 20, "turns": 10, "promptsPerMinute": 60},
    "ceilings": {"permissionPolicies": ["allow-once", "ask", "reject"], "repositories": ["acme/*"]},
    "automation": {"installations": [48_151_623], "draft": true, "reviewers": ["acme/core"], "protection": "refuse"},
    "actor": "alice", "reason": "the contract of acme"
})))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TenantBody {
    #[serde(default, deserialize_with = "object")]
    pub limits: Option<TenantLimits>,
    #[serde(default, deserialize_with = "object")]
    pub ceilings: Option<TenantCeilings>,
    #[serde(default, deserialize_with = "object")]
    pub automation: Option<TenantAutomation>,
    /// A name for the log beside the subject of the token, such as that of the person for whom a program acts. At most 128
    /// characters.
    #[schema(value_type = Option<Actor>)]
    pub actor: Option<String>,
    /// Why; logged. At most 500 characters.
    #[schema(value_type = Reason)]
    pub reason: String,
}

/// An object, and not the list of its members that serde takes as well.
pub(super) fn object<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Option<T>, D::Error> {
    let Some(members) = Option::<serde_json::Map<String, Value>>::deserialize(from)? else { return Ok(None) };
    T::deserialize(Value::Object(members)).map(Some).map_err(D::Error::custom)
}

/// A whole number, also one that is written with a fraction of zero: JSON Schema takes it as an integer.
fn whole<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    whole_up_to(from, u32::MAX)
}

/// As [`whole`]; the settings check the range.
fn whole_bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    whole_up_to(from, u64::MAX)
}

fn whole_up_to<'de, D: Deserializer<'de>, T: TryFrom<u64> + Display>(
    from: D,
    most: T,
) -> Result<Option<T>, D::Error> {
    let Some(number) = Option::<serde_json::Number>::deserialize(from)? else { return Ok(None) };
    let whole = number.as_u64().or_else(|| {
        let given = number.as_f64().filter(|given| given.fract() == 0.0)?;
        format!("{given:.0}").parse().ok()
    });
    let fits = whole.and_then(|whole| T::try_from(whole).ok());
    fits.map(Some).ok_or_else(|| D::Error::custom(format!("{number} is not a whole number from 0 to {most}")))
}

/// Ids, also those that are written with a fraction of zero; null is an empty list.
fn ids<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u64>, D::Error> {
    #[derive(Deserialize)]
    struct Id(#[serde(deserialize_with = "whole_bytes")] Option<u64>);
    let given = Option::<Vec<Id>>::deserialize(from)?.unwrap_or_default();
    let ids = given.into_iter().map(|Id(id)| id.ok_or_else(|| D::Error::custom("an installation is null")));
    ids.collect()
}

impl From<&TenantLimits> for UseLimits {
    fn from(given: &TenantLimits) -> Self {
        let TenantLimits { sessions, turns, prompts_per_minute, .. } = *given;
        Self { sessions, turns, prompts_per_minute }
    }
}

impl From<TokenLimits> for UseLimits {
    fn from(given: TokenLimits) -> Self {
        let TokenLimits { sessions, turns, prompts_per_minute } = given;
        Self { sessions, turns, prompts_per_minute }
    }
}

impl From<UseLimits> for TokenLimits {
    fn from(kept: UseLimits) -> Self {
        let UseLimits { sessions, turns, prompts_per_minute } = kept;
        Self { sessions, turns, prompts_per_minute }
    }
}

impl From<TenantCeilings> for Ceilings {
    fn from(given: TenantCeilings) -> Self {
        let TenantCeilings { permission_policies, agents, repositories, mcp_servers, paths, listed_paths } = given;
        Self { permission_policies, agents, repositories, mcp_servers, paths, listed_paths }
    }
}

impl From<Ceilings> for TenantCeilings {
    fn from(kept: Ceilings) -> Self {
        let Ceilings { permission_policies, agents, repositories, mcp_servers, paths, listed_paths } = kept;
        Self { permission_policies, agents, repositories, mcp_servers, paths, listed_paths }
    }
}

impl From<TenantAutomation> for AutomationSettings {
    fn from(given: TenantAutomation) -> Self {
        let TenantAutomation { mut installations, draft, labels, assignees, reviewers, .. } = given;
        let TenantAutomation { branch_template, protected_paths, protection, .. } = given;
        installations.sort_unstable();
        installations.dedup();
        Self { installations, draft, labels, assignees, reviewers, branch_template, protected_paths, protection }
    }
}

impl From<AutomationSettings> for TenantAutomation {
    fn from(kept: AutomationSettings) -> Self {
        let AutomationSettings { installations, draft, labels, assignees, reviewers, .. } = kept;
        let AutomationSettings { branch_template, protected_paths, protection, .. } = kept;
        Self { installations, draft, labels, assignees, reviewers, branch_template, protected_paths, protection }
    }
}
