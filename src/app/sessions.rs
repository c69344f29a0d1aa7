//! Sessions and workspaces: the services that they share, and the recovery of what the last process left.

use std::{
    future::ready,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use tokio::{sync::watch, task::JoinHandle};

use super::{AppError, automation::GithubKeys, runtime::transports};
use crate::{
    actors::{
        automation::{Automation, Credentials, retries::run_due_attempts},
        handles::{
            agent_handshakes::AgentHandshakes,
            capacity_guard::CapacityGuard,
            client_tokens::ClientTokens,
            closing::ClosingTurns,
            disk_use::DiskUse,
            folder_use::FolderUse,
            given_servers::GivenServers,
            given_tokens::GivenTokens,
            index::SessionIndex,
            left_agents::LeftAgents,
            preparing::PreparingSessions,
            rollback_storm::Storm,
            runtime_availability::RuntimeAvailability,
            session_progress::{self, TelemetrySource},
            tenants::{Tenants, UseGuard},
        },
        services::{Services, SessionSettings},
        session::{
            adoption::{self, Found},
            closing,
        },
        upkeep::capacity::CapacityWatch,
        workspaces::Workspaces,
    },
    cluster::membership::Membership,
    config::Config,
    domain::{clock::Clock, ids::SessionId, session::lifecycle::SessionState, turn::TurnPhase},
    store::{SessionRow, Store, Unfinished},
    telemetry::{DatabaseClock, Metrics},
    transport::{http::client::WorkspaceClient, socket::websocket::Endpoint},
};

/// The workspaces and their sessions.
pub(super) struct SessionsHandle {
    pub workspaces: Workspaces,
    drain_timeout: Duration,
    /// Set to true at the stop.
    stopping: watch::Sender<bool>,
    /// Later attempts of automation.
    attempts: JoinHandle<()>,
}

/// Parts of the sessions that other areas need.
pub(super) struct SessionsStart {
    pub handle: SessionsHandle,
    pub progress: TelemetrySource,
    pub capacity: CapacityWatch,
}

/// Makes the services and workspaces, and recovers what the last process left: turns are resumed where a separate
/// runtime kept their agents, and interrupted otherwise.
pub(super) async fn start_sessions(
    config: &Config,
    store: Store,
    membership: Membership,
    metrics: Metrics,
    endpoint: Endpoint,
    (tokens, can_resume): (ClientTokens, bool),
    github: GithubKeys,
) -> Result<SessionsStart, AppError> {
    let asked = Instant::now();
    let clock: Arc<dyn Clock> = Arc::new(DatabaseClock::anchored(asked, store.time().await?));
    let (telemetry, progress) = session_progress::telemetry(metrics.clone());
    let clone_timeout = Duration::from_secs(config.workspaces.clone_timeout_s);
    let workspace_client = WorkspaceClient::new(&endpoint.url, endpoint.token.clone(), clone_timeout)?;
    let (acp, http) = transports(config, endpoint)?;
    let storm = Storm::recover(store.clone(), metrics.clone(), clock.clone()).await?;
    let tenants = Tenants::recover(&store).await?;
    // Before anything is restored: what is being erased is hidden.
    store.erasures().recover(store.open_erasures().await?);
    let stopping = watch::Sender::new(false);
    let given_tokens = GivenTokens::default();
    let automation = Automation {
        store: store.clone(),
        clock: clock.clone(),
        runtime: workspace_client.clone(),
        settings: Arc::new(config.github.clone()),
        credentials: Credentials::new(github.app, tenants.clone()),
        signing_key: github.signing_key,
        metrics: metrics.clone(),
        given_tokens: given_tokens.clone(),
        stopping: stopping.subscribe(),
    };
    let services = Arc::new(Services {
        runtime: availability(workspace_client.clone(), clock.clone(), metrics.clone()),
        store,
        membership,
        metrics,
        acp: Arc::new(acp),
        http: Arc::new(http),
        clock,
        runtime_client: Some(workspace_client.clone()),
        draining: AtomicBool::new(false),
        index: SessionIndex::default(),
        preparing: PreparingSessions::default(),
        closing: ClosingTurns::default(),
        left: LeftAgents::default(),
        given_servers: GivenServers::default(),
        given_tokens,
        handshakes: AgentHandshakes::default(),
        automate: Some(Arc::new(automation.clone())),
        folders: FolderUse::default(),
        session_folders: FolderUse::default(),
        storm,
        tokens,
        telemetry,
        settings: SessionSettings::new(config),
        tenants,
        tenant_use: UseGuard::default(),
        token_use: UseGuard::default(),
        disk: DiskUse::default(),
    });
    let guard = CapacityGuard::new(config.capacity.rules(), services.metrics.clone());
    let capacity = CapacityWatch::recover(guard.clone(), services.clone()).await?;
    let workspaces = Workspaces::new(services, workspace_client, guard);
    recover(&workspaces, can_resume).await?;
    let drain_timeout = Duration::from_secs(config.drain.timeout_s);
    let attempts = actix::spawn(run_due_attempts(automation));
    let handle = SessionsHandle { workspaces, drain_timeout, stopping, attempts };
    Ok(SessionsStart { handle, progress, capacity })
}

/// Watches whether the runtime answers.
fn availability(client: WorkspaceClient, clock: Arc<dyn Clock>, metrics: Metrics) -> RuntimeAvailability {
    let check = Arc::new(move || -> futures_util::future::BoxFuture<'static, bool> {
        let client = client.clone();
        Box::pin(async move { client.status().await.is_ok() })
    });
    RuntimeAvailability::new(check, clock, metrics)
}

