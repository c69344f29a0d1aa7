//! One alarm where many workspaces fall back at once; the rule is in [`crate::domain::flip_storm`].

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use uuid::Uuid;

use crate::{
    domain::{
        clock::Clock,
        flip_storm::{FlipCause, FlipStorm},
        ids::WorkspaceKey,
        notice,
        routing::Route,
        toast::{Addressee, NewToast},
    },
    store::Store,
    telemetry::Metrics,
};

/// So often the end of a storm is looked for.
const LOOK: Duration = Duration::from_secs(10);

/// The automatic rollbacks of all workspaces of this process. Cheap to clone.
#[derive(Clone)]
pub struct Storm(Arc<Inner>);

struct Inner {
    flips: Mutex<Flips>,
    store: Store,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
}

#[derive(Debug, Default)]
struct Flips {
    counted: FlipStorm,
    /// What operators are told of the storm that rages, and what its end is told by.
    alarm: Option<(Uuid, NewToast)>,
}

impl fmt::Debug for Storm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Storm").field(&*self.flips()).finish()
    }
}

impl Storm {
    /// Nothing has rolled back yet.
    pub fn new(store: Store, metrics: Metrics, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner { flips: Mutex::default(), store, metrics, clock }))
    }

    /// A workspace rolls back by itself, and this is about to be written. Gives what operators are told in place of its
    /// users, where it is one of many: the same for all of a storm, so that whichever is written first tells of it. Where
    /// a storm begins with it, the alarm is raised, and resolved when it is over.
    pub fn on_rollback(&self, workspace: &WorkspaceKey) -> Option<NewToast> {
        let (now, live) = (self.0.clock.steady(), self.live());
        let mut flips = self.flips();
        let cause = flips.counted.on_flip(workspace, live, now);
        if cause == FlipCause::BeginsStorm {
            let (id, flipped) = (Uuid::now_v7(), flips.counted.flipped(now));
            let told = NewToast::new(Uuid::now_v7(), Addressee::Operators, notice::of_storm(flipped, live), id);
            flips.alarm = Some((id, told));
            self.0.metrics.routes().storm(true);
            tracing::error!(
                marker = "[ROLLBACK]",
                workspaces = flipped,
                live,
                "many workspaces fall back at once, and the cause is none of theirs: look at the runtime, the network \
                 and the agents' provider"
            );
            actix::spawn(self.clone().resolve());
        }
        flips.alarm.as_ref().filter(|_| cause.is_storm()).map(|(_, told)| told.clone())
    }

    /// Whether many workspaces fall back at once.
    pub fn is_raging(&self) -> bool {
        self.flips().counted.is_raging()
    }

    /// Resolves the alarm of one storm.
    async fn resolve(self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let (now, live) = (self.0.clock.steady(), self.live());
            let (ended, alarm) = {
                let mut flips = self.flips();
                let Some(ended) = flips.counted.on_tick(live, now) else { continue };
                (ended, flips.alarm.take())
            };
            self.0.metrics.routes().storm(false);
            let seconds = now.since(ended.since).as_secs();
            let most_workspaces = ended.most_flipped;
            tracing::info!(
                marker = "[ROLLBACK]",
                most_workspaces,
                seconds,
                "workspaces no longer fall back in numbers"
            );
            if let Some((id, _)) = alarm {
                let told = NewToast::new(
                    Uuid::now_v7(),
                    Addressee::Operators,
                    notice::of_storm_end(&ended),
                    format!("{id}:resolved"),
                );
                if let Err(cause) = self.0.store.tell(told, self.0.clock.now()).await {
                    tracing::error!(marker = "[ROLLBACK]", %cause, "operators were not told that it is over");
                }
            }
            return;
        }
    }

    fn live(&self) -> usize {
        let on = |route| self.0.metrics.routes().workspaces(route);
        usize::try_from(on(Route::Acp) + on(Route::Http)).unwrap_or(usize::MAX)
    }

    fn flips(&self) -> MutexGuard<'_, Flips> {
        // Nothing in there panics half-way.
        self.0.flips.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
