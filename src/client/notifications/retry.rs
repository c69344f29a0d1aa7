//! Decides whether and when to reconnect.

use crate::contract::notifications::frames::close_code;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Reconnect without a wait, unless the last connection was short.
    AtOnce,
    Wait,
    /// Reconnecting would fail in the same way.
    GiveUp,
}

/// After a connection was closed with this code, or without one.
pub(crate) fn after_close(code: Option<u16>) -> Next {
    match code {
        // Another instance may be serving already; a slow reader has nothing to wait for.
        Some(close_code::GOING_AWAY | close_code::TOO_SLOW) => Next::AtOnce,
        // The server rejected a frame, or the authorisation expired.
        Some(close_code::POLICY | close_code::EXPIRED) => Next::GiveUp,
        // Including codes of proxies.
        _ => Next::Wait,
    }
}

/// After a connection attempt was answered with this HTTP status.
pub(crate) fn after_refusal(status: u16) -> Next {
    match status {
        // Timeout, too early, too many requests: temporary.
        408 | 425 | 429 => Next::Wait,
        500.. => Next::Wait,
        _ => Next::GiveUp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_temporary_failures_are_retried() {
        for (code, next) in [
            (Some(close_code::GOING_AWAY), Next::AtOnce),
            (Some(close_code::TOO_SLOW), Next::AtOnce),
            (Some(close_code::POLICY), Next::GiveUp),
            (Some(close_code::EXPIRED), Next::GiveUp),
            (Some(close_code::TRY_AGAIN), Next::Wait),
            (Some(1006), Next::Wait),
            (Some(4999), Next::Wait),
            (None, Next::Wait),
        ] {
            assert_eq!(after_close(code), next, "{code:?}");
        }
        for (status, next) in [
            (200, Next::GiveUp),
            (302, Next::GiveUp),
            (400, Next::GiveUp),
            (401, Next::GiveUp),
            (403, Next::GiveUp),
            (404, Next::GiveUp),
            (408, Next::Wait),
            (429, Next::Wait),
            (500, Next::Wait),
            (503, Next::Wait),
        ] {
            assert_eq!(after_refusal(status), next, "{status}");
        }
    }
}
