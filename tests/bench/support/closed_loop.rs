//! The load: every session sends its next prompt when its last turn has ended.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::{
    conversation::{Conversation, TurnError, Turned},
    latency::Latencies,
};

/// A turn that takes longer counts as an error; one of the demo agent takes milliseconds.
const TURN_LIMIT: Duration = Duration::from_secs(60);
/// The pause of a session whose turn failed, so that errors do not become the load.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);
/// Number of different errors that are kept as samples, and the characters of each.
const ERROR_SAMPLES: usize = 5;
const ERROR_CHARS: usize = 300;

/// Phases of a load: warm-up, then measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// The load begins.
    pub begin: Instant,
    /// Counting begins.
    pub from: Instant,
    /// Counting ends, and no further prompt is sent.
    pub until: Instant,
}

impl Window {
    /// The load begins now.
    pub(crate) fn now(warm_up: Duration, measured: Duration) -> Self {
        let begin = Instant::now();
        Self { begin, from: begin + warm_up, until: begin + warm_up + measured }
    }
}

/// Results of a load.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    /// Latencies of the turns that began within the window, however long they took.
    pub latencies: Latencies,
    /// Times to the agent's first update in these turns, where it is observed.
    pub first_updates: Latencies,
    /// Turns that completed within the window: the base of throughput and processor time per turn.
    pub turns: u64,
    /// Failed turns, warm-up included.
    pub errors: u64,
    pub sessions_lost: u64,
    /// Messages of the first different errors, with their counts.
    pub error_samples: BTreeMap<String, u64>,
}

impl Tally {
    fn new() -> Self {
        Self {
            latencies: Latencies::new(),
            first_updates: Latencies::new(),
            turns: 0,
            errors: 0,
            sessions_lost: 0,
            error_samples: BTreeMap::new(),
        }
    }

    fn completed(&mut self, window: &Window, began: Instant, ended: Instant, turned: Turned) {
        if (window.from..window.until).contains(&began) {
            self.latencies.record(ended - began);
            turned.first_update.into_iter().for_each(|first| self.first_updates.record(first));
        }
        if (window.from..window.until).contains(&ended) {
            self.turns += 1;
        }
    }

    fn failed(&mut self, error: &TurnError) {
        let (TurnError::Failed(message) | TurnError::Gone(message)) = error;
        let message: String = message.chars().take(ERROR_CHARS).collect();
        self.errors += 1;
        self.sessions_lost += u64::from(matches!(error, TurnError::Gone(_)));
        if self.error_samples.len() < ERROR_SAMPLES || self.error_samples.contains_key(&message) {
            *self.error_samples.entry(message).or_default() += 1;
        }
    }
}

/// Runs all conversations until the window and their last turns have ended; returns them, the lost ones included.
/// Sessions with a pause begin evenly spread over the first pause.
pub(crate) async fn run(
    conversations: Vec<Box<dyn Conversation>>,
    window: Window,
    think: Duration,
) -> (Vec<Box<dyn Conversation>>, Tally) {
    let tally = Arc::new(Mutex::new(Tally::new()));
    let count = conversations.len();
    let mut sessions = JoinSet::new();
    for (number, conversation) in conversations.into_iter().enumerate() {
        #[expect(clippy::cast_precision_loss, reason = "a share of a pause")]
        let first = window.begin + think.mul_f64(number as f64 / count as f64);
        sessions.spawn(converse(conversation, window, first, think, tally.clone()));
    }
    let mut back = Vec::with_capacity(count);
    while let Some(ended) = sessions.join_next().await {
        back.extend(ended.ok());
    }
    let tally = tally.lock().clone();
    (back, tally)
}

