//! Bytes on disk of the folders in use, as they were last measured.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::RwLock;

use crate::domain::{
    ids::{SessionId, WorkspaceKey},
    limits::{LimitFigures, LimitKind},
    turn::outcome::Failure,
};

/// The folder of a workspace, or of an isolated session in it.
pub(crate) type Folder = (WorkspaceKey, Option<SessionId>);

/// The newest measurements: one for each folder with a live session. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct DiskUse(Arc<RwLock<BTreeMap<Folder, u64>>>);

impl DiskUse {
    pub(crate) fn record(&self, folder: &Folder, bytes: u64) {
        self.0.write().insert(folder.clone(), bytes);
    }

    /// Drops the measurements of folders for which `is_used` does not hold.
    pub(crate) fn retain(&self, is_used: impl Fn(&Folder) -> bool) {
        self.0.write().retain(|folder, _| is_used(folder));
    }

    /// Bytes of all folders of a workspace that were measured, if any was.
    pub(crate) fn of(&self, key: &WorkspaceKey) -> Option<u64> {
        let measured = self.0.read();
        let folders = measured.range((key.clone(), None)..).take_while(|((of, _), _)| of == key);
        folders.map(|(_, bytes)| *bytes).reduce(u64::saturating_add)
    }

    /// Refuses a turn in a folder over the limit in bytes; 0 is no limit. One that was not measured yet passes.
    ///
    /// # Errors
    /// `workspace_full` with the figures.
    pub(crate) fn check(&self, folder: &Folder, limit: u64) -> Result<(), Failure> {
        let used = self.0.read().get(folder).copied();
        let Some(used) = used.filter(|used| limit > 0 && *used > limit) else { return Ok(()) };
        let figures = LimitFigures { kind: LimitKind::WorkspaceBytes, used, limit, retry_after_s: None };
        let what = match &folder.1 {
            None => format!("the workspace {}", folder.0),
            Some(session) => format!("the folder of the session {session}"),
        };
        Err(Failure::limit_reached(&what, figures))
    }

    /// The largest measurement, and the number of those over the limit.
    pub(crate) fn figures(&self, limit: u64) -> (u64, usize) {
        let measured = self.0.read();
        let over = measured.values().filter(|used| limit > 0 && **used > limit).count();
        (measured.values().copied().max().unwrap_or(0), over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::turn::outcome::ErrorCode;

    #[test]
    fn workspace_over_the_limit_is_refused_with_its_figures_until_it_is_smaller() {
        let key = WorkspaceKey { installation_id: "acme".parse().unwrap(), workspace_id: "web".parse().unwrap() };
        let workspace = key;
        let key = (workspace.clone(), None);
        let measured = DiskUse::default();
        assert!(measured.check(&key, 10).is_ok(), "not measured");
        measured.record(&key, 11);
        let refused = measured.check(&key, 10).unwrap_err();
        assert_eq!(refused.code, ErrorCode::WorkspaceFull);
        assert_eq!(refused.limit().map(|it| (it.used, it.limit)), Some((11, 10)));
        assert!(measured.check(&key, 0).is_ok() && measured.check(&key, 11).is_ok());
        assert_eq!((measured.figures(10), measured.figures(0)), ((11, 1), (11, 0)));
        measured.record(&key, 9);
        assert!(measured.check(&key, 10).is_ok());
        let own = (workspace.clone(), Some(SessionId(uuid::Uuid::from_u128(1))));
        measured.record(&own, 30);
        assert!(measured.check(&key, 10).is_ok(), "a session of its own fills its own folder");
        assert!(measured.check(&own, 10).unwrap_err().detail.contains("folder of the session"));
        assert_eq!(measured.of(&workspace), Some(39));
        measured.retain(|_| false);
        assert_eq!(measured.of(&workspace), None);
    }
}
