//! A stub model on loopback with the parts of the Anthropic and `OpenAI` APIs that the agents use.
//!
//! The last user message controls it: `write-file PATH` makes it call the agent's tool for writing files,
//! `run-in-background SECONDS` makes it call Claude Code's shell with a command that outlives the turn, and `slowly` makes it stream for 20 s unless the caller disconnects. A request without tools, such as one for a title,
//! gets a short answer.

use std::{sync::mpsc, thread, time::Duration};

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, dev::ServerHandle, web};
use futures_util::{StreamExt, stream};

use super::{Value, json};

/// The content of the files that it writes.
pub(crate) const FILE_CONTENT: &str = "from the stub model\n";
/// Its message.
pub(crate) const ANSWER: [&str; 2] = ["the stub ", "model has spoken"];

const SLOW_WORDS: usize = 200;
const SLOW_PAUSE: Duration = Duration::from_millis(100);

/// A running stub model. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct StubModel {
    url: String,
    handle: ServerHandle,
    thread: Option<thread::JoinHandle<()>>,
}

impl StubModel {
    /// Starts a stub model on a free port.
    pub(crate) fn start() -> Self {
        let (sender, receiver) = mpsc::channel();
        let thread = thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let server = HttpServer::new(|| {
                    App::new()
                        // An agent sends its whole system prompt and every tool with each request.
                        .app_data(web::PayloadConfig::new(64 << 20))
                        .default_service(web::to(answer))
                })
                .workers(1)
                .disable_signals()
                .shutdown_timeout(0)
                .bind(("127.0.0.1", 0))
                .expect("a free port");
                let address = server.addrs()[0];
                let server = server.run();
                sender.send((address, server.handle())).expect("the receiver is open");
                let _ = server.await;
            });
        });
        let (address, handle) = receiver.recv().expect("the stub starts");
        Self { url: format!("http://{address}"), handle, thread: Some(thread) }
    }

    /// The base URL of both APIs, `http://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for StubModel {
    fn drop(&mut self) {
        drop(self.handle.stop(false));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The reaction of the model to a request.
enum Reply {
    Write { tool: String, path: String },
    RunInBackground { tool: String, seconds: String },
    Say(Vec<String>, Duration),
}

async fn answer(request: HttpRequest, body: web::Bytes) -> HttpResponse {
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let is_streamed = body["stream"] == true;
    match request.path() {
        path if path.ends_with("/count_tokens") => HttpResponse::Ok().json(json!({"input_tokens": 7})),
        path if path.ends_with("/messages") && is_streamed => events(anthropic(&body)),
        path if path.ends_with("/messages") => HttpResponse::Ok().json(json!({
            "id": message_id(), "type": "message", "role": "assistant", "model": body["model"],
            "content": [{"type": "text", "text": ANSWER[0]}],
            "stop_reason": "end_turn", "stop_sequence": null, "usage": {"input_tokens": 3, "output_tokens": 2}
        })),
        path if path.ends_with("/chat/completions") && is_streamed => events(openai(&body)),
        path if path.ends_with("/chat/completions") => HttpResponse::Ok().json(json!({
            "id": "c", "object": "chat.completion", "created": 1, "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop",
                         "message": {"role": "assistant", "content": ANSWER[0]}}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        })),
        path if path.ends_with("/models") => HttpResponse::Ok().json(json!({
            "object": "list", "has_more": false,
            "data": [{"id": "stub-model", "object": "model", "type": "model", "display_name": "Stub"}]
        })),
        _ => HttpResponse::Ok().json(json!({})),
    }
}

fn message_id() -> String {
    format!("msg_{}", uuid::Uuid::new_v4().simple())
}

fn decide(prompt: &str, tools: &[String], has_tool_result: bool) -> Reply {
    let words = |it: &[&str]| it.iter().map(|word| (*word).to_owned()).collect();
    let word_after = |verb: &str| prompt.split(verb).nth(1).and_then(|rest| rest.split_whitespace().next());
    let (path, seconds) = (word_after("write-file "), word_after("run-in-background "));
    let tool = tools.iter().find(|tool| ["write", "Write"].contains(&tool.as_str()));
    if let (Some(seconds), Some(shell), false) = (seconds, tools.iter().find(|tool| *tool == "Bash"), has_tool_result)
    {
        return Reply::RunInBackground { tool: shell.clone(), seconds: seconds.to_owned() };
    }
    match (path, tool) {
        (Some(path), Some(tool)) if !has_tool_result => Reply::Write { tool: tool.clone(), path: path.to_owned() },
        _ if prompt.contains("slowly") && !tools.is_empty() => {
            Reply::Say((0..SLOW_WORDS).map(|n| format!("word-{n} ")).collect(), SLOW_PAUSE)
        }
        _ => Reply::Say(words(&ANSWER), Duration::ZERO),
    }
}

/// Text with the pause before it.
type Timed = (Duration, String);

fn at_once(text: String) -> Timed {
    (Duration::ZERO, text)
}

fn events(texts: Vec<Timed>) -> HttpResponse {
    let body = stream::iter(texts).then(|(pause, text)| async move {
        // Simulates a slow model.
        tokio::time::sleep(pause).await;
        Ok::<_, actix_web::Error>(web::Bytes::from(text))
    });
    HttpResponse::Ok().content_type("text/event-stream").streaming(body)
}

