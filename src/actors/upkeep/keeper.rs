//! Restarts a part of the service after a panic, by the restart rule.

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

/// Dependencies for restarting a part.
#[derive(Clone)]
pub(crate) struct Keeper {
    pub metrics: Metrics,
    pub clock: Arc<dyn Clock>,
    /// Limits on the number of restarts.
    pub limits: RestartLimits,
}

impl Keeper {
    /// Creates a keeper with the restart limits of sessions.
    pub(crate) fn new(services: &Services) -> Self {
        Self { metrics: services.metrics.clone(), clock: services.clock.clone(), limits: services.settings.restart }
    }

    /// Starts a part, and restarts it after each panic: after 50 ms, 100 ms, …, and beyond the limits once per
    /// period. Returns when the part ends without a panic or its thread stops.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the part running and stops restarting it.
    pub(crate) async fn keep(self, part: &'static str, mut start: impl FnMut() -> JoinHandle<()>) {
        let mut restarts = RestartPolicy::new(self.limits);
        while let Err(cause) = start().await {
            // The task was aborted, which is not a failure of the part.
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
