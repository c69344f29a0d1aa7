//! Persists the history of agent connections, and counts their handshakes in the success window.
//!
//! Written asynchronously: a handshake is history, and a caller that waits for a session does not wait for this write.
//! A handshake counts in the window once it is on disk.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use uuid::Uuid;

use crate::{
    actors::{handles::session::SessionSpec, services::Services},
    domain::{
        clock::Timestamp,
        ids::{SessionId, WorkspaceKey},
        notify::notification::SessionNotice,
        redaction::RedactedJson,
        routing::{
            Route,
            sampling::sample_of_handshake,
            success_window::bucket_start,
            turn_route::{TurnReport, TurnRoute},
        },
        session::connection::{ConnectionHealth, ConnectionStatus},
        turn::outcome::Failure,
    },
    store::{NewConnection, NewConnectionEvent, OutcomeCount},
    transport::AgentFacts,
};

/// Persists the outcome of a session's handshake under `id`, with the notification to its user, then reports it to the
/// success window.
pub(crate) fn note(
    services: &Arc<Services>,
    spec: &SessionSpec,
    turn: TurnRoute,
    outcome: Result<&AgentFacts, &Failure>,
    took: Duration,
    (id, session_notice): (Uuid, Option<SessionNotice>),
) {
    let new = of(services, &spec.workspace, Some(spec.session_id), outcome, took);
    let new = NewConnection { connection_row_id: id, session_notice, ..new };
    let at = services.clock.steady();
    let sample = sample_of_handshake(outcome.map(|_| ())).filter(|_| !services.is_draining());
    let bucket = bucket_start(at, services.settings.window.bucket);
    let counts = sample.map(|sample| OutcomeCount { epoch: turn.epoch, route: Route::Acp, bucket, sample });
    // The reporter takes its slot in the mailbox now, so that the report after the write cannot be refused.
    let (services, report) = (services.clone(), spec.gate.reporter());
    actix::spawn(async move {
        if let Err(cause) = services.store.record_handshake(new, counts).await {
            tracing::warn!(marker = "[ACP]", %cause, "handshake was not written");
        }
        // Reported even if the write failed: the route must follow what happened.
        report(TurnReport { turn, carrier: Route::Acp, sample, at });
    });
}

/// Persists a probe; probes do not count in the success window.
pub(crate) async fn probe(
    services: &Services,
    workspace: &WorkspaceKey,
    session: Option<SessionId>,
    outcome: Result<&AgentFacts, &Failure>,
    took: Duration,
) {
    let new = NewConnection { is_probe: true, ..of(services, workspace, session, outcome, took) };
    if let Err(cause) = services.store.record_handshake(new, None).await {
        tracing::warn!(marker = "[ACP]", %cause, "probe was not written");
    }
}

/// Persists a connection's change of state and its health until then, with the notification to the session's user.
pub(crate) fn changed(
    services: &Arc<Services>,
    spec: &SessionSpec,
    connection: Uuid,
    status: ConnectionStatus,
    cause: &str,
    health: Option<ConnectionHealth>,
    session_notice: Option<SessionNotice>,
) {
    let event = NewConnectionEvent {
        event_id: Uuid::now_v7(),
        connection_row_id: connection,
        key: spec.workspace.clone(),
        session_id: Some(spec.session_id),
        status,
        cause: cause.to_owned(),
        health: health.map(|health| RedactedJson::of(&health)),
        session_notice,
        now: services.clock.now(),
    };
    let services = services.clone();
    actix::spawn(async move {
        if let Err(cause) = services.store.record_connection_event(event).await {
            tracing::warn!(marker = "[ACP]", %cause, "connection change was not written");
        }
    });
}

/// Notifies a session's user of a break of a connection that has no record.
pub(crate) fn notify(services: &Arc<Services>, spec: &SessionSpec, session_notice: SessionNotice, now: Timestamp) {
    let (services, key, session_id) = (services.clone(), spec.workspace.clone(), spec.session_id);
    actix::spawn(async move {
        if let Err(cause) = services.store.add_session_notice(key, session_id, session_notice, now).await {
            tracing::warn!(marker = "[ACP]", %cause, "connection break was not written");
        }
    });
}

fn of(
    services: &Services,
    workspace: &WorkspaceKey,
    session: Option<SessionId>,
    outcome: Result<&AgentFacts, &Failure>,
    took: Duration,
) -> NewConnection {
    let facts = outcome.ok();
    let info = facts.and_then(|facts| facts.info.as_ref());
    let info: AgentInfo = info.and_then(|info| serde_json::from_str(info.get()).ok()).unwrap_or_default();
    NewConnection {
        connection_row_id: Uuid::now_v7(),
        key: workspace.clone(),
        session_id: session,
        connection_id: facts.map(|facts| facts.connection_id.clone()),
        protocol: Route::Acp,
        protocol_version: facts.and_then(|facts| facts.protocol_version),
        agent_name: info.name,
        agent_version: info.version,
        capabilities: facts.and_then(|facts| facts.capabilities.as_ref()).map(|it| RedactedJson::new(it)),
        failure: outcome.err().cloned(),
        handshake: took,
        is_probe: false,
        session_notice: None,
        now: services.clock.now(),
    }
}

/// Name and version that an agent reports; unreadable fields are skipped.
#[derive(Default, Deserialize)]
struct AgentInfo {
    name: Option<String>,
    version: Option<String>,
}
