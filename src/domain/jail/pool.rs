//! The users of a pool, one for each tenant: `agent.run_as = "pool:70000-70999"`.

use std::{fmt, ops::RangeInclusive, str::FromStr};

/// Prefix of the setting.
const PREFIX: &str = "pool:";
/// The least id: lower ones belong to the system.
const LEAST: u32 = 1000;
/// The id of `nobody`, which many services share.
const NOBODY: u32 = 65_534;
/// Largest number of users of a pool.
const MOST_USERS: u32 = 1_000_000;

/// A range of ids that no account has. Each is a user and its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct UserPool {
    first: u32,
    last: u32,
}

/// The text is no valid pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be like pool:70000-70999: ids from 1000 on without 65534, first before last, at most 1,000,000")]
pub(crate) struct BadPool;

impl UserPool {
    /// True if the setting is meant as a pool and not as the name of a user.
    pub(crate) fn is_meant(run_as: &str) -> bool {
        run_as.starts_with(PREFIX)
    }

    /// The ids, in the order in which they are given out.
    pub(crate) fn ids(self) -> RangeInclusive<u32> {
        self.first..=self.last
    }
}

impl FromStr for UserPool {
    type Err = BadPool;

    fn from_str(text: &str) -> Result<Self, BadPool> {
        let (first, last) = text.strip_prefix(PREFIX).and_then(|range| range.split_once('-')).ok_or(BadPool)?;
        let id = |text: &str| {
            let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u32>().ok().filter(|_| is_plain).ok_or(BadPool)
        };
        let (first, last) = (id(first)?, id(last)?);
        let is_fine = first >= LEAST && first <= last && last - first < MOST_USERS && last < u32::MAX;
        let pool = Self { first, last };
        if is_fine && !pool.ids().contains(&NOBODY) { Ok(pool) } else { Err(BadPool) }
    }
}

impl fmt::Display for UserPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_is_a_range_of_ids_that_no_account_of_the_system_has() {
        let pool: UserPool = "pool:70000-70999".parse().unwrap();
        assert_eq!((pool.ids().count(), pool.to_string()), (1000, "pool:70000-70999".to_owned()));
        assert!("pool:70000-70000".parse::<UserPool>().is_ok());
        for bad in [
            "70000-70999",
            "pool:",
            "pool:70000",
            "pool:70999-70000",
            "pool:0-10",
            "pool:999-2000",
            "pool:60000-70000",
            "pool:+70000-70999",
            "pool:70000-4294967295",
            "pool:2000000-4000000",
        ] {
            assert_eq!(bad.parse::<UserPool>(), Err(BadPool), "{bad}");
        }
    }
}
