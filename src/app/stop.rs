//! The way down, and the signals that begin it.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal as listen};

use super::Service;
use crate::config::Config;

/// How long answers, alerts, posts and rows may each take once every session is gone.
const FLUSH: Duration = Duration::from_secs(5);

/// How long subscribers of toasts may take to close their sockets.
const PARTING: Duration = Duration::from_secs(3);

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

/// How long agents may take to end.
pub(super) fn kill_grace(config: &Config) -> Duration {
    Duration::from_millis(config.runtime.kill_grace_ms)
}

impl Service {
    /// Admission closes and readiness goes off; running turns may end until `[drain] timeout_s`, the rest is
    /// cancelled; sessions are let go; then the runtime, HTTP and the store end in this order.
    pub(crate) async fn stop(self) {
        // What is under way is settled by the next start.
        self.migrations.abort();
        let deadline = tokio::time::sleep(Duration::from_secs(self.config.drain.timeout_s));
        self.workspaces.drain(deadline).await;
        // After the last toasts of the sessions.
        self.toasts.close(PARTING).await;
        if let Some(runtime) = self.runtime {
            runtime.stop(kill_grace(&self.config)).await;
        }
        self.http.handle.stop(true).await;
        self.sweep.abort();
        self.retention.abort();
        self.workspaces.capacity().close();
        if tokio::time::timeout(FLUSH, self.capacity).await.is_err() {
            tracing::error!(marker = "[CAPACITY]", "changes of an alert of capacity were not written down");
        }
        // What is out may end; what is not, and the last alerts, are posted by the next start.
        let (stop, posting) = self.webhooks;
        stop.close();
        if let Some(posting) = posting
            && tokio::time::timeout(FLUSH, posting).await.is_err()
        {
            tracing::warn!(
                marker = "[ACP]",
                "a post to the webhook did not end; it is posted again by the next start"
            );
        }
        if tokio::time::timeout(FLUSH, self.store.close()).await != Ok(true) {
            tracing::error!(marker = "[ACP]", "the database did not take everything before the end");
        }
        tracing::info!(marker = "[ACP]", "stopped");
    }
}
