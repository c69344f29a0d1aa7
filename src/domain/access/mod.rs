//! Access: what a token of the API grants, and which operations a role may call.

mod privilege;

pub(crate) use privilege::{Privilege, Reach};

use std::sync::Arc;

use uuid::Uuid;

use super::{
    clock::Timestamp,
    ids::{InstallationId, UserId, WorkspaceId, WorkspaceKey},
    limits::UseLimits,
    words::words,
};

words! {
    /// The role of a token. [`Privilege::roles`] has what each may do.
    Role {
        /// Reads sessions, workspaces, routes and notifications.
        Reader = "reader",
        /// Reads and uses sessions, and rolls workspaces back.
        User = "user",
        /// Reads the audit; no transcripts.
        Auditor = "auditor",
        /// Changes routes, limits and migrations, and reads alerts and the audit; no transcripts.
        Operator = "operator",
        /// May do everything, tokens and erasure included.
        Admin = "admin",
    }
}

/// The subject of `server.token`.
pub(crate) const SERVER_SUBJECT: &str = "server";

/// The subject of every caller while `server.token` is `none`.
pub(crate) const ANONYMOUS_SUBJECT: &str = "anonymous";

/// Subjects that no token gets: actors of the audit that are no holders of tokens.
pub(crate) const RESERVED_SUBJECTS: [&str; 3] = [SERVER_SUBJECT, ANONYMOUS_SUBJECT, "lumilink"];

/// The rows that a token reaches. Absent parts do not limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Scope {
    /// The only tenant; absent for tokens of the whole service.
    pub tenant: Option<InstallationId>,
    /// The only workspace of the tenant.
    pub workspace: Option<WorkspaceId>,
    /// The only user of the tenant.
    pub user: Option<UserId>,
}

impl Scope {
    /// The widest operations that the scope allows.
    pub(crate) fn reach(&self) -> Reach {
        match (&self.tenant, self.workspace.is_some() || self.user.is_some()) {
            (_, true) => Reach::Part,
            (Some(_), false) => Reach::Tenant,
            (None, false) => Reach::Service,
        }
    }

    /// True if everything that `other` reaches is within this scope.
    pub(crate) fn includes(&self, other: &Self) -> bool {
        fn within<T: PartialEq>(own: Option<&T>, other: Option<&T>) -> bool {
            own.is_none_or(|own| other == Some(own))
        }
        within(self.tenant.as_ref(), other.tenant.as_ref())
            && within(self.workspace.as_ref(), other.workspace.as_ref())
            && within(self.user.as_ref(), other.user.as_ref())
    }
}

/// A name outside the scope of a caller. It is answered like one that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutOfScope;

/// The rights that a token grants.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    /// Id of the token; absent for `server.token` and without one.
    pub token_id: Option<Uuid>,
    pub scope: Scope,
    pub role: Role,
    /// Limits of its use.
    pub limits: UseLimits,
    /// The person or program that holds the token: the actor of its changes in the audit.
    pub subject: String,
    /// When the token expires.
    pub expires: Option<Timestamp>,
}

/// The use of a token that has limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LimitedUse {
    pub token_id: Uuid,
    pub limits: UseLimits,
}

/// The caller of an operation, as its token identifies it. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller(Arc<Grant>);

impl Caller {
    pub(crate) fn new(grant: Grant) -> Self {
        Self(Arc::new(grant))
    }

    /// The holder of `server.token`, who may do everything.
    pub(crate) fn of_server() -> Self {
        Self::of_everything(SERVER_SUBJECT)
    }

    /// Every caller while `server.token` is `none`.
    pub(crate) fn anonymous() -> Self {
        Self::of_everything(ANONYMOUS_SUBJECT)
    }

    fn of_everything(subject: &str) -> Self {
        let (scope, role) = (Scope::default(), Role::Admin);
        let limits = UseLimits::default();
        Self::new(Grant { token_id: None, scope, role, limits, subject: subject.to_owned(), expires: None })
    }

    pub(crate) fn grant(&self) -> &Grant {
        &self.0
    }

    pub(crate) fn subject(&self) -> &str {
        &self.0.subject
    }

    pub(crate) fn role(&self) -> Role {
        self.0.role
    }

    pub(crate) fn scope(&self) -> &Scope {
        &self.0.scope
    }

    /// The token with its limits; `None` if it has none.
    pub(crate) fn limited_use(&self) -> Option<LimitedUse> {
        let Grant { token_id, limits, .. } = *self.0;
        token_id.filter(|_| limits != UseLimits::default()).map(|token_id| LimitedUse { token_id, limits })
    }

    /// True if role and scope allow an operation.
    pub(crate) fn may(&self, privilege: Privilege) -> bool {
        privilege.roles().contains(&self.role()) && self.scope().reach() >= privilege.reach()
    }

    /// The tenant of a request that names one, or none.
    ///
    /// # Errors
    /// The request names another tenant than that of the token.
    pub(crate) fn tenant(&self, named: Option<InstallationId>) -> Result<Option<InstallationId>, OutOfScope> {
        own_or_named(self.scope().tenant.as_ref(), named)
    }

    /// The workspace of a request that names one, or none.
    ///
    /// # Errors
    /// The request names another workspace than that of the token.
    pub(crate) fn workspace(&self, named: Option<WorkspaceId>) -> Result<Option<WorkspaceId>, OutOfScope> {
        own_or_named(self.scope().workspace.as_ref(), named)
    }

