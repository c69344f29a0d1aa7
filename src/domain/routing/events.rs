//! The events of a workspace's route and their transitions. Each returns the flip that it causes, if any.

use super::{
    Attribution, Breaker, FORGIVES_AFTER, Flip, FlipTrigger, MAX_ATTEMPT, Pin, Probe, RecoveryRules, Rollback, Route,
    Routing, Watched,
    success_window::{Sample, WindowFigures},
};
use crate::domain::{clock::Timestamp, share::FULL_BP};

impl Routing {
    /// The state after a restart of the process: a probe that was running is due at once. Where the time of day stepped
    /// back meanwhile, the cool-down starts again in full.
    pub(crate) fn after_restart(mut self, now: Timestamp) -> Self {
        match self.breaker {
            Breaker::HalfOpen { .. } => self.breaker = Breaker::Open { since: now, probe_at: now },
            Breaker::Open { since, probe_at } if now < since => {
                self.breaker = Breaker::Open { since: now, probe_at: now.plus(probe_at.since(since)) };
            }
            _ => {}
        }
        self.well_since = self.well_since.map(|since| since.min(now));
        self
    }

    /// The window is breached: rolls back unless the workspace is pinned or on HTTP already.
    /// `fraction` is a random number from 0 to 1, for the jitter; other values are clamped.
    pub(crate) fn on_breach(
        &mut self,
        figures: WindowFigures,
        now: Timestamp,
        fraction: f64,
        rules: &RecoveryRules,
    ) -> Option<Flip> {
        if self.route() != Route::Acp || self.pin.is_some() {
            return None;
        }
        let rate = figures.success_rate() * 100.0;
        let reason = format!(
            "{} of {} outcomes failed within {} s: {rate:.2} % succeeded",
            figures.failures, figures.samples, figures.length_seconds
        );
        let before = self.route();
        self.open(now, fraction, rules);
        self.flipped(before, FlipTrigger::AutoThreshold, Attribution::of_system(reason), Some(figures), now)
    }

    /// Counts the outcome of a turn over ACP that was not a canary. Rolls back if too many of the first turns after a
    /// restore fail. Outcomes of another epoch are ignored.
    pub(crate) fn on_turn(
        &mut self,
        epoch: u64,
        sample: Sample,
        now: Timestamp,
        fraction: f64,
        rules: &RecoveryRules,
    ) -> Option<Flip> {
        if epoch != self.epoch || self.route() != Route::Acp || self.pin.is_some() {
            return None;
        }
        if sample == Sample::Failure {
            // The hour without a failure starts again.
            self.well_since = Some(now);
        }
        let watched = self.watched.as_mut()?;
        watched.turns += 1;
        watched.failures += u32::from(sample == Sample::Failure);
        let Watched { turns, failures } = *watched;
        if failures >= rules.reopen_failures {
            let reason = format!("{failures} of the first {turns} turns after the restore failed");
            let before = self.route();
            self.attempt = self.attempt.saturating_add(1);
            self.open(now, fraction, rules);
            return self.flipped(before, FlipTrigger::AutoThreshold, Attribution::of_system(reason), None, now);
        }
        // Enough turns have succeeded; from now on only the success window decides.
        if turns >= rules.reopen_within {
            self.watched = None;
        }
        None
    }

    /// Advances the time: returns a probe that is due, fails one that timed out, forgives failed attempts. The caller
    /// makes the probe and reports its result to [`Self::on_probe`].
    pub(crate) fn on_tick(&mut self, now: Timestamp, fraction: f64, rules: &RecoveryRules) -> Option<Probe> {
        match self.breaker {
            Breaker::Open { probe_at, .. } if self.pin.is_none() && now >= probe_at => {
                self.breaker = Breaker::HalfOpen { since: now };
                Some(Probe { epoch: self.epoch, attempt: self.attempt })
            }
            Breaker::HalfOpen { since } if now.since(since) >= rules.probe_timeout * 2 => {
                self.try_failed(now, fraction, rules);
                None
            }
            Breaker::Closed if self.attempt > 0 => {
                let since = *self.well_since.get_or_insert(now);
                let hours = now.since(since).as_secs() / FORGIVES_AFTER.as_secs();
                let forgiven = u32::try_from(hours).unwrap_or(u32::MAX).min(self.attempt);
                self.attempt -= forgiven;
                // Advanced by whole hours, so that a late tick loses no part of an hour.
                self.well_since = Some(since.plus(FORGIVES_AFTER * forgiven));
                None
            }
            _ => None,
        }
    }

    /// Applies the result of a probe. A successful handshake does not restore; it admits the first canaries.
    pub(crate) fn on_probe(
        &mut self,
        probe: Probe,
        sample: Sample,
        now: Timestamp,
        fraction: f64,
        rules: &RecoveryRules,
    ) {
        let current = Probe { epoch: self.epoch, attempt: self.attempt };
        // A late report of an attempt that was given up, or that a flip ended.
        if probe != current || !matches!(self.breaker, Breaker::HalfOpen { .. }) {
            return;
        }
        match sample {
            Sample::Success => self.breaker = Breaker::Recovering { step: 0, successes: 0 },
            Sample::Failure => self.try_failed(now, fraction, rules),
        }
    }

