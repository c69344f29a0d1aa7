//! The transcript: one entry for each message, thought, tool call or other state of a conversation. Later updates of a
//! message, tool call or plan change its entry.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    payload::Payload,
    update::{ChunkText, UpdateView, view_update},
};
use crate::domain::{
    redaction::{Redacted, RedactedJson},
    text,
};

/// One entry, redacted and ready to be persisted.
#[derive(Debug, Clone)]
pub(crate) struct TranscriptEntry {
    /// `user_message`, `agent_message`, `agent_thought`, `permission`, `info`, or the name of another ACP
    /// update kind.
    pub event_type: String,
    /// The text of a message; empty for an entry that has only a payload.
    pub text: Redacted,
    /// The raw update, if it is not just text.
    pub payload: Option<RedactedJson>,
    /// The agent's id of the message; longer messages have several entries.
    pub message_id: Option<String>,
    /// Set for an entry that later updates may change.
    pub place: Option<EntryPlace>,
}

/// Identifies the row of an entry that is written more than once.
#[derive(Debug, Clone, Default)]
pub(crate) struct EntryPlace {
    seq: Arc<AtomicI64>,
    /// True if an earlier write has the entry, so that this one changes its row.
    pub revises: bool,
}

impl EntryPlace {
    /// Number of the entry's row; 0 before its first write.
    pub(crate) fn seq(&self) -> i64 {
        self.seq.load(Ordering::Acquire)
    }

    /// Records the number of the entry's row. Only for the writer, whose writes are in the order of the changes.
    pub(crate) fn assign(&self, seq: i64) {
        self.seq.store(seq, Ordering::Release);
    }
}

impl TranscriptEntry {
    /// An entry without a payload.
    pub(crate) fn text(event_type: &str, text: &str) -> Self {
        Self {
            event_type: event_type.to_owned(),
            text: Redacted::new(text),
            payload: None,
            message_id: None,
            place: None,
        }
    }

    pub(crate) fn with_text(self, text: &str) -> Self {
        Self { text: Redacted::new(text), ..self }
    }

    /// The size of text and payload.
    pub(crate) fn size_bytes(&self) -> usize {
        self.text.as_str().len() + self.payload.as_ref().map_or(0, |payload| payload.as_str().len())
    }

    pub(crate) fn with_payload(event_type: &str, text: &str, payload: RedactedJson) -> Self {
        Self { payload: Some(payload), ..Self::text(event_type, text) }
    }
}

/// An entry of a turn that is on disk, as a resumed turn needs it.
#[derive(Debug, Clone)]
pub(crate) struct KeptEntry {
    pub seq: i64,
    pub event_type: String,
    pub text: String,
    pub payload: Option<String>,
    pub message_id: Option<String>,
}

/// The longest text or payload of one entry, in bytes; a longer message becomes several entries, and a longer payload is
/// cut. A page of 50 entries stays within a few megabytes.
pub(crate) const MAX_ENTRY_BYTES: usize = 64 * 1024;
/// A message of this length is complete when it is written, in bytes; more of it becomes another entry. So a write repeats
/// at most this much of a message that streams for long. From [`text::MAX_LINE_BYTES`] less on, the entry ends with its
/// line, so that no secret is divided.
const REWRITTEN_BYTES: usize = 8 * 1024;
/// The most entries of one turn; one last entry counts those that were dropped. A long turn of a real agent makes some
/// hundreds.
pub(crate) const MAX_ENTRIES_PER_TURN: usize = 10_000;
/// Tool calls and other states that are kept in memory for later updates; the update of an older one becomes an entry of
/// its own. Agents run a handful of calls at once.
pub(crate) const MAX_TRACKED: usize = 64;
/// Bytes of these states, at most: eight of the largest.
const MAX_TRACKED_BYTES: usize = 8 * MAX_ENTRY_BYTES;
/// The longest id of a message or tool call that is compared and stored, in bytes. Known agents use UUIDs and names of a
/// few dozen characters.
const MAX_ID_BYTES: usize = 256;

