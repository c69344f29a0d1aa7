use std::process::ExitCode;

use clap::Args;

use crate::demo_agent;

#[derive(Debug, Args)]
pub(crate) struct DemoAgentArgs {
    /// Passed to the agent unchanged.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Speaks ACP on standard input and output until the input ends.
pub(crate) fn run(arguments: DemoAgentArgs) -> ExitCode {
    demo_agent::run(arguments.arguments)
}
