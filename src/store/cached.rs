//! Statements that every turn runs: their text is made once and their prepared form is kept.
//!
//! Diesel keeps no prepared form of updates and of some inserts, since their text may change with the values. Ours
//! do not: each has one text, under a name of its own.

use std::marker::PhantomData;

use diesel::{
    QueryResult, RunQueryDsl,
    backend::Backend,
    query_builder::{AstPass, QueryFragment, QueryId},
};

/// A statement with one text, whatever its values. `Name` is a type that stands for that text and no other.
pub(super) struct Cached<Name, Q> {
    statement: Q,
    name: PhantomData<Name>,
}

impl<Name, Q> Cached<Name, Q> {
    /// Names a statement.
    pub(super) fn new(statement: Q) -> Self {
        Self { statement, name: PhantomData }
    }
}

impl<DB: Backend, Name, Q: QueryFragment<DB>> QueryFragment<DB> for Cached<Name, Q> {
    fn walk_ast<'b>(&'b self, pass: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.statement.walk_ast(pass)
    }

    fn is_safe_to_cache_prepared(&self, _: &DB) -> QueryResult<bool> {
        Ok(true)
    }
}

impl<Name: 'static, Q> QueryId for Cached<Name, Q> {
    type QueryId = Name;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl<Name, Q, Connection> RunQueryDsl<Connection> for Cached<Name, Q> {}

/// Runs a statement on the very connection. Through `AnyConnection` its text would be made for each run.
macro_rules! execute {
    ($connection:expr, $statement:expr) => {
        match &mut *$connection {
            AnyConnection::Postgres(connection) => $statement.execute(connection),
            AnyConnection::Sqlite(connection) => $statement.execute(connection),
        }
    };
}

pub(super) use execute;
