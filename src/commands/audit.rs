use std::{io::Write, process::ExitCode};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::flags::{CommandError, ServerFlags, print, print_json, shown};
use crate::client::{
    ApiClient,
    clean::{clean, clean_line},
    requests::Page,
};

#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    #[command(flatten)]
    server: ServerFlags,
    #[command(subcommand)]
    records: Records,
}

#[derive(Debug, Subcommand)]
enum Records {
    /// Flips of routes, and steps of migrations.
    Migrations(Filter),
    /// Rollbacks and restores.
    Rollbacks(Filter),
    /// Handshakes with agents, and the states of their connections.
    Connections(Filter),
    /// Capacity alerts.
    Capacity(CapacityFilter),
    /// Runs of GitHub automation.
    Runs(Filter),
    /// Notifications.
    Notifications(Filter),
    /// Erasures of sessions, workspaces and tenants.
    Erasures(Filter),
    /// Changes of settings of tenants, and of tokens.
    Changes(Filter),
    /// Success rates, latencies and flips by day and tenant.
    Summary(Period),
}

#[derive(Debug, Args)]
struct Period {
    /// Only records of this tenant.
    #[arg(long, value_name = "NAME")]
    installation: Option<String>,
    /// Start of the period, inclusive, RFC 3339: 2026-11-25T00:00:00Z.
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// End of the period, exclusive, RFC 3339.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

#[derive(Debug, Args)]
struct Form {
    /// Prints at most this many records, newest first; without it all.
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
    /// Prints CSV with a header line.
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

#[derive(Debug, Args)]
struct CapacityFilter {
    #[command(flatten)]
    period: Period,
    #[command(flatten)]
    form: Form,
}

#[derive(Debug, Args)]
struct Filter {
    /// Only records of workspaces of this name.
    #[arg(long, value_name = "NAME")]
    workspace: Option<String>,
    /// Only records of this session.
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    #[command(flatten)]
    period: Period,
    #[command(flatten)]
    form: Form,
}

impl Period {
    fn query(self) -> Value {
        json!({"installationId": self.installation, "from": self.from, "until": self.until})
    }
}

impl Filter {
    fn parts(self) -> (Value, Form) {
        let mut query = self.period.query();
        query["workspaceId"] = self.workspace.into();
        query["sessionId"] = self.session.into();
        (query, self.form)
    }
}

/// Records per page under `--limit`; the default of the server.
const PAGE: usize = 50;

pub(crate) fn run(arguments: AuditArgs) -> Result<ExitCode, CommandError> {
    let json = arguments.server.json;
    arguments.server.with_client(async move |client| {
        let (records, (query, form)) = match arguments.records {
            Records::Migrations(filter) => ("migrations", filter.parts()),
            Records::Rollbacks(filter) => ("rollback-events", filter.parts()),
            Records::Connections(filter) => ("connections", filter.parts()),
            Records::Runs(filter) => ("automation-runs", filter.parts()),
            Records::Notifications(filter) => ("notifications", filter.parts()),
            Records::Erasures(filter) => ("erasures", filter.parts()),
            Records::Changes(filter) => ("changes", filter.parts()),
            Records::Capacity(filter) => ("capacity-alerts", (filter.period.query(), filter.form)),
            Records::Summary(period) => {
                let summary = client.audit("summary", &period.query()).await?;
                if json {
                    print_json(&summary)?
                } else {
                    print(summary_text(&summary).trim_end())?
                }
                return Ok(ExitCode::SUCCESS);
            }
        };
        if form.csv {
            print_csv(&client, records, query, form.limit).await?;
        } else {
            print_rows(&client, records, query, form.limit, json).await?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Sets the size of the next page; `false` once `--limit` is reached.
fn next_page(query: &mut Value, left: &mut Option<usize>) -> bool {
    let Some(left) = left else { return true };
    let page = (*left).min(PAGE);
    query["limit"] = page.into();
    *left -= page;
    page > 0
}

async fn print_rows(
    client: &ApiClient,
    records: &str,
    mut query: Value,
    mut left: Option<usize>,
    json: bool,
) -> Result<(), CommandError> {
    while next_page(&mut query, &mut left) {
        let page = client.audit(records, &query).await?;
        let page: Page = serde_json::from_value(page).map_err(crate::client::ClientError::from)?;
        for row in &page.items {
            if json { print_json(row)? } else { print(&row_text(records, row))? }
        }
        let Some(cursor) = page.next_cursor else { break };
        query["cursor"] = cursor.into();
    }
    Ok(())
}

async fn print_csv(
    client: &ApiClient,
    records: &str,
    mut query: Value,
    mut left: Option<usize>,
) -> Result<(), CommandError> {
    let mut is_first = true;
    while next_page(&mut query, &mut left) {
        let (page, next) = client.audit_csv(records, &query).await?;
        // Each page has a header; one is enough.
        let rows = if is_first { page.as_str() } else { page.split_once("\r\n").map_or("", |(_, rows)| rows) };
        is_first = false;
        write_lines(rows)?;
        let Some(cursor) = next else { break };
        query["cursor"] = cursor.into();
    }
    Ok(())
}

/// Writes lines without the characters that a terminal would act on.
fn write_lines(lines: &str) -> Result<(), CommandError> {
    let lines: Vec<_> = lines.split("\r\n").map(clean).collect();
    let mut out = std::io::stdout().lock();
    out.write_all(lines.join("\r\n").as_bytes()).map_err(|cause| CommandError::failed("standard output", &cause))
}

/// One record on a line: time, workspace, and its main columns.
pub(crate) fn row_text(records: &str, row: &Value) -> String {
    let members: &[&str] = match records {
        "migrations" => &[
            "startedAt",
            "workspaceId",
            "fromProtocol",
            "toProtocol",
            "epoch",
            "trigger",
            "status",
            "actor",
            "actorNote",
            "reason",
        ],
        "rollback-events" => {
            &["createdAt", "workspaceId", "kind", "epoch", "trigger", "actor", "actorNote", "reason"]
        }
        "connections" => {
            &["createdAt", "workspaceId", "sessionId", "outcome", "status", "handshakeMs", "agentName", "errorCode"]
        }
        "automation-runs" => &[
            "createdAt",
            "workspaceId",
            "sessionId",
            "status",
            "mode",
            "skipReason",
            "pullRequestUrl",
            "errorCode",
            "automationId",
        ],
        "changes" => {
            &["createdAt", "installationId", "kind", "object", "actor", "actorNote", "reason", "before", "after"]
        }
        "capacity-alerts" => &["createdAt", "level", "kind", "taken", "limit", "installationId"],
        _ => &["createdAt", "workspaceId", "severity", "trigger", "body"],
    };
    members.iter().map(|member| shown(&row[*member])).collect::<Vec<_>>().join("  ")
}

/// The figures: one line for the period, then one per day and tenant.
pub(crate) fn summary_text(summary: &Value) -> String {
    let cut =
        if summary["truncated"] == true { " (truncated: name a shorter period with --from and --until)" } else { "" };
    let mut out = format!("{} to {}{cut}\n", shown(&summary["from"]), shown(&summary["until"]));
    out.push_str(&format!("all  {}\n", figures(&summary["total"])));
    for day in summary["days"].as_array().into_iter().flatten() {
        let latency = |of: &Value| format!("p50 {} ms, p95 {} ms", shown(&of["p50Ms"]), shown(&of["p95Ms"]));
        let gain = day["acpGain"]["p50"]
            .as_f64()
            .map_or_else(String::new, |gain| format!("; ACP saves {:.0} %", gain * 100.0));
        out.push_str(&format!(
            "{}  {}  {}; acp {}; http {}{gain}\n",
            shown(&day["day"]),
            shown(&day["installationId"]),
            figures(day),
            latency(&day["acp"]),
            latency(&day["http"])
        ));
    }
    out
}

fn figures(of: &Value) -> String {
    let rate =
        |of: &Value| of["successRate"].as_f64().map_or_else(|| "-".to_owned(), |it| format!("{:.2} %", it * 100.0));
    let skips = of["automation"]["skips"].as_object().into_iter().flatten();
    let skips: Vec<_> = skips.map(|(reason, count)| format!("{} {}", shown(count), clean_line(reason))).collect();
    let skips = if skips.is_empty() { String::new() } else { format!(" ({})", skips.join(", ")) };
    let runs = |status: &str| of["automation"][status].as_u64().unwrap_or_default();
    let automation =
        format!("automation {} done, {} failed, {} skipped{skips}", runs("success"), runs("error"), runs("skipped"));
    format!(
        "acp {} turns ({} succeeded), http {} ({}), flips to http {}, back {}, {automation}",
        shown(&of["acp"]["turns"]),
        rate(&of["acp"]),
        shown(&of["http"]["turns"]),
        rate(&of["http"]),
        shown(&of["flipsToHttp"]),
        shown(&of["flipsToAcp"])
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn records_are_cleaned_for_the_terminal() {
        let row = json!({"createdAt": "t", "workspaceId": "w", "kind": "rollback", "epoch": 1, "trigger": "manualUser",
        "actor": "a\u{1b}[2J", "reason": "two\nlines"});
        assert_eq!(row_text("rollback-events", &row), "t  w  rollback  1  manualUser  a[2J  -  two lines");
        let day = json!({"day": "2026-11-25", "installationId": "acme", "acp": {"turns": 2, "successRate": 0.5},
        "http": {"turns": 0}, "acpGain": {"p50": 0.25}, "flipsToHttp": 1, "flipsToAcp": 0,
        "automation": {"success": 3, "error": 1, "skipped": 2, "skips": {"rateLimited": 2}}});
        let text = summary_text(&json!({"from": "a", "until": "b", "truncated": false, "total": {}, "days": [day]}));
        assert!(text.contains("automation 3 done, 1 failed, 2 skipped (2 rateLimited)"), "{text}");
        assert!(
            text.contains("acp 2 turns (50.00 % succeeded), http 0 (-)") && text.contains("saves 25 %"),
            "{text}"
        );
    }
}