/// Limits of the bytes of a transcript: texts and payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TranscriptLimits {
    /// Of one turn.
    turn: u64,
    /// Of one session.
    session: u64,
    /// The names of the settings, for notes.
    names: (&'static str, &'static str),
}

/// Limits of transcripts that a tenant has in place of those of the service; `None` for the service's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct OwnTranscriptLimits {
    /// Bytes of one turn.
    pub turn_bytes: Option<u64>,
    /// Bytes of one session.
    pub session_bytes: Option<u64>,
}

impl TranscriptLimits {
    /// The limits of the service, in bytes.
    pub(crate) fn new(turn: u64, session: u64) -> Self {
        Self { turn, session, names: ("limits.transcript_turn_bytes", "limits.transcript_session_bytes") }
    }

    /// These limits with those of a tenant in their place.
    pub(crate) fn replaced_by(self, own: OwnTranscriptLimits) -> Self {
        let name = |own: Option<u64>, name, of_service| if own.is_some() { name } else { of_service };
        Self {
            turn: own.turn_bytes.unwrap_or(self.turn),
            session: own.session_bytes.unwrap_or(self.session),
            names: (
                name(own.turn_bytes, "transcriptTurnBytes", self.names.0),
                name(own.session_bytes, "transcriptSessionBytes", self.names.1),
            ),
        }
    }

