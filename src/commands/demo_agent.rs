//! `lumilink demo-agent`

use std::process::ExitCode;

use clap::Args;

use crate::demo_agent;

/// What the demo agent is given.
#[derive(Debug, Args)]
pub(crate) struct DemoAgentArgs {
    /// Passed on as they are.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Speaks ACP on standard input and output until the input ends.
pub(crate) fn run(arguments: DemoAgentArgs) -> ExitCode {
    demo_agent::run(arguments.arguments)
}
