//! Erases sessions, workspaces and tenants: their agents end, then rows, folders and the agents' own history are removed.
//!
//! The row of the erasure is written first. It hides its target, so that nothing is opened or loaded any more, and a crash
//! at any point leaves a row from which the next process continues: each step can be repeated.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use uuid::Uuid;

use super::{
    handles::{folder_use::own_reference, index::LiveSession, preparing::StopPreparing},
    session::adoption,
    upkeep::{rescues::erase_rescues, retention::drop_servers_of_removed},
    workspaces::Workspaces,
};
use crate::{
    config::DEFAULT_AGENT,
    contract::{
        audit::ErasureItem,
        runtime::{RemoveTenant, RemoveWorkspace, WorkspaceRef},
    },
    domain::{
        erasure::{EraseCounts, EraseTarget},
        ids::{SessionId, WorkspaceKey},
        redaction::Redacted,
        session::{choices::Choices, mcp::McpServers},
        turn::outcome::{ErrorCode, Failure},
    },
    store::{self, EraseClaim, OpenErasure, Page, SessionRow, StoreError, WorkspaceFilter, WorkspaceRow},
    transport::{DeleteRequest, OpenRequest},
};

/// Rows removed in one transaction; it blocks other writes for some milliseconds.
const ROWS_PER_WRITE: usize = 500;
/// Shortest pause between two of these transactions. The pause is at least as long as the removal took, so that other
/// tenants get at least half of the database time.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
/// Sessions that are closed at once.
const CLOSES_AT_ONCE: usize = 16;
/// Interval at which erasures that failed, or that an earlier process left, are continued.
const RETRY_PERIOD: Duration = Duration::from_secs(30);
/// Conversations that agents are asked to remove in one erasure, at most; the others are counted as left.
const MAX_HISTORIES: usize = 1000;
/// Time for all agents of one erasure to remove their history.
const HISTORIES_TIMEOUT: Duration = Duration::from_secs(60);

fn failed(cause: StoreError) -> Failure {
    store::failure(&cause)
}

/// Erases a session, a workspace or a tenant, and returns the numbers of removed things.
///
/// # Errors
/// `not_found` if there is nothing to erase, or an erasure covers it already. After any other failure the erasure is
/// recorded and is continued later.
///
/// # Cancel safety
/// A dropped future leaves the erasure to be continued.
pub(crate) async fn erase(workspaces: &Workspaces, target: EraseTarget, actor: &str) -> Result<ErasureItem, Failure> {
    workspaces.admission()?;
    let services = workspaces.services();
    let missing = || Failure::new(ErrorCode::NotFound, format!("no such {}", target.scope().as_str()));
    let erasure = OpenErasure { erasure_id: Uuid::now_v7(), target: target.clone() };
    let claim = services.store.erasures().begin(erasure.clone()).ok_or_else(missing)?;
    match services.store.begin_erasure(erasure, actor, services.clock.now()).await {
        Ok(true) => {
            services.tokens.revoke_within(&target);
            carry_out(workspaces, claim).await.map_err(|cause| {
                let detail = format!("the erasure has begun and is continued later: {}", cause.detail);
                Failure::new(cause.code, detail)
            })
        }
        Ok(false) => {
            claim.abandon();
            Err(missing())
        }
        Err(cause) => {
            claim.abandon();
            Err(failed(cause))
        }
    }
}

/// Continues erasures that failed or that an earlier process left; never returns.
///
/// # Cancel safety
/// The next process continues.
pub(crate) async fn continue_erasures(workspaces: Workspaces) {
    let mut period = interval(RETRY_PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        let erasures = workspaces.services().store.erasures();
        // Each at most once, so that one that fails does not keep the others from their turn.
        for _ in 0..erasures.open() {
            let Some(claim) = erasures.claim() else { break };
            let erasure_id = claim.erasure.erasure_id;
            if let Err(cause) = carry_out(&workspaces, claim).await {
                let cause = Redacted::new(&cause.detail);
                tracing::warn!(marker = "[ACP]", %erasure_id, %cause, "erasure could not be continued; retrying");
            }
        }
    }
}

