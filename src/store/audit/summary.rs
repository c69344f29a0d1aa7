//! Figures of a period, per day and tenant: turns and latency by protocol, flips, and automation.

use std::{collections::BTreeMap, time::Duration};

use diesel::{
    ExpressionMethods, OptionalExtension, QueryDsl, QueryableByName, RunQueryDsl,
    sql_types::{BigInt, Nullable, Text},
};

use crate::{
    domain::{
        clock::Timestamp,
        ids::InstallationId,
        routing::Route,
        turn::{TurnInitiator, TurnState},
    },
    store::{
        Store, StoreError,
        engine::{columns, connection::AnyConnection},
        schema::prompts,
    },
};

/// The turns of one protocol, of one tenant, on one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TurnFigures {
    /// Turns that the agent completed.
    pub completed: u64,
    /// Ended because somebody asked for it.
    pub cancelled: u64,
    /// Turns that ended with an error.
    pub failed: u64,
    /// Cut off by a stop of the service.
    pub interrupted: u64,
    /// Turns that have not ended yet.
    pub open: u64,
    /// Median duration of the completed turns.
    pub p50: Option<Duration>,
    /// 95th percentile of the duration of the completed turns.
    pub p95: Option<Duration>,
}

impl TurnFigures {
    /// The share of completed turns among those that completed, failed or were interrupted, in basis points; nothing
    /// where there were none. Other than in a workspace's window, faults of the model's provider count.
    #[cfg(test)]
    pub(crate) fn success_rate_bp(&self) -> Option<u32> {
        let ended = self.completed + self.failed + self.interrupted;
        (ended > 0).then(|| u32::try_from(self.completed * 10_000 / ended).unwrap_or(0))
    }
}

/// One day of one tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AuditDay {
    /// When the day begins, in UTC.
    pub day: Timestamp,
    pub installation_id: InstallationId,
    pub acp: TurnFigures,
    pub http: TurnFigures,
    /// Flips of workspaces to HTTP.
    pub flips_to_http: u64,
    /// Flips of workspaces to ACP.
    pub flips_to_acp: u64,
    pub automation: AutomationFigures,
}

/// Ended attempts of automation, and skips before a run began.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct AutomationFigures {
    pub success: u64,
    pub error: u64,
    /// Skips by reason.
    pub skips: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AuditSummary {
    /// From when on the figures are whole: what was asked for, or later where there were too many turns.
    pub from: Timestamp,
    /// Days on which something was, the newest first, by tenant within a day.
    pub days: Vec<AuditDay>,
}

/// Turns that are read at most, the newest of the period: at 100,000 a summary takes about a second.
pub(crate) const MAX_SUMMARY_TURNS: i64 = 100_000;

/// Turns of all tenants among which those of one are looked for, the newest of the period.
const MAX_LOOKED_AT: i64 = 1_000_000;

const DAY_US: i64 = 24 * 60 * 60 * 1_000_000;

/// Nearest ranks: of n values in order, the first whose place is not before the share of n.
const TURNS: &str = "SELECT day, installation_id, protocol, state, COUNT(*) AS turns, \
     MIN(CASE WHEN place * 100 >= total * 50 THEN took END) AS p50_us, \
     MIN(CASE WHEN place * 100 >= total * 95 THEN took END) AS p95_us \
     FROM (SELECT day, installation_id, protocol, state, took, \
     ROW_NUMBER() OVER (PARTITION BY day, installation_id, protocol, state ORDER BY took) AS place, \
     COUNT(*) OVER (PARTITION BY day, installation_id, protocol, state) AS total \
     FROM (SELECT accepted_us / 86400000000 AS day, installation_id, protocol, state, \
     ended_us - accepted_us AS took FROM prompts \
     WHERE accepted_us >= $1 AND accepted_us < $2 AND ($3 IS NULL OR installation_id = $3) \
     AND prompt_id >= $4 AND prompt_id < $5 AND initiator = 'user') AS turns) AS ranked \
     GROUP BY day, installation_id, protocol, state";

const FLIPS: &str = "SELECT day, installation_id, to_protocol, COUNT(*) AS flips \
     FROM (SELECT started_us / 86400000000 AS day, installation_id, to_protocol FROM protocol_migrations \
     WHERE started_us >= $1 AND started_us < $2 AND ($3 IS NULL OR installation_id = $3) \
     AND status = 'succeeded' AND epoch IS NOT NULL ORDER BY started_us DESC LIMIT 100000) AS flips \
     GROUP BY day, installation_id, to_protocol";

