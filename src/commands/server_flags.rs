//! The flags of commands that talk to a running server.

use std::process::ExitCode;

use clap::Args;
use secrecy::SecretString;
use serde_json::Value;

use super::{
    flags::{CommandError, print},
    session_view::value_text,
};
use crate::{
    client::{ApiClient, ClientError, json_lines::json_line},
    config::{ClientSettings, Environment},
};

/// Which server, and how to print.
#[derive(Debug, Args)]
pub struct ServerFlags {
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
    pub fn with_client<F>(self, act: impl FnOnce(ApiClient) -> F) -> Result<ExitCode, CommandError>
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
pub fn show(value: &Value, json: bool) -> Result<(), CommandError> {
    if json { print_json(value) } else { print(value_text(value).trim_end()) }
}

/// Prints one line of JSON.
///
/// # Errors
/// Where nobody reads it.
pub fn print_json(value: &impl serde::Serialize) -> Result<(), CommandError> {
    print(&json_line(value).map_err(ClientError::from)?)
}
