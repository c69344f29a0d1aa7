//! Wire types of routes: a workspace's protocol, a tenant's defaults, and fleet migrations.

pub(crate) mod migration;
pub(crate) mod protocol;
pub(crate) mod tenant;
