//! One alarm where many workspaces fall back at once; the rule is in [`crate::domain::flip_storm`].

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    domain::{
        clock::Clock,
        flip_storm::{FlipCause, FlipStorm},
        ids::WorkspaceKey,
        routing::Route,
    },
    telemetry::Metrics,
};

/// So often the end of a storm is looked for.
const LOOK: Duration = Duration::from_secs(10);

/// The automatic rollbacks of all workspaces of this process. Cheap to clone.
#[derive(Clone)]
pub struct Storm(Arc<Inner>);

struct Inner {
    flips: Mutex<FlipStorm>,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Storm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Storm").field(&*self.flips()).finish()
    }
}

impl Storm {
    /// Nothing has rolled back yet.
    pub fn new(metrics: Metrics, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner { flips: Mutex::default(), metrics, clock }))
    }

    /// A workspace has rolled back by itself. Where a storm begins with it, the alarm is raised, and resolved when it is
    /// over.
    pub fn on_rollback(&self, workspace: &WorkspaceKey) -> FlipCause {
        let (now, live) = (self.0.clock.steady(), self.live());
        let mut flips = self.flips();
        let cause = flips.on_flip(workspace, live, now);
        if cause == FlipCause::BeginsStorm {
            self.0.metrics.routes().storm(true);
            tracing::error!(
                marker = "[ROLLBACK]",
                workspaces = flips.flipped(now),
                live,
                "many workspaces fall back at once, and the cause is none of theirs: look at the runtime, the network \
                 and the agents' provider"
            );
            actix::spawn(self.clone().resolve());
        }
        cause
    }

    /// Whether many workspaces fall back at once.
    pub fn is_raging(&self) -> bool {
        self.flips().is_raging()
    }

    /// Resolves the alarm of one storm.
    async fn resolve(self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let (now, live) = (self.0.clock.steady(), self.live());
            let Some(ended) = self.flips().on_tick(live, now) else { continue };
            self.0.metrics.routes().storm(false);
            let seconds = now.since(ended.since).as_secs();
            let most_workspaces = ended.most_flipped;
            tracing::info!(
                marker = "[ROLLBACK]",
                most_workspaces,
                seconds,
                "workspaces no longer fall back in numbers"
            );
            return;
        }
    }

    fn live(&self) -> usize {
        let on = |route| self.0.metrics.routes().workspaces(route);
        usize::try_from(on(Route::Acp) + on(Route::Http)).unwrap_or(usize::MAX)
    }

    fn flips(&self) -> MutexGuard<'_, FlipStorm> {
        // Nothing in there panics half-way.
        self.0.flips.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
