//! The rows of one flip of a workspace's route: a migration, a rollback event, a notification, and a note in each
//! live session.

use diesel::{ExpressionMethods, Insertable, OptionalExtension, QueryDsl, Queryable, RunQueryDsl};
use uuid::Uuid;

use crate::{
    contract::audit::{MigrationItem, RollbackEventItem},
    domain::{
        clock::Timestamp,
        ids::{SessionId, WorkspaceKey},
        notify::{
            notice,
            notification::{Addressee, NewNotification, Stream},
        },
        redaction::RedactedJson,
        routing::{Flip, FlipTrigger, Initiator, Route, storm::AutomaticRollback},
        turn::transcript::TranscriptEntry,
        words::{FollowUp, MigrationStatus, ReasonCode, RollbackKind},
    },
    store::{
        Store, StoreError,
        engine::{
            columns::{self, clean_text},
            connection::{AnyConnection, execute},
            writer::WriteTx,
        },
        notifications::add,
        routing::storms,
        schema::{protocol_migrations, rollback_events, sessions},
        transcript::{Entries, TranscriptAppend},
    },
};

/// A flip and the facts to store with it.
#[derive(Debug, Clone)]
pub(crate) struct FlipRecord {
    /// A new id; a retry detects by it that an earlier attempt was written.
    pub migration_id: Uuid,
    /// A new id for the rollback event, if the flip has one.
    pub event_id: Uuid,
    /// The migration run of which the flip is a step.
    pub run_id: Option<Uuid>,
    pub flip: Flip,
    /// The reason code of the rollback event.
    pub reason_code: ReasonCode,
    /// The follow-up of the rollback event.
    pub follow_up: Option<FollowUp>,
    /// The measurements that led to the flip, as a JSON object.
    pub metrics: RedactedJson,
    /// The sessions whose transcripts get the note; unknown sessions are skipped. At most the live sessions of the
    /// workspace, which the session limit bounds.
    pub notes: Vec<SessionId>,
    pub note: TranscriptEntry,
    /// Set for an automatic rollback: many of them at once raise one alarm for operators, which replaces the
    /// notifications to the workspaces' users.
    pub automatic: Option<AutomaticRollback>,
}

/// The rows of a flip, ready for SQL.
pub(crate) struct FlipRows {
    migration: MigrationRecord,
    event: Option<RollbackRecord>,
    notes: Vec<(String, Entries)>,
    announcement: Announcement,
}

/// The notification of a flip, which depends on the rollbacks of other workspaces.
#[derive(Clone)]
struct Announcement {
    key: WorkspaceKey,
    event_id: Uuid,
    /// The notification to the workspace's users.
    own: NewNotification,
    /// The epoch of the rollback that this flip ends automatically.
    recovers_from: Option<u64>,
    automatic: Option<AutomaticRollback>,
    now: Timestamp,
}

impl Announcement {
    /// The streams that are locked for it.
    fn streams(&self) -> Vec<Stream> {
        let operators = self.automatic.map(|_| Stream::Operators);
        operators.into_iter().chain([self.own.to.stream()]).collect()
    }

    /// Notifies the workspace's users, or operators in place of them if the flip belongs to a rollback storm.
    fn write(&self, tx: &mut WriteTx<'_>) -> Result<(), StoreError> {
        // Users who got no notification of the rollback get none of the recovery.
        if let Some(epoch) = self.recovers_from
            && has_operator_alarm(tx.connection, &self.key, epoch)?
        {
            return Ok(());
        }
        let storm = match self.automatic {
            Some(rollback) => storms::join(tx, rollback, self.event_id, self.now)?,
            None => None,
        };
        if let Some(storm) = storm {
            let event = rollback_events::table.find(self.event_id.to_string());
            diesel::update(event).set(rollback_events::alarm_id.eq(storm.id.to_string())).execute(tx.connection)?;
        } else {
            add(tx, &self.own, self.now)?;
        }
        Ok(())
    }
}

/// Sessions in each lookup; each is a parameter, of the 32,766 that SQLite allows in a statement.
const SESSIONS_PER_READ: usize = 1000;

impl FlipRows {
    pub(crate) fn new(key: &WorkspaceKey, record: FlipRecord, now: Timestamp) -> Self {
        let (migration, event) = (migration_of(key, &record, now), event_of(key, &record, now));
        let FlipRecord { migration_id, event_id, flip, notes, note, automatic, .. } = record;
        let users = Addressee::Workspace(key.clone());
        let own = NewNotification::new(Uuid::now_v7(), users, notice::of_flip(&flip), migration_id);
        let (recovers_from, key) = (flip.recovers_from(), key.clone());
        let announcement = Announcement { key: key.clone(), event_id, own, recovers_from, automatic, now };
        let note_of = |session_id: SessionId| {
            let (key, entries) = (key.clone(), vec![note.clone()]);
            let append = TranscriptAppend { session_id, key, prompt_id: None, entries, settles: 0, now };
            (session_id.to_string(), Entries::new(append))
        };
        Self {
            migration: MigrationRecord::new(migration),
            event,
            notes: notes.into_iter().map(note_of).collect(),
            announcement,
        }
    }

