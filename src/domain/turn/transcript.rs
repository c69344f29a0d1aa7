//! What a conversation leaves on disk: one entry for each thing said or done.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::prompt::text_of_block;
use crate::domain::{redaction::Redacted, text};

/// One entry, ready for the disk.
#[derive(Debug, Clone)]
pub(crate) struct TranscriptEntry {
    /// `user_message`, `agent_message`, `agent_thought`, `permission`, `info`, or the name of another ACP
    /// update kind.
    pub event_type: String,
    /// What was said; empty where the payload says it all.
    pub text: Redacted,
    /// The raw update, where it is more than text.
    pub payload: Option<Redacted>,
}

impl TranscriptEntry {
    /// An entry that is only text.
    pub(crate) fn text(event_type: &str, text: &str) -> Self {
        Self { event_type: event_type.to_owned(), text: Redacted::new(text), payload: None }
    }

    /// The same with another text.
    pub(crate) fn with_text(self, text: &str) -> Self {
        Self { text: Redacted::new(text), ..self }
    }

    /// What it takes, about.
    pub(crate) fn size_bytes(&self) -> usize {
        self.text.as_str().len() + self.payload.as_ref().map_or(0, |payload| payload.as_str().len())
    }

    /// An entry with a payload.
    pub(crate) fn with_payload(event_type: &str, text: &str, payload: &str) -> Self {
        Self { event_type: event_type.to_owned(), text: Redacted::new(text), payload: Some(Redacted::new(payload)) }
    }
}

/// The longest text of one entry, in bytes; a longer message becomes several entries. A page of 50
/// entries stays within a few megabytes.
pub(crate) const MAX_ENTRY_BYTES: usize = 64 * 1024;
/// The most entries of one turn; what comes after is counted in one last entry. A long turn of a real
/// agent makes some hundreds.
pub(crate) const MAX_ENTRIES_PER_TURN: usize = 10_000;

/// What an update is, as far as the transcript cares.
#[derive(Debug)]
pub(crate) struct UpdateView {
    /// The value of `sessionUpdate`.
    pub kind: String,
    /// The text of its content, for chunks.
    pub text: Option<String>,
}

/// Reads the discriminator of an update, and the text of a chunk. `None` for something without a
/// discriminator.
pub(crate) fn view_update(update: &RawValue) -> Option<UpdateView> {
    #[derive(Deserialize)]
    struct Update<'a> {
        #[serde(rename = "sessionUpdate")]
        kind: String,
        #[serde(borrow)]
        content: Option<&'a RawValue>,
    }
    let update: Update<'_> = serde_json::from_str(update.get()).ok()?;
    let text = update.kind.ends_with("_chunk").then_some(update.content).flatten().and_then(text_of_block);
    Some(UpdateView { kind: update.kind, text })
}

/// Turns the updates of one turn into entries: consecutive chunks of one message become one entry.
#[derive(Debug, Default)]
pub(crate) struct TranscriptBuilder {
    open: Option<(String, String)>,
    made: usize,
    left_out: u64,
}

