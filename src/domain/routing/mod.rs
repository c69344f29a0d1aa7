//! A workspace's route and the state machine that chooses it: rollback, probes, canaries, restore, pins.
//!
//! Pure: each event returns the change that it makes. The router applies an event to a copy, commits copy and flip in
//! one transaction, and only then replaces its state with the copy; a retried flip therefore keeps its epoch.

mod events;
pub(crate) mod initiator;
#[cfg(test)]
mod model_tests;
pub(crate) mod sampling;
pub(crate) mod storm;
pub(crate) mod success_window;
pub(crate) mod turn_route;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::success_window::WindowFigures;
use super::{clock::Timestamp, share::FULL_BP, words::words};

pub(crate) use self::initiator::{Attribution, FlipTrigger, Initiator};

words! {
    /// Protocol that the router chose for a workspace. A turn ends on the route on which it began.
    Route {
        /// ACP, live.
        Acp = "acp",
        Http = "http",
    }
}

impl Route {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Acp => Self::Http,
            Self::Http => Self::Acp,
        }
    }
}

/// The rules by which a workspace recovers ACP (`[recovery]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RecoveryRules {
    /// Time from a rollback to the first probe; doubles with each failed attempt.
    pub cooldown: Duration,
    /// The longest cool-down, before the jitter.
    pub max_cooldown: Duration,
    /// The largest deviation of a cool-down, up or down, in basis points of it.
    pub jitter_bp: u32,
    /// Timeout of a probe; a probe without a result after twice this time counts as failed.
    pub probe_timeout: Duration,
    /// Shares of canary turns, step by step, in basis points; at least one step, each above 0.
    pub canary_steps_bp: Vec<u32>,
    /// Successful canaries that complete a step; at least 1.
    pub close_after_successes: u32,
    /// Failures among the first [`Self::reopen_within`] turns after a restore that roll back again.
    pub reopen_failures: u32,
    /// Turns that are watched after a restore.
    pub reopen_within: u32,
}

/// Time without a failure after which one failed attempt is forgiven, which halves the next cool-down: 1 h.
const FORGIVES_AFTER: Duration = Duration::from_secs(3600);
/// The most doublings of the cool-down: 2^20 s are 12 days, more than any cool-down may be. A restore keeps at most this
/// many failed attempts too, so that all are forgiven within a day.
const MAX_ATTEMPT: u32 = 20;

/// A fixed route; it overrides the window until it is released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pin {
    pub protocol: Route,
    #[serde(flatten)]
    pub attribution: Attribution,
    pub since: Timestamp,
}

words! {
    /// Progress of a workspace's return to ACP.
    Stage {
        /// ACP carries the turns.
        Closed = "closed",
        /// Rolled back, cooling down.
        Open = "open",
        /// A probe is under way.
        HalfOpen = "halfOpen",
        /// Some turns go over ACP.
        Recovering = "recovering",
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "stage")]
enum Breaker {
    Closed,
    Open { since: Timestamp, probe_at: Timestamp },
    HalfOpen { since: Timestamp },
    Recovering { step: usize, successes: u32 },
}

/// Why a workspace is rolled back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Rollback {
    pub trigger: FlipTrigger,
    /// A sentence, redacted.
    pub reason: String,
    pub since: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Watched {
    turns: u32,
    failures: u32,
}

/// A change of the route; each epoch after 0 begins with exactly one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flip {
    pub from: Route,
    pub to: Route,
    /// The epoch that begins with this flip.
    pub epoch: u64,
    pub trigger: FlipTrigger,
    pub attribution: Attribution,
    /// The window at the time of a breach; `None` for every other cause.
    pub figures: Option<WindowFigures>,
    /// Failed attempts to recover so far.
    pub attempt: u32,
}

impl Flip {
    /// True for a rollback: to HTTP for another reason than a changed default.
    pub(crate) fn is_rollback(&self) -> bool {
        self.to == Route::Http && self.trigger != FlipTrigger::Migration
    }

    /// True for a rollback that the service decided itself.
    pub(crate) fn is_automatic_rollback(&self) -> bool {
        self.to == Route::Http && self.trigger == FlipTrigger::AutoThreshold
    }

    /// True for a restore: to ACP for another reason than a changed default.
    pub(crate) fn is_restore(&self) -> bool {
        self.to == Route::Acp && self.trigger != FlipTrigger::Migration
    }

    /// The epoch of the rollback that an automatic recovery ends; `None` for every other flip.
    pub(crate) fn recovers_from(&self) -> Option<u64> {
        (self.trigger == FlipTrigger::Recovery).then(|| self.epoch.saturating_sub(1))
    }
}

