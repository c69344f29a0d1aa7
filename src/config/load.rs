//! Loads all sources into one validated configuration.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use secrecy::{ExposeSecret, SecretString};

use super::{
    Config,
    environment::{Environment, absolute},
    error::{BadSetting, ConfigError, Origin},
    layers::{Layers, has_file_form},
    secret_file::{self, SUFFIX},
    sections::{Agent, DEFAULT_AGENT, sqlite_path},
    sources::Sources,
};
use crate::domain::redaction::variables::{secrets_of, secrets_of_url};

/// Switches GitHub automation off: `1` or `true`.
const KILL_SWITCH_VARIABLE: &str = "GITHUB_AUTOMATION_DISABLED";
/// Names the data folder, unless `--data-dir` does.
const DATA_DIR_VARIABLE: &str = "LUMILINK_DATA_DIR";
/// Ends of the names of a SQLite database and of the files beside it.
const DATABASE_SUFFIXES: [&str; 5] = ["", "-wal", "-shm", "-journal", ".lock"];
/// The default data folder, in the current folder: a trial leaves its files in one place.
const DEFAULT_DATA_DIR: &str = ".lumilink";

#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    /// Every setting, paths absolute; `workspaces.root` and `database.url` are always set.
    pub config: Config,
    /// Folder of the database and the workspaces, unless configured elsewhere; absolute. It need not exist yet.
    pub data_dir: PathBuf,
    /// The complete environment of each agent by name; [`DEFAULT_AGENT`] is `[agent]`.
    pub agent_environments: BTreeMap<String, BTreeMap<String, SecretString>>,
    /// The environment of git and of the commands that agents run: variables that every agent inherits.
    pub base_environment: BTreeMap<String, SecretString>,
    /// Files and folders of this program, absolute: data folder, database, configuration, and files of secrets. They need
    /// not exist.
    pub own_files: Vec<PathBuf>,
    /// The text of each given value, by `section.key`; for the difference to another load.
    pub(super) given: BTreeMap<String, SecretString>,
    /// Origins of values that are not defaults, by `section.key`.
    pub origins: BTreeMap<String, Origin>,
    pub data_dir_origin: Origin,
}

impl Loaded {
    /// The texts that are redacted wherever they occur: tokens, secrets and passwords of the settings, and the values of the
    /// agents' variables, except for harmless ones.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = String> {
        let Config { server, runtime, webhook, database, github, .. } = &self.config;
        let triggers = &github.triggers;
        let settings =
            [&server.token, &runtime.token, &webhook.secret, &webhook.previous_secret, &triggers.webhook_secret];
        let settings = settings.into_iter().flatten().map(|value| value.expose_secret().to_owned());
        let urls = [&webhook.url, &database.url].into_iter().flatten();
        let of_urls = urls.flat_map(|url| secrets_of_url(url.expose_secret()));
        let of_agents = self.agent_environments.values().flatten();
        let of_agents = of_agents.flat_map(|(name, value)| secrets_of(name, value.expose_secret()));
        let named = self.config.secrets.values().filter_map(|secret| secret.value.as_ref());
        let named = named.map(|value| value.expose_secret().to_owned());
        // A key is hidden as a whole and by its lines, since a part of it is a secret too.
        let keys = [&github.private_key, &github.signing_key].into_iter().flatten().map(|key| key.expose_secret());
        let lines = keys.clone().flat_map(str::lines).map(str::trim).filter(|line| !line.starts_with("-----"));
        let keys = keys.chain(lines).map(str::to_owned);
        settings.chain(of_urls).chain(of_agents).chain(named).chain(keys)
    }
}

/// Reads, merges and validates all sources.
///
/// # Errors
/// Lists each invalid setting with its source and the allowed values. A type error hides later ones; rules are checked
/// all at once.
pub(crate) fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut layers = Layers::default();
    for preference in &sources.preferences {
        layers.add_text(Origin::Default, &preference.path(), &preference.value);
    }
    let mut secret_files = Vec::new();
    if let Some(path) = &sources.file {
        secret_files = layers.add_file(&absolute(path, &sources.current_folder), &sources.current_folder)?;
    }
    add_environment(&mut layers, sources)?;
    if sources.environment.get(KILL_SWITCH_VARIABLE).is_some_and(|value| ["1", "true"].contains(&value)) {
        let path = ["github", "kill_switch"].map(str::to_owned);
        layers.add_text(Origin::Environment(KILL_SWITCH_VARIABLE.into()), &path, "true");
    }
    for flag in &sources.flags {
        layers.add_text(Origin::Flag(flag.name.clone()), &flag.path(), &flag.value);
    }
    let mut config = layers.extract()?;
    config.validate(&sources.listeners, &|setting| layers.origin_of(setting))?;
    let (data_dir, data_dir_origin) = data_dir(sources);
    make_absolute(&mut config, &data_dir, sources);
    let agents = std::iter::once((DEFAULT_AGENT, &config.agent))
        .chain(config.agents.iter().map(|(name, agent)| (name.as_str(), agent)));
    let agent_environments =
        agents.map(|(name, agent)| (name.to_owned(), sources.environment.of_agent(agent))).collect();
    let base_environment = sources.environment.of_agent(&Agent::default());
    let mut own_files = own_files(&config, &data_dir, sources);
    own_files.extend(secret_files);
    Ok(Loaded {
        config,
        data_dir,
        agent_environments,
        base_environment,
        own_files,
        given: layers.given(),
        origins: layers.into_origins(),
        data_dir_origin,
    })
}