/// Runs every step of an erasure; those that an earlier attempt has done find nothing to do.
async fn carry_out(workspaces: &Workspaces, claim: EraseClaim) -> Result<ErasureItem, Failure> {
    let (services, erasure) = (workspaces.services(), claim.erasure.clone());
    let (id, target) = (erasure.erasure_id, &erasure.target);
    end_sessions(workspaces, target).await?;
    let histories = delete_histories(workspaces, target).await?;
    services.store.count_erased(id, histories).await.map_err(failed)?;
    // Before their rows, which name them.
    erase_rescues(&services.store, workspaces.workspace_client(), target).await?;
    erase_session_folders(workspaces, &erasure).await?;
    erase_rows(workspaces, &erasure).await?;
    drop_servers_of_removed(services).await;
    if target.session().is_none() {
        erase_workspaces(workspaces, &erasure).await?;
    }
    if let EraseTarget::Tenant(tenant) = target {
        let request = RemoveTenant { installation_id: tenant.clone() };
        let homes = match workspaces.workspace_client().remove_homes(&request).await {
            Ok(homes) => homes,
            // A runtime of an earlier version has no private home folders.
            Err(Failure { code: ErrorCode::NotFound, .. }) => 0,
            Err(cause) => return Err(cause),
        };
        let counts = EraseCounts { homes, ..EraseCounts::default() };
        services.store.count_erased(id, counts).await.map_err(failed)?;
        services.tenants.forget(tenant);
    }
    // Writes that were queued when the sessions ended are done now.
    erase_rows(workspaces, &erasure).await?;
    clean_files(workspaces).await;
    let item = services.store.end_erasure(id, services.clock.now()).await.map_err(failed)?;
    claim.ended();
    tracing::info!(
        marker = "[ACP]",
        erasure_id = %id,
        scope = item.scope.as_str(),
        sessions = item.sessions,
        turns = item.turns,
        transcript_entries = item.transcript_entries,
        records = item.records,
        folders = item.folders,
        "erased"
    );
    Ok(item)
}

/// Ends the sessions of a target, with their agents and routers, and waits for those that are being opened.
async fn end_sessions(workspaces: &Workspaces, target: &EraseTarget) -> Result<(), Failure> {
    let services = workspaces.services();
    let preparing = services.preparing.all(|id, key| target.covers(key, Some(id)));
    stream::iter(&preparing).for_each_concurrent(CLOSES_AT_ONCE, |it| it.stop(StopPreparing::Close)).await;
    let rows = match target.workspace() {
        Some(key) => vec![key.clone()],
        None => keys_of(workspaces, target).await?,
    };
    for key in &rows {
        // None begins any more, except in the workspace of an erased session: it may be busy without end.
        let unused = services.folders.unused(key);
        match target.session() {
            Some(_) => drop(timeout(OPENINGS_WAIT, unused).await),
            None => unused.await,
        }
    }
    let is_ours = |live: &LiveSession| target.covers(&live.shared.spec.workspace, Some(live.shared.spec.session_id));
    let live = services.index.all().into_iter().filter(|live| is_ours(live));
    let mut ids: Vec<SessionId> = live.map(|live| live.shared.spec.session_id).collect();
    // Their agent has ended, and automation may still run.
    ids.extend(target.session());
    let closing = ids.iter().map(|id| workspaces.close_with_automation(*id));
    let closed: Vec<_> = stream::iter(closing).buffer_unordered(CLOSES_AT_ONCE).collect().await;
    closed.into_iter().collect::<Result<(), _>>()?;
    for row in services.left.take_all(|row| target.covers(&row.key, Some(row.session_id))) {
        // Dropping its connection ends the agent.
        drop(adoption::find_idle(services, &row).await);
    }
    if target.session().is_none() {
        for key in &rows {
            workspaces.dissolve(key).await;
        }
    }
    Ok(())
}

/// Time that the erasure of a session waits for sessions that are being opened in its workspace.
const OPENINGS_WAIT: Duration = Duration::from_secs(5);

