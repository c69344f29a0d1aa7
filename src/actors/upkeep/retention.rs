//! Removes records that have reached their retention age.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use uuid::Uuid;

use super::rescues::remove_old_rescues;
use crate::{
    actors::services::Services,
    config::sections::Retention,
    domain::{
        clock::Timestamp,
        retention::{HistoryPart, RemovalCause, Removed, Tenants, removed_before},
        routing::success_window::WindowRules,
        session::lifecycle::sweep_period,
    },
    store::{PruneHistory, Removal, Retained, Store, StoreError},
};

/// Interval between sweeps, one hour: ages are days, so records are kept only little longer than configured.
const PERIOD: Duration = Duration::from_secs(3600);
/// Rows removed in one transaction; it blocks other writes for some milliseconds.
const ROWS_PER_WRITE: usize = 500;
/// Shortest pause between two of these transactions. The pause is at least as long as the removal took, so that turns
/// get at least half of the database time.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);

const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Old {
    Records(Retained),
    /// Expired by this sweep; the next one removes them with their notifications.
    PendingDeliveries,
    CapacityAlerts,
}

/// Recorded as the actor of a sweep.
const ACTOR: &str = "lumilink";

/// Ages at which records are removed; kinds without an age are kept.
#[derive(Debug, Clone)]
pub(crate) struct Ages {
    records: Vec<(Old, Duration)>,
    history: Vec<HistoryPart>,
    rescues: Option<Duration>,
}

impl Ages {
    /// Ages from the configuration. Outcome counts are removed one day after they leave their window.
    pub(crate) fn new(retention: &Retention, window: &WindowRules) -> Self {
        let days = |days: u64| Duration::from_secs(days.saturating_mul(DAY.as_secs()));
        let configured = [
            (Old::Records(Retained::Connections), retention.connections_days),
            (Old::Records(Retained::Migrations), retention.migrations_days),
            (Old::Records(Retained::RollbackEvents), retention.migrations_days),
            (Old::Records(Retained::AutomationRuns), retention.automation_runs_days),
            (Old::Records(Retained::GithubDeliveries), retention.github_deliveries_days),
            (Old::Records(Retained::Notifications), retention.notifications_days),
            (Old::PendingDeliveries, retention.notifications_days),
            (Old::CapacityAlerts, retention.capacity_alerts_days),
            (Old::Records(Retained::Removals), retention.removals_days),
            (Old::Records(Retained::Tokens), retention.tokens_days),
            (Old::Records(Retained::Changes), retention.changes_days),
        ];
        let mut records: Vec<_> =
            configured.into_iter().filter(|(_, age)| *age > 0).map(|(old, age)| (old, days(age))).collect();
        records.push((Old::Records(Retained::OutcomeBuckets), window.length.saturating_add(DAY)));
        Self { records, history: retention.history(), rescues: retention.rescues() }
    }
}

/// Sweeps once an hour, starting now; never returns. Removals that the database refuses are retried by the next
/// sweep.
///
/// # Cancel safety
/// Rows already removed stay removed; the next sweep continues.
pub(crate) async fn sweep(services: std::sync::Arc<Services>, ages: Ages) {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        remove_rescues(&services, &ages).await;
        match remove_old(&services.store, &ages, services.clock.now()).await {
            Ok(0) => {}
            Ok(rows) => {
                tracing::info!(marker = "[ACP]", rows, "old records removed");
                drop_servers_of_removed(&services).await;
            }
            Err(cause) => tracing::warn!(marker = "[ACP]", %cause, "old records could not be removed; retrying"),
        }
    }
}

/// Removes kept commits of automation; their rows, which name them, are removed later. The next sweep retries failed
/// removals.
async fn remove_rescues(services: &Services, ages: &Ages) {
    let Some((age, runtime)) = ages.rescues.zip(services.runtime_client.as_ref()) else { return };
    if let Err(cause) = remove_old_rescues(&services.store, runtime, age, services.clock.now()).await {
        tracing::warn!(marker = "[GITHUB-AUTO]", cause = cause.detail, "kept commits could not be removed; retrying");
    }
}

/// Removes every expired record in chunks and returns the number of rows.
///
/// # Errors
/// If the database refuses a chunk. Safe to retry.
///
/// # Cancel safety
/// Chunks already removed stay removed.
async fn remove_old(store: &Store, ages: &Ages, now: Timestamp) -> Result<usize, StoreError> {
    let mut rows = 0;
    for (old, age) in &ages.records {
        loop {
            let began = Instant::now();
            let removed = prune(store, *old, now.minus(*age), now).await?;
            if *old != Old::PendingDeliveries {
                rows += removed;
            }
            if removed < ROWS_PER_WRITE {
                break;
            }
            // As long a pause as the write took: sweeps use at most half of the writer's time.
            sleep(began.elapsed().max(SHORTEST_PAUSE)).await;
        }
    }
    let cause = RemovalCause::Retention;
    let reason = "older than its retention".to_owned();
    let removal = Removal { run: Uuid::now_v7(), cause, actor: ACTOR.to_owned(), reason, now };
    for part in &ages.history {
        let before = removed_before(now, part.age);
        rows += remove_history(store, part.kind, &part.tenants, before, &removal).await?;
    }
    Ok(rows)
}

