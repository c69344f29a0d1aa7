//! Reload on SIGHUP: every secret that a file can hold, the log filter and the blocked repositories.

use std::sync::Arc;

use secrecy::ExposeSecret;

use super::{
    AppError,
    access::client_token,
    automation::{GithubKeys, check_keys},
    store::database_url,
};
use crate::{
    actors::triggers::Triggers,
    config::{self, Loaded, Reloadable, ReloadableSecret, Sources, changes::changes},
    domain::redaction::known,
    github::AppKey,
    runtime::NamedSecrets,
    store::DatabaseUrl,
    telemetry::logging::LogFilter,
    webhook::{Poster, Receiver, Signer},
};

const SERVER_TOKEN: &str = "server.token";

/// A checked change of one setting.
type Change = Box<dyn FnOnce()>;

/// A part of a process that takes new settings. [`SERVER_TOKEN`] is none of them: it may also come from the data folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Log,
    RuntimeToken,
    WebhookUrl,
    WebhookSignature,
    Database,
    AppKey,
    SigningKey,
    TriggerSecret,
    NamedSecrets,
    BlockedRepositories,
}

impl Part {
    /// The part that takes a setting; `None` for one that needs a restart.
    fn of(setting: &str) -> Option<Self> {
        Some(match setting {
            "log.level" => Self::Log,
            "runtime.token" => Self::RuntimeToken,
            "webhook.url" => Self::WebhookUrl,
            "webhook.secret" | "webhook.previous_secret" => Self::WebhookSignature,
            "database.url" => Self::Database,
            "github.private_key" => Self::AppKey,
            "github.signing_key" => Self::SigningKey,
            "github.triggers.webhook_secret" => Self::TriggerSecret,
            name if name.starts_with("secrets.") => Self::NamedSecrets,
            name if name.starts_with("github.blocked_repositories") => Self::BlockedRepositories,
            _ => return None,
        })
    }
}

/// The sources of the configuration, which a reload reads again, and the log whose filter it changes.
#[derive(Debug, Clone)]
pub(crate) struct Reload {
    pub sources: Sources,
    pub log: LogFilter,
}

/// The parts of a process that take new settings while it runs.
#[derive(Clone, Default)]
pub(super) struct Targets {
    /// The token of the API.
    pub server_token: Option<ReloadableSecret>,
    /// The token of a separate runtime, on either side.
    pub runtime_token: Option<ReloadableSecret>,
    pub secrets: Option<NamedSecrets>,
    /// Repositories that are never automated.
    pub blocked_repositories: Option<Reloadable<Vec<String>>>,
    /// The poster of operators' alerts.
    pub poster: Option<Arc<Poster>>,
    pub github: Option<GithubKeys>,
    pub triggers: Option<Triggers>,
    pub database: Option<DatabaseUrl>,
}

/// Reloads the configuration of a process.
pub(super) struct Reloader {
    reload: Option<Reload>,
    targets: Targets,
    /// The settings with which the process started.
    started: Loaded,
    /// The settings of the last reload.
    current: Loaded,
    /// The settings that differ from those of the start and were not applied.
    needs_restart: Vec<String>,
}

impl Reloader {
    pub(super) fn new(reload: Option<Reload>, loaded: &Loaded, targets: Targets) -> Self {
        Self { reload, targets, started: loaded.clone(), current: loaded.clone(), needs_restart: Vec::new() }
    }

    /// Reads the sources again and applies what can be applied. Logs what changed, what needs a restart, and an error
    /// for invalid settings, of which none is applied.
    pub(super) fn reload(&mut self) {
        let Some(Reload { sources, log }) = &self.reload else {
            tracing::warn!(marker = "[ACP]", "SIGHUP ignored: this command has no configuration to reload");
            return;
        };
        let loaded = config::load(sources).map_err(|cause| cause.to_string());
        let checked = loaded.and_then(|loaded| {
            known::hide(loaded.secrets());
            Ok((self.changes(&loaded, log)?, loaded))
        });
        let ((reloaded, made), loaded) = match checked {
            Ok(checked) => checked,
            Err(cause) => {
                tracing::error!(marker = "[ACP]", %cause, "configuration not reloaded; the old settings remain");
                return;
            }
        };
        made.into_iter().for_each(|change| change());
        let mut needs_restart = changes(&self.started, &loaded);
        needs_restart.retain(|name| !self.applies(name, &loaded));
        (self.current, self.needs_restart) = (loaded, needs_restart);
        let (reloaded, needs_restart) = (reloaded.join(", "), self.needs_restart.join(", "));
        if needs_restart.is_empty() {
            tracing::info!(marker = "[ACP]", reloaded, "configuration reloaded");
        } else {
            tracing::warn!(marker = "[ACP]", reloaded, needs_restart, "configuration reloaded in part");
        }
    }

    /// The settings to reload, in alphabetical order, and their changes. Every change is checked before the first one is
    /// made.
    fn changes(&self, loaded: &Loaded, log: &LogFilter) -> Result<(Vec<String>, Vec<Change>), String> {
        self.check_files(loaded)?;
        let mut names = changes(&self.current, loaded);
        // One that could not be applied before may apply now, without another change of its own.
        names.extend(self.needs_restart.iter().cloned());
        names.sort();
        names.dedup();
        names.retain(|name| name != SERVER_TOKEN && self.applies(name, loaded));
        let parts = names.iter().filter_map(|name| Some((name, Part::of(name)?)));
        let change = |(name, part)| self.change(part, loaded, log).map_err(|cause| format!("{name}: {cause}"));
        let mut prepared = parts.map(change).collect::<Result<Vec<_>, _>>()?;
        if let Some(change) = self.change_of_client_token(loaded).map_err(|cause| cause.to_string())? {
            prepared.push(change);
            names.push(SERVER_TOKEN.to_owned());
            names.sort();
        }
        Ok((names, prepared))
    }

