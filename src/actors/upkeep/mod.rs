//! Background work that belongs to no session: retention, capacity alerts, and restarts of singleton parts.

pub mod capacity;
pub mod keeper;
pub mod retention;
