//! One turn as it happens.

use reqwest::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    clean::clean_line,
    error::{ClientError, lost_or_unreachable},
    sse::{MAX_EVENT_BYTES, SseError, SseEvent, SseParser},
};
use crate::contract::{problem::Problem, result::ACPSessionResult};

/// The turn is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Accepted {
    /// The turn.
    pub prompt_id: String,
    /// The session.
    pub session_id: String,
    /// Whether the key was seen before and this joins its turn.
    #[serde(default)]
    pub duplicate: bool,
}

/// Something that happened in the session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Happened {
    /// Its place in the session's events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// update, permission_request, permission_resolved, status, diagnostic, progress, rollback or gap.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The session.
    #[serde(default)]
    pub session_id: String,
    /// The turn, if it belongs to one.
    #[serde(default)]
    pub prompt_id: Option<String>,
    /// The agent's raw update, or the server's own event.
    #[serde(default)]
    pub update: Value,
}

/// What comes out of a [`TurnStream`].
#[derive(Debug, Clone)]
pub(crate) enum TurnEvent {
    /// First, once.
    Accepted(Accepted),
    /// Any number of them.
    Happened(Happened),
    /// Last: the turn ended.
    Result(Box<ACPSessionResult>),
    /// Last: the turn did not end well, or the stream could not go on.
    Problem(Box<Problem>),
}

impl TurnEvent {
    /// Whether nothing comes after it.
    pub(crate) fn is_last(&self) -> bool {
        matches!(self, Self::Result(_) | Self::Problem(_))
    }

    /// Reads an event as it stands on the wire.
    ///
    /// # Errors
    /// Where its data is not what the API says for its type.
    pub(crate) fn read(event: &SseEvent) -> Result<Self, SseError> {
        let bad =
            |cause: serde_json::Error| SseError::BadData { kind: clean_line(&event.kind), cause: cause.to_string() };
        Ok(match event.kind.as_str() {
            "accepted" => Self::Accepted(serde_json::from_str(&event.data).map_err(bad)?),
            "result" => Self::Result(serde_json::from_str(&event.data).map_err(bad)?),
            "problem" => Self::Problem(serde_json::from_str(&event.data).map_err(bad)?),
            kind => {
                let mut happened: Happened = serde_json::from_str(&event.data).map_err(bad)?;
                happened.id = event.id.as_deref().and_then(|id| id.parse().ok());
                kind.clone_into(&mut happened.kind);
                Self::Happened(happened)
            }
        })
    }
}

/// The events of one turn, in order.
#[derive(Debug)]
pub(crate) struct TurnStream {
    response: Response,
    parser: SseParser,
}

impl TurnStream {
    pub(super) fn new(response: Response) -> Self {
        Self { response, parser: SseParser::new(MAX_EVENT_BYTES) }
    }

    /// The next event; `None` where the server ended the stream. Cancel-safe.
    ///
    /// # Errors
    /// `Lost` where the connection broke (the turn goes on in the server), `Stream` where it is not
    /// readable.
    pub(crate) async fn next(&mut self) -> Result<Option<TurnEvent>, ClientError> {
        loop {
            if let Some(event) = self.parser.next_event() {
                return Ok(Some(TurnEvent::read(&event)?));
            }
            let chunk = self.response.chunk().await;
            match chunk.map_err(|error| lost_or_unreachable(&error, self.response.url()))? {
                Some(chunk) => self.parser.push(&chunk)?,
                None => return Ok(None),
            }
        }
    }
}