/// The variable that would have the value itself, and the setting, of a variable that names the file of a secret.
fn secret_in_file<'a>(variable: &'a str, path: &[String]) -> Option<(&'a str, String)> {
    let setting = path.join(".").strip_suffix("_file")?.to_owned();
    variable.strip_suffix(SUFFIX).filter(|_| has_file_form(&setting)).zip(Some(setting))
}

/// Adds the settings of the environment. `LUMILINK_<SECTION>__<KEY>_FILE` names a file with the value of a secret.
fn add_environment(layers: &mut Layers, sources: &Sources) -> Result<(), ConfigError> {
    let mut problems = Vec::new();
    for (variable, path, value) in sources.environment.settings() {
        let origin = Origin::Environment(variable.to_owned());
        let Some((plain, setting)) = secret_in_file(variable, &path) else {
            layers.add_text(origin, &path, value);
            continue;
        };
        // An empty variable counts as absent.
        if value.is_empty() {
            continue;
        }
        let read = match sources.environment.get(plain) {
            Some(_) => Err(format!("is set by {plain} too; set only one of them")),
            None => secret_file::read(&absolute(Path::new(value), &sources.current_folder)),
        };
        match read {
            Ok(secret) => {
                layers.add_secret(origin, &setting.split('.').map(str::to_owned).collect::<Vec<_>>(), &secret)
            }
            Err(what) => problems.push(BadSetting { setting, origin, what }),
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(ConfigError { problems }) }
}

fn data_dir(sources: &Sources) -> (PathBuf, Origin) {
    data_dir_of(sources.data_dir.as_deref(), &sources.environment, &sources.current_folder)
}

/// The data folder: the flag, else the environment, else the default in the current folder.
pub(crate) fn data_dir_of(flag: Option<&Path>, environment: &Environment, current: &Path) -> (PathBuf, Origin) {
    let (path, origin) = match (flag, environment.get(DATA_DIR_VARIABLE)) {
        (Some(flag), _) => (flag, Origin::Flag("--data-dir".into())),
        (None, Some(variable)) => (Path::new(variable), Origin::Environment(DATA_DIR_VARIABLE.into())),
        (None, None) => (Path::new(DEFAULT_DATA_DIR), Origin::Default),
    };
    (absolute(path, current), origin)
}

fn own_files(config: &Config, data_dir: &Path, sources: &Sources) -> Vec<PathBuf> {
    let file = sources.file.iter().map(|file| absolute(file, &sources.current_folder));
    let url = config.database.url.as_ref().and_then(|url| sqlite_path(url.expose_secret()));
    let of_database =
        url.into_iter().flat_map(|path| DATABASE_SUFFIXES.map(|suffix| PathBuf::from(format!("{path}{suffix}"))));
    let secrets = sources.environment.settings().filter(|(variable, path, value)| {
        // An empty variable counts as absent.
        !value.is_empty() && secret_in_file(variable, path).is_some()
    });
    let secrets = secrets.map(|(_, _, value)| absolute(Path::new(value), &sources.current_folder));
    [data_dir.to_owned()].into_iter().chain(file).chain(of_database).chain(secrets).collect()
}

fn make_absolute(config: &mut Config, data_dir: &Path, sources: &Sources) {
    let current = sources.current_folder.as_path();
    let home = sources.environment.get("HOME").map(Path::new);
    for agent in std::iter::once(&mut config.agent).chain(config.agents.values_mut()) {
        for path in agent.read.iter_mut().chain(&mut agent.write) {
            *path = match (path.strip_prefix("~"), home) {
                (Ok(below), Some(home)) => absolute(below, home),
                _ => absolute(path, current),
            };
        }
    }
    let workspaces = &mut config.workspaces;
    workspaces.root = Some(match &workspaces.root {
        Some(root) => absolute(root, current),
        None => data_dir.join("workspaces"),
    });
    for path in workspaces.allow_paths.iter_mut().chain(config.ceilings.listed_paths.iter_mut().flatten()) {
        *path = absolute(path, current);
    }
    let url = match &config.database.url {
        None => format!("sqlite:{}", data_dir.join("lumilink.db").display()),
        Some(url) => match sqlite_path(url.expose_secret()) {
            Some(path) => format!("sqlite:{}", absolute(Path::new(path), current).display()),
            None => url.expose_secret().to_owned(),
        },
    };
    config.database.url = Some(url.into());
}

#[cfg(test)]
mod tests;
