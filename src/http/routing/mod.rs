//! Routes of workspaces, defaults of tenants, and migrations of fleets.

pub(crate) mod migrations;
pub(crate) mod protocol;
pub(crate) mod tenants;
