//! `lumilink serve`

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::flags::{self, CommandError, CommonFlags};
use crate::{
    app::{self, ServeOptions},
    config::Listener,
};

/// How to serve.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    common: CommonFlags,
    /// File that gets {"http": "http://ADDR:PORT", "pid": N} once it serves.
    #[arg(long, value_name = "FILE")]
    announce: Option<PathBuf>,
}

/// Serves until SIGTERM or Ctrl-C.
pub(crate) fn run(arguments: ServeArgs) -> Result<ExitCode, CommandError> {
    let loaded = arguments.common.load(&[Listener::Server])?;
    flags::start(&loaded.config.log)?;
    let options = ServeOptions { announce: arguments.announce };
    let served = actix::System::new().block_on(app::serve(loaded, options));
    served.map_err(|cause| CommandError::failed("serve", &cause))?;
    Ok(ExitCode::SUCCESS)
}