    /// The user of a request that names one, or none.
    ///
    /// # Errors
    /// The request names another user than that of the token.
    pub(crate) fn user(&self, named: Option<UserId>) -> Result<Option<UserId>, OutOfScope> {
        own_or_named(self.scope().user.as_ref(), named)
    }

    /// True if the scope is not limited to a tenant. Only such callers get facts that are of all tenants together.
    pub(crate) fn is_of_service(&self) -> bool {
        self.scope().tenant.is_none()
    }

    /// True if a workspace is in the scope.
    pub(crate) fn reaches_workspace(&self, key: &WorkspaceKey) -> bool {
        let Scope { tenant, workspace, user: _ } = self.scope();
        tenant.as_ref().is_none_or(|own| *own == key.installation_id)
            && workspace.as_ref().is_none_or(|own| *own == key.workspace_id)
    }

    /// True if a session is in the scope: one of `user` in the workspace `key`.
    pub(crate) fn reaches_session(&self, key: &WorkspaceKey, user: Option<&UserId>) -> bool {
        self.reaches_workspace(key) && self.scope().user.as_ref().is_none_or(|own| user == Some(own))
    }
}

fn own_or_named<T: Clone + PartialEq>(own: Option<&T>, named: Option<T>) -> Result<Option<T>, OutOfScope> {
    match (own, named) {
        (Some(own), Some(named)) if *own != named => Err(OutOfScope),
        (Some(own), _) => Ok(Some(own.clone())),
        (None, named) => Ok(named),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(tenant: Option<&str>, workspace: Option<&str>, user: Option<&str>, role: Role) -> Caller {
        let scope = Scope {
            tenant: tenant.map(|it| it.parse().unwrap()),
            workspace: workspace.map(|it| it.parse().unwrap()),
            user: user.map(|it| it.parse().unwrap()),
        };
        let limits = UseLimits::default();
        Caller::new(Grant { token_id: None, scope, role, limits, subject: "ann".into(), expires: None })
    }

    fn key(tenant: &str, workspace: &str) -> WorkspaceKey {
        WorkspaceKey { installation_id: tenant.parse().unwrap(), workspace_id: workspace.parse().unwrap() }
    }

    #[test]
    fn rows_of_other_tenants_workspaces_and_users_are_out_of_scope() {
        let ann = "ann".parse().unwrap();
        let (of_a, of_b) = (key("a", "ws"), key("b", "ws"));
        let tenant = caller(Some("a"), None, None, Role::User);
        assert!(tenant.reaches_session(&of_a, Some(&ann)) && tenant.reaches_session(&of_a, None));
        assert!(!tenant.reaches_session(&of_b, Some(&ann)) && !tenant.reaches_workspace(&of_b));
        let workspace = caller(Some("a"), Some("ws"), None, Role::User);
        assert!(workspace.reaches_workspace(&of_a) && !workspace.reaches_workspace(&key("a", "other")));
        let user = caller(Some("a"), None, Some("ann"), Role::User);
        assert!(user.reaches_session(&of_a, Some(&ann)));
        assert!(!user.reaches_session(&of_a, None) && !user.reaches_session(&of_a, Some(&"bob".parse().unwrap())));
        assert!(Caller::of_server().reaches_session(&of_b, None));
    }

    #[test]
    fn request_names_the_scope_of_the_token_or_nothing() {
        let of = |text: &str| -> InstallationId { text.parse().unwrap() };
        let tenant = caller(Some("a"), None, None, Role::User);
        assert_eq!(tenant.tenant(None), Ok(Some(of("a"))));
        assert_eq!(tenant.tenant(Some(of("a"))), Ok(Some(of("a"))));
        assert_eq!(tenant.tenant(Some(of("b"))), Err(OutOfScope));
        assert_eq!(Caller::of_server().tenant(Some(of("b"))), Ok(Some(of("b"))));
        assert_eq!(Caller::of_server().tenant(None), Ok(None));
    }

    #[test]
    fn limited_scope_excludes_operations_of_the_whole_tenant_and_service() {
        let operator = |tenant, workspace| caller(tenant, workspace, None, Role::Operator);
        assert!(operator(None, None).may(Privilege::ChangeTenants));
        assert!(!operator(Some("a"), None).may(Privilege::ChangeTenants));
        assert!(operator(Some("a"), None).may(Privilege::ChangeFleet));
        assert!(!operator(Some("a"), Some("ws")).may(Privilege::ChangeFleet));
        assert!(operator(Some("a"), Some("ws")).may(Privilege::ChangeRoutes));
        assert!(!operator(None, None).may(Privilege::UseSessions));
    }

    #[test]
    fn scope_includes_only_narrower_scopes() {
        let scope = |tenant, workspace, user| caller(tenant, workspace, user, Role::Admin).scope().clone();
        let tenant = scope(Some("a"), None, None);
        assert!(Scope::default().includes(&tenant) && !tenant.includes(&Scope::default()));
        assert!(tenant.includes(&tenant) && tenant.includes(&scope(Some("a"), Some("ws"), Some("ann"))));
        assert!(!tenant.includes(&scope(Some("b"), None, None)));
        assert!(!scope(Some("a"), Some("ws"), None).includes(&tenant));
        assert!(!scope(Some("a"), None, Some("ann")).includes(&scope(Some("a"), None, Some("bob"))));
    }
}
