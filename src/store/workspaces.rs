use diesel::{
    BoolExpressionMethods, ExpressionMethods, Insertable, OptionalExtension, QueryDsl, Queryable, RunQueryDsl,
    dsl::{exists, select, sql},
    sql_types::{Bool, Text},
};

use super::{
    Store, StoreError,
    engine::{
        columns::{self, Cursor, Page, clean_option, page_of},
        writer::WriteTx,
    },
    schema::{sessions, workspaces},
};
use crate::domain::{
    clock::Timestamp,
    ids::{FolderId, InstallationId, UserId, WorkspaceId, WorkspaceKey},
    session::{lifecycle::SessionState, permission::PermissionPolicy},
};

#[derive(Debug, Clone)]
pub(crate) struct NewWorkspace {
    pub key: WorkspaceKey,
    /// The folder of the workspace if it is new.
    pub folder_id: FolderId,
    /// The repository to check out if the workspace is new.
    pub repository: Option<String>,
    /// The branch of `repository`.
    pub branch: Option<String>,
    /// An existing folder, given by the caller.
    pub path: Option<String>,
    /// The permission policy; also replaces the policy of an existing workspace.
    pub permission_policy: Option<PermissionPolicy>,
    /// True if the folder is to be removed with the last session; for a workspace without a folder.
    pub is_ephemeral: bool,
    pub now: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WorkspaceRow {
    pub key: WorkspaceKey,
    /// The folder under the root; unused if `path` is given.
    pub folder_id: FolderId,
    /// The repository of the checkout.
    pub repository: Option<String>,
    /// The branch of `repository`.
    pub branch: Option<String>,
    /// The existing folder, if the caller gave one.
    pub path: Option<String>,
    /// The absolute path, once the workspace has been prepared.
    pub workspace_path: Option<String>,
    /// Decides how permission requests of agents are answered; unset if none was chosen.
    pub permission_policy: Option<PermissionPolicy>,
    /// Time of the first request.
    pub created: Timestamp,
    /// Time of the last request.
    pub last_used: Timestamp,
    /// True if the folder is removed with the last session.
    pub is_ephemeral: bool,
    /// When the folder was removed, unless a later session created it again.
    pub removed: Option<Timestamp>,
}

impl WorkspaceRow {
    /// The position of this row in [`Store::list_workspaces`].
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { created: self.created, id: self.key.to_string() }
    }
}

/// Conditions on listed workspaces; all of them must hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct WorkspaceFilter {
    /// Only workspaces of this tenant.
    pub installation_id: Option<InstallationId>,
    /// Only workspaces with this id.
    pub workspace_id: Option<WorkspaceId>,
    /// Only workspaces in which this user has or had a session.
    pub user_id: Option<UserId>,
}

#[derive(Queryable, Insertable)]
#[diesel(table_name = workspaces, treat_none_as_default_value = false)]
pub(super) struct Record {
    installation_id: String,
    workspace_id: String,
    folder_id: String,
    repository: Option<String>,
    branch: Option<String>,
    path: Option<String>,
    workspace_path: Option<String>,
    permission_policy: Option<String>,
    created_us: i64,
    last_used_us: i64,
    is_ephemeral: bool,
    removed_us: Option<i64>,
}

impl Record {
    fn read(self) -> Result<WorkspaceRow, StoreError> {
        let policy = self.permission_policy.as_deref();
        Ok(WorkspaceRow {
            key: columns::workspace_key(self.installation_id, self.workspace_id)?,
            folder_id: columns::parse(&self.folder_id, "workspaces.folder_id")?,
            repository: self.repository,
            branch: self.branch,
            path: self.path,
            workspace_path: self.workspace_path,
            permission_policy: policy.map(PermissionPolicy::tolerant),
            created: Timestamp(self.created_us),
            last_used: Timestamp(self.last_used_us),
            is_ephemeral: self.is_ephemeral,
            removed: self.removed_us.map(Timestamp),
        })
    }
}