    /// The limit of a turn of a session whose transcript has `used` bytes.
    fn of_turn(self, used: u64) -> Limit {
        let left = self.session.saturating_sub(used);
        if left < self.turn {
            Limit { bytes: left, reached: self.session, setting: self.names.1 }
        } else {
            Limit { bytes: self.turn, reached: self.turn, setting: self.names.0 }
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Limit {
    /// Bytes that the turn may still take.
    bytes: u64,
    /// The number for the note.
    reached: u64,
    /// The name of the setting.
    setting: &'static str,
}

/// Bytes of a character, at most.
const MAX_CHARACTER: usize = 4;

/// Kinds of updates that replace what an earlier update of the kind said; each has one entry per turn.
const STATES: [&str; 3] = ["plan", "usage_update", "session_info_update"];
/// No part of a conversation: agents send the list of their commands with every session.
const COMMANDS: &str = "available_commands_update";

#[derive(Debug)]
enum Body {
    Message {
        text: String,
        /// The first half of a character at the end of `text`.
        half: Option<u16>,
        message_id: Option<String>,
    },
    Call {
        id: String,
        payload: Payload,
    },
    /// One of [`STATES`].
    State(Payload),
}

/// An entry that may change.
#[derive(Debug)]
struct Growing {
    event_type: String,
    body: Body,
    place: EntryPlace,
    /// True while a change waits for its write.
    is_pending: bool,
    /// True if the turn has too many entries, so that this one is not written.
    is_omitted: bool,
}

impl Growing {
    fn size_bytes(&self) -> usize {
        match &self.body {
            Body::Message { text, .. } => text.len(),
            Body::Call { payload, .. } | Body::State(payload) => payload.size_bytes(),
        }
    }

    /// The entry as of now; later ones change its row.
    fn render(&mut self) -> TranscriptEntry {
        let place = self.place.clone();
        self.place.revises = true;
        let event_type = &self.event_type;
        let (text, payload, message_id) = match &mut self.body {
            Body::Message { text, message_id, .. } => (text.as_str(), None, message_id.clone()),
            Body::Call { payload, .. } | Body::State(payload) => ("", Some(payload.render(MAX_ENTRY_BYTES)), None),
        };
        let entry = match payload {
            Some(payload) => TranscriptEntry::with_payload(event_type, text, RedactedJson::new(&payload)),
            None => TranscriptEntry::text(event_type, text),
        };
        TranscriptEntry { message_id, place: Some(place), ..entry }
    }
}

#[derive(Debug)]
enum Pending {
    Entry(TranscriptEntry),
    /// The id of a growing entry.
    Growing(u64),
}

/// Converts the updates of one turn into entries: consecutive chunks of one message become one entry, and so do the
/// updates of one tool call. Entries are taken for a write whenever the caller likes; a later change of one that was
/// taken is taken again, as a revision.
#[derive(Debug, Default)]
pub(crate) struct TranscriptBuilder {
    growing: BTreeMap<u64, Growing>,
    next_id: u64,
    /// The message to which the next chunk may belong.
    open: Option<u64>,
    /// In the order of their first change since they were last taken.
    pending: VecDeque<Pending>,
    made: usize,
    omitted: u64,
    /// True if the open message is written and long, so that it ends with its line.
    is_long: bool,
    /// Bytes so far.
    bytes: u64,
    /// Bytes that [`Self::take_bytes`] has reported.
    reported: u64,
    limit: Option<Limit>,
    /// True once the limit was reached and noted.
    is_cut: bool,
}

impl TranscriptBuilder {
    /// Cuts the transcript at the limits, with one note. The session has `used` bytes already.
    pub(crate) fn limited(self, limits: TranscriptLimits, used: u64) -> Self {
        Self { limit: Some(limits.of_turn(used)), ..self }
    }

    /// Bytes since the last call.
    pub(crate) fn take_bytes(&mut self) -> u64 {
        self.bytes - std::mem::replace(&mut self.reported, self.bytes)
    }

    /// True if no more may be added; notes that once.
    fn is_full(&mut self) -> bool {
        let Some(limit) = self.limit.filter(|limit| self.bytes >= limit.bytes) else { return false };
        if !std::mem::replace(&mut self.is_cut, true) {
            let text = format!(
                "the transcript of this turn is cut here: it has reached {} bytes, the limit of `{}`",
                limit.reached, limit.setting
            );
            self.pending.push_back(Pending::Entry(TranscriptEntry::text("info", &text)));
        }
        true
    }

    /// Continues a turn of which these entries are on disk, the oldest first.
    pub(crate) fn resume(kept: &[KeptEntry]) -> Self {
        let mut builder = Self { made: kept.len(), ..Self::default() };
        for (index, entry) in kept.iter().enumerate() {
            let raw = entry.payload.as_ref().and_then(|payload| RawValue::from_string(payload.clone()).ok());
            let call_id = raw.as_deref().and_then(view_update).and_then(|view| view.call_id);
            let is_newest = index + 1 == kept.len();
            let body = match (raw, call_id) {
                (Some(raw), Some(id)) => Body::Call { id: bounded_id(&id), payload: Payload::new(&raw) },
                (Some(raw), None) if STATES.contains(&entry.event_type.as_str()) => Body::State(Payload::new(&raw)),
                (None, _) if is_newest && matches!(entry.event_type.as_str(), "agent_message" | "agent_thought") => {
                    Body::Message { text: entry.text.clone(), half: None, message_id: entry.message_id.clone() }
                }
                _ => continue,
            };
            let is_message = matches!(body, Body::Message { .. });
            let id = builder.insert(&entry.event_type, body);
            builder.open = is_message.then_some(id);
            if let Some(growing) = builder.growing.get_mut(&id) {
                growing.place.assign(entry.seq);
                growing.place.revises = true;
            }
        }
        builder
    }

    /// Adds one update.
    pub(crate) fn on_update(&mut self, view: &UpdateView, raw: &RawValue) {
        if let Some(text) = &view.text {
            let event_type = view.kind.strip_suffix("_chunk").unwrap_or(&view.kind);
            return self.on_text(event_type, view.message_id.as_deref().map(bounded_id), text);
        }
        self.separate();
        match &view.call_id {
            Some(id) => self.on_call(&view.kind, &bounded_id(id), raw),
            None if STATES.contains(&view.kind.as_str()) => self.on_state(&view.kind, raw),
            None if view.kind == COMMANDS => {}
            None => {
                let payload = Payload::new(raw).render(MAX_ENTRY_BYTES);
                self.emit(TranscriptEntry::with_payload(&view.kind, "", RedactedJson::new(&payload)));
            }
        }
    }

    /// Adds an entry of this service. Counted as those of the agent, which can cause as many: by permission requests.
    pub(crate) fn note(&mut self, entry: TranscriptEntry) {
        self.separate();
        self.emit(entry);
    }

    /// True if the update changes a tool call or message of this turn.
    pub(crate) fn knows(&self, view: &UpdateView) -> bool {
        if view.call_id.is_none() && view.message_id.is_none() {
            return false;
        }
        let (call, message) = (view.call_id.as_deref().map(bounded_id), view.message_id.as_deref().map(bounded_id));
        self.growing.values().any(|growing| match &growing.body {
            Body::Call { id, .. } => call.as_ref() == Some(id),
            Body::Message { message_id, .. } => message.is_some() && message == *message_id,
            Body::State(_) => false,
        })
    }

    /// Number of entries that wait for a write, without the message that still grows.
    pub(crate) fn waiting(&self) -> usize {
        let is_open = |pending: &Pending| matches!(pending, Pending::Growing(id) if Some(*id) == self.open);
        self.pending.iter().filter(|pending| !is_open(pending)).count()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Bytes of the entries that wait for a write.
    pub(crate) fn waiting_bytes(&self) -> usize {
        let size = |pending: &Pending| match pending {
            Pending::Entry(entry) => entry.size_bytes(),
            Pending::Growing(id) => self.growing.get(id).map_or(0, Growing::size_bytes),
        };
        self.pending.iter().map(size).sum()
    }

    /// True while a character is cut: its first half has no place in an entry, so that a write now would not cover the
    /// chunk.
    pub(crate) fn is_in_character(&self) -> bool {
        let open = self.open.and_then(|id| self.growing.get(&id));
        open.is_some_and(|open| matches!(open.body, Body::Message { half: Some(_), .. }))
    }

    /// Takes every entry that was added or changed since the last call, the growing message included.
    pub(crate) fn take(&mut self) -> Vec<TranscriptEntry> {
        let mut taken: Vec<TranscriptEntry> = Vec::with_capacity(self.pending.len());
        let mut places = HashMap::new();
        for pending in std::mem::take(&mut self.pending) {
            let entry = match pending {
                Pending::Entry(entry) => entry,
                Pending::Growing(id) => {
                    let Some(growing) = self.growing.get_mut(&id) else { continue };
                    growing.is_pending = false;
                    growing.render()
                }
            };
            // An entry that was put back and then changed is written once.
            let place = entry.place.as_ref().map(|place| Arc::as_ptr(&place.seq));
            match place.map(|place| *places.entry(place).or_insert(taken.len())) {
                Some(index) if index < taken.len() => {
                    let place = taken[index].place.take();
                    taken[index] = TranscriptEntry { place, ..entry };
                }
                _ => taken.push(entry),
            }
        }
        if self.open_text().len() >= REWRITTEN_BYTES && !self.is_in_character() {
            self.open = None;
        }
        self.is_long = self.open_text().len() >= REWRITTEN_BYTES - text::MAX_LINE_BYTES;
        self.forget();
        taken
    }

    /// Returns entries that could not be written, ahead of newer ones.
    pub(crate) fn put_back(&mut self, entries: Vec<TranscriptEntry>) {
        for entry in entries.into_iter().rev() {
            self.pending.push_front(Pending::Entry(entry));
        }
    }

    /// Reports dropped entries and appends everything to `out`; called at the end of the turn. Later updates of the turn
    /// may follow.
    pub(crate) fn finish(&mut self, out: &mut Vec<TranscriptEntry>) {
        self.complete_character();
        if self.omitted > 0 && !self.is_cut {
            let text = format!("{} more entries of this turn were left out", std::mem::take(&mut self.omitted));
            self.pending.push_back(Pending::Entry(TranscriptEntry::text("info", &text)));
        }
        out.append(&mut self.take());
    }

    fn on_text(&mut self, event_type: &str, message_id: Option<String>, chunk: &ChunkText) {
        let continues = |growing: &Growing| match &growing.body {
            Body::Message { message_id: open, .. } => growing.event_type == event_type && *open == message_id,
            _ => false,
        };
        if !self.open.and_then(|id| self.growing.get(&id)).is_some_and(continues) {
            if *chunk == ChunkText::default() {
                return;
            }
            self.close();
            self.open = Some(self.begin_message(event_type, message_id.clone()));
        }
        let mut half = self.set_half(None);
        let added = chunk.after(&mut half);
        let mut rest = added.as_ref();
        if self.is_long
            && let Some(end) = text::line_end(self.open_text(), rest)
        {
            let (line, after) = rest.split_at(end);
            let part = self.push(line);
            rest = if part < line.len() { &rest[part..] } else { after };
            self.close();
            if !rest.is_empty() || half.is_some() {
                self.begin_next(event_type, message_id.as_ref(), "");
            }
        }
        while !rest.is_empty() {
            let part = self.push(rest);
            rest = &rest[part..];
            if !rest.is_empty() {
                let line = self.take_last_line();
                self.begin_next(event_type, message_id.as_ref(), &line);
            }
        }
        self.set_half(half);
    }

    /// Ends the open message and begins the next entry of it with `text`.
    fn begin_next(&mut self, event_type: &str, message_id: Option<&String>, text: &str) {
        self.close();
        self.open = Some(self.begin_message(event_type, message_id.cloned()));
        self.push(text);
    }

    /// Takes the line that the end of the open message interrupts.
    fn take_last_line(&mut self) -> String {
        match self.open.and_then(|id| self.growing.get_mut(&id)) {
            Some(Growing { body: Body::Message { text, .. }, .. }) => {
                text.split_off(text.len() - text::last_line(text).len())
            }
            _ => String::new(),
        }
    }

    fn open_text(&self) -> &str {
        match self.open.and_then(|id| self.growing.get(&id)) {
            Some(Growing { body: Body::Message { text, .. }, .. }) => text,
            _ => "",
        }
    }

    fn begin_message(&mut self, event_type: &str, message_id: Option<String>) -> u64 {
        let is_omitted = !self.has_room();
        let id = self.insert(event_type, Body::Message { text: String::new(), half: None, message_id });
        if let Some(growing) = self.growing.get_mut(&id) {
            growing.is_omitted = is_omitted;
        }
        id
    }

    /// Adds as much of `text` to the open message as it takes, and returns the number of bytes.
    fn push(&mut self, text: &str) -> usize {
        if self.is_full() {
            return text.len();
        }
        let left = self.limit.map_or(u64::MAX, |limit| limit.bytes - self.bytes);
        let Some(open) = self.open else { return text.len() };
        let Some(Growing { body: Body::Message { text: joined, .. }, .. }) = self.growing.get_mut(&open) else {
            return text.len();
        };
        let room = MAX_ENTRY_BYTES - joined.len();
        let part = text::cut_bytes(text, room.min(usize::try_from(left).unwrap_or(usize::MAX)));
        joined.push_str(part);
        self.bytes += part.len() as u64;
        if part.is_empty() && !text.is_empty() && room >= MAX_CHARACTER {
            // The next character is longer than what is left.
            self.bytes += left;
        }
        if !part.is_empty() {
            self.mark(open);
        }
        part.len()
    }

    fn set_half(&mut self, new: Option<u16>) -> Option<u16> {
        match self.open.and_then(|id| self.growing.get_mut(&id)) {
            Some(Growing { body: Body::Message { half, .. }, .. }) => std::mem::replace(half, new),
            _ => None,
        }
    }

    fn complete_character(&mut self) {
        if self.set_half(None).is_some() {
            self.push("\u{FFFD}");
        }
    }

    /// Ends the open message.
    fn close(&mut self) {
        self.complete_character();
        self.open = None;
        self.is_long = false;
    }

    /// Ends the open message unless it has an id: then it may continue behind the update that follows.
    fn separate(&mut self) {
        let has_id = |growing: &Growing| matches!(&growing.body, Body::Message { message_id: Some(_), .. });
        if !self.open.and_then(|id| self.growing.get(&id)).is_some_and(has_id) {
            self.close();
        }
    }

    fn on_call(&mut self, kind: &str, call_id: &str, raw: &RawValue) {
        if self.is_full() {
            return;
        }
        let of_call = |growing: &&mut Growing| matches!(&growing.body, Body::Call { id, .. } if id == call_id);
        let stored = |payload: &Payload| payload.size_bytes().min(MAX_ENTRY_BYTES) as u64;
        if let Some(Growing { body: Body::Call { payload, .. }, .. }) = self.growing.values_mut().find(of_call) {
            let before = stored(payload);
            payload.merge(raw);
            self.bytes += stored(payload).saturating_sub(before);
        } else if self.has_room() {
            let payload = Payload::new(raw);
            self.bytes += stored(&payload);
            self.insert(kind, Body::Call { id: call_id.to_owned(), payload });
        }
        let changed = self.growing.iter().find(|(_, it)| matches!(&it.body, Body::Call { id, .. } if id == call_id));
        if let Some(id) = changed.map(|(id, _)| *id) {
            self.mark(id);
        }
    }

    fn on_state(&mut self, kind: &str, raw: &RawValue) {
        if self.is_full() {
            return;
        }
        let of_kind =
            |(_, growing): &(&u64, &Growing)| growing.event_type == kind && matches!(growing.body, Body::State(_));
        let known = self.growing.iter().find(of_kind).map(|(id, _)| *id);
        let id = match known {
            Some(id) => id,
            None if self.has_room() => {
                self.bytes += raw.get().len().min(MAX_ENTRY_BYTES) as u64;
                self.insert(kind, Body::State(Payload::new(raw)))
            }
            None => return,
        };
        if let Some(growing) = self.growing.get_mut(&id) {
            growing.body = Body::State(Payload::new(raw));
        }
        self.mark(id);
    }

    fn insert(&mut self, event_type: &str, body: Body) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let (event_type, place) = (event_type.to_owned(), EntryPlace::default());
        self.growing.insert(id, Growing { event_type, body, place, is_pending: false, is_omitted: false });
        id
    }

    /// Marks an entry as changed.
    fn mark(&mut self, id: u64) {
        if let Some(growing) = self.growing.get_mut(&id).filter(|growing| !growing.is_omitted)
            && !std::mem::replace(&mut growing.is_pending, true)
        {
            self.pending.push_back(Pending::Growing(id));
        }
    }

    fn emit(&mut self, entry: TranscriptEntry) {
        if self.has_room() {
            self.bytes += entry.size_bytes() as u64;
            self.pending.push_back(Pending::Entry(entry));
        }
    }

    /// Counts one more entry; false if the turn has too many, or too many bytes.
    fn has_room(&mut self) -> bool {
        let has_room = self.made < MAX_ENTRIES_PER_TURN && !self.is_full();
        if has_room {
            self.made += 1;
        } else {
            self.omitted += 1;
        }
        has_room
    }

    /// Drops entries that no update can change any more, and the oldest of too many others.
    fn forget(&mut self) {
        let open = self.open;
        self.growing.retain(|id, growing| {
            growing.is_pending || Some(*id) == open || !matches!(growing.body, Body::Message { .. })
        });
        let mut bytes: usize = self.growing.values().map(Growing::size_bytes).sum();
        while self.growing.len() > MAX_TRACKED || bytes > MAX_TRACKED_BYTES {
            let oldest = self.growing.iter().find(|(id, growing)| !growing.is_pending && Some(**id) != open);
            let Some((id, size)) = oldest.map(|(id, growing)| (*id, growing.size_bytes())) else { break };
            self.growing.remove(&id);
            bytes -= size;
        }
    }
}

fn bounded_id(id: &str) -> String {
    text::cut_bytes(id, MAX_ID_BYTES).to_owned()
}

#[cfg(test)]
mod tests;
