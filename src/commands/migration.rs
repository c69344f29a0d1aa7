use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::flags::{Attribution, CommandError, ServerFlags, flat, print, print_json, print_pages, show};
use crate::client::{ApiClient, clean::clean_line};

#[derive(Debug, Args)]
pub(crate) struct MigrationArgs {
    #[command(flatten)]
    server: ServerFlags,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Starts moving workspaces to another default route; prints the id of the migration.
    Start(Box<StartArgs>),
    /// Lists migrations, the newest first.
    List {
        /// Only migrations of this tenant.
        #[arg(long, value_name = "NAME")]
        installation: Option<String>,
        /// Only migrations with this status: scheduled, inProgress, paused, succeeded, rolledBack, cancelled or failed.
        #[arg(long, value_name = "STATUS")]
        status: Option<String>,
    },
    /// Prints the progress of a migration and the state of each workspace.
    Show {
        /// Id of the migration.
        migration: String,
    },
    /// Pauses a migration.
    Pause(Named),
    /// Resumes a paused migration.
    Resume(Named),
    /// Ends a migration; workspaces already moved stay moved.
    Cancel(Named),
    /// Moves back exactly the workspaces that the migration moved.
    Rollback(Named),
}

#[derive(Debug, Args)]
struct StartArgs {
    /// Name of the tenant; optional with a token of a tenant.
    #[arg(long, value_name = "NAME")]
    installation: Option<String>,
    /// Default route to move to: acp or http.
    #[arg(long, value_name = "PROTOCOL", default_value = "acp")]
    target: String,
    /// A workspace to move; may be repeated. Without it every workspace of the tenant whose default differs.
    #[arg(long = "workspace", value_name = "NAME")]
    workspaces: Vec<String>,
    /// Starts at this time, RFC 3339: 2026-12-24T03:00:00Z.
    #[arg(long, value_name = "TIME", conflicts_with = "automatic")]
    at: Option<String>,
    /// Moves only while ACP is healthy, and only workspaces with automatic rollout.
    #[arg(long)]
    automatic: bool,
    /// Workspaces per step, 10 if not given.
    #[arg(long, value_name = "N")]
    batch_size: Option<u32>,
    /// Failed moves that are tolerated, 0 if not given; one more fails the migration.
    #[arg(long, value_name = "N")]
    max_failures: Option<u32>,
    #[command(flatten)]
    attribution: Attribution,
}

#[derive(Debug, Args)]
struct Named {
    /// Id of the migration.
    migration: String,
    #[command(flatten)]
    attribution: Attribution,
}

impl StartArgs {
    fn body(self) -> Value {
        let mut body = self.attribution.body();
        body["target"] = self.target.into();
        let mode = match (&self.at, self.automatic) {
            (Some(_), _) => "at",
            (None, true) => "automatic",
            (None, false) => "now",
        };
        body["mode"] = mode.into();
        let given = [
            ("installationId", self.installation.map(Value::from)),
            ("at", self.at.map(Value::from)),
            ("batchSize", self.batch_size.map(Value::from)),
            ("maxFailures", self.max_failures.map(Value::from)),
            ("workspaces", (!self.workspaces.is_empty()).then(|| json!(self.workspaces))),
        ];
        for (name, value) in given.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            body[name] = value;
        }
        body
    }
}

pub(crate) fn run(arguments: MigrationArgs) -> Result<ExitCode, CommandError> {
    let json = arguments.server.json;
    arguments.server.with_client(async move |client| act(&client, arguments.action, json).await)
}

async fn act(client: &ApiClient, action: Action, json: bool) -> Result<ExitCode, CommandError> {
    let (verb, Named { migration, attribution }) = match action {
        Action::Start(arguments) => {
            let begun = client.start_migration(&arguments.body()).await?;
            let id = begun["migrationId"].as_str().unwrap_or_default();
            if json {
                print_json(&begun)?
            } else {
                print(&clean_line(id))?
            }
            return Ok(ExitCode::SUCCESS);
        }
        Action::List { installation, status } => return list(client, installation, status, json).await,
        Action::Show { migration } => {
            show_migration(&client.migration(&migration).await?, json)?;
            return Ok(ExitCode::SUCCESS);
        }
        Action::Pause(named) => ("pause", named),
        Action::Resume(named) => ("resume", named),
        Action::Cancel(named) => ("cancel", named),
        Action::Rollback(named) => ("rollback", named),
    };
    show_migration(&client.change_migration(&migration, verb, &attribution.body()).await?, json)?;
    Ok(ExitCode::SUCCESS)
}

async fn list(
    client: &ApiClient,
    installation: Option<String>,
    status: Option<String>,
    json: bool,
) -> Result<ExitCode, CommandError> {
    let read = async |cursor| {
        client.migrations(&json!({"installationId": installation, "status": status, "cursor": cursor})).await
    };
    print_pages(json, row, read).await?;
    Ok(ExitCode::SUCCESS)
}

/// One line of a list.
fn row(migration: &Value) -> String {
    let text = |name: &str| migration[name].as_str().unwrap_or_default();
    let progress = |name: &str| migration["progress"][name].as_u64().unwrap_or_default();
    let (moved, total) = (progress("moved") + progress("movedBack"), progress("total"));
    let line = format!(
        "{}  {}  {}  to {}  {moved} of {total} moved, {} skipped, {} failed  {}",
        text("migrationId"),
        text("status"),
        text("installationId"),
        text("target"),
        progress("skipped"),
        progress("failed"),
        text("createdAt"),
    );
    clean_line(&line)
}

/// Prints a migration: one member per line, then one workspace per line; or as JSON.
fn show_migration(migration: &Value, json: bool) -> Result<(), CommandError> {
    if json {
        return print_json(migration);
    }
    let mut members = flat(migration);
    let entries = members.as_object_mut().and_then(|members| members.remove("workspaces"));
    show(&members, false)?;
    for entry in entries.as_ref().and_then(Value::as_array).into_iter().flatten() {
        let text = |name: &str| entry[name].as_str().unwrap_or_default();
        let why = [text("reason"), text("detail")].concat();
        let line = format!("{}: {} {why}", text("workspaceId"), text("state"));
        print(clean_line(&line).trim_end())?;
    }
    Ok(())
}
