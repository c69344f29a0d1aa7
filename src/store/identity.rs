//! The table that names the database.

use diesel::{ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl};
use uuid::Uuid;

use super::{
    StoreError,
    cached::execute,
    engine::connection::{AnyConnection, DatabaseUrl, Purpose},
    schema::identity,
};

/// The name that a database had, and the one that it has now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenewedEpoch {
    /// Before: cursors with it are of no use any more.
    pub before: String,
    /// From now on, for whoever opens the database.
    pub now: String,
}

/// The database's name, which the first start makes; another process that starts at the same time sees the same.
pub(super) fn epoch(url: &DatabaseUrl) -> Result<String, StoreError> {
    let mut connection = url.connect(Purpose::Write)?;
    let kept = |connection: &mut AnyConnection| {
        identity::table.find(true).select(identity::epoch).first::<String>(connection).optional()
    };
    if let Some(epoch) = kept(&mut connection)? {
        return Ok(epoch);
    }
    let insert = diesel::insert_into(identity::table)
        .values((identity::one.eq(true), identity::epoch.eq(new_name())))
        .on_conflict_do_nothing();
    execute!(&mut connection, insert)?;
    kept(&mut connection)?.ok_or_else(|| StoreError::Corrupt("the database has no name".into()))
}

/// Gives the database another name.
pub(super) fn renew(url: &DatabaseUrl) -> Result<RenewedEpoch, StoreError> {
    let (before, now) = (epoch(url)?, new_name());
    let mut connection = url.connect(Purpose::Write)?;
    diesel::update(identity::table.find(true)).set(identity::epoch.eq(now.as_str())).execute(&mut connection)?;
    Ok(RenewedEpoch { before, now })
}

fn new_name() -> String {
    Uuid::new_v4().simple().to_string()
}
