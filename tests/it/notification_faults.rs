//! Notifications under faults: random disconnects, broken connections and kills of the program. A subscriber that
//! resumes with its cursor receives each notification of its scope in order and under one id; one that stops reading is
//! evicted and delays nobody.
//!
//! `LUMILINK_FAULT_SEED=NUMBER` repeats the faults of an earlier run, which prints its seed. The timing of each fault
//! still depends on the machine.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::time::timeout;

use crate::harness::{
    Api, DEADLINE, Program, Session, Value, block_on,
    dice::Dice,
    eventually, json,
    notifications::{Closed, Subscriber},
    program::Builder,
    proxy::{Mode, Proxy, Way},
    wait_for,
};

const TENANT: &str = "installationId=tenant-1";
/// Disconnects by all readers together.
const DISCONNECTS: usize = 1000;
/// Kills of the program during these disconnects.
const KILLS: usize = 5;
/// Faults of the connection between readers and program.
const CONNECTION_FAULTS: usize = 45;
/// Timeout of opening and closing a connection, and upper limit of [`INITIAL_READ_TIMEOUT`] when it grows.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence after which a reader that is about to disconnect stops reading.
const QUIET: Duration = Duration::from_millis(150);
/// Initial silence after which a reader sends a ping, and then gives the connection up. It doubles after each
/// connection without a pong, so that a slow server gets enough time eventually.
const INITIAL_READ_TIMEOUT: Duration = QUIET.saturating_mul(2);
/// Time limit from the last fault until each reader has received everything.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

fn program() -> Builder {
    Program::builder()
        // No automatic flips.
        .set("window.min_samples", 1000)
        .set("recovery.cooldown_s", 1800)
        .set("supervision.max_restarts", 1)
}

/// Sleeps, for the pace of load and faults only; never to wait for a condition.
fn pause(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        thread::park_timeout(end.saturating_duration_since(Instant::now()));
    }
}

fn number(value: &Value, member: &str) -> u64 {
    value[member].as_u64().unwrap_or_else(|| panic!("no `{member}` in {value}"))
}

// --- Readers -----------------------------------------------------------------------------------------------

/// The point at which a reader disconnects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    BeforeHello,
    BeforeWelcome,
    /// After this many frames, including the welcome.
    After(usize),
    /// After this time.
    Later(Duration),
}

impl Place {
    fn draw(dice: &mut Dice) -> Self {
        match dice.below(10) {
            0 => Self::BeforeHello,
            1 => Self::BeforeWelcome,
            2..=5 => Self::After(1 + dice.below(30)),
            _ => Self::Later(dice.millis(120)),
        }
    }
}

/// A reader that behaves like a real client: it keeps the epoch and the newest sequence number, resumes with them,
/// and deduplicates by sequence number.
struct Reader {
    query: String,
    dice: Dice,
    epoch: String,
    cursor: u64,
    seen: BTreeMap<u64, Value>,
    repeats: usize,
    /// Connections that it did not close itself.
    broken: usize,
    /// The current limit of silence; see [`INITIAL_READ_TIMEOUT`].
    read_timeout: Duration,
}

/// The frames that a reader has received in all.
#[derive(Default)]
struct Received {
    welcomes: AtomicUsize,
    frames: AtomicUsize,
}

/// A connection of a [`Reader`].
struct Connection {
    socket: Subscriber,
    /// The cursor sent in the hello.
    requested: u64,
    /// The newest sequence number received over it; `None` before the welcome.
    at: Option<u64>,
}

impl Reader {
    fn new(api: &Api, query: String, dice: Dice) -> Self {
        // Like a new client: it reads the inbox first, and subscribes from its head.
        let list = api.get(&format!("/acp/notifications?{query}")).expect(200);
        let epoch = list["epoch"].as_str().expect("`epoch` is a string").to_owned();
        let cursor = number(&list, "head");
        let read_timeout = INITIAL_READ_TIMEOUT;
        Self { query, dice, epoch, cursor, seen: BTreeMap::new(), repeats: 0, broken: 0, read_timeout }
    }

