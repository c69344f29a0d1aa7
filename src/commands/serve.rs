use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::flags::{self, CommandError, CommonFlags};
use crate::{
    app::{self, Reload, ServeOptions},
    config::{self, Listener},
};

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    common: CommonFlags,
    /// Writes {"http": "http://ADDR:PORT", "pid": N} to this file once the server is ready.
    #[arg(long, value_name = "FILE")]
    announce: Option<PathBuf>,
}

pub(crate) fn run(arguments: ServeArgs) -> Result<ExitCode, CommandError> {
    let sources = arguments.common.sources(&[Listener::Server])?;
    let loaded = config::load(&sources)?;
    let log = flags::start_log(&loaded.config.log)?;
    let options = ServeOptions { announce: arguments.announce, reload: Some(Reload { sources, log }) };
    let served = actix::System::new().block_on(app::serve(loaded, options));
    served.map_err(|cause| CommandError::failed("serve", &cause))?;
    Ok(ExitCode::SUCCESS)
}
