//! Conversations over lines that break, against a runtime that the tests play frame by frame.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{ErrorResponse, Request, Response},
        http::HeaderValue,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};
use uuid::Uuid;

use super::{
    Connected,
    websocket::{Endpoint, ResumeLimits},
};
use crate::{
    acp::numbered::{self, Numbers},
    contract::runtime::{ACKNOWLEDGED, CONNECTION_ID_HEADER, RECEIVED_HEADER, RESUMED, Resumed, close_code},
    domain::{
        heartbeat::Heartbeat,
        session::{choices::Choices, mcp::McpServers},
        turn::outcome::ErrorCode,
    },
    transport::{
        acp::AcpTransport,
        pipe::{ConnectionState, FrameReceiver, Incoming, PipeLimits},
        socket, *,
    },
};

const PATIENCE: Duration = Duration::from_secs(20);
const GRACE: Duration = Duration::from_secs(30);

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in time")
}

/// The address of a runtime, and what a supervisor knows of it.
struct Runtime {
    listener: TcpListener,
    endpoint: Endpoint,
}

impl Runtime {
    async fn new() -> Self {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let endpoint = Endpoint {
            url: format!("ws://{}/acp", listener.local_addr().unwrap()),
            token: crate::config::ReloadableSecret::new(None),
            frame_bytes: 16 * 1024 * 1024,
            pipe: PipeLimits { frames: 256, bytes: 1024 * 1024 },
            resume: ResumeLimits { grace: GRACE, frames: 2048, bytes: 2 * 1024 * 1024 },
            heartbeat: Heartbeat::ACP,
        };
        Self { listener, endpoint }
    }

    async fn accept(&self) -> Socket {
        let (stream, _) = in_time(self.listener.accept()).await.unwrap();
        Socket::upgrade(stream).await
    }

    /// A socket that continues, to which everything from `sent` on is known to have come.
    async fn accept_again(&self, got: u64) -> Socket {
        let mut socket = self.accept().await;
        assert_eq!(socket.goes_on.as_deref(), Some("c1"));
        let resumed = Resumed { received: got, after: 0, prompt: None };
        socket.send_text(json!({"jsonrpc": "2.0", "method": RESUMED, "params": resumed}).to_string()).await;
        socket
    }

    /// Answers a request for a connection with an error.
    async fn refuse(&self, status: &str) {
        let (mut stream, _) = in_time(self.listener.accept()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(in_time(stream.read_u8()).await.unwrap());
        }
        stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await.unwrap();
    }

    /// A conversation that was initialized, and the runtime's first socket of it.
    async fn conversation(&self) -> (Connected, Socket) {
        let connecting = socket::connect(&self.endpoint, None);
        let (connected, mut socket) = tokio::join!(connecting, self.accept());
        let mut connected = connected.unwrap();
        connected.pipe.to_agent.try_send(json!({"id": 1, "method": "initialize"}).to_string()).unwrap();
        assert_eq!(socket.receive().await, (None, json!({"id": 1, "method": "initialize"})));
        socket.send(1, 0, json!({"id": 1, "result": {}})).await;
        assert_eq!(message(&mut connected.pipe.from_agent).await, (1, json!({"id": 1, "result": {}})));
        (connected, socket)
    }
}

/// The runtime's side of one socket.
struct Socket {
    socket: WebSocketStream<TcpStream>,
    goes_on: Option<String>,
    received: Option<u64>,
    pings: usize,
}

