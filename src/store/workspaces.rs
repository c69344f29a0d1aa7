//! The table of workspaces.

use diesel::{ExpressionMethods, Insertable, OptionalExtension, QueryDsl, Queryable, RunQueryDsl};

use super::{
    Store, StoreError,
    engine::{
        columns::{self, Cursor, Page, clean_option, page_of},
        writer::WriteTx,
    },
    schema::workspaces,
};
use crate::domain::{
    clock::Timestamp,
    ids::{FolderId, InstallationId, WorkspaceId, WorkspaceKey},
    session::permission::PermissionPolicy,
};

/// A workspace as it is asked for.
#[derive(Debug, Clone)]
pub(crate) struct NewWorkspace {
    /// Which one.
    pub key: WorkspaceKey,
    /// The folder that it gets if it is new.
    pub folder_id: FolderId,
    /// What is checked out if it is new.
    pub repository: Option<String>,
    /// The branch of `repository`.
    pub branch: Option<String>,
    /// An existing folder of the caller.
    pub path: Option<String>,
    /// Changes the policy also of a workspace that exists.
    pub permission_policy: Option<PermissionPolicy>,
    /// The time.
    pub now: Timestamp,
}

/// A workspace as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WorkspaceRow {
    /// Which one.
    pub key: WorkspaceKey,
    /// Its folder under the root; not used where `path` is given.
    pub folder_id: FolderId,
    /// What was checked out into it.
    pub repository: Option<String>,
    /// The branch of `repository`.
    pub branch: Option<String>,
    /// The existing folder that the caller gave.
    pub path: Option<String>,
    /// The absolute path, once it was prepared.
    pub workspace_path: Option<String>,
    /// Who answers its agents' permission requests, where it was chosen.
    pub permission_policy: Option<PermissionPolicy>,
    /// When it was first asked for.
    pub created: Timestamp,
    /// When it was last asked for.
    pub last_used: Timestamp,
}

impl WorkspaceRow {
    /// The place of this row in [`Store::list_workspaces`].
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { created: self.created, id: self.key.to_string() }
    }
}

/// Which workspaces to list.
#[derive(Debug, Clone, Default)]
pub(crate) struct WorkspaceFilter {
    /// Only those of a tenant.
    pub installation_id: Option<InstallationId>,
    /// Only those of this name.
    pub workspace_id: Option<WorkspaceId>,
}

#[derive(Queryable, Insertable)]
#[diesel(table_name = workspaces, treat_none_as_default_value = false)]
struct Record {
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
            permission_policy: policy
                .map(|name| columns::named(PermissionPolicy::from_name, name, "workspaces.permission_policy"))
                .transpose()?,
            created: Timestamp(self.created_us),
            last_used: Timestamp(self.last_used_us),
        })
    }
}

fn read_all(records: Vec<Record>) -> Result<Vec<WorkspaceRow>, StoreError> {
    records.into_iter().map(Record::read).collect()
}

/// The row of a workspace, made where there is none. What exists wins, apart from the policy.
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
        };
        tx.rows += diesel::insert_into(workspaces::table).values(&record).execute(tx.connection)?;
        return record.read();
    };
    found.last_used_us = new.now.0;
    if let Some(policy) = new.permission_policy {
        found.permission_policy = Some(policy.as_str().to_owned());
    }
    tx.rows += diesel::update(workspaces::table.find((tenant, name)))
        .set((
            workspaces::last_used_us.eq(found.last_used_us),
            workspaces::permission_policy.eq(found.permission_policy.as_deref()),
        ))
        .execute(tx.connection)?;
    found.read()
}

impl Store {
    /// The workspace of this key, made where there is none, in one transaction: of two callers one makes
    /// it and both get the same. The folder, path and repository of an existing one stay; its permission
    /// policy is changed where one is given. Safe to retry. A dropped future may have written.
    pub(crate) async fn find_or_create_workspace(&self, new: NewWorkspace) -> Result<WorkspaceRow, StoreError> {
        self.write(move |tx| find_or_create(tx, &new)).await
    }

    /// Notes where a workspace was prepared. An unknown workspace is a [`StoreError::Conflict`]. Safe to
    /// retry. A dropped future may have written.
    pub(crate) async fn set_workspace_path(&self, key: WorkspaceKey, path: String) -> Result<(), StoreError> {
        let path = columns::clean(path);
        self.write(move |tx| {
            let row = workspaces::table.find((key.installation_id.as_str(), key.workspace_id.as_str()));
            let changed =
                diesel::update(row).set(workspaces::workspace_path.eq(path.as_str())).execute(tx.connection)?;
            tx.rows += changed;
            if changed == 1 { Ok(()) } else { Err(StoreError::Conflict(format!("no workspace {key}"))) }
        })
        .await
    }

    /// One workspace. Cancel-safe.
    pub(crate) async fn workspace(&self, key: WorkspaceKey) -> Result<Option<WorkspaceRow>, StoreError> {
        self.read(move |connection| {
            let row = workspaces::table.find((key.installation_id.as_str(), key.workspace_id.as_str()));
            row.first::<Record>(connection).optional()?.map(Record::read).transpose()
        })
        .await
    }

    /// A page of workspaces, the newest first. Cancel-safe.
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
            let rows =
                page_of!(rows, page, workspaces::created_us, workspaces::installation_id, workspaces::workspace_id);
            read_all(rows.load(connection)?)
        })
        .await
    }
}
