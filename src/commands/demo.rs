use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::flags::{self, CommandError, CommonFlags};
use crate::{
    app::{self, ServeOptions},
    config::{Flag, Listener},
};

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    common: CommonFlags,
    /// Exits after the tour, with 0 only if every step succeeded.
    #[arg(long)]
    once: bool,
    /// Writes {"http": "http://ADDR:PORT", "pid": N} to this file once the server is ready.
    #[arg(long, value_name = "FILE")]
    announce: Option<PathBuf>,
}

pub(crate) fn run(mut arguments: DemoArgs) -> Result<ExitCode, CommandError> {
    // The log would interleave with the tour. The fallback has the usual rules with times of seconds.
    let preferred = [
        ("log.format", "text"),
        ("log.level", "error"),
        ("window.min_samples", "6"),
        ("recovery.cooldown_s", "1"),
        ("recovery.jitter_bp", "0"),
        ("recovery.canary_steps_bp", "[5000,10000]"),
        ("recovery.close_after_successes", "1"),
    ];
    arguments.common.preferences = preferred.map(|(setting, value)| Flag::new("demo", setting, value)).into();
    let loaded = arguments.common.load(&[Listener::Server])?;
    flags::start_log(&loaded.config.log)?;
    let options = ServeOptions { announce: arguments.announce, reload: None };
    let shown = actix::System::new().block_on(app::demo(loaded, arguments.once, options));
    shown.map_err(|cause| CommandError::failed("demo", &cause))?;
    Ok(ExitCode::SUCCESS)
}
