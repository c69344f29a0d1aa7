//! Keeps a part of the service at work: one that panics is started again, by the restart rule.

use std::sync::Arc;

use tokio::{task::JoinHandle, time::sleep};

use crate::{
    actors::services::Services,
    domain::{
        clock::Clock,
        session::restart::{RestartLimits, RestartPolicy},
    },
    telemetry::{Metrics, labels::RestartCause},
};

/// What it takes to start a part again.
#[derive(Clone)]
pub(crate) struct Keeper {
    pub metrics: Metrics,
    pub clock: Arc<dyn Clock>,
    /// How often.
    pub limits: RestartLimits,
}

impl Keeper {
    /// With the limits that sessions have.
    pub(crate) fn new(services: &Services) -> Self {
        Self { metrics: services.metrics.clone(), clock: services.clock.clone(), limits: services.settings.restart }
    }

    /// Starts a part, and again after each panic: after 50 ms, 100 ms, …, and where that was more often than the limits
    /// allow, once in their period. Returns when the part has ended in order, or with the thread. A dropped future
    /// leaves the part alone, and starts it no more.
    pub(crate) async fn keep(self, part: &'static str, mut start: impl FnMut() -> JoinHandle<()>) {
        let mut restarts = RestartPolicy::new(self.limits);
        while let Err(cause) = start().await {
            if !cause.is_panic() {
                return;
            }
            let delay = restarts.on_end_of_part(self.clock.steady());
            self.metrics.restarted(RestartCause::Panic);
            tracing::error!(
                marker = "[ACP]",
                part,
                %cause,
                delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
                "service part panicked and is restarted"
            );
            sleep(delay).await;
        }
    }
}
