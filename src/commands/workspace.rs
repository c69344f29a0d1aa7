//! `lumilink workspace …`

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::flags::{Attribution, CommandError, ServerFlags, show};
use crate::client::ApiClient;

/// Which server, and what to do there.
#[derive(Debug, Args)]
pub(crate) struct WorkspaceArgs {
    #[command(flatten)]
    server: ServerFlags,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Prints what carries a workspace's turns, and why.
    Show(Named),
    /// Switches it to the HTTP fallback until it is restored.
    Rollback {
        #[command(flatten)]
        named: Named,
        #[command(flatten)]
        attribution: Attribution,
    },
    /// Switches it back: no pin, no cool-down, a fresh window.
    Restore {
        #[command(flatten)]
        named: Named,
        #[command(flatten)]
        attribution: Attribution,
    },
    /// Holds it on a protocol, whatever the window says.
    Pin {
        #[command(flatten)]
        named: Named,
        /// acp or http.
        protocol: String,
        #[command(flatten)]
        attribution: Attribution,
    },
    /// Releases the pin.
    Unpin {
        #[command(flatten)]
        named: Named,
        #[command(flatten)]
        attribution: Attribution,
    },
    /// Changes its defaults.
    Set {
        #[command(flatten)]
        named: Named,
        /// acp or http.
        #[arg(long, value_name = "PROTOCOL")]
        default_protocol: Option<String>,
        /// Whether a migration may move it.
        #[arg(long, value_name = "BOOL")]
        migration_enabled: Option<bool>,
        /// Whether it is moved to ACP by itself while ACP is healthy.
        #[arg(long, value_name = "BOOL")]
        auto_rollout: Option<bool>,
        #[command(flatten)]
        attribution: Attribution,
    },
}

#[derive(Debug, Args)]
struct Named {
    /// The workspace, by your name for it.
    workspace: String,
    /// The tenant; needed where several have a workspace of this name.
    #[arg(long, value_name = "NAME")]
    installation: Option<String>,
}

/// Does it.
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

/// Members of members on lines of their own: `window.state`.
pub(crate) fn flat(value: &Value) -> Value {
    let mut out = serde_json::Map::new();
    for (name, value) in value.as_object().into_iter().flatten() {
        match value.as_object() {
            Some(inner) => {
                out.extend(inner.iter().map(|(inner, value)| (format!("{name}.{inner}"), value.clone())));
            }
            None => {
                out.insert(name.clone(), value.clone());
            }
        }
    }
    Value::Object(out)
}
