use serde_json::{Value, json};

use super::*;

fn raw(json: &Value) -> Box<RawValue> {
    RawValue::from_string(json.to_string()).unwrap()
}

fn feed(builder: &mut TranscriptBuilder, update: &Value) {
    let raw = raw(update);
    builder.on_update(&view_update(&raw).unwrap(), &raw);
}

fn finish(builder: &mut TranscriptBuilder) -> Vec<TranscriptEntry> {
    let mut entries = Vec::new();
    builder.finish(&mut entries);
    entries
}

fn chunk(kind: &str, text: &str) -> Value {
    json!({"sessionUpdate": kind, "content": {"type": "text", "text": text}})
}

fn of_message(id: &str, text: &str) -> Value {
    json!({"sessionUpdate": "agent_message_chunk", "messageId": id, "content": {"type": "text", "text": text}})
}

fn shown(entries: &[TranscriptEntry]) -> Vec<(&str, &str)> {
    entries.iter().map(|entry| (entry.event_type.as_str(), entry.text.as_str())).collect()
}

fn payload(entry: &TranscriptEntry) -> Value {
    serde_json::from_str(entry.payload.as_ref().unwrap().as_str()).unwrap()
}

fn revises(entries: &[TranscriptEntry]) -> Vec<bool> {
    entries.iter().map(|entry| entry.place.as_ref().is_some_and(|place| place.revises)).collect()
}

#[test]
fn consecutive_chunks_are_one_entry_and_other_updates_separate_them() {
    let mut builder = TranscriptBuilder::default();
    feed(&mut builder, &chunk("agent_message_chunk", "a"));
    feed(&mut builder, &chunk("agent_message_chunk", "b"));
    feed(&mut builder, &chunk("agent_thought_chunk", "hm"));
    feed(&mut builder, &json!({"sessionUpdate": "tool_call", "toolCallId": "1", "title": "t"}));
    feed(&mut builder, &chunk("agent_message_chunk", "c"));
    assert_eq!(
        shown(&finish(&mut builder)),
        [("agent_message", "ab"), ("agent_thought", "hm"), ("tool_call", ""), ("agent_message", "c")]
    );
}

#[test]
fn message_id_separates_messages_and_joins_the_chunks_of_one() {
    let mut builder = TranscriptBuilder::default();
    for (id, text) in [("m1", "one "), ("m1", "message"), ("m2", "another")] {
        feed(&mut builder, &of_message(id, text));
    }
    feed(&mut builder, &json!({"sessionUpdate": "tool_call", "toolCallId": "1"}));
    feed(&mut builder, &of_message("m2", " one"));
    let entries = finish(&mut builder);
    assert_eq!(
        shown(&entries),
        [("agent_message", "one message"), ("agent_message", "another one"), ("tool_call", "")]
    );
    assert_eq!(entries[1].message_id.as_deref(), Some("m2"));
}

#[test]
fn long_message_becomes_several_entries_without_loss() {
    let mut builder = TranscriptBuilder::default();
    let long = "é".repeat(MAX_ENTRY_BYTES);
    feed(&mut builder, &chunk("agent_message_chunk", &long));
    let out = finish(&mut builder);
    assert!(out.len() >= 2 && out.iter().all(|entry| entry.text.as_str().len() <= MAX_ENTRY_BYTES));
    assert_eq!(out.iter().map(|entry| entry.text.as_str()).collect::<String>(), long);
}

#[test]
fn flood_of_updates_makes_a_bounded_number_of_entries() {
    let mut builder = TranscriptBuilder::default();
    for n in 0..MAX_ENTRIES_PER_TURN + 5 {
        feed(&mut builder, &json!({"sessionUpdate": "unheard_of"}));
        if n >= MAX_ENTRIES_PER_TURN {
            feed(&mut builder, &chunk("agent_message_chunk", "a"));
        }
    }
    let out = finish(&mut builder);
    assert_eq!(out.len(), MAX_ENTRIES_PER_TURN + 1);
    assert_eq!(out.last().unwrap().text.as_str(), "10 more entries of this turn were left out");
}

#[test]
fn flood_of_permission_requests_makes_a_bounded_number_of_entries() {
    let mut builder = TranscriptBuilder::default();
    for _ in 0..MAX_ENTRIES_PER_TURN + 5 {
        builder.note(TranscriptEntry::text("permission", "allowed"));
    }
    let out = finish(&mut builder);
    assert_eq!(out.len(), MAX_ENTRIES_PER_TURN + 1);
    assert_eq!(out.last().unwrap().text.as_str(), "5 more entries of this turn were left out");
}