    async fn open(&self, base: &str) -> Option<Connection> {
        let opened = timeout(CONNECT_TIMEOUT, Subscriber::connect(base, &self.query, &[])).await.ok()?;
        match opened {
            Ok(socket) => Some(Connection { socket, requested: 0, at: None }),
            Err(refused) => {
                // The program is down, starting or stopping.
                assert!(matches!(refused.status, 0 | 503), "{refused:?}");
                None
            }
        }
    }

    async fn hello(&mut self, connection: &mut Connection, requested: u64) -> Result<(), Closed> {
        connection.requested = requested;
        connection.socket.try_send(&json!({"type": "hello", "epoch": self.epoch, "cursor": requested})).await
    }

    /// Draws the cursor of a hello: mostly the newest sequence number, in one of four cases an older one.
    fn draw_cursor(&mut self) -> u64 {
        let back = if self.dice.below(4) == 0 { self.dice.below(300) as u64 } else { 0 };
        self.cursor.saturating_sub(back)
    }

    /// Checks a frame and records it.
    fn receive(&mut self, connection: &mut Connection, mut frame: Value) {
        let query = &self.query;
        let Some(at) = connection.at else {
            assert_eq!(frame["type"], "welcome", "{query}: the first frame: {frame}");
            assert_eq!(
                (&frame["epoch"], number(&frame, "cursor")),
                (&json!(self.epoch), connection.requested),
                "{frame}"
            );
            connection.at = Some(connection.requested);
            return;
        };
        match frame["type"].as_str() {
            Some("toast") => {
                let seq = number(&frame, "seq");
                assert!(seq > at, "{query}: {seq} after {at} in one connection");
                connection.at = Some(seq);
                frame.as_object_mut().expect("an object").remove("type");
                if let Some(before) = self.seen.get(&seq) {
                    assert_eq!(*before, frame, "{query}: another notification under the same sequence number");
                    self.repeats += 1;
                    return;
                }
                let newest = self.seen.last_key_value().map_or(0, |(seq, _)| *seq);
                assert!(seq > newest, "{query}: {seq} is new but older than {newest}");
                self.seen.insert(seq, frame);
                self.cursor = self.cursor.max(seq);
            }
            // Both confirm that everything up to their cursor was sent, including notifications outside the reader's scope.
            Some("pong" | "bye") => {
                let cursor = number(&frame, "cursor");
                assert!(cursor >= at, "{query}: after {at}: {frame}");
                self.cursor = self.cursor.max(cursor);
            }
            _ => panic!("{query}: an unexpected frame: {frame}"),
        }
    }

    /// Opens a connection and closes it at a random point. Returns `false` if it was not the reader that closed it.
    async fn connect_and_disconnect(&mut self, base: &str) -> bool {
        let place = Place::draw(&mut self.dice);
        let Some(mut connection) = self.open(base).await else { return false };
        if place != Place::BeforeHello {
            let requested = self.draw_cursor();
            if self.hello(&mut connection, requested).await.is_err() {
                return false;
            }
        }
        let (most, time) = match place {
            Place::BeforeHello | Place::BeforeWelcome => (0, QUIET),
            // A quiet scope may have fewer frames.
            Place::After(frames) => (frames, QUIET),
            Place::Later(time) => (usize::MAX, time),
        };
        let end = tokio::time::Instant::now() + time;
        for _ in 0..most {
            match tokio::time::timeout_at(end, connection.socket.read()).await {
                Ok(Ok(frame)) => self.receive(&mut connection, frame),
                Ok(Err(_)) => return false,
                Err(_) => break,
            }
        }
        match self.dice.below(4) {
            0 => drop(timeout(CONNECT_TIMEOUT, connection.socket.leave()).await),
            1 => connection.socket.reset(),
            // Without a close frame.
            _ => drop(connection),
        }
        true
    }

