//! A minimal ACP client, over an agent's pipes and over WebSocket to a runtime.
//!
//! To a runtime it numbers its messages and acknowledges those of the agent, as a supervisor does: the runtime then does
//! the work that it does for a supervisor. It does not resume a broken connection.

use std::{path::Path, process::Stdio, time::Duration};

use futures_util::{FutureExt, SinkExt, StreamExt, future::BoxFuture};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpStream, unix::pipe},
    sync::mpsc,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        Message, Utf8Bytes,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};
use uuid::Uuid;

use crate::support::{
    api,
    conversation::{BenchError, Conversation, TurnError, Turned},
    http::HttpLink,
    program::{Process, Program, Workplace},
};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);
/// Messages between a session and the task of its socket, in either direction. The agent of a session that does not
/// read waits; the demo agent sends nothing between turns.
const MESSAGES_IN_QUEUE: usize = 256;
/// An acknowledgement is sent after this many messages or bytes without a message to carry it: less than a quarter of the
/// defaults of `runtime.replay_frames` and `runtime.replay_bytes`, which the runtime keeps at most.
const UNACKNOWLEDGED_MESSAGES: u64 = 256;
const UNACKNOWLEDGED_BYTES: usize = 256 * 1024;
const METHOD_NOT_FOUND: i32 = -32601;

/// Starts an agent and opens a session over its pipes.
pub(crate) async fn open_on_stdio(
    workplace: &Workplace,
    folder: &Path,
    prompt: &str,
) -> Result<AcpSession, BenchError> {
    let mut command = workplace.command(folder);
    command.arg("demo-agent").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut agent = Process::start(command).map_err(BenchError::io("starting the agent"))?;
    let (Some(input), Some(output)) = (agent.child().stdin.take(), agent.child().stdout.take()) else {
        return Err(BenchError::Open("the agent has no pipes".into()));
    };
    let input = pipe::Sender::from_owned_fd(input.into()).map_err(BenchError::io("the agent's input"))?;
    let output = pipe::Receiver::from_owned_fd(output.into()).map_err(BenchError::io("the agent's output"))?;
    let pipes = Pipes { input, output: BufReader::new(output), line: String::new(), agent };
    AcpSession::open(Wire::Pipes(Box::new(pipes)), &folder.display().to_string(), prompt).await
}

/// Creates a workspace on a runtime; returns its path.
pub(crate) async fn prepare_workspace(runtime: &Program) -> Result<String, BenchError> {
    #[derive(Deserialize)]
    struct Prepared {
        path: String,
    }
    let body = json!({"workspace": {"folderId": Uuid::new_v4()}}).to_string();
    let answer = HttpLink::new(runtime.address()).post("/workspace/prepare", body.into()).await;
    let prepared = answer.and_then(|answer| api::read::<Prepared>(&answer, api::OK));
    Ok(prepared.map_err(BenchError::Open)?.path)
}

/// Opens a session in a workspace of a runtime.
pub(crate) async fn open_on_runtime(
    runtime: &Program,
    workspace: &str,
    prompt: &str,
) -> Result<AcpSession, BenchError> {
    let failed = |cause: &dyn std::error::Error| BenchError::Open(format!("connecting to the runtime: {cause}"));
    let stream = TcpStream::connect(runtime.address()).await.map_err(|cause| failed(&cause))?;
    stream.set_nodelay(true).map_err(|cause| failed(&cause))?;
    let url = format!("ws://{}/acp", runtime.address());
    let (socket, _) = client_async(url, stream).await.map_err(|cause| failed(&cause))?;
    let (outgoing, to_send) = mpsc::channel(MESSAGES_IN_QUEUE);
    let (arrived, incoming) = mpsc::channel(MESSAGES_IN_QUEUE);
    tokio::spawn(carry(socket, to_send, arrived));
    let socket = Socket { outgoing, incoming, numbers: None, unacknowledged: (0, 0) };
    AcpSession::open(Wire::Socket(Box::new(socket)), workspace, prompt).await
}

