//! Storms of rollbacks whose end nobody has told: what operators were told of them, and the flips that are known.

use std::time::Duration;

use diesel::{
    ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl, TextExpressionMethods, dsl::sql, sql_types,
};

use super::{
    Store, StoreError,
    engine::{columns, connection::AnyConnection},
    notifications::{NotificationRow, Record},
    schema::{notification_streams, notifications, rollback_events},
};
use crate::domain::{
    clock::Timestamp,
    ids::WorkspaceKey,
    notify::toast::{Stream, Trigger},
    routing::{FlipTrigger, storm::RESOLVED},
    words::RollbackKind,
};

/// Alarms that are read. Each is followed by its end; more than one is there only where an end could not be written.
const MAX_ALARMS: i64 = 100;

/// A storm whose end nobody has told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnendedStorm {
    /// When the oldest of its alarms was raised.
    pub since: Timestamp,
    /// What operators were told of it, oldest first: one alarm, or more where the ends of earlier ones are missing too.
    pub alarms: Vec<NotificationRow>,
    /// Workspaces that were rolled back by themselves, and when, oldest first.
    pub flips: Vec<(Timestamp, WorkspaceKey)>,
}

fn unended_alarms(connection: &mut AnyConnection) -> Result<Vec<NotificationRow>, StoreError> {
    let stream = Stream::Operators.to_string();
    let tail: Option<i64> = notification_streams::table
        .find(stream.as_str())
        .select(notification_streams::tail)
        .first(connection)
        .optional()?;
    let has_no_end = sql::<sql_types::Bool>(
        "NOT EXISTS (SELECT 1 FROM notifications ends WHERE ends.cause_id = notifications.cause_id || ",
    )
    .bind::<sql_types::Text, _>(RESOLVED)
    .sql(")");
    let alarms: Vec<Record> = notifications::table
        .filter(notifications::stream.eq(stream))
        // The end of what stands before it may have been removed by its age.
        .filter(notifications::seq.gt(tail.unwrap_or(0)))
        .filter(notifications::trigger.eq(Trigger::SystemicRollback.as_str()))
        .filter(notifications::cause_id.not_like(format!("%{RESOLVED}")))
        .filter(has_no_end)
        .order(notifications::seq.asc())
        .limit(MAX_ALARMS)
        .load(connection)?;
    // One that cannot be read stands in the way of no start.
    Ok(alarms.into_iter().filter_map(|alarm| alarm.read_or_tell().ok()).collect())
}

fn automatic_rollbacks(
    connection: &mut AnyConnection,
    since: Timestamp,
    max: usize,
) -> Result<Vec<(Timestamp, WorkspaceKey)>, StoreError> {
    use rollback_events::{created_us, installation_id, kind, trigger, workspace_id};
    let newest: Vec<(i64, String, String)> = rollback_events::table
        .filter(created_us.ge(since.0))
        .filter(kind.eq(RollbackKind::Rollback.as_str()))
        .filter(trigger.eq(FlipTrigger::AutoThreshold.as_str()))
        .order((created_us.desc(), rollback_events::event_id.desc()))
        .limit(i64::try_from(max).unwrap_or(i64::MAX))
        .select((created_us, installation_id, workspace_id))
        .load(connection)?;
    let read = |(at, tenant, workspace)| Ok((Timestamp(at), columns::workspace_key(tenant, workspace)?));
    newest.into_iter().rev().map(read).collect()
}

impl Store {
    /// The storm that operators were told of and not that it is over, with the newest `max_flips` automatic rollbacks since
    /// `before` its alarm; nothing where each alarm has its end. Cancel-safe.
    pub async fn unended_storm(
        &self,
        before: Duration,
        max_flips: usize,
    ) -> Result<Option<UnendedStorm>, StoreError> {
        self.read(move |connection| {
            let alarms = unended_alarms(connection)?;
            let Some(since) = alarms.iter().map(|alarm| alarm.created).min() else { return Ok(None) };
            let flips = automatic_rollbacks(connection, since.minus(before), max_flips)?;
            Ok(Some(UnendedStorm { since, alarms, flips }))
        })
        .await
    }
}
