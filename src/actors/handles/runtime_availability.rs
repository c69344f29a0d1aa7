//! Availability of the runtime: a state of its own, apart from the health of agents and of ACP.
//!
//! While the runtime is unavailable, sessions wait here instead of restarting, and one task asks for its status after
//! 1, 2, 4 … 30 s. No wait counts as an outcome of ACP or as a restart of an agent.
//!
//! A runtime that nobody uses is asked every 10 s, so that health and metrics show that it does not answer. That alone
//! changes nothing for sessions.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
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

/// Time between two status requests to a runtime that answers.
const CHECK_EVERY: Duration = Duration::from_secs(10);
/// Status requests without an answer, one after the other, after which the runtime counts as silent: a busy one may miss
/// one.
const SILENT_AFTER: u32 = 2;
/// Time to the next request after one without an answer.
const CHECK_AGAIN: Duration = Duration::from_secs(1);

/// Availability of one runtime. Cheap to clone.
#[derive(Clone)]
pub(crate) struct RuntimeAvailability(Arc<Inner>);

struct Inner {
    /// Start of the unavailability, by the steady clock; `None` while the runtime is available.
    since: watch::Sender<Option<Timestamp>>,
    /// Status requests since a connection was opened last.
    attempts: AtomicU32,
    /// True if it did not answer [`SILENT_AFTER`] status requests.
    is_silent: AtomicBool,
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
        let (since, attempts, is_silent) = (watch::Sender::new(None), AtomicU32::new(0), AtomicBool::new(false));
        metrics.runtime_available(true);
        Self(Arc::new(Inner { since, attempts, is_silent, check, clock, metrics }))
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
        self.publish();
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

    /// True if the runtime answers: sessions do not wait for it, and it answered one of the last status requests.
    pub(crate) fn answers(&self) -> bool {
        self.0.since.borrow().is_none() && !self.0.is_silent.load(Ordering::Relaxed)
    }

    fn publish(&self) {
        self.0.metrics.runtime_available(self.answers());
    }

    /// Asks the runtime for its status, at once and then every 10 s, and logs when it falls silent and answers again.
    /// Never returns.
    pub(crate) async fn watch(self) {
        let mut missed = 0;
        loop {
            let is_answered = (self.0.check)().await;
            missed = if is_answered { 0 } else { missed + 1 };
            let is_silent = missed >= SILENT_AFTER;
            let was_silent = self.0.is_silent.load(Ordering::Relaxed);
            if is_answered || is_silent {
                self.0.is_silent.store(is_silent, Ordering::Relaxed);
            }
            match (was_silent, is_silent) {
                (false, true) => {
                    tracing::warn!(marker = "[ACP]", "runtime does not answer; GET /acp/health names the cause");
                }
                (true, false) if is_answered => tracing::info!(marker = "[ACP]", "runtime answers"),
                _ => {}
            }
            self.publish();
            tokio::time::sleep(if is_answered { CHECK_EVERY } else { CHECK_AGAIN }).await;
        }
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
        self.0.is_silent.store(false, Ordering::Relaxed);
        self.publish();
        tracing::info!(marker = "[ACP]", unavailable_ms, "runtime is available again");
    }
}
