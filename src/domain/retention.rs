//! Which sessions, turns, transcripts and workspace folders may be removed, and why.

use std::{collections::BTreeMap, time::Duration};

use super::{clock::Timestamp, ids::InstallationId, words::words};

/// Time that an `Idempotency-Key` is remembered (required: 24 h). After that the key is free again, whatever the turn's
/// outcome; until then the turn is kept, because a repeat of its request gets its outcome.
pub(crate) const IDEMPOTENCY_PERIOD: Duration = Duration::from_secs(24 * 60 * 60);

words! {
    /// Kind of a removal.
    Removed {
        Transcripts = "transcripts",
        Turns = "turns",
        Sessions = "sessions",
        Workspaces = "workspaces",
        /// The folder of a workspace.
        Folders = "folders",
    }
}

words! {
    /// Cause of a removal.
    RemovalCause {
        /// The rows or the folder reached their age.
        Retention = "retention",
        /// The last session of an ephemeral workspace ended, or an isolated session.
        Ephemeral = "ephemeral",
    }
}

/// Kinds of history with an age of their own, in the order of their removal: a session is removed after the last of its
/// turns and entries, and a workspace after the last of its sessions.
pub(crate) const HISTORY: [Removed; 4] =
    [Removed::Transcripts, Removed::Turns, Removed::Sessions, Removed::Workspaces];

/// Tenants whose rows a sweep removes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tenants {
    Only(InstallationId),
    /// All but these, which have ages of their own.
    Except(Vec<InstallationId>),
}

/// Ages at which history is removed; `None` keeps it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct HistoryAges {
    pub transcripts: Option<Duration>,
    pub turns: Option<Duration>,
    /// Sessions, by last use, and the workspaces without sessions.
    pub sessions: Option<Duration>,
}

impl HistoryAges {
    fn of(&self, kind: Removed) -> Option<Duration> {
        match kind {
            Removed::Transcripts => self.transcripts,
            Removed::Turns => self.turns,
            Removed::Sessions | Removed::Workspaces => self.sessions,
            Removed::Folders => None,
        }
    }
}

/// One part of a sweep: rows of `kind` and `tenants` from before a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HistoryPart {
    pub kind: Removed,
    pub tenants: Tenants,
    pub age: Duration,
}

/// The parts of a sweep: all tenants by the usual ages, and each tenant with ages of its own by those.
pub(crate) fn history_parts(usual: HistoryAges, own: &BTreeMap<InstallationId, HistoryAges>) -> Vec<HistoryPart> {
    let except = Tenants::Except(own.keys().cloned().collect());
    let own = own.iter().map(|(tenant, ages)| (Tenants::Only(tenant.clone()), *ages));
    let groups: Vec<_> = std::iter::once((except, usual)).chain(own).collect();
    HISTORY
        .into_iter()
        .flat_map(|kind| {
            groups.iter().filter_map(move |(tenants, ages)| {
                ages.of(kind).map(|age| HistoryPart { kind, tenants: tenants.clone(), age })
            })
        })
        .collect()
}

/// The time before which rows are removed. Turns are protected for the period of their idempotency key.
pub(crate) fn removed_before(now: Timestamp, age: Duration) -> Timestamp {
    now.minus(age.max(IDEMPOTENCY_PERIOD))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turn_is_kept_for_the_period_of_its_idempotency_key() {
        let now = Timestamp(1_800_000_000_000_000);
        assert_eq!(removed_before(now, Duration::from_secs(1)), now.minus(IDEMPOTENCY_PERIOD));
        assert_eq!(removed_before(now, 90 * IDEMPOTENCY_PERIOD), now.minus(90 * IDEMPOTENCY_PERIOD));
    }

    #[test]
    fn tenant_with_own_ages_is_excluded_from_the_usual_ones() {
        let (day, own) = (IDEMPOTENCY_PERIOD, "acme".parse::<InstallationId>().unwrap());
        let usual = HistoryAges { transcripts: Some(day), turns: Some(day), sessions: None };
        let ages = HistoryAges { transcripts: None, turns: Some(7 * day), sessions: None };
        let part = |kind, tenants, age| HistoryPart { kind, tenants, age };
        let except = Tenants::Except(vec![own.clone()]);
        assert_eq!(
            history_parts(usual, &BTreeMap::from([(own.clone(), ages)])),
            [
                part(Removed::Transcripts, except.clone(), day),
                part(Removed::Turns, except, day),
                part(Removed::Turns, Tenants::Only(own), 7 * day),
            ]
        );
    }
}