    /// Refuses a file that was not named at the start: the jail of the agents excludes only those that were.
    fn check_files(&self, loaded: &Loaded) -> Result<(), String> {
        let has_agents = self.started.config.runtime.url.is_none();
        match loaded.own_files.iter().find(|file| has_agents && !self.started.own_files.contains(file)) {
            Some(file) => Err(format!(
                "{} was not named at the start, and the jail of the agents excludes only the files that were: restart, or \
                 put the new value into the old file",
                file.display()
            )),
            None => Ok(()),
        }
    }

    /// True if a reload applies this setting. Credentials in a URL are reloaded, its server is not.
    fn applies(&self, name: &str, loaded: &Loaded) -> bool {
        let targets = &self.targets;
        if name == SERVER_TOKEN {
            return targets.server_token.is_some();
        }
        let Some(part) = Part::of(name) else { return false };
        let (started, new) = (&self.started.config, &loaded.config);
        match part {
            Part::Log => true,
            Part::RuntimeToken => targets.runtime_token.is_some(),
            Part::WebhookUrl => targets.poster.is_some() && started.webhook.endpoint() == new.webhook.endpoint(),
            Part::WebhookSignature => targets.poster.is_some(),
            // A malformed URL is an error of the reload.
            Part::Database => targets
                .database
                .as_ref()
                .is_some_and(|url| database_url(loaded).map_or(true, |new| url.is_same_but_for_credentials(&new))),
            Part::AppKey => {
                targets.github.as_ref().is_some_and(|github| github.app.is_some())
                    && started.github.app_id == new.github.app_id
            }
            Part::SigningKey => targets.github.is_some(),
            Part::TriggerSecret => targets.triggers.is_some() && new.github.triggers.webhook_secret.is_some(),
            Part::NamedSecrets => targets.secrets.is_some(),
            Part::BlockedRepositories => targets.blocked_repositories.is_some(),
        }
    }

    /// The change of the API's token, also by that of the data folder, whose file may have changed or be gone: then it is
    /// made again. `None` if it is the current one.
    fn change_of_client_token(&self, loaded: &Loaded) -> Result<Option<Change>, AppError> {
        let Some(target) = &self.targets.server_token else { return Ok(None) };
        let token = client_token(loaded)?;
        let differs = target.get().as_ref().as_ref().map(ExposeSecret::expose_secret)
            != token.as_ref().map(ExposeSecret::expose_secret);
        Ok(differs.then(|| replace(Some(target), &token)))
    }

    /// Checks the new value of a part that applies.
    fn change(&self, part: Part, loaded: &Loaded, log: &LogFilter) -> Result<Change, String> {
        let (targets, config) = (&self.targets, &loaded.config);
        let text = |cause: &dyn std::error::Error| cause.to_string();
        Ok(match part {
            Part::Log => {
                let (log, level) = (log.clone(), config.log.level.clone());
                Box::new(move || {
                    if let Err(cause) = log.set(&level) {
                        tracing::error!(marker = "[ACP]", %cause, "log level not reloaded");
                    }
                })
            }
            Part::RuntimeToken => replace(targets.runtime_token.as_ref(), &config.runtime.token),
            Part::WebhookUrl => {
                let url = config.webhook.url.as_ref().map(Receiver::parse).transpose();
                let url = url.map_err(|cause| text(&cause))?;
                with(targets.poster.clone().zip(url), |(poster, url)| poster.post_to(url))
            }
            Part::WebhookSignature => {
                let secrets = config.webhook.secret.iter().chain(&config.webhook.previous_secret);
                let signer = Signer::new(secrets).map_err(|cause| text(&cause))?;
                with(targets.poster.clone(), move |poster| poster.sign_with(signer))
            }
            Part::Database => {
                let url = database_url(loaded).map_err(|cause| text(&cause))?;
                with(targets.database.clone(), move |database| database.connect_as(&url))
            }
            Part::AppKey => {
                let key = config.github.private_key.as_ref().map(AppKey::parse).transpose();
                let key = key.map_err(|cause| text(&cause))?;
                let app = targets.github.as_ref().and_then(|github| github.app.clone());
                with(app.zip(key), |(app, key)| app.use_key(key))
            }
            Part::SigningKey => {
                check_keys(config).map_err(|cause| text(&cause))?;
                replace(targets.github.as_ref().map(|github| &github.signing_key), &config.github.signing_key)
            }
            Part::TriggerSecret => {
                let secret = config.github.triggers.webhook_secret.clone();
                with(targets.triggers.clone().zip(secret), |(triggers, secret)| triggers.use_secret(secret))
            }
            Part::NamedSecrets => replace(targets.secrets.as_ref(), &config.secrets),
            Part::BlockedRepositories => {
                replace(targets.blocked_repositories.as_ref(), &config.github.blocked_repositories)
            }
        })
    }
}

fn with<T: 'static>(target: Option<T>, change: impl FnOnce(T) + 'static) -> Change {
    Box::new(move || {
        if let Some(target) = target {
            change(target);
        }
    })
}

fn replace<T: Clone + 'static>(target: Option<&Reloadable<T>>, value: &T) -> Change {
    let value = value.clone();
    with(target.cloned(), move |target| target.set(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SECRETS;

    #[test]
    fn every_secret_that_a_file_can_hold_is_reloaded() {
        for secret in SECRETS.iter().chain(&["secrets.NAME.value"]).filter(|secret| **secret != SERVER_TOKEN) {
            assert!(Part::of(secret).is_some(), "{secret}");
        }
    }
}