impl Socket {
    async fn upgrade(stream: TcpStream) -> Self {
        let (mut goes_on, mut received) = (None, None);
        #[allow(clippy::result_large_err, reason = "the library's callback")]
        let look = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
            let text = |name| Some(request.headers().get(name)?.to_str().ok()?.to_owned());
            goes_on = text(CONNECTION_ID_HEADER);
            received = text(RECEIVED_HEADER).map(|number| number.parse().unwrap());
            response.headers_mut().insert(CONNECTION_ID_HEADER, HeaderValue::from_static("c1"));
            Ok(response)
        };
        let socket = in_time(accept_hdr_async(stream, look)).await.unwrap();
        Self { socket, goes_on, received, pings: 0 }
    }

    async fn send_text(&mut self, text: String) {
        in_time(self.socket.send(Message::text(text))).await.unwrap();
    }

    async fn send(&mut self, seq: u64, ack: u64, message: Value) {
        self.send_text(numbered::put(Numbers { seq, ack }, &message.to_string())).await;
    }

    async fn next(&mut self) -> Message {
        loop {
            match in_time(self.socket.next()).await.expect("an open socket").unwrap() {
                Message::Ping(_) => self.pings += 1,
                Message::Pong(_) => {}
                message => return message,
            }
        }
    }

    async fn receive(&mut self) -> (Option<Numbers>, Value) {
        let Message::Text(text) = self.next().await else { panic!("no text") };
        let (numbers, message) =
            numbered::take(&text).map_or((None, text.as_str().into()), |(numbers, rest)| (Some(numbers), rest));
        (numbers, serde_json::from_str(&message).unwrap())
    }

    async fn receive_close(&mut self) -> u16 {
        match self.next().await {
            Message::Close(frame) => frame.unwrap().code.into(),
            other => panic!("{other:?}"),
        }
    }

    async fn close(mut self, code: u16) {
        let frame = CloseFrame { code: CloseCode::from(code), reason: "because".into() };
        in_time(self.socket.close(Some(frame))).await.unwrap();
        while let Some(Ok(_)) = in_time(self.socket.next()).await {}
    }

    /// The line breaks, with a reset as after a power cut.
    fn cut(self) {
        self.socket.get_ref().set_zero_linger().unwrap();
    }
}

async fn message(from_agent: &mut FrameReceiver) -> (u64, Value) {
    match in_time(from_agent.recv()).await {
        Some(Incoming::Frame(frame)) => {
            let message = numbered::take(frame.text()).map_or(frame.text().into(), |(_, message)| message);
            (frame.seq(), serde_json::from_str(&message).unwrap())
        }
        other => panic!("{other:?}"),
    }
}

async fn interrupted(from_agent: &mut FrameReceiver) -> String {
    match in_time(from_agent.recv()).await {
        Some(Incoming::State(ConnectionState::Interrupted(cause))) => cause,
        other => panic!("{other:?}"),
    }
}

async fn is_connected_again(from_agent: &mut FrameReceiver) {
    let state = in_time(from_agent.recv()).await;
    assert!(matches!(state, Some(Incoming::State(ConnectionState::Resumed))), "{state:?}");
}

async fn lost(from_agent: &mut FrameReceiver) -> String {
    match in_time(from_agent.recv()).await {
        Some(Incoming::Closed(CloseReason::Lost(cause) | CloseReason::RuntimeUnavailable(cause))) => cause,
        other => panic!("{other:?}"),
    }
}

fn said(number: u64) -> Value {
    json!({"method": "said", "params": [number]})
}

fn update(number: u64) -> Value {
    json!({"method": "session/update", "params": {"sessionId": "s", "update": {"n": number}}})
}