#[test]
fn hundreds_of_cumulative_updates_of_one_command_are_one_entry_with_the_end() {
    let mut builder = TranscriptBuilder::default();
    feed(
        &mut builder,
        &json!({"sessionUpdate": "tool_call", "toolCallId": "1", "title": "make", "status": "pending"}),
    );
    let (mut output, mut writes) = (String::new(), 0);
    for n in 0..300 {
        output.push_str(&format!("line {n} of the output of the command\n"));
        let content = json!([{"type": "content", "content": {"type": "text", "text": output.repeat(20)}}]);
        feed(&mut builder, &json!({"sessionUpdate": "tool_call_update", "toolCallId": "1", "content": content}));
        if n % 100 == 0 {
            let taken = builder.take();
            assert_eq!((taken.len(), revises(&taken)), (1, vec![writes > 0]), "one row, which is revised");
            writes += 1;
        }
    }
    feed(&mut builder, &json!({"sessionUpdate": "tool_call_update", "toolCallId": "1", "status": "completed"}));
    let last = finish(&mut builder);
    assert_eq!((last.len(), revises(&last)), (1, vec![true]));
    let call = payload(&last[0]);
    assert_eq!(
        (&call["title"], &call["status"], &last[0].event_type),
        (&json!("make"), &json!("completed"), &"tool_call".to_owned())
    );
    let text = call["content"][0]["content"]["text"].as_str().unwrap();
    assert!(text.starts_with("line 0 ") && text.ends_with("line 299 of the output of the command\n"));
    assert!(last[0].size_bytes() <= MAX_ENTRY_BYTES);
}

#[test]
fn growing_message_is_revised_after_it_was_taken() {
    let mut builder = TranscriptBuilder::default();
    feed(&mut builder, &chunk("agent_message_chunk", "a"));
    let first = builder.take();
    assert!(builder.take().is_empty(), "nothing has changed");
    feed(&mut builder, &chunk("agent_message_chunk", "b"));
    let second = builder.take();
    assert_eq!(
        (shown(&second), revises(&first), revises(&second)),
        (vec![("agent_message", "ab")], vec![false], vec![true])
    );
    first[0].place.as_ref().unwrap().assign(7);
    assert_eq!(second[0].place.as_ref().unwrap().seq(), 7);
}

#[test]
fn long_message_is_not_written_again_and_again() {
    let mut builder = TranscriptBuilder::default();
    let (mut said, mut written, mut bytes) = (String::new(), Vec::new(), 0);
    for n in 0..1000 {
        let text = format!("{n} {}", "x".repeat(100));
        feed(&mut builder, &chunk("agent_message_chunk", &text));
        said.push_str(&text);
        if n % 10 == 9 {
            for entry in builder.take() {
                bytes += entry.size_bytes();
                if !entry.place.as_ref().unwrap().revises {
                    written.push(String::new());
                }
                *written.last_mut().unwrap() = entry.text.as_str().to_owned();
            }
        }
    }
    assert_eq!(written.concat(), said);
    assert!(bytes < 6 * said.len(), "{bytes} bytes written for {}", said.len());
}

#[test]
fn entry_that_was_put_back_and_changed_is_written_once() {
    let mut builder = TranscriptBuilder::default();
    feed(&mut builder, &chunk("agent_message_chunk", "a"));
    builder.note(TranscriptEntry::text("info", "noted"));
    feed(&mut builder, &json!({"sessionUpdate": "tool_call", "toolCallId": "1"}));
    let taken = builder.take();
    builder.put_back(taken);
    feed(&mut builder, &json!({"sessionUpdate": "tool_call_update", "toolCallId": "1", "status": "completed"}));
    let again = builder.take();
    assert_eq!(shown(&again), [("agent_message", "a"), ("info", "noted"), ("tool_call", "")]);
    assert_eq!(revises(&again), [false; 3]);
    assert_eq!(payload(&again[2])["status"], "completed");
}

#[test]
fn plan_has_one_entry_with_its_newest_steps() {
    let mut builder = TranscriptBuilder::default();
    feed(&mut builder, &json!({"sessionUpdate": "plan", "entries": [1]}));
    feed(&mut builder, &chunk("agent_message_chunk", "a"));
    feed(&mut builder, &json!({"sessionUpdate": "plan", "entries": [1, 2]}));
    let entries = finish(&mut builder);
    assert_eq!(shown(&entries), [("plan", ""), ("agent_message", "a")]);
    assert_eq!(payload(&entries[0])["entries"], json!([1, 2]));
}

