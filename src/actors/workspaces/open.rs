//! Opens a workspace: finds or creates its row, and has the runtime prepare its folder.

use std::path::Path;

use secrecy::SecretString;
use uuid::Uuid;

use crate::{
    actors::{handles::folder_use::own_reference, services::Services},
    config::DEFAULT_AGENT,
    contract::runtime::{Checkout, PrepareWorkspace, PreparedWorkspace, WorkspaceRef},
    domain::{
        access::LimitedUse,
        automation::{clone_access, trigger},
        ceilings::Choices,
        ids::{FolderId, InstallationId, SessionId, UserId, WorkspaceKey},
        session::{
            lifecycle::SessionMode, mcp::McpServers, permission::PermissionPolicy, preparation::CloneProgress,
        },
        turn::outcome::{ErrorCode, Failure},
    },
    store::{self, NewWorkspace, OwnFolder, SessionRow, WorkspaceRow},
    transport::http::client::WorkspaceClient,
};

/// Request for a new session.
#[derive(Debug, Clone)]
pub(crate) struct OpenSession {
    pub workspace: WorkspaceKey,
    /// User of the session, if known.
    pub user_id: Option<UserId>,
    /// Name of the agent; default: the default agent.
    pub agent: Option<String>,
    pub mode: SessionMode,
    /// True if the session's changes become pull requests.
    pub enable_git_ops: bool,
    /// Repository and branch to check out into a new workspace.
    pub checkout: Option<Checkout>,
    /// An existing folder to use.
    pub path: Option<String>,
    /// True if the folder of a new workspace is to be removed with its last session.
    pub is_ephemeral: Option<bool>,
    /// True for a folder of its own; absent: if its changes become pull requests.
    pub isolate: Option<bool>,
    /// New permission policy of the workspace; unchanged if absent.
    pub permission_policy: Option<PermissionPolicy>,
    pub mcp_servers: McpServers,
    /// True for the session of a delivery of GitHub, whose workspace has a name that callers cannot give to a new one.
    pub is_of_delivery: bool,
    /// GitHub token for the clone and for the automation of the session's turns.
    pub github_token: Option<SecretString>,
    /// Token of the caller, if it has limits.
    pub limited: Option<LimitedUse>,
}

impl OpenSession {
    /// The choices of the caller, for the ceilings.
    pub(crate) fn choices(&self) -> Choices<'_> {
        Choices {
            policy: self.permission_policy,
            agent: self.agent.as_deref().unwrap_or(DEFAULT_AGENT),
            repository: self.checkout.as_ref().map(|it| it.repository.as_str()),
            path: self.path.as_deref(),
            mcp_servers: self.mcp_servers.expose().get(),
        }
    }
}

/// The choices of a session that is loaded with these servers. The runtime checks the folder of its workspace.
pub(crate) fn choices_of<'a>(row: &'a SessionRow, servers: &'a McpServers) -> Choices<'a> {
    Choices { policy: None, agent: &row.agent, repository: None, path: None, mcp_servers: servers.expose().get() }
}

/// The folder of a session that is being opened.
pub(crate) struct Placed {
    pub row: WorkspaceRow,
    pub prepared: PreparedWorkspace,
}

/// The needs of a session that is being opened.
pub(crate) struct Plan {
    /// The workspace, if it exists already.
    found: Option<WorkspaceRow>,
    /// The row of the workspace if it is new.
    new: NewWorkspace,
    /// The branch of the folder that the session gets alone; `None` if it shares that of the workspace.
    own_branch: Option<Option<String>>,
}

impl Plan {
    /// Makes the plan of a request.
    ///
    /// # Errors
    /// `invalid_request` if members exclude each other, or the workspace has another repository or path.
    pub(crate) async fn of(
        services: &Services,
        workspace_client: &WorkspaceClient,
        request: &OpenSession,
    ) -> Result<Self, Failure> {
        let is_ephemeral = request.is_ephemeral.unwrap_or(false);
        if is_ephemeral && request.path.is_some() {
            let detail = "`path` and `ephemeral` exclude each other: a given folder is never removed";
            return Err(Failure::new(ErrorCode::InvalidRequest, detail));
        }
        let found = services.store.workspace(request.workspace.clone()).await;
        let found = found.map_err(|cause| store::failure(&cause))?;
        let own_branch = own_branch(request, found.as_ref())?;
        let mut checkout = request.checkout.clone();
        if trigger::is_reserved(&request.workspace.workspace_id) && !request.is_of_delivery {
            checkout = reserved(services, workspace_client, request, found.as_ref()).await?;
        }
        let new = NewWorkspace {
            key: request.workspace.clone(),
            folder_id: found.as_ref().map_or_else(|| FolderId(Uuid::now_v7()), |row| row.folder_id),
            repository: checkout.as_ref().map(|it| it.repository.clone()),
            branch: checkout.and_then(|it| it.branch),
            path: request.path.clone(),
            permission_policy: request.permission_policy,
            is_ephemeral,
            now: services.clock.now(),
        };
        // One without a folder may still get another repository; it is checked when its row is written.
        if let Some(row) = found.as_ref().filter(|row| row.workspace_path.is_some() || row.removed.is_some()) {
            check_same_folder(services, workspace_client, request, row).await?;
        }
        Ok(Self { found, new, own_branch })
    }

