//! Membership rows: one supervisor at a time, by the database's clock.

use std::{sync::Barrier, time::Duration};

use super::fixture::*;
use crate::{
    domain::membership::{Claim, Member},
    store::{Claimant, Replicas, Store},
};

const LONG: Duration = Duration::from_secs(60);

fn claimant(id: &str) -> Claimant {
    Claimant { id: id.into(), address: format!("http://{id}"), process: format!("process of {id}") }
}

fn claim(replicas: &mut Replicas, id: &str, life: Duration) -> Claim {
    replicas.claim(&claimant(id), life, |_| false).unwrap()
}

fn epoch(claim: &Claim) -> Option<u64> {
    if let Claim::Granted { epoch } = claim { Some(*epoch) } else { None }
}

both_databases! {
    async fn second_supervisor_is_refused_until_the_first_gives_the_database_back(database: TestDatabase) {
        Store::upgrade_schema(&database.url()).unwrap();
        let (mut one, mut two) = (Replicas::new(database.url()), Replicas::new(database.url()));
        assert_eq!(epoch(&claim(&mut one, "a", LONG)), Some(1));
        let Claim::Taken(member) = claim(&mut two, "b", LONG) else { panic!("refused") };
        assert_eq!((member.address.as_str(), member.process.as_str()), ("http://a", "process of a"));
        assert_eq!(two.member(|_| false).unwrap().map(|member| member.id).as_deref(), Some("a"));
        assert_eq!(one.renew("a", LONG), Ok(true));
        one.release("a").unwrap();
        assert_eq!(two.member(|_| false), Ok(None));
        assert_eq!(epoch(&claim(&mut two, "b", LONG)), Some(2));
        assert_eq!(one.renew("a", LONG), Ok(false), "the first one has lost the database");
    }

    async fn expired_or_ended_supervisor_is_replaced_and_notices(database: TestDatabase) {
        Store::upgrade_schema(&database.url()).unwrap();
        let mut replicas = Replicas::new(database.url());
        assert_eq!(epoch(&claim(&mut replicas, "a", Duration::ZERO)), Some(1));
        assert_eq!(replicas.renew("a", Duration::ZERO), Ok(true), "nobody has taken over yet");
        assert_eq!(epoch(&claim(&mut replicas, "b", LONG)), Some(2));
        assert_eq!(replicas.renew("a", LONG), Ok(false));
        let has_ended = |member: &Member| member.process == "process of b";
        let taken_over = replicas.claim(&claimant("c"), LONG, has_ended).unwrap();
        assert_eq!(epoch(&taken_over), Some(3));
        assert_eq!(replicas.member(has_ended).unwrap().map(|member| member.id).as_deref(), Some("c"));
    }

    async fn concurrent_claims_grant_the_database_once(database: TestDatabase) {
        Store::upgrade_schema(&database.url()).unwrap();
        let (url, start) = (database.url(), Barrier::new(8));
        let claims: Vec<Claim> = std::thread::scope(|scope| {
            let claims: Vec<_> = (0..8)
                .map(|n| {
                    let (mut replicas, start) = (Replicas::new(url.clone()), &start);
                    scope.spawn(move || {
                        start.wait();
                        claim(&mut replicas, &format!("r{n}"), LONG)
                    })
                })
                .collect();
            claims.into_iter().map(|it| it.join().unwrap()).collect()
        });
        assert_eq!(claims.iter().filter_map(epoch).collect::<Vec<_>>(), [1], "{claims:?}");
    }

    async fn membership_is_renewed_after_the_connection_was_lost(database: TestDatabase) {
        Store::upgrade_schema(&database.url()).unwrap();
        let mut replicas = Replicas::new(database.url());
        claim(&mut replicas, "a", LONG);
        database.cut_connections();
        // The first attempt may notice the loss, and the next one connects again.
        let _ = replicas.renew("a", LONG);
        assert_eq!(replicas.renew("a", LONG), Ok(true));
    }

    async fn time_of_the_database_is_plausible(database: TestDatabase) {
        let now = time::OffsetDateTime::now_utc().unix_timestamp() * 1_000_000;
        let read = database.open().time().await.unwrap().0;
        assert!((read - now).abs() < 60_000_000, "{read} {now}");
    }
}