#[tokio::test]
async fn cut_during_a_turn_loses_and_repeats_nothing() {
    let runtime = Runtime::new().await;
    let (Connected { mut pipe, .. }, mut socket) = runtime.conversation().await;
    for number in 1..=3 {
        pipe.to_agent.try_send(said(number).to_string()).unwrap();
        assert_eq!(socket.receive().await, (Some(Numbers { seq: number, ack: 0 }), said(number)));
    }
    socket.send(2, 1, update(2)).await;
    assert_eq!(message(&mut pipe.from_agent).await, (2, update(2)));
    socket.cut();
    interrupted(&mut pipe.from_agent).await;
    pipe.to_agent.try_send(said(4).to_string()).unwrap();

    // It got the first two; of what the runtime said, the client has two.
    let mut socket = runtime.accept_again(2).await;
    assert_eq!(socket.received, Some(2));
    for seq in 2..=4 {
        socket.send(seq, 2, update(seq)).await;
    }
    is_connected_again(&mut pipe.from_agent).await;
    assert_eq!(message(&mut pipe.from_agent).await, (3, update(3)), "what came before does not come again");
    assert_eq!(message(&mut pipe.from_agent).await, (4, update(4)));
    for number in 3..=4 {
        assert_eq!(socket.receive().await, (Some(Numbers { seq: number, ack: 0 }), said(number)));
    }
}

/// A runtime that cuts the line after a few frames in either direction, again and again.
#[tokio::test]
async fn however_often_it_is_cut_everything_arrives_once_and_in_order() {
    const MESSAGES: u64 = 300;
    let runtime = Runtime::new().await;
    let (Connected { mut pipe, delivered, .. }, socket) = runtime.conversation().await;
    let to_agent = pipe.to_agent.clone();
    let saying = async {
        for number in 1..=MESSAGES {
            to_agent.send(said(number).to_string()).await.unwrap();
        }
    };
    let hearing = async {
        let (mut next, mut breaks) = (2, 0);
        while next <= MESSAGES {
            match in_time(pipe.from_agent.recv()).await.unwrap() {
                Incoming::Frame(frame) => {
                    assert_eq!(frame.seq(), next);
                    delivered.handle(next);
                    delivered.settle(next);
                    next += 1;
                }
                Incoming::State(ConnectionState::Interrupted(_)) => breaks += 1,
                Incoming::State(ConnectionState::Resumed) => {}
                Incoming::Closed(reason) => panic!("{reason:?}"),
            }
        }
        breaks
    };
    let playing = async {
        let (mut socket, mut got, mut next) = (socket, 0, 2);
        for round in 1u64.. {
            let frames = if round > 9 { u64::MAX } else { 7 * round };
            for _ in 0..frames {
                if got == MESSAGES && next > MESSAGES {
                    return socket;
                }
                if got < MESSAGES {
                    let (numbers, message) = socket.receive().await;
                    match numbers.unwrap().seq {
                        0 => assert_eq!(message["method"], ACKNOWLEDGED),
                        seq => {
                            got += 1;
                            assert_eq!((seq, message), (got, said(got)));
                        }
                    }
                }
                if next <= MESSAGES {
                    socket.send(next, got, update(next)).await;
                    next += 1;
                }
            }
            // Half of the breaks lose what is on its way.
            if round % 2 == 0 {
                socket.cut()
            } else {
                drop(socket)
            }
            socket = runtime.accept_again(got).await;
            next = socket.received.unwrap() + 1;
        }
        unreachable!()
    };
    let ((), breaks, _socket) = tokio::join!(saying, hearing, playing);
    assert_eq!(breaks, 9);
}

#[tokio::test]
async fn message_cut_while_sent_is_sent_again() {
    let runtime = Runtime::new().await;
    let (Connected { mut pipe, .. }, socket) = runtime.conversation().await;
    let large = json!({"method": "large", "params": "x".repeat(8 * 1024 * 1024)});
    pipe.to_agent.try_send(large.to_string()).unwrap();
    // Some of it is on the line.
    in_time(socket.socket.get_ref().readable()).await.unwrap();
    socket.cut();
    interrupted(&mut pipe.from_agent).await;
    let mut socket = runtime.accept_again(0).await;
    let (numbers, message) = socket.receive().await;
    assert_eq!(numbers, Some(Numbers { seq: 1, ack: 0 }));
    assert!(message == large);
}

