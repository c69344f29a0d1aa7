//! Errors of a configuration: the setting, its source, and the allowed values.

use std::{fmt, path::PathBuf};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The built-in default: no source sets the value.
    Default,
    /// A configuration file.
    File(PathBuf),
    /// The environment variable of this name.
    Environment(String),
    /// A flag of the command line: `--listen`, `--set`.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadSetting {
    /// Name, such as `server.listen`; empty for the configuration as a whole.
    pub setting: String,
    /// Where the value came from.
    pub origin: Origin,
    /// The error and the allowed values.
    pub what: String,
}

impl fmt::Display for BadSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.setting.is_empty() {
            write!(f, "{}: {}", self.origin, self.what)
        } else {
            write!(f, "{}: {} ({})", self.setting, self.what, self.origin)
        }
    }
}

/// The configuration is invalid. Not retryable: the same sources give the same error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) struct ConfigError {
    /// At least one.
    pub problems: Vec<BadSetting>,
}

impl ConfigError {
    pub(crate) fn new(setting: impl Into<String>, origin: Origin, what: impl Into<String>) -> Self {
        Self { problems: vec![BadSetting { setting: setting.into(), origin, what: what.into() }] }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}
