//! Availability of the runtime: a state of its own, apart from the health of agents and of ACP.
//!
//! While the runtime is unavailable, sessions wait here instead of restarting, and one task asks for its status after
//! 1, 2, 4 … 30 s. No wait counts as an outcome of ACP or as a restart of an agent.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::{
    domain::{
        clock::{Clock, Timestamp},
        redaction::Redacted,
        session::restart::runtime_delay,
        turn::outcome::{ErrorCode, Failure},
    },
    telemetry::Metrics,
    transport::socket::random_fraction,
};

/// Asks the runtime for its status; true if it answered.
pub(crate) type StatusCheck = Arc<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>;

/// Longest wait of a prompt for an unavailable runtime; then the turn fails with `runtime_unavailable`, and later
/// prompts are refused with it at once. Longer than a restart of a runtime, shorter than the patience of most callers.
pub(crate) const PROMPT_WAIT: Duration = Duration::from_secs(30);

/// Availability of one runtime. Cheap to clone.
#[derive(Clone)]
pub(crate) struct RuntimeAvailability(Arc<Inner>);

struct Inner {
    /// Start of the unavailability, by the steady clock; `None` while the runtime is available.
    since: watch::Sender<Option<Timestamp>>,
    /// Status requests since a connection was opened last.
    attempts: AtomicU32,
    check: StatusCheck,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
}

impl fmt::Debug for RuntimeAvailability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuntimeAvailability").field("since", &*self.0.since.borrow()).finish_non_exhaustive()
    }
}

impl RuntimeAvailability {
    /// Starts as available.
    pub(crate) fn new(check: StatusCheck, clock: Arc<dyn Clock>, metrics: Metrics) -> Self {
        let (since, attempts) = (watch::Sender::new(None), AtomicU32::new(0));
        metrics.runtime_available(true);
        Self(Arc::new(Inner { since, attempts, check, clock, metrics }))
    }

    /// Records the failure of a connection or turn. Only `runtime_unavailable` changes the state; the first one starts
    /// the status requests. Never blocks.
    pub(crate) fn on_failure(&self, failure: &Failure) {
        if failure.code != ErrorCode::RuntimeUnavailable {
            return;
        }
        // Outside a tokio runtime the program is exiting.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let now = self.0.clock.steady();
        let is_first = self.0.since.send_if_modified(|since| since.is_none() && since.replace(now).is_none());
        if !is_first {
            return;
        }
        self.0.metrics.runtime_available(false);
        tracing::warn!(marker = "[ACP]", detail = %Redacted::new(&failure.detail), "runtime is unavailable");
        let this = self.clone();
        runtime.spawn(async move { this.wait_for_answer().await });
    }

    /// Records that a connection to an agent was opened.
    pub(crate) fn on_connected(&self) {
        self.0.attempts.store(0, Ordering::Relaxed);
    }

    /// Time since the runtime became unavailable; `None` while it is available.
    pub(crate) fn unavailable_for(&self) -> Option<Duration> {
        let since = *self.0.since.borrow();
        since.map(|since| self.0.clock.steady().since(since))
    }

    /// Waits until the runtime is available.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(crate) async fn available(&self) {
        // The sender lives as long as this handle.
        let _ = self.0.since.subscribe().wait_for(Option::is_none).await;
    }

    async fn wait_for_answer(self) {
        loop {
            let attempt = self.0.attempts.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(runtime_delay(attempt, random_fraction())).await;
            if (self.0.check)().await {
                break;
            }
        }
        let took = self.unavailable_for().unwrap_or_default();
        let unavailable_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.0.since.send_replace(None);
        self.0.metrics.runtime_available(true);
        tracing::info!(marker = "[ACP]", unavailable_ms, "runtime is available again");
    }
}
