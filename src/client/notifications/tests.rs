use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream, accept_async,
    tungstenite::{
        Message,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use super::*;
use crate::{config::ClientSettings, contract::notifications::frames::close_code};

const DEADLINE: Duration = Duration::from_secs(10);

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    timeout(DEADLINE, what).await.expect("in time")
}

/// A server whose sockets a test speaks for, and whose list it fills, oldest first.
struct Server {
    settings: ClientSettings,
    list: Arc<Mutex<Vec<Value>>>,
    requests: Arc<Mutex<Vec<String>>>,
    sockets: mpsc::Receiver<TcpStream>,
}

/// Notifications on a page of the list.
const PAGE: usize = 2;

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/base/", listener.local_addr().unwrap());
        let (list, requests) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let (sender, sockets) = mpsc::channel(8);
        let (rows, notes) = (list.clone(), requests.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let head = head(&stream).await;
                let line = head.lines().next().unwrap().to_owned();
                notes.lock().push(head);
                if line.contains("/ws/notifications") {
                    sender.send(stream).await.unwrap();
                } else {
                    let page = page(&rows.lock(), &line);
                    answer(stream, "200 OK", &page.to_string()).await;
                }
            }
        });
        let settings = ClientSettings { url: url.parse().unwrap(), token: Some("t0ken".to_owned().into()) };
        Self { settings, list, requests, sockets }
    }

    fn follower(&self, place: Option<(&str, u64)>) -> NotificationFollower {
        let place = place.map(|(epoch, cursor)| Place { epoch: epoch.into(), cursor });
        let scope = NotificationScope { installation_id: Some("acme".into()), ..NotificationScope::default() };
        NotificationFollower::new(ApiClient::new(&self.settings).unwrap(), scope, place, false)
    }

    async fn stream(&mut self) -> TcpStream {
        in_time(self.sockets.recv()).await.unwrap()
    }

    /// The next connection of a follower, and its `hello`.
    async fn accept(&mut self) -> (Socket, Value) {
        let stream = self.stream().await;
        let mut socket = Socket(in_time(accept_async(stream)).await.unwrap());
        let hello = socket.receive_frame().await;
        (socket, hello)
    }

    /// A follower with an open connection.
    async fn welcomed(&mut self, place: Option<(&str, u64)>) -> (Socket, NotificationFollower) {
        let mut follower = self.follower(place);
        let serving = async {
            let (mut socket, _) = self.accept().await;
            socket.welcome("e", place.map_or(5, |(_, cursor)| cursor)).await;
            socket
        };
        let (socket, event) = tokio::join!(serving, in_time(follower.next()));
        assert!(matches!(event.unwrap(), NotificationEvent::Welcome { .. }));
        (socket, follower)
    }
}

/// The bytes waiting to be read, without consuming them.
async fn head(stream: &TcpStream) -> String {
    let mut buffer = vec![0; 4096];
    loop {
        let length = stream.peek(&mut buffer).await.unwrap();
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if length == 0 || text.contains("\r\n\r\n") {
            return text;
        }
        tokio::task::yield_now().await;
    }
}

fn page(list: &[Value], line: &str) -> Value {
    let cursor = line.split_once("cursor=").and_then(|(_, rest)| rest.split([' ', '&']).next());
    let skipped: usize = cursor.map_or(0, |cursor| cursor.parse().unwrap());
    let unread_only = line.contains("unreadOnly=true");
    let rows: Vec<_> = list.iter().rev().filter(|row| !unread_only || row["read"] == false).collect();
    let next = (skipped + PAGE < rows.len()).then(|| (skipped + PAGE).to_string());
    let items: Vec<_> = rows.into_iter().skip(skipped).take(PAGE).collect();
    json!({"items": items, "unread": 0, "nextCursor": next})
}

async fn answer(mut stream: TcpStream, status: &str, body: &str) {
    let mut request = vec![0; 4096];
    let _ = stream.read(&mut request).await.unwrap();
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}"
    );
    stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await.unwrap();
}

struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    async fn send_frame(&mut self, frame: Value) {
        in_time(self.0.send(Message::text(frame.to_string()))).await.unwrap();
    }

    async fn welcome(&mut self, epoch: &str, cursor: u64) {
        self.send_frame(
            json!({"type": "welcome", "version": 1, "epoch": epoch, "cursor": cursor, "head": 9, "unread": 3}),
        )
        .await;
    }

    async fn notification(&mut self, seq: u64) {
        let mut notification = notification(seq);
        notification["type"] = "toast".into();
        self.send_frame(notification).await;
    }

    /// The next frame of text.
    async fn receive_frame(&mut self) -> Value {
        loop {
            if let Message::Text(text) = in_time(self.0.next()).await.expect("a frame").unwrap() {
                return serde_json::from_str(&text).unwrap();
            }
        }
    }

    async fn close(mut self, code: u16, reason: &str) {
        let frame = CloseFrame { code: CloseCode::from(code), reason: reason.to_owned().into() };
        in_time(self.0.close(Some(frame))).await.unwrap();
    }
}

