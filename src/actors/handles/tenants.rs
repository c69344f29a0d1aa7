//! Settings of tenants in memory, and the use that they limit.
//!
//! A handle, not an actor: a turn reads the settings and is counted under short locks, without a hop. One process serves a
//! database, so the settings in memory are those on disk.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use parking_lot::{Mutex, RwLock};

use crate::{
    domain::{
        changes::ChangeKind,
        clock::Timestamp,
        ids::InstallationId,
        limits::{LimitFigures, Usage, UseLimits},
        routing::Attribution,
        tenant::TenantSettings,
        turn::outcome::{ErrorCode, Failure},
    },
    store::{self, NewChange, Store, StoreError},
};

/// Settings of one tenant, with the time of the last change; `None` for the defaults.
type Kept = (Arc<TenantSettings>, Option<Timestamp>);

/// Settings of the tenants that have some: about 300 bytes each. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tenants(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    settings: RwLock<HashMap<InstallationId, Kept>>,
    /// The settings of all other tenants.
    defaults: Arc<TenantSettings>,
    /// One writer at a time, so that memory and disk have the same order of changes.
    writing: tokio::sync::Mutex<()>,
}

/// Rows of one read at the start.
const PAGE: usize = 500;

impl Tenants {
    /// Reads the settings of all tenants.
    ///
    /// # Errors
    /// Those of the database; safe to retry.
    pub(crate) async fn recover(store: &Store) -> Result<Self, StoreError> {
        let (mut settings, mut after) = (HashMap::new(), None);
        loop {
            let page = store.tenant_settings(after, PAGE).await?;
            after = page.last().filter(|_| page.len() == PAGE).map(|(tenant, ..)| tenant.clone());
            settings.extend(page.into_iter().map(|(tenant, its, updated)| (tenant, (Arc::new(its), Some(updated)))));
            if after.is_none() {
                return Ok(Self(Arc::new(Inner { settings: RwLock::new(settings), ..Inner::default() })));
            }
        }
    }

    /// Settings without a database.
    #[cfg(test)]
    pub(crate) fn of_tests(settings: impl IntoIterator<Item = (InstallationId, TenantSettings)>) -> Self {
        let settings = settings.into_iter().map(|(tenant, its)| (tenant, (Arc::new(its), None)));
        Self(Arc::new(Inner { settings: RwLock::new(settings.collect()), ..Inner::default() }))
    }

    /// The settings of a tenant; those without a row limit nothing.
    pub(crate) fn settings(&self, tenant: &InstallationId) -> Arc<TenantSettings> {
        self.kept(tenant).0
    }

    /// [`Self::settings`] with the time of their last change.
    pub(crate) fn kept(&self, tenant: &InstallationId) -> Kept {
        self.0.settings.read().get(tenant).cloned().unwrap_or_else(|| (self.0.defaults.clone(), None))
    }

    /// The tenant to which an installation of the GitHub App is bound; at most one. Looks at all tenants with settings, which
    /// costs a microsecond for a few hundred.
    pub(crate) fn bound_to(&self, installation: u64) -> Option<InstallationId> {
        let settings = self.0.settings.read();
        let found = settings.iter().find(|(_, (its, _))| its.automation.binds(installation));
        found.map(|(tenant, _)| tenant.clone())
    }

    /// Writes the settings that `change` makes of the present ones, and the record of the change.
    ///
    /// # Errors
    /// The failure of `change`; `installation_bound` if an installation is bound to another tenant; or the failure of the
    /// database. A retry is safe.
    pub(crate) async fn change(
        &self,
        store: &Store,
        tenant: &InstallationId,
        (attribution, now): (&Attribution, Timestamp),
        change: impl FnOnce(&mut TenantSettings) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let _one = self.0.writing.lock().await;
        let before = self.settings(tenant);
        let mut settings = (*before).clone();
        change(&mut settings)?;
        let as_json = |settings: &TenantSettings| serde_json::to_value(settings).unwrap_or_default();
        let record = NewChange {
            before: as_json(&before),
            after: as_json(&settings),
            ..NewChange::of_tenant(ChangeKind::TenantSettings, tenant, attribution, now)
        };
        let saved = store.save_tenant_settings(tenant.clone(), &settings, record).await;
        saved.map_err(|cause| match cause {
            StoreError::Conflict(detail) => Failure::new(ErrorCode::InstallationBound, detail),
            cause => store::failure(&cause),
        })?;
        self.0.settings.write().insert(tenant.clone(), (Arc::new(settings), Some(now)));
        Ok(())
    }

    /// Drops the settings of a tenant whose row was erased.
    pub(crate) fn forget(&self, tenant: &InstallationId) {
        self.0.settings.write().remove(tenant);
    }
}

/// Counts the use by each key, such as a tenant or a token, against its limits. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct UseGuard<K>(Arc<Mutex<Usage<K>>>);

impl<K> Default for UseGuard<K> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Usage::default())))
    }
}

#[derive(Debug, Clone, Copy)]
enum Counted {
    Session,
    Turn,
}

/// A live session or a running turn that is counted; dropping it ends the count, on any thread.
#[derive(Debug)]
pub(crate) struct UsePermit<K: Eq + Hash + Clone> {
    guard: UseGuard<K>,
    key: K,
    counted: Counted,
}

impl<K: Eq + Hash + Clone> UseGuard<K> {
    fn permit(&self, key: &K, counted: Counted) -> UsePermit<K> {
        UsePermit { guard: self.clone(), key: key.clone(), counted }
    }

    /// Counts a new session.
    ///
    /// # Errors
    /// The figures of the limit that refuses it.
    pub(crate) fn admit_session(
        &self,
        key: &K,
        limits: &UseLimits,
        now: Timestamp,
    ) -> Result<UsePermit<K>, LimitFigures> {
        self.0.lock().admit_session(key, limits, now)?;
        Ok(self.permit(key, Counted::Session))
    }

    /// Counts a session that was admitted before, whatever the limit.
    pub(crate) fn admit_returning_session(&self, key: &K, now: Timestamp) -> UsePermit<K> {
        self.0.lock().admit_returning_session(key, now);
        self.permit(key, Counted::Session)
    }

    /// Counts a prompt and its turn.
    ///
    /// # Errors
    /// The figures of the limit that refuses it.
    pub(crate) fn begin_turn(
        &self,
        key: &K,
        limits: &UseLimits,
        now: Timestamp,
    ) -> Result<UsePermit<K>, LimitFigures> {
        self.0.lock().begin_turn(key, limits, now)?;
        Ok(self.permit(key, Counted::Turn))
    }

    /// Counts a turn that began in an earlier process, whatever the limit.
    pub(crate) fn resume_turn(&self, key: &K, now: Timestamp) -> UsePermit<K> {
        self.0.lock().resume_turn(key, now);
        self.permit(key, Counted::Turn)
    }

    /// Live sessions and running turns of a key.
    pub(crate) fn now(&self, key: &K) -> (u32, u32) {
        self.0.lock().now(key)
    }
}

impl<K: Eq + Hash + Clone> Drop for UsePermit<K> {
    fn drop(&mut self) {
        let mut usage = self.guard.0.lock();
        match self.counted {
            Counted::Session => usage.end_session(&self.key),
            Counted::Turn => usage.end_turn(&self.key),
        }
    }
}
