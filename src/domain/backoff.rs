//! How long to wait before something that failed is tried again.

use std::time::Duration;

/// The first try: most breaks are a blip, and a hundred sessions that broke together do not come back in one moment.
const FIRST: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(250));
/// The second wait; each one after it is twice as long.
const BASE: Duration = Duration::from_secs(1);
/// The first wait of a reader of toasts: there may be many thousand of them, and none has a turn that waits.
const READER_BASE: Duration = Duration::from_millis(500);
/// The longest wait, before the jitter.
const LONGEST: Duration = Duration::from_secs(30);
/// How far a wait may be off its mark, in either direction.
const JITTER: f64 = 0.2;

/// The wait before try number `attempt`, counted from 0: 50 to 250 ms, then 1 s doubling to 30 s, each ± 20 %.
/// `fraction` is a random number from 0 to 1; what is outside counts as the nearest of the two.
pub fn reconnect_delay(attempt: u32, fraction: f64) -> Duration {
    let Some(doublings) = attempt.checked_sub(1) else {
        let (least, most) = FIRST;
        return least + (most - least).mul_f64(bounded(fraction));
    };
    doubled(BASE, LONGEST, doublings, fraction)
}

/// The wait of a reader of toasts after `failures` tries in a row that came to nothing: 0.5 s doubling to 30 s, each
/// ± 20 %. `fraction` as of [`reconnect_delay`].
pub fn reader_delay(failures: u32, fraction: f64) -> Duration {
    doubled(READER_BASE, LONGEST, failures, fraction)
}

/// `base`, doubled so often, at most `longest`; then ± 20 % by `fraction`, a random number from 0 to 1.
pub fn doubled(base: Duration, longest: Duration, doublings: u32, fraction: f64) -> Duration {
    let delay = base.saturating_mul(2u32.saturating_pow(doublings)).min(longest);
    delay.mul_f64(1.0 - JITTER + 2.0 * JITTER * bounded(fraction))
}

/// What is outside of 0 to 1 counts as the nearest of the two.
fn bounded(fraction: f64) -> f64 {
    if fraction.is_nan() { 0.5 } else { fraction.clamp(0.0, 1.0) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_try_comes_at_once_and_the_others_double_up_to_their_limit() {
        let delays: Vec<_> = (0..9).map(|attempt| reconnect_delay(attempt, 0.5).as_millis()).collect();
        assert_eq!(delays, [150, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
        assert_eq!(reconnect_delay(0, 0.0), Duration::from_millis(50));
        assert_eq!(reconnect_delay(0, 1.0), Duration::from_millis(250));
        assert_eq!(reconnect_delay(1, 0.0), Duration::from_millis(800));
        assert_eq!(reconnect_delay(1, 1.0), Duration::from_millis(1200));
    }

    #[test]
    fn a_reader_waits_half_a_second_and_then_ever_longer() {
        let delays: Vec<_> = (0..8).map(|failures| reader_delay(failures, 0.5).as_millis()).collect();
        assert_eq!(delays, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(reader_delay(0, 0.0), Duration::from_millis(400));
        assert_eq!(reader_delay(u32::MAX, 2.0), Duration::from_secs(36));
    }

    proptest! {
        #[test]
        fn no_wait_is_shorter_than_50_ms_or_longer_than_36_s(attempt: u32, fraction: f64) {
            let delay = reconnect_delay(attempt, fraction);
            prop_assert!(delay >= Duration::from_millis(50) && delay <= Duration::from_secs(36), "{delay:?}");
        }
    }
}
