//! What carries a workspace's turns, and the machine that decides it: rollback, probes, canaries, restore, pins.
//!
//! Pure: each event gives the change that it makes. Whoever runs it applies the event to a copy, writes copy and flip
//! down in one transaction, and only then lets the copy count; so a flip has one epoch, however often it is tried.

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
    /// What the router chose for a workspace. A turn ends on the route on which it began.
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

/// How a workspace comes back to ACP (`[recovery]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RecoveryRules {
    /// From a rollback to the first probe; doubles with each failed try.
    pub cooldown: Duration,
    /// The longest cool-down, before the jitter.
    pub max_cooldown: Duration,
    /// How far a cool-down may be off its mark, in basis points of it.
    pub jitter_bp: u32,
    /// How long a probe may take; one that has not ended after twice as long counts as failed.
    pub probe_timeout: Duration,
    /// Shares of turns that go over ACP while it is tried, in basis points; at least one, each above 0.
    pub canary_steps_bp: Vec<u32>,
    /// Successes after which a step is passed; at least 1.
    pub close_after_successes: u32,
    /// Failures that roll back again …
    pub reopen_failures: u32,
    /// … among so many turns after a restore.
    pub reopen_within: u32,
}

/// After so long without a rollback the next cool-down is half as long again (mission: an hour).
const FORGIVES_AFTER: Duration = Duration::from_secs(3600);
/// Doublings of the cool-down that are counted: 2^20 s are 12 days, more than any cool-down may be. A restore remembers
/// no more failed tries either, so that all are forgiven within a day.
const MAX_ATTEMPT: u32 = 20;

/// A route that beats the window until it is released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pin {
    pub protocol: Route,
    /// Who pinned it, and why.
    #[serde(flatten)]
    pub attribution: Attribution,
    /// Since when.
    pub since: Timestamp,
}

words! {
    /// Where the way back to ACP stands.
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
    /// Why, in a sentence.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Watched {
    turns: u32,
    failures: u32,
}

/// A change of the route, told exactly once for each epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flip {
    pub from: Route,
    pub to: Route,
    /// The epoch that begins with it.
    pub epoch: u64,
    pub trigger: FlipTrigger,
    /// Who, and why in a sentence.
    pub attribution: Attribution,
    /// What the window held, where there was one to look at.
    pub figures: Option<WindowFigures>,
    /// How many tries to recover failed so far.
    pub attempt: u32,
}

impl Flip {
    /// Whether it is a rollback: away from ACP for another reason than a changed default.
    pub(crate) fn is_rollback(&self) -> bool {
        self.to == Route::Http && self.trigger != FlipTrigger::Migration
    }

    /// Whether it is a restore: back to ACP for another reason than a changed default.
    pub(crate) fn is_restore(&self) -> bool {
        self.to == Route::Acp && self.trigger != FlipTrigger::Migration
    }

    /// The epoch of the rollback from which the workspace comes back, where it does so by itself.
    pub(crate) fn recovers_from(&self) -> Option<u64> {
        (self.trigger == FlipTrigger::Recovery).then(|| self.epoch.saturating_sub(1))
    }
}

/// A probe that is to be made: a handshake, and no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Probe {
    /// To be repeated with its end.
    pub epoch: u64,
    /// To be repeated with its end.
    pub attempt: u32,
}

/// The route of one workspace, as it is kept and as it is run.
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
    /// Since when nothing went wrong, for forgiving.
    #[serde(default)]
    well_since: Option<Timestamp>,
    /// The first turns after a restore.
    #[serde(default)]
    watched: Option<Watched>,
    #[serde(default)]
    rollback: Option<Rollback>,
}

impl Routing {
    /// A workspace that was never flipped.
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

    /// What carries the next turn, canaries aside.
    pub(crate) fn route(&self) -> Route {
        match (&self.pin, &self.breaker) {
            (Some(pin), _) => pin.protocol,
            (None, Breaker::Closed) => self.default,
            (None, _) => Route::Http,
        }
    }

    /// Counts up with each flip.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The route where nothing overrides it.
    pub(crate) fn default_route(&self) -> Route {
        self.default
    }

    /// The pin, if there is one.
    pub(crate) fn pin(&self) -> Option<&Pin> {
        self.pin.as_ref()
    }

    /// Why it is rolled back, while it is.
    pub(crate) fn rollback(&self) -> Option<&Rollback> {
        self.rollback.as_ref().filter(|_| self.route() == Route::Http)
    }

    /// Where the way back stands.
    pub(crate) fn stage(&self) -> Stage {
        match self.breaker {
            Breaker::Closed => Stage::Closed,
            Breaker::Open { .. } => Stage::Open,
            Breaker::HalfOpen { .. } => Stage::HalfOpen,
            Breaker::Recovering { .. } => Stage::Recovering,
        }
    }

    /// How many tries to recover failed lately.
    pub(crate) fn attempt(&self) -> u32 {
        self.attempt
    }

    /// When the next probe is made, while it cools down and is not pinned.
    pub(crate) fn next_probe_at(&self) -> Option<Timestamp> {
        match self.breaker {
            Breaker::Open { probe_at, .. } if self.pin.is_none() => Some(probe_at),
            _ => None,
        }
    }

    /// The share of turns that go over ACP while it is tried, in basis points.
    pub(crate) fn canary_share_bp(&self, rules: &RecoveryRules) -> u32 {
        match self.breaker {
            Breaker::Recovering { step, .. } if self.pin.is_none() => {
                rules.canary_steps_bp.get(step).copied().unwrap_or(FULL_BP).clamp(1, FULL_BP)
            }
            _ => 0,
        }
    }

    /// Every how manieth turn is a canary; none where ACP is not being tried.
    pub(crate) fn canary_every(&self, rules: &RecoveryRules) -> Option<u64> {
        match self.canary_share_bp(rules) {
            0 => None,
            share => Some(u64::from(FULL_BP.div_ceil(share))),
        }
    }

    /// What canaries of now belong to.
    pub(crate) fn trial(&self) -> Probe {
        Probe { epoch: self.epoch, attempt: self.attempt }
    }

    /// Whether these are the first turns after a restore, which are watched closely.
    pub(crate) fn is_watched(&self) -> bool {
        self.watched.is_some() && self.route() == Route::Acp
    }

    /// When [`Self::on_tick`] has something to do.
    pub(crate) fn wakes_at(&self, rules: &RecoveryRules) -> Option<Timestamp> {
        match self.breaker {
            Breaker::Open { .. } => self.next_probe_at(),
            Breaker::HalfOpen { since } => Some(since.plus(rules.probe_timeout * 2)),
            Breaker::Closed if self.attempt > 0 => self.well_since.map(|since| since.plus(FORGIVES_AFTER)),
            Breaker::Closed | Breaker::Recovering { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests;
