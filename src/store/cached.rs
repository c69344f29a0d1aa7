//! Statements that every turn runs: their text is made once and their prepared form is kept.
//!
//! Diesel keeps no prepared form of updates and of some inserts, since their text may change with the values. Ours
//! do not: each has one text, under a name of its own.

use std::marker::PhantomData;

use diesel::{
    AppearsOnTable, AsChangeset, Expression, QueryResult, QuerySource, RunQueryDsl, Table,
    backend::Backend,
    query_builder::{AstPass, QueryFragment, QueryId},
    sql_types::Bool,
};

/// A statement with one text, whatever its values. `Name` is a type that stands for that text and no other.
pub(super) struct Cached<Name, Q> {
    statement: Q,
    name: PhantomData<Name>,
}

impl<Name, Q> Cached<Name, Q> {
    /// Names a statement: an insert of one row, or an [`Update`]. An insert that says what to do on a conflict is
    /// none of these: diesel keeps no prepared form of it, whatever it is wrapped in.
    pub(super) fn new(statement: Q) -> Self {
        Self { statement, name: PhantomData }
    }
}

impl<DB: Backend, Name, Q: QueryFragment<DB>> QueryFragment<DB> for Cached<Name, Q> {
    fn walk_ast<'b>(&'b self, pass: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.statement.walk_ast(pass)
    }
}

impl<Name: 'static, Q> QueryId for Cached<Name, Q> {
    type QueryId = Name;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl<Name, Q, Connection> RunQueryDsl<Connection> for Cached<Name, Q> {}

/// An update whose prepared form may be kept. Diesel's own forbids that as it is written out, and no wrapper can take
/// that back: diesel asks a reference to it, which answers for itself.
pub(super) struct Update<From, Condition, Changes> {
    from: From,
    condition: Condition,
    changes: Changes,
}

impl<From, Condition, Changes> Update<From, Condition, Changes> {
    /// Changes the rows of a table for which the condition holds. At least one column has to change.
    pub(super) fn new<T, C>(table: T, condition: Condition, changes: C) -> Self
    where
        T: Table + QuerySource<FromClause = From>,
        Condition: Expression<SqlType = Bool> + AppearsOnTable<T>,
        C: AsChangeset<Target = T, Changeset = Changes>,
    {
        Self { from: table.from_clause(), condition, changes: changes.as_changeset() }
    }
}

impl<DB, From, Condition, Changes> QueryFragment<DB> for Update<From, Condition, Changes>
where
    DB: Backend,
    From: QueryFragment<DB>,
    Condition: QueryFragment<DB>,
    Changes: QueryFragment<DB>,
{
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        out.push_sql("UPDATE ");
        self.from.walk_ast(out.reborrow())?;
        out.push_sql(" SET ");
        self.changes.walk_ast(out.reborrow())?;
        out.push_sql(" WHERE ");
        self.condition.walk_ast(out)
    }
}

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