const AUTOMATION: &str = "SELECT day, installation_id, status, reason, COUNT(*) AS runs \
     FROM (SELECT created_us / 86400000000 AS day, installation_id, status, COALESCE(skip_reason, '') AS reason \
     FROM automation_runs WHERE created_us >= $1 AND created_us < $2 AND ($3 IS NULL OR installation_id = $3) \
     ORDER BY created_us DESC LIMIT 100000) AS runs \
     GROUP BY day, installation_id, status, reason";

#[derive(QueryableByName)]
struct AutomationRow {
    #[diesel(sql_type = BigInt)]
    day: i64,
    #[diesel(sql_type = Text)]
    installation_id: String,
    #[diesel(sql_type = Text)]
    status: String,
    #[diesel(sql_type = Text)]
    reason: String,
    #[diesel(sql_type = BigInt)]
    runs: i64,
}

#[derive(QueryableByName)]
struct TurnsRow {
    #[diesel(sql_type = BigInt)]
    day: i64,
    #[diesel(sql_type = Text)]
    installation_id: String,
    #[diesel(sql_type = Text)]
    protocol: String,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = BigInt)]
    turns: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    p50_us: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    p95_us: Option<i64>,
}

#[derive(QueryableByName)]
struct FlipsRow {
    #[diesel(sql_type = BigInt)]
    day: i64,
    #[diesel(sql_type = Text)]
    installation_id: String,
    #[diesel(sql_type = Text)]
    to_protocol: String,
    #[diesel(sql_type = BigInt)]
    flips: i64,
}

/// Figures by day and tenant.
#[derive(Default)]
struct Days(BTreeMap<(i64, String), AuditDay>);

impl Days {
    fn of(&mut self, day: i64, tenant: String) -> Result<&mut AuditDay, StoreError> {
        let installation_id: InstallationId = columns::parse(&tenant, "prompts.installation_id")?;
        // The newest first.
        Ok(self.0.entry((-day, tenant)).or_insert_with(|| AuditDay {
            day: Timestamp(day.saturating_mul(DAY_US)),
            installation_id,
            acp: TurnFigures::default(),
            http: TurnFigures::default(),
            flips_to_http: 0,
            flips_to_acp: 0,
            automation: AutomationFigures::default(),
        }))
    }

    fn add_turns(&mut self, row: TurnsRow) -> Result<(), StoreError> {
        let protocol = Route::tolerant(&row.protocol);
        // Only turns that have ended took a time.
        let state = TurnState::tolerant(&row.state, row.p50_us.is_some());
        let day = self.of(row.day, row.installation_id)?;
        let figures = match protocol {
            Route::Acp => &mut day.acp,
            Route::Http => &mut day.http,
        };
        let turns = columns::unsigned(row.turns);
        match state {
            TurnState::Accepted | TurnState::Running => figures.open += turns,
            TurnState::Completed => {
                figures.completed += turns;
                let took = |us: Option<i64>| us.map(|us| Duration::from_micros(columns::unsigned(us)));
                (figures.p50, figures.p95) = (took(row.p50_us), took(row.p95_us));
            }
            TurnState::Cancelled => figures.cancelled += turns,
            TurnState::Failed => figures.failed += turns,
            TurnState::Interrupted => figures.interrupted += turns,
        }
        Ok(())
    }

    fn add_flips(&mut self, row: FlipsRow) -> Result<(), StoreError> {
        let to = Route::tolerant(&row.to_protocol);
        let day = self.of(row.day, row.installation_id)?;
        let flips = match to {
            Route::Acp => &mut day.flips_to_acp,
            Route::Http => &mut day.flips_to_http,
        };
        *flips += columns::unsigned(row.flips);
        Ok(())
    }

    fn add_automation(&mut self, row: AutomationRow) -> Result<(), StoreError> {
        let (day, runs) = (self.of(row.day, row.installation_id)?, columns::unsigned(row.runs));
        match row.status.as_str() {
            "success" => day.automation.success += runs,
            "skipped" => *day.automation.skips.entry(row.reason).or_default() += runs,
            // A status of a newer version is counted like an error.
            _ => day.automation.error += runs,
        }
        Ok(())
    }
}

