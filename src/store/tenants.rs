//! The `tenant_settings` table: limits, ceilings and automation of tenants; and the tenant of each bound installation.

use diesel::{AsChangeset, ExpressionMethods, Insertable, QueryDsl, Queryable, RunQueryDsl};

use super::{
    Store, StoreError,
    changes::{self, NewChange},
    engine::{
        columns,
        connection::{AnyConnection, execute},
        writer::WriteTx,
    },
    schema::{github_bindings, tenant_settings},
};
use crate::domain::{clock::Timestamp, ids::InstallationId, tenant::TenantSettings};

#[derive(Queryable, Insertable, AsChangeset)]
#[diesel(table_name = tenant_settings)]
struct Record {
    installation_id: String,
    settings: String,
    updated_us: i64,
}

const SETTINGS: &str = "tenant_settings.settings";

/// The settings of a tenant, with the time of their last change.
pub(crate) type StoredSettings = (InstallationId, TenantSettings, Timestamp);

impl Record {
    fn read(self) -> Result<StoredSettings, StoreError> {
        let tenant = columns::parse(&self.installation_id, "tenant_settings.installation_id")?;
        Ok((tenant, columns::json(&self.settings, SETTINGS)?, Timestamp(self.updated_us)))
    }
}

/// Binds installations of the GitHub App to a tenant, in place of those that were bound to it. The primary key refuses a second
/// tenant also if another process binds the same installation at this time.
fn bind(tx: &mut WriteTx<'_>, tenant: &str, installations: &[String]) -> Result<(), StoreError> {
    let others = github_bindings::table
        .filter(github_bindings::github_installation.eq_any(installations))
        .filter(github_bindings::installation_id.ne(tenant));
    let bound: Vec<(String, String)> = others.limit(1).load(tx.connection)?;
    if let Some((installation, other)) = bound.first() {
        return Err(StoreError::Conflict(format!("the installation {installation} is bound to the tenant {other}")));
    }
    let ours = github_bindings::table.filter(github_bindings::installation_id.eq(tenant));
    tx.rows += diesel::delete(ours).execute(tx.connection)?;
    let distinct: std::collections::BTreeSet<_> = installations.iter().collect();
    for installation in distinct {
        let row = (
            github_bindings::github_installation.eq(installation.as_str()),
            github_bindings::installation_id.eq(tenant),
        );
        tx.rows += diesel::insert_into(github_bindings::table).values(row).execute(tx.connection)?;
    }
    Ok(())
}

impl Store {
    /// Reads a page of settings, in the order of the tenants' names, after `after`. Cancel-safe.
    pub(crate) async fn tenant_settings(
        &self,
        after: Option<InstallationId>,
        limit: usize,
    ) -> Result<Vec<StoredSettings>, StoreError> {
        self.read(move |connection| {
            let after = after.as_ref().map_or("", |tenant| tenant.as_str());
            let rows = tenant_settings::table.filter(tenant_settings::installation_id.gt(after));
            let rows = rows.order(tenant_settings::installation_id).limit(columns::limit(limit));
            let records: Vec<Record> = rows.load(connection)?;
            records.into_iter().map(Record::read).collect()
        })
        .await
    }

    /// Writes the settings of a tenant, in place of the previous ones, and the record of the change. Safe to retry.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if an installation is bound to another tenant; nothing was written.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn save_tenant_settings(
        &self,
        tenant: InstallationId,
        settings: &TenantSettings,
        change: NewChange,
    ) -> Result<(), StoreError> {
        // Names of agents and patterns are checked by the caller, and a redacted one would match nothing.
        let installations: Vec<_> = settings.automation.installations.iter().map(u64::to_string).collect();
        let settings = columns::json_text(settings, SETTINGS)?;
        let record = Record { installation_id: tenant.to_string(), settings, updated_us: change.now.0 };
        let change = changes::Record::new(change)?;
        self.write(move |tx| {
            bind(tx, &record.installation_id, &installations)?;
            let saved = diesel::insert_into(tenant_settings::table)
                .values(&record)
                .on_conflict(tenant_settings::installation_id)
                .do_update()
                .set(&record);
            tx.rows += execute!(tx.connection, saved)?;
            change.write(tx)
        })
        .await
    }
}
