//! Bytes on disk of the workspaces in use, as they were last measured.

use std::{collections::HashMap, sync::Arc};

use parking_lot::RwLock;

use crate::domain::{
    ids::WorkspaceKey,
    limits::{LimitFigures, LimitKind},
    turn::outcome::Failure,
};

/// The newest measurements: one for each workspace with a live session. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct DiskUse(Arc<RwLock<HashMap<WorkspaceKey, u64>>>);

impl DiskUse {
    pub(crate) fn record(&self, key: &WorkspaceKey, bytes: u64) {
        self.0.write().insert(key.clone(), bytes);
    }

    /// Drops the measurements of workspaces for which `is_used` does not hold.
    pub(crate) fn retain(&self, is_used: impl Fn(&WorkspaceKey) -> bool) {
        self.0.write().retain(|key, _| is_used(key));
    }

    /// Bytes of a workspace, if it was measured.
    pub(crate) fn of(&self, key: &WorkspaceKey) -> Option<u64> {
        self.0.read().get(key).copied()
    }

    /// Refuses a turn of a workspace over the limit in bytes; 0 is no limit. One that was not measured yet passes.
    ///
    /// # Errors
    /// `workspace_full` with the figures.
    pub(crate) fn check(&self, key: &WorkspaceKey, limit: u64) -> Result<(), Failure> {
        let Some(used) = self.of(key).filter(|used| limit > 0 && *used > limit) else { return Ok(()) };
        let figures = LimitFigures { kind: LimitKind::WorkspaceBytes, used, limit, retry_after_s: None };
        Err(Failure::limit_reached(&format!("the workspace {key}"), figures))
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
        measured.retain(|_| false);
        assert_eq!(measured.of(&key), None);
    }
}
