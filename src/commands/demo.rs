//! `lumilink demo`

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::{
    common::{CommandError, CommonFlags},
    log,
};
use crate::{
    app::{self, ServeOptions},
    config::{Face, Flag},
};

/// How to show it.
#[derive(Debug, Args)]
pub struct DemoArgs {
    #[command(flatten)]
    common: CommonFlags,
    /// Ends after the tour, with exit code 0 only if every step did what it says.
    #[arg(long)]
    once: bool,
    /// File that gets {"http": "http://ADDR:PORT", "pid": N} once it serves.
    #[arg(long, value_name = "FILE")]
    announce: Option<PathBuf>,
}

/// Serves, and shows a tour of what it does.
pub fn run(mut arguments: DemoArgs) -> Result<ExitCode, CommandError> {
    // The tour is on the terminal, and the log would break into it; whoever wants it sets it.
    let quiet = [("log.format", "text"), ("log.level", "error")];
    arguments.common.preferences = quiet.map(|(setting, value)| Flag::new("demo", setting, value)).into();
    let loaded = arguments.common.load(&[Face::Server])?;
    log::start(&loaded.config.log)?;
    let options = ServeOptions { announce: arguments.announce };
    let shown = actix::System::new().block_on(app::demo(loaded, arguments.once, options));
    shown.map_err(|cause| CommandError::failed("demo", &cause))?;
    Ok(ExitCode::SUCCESS)
}
