//! The `admin_changes` table: who changed settings and tokens, written in the transaction of the change.

use diesel::{Insertable, Queryable, RunQueryDsl};
use serde_json::Value;
use uuid::Uuid;

use super::{
    StoreError,
    engine::{
        columns::{self, clean},
        connection::{AnyConnection, execute},
        writer::WriteTx,
    },
    schema::admin_changes,
};
use crate::{
    contract::audit::ChangeItem,
    domain::{
        changes::{ChangeKind, difference},
        clock::Timestamp,
        ids::{InstallationId, WorkspaceId},
        routing::Attribution,
    },
};

/// An administrative change, to be written with what it changes.
#[derive(Debug, Clone)]
pub(crate) struct NewChange {
    pub kind: ChangeKind,
    /// The tenant that it is about; absent for the whole service.
    pub tenant: Option<InstallationId>,
    /// The workspace to which a token is limited.
    pub workspace: Option<WorkspaceId>,
    /// The tenant or the id of the token.
    pub object: String,
    /// The subject of the caller's token.
    pub actor: String,
    /// The name that the caller gave, if it differs from `actor`.
    pub actor_note: Option<String>,
    /// The reason, if the request has one. Redacted by the caller.
    pub reason: Option<String>,
    /// The states, of which the members that differ are kept. Without secrets.
    pub before: Value,
    pub after: Value,
    pub now: Timestamp,
}

impl NewChange {
    /// A change of settings of a tenant, without its states.
    pub(crate) fn of_tenant(
        kind: ChangeKind,
        tenant: &InstallationId,
        attribution: &Attribution,
        now: Timestamp,
    ) -> Self {
        let Attribution { actor, actor_note, reason, .. } = attribution.clone();
        Self {
            kind,
            tenant: Some(tenant.clone()),
            workspace: None,
            object: tenant.to_string(),
            actor,
            actor_note,
            reason: Some(reason),
            before: Value::Null,
            after: Value::Null,
            now,
        }
    }
}

#[derive(Debug, Clone, Queryable, Insertable)]
#[diesel(table_name = admin_changes, treat_none_as_default_value = false)]
pub(super) struct Record {
    change_id: String,
    installation_id: Option<String>,
    workspace_id: Option<String>,
    kind: String,
    object: String,
    actor: String,
    actor_note: Option<String>,
    reason: Option<String>,
    state_before: String,
    state_after: String,
    created_us: i64,
}

impl Record {
    /// The row of a change. Its id is made here, so that a repeat of the transaction writes it once.
    pub(super) fn new(change: NewChange) -> Result<Self, StoreError> {
        let (before, after) = difference(&change.before, &change.after);
        Ok(Self {
            change_id: Uuid::now_v7().to_string(),
            installation_id: change.tenant.map(|it| it.to_string()),
            workspace_id: change.workspace.map(|it| it.to_string()),
            kind: change.kind.as_str().to_owned(),
            object: clean(change.object),
            actor: clean(change.actor),
            actor_note: columns::clean_option(change.actor_note),
            reason: columns::clean_option(change.reason),
            state_before: columns::redacted_json(&before, "admin_changes.state_before")?,
            state_after: columns::redacted_json(&after, "admin_changes.state_after")?,
            created_us: change.now.0,
        })
    }

    pub(super) fn write(&self, tx: &mut WriteTx<'_>) -> Result<(), StoreError> {
        let insert = diesel::insert_into(admin_changes::table).values(self).on_conflict_do_nothing();
        tx.rows += execute!(tx.connection, insert)?;
        Ok(())
    }

    pub(super) fn read(self) -> Result<ChangeItem, StoreError> {
        Ok(ChangeItem {
            change_id: columns::parse(&self.change_id, "admin_changes.change_id")?,
            installation_id: self
                .installation_id
                .map(|id| columns::parse(&id, "admin_changes.installation_id"))
                .transpose()?,
            kind: columns::named(ChangeKind::from_name, &self.kind, "admin_changes.kind")?,
            object: self.object,
            actor: self.actor,
            actor_note: self.actor_note,
            reason: self.reason,
            before: columns::json_or_null(&self.state_before),
            after: columns::json_or_null(&self.state_after),
            created_at: Timestamp(self.created_us),
        })
    }
}