    /// Applies the result of a canary of attempt `of`: a success counts towards the current step, a failure ends the
    /// attempt. Without a sample, and for any other attempt, nothing changes.
    pub(crate) fn on_canary(
        &mut self,
        of: Probe,
        sample: Option<Sample>,
        now: Timestamp,
        fraction: f64,
        rules: &RecoveryRules,
    ) -> Option<Flip> {
        let current = Probe { epoch: self.epoch, attempt: self.attempt };
        let Breaker::Recovering { step, successes } = &mut self.breaker else { return None };
        if of != current || self.pin.is_some() {
            return None;
        }
        match sample? {
            Sample::Failure => {
                self.try_failed(now, fraction, rules);
                return None;
            }
            Sample::Success => *successes += 1,
        }
        if *successes < rules.close_after_successes {
            return None;
        }
        (*step, *successes) = (*step + 1, 0);
        if *step < rules.canary_steps_bp.len() {
            return None;
        }
        let before = self.route();
        self.breaker = Breaker::Closed;
        // Each failed attempt takes an hour to forgive; without the cap, a long outage would be remembered for days.
        self.attempt = self.attempt.min(MAX_ATTEMPT);
        self.watched = (rules.reopen_failures > 0).then_some(Watched { turns: 0, failures: 0 });
        self.well_since = Some(now);
        let reason = format!("{} steps of canary turns succeeded", rules.canary_steps_bp.len());
        self.flipped(before, FlipTrigger::Recovery, Attribution::of_system(reason), None, now)
    }

    /// Rolls back on request: pins HTTP until a restore or a release of the pin.
    pub(crate) fn roll_back(&mut self, attribution: Attribution, now: Timestamp) -> Option<Flip> {
        let before = self.route();
        self.pin = Some(Pin { protocol: Route::Http, attribution: attribution.clone(), since: now });
        self.flipped(before, attribution.manual(), attribution, None, now)
    }

    /// Restores on request: removes pin and cool-down and forgives all failed attempts.
    pub(crate) fn restore(&mut self, attribution: Attribution, now: Timestamp) -> Option<Flip> {
        let before = self.route();
        (self.pin, self.breaker, self.attempt, self.watched) = (None, Breaker::Closed, 0, None);
        self.flipped(before, attribution.manual(), attribution, None, now)
    }

    pub(crate) fn set_pin(&mut self, protocol: Route, attribution: Attribution, now: Timestamp) -> Option<Flip> {
        let before = self.route();
        self.pin = Some(Pin { protocol, attribution: attribution.clone(), since: now });
        self.flipped(before, FlipTrigger::Pin, attribution, None, now)
    }

    /// Releases the pin, if any.
    pub(crate) fn release_pin(&mut self, attribution: Attribution, now: Timestamp) -> Option<Flip> {
        let before = self.route();
        self.pin = None;
        self.flipped(before, FlipTrigger::Pin, attribution, None, now)
    }

    /// Changes the default route. HTTP as the default ends a rollback, since that is then the intended route.
    pub(crate) fn set_default(&mut self, default: Route, attribution: Attribution, now: Timestamp) -> Option<Flip> {
        let before = self.route();
        self.default = default;
        if default == Route::Http {
            (self.breaker, self.attempt, self.watched) = (Breaker::Closed, 0, None);
        }
        self.flipped(before, FlipTrigger::Migration, attribution, None, now)
    }

    /// Starts a cool-down, doubled once per failed attempt.
    fn open(&mut self, now: Timestamp, fraction: f64, rules: &RecoveryRules) {
        let doubled = rules.cooldown.saturating_mul(1 << self.attempt.min(MAX_ATTEMPT));
        let spread = f64::from(rules.jitter_bp) / f64::from(FULL_BP);
        let factor = 1.0 + spread * (2.0 * fraction.clamp(0.0, 1.0) - 1.0);
        let cooldown = doubled.min(rules.max_cooldown).mul_f64(factor.max(0.0));
        self.breaker = Breaker::Open { since: now, probe_at: now.plus(cooldown) };
        (self.watched, self.well_since) = (None, None);
    }

    fn try_failed(&mut self, now: Timestamp, fraction: f64, rules: &RecoveryRules) {
        // Not capped at MAX_ATTEMPT: epoch and attempt together distinguish an attempt from every earlier one.
        self.attempt = self.attempt.saturating_add(1);
        self.open(now, fraction, rules);
    }

    /// Begins a new epoch and returns its flip if the route differs from `from`.
    fn flipped(
        &mut self,
        from: Route,
        trigger: FlipTrigger,
        attribution: Attribution,
        figures: Option<WindowFigures>,
        now: Timestamp,
    ) -> Option<Flip> {
        let to = self.route();
        // A route that is the default is no rollback, even if the workspace was rolled back before.
        let is_default = self.pin.is_none() && self.breaker == Breaker::Closed;
        if is_default {
            self.rollback = None;
        }
        if to == from {
            return None;
        }
        self.epoch += 1;
        self.rollback = (to == Route::Http && !is_default).then(|| Rollback {
            trigger,
            reason: attribution.reason.clone(),
            since: now,
        });
        Some(Flip { from, to, epoch: self.epoch, trigger, attribution, figures, attempt: self.attempt })
    }
}
