//! Watches the threads that run actors, from a thread of its own that they cannot block.

use std::{
    cell::Cell,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

use super::Metrics;
use crate::domain::watchdog::{Finding, WatchdogLimits};

/// The watched threads. The watchdog thread ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Watchdog {
    shared: Arc<Shared>,
    /// Ends the watchdog thread when dropped.
    _stop: SyncSender<()>,
}

#[derive(Debug)]
struct Shared {
    limits: WatchdogLimits,
    metrics: Metrics,
    begin: Instant,
    /// One for each thread that runs actors.
    hearts: Mutex<Vec<Arc<Heart>>>,
    is_alive: AtomicBool,
}

#[derive(Debug)]
struct Heart {
    thread: String,
    /// Time of the last beat, in milliseconds after `begin`.
    last_ms: AtomicU64,
    is_stalled: AtomicBool,
}

/// The handle of a watched thread. The thread is watched until it is dropped.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    heart: Arc<Heart>,
    shared: Arc<Shared>,
}

impl Watchdog {
    /// Starts the watchdog thread.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub(crate) fn watch(limits: WatchdogLimits, metrics: Metrics) -> io::Result<Self> {
        let shared = Shared {
            limits,
            metrics,
            begin: Instant::now(),
            hearts: Mutex::default(),
            is_alive: AtomicBool::new(true),
        };
        let shared = Arc::new(shared);
        let (stop, stopped) = sync_channel(1);
        let watched = shared.clone();
        std::thread::Builder::new().name("watchdog".into()).spawn(move || watched.watch(&stopped))?;
        Ok(Self { shared, _stop: stop })
    }

    /// Watches the calling thread, which has to beat from now on.
    pub(crate) fn join(&self) -> Heartbeat {
        let thread = std::thread::current();
        let heart = Heart {
            thread: thread.name().unwrap_or("unnamed").to_owned(),
            last_ms: AtomicU64::new(self.shared.now_ms()),
            is_stalled: AtomicBool::new(false),
        };
        let heart = Arc::new(heart);
        self.shared.hearts().push(heart.clone());
        Heartbeat { heart, shared: self.shared.clone() }
    }

    /// The heartbeats of the calling thread, for as long as it lives; `None` where it already beats.
    ///
    /// The caller spawns the future on this thread and passes its runtime's `sleep`: telemetry lies below tokio.
    pub(crate) fn heartbeats_of_this_thread<S: Future<Output = ()>, F: Fn(Duration) -> S>(
        &self,
        sleep: F,
    ) -> Option<impl Future<Output = ()> + use<S, F>> {
        if BEATS.replace(true) {
            return None;
        }
        let (heartbeat, every) = (self.join(), self.every());
        Some(async move {
            loop {
                heartbeat.beat();
                sleep(every).await;
            }
        })
    }

    /// Interval at which a thread has to beat.
    pub(crate) fn every(&self) -> Duration {
        self.shared.limits.every
    }

    /// True if the process can recover by itself, as of the last check.
    pub(crate) fn is_alive(&self) -> bool {
        self.shared.is_alive.load(Ordering::Acquire)
    }
}

thread_local! {
    /// True if this thread already beats.
    static BEATS: Cell<bool> = const { Cell::new(false) };
}

impl Heartbeat {
    /// Records a sign of life of the thread.
    pub(crate) fn beat(&self) {
        self.heart.last_ms.store(self.shared.now_ms(), Ordering::Release);
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.shared.hearts().retain(|heart| !Arc::ptr_eq(heart, &self.heart));
    }
}