    pub(crate) fn is_isolated(&self) -> bool {
        self.own_branch.is_some()
    }

    /// True if a repository is to be cloned, unless the folder exists although its row does not say so.
    pub(crate) fn needs_clone(&self) -> bool {
        let is_there = |row: &WorkspaceRow| row.workspace_path.is_some() && row.removed.is_none();
        let repository = self.found.as_ref().map_or(&self.new.repository, |row| &row.repository);
        self.is_isolated() || (repository.is_some() && !self.found.as_ref().is_some_and(is_there))
    }

    /// The folder of an isolated session, with its path once it is prepared.
    pub(crate) fn own_folder(&self, path: Option<String>) -> Option<OwnFolder> {
        self.own_branch.clone().map(|branch| OwnFolder { branch, path, removed: None })
    }

    /// Writes the row of the workspace.
    ///
    /// # Errors
    /// `invalid_request` if the workspace has another repository or path, or the database does not answer.
    pub(crate) async fn find_or_create(
        &self,
        services: &Services,
        workspace_client: &WorkspaceClient,
        request: &OpenSession,
    ) -> Result<WorkspaceRow, Failure> {
        let row = services.store.find_or_create_workspace(self.new.clone()).await;
        let row = row.map_err(|cause| store::failure(&cause))?;
        check_same_folder(services, workspace_client, request, &row).await?;
        Ok(row)
    }
}

/// The checkout of a workspace with a reserved name, which stays that of the delivery that opened it, also while it has no
/// folder.
///
/// # Errors
/// `invalid_request` if no delivery has opened it, or the request names another repository or a path.
async fn reserved(
    services: &Services,
    workspace_client: &WorkspaceClient,
    request: &OpenSession,
    found: Option<&WorkspaceRow>,
) -> Result<Option<Checkout>, Failure> {
    let unknown = || {
        let detail = "workspaceId: names that begin with `gh`, digits and a colon are those of workspaces that a label or a \
                      comment at GitHub opens, and this one was not opened; give another name";
        Failure::new(ErrorCode::InvalidRequest, detail)
    };
    let row = found.ok_or_else(unknown)?;
    check_same_folder(services, workspace_client, request, row).await?;
    Ok(row.repository.clone().map(|repository| Checkout { repository, branch: row.branch.clone() }))
}

/// The branch of the folder that a session gets alone: on request, or by default if its changes become pull requests. `None`
/// for a session that shares the folder of the workspace.
///
/// # Errors
/// `invalid_request` if it is wanted without a repository.
fn own_branch(request: &OpenSession, found: Option<&WorkspaceRow>) -> Result<Option<Option<String>>, Failure> {
    let asked = request.checkout.as_ref();
    let has_repository = asked.is_some() || found.is_some_and(|row| row.repository.is_some());
    if request.isolate == Some(true) && !has_repository {
        let detail = "`isolate` needs a `repository`, which is cloned for the session";
        return Err(Failure::new(ErrorCode::InvalidRequest, detail));
    }
    let is_isolated = request.isolate.unwrap_or(request.enable_git_ops && has_repository);
    let of_row = || found.and_then(|row| row.branch.clone());
    Ok(is_isolated.then(|| asked.and_then(|it| it.branch.clone()).or_else(of_row)))
}

