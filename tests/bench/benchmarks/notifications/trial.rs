//! One point: a server, its subscribers, and notifications that are caused one after the other.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Deserializer, de::Error};
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::sleep;
use uuid::Uuid;

use super::{
    NotificationsPlan,
    subscriber::{Counter, Log, Subscriber},
    tally::{Clocks, Expected, Tally},
};
use crate::support::{
    api::{INSTALLATION, OK, close_on, open_on, read},
    cli::progress,
    conversation::BenchError,
    http::HttpLink,
    processes::{self, Memory},
    program::{Program, Workplace},
};

const WORKSPACE: &str = "notifications";
/// Simultaneous upgrades: few enough that no queue of the server overflows.
const AT_ONCE: usize = 64;
/// Notifications before those whose latency counts.
const WARM_UP: u32 = 2;
/// Time limit for the arrival of a notification at all subscribers; later arrivals are reported as missing.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(30);
/// Pause in which the memory of the server settles.
const SETTLE: Duration = Duration::from_millis(500);

/// Results of a point.
pub(crate) struct Measured {
    pub tally: Tally,
    /// Time until all subscribers were welcomed.
    pub connecting: Duration,
    /// Processor time of the server and of this process while connecting.
    pub connecting_cpu: [Duration; 2],
    /// From the first notification that counts to the last.
    pub notifying: Duration,
    /// Processor time of the server and of this process while notifying.
    pub notifying_cpu: [Duration; 2],
    /// The server before the first subscriber, with all subscribers, and after the last notification.
    pub memory: [Memory; 3],
    /// Subscribers that the server evicted, by its own count.
    pub evictions: u64,
    /// Subscribers whose connection ended.
    pub lost: u64,
    /// Reason of the first ended connection.
    pub lost_sample: Option<String>,
    /// Lines of level ERROR in the log of the server.
    pub errors_logged: u64,
}

pub(crate) async fn measure(
    workplace: &Workplace,
    folder: &Path,
    plan: &NotificationsPlan,
    subscribers: usize,
) -> Result<Measured, BenchError> {
    let program = Program::start(workplace, "serve", folder, &plan.settings(subscribers)).await?;
    let stage = Stage::prepare(&program).await?;
    let measured = stage.measure(plan, subscribers).await?;
    let errors_logged = program.stop().await?;
    Ok(Measured { errors_logged, ..measured })
}

/// A call that caused a notification.
struct Caused {
    answered: Instant,
    counts: bool,
}

struct Stage<'a> {
    program: &'a Program,
    link: HttpLink,
    flips: u32,
    counter: Arc<Counter>,
}

impl<'a> Stage<'a> {
    /// Creates a workspace that can be rolled back, and causes its first notifications, which cost more than later ones.
    async fn prepare(program: &'a Program) -> Result<Self, BenchError> {
        let mut link = HttpLink::new(program.address());
        let session = open_on(&mut link, WORKSPACE).await.map_err(BenchError::Open)?;
        close_on(&mut link, &session).await.map_err(BenchError::Open)?;
        let mut stage = Self { program, link, flips: 0, counter: Arc::default() };
        stage.flip().await?;
        stage.flip().await?;
        Ok(stage)
    }

    async fn measure(mut self, plan: &NotificationsPlan, count: usize) -> Result<Measured, BenchError> {
        let count_before = self.notifications().await?.len();
        sleep(SETTLE).await;
        let before = self.memory();
        let (begin, cpu) = (Instant::now(), self.cpu());
        let path = format!("/ws/notifications?installationId={INSTALLATION}&workspaceId={WORKSPACE}");
        let opening = (0..count).map(|_| Subscriber::open(self.program.address(), &path, self.counter.clone()));
        let subscribers: Vec<_> =
            stream::iter(opening).buffer_unordered(AT_ONCE).try_collect().await.map_err(BenchError::Trial)?;
        let (connecting, connecting_cpu) = (begin.elapsed(), since(cpu, self.cpu()));
        sleep(SETTLE).await;
        let connected = self.memory();

        progress(&format!("notifying {count} subscribers"));
        let mut caused = self.notify(WARM_UP, false, count, plan.pause, 0).await?;
        let (begin, cpu) = (Instant::now(), self.cpu());
        caused.extend(self.notify(plan.notifications, true, count, plan.pause, caused.len()).await?);
        let (notifying, notifying_cpu) = (begin.elapsed(), since(cpu, self.cpu()));
        let clocks = Clocks::now();
        let memory = [before, connected, self.memory()];
        let evictions = sum_of(&self.metrics().await?, "lumilink_toast_evictions_total");
        let expected = self.expected(count_before, &caused, clocks).await?;
        let logs: Vec<Log> = subscribers.iter().map(Subscriber::log).collect();
        let mut ended = logs.iter().filter_map(|log| log.ended.as_ref());
        let (lost_sample, others) = (ended.next().cloned(), ended.count());
        Ok(Measured {
            tally: Tally::new(&expected, &logs),
            connecting,
            connecting_cpu,
            notifying,
            notifying_cpu,
            memory,
            evictions,
            lost: u64::from(lost_sample.is_some()) + u64::try_from(others).unwrap_or(u64::MAX),
            lost_sample,
            errors_logged: 0,
        })
    }

