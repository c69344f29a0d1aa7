//! The configuration, and the only reader of the environment.
//!
//! Invariant: nothing below or beside reads an environment variable or a configuration file; everything
//! gets its settings as a value.

pub mod client;
pub mod environment;
pub mod error;
mod fallback;
mod github;
mod layers;
pub mod load;
mod notifications;
mod process;
pub mod render;
pub mod settings;
pub mod sources;
mod validate;
mod webhook;

pub use client::ClientSettings;
pub use environment::Environment;
pub use error::ConfigError;
pub use load::{Loaded, load};
pub use settings::Config;
pub use sources::{DEFAULT_AGENT, Face, Flag, Sources};
