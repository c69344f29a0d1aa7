//! Client tokens in memory: each request finds its caller here, without a read of the database.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use uuid::Uuid;

use crate::{
    domain::{
        access::{Caller, Scope},
        clock::Timestamp,
        erasure::EraseTarget,
    },
    store::TokenRow,
};

/// The tokens that requests may use, at most as many as the store accepts. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClientTokens(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    known: RwLock<Known>,
    /// Last use of tokens since the last [`ClientTokens::take_used`].
    used: Mutex<HashMap<Uuid, Timestamp>>,
    has_tenants: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Known {
    /// Callers by the hash of their token.
    callers: HashMap<String, Caller>,
    /// The hashes by id.
    hashes: HashMap<Uuid, String>,
    /// The expiry of those with a life of [`LONG_LIFE`] or more.
    long_lived: HashMap<Uuid, Timestamp>,
}

/// Life from which the expiry of a token is a surprise to its users; shorter ones are renewed by programs.
const LONG_LIFE: Duration = Duration::from_secs(30 * 86_400);
/// Time before its expiry from which a long-lived token is counted: enough for a person to replace it.
const NOTICE: Duration = Duration::from_secs(7 * 86_400);

impl Known {
    fn remove(&mut self, id: Uuid) {
        self.long_lived.remove(&id);
        if let Some(hash) = self.hashes.remove(&id) {
            self.callers.remove(&hash);
        }
    }
}

impl ClientTokens {
    /// The handle for the tokens of the database.
    pub(crate) fn of(rows: &[TokenRow]) -> Self {
        let tokens = Self::default();
        rows.iter().for_each(|row| tokens.admit(row));
        tokens
    }

    /// Admits requests with a token.
    pub(crate) fn admit(&self, row: &TokenRow) {
        if row.scope.tenant.is_some() {
            self.0.has_tenants.store(true, Ordering::Release);
        }
        let mut known = self.0.known.write();
        known.hashes.insert(row.token_id, row.hash.clone());
        if let Some(expires) = row.expires.filter(|expires| expires.since(row.created) >= LONG_LIFE) {
            known.long_lived.insert(row.token_id, expires);
        }
        known.callers.insert(row.hash.clone(), row.caller());
    }

    /// Refuses requests with a token from now on.
    pub(crate) fn revoke(&self, id: Uuid) {
        self.0.known.write().remove(id);
        self.0.used.lock().remove(&id);
    }

    /// Refuses requests with the tokens that are limited to the target of an erasure.
    pub(crate) fn revoke_within(&self, target: &EraseTarget) {
        let is_within = |scope: &Scope| match target {
            EraseTarget::Session(..) => false,
            EraseTarget::Workspace(key) => {
                scope.tenant.as_ref() == Some(&key.installation_id)
                    && scope.workspace.as_ref() == Some(&key.workspace_id)
            }
            EraseTarget::Tenant(tenant) => scope.tenant.as_ref() == Some(tenant),
        };
        let mut known = self.0.known.write();
        let of_tenant = known.callers.values().filter(|caller| is_within(caller.scope()));
        let ids: Vec<_> = of_tenant.filter_map(|caller| caller.grant().token_id).collect();
        ids.into_iter().for_each(|id| known.remove(id));
    }

    /// The caller whose token has this hash, unless the token has expired; records the use.
    pub(crate) fn find(&self, hash: &str, now: Timestamp) -> Option<Caller> {
        let caller = self.0.known.read().callers.get(hash).cloned();
        let caller = caller.filter(|caller| !has_expired(caller, now))?;
        if let Some(id) = caller.grant().token_id {
            self.0.used.lock().insert(id, now);
        }
        Some(caller)
    }

    /// The caller whose token has this id, unless the token has expired or been revoked.
    pub(crate) fn by_id(&self, id: Uuid, now: Timestamp) -> Option<Caller> {
        let known = self.0.known.read();
        known.callers.get(known.hashes.get(&id)?).filter(|caller| !has_expired(caller, now)).cloned()
    }

    /// True while the token of a caller has neither expired nor been revoked, for streams that outlive their request.
    pub(crate) fn is_current(&self, caller: &Caller, now: Timestamp) -> bool {
        caller.grant().token_id.is_none_or(|id| self.by_id(id, now).is_some())
    }

    /// Tokens with a life of 30 days or more that expire within 7 days.
    pub(crate) fn expiring(&self, now: Timestamp) -> usize {
        let known = self.0.known.read();
        known.long_lived.values().filter(|expires| now < **expires && **expires <= now.plus(NOTICE)).count()
    }

    /// True once a token of a tenant was admitted by this process: from then on tenants do not trust each other.
    pub(crate) fn has_tenants(&self) -> bool {
        self.0.has_tenants.load(Ordering::Acquire)
    }

    /// [`Self::has_tenants`] for the runtime of this process, which gives each tenant a `HOME` of its own.
    pub(crate) fn trust_boundary(&self) -> Arc<AtomicBool> {
        self.0.has_tenants.clone()
    }

    /// Removes and returns the tokens that were used, with the time of their last use.
    pub(crate) fn take_used(&self) -> Vec<(Uuid, Timestamp)> {
        self.0.used.lock().drain().collect()
    }
}

fn has_expired(caller: &Caller, now: Timestamp) -> bool {
    caller.grant().expires.is_some_and(|expires| expires <= now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{access::Role, limits::UseLimits};

    const DAY: Duration = Duration::from_secs(86_400);

    fn token(life_days: Option<u32>) -> TokenRow {
        TokenRow {
            token_id: Uuid::now_v7(),
            hash: Uuid::now_v7().to_string(),
            scope: Scope::default(),
            subject: "ann".into(),
            role: Role::User,
            limits: UseLimits::default(),
            created_by: "root".into(),
            created: Timestamp(0),
            expires: life_days.map(|days| Timestamp(0).plus(DAY * days)),
            revoked: None,
            last_used: None,
        }
    }

    #[test]
    fn long_lived_tokens_are_counted_in_the_week_before_their_expiry() {
        let rows = [token(Some(30)), token(Some(29)), token(Some(90)), token(None)];
        let tokens = ClientTokens::of(&rows);
        let counted = |day: u32| tokens.expiring(Timestamp(0).plus(DAY * day));
        assert_eq!([0, 22, 23, 29, 30].map(counted), [0, 0, 1, 1, 0]);
        assert_eq!(counted(85), 1);
        tokens.revoke(rows[2].token_id);
        assert_eq!(counted(85), 0);
    }
}