/// Carries messages between a session and its socket, and answers pings while the session is idle. Closes the socket when
/// the session is dropped, which makes the runtime kill the agent.
async fn carry(
    mut socket: WebSocketStream<TcpStream>,
    mut to_send: mpsc::Receiver<String>,
    arrived: mpsc::Sender<Result<Utf8Bytes, String>>,
) {
    let end = loop {
        tokio::select! {
            message = to_send.recv() => {
                let Some(message) = message else {
                    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
                    let _ = socket.close(Some(frame)).await;
                    return;
                };
                if let Err(cause) = socket.send(Message::text(message)).await {
                    break cause.to_string();
                }
            }
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    if arrived.send(Ok(text)).await.is_err() {
                        return;
                    }
                }
                Some(Ok(Message::Close(frame))) => break format!("the runtime closed the connection: {frame:?}"),
                Some(Ok(_)) => {}
                Some(Err(cause)) => break cause.to_string(),
                None => break "the connection ended".to_owned(),
            },
        }
    };
    let _ = arrived.send(Err(end)).await;
}

/// Connection to an agent.
enum Wire {
    Pipes(Box<Pipes>),
    Socket(Box<Socket>),
}

struct Pipes {
    input: pipe::Sender,
    output: BufReader<pipe::Receiver>,
    line: String,
    /// Killed with the session.
    agent: Process,
}

struct Socket {
    outgoing: mpsc::Sender<String>,
    incoming: mpsc::Receiver<Result<Utf8Bytes, String>>,
    /// Present from the first message of the runtime that has a number.
    numbers: Option<Numbers>,
    /// Messages and bytes that arrived since the last acknowledgement.
    unacknowledged: (u64, usize),
}

/// Last number in each direction.
#[derive(Clone, Copy, Default)]
struct Numbers {
    sent: u64,
    received: u64,
}

/// The parts of a message that a client looks at.
#[derive(Debug, Deserialize)]
struct Incoming<'a> {
    #[serde(rename = "_meta", borrow)]
    meta: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    method: Option<&'a str>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

/// A message that the session has to handle.
#[derive(Debug)]
enum Event {
    /// Result of the pending call.
    Answer(Result<Box<RawValue>, String>),
    /// A request of the agent: its id, method and params.
    Request(Box<RawValue>, String, Value),
    /// A notification, or an answer to an earlier call.
    Other,
}

impl Wire {
    async fn send(&mut self, message: String) -> Result<(), TurnError> {
        let gone = |cause: String| TurnError::Gone(format!("sending to the agent: {cause}"));
        match self {
            Self::Pipes(pipes) => {
                let line = message + "\n";
                pipes.input.write_all(line.as_bytes()).await.map_err(|cause| gone(cause.to_string()))
            }
            Self::Socket(socket) => {
                let message = socket.number(message);
                socket.outgoing.send(message).await.map_err(|_| gone("the connection ended".into()))
            }
        }
    }

    /// Receives the next message while `call` is pending.
    async fn receive(&mut self, call: u64) -> Result<Event, TurnError> {
        match self {
            Self::Pipes(pipes) => {
                pipes.line.clear();
                match pipes.output.read_line(&mut pipes.line).await {
                    Ok(0) => Err(TurnError::Gone(format!("the agent ended ({:?})", pipes.agent.child().try_wait()))),
                    Ok(_) => event(&parse(&pipes.line)?, call),
                    Err(cause) => Err(TurnError::Gone(format!("reading from the agent: {cause}"))),
                }
            }
            Self::Socket(socket) => {
                let text = match socket.incoming.recv().await {
                    Some(Ok(text)) => text,
                    Some(Err(cause)) => return Err(TurnError::Gone(cause)),
                    None => return Err(TurnError::Gone("the connection ended".into())),
                };
                let incoming = parse(&text)?;
                socket.acknowledge(&incoming, text.len()).await?;
                event(&incoming, call)
            }
        }
    }
}

impl Socket {
    fn number(&mut self, message: String) -> String {
        let Some(numbers) = &mut self.numbers else { return message };
        numbers.sent += 1;
        self.unacknowledged = (0, 0);
        numbered(numbers.sent, numbers.received, &message)
    }

