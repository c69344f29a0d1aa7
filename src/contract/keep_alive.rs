//! Lifetimes of idle HTTP connections. A client closes them before its server does, so that it never sends a request
//! over a connection that the server is just closing.

use std::time::Duration;

/// Our servers, the public API and the runtime, close a connection that is idle for this long.
pub(crate) const SERVER_KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Our clients close it after this. The difference covers a busy thread on either side.
pub(crate) const CLIENT_KEEP_ALIVE: Duration = Duration::from_secs(2);