#[test]
fn text_after_the_end_continues_its_message() {
    let mut builder = TranscriptBuilder::default();
    feed(&mut builder, &chunk("agent_message_chunk", "the end"));
    finish(&mut builder);
    feed(&mut builder, &chunk("agent_message_chunk", " came late"));
    let late = builder.take();
    assert_eq!((shown(&late), revises(&late)), (vec![("agent_message", "the end came late")], vec![true]));
}

#[test]
fn half_of_a_character_waits_for_the_other_half() {
    let mut builder = TranscriptBuilder::default();
    for text in [r"a\ud83d", r"\ude00"] {
        let raw = format!(r#"{{"sessionUpdate":"agent_message_chunk","content":{{"type":"text","text":"{text}"}}}}"#);
        let raw = RawValue::from_string(raw).unwrap();
        builder.on_update(&view_update(&raw).unwrap(), &raw);
        assert_eq!(builder.is_in_character(), text.starts_with('a'));
    }
    assert_eq!(shown(&finish(&mut builder)), [("agent_message", "a😀")]);
}

#[test]
fn resumed_turn_changes_the_entries_that_are_on_disk() {
    let kept = |seq, event_type: &str, text: &str, payload: Option<Value>| KeptEntry {
        seq,
        event_type: event_type.to_owned(),
        text: text.to_owned(),
        payload: payload.map(|it| it.to_string()),
        message_id: None,
    };
    let call = json!({"sessionUpdate": "tool_call", "toolCallId": "1", "title": "t"});
    let mut builder = TranscriptBuilder::resume(&[
        kept(2, "agent_message", "an earlier message", None),
        kept(3, "tool_call", "", Some(call)),
        kept(5, "agent_message", "a", None),
    ]);
    assert!(builder.is_empty());
    feed(&mut builder, &chunk("agent_message_chunk", "b"));
    feed(&mut builder, &json!({"sessionUpdate": "tool_call_update", "toolCallId": "1", "status": "failed"}));
    let entries = finish(&mut builder);
    let places: Vec<_> = entries.iter().map(|entry| entry.place.as_ref().unwrap().seq()).collect();
    assert_eq!((shown(&entries), places), (vec![("agent_message", "ab"), ("tool_call", "")], vec![5, 3]));
    assert_eq!((revises(&entries), &payload(&entries[1])["title"]), (vec![true; 2], &json!("t")));
}

#[test]
fn many_tool_calls_take_bounded_memory() {
    let mut builder = TranscriptBuilder::default();
    for n in 0..1000 {
        let text = "x".repeat(10_000);
        feed(&mut builder, &json!({"sessionUpdate": "tool_call", "toolCallId": n.to_string(), "rawInput": text}));
        builder.take();
    }
    let bytes: usize = builder.growing.values().map(Growing::size_bytes).sum();
    assert!(builder.growing.len() <= MAX_TRACKED && bytes <= MAX_TRACKED_BYTES, "{bytes}");
    feed(&mut builder, &json!({"sessionUpdate": "tool_call_update", "toolCallId": "0", "status": "completed"}));
    assert_eq!(revises(&builder.take()), [false], "the update of a forgotten call is an entry of its own");
}

/// The texts of all entries as they are after the last write, with a write after every chunk.
fn written(chunks: &[String]) -> Vec<String> {
    let mut builder = TranscriptBuilder::default();
    let mut rows: Vec<(Option<*const AtomicI64>, String)> = Vec::new();
    for (index, text) in chunks.iter().enumerate() {
        let update = raw(&json!({"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}}));
        builder.on_update(&view_update(&update).unwrap(), &update);
        let mut entries = Vec::new();
        match index + 1 == chunks.len() {
            true => builder.finish(&mut entries),
            false => entries = builder.take(),
        }
        for entry in entries {
            let place = entry.place.as_ref().map(|place| Arc::as_ptr(&place.seq));
            let text = entry.text.into_string();
            match rows.iter_mut().find(|(known, _)| place.is_some() && *known == place) {
                Some(row) => row.1 = text,
                None => rows.push((place, text)),
            }
        }
    }
    rows.into_iter().map(|(_, text)| text).collect()
}

#[test]
fn secret_that_is_split_over_two_chunks_of_a_message_is_in_no_entry() {
    let (head, tail) = ("token: ghp_abcdefghijklmn", "opqrstuvwxyz0123456789 end");
    for filling in [0, 4 * 1024 - 12, 4 * 1024, 8 * 1024 - 100, 8 * 1024, MAX_ENTRY_BYTES - 20, MAX_ENTRY_BYTES - 60]
    {
        for in_one_chunk in [true, false] {
            let filled = "a line of 16 byte\n".repeat(filling / 18 + 1);
            let filled = &filled[filled.len() - filling..];
            let chunks = match in_one_chunk {
                true => vec![format!("{filled}{head}{tail}\nnext"), "!".to_owned()],
                false => vec![filled.to_owned(), head.to_owned(), tail.to_owned(), "\nnext!".to_owned()],
            };
            let rows = written(&chunks);
            assert_eq!(rows.concat(), format!("{filled}token: [redacted] end\nnext!"), "{filling} bytes");
        }
    }
}

fn limits(turn: u64, session: u64) -> TranscriptLimits {
    TranscriptLimits::new(turn, session)
}

#[test]
fn transcript_at_its_limit_is_cut_with_one_note_and_takes_nothing_more() {
    let mut builder = TranscriptBuilder::default().limited(limits(1000, 1_000_000), 0);
    for n in 0..100 {
        feed(&mut builder, &of_message(&n.to_string(), &"x".repeat(90)));
        feed(&mut builder, &json!({"sessionUpdate": "tool_call", "toolCallId": n.to_string(), "title": "t"}));
    }
    let written = builder.take();
    feed(&mut builder, &chunk("agent_message_chunk", "later"));
    builder.note(TranscriptEntry::text("info", "later"));
    assert_eq!(finish(&mut builder).len(), 0);
    let last = written.last().unwrap();
    assert!(
        last.text.as_str().contains("1000 bytes, the limit of `limits.transcript_turn_bytes`"),
        "{:?}",
        last.text
    );
    assert_eq!(written.iter().filter(|entry| entry.event_type == "info").count(), 1);
    let bytes: usize = written[..written.len() - 1].iter().map(TranscriptEntry::size_bytes).sum();
    assert!((1000..1200).contains(&bytes), "{bytes}");
    assert!((1000..1200).contains(&builder.take_bytes()) && builder.take_bytes() == 0);
}

#[test]
fn transcript_of_a_session_at_its_limit_is_a_note_alone() {
    let mut builder = TranscriptBuilder::default().limited(limits(1000, 5000), 5000);
    feed(&mut builder, &chunk("agent_message_chunk", "text"));
    feed(&mut builder, &json!({"sessionUpdate": "plan", "entries": []}));
    let entries = finish(&mut builder);
    assert_eq!(entries.len(), 1);
    assert!(entries[0].text.as_str().contains("5000 bytes, the limit of `limits.transcript_session_bytes`"));
    let mut silent = TranscriptBuilder::default().limited(limits(1000, 5000), 5000);
    assert!(finish(&mut silent).is_empty(), "a turn without output loses nothing");
}

#[test]
fn growing_tool_call_counts_its_growth_alone() {
    let mut builder = TranscriptBuilder::default().limited(limits(100_000, 1_000_000), 0);
    let mut updates = 0;
    for n in 0..200 {
        let content = json!([{"type": "content", "content": {"type": "text", "text": "x".repeat(n * 100)}}]);
        let kind = if n == 0 { "tool_call" } else { "tool_call_update" };
        feed(&mut builder, &json!({"sessionUpdate": kind, "toolCallId": "1", "content": content}));
        updates += builder.take().len();
    }
    assert_eq!(updates, 200, "revisions of one entry are never cut");
    assert!(builder.take_bytes() < 25_000);
}

#[test]
fn limit_within_a_character_ends_the_transcript_before_it() {
    for limit in 997..1003 {
        let mut builder = TranscriptBuilder::default().limited(limits(limit, 1_000_000), 0);
        feed(&mut builder, &chunk("agent_message_chunk", &"🦀".repeat(100_000)));
        let entries = finish(&mut builder);
        let bytes: usize =
            entries.iter().filter(|it| it.event_type == "agent_message").map(|it| it.size_bytes()).sum();
        assert!(bytes as u64 <= limit && bytes.is_multiple_of(4), "{bytes} of {limit}");
        assert!(entries.last().unwrap().text.as_str().contains("is cut here"));
    }
}
