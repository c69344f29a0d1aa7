//! Turns and sessions as server-sent events.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use actix_web::{HttpResponse, web::Bytes};
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use serde_json::{json, value::RawValue};
use tokio::{
    sync::mpsc,
    time::{Interval, MissedTickBehavior, interval},
};

use crate::{
    actors::handles::{
        event_feed::{EventFeed, ReadFrom, Subscription},
        index::SessionIndex,
        messages::{TurnEnded, TurnHandle},
    },
    contract::session::PromptAccepted,
    domain::{
        ids::{PromptId, SessionId},
        session::event::{EventKind, SessionEvent},
        turn::outcome::ErrorCode,
    },
    http::problem::ApiError,
    telemetry::Metrics,
};

/// Interval at which a silent stream sends a comment; proxies close idle connections after 30 to 60 s.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A comment, which readers ignore.
const ALIVE: &[u8] = b": keep-alive\n\n";

/// Answers with a stream of events.
pub(crate) fn answer(events: impl Stream<Item = Bytes> + 'static) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header(("Cache-Control", "no-store"))
        // Some proxies buffer answers that they do not recognise as a stream.
        .insert_header(("X-Accel-Buffering", "no"))
        .streaming(events.map(Ok::<_, actix_web::Error>))
}

fn wire(event: &str, id: Option<u64>, data: &str) -> Bytes {
    let mut text = String::with_capacity(data.len() + 64);
    text.push_str("event: ");
    text.push_str(event);
    if let Some(id) = id {
        text.push_str("\nid: ");
        text.push_str(&id.to_string());
    }
    // The agent's JSON may contain line ends; each line needs a `data:` of its own.
    for line in data.split(['\n', '\r']) {
        text.push_str("\ndata: ");
        text.push_str(line);
    }
    text.push_str("\n\n");
    text.into()
}

/// A waiting permission request ahead of the other events. Without an id, because a reader that is disconnected must not
/// continue from an event so old.
fn wire_waiting(event: &SessionEvent) -> Bytes {
    wire(event.kind.as_str(), None, &event.data)
}

fn json_of(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned())
}

/// The stream of a turn that had ended before the request.
pub(crate) fn ended_before(accepted: &PromptAccepted, result: &RawValue) -> impl Stream<Item = Bytes> + use<> {
    stream::iter([wire("accepted", None, &json_of(accepted)), wire("result", None, result.get())])
}

struct Following {
    turn: TurnHandle,
    live: Option<mpsc::Receiver<SessionEvent>>,
    ready: VecDeque<Bytes>,
    last_id: u64,
    done: bool,
    beat: Interval,
    reader: Reader,
}

/// The event that reports missing events.
fn gap(prompt_id: Option<PromptId>, after: u64, until: u64) -> Bytes {
    let gap = json!({
        "promptId": prompt_id,
        "type": "gap",
        "update": {"after": after, "until": until, "readOn": "the transcript of the session has the missing events"},
    });
    wire("gap", None, &gap.to_string())
}

fn beat() -> Interval {
    let mut beat = interval(KEEP_ALIVE);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat.reset();
    beat
}

enum Next {
    Event(Option<SessionEvent>),
    Ended(Option<Arc<TurnEnded>>),
    Silence,
}

/// Counts a reader while it exists.
struct Reader(Metrics);

impl Reader {
    fn new(metrics: Metrics) -> Self {
        metrics.subscriber_added();
        Self(metrics)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.subscriber_removed();
    }
}

/// The stream of a turn from its first event to its result. A reader that does not keep up gets a `gap` and then the
/// result; the transcript has the missing events.
pub(crate) fn follow(
    turn: TurnHandle,
    accepted: &PromptAccepted,
    metrics: Metrics,
) -> impl Stream<Item = Bytes> + use<> {
    let Subscription { waiting, replay, live, .. } = turn.feed.subscribe(ReadFrom::After(turn.after_event));
    let mut following = Following {
        last_id: turn.after_event,
        turn,
        live: Some(live),
        ready: VecDeque::from([wire("accepted", None, &json_of(accepted))]),
        done: false,
        beat: beat(),
        reader: Reader::new(metrics),
    };
    let prompt_id = Some(following.turn.prompt_id);
    following.ready.extend(waiting.iter().filter(|event| event.prompt_id == prompt_id).map(wire_waiting));
    if let Some(until) = replay.gap_until {
        following.gap(until.saturating_sub(1));
    }
    for event in replay.events {
        following.take(event);
    }
    stream::unfold(following, |mut following| async move {
        let next = following.next().await?;
        Some((next, following))
    })
}

