//! A database that was restored from a backup: no cursor of before is taken for one of its own.

use uuid::Uuid;

use super::fixture::*;
use crate::{
    domain::notify::{
        notice,
        subscription::{self, ResetReason},
        toast::{Addressee, NewNotification, Stream},
    },
    store::{RenewedEpoch, Store},
};

both_databases! {
    async fn after_a_restore_a_cursor_of_before_is_reset(database: TestDatabase) {
        let store = database.open();
        let before = store.epoch().to_owned();
        let tell = async |store: &Store| {
            let told = NewNotification::new(Uuid::now_v7(), Addressee::Operators, notice::of_storm(5, 5), Uuid::now_v7());
            store.tell(told, at(0)).await.unwrap();
        };
        tell(&store).await;
        drop(store);
        // Twice is as good as once.
        let first = Store::renew_epoch(&database.url()).unwrap();
        let second = Store::renew_epoch(&database.url()).unwrap();
        assert_eq!((&first.before, &second.before), (&before, &first.now));
        assert!(first.now != before && second.now != before && second.now != first.now);
        let store = database.open();
        assert_eq!(store.epoch(), second.now);
        for _ in 0..3 {
            tell(&store).await;
        }
        // By its number alone the cursor of a toast that the backup does not have would be gone on from.
        let ends = store.stream_ends(Stream::Operators).await.unwrap();
        assert_eq!((ends.head, ends.tail), (4, 0));
        let start = |epoch: &str| subscription::start(Some((3, Some(epoch))), store.epoch(), ends.head, ends.tail);
        assert_eq!((start(&before).reset, start(&before).after), (Some(ResetReason::OtherEpoch), 4));
        assert_eq!((start(&second.now).reset, start(&second.now).after), (None, 3));
    }

    async fn a_database_that_was_never_opened_gets_a_name_too(database: TestDatabase) {
        Store::upgrade_schema(&database.url()).unwrap();
        let RenewedEpoch { before, now } = Store::renew_epoch(&database.url()).unwrap();
        assert!(before != now && now.len() == 32);
        assert_eq!(database.open().epoch(), now);
    }
}
