//! Toasts under faults: readers come and go at random, the cable breaks, the service is killed; whoever comes back with its
//! cursor has seen each toast of its scope, in order, under one id. Who does not read is gone, and nobody waits for it.
//!
//! `LUMILINK_FAULT_SEED=NUMBER` draws the faults of an earlier run again (it prints its number); what each of them hits is
//! up to the machine.

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
    program::Builder,
    proxy::{Mode, Proxy, Way},
    toasts::{Closed, Subscriber},
    wait_for,
};

const TENANT: &str = "installationId=tenant-1";
/// What readers do to their connections, in all.
const DISCONNECTS: usize = 1000;
/// How often the service is killed meanwhile.
const KILLS: usize = 5;
/// Faults of the cable.
const CABLE_FAULTS: usize = 45;
/// How long a reader waits for a connection, or for the end of one, until it takes it for dead.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a reader that is about to go waits for more.
const QUIET: Duration = Duration::from_millis(150);
/// How long a reader of a cable that breaks waits for the first sign of life, at first: twice as long after each connection
/// on which none came, so that a server that takes longer is heard in the end.
const IMPATIENCE: Duration = QUIET.saturating_mul(2);
/// From the last fault until everyone has everything.
const SETTLES: Duration = Duration::from_secs(60);

fn program() -> Builder {
    Program::builder()
        // Nothing is flipped by itself.
        .set("window.min_samples", 1000)
        .set("recovery.cooldown_s", 1800)
        .set("supervision.max_restarts", 1)
}

/// The only time that passes here without anything being waited for.
fn pass(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        thread::park_timeout(end.saturating_duration_since(Instant::now()));
    }
}

fn number(value: &Value, member: &str) -> u64 {
    value[member].as_u64().unwrap_or_else(|| panic!("no `{member}` in {value}"))
}

// --- Readers -----------------------------------------------------------------------------------------------

/// Where a reader leaves its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    BeforeHello,
    BeforeWelcome,
    /// After so many frames, the welcome among them.
    After(usize),
    /// Whatever came by then.
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

/// Somebody who reads as real clients do: keeps the epoch and the newest number, comes back with them, and knows what it
/// has shown by its number.
struct Reader {
    query: String,
    dice: Dice,
    epoch: String,
    cursor: u64,
    seen: BTreeMap<u64, Value>,
    repeats: usize,
    /// Connections that it did not end itself.
    broken: usize,
    /// How long it bears silence on a cable that may break.
    impatience: Duration,
}

/// What a reader has heard in all.
#[derive(Default)]
struct Heard {
    welcomes: AtomicUsize,
    frames: AtomicUsize,
}

/// One of its connections.
struct Connection {
    socket: Subscriber,
    asked: u64,
    /// The newest number that came over it; none before the welcome.
    at: Option<u64>,
}

impl Reader {
    fn new(api: &Api, query: String, dice: Dice) -> Self {
        // As one begins: with the list, and goes on from where it ends.
        let list = api.get(&format!("/acp/notifications?{query}")).expect(200);
        let epoch = list["epoch"].as_str().expect("`epoch` is a string").to_owned();
        let cursor = number(&list, "head");
        Self { query, dice, epoch, cursor, seen: BTreeMap::new(), repeats: 0, broken: 0, impatience: IMPATIENCE }
    }

    async fn opens(&self, base: &str) -> Option<Connection> {
        let opened = timeout(PATIENCE, Subscriber::connect(base, &self.query, &[])).await.ok()?;
        match opened {
            Ok(socket) => Some(Connection { socket, asked: 0, at: None }),
            Err(refused) => {
                // Nobody is there, or it has just begun or is about to end.
                assert!(matches!(refused.status, 0 | 503), "{refused:?}");
                None
            }
        }
    }

    async fn hello(&mut self, connection: &mut Connection, asked: u64) -> Result<(), Closed> {
        connection.asked = asked;
        connection.socket.tell(&json!({"type": "hello", "epoch": self.epoch, "cursor": asked})).await
    }

    /// What it asks for: mostly what it has not seen, now and then some of that again.
    fn asks(&mut self) -> u64 {
        let back = if self.dice.below(4) == 0 { self.dice.below(300) as u64 } else { 0 };
        self.cursor.saturating_sub(back)
    }

