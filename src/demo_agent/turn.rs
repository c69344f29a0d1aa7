//! One turn of the demo agent.

use std::{
    io,
    process::{Command as Process, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    Agent, chunk,
    lines::Read,
    script::{Command, chunks, commands, filled},
};
use crate::config::environment::{Environment, current_folder};

/// The most steps of a plan: each step sends the whole plan again.
const MAX_STEPS: u64 = 1000;

pub(super) struct Turn {
    pub session: String,
    pub cancelled: bool,
    answer: String,
    /// The texts of the blocks ahead of the prompt.
    ahead: Vec<String>,
    stop_reason: String,
    usage: Option<(u64, u64)>,
    /// The id of the prompt as JSON.
    id: String,
    /// Written in place of the answer.
    raw_answer: Option<String>,
    error: Option<(i64, String)>,
    /// `data` of the error.
    error_data: Value,
    pub tools: u32,
    /// Said after the answer to the prompt.
    late: Option<String>,
    /// `messageId` of the last `message`; a late text belongs to it.
    message_id: Option<String>,
}

/// Time between the answer to a prompt and the text of `late`.
const LATE_AFTER: Duration = Duration::from_millis(200);

impl Turn {
    pub(super) fn new(session: String) -> Self {
        Self {
            session,
            cancelled: false,
            answer: String::new(),
            ahead: Vec::new(),
            stop_reason: "end_turn".into(),
            usage: None,
            id: String::new(),
            raw_answer: None,
            error: None,
            error_data: Value::Null,
            tools: 0,
            late: None,
            message_id: None,
        }
    }
}

impl Agent {
    /// Runs a prompt and answers it.
    pub(super) fn run_turn(&mut self, id: &Value, params: &Value) -> io::Result<()> {
        let session = params["sessionId"].as_str().unwrap_or_default().to_owned();
        if !self.conversations.contains_key(&session) {
            return self.respond(id, Err((-32002, "no such session".into())));
        }
        self.prompts_seen += 1;
        let blocks = params["prompt"].as_array().cloned().unwrap_or_default();
        self.replay_late(usize::MAX)?;
        for block in blocks.iter().filter(|_| self.flags.echo_prompts).cloned().collect::<Vec<_>>() {
            self.update(&session, &json!({"sessionUpdate": "user_message_chunk", "content": block}))?;
        }
        let texts = |block: &Value| {
            let text = block["text"].as_str().or_else(|| block["resource"]["text"].as_str());
            text.unwrap_or_default().to_owned()
        };
        let script = blocks.iter().rev().find(|block| block["type"] == "text").map(texts).unwrap_or_default();
        let ahead = blocks.iter().take(blocks.len().saturating_sub(1)).map(texts).collect();
        let mut turn = Turn { ahead, id: id.to_string(), ..Turn::new(session) };
        for command in commands(&script) {
            self.perform(&command, &mut turn)?;
            let ends = turn.error.is_some() || turn.raw_answer.is_some() || turn.stop_reason != "end_turn";
            if turn.cancelled || ends {
                break;
            }
        }
        if let Some(conversation) = self.conversations.get_mut(&turn.session) {
            conversation.said.push((script, turn.answer.clone()));
        }
        self.keep(&turn.session);
        if let Some(answer) = turn.raw_answer.take() {
            return self.lines.write_raw(&answer);
        }
        let answer = match turn.error.take() {
            Some((code, message)) if !turn.error_data.is_null() => {
                let error = json!({"code": code, "message": message, "data": turn.error_data});
                return self.lines.write(&json!({"jsonrpc": "2.0", "id": id, "error": error}));
            }
            Some(error) => Err(error),
            None => {
                let is_confirmed = turn.cancelled && !self.flags.deny_cancel;
                let stop_reason = if is_confirmed { "cancelled" } else { turn.stop_reason.as_str() };
                let mut answer = json!({"stopReason": stop_reason});
                if let Some((input, output)) = turn.usage {
                    let total = input + output;
                    answer["usage"] = json!({"inputTokens": input, "outputTokens": output, "totalTokens": total});
                }
                Ok(answer)
            }
        };
        self.respond(id, answer)?;
        if let Some(late) = turn.late.take() {
            self.lines.wait(LATE_AFTER)?;
            self.say_in_message(&mut turn, &late)?;
        }
        Ok(())
    }

    pub(super) fn perform(&mut self, command: &Command, turn: &mut Turn) -> io::Result<()> {
        match command.word.as_str() {
            "echo" => self.say_in_chunks(turn, &command.rest),
            "spell" => {
                let value = self.value(command, turn)?;
                value.chars().try_for_each(|character| self.say(turn, &character.to_string()))
            }
            "write" if self.settings(&turn.session).starts_with("mode=plan ") => self.say(turn, "may only plan"),
            "write" => self.write_file(command, turn),
            "settings" => {
                let settings = self.settings(&turn.session);
                self.say(turn, &settings)
            }
            "read" => self.read_file(command, turn),
            "run" => self.run_command(command, turn),
            "sleep" => self.work(turn, Duration::from_secs_f64(command.rest.parse().unwrap_or(1.0))),
            "linger" => {
                self.pause(turn, Duration::from_secs(3600))?;
                self.lines.wait(Duration::from_millis(command.number(0, 100)))
            }
            "ticks" => self.tick(turn, command.number(0, 5), Duration::from_millis(command.number(1, 100))),
            "silent" => Ok(()),
            "steps" => self.steps(turn, command.number(0, 5), Duration::from_millis(command.number(1, 10))),
            "output" => self.output(turn, command.number(0, 10), command.number(1, 1000)),
            "emoji" => self.say_in_halves(turn),
            "null-id" => self.say_with_null_id(turn, &command.rest),
            "update-as-request" => self.update_by_request(command, turn),
            "message" => {
                let (id, text) = command.name_and_text();
                turn.message_id = Some(id.to_owned());
                self.say_in_message(turn, text)
            }
            "background" | "background-qwen" | "unannounced" | "open-call" | "leave" => {
                self.continue_later(command, turn)
            }
            "late" => {
                turn.late = Some(command.rest.clone());
                Ok(())
            }
            "think" => self.update(&turn.session, &chunk("agent_thought_chunk", "Let me think about that.")),
            "plan" => self.plan(command, turn),
            "ask" => self.ask(command, turn),
            "ask-many" | "ask-huge" | "ask-twice" | "withdraw" => self.ask_oddly(command, turn),
            "mode" => {
                let answer = self.set_mode(&turn.session, &command.rest);
                match answer {
                    Ok(_) => self.switch_mode(&turn.session, &command.rest),
                    Err((_, message)) => self.say(turn, &message),
                }
            }
            "flood" => (0..command.number(0, 1000)).try_for_each(|n| self.say(turn, &format!("{n} "))),
            "huge" => {
                let size = usize::try_from(command.number(0, 1_000_000)).unwrap_or_default();
                self.say(turn, &"x".repeat(size))
            }
            "mcp-start" => self.start_mcp(turn),
            "context" | "mcp" | "count" | "env" | "cwd" | "pid" => {
                let value = self.value(command, turn)?;
                self.say(turn, &value)
            }
            _ => self.end_or_misbehave(command, turn),
        }
    }

    /// The value that a command asks for.
    fn value(&self, command: &Command, turn: &Turn) -> io::Result<String> {
        Ok(match command.word.as_str() {
            "context" => format!("{} blocks ahead: {}", turn.ahead.len(), turn.ahead.join("\n")),
            "mcp" => {
                let conversation = self.conversations.get(&turn.session);
                conversation.map(|it| it.mcp_servers.to_string()).unwrap_or_default()
            }
            "count" => self.prompts_seen.to_string(),
            "spell" => Environment::of_process().get(&command.rest).unwrap_or(&command.rest).to_owned(),
            "env" | "complain-env" => Environment::of_process().get(&command.rest).unwrap_or("unset").to_owned(),
            "cwd" => current_folder()?.display().to_string(),
            _ => std::process::id().to_string(),
        })
    }

    /// Sends an update as a request, although it is a notification, and says the answer.
    fn update_by_request(&mut self, command: &Command, turn: &mut Turn) -> io::Result<()> {
        turn.answer.push_str(&command.rest);
        let params = json!({"sessionId": turn.session, "update": chunk("agent_message_chunk", &command.rest)});
        let answer = self.request(turn, "session/update", params)?;
        self.say(turn, &answer["result"].to_string())
    }

    /// Runs a command that ends the turn in a special way or misbehaves.
    fn end_or_misbehave(&mut self, command: &Command, turn: &mut Turn) -> io::Result<()> {
        match command.word.as_str() {
            "refuse" => turn.stop_reason = "refusal".into(),
            "max-tokens" => turn.stop_reason = "max_tokens".into(),
            "bad-frame" => turn.stop_reason = "bored".into(),
            "error" => {
                let (code, message) = command.name_and_text();
                turn.error = Some((code.parse().unwrap_or(-32603), message.to_owned()));
            }
            "error-data" => {
                let (code, data) = command.name_and_text();
                turn.error = Some((code.parse().unwrap_or(-32603), "Internal error".into()));
                turn.error_data = serde_json::from_str(data).unwrap_or_else(|_| data.into());
            }
            "provider-error" => turn.error = Some((-32603, "Internal error: API Error: 529 Overloaded".into())),
            "auth-error" => turn.error = Some((-32000, "Authentication required".into())),
            "usage" => turn.usage = Some((command.number(0, 0), command.number(1, 0))),
            "crash" => {
                self.say(turn, "about to crash")?;
                eprintln!("demo-agent: crashes, as requested");
                std::process::exit(42);
            }
            "segv" => {
                self.say(turn, "about to die")?;
                // SAFETY: neither call has a precondition. The default action must be restored first, because the
                // handler of the Rust runtime is for stack overflows and would return after a signal that was merely
                // raised.
                unsafe {
                    libc::signal(libc::SIGSEGV, libc::SIG_DFL);
                    libc::raise(libc::SIGSEGV);
                }
            }
            "hang" => self.hang()?,
            "endless" => {
                self.lines.write_without_end(command.number(0, 1_000_000))?;
                self.hang()?;
            }
            "unread" => {
                self.ask_without_reading(command, turn)?;
                self.hang()?;
            }
            "ignore-cancel" => {
                // SAFETY: ignoring a signal installs no handler.
                unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
                self.hang()?;
            }
            "garbage" => {
                for n in 0..command.number(0, 1) {
                    self.lines.write_raw(&format!("this is not JSON, line {n}"))?;
                }
            }
            "grandchild" => {
                let quiet = Stdio::null;
                let child =
                    Process::new("sleep").arg("1000").stdin(quiet()).stdout(quiet()).stderr(quiet()).spawn()?;
                self.say(turn, &child.id().to_string())?;
            }
            _ => return self.say_unknown(command, turn),
        }
        Ok(())
    }

    /// Sends a message that no client knows or an odd one, or echoes the command.
    fn say_unknown(&mut self, command: &Command, turn: &mut Turn) -> io::Result<()> {
        match command.word.as_str() {
            "unknown-update" => {
                let update = json!({"sessionUpdate": "unheard_of", "answer": 42, "_meta": {"kept": true}});
                self.update(&turn.session, &update)?;
            }
            "unknown-notification" => {
                self.lines.write(&json!({"jsonrpc": "2.0", "method": "_demo/news", "params": {"kept": true}}))?;
            }
            "unknown-request" => {
                let answer = self.request(turn, "_demo/unknown", json!({}))?;
                let said = answer["error"]["code"].to_string();
                self.say(turn, &said)?;
            }
            "answer" => turn.raw_answer = Some(filled(&command.rest, &turn.id)),
            "print" => self.lines.write_raw(&filled(&command.rest, &turn.id))?,
            "ask-as" => self.ask_as(command, turn)?,
            "complain" => eprintln!("{}", command.rest),
            "complain-env" => {
                let value = self.value(command, turn)?;
                // Two writes, which the reader may get as one or as two.
                let (first, second) = value.split_at(value.len() / 2);
                eprint!("{first}");
                eprintln!("{second}");
            }
            _ => self.say_in_chunks(turn, &command.whole())?,
        }
        Ok(())
    }

    pub(super) fn say(&mut self, turn: &mut Turn, text: &str) -> io::Result<()> {
        turn.answer.push_str(text);
        self.update(&turn.session, &chunk("agent_message_chunk", text))
    }

    /// Says a text with the id of the current message.
    fn say_in_message(&mut self, turn: &mut Turn, text: &str) -> io::Result<()> {
        turn.answer.push_str(text);
        let mut update = chunk("agent_message_chunk", text);
        if let Some(id) = &turn.message_id {
            update["messageId"] = json!(id);
        }
        self.update(&turn.session, &update)
    }

    fn say_in_chunks(&mut self, turn: &mut Turn, text: &str) -> io::Result<()> {
        chunks(text).into_iter().try_for_each(|part| self.say(turn, part))
    }

    /// Neither reads nor writes until the process is killed.
    fn hang(&mut self) -> io::Result<()> {
        loop {
            self.lines.wait(Duration::from_secs(3600))?;
        }
    }

    /// Pauses; a cancel ends the pause.
    fn pause(&mut self, turn: &mut Turn, time: Duration) -> io::Result<()> {
        let deadline = Instant::now() + time;
        while !turn.cancelled {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            match self.lines.read(Some(left))? {
                Read::Text(line) => self.meanwhile(turn, &line)?,
                Read::Silence => {}
                Read::End => std::process::exit(0),
            }
        }
        Ok(())
    }

    /// Handles a message that arrives during a turn.
    pub(super) fn meanwhile(&mut self, turn: &mut Turn, line: &str) -> io::Result<()> {
        let Ok(message) = serde_json::from_str::<Value>(line) else { return Ok(()) };
        match (message["method"].as_str(), message.get("id")) {
            (Some("session/cancel"), _) => turn.cancelled = true,
            (Some("session/prompt"), Some(id)) => {
                self.respond(&id.clone(), Err((-32600, "a turn is running".into())))?;
            }
            (Some(method), Some(id)) => {
                if method == "session/close" {
                    turn.cancelled = true;
                }
                let answer = self.answer(method, &message["params"])?;
                self.respond(&id.clone(), answer)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Sends a request to the client and waits for its answer.
    pub(super) fn request(&mut self, turn: &mut Turn, method: &str, params: Value) -> io::Result<Value> {
        let id = self.next_request;
        self.next_request += 1;
        self.lines.write(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))?;
        loop {
            match self.lines.read(None)? {
                Read::Text(line) => {
                    let message: Value = serde_json::from_str(&line).unwrap_or_default();
                    if message["method"].is_null() && message["id"] == id {
                        return Ok(message);
                    }
                    self.meanwhile(turn, &line)?;
                }
                Read::Silence => {}
                Read::End => std::process::exit(0),
            }
        }
    }

    pub(super) fn tool(&mut self, turn: &mut Turn, kind: &str, title: &str) -> io::Result<String> {
        turn.tools += 1;
        let tool = format!("tool-{}-{}", self.prompts_seen, turn.tools);
        let update = json!({
            "sessionUpdate": "tool_call",
            "toolCallId": tool,
            "title": title,
            "kind": kind,
            "status": "in_progress",
        });
        self.update(&turn.session, &update)?;
        Ok(tool)
    }

    pub(super) fn tool_ends(&mut self, turn: &Turn, tool: &str, works: bool, content: Value) -> io::Result<()> {
        let status = if works { "completed" } else { "failed" };
        let update =
            json!({"sessionUpdate": "tool_call_update", "toolCallId": tool, "status": status, "content": content});
        self.update(&turn.session, &update)
    }

    fn work(&mut self, turn: &mut Turn, time: Duration) -> io::Result<()> {
        let tool = self.tool(turn, "execute", "Working")?;
        self.pause(turn, time)?;
        let works = !turn.cancelled;
        self.tool_ends(turn, &tool, works, json!([]))
    }

    fn tick(&mut self, turn: &mut Turn, count: u64, pause: Duration) -> io::Result<()> {
        for n in 1..=count {
            self.say(turn, &format!("tick {n} "))?;
            self.pause(turn, pause)?;
            if turn.cancelled {
                break;
            }
        }
        Ok(())
    }

    /// Many short entries: a thought, a tool call and a message for each step.
    fn steps(&mut self, turn: &mut Turn, count: u64, pause: Duration) -> io::Result<()> {
        for n in 1..=count {
            self.update(&turn.session, &chunk("agent_thought_chunk", &format!("thought {n}")))?;
            let tool = self.tool(turn, "execute", &format!("call {n}"))?;
            self.tool_ends(turn, &tool, true, json!([]))?;
            self.say(turn, &format!("step {n} "))?;
            self.pause(turn, pause)?;
            if turn.cancelled {
                break;
            }
        }
        Ok(())
    }

    /// One tool call with `count` updates, each of which has all output so far: lines of `bytes` bytes.
    fn output(&mut self, turn: &mut Turn, count: u64, bytes: u64) -> io::Result<()> {
        let tool = self.tool(turn, "execute", "Print much")?;
        let mut output = String::new();
        for n in 1..=count {
            let line = format!("line {n} ");
            let rest = usize::try_from(bytes).unwrap_or(0).saturating_sub(line.len() + 1);
            output.push_str(&format!("{line}{}\n", "x".repeat(rest)));
            let content = json!([{"type": "content", "content": {"type": "text", "text": output}}]);
            let update = json!({"sessionUpdate": "tool_call_update", "toolCallId": tool, "content": content});
            self.update(&turn.session, &update)?;
        }
        let update = json!({"sessionUpdate": "tool_call_update", "toolCallId": tool, "status": "completed"});
        self.update(&turn.session, &update)?;
        self.say(turn, "printed")
    }

    /// Says an emoji in two chunks, each with one half of its surrogate pair.
    fn say_in_halves(&mut self, turn: &mut Turn) -> io::Result<()> {
        for half in [r"smile \ud83d", r"\ude00 end"] {
            let update = json!({"sessionId": turn.session, "update": chunk("agent_message_chunk", "TEXT")});
            let message = json!({"jsonrpc": "2.0", "method": "session/update", "params": update});
            self.lines.write_raw(&message.to_string().replace("TEXT", half))?;
        }
        turn.answer.push_str("smile 😀 end");
        Ok(())
    }

    /// Says a text in an update whose `id` is null.
    fn say_with_null_id(&mut self, turn: &mut Turn, text: &str) -> io::Result<()> {
        turn.answer.push_str(text);
        let params = json!({"sessionId": turn.session, "update": chunk("agent_message_chunk", text)});
        self.lines.write(&json!({"jsonrpc": "2.0", "id": null, "method": "session/update", "params": params}))
    }

    /// `plan` has three steps, which complete at once. `plan N MS` has N steps with a pause of MS milliseconds
    /// (default: 100) after each.
    fn plan(&mut self, command: &Command, turn: &mut Turn) -> io::Result<()> {
        let (steps, pause): (Vec<String>, _) = match command.number(0, 0) {
            0 => (["Read", "Think", "Write"].map(str::to_owned).into(), Duration::ZERO),
            count => (
                (1..=count.min(MAX_STEPS)).map(|n| format!("Step {n}")).collect(),
                Duration::from_millis(command.number(1, 100)),
            ),
        };
        for done in 0..=steps.len() {
            if done > 0 {
                self.pause(turn, pause)?;
            }
            if turn.cancelled {
                break;
            }
            let entry = |(place, step): (usize, &String)| {
                let status = match place {
                    place if place < done => "completed",
                    place if place == done => "in_progress",
                    _ => "pending",
                };
                json!({"content": step, "priority": "medium", "status": status})
            };
            let entries: Vec<_> = steps.iter().enumerate().map(entry).collect();
            self.update(&turn.session, &json!({"sessionUpdate": "plan", "entries": entries}))?;
        }
        Ok(())
    }
}
