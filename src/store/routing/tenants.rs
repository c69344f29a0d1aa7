//! The `tenant_protocols` table: the routing settings of tenants.

use diesel::{AsChangeset, ExpressionMethods, Insertable, OptionalExtension, QueryDsl, Queryable, RunQueryDsl};
use serde_json::{Value, json};

use crate::{
    domain::{clock::Timestamp, ids::InstallationId, routing::Route},
    store::{
        Store, StoreError,
        changes::{self, NewChange},
        engine::{
            columns,
            connection::{AnyConnection, execute},
        },
        schema::tenant_protocols,
    },
};

/// The routing settings of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TenantProtocol {
    pub installation_id: InstallationId,
    /// The route of new workspaces while ACP is enabled.
    pub default_protocol: Route,
    /// True if ACP may be used at all.
    pub enable_acp: bool,
    /// True if workspaces may be migrated.
    pub allow_migration: bool,
    /// True if workspaces are migrated automatically.
    pub auto_migration: bool,
    /// Repositories for which automation is blocked.
    pub blocked_repositories: Vec<String>,
    /// Time of the last write.
    pub updated: Timestamp,
}

impl TenantProtocol {
    /// The defaults of a tenant without stored settings.
    pub(crate) fn with_defaults(installation_id: InstallationId, now: Timestamp) -> Self {
        Self {
            installation_id,
            default_protocol: Route::Acp,
            enable_acp: true,
            allow_migration: true,
            auto_migration: false,
            blocked_repositories: Vec::new(),
            updated: now,
        }
    }

    /// The settings as the audit shows them.
    pub(crate) fn as_json(&self) -> Value {
        json!({
            "defaultProtocol": self.default_protocol, "enableAcp": self.enable_acp,
            "allowMigration": self.allow_migration, "autoMigration": self.auto_migration,
            "blockedRepositories": self.blocked_repositories,
        })
    }

    /// The route of a workspace without a stored route.
    pub(crate) fn new_route(&self) -> Route {
        if self.enable_acp { self.default_protocol } else { Route::Http }
    }
}

#[derive(Queryable, Insertable, AsChangeset)]
#[diesel(table_name = tenant_protocols)]
struct Record {
    installation_id: String,
    default_protocol: String,
    enable_acp: bool,
    allow_migration: bool,
    auto_migration: bool,
    blocked_repositories: String,
    updated_us: i64,
}

const BLOCKED: &str = "tenant_protocols.blocked_repositories";

impl Record {
    fn new(wanted: TenantProtocol) -> Result<Self, StoreError> {
        Ok(Self {
            installation_id: wanted.installation_id.to_string(),
            default_protocol: wanted.default_protocol.as_str().to_owned(),
            enable_acp: wanted.enable_acp,
            allow_migration: wanted.allow_migration,
            auto_migration: wanted.auto_migration,
            blocked_repositories: columns::redacted_json(&wanted.blocked_repositories, BLOCKED)?,
            updated_us: wanted.updated.0,
        })
    }

    fn read(self) -> Result<TenantProtocol, StoreError> {
        Ok(TenantProtocol {
            installation_id: columns::parse(&self.installation_id, "tenant_protocols.installation_id")?,
            default_protocol: Route::tolerant(&self.default_protocol),
            enable_acp: self.enable_acp,
            allow_migration: self.allow_migration,
            auto_migration: self.auto_migration,
            blocked_repositories: columns::json(&self.blocked_repositories, BLOCKED)?,
            updated: Timestamp(self.updated_us),
        })
    }
}

impl Store {
    /// Reads the settings of a tenant; `None` if they were never set. Cancel-safe.
    pub(crate) async fn tenant_protocol(&self, tenant: InstallationId) -> Result<Option<TenantProtocol>, StoreError> {
        self.read(move |connection| {
            let row = tenant_protocols::table.find(tenant.as_str());
            row.first::<Record>(connection).optional()?.map(Record::read).transpose()
        })
        .await
    }

    /// Reads the tenants whose workspaces are migrated automatically, the first 1,000 by id. Cancel-safe.
    pub(crate) async fn auto_migrating_tenants(&self) -> Result<Vec<TenantProtocol>, StoreError> {
        self.read(move |connection| {
            let rows = tenant_protocols::table.filter(tenant_protocols::auto_migration.eq(true));
            let rows = rows.order(tenant_protocols::installation_id).limit(columns::limit(columns::MAX_PAGE));
            let records: Vec<Record> = rows.load(connection)?;
            records.into_iter().map(Record::read).collect()
        })
        .await
    }

    /// Writes the settings of a tenant, in place of the previous ones, and the record of the change. Safe to retry.
    ///
    /// # Cancel safety
    /// A dropped future may have written.
    pub(crate) async fn save_tenant_protocol(
        &self,
        wanted: TenantProtocol,
        change: NewChange,
    ) -> Result<(), StoreError> {
        let (record, change) = (Record::new(wanted)?, changes::Record::new(change)?);
        self.write(move |tx| {
            let saved = diesel::insert_into(tenant_protocols::table)
                .values(&record)
                .on_conflict(tenant_protocols::installation_id)
                .do_update()
                .set(&record);
            tx.rows += execute!(tx.connection, saved)?;
            change.write(tx)
        })
        .await
    }
}
