//! The database itself: connections, schema upgrades, the pool of readers and the single writer.
//!
//! Invariant: nothing here knows a table of the product, except the one that holds the database's identity.

pub(crate) mod backup;
pub(crate) mod columns;
pub(crate) mod connection;
pub(crate) mod grown;
pub(crate) mod job;
pub(crate) mod pool;
pub(crate) mod room;
pub(crate) mod upgrade;
pub(crate) mod writer;
