//! What a program holds: memory, files, threads, live actors, and rows of its database.

use std::{collections::BTreeMap, fmt, fs};

use diesel::{
    Connection, QueryableByName, RunQueryDsl, SqliteConnection, connection::SimpleConnection, sql_query, sql_types,
};

use super::Program;

/// Resources held by a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Footprint {
    memory_kib: u64,
    files: u64,
    threads: u64,
}

impl Footprint {
    pub(crate) fn of(pid: i32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a known line");
            line.split_whitespace().find_map(|word| word.parse().ok()).expect("a number")
        };
        let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process lives").count() as u64;
        Self { memory_kib: number("VmRSS:"), files, threads: number("Threads:") }
    }

    /// Returns the limit for a later footprint: 5 % more, plus the usual variation of each resource. `connections` is
    /// the number of threads that send requests to the process.
    pub(crate) fn with_slack(self, connections: u64) -> Self {
        let more = |value: u64, slack: u64| value + value.div_ceil(20) + slack;
        Self {
            // The allocator releases memory in steps, with one arena for each thread, and each database connection
            // has a page cache of 2 MB that fills gradually.
            memory_kib: more(self.memory_kib, 8 * 1024),
            // Keep-alive connections: those of the test, one for each of its threads, and those between supervisor and
            // runtime.
            files: more(self.files, connections + 4),
            // Threads for blocking work start in a burst and exit after 10 s.
            threads: more(self.threads, 4),
        }
    }

    pub(crate) fn is_within(self, limit: Self) -> bool {
        self.memory_kib <= limit.memory_kib && self.files <= limit.files && self.threads <= limit.threads
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} MiB, {} files, {} threads", self.memory_kib as f64 / 1024.0, self.files, self.threads)
    }
}

/// What supervisor and runtime hold at one moment.
#[derive(Debug)]
pub(crate) struct Holdings {
    pub(crate) supervisor: Footprint,
    pub(crate) runtime: Footprint,
    /// Sessions that hold a seat, each with its actor and its supervisor.
    pub(crate) sessions: f64,
    /// Routers, success windows and probes.
    pub(crate) route_actors: f64,
    /// Rows of each table of the SQLite database that has any.
    pub(crate) rows: BTreeMap<String, i64>,
}

impl Holdings {
    pub(crate) fn of(program: &mut Program) -> Self {
        let metrics = program.metrics();
        Self {
            supervisor: Footprint::of(program.pid()),
            runtime: Footprint::of(program.runtime().pid()),
            sessions: metrics.sum("lumilink_active_sessions", &[]),
            route_actors: metrics.sum("lumilink_route_actors", &[]),
            rows: rows_by_table(program),
        }
    }

    /// True if later holdings of the same load are within the slack of each resource; rows grow with each turn.
    pub(crate) fn allow(&self, later: &Self, connections: u64) -> bool {
        later.supervisor.is_within(self.supervisor.with_slack(connections))
            && later.runtime.is_within(self.runtime.with_slack(connections))
            && later.sessions <= self.sessions
            && later.route_actors <= self.route_actors
    }
}

impl fmt::Display for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sessions, routes) = (self.sessions, self.route_actors);
        writeln!(f, "    supervisor: {}; actors of {sessions} sessions, {routes} of routes", self.supervisor)?;
        writeln!(f, "    runtime: {}", self.runtime)?;
        let rows: Vec<_> = self.rows.iter().map(|(table, rows)| format!("{table} {rows}")).collect();
        write!(f, "    rows: {}", rows.join(", "))
    }
}

#[derive(QueryableByName)]
struct Table {
    #[diesel(sql_type = sql_types::Text)]
    name: String,
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = sql_types::BigInt)]
    rows: i64,
}

fn rows_by_table(program: &Program) -> BTreeMap<String, i64> {
    let path = program.folder.path().join("data/lumilink.db");
    let mut database = SqliteConnection::establish(path.to_str().expect("UTF-8")).expect("the database is there");
    database.batch_execute("PRAGMA busy_timeout = 5000").expect("a pragma");
    let tables: Vec<Table> =
        sql_query("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
            .load(&mut database)
            .expect("the tables");
    let counted = tables.into_iter().map(|table| {
        let count: Count = sql_query(format!("SELECT count(*) AS rows FROM \"{}\"", table.name))
            .get_result(&mut database)
            .expect("a count");
        (table.name, count.rows)
    });
    counted.filter(|(_, rows)| *rows > 0).collect()
}
