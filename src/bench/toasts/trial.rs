//! One point: a server, its subscribers, and toasts that are caused one after the other.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde::Deserialize;
use serde_json::json;
use tokio::time::sleep;
use uuid::Uuid;

use super::{
    ToastsPlan,
    subscriber::{Counter, Log, Subscriber},
    tally::{Clocks, Expected, Tally},
};
use crate::{
    bench::{
        conversation::BenchError,
        http_link::HttpLink,
        http_path::{INSTALLATION, close_on, open_on, read},
        processes::{self, Memory},
        program::{Program, Workplace},
        progress,
    },
    domain::clock::Timestamp,
};

/// The workspace whose users are told.
const WORKSPACE: &str = "toasts";
/// Upgrades that are under way at the same time: the server accepts as fast as it answers, and no queue overflows.
const AT_ONCE: usize = 64;
/// Toasts before those whose latency counts.
const WARM_UP: u32 = 2;
/// How long all subscribers may take to read one toast; what they have not read then is told as missing.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the figures of memory may settle.
const SETTLE: Duration = Duration::from_millis(500);
const OK: u16 = 200;

/// What was measured of a point.
pub(crate) struct Measured {
    /// Of all subscribers.
    pub tally: Tally,
    /// How long it took until all of them were welcome.
    pub connecting: Duration,
    /// Processor time of the server and of this process meanwhile.
    pub connecting_cpu: [Duration; 2],
    /// From the first toast that counts to the last.
    pub session_notice: Duration,
    /// Processor time of the server and of this process meanwhile.
    pub telling_cpu: [Duration; 2],
    /// The server before the first subscriber, with all of them, and after the last toast.
    pub memory: [Memory; 3],
    /// Subscribers that the server let go, by its own count.
    pub evictions: u64,
    /// Subscribers whose connection ended.
    pub lost: u64,
    /// Why the first of these did.
    pub lost_sample: Option<String>,
    /// Lines of level ERROR in its log.
    pub errors_logged: u64,
}

/// Measures.
pub(crate) async fn measure(
    workplace: &Workplace,
    folder: &Path,
    plan: &ToastsPlan,
    subscribers: usize,
) -> Result<Measured, BenchError> {
    let program = Program::start(workplace, "serve", folder, &plan.settings(subscribers)).await?;
    let stage = Stage::set(&program).await?;
    let measured = stage.measure(plan, subscribers).await?;
    let errors_logged = program.stop().await?;
    Ok(Measured { errors_logged, ..measured })
}

