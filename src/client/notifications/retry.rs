//! What to do after a line of toasts has ended.

use crate::contract::notifications::frames::close_code;

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Connect again without a wait, unless the last line ended right after it came up.
    AtOnce,
    /// Connect again after a wait.
    Wait,
    /// The same would happen again.
    GiveUp,
}

/// After a line that stood and was closed with this code, or without one.
pub(crate) fn after_close(code: Option<u16>) -> Next {
    match code {
        // Another instance may serve already; and a slow reader has nothing to wait for.
        Some(close_code::GOING_AWAY | close_code::TOO_SLOW) => Next::AtOnce,
        // We said something that the server does not take, or what we were let in with holds no longer.
        Some(close_code::POLICY | close_code::EXPIRED) => Next::GiveUp,
        // Also codes of whatever stands between.
        _ => Next::Wait,
    }
}

/// After a try to connect that was answered with this HTTP status.
pub(crate) fn after_refusal(status: u16) -> Next {
    match status {
        // Timed out, too early, too many: that may pass.
        408 | 425 | 429 => Next::Wait,
        500.. => Next::Wait,
        _ => Next::GiveUp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_is_tried_again() {
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