    /// Reads one connection until it breaks or stays silent after a ping.
    async fn read_until_broken(&mut self, base: &str, received: &Received, stopped: &AtomicBool) {
        let requested = self.draw_cursor();
        let Some(mut connection) = self.open(base).await else { return };
        if self.hello(&mut connection, requested).await.is_err() {
            return;
        }
        let mut is_pinged = false;
        while !stopped.load(Ordering::SeqCst) {
            match timeout(self.read_timeout, connection.socket.read()).await {
                Ok(Ok(frame)) => {
                    is_pinged = false;
                    self.read_timeout = INITIAL_READ_TIMEOUT;
                    received.welcomes.fetch_add(usize::from(connection.at.is_none()), Ordering::SeqCst);
                    received.frames.fetch_add(1, Ordering::SeqCst);
                    self.receive(&mut connection, frame);
                }
                Ok(Err(_)) => return,
                Err(_) if is_pinged => {
                    self.read_timeout = CONNECT_TIMEOUT.min(2 * self.read_timeout);
                    return;
                }
                Err(_) => {
                    is_pinged = true;
                    if connection.socket.try_send(&json!({"type": "ping"})).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Reads until it has received everything up to `head`.
    async fn catch_up(&mut self, base: &str, head: u64) -> Result<(), Closed> {
        let not_opened = || Closed { code: None, reason: "not opened".into() };
        let mut connection = self.open(base).await.ok_or_else(not_opened)?;
        let cursor = self.cursor;
        self.hello(&mut connection, cursor).await?;
        let mut is_welcome = false;
        while self.cursor < head || !is_welcome {
            let frame = connection.socket.read().await?;
            let (is_first, is_pong) = (!std::mem::replace(&mut is_welcome, true), frame["type"] == "pong");
            self.receive(&mut connection, frame);
            if is_first || is_pong {
                connection.socket.try_send(&json!({"type": "ping"})).await?;
            }
        }
        Ok(())
    }

    /// Fails the test unless it has received exactly the notifications that the inbox lists for its scope.
    fn assert_complete(&self, listed: &BTreeMap<u64, Value>) {
        let missing: Vec<_> = listed.keys().filter(|seq| !self.seen.contains_key(seq)).collect();
        let foreign: Vec<_> = self.seen.keys().filter(|seq| !listed.contains_key(seq)).collect();
        assert!(missing.is_empty() && foreign.is_empty(), "{}: missing {missing:?}, foreign {foreign:?}", self.query);
        assert_eq!(self.seen, *listed, "{}", self.query);
        let (name, value) = self.query.split_once('&').unwrap_or_default().1.split_once('=').unwrap_or_default();
        if name == "workspaceId" {
            assert!(self.seen.values().all(|notification| notification["workspaceId"] == value), "{}", self.query);
        }
    }
}

/// All notifications of a scope by sequence number, read from the inbox page by page.
fn list(api: &Api, query: &str) -> BTreeMap<u64, Value> {
    let (mut notifications, mut cursor) = (BTreeMap::new(), String::new());
    loop {
        let page = api.get(&format!("/acp/notifications?{query}&limit=200{cursor}")).expect(200);
        for item in page["items"].as_array().expect("`items` is an array") {
            let duplicate = notifications.insert(number(&item["toast"], "seq"), item["toast"].clone());
            assert_eq!(duplicate, None, "listed twice");
        }
        match page["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return notifications,
        }
    }
}

// --- Load --------------------------------------------------------------------------------------------------

/// Raises notifications until it is stopped, also while the program is down.
struct Load {
    api: Api,
    /// Two sessions of one workspace that fail repeatedly; the first is Ann's, the second Bob's.
    failing: [Session; 2],
    stopped: AtomicBool,
}

impl Load {
    /// The number of workspaces with flips.
    const FLIPPED: usize = 3;

    fn new(program: &Program) -> Arc<Self> {
        let api = program.api.clone();
        for n in 0..Self::FLIPPED {
            api.open(&format!("ws-{n}"));
        }
        let of =
            |user| api.open_with(json!({"workspaceId": "failing", "installationId": "tenant-1", "userId": user}));
        let failing = [of("ann"), of("bob")];
        // The pin prevents a rollback to the fallback, where no session fails.
        let pin = json!({"pin": {"protocol": "acp"}, "actor": "a test", "reason": "it is about ACP"});
        api.call("PUT", "/acp/workspaces/failing/protocol").json(&pin).send().expect(200);
        // Another tenant has its own sequence.
        api.open_with(json!({"workspaceId": "ws-0", "installationId": "tenant-2"}));
        Arc::new(Self { api, failing, stopped: AtomicBool::new(false) })
    }

    fn scopes(&self) -> Vec<String> {
        let [ann, bob] = &self.failing;
        vec![
            TENANT.into(),
            format!("{TENANT}&workspaceId=ws-0"),
            format!("{TENANT}&workspaceId=failing"),
            format!("{TENANT}&userId=ann"),
            format!("sessionId={}", ann.id),
            format!("sessionId={}", bob.id),
            "installationId=tenant-2".into(),
        ]
    }

    fn start(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        let mut threads = Vec::new();
        let flipped =
            (0..Self::FLIPPED).map(|n| (format!("ws-{n}"), "tenant-1")).chain([("ws-0".into(), "tenant-2")]);
        for (workspace, tenant) in flipped {
            let load = self.clone();
            threads.push(thread::spawn(move || load.flips(&workspace, tenant)));
        }
        let load = self.clone();
        threads.push(thread::spawn(move || load.fails()));
        threads
    }

    fn is_running(&self) -> bool {
        !self.stopped.load(Ordering::SeqCst)
    }

    fn flips(&self, workspace: &str, tenant: &str) {
        let why = json!({"actor": "ada", "reason": "drill"});
        for verb in ["rollback", "restore"].into_iter().cycle() {
            if !self.is_running() {
                return;
            }
            let path = format!("/acp/workspaces/{workspace}/{verb}?installationId={tenant}");
            // The program may be down or killed before it responds; the inbox is checked at the end.
            let _ = self.api.call("POST", &path).json(&why).try_send();
            pause(Duration::from_millis(10));
        }
    }

    fn fails(&self) {
        while self.is_running() {
            for session in &self.failing {
                let crash = session.call("crash").try_send();
                if crash.is_ok_and(|answer| matches!(answer.status, 409 | 503)) {
                    let load = json!({"sessionId": session.id});
                    let _ = self.api.call("POST", "/acp/session/load").json(&load).try_send();
                }
                pause(Duration::from_millis(10));
            }
        }
    }

    /// Waits until each scope has a notification.
    fn until_each_scope_has_a_notification(&self, deadline: Duration) {
        for query in self.scopes() {
            wait_for(deadline, &format!("a notification for {query}"), || {
                let list = self.api.get(&format!("/acp/notifications?{query}&limit=1")).expect(200);
                list["items"].get(0).map(|_| ())
            });
        }
    }

    fn stop(&self, threads: Vec<JoinHandle<()>>) {
        self.stopped.store(true, Ordering::SeqCst);
        for thread in threads {
            thread.join().expect("the load thread does not panic");
        }
    }
}

/// Lets each reader catch up, and fails the test unless it has received exactly the listed notifications.
fn assert_all_complete(api: &Api, base: &str, readers: &mut [Reader]) {
    for reader in readers {
        let head = |query: &str| number(&api.get(&format!("/acp/notifications?{query}")).expect(200), "head");
        // The failure of a session is announced after the answer to its last prompt, so that the list may still grow.
        let listed = wait_for(SETTLE_TIMEOUT, "a reader catches up, and nothing is added", || {
            let before = head(&reader.query);
            block_on(reader.catch_up(base, before)).ok()?;
            let listed = list(api, &reader.query);
            (head(&reader.query) == before).then_some(listed)
        });
        reader.assert_complete(&listed);
        println!(
            "  {}: {} notifications, {} repeats, {} broken connections",
            reader.query,
            reader.seen.len(),
            reader.repeats,
            reader.broken
        );
        assert!(!reader.seen.is_empty(), "{}: no notification", reader.query);
    }
}

/// Waits until there were `due` disconnects or a reader has ended. There is no overall deadline as long as the count
/// grows.
fn wait_for_disconnects(disconnects: &AtomicUsize, due: usize, is_over: impl Fn() -> bool) {
    loop {
        let before = disconnects.load(Ordering::SeqCst);
        if before >= due || is_over() {
            return;
        }
        eventually("another disconnect", || disconnects.load(Ordering::SeqCst) > before || is_over());
    }
}

#[test]
fn thousand_disconnects_and_five_kills_lose_and_alter_no_notification() {
    let mut dice = Dice::of_environment("toasts");
    let mut program = program().start();
    program.turns_may_run();
    let load = Load::new(&program);
    let disconnects = Arc::new(AtomicUsize::new(0));
    let readers: Vec<_> =
        load.scopes().into_iter().map(|query| Reader::new(&program.api, query, dice.fork())).collect();
    let begin = Instant::now();
    let makers = load.start();
    let readers: Vec<_> = readers
        .into_iter()
        .map(|mut reader| {
            let (api, disconnects) = (program.api.clone(), disconnects.clone());
            thread::spawn(move || {
                while disconnects.load(Ordering::SeqCst) < DISCONNECTS {
                    if block_on(reader.connect_and_disconnect(&api.base())) {
                        disconnects.fetch_add(1, Ordering::SeqCst);
                    } else {
                        reader.broken += 1;
                        pause(Duration::from_millis(20));
                    }
                }
                reader
            })
        })
        .collect();
    for kill in 1..=KILLS {
        let due = kill * DISCONNECTS / (KILLS + 1);
        wait_for_disconnects(&disconnects, due, || readers.iter().any(JoinHandle::is_finished));
        program.kill_supervisor();
        pause(dice.millis(300));
        program.start_supervisor_again();
    }
    let mut readers: Vec<_> =
        readers.into_iter().map(|reader| reader.join().expect("a reader's checks hold")).collect();
    load.until_each_scope_has_a_notification(SETTLE_TIMEOUT);
    load.stop(makers);
    println!(
        "notifications: {} disconnects and {KILLS} kills in {:.1?}",
        disconnects.load(Ordering::SeqCst),
        begin.elapsed()
    );
    assert_all_complete(&program.api, &program.api.base(), &mut readers);
    assert!(readers.iter().any(|reader| reader.repeats > 0), "a reader requested a replay of received notifications");
    eventually("no subscriber is left", || program.metrics().sum("lumilink_toast_subscribers", &[]) == 0.0);
}

// --- Connection faults -------------------------------------------------------------------------------------

/// A fault of the connection between readers and program.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Reset,
    Cut,
    CutInMidFrame(Way),
    Slow,
    HalfOpen,
    Stalled(Way),
    Out,
}

impl Fault {
    const ALL: [Self; 9] = [
        Self::Reset,
        Self::Cut,
        Self::CutInMidFrame(Way::ToClient),
        Self::CutInMidFrame(Way::ToServer),
        Self::Slow,
        Self::HalfOpen,
        Self::Stalled(Way::ToClient),
        Self::Stalled(Way::ToServer),
        Self::Out,
    ];

    /// Whether the fault makes each reader open a new connection.
    fn forces_reconnect(self) -> bool {
        matches!(self, Self::Reset | Self::Cut | Self::HalfOpen | Self::Stalled(Way::ToClient) | Self::Out)
    }

    fn inject(self, proxy: &Proxy, dice: &mut Dice) {
        match self {
            Self::Reset => proxy.set_open(Mode::Reset),
            Self::Cut => proxy.set_open(Mode::Cut),
            Self::CutInMidFrame(way) => proxy.set_open(Mode::CutAfter(way, dice.below(2000))),
            Self::Slow => {
                proxy.set(Mode::Delay(dice.millis(30)));
                pause(dice.millis(300));
                proxy.set(Mode::Pass);
            }
            Self::HalfOpen => proxy.set_open(Mode::Swallow),
            Self::Stalled(way) => proxy.set_open(Mode::Stall(way)),
            Self::Out => {
                proxy.refuse();
                proxy.set_open(Mode::Reset);
                pause(dice.millis(300));
                proxy.admit();
            }
        }
    }
}

#[test]
fn every_notification_arrives_despite_random_connection_faults() {
    let mut dice = Dice::of_environment("notifications over a faulty connection");
    let mut program = program().start();
    program.turns_may_run();
    let proxy = Proxy::start(program.address);
    let base = format!("http://{}", proxy.address());
    let load = Load::new(&program);
    let readers: Vec<_> =
        load.scopes().into_iter().map(|query| Reader::new(&program.api, query, dice.fork())).collect();
    let received: Arc<Vec<Received>> = Arc::new(readers.iter().map(|_| Received::default()).collect());
    let stopped = Arc::new(AtomicBool::new(false));
    let begin = Instant::now();
    let makers = load.start();
    let start = |(n, mut reader): (usize, Reader)| {
        let (base, received, stopped) = (base.clone(), received.clone(), stopped.clone());
        thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                block_on(reader.read_until_broken(&base, &received[n], &stopped));
                reader.broken += 1;
                pause(Duration::from_millis(10));
            }
            reader
        })
    };
    let readers: Vec<_> = readers.into_iter().enumerate().map(start).collect();
    for round in 0..CONNECTION_FAULTS {
        // Each kind once, then random ones.
        let fault = Fault::ALL.get(round).copied().unwrap_or_else(|| Fault::ALL[dice.below(Fault::ALL.len())]);
        pause(dice.millis(100));
        let count = |received: &Received| {
            let counter = if fault.forces_reconnect() { &received.welcomes } else { &received.frames };
            counter.load(Ordering::SeqCst)
        };
        let before: Vec<_> = received.iter().map(count).collect();
        fault.inject(&proxy, &mut dice);
        if round == CONNECTION_FAULTS / 2 {
            program.kill_supervisor();
            program.start_supervisor_again();
            proxy.target(program.address);
        }
        wait_for(SETTLE_TIMEOUT, &format!("each reader reads again after {fault:?} in round {round}"), || {
            let all = received.iter().zip(&before).all(|(received, before)| count(received) > *before);
            (all || readers.iter().any(JoinHandle::is_finished)).then_some(())
        });
        if matches!(fault, Fault::HalfOpen) {
            // The proxy has discarded bytes, so that the connection must not continue.
            proxy.set_open(Mode::Reset);
        }
    }
    stopped.store(true, Ordering::SeqCst);
    let mut readers: Vec<_> =
        readers.into_iter().map(|reader| reader.join().expect("a reader's checks hold")).collect();
    load.until_each_scope_has_a_notification(SETTLE_TIMEOUT);
    load.stop(makers);
    println!("notifications: {CONNECTION_FAULTS} connection faults in {:.1?}", begin.elapsed());
    assert_all_complete(&program.api, &base, &mut readers);
    drop(proxy);
    eventually("no subscriber is left", || program.metrics().sum("lumilink_toast_subscribers", &[]) == 0.0);
}

