//! The membership of this supervisor in its database, renewed by a thread of its own.
//!
//! A supervisor that cannot renew takes no new work from 12 s after its last renewal on, and takes work again with the
//! next one: its row expires after 15 s, and only then may another supervisor take over. If one has, the membership is
//! lost for ever, and the process has to end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use tokio::sync::{oneshot, watch};

use crate::{
    domain::{
        membership::{LIFE, RENEW, RETRY, TAKES_WORK},
        turn::outcome::{ErrorCode, Failure},
    },
    store::Replicas,
};

/// The end of a membership that nothing limits.
const NEVER: u64 = u64::MAX;

/// Answers whether this process may take work. Cheap to clone and to ask.
#[derive(Debug, Clone)]
pub(crate) struct Membership(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    begin: Instant,
    /// Milliseconds since `begin` until which work is taken.
    takes_work_until: AtomicU64,
    /// Becomes true when another supervisor has taken over.
    is_lost: watch::Sender<bool>,
}

impl Membership {
    /// A membership that does not end: of a database that no other process can use.
    pub(crate) fn unlimited() -> Self {
        let takes_work_until = AtomicU64::new(NEVER);
        Self(Arc::new(Inner { begin: Instant::now(), takes_work_until, is_lost: watch::Sender::new(false) }))
    }

    /// A membership that was granted by a claim which began at `claimed`.
    fn granted(claimed: Instant) -> Self {
        let membership = Self::unlimited();
        membership.extend(claimed);
        membership
    }

    /// Checks that this process may take new work.
    ///
    /// # Errors
    /// `database_unavailable` while the membership is not renewed, and after it was lost.
    pub(crate) fn admission(&self) -> Result<(), Failure> {
        let Inner { begin, takes_work_until, is_lost } = &*self.0;
        let until = takes_work_until.load(Ordering::Acquire);
        if until == NEVER || millis(begin.elapsed()) < until {
            return Ok(());
        }
        let detail = if *is_lost.borrow() {
            "another supervisor has taken over the database; this one is stopping"
        } else {
            "this supervisor cannot renew its membership in the database, so another one may take over"
        };
        Err(Failure::new(ErrorCode::DatabaseUnavailable, detail))
    }

    /// Takes no more work, and wakes those who wait for that.
    fn lose(&self) {
        self.0.is_lost.send_replace(true);
        self.0.takes_work_until.store(0, Ordering::Release);
    }

    /// Waits until another supervisor has taken over. Cancel-safe.
    pub(crate) async fn lost(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.is_lost.subscribe().wait_for(|is_lost| *is_lost).await;
    }

    /// Takes work for as long as a renewal that began at `renewed` allows.
    fn extend(&self, renewed: Instant) {
        let until = renewed.saturating_duration_since(self.0.begin) + TAKES_WORK;
        self.0.takes_work_until.store(millis(until), Ordering::Release);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(NEVER - 1)
}

/// The thread that renews a membership. Dropping it ends the thread, which gives the membership back.
#[derive(Debug)]
pub(crate) struct Renewal {
    pub membership: Membership,
    /// Closed to stop the thread.
    stop: SyncSender<()>,
    /// Resolves when the thread has ended.
    ended: oneshot::Receiver<()>,
}

impl Renewal {
    /// Renews the membership of `id`, which a claim that began at `claimed` has granted. `is_locked` where a lock of the
    /// operating system keeps other processes away: then a failed renewal does not stop work.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn start(replicas: Replicas, id: String, claimed: Instant, is_locked: bool) -> std::io::Result<Self> {
        let membership = if is_locked { Membership::unlimited() } else { Membership::granted(claimed) };
        // Carries nothing; one place, because a channel needs one.
        let (stop, stopped) = sync_channel(1);
        let (ending, ended) = oneshot::channel();
        let renewing = Renewing { replicas, id, membership: membership.clone(), is_locked };
        std::thread::Builder::new().name("membership".into()).spawn(move || {
            renewing.run(&stopped, claimed);
            // Without a receiver if the handle was dropped.
            let _ = ending.send(());
        })?;
        Ok(Self { membership, stop, ended })
    }

    /// Gives the membership back, for at most `patience`; after that the row expires by itself.
    pub(crate) async fn stop(self, patience: Duration) {
        drop(self.stop);
        if tokio::time::timeout(patience, self.ended).await.is_err() {
            tracing::warn!(
                marker = "[ACP]",
                "membership was not given back; a successor waits until its row expires"
            );
        }
    }
}

struct Renewing {
    replicas: Replicas,
    id: String,
    membership: Membership,
    is_locked: bool,
}

impl Renewing {
    fn run(mut self, stopped: &Receiver<()>, claimed: Instant) {
        let (mut wait, mut renewed) = (RENEW, claimed);
        while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
            let begun = Instant::now();
            match self.replicas.renew(&self.id, LIFE) {
                Ok(true) => {
                    if begun.duration_since(renewed) > TAKES_WORK && !self.is_locked {
                        tracing::info!(marker = "[ACP]", "membership renewed; new work is taken again");
                    }
                    if !self.is_locked {
                        self.membership.extend(begun);
                    }
                    renewed = begun;
                    wait = RENEW.saturating_sub(begun.elapsed());
                }
                Ok(false) => {
                    tracing::error!(marker = "[ACP]", "another supervisor has taken over the database");
                    self.membership.lose();
                    return;
                }
                Err(cause) => {
                    let since_s = renewed.elapsed().as_secs();
                    tracing::warn!(marker = "[ACP]", %cause, since_s, "membership could not be renewed");
                    wait = RETRY;
                }
            }
        }
        if let Err(cause) = self.replicas.release(&self.id) {
            tracing::warn!(marker = "[ACP]", %cause, "membership was not given back");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn member_that_cannot_renew_takes_no_work_until_it_can() {
        let long_ago = Instant::now().checked_sub(TAKES_WORK + RENEW).unwrap();
        let membership = Membership::granted(Instant::now());
        assert_eq!(membership.admission(), Ok(()));
        let late = Membership(Arc::new(Inner {
            begin: long_ago,
            takes_work_until: AtomicU64::new(0),
            is_lost: watch::Sender::new(false),
        }));
        late.extend(long_ago);
        assert_eq!(late.admission().unwrap_err().code, ErrorCode::DatabaseUnavailable);
        late.extend(Instant::now());
        assert_eq!(late.admission(), Ok(()));
        late.lose();
        assert!(late.admission().unwrap_err().detail.contains("has taken over"));
    }
}
