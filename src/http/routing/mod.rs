//! Routes of the API that read or change how workspaces reach their agents: protocol, tenants, migrations.

pub mod migrations;
pub mod protocol;
pub mod tenants;