// --- Slow and silent subscribers ---------------------------------------------------------------------------

/// Receive buffer in bytes, enough for a few notifications; the kernel doubles it.
const SMALL_BUFFER: u32 = 4096;
/// Workspaces that are flipped concurrently. Their flips share transactions, so that many notifications are raised before a
/// stalled subscriber is evicted.
const FLIPPED: usize = 10;
/// Flips of each workspace that overflow a stalled subscriber: more than its queue of 256 notifications and the kernel's
/// buffers.
const TOO_MANY: usize = 28;
/// Time limit of an eviction: the promised 30 s, and 6 s for a busy machine.
const EVICTED_WITHIN: Duration = Duration::from_secs(30 + 6);
/// Maximum latency of a notification to a reading subscriber, from the response to its cause. It takes milliseconds on an
/// idle machine; a notification that waited for a stalled subscriber would take 25 s.
const PROMPT: Duration = Duration::from_secs(10);

/// A reading subscriber, and the flips that raise its notifications.
struct Audience {
    api: Api,
    /// The time of the response to each flip, by workspace.
    answered: BTreeMap<String, Vec<Instant>>,
    reader: JoinHandle<BTreeMap<String, Vec<Instant>>>,
}

impl Audience {
    fn new(api: &Api) -> Self {
        let flipped = (0..FLIPPED).map(|n| format!("ws-{n}"));
        let answered: BTreeMap<_, _> = flipped.map(|workspace| (workspace, Vec::new())).collect();
        for workspace in answered.keys() {
            api.open(workspace);
        }
        let mut subscriber = Subscriber::of(api, TENANT);
        let reader = thread::spawn(move || {
            let mut arrived: BTreeMap<_, Vec<_>> = BTreeMap::new();
            for seq in 1.. {
                let Ok(frame) = block_on(subscriber.read()) else { break };
                if frame["type"] == "bye" {
                    break;
                }
                assert_eq!(number(&frame, "seq"), seq, "{frame}");
                let workspace = frame["workspaceId"].as_str().expect("a notification of a workspace").to_owned();
                arrived.entry(workspace).or_default().push(Instant::now());
            }
            arrived
        });
        Self { api: api.clone(), answered, reader }
    }

