//! The events of one turn.

use reqwest::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    clean::clean_line,
    error::{ClientError, lost_or_unreachable},
    sse::{MAX_EVENT_BYTES, SseError, SseEvent, SseParser},
};
use crate::contract::{problem::Problem, result::ACPSessionResult};

/// The turn was persisted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Accepted {
    pub prompt_id: String,
    pub session_id: String,
    /// True if the key was used before, so that this joins its turn.
    #[serde(default)]
    pub duplicate: bool,
}

/// An event of the session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Happened {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// update, `permission_request`, `permission_resolved`, status, diagnostic, progress, rollback or gap.
    #[serde(rename = "type", default)]
    pub kind: String,
    #[serde(default)]
    pub session_id: String,
    #[serde(default)]
    pub prompt_id: Option<String>,
    /// The raw update of the agent, or an event of the server.
    #[serde(default)]
    pub update: Value,
}

/// An item of a [`TurnStream`].
#[derive(Debug, Clone)]
pub(crate) enum TurnEvent {
    /// The first item.
    Accepted(Accepted),
    /// Any number of items.
    Happened(Happened),
    /// The last item: the turn ended.
    Result(Box<ACPSessionResult>),
    /// The last item: the turn failed, or the stream cannot continue.
    Problem(Box<Problem>),
}

impl TurnEvent {
    /// True if it is the last item.
    pub(crate) fn is_last(&self) -> bool {
        matches!(self, Self::Result(_) | Self::Problem(_))
    }

    /// Reads a server-sent event.
    ///
    /// # Errors
    /// Its data does not match its type.
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

    /// The next event; `None` if the server ended the stream.
    ///
    /// # Errors
    /// `Lost` if the connection broke (the turn continues in the server), `Stream` if the stream is malformed.
    ///
    /// # Cancel safety
    /// No event is lost.
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
