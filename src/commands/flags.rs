//! Helpers that commands share: flags, the loaded configuration, the log, output and exit codes.

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::{
    client::{ApiClient, ClientError, clean::clean_line, json_lines::json_line, requests::Page},
    config::{
        self, ClientSettings, ConfigError, Environment, Flag, Listener, Loaded, Sources,
        environment::current_folder,
        sections::{Log, LogFormat},
    },
    process::local_server,
    telemetry::logging::{self, LineForm, LogFilter},
};

/// `EX_CONFIG` of sysexits.h.
const EXIT_CONFIG: u8 = 78;

/// The flags of every command that loads the configuration.
#[derive(Debug, Clone, Args)]
pub(crate) struct CommonFlags {
    /// TOML file with settings.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to listen on, such as 127.0.0.1:8080; port 0 takes a free port.
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// Folder for the database and the workspaces; without it `LUMILINK_DATA_DIR`, else .lumilink.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// `sqlite:PATH` or `postgres://user@host/name`. A URL with a password is refused, because other users of the machine can
    /// read arguments: put it into `LUMILINK_DATABASE__URL`.
    #[arg(long, value_name = "URL")]
    pub database_url: Option<String>,
    /// Any setting except secrets, lists as JSON: `turn.cancel_grace_s=9`, agent.command=["goose","acp"]. May be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", value_parser = Flag::parse_set)]
    pub settings: Vec<Flag>,
    /// Values that the command prefers to the defaults; every other source overrides them.
    #[arg(skip)]
    pub preferences: Vec<Flag>,
}

impl CommonFlags {
    /// Loads the configuration for the addresses that the command listens on. `--listen` sets the first of them, else
    /// `server.listen`.
    ///
    /// # Errors
    /// A source is invalid, or the current folder does not exist.
    pub(crate) fn load(&self, listeners: &[Listener]) -> Result<Loaded, CommandError> {
        Ok(config::load(&self.sources(listeners)?)?)
    }

    /// The sources of [`Self::load`].
    ///
    /// # Errors
    /// The current folder does not exist, or a flag has a secret.
    pub(crate) fn sources(&self, listeners: &[Listener]) -> Result<Sources, CommandError> {
        let listen = match listeners.first() {
            Some(Listener::Runtime) => "runtime.listen",
            _ => "server.listen",
        };
        let mut flags = self.settings.clone();
        flags.extend(self.listen.iter().map(|value| Flag::new("--listen", listen, value)));
        flags.extend(self.database_url.iter().map(|value| Flag::new("--database-url", "database.url", value)));
        for flag in &flags {
            flag.check_exposure()?;
        }
        Ok(Sources {
            file: self.config.clone(),
            environment: Environment::of_process(),
            flags,
            data_dir: self.data_dir.clone(),
            current_folder: current_folder().map_err(|cause| CommandError::failed("the current folder", &cause))?,
            listeners: listeners.to_vec(),
            preferences: self.preferences.clone(),
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A call to the server failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl CommandError {
    pub(crate) fn failed(what: &str, cause: &dyn std::error::Error) -> Self {
        Self::Failed(format!("{what}: {cause}"))
    }

    /// Prints the error and returns the exit code.
    pub(crate) fn report(self) -> ExitCode {
        // Without standard error only the exit code remains.
        let _ = writeln!(std::io::stderr(), "lumilink: {self}");
        match self {
            Self::Config(_) => ExitCode::from(EXIT_CONFIG),
            Self::Client(_) | Self::Failed(_) => ExitCode::FAILURE,
        }
    }
}

/// Writes one line to standard output.
///
/// # Errors
/// Standard output is closed.
pub(crate) fn print(line: &str) -> Result<(), CommandError> {
    writeln!(std::io::stdout(), "{line}").map_err(|cause| CommandError::failed("standard output", &cause))
}

/// The server, and the form of the output.
#[derive(Debug, Args)]
pub(crate) struct ServerFlags {
    /// Address of the server; without it `LUMILINK_URL`, else that of the running server of the data folder, else
    /// `http://127.0.0.1:8080`.
    #[arg(long, global = true, value_name = "URL")]
    server: Option<String>,
    /// Bearer token. Prefer `LUMILINK_TOKEN`, or `LUMILINK_TOKEN_FILE` with the path of a file: other users of the machine
    /// can read arguments.
    #[arg(long, global = true, value_name = "TOKEN")]
    token: Option<SecretString>,
    /// Data folder of a server of this machine, whose address and token the command finds there; without it
    /// `LUMILINK_DATA_DIR`, else .lumilink.
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Prints JSON, one object per line, for scripts.
    #[arg(long, global = true)]
    pub json: bool,
}

impl ServerFlags {
    /// Runs `act` with a client of the server, on one thread.
    ///
    /// # Errors
    /// Errors of `act`, and a malformed address or token.
    pub(crate) fn with_client<F>(self, act: impl FnOnce(ApiClient) -> F) -> Result<ExitCode, CommandError>
    where
        F: Future<Output = Result<ExitCode, CommandError>>,
    {
        let environment = Environment::of_process();
        // Without a current folder there is no default data folder, and no server is found.
        let local = current_folder().ok().and_then(|current| {
            let (data_dir, _) = config::load::data_dir_of(self.data_dir.as_deref(), &environment, &current);
            local_server::find(&data_dir)
        });
        let settings = ClientSettings::resolve(self.server.as_deref(), self.token, &environment, local)?;
        let client = ApiClient::new(&settings)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|cause| CommandError::failed("the event loop", &cause))?;
        runtime.block_on(act(client))
    }
}

/// Prints an object: one member per line, or as JSON.
///
/// # Errors
/// Standard output is closed.
pub(crate) fn show(value: &Value, json: bool) -> Result<(), CommandError> {
    if json { print_json(value) } else { print(value_text(value).trim_end()) }
}

/// An object, one member per line.
fn value_text(value: &Value) -> String {
    let Value::Object(members) = value else { return clean_line(&value.to_string()) };
    let line = |(name, value): (&String, &Value)| {
        let shown = match value {
            Value::String(text) => clean_line(text),
            other => clean_line(&other.to_string()),
        };
        format!("{}: {shown}\n", clean_line(name))
    };
    members.iter().map(line).collect()
}

/// A value on one line; `-` for null.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => clean_line(text),
        other => clean_line(&other.to_string()),
    }
}

/// Flattens members of members: `window.state`.
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

/// Prints one line of JSON.
///
/// # Errors
/// Standard output is closed.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<(), CommandError> {
    print(&json_line(value).map_err(ClientError::from)?)
}