    /// Raises one notification.
    fn flip(&mut self) {
        if let Some((workspace, answered)) = self.answered.iter_mut().next() {
            flip(&self.api, workspace, answered);
        }
    }

    /// Raises `times` notifications of each workspace.
    fn flips(&mut self, times: usize) {
        let api = &self.api;
        thread::scope(|scope| {
            for (workspace, answered) in &mut self.answered {
                scope.spawn(move || (0..times).for_each(|_| flip(api, workspace, answered)));
            }
        });
    }

    /// The number of raised notifications.
    fn len(&self) -> usize {
        self.answered.values().map(Vec::len).sum()
    }

    /// Stops the program, checks that each notification arrived, and returns the maximum latency.
    fn max_latency(self, mut program: Program) -> Duration {
        assert_eq!(program.terminate(DEADLINE), Some(0));
        let arrived = self.reader.join().expect("the notifications arrive in order");
        let mut took = Vec::new();
        for (workspace, answered) in self.answered.iter().filter(|(_, answered)| !answered.is_empty()) {
            assert_eq!(arrived[workspace].len(), answered.len(), "each notification arrived");
            let pairs = arrived[workspace].iter().zip(answered);
            took.extend(pairs.map(|(there, here)| there.saturating_duration_since(*here)));
        }
        took.sort_unstable();
        let max_latency = took[took.len() - 1];
        println!(
            "notifications: {} read, median {:.1?}, longest {max_latency:.1?}",
            took.len(),
            took[took.len() / 2]
        );
        max_latency
    }
}

