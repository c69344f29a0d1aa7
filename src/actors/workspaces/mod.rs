//! Directory of workspaces: finds live sessions by id, and opens, loads and closes sessions.
//!
//! A handle, not an actor: finding a session costs no hop. Starts, ends and restarts go through the supervisor of the
//! workspace.

pub(crate) mod liveness;
mod loading;
pub(crate) mod once;
pub(crate) mod open;
mod opening;
pub(crate) mod supervisor;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use actix::{Actor, Addr, Message, Recipient};
use parking_lot::Mutex;

use self::{
    loading::Loading,
    open::{OpenSession, Placing},
    supervisor::{Release, WorkspaceSupervisor},
};
use super::{
    handles::{
        capacity_guard::{CapacityGuard, Permit},
        event_feed::EventFeed,
        folder_use::{FolderGuard, own_reference},
        index::{LiveSession, Mailbox},
        messages::{Adopted, CancelTurn, ChangeServers, CloseSession, DrainSessions, Past, StartSession},
        preparing::StopPreparing,
        session::{SessionSpec, SharedPolicy, SharedServers},
        single_flight::SingleFlight,
    },
    routing::WorkspaceRouting,
    services::Services,
    session::adoption::{self, Found, kept_connection},
};
use crate::{
    contract::runtime::{DiffWorkspace, PreparedWorkspace, RemoveWorkspace, WorkspaceDiff},
    domain::{
        ids::{InstallationId, SessionId, WorkspaceKey},
        migration::FleetHealth,
        redaction::RedactedJson,
        routing::{Route, turn_route::RouteState},
        session::{
            choices::{Chosen, Offers},
            lifecycle::SessionState,
            mcp::McpServers,
        },
        turn::{
            CancelCause,
            outcome::{ErrorCode, Failure},
        },
    },
    store::{self, Idempotency, SessionChange, SessionKey, SessionRow, WorkspaceRow},
    transport::{AgentFacts, http::client::WorkspaceClient},
};

/// Number of supervisors at which those without live sessions are released at once, and not only after
/// `supervision.idle_workspace_s`. Each takes a few kilobytes; the number exceeds the default number of session seats.
const MAX_SUPERVISORS: usize = 4096;
/// Time that a caller waits for a restarting session before it must retry.
const RESTART_WAIT: Duration = Duration::from_secs(10);

/// The directory. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Workspaces(Arc<Inner>);

struct Inner {
    services: Arc<Services>,
    workspace_client: WorkspaceClient,
    capacity: CapacityGuard,
    supervisors: Mutex<HashMap<WorkspaceKey, Supervised>>,
    /// Workspaces that are being restored, so that each gets only one router.
    starting: SingleFlight<WorkspaceKey>,
    /// Keys with which a session is being opened, by tenant, so that each opens only one.
    opening: SingleFlight<(InstallationId, String)>,
}

#[derive(Clone)]
struct Supervised {
    supervisor: Addr<WorkspaceSupervisor>,
    policy: SharedPolicy,
    routing: WorkspaceRouting,
}

/// A session that is ready for prompts.
#[derive(Clone)]
pub(crate) struct ReadySession {
    pub session_id: SessionId,
    pub workspace: WorkspaceKey,
    /// Working folder of the agent.
    pub path: String,
    /// True if the folder is removed with the session.
    pub is_ephemeral: bool,
    /// True if no other session uses the folder.
    pub is_isolated: bool,
    /// Facts from the agent's handshake.
    pub facts: Arc<AgentFacts>,
    /// Modes, models and options as they are now.
    pub offers: Offers,
    pub protocol: Route,
    /// MCP servers without their secrets.
    pub mcp_servers: RedactedJson,
    /// Names of the MCP servers that the agent lacks because their secrets are lost.
    pub lost_servers: Vec<String>,
}

/// MCP servers without their secrets, and names of those whose secrets are lost.
type ShownServers = (RedactedJson, Vec<String>);

/// The servers of a session that is loaded.
fn shown(row: &SessionRow, given: Option<&McpServers>, servers: &McpServers) -> ShownServers {
    let kept = || RedactedJson::from_kept(row.mcp_servers.clone()).unwrap_or_else(|| servers.without_secrets());
    (given.map_or_else(kept, McpServers::without_secrets), servers.lost().to_vec())
}