    /// Notes the number of a message, and acknowledges it where that is due.
    async fn acknowledge(&mut self, incoming: &Incoming<'_>, bytes: usize) -> Result<(), TurnError> {
        let Some(seq) = incoming.meta.and_then(seq_of).filter(|seq| *seq > 0) else { return Ok(()) };
        let numbers = self.numbers.get_or_insert_default();
        numbers.received = seq;
        let (messages, size) = (self.unacknowledged.0 + 1, self.unacknowledged.1 + bytes);
        self.unacknowledged = (messages, size);
        if messages >= UNACKNOWLEDGED_MESSAGES || size >= UNACKNOWLEDGED_BYTES {
            self.unacknowledged = (0, 0);
            let message = numbered(0, numbers.received, r#"{"jsonrpc":"2.0","method":"_lumilink/acknowledged"}"#);
            let sent = self.outgoing.send(message).await;
            return sent.map_err(|_| TurnError::Gone("the connection ended".into()));
        }
        Ok(())
    }
}

/// Adds numbers to a message in the fixed form that the runtime expects.
fn numbered(seq: u64, ack: u64, message: &str) -> String {
    let rest = message.strip_prefix('{').unwrap_or(message);
    format!(r#"{{"_meta":{{"lumilink":{{"seq":{seq},"ack":{ack}}}}},{rest}"#)
}

fn seq_of(meta: &RawValue) -> Option<u64> {
    #[derive(Deserialize)]
    struct Meta {
        lumilink: Numbered,
    }
    #[derive(Deserialize)]
    struct Numbered {
        seq: u64,
    }
    Some(serde_json::from_str::<Meta>(meta.get()).ok()?.lumilink.seq)
}

fn parse(text: &str) -> Result<Incoming<'_>, TurnError> {
    serde_json::from_str(text)
        .map_err(|cause| TurnError::Gone(format!("{cause} in: {}", api::shown(text.as_bytes()))))
}

fn event(incoming: &Incoming<'_>, call: u64) -> Result<Event, TurnError> {
    Ok(match (incoming.method, incoming.id) {
        (Some(method), Some(id)) => {
            let params = incoming.params.map_or(Ok(Value::Null), |params| serde_json::from_str(params.get()));
            let params = params.map_err(|cause| TurnError::Gone(format!("the params of {method}: {cause}")))?;
            Event::Request(id.to_owned(), method.to_owned(), params)
        }
        (Some("_lumilink/agent_exited"), None) => return Err(TurnError::Gone("the agent ended".into())),
        (None, Some(id)) if id.get().parse() == Ok(call) => Event::Answer(match (incoming.result, incoming.error) {
            (Some(result), _) => Ok(result.to_owned()),
            (None, error) => Err(error.map_or("no result", RawValue::get).to_owned()),
        }),
        _ => Event::Other,
    })
}

/// A session over ACP that repeats one prompt.
pub(crate) struct AcpSession {
    wire: Wire,
    prompt: Value,
    last_call: u64,
}

impl AcpSession {
    async fn open(wire: Wire, folder: &str, prompt: &str) -> Result<Self, BenchError> {
        let mut session = Self { wire, prompt: Value::Null, last_call: 0 };
        let opened = timeout(HANDSHAKE_TIMEOUT, session.perform_handshake(folder, prompt)).await;
        match opened.unwrap_or_else(|_| Err(TurnError::Gone("the agent did not finish its handshake".into()))) {
            Ok(()) => Ok(session),
            Err(TurnError::Failed(cause) | TurnError::Gone(cause)) => Err(BenchError::Open(cause)),
        }
    }

    /// The process id of an agent that this process started.
    pub(crate) fn agent(&mut self) -> Option<u32> {
        match &mut self.wire {
            Wire::Pipes(pipes) => Some(pipes.agent.child().id()),
            Wire::Socket(_) => None,
        }
    }

    async fn perform_handshake(&mut self, folder: &str, prompt: &str) -> Result<(), TurnError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct New {
            session_id: String,
        }
        let mut params = json!({
            "protocolVersion": 1,
            "clientCapabilities": {},
            "clientInfo": {"name": "lumilink-bench", "version": env!("CARGO_PKG_VERSION")},
        });
        if matches!(self.wire, Wire::Socket(_)) {
            params["_meta"] = json!({"lumilink": {"cwd": folder, "resumable": true}});
        }
        self.call("initialize", params).await?;
        let new = self.call("session/new", json!({"cwd": folder, "mcpServers": []})).await?;
        let new: New = serde_json::from_str(new.get())
            .map_err(|cause| TurnError::Gone(format!("the answer to session/new: {cause}")))?;
        self.prompt = json!({"sessionId": new.session_id, "prompt": [{"type": "text", "text": prompt}]});
        Ok(())
    }