impl SessionsHandle {
    /// Closes admission, lets running turns end until `[drain] timeout_s`, cancels the rest and closes the sessions.
    pub(super) async fn stop(&self) {
        self.stopping.send_replace(true);
        self.workspaces.drain(tokio::time::sleep(self.drain_timeout)).await;
        // What is left of an attempt is taken up by the next start.
        self.attempts.abort();
    }
}

/// Agents without a turn that are adopted concurrently.
const ADOPTIONS_AT_ONCE: usize = 32;
/// Turns that are cancelled at once.
const CANCELS_AT_ONCE: usize = 16;
/// Longest wait for the cancels of all turns; a runtime that does not answer ends them after its own grace.
const CANCEL_WAIT: Duration = Duration::from_secs(5);

/// Stops turns over the fallback that still run in a separate runtime, so that no agent works beside a turn that reads
/// `interrupted`. The route of a turn that fell back is not on disk before its end, so every open turn is named.
async fn stop_fallback_turns(runtime: &WorkspaceClient, turns: &[Unfinished]) {
    let cancels = turns.iter().map(|one| async {
        let prompt_id = one.prompt.prompt_id;
        match runtime.cancel_turn(prompt_id).await {
            Ok(true) => tracing::info!(marker = "[ACP]", %prompt_id, "turn over the fallback is being stopped"),
            Ok(false) => {}
            Err(cause) => tracing::warn!(marker = "[ACP]", %prompt_id, %cause, "turn could not be stopped"),
        }
    });
    let all = stream::iter(cancels).buffer_unordered(CANCELS_AT_ONCE).collect::<()>();
    // A timeout was logged for each turn that it concerns.
    let _ = tokio::time::timeout(CANCEL_WAIT, all).await;
}

/// Finds the agents that the last process left without a running turn. Those that worked in the background are adopted
/// now, and the others by the load of their session. Returns the sessions that continue.
async fn resume_idle(
    workspaces: &Workspaces,
    unfinished: &[Unfinished],
    resumed: &[SessionId],
) -> Result<Vec<SessionId>, AppError> {
    let services = workspaces.services();
    let has_turn = |id: SessionId| unfinished.iter().any(|one| one.session.session_id == id);
    let left = services.store.live_sessions().await?.into_iter().filter(|row| !resumed.contains(&row.session_id));
    // An agent with an unknown prompt is not adopted: the load ends it, so that it does not keep its seat.
    let works = |row: &SessionRow| row.state == SessionState::Background && !has_turn(row.session_id);
    let (working, idle): (Vec<_>, Vec<_>) = left.partition(works);
    let adopting = working.into_iter().map(|session| async {
        let adopted = adoption::find_idle(services, &session).await?;
        let session_id = session.session_id;
        let resumed = workspaces.resume(Found { adopted, session }).await;
        resumed
            .inspect_err(|cause| tracing::warn!(marker = "[ACP]", %session_id, %cause, "agent was not resumed"))
            .ok()?;
        Some(session_id)
    });
    let continuing = stream::iter(adopting).buffer_unordered(ADOPTIONS_AT_ONCE).filter_map(ready).collect().await;
    services.left.record(idle);
    Ok(continuing)
}

async fn recover(workspaces: &Workspaces, can_resume: bool) -> Result<(), AppError> {
    let services = workspaces.services();
    let woken = services.store.end_woken_turns(services.clock.now()).await?;
    let mut unfinished = services.store.unfinished(TurnPhase::Agent).await?;
    let closing = services.store.unfinished(TurnPhase::Automation).await?;
    let found = if can_resume { adoption::find_again(services, unfinished.clone()).await } else { Vec::new() };
    let mut resumed = Vec::new();
    for found in found {
        let session_id = found.session.session_id;
        match workspaces.resume(found).await {
            Ok(()) => resumed.push(session_id),
            Err(cause) => tracing::warn!(marker = "[ACP]", %session_id, %cause, "turn could not be resumed"),
        }
    }
    unfinished.retain(|one| !resumed.contains(&one.session.session_id));
    if can_resume {
        resumed.extend(resume_idle(workspaces, &unfinished, &resumed).await?);
        stop_fallback_turns(workspaces.workspace_client(), &unfinished).await;
    }
    let results = adoption::results_of_interrupted(services, &unfinished).await?;
    let recovered = services.store.recover(services.clock.now(), &resumed, results).await?;
    // The process that had begun them has ended, since the database has one member.
    services.store.take_up_attempts(services.clock.now()).await?;
    let automated = closing.len();
    closing::resume(services, closing);
    tracing::info!(
        marker = "[ACP]",
        automated,
        woken,
        turns = recovered.interrupted_turns,
        sessions = recovered.sessions,
        went_on = resumed.len(),
        "recovered"
    );
    Ok(())
}
