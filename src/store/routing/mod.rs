//! The table of routes: what carries each workspace's turns, as its router decided last.

pub(crate) mod flips;
pub(crate) mod migrations;
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

/// The route of a workspace as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RouteRow {
    /// Which workspace.
    pub key: WorkspaceKey,
    /// The whole state; of a process that died in the middle of a probe it is to be taken
    /// [`after_restart`](Routing::after_restart).
    pub routing: Routing,
    /// Whether it may be moved to ACP at all.
    pub migration_enabled: bool,
    /// Whether it is moved by itself while ACP is healthy.
    pub auto_rollout: bool,
    /// When it was first written.
    pub created: Timestamp,
    /// When it was last written.
    pub updated: Timestamp,
}

impl RouteRow {
    /// The place of this row in [`Store::routes`].
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { created: self.created, id: self.key.to_string() }
    }
}

/// Which routes to list.
#[derive(Debug, Clone, Default)]
pub(crate) struct RouteFilter {
    /// Only those of a tenant.
    pub installation_id: Option<InstallationId>,
    /// Only those that this one carries, canaries aside.
    pub route: Option<Route>,
    /// Only those whose default is this one.
    pub default_protocol: Option<Route>,
    /// Only those that are not simply on ACP: on HTTP for whatever reason, or on the way back.
    pub off_acp_only: bool,
}

/// What a router decided.
#[derive(Debug, Clone)]
pub(crate) struct SaveRoute {
    /// Which workspace.
    pub key: WorkspaceKey,
    /// The epoch in which it decided; 0 where nothing was written yet.
    pub expected_epoch: u64,
    /// The state from now on.
    pub routing: Routing,
    /// Changes whether it may be moved to ACP at all; true where nothing was ever said.
    pub migration_enabled: Option<bool>,
    /// Changes whether it is moved by itself; false where nothing was ever said.
    pub auto_rollout: Option<bool>,
    /// The flip, where the route is another one than before.
    pub flip: Option<FlipRecord>,
    /// The time.
    pub now: Timestamp,
}

/// What became of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SavedRoute {
    /// It is on disk, with everything that its flip leaves; also where an earlier try had written it.
    Saved,
    /// Somebody else flipped the workspace in the meantime; this is what is there. Nothing was written.
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
    /// The route of a workspace that was never flipped and of which nothing was ever said.
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
            key: columns::workspace_key(self.installation_id, self.workspace_id)?,
            routing: columns::json(&self.routing, "workspace_routes.routing")?,
            migration_enabled: self.migration_enabled,
            auto_rollout: self.auto_rollout,
            created: Timestamp(self.created_us),
            updated: Timestamp(self.updated_us),
        })
    }
}

/// A decision, ready for SQL.
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
            let found = find(tx.connection, key)?;
            if found.is_some() || self.expected_epoch != 0 {
                // An earlier try may have been committed although nothing was heard of it.
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
    /// Writes what a router decided and everything that its flip leaves, in one transaction, unless the workspace was
    /// flipped since `expected_epoch`. A database that is away, or a full queue, refuses it: as long as nothing is
    /// written, nothing is decided. Safe to retry with the same value after any error or a dropped future: what an
    /// earlier try has written answers [`SavedRoute::Saved`] and is not written again.
    pub(crate) async fn save_route(&self, save: SaveRoute) -> Result<SavedRoute, StoreError> {
        let mut decision = Decision::new(save)?;
        self.write(move |tx| decision.save(tx)).await
    }

    /// The route of a workspace; nothing where no router ever wrote one. Cancel-safe.
    pub(crate) async fn route(&self, key: WorkspaceKey) -> Result<Option<RouteRow>, StoreError> {
        self.read(move |connection| {
            let key = (key.installation_id.as_str(), key.workspace_id.as_str());
            find(connection, key)?.map(Record::read).transpose()
        })
        .await
    }

    /// A page of routes, those first whose workspaces were first routed last. Cancel-safe.
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
                // Written out, so that both databases see that the index fits.
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
    /// Writes a route down for workspaces of a tenant that have none: from now on they keep it, whatever the tenant
    /// wants. At most `limit` of them and [`MAX_PAGE`](crate::store::MAX_PAGE), those first that are there longest. Says how
    /// many: as many as were allowed mean that there may be more. Safe to retry. A dropped future may have written.
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
