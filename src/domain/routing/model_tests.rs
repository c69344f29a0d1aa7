//! Compares the routing state machine with a model over random sequences of events.

use proptest::{prelude::*, test_runner::RngAlgorithm};

use super::{
    success_window::Sample,
    tests::{at, figures, rules},
    *,
};

/// An event of a route.
#[derive(Debug, Clone)]
enum Step {
    /// Time passes, in milliseconds.
    Pass(u64),
    Tick,
    /// A tick at `wakes_at`, late by this many milliseconds.
    Wake(u64),
    Breach,
    Turn(Sample, Stale),
    Probe(Sample, Stale),
    Canary(Option<Sample>, Stale),
    RollBack,
    Restore,
    SetPin(Route),
    Release,
    SetDefault(Route),
    /// The process restarts; meanwhile the time of day steps by this many seconds.
    Restart(i64),
}

/// `None` for a report of the current attempt; else the index of the attempt to which it belongs.
type Stale = Option<prop::sample::Index>;

fn step() -> impl Strategy<Value = Step> {
    let sample = || prop_oneof![3 => Just(Sample::Success), 1 => Just(Sample::Failure)];
    let stale = || prop_oneof![3 => Just(None), 1 => any::<prop::sample::Index>().prop_map(Some)];
    let route = prop_oneof![Just(Route::Acp), Just(Route::Http)];
    prop_oneof![
        3 => prop_oneof![0u64..100_000, 0u64..20_000_000].prop_map(Step::Pass),
        2 => Just(Step::Tick),
        6 => prop_oneof![2 => Just(0u64), 1 => 0u64..30_000].prop_map(Step::Wake),
        3 => Just(Step::Breach),
        4 => (sample(), stale()).prop_map(|(sample, stale)| Step::Turn(sample, stale)),
        5 => (sample(), stale()).prop_map(|(sample, stale)| Step::Probe(sample, stale)),
        14 => (prop_oneof![1 => Just(None), 12 => sample().prop_map(Some)], stale())
            .prop_map(|(sample, stale)| Step::Canary(sample, stale)),
        1 => Just(Step::RollBack),
        1 => Just(Step::Restore),
        1 => route.clone().prop_map(Step::SetPin),
        2 => Just(Step::Release),
        1 => route.prop_map(Step::SetDefault),
        1 => prop_oneof![Just(0i64), -100_000i64..100_000].prop_map(Step::Restart),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Recovery {
    Closed,
    /// Start of the cool-down, then the earliest and the latest time of the next probe.
    Open(Timestamp, Timestamp, Timestamp),
    HalfOpen(Timestamp),
    /// Successful canaries so far.
    Trying(u32),
}

/// The same rules without epochs: each attempt has a number of its own, by which late reports are recognised.
struct Model {
    default: Route,
    pin: Option<Route>,
    recovery: Recovery,
    attempt: u32,
    healthy_since: Timestamp,
    watched: Option<(u32, u32)>,
    /// Counts attempts to recover and flips; reports of an earlier round are late.
    round: u64,
    flips: u64,
}

impl Model {
    fn route(&self) -> Route {
        self.pin.unwrap_or(if self.recovery == Recovery::Closed { self.default } else { Route::Http })
    }

    fn open(&mut self, now: Timestamp, rules: &RecoveryRules) {
        let mark = rules.cooldown * (1 << self.attempt.min(20));
        let mark = mark.min(rules.max_cooldown);
        let spread = mark * rules.jitter_bp / FULL_BP;
        self.recovery = Recovery::Open(now, now.plus(mark - spread), now.plus(mark + spread));
        self.watched = None;
    }

    fn try_failed(&mut self, now: Timestamp, rules: &RecoveryRules) {
        self.round += 1;
        self.attempt += 1;
        self.open(now, rules);
    }

    fn turn(&mut self, sample: Sample, now: Timestamp, rules: &RecoveryRules) {
        if self.route() != Route::Acp || self.pin.is_some() {
            return;
        }
        if sample == Sample::Failure {
            self.healthy_since = now;
        }
        let Some((turns, failures)) = &mut self.watched else { return };
        *turns += 1;
        *failures += u32::from(sample == Sample::Failure);
        if *failures == rules.reopen_failures {
            self.attempt += 1;
            self.open(now, rules);
        } else if *turns == rules.reopen_within {
            self.watched = None;
        }
    }

    fn canary(&mut self, sample: Option<Sample>, now: Timestamp, rules: &RecoveryRules) {
        let Recovery::Trying(successes) = &mut self.recovery else { return };
        match sample {
            _ if self.pin.is_some() => {}
            None => {}
            Some(Sample::Failure) => self.try_failed(now, rules),
            Some(Sample::Success) => {
                *successes += 1;
                if *successes == rules.close_after_successes * rules.canary_steps_bp.len() as u32 {
                    (self.recovery, self.watched) = (Recovery::Closed, Some((0, 0)));
                    (self.healthy_since, self.attempt) = (now, self.attempt.min(20));
                }
            }
        }
    }

    fn tick(&mut self, now: Timestamp, rules: &RecoveryRules) {
        match self.recovery {
            Recovery::HalfOpen(since) if now.since(since) >= rules.probe_timeout * 2 => self.try_failed(now, rules),
            Recovery::Closed => {
                while self.attempt > 0 && now.since(self.healthy_since) >= Duration::from_secs(3600) {
                    self.attempt -= 1;
                    self.healthy_since = self.healthy_since.plus(Duration::from_secs(3600));
                }
            }
            _ => {}
        }
    }

    fn restart(&mut self, now: Timestamp) {
        match self.recovery {
            // The same attempt, whose probe is repeated.
            Recovery::HalfOpen(_) => self.recovery = Recovery::Open(now, now, now),
            // A negative step counts as 0: all of the cool-down is still to come.
            Recovery::Open(since, earliest, latest) if now < since => {
                self.recovery = Recovery::Open(now, now.plus(earliest.since(since)), now.plus(latest.since(since)));
            }
            _ => {}
        }
        self.healthy_since = self.healthy_since.min(now);
    }
}

/// One sequence of events, applied to state machine and model.
struct Life {
    rules: RecoveryRules,
    routing: Routing,
    model: Model,
    now: Timestamp,
    /// Each attempt so far, with the model's round in which it began.
    tries: Vec<(Probe, u64)>,
}

impl Life {
    /// A workspace that was rolled back and failed to recover `failed` times.
    fn after(failed: u32, default: Route) -> Self {
        let mut life = Self {
            rules: rules(),
            routing: Routing::new(default),
            model: Model {
                default,
                pin: None,
                recovery: Recovery::Closed,
                attempt: 0,
                healthy_since: at(0),
                watched: None,
                round: 0,
                flips: 0,
            },
            now: at(0),
            tries: Vec::new(),
        };
        life.take(&Step::Breach, 0.5).unwrap();
        for _ in 0..failed {
            life.take(&Step::Wake(0), 0.5).unwrap();
            life.take(&Step::Probe(Sample::Failure, None), 0.5).unwrap();
        }
        life
    }

    /// The attempt of a report; the flag is true if the report is late.
    fn chosen(&self, stale: &Stale) -> Option<(Probe, bool)> {
        match stale {
            None => Some((Probe { epoch: self.routing.epoch(), attempt: self.routing.attempt() }, false)),
            Some(index) => {
                let (probe, round) = *self.tries.get(index.index(self.tries.len().max(1)))?;
                Some((probe, round != self.model.round))
            }
        }
    }

    fn take(&mut self, step: &Step, fraction: f64) -> Result<(), TestCaseError> {
        let before = self.routing.clone();
        let attribution = Attribution {
            initiator: Initiator::Operator,
            actor: "ann".into(),
            actor_note: None,
            reason: "a test".into(),
        };
        let (rules, model) = (&self.rules.clone(), &mut self.model);
        let mut is_automatic = true;
        let flip = match step {
            Step::Pass(ms) => {
                self.now = self.now.plus(Duration::from_millis(*ms));
                None
            }
            Step::Tick => self.tick(fraction)?,
            Step::Wake(ms) => {
                if let Some(wakes_at) = self.routing.wakes_at(rules) {
                    self.now = self.now.max(wakes_at).plus(Duration::from_millis(*ms));
                }
                self.tick(fraction)?
            }
            Step::Breach => {
                if model.route() == Route::Acp && model.pin.is_none() {
                    model.open(self.now, rules);
                }
                self.routing.on_breach(figures(), self.now, fraction, rules)
            }
            Step::Turn(sample, stale) => {
                let epoch = self.routing.epoch() - u64::from(stale.is_some()).min(self.routing.epoch());
                if epoch == self.routing.epoch() {
                    model.turn(*sample, self.now, rules);
                }
                self.routing.on_turn(epoch, *sample, self.now, fraction, rules)
            }
            Step::Probe(sample, stale) => {
                let Some((probe, is_late)) = self.chosen(stale) else { return Ok(()) };
                let model = &mut self.model;
                if !is_late && matches!(model.recovery, Recovery::HalfOpen(_)) {
                    match sample {
                        Sample::Success => model.recovery = Recovery::Trying(0),
                        Sample::Failure => model.try_failed(self.now, rules),
                    }
                }
                self.routing.on_probe(probe, *sample, self.now, fraction, rules);
                prop_assert!(!is_late || self.routing == before, "a late probe changed something");
                None
            }
            Step::Canary(sample, stale) => {
                let Some((probe, is_late)) = self.chosen(stale) else { return Ok(()) };
                if !is_late {
                    self.model.canary(*sample, self.now, rules);
                }
                let flip = self.routing.on_canary(probe, *sample, self.now, fraction, rules);
                prop_assert!(!is_late || self.routing == before, "a late canary changed something");
                flip
            }
            Step::Restart(seconds) => {
                self.now = Timestamp(self.now.0 + seconds * 1_000_000);
                model.restart(self.now);
                self.routing = self.routing.clone().after_restart(self.now);
                None
            }
            by_hand => {
                is_automatic = false;
                self.by_hand(by_hand, attribution)
            }
        };
        self.check(&before, flip, is_automatic)
    }

    fn by_hand(&mut self, step: &Step, attribution: Attribution) -> Option<Flip> {
        let (model, now) = (&mut self.model, self.now);
        match step {
            Step::RollBack => {
                model.pin = Some(Route::Http);
                self.routing.roll_back(attribution, now)
            }
            Step::Restore => {
                (model.pin, model.recovery, model.attempt, model.watched) = (None, Recovery::Closed, 0, None);
                self.routing.restore(attribution, now)
            }
            Step::SetPin(route) => {
                model.pin = Some(*route);
                self.routing.set_pin(*route, attribution, now)
            }
            Step::Release => {
                model.pin = None;
                self.routing.release_pin(attribution, now)
            }
            Step::SetDefault(route) => {
                model.default = *route;
                if *route == Route::Http {
                    (model.recovery, model.attempt, model.watched) = (Recovery::Closed, 0, None);
                }
                self.routing.set_default(*route, attribution, now)
            }
            _ => None,
        }
    }

    fn tick(&mut self, fraction: f64) -> Result<Option<Flip>, TestCaseError> {
        let wants = self.routing.wakes_at(&self.rules).is_some_and(|wakes_at| wakes_at <= self.now);
        let before = self.routing.clone();
        let probe = self.routing.on_tick(self.now, fraction, &self.rules);
        prop_assert_eq!(self.routing != before, wants, "a tick acts at `wakes_at` and only then");
        self.model.tick(self.now, &self.rules);
        if let Some(probe) = probe {
            let Recovery::Open(_, earliest, _) = self.model.recovery else {
                return Err(TestCaseError::fail("a probe without a cool-down"));
            };
            prop_assert!(earliest <= self.now, "probed too early");
            prop_assert!(self.model.pin.is_none(), "probed while pinned");
            self.model.recovery = Recovery::HalfOpen(self.now);
            self.tries.push((probe, self.model.round));
        }
        Ok(None)
    }

    fn check(&mut self, before: &Routing, flip: Option<Flip>, is_automatic: bool) -> Result<(), TestCaseError> {
        let (routing, model, rules) = (&self.routing, &mut self.model, &self.rules);
        prop_assert_eq!(routing.route(), model.route());
        prop_assert_eq!(
            flip.is_some(),
            routing.route() != before.route(),
            "each change of the route is a flip, and nothing else is"
        );
        prop_assert_eq!(routing.epoch(), before.epoch() + u64::from(flip.is_some()));
        if let Some(flip) = &flip {
            model.flips += 1;
            model.round += 1;
            prop_assert_eq!((flip.from, flip.to, flip.epoch), (before.route(), routing.route(), routing.epoch()));
            prop_assert!(!is_automatic || before.pin().is_none(), "a pin overrides everything automatic");
            let is_default = model.pin.is_none() && model.recovery == Recovery::Closed;
            prop_assert_eq!(routing.rollback().is_some(), flip.is_rollback() && !is_default);
        }
        prop_assert_eq!(routing.epoch(), model.flips);
        prop_assert_eq!(routing.attempt(), model.attempt);
        prop_assert_eq!(routing.pin().map(|pin| pin.protocol), model.pin);
        let is_default = model.pin.is_none() && model.recovery == Recovery::Closed && model.default == Route::Http;
        prop_assert!(!is_default || routing.rollback().is_none(), "the default route is no rollback");
        match (&routing.breaker, model.recovery) {
            (Breaker::Closed, Recovery::Closed) => {}
            (Breaker::Open { probe_at, .. }, Recovery::Open(_, earliest, latest)) => {
                prop_assert!((earliest..=latest).contains(probe_at), "{probe_at} is not {earliest} to {latest}");
                prop_assert!(probe_at.since(self.now) <= rules.max_cooldown.mul_f64(1.2), "stuck");
                prop_assert_eq!(routing.wakes_at(rules).is_some(), model.pin.is_none());
            }
            (Breaker::HalfOpen { since }, Recovery::HalfOpen(in_model)) => {
                prop_assert_eq!(*since, in_model);
                prop_assert!(routing.wakes_at(rules).is_some(), "a probe's slot is freed at its timeout");
            }
            (Breaker::Recovering { step, successes }, Recovery::Trying(passed)) => {
                prop_assert_eq!(*step as u32 * rules.close_after_successes + successes, passed);
                let shares = &rules.canary_steps_bp;
                let expected = if model.pin.is_some() { 0 } else { shares[*step] };
                prop_assert_eq!(routing.canary_share_bp(rules), expected);
            }
            (breaker, recovery) => return Err(TestCaseError::fail(format!("{breaker:?} is not {recovery:?}"))),
        }
        if routing == before {
            return Ok(());
        }
        let kept = serde_json::to_string(routing).unwrap();
        let read: Routing = serde_json::from_str(&kept).unwrap();
        prop_assert_eq!(&read, routing, "{}", kept);
        self.routing = read;
        Ok(())
    }
}

proptest! {
    // XorShift instead of ChaCha: in a debug build the default generator takes most of the test's time.
    #![proptest_config(ProptestConfig { cases: 10_000, rng_algorithm: RngAlgorithm::XorShift, ..ProptestConfig::default() })]

    #[test]
    fn fr_007_routing_matches_its_model(
        failed in prop_oneof![6 => Just(0u32), 2 => 1u32..7, 1 => 18u32..23],
        default in prop_oneof![5 => Just(Route::Acp), 1 => Just(Route::Http)],
        steps in prop::collection::vec((step(), 0.0f64..=1.0), 1..40),
    ) {
        let mut life = Life::after(failed, default);
        for (step, fraction) in &steps {
            life.take(step, *fraction)?;
        }
    }
}