/// A call that caused a toast.
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
    /// A workspace that can be rolled back, and whose first toasts were told: what is made once is made.
    async fn set(program: &'a Program) -> Result<Self, BenchError> {
        let mut link = HttpLink::new(program.address());
        let session = open_on(&mut link, WORKSPACE).await.map_err(BenchError::Open)?;
        close_on(&mut link, &session).await.map_err(BenchError::Open)?;
        let mut stage = Self { program, link, flips: 0, counter: Arc::default() };
        stage.flip().await?;
        stage.flip().await?;
        Ok(stage)
    }

    async fn measure(mut self, plan: &ToastsPlan, count: usize) -> Result<Measured, BenchError> {
        let told_before = self.toasts().await?.len();
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

        progress(&format!("{count} subscribers are told"));
        let mut caused = self.tell(WARM_UP, false, count, plan.pause, 0).await?;
        let (begin, cpu) = (Instant::now(), self.cpu());
        caused.extend(self.tell(plan.toasts, true, count, plan.pause, caused.len()).await?);
        let (session_notice, telling_cpu) = (begin.elapsed(), since(cpu, self.cpu()));
        let clocks = Clocks::now();
        let memory = [before, connected, self.memory()];
        let evictions = sum_of(&self.metrics().await?, "lumilink_toast_evictions_total");
        let expected = self.expected(told_before, &caused, clocks).await?;
        let logs: Vec<Log> = subscribers.iter().map(Subscriber::log).collect();
        let mut ended = logs.iter().filter_map(|log| log.ended.as_ref());
        let (lost_sample, others) = (ended.next().cloned(), ended.count());
        Ok(Measured {
            tally: Tally::new(&expected, &logs),
            connecting,
            connecting_cpu,
            session_notice,
            telling_cpu,
            memory,
            evictions,
            lost: u64::from(lost_sample.is_some()) + u64::try_from(others).unwrap_or(u64::MAX),
            lost_sample,
            errors_logged: 0,
        })
    }

    /// Causes toasts, each when all subscribers have read the one before. The first pause is before the first one.
    async fn tell(
        &mut self,
        toasts: u32,
        counts: bool,
        subscribers: usize,
        pause: Duration,
        before: usize,
    ) -> Result<Vec<Caused>, BenchError> {
        let mut caused = Vec::new();
        for _ in 0..toasts {
            sleep(pause).await;
            caused.push(Caused { answered: self.flip().await?, counts });
            let all = u64::try_from((before + caused.len()) * subscribers).unwrap_or(u64::MAX);
            if !self.counter.until(all, PATIENCE).await {
                progress(&format!("a toast was not read by everyone within {} s", PATIENCE.as_secs()));
            }
        }
        Ok(caused)
    }

    /// Rolls the workspace back or restores it, in turns; gives the moment of the answer.
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

    /// What the list says was told, matched with the calls in their order.
    async fn expected(
        &mut self,
        told_before: usize,
        caused: &[Caused],
        clocks: Clocks,
    ) -> Result<Vec<Expected>, BenchError> {
        let told = self.toasts().await?.split_off(told_before);
        if told.len() != caused.len() {
            let what = format!("{} calls caused {} toasts", caused.len(), told.len());
            return Err(BenchError::Trial(what));
        }
        let match_up = |(toast, caused): (Toast, &Caused)| Expected {
            id: toast.id,
            created: clocks.steady(toast.created_at),
            answered: caused.answered,
            counts: caused.counts,
        };
        Ok(told.into_iter().zip(caused).map(match_up).collect())
    }

    /// All toasts of the workspace, in their order.
    async fn toasts(&mut self) -> Result<Vec<Toast>, BenchError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Page {
            items: Vec<Item>,
            next_cursor: Option<String>,
        }
        #[derive(Deserialize)]
        struct Item {
            toast: Toast,
        }
        let path = format!("/acp/notifications?installationId={INSTALLATION}&workspaceId={WORKSPACE}");
        let (mut toasts, mut next) = (Vec::new(), path.clone());
        loop {
            let answer = self.link.get(&next).await.map_err(BenchError::Trial)?;
            let page: Page = read(&answer, OK).map_err(BenchError::Trial)?;
            toasts.extend(page.items.into_iter().map(|item| item.toast));
            let Some(cursor) = page.next_cursor else { break };
            next = format!(
                "{path}&cursor={}",
                url::form_urlencoded::byte_serialize(cursor.as_bytes()).collect::<String>()
            );
        }
        toasts.sort_by_key(|toast| toast.seq);
        Ok(toasts)
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
struct Toast {
    id: Uuid,
    seq: u64,
    created_at: Timestamp,
}

fn since(before: [Duration; 2], now: [Duration; 2]) -> [Duration; 2] {
    [now[0].saturating_sub(before[0]), now[1].saturating_sub(before[1])]
}

/// The sum of a metric over all its labels.
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
    fn a_metric_is_summed_over_its_labels_and_others_of_a_like_name_are_not() {
        let metrics =
            "# TYPE a_total counter\na_total{reason=\"x y\"} 2\na_total{reason=\"z\"} 3\na_total_b 7\na_total 1\n";
        assert_eq!((sum_of(metrics, "a_total"), sum_of(metrics, "b")), (6, 0));
    }
}
