//! Reads server-sent events, with a deadline per event.

use std::time::Duration;

use futures_util::{StreamExt, stream::BoxStream};
use serde_json::value::RawValue;

use super::{DEADLINE, Value, block_on};

/// One event.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    /// `id:`, if present.
    pub id: Option<u64>,
    /// `event:`.
    pub name: String,
    /// `data:`, which is JSON in every event of the program.
    pub data: Value,
}

/// An open event stream.
pub(crate) struct Sse {
    bytes: BoxStream<'static, Result<bytes::Bytes, String>>,
    buffer: Vec<u8>,
    ended: bool,
}

impl Sse {
    /// Reads events from the body of a response.
    pub(crate) fn new(response: reqwest::Response) -> Self {
        let bytes = response.bytes_stream().map(|chunk| chunk.map_err(|cause| cause.to_string())).boxed();
        Self { bytes, buffer: Vec::new(), ended: false }
    }

    /// The next event; `None` at the end of the stream. Skips comments.
    pub(crate) fn next(&mut self) -> Option<Event> {
        self.next_within(DEADLINE)
    }

    /// [`Self::next`] with another deadline.
    pub(crate) fn next_within(&mut self, deadline: Duration) -> Option<Event> {
        block_on(async { tokio::time::timeout(deadline, self.read()).await })
            .unwrap_or_else(|_| panic!("no event within {deadline:?}"))
    }

    /// [`Self::next`], or `None` at the deadline instead of a failed test. Loses no event.
    pub(crate) fn try_next_within(&mut self, deadline: Duration) -> Option<Option<Event>> {
        block_on(async { tokio::time::timeout(deadline, self.read()).await }).ok()
    }

    /// Reads up to and including the first event that `wanted` accepts; fails the test at the end of the stream.
    pub(crate) fn until(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) -> Vec<Event> {
        let mut seen = Vec::new();
        while let Some(event) = self.next() {
            let found = wanted(&event);
            seen.push(event);
            if found {
                return seen;
            }
        }
        panic!("the stream ended without: {what}; it had {seen:#?}");
    }

    /// All events up to the end of the stream.
    pub(crate) fn rest(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.next()).collect()
    }

    async fn read(&mut self) -> Option<Event> {
        loop {
            while let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                if let Some(event) = parse(&String::from_utf8_lossy(&block)) {
                    return Some(event);
                }
            }
            if self.ended {
                return None;
            }
            match self.bytes.next().await {
                Some(Ok(chunk)) => self.buffer.extend_from_slice(&chunk),
                Some(Err(_)) | None => self.ended = true,
            }
        }
    }
}

fn parse(block: &str) -> Option<Event> {
    let (mut id, mut name, mut data) = (None, String::from("message"), Vec::new());
    for line in block.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => id = value.parse().ok(),
            "event" => name = value.to_owned(),
            "data" => data.push(value),
            _ => {}
        }
    }
    if data.is_empty() {
        return None;
    }
    let text = data.join("\n");
    let data = serde_json::from_str(&text).unwrap_or_else(|cause| {
        // A tree of values has limits that JSON does not have: of depth, of numbers, of halves of characters.
        let raw: Result<&RawValue, _> = serde_json::from_str(&text);
        raw.unwrap_or_else(|_| panic!("event data is not JSON: {cause}: {text}"));
        Value::String(text.clone())
    });
    Some(Event { id, name, data })
}

/// The concatenated text of the agent message chunks among these events.
pub(crate) fn message_of(events: &[Event]) -> String {
    events
        .iter()
        .filter(|event| event.name == "update" && event.data["update"]["sessionUpdate"] == "agent_message_chunk")
        .filter_map(|event| event.data["update"]["content"]["text"].as_str())
        .collect()
}

#[test]
fn event_is_parsed_and_a_comment_is_ignored() {
    let event = parse("id: 7\nevent: update\ndata: {\"a\":\ndata: 1}\n\n").expect("an event");
    assert_eq!((event.id, event.name.as_str(), &event.data["a"]), (Some(7), "update", &serde_json::json!(1)));
    assert!(parse(": keep-alive\n\n").is_none());
}
