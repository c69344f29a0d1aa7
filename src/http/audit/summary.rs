//! The audit's summary of a period.

use std::time::Duration;

use actix_web::{get, web};

use super::in_order;
use crate::{
    contract::{
        audit::summary::{AuditSummary, MAX_SUMMARY_DAYS, ProtocolDay, SummaryDay, SummaryQuery, TurnCounts},
        runs::AutomationCounts,
    },
    domain::access::Caller,
    http::{HttpState, problem::ApiError, request::Query, rows},
    store::{AuditDay, AutomationFigures, TurnFigures},
};

/// Default length of the period: 30 days.
const PERIOD: Duration = Duration::from_secs(30 * 24 * 3600);

/// Sums up turns, success rates, latency, flips and automation of a period, by day (UTC) and tenant. Covers at most the newest 100,000
/// turns and 2,000 days of tenants: beyond that `truncated` is true, and `from` is the time since which the figures are
/// complete.
#[utoipa::path(
    tag = "audit",
    security(("token" = ["audit.read"])),
    params(SummaryQuery),
    responses(
        (status = 200, description = "The figures", body = AuditSummary),
    )
)]
#[get("/acp/audit/summary")]
pub(crate) async fn get_summary(
    state: web::Data<HttpState>,
    caller: Caller,
    query: Query<SummaryQuery>,
) -> Result<web::Json<AuditSummary>, ApiError> {
    let SummaryQuery { installation_id, from, until } = query.into_inner();
    let services = state.workspaces.services();
    let until = until.unwrap_or_else(|| services.clock.now());
    let from = from.unwrap_or_else(|| until.minus(PERIOD));
    in_order(Some(from), Some(until))?;
    let summary = services.store.audit_summary(rows::tenant(&caller, installation_id)?, from, until).await?;
    let days = summary.days.into_iter().map(|it| (it.day, day(it))).collect();
    Ok(web::Json(AuditSummary::new((from, summary.from, until), days, MAX_SUMMARY_DAYS)))
}

fn day(it: AuditDay) -> SummaryDay {
    let figures = (protocol(it.acp), protocol(it.http));
    let AutomationFigures { success, error, skips } = it.automation;
    let automation = AutomationCounts::new(success, error, skips);
    SummaryDay::new(it.day, it.installation_id, figures, (it.flips_to_http, it.flips_to_acp), automation)
}

fn protocol(figures: TurnFigures) -> ProtocolDay {
    let TurnFigures { completed, cancelled, failed, interrupted, open, p50, p95 } = figures;
    let millis = |took: Option<Duration>| took.map(|took| took.as_secs_f64() * 1000.0);
    ProtocolDay {
        counts: TurnCounts::new(completed, cancelled, failed, interrupted, open),
        p50_ms: millis(p50),
        p95_ms: millis(p95),
    }
}