/// Drops the kept MCP servers of sessions whose rows were removed. If the database refuses the read, they stay until the
/// next sweep.
pub(crate) async fn drop_servers_of_removed(services: &Services) {
    let kept = services.given_servers.sessions();
    if let Ok(removed) = services.store.removed_sessions(kept).await {
        removed.into_iter().for_each(|id| services.given_servers.drop_of(id));
    }
}

/// Removes the history of one kind and of some tenants from before a time, in chunks, and returns the number of rows.
///
/// # Errors
/// If the database refuses a chunk. Safe to retry.
pub(crate) async fn remove_history(
    store: &Store,
    kind: Removed,
    tenants: &Tenants,
    before: Timestamp,
    removal: &Removal,
) -> Result<usize, StoreError> {
    let (mut rows, mut after) = (0, None);
    loop {
        let began = Instant::now();
        let (tenants, removal) = (tenants.clone(), removal.clone());
        let prune = PruneHistory { kind, tenants, before, limit: ROWS_PER_WRITE, after, removal };
        let pruned = store.prune_history(prune).await?;
        rows += pruned.rows;
        after = pruned.next;
        if after.is_none() {
            return Ok(rows);
        }
        if pruned.rows > 0 {
            sleep(began.elapsed().max(SHORTEST_PAUSE)).await;
        }
    }
}

async fn prune(store: &Store, old: Old, before: Timestamp, now: Timestamp) -> Result<usize, StoreError> {
    match old {
        Old::PendingDeliveries => {
            let deliveries = store.expire_deliveries(before, ROWS_PER_WRITE, now).await?;
            if deliveries > 0 {
                tracing::error!(
                    marker = "[ACP]",
                    deliveries,
                    "webhook deliveries expired: they were not accepted within the retention of notifications"
                );
            }
            Ok(deliveries)
        }
        Old::Records(what) => store.prune(what, before, ROWS_PER_WRITE).await,
        Old::CapacityAlerts => store.prune_capacity_alerts(before, ROWS_PER_WRITE).await,
    }
}

/// Sessions expired in one transaction; it blocks other writes for some milliseconds.
const SESSIONS_PER_WRITE: usize = 100;

/// Expires unused sessions periodically; never returns.
///
/// # Cancel safety
/// Sessions already expired stay expired.
pub(crate) async fn sweep_expired(services: Arc<Services>, max_age: Duration) {
    let mut period = tokio::time::interval(sweep_period(max_age));
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        while let Ok(SESSIONS_PER_WRITE) = expire_some(&services, max_age).await {}
    }
}

