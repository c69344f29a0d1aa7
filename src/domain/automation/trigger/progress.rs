//! The work on a queued delivery: who may start a turn, and when a step is tried again.

use std::time::Duration;

use super::Request;
use crate::domain::clock::Timestamp;

/// Executions of the steps of one delivery that fail for a reason that may pass.
pub(crate) const MAX_ATTEMPTS: u32 = 8;
/// The pause after the first of them; it doubles, so that all of them together outlast ten minutes.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// Pause before a prompt is sent again to a session that runs another turn.
pub(crate) const BUSY_PAUSE: Duration = Duration::from_secs(10);
/// Age at which a delivery that has not been prompted is given up. Below the 24 hours for which the keys are kept by which its
/// session and its turn are found again after a crash.
const MAX_AGE: Duration = Duration::from_secs(20 * 3600);
/// The levels of permission that start turns.
const LEVELS: [&str; 3] = ["write", "maintain", "admin"];

/// The answer of GitHub about a person and a repository.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Permission<'a> {
    /// Id of the account that has the login now.
    pub id: Option<u64>,
    /// `User` for a person.
    pub kind: Option<&'a str>,
    /// `admin`, `write`, `read` or `none`.
    pub level: &'a str,
}

impl Permission<'_> {
    /// True if the sender of a request is that person, and may start turns.
    pub(crate) fn admits(&self, request: &Request) -> bool {
        // A login can belong to another account by now.
        self.id == Some(request.sender.id) && self.kind == Some("User") && LEVELS.contains(&self.level)
    }
}

/// The time of the next execution after `attempts` failed ones; `None` if there is none. GitHub may demand a later time.
pub(crate) fn next_attempt(attempts: u32, demanded: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
    let pause = FIRST_PAUSE * 2_u32.saturating_pow(attempts.saturating_sub(1).min(MAX_ATTEMPTS));
    let own = now.plus(pause);
    (attempts < MAX_ATTEMPTS).then(|| demanded.map_or(own, |demanded| demanded.max(own)))
}

/// True for a delivery that is too old to be prompted.
pub(crate) fn is_expired(created: Timestamp, now: Timestamp) -> bool {
    now.since(created) >= MAX_AGE
}
