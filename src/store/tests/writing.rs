//! The writer: groups of writes, isolation of failures, outages, bounds, close; and reads that are not polled.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::fixture::*;
use crate::store::{Store, StoreError, StoreOptions, engine::writer::WriteTx, transcript::Entries};

both_databases! {
    async fn concurrent_starts_upgrade_the_schema_once(database: TestDatabase) {
        let url = database.url();
        let threads: Vec<_> = (0..6)
            .map(|_| {
                let url = url.clone();
                std::thread::spawn(move || Store::upgrade_schema(&url))
            })
            .collect();
        let ran: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect();
        assert_eq!(ran.iter().filter(|ran| !ran.is_empty()).count(), 1, "{ran:?}");
        assert_eq!(Store::upgrade_schema(&url).unwrap(), Vec::<String>::new());
    }

    async fn writes_queued_behind_a_busy_writer_are_one_transaction(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let held = hold(&store).await;
        let before = database.commits();
        for n in 0..100 {
            store.try_append(append(session, &[&n.to_string()]), drop).unwrap();
        }
        held.release().await;
        until("100 entries", async || store.transcript_len(session).await.unwrap() == 100).await;
        // A reader may see a commit shortly before the metric counts it.
        until("both commits", async || database.commits().0 >= before.0 + 2).await;
        assert_eq!(database.commits(), (before.0 + 2, before.1 + 100), "the holder's commit, then one with all writes");
        let expected: Vec<_> = (0..100).map(|n| n.to_string()).collect();
        assert_eq!(texts(&store, session).await, expected);
    }

    async fn unpolled_reads_do_not_block_other_reads(database: TestDatabase) {
        let store = Store::open(StoreOptions { readers: 1, ..database.options() }, database.metrics.clone()).unwrap();
        // Holds the only connection, so that no other read completes before the release.
        let (started, starts) = tokio::sync::oneshot::channel();
        let (release, released) = std::sync::mpsc::sync_channel(1);
        let holding = tokio::spawn({
            let store = store.clone();
            let hold = move || {
                started.send(()).unwrap();
                released.recv_timeout(DEADLINE).unwrap();
            };
            async move {
                store
                    .read(move |_| {
                        hold();
                        Ok(())
                    })
                    .await
            }
        });
        starts.await.unwrap();
        let mut stalled: Vec<_> = (0..3).map(|_| Box::pin(store.ping())).collect();
        for read in &mut stalled {
            assert!(futures_util::poll!(read).is_pending());
        }
        release.send(()).unwrap();
        assert_eq!(store.ping().await, Ok(()));
        for read in stalled {
            assert_eq!(read.await, Ok(()));
        }
        assert_eq!(holding.await.unwrap(), Ok(()));
    }

    async fn write_that_never_succeeds_is_quarantined_and_slows_no_batch(database: TestDatabase) {
        let patience = Duration::from_millis(100);
        let store = Store::open(StoreOptions { patience, ..database.options() }, database.metrics.clone()).unwrap();
        let session = session(&store).await;
        let runs = Arc::new(AtomicU64::new(0));
        let poison = tokio::spawn({
            let (store, runs) = (store.clone(), runs.clone());
            let odd = move |_: &mut WriteTx<'_>| {
                runs.fetch_add(1, Ordering::SeqCst);
                Err::<(), _>(StoreError::Unavailable("odd".into()))
            };
            async move { store.write_when_there_is_room(odd).await }
        });
        let mut others = 0;
        until("the write is quarantined", async || {
            store.append(append(session, &["x"])).await.unwrap();
            others += 1;
            database.metrics.value("lumilink_writer_quarantined_total") == Some(1.0)
        })
        .await;
        assert!(poison.await.unwrap().is_err());
        let runs = runs.load(Ordering::SeqCst);
        assert!(runs <= 8 && others > runs, "{runs} runs beside {others} other writes");
        assert_eq!(store.transcript_len(session).await.unwrap(), others);
    }

    async fn waiting_entries_are_bounded_in_bytes(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let held = hold(&store).await;
        let mebibyte = "x".repeat(1 << 20);
        let append = || store.try_append(append(session, &[&mebibyte]), drop).map_err(|it| it.0);
        let taken = std::iter::from_fn(|| append().ok()).count();
        assert_eq!((taken, append()), (64, Err(StoreError::Busy)));
        held.release().await;
        until("there is room again", async || append().is_ok()).await;
    }

    async fn ends_of_turns_in_an_outage_keep_to_the_bytes_that_may_wait(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let long = "x".repeat(1 << 20);
        let mut slots = Vec::new();
        for n in 0..80 {
            let turn = new_turn(session, n);
            slots.push((turn.prompt_id, store.reserve_end().unwrap()));
            store.accept_turn(turn).await.unwrap();
        }
        let free = || store.inner.room.free_kib();
        until("the accepted turns are off the budget", async || free() == 64 * 1024).await;
        let outage = database.take_down();
        let ended = Arc::new(AtomicU64::new(0));
        for (n, (prompt, slot)) in slots.into_iter().enumerate() {
            let mut end = turn_end(session, prompt, 1000);
            end.entries = append(session, &[&long]).entries;
            let ended = ended.clone();
            let done = move |written: Result<(), StoreError>| {
                written.unwrap();
                ended.fetch_add(1, Ordering::SeqCst);
            };
            slot.end_turn(end, Box::new(done));
            // Each holds its entry and its result, rounded up to a KiB.
            assert_eq!(free(), (64 * 1024_usize).saturating_sub((n + 1) * 1025));
        }
        // Beyond the ends of the turns that ran, nothing more is taken.
        let refused = store.try_append(append(session, &["x"]), drop).map_err(|it| it.0);
        assert_eq!(refused, Err(StoreError::Busy));
        assert_eq!(store.accept_turn(new_turn(session, 2000)).await, Err(StoreError::Busy));
        let appending = tokio::spawn({
            let store = store.clone();
            async move { store.append(append(session, &["after the ends"])).await }
        });
        drop(outage);
        appending.await.unwrap().unwrap();
        until("all ends", async || ended.load(Ordering::SeqCst) == 80).await;
        until("the whole budget", async || free() == 64 * 1024).await;
    }

    async fn late_appends_keep_their_share_until_they_are_written(database: TestDatabase) {
        let patience = Duration::from_millis(1);
        let store = Store::open(StoreOptions { patience, ..database.options() }, database.metrics.clone()).unwrap();
        let session = session(&store).await;
        let mebibyte = "x".repeat(1 << 20);
        let outage = database.take_down();
        for n in 1..=3 {
            let late = store.append(append(session, &[&mebibyte])).await;
            assert!(matches!(late, Err(StoreError::Unavailable(_))), "{late:?}");
            assert_eq!(store.inner.room.free_kib(), (64 - n) * 1024, "it is still retained");
        }
        drop(outage);
        until("the entries", async || store.transcript_len(session).await.is_ok_and(|len| len == 3)).await;
        until("the whole budget", async || store.inner.room.free_kib() == 64 * 1024).await;
    }

    async fn failed_write_does_not_affect_its_group(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let held = hold(&store).await;
        let good = |text: &'static str| {
            let store = store.clone();
            tokio::spawn(async move { store.append(append(session, &[text])).await })
        };
        let before = good("before");
        let mut twice = new_session(0);
        twice.session_id = session;
        let conflict = tokio::spawn({
            let store = store.clone();
            async move { store.create_session(twice).await }
        });
        let panics = tokio::spawn({
            let store = store.clone();
            async move { store.write::<()>(|_| panic!("a bug, on purpose")).await }
        });
        let broken = tokio::spawn({
            let store = store.clone();
            async move {
                let run = |tx: &mut crate::store::engine::writer::WriteTx<'_>| {
                    diesel::connection::SimpleConnection::batch_execute(tx.connection, "nonsense")?;
                    Ok(())
                };
                store.write(run).await
            }
        });
        let after = good("after");
        until("five queued writes", async || store.inner.queue.capacity() == 1024 - 5).await;
        held.release().await;
        assert!(matches!(conflict.await.unwrap(), Err(StoreError::Conflict(_))));
        assert!(matches!(panics.await.unwrap(), Err(StoreError::Corrupt(_))));
        assert!(matches!(broken.await.unwrap(), Err(StoreError::Unavailable(_))));
        before.await.unwrap().unwrap();
        after.await.unwrap().unwrap();
        let mut seen = texts(&store, session).await;
        seen.sort();
        assert_eq!(seen, ["after", "before"]);
        assert_eq!(database.failures(), 2, "a conflict does not count as a failure");
    }

    async fn full_queue_refuses_new_work_but_accepts_ends_of_turns(database: TestDatabase) {
        let store = Store::open(StoreOptions { write_queue: 4, ..database.options() }, database.metrics.clone()).unwrap();
        let session = session(&store).await;
        let turn = new_turn(session, 1);
        let prompt = turn.prompt_id;
        let slot = store.reserve_end().unwrap();
        store.accept_turn(turn).await.unwrap();
        let held = hold(&store).await;
        for _ in 0..3 {
            store.try_append(append(session, &["x"]), drop).unwrap();
        }
        let (refused, back) = store.try_append(append(session, &["y"]), drop).unwrap_err();
        assert_eq!((refused, back.entries.len()), (StoreError::Busy, 1));
        assert_eq!(store.accept_turn(new_turn(session, 2)).await, Err(StoreError::Busy));
        assert!(matches!(store.reserve_end(), Err(StoreError::Busy)));
        let (done, outcome) = tokio::sync::oneshot::channel();
        slot.end_turn(turn_end(session, prompt, 2), Box::new(|result| done.send(result).unwrap()));
        held.release().await;
        assert_eq!(outcome.await.unwrap(), Ok(()));
        assert_eq!(texts(&store, session).await, ["fix it", "x", "x", "x", "done"]);
        assert!(database.failures() >= 1);
        drop(store.reserve_end().unwrap());
    }

    async fn terminated_connection_is_reopened(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        for round in 0..3 {
            store.ping().await.unwrap();
            database.cut_connections();
            store.append(append(session, &["still here"])).await.unwrap();
            // Also in the middle of a transaction.
            let held = hold(&store).await;
            store.try_append(append(session, &["and here"]), drop).unwrap();
            database.cut_connections();
            held.release().await;
            until("both", async || store.transcript_len(session).await.unwrap() == 2 * (round + 1)).await;
        }
        assert_eq!(database.failures(), 0);
    }

    async fn outage_refuses_new_work_and_keeps_ends_of_turns(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let turn = new_turn(session, 1);
        let prompt = turn.prompt_id;
        store.accept_turn(turn).await.unwrap();
        let outage = database.take_down();
        let refused = store.create_session(new_session(2)).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        let ending = tokio::spawn({
            let store = store.clone();
            async move { end(&store, turn_end(session, prompt, 3)).await }
        });
        store.try_append(append(session, &["kept"]), drop).unwrap();
        let refused = store.create_session(new_session(4)).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        assert!(!ending.is_finished());
        drop(outage);
        ending.await.unwrap().unwrap();
        until("the kept entry", async || store.transcript_len(session).await.is_ok_and(|len| len == 3)).await;
        store.create_session(new_session(5)).await.unwrap();
    }

    async fn end_reported_as_not_durable_is_written_after_the_outage(database: TestDatabase) {
        let patience = std::time::Duration::from_millis(1);
        let store = Store::open(StoreOptions { patience, ..database.options() }, database.metrics.clone()).unwrap();
        let session = session(&store).await;
        let turn = new_turn(session, 1);
        let prompt = turn.prompt_id;
        store.accept_turn(turn).await.unwrap();
        let outage = database.take_down();
        let outcome = end(&store, turn_end(session, prompt, 3)).await;
        assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
        drop(outage);
        until("the end", async || store.prompt(prompt).await.is_ok_and(|row| row.unwrap().ended == Some(at(3)))).await;
        assert_eq!(texts(&store, session).await, ["fix it", "done"]);
    }

    async fn close_drains_queued_writes_and_reserved_ends(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let turn = new_turn(session, 1);
        let prompt = turn.prompt_id;
        let slot = store.reserve_end().unwrap();
        store.accept_turn(turn).await.unwrap();
        for _ in 0..300 {
            store.try_append(append(session, &["x"]), drop).unwrap();
        }
        let closing = tokio::spawn({
            let store = store.clone();
            async move { store.close().await }
        });
        until("a closed queue", async || store.inner.queue.is_closed()).await;
        assert_eq!(store.append(append(session, &["late"])).await, Err(StoreError::Closed));
        assert_eq!(store.ping().await, Err(StoreError::Closed));
        slot.end_turn(turn_end(session, prompt, 2), Box::new(|result| result.unwrap()));
        assert!(closing.await.unwrap(), "closed without loss");
        assert!(store.close().await, "closing twice is harmless");
        let store = database.open();
        assert_eq!(store.transcript_len(session).await.unwrap(), 302);
        assert_eq!(store.prompt(prompt).await.unwrap().unwrap().ended, Some(at(2)));
    }

    async fn append_with_a_commit_in_doubt_is_written_once(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let mut entries = Entries::new(append(session, &["once", "and once"]));
        store
            .write(move |tx| {
                entries.write(tx)?;
                tx.in_doubt = true;
                entries.write(tx)
            })
            .await
            .unwrap();
        assert_eq!(texts(&store, session).await, ["once", "and once"]);
    }

    async fn panic_in_an_outcome_callback_does_not_stop_the_writer(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let turn = new_turn(session, 1);
        let prompt = turn.prompt_id;
        store.accept_turn(turn).await.unwrap();
        let slot = store.reserve_end().unwrap();
        slot.end_turn(turn_end(session, prompt, 2), Box::new(|_| panic!("a bug, on purpose")));
        store.append(append(session, &["next"])).await.unwrap();
        assert_eq!(texts(&store, session).await, ["fix it", "done", "next"]);
    }
}
