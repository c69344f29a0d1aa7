//! Figures of a period: turns and latency by protocol, flips, and automation.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{
    contract::runs::AutomationCounts,
    domain::{clock::Timestamp, ids::InstallationId},
};

/// The period and tenant of a summary.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct SummaryQuery {
    /// Restricts the summary to this tenant; absent: all tenants.
    pub installation_id: Option<InstallationId>,
    /// Start of the period, RFC 3339. Default: 30 days before `until`.
    pub from: Option<Timestamp>,
    /// End of the period, exclusive, RFC 3339. Default: now.
    pub until: Option<Timestamp>,
}

/// Answer to `GET /acp/audit/summary`: turns and flips by day and tenant.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AuditSummary {
    /// The time since which the figures are complete: the requested one, or later if the period was cut.
    pub from: Timestamp,
    /// End of the period, exclusive.
    pub until: Timestamp,
    /// True if the period was cut because it holds too many records; request a shorter one for the rest.
    pub truncated: bool,
    /// Sums over the listed days and tenants.
    pub total: SummaryTotal,
    /// By day (UTC) and tenant, the newest day first; days without records are omitted.
    pub days: Vec<SummaryDay>,
}

/// All days of a period together.
#[derive(Debug, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SummaryTotal {
    /// Turns that ACP carried.
    pub acp: TurnCounts,
    /// Turns over the HTTP fallback.
    pub http: TurnCounts,
    /// The share of turns over ACP, 0 to 1; null without turns.
    pub acp_share: Option<f64>,
    /// Flips of workspaces to HTTP.
    pub flips_to_http: u64,
    /// Flips of workspaces back to ACP.
    pub flips_to_acp: u64,
    /// Attempts of automation.
    pub automation: AutomationCounts,
}

/// One day of one tenant.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SummaryDay {
    /// The day in UTC, such as `2026-11-25`.
    pub day: String,
    pub installation_id: InstallationId,
    /// Turns that ACP carried.
    pub acp: ProtocolDay,
    /// Turns over the HTTP fallback.
    pub http: ProtocolDay,
    /// The share of turns over ACP, 0 to 1; null without turns.
    pub acp_share: Option<f64>,
    /// Speed gain of ACP over HTTP; null unless both protocols carried completed turns.
    pub acp_gain: Option<AcpGain>,
    /// Flips of workspaces to HTTP.
    pub flips_to_http: u64,
    /// Flips of workspaces back to ACP.
    pub flips_to_acp: u64,
    /// Attempts of automation, by the time of their end.
    pub automation: AutomationCounts,
}

/// Numbers of turns by outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TurnCounts {
    pub turns: u64,
    pub completed: u64,
    /// Turns that were cancelled on request; they count neither as success nor as failure.
    pub cancelled: u64,
    pub failed: u64,
    /// Interrupted by a stop of the service.
    pub interrupted: u64,
    /// Turns that have not ended yet.
    pub open: u64,
    /// The share of completed turns among those that completed, failed or were interrupted, 0 to 1; null without such
    /// turns. Unlike in a workspace's success window, faults of the model's provider count.
    pub success_rate: Option<f64>,
}

/// The turns of one protocol, of one tenant, on one day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProtocolDay {
    /// Numbers of turns by outcome.
    #[serde(flatten)]
    pub counts: TurnCounts,
    /// Median duration of completed turns in milliseconds.
    pub p50_ms: Option<f64>,
    /// 95th percentile of the duration of completed turns in milliseconds.
    pub p95_ms: Option<f64>,
}

/// The share of time that ACP saves against HTTP: 0.5 means half the time, below 0 ACP was slower.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AcpGain {
    /// Gain of the median duration, as a fraction.
    pub p50: f64,
    /// Gain of the 95th percentile, as a fraction.
    pub p95: f64,
}

/// The most days of tenants in one answer: about 1 MB.
pub(crate) const MAX_SUMMARY_DAYS: usize = 2000;

