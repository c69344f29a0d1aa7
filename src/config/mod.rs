//! The configuration, and the only reader of the environment.
//!
//! Invariant: nothing below or beside reads an environment variable or a configuration file; everything
//! gets its settings as a value.

pub mod client;
pub mod environment;
pub mod error;
mod layers;
pub mod load;
pub mod render;
pub mod sections;
pub mod sources;

pub use self::{
    client::ClientSettings,
    environment::Environment,
    error::ConfigError,
    load::{Loaded, load},
    sections::Config,
    sources::{DEFAULT_AGENT, Face, Flag, Sources},
};