fn closed_meanwhile() -> Failure {
    Failure::new(ErrorCode::SessionClosed, "the session was closed while it was being loaded")
}

/// An `Idempotency-Key`, with which a session is opened once.
#[derive(Clone)]
pub(crate) struct OpenOnce {
    pub idempotency: Idempotency,
    /// Makes the answer that every request with the key gets, if the caller waits.
    pub answer_of: fn(&ReadySession) -> RedactedJson,
    /// True to answer before the session is ready.
    pub is_async: bool,
}

impl OpenOnce {
    /// The key, bound to an answer.
    fn key_with(&self, answer: RedactedJson) -> SessionKey {
        let Idempotency { key, body_hash } = self.idempotency.clone();
        SessionKey { key, body_hash, answer }
    }
}

impl Workspaces {
    /// Creates a directory without supervisors; each supervisor runs on the thread that opens its workspace.
    pub(crate) fn new(services: Arc<Services>, workspace_client: WorkspaceClient, capacity: CapacityGuard) -> Self {
        let (supervisors, starting, opening) = Default::default();
        Self(Arc::new(Inner { services, workspace_client, capacity, supervisors, starting, opening }))
    }

    pub(crate) fn services(&self) -> &Arc<Services> {
        &self.0.services
    }

    pub(crate) fn capacity(&self) -> &CapacityGuard {
        &self.0.capacity
    }

    /// Client for the runtime's workspaces and status.
    pub(crate) fn workspace_client(&self) -> &WorkspaceClient {
        &self.0.workspace_client
    }

    /// Fails with `draining` while the service is shutting down, and with `database_unavailable` while another supervisor
    /// may take over the database.
    pub(crate) fn admission(&self) -> Result<(), Failure> {
        if self.0.services.is_draining() {
            return Err(Failure::new(ErrorCode::Draining, "the service is shutting down"));
        }
        self.0.services.membership.admission()
    }

    /// Takes a seat for a new session, within the ceilings and limits of its tenant, and those of the token that opens it.
    fn admit(&self, request: &OpenSession) -> Result<Permit, Failure> {
        let (services, tenant, limited) = (self.services(), &request.workspace.installation_id, request.limited);
        services.check_choices(tenant, &request.choices())?;
        let limits = services.tenant_settings(tenant).limits;
        let used = services.tenant_use.admit_session(tenant, &limits, services.clock.now());
        let used = used.map_err(|figures| Failure::limit_reached("the tenant", figures))?;
        let now = services.clock.now();
        let of_token = limited.map(|it| services.token_use.admit_session(&it.token_id, &it.limits, now));
        let of_token = of_token.transpose().map_err(|figures| Failure::limit_reached("the token", figures))?;
        Ok(self.0.capacity.admit(tenant)?.counted(used).counted_for(of_token))
    }

    /// Takes a seat for a session that was admitted before, and counts it for its tenant and the token that opened it.
    /// Never refused.
    fn admit_returning(&self, row: &SessionRow) -> Permit {
        let (services, tenant) = (&self.0.services, &row.key.installation_id);
        let now = services.clock.now();
        let used = services.tenant_use.admit_returning_session(tenant, now);
        let of_token = row.limited_token.map(|token_id| services.token_use.admit_returning_session(&token_id, now));
        self.0.capacity.admit_returning(tenant).counted(used).counted_for(of_token)
    }

    /// Removes the folder of an isolated session that could not be opened. One that cannot be removed is logged.
    async fn drop_folder(&self, session_id: SessionId) {
        let request = RemoveWorkspace { workspace: own_reference(session_id), erase: false };
        if let Err(cause) = self.workspace_client().remove(&request).await {
            tracing::warn!(marker = "[ACP]", %session_id, %cause, "folder of a session that did not start was left");
        }
    }

    /// Ends a session whose row could not be written, and releases the key with which it was opened.
    async fn abandon(
        &self,
        supervised: &Supervised,
        session_id: SessionId,
        tenant: &InstallationId,
        once: Option<&OpenOnce>,
    ) {
        // A session without a row could not be loaded or recovered, so its agent must not survive.
        let _ = supervised.supervisor.send(CloseSession { session_id }).await;
        if let Some(once) = once {
            // Fails only if the queue is full or closed; the key then expires.
            let _ = self.0.services.store.try_release_key(tenant, once.idempotency.key.clone(), session_id);
        }
    }

