//! Merges the sources of settings and records the origin of each value.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use figment::{
    Metadata, Profile, Provider,
    error::{Actual, Kind},
    value::{Dict, Map, Value},
};
use secrecy::{ExposeSecret, SecretString};

use crate::domain::redaction::variables::{secrets_of, secrets_of_url};

use super::{
    environment::absolute,
    error::{BadSetting, ConfigError, Origin},
    secret_file,
};

/// The values of one source.
struct Layer {
    origin: Origin,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.to_string())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

/// All sources in rising priority.
#[derive(Default)]
pub(super) struct Layers {
    figment: figment::Figment,
    origins: BTreeMap<String, Origin>,
}

impl Layers {
    /// Adds a TOML file, and the secrets in the files that it names, relative to `current`; returns their paths.
    pub(crate) fn add_file(&mut self, path: &Path, current: &Path) -> Result<Vec<PathBuf>, ConfigError> {
        let origin = Origin::File(path.to_owned());
        let text = std::fs::read_to_string(path)
            .map_err(|cause| ConfigError::new("", origin.clone(), format!("cannot be read: {cause}")))?;
        let table: toml::Table = toml::from_str(&text).map_err(|cause| {
            // The parser's long form quotes the line, which may contain a secret.
            let line = cause.span().map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1));
            ConfigError::new("", origin.clone(), format!("is not TOML: line {line}: {}", cause.message()))
        })?;
        let values = Value::serialize(&table).ok().and_then(Value::into_dict);
        let mut values = values.ok_or_else(|| ConfigError::new("", origin.clone(), "is not a table of settings"))?;
        let files = take_files("", &mut values);
        let given: Vec<_> = files.iter().filter(|(setting, _)| has(&values, setting)).cloned().collect();
        self.add(origin.clone(), values);
        let (mut paths, mut problems) = (Vec::new(), Vec::new());
        for (setting, path) in files {
            let path = absolute(Path::new(&path), current);
            let read = match given.iter().any(|(both, _)| *both == setting) {
                true => Err("is set too; set only one of both".to_owned()),
                false => secret_file::read(&path),
            };
            match read {
                Ok(secret) => self.add_secret(
                    origin.clone(),
                    &setting.split('.').map(str::to_owned).collect::<Vec<_>>(),
                    &secret,
                ),
                Err(what) => {
                    problems.push(BadSetting {
                        setting: format!("{setting}{FILE_END}"),
                        origin: origin.clone(),
                        what,
                    });
                }
            }
            paths.push(path);
        }
        if problems.is_empty() { Ok(paths) } else { Err(ConfigError { problems }) }
    }

    /// Adds one value as text: lists and maps as JSON, anything else unchanged. The type of the setting decides whether
    /// a text is a number or a boolean, so a token of digits stays a string.
    pub(crate) fn add_text(&mut self, origin: Origin, path: &[String], text: &str) {
        let mut value = Value::from(text);
        if text.trim_start().starts_with(['[', '{']) {
            let parsed = serde_json::from_str::<serde_json::Value>(text).ok();
            if let Some(parsed) = parsed.and_then(|json| Value::serialize(json).ok()) {
                value = parsed;
            }
        }
        self.add_value(origin, path, value);
    }

    /// Adds one text, whatever it looks like.
    pub(crate) fn add_secret(&mut self, origin: Origin, path: &[String], secret: &SecretString) {
        self.add_value(origin, path, Value::from(secret.expose_secret()));
    }

    fn add_value(&mut self, origin: Origin, path: &[String], value: Value) {
        let mut values = Dict::new();
        let Some((last, above)) = path.split_last() else { return };
        values.insert(last.clone(), value);
        for part in above.iter().rev() {
            values = Dict::from([(part.clone(), Value::from(values))]);
        }
        self.add(origin, values);
    }

    fn add(&mut self, origin: Origin, values: Dict) {
        note_origins(&mut self.origins, &origin, String::new(), &values);
        let figment = std::mem::take(&mut self.figment);
        self.figment = figment.merge(Layer { origin, values });
    }

    /// The origin of a setting: its own, else that of an enclosing table, else that of a part of it.
    pub(crate) fn origin_of(&self, setting: &str) -> Origin {
        let mut name = setting;
        loop {
            if let Some(origin) = self.origins.get(name) {
                return origin.clone();
            }
            match name.rsplit_once('.') {
                Some((above, _)) => name = above,
                None => break,
            }
        }
        let below = format!("{setting}.");
        let part = self.origins.iter().rev().find(|(name, _)| name.starts_with(&below));
        part.map_or(Origin::Default, |(_, origin)| origin.clone())
    }

    pub(crate) fn extract(&self) -> Result<super::Config, ConfigError> {
        self.figment.extract_lossy().map_err(|error| {
            let problems = error.into_iter().map(|error| self.explain(&error)).collect();
            ConfigError { problems }
        })
    }

    /// The text of each given value, by `section.key`. The values may be secrets.
    pub(crate) fn given(&self) -> BTreeMap<String, SecretString> {
        let mut given = BTreeMap::new();
        // Merging values that were parsed before cannot fail.
        let values: Dict = self.figment.extract().unwrap_or_default();
        note_values(&mut given, String::new(), &values);
        given
    }

    pub(crate) fn into_origins(self) -> BTreeMap<String, Origin> {
        self.origins
    }

    fn explain(&self, error: &figment::Error) -> super::error::BadSetting {
        let mut path = error.path.clone();
        if let Kind::UnknownField(name, _) = &error.kind
            && path.last() != Some(name)
        {
            path.push(name.clone());
        }
        let setting = path.join(".");
        let what = match &error.kind {
            Kind::UnknownField(_, known) if path.len() < 2 => {
                format!("is not a section; sections are {}", known.join(", "))
            }
            Kind::UnknownField(_, known) => format!("is not a setting; here are {}", known.join(", ")),
            Kind::UnknownVariant(found, known) => format!("is {found:?}, must be one of {}", known.join(", ")),
            Kind::InvalidType(found, wanted) | Kind::InvalidValue(found, wanted) => {
                format!("is {}, must be {}", shown(&setting, found), wanted_as_words(wanted))
            }
            Kind::ISizeOutOfRange(found) => format!("is {found}, must be 0 or more"),
            _ if setting.ends_with(".listen") => "must be an address and a port, such as 127.0.0.1:8080".to_owned(),
            _ => error.kind.to_string(),
        };
        super::error::BadSetting { origin: self.origin_of(&setting), setting, what }
    }
}