/// Prepares the folder of a session. Without `row`, that of the workspace is written afterwards, so that a failure leaves
/// none; if two callers create the same workspace, the second prepares the folder of the first again.
pub(crate) async fn place(
    services: &Services,
    workspace_client: &WorkspaceClient,
    (request, session_id): (&OpenSession, SessionId),
    (plan, row): (&Plan, Option<WorkspaceRow>),
    on_progress: OnProgress<'_>,
) -> Result<Placed, Failure> {
    let first = match (&row, &plan.found) {
        (None, None) => {
            let tenant = &request.workspace.installation_id;
            let workspace = workspace_ref(services, tenant, plan.new.folder_id, request.path.clone());
            let prepare = new_folder(request, workspace, request.checkout.clone());
            Some(prepare_folder(services, workspace_client, prepare, on_progress).await?)
        }
        _ => None,
    };
    let row = match row {
        Some(row) => row,
        // Another caller may have created the workspace meanwhile; its row wins.
        None => plan.find_or_create(services, workspace_client, request).await?,
    };
    let prepared = match (first, &plan.own_branch) {
        (Some(prepared), None) if row.folder_id == plan.new.folder_id => prepared,
        (_, own_branch) => {
            let workspace = match own_branch {
                Some(_) => own_reference(session_id),
                None => workspace_ref(services, &row.key.installation_id, row.folder_id, row.path.clone()),
            };
            let branch = own_branch.clone().unwrap_or_else(|| row.branch.clone());
            let checkout = row.repository.clone().map(|repository| Checkout { repository, branch });
            prepare_folder(services, workspace_client, new_folder(request, workspace, checkout), on_progress).await?
        }
    };
    // The path is the runtime's to choose and changes with its root.
    if plan.own_branch.is_none() && row.workspace_path.as_deref() != Some(&prepared.path) {
        let written = services.store.set_workspace_path(row.key.clone(), prepared.path.clone()).await;
        written.map_err(|cause| store::failure(&cause))?;
    }
    let prepared = PreparedWorkspace { is_ephemeral: row.is_ephemeral, ..prepared };
    Ok(Placed { row, prepared })
}

/// Receives the progress of a clone.
pub(crate) type OnProgress<'a> = &'a (dyn Fn(CloneProgress) + Sync);

fn new_folder(request: &OpenSession, workspace: WorkspaceRef, checkout: Option<Checkout>) -> PrepareWorkspace {
    PrepareWorkspace {
        workspace,
        agent: request.agent.clone(),
        installation_id: Some(request.workspace.installation_id.clone()),
        checkout,
        github_token: request.github_token.clone(),
    }
}

/// Ensures that the folder of a session exists: its own, or that of its workspace without `session`.
pub(crate) async fn prepare(
    services: &Services,
    workspace_client: &WorkspaceClient,
    row: &WorkspaceRow,
    session: Option<&SessionRow>,
    github_token: Option<SecretString>,
    on_progress: OnProgress<'_>,
) -> Result<PreparedWorkspace, Failure> {
    let own = session.and_then(|session| session.own_folder.as_ref());
    let branch = own.map_or(&row.branch, |own| &own.branch).clone();
    let checkout = row.repository.clone().map(|repository| Checkout { repository, branch });
    let installation_id = Some(row.key.installation_id.clone());
    let workspace = reference(services, row, session);
    let prepare = PrepareWorkspace { workspace, agent: None, installation_id, checkout, github_token };
    let prepared = prepare_folder(services, workspace_client, prepare, on_progress).await?;
    Ok(PreparedWorkspace { is_ephemeral: row.is_ephemeral, ..prepared })
}

/// Has the runtime prepare a folder. A clone that lacks access, and for which no token was given, is repeated with a token
/// of the service's own credential: no token is made for a folder that is there, nor for a public repository.
async fn prepare_folder(
    services: &Services,
    workspace_client: &WorkspaceClient,
    prepare: PrepareWorkspace,
    on_progress: OnProgress<'_>,
) -> Result<PreparedWorkspace, Failure> {
    let failure = match workspace_client.prepare(&prepare, on_progress).await {
        Err(failure) if clone_access::is_lacking(&failure) && prepare.github_token.is_none() => failure,
        result => return result,
    };
    let (Some(tenant), Some(checkout)) = (&prepare.installation_id, &prepare.checkout) else { return Err(failure) };
    let token = match &services.automate {
        Some(automate) => automate.clone_token(tenant, &checkout.repository).await,
        None => Ok(None),
    };
    match token {
        Ok(Some(token)) => {
            let prepare = PrepareWorkspace { github_token: Some(token), ..prepare };
            workspace_client.prepare(&prepare, on_progress).await
        }
        Ok(None) => Err(clone_access::with_advice(failure, None)),
        Err(refusal) => Err(clone_access::with_advice(failure, Some(&refusal))),
    }
}

