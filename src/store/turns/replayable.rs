//! The newest turns of a session that its agent may replay after a load.

use diesel::{ExpressionMethods, JoinOnDsl, NullableExpressionMethods, OptionalExtension, QueryDsl, RunQueryDsl};

use crate::{
    domain::{
        ids::SessionId,
        routing::Route,
        turn::replay::{PastTurn, tool_call_id},
    },
    store::{
        Store, StoreError,
        engine::connection::AnyConnection,
        schema::{prompts, transcript_entries},
        turns::AGENT_TURN,
    },
};

/// Types of entries by which a replay is recognised.
const REPLAYED: [&str; 5] = ["user_message", "agent_message", "agent_thought", "tool_call", AGENT_TURN];
/// Entries in each read, the newest first.
const ENTRIES_PER_READ: i64 = 50;
/// Reads at most: 500 entries are several turns of any known agent.
const MAX_READS: usize = 10;
/// Bytes of text after which no more is read.
const MAX_BYTES: usize = 1024 * 1024;

/// Number, type, text and payload of an entry; id and knowing conversation of its turn.
type Row = (i64, String, String, Option<String>, String, Option<String>);

struct Entry {
    prompt_id: String,
    event_type: String,
    text: String,
    payload: Option<String>,
    is_known: bool,
}

/// The newest entries of ended turns over ACP, the newest first; after a bound, the oldest prompt follows them, with
/// which a replay begins.
fn entries(connection: &mut AnyConnection, session_id: &str, conversation: &str) -> diesel::QueryResult<Vec<Entry>> {
    let (mut entries, mut bytes, mut before) = (Vec::new(), 0, i64::MAX);
    let mut is_whole = false;
    for _ in 0..MAX_READS {
        let of_turns = prompts::table.on(prompts::prompt_id.nullable().eq(transcript_entries::prompt_id));
        let rows: Vec<Row> = transcript_entries::table
            .inner_join(of_turns)
            .filter(transcript_entries::session_id.eq(session_id))
            .filter(transcript_entries::seq.lt(before))
            .filter(transcript_entries::event_type.eq_any(REPLAYED))
            .filter(prompts::ended_us.is_not_null())
            .filter(prompts::protocol.eq(Route::Acp.as_str()))
            .order(transcript_entries::seq.desc())
            .limit(ENTRIES_PER_READ)
            .select((
                transcript_entries::seq,
                transcript_entries::event_type,
                transcript_entries::text,
                transcript_entries::payload,
                prompts::prompt_id,
                prompts::known_by,
            ))
            .load(connection)?;
        let Some((last, ..)) = rows.last() else {
            is_whole = true;
            break;
        };
        before = *last;
        for (_, event_type, text, payload, prompt_id, known_by) in rows {
            bytes += text.len();
            let is_known = known_by.as_deref() == Some(conversation);
            entries.push(Entry { prompt_id, event_type, text, payload, is_known });
        }
        if bytes >= MAX_BYTES {
            break;
        }
    }
    if !is_whole {
        entries.extend(first_prompt(connection, session_id, conversation)?.filter(|first| {
            let is_read = |entry: &Entry| entry.prompt_id == first.prompt_id && entry.event_type == "user_message";
            !entries.iter().any(is_read)
        }));
    }
    Ok(entries)
}

/// The oldest prompt of the session that ACP carried.
fn first_prompt(
    connection: &mut AnyConnection,
    session_id: &str,
    conversation: &str,
) -> diesel::QueryResult<Option<Entry>> {
    let of_turns = prompts::table.on(prompts::prompt_id.nullable().eq(transcript_entries::prompt_id));
    let first: Option<(String, String, String, Option<String>)> = transcript_entries::table
        .inner_join(of_turns)
        .filter(transcript_entries::session_id.eq(session_id))
        .filter(transcript_entries::event_type.eq("user_message"))
        .filter(prompts::ended_us.is_not_null())
        .filter(prompts::protocol.eq(Route::Acp.as_str()))
        .order(transcript_entries::seq.asc())
        .select((transcript_entries::event_type, transcript_entries::text, prompts::prompt_id, prompts::known_by))
        .first(connection)
        .optional()?;
    Ok(first.map(|(event_type, text, prompt_id, known_by)| {
        let is_known = known_by.as_deref() == Some(conversation);
        Entry { prompt_id, event_type, text, payload: None, is_known }
    }))
}

/// Joins entries, the newest first, to turns, oldest first. A turn whose prompt was not read is left out. A turn that
/// the agent began by itself has no message of the user in a replay either, so it continues the turn before it.
fn turns(entries: Vec<Entry>) -> Vec<PastTurn> {
    let mut turns: Vec<(Vec<String>, PastTurn)> = Vec::new();
    for Entry { prompt_id, event_type, text, payload, is_known } in entries.into_iter().rev() {
        if event_type == "user_message" {
            turns.push((vec![prompt_id], PastTurn { asked: text, is_known, ..PastTurn::default() }));
            continue;
        }
        if event_type == AGENT_TURN {
            turns.iter_mut().next_back().into_iter().for_each(|(ids, _)| ids.push(prompt_id.clone()));
            continue;
        }
        let Some((_, turn)) = turns.iter_mut().rev().find(|(ids, _)| ids.contains(&prompt_id)) else { continue };
        match event_type.as_str() {
            "agent_message" => turn.answered.push_str(&text),
            "agent_thought" => turn.thought.push_str(&text),
            _ => turn.tool_calls.extend(payload.as_deref().and_then(tool_call_id)),
        }
    }
    turns.into_iter().map(|(_, turn)| turn).collect()
}

impl Store {
    /// Reads the newest turns over ACP that have ended, oldest first, as far as they fit into 500 entries and 1 MiB,
    /// after the first prompt of the session.
    /// Those that `conversation`, an agent's own one, completed are marked. Cancel-safe.
    pub(crate) async fn replayable(
        &self,
        session_id: SessionId,
        conversation: String,
    ) -> Result<Vec<PastTurn>, StoreError> {
        self.read(move |connection| Ok(turns(entries(connection, &session_id.to_string(), &conversation)?))).await
    }
}