    /// Checks that a session can be loaded; returns the MCP servers that it gets.
    fn admit_load(&self, row: &SessionRow, given: Option<&McpServers>) -> Result<McpServers, Failure> {
        self.admission()?;
        row.state
            .admits_load()
            .map_err(|code| Failure::new(code, format!("the session is {}", row.state.as_str())))?;
        let servers = given.cloned().unwrap_or_else(|| self.servers_of(row));
        // Also those of before: a ceiling applies from the next start of an agent on.
        self.services().check_choices(&row.key.installation_id, &open::choices_of(row, &servers))?;
        Ok(servers)
    }

    /// Loads a session that is not live; returns the facts of one that is. `given` replaces the session's MCP servers: one
    /// that is live gets a fresh agent if they differ.
    pub(crate) async fn load(&self, row: &SessionRow, given: Option<McpServers>) -> Result<ReadySession, Failure> {
        let settled = self.after_its_end(row).await?;
        let row = settled.as_ref().unwrap_or(row);
        let loading = Loading::new(self.services(), row);
        let loaded = self.load_with(row, given, &loading).await;
        if let Err(failure) = &loaded {
            loading.fail(failure).await;
        }
        loaded
    }

    /// The row of a session whose actor has just ended, once it is written; `None` for any other session. Until then the
    /// index has the session, whose agent has exited.
    async fn after_its_end(&self, row: &SessionRow) -> Result<Option<SessionRow>, Failure> {
        let ended = |live: &Arc<LiveSession>| !live.shared.view().state.is_live();
        let Some(live) = self.live(row.session_id).filter(ended) else { return Ok(None) };
        let mut mailbox = live.mailbox.clone();
        let forgotten = async { while mailbox.changed().await.is_ok() {} };
        if tokio::time::timeout(RESTART_WAIT, forgotten).await.is_err() {
            let detail = "the session has just ended, and its end is not written yet";
            return Err(Failure::new(ErrorCode::DatabaseUnavailable, detail));
        }
        let written = self.0.services.store.session(row.session_id).await;
        written.map_err(|cause| store::failure(&cause))
    }

    async fn load_with(
        &self,
        row: &SessionRow,
        given: Option<McpServers>,
        loading: &Loading<'_>,
    ) -> Result<ReadySession, Failure> {
        let servers = self.admit_load(row, given.as_ref())?;
        if let Some(live) = self.live(row.session_id)
            && let Some(ready) = self.load_live(&live, row, given.as_ref()).await?
        {
            return Ok(ready);
        }
        let services = &self.0.services;
        let workspace = services.store.workspace(row.key.clone()).await.map_err(|cause| store::failure(&cause))?;
        let workspace =
            workspace.ok_or_else(|| Failure::new(ErrorCode::NotFound, "the session's workspace no longer exists"))?;
        // Never refused: the session was admitted when it was opened.
        let seat = self.admit_returning(row);
        let _folder = services.folders.open(&row.key).await?;
        let _own_folder = self.hold_own_folder(row).await?;
        // Since the row was read; after the folder is held, because an erasure that begins now waits for it.
        if services.store.erasures().hides(&row.key, row.session_id) {
            return Err(Failure::new(ErrorCode::NotFound, format!("no session {}", row.session_id)));
        }
        let prepared = loading.prepare(self.workspace_client(), &workspace).await?;
        let adopted = match services.left.take(row.session_id) {
            Some(left) => adoption::find_idle(services, &left).await,
            None => None,
        };
        // An agent that is not adopted ends here, before another one needs its seat in the runtime: it has the servers of
        // the earlier process.
        let adopted = adopted.filter(|_| given.is_none()).map(Box::new);
        let is_adopted = adopted.is_some();
        let shown = shown(row, given.as_ref(), &servers);
        let (supervised, spec) = self.place(&workspace, &prepared, Placing::again(row, servers)).await?;
        let past = self.past_of(row, loading.feed()).await?;
        let facts = start(&supervised, spec, past, seat, adopted).await?;
        self.mark_stored(row.session_id);
        if let Some(given) = &given {
            services.given_servers.keep(row.session_id, given);
        }
        let protocol = self.carrier_of(row.session_id);
        // The first agent of a session that could not be prepared before.
        let is_first = row.agent_facts.is_none();
        let offers = is_first.then(|| self.chosen(row.session_id).offers().clone());
        let change = SessionChange {
            state: Some(SessionState::Idle),
            protocol: is_first.then_some(protocol),
            agent_facts: offers.map(|offers| facts.for_row(&offers)),
            mcp_servers: given.as_ref().map(McpServers::without_secrets),
            agent_session_id: kept_session(&facts, protocol),
            protocol_version: facts.protocol_version,
            // The row of an adopted agent names its connection, and what was received over it.
            connection: (protocol == Route::Acp && !is_adopted).then(|| kept_connection(&facts)),
            folder_path: row.own_folder.is_some().then(|| prepared.path.clone()),
            last_used: Some(services.clock.now()),
            ..SessionChange::new(row.session_id)
        };
        if !services.store.update_session(change).await.map_err(|cause| store::failure(&cause))? {
            // Closed since `row` was read.
            let _ = supervised.supervisor.send(CloseSession { session_id: row.session_id }).await;
            return Err(closed_meanwhile());
        }
        let kind = (protocol, row.own_folder.is_some());
        Ok(self.ready(row.session_id, row.key.clone(), prepared, facts, kind, shown))
    }

