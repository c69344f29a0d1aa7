//! Reload on SIGHUP: log filter, tokens, webhook secrets, named secrets and blocked repositories.

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};

use super::{AppError, access::client_token};
use crate::{
    config::{self, Config, Loaded, Reloadable, Sources, changes::changes},
    domain::redaction::known,
    runtime::NamedSecrets,
    telemetry::logging::LogFilter,
    webhook::{Poster, Signer},
};

const SERVER_TOKEN: &str = "server.token";

/// The sources of the configuration, which a reload reads again, and the log whose filter it changes.
#[derive(Debug, Clone)]
pub(crate) struct Reload {
    pub sources: Sources,
    pub log: LogFilter,
}

/// The parts of a process that take new settings while it runs.
#[derive(Debug, Clone, Default)]
pub(super) struct Targets {
    /// The token of the API.
    pub server_token: Option<Reloadable<Option<SecretString>>>,
    /// The token of a separate runtime.
    pub runtime_token: Option<Reloadable<Option<SecretString>>>,
    pub secrets: Option<NamedSecrets>,
    /// Repositories that are never automated.
    pub blocked_repositories: Option<Reloadable<Vec<String>>>,
    /// The poster of operators' alerts.
    pub poster: Option<Arc<Poster>>,
}

/// Reloads the configuration of a process.
pub(super) struct Reloader {
    reload: Option<Reload>,
    targets: Targets,
    /// The settings with which the process started.
    started: Loaded,
    /// The settings of the last reload.
    current: Loaded,
}

impl Reloader {
    pub(super) fn new(reload: Option<Reload>, loaded: &Loaded, targets: Targets) -> Self {
        Self { reload, targets, started: loaded.clone(), current: loaded.clone() }
    }

    /// Reads the sources again and applies what can be applied. Logs what changed, what needs a restart, and an error
    /// for invalid settings, of which none is applied.
    pub(super) fn reload(&mut self) {
        let Some(Reload { sources, log }) = &self.reload else {
            tracing::warn!(marker = "[ACP]", "SIGHUP ignored: this command has no configuration to reload");
            return;
        };
        let loaded = match config::load(sources) {
            Ok(loaded) => loaded,
            Err(cause) => {
                tracing::error!(marker = "[ACP]", %cause, "configuration not reloaded; the old settings remain");
                return;
            }
        };
        known::hide(loaded.secrets());
        let mut reloaded = changes(&self.current, &loaded);
        reloaded.retain(|name| self.applies(name) && name != SERVER_TOKEN);
        match self.reload_client_token(&loaded) {
            Ok(true) => {
                reloaded.push(SERVER_TOKEN.to_owned());
                reloaded.sort();
            }
            Ok(false) => {}
            Err(cause) => {
                tracing::error!(marker = "[ACP]", %cause, "configuration not reloaded; the old settings remain");
                return;
            }
        }
        for name in reloaded.iter().filter(|name| *name != SERVER_TOKEN) {
            if let Err(cause) = self.apply(name, &loaded.config, log) {
                tracing::error!(marker = "[ACP]", setting = name, %cause, "setting not reloaded");
            }
        }
        let mut needs_restart = changes(&self.started, &loaded);
        needs_restart.retain(|name| !self.applies(name));
        let (reloaded, needs_restart) = (reloaded.join(", "), needs_restart.join(", "));
        if needs_restart.is_empty() {
            tracing::info!(marker = "[ACP]", reloaded, "configuration reloaded");
        } else {
            tracing::warn!(marker = "[ACP]", reloaded, needs_restart, "configuration reloaded in part");
        }
        self.current = loaded;
    }

    /// True if a reload applies this setting.
    fn applies(&self, name: &str) -> bool {
        let targets = &self.targets;
        match name {
            "log.level" => true,
            SERVER_TOKEN => targets.server_token.is_some(),
            "runtime.token" => targets.runtime_token.is_some(),
            "webhook.secret" | "webhook.previous_secret" => targets.poster.is_some(),
            name if name.starts_with("secrets.") => targets.secrets.is_some(),
            name if name.starts_with("github.blocked_repositories") => targets.blocked_repositories.is_some(),
            _ => false,
        }
    }

    /// Replaces the token of the API, also by that of the data folder, whose file may have changed or be gone: then it is made
    /// again. Returns whether it differs from the current one.
    fn reload_client_token(&self, loaded: &Loaded) -> Result<bool, AppError> {
        let Some(target) = &self.targets.server_token else { return Ok(false) };
        let token = client_token(loaded)?;
        let text = |token: &Option<SecretString>| token.as_ref().map(|token| token.expose_secret().to_owned());
        let differs = text(&target.get()) != text(&token);
        if differs {
            target.set(token);
        }
        Ok(differs)
    }

    fn apply(&self, name: &str, config: &Config, log: &LogFilter) -> Result<(), String> {
        let Targets { server_token: _, runtime_token, secrets, blocked_repositories, poster } = &self.targets;
        let failed = |cause: &dyn std::error::Error| cause.to_string();
        match name {
            "log.level" => log.set(&config.log.level).map_err(|cause| failed(&cause))?,
            "runtime.token" => replace(runtime_token.as_ref(), &config.runtime.token),
            "webhook.secret" | "webhook.previous_secret" => {
                let secrets = config.webhook.secret.iter().chain(&config.webhook.previous_secret);
                let signer = Signer::new(secrets).map_err(|cause| failed(&cause))?;
                if let Some(poster) = poster {
                    poster.sign_with(signer);
                }
            }
            name if name.starts_with("secrets.") => replace(secrets.as_ref(), &config.secrets),
            _ => replace(blocked_repositories.as_ref(), &config.github.blocked_repositories),
        }
        Ok(())
    }
}

fn replace<T: Clone>(target: Option<&Reloadable<T>>, value: &T) {
    if let Some(target) = target {
        target.set(value.clone());
    }
}