pub(super) fn read_all(records: Vec<Record>) -> Result<Vec<WorkspaceRow>, StoreError> {
    records.into_iter().map(Record::read).collect()
}

/// True for a workspace without a folder whose sessions, at least one, all failed before they had one.
fn is_unprepared(tx: &mut WriteTx<'_>, row: &Record) -> diesel::QueryResult<bool> {
    if row.workspace_path.is_some() || row.removed_us.is_some() {
        return Ok(false);
    }
    let failed = SessionState::Failed.as_str();
    let of_workspace = || {
        sessions::table
            .filter(sessions::installation_id.eq(&row.installation_id))
            .filter(sessions::workspace_id.eq(&row.workspace_id))
    };
    let others = of_workspace().filter(sessions::state.ne(failed).or(sessions::agent_facts.is_not_null()));
    let has_session = select(exists(of_workspace())).get_result::<bool>(tx.connection)?;
    Ok(has_session && !select(exists(others)).get_result::<bool>(tx.connection)?)
}

/// Removes a workspace that never had a folder and has no session. Returns the number of rows.
pub(super) fn remove_unprepared(tx: &mut WriteTx<'_>, key: &WorkspaceKey) -> diesel::QueryResult<usize> {
    let (tenant, name) = (key.installation_id.as_str(), key.workspace_id.as_str());
    let of_workspace =
        sessions::table.filter(sessions::installation_id.eq(tenant)).filter(sessions::workspace_id.eq(name));
    if select(exists(of_workspace)).get_result::<bool>(tx.connection)? {
        return Ok(0);
    }
    let row = workspaces::table.find((tenant, name));
    let unprepared = row.filter(workspaces::workspace_path.is_null()).filter(workspaces::removed_us.is_null());
    diesel::delete(unprepared).execute(tx.connection)
}

/// Returns the row of a workspace and creates a missing one. An existing row stays unchanged, apart from the policy.
pub(super) fn find_or_create(tx: &mut WriteTx<'_>, new: &NewWorkspace) -> Result<WorkspaceRow, StoreError> {
    let (tenant, name) = (new.key.installation_id.as_str(), new.key.workspace_id.as_str());
    let found = workspaces::table.find((tenant, name)).first::<Record>(tx.connection).optional()?;
    let Some(mut found) = found else {
        let record = Record {
            installation_id: tenant.to_owned(),
            workspace_id: name.to_owned(),
            folder_id: new.folder_id.to_string(),
            repository: clean_option(new.repository.clone()),
            branch: clean_option(new.branch.clone()),
            path: clean_option(new.path.clone()),
            workspace_path: None,
            permission_policy: new.permission_policy.map(|policy| policy.as_str().to_owned()),
            created_us: new.now.0,
            last_used_us: new.now.0,
            is_ephemeral: new.is_ephemeral,
            removed_us: None,
        };
        tx.rows += diesel::insert_into(workspaces::table).values(&record).execute(tx.connection)?;
        return record.read();
    };
    found.last_used_us = new.now.0;
    // Nothing was ever prepared, so a request with another repository corrects the first one.
    if is_unprepared(tx, &found)? {
        found.repository = clean_option(new.repository.clone());
        found.branch = clean_option(new.branch.clone());
        found.path = clean_option(new.path.clone());
        found.is_ephemeral = new.is_ephemeral;
    }
    if let Some(policy) = new.permission_policy {
        found.permission_policy = Some(policy.as_str().to_owned());
    }
    // The caller prepares the folder, so it is there again.
    if found.removed_us.take().is_some() {
        found.is_ephemeral = new.is_ephemeral;
    }
    tx.rows += diesel::update(workspaces::table.find((tenant, name)))
        .set((
            workspaces::last_used_us.eq(found.last_used_us),
            workspaces::repository.eq(found.repository.as_deref()),
            workspaces::branch.eq(found.branch.as_deref()),
            workspaces::path.eq(found.path.as_deref()),
            workspaces::is_ephemeral.eq(found.is_ephemeral),
            workspaces::removed_us.eq(None::<i64>),
            workspaces::permission_policy.eq(found.permission_policy.as_deref()),
        ))
        .execute(tx.connection)?;
    found.read()
}

