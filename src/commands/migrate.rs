use std::process::ExitCode;

use clap::Args;

use super::flags::{self, CommandError, CommonFlags, print};
use crate::app;

#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    #[command(flatten)]
    common: CommonFlags,
    /// For a database that was restored from a backup: gives it a new epoch, so that subscribers that had read past the
    /// backup are reset and miss nothing. No supervisor may be running.
    #[arg(long)]
    restored: bool,
}

/// Upgrades the tables. Safe to repeat, and without `--restored` safe to run on several replicas at once.
pub(crate) fn run(arguments: &MigrateArgs) -> Result<ExitCode, CommandError> {
    let loaded = arguments.common.load(&[])?;
    flags::start_log(&loaded.config.log)?;
    let system = actix::System::new();
    if arguments.restored {
        let renewed = system.block_on(app::restored(loaded));
        let renewed = renewed.map_err(|cause| CommandError::failed("migrate --restored", &cause))?;
        print(&format!("epoch {} (formerly {}): cursors from before are reset", renewed.now, renewed.before))?;
    } else {
        system.block_on(app::migrate(loaded)).map_err(|cause| CommandError::failed("migrate", &cause))?;
    }
    Ok(ExitCode::SUCCESS)
}
