//! Sessions of the load client. Prompts are answered with streams of events, which show the agent's first update.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use serde::Deserialize;
use serde_json::json;

use super::Route;
use crate::support::{
    api,
    conversation::{Conversation, TurnError, Turned},
    http::HttpLink,
};

/// Bytes of a line that are kept; a result is under 32 KB.
const MAX_LINE_BYTES: usize = 256 * 1024;

/// An open session that repeats one prompt.
pub(super) struct Warm {
    link: HttpLink,
    route: Route,
    prompt: Bytes,
}

impl Warm {
    pub(super) fn new(link: HttpLink, session: &str, route: Route, prompt: &str) -> Self {
        Self { link, route, prompt: prompt_of(session, prompt) }
    }
}

impl Conversation for Warm {
    fn turn(&mut self) -> BoxFuture<'_, Result<Turned, TurnError>> {
        let begun = Instant::now();
        ask(&mut self.link, self.route, self.prompt.clone(), begun).boxed()
    }
}

/// A new session for every turn, which is closed after the turn.
pub(super) struct Cold {
    link: HttpLink,
    workspace: &'static str,
    route: Route,
    prompt: String,
    session: Option<String>,
}

impl Cold {
    pub(super) fn new(link: HttpLink, workspace: &'static str, route: Route, prompt: &str) -> Self {
        Self { link, workspace, route, prompt: prompt.to_owned(), session: None }
    }
}

impl Conversation for Cold {
    fn turn(&mut self) -> BoxFuture<'_, Result<Turned, TurnError>> {
        let begun = Instant::now();
        async move {
            let session = api::open_on(&mut self.link, self.workspace).await.map_err(TurnError::Failed)?;
            let prompt = prompt_of(&session, &self.prompt);
            self.session = Some(session);
            ask(&mut self.link, self.route, prompt, begun).await
        }
        .boxed()
    }

    fn rest(&mut self) -> BoxFuture<'_, Result<(), TurnError>> {
        async {
            let Some(session) = self.session.take() else { return Ok(()) };
            api::close_on(&mut self.link, &session).await.map_err(TurnError::Failed)
        }
        .boxed()
    }
}

fn prompt_of(session: &str, prompt: &str) -> Bytes {
    json!({"sessionId": session, "prompt": prompt}).to_string().into()
}

/// Runs a turn; the time to its first update counts from `begun`.
async fn ask(link: &mut HttpLink, route: Route, prompt: Bytes, begun: Instant) -> Result<Turned, TurnError> {
    let mut stream = TurnStream::default();
    let read = |part: &[u8]| stream.read(part, || begun.elapsed());
    let answer = link.post_for_stream("/acp/session/prompt", prompt, read).await.map_err(TurnError::Failed)?;
    match stream.result {
        Some(result) => check(&result, route).map_err(TurnError::Failed)?,
        None => {
            let shown = api::shown(&answer.body);
            return Err(TurnError::Failed(format!("status {}, no result: {shown}", answer.status)));
        }
    }
    Ok(Turned { first_update: stream.first_update })
}

/// Checks that the turn completed over the route that it is counted for.
fn check(result: &[u8], route: Route) -> Result<(), String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Outcome {
        stop_reason: String,
        meta: Meta,
        #[serde(default)]
        diagnostics: Vec<Diagnostic>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Meta {
        protocol: Route,
        route: Route,
        error_code: Option<String>,
    }
    #[derive(Deserialize)]
    struct Diagnostic {
        message: String,
    }
    let outcome: Outcome =
        serde_json::from_slice(result).map_err(|cause| format!("{cause} in: {}", api::shown(result)))?;
    let Outcome { stop_reason, meta, diagnostics } = outcome;
    if stop_reason != "completed" {
        let why = diagnostics.last().map_or("no reason is given", |last| &last.message);
        return Err(format!("stopReason is {stop_reason}, {}: {why}", meta.error_code.unwrap_or_default()));
    }
    if (meta.protocol, meta.route) != (route, route) {
        let (expected, chosen, carried) = (route.as_str(), meta.route.as_str(), meta.protocol.as_str());
        return Err(format!("expected {expected}, routed over {chosen}, carried over {carried}"));
    }
    Ok(())
}

/// The first update and the result of a stream of events that arrives in arbitrary parts.
#[derive(Debug, Default)]
struct TurnStream {
    line: Vec<u8>,
    is_result: bool,
    first_update: Option<Duration>,
    result: Option<Vec<u8>>,
}

impl TurnStream {
    fn read(&mut self, mut part: &[u8], elapsed: impl Fn() -> Duration) {
        while let Some(end) = memchr::memchr(b'\n', part) {
            self.take(&part[..end]);
            part = &part[end + 1..];
            let line = std::mem::take(&mut self.line);
            if let Some(kind) = line.strip_prefix(b"event: ") {
                self.is_result = kind == b"result";
                if kind == b"update" && self.first_update.is_none() {
                    self.first_update = Some(elapsed());
                }
            } else if let (true, Some(data)) = (self.is_result, line.strip_prefix(b"data: ")) {
                self.result = Some(data.to_vec());
            }
        }
        self.take(part);
    }

    fn take(&mut self, part: &[u8]) {
        let room = MAX_LINE_BYTES.saturating_sub(self.line.len());
        self.line.extend_from_slice(&part[..part.len().min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_update_and_result_are_found_in_any_parts_of_the_stream() {
        let text = "event: accepted\ndata: {\"a\":1}\n\nevent: update\nid: 7\ndata: {}\n\n: alive\n\nevent: update\n\
                    data: {}\n\nevent: result\nid: 9\ndata: {\"b\":2}\n\n";
        for size in [1, 5, 1000] {
            let (mut stream, parts) = (TurnStream::default(), std::cell::Cell::new(0));
            for part in text.as_bytes().chunks(size) {
                parts.set(parts.get() + 1);
                stream.read(part, || Duration::from_secs(parts.get()));
            }
            assert_eq!(stream.result.as_deref(), Some(&b"{\"b\":2}"[..]), "{size}");
            // The first update ends 45 bytes into the text.
            let at = u64::try_from(45_usize.div_ceil(size)).unwrap();
            assert_eq!(stream.first_update, Some(Duration::from_secs(at)), "{size}");
        }
    }

    #[test]
    fn only_a_turn_that_completed_over_its_route_counts() {
        let result = |stop: &str, protocol: &str, route: &str| {
            json!({"stopReason": stop, "meta": {"protocol": protocol, "route": route, "promptId": "x"}}).to_string()
        };
        assert_eq!(check(result("completed", "http", "http").as_bytes(), Route::Http), Ok(()));
        for (stop, protocol, route, expected) in [
            ("error", "http", "http", "stopReason is error"),
            ("completed", "acp", "acp", "expected http"),
            ("completed", "http", "acp", "routed over acp"),
        ] {
            let error = check(result(stop, protocol, route).as_bytes(), Route::Http).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert!(check(b"oops", Route::Acp).is_err());
    }
}
