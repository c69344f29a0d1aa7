//! `GET /acp/session/{id}/explain`: the history of a session, to see why it fell back.

use actix_web::{get, web};
use serde::Serialize;
use serde_json::{Value, json};

use super::state_of;
use crate::{
    contract::{
        audit::{AutomationRunItem, ConnectionItem, MigrationItem, NotificationItem, RollbackEventItem},
        explain::{Explanation, MAX_TIMELINE, TimelineEntry},
    },
    domain::{
        access::{Caller, Privilege},
        automation::{progress::StepState, saga::SagaStatus},
        clock::Timestamp,
        explain::{CurrentState, EntryKind, answer, timeline},
        ids::SessionId,
        routing::{Route, initiator},
        session::lifecycle::SessionState,
    },
    http::{
        HttpState,
        problem::ApiError,
        refusals::{OfRoute, Problems},
        request::path_id,
        rows::{find_live, find_session},
    },
    store::{AuditFilter, Page, PromptRow, SagaFilter, SagaRow, SessionRow, Store, StoreError, TranscriptRow},
};

/// Explains which protocol carries the turns of a session and why. The history has turns, connections and their states,
/// flips of the workspace since the session was opened, notes, automation runs and notifications.
#[utoipa::path(
    tag = "sessions",
    security(("token" = ["sessions.read"])),
    params(("id" = SessionId, Path, description = "sessionId")),
    responses(
        (status = 200, description = "The explanation", body = Explanation),
        Problems<OfRoute>,
    )
)]
#[get("/acp/session/{id:[0-9a-fA-F-]+}/explain")]
pub(crate) async fn explain_session(
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
) -> Result<web::Json<Explanation>, ApiError> {
    let id: SessionId = path_id(&id, "session")?;
    let row = find_session(&state, &caller, id).await?;
    let session_state = find_live(&state, &caller, id).map(|live| {
        // Read once: the view holds a lock.
        let view = live.shared.view();
        (view.state, view.carrier)
    });
    let (session_state, carrier) = session_state.unwrap_or_else(|| (state_of(&state, &row), row.protocol));
    let view = state.workspaces.routing(&row.key).await?.view().await?;
    let mut records = Records::read(&state.workspaces.services().store, &row, session_state).await?;
    if !caller.may(Privilege::ReadContents) {
        records.remove_contents();
    }
    let failed = records.connections.first().and_then(|newest| newest.error_detail.clone());
    let answer = answer(&CurrentState {
        state: session_state,
        carrier,
        routing: &view.routing,
        canary_share_bp: view.canary_share_bp,
        failed_handshake: failed.as_deref(),
    });
    let (timeline, truncated) = timeline(records.entries(&row), MAX_TIMELINE);
    Ok(web::Json(Explanation {
        answer,
        session_id: id,
        installation_id: row.key.installation_id,
        workspace_id: row.key.workspace_id,
        state: session_state,
        protocol: carrier,
        route: view.routing.route(),
        epoch: view.routing.epoch(),
        truncated,
        timeline,
    }))
}

/// The newest records of each kind: one more than is listed, to detect truncation.
struct Records {
    turns: Vec<PromptRow>,
    connections: Vec<ConnectionItem>,
    flips: Vec<MigrationItem>,
    rollbacks: Vec<RollbackEventItem>,
    notes: Vec<TranscriptRow>,
    runs: Vec<AutomationRunItem>,
    sagas: Vec<SagaRow>,
    notifications: Vec<NotificationItem>,
}

impl Records {
    async fn read(store: &Store, row: &SessionRow, session_state: SessionState) -> Result<Self, StoreError> {
        let most = MAX_TIMELINE + 1;
        let page = || Page { limit: most, after: None };
        let session = AuditFilter { session_id: Some(row.session_id), ..AuditFilter::default() };
        // Events of the workspace after the session was closed do not belong to it.
        let is_over = session_state == SessionState::Closed;
        let until = is_over.then(|| Timestamp(row.last_used.0.saturating_add(1)));
        let workspace = AuditFilter { until, ..session.clone() };
        Ok(Self {
            turns: store.newest_turns(row.session_id, most).await?,
            connections: store.connections(session.clone(), page()).await?,
            flips: store.migrations(workspace.clone(), page()).await?,
            rollbacks: store.rollback_events(workspace.clone(), page()).await?,
            notes: store.newest_notes(row.session_id, most).await?,
            runs: store.automation_runs(session.clone(), page()).await?,
            sagas: store.sagas(SagaFilter { records: session, ..SagaFilter::default() }, page()).await?,
            notifications: store.notifications(workspace, page()).await?,
        })
    }

