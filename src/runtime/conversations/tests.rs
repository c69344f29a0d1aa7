//! Connections that break and continue, from outside.

use std::time::Duration;

use serde_json::{Value, json};
use tokio_tungstenite::{
    MaybeTlsStream,
    tungstenite::{
        Error, Message,
        protocol::frame::{CloseFrame, coding::CloseCode},
    },
};

use crate::{
    acp::numbered::{self, Numbers},
    contract::runtime::close_code,
    runtime::{
        socket::tests::{AGENT, Client, Place, options, until},
        *,
    },
};

async fn place_with(change: impl FnOnce(&mut RuntimeOptions)) -> Place {
    let base = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(base.path().join("root/ws")).unwrap();
    let mut options = options(base.path(), AGENT);
    options.retention.frames = 1000;
    change(&mut options);
    Place::start(base, options).await
}

async fn place() -> Place {
    place_with(|_| {}).await
}

const TOKEN: (&str, &str) = ("authorization", "Bearer secret");

/// A client that numbers.
struct Peer {
    client: Client,
    connection: String,
    sent: u64,
    received: u64,
    /// Number up to which the peer acknowledges; `None`: everything.
    settled: Option<u64>,
}

impl Peer {
    async fn connected(place: &Place) -> Self {
        let (mut client, response) = Client::try_connect(place, &[TOKEN]).await.unwrap();
        let connection = response.headers()["acp-connection-id"].to_str().unwrap().to_owned();
        let params = json!({
            "protocolVersion": 1,
            "_meta": {"lumilink": {"cwd": place.workspace(), "resumable": true}},
        });
        client.send(json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params})).await;
        let mut peer = Self { client, connection, sent: 0, received: 0, settled: None };
        assert!(peer.receive().await["result"].is_object());
        peer
    }

    /// Breaks the connection without a word.
    fn break_off(self) -> Broken {
        Broken { connection: self.connection, sent: self.sent, received: self.received, settled: self.settled }
    }

    async fn send(&mut self, message: Value) {
        self.sent += 1;
        self.send_as(self.sent, message).await;
    }

    async fn send_as(&mut self, seq: u64, message: Value) {
        let ack = self.settled.unwrap_or(self.received);
        self.client.send_text(&numbered::put(Numbers { seq, ack }, &message.to_string())).await;
    }

    async fn acknowledge(&mut self) {
        self.send_as(0, json!({"method": "_lumilink/acknowledged"})).await;
    }

    /// The next message, without its numbers, which have to be right.
    async fn receive(&mut self) -> Value {
        let (numbers, message) = self.receive_numbers().await;
        self.received += 1;
        assert_eq!(numbers.seq, self.received, "{message}");
        assert!(numbers.ack <= self.sent, "{numbers:?}");
        message
    }

    async fn receive_numbers(&mut self) -> (Numbers, Value) {
        match self.client.next().await {
            Message::Text(text) => {
                let (numbers, message) = numbered::take(&text).unwrap_or_else(|| panic!("no numbers: {text}"));
                (numbers, serde_json::from_str(&message).unwrap())
            }
            other => panic!("{other:?}"),
        }
    }

    async fn close(&mut self, code: u16) {
        let frame = CloseFrame { code: CloseCode::from(code), reason: "".into() };
        self.client.socket.close(Some(frame)).await.unwrap();
    }
}

/// State that a client keeps across a break.
#[derive(Debug, Clone)]
struct Broken {
    connection: String,
    sent: u64,
    received: u64,
    settled: Option<u64>,
}

impl Broken {
    /// Continues; gives what the runtime says first.
    async fn resume(&self, place: &Place) -> (Peer, Value) {
        let (client, response) = self.try_resume(place).await.unwrap_or_else(|status| panic!("{status}"));
        assert_eq!(response.as_deref(), Some(self.connection.as_str()), "the same connection");
        let Self { connection, sent, received, settled } = self.clone();
        let mut peer = Peer { client, connection, sent, received, settled };
        let resumed = peer.client.receive().await;
        assert_eq!(resumed["method"], "_lumilink/resumed", "{resumed}");
        assert!(resumed.get("_meta").is_none(), "it has no number");
        (peer, resumed["params"].clone())
    }