    /// The state from which a session continues. `feed` has the events of its load.
    async fn past_of(&self, row: &SessionRow, feed: Option<EventFeed>) -> Result<Past, Failure> {
        let transcript_bytes = self.0.services.store.transcript_bytes(row.session_id).await;
        Ok(Past {
            transcript_bytes: transcript_bytes.map_err(|cause| store::failure(&cause))?,
            agent_session_id: row.agent_session_id.clone(),
            last_event_id: row.next_event_after(),
            restarts: row.restarts,
            chosen: Chosen::of_row(row.choices.clone(), row.agent_facts.as_deref()),
            is_stored: true,
            feed,
        })
    }

    /// Holds the folder of an isolated session, so that it is not removed meanwhile.
    ///
    /// # Errors
    /// `session_closed` if the session was closed since its row was read: the folder may be gone for good.
    async fn hold_own_folder(&self, row: &SessionRow) -> Result<Option<FolderGuard<SessionId>>, Failure> {
        if row.own_folder.is_none() {
            return Ok(None);
        }
        let services = &self.0.services;
        let guard = services.session_folders.open(&row.session_id).await?;
        let now = services.store.session(row.session_id).await.map_err(|cause| store::failure(&cause))?;
        match now {
            Some(now) if now.state.admits_load().is_ok() => Ok(Some(guard)),
            _ => Err(closed_meanwhile()),
        }
    }

    /// Returns the facts of a live session, and gives it other MCP servers if there are any; `None` if the session is not
    /// live any more.
    async fn load_live(
        &self,
        live: &LiveSession,
        row: &SessionRow,
        given: Option<&McpServers>,
    ) -> Result<Option<ReadySession>, Failure> {
        let spec = live.shared.spec.clone();
        let mut facts = live.shared.view().facts.clone();
        if let Some(given) = given {
            let make = |_| ChangeServers(given.clone());
            let Some(changed) = self.ask(live, |it| it.change_servers.clone(), make).await else { return Ok(None) };
            let changed = changed?;
            // Also after a failure: the session has the servers from now on.
            let connection = changed.facts.as_ref().ok().filter(|_| changed.is_fresh);
            let connection = connection.filter(|_| live.shared.view().carrier == Route::Acp);
            let change = SessionChange {
                mcp_servers: Some(given.without_secrets()),
                agent_session_id: connection.map(|facts| facts.agent_session_id.clone()),
                connection: connection.map(|facts| kept_connection(facts)),
                ..SessionChange::new(row.session_id)
            };
            let written = self.0.services.store.update_session(change).await;
            if !written.map_err(|cause| store::failure(&cause))? {
                return Err(closed_meanwhile());
            }
            facts = Some(changed.facts?);
        }
        let Some(facts) = facts else { return Ok(None) };
        let (path, is_ephemeral) = (spec.cwd.clone(), spec.is_ephemeral);
        let prepared = PreparedWorkspace { path, is_ephemeral, has_oneshot: spec.has_oneshot };
        let protocol = live.shared.view().carrier;
        let shown = shown(row, given, &spec.mcp_servers.get());
        Ok(Some(self.ready(row.session_id, row.key.clone(), prepared, facts, (protocol, spec.is_isolated), shown)))
    }