    fn takes(&mut self, connection: &mut Connection, mut frame: Value) {
        let query = &self.query;
        let Some(at) = connection.at else {
            assert_eq!(frame["type"], "welcome", "{query}: the first frame: {frame}");
            assert_eq!(
                (&frame["epoch"], number(&frame, "cursor")),
                (&json!(self.epoch), connection.asked),
                "{frame}"
            );
            connection.at = Some(connection.asked);
            return;
        };
        match frame["type"].as_str() {
            Some("toast") => {
                let seq = number(&frame, "seq");
                assert!(seq > at, "{query}: {seq} came after {at} in one connection");
                connection.at = Some(seq);
                frame.as_object_mut().expect("an object").remove("type");
                if let Some(before) = self.seen.get(&seq) {
                    assert_eq!(*before, frame, "{query}: the same number, and another toast");
                    self.repeats += 1;
                    return;
                }
                let newest = self.seen.last_key_value().map_or(0, |(seq, _)| *seq);
                assert!(seq > newest, "{query}: {seq} was seen first after {newest}");
                self.seen.insert(seq, frame);
                self.cursor = self.cursor.max(seq);
            }
            // Both say that everything up to their number was sent, whether it was for this reader or not.
            Some("pong" | "bye") => {
                let cursor = number(&frame, "cursor");
                assert!(cursor >= at, "{query}: after {at}: {frame}");
                self.cursor = self.cursor.max(cursor);
            }
            _ => panic!("{query}: a frame that is none of those: {frame}"),
        }
    }

    /// One connection, which it ends at a random place. `false` where somebody else did.
    async fn comes_and_goes(&mut self, base: &str) -> bool {
        let place = Place::draw(&mut self.dice);
        let Some(mut connection) = self.opens(base).await else { return false };
        if place != Place::BeforeHello {
            let asked = self.asks();
            if self.hello(&mut connection, asked).await.is_err() {
                return false;
            }
        }
        let (most, time) = match place {
            Place::BeforeHello | Place::BeforeWelcome => (0, QUIET),
            // A quiet scope has not so many.
            Place::After(frames) => (frames, QUIET),
            Place::Later(time) => (usize::MAX, time),
        };
        let end = tokio::time::Instant::now() + time;
        for _ in 0..most {
            match tokio::time::timeout_at(end, connection.socket.read()).await {
                Ok(Ok(frame)) => self.takes(&mut connection, frame),
                Ok(Err(_)) => return false,
                Err(_) => break,
            }
        }
        match self.dice.below(4) {
            0 => drop(timeout(PATIENCE, connection.socket.leave()).await),
            1 => connection.socket.reset(),
            // Without a word.
            _ => drop(connection),
        }
        true
    }

