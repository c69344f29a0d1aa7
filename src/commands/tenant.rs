use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::flags::{CommandError, Confirmation, ServerFlags, flat, show};
use crate::client::ApiClient;

#[derive(Debug, Args)]
pub(crate) struct TenantArgs {
    #[command(flatten)]
    server: ServerFlags,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Prints limits, ceilings and automation of a tenant, and its use now.
    Show {
        /// Name of the tenant.
        tenant: String,
    },
    /// Changes limits, ceilings and automation of a tenant; those without a flag stay. none removes a limit, any a ceiling;
    /// default is the value of the server.
    Set(Box<SetArgs>),
    /// Erases a tenant: all its workspaces with their folders, and its settings.
    Delete {
        /// Name of the tenant.
        tenant: String,
        #[command(flatten)]
        confirmation: Confirmation,
    },
}

#[derive(Debug, Args)]
struct SetArgs {
    /// Name of the tenant.
    tenant: String,
    /// Live sessions up to which new ones are admitted, or none.
    #[arg(long, value_name = "COUNT", value_parser = limit)]
    sessions: Option<Value>,
    /// Turns that run at the same time, or none.
    #[arg(long, value_name = "COUNT", value_parser = limit)]
    turns: Option<Value>,
    /// Prompts that are accepted within 60 s, or none.
    #[arg(long, value_name = "COUNT", value_parser = limit)]
    prompts_per_minute: Option<Value>,
    /// Largest transcript of one turn, in bytes; none for the limit of the server.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    transcript_turn_bytes: Option<Value>,
    /// Largest transcript of one session, in bytes; none for the limit of the server.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    transcript_session_bytes: Option<Value>,
    /// Permission policies that a workspace may get, separated by commas, or any.
    #[arg(long, value_name = "POLICIES", value_parser = list)]
    policies: Option<Value>,
    /// Names of the agents, separated by commas, or any.
    #[arg(long, value_name = "NAMES", value_parser = list)]
    agents: Option<Value>,
    /// Patterns of repositories such as acme/*, separated by commas, or any.
    #[arg(long, value_name = "PATTERNS", value_parser = list)]
    repositories: Option<Value>,
    /// MCP servers that callers may give: none, listed or any; default is the rule of the server.
    #[arg(long, value_name = "CEILING")]
    mcp_servers: Option<String>,
    /// Existing folders that callers may open by path: none, listed or any; default is the rule of the server.
    #[arg(long, value_name = "CEILING")]
    paths: Option<String>,
    /// Folders that listed admits, separated by commas; default is the list of the server.
    #[arg(long, value_name = "FOLDERS", value_parser = list_or_default)]
    listed_paths: Option<Value>,
    /// Ids of the installations of the GitHub App that are bound to the tenant, separated by commas, or none.
    #[arg(long, value_name = "IDS", value_parser = ids)]
    installations: Option<Value>,
    /// Pull requests as drafts: true, false or default.
    #[arg(long, value_name = "BOOL", value_parser = flag)]
    draft: Option<Value>,
    /// Labels of issues and pull requests, separated by commas, or default.
    #[arg(long, value_name = "LABELS", value_parser = list_or_default)]
    labels: Option<Value>,
    /// Logins of the assignees, separated by commas, or default.
    #[arg(long, value_name = "LOGINS", value_parser = list_or_default)]
    assignees: Option<Value>,
    /// Logins of reviewers, and teams such as acme/core, separated by commas, or default.
    #[arg(long, value_name = "LOGINS", value_parser = list_or_default)]
    reviewers: Option<Value>,
    /// Name of branches: a prefix, or text with {name}, {issue}, {session} and {timestamp}, or default.
    #[arg(long, value_name = "TEMPLATE")]
    branch_template: Option<String>,
    /// Patterns of protected paths such as .github/, separated by commas, or default.
    #[arg(long, value_name = "PATTERNS", value_parser = list_or_default)]
    protected_paths: Option<Value>,
    /// Treatment of a change of a protected path: draft, refuse or default.
    #[arg(long, value_name = "WORD")]
    protection: Option<String>,
    /// A name for the log beside the subject of the token, such as the person for whom a program acts.
    #[arg(long, value_name = "NAME")]
    actor: Option<String>,
    /// Why; logged.
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

fn limit(text: &str) -> Result<Value, String> {
    match text {
        "none" => Ok(Value::Null),
        text => text.parse::<u32>().map(Value::from).map_err(|_| "must be a number or none".to_owned()),
    }
}

fn bytes(text: &str) -> Result<Value, String> {
    match text {
        "none" => Ok(Value::Null),
        text => text.parse::<u64>().map(Value::from).map_err(|_| "must be a number or none".to_owned()),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the form of a parser of arguments")]
fn list(text: &str) -> Result<Value, String> {
    match text {
        "any" => Ok(Value::Null),
        text => Ok(parts(text)),
    }
}

fn parts(text: &str) -> Value {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect()
}

/// A list, or the value of the server for `default`.
#[expect(clippy::unnecessary_wraps, reason = "the form of a parser of arguments")]
fn list_or_default(text: &str) -> Result<Value, String> {
    match text {
        "default" => Ok(Value::Null),
        text => Ok(parts(text)),
    }
}

fn ids(text: &str) -> Result<Value, String> {
    let ids = if text == "none" { "" } else { text };
    let ids = ids.split(',').map(str::trim).filter(|id| !id.is_empty()).map(str::parse::<u64>);
    ids.collect::<Result<Vec<_>, _>>().map(Value::from).map_err(|_| "must be numbers or none".to_owned())
}

fn flag(text: &str) -> Result<Value, String> {
    match text {
        "default" => Ok(Value::Null),
        text => text.parse::<bool>().map(Value::from).map_err(|_| "must be true, false or default".to_owned()),
    }
}

/// A word or text; the value of the server for `default`.
fn text_or_default(text: String) -> Value {
    if text == "default" { Value::Null } else { text.into() }
}

pub(crate) fn run(arguments: TenantArgs) -> Result<ExitCode, CommandError> {
    let json = arguments.server.json;
    arguments.server.with_client(async move |client| {
        let settings = match arguments.action {
            Action::Show { tenant } => client.tenant(&tenant).await?,
            Action::Set(set) => change(&client, *set).await?,
            Action::Delete { tenant, confirmation } => {
                confirmation.ask(&format!("the tenant {tenant} with all its workspaces"))?;
                client.erase(&["acp", "tenants", &tenant], None).await?
            }
        };
        show(&if json { settings } else { flat(&settings) }, json)?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Reads the settings, and writes them with those of the flags in place.
async fn change(client: &ApiClient, set: SetArgs) -> Result<Value, CommandError> {
    let limits = [
        ("sessions", set.sessions),
        ("turns", set.turns),
        ("promptsPerMinute", set.prompts_per_minute),
        ("transcriptTurnBytes", set.transcript_turn_bytes),
        ("transcriptSessionBytes", set.transcript_session_bytes),
    ];
    let ceilings = [
        ("permissionPolicies", set.policies),
        ("agents", set.agents),
        ("repositories", set.repositories),
        ("mcpServers", set.mcp_servers.map(text_or_default)),
        ("paths", set.paths.map(text_or_default)),
        ("listedPaths", set.listed_paths),
    ];
    let automation = [
        ("installations", set.installations),
        ("draft", set.draft),
        ("labels", set.labels),
        ("assignees", set.assignees),
        ("reviewers", set.reviewers),
        ("branchTemplate", set.branch_template.map(text_or_default)),
        ("protectedPaths", set.protected_paths),
        ("protection", set.protection.map(text_or_default)),
    ];
    let before = client.tenant(&set.tenant).await?;
    let mut body = json!({"actor": set.actor, "reason": set.reason});
    for (part, given) in [("limits", &limits[..]), ("ceilings", &ceilings), ("automation", &automation)] {
        if given.iter().any(|(_, value)| value.is_some()) {
            body[part] = before[part].clone();
            for (name, value) in given {
                if let Some(value) = value {
                    body[part][name] = value.clone();
                }
            }
        }
    }
    Ok(client.change_tenant(&set.tenant, &body).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_limits_and_lists_are_read() {
        assert_eq!(limit("none"), Ok(Value::Null));
        assert_eq!(limit("0"), Ok(json!(0)));
        assert!(limit("-1").is_err() && limit("many").is_err());
        assert_eq!(list("any"), Ok(Value::Null));
        assert_eq!(list("a, b,"), Ok(json!(["a", "b"])));
        assert_eq!(list(""), Ok(json!([])));
        assert_eq!((list_or_default("default"), text_or_default("default".into())), (Ok(Value::Null), Value::Null));
        assert_eq!(list_or_default(".github/,CODEOWNERS"), Ok(json!([".github/", "CODEOWNERS"])));
        assert_eq!((ids("7, 8"), ids("none")), (Ok(json!([7, 8])), Ok(json!([]))));
        assert!(ids("octo").is_err() && ids("-1").is_err());
        assert_eq!((flag("true"), flag("default")), (Ok(json!(true)), Ok(Value::Null)));
    }
}