fn flip(api: &Api, workspace: &str, answered: &mut Vec<Instant>) {
    let verb = if answered.len().is_multiple_of(2) { "rollback" } else { "restore" };
    let why = json!({"actor": "ada", "reason": "drill"});
    let flipped = api.call("POST", &format!("/acp/workspaces/{workspace}/{verb}")).json(&why).status();
    assert_eq!(flipped, 200, "{workspace}: {verb}");
    answered.push(Instant::now());
}

/// A program with one worker thread: a response on one connection shows that the thread has served the others too.
fn single_threaded_program() -> Program {
    program().set("server.workers", 1).start()
}

#[test]
fn subscribers_that_stop_reading_are_evicted_in_30_s_and_delay_nobody() {
    let program = single_threaded_program();
    let mut audience = Audience::new(&program.api);
    let base = program.api.base();
    let evicted = |reason| program.metrics().sum("lumilink_toast_evictions_total", &[("reason", reason)]);
    let subscribers = || program.metrics().sum("lumilink_toast_subscribers", &[]);
    // Its receive window stays open, but it does not answer pings.
    let mut silent = Subscriber::open(&base, "installationId=tenant-2", &[]).unwrap();
    silent.hello(json!({}));
    let silent_since = Instant::now();
    let mut full = Subscriber::open_small(&base, TENANT, SMALL_BUFFER);
    full.hello(json!({}));
    full.fill(|| drop(program.metrics()));
    let full_since = Instant::now();
    assert_eq!(subscribers(), 3.0);
    while subscribers() > 1.0 {
        let is_silent_connected = evicted("silent") == 0.0;
        assert!(
            !is_silent_connected || silent_since.elapsed() < EVICTED_WITHIN,
            "the silent subscriber is connected"
        );
        assert!(full_since.elapsed() < EVICTED_WITHIN, "{} subscribers are connected", subscribers());
        // Too few notifications to overflow the queue of the stalled subscriber.
        audience.flip();
        pause(Duration::from_millis(200));
    }
    println!("notifications: both evicted after {:.1?}", full_since.elapsed());
    assert_eq!((evicted("silent"), evicted("stalled"), evicted("tooSlow")), (1.0, 1.0, 0.0));
    drop((silent, full));
    let max_latency = audience.max_latency(program);
    assert!(max_latency < PROMPT, "a notification took {max_latency:?}");
}

