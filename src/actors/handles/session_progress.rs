//! How sessions are doing, for those who watch. Nobody watches, and it costs one look at a number.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{Mutex, mpsc};

use super::{
    index::SessionIndex,
    session::{SessionShared, SessionSpec},
};
use crate::{
    contract::notifications::frames::{ServerFrame, Telemetry, TurnProgress},
    domain::{
        clock::Timestamp,
        ids::{SessionId, UserId, WorkspaceKey},
        notify::toast::{Scope, Stream},
    },
    telemetry::Metrics,
};

/// Frames that wait for the hub; what does not fit is skipped, since a newer one follows.
const QUEUE: usize = 1024;

/// One frame, and whom it is about.
#[derive(Debug)]
pub(crate) struct SessionTelemetry {
    pub workspace: WorkspaceKey,
    pub session: SessionId,
    pub user: Option<UserId>,
    /// JSON.
    pub text: String,
}

/// The sessions' end. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct TelemetryFeed {
    watchers: Arc<AtomicUsize>,
    queue: mpsc::Sender<SessionTelemetry>,
    metrics: Metrics,
}

/// The hub's end. Cheap to clone: a hub that takes another one's place resumes it.
#[derive(Debug, Clone)]
pub(crate) struct TelemetrySource {
    /// How many watch.
    pub watchers: Arc<AtomicUsize>,
    queue: Arc<Mutex<mpsc::Receiver<SessionTelemetry>>>,
}

impl TelemetrySource {
    /// The next frame; none where no session tells any more. For one waiter. Cancel-safe.
    pub(crate) async fn next(&self) -> Option<SessionTelemetry> {
        self.queue.lock().await.recv().await
    }
}

/// A pair of ends.
pub(crate) fn telemetry(metrics: Metrics) -> (TelemetryFeed, TelemetrySource) {
    let (queue, source) = queue();
    (TelemetryFeed { watchers: source.watchers.clone(), queue, metrics }, source)
}

/// The queue between them, which nobody watches yet.
pub(crate) fn queue() -> (mpsc::Sender<SessionTelemetry>, TelemetrySource) {
    let (queue, coming) = mpsc::channel(QUEUE);
    (queue, TelemetrySource { watchers: Arc::default(), queue: Arc::new(Mutex::new(coming)) })
}

/// How a session is doing now, as JSON.
fn frame(session: &SessionShared, now: Timestamp) -> String {
    let (spec, connection) = (&session.spec, session.connection_status());
    let frame = {
        let view = session.view();
        ServerFrame::Telemetry(Telemetry {
            workspace_id: spec.workspace.workspace_id.clone(),
            session_id: spec.session_id,
            state: view.state.as_str().to_owned(),
            connection: connection.as_str().to_owned(),
            prompt_id: view.running,
            progress: view.progress.as_ref().map(|progress| TurnProgress::of(progress, now)),
            at: now.to_string(),
        })
    };
    serde_json::to_string(&frame).unwrap_or_default()
}

/// How the live sessions of a scope are doing now, a frame each, at most `limit`; and how many more there are.
pub(crate) fn frames(index: &SessionIndex, scope: &Scope, limit: usize, now: Timestamp) -> (Vec<String>, usize) {
    let Stream::Tenant(tenant) = &scope.stream else { return (Vec::new(), 0) };
    let mut live = index.all();
    live.retain(|live| {
        let SessionSpec { workspace, session_id, user_id, .. } = &*live.shared.spec;
        let is_in = || scope.takes(Some(&workspace.workspace_id), Some(*session_id), user_id.as_ref());
        workspace.installation_id == *tenant && is_in()
    });
    let frames = live.iter().take(limit).map(|live| frame(&live.shared, now)).collect();
    (frames, live.len().saturating_sub(limit))
}

impl TelemetryFeed {
    /// Tells how a session is doing now, if anybody watches. Never blocks.
    pub(crate) fn publish(&self, session: &SessionShared, now: Timestamp) {
        if self.watchers.load(Ordering::Relaxed) == 0 {
            return;
        }
        let (spec, text) = (&session.spec, frame(session, now));
        let session_notice = SessionTelemetry {
            workspace: spec.workspace.clone(),
            session: spec.session_id,
            user: spec.user_id.clone(),
            text,
        };
        if self.queue.try_send(session_notice).is_err() {
            self.metrics.toasts().telemetry_left_out(1);
        }
    }
}
