//! Arguments, command, exit code.

use std::process::ExitCode;

use clap::Parser;
use lumilink::commands::{self, Cli};

fn main() -> ExitCode {
    commands::run(Cli::parse())
}
