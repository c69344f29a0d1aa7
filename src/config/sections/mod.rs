//! Every setting with its default, its range and the reason for the default.
//!
//! The doc comments of structs and fields are the text of the configuration reference
//! (`deploy/handbook/configuration.md`).

mod agent;
mod capacity;
mod ceilings;
mod check;
mod database;
mod github;
mod limits;
mod notifications;
mod process;
mod routing;
mod runtime;
mod secrets;
mod server;
mod session;
mod triggers;
mod webhook;
mod workspaces;

use std::collections::BTreeMap;

use secrecy::SecretString;
use serde::{Deserialize, Serialize, Serializer};

pub(crate) use self::{
    agent::{Agent, DEFAULT_AGENT},
    capacity::Capacity,
    ceilings::Ceilings,
    database::{Database, Retention, sqlite_path},
    github::Github,
    limits::Limits,
    notifications::Notifications,
    process::{Drain, Log, LogFormat},
    routing::{Migration, Recovery, Window},
    runtime::Runtime,
    secrets::Secret,
    server::{ClientToken, Server},
    session::{Permission, Session, Supervision, Turn},
    webhook::Webhook,
    workspaces::Workspaces,
};
use super::error::{ConfigError, Origin};

/// The effective configuration. Field names are the names in TOML, environment and flags.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    pub server: Server,
    pub database: Database,
    pub workspaces: Workspaces,
    pub runtime: Runtime,
    pub agent: Agent,
    pub agents: BTreeMap<String, Agent>,
    pub secrets: BTreeMap<String, Secret>,
    pub session: Session,
    pub turn: Turn,
    pub supervision: Supervision,
    pub permission: Permission,
    pub window: Window,
    pub recovery: Recovery,
    pub migration: Migration,
    pub capacity: Capacity,
    pub ceilings: Ceilings,
    pub webhook: Webhook,
    pub retention: Retention,
    pub github: Github,
    pub notifications: Notifications,
    pub limits: Limits,
    pub drain: Drain,
    pub log: Log,
}

impl Config {
    /// Checks the rules of every section.
    ///
    /// # Errors
    /// Lists every setting that breaks a rule.
    pub(super) fn validate(
        &self,
        listeners: &[Listener],
        origin_of: &dyn Fn(&str) -> Origin,
    ) -> Result<(), ConfigError> {
        let mut check = check::Check::new(origin_of);
        self.server.validate(&mut check, listeners);
        self.database.validate(&mut check);
        self.retention.validate(&mut check);
        self.workspaces.validate(&mut check);
        self.runtime.validate(&mut check, listeners);
        self.agent.validate(&mut check, "agent");
        agent::validate_named(&self.agents, &mut check);
        secrets::validate(&self.secrets, &mut check);
        self.session.validate(&mut check);
        self.turn.validate(&mut check);
        self.supervision.validate(&mut check);
        self.permission.validate(&mut check);
        self.window.validate(&mut check);
        self.recovery.validate(&mut check);
        self.migration.validate(&mut check);
        self.capacity.validate(&mut check);
        // Without a runtime of its own this process does not know which paths are allowed.
        self.ceilings.validate(&mut check, self.runtime.url.is_none().then_some(&self.workspaces));
        self.webhook.validate(&mut check);
        self.github.validate(&mut check);
        self.notifications.validate(&mut check);
        self.limits.validate(&mut check, self.capacity.max_sessions);
        self.drain.validate(&mut check);
        self.log.validate(&mut check);
        check.finish()
    }
}

/// An address that a command listens on. One that other machines can reach requires a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listener {
    /// `server.listen`.
    Server,
    /// `runtime.listen`.
    Runtime,
}

/// Replaces a secret wherever a configuration is shown.
pub(crate) const HIDDEN: &str = "[hidden]";

pub(crate) fn hidden<S: Serializer>(secret: &Option<SecretString>, to: S) -> Result<S::Ok, S::Error> {
    match secret {
        Some(_) => to.serialize_str(HIDDEN),
        None => to.serialize_none(),
    }
}

fn hidden_values<S: Serializer>(values: &BTreeMap<String, SecretString>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(values.keys().map(|name| (name, HIDDEN)))
}
