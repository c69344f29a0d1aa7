//! The GitHub App of automation.

use std::sync::Arc;

use super::AppError;
use crate::{
    config::Config,
    domain::jail::{self, JailState, KernelRights},
    github::{App, AppOptions, Github, GithubLimits},
    process::sandbox::kernel,
};

/// Makes the App of `[github]`, if one is configured. Blocks for about a millisecond.
///
/// # Errors
/// The key is not usable, or the agents of an embedded runtime could read its file.
pub(super) fn github_app(config: &Config) -> Result<Option<Arc<App>>, AppError> {
    let github = &config.github;
    let has_key = github.app().is_some() || github.signing_key.is_some();
    if has_key && config.runtime.url.is_none() && !github.allow_embedded_key {
        check_jail(config, kernel::detect().unwrap_or_default())?;
    }
    let Some((app_id, private_key)) = github.app() else { return Ok(None) };
    let options = AppOptions { api_url: &github.api_url, app_id, private_key };
    let app = App::new(Github::new(GithubLimits::default()), options);
    app.map(|app| Some(Arc::new(app))).map_err(|cause| AppError::Github(cause.to_string()))
}

/// Refuses a key beside agents without the file rules of the jail.
fn check_jail(config: &Config, kernel: KernelRights) -> Result<(), AppError> {
    let agents = std::iter::once(&config.agent).chain(config.agents.values());
    match jail::state(agents.map(|agent| agent.jail), kernel) {
        JailState::Off => Err(AppError::Github(
            "`github.private_key` or `github.signing_key` is set, and agents run in this process's runtime without the file rules of the jail: they \
             could read the file of the key. Confine them, use a separate runtime (`runtime.url`) of another user, or set \
             `github.allow_embedded_key = true`"
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
