//! Limits repeated log lines that strangers can cause. Every `now` is a time since the process began to serve.

use std::time::Duration;

/// Time from one line to the next: six lines a minute show an attack as well as a thousand.
pub(crate) const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Counts what is left out of the log between two lines.
#[derive(Debug, Default)]
pub(crate) struct LogLimit {
    next: Duration,
    suppressed: u64,
}

impl LogLimit {
    /// Decides about one occurrence: the number of earlier ones that were left out since the last line, or `None` if this
    /// one is left out too.
    pub(crate) fn admit(&mut self, now: Duration) -> Option<u64> {
        if now < self.next {
            self.suppressed += 1;
            return None;
        }
        self.next = now + BETWEEN_LINES;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_after_a_burst_has_the_number_of_suppressed_ones() {
        let mut limit = LogLimit::default();
        let second = Duration::from_secs(1);
        assert_eq!(limit.admit(Duration::ZERO), Some(0));
        for _ in 0..50 {
            assert_eq!(limit.admit(second), None);
        }
        assert_eq!(limit.admit(BETWEEN_LINES), Some(50));
        assert_eq!(limit.admit(BETWEEN_LINES * 2), Some(0));
    }
}