    /// Sends a request and handles messages until its answer arrives.
    async fn call(&mut self, method: &str, params: Value) -> Result<Box<RawValue>, TurnError> {
        self.last_call += 1;
        let call = self.last_call;
        let request = json!({"jsonrpc": "2.0", "id": call, "method": method, "params": params});
        self.wire.send(request.to_string()).await?;
        loop {
            match self.wire.receive(call).await? {
                Event::Answer(answer) => {
                    return answer.map_err(|error| TurnError::Failed(format!("{method}: {error}")));
                }
                Event::Request(id, method, params) => {
                    self.wire.send(answer_to(&id, &method, &params).to_string()).await?;
                }
                Event::Other => {}
            }
        }
    }
}

/// Allows a tool call once, and refuses any other request of an agent: the runtime serves files and terminals.
fn answer_to(id: &RawValue, method: &str, params: &Value) -> Value {
    let options = params["options"].as_array().filter(|_| method == "session/request_permission");
    let allowed = options.into_iter().flatten().find(|option| option["kind"] == "allow_once");
    match allowed {
        Some(option) => {
            let outcome = json!({"outcome": "selected", "optionId": option["optionId"]});
            json!({"jsonrpc": "2.0", "id": id, "result": {"outcome": outcome}})
        }
        None => {
            let error = json!({"code": METHOD_NOT_FOUND, "message": format!("no method {method} here")});
            json!({"jsonrpc": "2.0", "id": id, "error": error})
        }
    }
}

fn check(answer: &RawValue) -> Result<(), TurnError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer<'a> {
        stop_reason: &'a str,
    }
    match serde_json::from_str::<Answer<'_>>(answer.get()) {
        Ok(Answer { stop_reason: "end_turn" }) => Ok(()),
        Ok(Answer { stop_reason }) => Err(TurnError::Failed(format!("stopReason is {stop_reason}"))),
        Err(cause) => Err(TurnError::Failed(format!("the agent's answer: {cause}"))),
    }
}

impl Conversation for AcpSession {
    fn turn(&mut self) -> BoxFuture<'_, Result<Turned, TurnError>> {
        async {
            let answer = self.call("session/prompt", self.prompt.clone()).await?;
            check(&answer).map(|()| Turned::default())
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(value: &Value) -> Box<RawValue> {
        serde_json::value::to_raw_value(value).unwrap()
    }

    #[test]
    fn only_a_turn_that_ended_counts() {
        assert_eq!(check(&raw(&json!({"stopReason": "end_turn", "usage": {}}))), Ok(()));
        for answer in [json!({"stopReason": "cancelled"}), json!({}), json!(null)] {
            assert!(matches!(check(&raw(&answer)), Err(TurnError::Failed(_))), "{answer}");
        }
    }

    #[test]
    fn numbers_are_added_and_read() {
        let text = numbered(7, 3, r#"{"jsonrpc":"2.0","id":1,"result":{}}"#);
        assert!(text.starts_with(r#"{"_meta":{"lumilink":{"seq":7,"ack":3}},"jsonrpc""#), "{text}");
        let incoming = parse(&text).unwrap();
        assert_eq!(incoming.meta.and_then(seq_of), Some(7));
        assert!(matches!(event(&incoming, 1), Ok(Event::Answer(Ok(_)))));
        assert!(matches!(event(&incoming, 2), Ok(Event::Other)));
    }

    #[test]
    fn requests_of_the_agent_are_answered() {
        let id = raw(&json!("x"));
        let options = json!({"options": [{"kind": "reject_once"}, {"kind": "allow_once", "optionId": "yes"}]});
        assert_eq!(answer_to(&id, "session/request_permission", &options)["result"]["outcome"]["optionId"], "yes");
        assert_eq!(answer_to(&id, "fs/read_text_file", &json!({}))["error"]["code"], METHOD_NOT_FOUND);
    }
}
