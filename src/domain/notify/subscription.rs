//! Notification subscriptions: where one starts, and why a cursor is rejected or a subscriber evicted.

use crate::domain::words::words;

words! {
    /// Why a cursor cannot be resumed from.
    ResetReason {
        /// Notifications after it have been removed, since they were too old.
        TooOld = "tooOld",
        /// The cursor belongs to another database, or was sent without its epoch.
        OtherEpoch = "otherEpoch",
        /// The cursor is after the newest notification.
        Ahead = "ahead",
        /// The next notification is there and cannot be read.
        Unreadable = "unreadable",
    }
}

words! {
    /// Why a subscriber was released.
    Eviction {
        /// More frames waited for the subscriber than its queue may hold.
        TooSlow = "tooSlow",
        /// The subscriber took no frame at all for too long.
        Stalled = "stalled",
        /// The subscriber sent nothing for too long, not even a pong.
        Silent = "silent",
        /// The subscriber sent a malformed frame, or one at the wrong time.
        BadFrame = "badFrame",
        /// The credential with which the subscription was opened is no longer valid.
        Expired = "expired",
    }
}

/// Frames that may wait for one subscriber (issue: 256).
pub(crate) const QUEUE_FRAMES: usize = 256;
/// Bytes of them (issue: 1 MiB).
pub(crate) const QUEUE_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Start {
    /// Notifications after this number are sent.
    pub after: u64,
    /// Why the subscriber's own cursor was of no use.
    pub reset: Option<ResetReason>,
}

/// Where a subscriber continues that comes with a cursor and the epoch in which it got it, in a sequence that holds the
/// numbers after `tail` until `head`. Never in the middle: either everything after its cursor is there, or it has to
/// begin anew.
pub(crate) fn start(cursor: Option<(u64, Option<&str>)>, epoch: &str, head: u64, tail: u64) -> Start {
    let Some((cursor, its_epoch)) = cursor else { return Start { after: head, reset: None } };
    let reset = if its_epoch != Some(epoch) {
        Some(ResetReason::OtherEpoch)
    } else if cursor > head {
        Some(ResetReason::Ahead)
    } else if cursor < tail {
        Some(ResetReason::TooOld)
    } else {
        None
    };
    Start { after: if reset.is_some() { head } else { cursor }, reset }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursor_is_resumed_or_rejected_as_a_whole() {
        let of = |cursor, epoch: &str| start(Some((cursor, Some(epoch))), "e", 10, 4);
        assert_eq!(start(None, "e", 10, 4), Start { after: 10, reset: None });
        for cursor in 4..=10 {
            assert_eq!(of(cursor, "e"), Start { after: cursor, reset: None });
        }
        assert_eq!(of(3, "e"), Start { after: 10, reset: Some(ResetReason::TooOld) });
        assert_eq!(of(11, "e"), Start { after: 10, reset: Some(ResetReason::Ahead) });
        assert_eq!(of(7, "other"), Start { after: 10, reset: Some(ResetReason::OtherEpoch) });
        assert_eq!(start(Some((7, None)), "e", 10, 4).reset, Some(ResetReason::OtherEpoch));
        assert_eq!(start(Some((0, Some("e"))), "e", 0, 0), Start { after: 0, reset: None });
    }
}