/// Prints every entry of a list, page by page: as JSON, or as the line that `row` makes of it. `read` reads the page at a
/// cursor.
///
/// # Errors
/// A page cannot be read, or standard output is closed.
pub(crate) async fn print_pages(
    json: bool,
    row: fn(&Value) -> String,
    mut read: impl AsyncFnMut(Option<String>) -> Result<Page, ClientError>,
) -> Result<(), CommandError> {
    let mut cursor = None;
    loop {
        let page = read(cursor).await?;
        for item in &page.items {
            if json { print_json(item)? } else { print(&row(item))? }
        }
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Ok(());
        }
    }
}

/// The confirmation of an erasure.
#[derive(Debug, Args)]
pub(crate) struct Confirmation {
    /// Erases without a question; required without a terminal.
    #[arg(long)]
    yes: bool,
}

impl Confirmation {
    /// Asks on the terminal whether `what` is to be erased.
    ///
    /// # Errors
    /// The answer is not `yes`, or there is no terminal and no `--yes`.
    pub(crate) fn ask(&self, what: &str) -> Result<(), CommandError> {
        if self.yes {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() {
            return Err(CommandError::Failed("without a terminal, --yes confirms the erasure".into()));
        }
        let question = format!("Erase {}? This cannot be undone. Type yes: ", clean_line(what));
        // Without standard error the answer is still read.
        let _ = write!(std::io::stderr(), "{question}");
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map_err(|cause| CommandError::failed("standard input", &cause))?;
        if answer.trim() == "yes" { Ok(()) } else { Err(CommandError::Failed("nothing was erased".into())) }
    }
}

/// Note and reason of a change; both are audited beside the subject of the token.
#[derive(Debug, Args)]
pub(crate) struct Attribution {
    /// A name for the audit beside the subject of the token, such as the person for whom a program acts.
    #[arg(long, value_name = "NAME")]
    actor: Option<String>,
    /// Why; recorded in the audit.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Records the change as made by a user instead of an operator.
    #[arg(long)]
    as_user: bool,
}

impl Attribution {
    /// The members of a request body.
    pub(crate) fn body(self) -> Value {
        let initiator = if self.as_user { "user" } else { "operator" };
        let mut body = json!({"reason": self.reason, "initiatedBy": initiator});
        if let Some(actor) = self.actor {
            body["actor"] = actor.into();
        }
        body
    }

    /// The members of a request body with one more.
    pub(crate) fn with(self, name: &str, value: Value) -> Value {
        let mut body = self.body();
        body[name] = value;
        body
    }
}

/// Sets up the log; called once, before the first message.
///
/// # Errors
/// The log is set up already.
pub(crate) fn start_log(settings: &Log) -> Result<LogFilter, CommandError> {
    let form = match settings.format {
        LogFormat::Json => LineForm::Json,
        LogFormat::Text => LineForm::Text,
    };
    logging::init(form, &settings.level).map_err(|cause| CommandError::failed("the log", &cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_shown_one_member_per_line() {
        assert_eq!(value_text(&json!({"a": "x\ny", "b": {"c": 1}})), "a: x y\nb: {\"c\":1}\n");
    }
}
