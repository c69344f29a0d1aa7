use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::flags::{self, CommandError, CommonFlags};
use crate::{
    app::{self, ServeOptions},
    config::Listener,
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
    let loaded = arguments.common.load(&[Listener::Server])?;
    flags::start_log(&loaded.config.log)?;
    let options = ServeOptions { announce: arguments.announce };
    let served = actix::System::new().block_on(app::serve(loaded, options));
    served.map_err(|cause| CommandError::failed("serve", &cause))?;
    Ok(ExitCode::SUCCESS)
}
