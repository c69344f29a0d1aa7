//! `lumilink audit …`

use std::{io::Write, process::ExitCode};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    audit_view::{row_text, summary_text},
    flags::{CommandError, print},
    server_flags::{ServerFlags, print_json},
};
use crate::client::{ApiClient, clean::clean, requests::Page};

/// Which server, and what to read there.
#[derive(Debug, Args)]
pub struct AuditArgs {
    #[command(flatten)]
    server: ServerFlags,
    #[command(subcommand)]
    records: Records,
}

#[derive(Debug, Subcommand)]
enum Records {
    /// Flips of workspaces' routes, and steps of migrations.
    Migrations(Filter),
    /// Rollbacks and restores.
    Rollbacks(Filter),
    /// Handshakes with agents, and what became of the connections.
    Connections(Filter),
    /// Alerts of capacity.
    Capacity(CapacityFilter),
    /// Runs of GitHub automation.
    Runs(Filter),
    /// What users were told.
    Notifications(Filter),
    /// Figures per day and tenant.
    Summary(Period),
}

#[derive(Debug, Args)]
struct Period {
    /// Of this tenant.
    #[arg(long, value_name = "NAME")]
    installation: Option<String>,
    /// From this time on, such as 2026-11-25T00:00:00Z.
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Until before this time.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

#[derive(Debug, Args)]
struct Form {
    /// At most so many records, the newest.
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
    /// Prints CSV with a header.
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
    /// Of workspaces of this name.
    #[arg(long, value_name = "NAME")]
    workspace: Option<String>,
    /// Of this session.
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

/// Records on one page where not all are wanted: as many as a server gives that is not asked for a number.
const PAGE: usize = 50;

/// Does it.
pub fn run(arguments: AuditArgs) -> Result<ExitCode, CommandError> {
    let json = arguments.server.json;
    arguments.server.with_client(async move |client| {
        let (records, (query, form)) = match arguments.records {
            Records::Migrations(filter) => ("migrations", filter.parts()),
            Records::Rollbacks(filter) => ("rollback-events", filter.parts()),
            Records::Connections(filter) => ("connections", filter.parts()),
            Records::Runs(filter) => ("automation-runs", filter.parts()),
            Records::Notifications(filter) => ("notifications", filter.parts()),
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

/// Asks for no more than are wanted; `false` where nothing is left to ask for.
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

/// Writes lines as they are, but for what a terminal would act on.
fn write_lines(lines: &str) -> Result<(), CommandError> {
    let lines: Vec<_> = lines.split("\r\n").map(clean).collect();
    let mut out = std::io::stdout().lock();
    out.write_all(lines.join("\r\n").as_bytes()).map_err(|cause| CommandError::failed("standard output", &cause))
}