#[test]
fn slow_subscriber_is_evicted_with_a_cursor_and_resumes_without_loss() {
    let program = single_threaded_program();
    let mut audience = Audience::new(&program.api);
    let mut slow = Subscriber::open_small(&program.api.base(), TENANT, SMALL_BUFFER);
    let epoch = slow.hello(json!({}))["epoch"].clone();
    slow.fill(|| drop(program.metrics()));
    audience.flips(TOO_MANY);
    let (mut frames, closed) = slow.until_closed();
    assert_eq!(closed.code, Some(4008), "{closed:?} after {} frames", frames.len());
    let bye = frames.pop().expect("a frame");
    assert_eq!((&bye["type"], &bye["code"]), (&json!("bye"), &json!(4008)), "{bye}");
    let mut again = Subscriber::open(&program.api.base(), TENANT, &[]).unwrap();
    again.hello(json!({"epoch": epoch, "cursor": bye["cursor"]}));
    let flips = audience.len();
    while frames.len() < flips {
        frames.push(again.notification());
    }
    let seqs: Vec<_> = frames.iter().map(|frame| number(frame, "seq")).collect();
    assert_eq!(seqs, (1..=flips as u64).collect::<Vec<_>>());
    drop((slow, again));
    let evicted = || program.metrics().sum("lumilink_toast_evictions_total", &[("reason", "tooSlow")]);
    assert_eq!(evicted(), 1.0);
    // The connection of a subscriber that does not read its bye either is aborted.
    let mut never = Subscriber::open_small(&program.api.base(), TENANT, SMALL_BUFFER);
    never.hello(json!({}));
    never.fill(|| drop(program.metrics()));
    audience.flips(TOO_MANY);
    eventually("its eviction is counted", || evicted() == 2.0);
    eventually("the subscriber is removed", || program.metrics().sum("lumilink_toast_subscribers", &[]) == 1.0);
    let max_latency = audience.max_latency(program);
    assert!(max_latency < PROMPT, "a notification took {max_latency:?}");
}