    /// The MCP servers for the next start of a session: as they were given to this process, else those of its row.
    fn servers_of(&self, row: &SessionRow) -> McpServers {
        self.0.services.given_servers.of(row.session_id).unwrap_or_else(|| McpServers::of_row(&row.mcp_servers))
    }

    /// Names of the MCP servers that the next agent of a session will lack because their secrets are lost.
    pub(crate) fn lost_servers(&self, row: &SessionRow) -> Vec<String> {
        match self.live(row.session_id) {
            Some(live) => live.shared.spec.mcp_servers.get().lost().to_vec(),
            None if self.0.services.given_servers.has(row.session_id) => Vec::new(),
            None => McpServers::of_row(&row.mcp_servers).lost().to_vec(),
        }
    }

    /// Resumes a turn whose agent was adopted. A failure leaves the turn open and ends its agent.
    pub(crate) async fn resume(&self, found: Found) -> Result<(), Failure> {
        let Found { adopted, session } = found;
        let services = &self.0.services;
        let workspace =
            services.store.workspace(session.key.clone()).await.map_err(|cause| store::failure(&cause))?;
        let workspace =
            workspace.ok_or_else(|| Failure::new(ErrorCode::NotFound, "the session's workspace no longer exists"))?;
        let token = services.given_tokens.of(session.session_id.0);
        let prepared =
            open::prepare(services, self.workspace_client(), &workspace, Some(&session), token, &|_| ()).await?;
        let servers = self.servers_of(&session);
        let seat = self.admit_returning(&session);
        let (supervised, spec) = self.place(&workspace, &prepared, Placing::again(&session, servers)).await?;
        let past = self.past_of(&session, None).await?;
        start(&supervised, spec, past, seat, Some(Box::new(adopted))).await?;
        self.mark_stored(session.session_id);
        Ok(())
    }

    /// Returns the live session with this id.
    pub(crate) fn live(&self, id: SessionId) -> Option<Arc<LiveSession>> {
        self.0.services.index.get(id)
    }

    /// Sends a message to a session; while the session restarts, waits up to 10 s for its fresh actor. `make` creates
    /// the message of each try and gets `true` for a repeat: a message that was lost with a dying actor may have taken
    /// effect. `None` if the session is no longer live or the wait is over.
    pub(crate) async fn ask<M>(
        &self,
        live: &LiveSession,
        taker: impl Fn(&Mailbox) -> Recipient<M>,
        make: impl Fn(bool) -> M,
    ) -> Option<M::Result>
    where
        M: Message + Send,
        M::Result: Send,
    {
        let mut mailbox = live.mailbox.clone();
        let asking = async {
            let mut again = false;
            loop {
                let now = taker(&mailbox.borrow_and_update());
                if let Ok(answer) = now.send(make(again)).await {
                    return Some(answer);
                }
                // The actor died with the message in its mailbox, or while handling it.
                again = true;
                if mailbox.changed().await.is_err() {
                    return None;
                }
            }
        };
        tokio::time::timeout(RESTART_WAIT, asking).await.ok().flatten()
    }

