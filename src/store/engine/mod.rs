//! The database itself: connections, schema upgrades, the pool of readers and the single writer.
//!
//! Invariant: nothing here knows a table of the product, except the one that holds the database's identity.

pub mod columns;
pub mod connection;
pub mod job;
pub mod pool;
pub mod upgrade;
pub mod writer;
