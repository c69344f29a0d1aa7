//! The latency and the cost of notifications to many subscribers of one workspace.
//!
//! Every subscriber is a WebSocket of its own ([`subscriber`]). Notifications are caused one after the other; those that
//! each subscriber received are compared with the server's own list ([`tally`]).

mod frames;
mod report;
mod subscriber;
mod tally;
mod trial;

use std::time::Duration;

use clap::Parser;

use self::report::{NotificationsReport, PointReport, Unmeasured};
use crate::support::{
    cli::{self, Benchmark, CommonArgs, Setup, progress},
    conversation::BenchError,
};

/// Largest number of subscribers: one address has about 28,000 ports for connections to another one.
const MAX_SUBSCRIBERS: usize = 25_000;
const MAX_NOTIFICATIONS: i64 = 10_000;

fn parse_subscribers(text: &str) -> Result<usize, String> {
    cli::parse_count(text, MAX_SUBSCRIBERS)
}

/// Measures notifications to many subscribers of one workspace.
///
/// Prints the latency from the cause to each subscriber, memory and processor time, and evictions. Every notification of
/// every subscriber is counted by its id.
#[derive(Debug, Parser)]
#[command(name = "notifications", bin_name = "cargo bench --bench notifications --")]
pub(crate) struct NotificationsPlan {
    /// Numbers of subscribers, each a WebSocket.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "1000,10000", value_parser = parse_subscribers)]
    subscribers: Vec<usize>,
    /// Notifications whose latency counts, at each point.
    #[arg(long = "toasts", value_name = "N", default_value = "40", value_parser = clap::value_parser!(u32).range(1..=MAX_NOTIFICATIONS))]
    notifications: u32,
    /// Pause between the last delivery of a notification and the next one.
    #[arg(long = "pause-ms", value_name = "MS", default_value = "250", value_parser = cli::parse_pause)]
    pause: Duration,
    #[command(flatten)]
    common: CommonArgs,
}

impl NotificationsPlan {
    /// Settings of the supervisor: it admits all subscribers. The settings of the command line come last.
    fn settings(&self, subscribers: usize) -> Vec<String> {
        let mut settings = vec![format!("notifications.max_subscribers={}", subscribers + 10)];
        settings.extend(self.common.settings.iter().cloned());
        settings
    }
}

impl Benchmark for NotificationsPlan {
    const NAME: &'static str = "notifications";
    const MOCKED: &'static str = "the subscribers: one thread of this process, with a socket for each, on the same \
                                  machine; the cause: rollbacks and restores by hand";
    type Report = NotificationsReport;

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    async fn measure(&self, setup: &Setup) -> Result<NotificationsReport, BenchError> {
        let (mut points, mut unmeasured) = (Vec::new(), Vec::new());
        for &subscribers in &self.subscribers {
            progress(&format!("connecting {subscribers} subscribers"));
            match point_of(self, subscribers, setup).await {
                Ok(point) => points.push(point),
                Err(cause) => {
                    progress(&format!("{subscribers} subscribers: not measured: {cause}"));
                    unmeasured.push(Unmeasured { subscribers, reason: cause.to_string() });
                }
            }
        }
        Ok(NotificationsReport::new(self, points, unmeasured))
    }
}

async fn point_of(plan: &NotificationsPlan, subscribers: usize, setup: &Setup) -> Result<PointReport, BenchError> {
    setup.open_files.check_connections(subscribers)?;
    let folder = setup.workplace.folder(&format!("notifications-{subscribers}"))?;
    let measured = trial::measure(&setup.workplace, &folder, plan, subscribers).await;
    setup.workplace.clear(&folder);
    Ok(PointReport::new(subscribers, measured?))
}
