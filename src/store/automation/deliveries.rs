//! The table of GitHub's deliveries: the queue of what starts turns, and the record of it.
//!
//! One id and one content have one row, so a repeated delivery starts nothing, under whichever id. A change names the
//! version that it replaces, and an erased row is not written again.

use diesel::{ExpressionMethods, Insertable, OptionalExtension, QueryDsl, Queryable, RunQueryDsl};
use uuid::Uuid;

use crate::{
    domain::{
        automation::trigger::{DeliveryState, EventKind, Request},
        clock::Timestamp,
        ids::{PromptId, SessionId, WorkspaceKey},
        redaction::RedactedJson,
    },
    store::{
        Store, StoreError,
        engine::columns::{self, Cursor, Listed},
        schema::{github_deliveries, github_delivery_hashes},
    },
};

/// A delivery of GitHub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeliveryRow {
    /// `X-GitHub-Delivery`.
    pub delivery_id: Uuid,
    /// The workspace of the session; it exists once a session is open.
    pub key: WorkspaceKey,
    pub session_id: Option<SessionId>,
    pub prompt_id: Option<PromptId>,
    pub event: EventKind,
    pub state: DeliveryState,
    /// Why no turn was started, or the work failed.
    pub reason: Option<String>,
    pub request: Request,
    /// Number of writes after the first one.
    pub version: u64,
    /// Failed executions of the next step.
    pub attempts: u32,
    /// Time of the next work; `None` once there is none.
    pub due: Option<Timestamp>,
    pub created: Timestamp,
    pub updated: Timestamp,
}

/// The most rows on which work remains.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueLimits {
    pub of_all: usize,
    pub of_tenant: usize,
}

/// Result of queueing a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueuedDelivery {
    New,
    /// A delivery with this id, or this content, arrived before.
    Duplicate,
    /// The queue of all tenants, or that of the tenant, is full.
    Full,
}

impl Listed for DeliveryRow {
    fn cursor(&self) -> Cursor {
        Cursor { created: self.created, id: self.delivery_id.to_string() }
    }
}

#[derive(Queryable, Insertable)]
#[diesel(table_name = github_deliveries, treat_none_as_default_value = false)]
pub(crate) struct Record {
    delivery_id: String,
    installation_id: String,
    workspace_id: String,
    session_id: Option<String>,
    prompt_id: Option<String>,
    event: String,
    state: String,
    reason: Option<String>,
    request: String,
    version: i64,
    attempts: i64,
    due_us: Option<i64>,
    created_us: i64,
    updated_us: i64,
}

const REQUEST: &str = "github_deliveries.request";

impl Record {
    fn new(row: &DeliveryRow) -> Self {
        Self {
            delivery_id: row.delivery_id.to_string(),
            installation_id: row.key.installation_id.to_string(),
            workspace_id: row.key.workspace_id.to_string(),
            session_id: row.session_id.map(|id| id.to_string()),
            prompt_id: row.prompt_id.map(|id| id.to_string()),
            event: row.event.as_str().to_owned(),
            state: row.state.as_str().to_owned(),
            reason: row.reason.as_deref().map(columns::clean_text),
            request: columns::clean(RedactedJson::of(&row.request).into_string()),
            version: columns::signed(row.version),
            attempts: i64::from(row.attempts),
            due_us: row.due.map(|at| at.0),
            created_us: row.created.0,
            updated_us: row.updated.0,
        }
    }

    pub(crate) fn read(self) -> Result<DeliveryRow, StoreError> {
        Ok(DeliveryRow {
            delivery_id: columns::parse(&self.delivery_id, "github_deliveries.delivery_id")?,
            key: columns::workspace_key(self.installation_id, self.workspace_id)?,
            session_id: self.session_id.map(|id| columns::parse(&id, "github_deliveries.session_id")).transpose()?,
            prompt_id: self.prompt_id.map(|id| columns::parse(&id, "github_deliveries.prompt_id")).transpose()?,
            event: EventKind::from_name(&self.event).unwrap_or(EventKind::Other),
            state: columns::named(DeliveryState::from_name, &self.state, "github_deliveries.state")?,
            reason: self.reason,
            request: columns::json(&self.request, REQUEST)?,
            version: columns::unsigned(self.version),
            attempts: u32::try_from(self.attempts).unwrap_or(u32::MAX),
            due: self.due_us.map(Timestamp),
            created: Timestamp(self.created_us),
            updated: Timestamp(self.updated_us),
        })
    }
}