    /// Reads over a cable that may break until it does, and asks for a sign of life where nothing comes.
    async fn reads_on(&mut self, base: &str, heard: &Heard, stopped: &AtomicBool) {
        let asked = self.asks();
        let Some(mut connection) = self.opens(base).await else { return };
        if self.hello(&mut connection, asked).await.is_err() {
            return;
        }
        let mut is_asked = false;
        while !stopped.load(Ordering::SeqCst) {
            match timeout(self.impatience, connection.socket.read()).await {
                Ok(Ok(frame)) => {
                    is_asked = false;
                    self.impatience = IMPATIENCE;
                    heard.welcomes.fetch_add(usize::from(connection.at.is_none()), Ordering::SeqCst);
                    heard.frames.fetch_add(1, Ordering::SeqCst);
                    self.takes(&mut connection, frame);
                }
                Ok(Err(_)) => return,
                Err(_) if is_asked => {
                    self.impatience = PATIENCE.min(2 * self.impatience);
                    return;
                }
                Err(_) => {
                    is_asked = true;
                    if connection.socket.tell(&json!({"type": "ping"})).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Reads until it has everything up to `head`.
    async fn catches_up(&mut self, base: &str, head: u64) -> Result<(), Closed> {
        let gone = || Closed { code: None, reason: "not opened".into() };
        let mut connection = self.opens(base).await.ok_or_else(gone)?;
        let cursor = self.cursor;
        self.hello(&mut connection, cursor).await?;
        let mut is_welcome = false;
        while self.cursor < head || !is_welcome {
            let frame = connection.socket.read().await?;
            let (is_first, is_pong) = (!std::mem::replace(&mut is_welcome, true), frame["type"] == "pong");
            self.takes(&mut connection, frame);
            if is_first || is_pong {
                connection.socket.tell(&json!({"type": "ping"})).await?;
            }
        }
        Ok(())
    }

    /// What it has seen is what the list holds, no more and no less.
    fn has_seen_all(&self, api: &Api) {
        let listed = list(api, &self.query);
        let missing: Vec<_> = listed.keys().filter(|seq| !self.seen.contains_key(seq)).collect();
        let foreign: Vec<_> = self.seen.keys().filter(|seq| !listed.contains_key(seq)).collect();
        assert!(missing.is_empty() && foreign.is_empty(), "{}: missing {missing:?}, foreign {foreign:?}", self.query);
        assert_eq!(self.seen, listed, "{}", self.query);
        let (name, value) = self.query.split_once('&').unwrap_or_default().1.split_once('=').unwrap_or_default();
        if name == "workspaceId" {
            assert!(self.seen.values().all(|toast| toast["workspaceId"] == value), "{}", self.query);
        }
    }
}

/// Every toast of a scope by its number, read page by page.
fn list(api: &Api, query: &str) -> BTreeMap<u64, Value> {
    let (mut toasts, mut cursor) = (BTreeMap::new(), String::new());
    loop {
        let page = api.get(&format!("/acp/notifications?{query}&limit=200{cursor}")).expect(200);
        for item in page["items"].as_array().expect("`items` is an array") {
            let doubled = toasts.insert(number(&item["toast"], "seq"), item["toast"].clone());
            assert_eq!(doubled, None, "listed twice");
        }
        match page["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return toasts,
        }
    }
}

// --- What makes toasts -------------------------------------------------------------------------------------

/// Makes toasts until it is stopped, whoever dies meanwhile.
struct Load {
    api: Api,
    /// Two of one workspace, which fail again and again; the first is Ann's.
    failing: [Session; 2],
    stopped: AtomicBool,
}

impl Load {
    /// Workspaces that are flipped.
    const FLIPPED: usize = 3;

    fn new(program: &Program) -> Arc<Self> {
        let api = program.api.clone();
        for n in 0..Self::FLIPPED {
            api.open(&format!("ws-{n}"));
        }
        let of =
            |user| api.open_with(json!({"workspaceId": "failing", "installationId": "tenant-1", "userId": user}));
        let failing = [of("ann"), of("bob")];
        // Else it would go over the fallback, over which no session fails.
        let pin = json!({"pin": {"protocol": "acp"}, "actor": "a test", "reason": "it is about ACP"});
        api.call("PUT", "/acp/workspaces/failing/protocol").json(&pin).send().expect(200);
        // Another tenant has a sequence of its own.
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

    fn goes_on(&self) -> bool {
        !self.stopped.load(Ordering::SeqCst)
    }

    fn flips(&self, workspace: &str, tenant: &str) {
        let why = json!({"actor": "ada", "reason": "drill"});
        for verb in ["rollback", "restore"].into_iter().cycle() {
            if !self.goes_on() {
                return;
            }
            let path = format!("/acp/workspaces/{workspace}/{verb}?installationId={tenant}");
            // Nobody is there, or dies before it answers: the list knows what became of it.
            let _ = self.api.call("POST", &path).json(&why).try_send();
            pass(Duration::from_millis(10));
        }
    }

    fn fails(&self) {
        while self.goes_on() {
            for session in &self.failing {
                let crash = session.call("crash").try_send();
                if crash.is_ok_and(|answer| matches!(answer.status, 409 | 503)) {
                    let load = json!({"sessionId": session.id});
                    let _ = self.api.call("POST", "/acp/session/load").json(&load).try_send();
                }
                pass(Duration::from_millis(10));
            }
        }
    }

    /// Waits until there is something for each scope.
    fn has_told_all(&self, deadline: Duration) {
        for query in self.scopes() {
            wait_for(deadline, &format!("something is told to {query}"), || {
                let list = self.api.get(&format!("/acp/notifications?{query}&limit=1")).expect(200);
                list["items"].get(0).map(|_| ())
            });
        }
    }

    fn stop(&self, threads: Vec<JoinHandle<()>>) {
        self.stopped.store(true, Ordering::SeqCst);
        for thread in threads {
            thread.join().expect("the load has not failed");
        }
    }
}

/// Everyone reads on until it has everything, and that is what is listed.
fn everyone_has_seen_all(api: &Api, base: &str, readers: &mut [Reader]) {
    for reader in readers {
        let head = number(&api.get(&format!("/acp/notifications?{}", reader.query)).expect(200), "head");
        wait_for(SETTLES, "a reader catches up", || block_on(reader.catches_up(base, head)).ok());
        reader.has_seen_all(api);
        println!(
            "  {}: {} toasts, {} again, {} connections broken",
            reader.query,
            reader.seen.len(),
            reader.repeats,
            reader.broken
        );
        assert!(!reader.seen.is_empty(), "{}: nothing was told", reader.query);
    }
}

/// Waits until readers have come and gone so often, or one has ended; as long as it takes, if only they do.
fn grows_to(gone: &AtomicUsize, due: usize, is_over: impl Fn() -> bool) {
    loop {
        let before = gone.load(Ordering::SeqCst);
        if before >= due || is_over() {
            return;
        }
        eventually("readers come and go", || gone.load(Ordering::SeqCst) > before || is_over());
    }
}

#[test]
fn a_thousand_disconnects_and_some_kills_lose_no_toast_and_change_none() {
    let mut dice = Dice::of_environment("toasts");
    let mut program = program().start();
    program.turns_may_run();
    let load = Load::new(&program);
    let gone = Arc::new(AtomicUsize::new(0));
    let readers: Vec<_> =
        load.scopes().into_iter().map(|query| Reader::new(&program.api, query, dice.fork())).collect();
    let begin = Instant::now();
    let makers = load.start();
    let readers: Vec<_> = readers
        .into_iter()
        .map(|mut reader| {
            let (api, gone) = (program.api.clone(), gone.clone());
            thread::spawn(move || {
                while gone.load(Ordering::SeqCst) < DISCONNECTS {
                    if block_on(reader.comes_and_goes(&api.base())) {
                        gone.fetch_add(1, Ordering::SeqCst);
                    } else {
                        reader.broken += 1;
                        pass(Duration::from_millis(20));
                    }
                }
                reader
            })
        })
        .collect();
    for kill in 1..=KILLS {
        grows_to(&gone, kill * DISCONNECTS / (KILLS + 1), || readers.iter().any(JoinHandle::is_finished));
        program.kill_supervisor();
        pass(dice.millis(300));
        program.start_supervisor_again();
    }
    let mut readers: Vec<_> = readers.into_iter().map(|reader| reader.join().expect("a reader is content")).collect();
    load.has_told_all(SETTLES);
    load.stop(makers);
    println!("toasts: {} disconnects and {KILLS} kills in {:.1?}", gone.load(Ordering::SeqCst), begin.elapsed());
    everyone_has_seen_all(&program.api, &program.api.base(), &mut readers);
    assert!(readers.iter().any(|reader| reader.repeats > 0), "something was asked for again");
    eventually("nobody is left", || program.metrics().sum("lumilink_toast_subscribers", &[]) == 0.0);
}

// --- The cable ---------------------------------------------------------------------------------------------

/// What happens to the cable between the readers and the service.
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

    /// Whether each reader has to open another connection.
    fn is_noticed(self) -> bool {
        matches!(self, Self::Reset | Self::Cut | Self::HalfOpen | Self::Stalled(Way::ToClient) | Self::Out)
    }

    fn happens(self, proxy: &Proxy, dice: &mut Dice) {
        match self {
            Self::Reset => proxy.set_open(Mode::Reset),
            Self::Cut => proxy.set_open(Mode::Cut),
            Self::CutInMidFrame(way) => proxy.set_open(Mode::CutAfter(way, dice.below(2000))),
            Self::Slow => {
                proxy.set(Mode::Delay(dice.millis(30)));
                pass(dice.millis(300));
                proxy.set(Mode::Pass);
            }
            Self::HalfOpen => proxy.set_open(Mode::Swallow),
            Self::Stalled(way) => proxy.set_open(Mode::Stall(way)),
            Self::Out => {
                proxy.refuse();
                proxy.set_open(Mode::Reset);
                pass(dice.millis(300));
                proxy.admit();
            }
        }
    }
}

#[test]
fn whatever_the_cable_does_each_toast_arrives() {
    let mut dice = Dice::of_environment("toasts over a cable");
    let mut program = program().start();
    program.turns_may_run();
    let proxy = Proxy::start(program.address);
    let base = format!("http://{}", proxy.address());
    let load = Load::new(&program);
    let readers: Vec<_> =
        load.scopes().into_iter().map(|query| Reader::new(&program.api, query, dice.fork())).collect();
    let heard: Arc<Vec<Heard>> = Arc::new(readers.iter().map(|_| Heard::default()).collect());
    let stopped = Arc::new(AtomicBool::new(false));
    let begin = Instant::now();
    let makers = load.start();
    let start = |(n, mut reader): (usize, Reader)| {
        let (base, heard, stopped) = (base.clone(), heard.clone(), stopped.clone());
        thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                block_on(reader.reads_on(&base, &heard[n], &stopped));
                reader.broken += 1;
                pass(Duration::from_millis(10));
            }
            reader
        })
    };
    let readers: Vec<_> = readers.into_iter().enumerate().map(start).collect();
    for round in 0..CABLE_FAULTS {
        // Each kind in turn, and some at random.
        let fault = Fault::ALL.get(round).copied().unwrap_or_else(|| Fault::ALL[dice.below(Fault::ALL.len())]);
        pass(dice.millis(100));
        let count = |heard: &Heard| {
            let counter = if fault.is_noticed() { &heard.welcomes } else { &heard.frames };
            counter.load(Ordering::SeqCst)
        };
        let before: Vec<_> = heard.iter().map(count).collect();
        fault.happens(&proxy, &mut dice);
        if round == CABLE_FAULTS / 2 {
            program.kill_supervisor();
            program.start_supervisor_again();
            proxy.target(program.address);
        }
        wait_for(SETTLES, &format!("everyone reads on after {fault:?} in round {round}"), || {
            let all = heard.iter().zip(&before).all(|(heard, before)| count(heard) > *before);
            (all || readers.iter().any(JoinHandle::is_finished)).then_some(())
        });
        if matches!(fault, Fault::HalfOpen) {
            // What was thrown away is lost: nothing may come after it.
            proxy.set_open(Mode::Reset);
        }
    }
    stopped.store(true, Ordering::SeqCst);
    let mut readers: Vec<_> = readers.into_iter().map(|reader| reader.join().expect("a reader is content")).collect();
    load.has_told_all(SETTLES);
    load.stop(makers);
    println!("toasts: {CABLE_FAULTS} faults of the cable in {:.1?}", begin.elapsed());
    everyone_has_seen_all(&program.api, &base, &mut readers);
    drop(proxy);
    eventually("nobody is left", || program.metrics().sum("lumilink_toast_subscribers", &[]) == 0.0);
}

// --- Those who do not read ---------------------------------------------------------------------------------

/// A receive buffer that takes some toasts; the kernel makes twice as much of it.
const SMALL_BUFFER: u32 = 4096;
/// Workspaces that are flipped at the same time: their flips share transactions, so that many toasts come in the time that
/// a subscriber has which is let go.
const FLIPPED: usize = 10;
/// So many flips of each are more toasts than may wait for one whose buffers are full: 256, and what the kernel still finds
/// room for.
const TOO_MANY: usize = 28;
/// What is promised: who does not read is gone in 30 s. The rest is for a machine that is busy.
const GONE_WITHIN: Duration = Duration::from_secs(30 + 6);
/// How long a toast may take to those who read, from the answer to its cause. It takes some milliseconds; the rest is for a
/// machine that is busy. Had it waited for one who does not read, it would have been 25 s.
const PROMPT: Duration = Duration::from_secs(10);

/// Somebody who reads, and everything that it is told.
struct Audience {
    api: Api,
    /// When each flip was answered, by workspace.
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
                let workspace = frame["workspaceId"].as_str().expect("a toast of a workspace").to_owned();
                arrived.entry(workspace).or_default().push(Instant::now());
            }
            arrived
        });
        Self { api: api.clone(), answered, reader }
    }

    /// One toast.
    fn flip(&mut self) {
        if let Some((workspace, answered)) = self.answered.iter_mut().next() {
            flip(&self.api, workspace, answered);
        }
    }

    /// So many of each workspace.
    fn flips(&mut self, times: usize) {
        let api = &self.api;
        thread::scope(|scope| {
            for (workspace, answered) in &mut self.answered {
                scope.spawn(move || (0..times).for_each(|_| flip(api, workspace, answered)));
            }
        });
    }

    /// How many there were.
    fn len(&self) -> usize {
        self.answered.values().map(Vec::len).sum()
    }

    /// Ends, and says how long a toast took at most.
    fn longest(self, mut program: Program) -> Duration {
        assert_eq!(program.terminate(DEADLINE), Some(0));
        let arrived = self.reader.join().expect("each toast came");
        let mut took = Vec::new();
        for (workspace, answered) in self.answered.iter().filter(|(_, answered)| !answered.is_empty()) {
            assert_eq!(arrived[workspace].len(), answered.len(), "each toast came");
            let pairs = arrived[workspace].iter().zip(answered);
            took.extend(pairs.map(|(there, here)| there.saturating_duration_since(*here)));
        }
        took.sort_unstable();
        let longest = took[took.len() - 1];
        println!("toasts: {} read, median {:.1?}, longest {longest:.1?}", took.len(), took[took.len() / 2]);
        longest
    }
}

