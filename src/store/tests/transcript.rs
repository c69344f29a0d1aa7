//! Transcripts: entries that change, and readers of changes.

use std::collections::BTreeMap;

use serde_json::{json, value::RawValue};

use super::fixture::*;
use crate::{
    domain::turn::{
        transcript::{TranscriptBuilder, TranscriptEntry},
        update::view_update,
    },
    store::{TranscriptAppend, TranscriptRow},
};

fn feed(builder: &mut TranscriptBuilder, update: &serde_json::Value) {
    let raw = RawValue::from_string(update.to_string()).unwrap();
    builder.on_update(&view_update(&raw).unwrap(), &raw);
}

fn numbers(rows: &[TranscriptRow]) -> Vec<(u64, u64, u64)> {
    rows.iter().map(|row| (row.seq, row.revision, row.changed)).collect()
}

both_databases! {
    async fn updates_of_one_tool_call_change_one_row(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let mut builder = TranscriptBuilder::default();
        feed(&mut builder, &json!({"sessionUpdate": "tool_call", "toolCallId": "1", "title": "make"}));
        for n in 0..100 {
            let output = format!("line {n}\n").repeat(5000);
            feed(&mut builder, &json!({"sessionUpdate": "tool_call_update", "toolCallId": "1", "rawOutput": output}));
            store.append(TranscriptAppend { entries: builder.take(), ..append(session, &[]) }).await.unwrap();
        }
        store.append(append(session, &["done"])).await.unwrap();
        let rows = store.transcript(session, 0, 10).await.unwrap();
        assert_eq!(numbers(&rows), [(1, 100, 100), (101, 1, 101)]);
        let payload = rows[0].entry.payload.as_ref().unwrap().as_str();
        assert!(payload.contains("\"make\"") && payload.contains("line 99") && payload.len() <= 64 * 1024);
        // Another process continues the numbers, which it reads from the rows.
        store.close().await;
        let store = database.open();
        store.append(append(session, &["more"])).await.unwrap();
        assert_eq!(store.transcript(session, 101, 10).await.unwrap()[0].seq, 102);
    }

    async fn change_of_a_row_that_was_removed_is_written_as_a_new_one(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let mut builder = TranscriptBuilder::default();
        feed(&mut builder, &json!({"sessionUpdate": "plan", "entries": [1]}));
        store.append(TranscriptAppend { entries: builder.take(), ..append(session, &[]) }).await.unwrap();
        database.execute("DELETE FROM transcript_entries");
        feed(&mut builder, &json!({"sessionUpdate": "plan", "entries": [1, 2]}));
        store.append(TranscriptAppend { entries: builder.take(), ..append(session, &[]) }).await.unwrap();
        assert_eq!(numbers(&store.transcript(session, 0, 10).await.unwrap()), [(2, 1, 2)]);
    }

    async fn reader_of_changes_misses_none_while_entries_change(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let writing = tokio::spawn({
            let store = store.clone();
            async move {
                let mut builder = TranscriptBuilder::default();
                for n in 0..150 {
                    let call = (n % 7).to_string();
                    feed(&mut builder, &json!({"sessionUpdate": "tool_call_update", "toolCallId": call, "n": n}));
                    builder.note(TranscriptEntry::text("info", &n.to_string()));
                    store.append(TranscriptAppend { entries: builder.take(), ..append(session, &[]) }).await.unwrap();
                }
            }
        });
        let (mut known, mut after) = (BTreeMap::new(), 0);
        loop {
            let is_over = writing.is_finished();
            let page = store.transcript_changes(session, after, 5).await.unwrap();
            for row in &page {
                assert!(row.changed > after, "in the order of changes");
                after = row.changed;
                let text = row.entry.payload.as_ref().map_or(row.entry.text.as_str(), |payload| payload.as_str());
                known.insert(row.seq, (row.revision, text.to_owned()));
            }
            if page.is_empty() && is_over {
                break;
            }
        }
        writing.await.unwrap();
        let rows = store.transcript(session, 0, 1000).await.unwrap();
        let whole = rows.into_iter().map(|row| {
            let text = row.entry.payload.map_or(row.entry.text.into_string(), |payload| payload.into_string());
            (row.seq, (row.revision, text))
        });
        assert_eq!(known, whole.collect());
        assert_eq!(known.len(), 157);
        assert!(after >= 300, "150 notes, 7 calls and 143 changes: {after}");
    }

    async fn entries_that_a_resumed_turn_may_change_are_found(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let turn = new_turn(session, 10);
        let prompt = turn.prompt_id;
        store.accept_turn(turn).await.unwrap();
        let mut builder = TranscriptBuilder::default();
        for n in 0..5 {
            feed(&mut builder, &json!({"sessionUpdate": "tool_call", "toolCallId": n.to_string()}));
            let chunk = json!({"type": "text", "text": n.to_string()});
            feed(&mut builder, &json!({"sessionUpdate": "agent_message_chunk", "messageId": "m", "content": chunk}));
        }
        let mine = TranscriptAppend { prompt_id: Some(prompt), settles: 9, ..append(session, &[]) };
        store.append(TranscriptAppend { entries: builder.take(), ..mine }).await.unwrap();
        let kept = store.changeable_entries(session, prompt, 3).await.unwrap();
        let seen: Vec<_> = kept.iter().map(|entry| (entry.seq, entry.event_type.as_str(), entry.text.as_str())).collect();
        assert_eq!(seen, [(5, "tool_call", ""), (6, "tool_call", ""), (7, "tool_call", "")]);
        assert_eq!(store.session(session).await.unwrap().unwrap().settled_seq, 9, "the append has its number");
        store.append(TranscriptAppend { prompt_id: Some(prompt), ..append(session, &["last"]) }).await.unwrap();
        assert_eq!(store.changeable_entries(session, prompt, 1).await.unwrap()[1].text, "last");
    }
}
