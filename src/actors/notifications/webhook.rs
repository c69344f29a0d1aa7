//! Posts operators' notifications to the webhook until the receiver accepts them or they are given up.
//!
//! The rows are authoritative: a commit only wakes this task, and deliveries of an earlier process are found there.
//! [`crate::domain::notify::webhook`] decides which answers are final and when the next attempt is due.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::{JoinHandle, JoinSet},
    time::sleep,
};
use uuid::Uuid;

use crate::{
    actors::{handles::subscriber::notification_of, upkeep::keeper::Keeper},
    contract::notifications::webhook::{WEBHOOK_VERSION, WebhookEvent},
    domain::{
        clock::Clock,
        notify::webhook::{Answer, Verdict, WebhookRules, retry_after},
        redaction::Redacted,
    },
    store::{
        ClaimDeliveries, Claimed, DueDelivery, GivenUpDelivery, NotificationRow, Store, StoreError, TriedDelivery,
    },
    telemetry::Metrics,
    webhook::{Answered, NoAnswer, Poster},
};

/// Concurrent posts: a slow one does not delay the others, and the receiver is not flooded.
const MAX_OUT: usize = 4;
/// Time by which a claim outlives its post, so that the outcome is on disk before another process tries.
const LEASE_MARGIN: Duration = Duration::from_secs(5);
/// Polling interval without a wake-up: for deliveries that other replicas left, and for changes of the clock.
const LOOK: Duration = Duration::from_secs(30);
/// Pause before the database is queried again after an error, or after another replica claimed the deliveries.
const PAUSE: Duration = Duration::from_secs(2);

/// Stops the posting of operators' alerts. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct WebhookStop(Arc<Stop>);

#[derive(Debug, Default)]
struct Stop {
    asked: Notify,
    is_closed: AtomicBool,
}

impl WebhookStop {
    /// Stops [`Webhooks::run`] once the pending posts have ended.
    pub(crate) fn close(&self) {
        self.0.is_closed.store(true, Ordering::Release);
        self.0.asked.notify_one();
    }

    fn is_closed(&self) -> bool {
        self.0.is_closed.load(Ordering::Acquire)
    }
}

/// Poster of operators' notifications. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Webhooks {
    pub store: Store,
    pub metrics: Metrics,
    pub clock: Arc<dyn Clock>,
    /// HTTP client of the receiver.
    pub poster: Arc<Poster>,
    /// Number of attempts and pauses between them.
    pub rules: WebhookRules,
    /// Time limit of one post.
    pub timeout: Duration,
}

impl Webhooks {
    /// Runs on this thread, and restarts after a panic: posts that were pending are repeated once their lease has
    /// expired. The handle completes when [`Self::run`] does.
    pub(crate) fn start(self, stop: WebhookStop, keeper: Keeper) -> JoinHandle<()> {
        actix::spawn(keeper.keep("webhooks", move || actix::spawn(self.clone().run(stop.clone()))))
    }

    /// Posts until the stop is closed, then waits for the pending posts: at most `timeout` and the write of its row.
    ///
    /// # Cancel safety
    /// Pending posts of a dropped future are repeated under the same delivery id.
    pub(crate) async fn run(self, stop: WebhookStop) {
        let (mut out, grown) = (JoinSet::new(), self.store.grown_streams());
        while !stop.is_closed() {
            // With all places taken, the end of a post is the next event, and it wakes the loop.
            let wait = if out.len() < MAX_OUT { self.send_due(&mut out).await } else { LOOK };
            tokio::select! {
                () = stop.0.asked.notified() => {}
                () = grown.operators() => {}
                Some(ended) = out.join_next() => log_aborted(ended),
                () = sleep(wait) => {}
            }
        }
        while let Some(ended) = out.join_next().await {
            log_aborted(ended);
        }
    }

    /// Starts due posts up to `MAX_OUT`. Returns the wait until the next check.
    async fn send_due(&self, out: &mut JoinSet<()>) -> Duration {
        match self.begin_due(out).await {
            Ok(wait) => wait.min(LOOK),
            Err(cause) => {
                tracing::warn!(marker = "[ACP]", %cause, "due webhook deliveries could not be read; retrying");
                PAUSE
            }
        }
    }

    async fn begin_due(&self, out: &mut JoinSet<()>) -> Result<Duration, StoreError> {
        loop {
            let (now, longest_wait) = (self.clock.now(), self.rules.longest_wait());
            let backlog = self.store.webhook_backlog(longest_wait, now).await?;
            self.metrics.webhooks().backlog(backlog.pending, backlog.dead);
            let Some(next) = backlog.next else { return Ok(LOOK) };
            let limit = MAX_OUT - out.len().min(MAX_OUT);
            if next > now || limit == 0 {
                return Ok(next.since(now));
            }
            let wanted = ClaimDeliveries { limit, lease: self.timeout + LEASE_MARGIN, longest_wait, now };
            let Claimed { due, given_up } = self.store.claim_deliveries(wanted).await?;
            if due.is_empty() && given_up.is_empty() {
                // Another replica claimed them first.
                return Ok(PAUSE);
            }
            for GivenUpDelivery { delivery_id, reason } in given_up {
                self.metrics.webhooks().tried(Verdict::Dead);
                tracing::error!(marker = "[ACP]", delivery_id, %reason, "webhook delivery is unusable and was given up");
            }
            for due in due {
                let this = self.clone();
                out.spawn(async move { this.send(due).await });
            }
        }
    }

