//! Deliveries of GitHub: one row for each id and content, a bounded queue, one writer; and one tenant for each installation.

use uuid::Uuid;

use super::fixture::*;
use crate::{
    domain::{
        automation::{
            policy::AutomationSettings,
            trigger::{DeliveryState, EventKind, Person, Request, RequestText, TriggerCause},
        },
        changes::ChangeKind,
        erasure::EraseTarget,
        ids::SessionId,
        routing::{Attribution, Initiator},
        tenant::TenantSettings,
    },
    store::{
        AuditFilter, DeliveryRow, NewChange, OpenErasure, Page, QueueLimits, QueuedDelivery, Retained, Store,
        StoreError,
    },
};

const WIDE: QueueLimits = QueueLimits { of_all: 10, of_tenant: 10 };

fn delivery(tenant: &str, number: u64, us: i64) -> DeliveryRow {
    let text = RequestText { title: "a".into(), author: "ann".into(), body: "text".into(), comment: None };
    let request = Request {
        github_installation: 77,
        repository_id: 5,
        repository: "octo/hello".into(),
        number,
        is_pull_request: false,
        cause: TriggerCause::Label,
        comment_id: None,
        sender: Person { id: 9, login: "octocat".into() },
        mentioned: Vec::new(),
        text: Some(text),
    };
    DeliveryRow {
        delivery_id: Uuid::now_v7(),
        key: key(tenant, &request.workspace()),
        session_id: None,
        prompt_id: None,
        event: EventKind::Issues,
        state: DeliveryState::Queued,
        reason: None,
        request,
        version: 0,
        attempts: 0,
        due: Some(at(us)),
        created: at(us),
        updated: at(us),
    }
}

/// Queues a delivery whose content no other one has.
async fn queue(store: &Store, row: &DeliveryRow, limits: QueueLimits) -> Result<QueuedDelivery, StoreError> {
    store.queue_delivery(row, &row.delivery_id.to_string(), limits).await
}

async fn bind(store: &Store, tenant: &str, installations: &[u64]) -> Result<(), StoreError> {
    let automation = AutomationSettings { installations: installations.to_vec(), ..AutomationSettings::default() };
    let settings = TenantSettings { automation, ..TenantSettings::default() };
    let tenant = tenant.parse().unwrap();
    let attribution =
        Attribution { initiator: Initiator::Operator, actor: "ada".into(), actor_note: None, reason: "test".into() };
    let change = NewChange::of_tenant(ChangeKind::TenantSettings, &tenant, &attribution, at(1));
    store.save_tenant_settings(tenant, &settings, change).await
}

async fn oldest(store: &Store) -> DeliveryRow {
    let open = store.open_deliveries().await.unwrap();
    store.delivery(open[0].0).await.unwrap().unwrap()
}