async fn converse(
    mut conversation: Box<dyn Conversation>,
    window: Window,
    first: Instant,
    think: Duration,
    tally: Arc<Mutex<Tally>>,
) -> Box<dyn Conversation> {
    sleep_until(first).await;
    loop {
        let began = Instant::now();
        if began >= window.until {
            return conversation;
        }
        let turn = timeout(TURN_LIMIT, conversation.turn()).await;
        let ended = Instant::now();
        let gave_up = || TurnError::Gone(format!("no answer within {} s", TURN_LIMIT.as_secs()));
        let pause = match turn.unwrap_or_else(|_| Err(gave_up())) {
            Ok(turned) => {
                tally.lock().completed(&window, began, ended, turned);
                think
            }
            Err(error) => {
                tally.lock().failed(&error);
                if matches!(error, TurnError::Gone(_)) {
                    return conversation;
                }
                think.max(PAUSE_AFTER_ERROR)
            }
        };
        let rest = timeout(TURN_LIMIT, conversation.rest()).await;
        if let Err(error) = rest.unwrap_or_else(|_| Err(gave_up())) {
            tally.lock().failed(&error);
        }
        if !pause.is_zero() {
            sleep_until((ended + pause).min(window.until)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, future::BoxFuture};

    use super::*;

    /// Sleeps in each turn, and fails the turns that `fails` selects.
    struct Scripted {
        takes: Duration,
        turns: u32,
        fails: fn(u32) -> Option<TurnError>,
    }

    impl Conversation for Scripted {
        fn turn(&mut self) -> BoxFuture<'_, Result<Turned, TurnError>> {
            self.turns += 1;
            let turned = Turned { first_update: Some(self.takes / 2) };
            let answer = (self.fails)(self.turns).map_or(Ok(turned), Err);
            tokio::time::sleep(self.takes).map(|()| answer).boxed()
        }
    }

    /// Counts for 300 ms after a warm-up of 100 ms. Only upper bounds of the results hold on a busy machine.
    async fn load(sessions: usize, takes_ms: u64, think_ms: u64, fails: fn(u32) -> Option<TurnError>) -> Tally {
        let takes = Duration::from_millis(takes_ms);
        let scripted = (0..sessions).map(|_| Box::new(Scripted { takes, turns: 0, fails }) as Box<dyn Conversation>);
        let window = Window::now(Duration::from_millis(100), Duration::from_millis(300));
        let (back, tally) = run(scripted.collect(), window, Duration::from_millis(think_ms)).await;
        assert_eq!(back.len(), sessions);
        tally
    }

    #[tokio::test]
    async fn only_turns_within_the_window_are_counted() {
        let tally = load(4, 10, 0, |_| None).await;
        // A hundred turns a second and session, for 0.3 s; one of each session may end just on the edge.
        assert!((4..=4 * 31).contains(&tally.turns), "{}", tally.turns);
        assert!(tally.latencies.summary().p50_ms >= 9.9, "{:?}", tally.latencies.summary());
        assert_eq!(tally.first_updates.count(), tally.latencies.count());
        assert!(tally.first_updates.summary().max_ms < 5.1, "{:?}", tally.first_updates.summary());
        assert_eq!((tally.errors, tally.sessions_lost), (0, 0));
    }

    #[test]
    fn turn_counts_as_latency_by_its_start_and_as_throughput_by_its_end() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let window = Window { begin, from: at(10), until: at(20) };
        let mut tally = Tally::new();
        for (began, ended, latencies, turns) in
            [(1, 2, 0, 0), (9, 10, 0, 1), (10, 11, 1, 2), (19, 20, 2, 2), (19, 90, 3, 2), (20, 21, 3, 2)]
        {
            tally.completed(&window, at(began), at(ended), Turned::default());
            assert_eq!((tally.latencies.count(), tally.turns), (latencies, turns), "{began} to {ended}");
        }
    }

    #[tokio::test]
    async fn pause_bounds_the_offered_load() {
        let tally = load(10, 1, 149, |_| None).await;
        assert!((1..=30).contains(&tally.turns), "{}", tally.turns);
    }

    #[tokio::test]
    async fn errors_are_counted_and_a_lost_session_sends_nothing_more() {
        let tally = load(2, 1, 0, |turn| (turn == 3).then(|| TurnError::Failed("once".into()))).await;
        assert_eq!((tally.errors, tally.sessions_lost), (2, 0));
        assert_eq!(tally.error_samples, BTreeMap::from([("once".to_owned(), 2)]));
        let tally = load(2, 1, 0, |turn| (turn == 3).then(|| TurnError::Gone("gone".into()))).await;
        assert_eq!((tally.errors, tally.sessions_lost), (2, 2));
    }
}
