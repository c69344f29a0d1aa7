//! Stops the service, and waits for the signals that ask for it.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal as listen};

use super::{Service, reload::Reloader};
use crate::process::terminal::Terminal;

/// Maximum time for each of alerts, posts and rows to be flushed once every session is closed.
const FLUSH: Duration = Duration::from_secs(5);

/// Waits for SIGTERM, Ctrl-C or the end of the terminal with which the process started. The next SIGTERM or Ctrl-C ends
/// the process at once, with the exit code that shells give to an interrupted program. Any other SIGHUP reloads the
/// configuration.
pub(super) async fn signal(terminal: Terminal, mut reloader: Reloader) {
    let signals = (listen(SignalKind::terminate()), listen(SignalKind::interrupt()), listen(SignalKind::hangup()));
    let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)) = signals else {
        // Without signals there is no clean end; the process is stopped from outside.
        return std::future::pending().await;
    };
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                if terminal.has_closed() {
                    tracing::info!(marker = "[ACP]", "the terminal was closed");
                    break;
                }
                reloader.reload();
            }
        }
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
        let Self {
            store,
            membership,
            runtime,
            sessions,
            upkeep,
            notifications,
            http,
            migrations,
            webhooks,
            targets: _,
        } = self;
        migrations.stop();
        sessions.stop().await;
        notifications.stop().await;
        runtime.stop().await;
        http.stop().await;
        upkeep.stop(sessions.workspaces.capacity(), FLUSH).await;
        webhooks.stop(FLUSH).await;
        let held = store.stop(FLUSH).await;
        // Last: a successor recovers what this process has not written.
        membership.stop(FLUSH).await;
        drop(held);
        tracing::info!(marker = "[ACP]", "stopped");
    }
}