    /// Removes parts of the conversation: beginnings of prompts, what agents say about failures, and notes.
    fn remove_contents(&mut self) {
        self.notes.clear();
        for turn in &mut self.turns {
            turn.preview.clear();
            if let Some(error) = &mut turn.error {
                error.detail.clear();
            }
        }
    }

    fn entries(self, row: &SessionRow) -> Vec<TimelineEntry> {
        let Self { turns, connections, flips, rollbacks, notes, runs, sagas, notifications } = self;
        let mut entries = vec![opened(row)];
        entries.extend(turns.into_iter().map(turn));
        connections.into_iter().for_each(|item| connection(item, &mut entries));
        entries.extend(flips.into_iter().map(|item| flip(item, &rollbacks)));
        // The entry of a turn already reports its failure.
        let is_of_turn = |note: &TranscriptRow| note.entry.event_type == "info" && note.prompt_id.is_some();
        entries.extend(notes.into_iter().filter(|row| !is_of_turn(row)).map(note));
        entries.extend(sagas.iter().filter(|row| row.status == SagaStatus::Running).map(running));
        entries.extend(runs.into_iter().map(|item| run(item, &sagas)));
        entries.extend(notifications.into_iter().map(notification));
        entries
    }
}

fn entry(at: Timestamp, kind: EntryKind, summary: String, details: Value) -> TimelineEntry {
    TimelineEntry { at, kind, summary, details }
}

fn record(item: &impl Serialize) -> Value {
    serde_json::to_value(item).unwrap_or_default()
}

/// Name of a protocol in sentences.
fn named(route: Route) -> &'static str {
    match route {
        Route::Acp => "ACP",
        Route::Http => "HTTP",
    }
}

fn opened(row: &SessionRow) -> TimelineEntry {
    let summary = format!("Opened in workspace {} with agent {}", row.key.workspace_id, row.agent);
    entry(row.created, EntryKind::Session, summary, json!({"agent": row.agent, "userId": row.user_id}))
}

fn turn(row: PromptRow) -> TimelineEntry {
    let canary = if row.is_canary { " as a canary" } else { "" };
    let mut summary = format!("A turn over {}{canary} {}", named(row.protocol), phrase_of(row.state.as_str()));
    if let Some(error) = &row.error {
        summary.push_str(&format!(": {}", error.code.as_str()));
    }
    let details = json!({
        "promptId": row.prompt_id, "protocol": row.protocol, "route": row.route, "epoch": row.epoch,
        "canary": row.is_canary, "state": row.state.as_str(), "acceptedAt": row.accepted, "endedAt": row.ended, "preview": row.preview,
        "errorCode": row.error.as_ref().map(|error| error.code.as_str()),
        "errorDetail": row.error.as_ref().map(|error| error.detail.as_str()),
    });
    // What ended the turn, such as a crash, happened at its end.
    entry(row.ended.unwrap_or(row.accepted), EntryKind::Turn, summary, details)
}

fn phrase_of(state: &str) -> String {
    match state {
        "accepted" | "running" => format!("is {state}"),
        "cancelled" | "interrupted" => format!("was {state}"),
        ended => ended.to_owned(),
    }
}

fn connection(item: ConnectionItem, entries: &mut Vec<TimelineEntry>) {
    let agent = item.agent_name.as_deref().unwrap_or("the agent");
    let summary = match (item.error_code, &item.error_detail) {
        (Some(code), detail) => {
            format!(
                "The handshake with {agent} failed: {code}, {}",
                detail.as_deref().unwrap_or("for no known reason")
            )
        }
        (None, _) => format!("Connected to {agent} over {} in {} ms", named(item.protocol), item.handshake_ms),
    };
    for change in &item.transitions {
        let mut details = record(change);
        details["connectionRowId"] = record(&item.connection_row_id);
        let summary = format!("The connection became {}: {}", change.status, change.cause);
        entries.push(entry(change.at, EntryKind::Transition, summary, details));
    }
    let mut details = record(&item);
    if let Some(details) = details.as_object_mut() {
        // Each transition is an entry of its own.
        details.remove("transitions");
    }
    entries.push(entry(item.created_at, EntryKind::Connection, summary, details));
}