/// Rejects a request whose repository or path differs from that of the existing workspace.
async fn check_same_folder(
    services: &Services,
    workspace_client: &WorkspaceClient,
    request: &OpenSession,
    row: &WorkspaceRow,
) -> Result<(), Failure> {
    let repository = request.checkout.as_ref().map(|it| &it.repository);
    let is_other_repository = repository.is_some() && repository != row.repository.as_ref();
    let is_other_path = match &request.path {
        Some(asked) => !is_path_of(services, workspace_client, asked, request.agent.clone(), row).await?,
        None => false,
    };
    if is_other_repository || is_other_path {
        let detail = format!("the workspace {} already exists with a different repository or path", row.key);
        return Err(Failure::new(ErrorCode::InvalidRequest, detail));
    }
    let has_folder = row.removed.is_none();
    if has_folder && request.is_ephemeral.is_some_and(|asked| asked != row.is_ephemeral) {
        let is = if row.is_ephemeral { "ephemeral" } else { "kept" };
        let detail = format!("the workspace {} already exists and is {is}", row.key);
        return Err(Failure::new(ErrorCode::InvalidRequest, detail));
    }
    Ok(())
}

/// True if `asked` is the folder of a workspace that was opened by `path`, however either is spelled.
async fn is_path_of(
    services: &Services,
    workspace_client: &WorkspaceClient,
    asked: &str,
    agent: Option<String>,
    row: &WorkspaceRow,
) -> Result<bool, Failure> {
    let Some(known) = &row.path else { return Ok(false) };
    // Components ignore repeated and trailing slashes and `.`.
    if Path::new(asked) == Path::new(known) {
        return Ok(true);
    }
    // Only the runtime can resolve links and `..`.
    let workspace = workspace_ref(services, &row.key.installation_id, row.folder_id, Some(asked.to_owned()));
    let installation_id = Some(row.key.installation_id.clone());
    let prepare = PrepareWorkspace { workspace, agent, installation_id, checkout: None, github_token: None };
    let prepared = workspace_client.prepare(&prepare, &|_| ()).await?;
    Ok(row.workspace_path.as_ref() == Some(&prepared.path))
}

/// Reference by which the runtime identifies the folder of a session, with the ceiling of its tenant on paths: its own, or
/// that of the workspace.
pub(crate) fn reference(services: &Services, row: &WorkspaceRow, session: Option<&SessionRow>) -> WorkspaceRef {
    match session {
        Some(session) if session.own_folder.is_some() => own_reference(session.session_id),
        _ => workspace_ref(services, &row.key.installation_id, row.folder_id, row.path.clone()),
    }
}

fn workspace_ref(
    services: &Services,
    tenant: &InstallationId,
    folder_id: FolderId,
    path: Option<String>,
) -> WorkspaceRef {
    let within = path.as_ref().and_then(|_| services.admitted_paths(tenant));
    WorkspaceRef { folder_id, path, within }
}

/// Properties of a session apart from its workspace.
pub(crate) struct Placing {
    pub(crate) session_id: SessionId,
    pub(crate) user_id: Option<UserId>,
    pub(crate) mode: SessionMode,
    pub(crate) enable_git_ops: bool,
    pub(crate) agent: Option<String>,
    pub(crate) is_isolated: bool,
    pub(crate) mcp_servers: McpServers,
}

impl Placing {
    /// Returns the properties of a session that is being opened.
    pub(crate) fn first(request: &OpenSession, session_id: SessionId, is_isolated: bool) -> Self {
        Self {
            session_id,
            user_id: request.user_id.clone(),
            mode: request.mode,
            enable_git_ops: request.enable_git_ops,
            agent: request.agent.clone(),
            is_isolated,
            mcp_servers: request.mcp_servers.clone(),
        }
    }

    /// Returns the properties of a session that is loaded again.
    pub(crate) fn again(row: &SessionRow, mcp_servers: McpServers) -> Self {
        Self {
            session_id: row.session_id,
            user_id: row.user_id.clone(),
            mode: row.mode,
            enable_git_ops: row.enable_git_ops,
            agent: agent_name(&row.agent),
            is_isolated: row.own_folder.is_some(),
            mcp_servers,
        }
    }
}

fn agent_name(kept: &str) -> Option<String> {
    (kept != DEFAULT_AGENT).then(|| kept.to_owned())
}
