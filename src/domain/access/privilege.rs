use super::Role;
use crate::domain::words::words;

words! {
    /// A kind of operation. Each route names one; a role has a set of them.
    Privilege {
        /// Health of the service, and its agents.
        ReadService = "service.read",
        /// Metrics of the whole service.
        ReadMetrics = "metrics.read",
        /// Sessions and workspaces without their contents, and routes.
        ReadSessions = "sessions.read",
        /// Prompts, answers, transcripts, events and diffs.
        ReadContents = "contents.read",
        /// Opens, prompts, answers, loads and closes sessions.
        UseSessions = "sessions.use",
        /// Notifications of a tenant.
        ReadNotifications = "notifications.read",
        /// Rolls a workspace back to HTTP.
        RollBack = "workspaces.rollback",
        /// Changes the route of a workspace.
        ChangeRoutes = "routes.change",
        /// Defaults, limits and migrations of a tenant.
        ReadFleet = "fleet.read",
        /// Changes defaults of a tenant, and migrates its workspaces.
        ChangeFleet = "fleet.change",
        /// Records and figures of the audit.
        ReadAudit = "audit.read",
        /// Administrative changes in the audit, which name the holders of tokens.
        ReadChanges = "changes.read",
        /// Webhook deliveries and notifications of the service.
        Operate = "service.operate",
        /// Limits, ceilings and automation of tenants, with the installations of the GitHub App that are bound to them.
        ChangeTenants = "tenants.change",
        /// Makes, lists and revokes tokens.
        ManageTokens = "tokens.manage",
        /// Erases sessions and workspaces.
        Erase = "erase",
        /// Erases a tenant.
        EraseTenants = "tenants.erase",
    }
}

/// The part of the service that an operation concerns, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// A workspace or the sessions of one user.
    Part,
    /// Everything of one tenant.
    Tenant,
    /// All tenants.
    Service,
}

impl Privilege {
    /// The roles that have it.
    pub(crate) fn roles(self) -> &'static [Role] {
        use Role::{Admin, Auditor, Operator, Reader, User};
        match self {
            Self::ReadService => &Role::ALL,
            Self::ReadMetrics => &[Auditor, Operator, Admin],
            Self::ReadSessions | Self::ReadNotifications | Self::ReadFleet => &[Reader, User, Operator, Admin],
            Self::ReadContents => &[Reader, User, Admin],
            Self::UseSessions => &[User, Admin],
            Self::RollBack => &[User, Operator, Admin],
            Self::ChangeRoutes | Self::ChangeFleet | Self::Operate | Self::ChangeTenants => &[Operator, Admin],
            Self::ReadAudit => &[Auditor, Operator, Admin],
            Self::ReadChanges => &[Auditor, Admin],
            Self::ManageTokens | Self::Erase | Self::EraseTenants => &[Admin],
        }
    }

    /// The least reach of a token for it.
    pub(crate) fn reach(self) -> Reach {
        match self {
            Self::ReadMetrics | Self::Operate | Self::ChangeTenants => Reach::Service,
            Self::ReadFleet
            | Self::ChangeFleet
            | Self::ReadAudit
            | Self::ReadChanges
            | Self::ManageTokens
            | Self::EraseTenants => Reach::Tenant,
            Self::ReadService
            | Self::ReadSessions
            | Self::ReadContents
            | Self::UseSessions
            | Self::ReadNotifications
            | Self::RollBack
            | Self::ChangeRoutes
            | Self::Erase => Reach::Part,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows: roles in the order of [`Role::ALL`]; columns: privileges in the order of [`Privilege::ALL`].
    const MATRIX: &str = "
        reader   x . x x . x . . x . . . . . . . .
        user     x . x x x x x . x . . . . . . . .
        auditor  x x . . . . . . . . x x . . . . .
        operator x x x . . x x x x x x . x x . . .
        admin    x x x x x x x x x x x x x x x x x
    ";

    #[test]
    fn roles_have_the_privileges_of_the_matrix() {
        for row in MATRIX.trim().lines() {
            let mut words = row.split_whitespace();
            let role = Role::from_name(words.next().unwrap()).unwrap();
            let has: Vec<_> = Privilege::ALL.iter().map(|it| it.roles().contains(&role)).collect();
            let expected: Vec<_> = words.map(|word| word == "x").collect();
            assert_eq!(has, expected, "{role:?}");
        }
    }
}
