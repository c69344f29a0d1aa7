//! How all sessions are let go when the service stops.

use std::{
    sync::{PoisonError, atomic::Ordering},
    time::Duration,
};

use super::Workspaces;
use crate::actors::handles::messages::{CancelTurn, DrainSessions};

/// How long sessions may take to be written down, beyond the grace of their cancels, when the service stops.
const DRAIN_MARGIN: Duration = Duration::from_secs(3);

impl Workspaces {
    /// Stops: admission closes, running turns may end until `deadline` passes, the rest is cancelled, and
    /// every agent is let go.
    pub async fn drain(&self, deadline: impl Future<Output = ()>) {
        self.0.draining.store(true, Ordering::Release);
        let mut deadline = std::pin::pin!(deadline);
        let index = &self.0.parts.index;
        let mut look = tokio::time::interval(Duration::from_millis(50));
        while index.all().iter().any(|live| live.shared.view().running.is_some()) {
            tokio::select! {
                () = &mut deadline => break,
                _ = look.tick() => {}
            }
        }
        let running = index.all().into_iter().filter(|live| live.shared.view().running.is_some());
        let cancelling = running.map(|live| live.mailbox.borrow().cancel_turn.send(CancelTurn { prompt_id: None }));
        // All at once, and not for ever: a session that waits for the database, or is stuck, does not listen.
        let _ = tokio::time::timeout(DRAIN_MARGIN, futures_util::future::join_all(cancelling)).await;
        let supervisors: Vec<_> = {
            let supervisors = self.0.supervisors.lock().unwrap_or_else(PoisonError::into_inner);
            supervisors.values().map(|it| it.supervisor.clone()).collect()
        };
        // All at once: each may take the grace of a cancel.
        let draining = supervisors.iter().map(|supervisor| supervisor.send(DrainSessions));
        let patience = self.0.parts.settings.cancel_grace + DRAIN_MARGIN;
        if tokio::time::timeout(patience, futures_util::future::join_all(draining)).await.is_err() {
            tracing::error!(marker = "[ACP]", "sessions are left at the end; their agents end with the runtime");
        }
    }
}