    async fn try_resume(&self, place: &Place) -> Result<(Client, Option<String>), u16> {
        let received = self.received.to_string();
        let headers = [TOKEN, ("acp-connection-id", &self.connection), ("lumilink-received", &received)];
        match Client::try_connect(place, &headers).await {
            Ok((client, response)) => {
                let id = response.headers().get("acp-connection-id").map(|id| id.to_str().unwrap().to_owned());
                Ok((client, id))
            }
            Err(Error::Http(response)) => {
                assert_eq!(response.headers()["content-type"], "application/problem+json");
                Err(response.status().as_u16())
            }
            Err(cause) => panic!("{cause}"),
        }
    }
}

#[actix_web::test]
async fn only_who_asks_for_numbers_gets_them() {
    let place = place().await;
    let mut plain = Client::connect(&place).await;
    plain.send(json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": 1}})).await;
    assert!(plain.receive().await.get("_meta").is_none());
    let mut peer = Peer::connected(&place).await;
    peer.send(json!({"method": "x"})).await;
    let echo = peer.receive().await;
    assert_eq!(echo["params"], json!({"method": "x"}), "the agent sees no number");
    drop(plain);
    until("the plain client's agent ends", || place.runtime.agent_processes() == 1).await;
    assert_eq!(place.held_conversations(), 0);
}

#[actix_web::test]
async fn without_a_grace_there_are_no_numbers_and_a_break_ends_the_agent() {
    let place = place_with(|options| options.retention.grace = Duration::ZERO).await;
    let mut client = Client::connect(&place).await;
    let answer = client.initialize(json!({"resumable": true})).await;
    assert!(answer.get("_meta").is_none() && answer["result"].is_object(), "{answer}");
    drop(client);
    until("the agent ends", || place.runtime.agent_processes() == 0).await;
}

#[actix_web::test]
async fn a_turn_continues_after_breaks_with_every_message_once_and_in_order() {
    let place = place().await;
    let mut peer = Peer::connected(&place).await;
    peer.settled = Some(1);
    peer.send(json!({"method": "count"})).await;
    let mut n = 0;
    for breaks in 1..=6 {
        for _ in 0..50 {
            n += 1;
            assert_eq!(peer.receive().await["params"]["n"], n);
        }
        let broken = peer.break_off();
        until("the break is noticed", || place.held_conversations() == 1).await;
        assert_eq!(place.runtime.agent_processes(), 1);
        let (again, resumed) = broken.resume(&place).await;
        assert_eq!((&resumed["received"], n), (&json!(1), 50 * breaks));
        assert_eq!(place.held_conversations(), 0);
        peer = again;
    }
    peer.send(json!({"method": "x"})).await;
    assert_eq!(peer.receive().await["params"]["method"], "x", "the conversation continues");
    // The messages of the first socket were never acknowledged, so they are replayed.
    let whole = Broken { received: 1, ..peer.break_off() };
    let (mut peer, _) = whole.resume(&place).await;
    for n in 1..=300 {
        assert_eq!(peer.receive().await["params"]["n"], n);
    }
}

#[actix_web::test]
async fn the_newest_socket_replaces_the_open_one() {
    let place = place().await;
    let mut first = Peer::connected(&place).await;
    let broken = Broken { connection: first.connection.clone(), sent: 0, received: 1, settled: None };
    let (mut second, _) = broken.resume(&place).await;
    assert_eq!(first.client.receive_close().await, close_code::REPLACED);
    second.send(json!({"method": "x"})).await;
    assert_eq!(second.receive().await["params"]["method"], "x");
    // The end of the socket that was replaced means nothing.
    drop(first);
    second.send(json!({"method": "y"})).await;
    assert_eq!(second.receive().await["params"]["method"], "y");
    assert_eq!((place.held_conversations(), place.runtime.agent_processes()), (0, 1));
}

/// Waits until nothing more comes for a client that does not read: its socket is full.
async fn until_stuck(client: &Client) {
    let MaybeTlsStream::Plain(stream) = client.socket.get_ref() else { panic!("a plain socket") };
    let mut seen = vec![0; 16 * 1024 * 1024];
    let (mut before, mut same) = (0, 0);
    while same < 20 {
        let now = stream.peek(&mut seen).await.unwrap();
        same = if now == before { same + 1 } else { 0 };
        before = now;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[actix_web::test]
async fn a_socket_whose_client_never_reads_does_not_hinder_the_next_one() {
    let place = place_with(|options| {
        options.retention.frames = 1_000_000;
        options.retention.bytes = 64 * 1024 * 1024;
    })
    .await;
    let mut stuck = Peer::connected(&place).await;
    stuck.settled = Some(1);
    stuck.send(json!({"method": "flood"})).await;
    until_stuck(&stuck.client).await;
    let broken = Broken { connection: stuck.connection.clone(), sent: 1, received: 1, settled: Some(1) };
    let begun = tokio::time::Instant::now();
    let (mut peer, _) = broken.resume(&place).await;
    for _ in 0..2000 {
        assert_eq!(peer.receive().await["method"], "session/update");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    peer.close(close_code::NORMAL).await;
    until("the agent ends", || place.runtime.agent_processes() == 0).await;
    drop(stuck);
}

#[actix_web::test]
async fn a_client_that_never_reads_is_away_after_the_silence() {
    let place = place_with(|options| {
        options.retention.bytes = 64 * 1024 * 1024;
        options.retention.frames = 1_000_000;
        options.heartbeat = Heartbeat { every: Duration::from_millis(200), silence: Duration::from_millis(500) };
    })
    .await;
    let mut stuck = Peer::connected(&place).await;
    stuck.send(json!({"method": "flood"})).await;
    until("it is taken for away", || place.held_conversations() == 1).await;
    assert_eq!(place.runtime.agent_processes(), 1);
    let broken = Broken { connection: stuck.connection.clone(), sent: 1, received: 1, settled: None };
    let (mut peer, _) = broken.resume(&place).await;
    assert_eq!(peer.receive().await["method"], "session/update");
}

#[actix_web::test]
async fn a_silent_client_is_given_up_and_one_that_answers_pings_is_not() {
    let place = place_with(|options| {
        options.heartbeat = Heartbeat { every: Duration::from_millis(100), silence: Duration::from_millis(400) };
    })
    .await;
    let silent = Client::initialized(&place, "default").await;
    let mut lively = Peer::connected(&place).await;
    let mut pings = 0;
    while pings < 10 {
        // Reading answers them.
        let next = futures_util::StreamExt::next(&mut lively.client.socket).await.unwrap().unwrap();
        assert!(matches!(next, Message::Ping(_)), "{next:?}");
        pings += 1;
    }
    until("the silent one's agent ends", || place.runtime.agent_processes() == 1).await;
    lively.send(json!({"method": "x"})).await;
    assert_eq!(lively.receive().await["params"]["method"], "x");
    until("nothing is heard", || place.held_conversations() == 1).await;
    drop(silent);
}

#[actix_web::test]
async fn after_the_grace_the_agent_ends_and_the_connection_is_gone() {
    let place = place_with(|options| options.retention.grace = Duration::from_millis(300)).await;
    let broken = Peer::connected(&place).await.break_off();
    until("it is held", || place.held_conversations() == 1).await;
    until("the agent ends", || place.runtime.agent_processes() == 0).await;
    until("it is not held", || place.held_conversations() == 0).await;
    assert_eq!(broken.try_resume(&place).await.err(), Some(404));
}

#[actix_web::test]
async fn a_client_that_says_it_is_over_ends_the_agent_at_once_and_another_end_does_not() {
    let place = place().await;
    let mut over = Peer::connected(&place).await;
    over.close(close_code::NORMAL).await;
    until("the agent ends", || place.runtime.agent_processes() == 0).await;
    assert_eq!(over.break_off().try_resume(&place).await.err(), Some(404));
    assert_eq!(place.held_conversations(), 0);

    let mut leaving = Peer::connected(&place).await;
    leaving.close(close_code::GOING_AWAY).await;
    until("it is held", || place.held_conversations() == 1).await;
    leaving.break_off().resume(&place).await;
}

#[actix_web::test]
async fn resuming_a_conversation_or_message_that_is_not_held_answers_404() {
    let place = place().await;
    let peer = Peer::connected(&place).await;
    let here = Broken { connection: peer.connection.clone(), sent: 0, received: 1, settled: None };
    for broken in [
        Broken { connection: uuid::Uuid::nil().to_string(), ..here.clone() },
        Broken { connection: "nonsense".into(), ..here.clone() },
        Broken { received: 2, ..here.clone() },
        Broken { received: u64::MAX, ..here.clone() },
    ] {
        assert_eq!(broken.try_resume(&place).await.err(), Some(404), "{broken:?}");
    }
    let headers = [TOKEN, ("acp-connection-id", peer.connection.as_str()), ("lumilink-received", "many")];
    assert!(matches!(
        Client::try_connect(&place, &headers).await.err(),
        Some(Error::Http(response)) if response.status() == 400
    ));
    let mut peer = peer;
    peer.send(json!({"method": "x"})).await;
    assert_eq!(peer.receive().await["params"]["method"], "x", "nothing of it disturbs the open socket");
}

#[actix_web::test]
async fn an_agent_whose_messages_are_not_acknowledged_waits() {
    let place = place_with(|options| options.retention.frames = 64).await;
    let mut peer = Peer::connected(&place).await;
    peer.settled = Some(1);
    peer.send(json!({"method": "flood"})).await;
    for _ in 0..64 {
        peer.receive().await;
    }
    let more = tokio::time::timeout(Duration::from_millis(300), peer.receive_numbers()).await;
    assert!(more.is_err(), "no more than is kept: {more:?}");
    peer.settled = Some(33);
    peer.acknowledge().await;
    for _ in 0..32 {
        peer.receive().await;
    }
    let more = tokio::time::timeout(Duration::from_millis(300), peer.receive_numbers()).await;
    assert!(more.is_err(), "no more than was acknowledged: {more:?}");
    // Nor does more gather while the client is away.
    let (mut peer, _) = Broken { received: 33, ..peer.break_off() }.resume(&place).await;
    for _ in 0..64 {
        peer.receive().await;
    }
    peer.settled = None;
    for _ in 0..50 {
        peer.acknowledge().await;
        for _ in 0..30 {
            peer.receive().await;
        }
    }
}

#[actix_web::test]
async fn a_repeat_is_dropped_and_a_gap_is_the_end() {
    let place = place().await;
    let mut peer = Peer::connected(&place).await;
    peer.send(json!({"method": "x"})).await;
    assert_eq!(peer.receive().await["params"]["method"], "x");
    peer.send_as(1, json!({"method": "x"})).await;
    peer.send(json!({"method": "y"})).await;
    assert_eq!(peer.receive().await["params"]["method"], "y");
    peer.send_as(4, json!({"method": "z"})).await;
    assert_eq!(peer.client.receive_close().await, close_code::POLICY);
    until("the agent ends", || place.runtime.agent_processes() == 0).await;
    assert_eq!(peer.break_off().try_resume(&place).await.err(), Some(404));

    let mut peer = Peer::connected(&place).await;
    peer.client.send(json!({"method": "without a number"})).await;
    assert_eq!(peer.client.receive_close().await, close_code::POLICY);
    until("the agent ends", || place.runtime.agent_processes() == 0).await;
}

#[actix_web::test]
async fn the_newest_prompt_is_remembered() {
    let place = place().await;
    let mut peer = Peer::connected(&place).await;
    let prompt = |call: u64, meta: Value| {
        let params = json!({"sessionId": "s", "prompt": [], "_meta": meta});
        json!({"jsonrpc": "2.0", "id": call, "method": "session/prompt", "params": params})
    };
    peer.send(json!({"method": "x"})).await;
    peer.receive().await;
    let id = uuid::Uuid::now_v7();
    peer.send(prompt(7, json!({"lumilink": {"promptId": id}}))).await;
    peer.receive().await;
    peer.send(prompt(8, json!({"other": 1}))).await;
    peer.receive().await;
    let (_, resumed) = peer.break_off().resume(&place).await;
    assert_eq!(resumed, json!({"received": 3, "after": 4, "prompt": {"promptId": id, "call": 7, "after": 2}}));
}

#[actix_web::test]
async fn the_death_of_an_agent_while_its_client_is_away_is_reported_afterwards() {
    let place = place_with(|options| options.max_agents = 1).await;
    let mut peer = Peer::connected(&place).await;
    peer.settled = Some(1);
    peer.send(json!({"method": "die later"})).await;
    assert_eq!(peer.receive().await["method"], "soon");
    let broken = peer.break_off();
    until("it is dead", || place.runtime.agent_processes() == 0).await;
    let (mut peer, _) = broken.resume(&place).await;
    assert_eq!(peer.receive().await["params"]["last"], true);
    let end = peer.receive().await;
    assert_eq!((&end["method"], &end["params"]["exitCode"]), (&json!("_lumilink/agent_exited"), &json!(42)));
    assert_eq!(peer.client.receive_close().await, close_code::AGENT_ENDED);
    // As long as it is not settled it can be had again.
    until("it is held", || place.held_conversations() == 1).await;
    let broken = Broken { received: 2, ..peer.break_off() };
    let (mut peer, _) = broken.resume(&place).await;
    peer.receive().await;
    assert_eq!(peer.receive().await["method"], "_lumilink/agent_exited");
    until("it is held again", || place.held_conversations() == 1).await;
    // It does not keep a place from an agent that runs.
    let _next = Peer::connected(&place).await;
    until("it made room", || place.held_conversations() == 0).await;
    assert_eq!(broken.try_resume(&place).await.err(), Some(404));
}

#[actix_web::test]
async fn nothing_is_kept_of_a_dead_agent_once_everything_is_acknowledged() {
    let place = place().await;
    let mut peer = Peer::connected(&place).await;
    peer.settled = Some(1);
    peer.send(json!({"method": "die"})).await;
    peer.receive().await;
    assert_eq!(peer.receive().await["method"], "_lumilink/agent_exited");
    let broken = peer.break_off();
    until("it is held", || place.held_conversations() == 1).await;
    // The client has everything; when it returns, it receives only the close of the socket.
    let (mut peer, _) = broken.resume(&place).await;
    assert_eq!(peer.client.receive_close().await, close_code::AGENT_ENDED);
    let (mut peer, _) = Broken { settled: None, ..peer.break_off() }.resume(&place).await;
    peer.acknowledge().await;
    until("nothing is held", || place.held_conversations() == 0).await;
}

#[actix_web::test]
async fn messages_of_a_dead_agent_are_kept_for_less_time_once_they_were_read() {
    let place = place().await;
    let mut peer = Peer::connected(&place).await;
    peer.settled = Some(1);
    peer.send(json!({"method": "die"})).await;
    peer.receive().await;
    peer.receive().await;
    assert_eq!(peer.client.receive_close().await, close_code::AGENT_ENDED);
    // Reading on confirms the close.
    while futures_util::StreamExt::next(&mut peer.client.socket).await.is_some_and(|next| next.is_ok()) {}
    until("it is held", || place.held_conversations() == 1).await;
    let confirmed = tokio::time::Instant::now();
    while place.held_conversations() > 0 {
        assert!(confirmed.elapsed() < Duration::from_secs(20), "the grace is 60 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(confirmed.elapsed() > Duration::from_secs(5), "{:?}", confirmed.elapsed());
}

#[actix_web::test]
async fn sessions_begin_and_are_refused_after_a_resume_as_before() {
    let place = place().await;
    let peer = Peer::connected(&place).await;
    let (mut peer, _) = peer.break_off().resume(&place).await;
    peer.settled = Some(1);
    let new = |cwd: String| json!({"jsonrpc": "2.0", "id": 5, "method": "session/new", "params": {"cwd": cwd, "mcpServers": []}});
    peer.send(new("/".into())).await;
    assert_eq!(peer.receive().await["error"]["code"], -32602);
    peer.send(new(place.workspace())).await;
    assert_eq!(peer.receive().await["result"]["sessionId"], "s");
    // What the runtime answered itself can be had again as well.
    let (mut peer, resumed) = Broken { received: 1, ..peer.break_off() }.resume(&place).await;
    assert_eq!(resumed["received"], 2);
    assert_eq!(peer.receive().await["error"]["code"], -32602);
    assert_eq!(peer.receive().await["result"]["sessionId"], "s");
}

#[actix_web::test]
async fn a_client_of_a_quiet_agent_hears_now_and_then_what_has_arrived() {
    let place = place().await;
    let mut peer = Peer::connected(&place).await;
    for _ in 0..16 {
        peer.send(json!({"method": "quiet"})).await;
    }
    let (numbers, message) = peer.receive_numbers().await;
    assert_eq!((numbers, &message["method"]), (Numbers { seq: 0, ack: 16 }, &json!("_lumilink/acknowledged")));
    assert!(message.get("params").is_none());
}

#[actix_web::test]
async fn the_stop_ends_agents_that_are_kept() {
    let place = place().await;
    let mut peer = Peer::connected(&place).await;
    peer.send(json!({"method": "pid"})).await;
    let pids = peer.receive().await["params"].as_array().unwrap().clone();
    drop(peer.break_off());
    until("it is held", || place.held_conversations() == 1).await;
    let mut standing = Peer::connected(&place).await;
    let reader = actix_web::rt::spawn(async move { standing.client.receive_close().await });
    place.runtime.stop(Duration::from_millis(300)).await;
    assert_eq!(reader.await.unwrap(), close_code::GOING_AWAY);
    for pid in pids {
        until("the process is gone", || !std::path::Path::new(&format!("/proc/{pid}")).exists()).await;
    }
}
