//! Routes of workspaces that follow their tenant, written down before the tenant wants another one.

use diesel::{BoolExpressionMethods, ExpressionMethods, JoinOnDsl, NullableExpressionMethods, QueryDsl, RunQueryDsl};

use super::{
    Store, StoreError,
    engine::{columns, writer::WriteTx},
    routing::Record,
    schema::{workspace_routes, workspaces},
};
use crate::domain::{clock::Timestamp, ids::InstallationId, routing::Route};

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
    /// wants. At most `limit` of them and [`MAX_PAGE`](super::MAX_PAGE), those first that are there longest. Says how
    /// many: as many as were allowed mean that there may be more. Safe to retry. A dropped future may have written.
    pub async fn settle_routes(
        &self,
        tenant: InstallationId,
        route: Route,
        now: Timestamp,
        limit: usize,
    ) -> Result<usize, StoreError> {
        self.write(move |tx| settle(tx, &tenant, route, now, columns::limit(limit))).await
    }
}