#[tokio::test]
async fn evicted_conversation_is_lost_at_once() {
    let runtime = Runtime::new().await;
    let (Connected { mut pipe, .. }, socket) = runtime.conversation().await;
    socket.cut();
    interrupted(&mut pipe.from_agent).await;
    runtime.refuse("503 Service Unavailable").await;
    runtime.refuse("404 Not Found").await;
    assert!(lost(&mut pipe.from_agent).await.contains("does not hold"));
    assert_eq!(pipe.to_agent.try_send("{}".into()), Err(SendError::Closed));
}

#[tokio::test]
async fn conversation_is_lost_after_the_grace() {
    let mut runtime = Runtime::new().await;
    runtime.endpoint.resume.grace = Duration::from_millis(600);
    let (Connected { mut pipe, .. }, socket) = runtime.conversation().await;
    socket.cut();
    drop(runtime);
    let begun = Instant::now();
    interrupted(&mut pipe.from_agent).await;
    assert!(lost(&mut pipe.from_agent).await.contains("did not come back within 0.6 s"));
    assert!(begun.elapsed() >= Duration::from_millis(500));
}

#[tokio::test]
async fn break_without_numbers_ends_the_conversation() {
    for grace in [GRACE, Duration::ZERO] {
        let mut runtime = Runtime::new().await;
        runtime.endpoint.resume.grace = grace;
        let (connected, mut socket) = tokio::join!(socket::connect(&runtime.endpoint, None), runtime.accept());
        let Connected { mut pipe, .. } = connected.unwrap();
        // Without a grace, a field that looks like a message number has no meaning.
        match grace {
            GRACE => socket.send_text(update(1).to_string()).await,
            _ => socket.send(7, 0, update(1)).await,
        }
        assert_eq!(message(&mut pipe.from_agent).await, (0, update(1)));
        pipe.to_agent.try_send(said(1).to_string()).unwrap();
        assert_eq!(socket.receive().await, (None, said(1)));
        socket.cut();
        lost(&mut pipe.from_agent).await;
    }
}

#[tokio::test]
async fn half_open_connection_is_noticed_in_under_15_s() {
    let runtime = Runtime::new().await;
    let (Connected { mut pipe, .. }, mut dead) = runtime.conversation().await;
    dead.send(2, 0, update(2)).await;
    assert_eq!(message(&mut pipe.from_agent).await, (2, update(2)));
    let begun = Instant::now();
    let cause = interrupted(&mut pipe.from_agent).await;
    assert!(cause.contains("nothing was heard"), "{cause}");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let _again = runtime.accept_again(0).await;
    is_connected_again(&mut pipe.from_agent).await;
}