impl TurnCounts {
    /// Derives the sum and the success rate.
    pub(crate) fn new(completed: u64, cancelled: u64, failed: u64, interrupted: u64, open: u64) -> Self {
        let ended = completed + failed + interrupted;
        Self {
            turns: ended + cancelled + open,
            completed,
            cancelled,
            failed,
            interrupted,
            open,
            success_rate: share(completed, ended),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self::new(
            self.completed + other.completed,
            self.cancelled + other.cancelled,
            self.failed + other.failed,
            self.interrupted + other.interrupted,
            self.open + other.open,
        )
    }
}

impl SummaryDay {
    /// Derives the shares and the gain of a day from its figures.
    pub(crate) fn new(
        day: Timestamp,
        installation_id: InstallationId,
        (acp, http): (ProtocolDay, ProtocolDay),
        (flips_to_http, flips_to_acp): (u64, u64),
        automation: AutomationCounts,
    ) -> Self {
        let gain = |acp: Option<f64>, http: Option<f64>| match (acp, http) {
            (Some(acp), Some(http)) if http > 0.0 => Some(1.0 - acp / http),
            _ => None,
        };
        let gains = gain(acp.p50_ms, http.p50_ms).zip(gain(acp.p95_ms, http.p95_ms));
        Self {
            day: date(day),
            installation_id,
            acp,
            http,
            acp_share: share(acp.counts.turns, acp.counts.turns + http.counts.turns),
            acp_gain: gains.map(|(p50, p95)| AcpGain { p50, p95 }),
            flips_to_http,
            flips_to_acp,
            automation,
        }
    }
}

impl AuditSummary {
    /// Sums days up, the newest first. Keeps at most `most` entries and drops a day as a whole, unless it is the only
    /// one; the period then begins with the oldest day that is left.
    pub(crate) fn new(
        (asked, whole_from, until): (Timestamp, Timestamp, Timestamp),
        mut days: Vec<(Timestamp, SummaryDay)>,
        most: usize,
    ) -> Self {
        let mut from = whole_from;
        if let Some((dropped, _)) = days.get(most) {
            let dropped = *dropped;
            days.truncate(most);
            // The tenants of a day belong together.
            if days.first().is_some_and(|(newest, _)| *newest != dropped) {
                days.retain(|(day, _)| *day != dropped);
            }
            from = days.last().map_or(from, |(oldest, _)| from.max(*oldest));
        }
        let truncated = from > asked || whole_from > asked;
        let days: Vec<_> = days.into_iter().map(|(_, day)| day).collect();
        let mut total = days.iter().fold(SummaryTotal::default(), |total, day| SummaryTotal {
            acp: total.acp.plus(day.acp.counts),
            http: total.http.plus(day.http.counts),
            acp_share: None,
            flips_to_http: total.flips_to_http + day.flips_to_http,
            flips_to_acp: total.flips_to_acp + day.flips_to_acp,
            automation: total.automation.plus(&day.automation),
        });
        total.acp_share = share(total.acp.turns, total.acp.turns + total.http.turns);
        Self { from, until, truncated, total, days }
    }
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn date(day: Timestamp) -> String {
    let text = day.to_string();
    text.split('T').next().unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_US: i64 = 86_400_000_000;

    fn day(number: i64, tenant: &str, completed: u64, failed: u64) -> (Timestamp, SummaryDay) {
        let at = Timestamp(number * DAY_US);
        let acp = ProtocolDay {
            counts: TurnCounts::new(completed, 1, failed, 0, 0),
            p50_ms: Some(5.0),
            p95_ms: Some(30.0),
        };
        let http = ProtocolDay { counts: TurnCounts::new(1, 0, 0, 0, 0), p50_ms: Some(20.0), p95_ms: Some(20.0) };
        let automation = AutomationCounts::new(completed, 0, [("other".to_owned(), 1)].into());
        (at, SummaryDay::new(at, tenant.parse().unwrap(), (acp, http), (2, 1), automation))
    }

    #[test]
    fn a_summary_adds_up_days_and_derives_the_gain() {
        let days = vec![day(20_782, "a", 3, 1), day(20_781, "a", 5, 0)];
        assert_eq!(days[0].1.day, "2026-11-25");
        let gain = days[0].1.acp_gain.unwrap();
        assert!((gain.p50 - 0.75).abs() < 1e-9 && (gain.p95 + 0.5).abs() < 1e-9, "{gain:?}");
        let summary = AuditSummary::new((Timestamp(0), Timestamp(0), Timestamp(i64::MAX)), days, 10);
        assert_eq!(summary.total.acp, TurnCounts::new(8, 2, 1, 0, 0));
        assert_eq!((summary.total.acp.turns, summary.total.http.turns), (11, 2));
        assert_eq!(summary.total.acp.success_rate, Some(8.0 / 9.0), "a cancel counts neither way");
        assert_eq!((summary.total.flips_to_http, summary.total.flips_to_acp), (4, 2));
        assert_eq!(summary.total.acp_share, Some(11.0 / 13.0));
        assert_eq!((summary.total.automation.runs, summary.total.automation.skips["other"]), (10, 2));
        assert!(!summary.truncated);
        assert_eq!(TurnCounts::default().success_rate, None);
    }

    #[test]
    fn a_long_summary_is_cut_by_whole_days_and_marked() {
        let days = || vec![day(3, "a", 1, 0), day(3, "b", 1, 0), day(2, "a", 1, 0), day(2, "b", 1, 0)];
        let of = |most| AuditSummary::new((Timestamp(0), Timestamp(0), Timestamp(i64::MAX)), days(), most);
        assert_eq!((of(4).days.len(), of(4).truncated), (4, false));
        let cut = of(3);
        assert_eq!((cut.days.len(), cut.truncated, cut.from), (2, true, Timestamp(3 * DAY_US)));
        assert_eq!((of(1).days.len(), of(1).truncated), (1, true), "a single day is cut in the middle");
        let earlier = AuditSummary::new((Timestamp(0), Timestamp(9), Timestamp(10)), Vec::new(), 3);
        assert_eq!((earlier.truncated, earlier.from), (true, Timestamp(9)), "the store cut it already");
    }
}