impl Shared {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn hearts(&self) -> MutexGuard<'_, Vec<Arc<Heart>>> {
        self.hearts.lock()
    }

    fn watch(&self, stopped: &Receiver<()>) {
        let mut last_check = Instant::now();
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(self.limits.every) {
            let was_stopped = self.limits.was_stopped(last_check.elapsed());
            last_check = Instant::now();
            // After a stop of the whole process all beats are late, and none of the threads is stalled.
            if !was_stopped {
                self.check();
            }
        }
    }

    fn check(&self) {
        // Copied, so that a thread that joins or ends does not wait for the log and the metrics.
        let hearts = self.hearts().clone();
        let mut lags = Vec::with_capacity(hearts.len());
        for heart in hearts {
            let since_beat = self.now_ms().saturating_sub(heart.last_ms.load(Ordering::Acquire));
            let lag = self.limits.lag(Duration::from_millis(since_beat));
            lags.push(lag);
            let was_stalled = heart.is_stalled.load(Ordering::Acquire);
            match self.limits.look(was_stalled, lag) {
                Finding::Beats | Finding::StillStalled => continue,
                Finding::Stalled => {
                    self.metrics.arbiter_stalled();
                    tracing::error!(
                        marker = "[ACP]",
                        thread = heart.thread,
                        lag_s = lag.as_secs_f64(),
                        "a thread that runs sessions is stalled, and so are its sessions"
                    );
                }
                Finding::Recovered => {
                    tracing::warn!(marker = "[ACP]", thread = heart.thread, "a stalled thread runs again");
                }
            }
            heart.is_stalled.store(!was_stalled, Ordering::Release);
        }
        self.metrics.arbiter_lag(lags.iter().copied().max().unwrap_or_default());
        self.is_alive.store(self.limits.is_alive(&lags), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: WatchdogLimits = WatchdogLimits {
        every: Duration::from_millis(20),
        stalled_after: Duration::from_millis(400),
        dead_after: Duration::from_millis(1500),
    };

    fn value(metrics: &Metrics, name: &str) -> f64 {
        let text = metrics.render().unwrap();
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()).unwrap()
    }

    fn until(what: &str, is_so: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !is_so() {
            assert!(Instant::now() < end, "{what}");
            std::thread::yield_now();
        }
    }

    /// A thread that beats until it receives a channel, and then blocks until that channel is closed.
    fn thread_that_beats(beats: &Watchdog) -> (SyncSender<Receiver<()>>, std::thread::JoinHandle<()>) {
        let (hold, held) = sync_channel::<Receiver<()>>(0);
        let beats = beats.clone();
        let thread = std::thread::spawn(move || {
            let beat = beats.join();
            loop {
                match held.recv_timeout(beats.every()) {
                    Ok(release) => drop(release.recv()),
                    Err(RecvTimeoutError::Timeout) => beat.beat(),
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        });
        (hold, thread)
    }

    #[test]
    fn a_stalled_thread_is_reported_once_and_recovers() {
        let metrics = Metrics::new("test", None).unwrap();
        let beats = Watchdog::watch(LIMITS, metrics.clone()).unwrap();
        let ((one, one_thread), (other, other_thread)) = (thread_that_beats(&beats), thread_that_beats(&beats));
        until("both are watched", || beats.shared.hearts().len() == 2);
        let (release, released) = sync_channel(1);
        one.send(released).unwrap();
        until("the stall is seen", || value(&metrics, "lumilink_arbiter_stalls_total") == 1.0);
        assert!(value(&metrics, "lumilink_arbiter_lag_seconds") >= 0.4);
        assert!(beats.is_alive(), "the other thread works, and this one may recover");
        until("the stall lasts too long", || !beats.is_alive());
        release.send(()).unwrap();
        until("the thread has recovered", || {
            beats.is_alive() && value(&metrics, "lumilink_arbiter_lag_seconds") < 0.4
        });
        assert_eq!(value(&metrics, "lumilink_arbiter_stalls_total"), 1.0);
        drop((one, other));
        one_thread.join().unwrap();
        other_thread.join().unwrap();
        assert!(beats.shared.hearts().is_empty(), "ended threads are not watched");
        assert!(beats.is_alive());
    }

    #[test]
    fn the_process_is_dead_when_all_threads_are_stalled() {
        let limits = WatchdogLimits { dead_after: Duration::from_secs(3600), ..LIMITS };
        let beats = Watchdog::watch(limits, Metrics::new("test", None).unwrap()).unwrap();
        let (hold, thread) = thread_that_beats(&beats);
        until("the thread is watched", || beats.shared.hearts().len() == 1);
        let (release, released) = sync_channel(1);
        hold.send(released).unwrap();
        until("the only thread is stalled", || !beats.is_alive());
        release.send(()).unwrap();
        until("the thread has recovered", || beats.is_alive());
        drop(hold);
        thread.join().unwrap();
    }
}
