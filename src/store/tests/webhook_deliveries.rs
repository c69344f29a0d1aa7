//! Webhook deliveries: created with their notification, claimed by one caller at a time, settled, listed and
//! replayed.

use std::{collections::BTreeSet, time::Duration};

use uuid::Uuid;

use super::fixture::*;
use crate::store::notifications::deliveries::{MAX_CLAIM, WebhookBacklog};
use crate::{
    domain::{
        capacity::{AlertKind, AlertLevel, CapacityChange},
        notify::{
            notice,
            notification::{Addressee, NewNotification},
            webhook::{DeliveryState, Verdict},
        },
        redaction::Redacted,
    },
    store::{
        AuditFilter, ClaimDeliveries, Claimed, DueDelivery, NewCapacityAlert, Page, Retained, Store, StoreError,
        StoreOptions, TriedDelivery, WebhookDeliveryRow,
    },
};

const ENDPOINT: &str = "https://hooks.example.com";
const HOUR: Duration = Duration::from_secs(3600);

fn posting(database: &TestDatabase) -> Store {
    Store::open(StoreOptions { webhook: Some(ENDPOINT.into()), ..database.options() }, database.metrics.clone())
        .unwrap()
}

fn change() -> CapacityChange {
    CapacityChange { level: AlertLevel::Warning, kind: AlertKind::Raised, taken: 9, limit: 10 }
}

fn notification(to: Addressee, cause: &str) -> NewNotification {
    NewNotification::new(Uuid::now_v7(), to, notice::of_capacity(&change()).unwrap(), cause)
}

/// Adds an operator notification at each of these times.
async fn notify_operators(store: &Store, times: impl IntoIterator<Item = i64>) {
    for us in times {
        let cause = Uuid::now_v7().to_string();
        assert!(store.add_notification(notification(Addressee::Operators, &cause), at(us)).await.unwrap());
    }
}

fn wanted(limit: usize, us: i64) -> ClaimDeliveries {
    ClaimDeliveries { limit, lease: Duration::from_micros(100), longest_wait: HOUR, now: at(us) }
}

async fn claim(store: &Store, us: i64) -> Vec<DueDelivery> {
    let Claimed { due, given_up } = store.claim_deliveries(wanted(MAX_CLAIM, us)).await.unwrap();
    assert_eq!(given_up, []);
    due
}

fn tried(due: &DueDelivery, verdict: Verdict, us: i64) -> TriedDelivery {
    TriedDelivery {
        delivery_id: due.delivery_id,
        lease_until: due.lease_until,
        verdict,
        status: Some(503),
        error: None,
        now: at(us),
    }
}

async fn in_pages(store: &Store, state: Option<DeliveryState>, limit: usize) -> Vec<WebhookDeliveryRow> {
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = store.webhook_deliveries(state, Page { limit, after }).await.unwrap();
        let Some(last) = page.last() else { return seen };
        after = Some(last.cursor().to_string().parse().unwrap());
        seen.extend(page);
    }
}

async fn only(store: &Store) -> WebhookDeliveryRow {
    let mut rows = in_pages(store, None, 9).await;
    assert_eq!(rows.len(), 1);
    rows.remove(0)
}