/// An attempt to recover ACP, begun by a probe: a handshake without a turn. Epoch and attempt identify it; reports of
/// its probe and its canaries repeat both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Probe {
    pub epoch: u64,
    pub attempt: u32,
}

/// The routing state of one workspace; serialised as JSON in its row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Routing {
    epoch: u64,
    default: Route,
    #[serde(default)]
    pin: Option<Pin>,
    breaker: Breaker,
    #[serde(default)]
    attempt: u32,
    /// Start of the current hour without a failure; each full hour forgives one failed attempt.
    #[serde(default)]
    well_since: Option<Timestamp>,
    /// Counts of the first turns after a restore; `None` once enough of them succeeded.
    #[serde(default)]
    watched: Option<Watched>,
    #[serde(default)]
    rollback: Option<Rollback>,
}

impl Routing {
    /// A workspace without any flip, on its default route.
    pub(crate) fn new(default: Route) -> Self {
        Self {
            epoch: 0,
            default,
            pin: None,
            breaker: Breaker::Closed,
            attempt: 0,
            well_since: None,
            watched: None,
            rollback: None,
        }
    }

    /// A workspace whose state is of a newer version: on its default route, in the epoch that it has reached.
    pub(crate) fn in_epoch(default: Route, epoch: u64) -> Self {
        Self { epoch, ..Self::new(default) }
    }

    /// The route of the next turn unless that is a canary.
    pub(crate) fn route(&self) -> Route {
        match (&self.pin, &self.breaker) {
            // A pin overrides the breaker, whose state is kept for the time after the pin.
            (Some(pin), _) => pin.protocol,
            (None, Breaker::Closed) => self.default,
            (None, _) => Route::Http,
        }
    }

    /// The number of flips so far.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The route without pin and rollback.
    pub(crate) fn default_route(&self) -> Route {
        self.default
    }

    pub(crate) fn pin(&self) -> Option<&Pin> {
        self.pin.as_ref()
    }

    /// The current rollback; `None` while the route is ACP.
    pub(crate) fn rollback(&self) -> Option<&Rollback> {
        self.rollback.as_ref().filter(|_| self.route() == Route::Http)
    }

    pub(crate) fn stage(&self) -> Stage {
        match self.breaker {
            Breaker::Closed => Stage::Closed,
            Breaker::Open { .. } => Stage::Open,
            Breaker::HalfOpen { .. } => Stage::HalfOpen,
            Breaker::Recovering { .. } => Stage::Recovering,
        }
    }

    /// Failed attempts to recover that are not yet forgiven.
    pub(crate) fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The time of the next probe; `None` unless the workspace cools down without a pin.
    pub(crate) fn next_probe_at(&self) -> Option<Timestamp> {
        match self.breaker {
            Breaker::Open { probe_at, .. } if self.pin.is_none() => Some(probe_at),
            _ => None,
        }
    }

    /// The share of canary turns in basis points; 0 unless the workspace is recovering without a pin.
    pub(crate) fn canary_share_bp(&self, rules: &RecoveryRules) -> u32 {
        match self.breaker {
            Breaker::Recovering { step, .. } if self.pin.is_none() => {
                rules.canary_steps_bp.get(step).copied().unwrap_or(FULL_BP).clamp(1, FULL_BP)
            }
            _ => 0,
        }
    }

    /// Canary interval `n`: one turn in `n` is tried over ACP; `None` where there are no canaries.
    pub(crate) fn canary_every(&self, rules: &RecoveryRules) -> Option<u64> {
        match self.canary_share_bp(rules) {
            0 => None,
            // Rounded up, so that the share of canaries never exceeds the setting.
            share => Some(u64::from(FULL_BP.div_ceil(share))),
        }
    }

    /// The attempt to which canaries of the current epoch belong.
    pub(crate) fn trial(&self) -> Probe {
        Probe { epoch: self.epoch, attempt: self.attempt }
    }

    /// True during the first turns after a restore, of which a few failures roll back again.
    pub(crate) fn is_watched(&self) -> bool {
        self.watched.is_some() && self.route() == Route::Acp
    }

    /// The time at which [`Self::on_tick`] next has work; `None` if only another event can bring it.
    pub(crate) fn wakes_at(&self, rules: &RecoveryRules) -> Option<Timestamp> {
        match self.breaker {
            Breaker::Open { .. } => self.next_probe_at(),
            // Twice the limit of the probe: a probe whose report was lost is given up, and a late one is still
            // accepted.
            Breaker::HalfOpen { since } => Some(since.plus(rules.probe_timeout * 2)),
            Breaker::Closed if self.attempt > 0 => self.well_since.map(|since| since.plus(FORGIVES_AFTER)),
            Breaker::Closed | Breaker::Recovering { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests;
