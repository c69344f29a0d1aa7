use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::flags::{Attribution, CommandError, Confirmation, ServerFlags, flat, show};
use crate::client::ApiClient;

#[derive(Debug, Args)]
pub(crate) struct WorkspaceArgs {
    #[command(flatten)]
    server: ServerFlags,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Prints the route of a workspace, its window and its recovery.
    Show(Named),
    /// Rolls a workspace back to the HTTP fallback until it is restored.
    Rollback {
        #[command(flatten)]
        named: Named,
        #[command(flatten)]
        attribution: Attribution,
    },
    /// Returns a workspace to its default route and removes pin and cool-down; the success window starts empty.
    Restore {
        #[command(flatten)]
        named: Named,
        #[command(flatten)]
        attribution: Attribution,
    },
    /// Pins a workspace to a route, whatever its success rate.
    Pin {
        #[command(flatten)]
        named: Named,
        /// The route: acp or http.
        protocol: String,
        #[command(flatten)]
        attribution: Attribution,
    },
    /// Removes the pin of a workspace.
    Unpin {
        #[command(flatten)]
        named: Named,
        #[command(flatten)]
        attribution: Attribution,
    },
    /// Changes the defaults of a workspace.
    Set {
        #[command(flatten)]
        named: Named,
        /// Default route: acp or http.
        #[arg(long, value_name = "PROTOCOL")]
        default_protocol: Option<String>,
        /// Allows (true) or forbids (false) migrations to move the workspace.
        #[arg(long, value_name = "BOOL")]
        migration_enabled: Option<bool>,
        /// Moves the workspace to ACP automatically while ACP is healthy: true or false.
        #[arg(long, value_name = "BOOL")]
        auto_rollout: Option<bool>,
        #[command(flatten)]
        attribution: Attribution,
    },
    /// Erases a workspace with its sessions, its folder and its records. A folder that was given by path stays.
    Delete {
        #[command(flatten)]
        named: Named,
        #[command(flatten)]
        confirmation: Confirmation,
    },
}

#[derive(Debug, Args)]
struct Named {
    /// Name of the workspace.
    workspace: String,
    /// Name of the tenant; required if several tenants have a workspace of this name.
    #[arg(long, value_name = "NAME")]
    installation: Option<String>,
}

pub(crate) fn run(arguments: WorkspaceArgs) -> Result<ExitCode, CommandError> {
    let json = arguments.server.json;
    arguments.server.with_client(async move |client| {
        let route = act(&client, arguments.action).await?;
        show(&if json { route } else { flat(&route) }, json)?;
        Ok(ExitCode::SUCCESS)
    })
}

async fn act(client: &ApiClient, action: Action) -> Result<Value, CommandError> {
    let (named, verb, body) = match action {
        Action::Show(Named { workspace, installation }) => {
            return Ok(client.protocol(&workspace, installation.as_deref()).await?);
        }
        Action::Delete { named: Named { workspace, installation }, confirmation } => {
            confirmation.ask(&format!("the workspace {workspace}"))?;
            return Ok(client.erase(&["acp", "workspaces", &workspace], installation.as_deref()).await?);
        }
        Action::Rollback { named, attribution } => (named, Some("rollback"), attribution.body()),
        Action::Restore { named, attribution } => (named, Some("restore"), attribution.body()),
        Action::Pin { named, protocol, attribution } => {
            (named, None, attribution.with("pin", json!({"protocol": protocol})))
        }
        Action::Unpin { named, attribution } => (named, None, attribution.with("pin", Value::Null)),
        Action::Set { named, default_protocol, migration_enabled, auto_rollout, attribution } => {
            let mut body = attribution.body();
            let given = [
                ("defaultProtocol", default_protocol.map(Value::from)),
                ("migrationEnabled", migration_enabled.map(Value::from)),
                ("autoRollout", auto_rollout.map(Value::from)),
            ];
            for (name, value) in given.into_iter().filter_map(|(name, value)| Some((name, value?))) {
                body[name] = value;
            }
            (named, None, body)
        }
    };
    let Named { workspace, installation } = named;
    Ok(client.change_protocol(&workspace, installation.as_deref(), verb, &body).await?)
}