both_databases! {
    async fn only_operator_notifications_create_a_delivery_and_only_one(database: TestDatabase) {
        let store = database.open();
        notify_operators(&store, [1]).await;
        assert_eq!(in_pages(&store, None, 9).await, [], "without a webhook there are no deliveries");
        drop(store);
        let store = posting(&database);
        let workspace = Addressee::Workspace(key("acme", "web"));
        assert!(store.add_notification(notification(workspace, "of the tenant"), at(2)).await.unwrap());
        for expected in [true, false] {
            let is_new = store.add_notification(notification(Addressee::Operators, "the same cause"), at(3)).await.unwrap();
            assert_eq!(is_new, expected);
        }
        let alert = NewCapacityAlert {
            event_id: Uuid::now_v7(),
            alert_id: Uuid::now_v7(),
            change: change(),
            installation_id: None,
            created: at(4),
        };
        let twice = NewCapacityAlert { event_id: Uuid::now_v7(), ..alert.clone() };
        store.add_capacity_alerts(&[alert]).await.unwrap();
        // The failed transaction leaves neither notification nor delivery.
        assert!(matches!(store.add_capacity_alerts(&[twice]).await, Err(StoreError::Conflict(_))));
        let rows = in_pages(&store, None, 9).await;
        assert_eq!(rows.iter().map(|row| row.created).collect::<Vec<_>>(), [at(4), at(3)]);
        let page = || Page { limit: 9, after: None };
        let notifications = store.notifications(AuditFilter::default(), page()).await.unwrap();
        let expected = notifications.iter().filter(|row| row.created_at >= at(3)).map(|row| row.notification_id);
        let expected: Vec<_> = expected.collect();
        assert_eq!(rows.iter().map(|row| row.notification_id).collect::<Vec<_>>(), expected);
        for row in rows {
            assert_eq!((row.state, row.attempts, row.endpoint.as_str()), (DeliveryState::Pending, 0, ENDPOINT));
            assert_eq!((row.next_attempt, row.last_status, row.last_error), (row.created, None, None));
        }
    }

    async fn due_delivery_belongs_to_one_claim_until_its_lease_ends(database: TestDatabase) {
        let store = posting(&database);
        notify_operators(&store, [10, 20, 2000]).await;
        assert_eq!(claim(&store, 9).await, []);
        let backlog = store.webhook_backlog(HOUR, at(9)).await.unwrap();
        assert_eq!(backlog, WebhookBacklog { pending: 3, dead: 0, next: Some(at(10)) });
        let first = store.claim_deliveries(wanted(1, 30)).await.unwrap().due;
        assert_eq!((first.len(), first[0].attempt, first[0].notification.created), (1, 1, at(10)));
        let second = claim(&store, 30).await;
        assert_eq!((second.len(), second[0].notification.created), (1, at(20)));
        assert_eq!(claim(&store, 129).await, [], "both are leased");
        assert_eq!(store.webhook_backlog(HOUR, at(30)).await.unwrap().next, Some(at(130)));
        let again = claim(&store, 130).await;
        assert_eq!((again.len(), again[0].attempt, again[0].delivery_id), (2, 2, first[0].delivery_id));
    }

    async fn each_delivery_is_claimed_by_one_replica(database: TestDatabase) {
        let stores = [posting(&database), posting(&database), posting(&database)];
        notify_operators(&stores[0], 0..40).await;
        let mut tasks = Vec::new();
        for store in stores.iter().cycle().take(9) {
            let store = store.clone();
            let now = ClaimDeliveries { lease: HOUR, ..wanted(7, 100) };
            tasks.push(tokio::spawn(async move { store.claim_deliveries(now).await.unwrap().due }));
        }
        let mut taken = Vec::new();
        for task in tasks {
            taken.extend(task.await.unwrap().into_iter().map(|due| due.delivery_id));
        }
        // Slower claims may have got fewer deliveries; this claims the rest.
        loop {
            let rest = stores[0].claim_deliveries(ClaimDeliveries { lease: HOUR, ..wanted(99, 100) }).await.unwrap().due;
            assert!(rest.len() <= MAX_CLAIM);
            if rest.is_empty() {
                break;
            }
            taken.extend(rest.into_iter().map(|due| due.delivery_id));
        }
        assert_eq!((taken.len(), taken.iter().collect::<BTreeSet<_>>().len()), (40, 40), "each is claimed once");
    }

    async fn attempt_is_settled_once_and_delivered_is_final(database: TestDatabase) {
        let store = posting(&database);
        notify_operators(&store, [0]).await;
        let first = claim(&store, 10).await.remove(0);
        let retry = TriedDelivery {
            status: None,
            error: Some(Redacted::new("no connection\0")),
            ..tried(&first, Verdict::Retry(Duration::from_micros(500)), 20)
        };
        assert!(store.settle_delivery(retry.clone()).await.unwrap());
        let row = only(&store).await;
        assert_eq!((row.attempts, row.next_attempt, row.updated), (1, at(520), at(20)));
        assert_eq!(row.last_error.unwrap().as_str(), "no connection\u{fffd}");
        assert_eq!(claim(&store, 519).await, []);
        let second = claim(&store, 520).await.remove(0);
        assert!(!store.settle_delivery(retry).await.unwrap(), "the lease of the first attempt has ended");
        assert!(!store.settle_delivery(tried(&first, Verdict::Dead, 525)).await.unwrap());
        assert!(store.settle_delivery(tried(&second, Verdict::Dead, 530)).await.unwrap());
        let row = only(&store).await;
        assert_eq!((row.state, row.last_status, row.last_error), (DeliveryState::Dead, Some(503), None));
        assert_eq!(claim(&store, 1_000_000).await, []);
        let backlog = store.webhook_backlog(HOUR, at(0)).await.unwrap();
        assert_eq!(backlog, WebhookBacklog { pending: 0, dead: 1, next: None });
        // The answer to the first attempt was late, and a success.
        assert!(store.settle_delivery(tried(&first, Verdict::Delivered, 540)).await.unwrap());
        assert_eq!(only(&store).await.state, DeliveryState::Delivered);
        assert!(!store.settle_delivery(tried(&second, Verdict::Dead, 550)).await.unwrap());
        assert_eq!(only(&store).await.state, DeliveryState::Delivered);
    }

    async fn dead_delivery_is_replayed_under_its_id(database: TestDatabase) {
        let store = posting(&database);
        notify_operators(&store, 0..5).await;
        let due = claim(&store, 10).await;
        for (n, due) in due.iter().enumerate().take(4) {
            let verdict = if n == 0 { Verdict::Delivered } else { Verdict::Dead };
            assert!(store.settle_delivery(tried(due, verdict, 20)).await.unwrap());
        }
        assert_eq!(store.replay_delivery(Uuid::now_v7(), at(30)).await, Ok(None));
        let one = store.replay_delivery(due[1].delivery_id, at(30)).await.unwrap().unwrap();
        assert_eq!((one.state, one.attempts, one.next_attempt), (DeliveryState::Pending, 0, at(30)));
        assert_eq!(store.replay_dead_deliveries(at(40)).await, Ok(2));
        assert_eq!(store.replay_dead_deliveries(at(40)).await, Ok(0));
        let again = claim(&store, 40).await;
        let ids = |due: &[DueDelivery]| due.iter().map(|due| (due.delivery_id, due.attempt)).collect::<BTreeSet<_>>();
        assert_eq!(ids(&again), ids(&due[1..4]), "the delivered and the leased delivery are not replayed");
        let one = store.replay_delivery(due[0].delivery_id, at(50)).await.unwrap().unwrap();
        assert_eq!(one.state, DeliveryState::Pending, "the receiver may have lost it");
    }

    async fn replay_is_not_settled_by_an_earlier_attempt(database: TestDatabase) {
        let store = posting(&database);
        notify_operators(&store, [0]).await;
        let before = claim(&store, 10).await.remove(0);
        store.replay_delivery(before.delivery_id, at(20)).await.unwrap().unwrap();
        let again = claim(&store, 20).await.remove(0);
        assert_eq!(again.attempt, before.attempt);
        assert!(!store.settle_delivery(tried(&before, Verdict::Dead, 30)).await.unwrap());
        assert!(!store.settle_delivery(tried(&before, Verdict::Retry(HOUR), 30)).await.unwrap());
        assert_eq!(claim(&store, 31).await, [], "the delivery is leased");
        assert!(store.settle_delivery(tried(&again, Verdict::Retry(Duration::from_micros(5)), 40)).await.unwrap());
        assert_eq!(claim(&store, 45).await.len(), 1);
    }

    async fn delivery_pages_are_newest_first_and_filtered_by_state(database: TestDatabase) {
        let store = posting(&database);
        notify_operators(&store, [1, 2, 2, 2, 3, 4]).await;
        let first = store.claim_deliveries(wanted(1, 9)).await.unwrap().due.remove(0);
        store.settle_delivery(tried(&first, Verdict::Dead, 9)).await.unwrap();
        let all = in_pages(&store, None, 99).await;
        assert!(all.is_sorted_by(|a, b| (b.created, b.delivery_id) <= (a.created, a.delivery_id)));
        assert_eq!(all.len(), 6);
        for limit in [1, 2, 4] {
            assert_eq!(in_pages(&store, None, limit).await, all, "limit {limit}");
            let pending = in_pages(&store, Some(DeliveryState::Pending), limit).await;
            assert_eq!(pending, all[..5], "limit {limit}");
        }
        assert_eq!(in_pages(&store, Some(DeliveryState::Dead), 1).await, all[5..]);
        assert_eq!(in_pages(&store, Some(DeliveryState::Delivered), 1).await, []);
    }

    async fn clock_set_back_does_not_delay_deliveries(database: TestDatabase) {
        let store = posting(&database);
        // Ahead by less than the clocks of replicas may differ, by ten minutes and by days.
        notify_operators(&store, [50_000_000, 600_000_000, 3 * 24 * 3_600_000_000]).await;
        assert_eq!(store.webhook_backlog(HOUR, at(5)).await.unwrap().next, Some(at(5)));
        assert_eq!(claim(&store, 5).await.len(), 2);
        assert_eq!(claim(&store, 6).await, [], "leases use the current clock");
    }

    async fn notification_is_kept_while_its_delivery_is_pending(database: TestDatabase) {
        let store = posting(&database);
        notify_operators(&store, [0, 0]).await;
        let due = store.claim_deliveries(wanted(1, 1)).await.unwrap().due.remove(0);
        store.settle_delivery(tried(&due, Verdict::Dead, 1)).await.unwrap();
        assert_eq!(store.prune(Retained::Notifications, at(100), 9).await, Ok(1));
        let row = only(&store).await;
        assert_ne!(row.delivery_id, due.delivery_id);
        assert_eq!(store.prune(Retained::Notifications, at(100), 9).await, Ok(0));
    }

    async fn expired_delivery_is_given_up_and_its_notification_is_pruned(database: TestDatabase) {
        let store = posting(&database);
        notify_operators(&store, [0, 1, 2, 50]).await;
        drop(store);
        // The webhook was removed from the configuration.
        let store = database.open();
        assert_eq!(store.prune(Retained::Notifications, at(50), 9).await, Ok(0));
        assert_eq!(store.expire_deliveries(at(50), 2, at(100)).await, Ok(2));
        assert_eq!(store.expire_deliveries(at(50), 2, at(100)).await, Ok(1));
        assert_eq!(store.expire_deliveries(at(50), 2, at(100)).await, Ok(0));
        let dead = in_pages(&store, Some(DeliveryState::Dead), 9).await;
        assert_eq!(dead.len(), 3);
        for row in dead {
            assert_eq!((row.last_error.unwrap().as_str(), row.updated, row.attempts), ("expired", at(100), 0));
        }
        assert_eq!(store.prune(Retained::Notifications, at(50), 9).await, Ok(3));
        assert_eq!(only(&store).await.created, at(50), "the newer delivery is still pending");
    }

    async fn unreadable_delivery_is_given_up_and_later_ones_are_claimed(database: TestDatabase) {
        let store = posting(&database);
        notify_operators(&store, [0, 1, 2]).await;
        let page = Page { limit: 9, after: None };
        let notifications = store.notifications(AuditFilter::default(), page).await.unwrap();
        database.execute(&format!(
            "UPDATE notifications SET trigger = 'ofALaterVersion' WHERE notification_id = '{}'",
            notifications[2].notification_id
        ));
        let missing = notifications[1].notification_id;
        database.execute(&format!("DELETE FROM notifications WHERE notification_id = '{missing}'"));
        let Claimed { due, given_up } = store.claim_deliveries(wanted(MAX_CLAIM, 10)).await.unwrap();
        assert_eq!(due.iter().map(|due| due.notification.created).collect::<Vec<_>>(), [at(2)]);
        let reasons: Vec<_> = given_up.iter().map(|one| one.reason.as_str()).collect();
        assert!(reasons.len() == 2 && reasons[0].contains("ofALaterVersion"), "{reasons:?}");
        assert_eq!(reasons[1], "the notification is missing");
        let dead = in_pages(&store, Some(DeliveryState::Dead), 9).await;
        let kept: BTreeSet<_> =
            dead.iter().map(|row| (row.delivery_id.to_string(), row.last_error.clone().unwrap().into_string())).collect();
        let reported = given_up.iter().map(|one| (one.delivery_id.clone(), one.reason.as_str().to_owned())).collect();
        assert_eq!(kept, reported);
        assert_eq!(claim(&store, 11).await, [], "each is given up once");
    }

    async fn outage_refuses_claims_and_keeps_outcomes_of_attempts(database: TestDatabase) {
        let store = posting(&database);
        notify_operators(&store, [0]).await;
        let due = claim(&store, 1).await.remove(0);
        let outage = database.take_down();
        let refused = store.claim_deliveries(wanted(1, 500)).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        let settling = tokio::spawn({
            let store = store.clone();
            let delivered = tried(&due, Verdict::Delivered, 2);
            async move { store.settle_delivery(delivered).await }
        });
        tokio::task::yield_now().await;
        drop(outage);
        assert_eq!(settling.await.unwrap(), Ok(true));
        assert_eq!(only(&store).await.state, DeliveryState::Delivered);
    }
}