/// Expires one chunk of sessions and returns their number. If the database refuses it, the next sweep retries.
async fn expire_some(services: &Services, max_age: Duration) -> Result<usize, StoreError> {
    let now = services.clock.now();
    let expired = services.store.expire_sessions(now, max_age, SESSIONS_PER_WRITE).await?;
    services.metrics.sessions_expired(expired.len());
    for session in &expired {
        services.given_servers.drop_of(session.session_id);
        services.given_tokens.drop_of(session.session_id.0);
        tracing::info!(
            marker = "[ACP]",
            session_id = %session.session_id,
            workspace = %session.key,
            unused_s = now.since(session.last_used).as_secs(),
            "session expired"
        );
    }
    Ok(expired.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Config,
        contract::audit::MigrationItem,
        domain::{
            capacity::{AlertKind, AlertLevel, CapacityChange},
            ids::WorkspaceKey,
            notify::webhook::DeliveryState,
            routing::{FlipTrigger, Initiator, Route, success_window::Sample},
            words::MigrationStatus,
        },
        store::{
            AuditFilter, CapacityAlertFilter, NewCapacityAlert, NewConnection, OutcomeCount, Page, StoreOptions,
        },
    };

    const HOUR_US: i64 = 3_600_000_000;

    fn key() -> WorkspaceKey {
        WorkspaceKey { installation_id: "acme".parse().unwrap(), workspace_id: "web".parse().unwrap() }
    }

    fn handshake(now: Timestamp) -> NewConnection {
        NewConnection {
            connection_row_id: Uuid::now_v7(),
            key: key(),
            session_id: None,
            connection_id: None,
            protocol: Route::Acp,
            protocol_version: Some(1),
            agent_name: None,
            agent_version: None,
            capabilities: None,
            failure: None,
            handshake: Duration::ZERO,
            is_probe: false,
            session_notice: None,
            now,
        }
    }

    fn migration(started: Timestamp) -> MigrationItem {
        MigrationItem {
            migration_id: Uuid::now_v7(),
            run_id: None,
            installation_id: key().installation_id,
            workspace_id: key().workspace_id,
            from_protocol: Route::Acp,
            to_protocol: Route::Http,
            epoch: None,
            initiated_by: Initiator::System,
            actor: "a".into(),
            actor_note: None,
            trigger: FlipTrigger::Migration,
            reason: "r".into(),
            status: MigrationStatus::Scheduled,
            metrics: serde_json::json!({}),
            started_at: started,
            completed_at: None,
        }
    }

    fn alert(alert_id: Uuid, kind: AlertKind, created: Timestamp) -> NewCapacityAlert {
        let change = CapacityChange { level: AlertLevel::Warning, kind, taken: 9, limit: 10 };
        NewCapacityAlert { event_id: Uuid::now_v7(), alert_id, change, installation_id: None, created }
    }

    /// Numbers of handshakes, migrations, alert changes and buckets.
    async fn left(store: &Store) -> (usize, usize, usize, usize) {
        let page = || Page { limit: 1000, after: None };
        let since = Timestamp(0);
        (
            store.connections(AuditFilter::default(), page()).await.unwrap().len(),
            store.migrations(AuditFilter::default(), page()).await.unwrap().len(),
            store.list_capacity_alerts(CapacityAlertFilter::default(), page()).await.unwrap().len(),
            store.window(key(), 0, Route::Acp, since).await.unwrap().len(),
        )
    }

    #[tokio::test]
    async fn old_rows_are_removed_in_chunks() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::for_tests(&folder.path().join("test.db"));
        let at = |hours: i64| Timestamp(1_800_000_000_000_000 + hours * HOUR_US);
        let count = |hours| OutcomeCount { epoch: 0, route: Route::Acp, bucket: at(hours), sample: Sample::Success };
        // More than one chunk of each expired kind, and a few recent rows.
        let old = ROWS_PER_WRITE as i64 + 3;
        for n in 0..old {
            store.record_handshake(handshake(at(0)), Some(count(n % 7))).await.unwrap();
        }
        for hours in [1, 50, 99] {
            store.record_handshake(handshake(at(hours)), Some(count(hours))).await.unwrap();
            store.record_migration(migration(at(hours))).await.unwrap();
        }
        let (closed, open) = (Uuid::now_v7(), Uuid::now_v7());
        let alerts = [
            alert(closed, AlertKind::Raised, at(0)),
            alert(closed, AlertKind::Resolved, at(1)),
            alert(open, AlertKind::Raised, at(2)),
        ];
        store.add_capacity_alerts(&alerts).await.unwrap();

        let day = Retention {
            connections_days: 1,
            migrations_days: 0,
            capacity_alerts_days: 1,
            automation_runs_days: 1,
            notifications_days: 1,
            sessions_days: 0,
            turns_days: 0,
            transcripts_days: 0,
            ..Retention::default()
        };
        let window = Config::default().window.rules();
        let ages = Ages::new(&day, &window);
        let removed = remove_old(&store, &ages, at(100)).await.unwrap();
        // The buckets of hours 0 to 6 and 50 have left their window more than a day ago. The notifications of the
        // alerts have expired too.
        assert_eq!(removed, old as usize + 2 + 2 + 8 + 3);
        assert_eq!(left(&store).await, (1, 3, 1, 1), "0 days keeps records, and an open alert is kept");
        assert_eq!(remove_old(&store, &ages, at(100)).await.unwrap(), 0);

        let never = Retention { connections_days: 0, capacity_alerts_days: 0, ..day.clone() };
        let ages = Ages::new(&never, &window);
        remove_old(&store, &ages, at(1_000_000)).await.unwrap();
        assert_eq!(left(&store).await, (1, 3, 1, 0), "only outcome counts are always removed");
    }

    #[tokio::test]
    async fn undelivered_webhook_expires_and_is_then_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(
            StoreOptions {
                webhook: Some("https://hooks.example.com".into()),
                ..StoreOptions::for_tests(&folder.path().join("test.db"))
            },
            crate::telemetry::Metrics::for_tests(),
        );
        let store = store.unwrap();
        let alert = alert(Uuid::now_v7(), AlertKind::Raised, Timestamp(0));
        store.add_capacity_alerts(&[alert]).await.unwrap();
        let retention = Retention { capacity_alerts_days: 0, notifications_days: 1, ..Config::default().retention };
        let ages = Ages::new(&retention, &Config::default().window.rules());
        let states = async || {
            let rows = store.webhook_deliveries(None, Page { limit: 9, after: None }).await.unwrap();
            rows.into_iter().map(|row| row.state).collect::<Vec<_>>()
        };
        for (hours, removed, left) in
            [(24, 0, vec![DeliveryState::Pending]), (25, 0, vec![DeliveryState::Dead]), (26, 1, vec![])]
        {
            assert_eq!(remove_old(&store, &ages, Timestamp(hours * HOUR_US)).await, Ok(removed), "{hours}");
            assert_eq!(states().await, left, "{hours}");
        }
    }
}