impl TranscriptBuilder {
    /// Takes one update; entries that it completes are appended to `out`.
    pub(crate) fn on_update(&mut self, view: &UpdateView, raw: &RawValue, out: &mut Vec<TranscriptEntry>) {
        let Some(text) = &view.text else {
            self.close(out);
            // Lists of commands come with every session and say nothing about the conversation.
            if view.kind != "available_commands_update" {
                let payload = text::cut_bytes(raw.get(), MAX_ENTRY_BYTES);
                let entry = if payload.len() < raw.get().len() {
                    TranscriptEntry::text(&view.kind, payload)
                } else {
                    TranscriptEntry::with_payload(&view.kind, "", payload)
                };
                self.emit(entry, out);
            }
            return;
        };
        let event_type = view.kind.strip_suffix("_chunk").unwrap_or(&view.kind);
        if self.open.as_ref().is_some_and(|(open, _)| open != event_type) {
            self.close(out);
        }
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (_, joined) = self.open.get_or_insert_with(|| (event_type.to_owned(), String::new()));
            let part = text::cut_bytes(rest, MAX_ENTRY_BYTES - joined.len());
            joined.push_str(part);
            rest = &rest[part.len()..];
            if !rest.is_empty() {
                self.close(out);
            }
        }
    }

    /// Ends the message that is open; to be called at the end of the turn and before an entry of ours.
    pub(crate) fn close(&mut self, out: &mut Vec<TranscriptEntry>) {
        if let Some((event_type, text)) = self.open.take() {
            self.emit(TranscriptEntry::text(&event_type, &text), out);
        }
    }

    pub(crate) fn finish(&mut self, out: &mut Vec<TranscriptEntry>) {
        self.close(out);
        if self.left_out > 0 {
            let text = format!("{} more entries of this turn were left out", self.left_out);
            out.push(TranscriptEntry::text("info", &text));
        }
    }

    fn emit(&mut self, entry: TranscriptEntry, out: &mut Vec<TranscriptEntry>) {
        if self.made < MAX_ENTRIES_PER_TURN {
            self.made += 1;
            out.push(entry);
        } else {
            self.left_out += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(builder: &mut TranscriptBuilder, json: &str, out: &mut Vec<TranscriptEntry>) {
        let raw = RawValue::from_string(json.to_owned()).unwrap();
        builder.on_update(&view_update(&raw).unwrap(), &raw, out);
    }

    fn chunk(kind: &str, text: &str) -> String {
        format!(r#"{{"sessionUpdate":"{kind}","content":{{"type":"text","text":"{text}"}}}}"#)
    }

    #[test]
    fn consecutive_chunks_are_one_entry_and_other_updates_part_them() {
        let (mut builder, mut out) = (TranscriptBuilder::default(), Vec::new());
        feed(&mut builder, &chunk("agent_message_chunk", "a"), &mut out);
        feed(&mut builder, &chunk("agent_message_chunk", "b"), &mut out);
        feed(&mut builder, &chunk("agent_thought_chunk", "hm"), &mut out);
        feed(&mut builder, r#"{"sessionUpdate":"tool_call","toolCallId":"1","title":"t"}"#, &mut out);
        feed(&mut builder, &chunk("agent_message_chunk", "c"), &mut out);
        builder.finish(&mut out);
        let seen: Vec<_> = out.iter().map(|entry| (entry.event_type.as_str(), entry.text.as_str())).collect();
        assert_eq!(
            seen,
            [("agent_message", "ab"), ("agent_thought", "hm"), ("tool_call", ""), ("agent_message", "c")]
        );
    }

    #[test]
    fn a_long_message_becomes_several_entries_and_loses_nothing() {
        let (mut builder, mut out) = (TranscriptBuilder::default(), Vec::new());
        let long = "é".repeat(MAX_ENTRY_BYTES);
        feed(&mut builder, &chunk("agent_message_chunk", &long), &mut out);
        builder.finish(&mut out);
        assert!(out.len() >= 2 && out.iter().all(|entry| entry.text.as_str().len() <= MAX_ENTRY_BYTES));
        assert_eq!(out.iter().map(|entry| entry.text.as_str()).collect::<String>(), long);
    }

    #[test]
    fn a_flood_of_updates_makes_a_bounded_number_of_entries() {
        let (mut builder, mut out) = (TranscriptBuilder::default(), Vec::new());
        for _ in 0..MAX_ENTRIES_PER_TURN + 5 {
            feed(&mut builder, r#"{"sessionUpdate":"unheard_of"}"#, &mut out);
        }
        builder.finish(&mut out);
        assert_eq!(out.len(), MAX_ENTRIES_PER_TURN + 1);
        assert!(out.last().unwrap().text.as_str().starts_with("5 more"));
    }
}
