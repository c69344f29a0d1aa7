//! The `workspace_routes` table: the latest decision of each workspace's router.

pub(crate) mod flips;
pub(crate) mod migrations;
pub(crate) mod storms;
pub(crate) mod tenants;

use diesel::{
    AsChangeset, BoolExpressionMethods, ExpressionMethods, Insertable, JoinOnDsl, NullableExpressionMethods,
    OptionalExtension, QueryDsl, Queryable, RunQueryDsl,
};

use self::flips::{FlipRecord, FlipRows};
use super::{
    Store, StoreError,
    engine::{
        columns::{self, Cursor, Page, page_of},
        connection::AnyConnection,
        writer::WriteTx,
    },
    schema::{workspace_routes, workspaces},
};
use crate::domain::{
    clock::Timestamp,
    ids::{InstallationId, WorkspaceKey},
    routing::{Route, Routing},
};

/// The stored route of a workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RouteRow {
    pub key: WorkspaceKey,
    /// The whole state; if the process died during a probe, the caller must apply
    /// [`after_restart`](Routing::after_restart).
    pub routing: Routing,
    /// True if the workspace may be migrated to ACP at all.
    pub migration_enabled: bool,
    /// True if the workspace is migrated automatically while ACP is healthy.
    pub auto_rollout: bool,
    /// Time of the first write.
    pub created: Timestamp,
    /// Time of the last write.
    pub updated: Timestamp,
}

impl RouteRow {
    /// The position of this row in [`Store::routes`].
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { created: self.created, id: self.key.to_string() }
    }
}

/// Conditions on listed routes; all of them must hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct RouteFilter {
    /// Only routes of this tenant.
    pub installation_id: Option<InstallationId>,
    /// Only workspaces that are on this route; the carrier of canary turns is ignored.
    pub route: Option<Route>,
    /// Only workspaces with this default route.
    pub default_protocol: Option<Route>,
    /// Only workspaces that are on HTTP for any reason, or are returning to ACP.
    pub off_acp_only: bool,
}

/// A router's decision, to be written.
#[derive(Debug, Clone)]
pub(crate) struct SaveRoute {
    pub key: WorkspaceKey,
    /// The epoch on which the decision is based; 0 if nothing was written yet.
    pub expected_epoch: u64,
    pub routing: Routing,
    /// Sets [`RouteRow::migration_enabled`]; a new row without it gets `true`.
    pub migration_enabled: Option<bool>,
    /// Sets [`RouteRow::auto_rollout`]; a new row without it gets `false`.
    pub auto_rollout: Option<bool>,
    /// The flip, if the decision changes the route.
    pub flip: Option<FlipRecord>,
    pub now: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SavedRoute {
    /// The decision is on disk with all rows of its flip; perhaps an earlier attempt wrote them.
    Saved,
    /// Nothing was written, because another writer flipped the workspace; this is the current row.
    Stale(Option<Box<RouteRow>>),
}

#[derive(Queryable, Insertable)]
#[diesel(table_name = workspace_routes, treat_none_as_default_value = false)]
pub(crate) struct Record {
    installation_id: String,
    workspace_id: String,
    epoch: i64,
    route: String,
    default_protocol: String,
    is_pinned: bool,
    stage: String,
    routing: String,
    migration_enabled: bool,
    auto_rollout: bool,
    created_us: i64,
    updated_us: i64,
}

#[derive(AsChangeset)]
#[diesel(table_name = workspace_routes)]
struct Changes<'a> {
    epoch: i64,
    route: &'a str,
    default_protocol: &'a str,
    is_pinned: bool,
    stage: &'a str,
    routing: &'a str,
    migration_enabled: Option<bool>,
    auto_rollout: Option<bool>,
    updated_us: i64,
}

impl Record {
    /// The route of a workspace without flips and settings.
    pub(crate) fn fresh(
        installation_id: String,
        workspace_id: String,
        default: Route,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let routing = Routing::new(default);
        Ok(Self {
            installation_id,
            workspace_id,
            epoch: columns::signed(routing.epoch()),
            route: routing.route().as_str().to_owned(),
            default_protocol: default.as_str().to_owned(),
            is_pinned: false,
            stage: routing.stage().as_str().to_owned(),
            routing: columns::redacted_json(&routing, "workspace_routes.routing")?,
            migration_enabled: true,
            auto_rollout: false,
            created_us: now.0,
            updated_us: now.0,
        })
    }

