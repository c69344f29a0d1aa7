//! Our own client of the HTTP session API and of toasts, for the command line and the demo.
//!
//! Invariant: it knows the API as any other client does, through `contract/` and the wire, never through
//! the server's code. What an agent or server says is hostile until it went through [`clean`].

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
    requests::{NewSession, PromptRequest, SessionFilter},
    stream::TurnEvent,
};
