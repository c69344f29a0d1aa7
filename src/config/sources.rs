//! The sources of settings.

use std::path::PathBuf;

use super::{
    environment::Environment,
    error::{ConfigError, Origin},
    layers::exposes_secret,
    sections::Listener,
};

/// One setting from the command line.
#[derive(Debug, Clone)]
pub(crate) struct Flag {
    /// The flag as written, for messages.
    pub name: String,
    /// `section.key`.
    pub setting: String,
    /// The value as text.
    pub value: String,
}

impl Flag {
    /// A dedicated flag for one setting.
    pub(crate) fn new(name: &str, setting: &str, value: impl Into<String>) -> Self {
        Self { name: name.to_owned(), setting: setting.to_owned(), value: value.into() }
    }

    /// Reads the argument of `--set`.
    ///
    /// # Errors
    /// The argument is not `section.key=value`.
    pub(crate) fn parse_set(argument: &str) -> Result<Self, String> {
        let parts = argument.split_once('=').filter(|(setting, _)| setting.contains('.'));
        let (setting, value) = parts.ok_or("must be section.key=value, such as turn.inactivity_timeout_s=60")?;
        Ok(Self::new("--set", setting.trim(), value))
    }

    /// Refuses a secret among the arguments, which other users of the machine can read.
    ///
    /// # Errors
    /// Names the setting, and other ways to give it.
    pub(crate) fn check_exposure(&self) -> Result<(), ConfigError> {
        if !exposes_secret(&self.setting, &self.value) {
            return Ok(());
        }
        let variable = format!("LUMILINK_{}", self.setting.to_uppercase().replace('.', "__"));
        let what = format!(
            "is a secret, and other users of the machine can read arguments; set it in {variable}, in the configuration file, \
             or in a file that {variable}_FILE names"
        );
        Err(ConfigError::new(&self.setting, Origin::Flag(self.name.clone()), what))
    }

    /// The setting in parts. A part below `env` is the name of a variable, which may contain dots.
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

/// The sources of settings, in rising priority: defaults, `preferences`, `file`, `environment`, `flags`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources {
    /// A TOML file, which must exist.
    pub file: Option<PathBuf>,
    pub environment: Environment,
    pub flags: Vec<Flag>,
    /// `--data-dir`; else `LUMILINK_DATA_DIR`, else `.lumilink` in `current_folder`.
    pub data_dir: Option<PathBuf>,
    /// Base of relative paths.
    pub current_folder: PathBuf,
    /// Addresses that the command listens on.
    pub listeners: Vec<Listener>,
    /// Values that the command prefers to the defaults.
    pub preferences: Vec<Flag>,
}