impl Store {
    /// Queues a delivery, unless its id or the hash of its content is known, or the queue is full. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn queue_delivery(
        &self,
        row: &DeliveryRow,
        content_hash: &str,
        limits: QueueLimits,
    ) -> Result<QueuedDelivery, StoreError> {
        let (record, content_hash) = (Record::new(row), content_hash.to_owned());
        // If another process queues the same delivery, the database refuses this write, which then runs again.
        self.write(move |tx| {
            let known = github_deliveries::table.find(record.delivery_id.as_str());
            let known: Option<i64> = known.select(github_deliveries::version).first(tx.connection).optional()?;
            if known.is_some() {
                // After a commit whose report was lost, it is the row of this write.
                return Ok(if tx.in_doubt { QueuedDelivery::New } else { QueuedDelivery::Duplicate });
            }
            let known = github_delivery_hashes::table.find(content_hash.as_str());
            let known: Option<i64> =
                known.select(github_delivery_hashes::created_us).first(tx.connection).optional()?;
            if known.is_some() {
                return Ok(QueuedDelivery::Duplicate);
            }
            let open = || github_deliveries::table.filter(github_deliveries::due_us.is_not_null());
            let ours = open().filter(github_deliveries::installation_id.eq(record.installation_id.as_str()));
            let all: i64 = open().count().get_result(tx.connection)?;
            let ours: i64 = ours.count().get_result(tx.connection)?;
            let is_full = |open: i64, most: usize| usize::try_from(open).unwrap_or(usize::MAX) >= most;
            if is_full(all, limits.of_all) || is_full(ours, limits.of_tenant) {
                return Ok(QueuedDelivery::Full);
            }
            let hash = (
                github_delivery_hashes::content_hash.eq(content_hash.as_str()),
                github_delivery_hashes::created_us.eq(record.created_us),
            );
            tx.rows += diesel::insert_into(github_delivery_hashes::table).values(hash).execute(tx.connection)?;
            tx.rows += diesel::insert_into(github_deliveries::table).values(&record).execute(tx.connection)?;
            Ok(QueuedDelivery::New)
        })
        .await
    }

    /// Deliveries on which work remains, with their workspaces and the times of the next work, the oldest first, at most
    /// [`MAX_PAGE`](columns::MAX_PAGE). Cancel-safe.
    pub(crate) async fn open_deliveries(&self) -> Result<Vec<(Uuid, WorkspaceKey, Timestamp)>, StoreError> {
        self.read(move |connection| {
            let open: Vec<(String, String, String, Option<i64>)> = github_deliveries::table
                .filter(github_deliveries::due_us.is_not_null())
                .order((github_deliveries::created_us, github_deliveries::delivery_id))
                .limit(columns::limit(columns::MAX_PAGE))
                .select((
                    github_deliveries::delivery_id,
                    github_deliveries::installation_id,
                    github_deliveries::workspace_id,
                    github_deliveries::due_us,
                ))
                .load(connection)?;
            let read = |(id, tenant, workspace, due): (String, String, String, Option<i64>)| {
                let id = columns::parse(&id, "github_deliveries.delivery_id")?;
                Ok((id, columns::workspace_key(tenant, workspace)?, Timestamp(due.unwrap_or_default())))
            };
            open.into_iter().map(read).collect()
        })
        .await
    }

    /// A delivery. Cancel-safe.
    pub(crate) async fn delivery(&self, id: Uuid) -> Result<Option<DeliveryRow>, StoreError> {
        self.read(move |connection| {
            let record: Option<Record> =
                github_deliveries::table.find(id.to_string()).first(connection).optional()?;
            record.map(Record::read).transpose()
        })
        .await
    }

    /// The newest sessions that deliveries opened in a workspace, at most `most`. Cancel-safe.
    pub(crate) async fn sessions_of_deliveries(
        &self,
        key: WorkspaceKey,
        most: usize,
    ) -> Result<Vec<SessionId>, StoreError> {
        self.read(move |connection| {
            let ids: Vec<Option<String>> = github_deliveries::table
                .filter(github_deliveries::installation_id.eq(key.installation_id.as_str()))
                .filter(github_deliveries::workspace_id.eq(key.workspace_id.as_str()))
                .filter(github_deliveries::session_id.is_not_null())
                .order((github_deliveries::created_us.desc(), github_deliveries::delivery_id.desc()))
                .limit(columns::limit(most))
                .select(github_deliveries::session_id)
                .load(connection)?;
            ids.iter().flatten().map(|id| columns::parse(id, "github_deliveries.session_id")).collect()
        })
        .await
    }

    /// Writes a change of a delivery; `row.version` is the version that it replaces.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if the row has another version, or was erased.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn save_delivery(&self, row: &DeliveryRow) -> Result<(), StoreError> {
        let record = Record::new(row);
        let written = self.write(move |tx| {
            let id = record.delivery_id.as_str();
            let current = github_deliveries::table.find(id).filter(github_deliveries::version.eq(record.version));
            let changed = diesel::update(current)
                .set((
                    github_deliveries::session_id.eq(record.session_id.as_deref()),
                    github_deliveries::prompt_id.eq(record.prompt_id.as_deref()),
                    github_deliveries::state.eq(record.state.as_str()),
                    github_deliveries::reason.eq(record.reason.as_deref()),
                    github_deliveries::request.eq(record.request.as_str()),
                    github_deliveries::version.eq(record.version + 1),
                    github_deliveries::attempts.eq(record.attempts),
                    github_deliveries::due_us.eq(record.due_us),
                    github_deliveries::updated_us.eq(record.updated_us),
                ))
                .execute(tx.connection)?;
            tx.rows += changed;
            if changed == 0 && tx.in_doubt {
                // The commit of an earlier attempt reported an error and took effect nevertheless.
                let stored: Option<(i64, String)> = github_deliveries::table
                    .find(id)
                    .select((github_deliveries::version, github_deliveries::state))
                    .first(tx.connection)
                    .optional()?;
                return Ok(stored == Some((record.version + 1, record.state.clone())));
            }
            Ok(changed > 0)
        });
        if written.await? { Ok(()) } else { Err(StoreError::Fenced) }
    }
}
