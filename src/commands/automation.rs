use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand, ValueEnum};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::flags::{CommandError, ServerFlags, print, print_json, print_pages, show, shown};
use crate::{
    client::{ApiClient, clean::clean_line},
    config::{self, Environment},
};

#[derive(Debug, Args)]
pub(crate) struct AutomationArgs {
    #[command(flatten)]
    server: ServerFlags,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Lists runs of GitHub automation, the newest first.
    List(Filter),
    /// Prints a run: what was requested, its steps, what it made, and its log.
    Show {
        /// Id of the run.
        run: String,
    },
    /// Lists deliveries of GitHub that started turns by a label or a mention, or were to, the newest first.
    Triggers(TriggerFilter),
    /// Begins another attempt of a run that was not delivered.
    ///
    /// A new token is read from `--github-token-file`, else from the variable `GITHUB_TOKEN`. Without one the attempt uses the
    /// credential of the server.
    Retry {
        /// Id of the run.
        run: String,
        /// File with a GitHub token for the attempt.
        #[arg(long, value_name = "FILE")]
        github_token_file: Option<PathBuf>,
    },
    /// Writes the kept commit of a run that could not be delivered to a file.
    Rescue {
        /// Id of the run.
        run: String,
        /// The file to write; it must not exist.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Form of the file: bundle is for git fetch, patch for git am.
        #[arg(long, value_name = "FORMAT", default_value = "bundle")]
        format: Format,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Bundle,
    Patch,
}

#[derive(Debug, Args)]
struct Filter {
    /// Only runs of this tenant.
    #[arg(long, value_name = "NAME")]
    installation: Option<String>,
    /// Only runs in workspaces of this name.
    #[arg(long, value_name = "NAME")]
    workspace: Option<String>,
    /// Only runs of this session.
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Only runs with this status: running, waiting, success, skipped, error or superseded.
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,
    /// Only runs that began at or after this time, RFC 3339: 2026-11-25T00:00:00Z.
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Only runs that began before this time, RFC 3339.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

#[derive(Debug, Args)]
struct TriggerFilter {
    /// Only deliveries for this tenant.
    #[arg(long, value_name = "NAME")]
    installation: Option<String>,
    /// Only deliveries for the workspace of this name.
    #[arg(long, value_name = "NAME")]
    workspace: Option<String>,
    /// Only deliveries for this session.
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Only deliveries in this state: queued, checked, opened, prompted, answered, ignored or failed.
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// Only deliveries that arrived at or after this time, RFC 3339: 2026-11-25T00:00:00Z.
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Only deliveries that arrived before this time, RFC 3339.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

pub(crate) fn run(arguments: AutomationArgs) -> Result<ExitCode, CommandError> {
    let json = arguments.server.json;
    arguments.server.with_client(async move |client| {
        match arguments.action {
            Action::List(filter) => list(&client, &filter, json).await?,
            Action::Triggers(filter) => list_triggers(&client, &filter, json).await?,
            Action::Show { run } => show_run(&client.automation_run(&run).await?, json)?,
            Action::Retry { run, github_token_file } => {
                let token = github_token(github_token_file.as_deref())?;
                let body = match &token {
                    Some(token) => json!({"githubToken": token.expose_secret()}),
                    None => json!({}),
                };
                show_run(&client.retry_automation(&run, &body).await?, json)?;
            }
            Action::Rescue { run, out, format } => {
                let format = match format {
                    Format::Bundle => "bundle",
                    Format::Patch => "patch",
                };
                let bytes = rescue(&client, &run, format, &out).await?;
                if json {
                    print_json(&json!({"automationId": run, "file": out, "bytes": bytes}))?
                } else {
                    print(&clean_line(&format!("{} ({bytes} bytes)", out.display())))?
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// The token for an attempt, of the file or of the environment; never of an argument, which other users can read.
fn github_token(file: Option<&Path>) -> Result<Option<SecretString>, CommandError> {
    match file {
        Some(file) => config::secret_of_file(file).map(Some).map_err(CommandError::Failed),
        None => Ok(Environment::of_process().get("GITHUB_TOKEN").map(SecretString::from)),
    }
}

async fn list(client: &ApiClient, filter: &Filter, json: bool) -> Result<(), CommandError> {
    let read = async |cursor| {
        let query = json!({
            "installationId": filter.installation, "workspaceId": filter.workspace, "sessionId": filter.session,
            "status": filter.status, "from": filter.from, "until": filter.until, "cursor": cursor,
        });
        client.automation_runs(&query).await
    };
    print_pages(json, row, read).await
}

async fn list_triggers(client: &ApiClient, filter: &TriggerFilter, json: bool) -> Result<(), CommandError> {
    let read = async |cursor| {
        let query = json!({
            "installationId": filter.installation, "workspaceId": filter.workspace, "sessionId": filter.session,
            "state": filter.state, "from": filter.from, "until": filter.until, "cursor": cursor,
        });
        client.automation_triggers(&query).await
    };
    print_pages(json, trigger_row, read).await
}

/// One line of the list of deliveries.
fn trigger_row(of: &Value) -> String {
    let line = format!(
        "{}  {}  {}  {}#{}  {} by {}  {}  {}",
        shown(&of["deliveryId"]),
        shown(&of["createdAt"]),
        shown(&of["installationId"]),
        shown(&of["repository"]),
        shown(&of["number"]),
        shown(&of["cause"]),
        shown(&of["sender"]),
        shown(&of["state"]),
        of["reason"].as_str().unwrap_or_default(),
    );
    clean_line(line.trim_end())
}

/// Writes the kept commit to a new file, and returns its size. After a failure there is no file.
async fn rescue(client: &ApiClient, run: &str, format: &str, out: &Path) -> Result<u64, CommandError> {
    let failed = |cause: std::io::Error| CommandError::failed(&out.display().to_string(), &cause);
    let mut download = client.automation_rescue(run, format).await?;
    let mut file = File::create_new(out).map_err(failed)?;
    let mut bytes = 0;
    let written = async {
        while let Some(chunk) = download.chunk().await? {
            file.write_all(&chunk).map_err(failed)?;
            bytes += chunk.len() as u64;
        }
        file.sync_all().map_err(failed)
    };
    if let Err(cause) = written.await {
        // The first failure is reported.
        let _ = std::fs::remove_file(out);
        return Err(cause);
    }
    Ok(bytes)
}

/// One line of a list.
fn row(run: &Value) -> String {
    let why = ["skipReason", "skipDetail"].map(|name| run[name].as_str().unwrap_or_default());
    let code = run["steps"].as_array().into_iter().flatten().find_map(|step| step["code"].as_str());
    let why = match (why, code) {
        (["", _], code) => code.unwrap_or_default().to_owned(),
        ([reason, ""], _) => reason.to_owned(),
        ([reason, detail], _) => format!("{reason} ({detail})"),
    };
    let request = run["pullRequest"]["url"].as_str().unwrap_or_default();
    let (kept, retry) = (&run["rescue"], run["retryAt"].as_str());
    let kept = if kept.is_null() { "" } else { "  commit kept" };
    let retry = retry.map(|at| format!("  next attempt {at}")).unwrap_or_default();
    let line = format!(
        "{}  {}  {}  {}  {}  attempt {}  {request}{why}{kept}{retry}",
        shown(&run["automationId"]),
        shown(&run["createdAt"]),
        shown(&run["workspaceId"]),
        shown(&run["status"]),
        shown(&run["plan"]["repository"]),
        shown(&run["attempt"]),
    );
    clean_line(line.trim_end())
}

/// Prints a run: one member per line, then its steps and its log; or as JSON.
fn show_run(run: &Value, json: bool) -> Result<(), CommandError> {
    if json {
        return print_json(run);
    }
    let mut members = run.as_object().cloned().unwrap_or_default();
    let (steps, logs) = (members.remove("steps"), members.remove("logs"));
    if let Some(changes) = members.get_mut("changes").and_then(Value::as_object_mut) {
        // The patch has them.
        changes.remove("files");
    }
    members.retain(|_, value| !value.is_null());
    show(&super::flags::flat(&Value::Object(members)), false)?;
    for step in steps.as_ref().and_then(Value::as_array).into_iter().flatten() {
        let text = |name: &str| step[name].as_str().unwrap_or_default();
        let line = format!("step {}: {} {} {}", text("step"), text("state"), text("code"), text("message"));
        print(clean_line(&line).trim_end())?;
    }
    for line in logs.as_ref().and_then(Value::as_array).into_iter().flatten() {
        print(&format!("log {}", shown(line)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_of_a_run_has_its_reason_and_what_is_kept() {
        let mut run = json!({"automationId": "r", "createdAt": "t", "workspaceId": "w", "status": "waiting", "attempt": 2,
            "plan": {"repository": "octo/hello"}, "skipReason": "rateLimited", "skipDetail": "primary-limit",
            "rescue": {"bundleBytes": 1}, "retryAt": "later", "steps": []});
        let expected =
            "r  t  w  waiting  octo/hello  attempt 2  rateLimited (primary-limit)  commit kept  next attempt later";
        assert_eq!(row(&run), expected);
        for name in ["skipReason", "skipDetail", "rescue", "retryAt"] {
            run[name] = Value::Null;
        }
        run["steps"] = json!([{"step": "push", "state": "failed", "code": "behind"}]);
        assert_eq!(row(&run), "r  t  w  waiting  octo/hello  attempt 2  behind");
    }
}