    fn read(self) -> Result<RouteRow, StoreError> {
        Ok(RouteRow {
            routing: columns::json(&self.routing, "workspace_routes.routing").unwrap_or_else(|cause| {
                let (tenant, workspace) = (self.installation_id.as_str(), self.workspace_id.as_str());
                tracing::warn!(marker = "[ROLLBACK]", tenant, workspace, %cause, "route of a newer version is not used");
                Routing::in_epoch(Route::tolerant(&self.default_protocol), columns::unsigned(self.epoch))
            }),
            key: columns::workspace_key(self.installation_id, self.workspace_id)?,
            migration_enabled: self.migration_enabled,
            auto_rollout: self.auto_rollout,
            created: Timestamp(self.created_us),
            updated: Timestamp(self.updated_us),
        })
    }
}

/// A [`SaveRoute`] and its flip, converted to rows.
pub(crate) struct Decision {
    record: Record,
    expected_epoch: i64,
    migration_enabled: Option<bool>,
    auto_rollout: Option<bool>,
    flip: Option<FlipRows>,
}

impl Decision {
    pub(crate) fn new(save: SaveRoute) -> Result<Self, StoreError> {
        let SaveRoute { key, expected_epoch, routing, migration_enabled, auto_rollout, flip, now } = save;
        Ok(Self {
            flip: flip.map(|flip| FlipRows::new(&key, flip, now)),
            record: Record {
                installation_id: key.installation_id.to_string(),
                workspace_id: key.workspace_id.to_string(),
                epoch: columns::signed(routing.epoch()),
                route: routing.route().as_str().to_owned(),
                default_protocol: routing.default_route().as_str().to_owned(),
                is_pinned: routing.pin().is_some(),
                stage: routing.stage().as_str().to_owned(),
                routing: columns::redacted_json(&routing, "workspace_routes.routing")?,
                migration_enabled: migration_enabled.unwrap_or(true),
                auto_rollout: auto_rollout.unwrap_or(false),
                created_us: now.0,
                updated_us: now.0,
            },
            expected_epoch: columns::signed(expected_epoch),
            migration_enabled,
            auto_rollout,
        })
    }

    pub(crate) fn save(&mut self, tx: &mut WriteTx<'_>) -> Result<SavedRoute, StoreError> {
        let record = &self.record;
        let key = (record.installation_id.as_str(), record.workspace_id.as_str());
        let expected = workspace_routes::table.find(key).filter(workspace_routes::epoch.eq(self.expected_epoch));
        let changes = Changes {
            epoch: record.epoch,
            route: &record.route,
            default_protocol: &record.default_protocol,
            is_pinned: record.is_pinned,
            stage: &record.stage,
            routing: &record.routing,
            migration_enabled: self.migration_enabled,
            auto_rollout: self.auto_rollout,
            updated_us: record.updated_us,
        };
        let mut written = diesel::update(expected).set(&changes).execute(tx.connection)?;
        if written == 0 {
            // Either the workspace has no row yet, or another writer has flipped it.
            let found = find(tx.connection, key)?;
            if found.is_some() || self.expected_epoch != 0 {
                // An earlier attempt may have been committed although its outcome was lost.
                let is_written = match &self.flip {
                    Some(flip) => flip.is_written(tx.connection)?,
                    None => false,
                };
                return if is_written {
                    Ok(SavedRoute::Saved)
                } else {
                    Ok(SavedRoute::Stale(found.map(Record::read).transpose()?.map(Box::new)))
                };
            }
            written = diesel::insert_into(workspace_routes::table).values(record).execute(tx.connection)?;
        }
        tx.rows += written;
        // In the transaction of the route: a flip is never on disk without its audit row and its notification.
        if let Some(flip) = &mut self.flip {
            flip.write(tx)?;
        }
        Ok(SavedRoute::Saved)
    }
}

fn find(connection: &mut AnyConnection, key: (&str, &str)) -> diesel::QueryResult<Option<Record>> {
    workspace_routes::table.find(key).first(connection).optional()
}