/// Settings whose values are secrets, beside the variables of agents.
pub(crate) const SECRETS: [&str; 9] = [
    "server.token",
    "runtime.token",
    "database.url",
    "webhook.url",
    "webhook.secret",
    "webhook.previous_secret",
    "github.private_key",
    "github.signing_key",
    "github.triggers.webhook_secret",
];

/// True if the value of a setting is a secret.
pub(super) fn is_secret(setting: &str) -> bool {
    setting.ends_with(".token") || has_file_form(setting) || setting.split('.').any(|part| part == "env")
}

/// True if a secret setting can be given by the name of a file, with `_file` at the end of its own name.
pub(super) fn has_file_form(setting: &str) -> bool {
    let is_named = setting.strip_prefix("secrets.").and_then(|rest| rest.strip_suffix(".value"));
    SECRETS.contains(&setting) || is_named.is_some_and(|name| !name.is_empty() && !name.contains('.'))
}

/// True if a value from the command line would show a secret to other users of the machine, who can read arguments. `none`
/// and URLs without credentials are no secrets.
pub(crate) fn exposes_secret(setting: &str, value: &str) -> bool {
    if !is_secret(setting) || value.is_empty() {
        return false;
    }
    match setting.split_once(".env.") {
        Some((_, variable)) => !secrets_of(variable, value).is_empty(),
        None if setting.ends_with(".env") => {
            let variables: BTreeMap<String, String> = serde_json::from_str(value).unwrap_or_default();
            variables.iter().any(|(variable, value)| !secrets_of(variable, value).is_empty())
        }
        None if setting.ends_with(".url") => !secrets_of_url(value).is_empty(),
        None => value != "none",
    }
}

/// End of the name of a setting that names the file of a secret.
const FILE_END: &str = "_file";

/// Takes the settings that name files of secrets out of a table: the names of the secrets, and the paths.
pub(super) fn take_files(above: &str, values: &mut Dict) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let names: Vec<_> = values.keys().cloned().collect();
    for name in names {
        let setting = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
        if let Some(Value::Dict(_, below)) = values.get_mut(&name) {
            files.extend(take_files(&setting, below));
        } else if let Some(secret) = setting.strip_suffix(FILE_END).filter(|secret| has_file_form(secret))
            && let Some(Value::String(_, path)) = values.get(&name)
        {
            files.push((secret.to_owned(), path.clone()));
            values.remove(&name);
        }
    }
    files
}

/// True if a table has a value for a setting.
fn has(values: &Dict, setting: &str) -> bool {
    match setting.split_once('.') {
        None => values.contains_key(setting),
        Some((part, below)) => {
            matches!(values.get(part), Some(Value::Dict(_, values)) if has(values, below))
        }
    }
}

fn shown(setting: &str, found: &Actual) -> String {
    if is_secret(setting) { "of another type".to_owned() } else { found.to_string() }
}

fn wanted_as_words(wanted: &str) -> String {
    match wanted {
        "u16" | "u32" | "u64" | "usize" => "a whole number of 0 or more".to_owned(),
        "a sequence" => "a list, such as [\"a\", \"b\"]".to_owned(),
        "a map" => "a table, such as {\"NAME\": \"value\"}".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "path string" => "a path".to_owned(),
        "socket address" => "an address and a port, such as 127.0.0.1:8080".to_owned(),
        other if other.starts_with("struct ") => "a section of settings".to_owned(),
        other => other.to_owned(),
    }
}

fn note_values(given: &mut BTreeMap<String, SecretString>, above: String, values: &Dict) {
    for (name, value) in values {
        let setting = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
        match value {
            Value::Dict(_, values) => note_values(given, setting, values),
            value => {
                let text = serde_json::to_string(value).unwrap_or_default();
                given.insert(setting, SecretString::from(text));
            }
        }
    }
}

fn note_origins(origins: &mut BTreeMap<String, Origin>, origin: &Origin, above: String, values: &Dict) {
    for (name, value) in values {
        let setting = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
        match value {
            Value::Dict(_, values) => note_origins(origins, origin, setting, values),
            _ => {
                origins.insert(setting, origin.clone());
            }
        }
    }
}