impl Store {
    /// Returns the workspace of this key and creates a missing one, in one transaction: of two concurrent callers,
    /// one creates the workspace and both get the same row. Folder, path and repository of an existing workspace stay
    /// unchanged; a given permission policy replaces the old one. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn find_or_create_workspace(&self, new: NewWorkspace) -> Result<WorkspaceRow, StoreError> {
        self.write(move |tx| find_or_create(tx, &new)).await
    }

    /// Stores the absolute path of a prepared workspace, whose folder exists again. Safe to retry.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if the workspace is unknown.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn set_workspace_path(&self, key: WorkspaceKey, path: String) -> Result<(), StoreError> {
        let path = columns::clean(path);
        self.write(move |tx| {
            let row = workspaces::table.find((key.installation_id.as_str(), key.workspace_id.as_str()));
            let changed = diesel::update(row)
                .set((workspaces::workspace_path.eq(path.as_str()), workspaces::removed_us.eq(None::<i64>)))
                .execute(tx.connection)?;
            tx.rows += changed;
            if changed == 1 { Ok(()) } else { Err(StoreError::Conflict(format!("there is no workspace {key}"))) }
        })
        .await
    }

    /// Reads one workspace; one that is being erased is not found. Cancel-safe.
    pub(crate) async fn workspace(&self, key: WorkspaceKey) -> Result<Option<WorkspaceRow>, StoreError> {
        if self.erasures().is_erasing(&key) {
            return Ok(None);
        }
        self.read(move |connection| {
            let row = workspaces::table.find((key.installation_id.as_str(), key.workspace_id.as_str()));
            row.first::<Record>(connection).optional()?.map(Record::read).transpose()
        })
        .await
    }

    /// The absolute path of a folder of the workspace: its own, or that of its newest isolated session. `None` without one.
    /// Cancel-safe.
    pub(crate) async fn folder_of_workspace(&self, key: WorkspaceKey) -> Result<Option<String>, StoreError> {
        if let Some(path) = self.workspace(key.clone()).await?.and_then(|row| row.workspace_path) {
            return Ok(Some(path));
        }
        self.read(move |connection| {
            let newest = sessions::table
                .filter(sessions::installation_id.eq(key.installation_id.as_str()))
                .filter(sessions::workspace_id.eq(key.workspace_id.as_str()))
                .filter(sessions::folder_path.is_not_null())
                .order((sessions::created_us.desc(), sessions::session_id.desc()))
                .select(sessions::folder_path);
            Ok(newest.first::<Option<String>>(connection).optional()?.flatten())
        })
        .await
    }

    /// Reads a page of workspaces, newest first. Cancel-safe.
    pub(crate) async fn list_workspaces(
        &self,
        filter: WorkspaceFilter,
        page: Page,
    ) -> Result<Vec<WorkspaceRow>, StoreError> {
        self.read(move |connection| {
            let mut rows = workspaces::table.into_boxed();
            if let Some(tenant) = &filter.installation_id {
                rows = rows.filter(workspaces::installation_id.eq(tenant.as_str()));
            }
            if let Some(name) = &filter.workspace_id {
                rows = rows.filter(workspaces::workspace_id.eq(name.as_str()));
            }
            if let Some(user) = &filter.user_id {
                let has_session = sql::<Bool>(
                    "EXISTS (SELECT 1 FROM sessions WHERE sessions.installation_id = workspaces.installation_id \
                     AND sessions.workspace_id = workspaces.workspace_id AND sessions.user_id = ",
                );
                rows = rows.filter(has_session.bind::<Text, _>(user.as_str().to_owned()).sql(")"));
            }
            let rows =
                page_of!(rows, page, workspaces::created_us, workspaces::installation_id, workspaces::workspace_id);
            read_all(rows.load(connection)?)
        })
        .await
    }
}