fn notification(seq: u64) -> Value {
    json!({"id": Uuid::from_u128(seq.into()), "seq": seq, "body": format!("body {seq}")})
}

/// The same on the list: every other one was read.
fn entry(seq: u64) -> Value {
    json!({"toast": notification(seq), "read": seq.is_multiple_of(2)})
}

async fn next(follower: &mut NotificationFollower) -> NotificationEvent {
    in_time(follower.next()).await.unwrap()
}

async fn next_seq(follower: &mut NotificationFollower) -> u64 {
    match next(follower).await {
        NotificationEvent::Notification(notification) => notification.seq,
        other => panic!("not a notification: {other:?}"),
    }
}

fn cursor(follower: &NotificationFollower) -> u64 {
    follower.place().expect("a place").cursor
}

#[tokio::test]
async fn hello_has_token_cursor_and_scope() {
    let mut server = Server::start().await;
    let mut follower = server.follower(Some(("e", 4)));
    follower.telemetry = true;
    let serving = async {
        let (mut socket, hello) = server.accept().await;
        assert_eq!(hello, json!({"type": "hello", "version": 1, "epoch": "e", "cursor": 4, "telemetry": true}));
        socket.welcome("e", 4).await;
        socket.send_frame(json!({"type": "telemetry", "sessionId": "s", "state": "running"})).await;
        socket.send_frame(json!({"type": "gap", "telemetry": 3})).await;
    };
    let (event, ()) = tokio::join!(next(&mut follower), serving);
    assert_eq!(event, NotificationEvent::Welcome { epoch: "e".into(), cursor: 4, unread: 3 });
    let NotificationEvent::Telemetry(telemetry) = next(&mut follower).await else { panic!("no telemetry") };
    assert_eq!(telemetry["state"], "running");
    assert_eq!(next(&mut follower).await, NotificationEvent::Gap { telemetry: 3 });
    let requests = server.requests.lock()[0].to_lowercase();
    assert!(requests.starts_with("get /base/ws/notifications?installationid=acme http/1.1"), "{requests}");
    assert!(
        requests.contains("authorization: bearer t0ken") && requests.contains("user-agent: lumilink/"),
        "{requests}"
    );
}

#[tokio::test]
async fn a_broken_connection_resumes_after_the_last_notification() {
    let mut server = Server::start().await;
    let (mut socket, mut follower) = server.welcomed(None).await;
    for seq in [6, 7, 7, 6, 8] {
        socket.notification(seq).await;
    }
    for seq in [6, 7, 8] {
        assert_eq!(next_seq(&mut follower).await, seq);
        assert_eq!(cursor(&follower), seq);
    }
    drop(socket);
    let broken = next(&mut follower).await;
    assert!(matches!(broken, NotificationEvent::Broken { again_in_ms: 400..=600, .. }), "{broken:?}");
    let serving = async {
        let (mut socket, hello) = server.accept().await;
        assert_eq!((&hello["epoch"], &hello["cursor"]), (&json!("e"), &json!(8)));
        socket.welcome("e", 8).await;
        socket.notification(8).await;
        socket.notification(9).await;
        socket
    };
    let (event, _socket) = tokio::join!(next(&mut follower), serving);
    assert!(matches!(event, NotificationEvent::Restored { after_ms: 400.., unread: 3 }), "{event:?}");
    assert_eq!(next_seq(&mut follower).await, 9);
}

#[tokio::test]
async fn stopping_and_too_slow_reconnect_at_once_but_only_once() {
    for code in [close_code::GOING_AWAY, close_code::TOO_SLOW] {
        let mut server = Server::start().await;
        let (mut socket, mut follower) = server.welcomed(Some(("e", 5))).await;
        socket.send_frame(json!({"type": "bye", "code": code, "reason": "stops", "cursor": 7})).await;
        assert_eq!(next(&mut follower).await, NotificationEvent::Broken { reason: "stops".into(), again_in_ms: 0 });
        assert_eq!(cursor(&follower), 5, "undelivered events do not move the cursor");
        let serving = async {
            let (socket, _) = server.accept().await;
            socket.close(code, "again").await;
        };
        let (event, ()) = tokio::join!(next(&mut follower), serving);
        let NotificationEvent::Broken { reason, again_in_ms } = event else { panic!("{event:?}") };
        assert_eq!(reason, "again");
        assert!((800..=1200).contains(&again_in_ms), "{again_in_ms}");
    }
}

