use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::flags::{self, CommandError, CommonFlags};
use crate::{app, config::Listener};

#[derive(Debug, Args)]
pub(crate) struct RuntimeArgs {
    #[command(flatten)]
    common: CommonFlags,
    /// Writes {"http": "http://ADDR:PORT", "pid": N} to this file once the server is ready.
    #[arg(long, value_name = "FILE")]
    announce: Option<PathBuf>,
}

pub(crate) fn run(arguments: RuntimeArgs) -> Result<ExitCode, CommandError> {
    let loaded = arguments.common.load(&[Listener::Runtime])?;
    flags::start_log(&loaded.config.log)?;
    let served = actix::System::new().block_on(app::runtime(loaded, arguments.announce));
    served.map_err(|cause| CommandError::failed("runtime", &cause))?;
    Ok(ExitCode::SUCCESS)
}
