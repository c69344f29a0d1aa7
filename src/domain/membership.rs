//! Supervisors of one database: who may use it, and for how long.
//!
//! Until replicas exist, one supervisor at a time is a member. It has a row with an expiry, which it renews.

use std::time::Duration;

use super::clock::Timestamp;

/// Interval of renewals.
pub(crate) const RENEW: Duration = Duration::from_secs(5);
/// Life of a row after its last renewal: two renewals may fail.
pub(crate) const LIFE: Duration = Duration::from_secs(15);
/// Time from the start of the last successful renewal until a member takes no more work: 3 s before its row expires,
/// for a turn that is being accepted and for clocks of different speed.
pub(crate) const TAKES_WORK: Duration = Duration::from_secs(12);
/// Pause before a failed renewal is repeated.
pub(crate) const RETRY: Duration = Duration::from_secs(1);

/// The row of a supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// Unique for each start of a supervisor.
    pub id: String,
    /// Number of take-overs of the database so far, from 1.
    pub epoch: u64,
    /// Address of its API.
    pub address: String,
    /// Identity of its process.
    pub process: String,
    /// End of its membership, by the clock of the database.
    pub expires: Timestamp,
}

/// The decision about a supervisor that wants to use the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The supervisor is the member from now on, in this epoch; all other rows are removed.
    Granted { epoch: u64 },
    /// Another supervisor is the member.
    Taken(Member),
}

/// Decides whether the supervisor `id` may use the database at `now`, by the clock of the database. `is_gone` is true
/// for a member whose process has provably ended, so that its successor need not wait until its row expires.
pub(crate) fn claim(members: &[Member], id: &str, now: Timestamp, is_gone: impl Fn(&Member) -> bool) -> Claim {
    let others = members.iter().filter(|member| member.id != id);
    match others.clone().find(|member| member.expires > now && !is_gone(member)) {
        Some(other) => Claim::Taken(other.clone()),
        None => {
            let own = members.iter().find(|member| member.id == id).map(|own| own.epoch);
            let newest = others.map(|member| member.epoch).max().unwrap_or(0);
            Claim::Granted { epoch: own.filter(|own| *own > newest).unwrap_or(newest + 1) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str, epoch: u64, expires: i64) -> Member {
        let (address, process) = (format!("http://{id}"), format!("process of {id}"));
        Member { id: id.into(), epoch, address, process, expires: Timestamp(expires) }
    }

    #[test]
    fn live_member_keeps_the_database_until_exactly_its_expiry() {
        let first = member("a", 3, 100);
        let at = |now| claim(std::slice::from_ref(&first), "b", Timestamp(now), |_| false);
        assert_eq!(at(99), Claim::Taken(first.clone()));
        assert_eq!(at(100), Claim::Granted { epoch: 4 });
    }

    #[test]
    fn member_that_has_ended_is_replaced_at_once() {
        let rows = [member("a", 3, 100), member("dead", 2, 100)];
        let dead = |member: &Member| member.id == "dead";
        assert_eq!(claim(&rows[1..], "b", Timestamp(0), dead), Claim::Granted { epoch: 3 });
        assert_eq!(claim(&rows, "b", Timestamp(0), dead), Claim::Taken(rows[0].clone()));
    }

    #[test]
    fn repeated_claim_keeps_its_epoch_and_an_empty_database_starts_with_1() {
        assert_eq!(claim(&[], "a", Timestamp(0), |_| false), Claim::Granted { epoch: 1 });
        let rows = [member("a", 4, 100), member("old", 3, 0)];
        assert_eq!(claim(&rows, "a", Timestamp(5), |_| false), Claim::Granted { epoch: 4 });
        let replaced = [member("a", 4, 3), member("b", 5, 4)];
        assert_eq!(claim(&replaced, "a", Timestamp(5), |_| false), Claim::Granted { epoch: 6 });
    }

    #[test]
    fn member_takes_no_more_work_before_another_one_may() {
        assert!(RENEW < TAKES_WORK && TAKES_WORK < LIFE);
    }
}
