//! Reproducible random numbers.

use std::time::Duration;

/// `SplitMix64`: sufficient for drawing faults, and the same sequence on every platform.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    /// Takes the seed from `LUMILINK_FAULT_SEED`, or draws a new one; prints it.
    pub(crate) fn of_environment(suite: &str) -> Self {
        let seed = match std::env::var("LUMILINK_FAULT_SEED") {
            Ok(given) => given.parse().unwrap_or_else(|_| panic!("LUMILINK_FAULT_SEED is a number, not {given:?}")),
            Err(_) => uuid::Uuid::new_v4().as_u64_pair().0,
        };
        println!("{suite}: seed {seed} (LUMILINK_FAULT_SEED)");
        Self(seed)
    }

    /// Takes a fixed seed.
    pub(crate) fn of_seed(seed: u64) -> Self {
        Self(seed)
    }

    /// An independent generator seeded by this one.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.roll())
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number in `0..limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.roll() % limit as u64).expect("a small number")
    }

    /// A duration of 0 to `most` milliseconds, inclusive.
    pub(crate) fn millis(&mut self, most: usize) -> Duration {
        Duration::from_millis(self.below(most + 1) as u64)
    }

    /// A duration of zero to `most`, inclusive, in microsecond steps.
    pub(crate) fn up_to(&mut self, most: Duration) -> Duration {
        Duration::from_micros(self.roll() % (most.as_micros() as u64 + 1))
    }
}
