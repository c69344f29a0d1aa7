//! Stops the service, and waits for the signals that ask for it.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal as listen};

use super::{Service, reload::Reloader};
use crate::process::terminal::Terminal;

/// Maximum time for each of alerts, posts and rows to be flushed once every session is closed.
const FLUSH: Duration = Duration::from_secs(5);

/// The signals of a process that serves. From [`Signals::listen`] on, none of them ends the process by itself.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// To be called before the process announces that it serves: who reads that may stop it at once. `None`: the system
    /// gives no signals; the process is stopped from outside.
    pub(super) fn listen() -> Option<Self> {
        let listen = |kind| listen(kind).ok();
        Some(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }
}

/// Waits for SIGTERM, Ctrl-C or the end of the terminal with which the process started. The next SIGTERM or Ctrl-C ends
/// the process at once, with the exit code that shells give to an interrupted program. Any other SIGHUP reloads the
/// configuration.
pub(super) async fn signal(signals: Option<Signals>, terminal: Terminal, mut reloader: Reloader) {
    let Some(Signals { mut terminate, mut interrupt, mut hangup }) = signals else {
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
            triggers,
            webhooks,
            server_token: _,
            runtime_token: _,
            github: _,
        } = self;
        migrations.stop();
        triggers.stop();
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
