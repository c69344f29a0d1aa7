//! Prepared statements: each statement of a turn is compiled once.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use diesel::connection::{Connection, InstrumentationEvent};
use parking_lot::Mutex;

use super::fixture::*;
use crate::{
    domain::{
        ids::SessionId,
        routing::{Route, success_window::Sample},
    },
    store::{
        Acceptance, OutcomeCount, TurnEnd,
        engine::{
            connection::{AnyConnection, Purpose},
            job::WriteTx,
        },
        turns,
    },
};

/// Recorded statements: executed, and newly added to the cache of prepared statements.
#[derive(Default)]
struct Statements {
    ran: BTreeSet<String>,
    kept: BTreeSet<String>,
}

fn record(connection: &mut AnyConnection) -> Arc<Mutex<Statements>> {
    let statements = Arc::new(Mutex::new(Statements::default()));
    let sink = statements.clone();
    connection.set_instrumentation(move |event: InstrumentationEvent<'_>| {
        let mut statements = sink.lock();
        match event {
            InstrumentationEvent::StartQuery { query, .. } => {
                let text = query.to_string();
                let text = text.split_once(" -- binds").map_or(text.as_str(), |(text, _)| text);
                statements.ran.insert(text.to_owned());
            }
            InstrumentationEvent::CacheQuery { sql, .. } => {
                statements.kept.insert(sql.to_owned());
            }
            _ => {}
        }
    });
    statements
}

/// Writes a whole turn with an outcome that is counted.
fn write_turn(tx: &mut WriteTx<'_>, session: SessionId, us: i64) {
    let turn = new_turn(session, us);
    let prompt = turn.prompt_id;
    assert_eq!(turns::acceptance(turn)(tx), Ok(Acceptance::Accepted));
    let counts = OutcomeCount { epoch: 0, route: Route::Acp, bucket: at(0), sample: Sample::Success };
    let end = TurnEnd { counts: Some(counts), ..turn_end(session, prompt, us + 1) };
    assert_eq!(turns::ending(end)(tx), Ok(turns::EndStored::ThisOne));
}

both_databases! {
    async fn statements_of_a_turn_are_compiled_once(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        store.close().await;
        let mut connection = database.url().connect(Purpose::Write).unwrap();
        connection.begin_write().unwrap();
        let (mut next_seq, mut grown, mut late) = (HashMap::new(), Vec::new(), Vec::new());
        let mut tx = WriteTx {
            connection: &mut connection,
            next_seq: &mut next_seq,
            rows: 0,
            in_doubt: false,
            grown: &mut grown,
            late: &mut late,
            webhook: None,
        };
        let statements = record(tx.connection);
        // The first turn also reads the session's last sequence number and creates the bucket.
        write_turn(&mut tx, session, 10);
        let first = std::mem::take(&mut *statements.lock());
        write_turn(&mut tx, session, 20);
        assert_eq!(tx.rows, 2 * 5);

        let second = statements.lock();
        assert_eq!(second.ran.len(), 4, "{:?}", second.ran);
        assert!(second.ran.is_subset(&first.kept), "{:?}", second.ran.difference(&first.kept));
        assert!(second.kept.is_empty(), "{:?}", second.kept);
    }
}