/// A flip with the members of its rollback event; both are written in one transaction.
fn flip(item: MigrationItem, rollbacks: &[RollbackEventItem]) -> TimelineEntry {
    let event = rollbacks.iter().find(|event| Some(event.epoch) == item.epoch && event.created_at == item.started_at);
    let verb = if item.epoch.is_some() { "moved" } else { "was to move" };
    let summary = format!(
        "The workspace {verb} from {} to {} ({}), by {}: {}",
        named(item.from_protocol),
        named(item.to_protocol),
        item.trigger.as_str(),
        initiator::named(&item.actor, item.actor_note.as_deref()),
        item.reason
    );
    let mut details = record(&item);
    if let Some(event) = event {
        details["eventId"] = record(&event.event_id);
        details["kind"] = record(&event.kind);
        details["reasonCode"] = record(&event.reason_code);
        details["followUp"] = record(&event.follow_up);
    }
    entry(item.started_at, EntryKind::Flip, summary, details)
}

fn note(row: TranscriptRow) -> TimelineEntry {
    // A tree cannot hold every JSON text: null stands for halves of characters, for example.
    let payload: Option<Value> = row.entry.payload.and_then(|payload| serde_json::from_str(payload.as_str()).ok());
    let details = json!({
        "seq": row.seq, "promptId": row.prompt_id, "eventType": row.entry.event_type, "payload": payload,
    });
    entry(row.created, EntryKind::Note, row.entry.text.into_string(), details)
}

/// A run whose attempt is in progress.
fn running(row: &SagaRow) -> TimelineEntry {
    let steps = steps(row);
    let summary = match steps.iter().find(|step| step["state"] == StepState::Started.as_str()) {
        Some(step) => {
            format!("Automation runs: the step {} is next or in progress", step["step"].as_str().unwrap_or_default())
        }
        None => "Automation runs".to_owned(),
    };
    let details =
        json!({"automationId": row.run_id, "promptId": row.prompt_id, "status": row.status, "steps": steps});
    entry(row.updated, EntryKind::Automation, summary, details)
}

/// The steps of the newest attempt of a run that have begun.
fn steps(row: &SagaRow) -> Vec<Value> {
    let steps = row.saga.iter().flat_map(|saga| saga.steps(row.status));
    steps
        .map(|it| {
            let code = it.failed.map(|failed| failed.failure.code.as_str());
            json!({"step": it.step.as_str(), "state": it.state.as_str(), "code": code})
        })
        .collect()
}

/// The end of an attempt; that of the newest attempt has its steps and the time of the next one.
fn run(item: AutomationRunItem, sagas: &[SagaRow]) -> TimelineEntry {
    let why = item.skip_reason.as_deref().or(item.error_code.as_deref()).or(item.pull_request_url.as_deref());
    let mut summary = format!("Automation ({}) ended with {}: {}", item.mode, item.status, why.unwrap_or("done"));
    let mut details = record(&item);
    let is_newest = |row: &&SagaRow| {
        let attempt = row.saga.as_ref().map(|saga| saga.attempt);
        Some(row.run_id) == item.automation_id && attempt == Some(item.attempts) && row.status != SagaStatus::Running
    };
    if let Some(row) = sagas.iter().find(is_newest) {
        if let Some(at) = row.retry_at {
            summary.push_str(&format!("; the next attempt is due at {at}"));
        }
        details["retryAt"] = record(&row.retry_at);
        details["steps"] = steps(row).into();
    }
    entry(item.created_at, EntryKind::Automation, summary, details)
}

fn notification(item: NotificationItem) -> TimelineEntry {
    entry(item.created_at, EntryKind::Notification, format!("Notified: {}", item.body), record(&item))
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::domain::{clock::Timestamp, redaction::RedactedJson, turn::transcript::TranscriptEntry};

    #[test]
    fn note_whose_payload_no_tree_can_hold_is_explained_without_it() {
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        for payload in [r#"{"title":"\ud800"}"#, "1e400", &deep] {
            let raw = RawValue::from_string(payload.to_owned()).unwrap();
            let entry = TranscriptEntry::with_payload("info", "a note", RedactedJson::new(&raw));
            let created = Timestamp(1);
            let row = TranscriptRow { seq: 1, revision: 1, changed: 1, prompt_id: None, entry, created };
            assert_eq!(note(row).details["payload"], Value::Null, "{payload:.20}");
        }
    }
}
