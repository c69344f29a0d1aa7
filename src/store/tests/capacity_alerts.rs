//! Capacity alerts: each row once, pages by time, open alerts, pruning.

use uuid::Uuid;

use super::fixture::*;
use crate::{
    contract::audit::CapacityAlertItem,
    domain::capacity::{AlertKind, AlertLevel, CapacityChange},
    store::{CapacityAlertFilter, Listed, NewCapacityAlert, OpenCapacityAlert, Page, Store, StoreError},
};

fn row(alert_id: Uuid, level: AlertLevel, kind: AlertKind, us: i64) -> NewCapacityAlert {
    let change = CapacityChange { level, kind, taken: 9, limit: 10 };
    NewCapacityAlert { event_id: Uuid::now_v7(), alert_id, change, installation_id: None, created: at(us) }
}

/// The expected result of reading a row back.
fn item(row: &NewCapacityAlert) -> CapacityAlertItem {
    let NewCapacityAlert { event_id, alert_id, change, installation_id, created } = row.clone();
    let (level, kind) = (change.level.as_str(), change.kind.as_str());
    let (taken, limit) = (change.taken, change.limit);
    CapacityAlertItem { event_id, alert_id, installation_id, level, kind, taken, limit, created_at: created }
}

/// An alert that was raised, became critical and was resolved.
fn story(alert_id: Uuid, us: i64) -> Vec<NewCapacityAlert> {
    use AlertKind::{Raised, Resolved};
    use AlertLevel::{Critical, Warning};
    vec![
        row(alert_id, Warning, Raised, us),
        row(alert_id, Critical, Raised, us + 1),
        row(alert_id, Critical, Resolved, us + 2),
        row(alert_id, Warning, Resolved, us + 2),
    ]
}

async fn in_pages(store: &Store, filter: &CapacityAlertFilter, limit: usize) -> Vec<CapacityAlertItem> {
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = store.list_capacity_alerts(filter.clone(), Page { limit, after }).await.unwrap();
        let Some(last) = page.last() else { return seen };
        // A round trip through the text form that callers get.
        after = Some(last.cursor().to_string().parse().unwrap());
        seen.extend(page);
    }
}

both_databases! {
    async fn each_alert_change_is_stored_once_and_found_by_time(database: TestDatabase) {
        let store = database.open();
        let mut rows: Vec<_> = (0..5).flat_map(|n| story(Uuid::now_v7(), n * 10)).collect();
        rows[3].installation_id = Some("acme".parse().unwrap());
        for _ in 0..2 {
            store.add_capacity_alerts(&rows).await.unwrap();
        }
        let mut twice = rows[0].clone();
        twice.event_id = Uuid::now_v7();
        let refused = store.add_capacity_alerts(&[twice]).await;
        assert!(matches!(refused, Err(StoreError::Conflict(_))), "an alert cannot be raised twice: {refused:?}");
        rows.reverse();
        let rows: Vec<_> = rows.iter().map(item).collect();
        for limit in [1, 3, 100] {
            assert_eq!(in_pages(&store, &CapacityAlertFilter::default(), limit).await, rows, "limit {limit}");
        }
        let period = CapacityAlertFilter { from: Some(at(10)), until: Some(at(12)), ..Default::default() };
        let times: Vec<_> = in_pages(&store, &period, 9).await.iter().map(|row| row.created_at).collect();
        assert_eq!(times, [at(11), at(10)]);
        let tenant = CapacityAlertFilter { installation_id: Some("acme".parse().unwrap()), ..Default::default() };
        assert_eq!(in_pages(&store, &tenant, 9).await.len(), 1);
    }

    async fn open_alert_is_found_until_it_is_resolved(database: TestDatabase) {
        let store = database.open();
        assert_eq!(store.open_capacity_alert().await.unwrap(), None);
        store.add_capacity_alerts(&story(Uuid::now_v7(), 0)).await.unwrap();
        assert_eq!(store.open_capacity_alert().await.unwrap(), None);
        let alert_id = Uuid::now_v7();
        let story = story(alert_id, 100);
        let open = |level| Some(OpenCapacityAlert { alert_id, level, since: at(100) });
        store.add_capacity_alerts(&story[..1]).await.unwrap();
        assert_eq!(store.open_capacity_alert().await.unwrap(), open(AlertLevel::Warning));
        store.add_capacity_alerts(&story[1..2]).await.unwrap();
        assert_eq!(store.open_capacity_alert().await.unwrap(), open(AlertLevel::Critical));
        store.add_capacity_alerts(&story[2..]).await.unwrap();
        assert_eq!(store.open_capacity_alert().await.unwrap(), None);
    }

    async fn old_alerts_are_pruned_in_chunks_and_open_ones_are_kept(database: TestDatabase) {
        let store = database.open();
        let (old, new) = (story(Uuid::now_v7(), 10), story(Uuid::now_v7(), 1000));
        let open = row(Uuid::now_v7(), AlertLevel::Warning, AlertKind::Raised, 0);
        store.add_capacity_alerts(&[&old[..], &new[..], std::slice::from_ref(&open)].concat()).await.unwrap();
        assert_eq!(store.prune_capacity_alerts(at(1000), 3).await.unwrap(), 3);
        assert_eq!(store.prune_capacity_alerts(at(1000), 3).await.unwrap(), 1);
        assert_eq!(store.prune_capacity_alerts(at(1000), 3).await.unwrap(), 0);
        let left = in_pages(&store, &CapacityAlertFilter::default(), 9).await;
        assert_eq!(left.len(), 5);
        assert_eq!(left.last(), Some(&item(&open)));
    }

    async fn alerts_refused_in_an_outage_are_not_written_and_can_be_retried(database: TestDatabase) {
        let store = database.open();
        let rows = story(Uuid::now_v7(), 0);
        let outage = database.take_down();
        let refused = store.add_capacity_alerts(&rows).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        drop(outage);
        store.add_capacity_alerts(&rows).await.unwrap();
        assert_eq!(in_pages(&store, &CapacityAlertFilter::default(), 9).await.len(), 4);
    }
}
