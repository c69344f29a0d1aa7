//! The table that names the database.

use diesel::{ExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl};
use uuid::Uuid;

use super::{
    StoreError,
    cached::execute,
    connection::{AnyConnection, DatabaseUrl, Purpose},
    schema::identity,
};

/// The database's name, which the first start makes; another process that starts at the same time sees the same.
pub(super) fn epoch(url: &DatabaseUrl) -> Result<String, StoreError> {
    let mut connection = url.connect(Purpose::Write)?;
    let kept = |connection: &mut AnyConnection| {
        identity::table.find(true).select(identity::epoch).first::<String>(connection).optional()
    };
    if let Some(epoch) = kept(&mut connection)? {
        return Ok(epoch);
    }
    let new = Uuid::new_v4().simple().to_string();
    let insert = diesel::insert_into(identity::table)
        .values((identity::one.eq(true), identity::epoch.eq(new)))
        .on_conflict_do_nothing();
    execute!(&mut connection, insert)?;
    kept(&mut connection)?.ok_or_else(|| StoreError::Corrupt("the database has no name".into()))
}
