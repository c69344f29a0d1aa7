//! The `replicas` table: the supervisors that use the database, by the database's clock.
//!
//! On a connection of its own, because the writer's may be busy for longer than a row lives. Neither a lock nor a
//! setting outlives a transaction, so that a pooler such as `PgBouncer` may be in between.

use std::time::Duration;

use diesel::{ExpressionMethods, Insertable, QueryDsl, Queryable, RunQueryDsl, connection::SimpleConnection};

use super::{
    StoreError,
    engine::{
        columns,
        connection::{AnyConnection, DatabaseUrl, Purpose},
    },
    schema::replicas,
};
use crate::domain::{
    clock::Timestamp,
    membership::{self, Claim, Member},
};

/// "lumilinR" in ASCII: the advisory lock of `PostgreSQL` under which the table is read and changed.
const ADVISORY_LOCK: i64 = 0x6c75_6d69_6c69_6e52;

#[derive(Queryable, Insertable)]
#[diesel(table_name = replicas)]
struct Record {
    id: String,
    epoch: i64,
    address: String,
    process: String,
    expires_us: i64,
}

impl From<Record> for Member {
    fn from(record: Record) -> Self {
        let Record { id, epoch, address, process, expires_us } = record;
        Self { id, epoch: columns::unsigned(epoch), address, process, expires: Timestamp(expires_us) }
    }
}

/// A supervisor that claims the database.
#[derive(Debug, Clone)]
pub(crate) struct Claimant {
    /// Unique for each start of a supervisor.
    pub id: String,
    /// Address of its API.
    pub address: String,
    /// Identity of its process.
    pub process: String,
}

/// The table of one database. Every call blocks, and connects first if necessary.
pub(crate) struct Replicas {
    url: DatabaseUrl,
    connection: Option<AnyConnection>,
}

impl Replicas {
    pub(crate) fn new(url: DatabaseUrl) -> Self {
        Self { url, connection: None }
    }

    /// Makes the claimant the member for `life`, unless another one is. Safe to retry.
    pub(crate) fn claim(
        &mut self,
        own: &Claimant,
        life: Duration,
        is_gone: impl Fn(&Member) -> bool,
    ) -> Result<Claim, StoreError> {
        self.transact(|connection| {
            let now = database_time(connection)?;
            let rows: Vec<Record> = replicas::table.load(connection)?;
            let members: Vec<Member> = rows.into_iter().map(Member::from).collect();
            let claim = membership::claim(&members, &own.id, now, is_gone);
            if let Claim::Granted { epoch } = claim {
                diesel::delete(replicas::table).execute(connection)?;
                let record = Record {
                    id: own.id.clone(),
                    epoch: columns::signed(epoch),
                    address: columns::clean(own.address.clone()),
                    process: columns::clean(own.process.clone()),
                    expires_us: now.plus(life).0,
                };
                diesel::insert_into(replicas::table).values(record).execute(connection)?;
            }
            Ok(claim)
        })
    }

    /// Extends the membership to `life` from now; `false` if another supervisor has taken over. Safe to retry.
    pub(crate) fn renew(&mut self, id: &str, life: Duration) -> Result<bool, StoreError> {
        self.transact(|connection| {
            let expires = database_time(connection)?.plus(life);
            let own = diesel::update(replicas::table.find(id)).set(replicas::expires_us.eq(expires.0));
            Ok(own.execute(connection)? == 1)
        })
    }

    /// Ends the membership, so that a successor need not wait. The row remains for its epoch. Safe to retry.
    pub(crate) fn release(&mut self, id: &str) -> Result<(), StoreError> {
        self.transact(|connection| {
            diesel::update(replicas::table.find(id)).set(replicas::expires_us.eq(0)).execute(connection)?;
            Ok(())
        })
    }

    /// The member, unless its process has ended or its row has expired. Reads only.
    pub(crate) fn member(&mut self, is_gone: impl Fn(&Member) -> bool) -> Result<Option<Member>, StoreError> {
        self.transact(|connection| {
            let now = database_time(connection)?;
            let rows: Vec<Record> = replicas::table.load(connection)?;
            let mut members = rows.into_iter().map(Member::from);
            Ok(members.find(|member| member.expires > now && !is_gone(member)))
        })
    }

    /// Runs a transaction, on a new connection after a failure.
    fn transact<T>(
        &mut self,
        run: impl FnOnce(&mut AnyConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.url.connect(Purpose::Membership)?,
        };
        connection.begin_write()?;
        if let AnyConnection::Postgres(connection) = &mut connection {
            connection.batch_execute(&format!("SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"))?;
        }
        let outcome = run(&mut connection)?;
        connection.commit()?;
        self.connection = Some(connection);
        Ok(outcome)
    }
}

/// The time by the clock of the database: of its server, or of this machine for a file.
pub(super) fn database_time(connection: &mut AnyConnection) -> Result<Timestamp, StoreError> {
    #[derive(diesel::QueryableByName)]
    struct Now {
        #[diesel(sql_type = diesel::sql_types::BigInt)]
        now_us: i64,
    }
    const SQLITE: &str = "SELECT CAST(unixepoch('subsec') * 1000000 AS INTEGER) AS now_us";
    const POSTGRES: &str = "SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::BIGINT AS now_us";
    let now: Now = match connection {
        AnyConnection::Sqlite(connection) => diesel::sql_query(SQLITE).get_result(connection)?,
        AnyConnection::Postgres(connection) => diesel::sql_query(POSTGRES).get_result(connection)?,
    };
    Ok(Timestamp(now.now_us))
}
