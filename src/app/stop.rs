//! Stops the service, and waits for the signals that ask for it.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal as listen};

use super::Service;

/// Maximum time for each of alerts, posts and rows to be flushed once every session is closed.
const FLUSH: Duration = Duration::from_secs(5);

/// Waits for SIGTERM or Ctrl-C. The next one ends the process at once, with the exit code that shells give to
/// an interrupted program.
pub(super) async fn signal() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (listen(SignalKind::terminate()), listen(SignalKind::interrupt()))
    else {
        // Without signals there is no clean end; the process is stopped from outside.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(marker = "[ACP]", "stopping");
    actix::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(130);
    });
}

impl Service {
    /// Stops every area after those that need it. The API stops behind the sessions and the runtime, because it serves
    /// the calls that end turns, and the last notifications are written until the store closes.
    pub(crate) async fn stop(self) {
        let Self { store, runtime, sessions, upkeep, notifications, http, migrations, webhooks } = self;
        migrations.stop();
        sessions.stop().await;
        notifications.stop().await;
        runtime.stop().await;
        http.stop().await;
        upkeep.stop(sessions.workspaces.capacity(), FLUSH).await;
        webhooks.stop(FLUSH).await;
        store.stop(FLUSH).await;
        tracing::info!(marker = "[ACP]", "stopped");
    }
}
