//! Wire types of routes: a workspace's protocol, a tenant's defaults, and fleet migrations.

pub mod migration;
pub mod protocol;
pub mod tenant;