#[tokio::test]
async fn expiry_and_policy_closes_end_the_follower() {
    for code in [close_code::EXPIRED, close_code::POLICY] {
        let mut server = Server::start().await;
        let (socket, mut follower) = server.welcomed(None).await;
        socket.close(code, "get a new ticket\u{1b}[2J").await;
        let error = in_time(follower.next()).await.unwrap_err();
        assert_eq!(error.to_string(), "the server ended the subscription: get a new ticket[2J");
    }
}

#[tokio::test]
async fn a_refusal_ends_the_follower_but_overload_does_not() {
    let mut server = Server::start().await;
    let mut follower = server.follower(None);
    let problem = |status: u16| {
        json!({"type": "about:blank", "title": "t", "status": status, "detail": "send a bearer token",
            "code": "unauthorized", "class": "application", "retryable": false, "requestId": "r1"})
        .to_string()
    };
    for status in [503, 429] {
        let serving = async { answer(server.stream().await, &format!("{status} X"), &problem(status)).await };
        let (event, ()) = tokio::join!(next(&mut follower), serving);
        assert!(matches!(&event, NotificationEvent::Broken { reason, .. } if reason.contains("bearer")), "{event:?}");
    }
    for status in [401, 403, 400, 404] {
        let mut follower = server.follower(None);
        let serving = async { answer(server.stream().await, &format!("{status} X"), &problem(status)).await };
        let (event, ()) = tokio::join!(in_time(follower.next()), serving);
        let error = event.unwrap_err().to_string();
        assert!(error.contains("send a bearer token [unauthorized, request r1]"), "{error}");
    }
    let mut follower = server.follower(None);
    let serving = async { answer(server.stream().await, "302 Found", "<h1>\u{1b}nginx").await };
    let (event, ()) = tokio::join!(in_time(follower.next()), serving);
    let error = event.unwrap_err().to_string();
    assert!(error.contains("/base/ws/notifications") && error.contains("answered 302: <h1>nginx"), "{error}");
}

#[tokio::test]
async fn a_reset_delivers_missed_notifications_before_the_cursor_moves() {
    let mut server = Server::start().await;
    server.list.lock().extend((3..=11).map(entry));
    let (mut socket, mut follower) = server.welcomed(Some(("e", 6))).await;
    socket.notification(7).await;
    assert_eq!(next_seq(&mut follower).await, 7);
    socket.send_frame(json!({"type": "reset", "reason": "tooOld", "epoch": "e", "cursor": 10})).await;
    socket.notification(11).await;
    assert_eq!(next(&mut follower).await, NotificationEvent::Reset { reason: "tooOld".into() });
    for seq in [8, 9, 10] {
        assert_eq!(next_seq(&mut follower).await, seq, "in order, read or not");
        assert_eq!(cursor(&follower), 7, "a follower stopped here reads it again");
    }
    assert_eq!(next(&mut follower).await, NotificationEvent::CaughtUp { notifications: 3, incomplete: None });
    assert_eq!(cursor(&follower), 10);
    assert_eq!(next_seq(&mut follower).await, 11);
}

#[tokio::test]
async fn another_epoch_delivers_unread_notifications() {
    let mut server = Server::start().await;
    server.list.lock().extend((1..=5).map(entry));
    let mut follower = server.follower(Some(("old", 900)));
    let serving = async {
        let (mut socket, hello) = server.accept().await;
        assert_eq!(hello["cursor"], 900);
        socket.welcome("new", 4).await;
        socket.send_frame(json!({"type": "reset", "reason": "otherEpoch", "epoch": "new", "cursor": 4})).await;
        socket.notification(5).await;
        socket
    };
    let (event, _socket) = tokio::join!(next(&mut follower), serving);
    assert!(matches!(event, NotificationEvent::Welcome { .. }), "{event:?}");
    assert_eq!(next(&mut follower).await, NotificationEvent::Reset { reason: "otherEpoch".into() });
    assert_eq!((next_seq(&mut follower).await, next_seq(&mut follower).await), (1, 3));
    assert_eq!(next(&mut follower).await, NotificationEvent::CaughtUp { notifications: 2, incomplete: None });
    assert_eq!(follower.place(), Some(&Place { epoch: "new".into(), cursor: 4 }));
    assert_eq!(next_seq(&mut follower).await, 5);
}

#[tokio::test]
async fn an_unreadable_inbox_is_reported_and_the_connection_continues() {
    let mut server = Server::start().await;
    server.list.lock().push(json!({"read": false}));
    let (mut socket, mut follower) = server.welcomed(Some(("e", 6))).await;
    socket.send_frame(json!({"type": "reset", "reason": "ahead", "epoch": "e", "cursor": 2})).await;
    socket.notification(3).await;
    assert_eq!(next(&mut follower).await, NotificationEvent::Reset { reason: "ahead".into() });
    let caught_up = next(&mut follower).await;
    assert!(
        matches!(&caught_up, NotificationEvent::CaughtUp { notifications: 0, incomplete: Some(_) }),
        "{caught_up:?}"
    );
    assert_eq!(next_seq(&mut follower).await, 3);
}

