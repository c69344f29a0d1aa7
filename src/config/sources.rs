//! Where settings come from, as values.

use std::path::PathBuf;

use super::{environment::Environment, sections::Listener};

/// One setting from the command line.
#[derive(Debug, Clone)]
pub(crate) struct Flag {
    /// The flag as it was written, for messages.
    pub name: String,
    /// `section.key`.
    pub setting: String,
    /// The value as text.
    pub value: String,
}

impl Flag {
    /// A flag of its own for one setting.
    pub(crate) fn new(name: &str, setting: &str, value: impl Into<String>) -> Self {
        Self { name: name.to_owned(), setting: setting.to_owned(), value: value.into() }
    }

    /// Reads the argument of `--set`.
    ///
    /// # Errors
    /// Where it is not `section.key=value`.
    pub(crate) fn parse_set(argument: &str) -> Result<Self, String> {
        let parts = argument.split_once('=').filter(|(setting, _)| setting.contains('.'));
        let (setting, value) = parts.ok_or("must be section.key=value, such as turn.inactivity_timeout_s=60")?;
        Ok(Self::new("--set", setting.trim(), value))
    }

    /// The setting in parts. Below `env` stands the name of a variable, dots and all.
    pub(super) fn path(&self) -> Vec<String> {
        let mut path = Vec::new();
        let mut rest = self.setting.as_str();
        while let Some((part, below)) = rest.split_once('.') {
            path.push(part.to_owned());
            rest = below;
            if part == "env" {
                break;
            }
        }
        path.push(rest.to_owned());
        path
    }
}

/// Where settings come from, in rising priority: defaults, `file`, `environment`, `flags`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources {
    /// A TOML file; it has to exist.
    pub file: Option<PathBuf>,
    /// The environment.
    pub environment: Environment,
    /// The command line.
    pub flags: Vec<Flag>,
    /// `--data-dir`; else `LUMILINK_DATA_DIR`, else `.lumilink` in `current_folder`.
    pub data_dir: Option<PathBuf>,
    /// What relative paths are relative to.
    pub current_folder: PathBuf,
    /// The doors that are going to be opened.
    pub listeners: Vec<Listener>,
    /// What the command prefers to the defaults; below everything else.
    pub preferences: Vec<Flag>,
}