fn names(tools: &Value, pointer: &str) -> Vec<String> {
    let tools = tools.as_array().map(Vec::as_slice).unwrap_or_default();
    tools.iter().filter_map(|tool| tool.pointer(pointer)?.as_str()).map(str::to_owned).collect()
}

/// The text of the last block, and whether it is a tool result.
fn last_block(content: &Value) -> (String, bool) {
    if let Some(text) = content.as_str() {
        return (text.to_owned(), false);
    }
    let last = content.as_array().and_then(|blocks| blocks.last());
    let text = last.and_then(|block| block["text"].as_str()).unwrap_or_default();
    (text.to_owned(), last.is_some_and(|block| block["type"] == "tool_result"))
}

fn last_of<'a>(messages: &'a Value, role: &str) -> &'a Value {
    let messages = messages.as_array().map(Vec::as_slice).unwrap_or_default();
    messages.iter().rev().find(|message| message["role"] == role).map_or(&Value::Null, |message| &message["content"])
}

fn anthropic(body: &Value) -> Vec<Timed> {
    let event = |data: Value| {
        let kind = data["type"].as_str().unwrap_or_default().to_owned();
        format!("event: {kind}\ndata: {data}\n\n")
    };
    let (prompt, has_tool_result) = last_block(last_of(&body["messages"], "user"));
    let reply = decide(&prompt, &names(&body["tools"], "/name"), has_tool_result);
    let mut texts = vec![at_once(event(json!({"type": "message_start", "message": {
        "id": message_id(), "type": "message", "role": "assistant", "model": body["model"], "content": [],
        "stop_reason": null, "stop_sequence": null, "usage": {"input_tokens": 3, "output_tokens": 1}
    }})))];
    let start =
        |block: Value| at_once(event(json!({"type": "content_block_start", "index": 0, "content_block": block})));
    let delta =
        |pause, delta: Value| (pause, event(json!({"type": "content_block_delta", "index": 0, "delta": delta})));
    let call = match &reply {
        Reply::Write { tool, path } => Some((tool.clone(), json!({"file_path": path, "content": FILE_CONTENT}))),
        Reply::RunInBackground { tool, seconds } => {
            let command = format!("sleep {seconds}");
            Some((tool.clone(), json!({"command": command, "description": "Waits", "run_in_background": true})))
        }
        Reply::Say(..) => None,
    };
    let stop_reason = match (call, reply) {
        (Some((tool, input)), _) => {
            let (id, input) = (format!("toolu_{}", uuid::Uuid::new_v4().simple()), input.to_string());
            texts.push(start(json!({"type": "tool_use", "id": id, "name": tool, "input": {}})));
            texts.push(delta(Duration::ZERO, json!({"type": "input_json_delta", "partial_json": input})));
            "tool_use"
        }
        (None, Reply::Write { .. } | Reply::RunInBackground { .. }) => unreachable!("both are calls"),
        (None, Reply::Say(words, pause)) => {
            texts.push(start(json!({"type": "text", "text": ""})));
            texts.extend(words.iter().map(|text| delta(pause, json!({"type": "text_delta", "text": text}))));
            "end_turn"
        }
    };
    texts.push(at_once(event(json!({"type": "content_block_stop", "index": 0}))));
    texts.push(at_once(event(json!({
        "type": "message_delta", "delta": {"stop_reason": stop_reason, "stop_sequence": null},
        "usage": {"output_tokens": 5}
    }))));
    texts.push(at_once(event(json!({"type": "message_stop"}))));
    texts
}

fn openai(body: &Value) -> Vec<Timed> {
    let chunk = |delta: Value, finish: Value| {
        let chunk = json!({
            "id": "c", "object": "chat.completion.chunk", "created": 1, "model": body["model"],
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
            "usage": if finish.is_null() { Value::Null } else {
                json!({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5})
            },
        });
        format!("data: {chunk}\n\n")
    };
    let (prompt, _) = last_block(last_of(&body["messages"], "user"));
    let last_role = body["messages"].as_array().and_then(|it| it.last()).map(|message| &message["role"]);
    let has_tool_result = last_role.is_some_and(|role| role == "tool");
    let mut texts = Vec::new();
    match decide(&prompt, &names(&body["tools"], "/function/name"), has_tool_result) {
        Reply::Write { tool, path } => {
            let arguments = json!({"path": path, "content": FILE_CONTENT}).to_string();
            let id = format!("call_{}", uuid::Uuid::new_v4().simple());
            let call = json!({"index": 0, "id": id, "type": "function",
                              "function": {"name": tool, "arguments": arguments}});
            let delta = json!({"role": "assistant", "content": null, "tool_calls": [call]});
            texts.push(at_once(chunk(delta, Value::Null)));
            texts.push(at_once(chunk(json!({}), json!("tool_calls"))));
        }
        Reply::RunInBackground { .. } => texts.push(at_once(chunk(json!({}), json!("stop")))),
        Reply::Say(words, pause) => {
            let say = |text: &String| chunk(json!({"role": "assistant", "content": text}), Value::Null);
            texts.extend(words.iter().map(|text| (pause, say(text))));
            texts.push(at_once(chunk(json!({}), json!("stop"))));
        }
    }
    texts.push(at_once("data: [DONE]\n\n".into()));
    texts
}
