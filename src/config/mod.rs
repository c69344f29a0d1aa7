//! The configuration, and the only reader of the environment.
//!
//! Invariant: no other part reads environment variables or configuration files; settings are passed as values.

pub(crate) mod changes;
pub(crate) mod client;
pub(crate) mod environment;
pub(crate) mod error;
mod layers;
pub(crate) mod load;
mod reloadable;
pub(crate) mod render;
mod secret_file;
pub(crate) mod sections;
pub(crate) mod sources;

#[cfg(test)]
pub(crate) use self::layers::SECRETS;
pub(crate) use self::{
    client::ClientSettings,
    environment::Environment,
    error::ConfigError,
    load::{Loaded, load},
    reloadable::{Reloadable, ReloadableSecret},
    secret_file::read as secret_of_file,
    sections::{Config, DEFAULT_AGENT, Listener},
    sources::{Flag, Sources},
};