fn flip(api: &Api, workspace: &str, answered: &mut Vec<Instant>) {
    let verb = if answered.len().is_multiple_of(2) { "rollback" } else { "restore" };
    let why = json!({"actor": "ada", "reason": "drill"});
    let flipped = api.call("POST", &format!("/acp/workspaces/{workspace}/{verb}")).json(&why).status();
    assert_eq!(flipped, 200, "{workspace}: {verb}");
    answered.push(Instant::now());
}

/// One thread serves all of its connections: whoever is answered knows that the others were served too.
fn program_of_one_thread() -> Program {
    program().set("server.workers", 1).start()
}

#[test]
fn who_does_not_read_is_gone_in_30_s_whatever_its_window_says_and_nobody_else_waits() {
    let program = program_of_one_thread();
    let mut audience = Audience::new(&program.api);
    let base = program.api.base();
    let evicted = |reason| program.metrics().sum("lumilink_toast_evictions_total", &[("reason", reason)]);
    let subscribers = || program.metrics().sum("lumilink_toast_subscribers", &[]);
    // Its window is open all the time, and it does not answer pings.
    let mut silent = Subscriber::open(&base, "installationId=tenant-2", &[]).unwrap();
    silent.hello(json!({}));
    let silent_since = Instant::now();
    let mut full = Subscriber::open_small(&base, TENANT, SMALL_BUFFER);
    full.hello(json!({}));
    full.fill(|| drop(program.metrics()));
    let full_since = Instant::now();
    assert_eq!(subscribers(), 3.0);
    while subscribers() > 1.0 {
        let is_silent_there = evicted("silent") == 0.0;
        assert!(!is_silent_there || silent_since.elapsed() < GONE_WITHIN, "the silent one is there");
        assert!(full_since.elapsed() < GONE_WITHIN, "{} subscribers are there", subscribers());
        // Not so many that its queue overflows.
        audience.flip();
        pass(Duration::from_millis(200));
    }
    println!("toasts: all were gone after {:.1?}", full_since.elapsed());
    assert_eq!((evicted("silent"), evicted("stalled"), evicted("tooSlow")), (1.0, 1.0, 0.0));
    drop((silent, full));
    let longest = audience.longest(program);
    assert!(longest < PROMPT, "a toast took {longest:?}");
}

#[test]
fn who_is_too_slow_is_told_so_and_goes_on_from_there_without_a_loss() {
    let program = program_of_one_thread();
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
        frames.push(again.toast());
    }
    let seqs: Vec<_> = frames.iter().map(|frame| number(frame, "seq")).collect();
    assert_eq!(seqs, (1..=flips as u64).collect::<Vec<_>>());
    drop((slow, again));
    let evicted = || program.metrics().sum("lumilink_toast_evictions_total", &[("reason", "tooSlow")]);
    assert_eq!(evicted(), 1.0);
    // One that does not read that either is cut off.
    let mut never = Subscriber::open_small(&program.api.base(), TENANT, SMALL_BUFFER);
    never.hello(json!({}));
    never.fill(|| drop(program.metrics()));
    audience.flips(TOO_MANY);
    eventually("it is cut off, and counted", || evicted() == 2.0);
    eventually("it is gone", || program.metrics().sum("lumilink_toast_subscribers", &[]) == 1.0);
    let longest = audience.longest(program);
    assert!(longest < PROMPT, "a toast took {longest:?}");
}