    /// Closes a session for good, whether it is live or not. Automation of an isolated session continues until it has
    /// delivered or kept the changes: the folder that has them is removed afterwards.
    ///
    /// # Errors
    /// The close could not be written. A retry is safe.
    pub(crate) async fn close(&self, id: SessionId) -> Result<(), Failure> {
        let services = &self.0.services;
        if let Some(preparing) = services.preparing.get(id) {
            preparing.stop(StopPreparing::Close).await;
        }
        let is_isolated = match self.live(id) {
            Some(live) => live.shared.spec.is_isolated,
            None => {
                let row = services.store.session(id).await.map_err(|cause| store::failure(&cause))?;
                row.is_some_and(|row| row.own_folder.is_some())
            }
        };
        match services.closing.get(id) {
            Some(turn) if is_isolated => turn.ends_within(services.settings.cancel_grace).await,
            Some(turn) => turn.cancel_after(services.settings.cancel_grace).await,
            None => {}
        }
        self.close_now(id).await?;
        if is_isolated {
            services.session_folders.offer();
        }
        Ok(())
    }

    /// Closes a session for good, and cancels its automation after the running step.
    ///
    /// # Errors
    /// As [`Self::close`].
    pub(crate) async fn close_with_automation(&self, id: SessionId) -> Result<(), Failure> {
        if let Some(preparing) = self.0.services.preparing.get(id) {
            preparing.stop(StopPreparing::Close).await;
        }
        if let Some(turn) = self.0.services.closing.get(id) {
            turn.cancel_after(self.0.services.settings.cancel_grace).await;
        }
        self.close_now(id).await
    }

    async fn close_now(&self, id: SessionId) -> Result<(), Failure> {
        if self.close_live(id).await? {
            self.0.services.given_servers.drop_of(id);
            self.0.services.given_tokens.drop_of(id.0);
            return Ok(());
        }
        self.0.services.given_servers.drop_of(id);
        self.0.services.given_tokens.drop_of(id.0);
        let change = SessionChange { state: Some(SessionState::Closed), ..SessionChange::new(id) };
        self.0.services.store.update_session(change).await.map_err(|cause| store::failure(&cause))?;
        // A load may have started the session meanwhile.
        self.close_live(id).await.map(drop)
    }

    async fn close_live(&self, id: SessionId) -> Result<bool, Failure> {
        match self.live(id) {
            Some(live) => live.supervisor.send(CloseSession { session_id: id }).await.unwrap_or(Ok(false)),
            None => Ok(false),
        }
    }

    /// Returns the changes in a session's folder.
    pub(crate) async fn diff(&self, row: &WorkspaceRow, session: &SessionRow) -> Result<WorkspaceDiff, Failure> {
        let workspace = open::reference(self.services(), row, Some(session));
        self.0.workspace_client.diff(&DiffWorkspace { workspace }).await
    }

    fn mark_stored(&self, id: SessionId) {
        if let Some(live) = self.live(id) {
            live.shared.mark_stored();
        }
    }

    /// Returns the mode, model and options of a live session.
    fn chosen(&self, id: SessionId) -> Chosen {
        self.live(id).map(|live| live.shared.view().chosen.clone()).unwrap_or_default()
    }

    fn ready(
        &self,
        session_id: SessionId,
        workspace: WorkspaceKey,
        prepared: PreparedWorkspace,
        facts: Arc<AgentFacts>,
        (protocol, is_isolated): (Route, bool),
        (mcp_servers, lost_servers): ShownServers,
    ) -> ReadySession {
        let PreparedWorkspace { path, is_ephemeral, .. } = prepared;
        let offers = self.chosen(session_id).offers().clone();
        ReadySession {
            session_id,
            workspace,
            path,
            is_ephemeral,
            is_isolated,
            facts,
            offers,
            protocol,
            mcp_servers,
            lost_servers,
        }
    }

    /// Returns the carrier of a session that has just started.
    fn carrier_of(&self, id: SessionId) -> Route {
        self.live(id).map_or(Route::Acp, |live| live.shared.view().carrier)
    }

    /// Returns the route of a workspace; restores it from the database if the workspace is not in use.
    pub(crate) async fn routing(&self, key: &WorkspaceKey) -> Result<WorkspaceRouting, Failure> {
        Ok(self.supervised(key).await?.routing)
    }

