//! The client of the HTTP API and of notifications, for the command line and the demo.
//!
//! Invariant: it uses the API through `contract/` and the wire alone, never through code of the server. Text of agents
//! and servers is hostile until [`clean`] has filtered it.

pub(crate) mod api;
pub(crate) mod clean;
pub(crate) mod console;
pub(crate) mod error;
pub(crate) mod follow;
pub(crate) mod json_lines;
pub(crate) mod notifications;
mod operations;
pub(crate) mod printer;
pub(crate) mod requests;
pub(crate) mod sse;
pub(crate) mod stream;

pub(crate) use self::{
    api::ApiClient,
    error::ClientError,
    notifications::{Bookmark, NotificationEvent, NotificationFollower, NotificationScope},
    requests::{AutomationRequest, NewSession, PromptRequest, SessionFilter},
    stream::TurnEvent,
};
