use std::process::ExitCode;

use super::flags::{CommandError, CommonFlags, print};
use crate::config::{Listener, render::render};

/// Prints the effective configuration, checked for every address that any command listens on.
pub(crate) fn run(flags: &CommonFlags) -> Result<ExitCode, CommandError> {
    let loaded = flags.load(&[Listener::Server, Listener::Runtime])?;
    print(render(&loaded).trim_end())?;
    Ok(ExitCode::SUCCESS)
}
