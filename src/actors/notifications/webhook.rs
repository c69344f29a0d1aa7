//! Posts what operators are told, until the receiver has it or it is given up.
//!
//! The rows are the truth: a commit only wakes it, and what an earlier process left is found there. Which
//! answers are final and when the next try is stands in [`crate::domain::notify::webhook`].

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
    contract::notifications::webhook::WebhookEvent,
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

/// Posts that are out at a time: one that takes long holds up no other, and a receiver is not stormed.
const MAX_OUT: usize = 4;
/// A claim outlives its post by this, so that the outcome of it is on disk before somebody else tries.
const LEASE_MARGIN: Duration = Duration::from_secs(5);
/// So often it is looked without being woken: for what other replicas left, and clocks that were set.
const LOOK: Duration = Duration::from_secs(30);
/// Pause before a database is asked again that did not answer.
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
    /// Ends [`Webhooks::run`] as soon as what is out has ended.
    pub(crate) fn close(&self) {
        self.0.is_closed.store(true, Ordering::Release);
        self.0.asked.notify_one();
    }

    fn is_closed(&self) -> bool {
        self.0.is_closed.load(Ordering::Acquire)
    }
}

/// Posts. Cheap to clone behind the parts that it holds.
#[derive(Clone)]
pub(crate) struct Webhooks {
    /// Where deliveries are kept.
    pub store: Store,
    pub metrics: Metrics,
    pub clock: Arc<dyn Clock>,
    /// The way to the receiver.
    pub poster: Arc<Poster>,
    /// How often and how soon it is tried.
    pub rules: WebhookRules,
    /// How long one post may take.
    pub timeout: Duration,
}

impl Webhooks {
    /// Runs on this thread, and begins anew each time that it panics: what was out then is posted again once its lease
    /// is over. The handle ends as [`Self::run`] does.
    pub(crate) fn start(self, stop: WebhookStop, keeper: Keeper) -> JoinHandle<()> {
        actix::spawn(keeper.keep("webhooks", move || actix::spawn(self.clone().run(stop.clone()))))
    }

    /// Posts until the stop is closed, then waits for what is out: at most as long as one post may take, and its row. A
    /// dropped future may have posted what is posted again, under the same id.
    pub(crate) async fn run(self, stop: WebhookStop) {
        let (mut out, grown) = (JoinSet::new(), self.store.grown_streams());
        while !stop.is_closed() {
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

    /// Begins what is due, as far as there is room. Says when to look again.
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
                // Another replica was faster.
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

/// One line for each try.
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
            tracing::warn!(marker = "[ACP]", %delivery_id, %notification_id, alert, attempt, answer, retry_ms, "a post to the operators' webhook failed and is tried again");
        }
        Verdict::Dead => {
            tracing::error!(marker = "[ACP]", %delivery_id, %notification_id, alert, attempt, answer, "a post to the operators' webhook was given up; lumilink webhook replay tries it again");
        }
    }
}

/// The same bytes for each try.
fn body(row: &NotificationRow) -> serde_json::Result<String> {
    let notification = notification_of(row);
    serde_json::to_string(&WebhookEvent::Notification { notification })
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

    /// Panics the first time that it is looked at, and counts.
    #[derive(Default)]
    struct Broken(AtomicUsize);

    impl Clock for Broken {
        fn now(&self) -> Timestamp {
            assert!(self.0.fetch_add(1, Ordering::SeqCst) > 0, "as the test wants");
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