#[tokio::test]
async fn peer_that_answers_pings_is_never_dead() {
    let mut runtime = Runtime::new().await;
    runtime.endpoint.heartbeat = Heartbeat { every: Duration::from_millis(50), silence: Duration::from_millis(400) };
    runtime.endpoint.pipe.frames = 1;
    let (Connected { mut pipe, .. }, mut socket) = runtime.conversation().await;
    // The session takes none of these for longer than the patience; the pings of that time are the clock.
    for seq in 2..=5 {
        socket.send(seq, 0, update(seq)).await;
    }
    let pings = socket.pings;
    while socket.pings < pings + 20 {
        match in_time(socket.socket.next()).await.unwrap().unwrap() {
            Message::Ping(_) => socket.pings += 1,
            other => panic!("{other:?}"),
        }
    }
    for seq in 2..=5 {
        assert_eq!(message(&mut pipe.from_agent).await, (seq, update(seq)));
    }
    while socket.pings < pings + 40 {
        match in_time(socket.socket.next()).await.unwrap().unwrap() {
            Message::Ping(_) => socket.pings += 1,
            Message::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn healed_breaks_are_merged_for_a_slow_session() {
    let mut runtime = Runtime::new().await;
    runtime.endpoint.pipe.frames = 1;
    let (Connected { mut pipe, .. }, mut socket) = runtime.conversation().await;
    socket.send(2, 0, update(2)).await;
    socket.send(3, 0, update(3)).await;
    for _ in 0..2 {
        // A frame of ours, so that the break is noticed by one who does not read.
        pipe.to_agent.try_send("{}".into()).unwrap();
        socket.receive().await;
        socket.cut();
        pipe.to_agent.try_send("{}".into()).unwrap();
        socket = runtime.accept_again(0).await;
        assert_eq!(socket.received, Some(3));
    }
    socket.receive().await;
    socket.send(4, 0, update(4)).await;
    assert_eq!(message(&mut pipe.from_agent).await.0, 2);
    assert_eq!(message(&mut pipe.from_agent).await.0, 3);
    assert_eq!(message(&mut pipe.from_agent).await.0, 4, "nothing happened");
}

#[tokio::test]
async fn peer_that_reads_nothing_is_dropped_without_blocking_reads() {
    let mut runtime = Runtime::new().await;
    runtime.endpoint.heartbeat = Heartbeat { every: Duration::from_millis(100), silence: Duration::from_secs(1) };
    let (Connected { mut pipe, .. }, mut socket) = runtime.conversation().await;
    // More than the buffers between take.
    pipe.to_agent.try_send(json!({"method": "large", "params": "x".repeat(15_000_000)}).to_string()).unwrap();
    let mut seq = 1;
    let cause = loop {
        seq += 1;
        socket.send(seq, 0, update(seq)).await;
        match in_time(pipe.from_agent.recv()).await.unwrap() {
            Incoming::Frame(frame) => assert_eq!(frame.seq(), seq),
            Incoming::State(ConnectionState::Interrupted(cause)) => break cause,
            other => panic!("{other:?}"),
        }
    };
    assert!(cause.contains("took nothing") && seq > 2, "{cause}");
}

#[tokio::test]
async fn ends_announced_by_the_runtime_are_not_retried() {
    for code in [
        close_code::NORMAL,
        close_code::GOING_AWAY,
        close_code::POLICY,
        close_code::TOO_BIG,
        close_code::AGENT_ENDED,
        close_code::REPLACED,
    ] {
        let runtime = Runtime::new().await;
        let (Connected { mut pipe, .. }, mut socket) = runtime.conversation().await;
        socket.send(2, 0, update(2)).await;
        let (_, cause) = tokio::join!(socket.close(code), async {
            assert_eq!(message(&mut pipe.from_agent).await, (2, update(2)));
            lost(&mut pipe.from_agent).await
        });
        assert!(cause.contains(&format!("{code} because")), "{cause}");
    }
    // One of something between.
    let runtime = Runtime::new().await;
    let (Connected { mut pipe, .. }, socket) = runtime.conversation().await;
    let (_, cause) = tokio::join!(socket.close(1012), interrupted(&mut pipe.from_agent));
    assert!(cause.contains("1012"), "{cause}");
}

#[tokio::test]
async fn dropped_session_flushes_and_closes_with_1000() {
    let runtime = Runtime::new().await;
    let (Connected { pipe, .. }, mut socket) = runtime.conversation().await;
    pipe.to_agent.try_send(said(1).to_string()).unwrap();
    drop(pipe);
    assert_eq!(socket.receive().await.1, said(1));
    assert_eq!(socket.receive_close().await, close_code::NORMAL);
    // It confirms; nobody comes back.
    while let Some(Ok(_)) = in_time(socket.socket.next()).await {}
}

#[tokio::test]
async fn session_that_ends_while_interrupted_notifies_the_runtime() {
    for refusals in [0, 1] {
        let runtime = Runtime::new().await;
        let (Connected { mut pipe, .. }, socket) = runtime.conversation().await;
        socket.cut();
        interrupted(&mut pipe.from_agent).await;
        for _ in 0..refusals {
            runtime.refuse("502 Bad Gateway").await;
        }
        drop(pipe);
        let mut socket = runtime.accept_again(0).await;
        assert_eq!(socket.receive_close().await, close_code::NORMAL);
    }
}

#[tokio::test]
async fn unconfirmed_close_frame_is_sent_again() {
    let runtime = Runtime::new().await;
    let (Connected { pipe, .. }, socket) = runtime.conversation().await;
    drop(pipe);
    in_time(socket.socket.get_ref().readable()).await.unwrap();
    socket.cut();
    let mut socket = runtime.accept_again(0).await;
    assert_eq!(socket.receive_close().await, close_code::NORMAL);
}

#[tokio::test]
async fn a_gap_ends_the_conversation_for_both() {
    let runtime = Runtime::new().await;
    let (Connected { mut pipe, .. }, mut socket) = runtime.conversation().await;
    socket.send(3, 0, update(3)).await;
    let (cause, code) = tokio::join!(lost(&mut pipe.from_agent), socket.receive_close());
    assert_eq!(code, close_code::NORMAL);
    assert!(cause.contains("left messages out"), "{cause}");
}

#[tokio::test]
async fn peer_that_claims_unsent_messages_is_rejected() {
    let runtime = Runtime::new().await;
    let (Connected { mut pipe, .. }, socket) = runtime.conversation().await;
    socket.cut();
    interrupted(&mut pipe.from_agent).await;
    let mut socket = runtime.accept_again(5).await;
    let (_, code) = tokio::join!(lost(&mut pipe.from_agent), socket.receive_close());
    assert_eq!(code, close_code::NORMAL);
}

#[tokio::test]
async fn agent_that_is_not_read_waits_in_bounded_memory() {
    let mut runtime = Runtime::new().await;
    runtime.endpoint.resume.frames = 4;
    runtime.endpoint.pipe.frames = 2;
    let (Connected { mut pipe, .. }, mut socket) = runtime.conversation().await;
    for number in 1..=6 {
        in_time(pipe.to_agent.send(said(number).to_string())).await.unwrap();
    }
    for number in 1..=4 {
        assert_eq!(socket.receive().await.1, said(number));
    }
    assert_eq!(pipe.to_agent.try_send(said(7).to_string()), Err(SendError::Full));
    socket.send(2, 1, update(2)).await;
    assert_eq!(message(&mut pipe.from_agent).await, (2, update(2)));
    assert_eq!(socket.receive().await.1, said(5), "one was acknowledged, so there is room for one");
    socket.send(0, 5, json!({"method": ACKNOWLEDGED})).await;
    assert_eq!(socket.receive().await.1, said(6));
    socket.send(3, 6, update(3)).await;
    assert_eq!(message(&mut pipe.from_agent).await, (3, update(3)), "an acknowledgement is not for the session");
}

#[tokio::test]
async fn acknowledgements_ride_on_messages_below_a_quarter_of_the_limits() {
    let mut runtime = Runtime::new().await;
    runtime.endpoint.resume.frames = 400;
    let (Connected { mut pipe, delivered, .. }, mut socket) = runtime.conversation().await;
    // 50 turns of 10 messages, each settled at its end, each with a message of ours: none of them alone.
    let mut seq = 1;
    for turn in 1..=50 {
        pipe.to_agent.try_send(said(turn).to_string()).unwrap();
        assert_eq!(socket.receive().await, (Some(Numbers { seq: turn, ack: seq / 10 * 10 }), said(turn)));
        while seq < turn * 10 {
            seq += 1;
            socket.send(seq, turn, update(seq)).await;
            assert_eq!(message(&mut pipe.from_agent).await.0, seq);
        }
        delivered.settle(seq);
    }
    // A turn of 350 messages, each settled as it comes: those of a quarter, and the 10 of the turn before.
    for _ in 0..350 {
        seq += 1;
        socket.send(seq, 50, update(seq)).await;
        assert_eq!(message(&mut pipe.from_agent).await.0, seq);
        delivered.settle(seq);
    }
    pipe.to_agent.try_send(said(51).to_string()).unwrap();
    let mut alone = 0;
    loop {
        let (numbers, message) = socket.receive().await;
        let Numbers { seq: number, ack } = numbers.unwrap();
        if number > 0 {
            assert_eq!((number, ack, message), (51, seq, said(51)));
            break;
        }
        assert_eq!(message, json!({"jsonrpc": "2.0", "method": ACKNOWLEDGED}));
        alone += 1;
    }
    assert_eq!(alone, 3);
}

fn transport(runtime: &Runtime) -> AcpTransport {
    AcpTransport {
        endpoint: runtime.endpoint.clone(),
        handshake_timeouts: HandshakeTimeouts { default: PATIENCE, ..Default::default() },
        auth_methods: Default::default(),
    }
}

#[tokio::test]
async fn handshake_asks_for_numbers_and_settles_itself() {
    let runtime = Runtime::new().await;
    let request = OpenRequest {
        session_id: SessionId(Uuid::nil()),
        installation_id: None,
        is_ephemeral: false,
        agent: None,
        cwd: "/w".into(),
        mcp_servers: McpServers::none(),
        previous: None,
        cookies: None,
        choices: Choices::default(),
    };
    let playing = async {
        let mut socket = runtime.accept().await;
        let (numbers, initialize) = socket.receive().await;
        assert_eq!(numbers, None);
        assert_eq!(initialize["params"]["_meta"]["lumilink"]["resumable"], true);
        socket.send(1, 0, json!({"id": 1, "result": {"protocolVersion": 1}})).await;
        assert_eq!(socket.receive().await.0, Some(Numbers { seq: 1, ack: 1 }));
        socket.send(2, 1, update(0)).await;
        socket.send(3, 1, json!({"id": 2, "result": {"sessionId": "s"}})).await;
        socket
    };
    let transport = transport(&runtime);
    let (opened, mut socket) = tokio::join!(transport.open(request), playing);
    let OpenedSession { mut link, mut events, next_call, facts } = opened.unwrap();
    assert_eq!(facts.connection_id, "c1");
    let delivered = link.delivered();
    assert_eq!((delivered.handled(), delivered.settled()), (3, 3));
    // The update before the answer to `session/new` is the first event.
    assert!(matches!(in_time(events.next()).await, Some(AgentEvent::Update { .. })));
    assert_eq!((delivered.handled(), delivered.settled()), (3, 3));
    let prompt = Prompt::of_text("hello");
    let policy = PermissionPolicy::default();
    let turn = TurnRequest {
        prompt_id: PromptId(Uuid::nil()),
        prompt: &prompt,
        context: None,
        policy,
        choices: &Choices::default(),
    };
    link.prompt(next_call, turn).unwrap();
    assert_eq!(socket.receive().await.0, Some(Numbers { seq: 2, ack: 3 }));
    socket.send(4, 2, update(1)).await;
    assert!(matches!(in_time(events.next()).await, Some(AgentEvent::Update { .. })));
    assert_eq!((delivered.handled(), delivered.settled()), (4, 3));
    socket.cut();
    assert!(matches!(in_time(events.next()).await, Some(AgentEvent::Interrupted(_))));
    let mut socket = runtime.accept_again(2).await;
    assert!(matches!(in_time(events.next()).await, Some(AgentEvent::Resumed)));
    socket.send(5, 2, json!({"id": next_call, "result": {"stopReason": "end_turn"}})).await;
    assert!(matches!(in_time(events.next()).await, Some(AgentEvent::Answered { call, .. }) if call == next_call));
    assert_eq!(delivered.handled(), 5);
}

fn adopt_request(received: u64) -> AdoptRequest {
    AdoptRequest { connection_id: "c1".into(), agent_session_id: "s".into(), received, ended: None, cookies: None }
}

#[tokio::test]
async fn new_client_resumes_where_the_dead_one_stopped() {
    let runtime = Runtime::new().await;
    let prompt = ResumedPrompt { prompt_id: PromptId(Uuid::nil()), call: 7, after: 40 };
    let playing = async {
        let mut socket = runtime.accept().await;
        assert_eq!((socket.goes_on.as_deref(), socket.received), (Some("c1"), None));
        let resumed = Resumed { received: 9, after: 38, prompt: Some(prompt.clone()) };
        socket.send_text(json!({"jsonrpc": "2.0", "method": RESUMED, "params": resumed}).to_string()).await;
        // Before the turn, and on disk; neither is for the session.
        for seq in 39..=41 {
            socket.send(seq, 9, update(seq)).await;
        }
        socket.send(42, 9, update(42)).await;
        socket.send(43, 9, json!({"id": 7, "result": {"stopReason": "end_turn"}})).await;
        socket
    };
    let transport = transport(&runtime);
    let (adopted, mut socket) = tokio::join!(transport.adopt(adopt_request(41)), playing);
    let AdoptedSession { mut link, mut events, next_call, prompt: found } = adopted.unwrap();
    assert_eq!((found, next_call), (Some(prompt), 1007));
    let Some(AgentEvent::Update { update: seen, .. }) = in_time(events.next()).await else { panic!("no update") };
    assert!(seen.get().contains("42"), "{seen}");
    assert!(matches!(in_time(events.next()).await, Some(AgentEvent::Answered { call: 7, .. })));
    assert_eq!((link.delivered().handled(), link.delivered().settled()), (43, 41));
    link.cancel().unwrap();
    let (numbers, message) = socket.receive().await;
    assert_eq!((numbers, message["method"].as_str()), (Some(Numbers { seq: 10, ack: 41 }), Some("session/cancel")));
    // It is as good as the first one.
    socket.cut();
    assert!(matches!(in_time(events.next()).await, Some(AgentEvent::Interrupted(_))));
    let mut socket = runtime.accept_again(9).await;
    assert_eq!(socket.received, Some(43));
    assert_eq!(socket.receive().await.0, Some(Numbers { seq: 10, ack: 41 }));
    drop(link);
    assert_eq!(socket.receive_close().await, close_code::NORMAL);
}

#[tokio::test]
async fn unknown_conversation_cannot_be_adopted() {
    let runtime = Runtime::new().await;
    let transport = transport(&runtime);
    for (status, code) in
        [("404 Not Found", ErrorCode::ConnectionLost), ("502 Bad Gateway", ErrorCode::RuntimeUnavailable)]
    {
        let (adopted, ()) = tokio::join!(transport.adopt(adopt_request(0)), runtime.refuse(status));
        assert_eq!(adopted.err().unwrap().code, code);
    }
}

#[test]
fn the_facts_come_back_from_what_was_kept_of_them() {
    let kept = json!({
        "agentInfo": {"name": "a"},
        "agentCapabilities": {"promptCapabilities": {"image": true}, "sessionCapabilities": {"close": {}}},
        "modes": null,
    });
    let facts = AgentFacts::from_kept(&kept.to_string(), &adopt_request(0));
    assert_eq!(facts.takes, Kinds { image: true, ..Kinds::default() });
    assert!(facts.can_close && facts.remembers && facts.offers.modes.is_none());
    assert_eq!(facts.info.unwrap().get(), r#"{"name":"a"}"#);
    assert_eq!((facts.connection_id.as_str(), facts.agent_session_id.as_str()), ("c1", "s"));
    for broken in ["", "null", "[]", r#"{"agentCapabilities": 3}"#] {
        assert!(!AgentFacts::from_kept(broken, &adopt_request(0)).can_close, "{broken}");
    }
}

#[test]
fn settled_number_only_grows() {
    let delivered = Arc::<Delivered>::default();
    delivered.settle(5);
    delivered.settle(3);
    assert_eq!(delivered.settled(), 5);
}
