//! Updates whose prepared statements are kept.
//!
//! Diesel does not keep those of updates, since their text may change with the values. Ours do not: each has one
//! text, and every turn runs some of them.

use diesel::{
    QueryResult, RunQueryDsl,
    backend::Backend,
    query_builder::{AstPass, QueryFragment, QueryId},
};

/// A statement with one text, whatever its values.
pub(super) struct Cached<Q>(pub Q);

impl<DB: Backend, Q: QueryFragment<DB>> QueryFragment<DB> for Cached<Q> {
    fn walk_ast<'b>(&'b self, pass: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.0.walk_ast(pass)
    }

    fn is_safe_to_cache_prepared(&self, _: &DB) -> QueryResult<bool> {
        Ok(true)
    }
}

impl<Q> QueryId for Cached<Q> {
    type QueryId = ();
    // The text itself is the key.
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<Q, Connection> RunQueryDsl<Connection> for Cached<Q> {}
