//! Gives each tenant a user of its own from a pool, for good.
//!
//! A file for each user that is in use, named by its id, holds the tenant: in a folder in the root of the workspaces, beside
//! the files that belong to these users. The owner of a tenant's folder could not be the record: a tenant has many folders,
//! each of which may be removed, while a user must not get another tenant as long as one file of it is left. A user is
//! therefore never given to another tenant unless an administrator removes its file.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use uuid::Uuid;

use super::user::{RunAs, exists};
use crate::domain::jail::pool::UserPool;

/// Folder of the records in the root of the workspaces.
const USERS: &str = ".users";
/// File in it that is locked while a user is given out: several runtimes may have the same root.
const LOCK: &str = ".lock";

/// The users that tenants have.
#[derive(Debug)]
pub(crate) struct TenantUsers {
    folder: PathBuf,
    /// The records that this process has read, by tenant.
    known: Mutex<HashMap<(UserPool, Uuid), u32>>,
}

/// A tenant gets no user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PoolError {
    /// Every user of the pool belongs to another tenant, or is an account of the machine.
    #[error("all users of `run_as = \"{0}\"` belong to other tenants: an administrator must enlarge the pool")]
    Exhausted(UserPool),
    #[error("the user of the tenant cannot be read or recorded: {0}")]
    Record(#[from] io::Error),
}

impl TenantUsers {
    /// Records are in `root`.
    pub(crate) fn new(root: &Path) -> Self {
        Self { folder: root.join(USERS), known: Mutex::default() }
    }

    /// The user of a tenant that [`user_of`](Self::user_of) has found before.
    pub(crate) fn known(&self, pool: UserPool, tenant: &str) -> Option<RunAs> {
        let id = *self.known.lock().get(&(pool, name_of(tenant)))?;
        Some(RunAs { uid: id, gid: id })
    }

    /// The user of a tenant, given out now if it has none of the pool. Blocks.
    ///
    /// # Errors
    /// The pool is exhausted, or the record cannot be read or written; nothing is given out then.
    pub(crate) fn user_of(&self, pool: UserPool, tenant: &str) -> Result<RunAs, PoolError> {
        if let Some(user) = self.known(pool, tenant) {
            return Ok(user);
        }
        let tenant = name_of(tenant);
        let id = self.find_or_give(pool, tenant)?;
        self.known.lock().insert((pool, tenant), id);
        Ok(RunAs { uid: id, gid: id })
    }

    fn find_or_give(&self, pool: UserPool, tenant: Uuid) -> Result<u32, PoolError> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let lock = File::options().create(true).append(true).mode(0o600).open(self.folder.join(LOCK))?;
        lock.lock()?;
        let mut taken = HashMap::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) {
                taken.insert(id, fs::read_to_string(entry.path())?.trim().to_owned());
            }
        }
        let own = tenant.to_string();
        if let Some(id) = pool.ids().find(|id| taken.get(id) == Some(&own)) {
            return Ok(id);
        }
        for id in pool.ids().filter(|id| !taken.contains_key(id)) {
            if exists(id)? {
                tracing::warn!(uid = id, "user of a pool is an account of this machine and is not given out");
                continue;
            }
            self.record(id, &own)?;
            return Ok(id);
        }
        Err(PoolError::Exhausted(pool))
    }

    /// On disk before the first file of the user is made.
    fn record(&self, id: u32, tenant: &str) -> io::Result<()> {
        let unfinished = self.folder.join(".new");
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        writeln!(file, "{tenant}")?;
        file.sync_all()?;
        fs::rename(&unfinished, self.folder.join(id.to_string()))?;
        File::open(&self.folder)?.sync_all()
    }
}

/// A name of the tenant without the text of a caller.
fn name_of(tenant: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, tenant.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(text: &str) -> UserPool {
        text.parse().unwrap()
    }

    #[test]
    fn tenant_keeps_its_user_over_restarts_and_no_other_tenant_gets_it() {
        let root = tempfile::tempdir().unwrap();
        let three = pool("pool:70000-70002");
        let users = TenantUsers::new(root.path());
        let ann = users.user_of(three, "ann").unwrap();
        let bob = users.user_of(three, "bob").unwrap();
        assert_eq!((ann, bob), (RunAs { uid: 70000, gid: 70000 }, RunAs { uid: 70001, gid: 70001 }));
        let restarted = TenantUsers::new(root.path());
        assert_eq!(restarted.user_of(three, "bob").unwrap(), bob);
        assert_eq!(restarted.user_of(pool("pool:70000-71000"), "ann").unwrap(), ann, "a larger pool keeps it");
        restarted.user_of(three, "").unwrap();
        let refused = restarted.user_of(three, "eve").unwrap_err();
        assert!(matches!(refused, PoolError::Exhausted(_)) && refused.to_string().contains("70000-70002"));
        assert_eq!(restarted.user_of(three, "ann").unwrap(), ann);
    }

    #[test]
    fn concurrent_runtimes_give_each_tenant_one_user() {
        let root = tempfile::tempdir().unwrap();
        let given: Vec<_> = std::thread::scope(|scope| {
            let runs: Vec<_> = (0..8)
                .map(|n| {
                    let users = TenantUsers::new(root.path());
                    scope.spawn(move || users.user_of(pool("pool:70000-70999"), &format!("t{}", n % 4)).unwrap().uid)
                })
                .collect();
            runs.into_iter().map(|run| run.join().unwrap()).collect()
        });
        let distinct: std::collections::HashSet<_> = given.iter().collect();
        assert_eq!(distinct.len(), 4, "{given:?}");
        assert!((0..4).all(|n| given[n] == given[n + 4]), "{given:?}");
    }
}