async fn workspaces_of(
    workspaces: &Workspaces,
    target: &EraseTarget,
    page: Page,
) -> Result<Vec<WorkspaceRow>, Failure> {
    let filter = WorkspaceFilter {
        installation_id: Some(target.tenant().clone()),
        workspace_id: target.workspace().map(|key| key.workspace_id.clone()),
        user_id: None,
    };
    workspaces.services().store.list_workspaces(filter, page).await.map_err(failed)
}

async fn keys_of(workspaces: &Workspaces, target: &EraseTarget) -> Result<Vec<WorkspaceKey>, Failure> {
    let (mut keys, mut page) = (Vec::new(), Page { limit: ROWS_PER_WRITE, after: None });
    loop {
        let rows = workspaces_of(workspaces, target, page.clone()).await?;
        page.after = rows.last().filter(|_| rows.len() == page.limit).map(WorkspaceRow::cursor);
        keys.extend(rows.into_iter().map(|row| row.key));
        if page.after.is_none() {
            return Ok(keys);
        }
    }
}

/// Conversations by the agent and the folder that have them: that of the workspace, or of an isolated session.
type Histories = BTreeMap<(WorkspaceKey, String, Option<SessionId>), Vec<SessionRow>>;

/// True if the agent of the session's last handshake offers `session/delete`.
fn offers_deletion(row: &SessionRow) -> bool {
    let facts = row.agent_facts.as_deref().and_then(|facts| serde_json::from_str::<serde_json::Value>(facts).ok());
    facts.is_some_and(|facts| facts["agentCapabilities"]["sessionCapabilities"]["delete"].is_object())
}

/// Has agents remove the conversations of a target from their own history, as far as they offer that and answer in time.
async fn delete_histories(workspaces: &Workspaces, target: &EraseTarget) -> Result<EraseCounts, Failure> {
    let services = workspaces.services();
    let (mut histories, mut found, mut page) = (Histories::new(), 0, Page { limit: ROWS_PER_WRITE, after: None });
    loop {
        let rows = services.store.sessions_to_erase(target.clone(), page.clone()).await.map_err(failed)?;
        page.after = rows.last().filter(|_| rows.len() == page.limit).map(SessionRow::cursor);
        for row in rows.into_iter().filter(|row| row.agent_session_id.is_some() && offers_deletion(row)) {
            found += 1;
            if found <= MAX_HISTORIES {
                let owner = row.own_folder.is_some().then_some(row.session_id);
                histories.entry((row.key.clone(), row.agent.clone(), owner)).or_default().push(row);
            }
        }
        if page.after.is_none() {
            break;
        }
    }
    if found == 0 {
        return Ok(EraseCounts::default());
    }
    let mut removed = 0;
    let deleting = async {
        for rows in histories.into_values() {
            removed += delete_history(workspaces, rows).await;
        }
    };
    let in_time = timeout(HISTORIES_TIMEOUT, deleting).await.is_ok();
    if !in_time {
        tracing::warn!(marker = "[ACP]", "agents did not remove their history in time");
    }
    Ok(EraseCounts {
        agent_histories: removed as u64,
        agent_histories_left: (found - removed) as u64,
        ..EraseCounts::default()
    })
}

/// Conversations of one agent in one workspace; returns how many the agent removed.
async fn delete_history(workspaces: &Workspaces, rows: Vec<SessionRow>) -> usize {
    let services = workspaces.services();
    let Some(first) = rows.first() else { return 0 };
    let filter = EraseTarget::Workspace(first.key.clone());
    let Ok(found) = workspaces_of(workspaces, &filter, Page { limit: 1, after: None }).await else { return 0 };
    let Some(workspace) = found.first() else { return 0 };
    // Absent once the folder was removed; it is not made again for an agent that may need it to start.
    let path = first.own_folder.as_ref().map_or(&workspace.workspace_path, |own| &own.path);
    let Some(cwd) = path.clone() else { return 0 };
    let open = OpenRequest {
        session_id: first.session_id,
        installation_id: Some(first.key.installation_id.clone()),
        is_ephemeral: workspace.is_ephemeral,
        agent: Some(first.agent.clone()).filter(|agent| agent != DEFAULT_AGENT),
        cwd,
        mcp_servers: McpServers::none(),
        previous: None,
        cookies: None,
        choices: Choices::default(),
    };
    let conversations = rows.into_iter().filter_map(|row| row.agent_session_id).collect();
    let removed = services.acp.delete(DeleteRequest { open, conversations }).await;
    removed.unwrap_or_else(|cause| {
        let cause = Redacted::new(&cause.detail);
        tracing::warn!(marker = "[ACP]", %cause, "agent could not be asked to remove its history");
        0
    })
}