#[tokio::test]
async fn a_quiet_connection_is_pinged_and_stays_open_while_answered() {
    // A machine that is busy may keep an answer for a while.
    let heartbeat = Heartbeat { every: Duration::from_millis(50), silence: Duration::from_secs(3) };
    let mut server = Server::start().await;
    let mut follower = server.follower(None);
    follower.heartbeat = heartbeat;
    let serving = async {
        let (mut socket, _) = server.accept().await;
        socket.welcome("e", 5).await;
        let (begin, mut cursor) = (Instant::now(), 5);
        // Longer than a silence would be borne.
        while begin.elapsed() <= heartbeat.silence {
            assert_eq!(socket.receive_frame().await, json!({"type": "ping"}));
            cursor += 1;
            socket.send_frame(json!({"type": "pong", "cursor": cursor})).await;
        }
        socket.notification(cursor + 1).await;
        (socket, cursor)
    };
    let reading = async {
        let welcome = next(&mut follower).await;
        assert!(matches!(welcome, NotificationEvent::Welcome { .. }), "{welcome:?}");
        next_seq(&mut follower).await
    };
    let (seq, (_socket, ponged)) = tokio::join!(reading, serving);
    assert_eq!(seq, ponged + 1);
}

#[tokio::test]
async fn a_silent_connection_is_broken_and_a_pong_moves_the_cursor() {
    let mut server = Server::start().await;
    let (mut socket, mut follower) = server.welcomed(Some(("e", 5))).await;
    socket.send_frame(json!({"type": "pong", "cursor": 11})).await;
    drop(socket);
    assert!(matches!(next(&mut follower).await, NotificationEvent::Broken { .. }));
    assert_eq!(cursor(&follower), 11);
    let silence = async {
        let (_socket, _) = server.accept().await;
        std::future::pending::<()>().await;
    };
    follower.heartbeat = Heartbeat { every: Duration::from_millis(50), silence: Duration::from_millis(200) };
    let broken = tokio::select! {
        event = next(&mut follower) => event,
        () = silence => unreachable!(),
    };
    assert!(
        matches!(&broken, NotificationEvent::Broken { reason, .. } if reason == "no message for 0.2 s"),
        "{broken:?}"
    );
}

#[tokio::test]
async fn an_unreachable_server_is_retried_with_growing_waits() {
    let mut server = Server::start().await;
    // Nobody listens there, and nobody else gets it.
    let holder = TcpSocket::new_v4().unwrap();
    holder.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let free = holder.local_addr().unwrap();
    server.settings.url = format!("http://{free}/").parse().unwrap();
    let mut follower = server.follower(None);
    let (first, second) = (next(&mut follower).await, next(&mut follower).await);
    let NotificationEvent::Broken { reason, again_in_ms: 400..=600 } = first else { panic!("{first:?}") };
    assert!(reason.starts_with(&format!("cannot reach ws://{free}/ws/notifications")), "{reason}");
    assert!(matches!(second, NotificationEvent::Broken { again_in_ms: 800..=1200, .. }), "{second:?}");
}

#[tokio::test]
async fn a_cancelled_next_loses_no_event_and_close_sends_a_frame() {
    let mut server = Server::start().await;
    let (mut socket, mut follower) = server.welcomed(None).await;
    for seq in 6..60 {
        // Given up again and again, wherever it is.
        let _ = timeout(Duration::ZERO, follower.next()).await.map(|event| panic!("unexpected event: {event:?}"));
        socket.notification(seq).await;
        assert_eq!(next_seq(&mut follower).await, seq);
    }
    let leaving = async {
        let frame = in_time(socket.0.next()).await.unwrap().unwrap();
        assert!(matches!(frame, Message::Close(Some(frame)) if u16::from(frame.code) == 1000));
    };
    tokio::join!(follower.close(), leaving);
}

#[tokio::test]
async fn acknowledgements_carry_the_scope() {
    let server = Server::start().await;
    let client = ApiClient::new(&server.settings).unwrap();
    let scope = NotificationScope { user_id: Some("ann".into()), operators: true, ..NotificationScope::default() };
    client.ack_notification(&scope, Uuid::from_u128(7)).await.unwrap();
    client.notifications(&scope, true, Some("4"), Some(3)).await.unwrap();
    let requests = server.requests.lock().clone();
    assert!(
        requests[0].starts_with("POST /base/acp/notifications/00000000-0000-0000-0000-000000000007/ack "),
        "{requests:?}"
    );
    let query = "GET /base/acp/notifications?userId=ann&stream=operators&unreadOnly=true&cursor=4&limit=3 ";
    assert!(requests[1].starts_with(query), "{requests:?}");
}
