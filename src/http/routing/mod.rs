//! Routes of the API that read or change how workspaces reach their agents: protocol, tenants, migrations.

pub(crate) mod migrations;
pub(crate) mod protocol;
pub(crate) mod tenants;
