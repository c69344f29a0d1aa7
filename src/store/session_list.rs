//! Lists of sessions, the newest first.

use diesel::{BoolExpressionMethods, ExpressionMethods, QueryDsl, RunQueryDsl};

use super::{
    Store, StoreError,
    engine::columns::{self, Cursor, Page},
    schema::sessions,
    sessions::{Record, SessionRow},
};
use crate::domain::{
    ids::{InstallationId, UserId, WorkspaceId},
    session::lifecycle::SessionState,
};

/// Which sessions to list.
#[derive(Debug, Clone, Default)]
pub struct SessionFilter {
    /// Only those of a tenant.
    pub installation_id: Option<InstallationId>,
    /// Only those of workspaces of this name.
    pub workspace_id: Option<WorkspaceId>,
    /// Only those of a user.
    pub user_id: Option<UserId>,
    /// Only those whose row says one of these; any where empty.
    pub states: Vec<SessionState>,
}

impl Store {
    /// A page of sessions, the newest first. Cancel-safe.
    pub async fn list_sessions(&self, filter: SessionFilter, page: Page) -> Result<Vec<SessionRow>, StoreError> {
        self.read(move |connection| {
            let mut rows = sessions::table.into_boxed();
            if let Some(tenant) = &filter.installation_id {
                rows = rows.filter(sessions::installation_id.eq(tenant.as_str()));
            }
            if let Some(workspace) = &filter.workspace_id {
                rows = rows.filter(sessions::workspace_id.eq(workspace.as_str()));
            }
            if let Some(user) = &filter.user_id {
                rows = rows.filter(sessions::user_id.eq(user.as_str()));
            }
            if !filter.states.is_empty() {
                rows = rows.filter(sessions::state.eq_any(filter.states.iter().map(|state| state.as_str())));
            }
            if let Some(Cursor { created, id }) = &page.after {
                rows = rows
                    .filter(sessions::created_us.le(created.0))
                    .filter(sessions::created_us.lt(created.0).or(sessions::session_id.lt(id.as_str())));
            }
            let rows = rows.order((sessions::created_us.desc(), sessions::session_id.desc()));
            let records: Vec<Record> = rows.limit(columns::limit(page.limit)).load(connection)?;
            records.into_iter().map(Record::read).collect()
        })
        .await
    }
}