    /// True if an earlier attempt wrote the rows.
    pub(crate) fn is_written(&self, connection: &mut AnyConnection) -> diesel::QueryResult<bool> {
        self.migration.exists(connection)
    }

    pub(crate) fn write(&mut self, tx: &mut WriteTx<'_>) -> Result<(), StoreError> {
        self.migration.insert(tx)?;
        if let Some(event) = &self.event {
            event.insert(tx)?;
        }
        let announcement = self.announcement.clone();
        tx.later(announcement.streams(), move |tx| announcement.write(tx));
        // A missing session must not fail a rollback.
        for part in self.notes.chunks_mut(SESSIONS_PER_READ) {
            let ids = part.iter().map(|(id, _)| id.as_str());
            let known: Vec<String> = sessions::table
                .filter(sessions::session_id.eq_any(ids))
                .select(sessions::session_id)
                .load(tx.connection)?;
            let known: std::collections::HashSet<_> = known.into_iter().collect();
            for (id, entries) in part {
                if known.contains(id.as_str()) {
                    entries.write(tx)?;
                }
            }
        }
        Ok(())
    }
}

fn migration_of(key: &WorkspaceKey, record: &FlipRecord, now: Timestamp) -> MigrationItem {
    let FlipRecord { migration_id, run_id, flip, metrics, .. } = record;
    MigrationItem {
        migration_id: *migration_id,
        run_id: *run_id,
        installation_id: key.installation_id.clone(),
        workspace_id: key.workspace_id.clone(),
        from_protocol: flip.from,
        to_protocol: flip.to,
        epoch: Some(flip.epoch),
        initiated_by: flip.attribution.initiator,
        actor: flip.attribution.actor.clone(),
        actor_note: flip.attribution.actor_note.clone(),
        trigger: flip.trigger,
        reason: flip.attribution.reason.clone(),
        status: MigrationStatus::Succeeded,
        metrics: columns::json_or_null(metrics.as_str()),
        started_at: now,
        completed_at: Some(now),
    }
}

/// The rollback event of a flip; `None` if the flip is neither a rollback nor a restore.
fn event_of(key: &WorkspaceKey, record: &FlipRecord, now: Timestamp) -> Option<RollbackRecord> {
    let FlipRecord { event_id, flip, reason_code, follow_up, metrics, automatic, .. } = record;
    let kind = if flip.is_rollback() {
        RollbackKind::Rollback
    } else if flip.is_restore() {
        RollbackKind::Restore
    } else {
        return None;
    };
    let event = RollbackEventItem {
        event_id: *event_id,
        installation_id: key.installation_id.clone(),
        workspace_id: key.workspace_id.clone(),
        epoch: flip.epoch,
        kind,
        trigger: flip.trigger,
        reason_code: *reason_code,
        actor: flip.attribution.actor.clone(),
        actor_note: flip.attribution.actor_note.clone(),
        reason: flip.attribution.reason.clone(),
        follow_up: *follow_up,
        metrics: columns::json_or_null(metrics.as_str()),
        created_at: now,
    };
    Some(RollbackRecord::new(event, *automatic))
}

#[derive(Queryable, Insertable)]
#[diesel(table_name = protocol_migrations, treat_none_as_default_value = false)]
pub(crate) struct MigrationRecord {
    migration_id: String,
    run_id: Option<String>,
    installation_id: String,
    workspace_id: String,
    from_protocol: String,
    to_protocol: String,
    epoch: Option<i64>,
    initiated_by: String,
    actor: String,
    actor_note: Option<String>,
    trigger: String,
    reason: String,
    status: String,
    metrics_snapshot: String,
    started_us: i64,
    completed_us: Option<i64>,
}

impl MigrationRecord {
    /// The row of a migration; redacts its texts.
    pub(crate) fn new(migration: MigrationItem) -> Self {
        Self {
            migration_id: migration.migration_id.to_string(),
            run_id: migration.run_id.map(|id| id.to_string()),
            installation_id: migration.installation_id.to_string(),
            workspace_id: migration.workspace_id.to_string(),
            from_protocol: migration.from_protocol.as_str().to_owned(),
            to_protocol: migration.to_protocol.as_str().to_owned(),
            epoch: migration.epoch.map(columns::signed),
            initiated_by: migration.initiated_by.as_str().to_owned(),
            actor: clean_text(&migration.actor),
            actor_note: migration.actor_note.as_deref().map(clean_text),
            trigger: migration.trigger.as_str().to_owned(),
            reason: clean_text(&migration.reason),
            status: migration.status.as_str().to_owned(),
            metrics_snapshot: RedactedJson::of(&migration.metrics).into_string(),
            started_us: migration.started_at.0,
            completed_us: migration.completed_at.map(|at| at.0),
        }
    }

