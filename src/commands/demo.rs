//! `lumilink demo`

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::flags::{self, CommandError, CommonFlags};
use crate::{
    app::{self, ServeOptions},
    config::{Flag, Listener},
};

/// How to show it.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
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
pub(crate) fn run(mut arguments: DemoArgs) -> Result<ExitCode, CommandError> {
    // The tour is on the terminal, and the log would break into it; whoever wants it sets it.
    // The fallback is shown in seconds; its rules are the same.
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
    flags::start(&loaded.config.log)?;
    let options = ServeOptions { announce: arguments.announce };
    let shown = actix::System::new().block_on(app::demo(loaded, arguments.once, options));
    shown.map_err(|cause| CommandError::failed("demo", &cause))?;
    Ok(ExitCode::SUCCESS)
}
