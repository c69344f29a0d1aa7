//! What commands share: flags, the loaded configuration, the log, and exit codes.

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::Args;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::session::value_text;
use crate::{
    client::{ApiClient, ClientError, json_lines::json_line},
    config::{
        self, ClientSettings, ConfigError, Environment, Flag, Listener, Loaded, Sources,
        environment::current_folder,
        sections::{Log, LogFormat},
    },
    telemetry::logging::{self, LineForm},
};

/// `EX_CONFIG` of sysexits.h.
const EXIT_CONFIG: u8 = 78;

/// The flags of every command that loads the configuration.
#[derive(Debug, Clone, Args)]
pub(crate) struct CommonFlags {
    /// TOML file with settings.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to listen on, such as 127.0.0.1:8080; port 0 takes a free one.
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// Folder for the database and the workspaces; else LUMILINK_DATA_DIR [default: .lumilink].
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// sqlite:PATH or postgres://user:password@host/name; better in LUMILINK_DATABASE__URL, which other
    /// users of the machine cannot read.
    #[arg(long, value_name = "URL")]
    pub database_url: Option<String>,
    /// Any setting, lists as JSON: turn.cancel_grace_s=9, agent.command=["goose","acp"]; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", value_parser = Flag::parse_set)]
    pub settings: Vec<Flag>,
    /// What the command prefers to the defaults.
    #[arg(skip)]
    pub preferences: Vec<Flag>,
}

impl CommonFlags {
    /// Loads the configuration for the doors that the command opens. `--listen` is the address of the
    /// first of them, of the server where there is none.
    ///
    /// # Errors
    /// Where a source cannot be used, or the current folder is gone.
    pub(crate) fn load(&self, listeners: &[Listener]) -> Result<Loaded, CommandError> {
        let listen = match listeners.first() {
            Some(Listener::Runtime) => "runtime.listen",
            _ => "server.listen",
        };
        let mut flags = self.settings.clone();
        flags.extend(self.listen.iter().map(|value| Flag::new("--listen", listen, value)));
        flags.extend(self.database_url.iter().map(|value| Flag::new("--database-url", "database.url", value)));
        let sources = Sources {
            file: self.config.clone(),
            environment: Environment::of_process(),
            flags,
            data_dir: self.data_dir.clone(),
            current_folder: current_folder().map_err(|cause| CommandError::failed("the current folder", &cause))?,
            listeners: listeners.to_vec(),
            preferences: self.preferences.clone(),
        };
        Ok(config::load(&sources)?)
    }
}

/// Why a command did not do what it was asked.
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
    /// A failure of something, with its cause.
    pub(crate) fn failed(what: &str, cause: &dyn std::error::Error) -> Self {
        Self::Failed(format!("{what}: {cause}"))
    }

    /// Tells the user, and gives the exit code.
    pub(crate) fn report(self) -> ExitCode {
        // Without standard error there is nobody to tell; the exit code remains.
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
/// Where nobody reads it.
pub(crate) fn print(line: &str) -> Result<(), CommandError> {
    writeln!(std::io::stdout(), "{line}").map_err(|cause| CommandError::failed("standard output", &cause))
}

/// Which server, and how to print.
#[derive(Debug, Args)]
pub(crate) struct ServerFlags {
    /// Address of the server; else LUMILINK_URL [default: http://127.0.0.1:8080].
    #[arg(long, global = true, value_name = "URL")]
    server: Option<String>,
    /// Bearer token; else LUMILINK_TOKEN, which other users of the machine cannot read.
    #[arg(long, global = true, value_name = "TOKEN")]
    token: Option<SecretString>,
    /// Prints JSON, one object a line, for scripts.
    #[arg(long, global = true)]
    pub json: bool,
}

impl ServerFlags {
    /// Runs something with a client of the server. One thread is enough.
    ///
    /// # Errors
    /// Those of what is run, and a client that cannot be made.
    pub(crate) fn with_client<F>(self, act: impl FnOnce(ApiClient) -> F) -> Result<ExitCode, CommandError>
    where
        F: Future<Output = Result<ExitCode, CommandError>>,
    {
        let environment = Environment::of_process();
        let settings = ClientSettings::resolve(self.server.as_deref(), self.token, &environment)?;
        let client = ApiClient::new(&settings)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|cause| CommandError::failed("the event loop", &cause))?;
        runtime.block_on(act(client))
    }
}

/// Prints an object: one member a line, or as JSON.
///
/// # Errors
/// Where nobody reads it.
pub(crate) fn show(value: &Value, json: bool) -> Result<(), CommandError> {
    if json { print_json(value) } else { print(value_text(value).trim_end()) }
}

/// Prints one line of JSON.
///
/// # Errors
/// Where nobody reads it.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<(), CommandError> {
    print(&json_line(value).map_err(ClientError::from)?)
}

/// Who wants something, and why.
#[derive(Debug, Args)]
pub(crate) struct Attribution {
    /// Who wants it.
    #[arg(long, value_name = "NAME")]
    actor: String,
    /// Why.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// In the name of a user, not of an operator.
    #[arg(long)]
    as_user: bool,
}

impl Attribution {
    /// The members of a request.
    pub(crate) fn body(self) -> Value {
        let initiator = if self.as_user { "user" } else { "operator" };
        json!({"actor": self.actor, "reason": self.reason, "initiatedBy": initiator})
    }

    /// The same with one more.
    pub(crate) fn with(self, name: &str, value: Value) -> Value {
        let mut body = self.body();
        body[name] = value;
        body
    }
}

/// Sets it up; to be called once, before anything is logged.
///
/// # Errors
/// Where it was set up before.
pub(crate) fn start(settings: &Log) -> Result<(), CommandError> {
    let form = match settings.format {
        LogFormat::Json => LineForm::Json,
        LogFormat::Text => LineForm::Text,
    };
    logging::init(form, &settings.level).map_err(|cause| CommandError::failed("the log", &cause))
}
