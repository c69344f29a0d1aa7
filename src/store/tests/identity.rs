//! Restores from a backup: the epoch is renewed, so that older cursors are not accepted.

use uuid::Uuid;

use super::fixture::*;
use crate::{
    domain::notify::{
        notice,
        notification::{Addressee, NewNotification, Stream},
        subscription::{self, ResetReason},
    },
    store::{RenewedEpoch, Store},
};

both_databases! {
    async fn restore_resets_cursors_of_the_time_before_it(database: TestDatabase) {
        let store = database.open();
        let before = store.epoch().to_owned();
        let notify = async |store: &Store| {
            let (id, cause) = (Uuid::now_v7(), Uuid::now_v7());
            let notification = NewNotification::new(id, Addressee::Operators, notice::of_storm(5, 5), cause);
            store.add_notification(notification, at(0)).await.unwrap();
        };
        notify(&store).await;
        drop(store);
        // A second renewal must be harmless.
        let first = Store::renew_epoch(&database.url()).unwrap();
        let second = Store::renew_epoch(&database.url()).unwrap();
        assert_eq!((&first.before, &second.before), (&before, &first.now));
        assert!(first.now != before && second.now != before && second.now != first.now);
        let store = database.open();
        assert_eq!(store.epoch(), second.now);
        for _ in 0..3 {
            notify(&store).await;
        }
        // By its number alone, a cursor of a notification that the backup lacks would be resumed.
        let ends = store.stream_ends(Stream::Operators).await.unwrap();
        assert_eq!((ends.head, ends.tail), (4, 0));
        let start = |epoch: &str| subscription::start(Some((3, Some(epoch))), store.epoch(), ends.head, ends.tail);
        assert_eq!((start(&before).reset, start(&before).after), (Some(ResetReason::OtherEpoch), 4));
        assert_eq!((start(&second.now).reset, start(&second.now).after), (None, 3));
    }

    async fn epoch_of_a_database_that_was_never_opened_is_renewed(database: TestDatabase) {
        Store::upgrade_schema(&database.url()).unwrap();
        let RenewedEpoch { before, now } = Store::renew_epoch(&database.url()).unwrap();
        assert!(before != now && now.len() == 32);
        assert_eq!(database.open().epoch(), now);
    }
}