    /// Returns the supervisor of the workspace, started if necessary, and the spec of a session in it.
    async fn place(
        &self,
        row: &WorkspaceRow,
        prepared: &PreparedWorkspace,
        placing: Placing,
    ) -> Result<(Supervised, Arc<SessionSpec>), Failure> {
        let Placing { session_id, user_id, mode, enable_git_ops, agent, is_isolated, mcp_servers } = placing;
        let policy = self.0.services.policy(&row.key.installation_id, row.permission_policy);
        let supervised = self.supervised(&row.key).await?;
        supervised.policy.set(policy);
        let spec = SessionSpec {
            session_id,
            workspace: row.key.clone(),
            user_id,
            mode,
            enable_git_ops,
            repository: row.repository.clone(),
            agent,
            cwd: prepared.path.clone(),
            is_ephemeral: prepared.is_ephemeral,
            is_isolated,
            mcp_servers: SharedServers::new(mcp_servers),
            policy: supervised.policy.clone(),
            gate: supervised.routing.gate().clone(),
            pace: supervised.routing.pace().clone(),
            has_oneshot: prepared.has_oneshot,
        };
        Ok((supervised, Arc::new(spec)))
    }

    async fn supervised(&self, key: &WorkspaceKey) -> Result<Supervised, Failure> {
        let found = |supervisors: &HashMap<WorkspaceKey, Supervised>| {
            supervisors.get(key).filter(|it| it.supervisor.connected()).cloned()
        };
        let known = found(&self.0.supervisors.lock());
        if let Some(known) = known {
            return Ok(known);
        }
        // The map's lock cannot be held across the read of the route, so the start has a lock of its own and looks
        // again.
        let _only_one = self.0.starting.begin(key).await;
        let known = found(&self.0.supervisors.lock());
        if let Some(known) = known {
            return Ok(known);
        }
        let routing = WorkspaceRouting::start(key.clone(), self.services()).await?;
        let mut supervisors = self.0.supervisors.lock();
        if supervisors.len() >= MAX_SUPERVISORS {
            let live: HashSet<_> =
                self.0.services.index.all().iter().map(|live| live.shared.spec.workspace.clone()).collect();
            // Only workspaces without a session are evicted; their state is on disk.
            supervisors.retain(|key, it| live.contains(key) || !it.is_idle());
        }
        // Runs on the calling HTTP thread: no hop separates a request from its session, and hops dominate the cost of a
        // turn. Requests are spread over the threads, and so are sessions.
        let supervisor = WorkspaceSupervisor::new(key.clone(), self.0.services.clone(), routing.clone())
            .stopping_when_idle(self.release(key.clone(), &routing))
            .start();
        let policy = SharedPolicy::new(self.0.services.settings.default_policy);
        let supervised = Supervised { supervisor, policy, routing };
        supervisors.insert(key.clone(), supervised.clone());
        Ok(supervised)
    }
}

async fn start(
    supervised: &Supervised,
    spec: Arc<SessionSpec>,
    past: Past,
    seat: Permit,
    adopted: Option<Box<Adopted>>,
) -> Result<Arc<AgentFacts>, Failure> {
    let gone = |_| Failure::new(ErrorCode::Internal, "the workspace's supervisor has exited");
    let span = tracing::Span::current();
    supervised.supervisor.send(StartSession { spec, past, seat, adopted, span }).await.map_err(gone)?
}

/// Returns the agent's id of the conversation; `None` over the fallback.
fn kept_session(facts: &AgentFacts, protocol: Route) -> Option<String> {
    (protocol == Route::Acp).then(|| facts.agent_session_id.clone())
}

/// Time for sessions to be persisted at shutdown, added to the cancel grace.
const DRAIN_MARGIN: Duration = Duration::from_secs(3);

