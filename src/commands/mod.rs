//! The command line: one thin file per subcommand.
//!
//! Invariant: a command turns arguments into one call below and its answer into an exit code; it decides
//! nothing else.

mod audit;
mod config;
mod demo;
mod demo_agent;
pub(crate) mod flags;
mod migrate;
mod migration;
pub(crate) mod notifications;
mod openapi;
mod runtime;
mod serve;
mod session;
mod webhook;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::flags::CommandError;

/// Supervises sessions of coding agents that speak the Agent Client Protocol.
#[derive(Debug, Parser)]
#[command(name = "lumilink", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves the session API until SIGTERM or Ctrl-C.
    Serve(serve::ServeArgs),
    /// Serves with everything embedded and shows a tour of what it does.
    Demo(demo::DemoArgs),
    /// Runs the container side alone: agents and workspaces behind ACP over WebSocket.
    Runtime(runtime::RuntimeArgs),
    /// The built-in agent: speaks ACP on standard input and output.
    #[command(hide = true)]
    DemoAgent(demo_agent::DemoAgentArgs),
    /// Brings the database's tables up to date and ends.
    Migrate(migrate::MigrateArgs),
    /// Prints the OpenAPI document.
    Openapi,
    /// Prints the effective configuration with the source of each value, secrets hidden.
    Config(flags::CommonFlags),
    /// Works with sessions of a running server.
    Session(session::SessionArgs),
    /// Looks at the routes of a running server's workspaces, and changes them.
    Workspace(workspace::WorkspaceArgs),
    /// Reads what a running server decided and did.
    Audit(audit::AuditArgs),
    /// Moves fleets of workspaces of a running server to another default route, in steps.
    Migration(migration::MigrationArgs),
    /// Prints what a running server told its users, and follows it.
    Toasts(notifications::NotificationsArgs),
    /// Looks at what a running server posts to the operators' webhook, and posts it again.
    Webhook(webhook::WebhookArgs),
}

/// Runs one command. Exit codes: 0 done, 1 failed, 2 wrong usage (from the argument parser), 78 a
/// configuration that cannot be used.
pub fn run(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Command::Serve(arguments) => serve::run(arguments),
        Command::Demo(arguments) => demo::run(arguments),
        Command::Runtime(arguments) => runtime::run(arguments),
        Command::DemoAgent(arguments) => return demo_agent::run(arguments),
        Command::Migrate(arguments) => migrate::run(&arguments),
        Command::Openapi => openapi::run(),
        Command::Config(flags) => config::run(&flags),
        Command::Session(arguments) => session::run(arguments),
        Command::Workspace(arguments) => workspace::run(arguments),
        Command::Audit(arguments) => audit::run(arguments),
        Command::Migration(arguments) => migration::run(arguments),
        Command::Toasts(arguments) => notifications::run(arguments),
        Command::Webhook(arguments) => webhook::run(arguments),
    };
    done.unwrap_or_else(CommandError::report)
}