    async fn send(&self, due: DueDelivery) {
        let DueDelivery { delivery_id, attempt, lease_until, notification } = due;
        let answered = match body(&notification) {
            Ok(body) => self.poster.post(delivery_id, body, self.clock.now()).await,
            Err(cause) => {
                // The delivery stays pending and is attempted again after its lease, until it expires.
                tracing::error!(marker = "[ACP]", %delivery_id, %cause, "notification is not valid JSON");
                return;
            }
        };
        let now = self.clock.now();
        let answer = answered.as_ref().ok().map(|answered| Answer {
            status: answered.status,
            retry_after: answered.retry_after.as_deref().and_then(|text| retry_after(text, now)),
        });
        // The upper 32 bits of a random id are random.
        let fraction = (Uuid::new_v4().as_u128() >> 96) as f64 / f64::from(u32::MAX);
        let verdict = self.rules.judge(attempt, answer, fraction);
        self.metrics.webhooks().tried(verdict);
        log_result(delivery_id, attempt, &notification, &answered, verdict);
        let tried = TriedDelivery {
            delivery_id,
            lease_until,
            verdict,
            status: answer.map(|answer| answer.status),
            error: answered.as_ref().err().map(|cause| Redacted::new(&cause.to_string())),
            now,
        };
        if let Err(cause) = self.store.settle_delivery(tried).await {
            tracing::warn!(marker = "[ACP]", %delivery_id, %cause, "webhook result was not written; the post may be repeated");
        }
    }
}

fn log_aborted(ended: Result<(), tokio::task::JoinError>) {
    if let Err(cause) = ended {
        tracing::error!(marker = "[ACP]", %cause, "webhook post was aborted; it is repeated");
    }
}

/// Logs the result of one attempt.
fn log_result(
    delivery_id: Uuid,
    attempt: u32,
    notification: &NotificationRow,
    answered: &Result<Answered, NoAnswer>,
    verdict: Verdict,
) {
    let (notification_id, alert) = (notification.notification_id, notification.trigger.as_str());
    let answer = match answered {
        Ok(answered) => format!("status {}", answered.status),
        Err(cause) => cause.to_string(),
    };
    match verdict {
        Verdict::Delivered => {
            tracing::info!(marker = "[ACP]", %delivery_id, %notification_id, alert, attempt, answer, "webhook delivered");
        }
        Verdict::Retry(wait) => {
            let retry_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(marker = "[ACP]", %delivery_id, %notification_id, alert, attempt, answer, retry_ms, "webhook post failed; retrying");
        }
        Verdict::Dead => {
            tracing::error!(marker = "[ACP]", %delivery_id, %notification_id, alert, attempt, answer, "webhook post was given up; `lumilink webhook replay` repeats it");
        }
    }
}

/// Body of the post; identical bytes for each attempt.
fn body(row: &NotificationRow) -> serde_json::Result<String> {
    serde_json::to_string(&WebhookEvent::Notification {
        version: WEBHOOK_VERSION,
        timestamp: row.created.to_string(),
        notification: notification_of(row),
        data: row.figures.clone(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use secrecy::SecretString;

    use super::*;
    use crate::{
        domain::{clock::Timestamp, session::restart::RestartLimits},
        telemetry::SystemClock,
        webhook::{PosterOptions, Signer},
    };

    /// Panics at the first reading, and counts the readings.
    #[derive(Default)]
    struct Broken(AtomicUsize);

    impl Clock for Broken {
        fn now(&self) -> Timestamp {
            assert!(self.0.fetch_add(1, Ordering::SeqCst) > 0, "intended by the test");
            SystemClock.now()
        }

        fn steady(&self) -> Timestamp {
            SystemClock.steady()
        }
    }

    #[actix::test]
    async fn posting_continues_after_a_panic_and_stops_on_request() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::for_tests(&folder.path().join("test.db"));
        let secret = SecretString::from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned());
        let signer = Signer::new([&secret]).unwrap();
        let timeout = Duration::from_secs(1);
        let url = SecretString::from("http://127.0.0.1:9".to_owned());
        let (metrics, clock) = (Metrics::new("0", None).unwrap(), Arc::new(Broken::default()));
        let webhooks = Webhooks {
            store,
            metrics: metrics.clone(),
            clock: clock.clone(),
            poster: Arc::new(Poster::new(PosterOptions { url: &url, signer, timeout }).unwrap()),
            rules: WebhookRules { max_attempts: 1, first_retry: timeout, max_retry: timeout },
            timeout,
        };
        let limits = RestartLimits { max_restarts: 5, within: Duration::from_secs(30) };
        let keeper = Keeper { metrics: metrics.clone(), clock: Arc::new(SystemClock), limits };
        let stop = WebhookStop::default();
        let posting = webhooks.start(stop.clone(), keeper);
        while clock.0.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
        assert!(metrics.render().unwrap().contains("lumilink_restarts_total{cause=\"panic\"} 1\n"));
        stop.close();
        posting.await.unwrap();
    }
}
