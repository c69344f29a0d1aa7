//! The service's own credential for GitHub: an App, whose tokens are minted for one repository each.

use std::sync::Arc;

use secrecy::SecretString;

use super::lost_token;
use crate::{
    actors::handles::tenants::Tenants,
    domain::{
        automation::{
            github_host, order,
            repository_pattern::RepositoryName,
            saga::Saga,
            skip::{Credential, SkipDetail},
            step::{Remedy, StepFailure},
        },
        clock::Timestamp,
        ids::InstallationId,
        tenant::TenantSettings,
    },
    github::{App, AppToken, Scope, unbound},
};

/// The service's credential, if there is one, with the settings that bind it to tenants. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Credentials {
    app: Option<Arc<App>>,
    tenants: Tenants,
}

impl Credentials {
    pub(crate) fn new(app: Option<Arc<App>>, tenants: Tenants) -> Self {
        Self { app, tenants }
    }

    /// The settings of a tenant.
    pub(super) fn settings_of(&self, tenant: &InstallationId) -> Arc<TenantSettings> {
        self.tenants.settings(tenant)
    }

    /// The credential for a turn of this tenant without a token of its own.
    pub(super) fn of_tenant(&self, tenant: &InstallationId) -> Credential {
        match &self.app {
            None => Credential::Missing(None),
            Some(_) if self.settings_of(tenant).automation.installations.is_empty() => {
                Credential::Missing(Some(SkipDetail::NoInstallation))
            }
            Some(_) => Credential::Present,
        }
    }

    /// A token for the repository of a run, with the permissions that the run needs. The installation must be bound to the
    /// tenant at this moment.
    ///
    /// # Errors
    /// No App is configured, the repository is not at its GitHub, its installation is not bound to the tenant, or GitHub
    /// refuses or does not answer. Cancel-safe.
    pub(super) async fn mint(
        &self,
        tenant: &InstallationId,
        saga: &Saga,
        api_url: &str,
        now: Timestamp,
    ) -> Result<AppToken, StepFailure> {
        let app = self.app.as_ref().ok_or_else(lost_token)?;
        let repository = &saga.plan.repository;
        let is_here = github_host::is_at(repository, api_url);
        let name = RepositoryName::parse(repository).filter(|_| is_here).ok_or_else(foreign_repository)?;
        // Read again for each step, so that an installation that was removed is not used any more.
        let is_bound = |installation| self.settings_of(tenant).automation.binds(installation);
        app.token(&name, scope_of(saga), is_bound, now).await
    }

    /// A token with which a repository of this tenant is cloned; `None` if no App is configured, or the repository is not at
    /// its GitHub.
    ///
    /// # Errors
    /// The installation is not bound to the tenant, or GitHub refuses or does not answer. Cancel-safe.
    pub(super) async fn for_clone(
        &self,
        tenant: &InstallationId,
        repository: &str,
        api_url: &str,
        now: Timestamp,
    ) -> Result<Option<SecretString>, StepFailure> {
        let Some(app) = &self.app else { return Ok(None) };
        let is_here = github_host::is_at(repository, api_url);
        let Some(name) = RepositoryName::parse(repository).filter(|_| is_here) else { return Ok(None) };
        if self.settings_of(tenant).automation.installations.is_empty() {
            return Err(unbound(&name));
        }
        let is_bound = |installation| self.settings_of(tenant).automation.binds(installation);
        app.clone_token(&name, is_bound, now).await.map(|minted| Some(minted.token))
    }

    /// Drops a minted token that GitHub refused, so that the next one is new.
    pub(super) fn invalidate(&self, token: &SecretString) {
        if let Some(app) = &self.app {
            app.invalidate(token);
        }
    }
}

/// The least permissions of a run.
fn scope_of(saga: &Saga) -> Scope {
    let has_request = saga.plan.wants_pull_request();
    let workflows = saga.facts.changes.as_ref().is_some_and(order::touches_workflows);
    Scope { issues: has_request, pull_requests: has_request, workflows }
}

fn foreign_repository() -> StepFailure {
    let detail = SkipDetail::MissingRepository;
    StepFailure {
        code: detail.as_str().to_owned(),
        message: "The repository is not on the GitHub that is configured. Use a repository of it".to_owned(),
        skip: Some(detail),
        remedy: Remedy::Never,
        retry_at: None,
    }
}

#[cfg(test)]
mod tests;
