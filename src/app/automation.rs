//! The GitHub App of automation, and the turns that GitHub starts.

use std::sync::Arc;

use tokio::{sync::watch, task::JoinHandle};

use super::AppError;
use crate::{
    actors::{triggers::Triggers, workspaces::Workspaces},
    config::{Config, ReloadableSecret},
    domain::jail::{self, JailState, KernelRights},
    github::{App, AppOptions, Github, GithubLimits},
    process::sandbox::kernel,
};

/// The keys of `[github]`, which a reload replaces.
#[derive(Clone)]
pub(super) struct GithubKeys {
    /// The App with its private key, if one is configured.
    pub app: Option<Arc<App>>,
    pub signing_key: ReloadableSecret,
}

/// Reads the keys of `[github]`. Blocks for about a millisecond.
///
/// # Errors
/// A key is not usable, or the agents of an embedded runtime could read its file.
pub(super) fn github_keys(config: &Config) -> Result<GithubKeys, AppError> {
    check_keys(config)?;
    let github = &config.github;
    let app = github.app().map(|(app_id, private_key)| {
        let options = AppOptions { api_url: &github.api_url, app_id, private_key };
        App::new(Github::new(GithubLimits::default()), options).map(Arc::new)
    });
    let app = app.transpose().map_err(|cause| AppError::Github(cause.to_string()))?;
    Ok(GithubKeys { app, signing_key: ReloadableSecret::new(github.signing_key.clone()) })
}

/// Refuses a key whose file the agents of an embedded runtime could read.
pub(super) fn check_keys(config: &Config) -> Result<(), AppError> {
    let github = &config.github;
    let has_key = github.app().is_some() || github.signing_key.is_some();
    if has_key && config.runtime.url.is_none() && !github.allow_embedded_key {
        check_jail(config, kernel::detect().unwrap_or_default())?;
    }
    Ok(())
}

/// The queue of GitHub's deliveries and its worker, if they are switched on.
pub(super) struct TriggersHandle {
    triggers: Option<Triggers>,
    worker: Option<JoinHandle<()>>,
    stopping: watch::Sender<bool>,
}

/// Starts to work off what an earlier process has queued, and what arrives.
pub(super) fn start_triggers(config: &Config, workspaces: &Workspaces, app: Option<Arc<App>>) -> TriggersHandle {
    let stopping = watch::Sender::new(false);
    let triggers = Triggers::new(workspaces.clone(), app, config, stopping.subscribe());
    let worker = triggers.clone().map(|triggers| actix::spawn(triggers.run()));
    TriggersHandle { triggers, worker, stopping }
}

impl TriggersHandle {
    pub(super) fn triggers(&self) -> Option<Triggers> {
        self.triggers.clone()
    }

    /// Lets running steps end, and starts no more. The next start continues.
    pub(super) fn stop(&self) {
        self.stopping.send_replace(true);
        self.worker.iter().for_each(JoinHandle::abort);
    }
}

/// Refuses a key beside agents without the file rules of the jail.
fn check_jail(config: &Config, kernel: KernelRights) -> Result<(), AppError> {
    let agents = std::iter::once(&config.agent).chain(config.agents.values());
    match jail::state(agents.map(|agent| agent.jail), kernel) {
        JailState::Off => Err(AppError::Github(
            "`github.private_key` or `github.signing_key` is set, and agents run in this process's runtime without the \
             file rules of the jail: they could read the file of the key. Confine them, use a separate runtime \
             (`runtime.url`) of another user, or set `github.allow_embedded_key = true`"
                .to_owned(),
        )),
        JailState::On | JailState::Partial => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::sections::Agent, domain::jail::JailMode};

    #[test]
    fn key_beside_agents_without_file_rules_is_refused() {
        let landlock = KernelRights::of_abi(6);
        let mut config = Config::default();
        assert!(check_jail(&config, landlock).is_ok());
        let refused = check_jail(&config, KernelRights::default()).unwrap_err().to_string();
        assert!(refused.contains("allow_embedded_key"), "{refused}");
        config.agents.insert("free".into(), Agent { jail: JailMode::Off, ..Agent::default() });
        assert!(check_jail(&config, landlock).is_err());
    }
}
