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
    /// Prints limits and ceilings of a tenant, and its use now.
    Show {
        /// Name of the tenant.
        tenant: String,
    },
    /// Changes limits and ceilings of a tenant; those without a flag stay. none removes a limit, any a ceiling.
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
    #[arg(long, value_name = "FOLDERS", value_parser = folders)]
    listed_paths: Option<Value>,
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
        text => Ok(text.split(',').map(str::trim).filter(|name| !name.is_empty()).collect()),
    }
}

fn folders(text: &str) -> Result<Value, String> {
    match text {
        "default" => Ok(Value::Null),
        text => list(text),
    }
}

/// A ceiling by its name; the rule of the server for `default`.
fn ceiling(text: String) -> Value {
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
        ("mcpServers", set.mcp_servers.map(ceiling)),
        ("paths", set.paths.map(ceiling)),
        ("listedPaths", set.listed_paths),
    ];
    let before = client.tenant(&set.tenant).await?;
    let mut body = json!({"actor": set.actor, "reason": set.reason});
    for (part, given) in [("limits", &limits[..]), ("ceilings", &ceilings)] {
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
        assert_eq!((folders("default"), ceiling("default".into())), (Ok(Value::Null), Value::Null));
    }
}
