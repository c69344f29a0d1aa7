//! What a load client holds of one session, whatever the path.

use std::time::Duration;

use futures_util::{FutureExt, future::BoxFuture};

/// One session, from the load client's side.
pub(crate) trait Conversation: Send {
    /// Runs one turn and checks that it completed. Not cancel-safe: a conversation whose turn was dropped is
    /// of no use.
    fn turn(&mut self) -> BoxFuture<'_, Result<Turned, TurnError>>;

    /// What has to be done between two turns and does not count as part of either: nothing, by default. An error
    /// counts as a turn that failed.
    fn rest(&mut self) -> BoxFuture<'_, Result<(), TurnError>> {
        std::future::ready(Ok(())).boxed()
    }
}

/// What is known of a turn that completed, beside how long it took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Turned {
    /// From its beginning to the first thing that the agent said; absent where that is not looked at.
    pub first_update: Option<Duration>,
}

/// Why a turn does not count as one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TurnError {
    /// This turn failed; the next one may work.
    Failed(String),
    /// The session is lost.
    Gone(String),
}

/// Why something was not measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// A file or folder of ours.
    #[error("{what}: {cause}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        cause: std::io::Error,
    },
    /// A process under test does not start.
    #[error("{0}")]
    Start(String),
    /// A session cannot be opened.
    #[error("opening a session: {0}")]
    Open(String),
    /// A trial did not go as it should.
    #[error("{0}")]
    Trial(String),
    /// The system allows too few open files.
    #[error("{0}")]
    OpenFiles(String),
}

impl BenchError {
    /// For `map_err`.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |cause| Self::Io { what, cause }
    }
}