impl Store {
    /// Writes a router's decision and all rows of its flip in one transaction, unless the workspace was flipped since
    /// `expected_epoch`.
    ///
    /// # Errors
    /// An unavailable database or a full queue refuses the write: a decision takes effect only after it is written.
    /// Safe to retry with the same value after any error or a dropped future: if an earlier attempt was written, the
    /// outcome is [`SavedRoute::Saved`] and nothing is written again.
    pub(crate) async fn save_route(&self, save: SaveRoute) -> Result<SavedRoute, StoreError> {
        let (key, erasures) = (save.key.clone(), self.erasures().clone());
        let mut decision = Decision::new(save)?;
        self.write(move |tx| {
            if erasures.is_late(&key, None) {
                return Err(StoreError::Conflict(format!("the workspace {key} is being erased")));
            }
            decision.save(tx)
        })
        .await
    }

    /// Reads the route of a workspace; `None` if none was ever written. Cancel-safe.
    pub(crate) async fn route(&self, key: WorkspaceKey) -> Result<Option<RouteRow>, StoreError> {
        self.read(move |connection| {
            let key = (key.installation_id.as_str(), key.workspace_id.as_str());
            find(connection, key)?.map(Record::read).transpose()
        })
        .await
    }

    /// Reads a page of routes, newest row first. Cancel-safe.
    pub(crate) async fn routes(&self, filter: RouteFilter, page: Page) -> Result<Vec<RouteRow>, StoreError> {
        use workspace_routes::{created_us, default_protocol, installation_id, route, workspace_id};
        self.read(move |connection| {
            let mut rows = workspace_routes::table.into_boxed();
            if let Some(tenant) = &filter.installation_id {
                rows = rows.filter(installation_id.eq(tenant.as_str()));
            }
            if let Some(wanted) = filter.route {
                rows = rows.filter(route.eq(wanted.as_str()));
            }
            if let Some(wanted) = filter.default_protocol {
                rows = rows.filter(default_protocol.eq(wanted.as_str()));
            }
            if filter.off_acp_only {
                // A literal, because both databases use the partial index only if they see its condition.
                let off_acp = "(route = 'http' OR stage <> 'closed')";
                rows = rows.filter(diesel::dsl::sql::<diesel::sql_types::Bool>(off_acp));
            }
            let records: Vec<Record> =
                page_of!(rows, page, created_us, installation_id, workspace_id).load(connection)?;
            records.into_iter().map(Record::read).collect()
        })
        .await
    }
}

fn settle(
    tx: &mut WriteTx<'_>,
    tenant: &InstallationId,
    route: Route,
    now: Timestamp,
    limit: i64,
) -> Result<usize, StoreError> {
    let same = workspace_routes::installation_id
        .eq(workspaces::installation_id)
        .and(workspace_routes::workspace_id.eq(workspaces::workspace_id));
    let without: Vec<(String, String)> = workspaces::table
        .left_join(workspace_routes::table.on(same))
        .filter(workspaces::installation_id.eq(tenant.as_str()))
        .filter(workspace_routes::epoch.nullable().is_null())
        .order((workspaces::created_us, workspaces::workspace_id))
        .limit(limit)
        .select((workspaces::installation_id, workspaces::workspace_id))
        .load(tx.connection)?;
    for (installation_id, workspace_id) in &without {
        let record = Record::fresh(installation_id.clone(), workspace_id.clone(), route, now)?;
        tx.rows += diesel::insert_into(workspace_routes::table).values(&record).execute(tx.connection)?;
    }
    Ok(without.len())
}

impl Store {
    /// Writes a route for workspaces of a tenant that have none, so that later changes of the tenant's default do not
    /// affect them. At most `limit` workspaces and [`MAX_PAGE`](crate::store::MAX_PAGE), oldest first. Returns the
    /// number of written routes; if it equals the limit, there may be more workspaces. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn settle_routes(
        &self,
        tenant: InstallationId,
        route: Route,
        now: Timestamp,
        limit: usize,
    ) -> Result<usize, StoreError> {
        self.write(move |tx| settle(tx, &tenant, route, now, columns::limit(limit))).await
    }
}
