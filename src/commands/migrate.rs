//! `lumilink migrate`

use std::process::ExitCode;

use super::{
    common::{CommandError, CommonFlags},
    log,
};
use crate::app;

/// Brings the database's tables up to date and ends. Safe to repeat, and to run at several replicas at once.
pub fn run(flags: &CommonFlags) -> Result<ExitCode, CommandError> {
    let loaded = flags.load(&[])?;
    log::start(&loaded.config.log)?;
    let migrated = actix::System::new().block_on(app::migrate(loaded));
    migrated.map_err(|cause| CommandError::failed("migrate", &cause))?;
    Ok(ExitCode::SUCCESS)
}
