//! The membership in the database: one supervisor at a time.

use std::{
    net::{SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::AppError;
use crate::{
    cluster::membership::Renewal,
    config::Config,
    domain::membership::{Claim, LIFE, Member},
    http::waiting::{WaitingHttp, wait_on},
    process::identity,
    store::{Claimant, DatabaseUrl, Replicas, StoreError},
};

/// Pause between two claims of a supervisor that waits for another one to end.
const CLAIM_AGAIN: Duration = Duration::from_millis(500);

/// Claims the database before anything in it is changed, and renews the membership from then on. While another
/// supervisor is the member, waits for at most `database.lock_wait_s`; meanwhile the API is not ready. `is_locked`: the
/// lock of a SQLite file keeps every other process away, so that a row can only be left from one that has ended.
pub(super) async fn join(
    config: &Config,
    listener: &TcpListener,
    url: &DatabaseUrl,
    is_locked: bool,
) -> Result<Renewal, AppError> {
    let bound = listener.local_addr().map_err(AppError::io("the address of the API"))?;
    let own = Claimant {
        id: Uuid::now_v7().to_string(),
        address: address_for_others(bound),
        process: identity::of_this_process(),
    };
    let deadline = Instant::now() + Duration::from_secs(config.database.lock_wait_s);
    let (mut replicas, mut waiting) = (Replicas::new(url.clone()), None);
    loop {
        let begun = Instant::now();
        let claimed;
        (replicas, claimed) = claim(replicas, own.clone(), is_locked).await?;
        let other = match (claimed, &waiting) {
            (Ok(Claim::Granted { epoch }), _) => {
                if let Some((waiting, _)) = waiting {
                    WaitingHttp::stop(waiting).await;
                }
                tracing::info!(marker = "[ACP]", epoch, address = own.address, "member of the database");
                let started = Renewal::start(replicas, own.id, begun, is_locked);
                return started.map_err(AppError::io("the thread of the membership"));
            }
            (Ok(Claim::Taken(other)), _) => shown(&other),
            // The database may come back before the wait is over.
            (Err(cause), Some((_, other))) => {
                tracing::warn!(marker = "[ACP]", %cause, "the database could not be claimed");
                String::clone(other)
            }
            (Err(cause), None) => return Err(cause.into()),
        };
        if Instant::now() >= deadline {
            if let Some((waiting, _)) = waiting {
                WaitingHttp::stop(waiting).await;
            }
            return Err(AppError::Member { database: url.name(), member: other });
        }
        if waiting.is_none() {
            let reason = format!("waits for another supervisor of the database to end: {other}");
            tracing::warn!(marker = "[ACP]", other, "waits for another supervisor to end");
            let serving = wait_on(listener, reason).map_err(AppError::io("the address of the API"))?;
            waiting = Some((serving, other));
        }
        tokio::time::sleep(CLAIM_AGAIN).await;
    }
}

async fn claim(
    mut replicas: Replicas,
    own: Claimant,
    is_locked: bool,
) -> Result<(Replicas, Result<Claim, StoreError>), AppError> {
    let claiming = tokio::task::spawn_blocking(move || {
        let is_gone = |member: &Member| is_locked || has_ended(member, Some(&own.address));
        let claim = replicas.claim(&own, LIFE, is_gone);
        (replicas, claim)
    });
    let panicked = |cause: tokio::task::JoinError| StoreError::Corrupt(format!("the claim panicked: {cause}"));
    Ok(claiming.await.map_err(panicked)?)
}

/// True if the process of a member has provably ended. `listened`: an address that this process listens on. Another
/// process of the same network that had it must have closed it, which proves the end of one whose processes are not
/// visible here, such as an earlier container of the same pod.
fn has_ended(member: &Member, listened: Option<&str>) -> bool {
    let has_closed = || listened == Some(member.address.as_str()) && identity::shares_network(&member.process);
    identity::has_ended(&member.process).unwrap_or_else(has_closed)
}

fn shown(member: &Member) -> String {
    format!("{} ({})", member.address, identity::shown(&member.process))
}

/// Checks that no supervisor works with a database.
///
/// # Errors
/// [`AppError::Member`] names the supervisor.
pub(super) fn refuse_member(url: &DatabaseUrl) -> Result<(), AppError> {
    match Replicas::new(url.clone()).member(|member| has_ended(member, None))? {
        Some(member) => Err(AppError::Member { database: url.name(), member: shown(&member) }),
        None => Ok(()),
    }
}

/// The supervisor that holds a SQLite file, for a message; `None` if its row cannot be read.
pub(super) fn holder(url: &DatabaseUrl) -> Option<String> {
    let member = Replicas::new(url.clone()).member(|_| false).ok()??;
    Some(shown(&member))
}

/// The address under which others reach an API that is bound to `bound`.
fn address_for_others(bound: SocketAddr) -> String {
    if bound.ip().is_unspecified() {
        format!("http://{}:{}", identity::host(), bound.port())
    } else {
        format!("http://{bound}")
    }
}
