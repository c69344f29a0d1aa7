//! Use of the service by one key, such as a tenant or a token, and its limits: live sessions, running turns, prompts a
//! minute.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{clock::Timestamp, words::words};

/// Limits of the use by one tenant or one token; `None` is unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct UseLimits {
    /// Live sessions up to which new ones are admitted.
    pub sessions: Option<u32>,
    /// Turns that run at the same time.
    pub turns: Option<u32>,
    /// Prompts that are accepted within 60 s.
    pub prompts_per_minute: Option<u32>,
}

words! {
    /// A limit that refuses requests.
    LimitKind {
        Sessions = "sessions",
        Turns = "turns",
        PromptsPerMinute = "promptsPerMinute",
        /// Bytes of a workspace on disk.
        WorkspaceBytes = "workspaceBytes",
    }
}

/// The figures of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LimitFigures {
    pub kind: LimitKind,
    pub used: u64,
    pub limit: u64,
    /// Time after which a retry makes sense, in seconds; at least 1. `None` if no time helps.
    pub retry_after_s: Option<u32>,
}

/// The period over which prompts are counted.
const PERIOD: Duration = Duration::from_secs(60);
/// Seconds for a retry while sessions are live: they hibernate or are closed.
const SESSIONS_RETRY_S: u32 = 10;
/// Seconds for a retry while turns run.
const TURNS_RETRY_S: u32 = 1;

/// Prompts of the last minute, by second: at most 61 entries.
#[derive(Debug, Default)]
struct Prompts(VecDeque<(i64, u32)>);

fn second(at: Timestamp) -> i64 {
    at.0.div_euclid(1_000_000)
}

impl Prompts {
    fn drop_old(&mut self, now: Timestamp) {
        let oldest = second(now.minus(PERIOD));
        while self.0.front().is_some_and(|(at, _)| *at <= oldest) {
            self.0.pop_front();
        }
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|(_, count)| u64::from(*count)).sum()
    }

    fn add(&mut self, now: Timestamp) {
        let now = second(now);
        match self.0.back_mut() {
            // Also a clock that was set back.
            Some((at, count)) if *at >= now => *count = count.saturating_add(1),
            _ => self.0.push_back((now, 1)),
        }
    }

    /// Seconds until fewer than `limit` prompts are left in the period.
    fn retry_after_s(&self, limit: u64, now: Timestamp) -> u32 {
        let mut left = self.count();
        let mut free_at = second(now);
        for (at, count) in &self.0 {
            left -= u64::from(*count);
            free_at = at + i64::try_from(PERIOD.as_secs()).unwrap_or(i64::MAX);
            if left < limit {
                break;
            }
        }
        u32::try_from((free_at - second(now)).clamp(1, 60)).unwrap_or(60)
    }
}

#[derive(Debug, Default)]
struct Used {
    sessions: u32,
    turns: u32,
    prompts: Prompts,
}

impl Used {
    fn is_idle(&self) -> bool {
        self.sessions == 0 && self.turns == 0 && self.prompts.0.is_empty()
    }
}

/// The use by key. It holds one entry for each key with a session, a turn, or a counted prompt of the last minute;
/// prompts are counted only for keys with such a limit.
#[derive(Debug)]
pub(crate) struct Usage<K> {
    by_key: HashMap<K, Used>,
    /// Entries at which idle ones are removed.
    sweep_at: usize,
}

/// Entries below which nothing is removed.
const SWEEP_AT: usize = 1024;

impl<K> Default for Usage<K> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), sweep_at: SWEEP_AT }
    }
}

impl<K: Eq + Hash + Clone> Usage<K> {
    fn of(&mut self, key: &K, now: Timestamp) -> &mut Used {
        if !self.by_key.contains_key(key) {
            if self.by_key.len() >= self.sweep_at {
                self.by_key.values_mut().for_each(|used| used.prompts.drop_old(now));
                self.by_key.retain(|_, used| !used.is_idle());
                // Twice the rest, so that sweeps cost constant time for each new key.
                self.sweep_at = (self.by_key.len() * 2).max(SWEEP_AT);
            }
            self.by_key.insert(key.clone(), Used::default());
        }
        self.by_key.entry(key.clone()).or_default()
    }

    /// Counts a new session.
    ///
    /// # Errors
    /// The figures, if as many are live as the limit allows; nothing is counted.
    pub(crate) fn admit_session(&mut self, key: &K, limits: &UseLimits, now: Timestamp) -> Result<(), LimitFigures> {
        let used = self.of(key, now);
        if let Some(limit) = limits.sessions.filter(|limit| used.sessions >= *limit) {
            let retry_after_s = Some(SESSIONS_RETRY_S);
            let (used, limit) = (u64::from(used.sessions), u64::from(limit));
            return Err(LimitFigures { kind: LimitKind::Sessions, used, limit, retry_after_s });
        }
        used.sessions += 1;
        Ok(())
    }

    /// Counts a session that was admitted before, whatever the limit.
    pub(crate) fn admit_returning_session(&mut self, key: &K, now: Timestamp) {
        self.of(key, now).sessions += 1;
    }

    pub(crate) fn end_session(&mut self, key: &K) {
        if let Some(used) = self.by_key.get_mut(key) {
            used.sessions = used.sessions.saturating_sub(1);
            self.drop_if_idle(key);
        }
    }

