//! Points in time as values. Nothing here reads a clock: `now` is always an argument.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use time::{
    OffsetDateTime,
    format_description::{FormatItem, well_known::Rfc3339},
    macros::format_description,
};

/// RFC 3339 in UTC with six digits of a second, always: texts of equal width sort in the order of time.
const WITH_MICROSECONDS: &[FormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
/// The years of RFC 3339.
const YEARS: std::ops::RangeInclusive<i32> = 0..=9999;

/// Microseconds since 1970-01-01 UTC, the precision that both databases keep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Timestamp(pub i64);

impl Timestamp {
    /// The time since `earlier`; zero if `earlier` is later, after a step back of the clock.
    pub(crate) fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The time `duration` later; saturates.
    pub(crate) fn plus(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// The time `duration` earlier; saturates.
    pub(crate) fn minus(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// Parses RFC 3339; digits below a microsecond are dropped.
    pub(crate) fn parse(text: &str) -> Option<Timestamp> {
        let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        i64::try_from(time.unix_timestamp_nanos().div_euclid(1000)).ok().map(Timestamp)
    }
}

/// Formats as RFC 3339 in UTC with microseconds, 27 characters.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1000)
            .ok()
            .filter(|time| YEARS.contains(&time.year()))
            .and_then(|time| time.format(WITH_MICROSECONDS).ok());
        f.write_str(text.as_deref().unwrap_or("out of range"))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::parse(&text)
            .ok_or_else(|| D::Error::custom("must be a time in RFC 3339 format, such as 2026-11-25T09:00:00Z"))
    }
}

/// The source of time for code outside the domain.
pub(crate) trait Clock: Send + Sync + 'static {
    /// The time of day, for records.
    fn now(&self) -> Timestamp;

    /// Monotonic time, for decisions: the time of the database at the start of the process plus the time since. Steps of
    /// the system clock do not affect it.
    fn steady(&self) -> Timestamp;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_is_zero_after_a_clock_step_back() {
        assert_eq!(Timestamp(5).since(Timestamp(9)), Duration::ZERO);
    }

    #[test]
    fn timestamps_have_one_width_and_sort_as_texts() {
        let micros = [0, 1, 10, 1_500_000, 1_700_000_000_000_000, 1_700_000_000_726_980, 1_700_000_001_000_000];
        let texts = micros.map(|micros| Timestamp(micros).to_string());
        assert!(texts.iter().all(|text| text.len() == "2026-11-25T09:00:00.000000Z".len()), "{texts:?}");
        assert!(texts.is_sorted(), "{texts:?}");
        assert!(texts.iter().zip(micros).all(|(text, micros)| Timestamp::parse(text) == Some(Timestamp(micros))));
        for far in [i64::MIN, i64::MAX] {
            assert_eq!(Timestamp(far).to_string(), "out of range");
        }
    }

    #[test]
    fn time_of_another_width_in_an_older_row_is_read() {
        for (text, micros) in [("22.72698", 726_980), ("22.7", 700_000), ("22", 0), ("22.726980123", 726_980)] {
            let text = format!("2023-11-14T22:13:{text}Z");
            assert_eq!(Timestamp::parse(&text), Some(Timestamp(1_700_000_002_000_000 + micros)), "{text}");
        }
    }

    #[test]
    fn timestamps_format_and_parse_as_rfc_3339() {
        let text = "2023-11-14T22:13:20.000001Z";
        assert_eq!(Timestamp(1_700_000_000_000_001).to_string(), text);
        assert_eq!(Timestamp::parse(text), Some(Timestamp(1_700_000_000_000_001)));
        assert_eq!(Timestamp::parse("2023-11-14T23:13:20+01:00"), Some(Timestamp(1_700_000_000_000_000)));
        assert_eq!(Timestamp::parse("yesterday"), None);
    }
}
