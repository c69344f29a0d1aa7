use std::{
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use secrecy::SecretString;
use serde_json::{Value, json};

use super::flags::{CommandError, Confirmation, ServerFlags, print, print_json, print_pages, show, shown};
use crate::{
    client::{
        ApiClient, AutomationRequest, NewSession, PromptRequest, SessionFilter,
        clean::{clean, clean_line},
        console::{ConsoleOptions, run_turn},
        printer::plan_lines,
    },
    config,
    contract::runtime::{ChangeStatus, WorkspaceDiff},
};

/// The longest prompt read from standard input, in bytes; more than a server accepts by default.
const MAX_PROMPT_BYTES: u64 = 64 * 1024 * 1024;

#[derive(Debug, Args)]
pub(crate) struct SessionArgs {
    #[command(flatten)]
    server: ServerFlags,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Opens a session and prints its id.
    New(NewArgs),
    /// Runs one prompt and shows the turn. Asks for permissions on a terminal. Exit code 0 only for a completed turn;
    /// Ctrl-C cancels it.
    Prompt(PromptArgs),
    /// Cancels the running turn.
    Cancel {
        /// Id of the session.
        session: String,
        /// Cancels only the turn with this id, which session prompt prints.
        #[arg(long, value_name = "ID")]
        prompt: Option<String>,
    },
    /// Prints the transcript: messages, tool calls and notes.
    Transcript {
        /// Id of the session.
        session: String,
    },
    /// Lists sessions.
    List(ListArgs),
    /// Prints the state of a session.
    Show {
        /// Id of the session.
        session: String,
    },
    /// Brings back a hibernated, expired, interrupted or failed session.
    Load {
        /// Id of the session.
        session: String,
    },
    /// Prints the changes in the workspace of a session as a diff.
    Diff {
        /// Id of the session.
        session: String,
    },
    /// Explains which route carries the turns of a session and why, with its history.
    Explain {
        /// Id of the session.
        session: String,
    },
    /// Ends a session for good: its agent ends and its seat is free.
    Close {
        /// Id of the session.
        session: String,
    },
    /// Erases a session: its turns, its transcript, its records, and the agent's own history if the agent offers that.
    Delete {
        /// Id of the session.
        session: String,
        #[command(flatten)]
        confirmation: Confirmation,
    },
}

#[derive(Debug, Args)]
struct NewArgs {
    /// Name of the workspace; a new name makes a new workspace.
    #[arg(long, value_name = "NAME")]
    workspace: String,
    /// Name of the tenant; optional with a token of a tenant.
    #[arg(long, value_name = "NAME")]
    installation: Option<String>,
    /// The user for whom the session works.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// owner/name or a URL to clone into a new workspace.
    #[arg(long, value_name = "REPOSITORY", conflicts_with = "path")]
    repository: Option<String>,
    /// Branch of the repository.
    #[arg(long, value_name = "NAME", requires = "repository")]
    branch: Option<String>,
    /// File with a GitHub token, which clones a private repository and delivers the changes of turns.
    #[arg(long, value_name = "FILE", requires = "repository")]
    github_token_file: Option<PathBuf>,
    /// true for a folder of its own, false to share that of the workspace; without it true if changes become pull requests.
    #[arg(long, value_name = "BOOL", requires = "repository")]
    isolate: Option<bool>,
    /// Number of a pull request of the repository on which the session works.
    #[arg(long, value_name = "NUMBER", requires = "repository", conflicts_with = "branch")]
    pull_request: Option<u64>,
    /// Existing folder on the server, under one of `workspaces.allow_paths`.
    #[arg(long, value_name = "FOLDER")]
    path: Option<String>,
    /// Name of a configured agent; without it the default agent.
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// development (default) or conversation, which has no git.
    #[arg(long, value_name = "MODE")]
    mode: Option<String>,
    /// Permission policy of the workspace: allow-once, allow-always, reject or ask.
    #[arg(long, value_name = "POLICY")]
    permission: Option<String>,
}

#[derive(Debug, Args)]
struct PromptArgs {
    /// Id of the session.
    session: String,
    /// The prompt; - reads it from standard input.
    text: String,
    /// Delivery of the changes in a repository: github (issue, branch and pull request; default), commit-only (the branch
    /// alone) or none.
    #[arg(long, value_name = "MODE")]
    automation: Option<String>,
    /// Shows what would be delivered, and changes nothing at GitHub.
    #[arg(long)]
    dry_run: bool,
    /// File with a GitHub token for this turn.
    #[arg(long, value_name = "FILE")]
    github_token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Only sessions of this tenant.
    #[arg(long, value_name = "NAME")]
    installation: Option<String>,
    /// Only sessions of this workspace.
    #[arg(long, value_name = "NAME")]
    workspace: Option<String>,
    /// Only sessions in one of these states, separated by commas.
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
}

pub(crate) fn run(arguments: SessionArgs) -> Result<ExitCode, CommandError> {
    let json = arguments.server.json;
    arguments.server.with_client(async move |client| act(&client, arguments.action, json).await)
}

async fn act(client: &ApiClient, action: Action, json: bool) -> Result<ExitCode, CommandError> {
    match action {
        Action::New(arguments) => {
            let opened = client.new_session(&arguments.try_into()?).await?;
            if json { print_json(&opened)? } else { print(&clean_line(&opened.session_id))? }
        }
        Action::Prompt(PromptArgs { session, text, automation, dry_run, github_token_file }) => {
            let from_stdin = text == "-";
            let text = if from_stdin { read_stdin()? } else { text };
            let is_asked = automation.is_some() || dry_run;
            let request = PromptRequest {
                automation: is_asked.then_some(AutomationRequest { mode: automation, dry_run }),
                github_token: token_of(github_token_file.as_deref())?,
                ..PromptRequest::text(session, text)
            };
            let completed = run_turn(client, request, ConsoleOptions { json, ask: !from_stdin }).await?;
            return Ok(if completed { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Action::Cancel { session, prompt } => {
            let cancelled = client.cancel(&session, prompt.as_deref()).await?;
            let line = if cancelled { "cancelled" } else { "no turn was running" };
            if json { print_json(&json!({"cancelled": cancelled}))? } else { print(line)? }
        }
        Action::Transcript { session } => transcript(client, &session, json).await?,
        Action::List(arguments) => list(client, arguments, json).await?,
        Action::Show { session } => show(&client.session(&session).await?, json)?,
        Action::Load { session } => show(&client.load(&session).await?, json)?,
        Action::Diff { session } => {
            let diff = client.diff(&session).await?;
            if json { print_json(&diff)? } else { print(&diff_text(&diff))? }
        }
        Action::Explain { session } => {
            let story = client.explain(&session).await?;
            if json { print_json(&story)? } else { print(story_text(&story).trim_end())? }
        }
        Action::Close { session } => {
            client.close(&session).await?;
            if json { print_json(&json!({"closed": true}))? } else { print("closed")? }
        }
        Action::Delete { session, confirmation } => {
            confirmation.ask(&format!("the session {session}"))?;
            show(&client.erase(&["acp", "session", &session], None).await?, json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn transcript(client: &ApiClient, session: &str, json: bool) -> Result<(), CommandError> {
    let mut cursor = None;
    loop {
        let page = client.transcript(session, cursor.as_deref(), None).await?;
        for entry in &page.items {
            if json { print_json(entry)? } else { print(&entry_text(entry))? }
        }
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Ok(());
        }
    }
}

async fn list(client: &ApiClient, arguments: ListArgs, json: bool) -> Result<(), CommandError> {
    let filter = SessionFilter {
        installation_id: arguments.installation,
        workspace_id: arguments.workspace,
        state: arguments.state,
        ..SessionFilter::default()
    };
    print_pages(json, session_row, async |cursor| client.sessions(&SessionFilter { cursor, ..filter.clone() }).await)
        .await
}

fn read_stdin() -> Result<String, CommandError> {
    let mut text = String::new();
    let mut input = std::io::stdin().lock().take(MAX_PROMPT_BYTES);
    input.read_to_string(&mut text).map_err(|cause| CommandError::failed("standard input", &cause))?;
    Ok(text)
}

/// The token in a file; never one in an argument, which other users can read.
fn token_of(file: Option<&Path>) -> Result<Option<SecretString>, CommandError> {
    file.map(config::secret_of_file).transpose().map_err(CommandError::Failed)
}

impl TryFrom<NewArgs> for NewSession {
    type Error = CommandError;

    fn try_from(arguments: NewArgs) -> Result<Self, CommandError> {
        Ok(Self {
            workspace_id: arguments.workspace,
            installation_id: arguments.installation,
            user_id: arguments.user,
            repository: arguments.repository,
            branch: arguments.branch,
            isolate: arguments.isolate,
            pull_request: arguments.pull_request,
            path: arguments.path,
            agent: arguments.agent,
            mode: arguments.mode,
            permission_policy: arguments.permission,
            github_token: token_of(arguments.github_token_file.as_deref())?,
        })
    }
}

/// One entry of a transcript.
pub(crate) fn entry_text(entry: &Value) -> String {
    let kind = clean_line(entry["eventType"].as_str().unwrap_or("entry"));
    let text = entry["text"].as_str().filter(|text| !text.is_empty());
    let content = match (text, &entry["payload"]) {
        (Some(text), _) => clean(text),
        (None, Value::Null) => String::new(),
        // The payload is JSON, or a string that contains JSON.
        (None, Value::String(payload)) => payload_text(&serde_json::from_str(payload).unwrap_or_default()),
        (None, payload) => payload_text(payload),
    };
    format!("[{kind}] {}", content.trim_end())
}

/// The steps of a plan, the size of a context, or title and status of another update; the whole update without these.
fn payload_text(payload: &Value) -> String {
    if payload["entries"].is_array() {
        return plan_lines(&payload["entries"]).join("\n");
    }
    if let (Some(used), Some(size)) = (payload["used"].as_u64(), payload["size"].as_u64()) {
        return format!("{used} of {size} tokens of the context");
    }
    let parts: Vec<_> =
        ["title", "status"].iter().filter_map(|name| payload[*name].as_str()).map(clean_line).collect();
    if parts.is_empty() { clean_line(&payload.to_string()) } else { parts.join(", ") }
}

/// One line of the list of sessions.
pub(crate) fn session_row(session: &Value) -> String {
    let shown = |name: &str| session[name].as_str().map_or_else(|| "-".to_owned(), clean_line);
    ["sessionId", "state", "installationId", "workspaceId", "lastUsedAt"].map(shown).join("  ")
}

/// The explanation, then the timeline, oldest first.
pub(crate) fn story_text(story: &Value) -> String {
    let mut out = format!("{}\n\n", shown(&story["answer"]));
    if story["truncated"] == true {
        out.push_str("… (older entries omitted)\n");
    }
    for entry in story["timeline"].as_array().into_iter().flatten() {
        let (at, kind) = (shown(&entry["at"]), shown(&entry["kind"]));
        out.push_str(&format!("{at:<27}  {kind:<12}  {}\n", shown(&entry["summary"])));
    }
    out
}

/// The changed files, then the patch.
pub(crate) fn diff_text(diff: &WorkspaceDiff) -> String {
    let mut out = String::new();
    for file in &diff.files {
        let mark = match file.status {
            ChangeStatus::Added => 'A',
            ChangeStatus::Modified => 'M',
            ChangeStatus::Deleted => 'D',
        };
        out.push_str(&format!("{mark} {}\n", clean_line(&file.path)));
    }
    for omitted in &diff.omitted {
        out.push_str(&format!("! {}: {}\n", clean_line(&omitted.path), clean_line(&omitted.why)));
    }
    out.push_str(&clean(&diff.patch));
    if diff.truncated {
        out.push_str("\n(truncated: the diff is larger than limits.diff_bytes of the server)");
    }
    out.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn entries_and_rows_are_cleaned_for_the_terminal() {
        assert_eq!(
            entry_text(&json!({"eventType": "agent_message", "text": "a\u{1b}[2J\nb"})),
            "[agent_message] a[2J\nb"
        );
        assert_eq!(
            entry_text(
                &json!({"eventType": "tool_call", "text": "", "payload": {"title": "Write", "status": "completed"}})
            ),
            "[tool_call] Write, completed"
        );
        assert_eq!(session_row(&json!({"sessionId": "s\u{7}", "state": "idle"})), "s  idle  -  -  -");
    }

    #[test]
    fn plans_and_sizes_of_the_context_are_shown_in_words() {
        let plan = json!({"sessionUpdate": "plan", "entries": [
            {"content": "Read\u{1b}[2J", "status": "completed"}, {"content": "Write", "status": "in_progress"},
            {"content": "Test", "status": "pending"}
        ]});
        assert_eq!(
            entry_text(&json!({"eventType": "plan", "text": "", "payload": plan})),
            "[plan] 1 of 3 done\n  [x] Read[2J\n  [>] Write\n  [ ] Test"
        );
        let usage = json!({"sessionUpdate": "usage_update", "used": 1200, "size": 200_000});
        assert_eq!(
            entry_text(&json!({"eventType": "usage_update", "text": "", "payload": usage})),
            "[usage_update] 1200 of 200000 tokens of the context"
        );
    }

    #[test]
    fn a_story_lists_its_timeline_below_the_answer() {
        let story = json!({"answer": "ACP carries it.", "truncated": true,
        "timeline": [{"at": "t", "kind": "turn", "summary": "A turn"}]});
        let text = story_text(&story);
        assert!(text.starts_with("ACP carries it.\n\n… (older"), "{text}");
        assert!(text.ends_with("turn          A turn\n"), "{text}");
    }
}
