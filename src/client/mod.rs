//! Our own client of the HTTP session API and of toasts, for the command line, the demo and the benchmarks.
//!
//! Invariant: it knows the API as any other client does, through `contract/` and the wire, never through
//! the server's code. What an agent or server says is hostile until it went through [`clean`].

pub mod api;
pub mod clean;
pub mod console;
pub mod error;
pub mod follow;
pub mod json_lines;
pub mod notifications;
mod operations;
pub mod printer;
pub mod requests;
pub mod sse;
pub mod stream;

pub use self::{
    api::ApiClient,
    error::ClientError,
    follow::follow,
    notifications::{Bookmark, ToastEvent, ToastFollower, ToastScope},
    requests::{NewSession, PermissionChoice, PromptRequest, SessionFilter},
    stream::{TurnEvent, TurnStream},
};
