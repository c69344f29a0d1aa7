//! The configuration, and the only reader of the environment.
//!
//! Invariant: nothing below or beside reads an environment variable or a configuration file; everything
//! gets its settings as a value.

pub mod settings;

pub use settings::Config;
