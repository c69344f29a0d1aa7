//! Erasure of sessions, workspaces and tenants: their extent, and numbers of removed things.

use serde::{Deserialize, Serialize};

use super::{
    ids::{InstallationId, SessionId, WorkspaceKey},
    words::words,
};

words! {
    /// The extent of an erasure.
    EraseScope {
        Session = "session",
        Workspace = "workspace",
        Tenant = "tenant",
    }
}

/// The session, workspace or tenant of an erasure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EraseTarget {
    Session(WorkspaceKey, SessionId),
    Workspace(WorkspaceKey),
    Tenant(InstallationId),
}

impl EraseTarget {
    pub(crate) fn scope(&self) -> EraseScope {
        match self {
            Self::Session(..) => EraseScope::Session,
            Self::Workspace(_) => EraseScope::Workspace,
            Self::Tenant(_) => EraseScope::Tenant,
        }
    }

    pub(crate) fn tenant(&self) -> &InstallationId {
        match self {
            Self::Session(key, _) | Self::Workspace(key) => &key.installation_id,
            Self::Tenant(tenant) => tenant,
        }
    }

    /// The workspace, unless it is a whole tenant.
    pub(crate) fn workspace(&self) -> Option<&WorkspaceKey> {
        match self {
            Self::Session(key, _) | Self::Workspace(key) => Some(key),
            Self::Tenant(_) => None,
        }
    }

    pub(crate) fn session(&self) -> Option<SessionId> {
        match self {
            Self::Session(_, id) => Some(*id),
            Self::Workspace(_) | Self::Tenant(_) => None,
        }
    }

    /// True if everything of this workspace is erased, or this session of it.
    pub(crate) fn covers(&self, key: &WorkspaceKey, session: Option<SessionId>) -> bool {
        match self {
            Self::Session(_, id) => session == Some(*id),
            Self::Workspace(whole) => whole == key,
            Self::Tenant(tenant) => *tenant == key.installation_id,
        }
    }

    /// True if an erasure of `other` has nothing left to do once this one has ended.
    pub(crate) fn includes(&self, other: &Self) -> bool {
        match other.workspace() {
            Some(key) => self.covers(key, other.session()),
            None => self == other,
        }
    }
}

/// Numbers of removed things.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct EraseCounts {
    /// Sessions.
    pub sessions: u64,
    /// Turns with their results.
    pub turns: u64,
    /// Entries of transcripts.
    pub transcript_entries: u64,
    /// Notifications.
    pub notifications: u64,
    /// Rows beside these: routes, settings, keys, records of connections and flips, read marks, deliveries.
    pub records: u64,
    /// Workspaces.
    pub workspaces: u64,
    /// Folders of workspaces. A folder that was given by `path` is never removed.
    pub folders: u64,
    /// Private home folders of agents.
    pub homes: u64,
    /// Conversations that agents removed from their own history.
    pub agent_histories: u64,
    /// Conversations whose agent offers the removal and did not confirm it.
    pub agent_histories_left: u64,
}

impl std::ops::AddAssign for EraseCounts {
    fn add_assign(&mut self, more: Self) {
        self.sessions += more.sessions;
        self.turns += more.turns;
        self.transcript_entries += more.transcript_entries;
        self.notifications += more.notifications;
        self.records += more.records;
        self.workspaces += more.workspaces;
        self.folders += more.folders;
        self.homes += more.homes;
        self.agent_histories += more.agent_histories;
        self.agent_histories_left += more.agent_histories_left;
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn larger_target_covers_the_smaller_ones_and_nothing_of_others() {
        let key = |tenant: &str, workspace: &str| WorkspaceKey {
            installation_id: tenant.parse().unwrap(),
            workspace_id: workspace.parse().unwrap(),
        };
        let (id, other) = (SessionId(Uuid::now_v7()), SessionId(Uuid::now_v7()));
        let session = EraseTarget::Session(key("acme", "web"), id);
        let workspace = EraseTarget::Workspace(key("acme", "web"));
        let tenant = EraseTarget::Tenant("acme".parse().unwrap());
        assert!(session.covers(&key("acme", "web"), Some(id)) && !session.covers(&key("acme", "web"), Some(other)));
        assert!(!session.covers(&key("acme", "web"), None));
        assert!(workspace.covers(&key("acme", "web"), None) && !workspace.covers(&key("other", "web"), None));
        assert!(tenant.covers(&key("acme", "api"), Some(other)) && !tenant.covers(&key("other", "api"), None));
        assert!(tenant.includes(&workspace) && tenant.includes(&tenant) && workspace.includes(&session));
        assert!(!session.includes(&workspace) && !workspace.includes(&tenant));
    }
}
