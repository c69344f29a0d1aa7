use std::sync::Arc;

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::client::{follow, stream::TurnEvent};

/// A server that gives one canned answer per connection, in order, and records the requests.
struct Canned {
    client: ApiClient,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Canned {
    async fn new(answers: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/base/", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let notes = requests.clone();
        tokio::spawn(async move {
            for answer in answers {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !is_whole(&request) {
                    if socket.read_buf(&mut request).await.unwrap() == 0 {
                        break;
                    }
                }
                notes.lock().push(String::from_utf8(request).unwrap());
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let settings = ClientSettings { url: url.parse().unwrap(), token: Some("t0ken".to_owned().into()) };
        Self { client: ApiClient::new(&settings).unwrap(), requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().clone()
    }
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}

fn answer(status: &str, kind: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn ok(body: &str) -> String {
    answer("200 OK", "application/json", body)
}

fn stream(events: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{events}")
}

const ACCEPTED: &str = "event: accepted\ndata: {\"promptId\":\"p1\",\"sessionId\":\"s1\",\"duplicate\":false}\n\n";
const RESULT: &str = r#"{"stopReason":"completed","usage":{"inputTokens":1,"outputTokens":2}}"#;

fn problem(status: u16, code: &str) -> String {
    let body = json!({"type": "t", "title": "t", "status": status, "detail": "why", "code": code, "class": "system",
        "retryable": true, "requestId": "r1"});
    answer(&format!("{status} X"), "application/problem+json", &body.to_string())
}

async fn events_of(mut events: follow::Events) -> Vec<Result<TurnEvent, ClientError>> {
    let mut all = Vec::new();
    while let Some(event) = events.recv().await {
        all.push(event);
    }
    all
}

#[tokio::test]
async fn new_session_sends_the_token_and_only_given_members() {
    let server = Canned::new(vec![ok(r#"{"sessionId":"s1","protocol":"acp"}"#)]).await;
    let request = NewSession { workspace_id: "w".into(), installation_id: Some("i".into()), ..NewSession::default() };
    let opened = server.client.new_session(&request).await.unwrap();
    assert_eq!((opened.session_id.as_str(), &opened.more["protocol"]), ("s1", &Value::from("acp")));
    let request = &server.requests()[0];
    assert!(request.starts_with("POST /base/acp/session/new HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("authorization: Bearer t0ken\r\n"), "{request}");
    assert!(request.ends_with(r#"{"workspaceId":"w","installationId":"i"}"#), "{request}");
}

#[tokio::test]
async fn an_id_is_escaped_in_the_path() {
    let server = Canned::new(vec![ok("{}")]).await;
    server.client.session("../../admin?x=1#y").await.unwrap();
    let request = &server.requests()[0];
    assert!(request.starts_with("GET /base/acp/session/..%2F..%2Fadmin%3Fx=1%23y HTTP/1.1\r\n"), "{request}");
}

#[tokio::test]
async fn problems_are_typed_and_other_answers_are_unexpected() {
    let server =
        Canned::new(vec![problem(409, "turn_running"), answer("404 X", "text/html", "<h1>\u{1b}nginx")]).await;
    let Err(ClientError::Problem(refused)) = server.client.close("s").await else { panic!("a problem") };
    assert_eq!((refused.code.as_str(), refused.request_id.as_str()), ("turn_running", "r1"));
    let error = server.client.close("s").await.unwrap_err();
    assert!(matches!(&error, ClientError::Unexpected { status: 404, body, .. } if body == "<h1>nginx"), "{error}");
}

#[tokio::test]
async fn reads_are_retried_and_changes_are_not() {
    let page = r#"{"entries":[{"text":"a"}],"nextCursor":"c2"}"#;
    let server = Canned::new(vec![problem(503, "draining"), ok(page), String::new(), ok("{}")]).await;
    let page = server.client.transcript("s", Some("7"), Some(5)).await.unwrap();
    assert_eq!((page.items.len(), page.next_cursor.as_deref()), (1, Some("c2")));
    assert!(server.requests()[1].starts_with("GET /base/acp/session/s/transcript?cursor=7&limit=5 "));
    assert!(matches!(server.client.load("s").await, Err(ClientError::Lost { .. })));
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn an_unreachable_server_is_reported_at_once() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let settings = ClientSettings { url: format!("http://{closed}").parse().unwrap(), token: None };
    let error = ApiClient::new(&settings).unwrap().health().await.unwrap_err();
    assert!(
        matches!(error, ClientError::Unreachable { .. }) && error.to_string().contains("cannot reach"),
        "{error}"
    );
}

#[tokio::test]
async fn a_turn_streams_to_its_result() {
    let update = r#"{"sessionId":"s1","promptId":"p1","type":"update","update":{"sessionUpdate":"plan"}}"#;
    let events = format!(
        "{ACCEPTED}: keep-alive\n\nid: 4\nevent: update\ndata: {update}\n\nevent: result\ndata: {RESULT}\n\n"
    );
    let server = Canned::new(vec![stream(&events)]).await;
    let events = events_of(follow::follow(server.client.clone(), PromptRequest::text("s1", "hi"))).await;
    assert!(matches!(&events[0], Ok(TurnEvent::Accepted(it)) if it.prompt_id == "p1"));
    assert!(
        matches!(&events[1], Ok(TurnEvent::Happened(it)) if it.id == Some(4) && it.update["sessionUpdate"] == "plan")
    );
    assert!(matches!(&events[2], Ok(TurnEvent::Result(_))));
    assert_eq!(events.len(), 3);
    let request = &server.requests()[0];
    assert!(request.contains("idempotency-key: ") && request.contains("accept: text/event-stream"), "{request}");
    assert!(request.ends_with(r#"{"sessionId":"s1","prompt":"hi"}"#), "{request}");
}

#[tokio::test]
async fn a_lost_stream_is_replaced_by_polling() {
    let status = format!(r#"{{"promptId":"p1","state":"completed","result":{RESULT}}}"#);
    let server = Canned::new(vec![stream(ACCEPTED), ok(&status)]).await;
    let events = events_of(follow::follow(server.client.clone(), PromptRequest::text("s1", "hi"))).await;
    assert!(matches!(&events[1], Ok(TurnEvent::Happened(it)) if it.kind == "diagnostic"));
    assert!(matches!(&events[2], Ok(TurnEvent::Result(_))), "{events:?}");
    assert!(server.requests()[1].starts_with("GET /base/acp/prompt/p1 "));
}

#[tokio::test]
async fn a_stream_broken_before_acceptance_is_resent_with_the_same_key() {
    let whole = format!("{ACCEPTED}event: result\ndata: {RESULT}\n\n");
    let server = Canned::new(vec![stream(""), String::new(), stream(&whole)]).await;
    let events = events_of(follow::follow(server.client.clone(), PromptRequest::text("s1", "hi"))).await;
    assert!(matches!(events.last(), Some(Ok(TurnEvent::Result(_)))), "{events:?}");
    let keys: Vec<_> = server
        .requests()
        .iter()
        .map(|it| it.lines().find(|line| line.starts_with("idempotency-key")).map(str::to_owned))
        .collect();
    assert!(keys.len() == 3 && keys[0].is_some() && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
}

#[tokio::test]
async fn a_refused_prompt_is_an_error_and_a_failed_turn_a_problem() {
    let server = Canned::new(vec![problem(409, "session_failed")]).await;
    let events = events_of(follow::follow(server.client.clone(), PromptRequest::text("s1", "hi"))).await;
    assert!(matches!(&events[..], [Err(ClientError::Problem(it))] if it.code == "session_failed"), "{events:?}");
    let body = problem(502, "agent_crashed");
    let body = body.split_once("\r\n\r\n").unwrap().1;
    let server = Canned::new(vec![stream(&format!("{ACCEPTED}event: problem\ndata: {body}\n\n"))]).await;
    let events = events_of(follow::follow(server.client.clone(), PromptRequest::text("s1", "hi"))).await;
    assert!(matches!(events.last(), Some(Ok(TurnEvent::Problem(it))) if it.code == "agent_crashed"), "{events:?}");
}
