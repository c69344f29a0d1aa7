//! The command line: one thin file per subcommand.
//!
//! Invariant: a command turns arguments into one call and its answer into output and an exit code; it decides nothing
//! else.

mod audit;
mod automation;
mod backup;
mod config;
mod demo;
mod demo_agent;
pub(crate) mod flags;
mod migrate;
mod migration;
pub(crate) mod notifications;
mod openapi;
#[cfg(test)]
mod reference;
mod runtime;
mod serve;
mod session;
mod tenant;
mod token;
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
    /// Serves with everything embedded and shows a tour of the features.
    Demo(demo::DemoArgs),
    /// Runs only the runtime, which starts agents and holds workspaces; serve connects to it.
    Runtime(runtime::RuntimeArgs),
    /// The built-in agent: speaks ACP on standard input and output.
    #[command(hide = true)]
    DemoAgent(demo_agent::DemoAgentArgs),
    /// Upgrades the tables of the database and exits. It does not move workspaces: see lumilink migration.
    Migrate(migrate::MigrateArgs),
    /// Copies the live SQLite database to a new file: consistent, checked, and without stopping the server.
    Backup(backup::BackupArgs),
    /// Prints the OpenAPI document.
    Openapi,
    /// Prints the effective configuration with the source of each value; secrets are hidden.
    Config(flags::CommonFlags),
    /// Opens, prompts, lists, closes and erases sessions of a running server.
    Session(session::SessionArgs),
    /// Shows and changes the route of a workspace, and erases it.
    Workspace(workspace::WorkspaceArgs),
    /// Shows and changes limits, ceilings and automation of a tenant, and erases it.
    Tenant(tenant::TenantArgs),
    /// Reads the audit records of a running server.
    Audit(audit::AuditArgs),
    /// Lists, shows and retries runs of GitHub automation, and fetches commits that could not be delivered.
    Automation(automation::AutomationArgs),
    /// Moves fleets of workspaces to another default route, in steps.
    Migration(migration::MigrationArgs),
    /// Lists and follows the notifications (toasts) of a running server.
    #[command(name = "toasts")]
    Notifications(notifications::NotificationsArgs),
    /// Makes, lists and revokes tokens for people and programs.
    Token(token::TokenArgs),
    /// Lists and replays deliveries to the operators' webhook.
    Webhook(webhook::WebhookArgs),
}

/// Runs one command. Exit codes: 0 done, 1 failed, 2 wrong usage (from the argument parser), 78 invalid
/// configuration, 130 ended by a second signal.
pub fn run(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Command::Serve(arguments) => serve::run(arguments),
        Command::Demo(arguments) => demo::run(arguments),
        Command::Runtime(arguments) => runtime::run(arguments),
        Command::DemoAgent(arguments) => return demo_agent::run(arguments),
        Command::Migrate(arguments) => migrate::run(&arguments),
        Command::Backup(arguments) => backup::run(&arguments),
        Command::Openapi => openapi::run(),
        Command::Config(flags) => config::run(&flags),
        Command::Session(arguments) => session::run(arguments),
        Command::Workspace(arguments) => workspace::run(arguments),
        Command::Tenant(arguments) => tenant::run(arguments),
        Command::Audit(arguments) => audit::run(arguments),
        Command::Automation(arguments) => automation::run(arguments),
        Command::Migration(arguments) => migration::run(arguments),
        Command::Notifications(arguments) => notifications::run(arguments),
        Command::Token(arguments) => token::run(arguments),
        Command::Webhook(arguments) => webhook::run(arguments),
    };
    done.unwrap_or_else(CommandError::report)
}