impl Following {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(ready);
            }
            if self.done {
                return None;
            }
            let next = tokio::select! {
                biased;
                event = recv(&mut self.live) => Next::Event(event),
                ended = self.turn.ended.wait_for(Option::is_some) => Next::Ended(ended.ok().and_then(|it| it.clone())),
                _ = self.beat.tick() => Next::Silence,
            };
            match next {
                Next::Event(Some(event)) => self.take(event),
                // The feed has disconnected this reader because it was too slow; the end of the turn is still
                // delivered.
                Next::Event(None) => {
                    self.reader.0.slow_reader();
                    self.live = None;
                    self.gap(self.turn.feed.last_id());
                }
                Next::Ended(ended) => self.finish(ended),
                Next::Silence => return Some(Bytes::from_static(ALIVE)),
            }
        }
    }

    fn take(&mut self, event: SessionEvent) {
        self.last_id = event.id;
        // The turn itself delivers the result, because it also knows whether it was persisted.
        if event.prompt_id == Some(self.turn.prompt_id) && event.kind != EventKind::Result {
            self.ready.push_back(wire(event.kind.as_str(), Some(event.id), &event.data));
        }
    }

    fn gap(&mut self, until: u64) {
        self.ready.push_back(gap(Some(self.turn.prompt_id), self.last_id, until));
    }

    fn finish(&mut self, ended: Option<Arc<TurnEnded>>) {
        // Events published before the end come first.
        while let Some(event) = self.live.as_mut().and_then(|live| live.try_recv().ok()) {
            self.take(event);
        }
        self.done = true;
        let last = match ended {
            Some(ended) if ended.event_id.is_some() => wire("result", ended.event_id, ended.result.get()),
            Some(ended) => wire("problem", None, &json_of(&ApiError::not_durable(&ended).problem())),
            None => {
                let error = ApiError::new(ErrorCode::DatabaseUnavailable, "the turn could not be persisted");
                wire("problem", None, &json_of(&error.problem()))
            }
        };
        self.ready.push_back(last);
    }
}

struct FollowingSession {
    session: SessionId,
    index: SessionIndex,
    live: mpsc::Receiver<SessionEvent>,
    ready: VecDeque<Bytes>,
    last_id: u64,
    done: bool,
    beat: Interval,
    reader: Reader,
}

/// The events of a session from a place on until the session ends, behind the permission requests that wait and are not
/// among them.
pub(crate) fn follow_session(
    feed: &EventFeed,
    from: ReadFrom,
    index: SessionIndex,
    metrics: Metrics,
) -> impl Stream<Item = Bytes> + use<> {
    let Subscription { waiting, after, replay, live } = feed.subscribe(from);
    let mut ready: VecDeque<_> = waiting.iter().map(wire_waiting).collect();
    if let (ReadFrom::After(_), Some(until)) = (from, replay.gap_until) {
        ready.push_back(gap(None, after, until.saturating_sub(1)));
    }
    let newest = replay.events.last().map_or(after, |event| event.id);
    ready.extend(replay.events.iter().map(|event| wire(event.kind.as_str(), Some(event.id), &event.data)));
    let following = FollowingSession {
        session: feed.session(),
        index,
        live,
        ready,
        last_id: newest,
        done: false,
        beat: beat(),
        reader: Reader::new(metrics),
    };
    stream::unfold(following, |mut following| async move {
        let next = following.next().await?;
        Some((next, following))
    })
}

impl FollowingSession {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(ready) = self.ready.pop_front() {
            return Some(ready);
        }
        if self.done {
            return None;
        }
        let event = tokio::select! {
            biased;
            event = self.live.recv() => event,
            _ = self.beat.tick() => return Some(Bytes::from_static(ALIVE)),
        };
        if let Some(event) = event {
            self.last_id = event.id;
            return Some(wire(event.kind.as_str(), Some(event.id), &event.data));
        }
        self.done = true;
        // The feed ends with its session; if the session is live, the reader did not keep up.
        let live = self.index.get(self.session)?;
        self.reader.0.slow_reader();
        Some(gap(None, self.last_id, live.shared.feed.last_id()))
    }
}

async fn recv(live: &mut Option<mpsc::Receiver<SessionEvent>>) -> Option<SessionEvent> {
    match live {
        Some(live) => live.recv().await,
        // The reader was cut off; only the end of the turn is awaited.
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn data_with_line_ends_stays_one_event() {
        assert_eq!(wire("update", Some(7), "{\n1}"), "event: update\nid: 7\ndata: {\ndata: 1}\n\n");
    }

    proptest! {
        #[test]
        fn every_reader_gets_the_json_that_was_sent_whatever_white_space_is_in_it(
            services in prop::collection::vec("[ \n\r\t]{0,3}[a-z]{0,2}", 0..6),
            id in prop::option::of(any::<u64>()),
        ) {
            // Between its tokens JSON may have line ends of every kind; inside a string it has none.
            let values = services.iter().map(|part| {
                let word = part.trim();
                format!("{}\"{word}\"", &part[..part.len() - word.len()])
            });
            let data = format!("[{}\r]", values.collect::<Vec<_>>().join(","));
            let mut parser = crate::client::sse::SseParser::new(10_000);
            parser.push(&wire("update", id, &data)).unwrap();
            let event = parser.next_event().unwrap();
            prop_assert!(parser.next_event().is_none());
            let (sent, got): (serde_json::Value, serde_json::Value) =
                (serde_json::from_str(&data).unwrap(), serde_json::from_str(&event.data).unwrap());
            prop_assert_eq!(sent, got);
            prop_assert_eq!((event.kind.as_str(), event.id), ("update", id.map(|id| id.to_string())));
        }
    }
}
