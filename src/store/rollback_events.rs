//! The table of rollbacks and restores. Rows are added and pruned, never changed.

use diesel::{ExpressionMethods, Insertable, OptionalExtension, QueryDsl, Queryable, RunQueryDsl};
use uuid::Uuid;

use super::{
    StoreError,
    engine::{
        columns::{self, clean_text},
        connection::AnyConnection,
        writer::WriteTx,
    },
    schema::rollback_events,
};
use crate::domain::{
    clock::Timestamp,
    ids::WorkspaceKey,
    routing::FlipTrigger,
    words::{FollowUp, ReasonCode, RollbackKind},
};

/// A rollback or restore as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RollbackEventRow {
    /// Its id.
    pub event_id: Uuid,
    /// Which workspace.
    pub key: WorkspaceKey,
    /// The epoch that began with it.
    pub epoch: u64,
    /// Which way.
    pub kind: RollbackKind,
    /// What flipped it.
    pub trigger: FlipTrigger,
    /// Why, as a word.
    pub reason_code: ReasonCode,
    /// Who; redacted on the way in.
    pub actor: String,
    /// Why; redacted on the way in.
    pub reason: String,
    /// What is to be done about it.
    pub follow_up: Option<FollowUp>,
    /// What was measured, as a JSON object; redacted on the way in.
    pub metrics: String,
    /// When.
    pub created: Timestamp,
    /// What caused the alarm that operators were told in place of the workspace's users; none where those were told.
    pub alarm_id: Option<String>,
}

#[derive(Queryable, Insertable)]
#[diesel(table_name = rollback_events, treat_none_as_default_value = false)]
pub(super) struct Record {
    event_id: String,
    installation_id: String,
    workspace_id: String,
    epoch: i64,
    kind: String,
    trigger: String,
    reason_code: String,
    actor: String,
    reason: String,
    follow_up: Option<String>,
    metrics_snapshot: String,
    created_us: i64,
    alarm_id: Option<String>,
}

impl Record {
    pub(super) fn new(row: RollbackEventRow) -> Self {
        Self {
            event_id: row.event_id.to_string(),
            installation_id: row.key.installation_id.to_string(),
            workspace_id: row.key.workspace_id.to_string(),
            epoch: columns::signed(row.epoch),
            kind: row.kind.as_str().to_owned(),
            trigger: row.trigger.as_str().to_owned(),
            reason_code: row.reason_code.as_str().to_owned(),
            actor: clean_text(&row.actor),
            reason: clean_text(&row.reason),
            follow_up: row.follow_up.map(|follow_up| follow_up.as_str().to_owned()),
            metrics_snapshot: clean_text(&row.metrics),
            created_us: row.created.0,
            alarm_id: columns::clean_option(row.alarm_id),
        }
    }

    pub(super) fn read(self) -> Result<RollbackEventRow, StoreError> {
        let follow_up = self.follow_up.as_deref();
        Ok(RollbackEventRow {
            event_id: columns::parse(&self.event_id, "rollback_events.event_id")?,
            key: columns::workspace_key(self.installation_id, self.workspace_id)?,
            epoch: columns::unsigned(self.epoch),
            kind: columns::named(RollbackKind::from_name, &self.kind, "rollback_events.kind")?,
            trigger: columns::named(FlipTrigger::from_name, &self.trigger, "rollback_events.trigger")?,
            reason_code: columns::named(ReasonCode::from_name, &self.reason_code, "rollback_events.reason_code")?,
            actor: self.actor,
            reason: self.reason,
            follow_up: follow_up
                .map(|name| columns::named(FollowUp::from_name, name, "rollback_events.follow_up"))
                .transpose()?,
            metrics: self.metrics_snapshot,
            created: Timestamp(self.created_us),
            alarm_id: self.alarm_id,
        })
    }

    /// Writes it.
    pub(super) fn insert(&self, tx: &mut WriteTx<'_>) -> diesel::QueryResult<()> {
        tx.rows += diesel::insert_into(rollback_events::table).values(self).execute(tx.connection)?;
        Ok(())
    }
}

/// Whether an epoch began with a rollback that operators were told in place of the workspace's users.
pub(super) fn is_told_to_operators(
    connection: &mut AnyConnection,
    key: &WorkspaceKey,
    epoch: u64,
) -> diesel::QueryResult<bool> {
    let alarm: Option<Option<String>> = rollback_events::table
        .filter(rollback_events::installation_id.eq(key.installation_id.as_str()))
        .filter(rollback_events::workspace_id.eq(key.workspace_id.as_str()))
        .filter(rollback_events::epoch.eq(columns::signed(epoch)))
        .select(rollback_events::alarm_id)
        .first(connection)
        .optional()?;
    Ok(alarm.flatten().is_some())
}
