//! Session progress for subscribed clients. Without a subscriber, publishing costs one atomic load.

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
        notify::notification::{Scope, Stream},
    },
    telemetry::Metrics,
};

/// Frames queued for the hub; what does not fit is skipped, since a newer frame follows.
const QUEUE: usize = 1024;

/// One frame, and the session that it describes.
#[derive(Debug)]
pub(crate) struct SessionTelemetry {
    pub workspace: WorkspaceKey,
    pub session: SessionId,
    pub user: Option<UserId>,
    /// JSON.
    pub text: String,
}

/// Sending end, held by sessions. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct TelemetryFeed {
    watchers: Arc<AtomicUsize>,
    queue: mpsc::Sender<SessionTelemetry>,
    metrics: Metrics,
}

/// Receiving end, held by the hub. Cheap to clone, so that a restarted hub resumes the same queue.
#[derive(Debug, Clone)]
pub(crate) struct TelemetrySource {
    /// Number of subscribers that want session progress.
    pub watchers: Arc<AtomicUsize>,
    queue: Arc<Mutex<mpsc::Receiver<SessionTelemetry>>>,
}

impl TelemetrySource {
    /// The next frame; `None` once every sending end is dropped. For one caller at a time.
    ///
    /// # Cancel safety
    /// No frame is lost.
    pub(crate) async fn next(&self) -> Option<SessionTelemetry> {
        self.queue.lock().await.recv().await
    }
}

/// Creates both ends.
pub(crate) fn telemetry(metrics: Metrics) -> (TelemetryFeed, TelemetrySource) {
    let (queue, source) = queue();
    (TelemetryFeed { watchers: source.watchers.clone(), queue, metrics }, source)
}

/// Creates the queue without subscribers.
pub(crate) fn queue() -> (mpsc::Sender<SessionTelemetry>, TelemetrySource) {
    let (queue, coming) = mpsc::channel(QUEUE);
    (queue, TelemetrySource { watchers: Arc::default(), queue: Arc::new(Mutex::new(coming)) })
}

/// Current progress of a session, as JSON.
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

/// Current progress of the live sessions of a scope, one frame each, at most `limit`; and the number of sessions left
/// out.
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
    /// Publishes the current progress of a session if anybody subscribed. Never blocks; counts frames that do not
    /// fit.
    pub(crate) fn publish(&self, session: &SessionShared, now: Timestamp) {
        if self.watchers.load(Ordering::Relaxed) == 0 {
            return;
        }
        let (spec, text) = (&session.spec, frame(session, now));
        let progress = SessionTelemetry {
            workspace: spec.workspace.clone(),
            session: spec.session_id,
            user: spec.user_id.clone(),
            text,
        };
        if self.queue.try_send(progress).is_err() {
            self.metrics.notifications().telemetry_dropped(1);
        }
    }
}
