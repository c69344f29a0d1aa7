//! `lumilink migrate`

use std::process::ExitCode;

use clap::Args;

use super::flags::{self, CommandError, CommonFlags, print};
use crate::app;

/// What to do with the database.
#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    #[command(flatten)]
    common: CommonFlags,
    /// The database was restored from a backup: gives it a new epoch too, so that who has read toasts that are not in
    /// it begins anew instead of missing others. No supervisor may run.
    #[arg(long)]
    restored: bool,
}

/// Brings the database's tables up to date and ends. Safe to repeat, and without `--restored` to run at several replicas
/// at once.
pub(crate) fn run(arguments: &MigrateArgs) -> Result<ExitCode, CommandError> {
    let loaded = arguments.common.load(&[])?;
    flags::start(&loaded.config.log)?;
    let system = actix::System::new();
    if arguments.restored {
        let renewed = system.block_on(app::restored(loaded));
        let renewed = renewed.map_err(|cause| CommandError::failed("migrate --restored", &cause))?;
        print(&format!("epoch {} (it was {}): cursors from before are reset", renewed.now, renewed.before))?;
    } else {
        system.block_on(app::migrate(loaded)).map_err(|cause| CommandError::failed("migrate", &cause))?;
    }
    Ok(ExitCode::SUCCESS)
}