    pub(crate) fn read(self) -> Result<MigrationItem, StoreError> {
        let key = columns::workspace_key(self.installation_id, self.workspace_id)?;
        Ok(MigrationItem {
            migration_id: columns::parse(&self.migration_id, "protocol_migrations.migration_id")?,
            run_id: self.run_id.map(|id| columns::parse(&id, "protocol_migrations.run_id")).transpose()?,
            installation_id: key.installation_id,
            workspace_id: key.workspace_id,
            from_protocol: Route::tolerant(&self.from_protocol),
            to_protocol: Route::tolerant(&self.to_protocol),
            epoch: self.epoch.map(columns::unsigned),
            initiated_by: Initiator::tolerant(&self.initiated_by),
            actor: self.actor,
            actor_note: self.actor_note,
            trigger: FlipTrigger::tolerant(&self.trigger),
            reason: self.reason,
            status: MigrationStatus::tolerant(&self.status),
            metrics: columns::json_or_null(&self.metrics_snapshot),
            started_at: Timestamp(self.started_us),
            completed_at: self.completed_us.map(Timestamp),
        })
    }

    /// True if a row with this id exists.
    pub(crate) fn exists(&self, connection: &mut AnyConnection) -> diesel::QueryResult<bool> {
        let found = protocol_migrations::table
            .find(self.migration_id.as_str())
            .select(protocol_migrations::started_us)
            .first::<i64>(connection);
        Ok(found.optional()?.is_some())
    }

    pub(crate) fn insert(&self, tx: &mut WriteTx<'_>) -> diesel::QueryResult<()> {
        tx.rows += diesel::insert_into(protocol_migrations::table).values(self).execute(tx.connection)?;
        Ok(())
    }
}

impl Store {
    /// Adds a row of a migration run that is not a flip. Safe to retry: an existing id is left unchanged.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn record_migration(&self, step: MigrationItem) -> Result<(), StoreError> {
        let erasures = self.erasures().clone();
        let (installation_id, workspace_id) = (step.installation_id.clone(), step.workspace_id.clone());
        let key = WorkspaceKey { installation_id, workspace_id };
        let record = MigrationRecord::new(step);
        self.write(move |tx| {
            if erasures.is_late(&key, None) {
                return Ok(());
            }
            let insert = diesel::insert_into(protocol_migrations::table).values(&record).on_conflict_do_nothing();
            tx.rows += execute!(tx.connection, insert)?;
            Ok(())
        })
        .await
    }
}

#[derive(Queryable, Insertable)]
#[diesel(table_name = rollback_events, treat_none_as_default_value = false)]
pub(crate) struct RollbackRecord {
    event_id: String,
    installation_id: String,
    workspace_id: String,
    epoch: i64,
    kind: String,
    trigger: String,
    reason_code: String,
    actor: String,
    actor_note: Option<String>,
    reason: String,
    follow_up: Option<String>,
    metrics_snapshot: String,
    created_us: i64,
    alarm_id: Option<String>,
    counted_us: Option<i64>,
}

impl RollbackRecord {
    /// The row of a rollback event; redacts its texts.
    fn new(event: RollbackEventItem, automatic: Option<AutomaticRollback>) -> Self {
        Self {
            event_id: event.event_id.to_string(),
            installation_id: event.installation_id.to_string(),
            workspace_id: event.workspace_id.to_string(),
            epoch: columns::signed(event.epoch),
            kind: event.kind.as_str().to_owned(),
            trigger: event.trigger.as_str().to_owned(),
            reason_code: event.reason_code.as_str().to_owned(),
            actor: clean_text(&event.actor),
            actor_note: event.actor_note.as_deref().map(clean_text),
            reason: clean_text(&event.reason),
            follow_up: event.follow_up.map(|follow_up| follow_up.as_str().to_owned()),
            metrics_snapshot: RedactedJson::of(&event.metrics).into_string(),
            created_us: event.created_at.0,
            alarm_id: None,
            counted_us: automatic.map(|rollback| rollback.at.0),
        }
    }

    pub(crate) fn read(self) -> Result<RollbackEventItem, StoreError> {
        let follow_up = self.follow_up.as_deref();
        let key = columns::workspace_key(self.installation_id, self.workspace_id)?;
        Ok(RollbackEventItem {
            event_id: columns::parse(&self.event_id, "rollback_events.event_id")?,
            installation_id: key.installation_id,
            workspace_id: key.workspace_id,
            epoch: columns::unsigned(self.epoch),
            kind: RollbackKind::tolerant(&self.kind),
            trigger: FlipTrigger::tolerant(&self.trigger),
            reason_code: ReasonCode::tolerant(&self.reason_code),
            actor: self.actor,
            actor_note: self.actor_note,
            reason: self.reason,
            follow_up: follow_up.and_then(FollowUp::from_name),
            metrics: columns::json_or_null(&self.metrics_snapshot),
            created_at: Timestamp(self.created_us),
        })
    }

    pub(crate) fn insert(&self, tx: &mut WriteTx<'_>) -> diesel::QueryResult<()> {
        tx.rows += diesel::insert_into(rollback_events::table).values(self).execute(tx.connection)?;
        Ok(())
    }
}

/// True if an epoch began with a rollback that was announced to operators in place of the workspace's users.
pub(crate) fn has_operator_alarm(
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