/// Runs one of the statements above on the very connection.
macro_rules! load {
    ($connection:expr, $statement:expr, $tenant:expr, $from:expr, $until:expr $(, $id:expr)*) => {{
        let statement = diesel::sql_query($statement)
            .bind::<BigInt, _>($from.0)
            .bind::<BigInt, _>($until.0)
            .bind::<Nullable<Text>, _>($tenant)$(.bind::<Text, _>($id))*;
        match &mut *$connection {
            AnyConnection::Postgres(connection) => statement.load(connection),
            AnyConnection::Sqlite(connection) => statement.load(connection),
        }
    }};
}

/// Distance between the time in a turn's id and its acceptance, at most: its session may have had to be brought back first.
const ID_SLACK_US: i64 = 60 * 60 * 1_000_000;

/// The least id of a turn of a time, less or more the slack: ids are UUIDs of version 7, which begin with the time in
/// milliseconds. So a period is found without an index of its own, which each turn would pay for.
pub(in crate::store) fn id_of(time: Timestamp, slack: i64) -> String {
    let ms = time.0.saturating_add(slack * ID_SLACK_US).div_euclid(1000).clamp(0, (1 << 48) - 1);
    format!("{:08x}-{:04x}-0000-0000-000000000000", ms >> 16, ms & 0xffff)
}

/// Since when there are no more than `most` turns, of a tenant or of all.
fn since_when(
    connection: &mut AnyConnection,
    tenant: Option<&str>,
    from: Timestamp,
    until: Timestamp,
    most: i64,
) -> diesel::QueryResult<Timestamp> {
    let mut turns = prompts::table
        .filter(prompts::prompt_id.ge(id_of(from, -1)))
        .filter(prompts::prompt_id.lt(id_of(until, 1)))
        .filter(prompts::accepted_us.ge(from.0))
        .filter(prompts::accepted_us.lt(until.0))
        .filter(prompts::initiator.eq(TurnInitiator::User.as_str()))
        .into_boxed();
    if let Some(tenant) = tenant {
        turns = turns.filter(prompts::installation_id.eq(tenant));
    }
    let newest = turns.order(prompts::prompt_id.desc()).select(prompts::accepted_us);
    let newest_omitted: Option<i64> = newest.offset(most).first(connection).optional()?;
    Ok(newest_omitted.map_or(from, |at| Timestamp(at.saturating_add(1))))
}

pub(crate) fn summary(
    connection: &mut AnyConnection,
    tenant: Option<&str>,
    from: Timestamp,
    until: Timestamp,
    most: i64,
) -> Result<AuditSummary, StoreError> {
    let mut from = from;
    if tenant.is_some() {
        from = since_when(connection, None, from, until, MAX_LOOKED_AT)?;
    }
    from = since_when(connection, tenant, from, until, most)?;
    let mut days = Days::default();
    let turns: Vec<TurnsRow> = load!(connection, TURNS, tenant, from, until, id_of(from, -1), id_of(until, 1))?;
    turns.into_iter().try_for_each(|row| days.add_turns(row))?;
    let flips: Vec<FlipsRow> = load!(connection, FLIPS, tenant, from, until)?;
    flips.into_iter().try_for_each(|row| days.add_flips(row))?;
    let runs: Vec<AutomationRow> = load!(connection, AUTOMATION, tenant, from, until)?;
    runs.into_iter().try_for_each(|row| days.add_automation(row))?;
    Ok(AuditSummary { from, days: days.0.into_values().collect() })
}

impl Store {
    /// Figures of a period, from `from` until before `until`, of a tenant or of all: of the newest
    /// [`MAX_SUMMARY_TURNS`] turns, where a tenant's are looked for among the newest million of all, and of the flips
    /// and the attempts of automation since then, of which the newest 100,000 each count. [`AuditSummary::from`] says since when that is. Cancel-safe.
    pub(crate) async fn audit_summary(
        &self,
        tenant: Option<InstallationId>,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<AuditSummary, StoreError> {
        self.read(move |connection| {
            let tenant = tenant.as_ref().map(InstallationId::as_str);
            summary(connection, tenant, from, until, MAX_SUMMARY_TURNS)
        })
        .await
    }
}