both_databases! {
    async fn repeated_delivery_is_queued_once(database: TestDatabase) {
        let store = database.open();
        let row = delivery("acme", 1, 1);
        let queue = || queue(&store, &row, WIDE);
        let results = futures_util::future::join_all([queue(), queue(), queue()]).await;
        let new = results.iter().filter(|it| **it == Ok(QueuedDelivery::New)).count();
        assert_eq!((new, results.len()), (1, 3));
        let open = store.open_deliveries().await.unwrap();
        assert_eq!(open, [(row.delivery_id, row.key.clone(), at(1))]);
        let mut ended = store.delivery(row.delivery_id).await.unwrap().unwrap();
        assert_eq!(ended.request, row.request);
        (ended.state, ended.due) = (DeliveryState::Answered, None);
        store.save_delivery(&ended).await.unwrap();
        assert_eq!(queue().await, Ok(QueuedDelivery::Duplicate), "also after the end");
        assert!(store.open_deliveries().await.unwrap().is_empty());
    }

    async fn content_is_queued_once_under_whichever_id_also_after_erasure(database: TestDatabase) {
        let (store, other) = (database.open(), database.open());
        let rows: Vec<_> = (1..=8).map(|_| delivery("acme", 1, 5)).collect();
        let queueing = rows.iter().enumerate().map(|(at, row)| {
            let store = if at % 2 == 0 { &store } else { &other };
            store.queue_delivery(row, "hash", WIDE)
        });
        let results = futures_util::future::join_all(queueing).await;
        let count = |wanted| results.iter().filter(|it| **it == Ok(wanted)).count();
        assert_eq!((count(QueuedDelivery::New), count(QueuedDelivery::Duplicate)), (1, 7), "{results:?}");
        bind(&store, "acme", &[77]).await.unwrap();
        let target = EraseTarget::Tenant("acme".parse().unwrap());
        let erasure = OpenErasure { erasure_id: Uuid::now_v7(), target };
        assert!(store.begin_erasure(erasure.clone(), "ada", at(6)).await.unwrap());
        store.erase_rows(&erasure, 100).await.unwrap();
        assert!(store.open_deliveries().await.unwrap().is_empty());
        let again = || store.queue_delivery(&rows[7], "hash", WIDE);
        assert_eq!(again().await, Ok(QueuedDelivery::Duplicate), "erased");
        store.prune(Retained::GithubDeliveries, at(5), 100).await.unwrap();
        assert_eq!(again().await, Ok(QueuedDelivery::Duplicate), "kept");
        store.prune(Retained::GithubDeliveries, at(6), 100).await.unwrap();
        assert_eq!(again().await, Ok(QueuedDelivery::New), "removed with its age");
    }

    async fn queue_is_bounded_for_all_and_for_each_tenant(database: TestDatabase) {
        let store = database.open();
        let limits = QueueLimits { of_all: 3, of_tenant: 2 };
        let queue = async |tenant: &str, number| queue(&store, &delivery(tenant, number, 1), limits).await.unwrap();
        assert_eq!((queue("acme", 1).await, queue("acme", 2).await), (QueuedDelivery::New, QueuedDelivery::New));
        assert_eq!(queue("acme", 3).await, QueuedDelivery::Full, "of the tenant");
        assert_eq!((queue("other", 4).await, queue("other", 5).await), (QueuedDelivery::New, QueuedDelivery::Full));
        let mut ended = oldest(&store).await;
        ended.due = None;
        store.save_delivery(&ended).await.unwrap();
        assert_eq!(queue("acme", 6).await, QueuedDelivery::New);
    }

    async fn one_writer_advances_a_delivery_and_an_erased_one_stays_erased(database: TestDatabase) {
        let store = database.open();
        let mut row = delivery("acme", 1, 1);
        queue(&store, &row, WIDE).await.unwrap();
        row.session_id = Some(SessionId(Uuid::now_v7()));
        row.state = DeliveryState::Opened;
        store.save_delivery(&row).await.unwrap();
        assert_eq!(store.save_delivery(&row).await, Err(StoreError::Fenced), "the version was replaced");
        row.version = 1;
        let found = store.sessions_of_deliveries(row.key.clone(), 5).await.unwrap();
        assert_eq!(found, [row.session_id.unwrap()]);
        bind(&store, "acme", &[77]).await.unwrap();
        let target = EraseTarget::Tenant("acme".parse().unwrap());
        let erasure = OpenErasure { erasure_id: Uuid::now_v7(), target };
        assert!(store.begin_erasure(erasure.clone(), "ada", at(5)).await.unwrap());
        store.erase_rows(&erasure, 100).await.unwrap();
        assert_eq!(store.save_delivery(&row).await, Err(StoreError::Fenced));
        let page = Page { limit: 10, after: None };
        assert!(store.deliveries(AuditFilter::default(), None, page).await.unwrap().is_empty());
        assert_eq!(bind(&store, "other", &[77]).await, Ok(()), "the binding was erased too");
    }

    async fn only_ended_deliveries_are_removed_by_age(database: TestDatabase) {
        let store = database.open();
        for number in 1..=2 {
            queue(&store, &delivery("acme", number, 1), WIDE).await.unwrap();
        }
        let mut ended = oldest(&store).await;
        ended.due = None;
        store.save_delivery(&ended).await.unwrap();
        assert_eq!(store.prune(Retained::GithubDeliveries, at(2), 100).await, Ok(3), "one row and two hashes");
        assert_eq!(store.open_deliveries().await.unwrap().len(), 1);
    }

    async fn second_tenant_cannot_bind_an_installation_also_at_the_same_time(database: TestDatabase) {
        let store = database.open();
        let (one, two) = futures_util::future::join(bind(&store, "acme", &[77, 77, 78]), bind(&store, "other", &[77])).await;
        let is_conflict = |it: &Result<(), StoreError>| matches!(it, Err(StoreError::Conflict(_)));
        assert!((one == Ok(()) && is_conflict(&two)) || (two == Ok(()) && is_conflict(&one)), "{one:?} {two:?}");
        let (winner, loser) = if one == Ok(()) { ("acme", "other") } else { ("other", "acme") };
        assert!(is_conflict(&bind(&store, loser, &[77]).await));
        bind(&store, winner, &[77]).await.unwrap();
        bind(&store, winner, &[]).await.unwrap();
        bind(&store, loser, &[77]).await.unwrap();
    }
}
