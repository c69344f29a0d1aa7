//! Background work that belongs to no session: retention, capacity alerts, and restarts of singleton parts.

pub(crate) mod capacity;
pub(crate) mod disk;
pub(crate) mod folders;
pub(crate) mod keeper;
pub(crate) mod rescues;
pub(crate) mod retention;
pub(crate) mod token_use;
