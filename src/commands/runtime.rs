use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::flags::{self, CommandError, CommonFlags};
use crate::{
    app::{self, Reload, ServeOptions},
    config::{self, Listener},
};

#[derive(Debug, Args)]
pub(crate) struct RuntimeArgs {
    #[command(flatten)]
    common: CommonFlags,
    /// Writes {"http": "http://ADDR:PORT", "pid": N} to this file once the server is ready.
    #[arg(long, value_name = "FILE")]
    announce: Option<PathBuf>,
}

pub(crate) fn run(arguments: RuntimeArgs) -> Result<ExitCode, CommandError> {
    let sources = arguments.common.sources(&[Listener::Runtime])?;
    let loaded = config::load(&sources)?;
    let log = flags::start_log(&loaded.config.log)?;
    let options = ServeOptions { announce: arguments.announce, reload: Some(Reload { sources, log }) };
    let served = actix::System::new().block_on(app::runtime(loaded, options));
    served.map_err(|cause| CommandError::failed("runtime", &cause))?;
    Ok(ExitCode::SUCCESS)
}