    /// Causes notifications, each after a pause that follows the arrival of the previous one at all subscribers.
    async fn notify(
        &mut self,
        notifications: u32,
        counts: bool,
        subscribers: usize,
        pause: Duration,
        before: usize,
    ) -> Result<Vec<Caused>, BenchError> {
        let mut caused = Vec::new();
        for _ in 0..notifications {
            sleep(pause).await;
            caused.push(Caused { answered: self.flip().await?, counts });
            let all = u64::try_from((before + caused.len()) * subscribers).unwrap_or(u64::MAX);
            if !self.counter.until(all, ARRIVAL_LIMIT).await {
                progress(&format!("a notification did not arrive everywhere within {} s", ARRIVAL_LIMIT.as_secs()));
            }
        }
        Ok(caused)
    }

    /// Rolls the workspace back or restores it, in turns; returns the time of the answer.
    async fn flip(&mut self) -> Result<Instant, BenchError> {
        let verb = if self.flips.is_multiple_of(2) { "rollback" } else { "restore" };
        self.flips += 1;
        let body = json!({"actor": "bench", "reason": "bench"}).to_string();
        let answer = self
            .link
            .post(&format!("/acp/workspaces/{WORKSPACE}/{verb}?installationId={INSTALLATION}"), body.into())
            .await;
        let answered = Instant::now();
        let answer = answer.map_err(BenchError::Trial)?;
        read::<serde::de::IgnoredAny>(&answer, OK).map_err(BenchError::Trial)?;
        Ok(answered)
    }

    /// The server's list of notifications, matched with the calls in their order.
    async fn expected(
        &mut self,
        count_before: usize,
        caused: &[Caused],
        clocks: Clocks,
    ) -> Result<Vec<Expected>, BenchError> {
        let listed = self.notifications().await?.split_off(count_before);
        if listed.len() != caused.len() {
            let what = format!("{} calls caused {} notifications", caused.len(), listed.len());
            return Err(BenchError::Trial(what));
        }
        let match_up = |(notification, caused): (Notification, &Caused)| Expected {
            id: notification.id,
            created: clocks.steady(notification.created_at),
            answered: caused.answered,
            counts: caused.counts,
        };
        Ok(listed.into_iter().zip(caused).map(match_up).collect())
    }

    /// All notifications of the workspace, in order.
    async fn notifications(&mut self) -> Result<Vec<Notification>, BenchError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Page {
            items: Vec<Item>,
            next_cursor: Option<String>,
        }
        #[derive(Deserialize)]
        struct Item {
            #[serde(rename = "toast")]
            notification: Notification,
        }
        let path = format!("/acp/notifications?installationId={INSTALLATION}&workspaceId={WORKSPACE}");
        let (mut notifications, mut next) = (Vec::new(), path.clone());
        loop {
            let answer = self.link.get(&next).await.map_err(BenchError::Trial)?;
            let page: Page = read(&answer, OK).map_err(BenchError::Trial)?;
            notifications.extend(page.items.into_iter().map(|item| item.notification));
            let Some(cursor) = page.next_cursor else { break };
            next = format!(
                "{path}&cursor={}",
                url::form_urlencoded::byte_serialize(cursor.as_bytes()).collect::<String>()
            );
        }
        notifications.sort_by_key(|notification| notification.seq);
        Ok(notifications)
    }

    async fn metrics(&mut self) -> Result<String, BenchError> {
        let answer = self.link.get("/metrics").await.map_err(BenchError::Trial)?;
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    fn memory(&self) -> Memory {
        processes::memory(&[self.program.pid()])
    }

    /// Of the server and of this process.
    fn cpu(&self) -> [Duration; 2] {
        [self.program.pid(), std::process::id()].map(|pid| processes::cpu_time(&[pid]))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Notification {
    id: Uuid,
    seq: u64,
    #[serde(deserialize_with = "wall_time")]
    created_at: SystemTime,
}

fn wall_time<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
    let text = String::deserialize(from)?;
    OffsetDateTime::parse(&text, &Rfc3339).map(SystemTime::from).map_err(D::Error::custom)
}

fn since(before: [Duration; 2], now: [Duration; 2]) -> [Duration; 2] {
    [now[0].saturating_sub(before[0]), now[1].saturating_sub(before[1])]
}

/// Sum of a metric over all its labels.
fn sum_of(metrics: &str, name: &str) -> u64 {
    let value = |line: &str| {
        let rest = line.strip_prefix(name).filter(|rest| rest.starts_with([' ', '{']))?;
        rest.rsplit(' ').next()?.parse::<u64>().ok()
    };
    metrics.lines().filter_map(value).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_is_summed_over_its_labels_without_metrics_of_similar_name() {
        let metrics =
            "# TYPE a_total counter\na_total{reason=\"x y\"} 2\na_total{reason=\"z\"} 3\na_total_b 7\na_total 1\n";
        assert_eq!((sum_of(metrics, "a_total"), sum_of(metrics, "b")), (6, 0));
    }
}