impl Workspaces {
    /// Drains: stops admission, lets running turns end until `deadline` passes, cancels the rest, and releases every
    /// agent.
    pub(crate) async fn drain(&self, deadline: impl Future<Output = ()>) {
        // First, so that no turn begins while the running ones are awaited.
        self.0.services.draining.store(true, Ordering::Release);
        let preparing = self.0.services.preparing.all(|_, _| true);
        let stopping = preparing.iter().map(|session| session.stop(StopPreparing::Drain));
        let _ = tokio::time::timeout(DRAIN_MARGIN, futures_util::future::join_all(stopping)).await;
        let mut deadline = std::pin::pin!(deadline);
        let index = &self.0.services.index;
        let mut look = tokio::time::interval(Duration::from_millis(50));
        while index.all().iter().any(|live| live.shared.view().running.is_some()) {
            tokio::select! {
                () = &mut deadline => break,
                _ = look.tick() => {}
            }
        }
        let closing = &self.0.services.closing;
        let with_agent = |live: &Arc<LiveSession>| {
            live.shared.view().running.is_some() && closing.get(live.shared.spec.session_id).is_none()
        };
        let running = index.all().into_iter().filter(with_agent);
        let cancelling = running.map(|live| {
            live.mailbox.borrow().cancel_turn.send(CancelTurn { prompt_id: None, cause: CancelCause::Drain })
        });
        // Concurrently and with a limit: a session that is stuck or waits for the database does not answer.
        let _ = tokio::time::timeout(DRAIN_MARGIN, futures_util::future::join_all(cancelling)).await;
        let supervisors: Vec<_> = {
            let supervisors = self.0.supervisors.lock();
            supervisors.values().map(|it| it.supervisor.clone()).collect()
        };
        // Concurrently: each may take the full cancel grace.
        let draining = supervisors.iter().map(|supervisor| supervisor.send(DrainSessions));
        let draining = futures_util::future::join(futures_util::future::join_all(draining), closing.drain());
        let patience = self.0.services.settings.cancel_grace + DRAIN_MARGIN;
        if tokio::time::timeout(patience, draining).await.is_err() {
            tracing::error!(marker = "[ACP]", "sessions remain after the drain; their agents end with the runtime");
        }
    }
}

/// Holders of an idle routing: the directory and the workspace's supervisor.
const IDLE_HOLDERS: usize = 2;

impl Supervised {
    /// True if nothing but the directory and the supervisor holds the workspace. A caller that is about to use it has
    /// taken its routing under the lock of the directory.
    fn is_idle(&self) -> bool {
        self.routing.holders() <= IDLE_HOLDERS
    }
}

impl Workspaces {
    /// Returns the health of ACP over the workspaces in use.
    pub(crate) fn fleet_health(&self) -> FleetHealth {
        let supervisors = self.0.supervisors.lock();
        let is_rolled_back = |route: RouteState| route.route == Route::Http && route.rollback.is_some();
        FleetHealth {
            is_storm: self.0.services.storm.is_active(),
            in_use: supervisors.len(),
            rolled_back: supervisors.values().filter(|it| is_rolled_back(it.routing.gate().state())).count(),
        }
    }

    /// True if the workspace is in use.
    pub(crate) fn is_in_use(&self, key: &WorkspaceKey) -> bool {
        self.0.supervisors.lock().contains_key(key)
    }

    /// Evicts an idle workspace, so that its next session starts it on the thread that serves the session.
    pub(crate) fn evict(&self, key: &WorkspaceKey) {
        let mut supervisors = self.0.supervisors.lock();
        let is_idle = supervisors.get(key).is_some_and(Supervised::is_idle);
        if is_idle && self.0.services.index.of_workspace(key).is_empty() {
            supervisors.remove(key);
        }
    }

    /// Ends the routing of a workspace without sessions, which is being erased. Its supervisor stops with its idle timer.
    pub(crate) async fn dissolve(&self, key: &WorkspaceKey) {
        let supervised = self.0.supervisors.lock().remove(key);
        if let Some(supervised) = supervised {
            supervised.routing.stop().await;
        }
    }

    /// Fails with `erasing` while the workspace is being erased.
    fn not_erasing(&self, key: &WorkspaceKey) -> Result<(), Failure> {
        if self.0.services.store.erasures().is_erasing(key) {
            return Err(Failure::new(ErrorCode::Erasing, format!("the workspace {key} is being erased")));
        }
        Ok(())
    }

    /// Returns the question of an idle supervisor whether it may stop: it may once its workspace was evicted, which this
    /// tries first.
    fn release(&self, key: WorkspaceKey, routing: &WorkspaceRouting) -> Release {
        let (inner, id) = (Arc::downgrade(&self.0), routing.id());
        Box::new(move || {
            let Some(inner) = inner.upgrade() else { return true };
            let this = Self(inner);
            this.evict(&key);
            let supervisors = this.0.supervisors.lock();
            supervisors.get(&key).is_none_or(|it| it.routing.id() != id)
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