    /// Counts a prompt and its turn.
    ///
    /// # Errors
    /// The figures of the limit that refuses it; nothing is counted.
    pub(crate) fn begin_turn(&mut self, key: &K, limits: &UseLimits, now: Timestamp) -> Result<(), LimitFigures> {
        let used = self.of(key, now);
        if let Some(limit) = limits.turns.filter(|limit| used.turns >= *limit) {
            let retry_after_s = Some(TURNS_RETRY_S);
            let (used, limit) = (u64::from(used.turns), u64::from(limit));
            return Err(LimitFigures { kind: LimitKind::Turns, used, limit, retry_after_s });
        }
        used.prompts.drop_old(now);
        if let Some(limit) = limits.prompts_per_minute.map(u64::from) {
            let count = used.prompts.count();
            if count >= limit {
                let retry_after_s = Some(used.prompts.retry_after_s(limit, now));
                return Err(LimitFigures { kind: LimitKind::PromptsPerMinute, used: count, limit, retry_after_s });
            }
            used.prompts.add(now);
        }
        used.turns += 1;
        Ok(())
    }

    /// Counts a turn that began in an earlier process, whatever the limit.
    pub(crate) fn resume_turn(&mut self, key: &K, now: Timestamp) {
        self.of(key, now).turns += 1;
    }

    pub(crate) fn end_turn(&mut self, key: &K) {
        if let Some(used) = self.by_key.get_mut(key) {
            used.turns = used.turns.saturating_sub(1);
            self.drop_if_idle(key);
        }
    }

    /// Live sessions and running turns.
    pub(crate) fn now(&self, key: &K) -> (u32, u32) {
        self.by_key.get(key).map_or((0, 0), |used| (used.sessions, used.turns))
    }

    fn drop_if_idle(&mut self, key: &K) {
        if self.by_key.get(key).is_some_and(Used::is_idle) {
            self.by_key.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: i64) -> Timestamp {
        Timestamp(1_800_000_000_000_000 + s * 1_000_000)
    }

    fn limits(sessions: u32, turns: u32, prompts: u32) -> UseLimits {
        let some = |limit: u32| Some(limit).filter(|limit| *limit > 0);
        UseLimits { sessions: some(sessions), turns: some(turns), prompts_per_minute: some(prompts) }
    }

    #[test]
    fn session_over_the_limit_is_refused_with_figures_until_one_ends() {
        let (mut usage, limits) = (Usage::default(), limits(2, 0, 0));
        usage.admit_session(&"a", &limits, at(0)).unwrap();
        usage.admit_returning_session(&"a", at(0));
        let refused = usage.admit_session(&"a", &limits, at(0)).unwrap_err();
        assert_eq!((refused.kind, refused.used, refused.limit), (LimitKind::Sessions, 2, 2));
        usage.admit_session(&"b", &limits, at(0)).unwrap();
        usage.end_session(&"a");
        usage.admit_session(&"a", &limits, at(0)).unwrap();
        usage.admit_returning_session(&"a", at(0));
        assert_eq!(usage.now(&"a"), (3, 0), "a returning session is never refused");
    }

    #[test]
    fn turns_are_limited_while_they_run_and_a_limit_of_zero_refuses_all() {
        let mut usage = Usage::default();
        usage.begin_turn(&"a", &limits(0, 1, 0), at(0)).unwrap();
        let refused = usage.begin_turn(&"a", &limits(0, 1, 0), at(0)).unwrap_err();
        assert_eq!(
            (refused.kind, refused.used, refused.limit, refused.retry_after_s),
            (LimitKind::Turns, 1, 1, Some(1))
        );
        usage.end_turn(&"a");
        usage.begin_turn(&"a", &limits(0, 1, 0), at(0)).unwrap();
        let none = UseLimits { turns: Some(0), ..UseLimits::default() };
        assert!(usage.begin_turn(&"b", &none, at(0)).is_err());
    }

    #[test]
    fn prompts_within_a_minute_are_limited_and_retry_after_names_the_first_free_second() {
        let (mut usage, limits) = (Usage::default(), limits(0, 0, 3));
        for s in [0, 10, 10] {
            usage.begin_turn(&"a", &limits, at(s)).unwrap();
            usage.end_turn(&"a");
        }
        let refused = usage.begin_turn(&"a", &limits, at(20)).unwrap_err();
        assert_eq!((refused.kind, refused.used, refused.limit), (LimitKind::PromptsPerMinute, 3, 3));
        assert_eq!(refused.retry_after_s, Some(40));
        assert!(usage.begin_turn(&"a", &limits, at(59)).is_err());
        usage.begin_turn(&"a", &limits, at(60)).unwrap();
        assert_eq!(usage.begin_turn(&"a", &limits, at(60)).unwrap_err().retry_after_s, Some(10));
        // A lower limit waits until enough prompts have left.
        let lower = UseLimits { prompts_per_minute: Some(1), ..UseLimits::default() };
        assert_eq!(usage.begin_turn(&"a", &lower, at(60)).unwrap_err().retry_after_s, Some(60));
    }

    #[test]
    fn refused_turn_counts_no_prompt() {
        let (mut usage, limits) = (Usage::default(), limits(0, 1, 2));
        usage.begin_turn(&"a", &limits, at(0)).unwrap();
        for _ in 0..5 {
            assert_eq!(usage.begin_turn(&"a", &limits, at(0)).unwrap_err().kind, LimitKind::Turns);
        }
        usage.end_turn(&"a");
        usage.begin_turn(&"a", &limits, at(0)).unwrap();
    }

    #[test]
    fn keys_without_use_are_dropped() {
        let (mut usage, prompts) = (Usage::default(), limits(0, 0, 9));
        for key in 0..10_000 {
            usage.begin_turn(&key, &prompts, at(i64::from(key))).unwrap();
            usage.end_turn(&key);
        }
        assert!(usage.by_key.len() <= 2 * SWEEP_AT, "{}", usage.by_key.len());
        let mut usage = Usage::default();
        usage.begin_turn(&1, &UseLimits::default(), at(0)).unwrap();
        usage.end_turn(&1);
        assert!(usage.by_key.is_empty());
    }
}
