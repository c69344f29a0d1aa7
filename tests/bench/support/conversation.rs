//! The load client's side of one session, independent of the path to it.

use std::time::Duration;

use futures_util::{FutureExt, future::BoxFuture};

/// One session of the load client.
pub(crate) trait Conversation: Send {
    /// Runs one turn and checks that it completed. Not cancel-safe: a conversation whose turn was dropped must not be
    /// used again.
    fn turn(&mut self) -> BoxFuture<'_, Result<Turned, TurnError>>;

    /// Work between two turns that counts as part of neither; there is none by default. An error counts as a failed turn.
    fn rest(&mut self) -> BoxFuture<'_, Result<(), TurnError>> {
        std::future::ready(Ok(())).boxed()
    }
}

/// Observations of a completed turn, apart from its latency.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Turned {
    /// Time from the request to the agent's first update; absent where updates are not observed.
    pub first_update: Option<Duration>,
}

/// Failure of a turn.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TurnError {
    /// This turn failed; the next one may work.
    Failed(String),
    /// The session is lost.
    Gone(String),
}

/// Reason why something was not measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// A file or folder of the benchmark.
    #[error("{what}: {cause}")]
    Io {
        /// The operation.
        what: String,
        /// Its error.
        cause: std::io::Error,
    },
    /// A process under test does not start.
    #[error("{0}")]
    Start(String),
    /// A session cannot be opened.
    #[error("opening a session: {0}")]
    Open(String),
    /// A trial failed.
    #[error("{0}")]
    Trial(String),
    /// The limit of open files is too low.
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
