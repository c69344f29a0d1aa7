//! What one flip of a workspace's route leaves: a migration, a rollback event, and a note in each live session.

use diesel::{ExpressionMethods, QueryDsl, RunQueryDsl};
use uuid::Uuid;

use crate::{
    domain::{
        clock::Timestamp,
        ids::{SessionId, WorkspaceKey},
        notify::{
            notice,
            toast::{Addressee, NewToast},
        },
        redaction::Redacted,
        routing::Flip,
        turn::transcript::TranscriptEntry,
        words::{FollowUp, MigrationStatus, ReasonCode, RollbackKind},
    },
    store::{
        StoreError,
        engine::{connection::AnyConnection, writer::WriteTx},
        notifications,
        protocol_migrations::{self, MigrationRow},
        rollback_events::{self, RollbackEventRow},
        schema::sessions,
        transcript::{Entries, TranscriptAppend},
    },
};

/// A flip, and what is to be kept about it.
#[derive(Debug, Clone)]
pub struct FlipRecord {
    /// New; by it a second try sees that the first one was written.
    pub migration_id: Uuid,
    /// New; for the rollback event, where the flip is one.
    pub event_id: Uuid,
    /// The migration run of which it is a step.
    pub run_id: Option<Uuid>,
    /// The flip.
    pub flip: Flip,
    /// Why, as a word; for the rollback event.
    pub reason_code: ReasonCode,
    /// What is to be done about it; for the rollback event.
    pub follow_up: Option<FollowUp>,
    /// What was measured, as a JSON object.
    pub metrics: Redacted,
    /// The sessions whose transcripts get the note; those that are not known are left out. At most the workspace's
    /// live ones, which the limit of sessions bounds.
    pub notes: Vec<SessionId>,
    /// The note.
    pub note: TranscriptEntry,
    /// What operators are told, where it is one of many; else the workspace's users are told of it.
    pub systemic: Option<NewToast>,
}

/// The rows of a flip, ready for SQL.
pub(crate) struct FlipRows {
    migration: protocol_migrations::Record,
    event: Option<rollback_events::Record>,
    notes: Vec<(String, Entries)>,
    toast: NewToast,
    /// The rollback that it ends by itself, by the epoch that began then.
    recovers_from: Option<(WorkspaceKey, u64)>,
    now: Timestamp,
}

/// Sessions that are looked up at once; each is a parameter, of which SQLite takes 32,766.
const SESSIONS_PER_READ: usize = 1000;

impl FlipRows {
    pub(crate) fn new(key: &WorkspaceKey, record: FlipRecord, now: Timestamp) -> Self {
        let FlipRecord {
            migration_id,
            event_id,
            run_id,
            flip,
            reason_code,
            follow_up,
            metrics,
            notes,
            note,
            systemic,
        } = record;
        let kind = if flip.is_rollback() {
            Some(RollbackKind::Rollback)
        } else {
            flip.is_restore().then_some(RollbackKind::Restore)
        };
        let event = kind.map(|kind| RollbackEventRow {
            event_id,
            key: key.clone(),
            epoch: flip.epoch,
            kind,
            trigger: flip.trigger,
            reason_code,
            actor: flip.wish.actor.clone(),
            reason: flip.wish.reason.clone(),
            follow_up,
            metrics: metrics.as_str().to_owned(),
            created: now,
            alarm_id: systemic.as_ref().map(|told| told.cause_id.clone()),
        });
        let recovers_from = flip.recovers_from().map(|epoch| (key.clone(), epoch));
        let own =
            || NewToast::new(Uuid::now_v7(), Addressee::Workspace(key.clone()), notice::of_flip(&flip), migration_id);
        let toast = systemic.unwrap_or_else(own);
        let migration = MigrationRow {
            migration_id,
            run_id,
            key: key.clone(),
            from: flip.from,
            to: flip.to,
            epoch: Some(flip.epoch),
            initiated_by: flip.wish.initiator,
            actor: flip.wish.actor,
            trigger: flip.trigger,
            reason: flip.wish.reason,
            status: MigrationStatus::Succeeded,
            metrics: metrics.into_string(),
            started: now,
            completed: Some(now),
        };
        let note_of = |session_id: SessionId| {
            let (key, entries) = (key.clone(), vec![note.clone()]);
            let append = TranscriptAppend { session_id, key, prompt_id: None, entries, settles: 0, now };
            (session_id.to_string(), Entries::new(append))
        };
        Self {
            migration: protocol_migrations::Record::new(migration),
            event: event.map(rollback_events::Record::new),
            notes: notes.into_iter().map(note_of).collect(),
            toast,
            recovers_from,
            now,
        }
    }

    /// Whether an earlier try wrote them.
    pub(crate) fn is_written(&self, connection: &mut AnyConnection) -> diesel::QueryResult<bool> {
        self.migration.exists(connection)
    }

    /// Writes all of them.
    pub(crate) fn write(&mut self, tx: &mut WriteTx<'_>) -> Result<(), StoreError> {
        self.migration.insert(tx)?;
        if let Some(event) = &self.event {
            event.insert(tx)?;
        }
        // Who was not told that the workspace fell is not told either that it is back.
        let is_untold = match &self.recovers_from {
            Some((key, epoch)) => rollback_events::is_told_to_operators(tx.connection, key, *epoch)?,
            None => false,
        };
        if !is_untold {
            notifications::add(tx, &self.toast, self.now)?;
        }
        // A session that is not there must not stand in the way of a rollback.
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