/// Removes all rows of a target but its workspaces, in chunks.
async fn erase_rows(workspaces: &Workspaces, erasure: &OpenErasure) -> Result<(), Failure> {
    loop {
        let began = Instant::now();
        let counts = workspaces.services().store.erase_rows(erasure, ROWS_PER_WRITE).await.map_err(failed)?;
        if counts == EraseCounts::default() {
            return Ok(());
        }
        sleep(began.elapsed().max(SHORTEST_PAUSE)).await;
    }
}

/// Removes the folders of a target's isolated sessions, whose rows follow.
async fn erase_session_folders(workspaces: &Workspaces, erasure: &OpenErasure) -> Result<(), Failure> {
    let (store, client) = (&workspaces.services().store, workspaces.workspace_client());
    let (mut folders, mut page) = (0, Page { limit: ROWS_PER_WRITE, after: None });
    loop {
        let rows = store.sessions_to_erase(erasure.target.clone(), page.clone()).await.map_err(failed)?;
        page.after = rows.last().filter(|_| rows.len() == page.limit).map(SessionRow::cursor);
        let has_folder = |row: &&SessionRow| row.own_folder.as_ref().is_some_and(|own| own.removed.is_none());
        for row in rows.iter().filter(has_folder) {
            let request = RemoveWorkspace { workspace: own_reference(row.session_id), erase: true };
            folders += u64::from(client.remove(&request).await?.removed);
        }
        if page.after.is_none() {
            break;
        }
    }
    let counts = EraseCounts { folders, ..EraseCounts::default() };
    store.count_erased(erasure.erasure_id, counts).await.map_err(failed)
}

/// Removes the folders of a target's workspaces, then their rows.
async fn erase_workspaces(workspaces: &Workspaces, erasure: &OpenErasure) -> Result<(), Failure> {
    loop {
        let page = Page { limit: ROWS_PER_WRITE, after: None };
        let rows = workspaces_of(workspaces, &erasure.target, page).await?;
        if rows.is_empty() {
            return Ok(());
        }
        for row in rows {
            let removed = remove_folder(workspaces, &row).await?;
            let counts = EraseCounts { folders: u64::from(removed), ..EraseCounts::default() };
            let store = &workspaces.services().store;
            store.erase_workspace(erasure.erasure_id, row.key, counts).await.map_err(failed)?;
        }
    }
}

/// Removes the folder of a workspace, with its baseline. Of a folder that a caller gave, only the baseline is removed, and
/// only if no other workspace works in the folder.
async fn remove_folder(workspaces: &Workspaces, row: &WorkspaceRow) -> Result<bool, Failure> {
    if let Some(path) = &row.path {
        let real = row.workspace_path.clone().unwrap_or_else(|| path.clone());
        if workspaces.services().store.shares_path(row.key.clone(), real).await.map_err(failed)? {
            return Ok(false);
        }
    }
    let workspace = WorkspaceRef { folder_id: row.folder_id, path: row.path.clone(), within: None };
    Ok(workspaces.workspace_client().remove(&RemoveWorkspace { workspace, erase: true }).await?.removed)
}

/// Removes what deleted rows have left in the files of SQLite. A failure is no failure of the erasure: a later one, or the
/// sweep of old rows, repeats it.
async fn clean_files(workspaces: &Workspaces) {
    let store = &workspaces.services().store;
    let cleaned = async {
        let mut before = u64::MAX;
        loop {
            let began = Instant::now();
            let free = store.shrink().await?;
            // A file of another program may not give pages back.
            if free == 0 || free >= before {
                break;
            }
            before = free;
            sleep(began.elapsed()).await;
        }
        store.truncate_log().await
    };
    if let Err(cause) = cleaned.await {
        tracing::warn!(marker = "[ACP]", %cause, "free pages of the database were not released after an erasure");
    }
}
