//! Commands of the demo agent that call its client: ask, write, read, run.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Write},
    ops::Range,
    path::Path,
    process::{Command as Process, Stdio},
};

use serde_json::{Value, json};

use super::{Agent, lines::Read, script::Command, turn::Turn};

/// Said if the client does not offer file access.
const NOT_OFFERED: &str = "this client offers no files";

fn permission(turn: &Turn, tool: &str, title: &str, options: &Value) -> Value {
    json!({
        "sessionId": turn.session,
        "toolCall": {"toolCallId": tool, "title": title, "kind": "edit"},
        "options": options,
    })
}

impl Agent {
    /// Starts the first MCP server of the session over stdio, as agents do, calls `initialize` there and says the answer.
    pub(super) fn start_mcp(&mut self, turn: &mut Turn) -> io::Result<()> {
        let servers = self.conversations.get(&turn.session).map(|it| it.mcp_servers.clone()).unwrap_or_default();
        let server = &servers[0];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let variables = server["env"].as_array().into_iter().flatten();
        let mut child = Process::new(text(&server["command"]))
            .args(server["args"].as_array().into_iter().flatten().map(text))
            .envs(variables.map(|pair| (text(&pair["name"]), text(&pair["value"]))))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}});
        if let Some(mut input) = child.stdin.take() {
            writeln!(input, "{call}")?;
        }
        let mut answer = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut answer)?;
        }
        child.wait()?;
        self.say(turn, answer.trim())
    }

    /// Asks for permission and says the chosen option. `ask KIND …` offers one option of each kind, with the kind as id.
    pub(super) fn ask(&mut self, command: &Command, turn: &mut Turn) -> io::Result<()> {
        let options = match command.rest.as_str() {
            "" => json!([
                {"optionId": "allow", "name": "Allow once", "kind": "allow_once"},
                {"optionId": "allow-all", "name": "Always allow", "kind": "allow_always"},
                {"optionId": "reject", "name": "Reject", "kind": "reject_once"},
            ]),
            kinds => kinds.split(' ').map(|kind| json!({"optionId": kind, "name": kind, "kind": kind})).collect(),
        };
        let tool = self.tool(turn, "edit", "Something that needs permission")?;
        let params = permission(turn, &tool, "Something that needs permission", &options);
        let answer = self.request(turn, "session/request_permission", params)?;
        let outcome = &answer["result"]["outcome"];
        let chosen = outcome["optionId"].as_str().unwrap_or("cancelled").to_owned();
        self.tool_ends(turn, &tool, chosen.starts_with("allow"), json!([]))?;
        if outcome["outcome"] == "cancelled" && turn.cancelled {
            return Ok(());
        }
        self.say(turn, &chosen)
    }

    /// Sends several permission requests at once, or withdraws them, and says how they were answered.
    pub(super) fn ask_oddly(&mut self, command: &Command, turn: &mut Turn) -> io::Result<()> {
        let tool = self.tool(turn, "edit", "Something that needs permission")?;
        let both = json!([
            {"optionId": "allow", "name": "Allow once", "kind": "allow_once"},
            {"optionId": "reject", "name": "Reject", "kind": "reject_once"},
        ]);
        let (count, title, options) = match command.word.as_str() {
            "ask-many" => (command.number(0, 2), String::new(), both),
            "ask-huge" => {
                let option = |n: u64| json!({"optionId": format!("o{n}"), "name": "Option", "kind": "allow_once"});
                let title = "x".repeat(usize::try_from(command.number(0, 1)).unwrap_or(1));
                (1, title, (0..command.number(1, 1)).map(option).collect())
            }
            _ => (1, String::new(), both),
        };
        let first = self.next_request;
        self.next_request += count;
        for id in first..first + count {
            let params = permission(turn, &tool, &title, &options);
            let request =
                json!({"jsonrpc": "2.0", "id": id, "method": "session/request_permission", "params": params});
            self.lines.write(&request)?;
            if command.word == "ask-twice" {
                self.lines.write(&request)?;
            }
        }
        if command.word == "withdraw" {
            // The request of an id that was never used, then the own one.
            for id in [first + 1000, first] {
                let params = json!({"requestId": id});
                self.lines.write(&json!({"jsonrpc": "2.0", "method": "$/cancel_request", "params": params}))?;
            }
        }
        let mut answers: BTreeMap<String, u64> = BTreeMap::new();
        for _ in 0..count {
            let answer = self.next_answer(turn, first..first + count)?;
            let code = answer["error"]["code"].as_i64().map(|code| format!("error {code}"));
            let chosen = answer["result"]["outcome"]["optionId"].as_str().map(str::to_owned);
            *answers.entry(code.or(chosen).unwrap_or_else(|| "cancelled".to_owned())).or_default() += 1;
        }
        let said: Vec<_> = answers.iter().map(|(answer, times)| format!("{times} {answer}")).collect();
        self.say(turn, &said.join(", "))
    }

    fn next_answer(&mut self, turn: &mut Turn, ids: Range<u64>) -> io::Result<Value> {
        loop {
            match self.lines.read(None)? {
                Read::Text(line) => {
                    let message: Value = serde_json::from_str(&line).unwrap_or_default();
                    if message["method"].is_null() && message["id"].as_u64().is_some_and(|id| ids.contains(&id)) {
                        return Ok(message);
                    }
                    self.meanwhile(turn, &line)?;
                }
                Read::Silence => {}
                Read::End => std::process::exit(0),
            }
        }
    }

    pub(super) fn write_file(&mut self, command: &Command, turn: &mut Turn) -> io::Result<()> {
        let (name, text) = command.name_and_text();
        let path = self.absolute(turn, name);
        let tool = self.tool(turn, "edit", &format!("Write {name}"))?;
        let problem = if self.writes_files {
            let params = json!({"sessionId": turn.session, "path": path, "content": text});
            let answer = self.request(turn, "fs/write_text_file", params)?;
            answer["error"]["message"].as_str().map(str::to_owned)
        } else {
            Some(NOT_OFFERED.to_owned())
        };
        let diff = json!([{"type": "diff", "path": path, "newText": text}]);
        self.tool_ends(turn, &tool, problem.is_none(), diff)?;
        match problem {
            None => self.say(turn, &format!("wrote {name}")),
            Some(problem) => self.say(turn, &format!("could not write {name}: {problem}")),
        }
    }

    /// Sends `unread N NAME`: N requests for a file whose answers are not read.
    pub(super) fn ask_without_reading(&mut self, command: &Command, turn: &Turn) -> io::Result<()> {
        let name = command.rest.split_once(' ').map_or("", |(_, name)| name);
        let path = self.absolute(turn, name);
        for n in 0..command.number(0, 1) {
            let params = json!({"sessionId": turn.session, "path": path});
            self.lines.write(&json!({
                "jsonrpc": "2.0",
                "id": format!("unread-{n}"),
                "method": "fs/read_text_file",
                "params": params,
            }))?;
        }
        Ok(())
    }

    pub(super) fn read_file(&mut self, command: &Command, turn: &mut Turn) -> io::Result<()> {
        let path = self.absolute(turn, &command.rest);
        let tool = self.tool(turn, "read", &format!("Read {}", command.rest))?;
        let read = if self.reads_files {
            let params = json!({"sessionId": turn.session, "path": path});
            let answer = self.request(turn, "fs/read_text_file", params)?;
            match answer["result"]["content"].as_str() {
                Some(content) => Ok(content.to_owned()),
                None => Err(answer["error"]["message"].as_str().unwrap_or("no content").to_owned()),
            }
        } else {
            Err(NOT_OFFERED.to_owned())
        };
        self.tool_ends(turn, &tool, read.is_ok(), json!([]))?;
        match read {
            Ok(content) => self.say(turn, &content),
            Err(problem) => self.say(turn, &format!("could not read {}: {problem}", command.rest)),
        }
    }

    pub(super) fn run_command(&mut self, command: &Command, turn: &mut Turn) -> io::Result<()> {
        if !self.runs_commands {
            return self.say(turn, "no terminal is offered");
        }
        let tool = self.tool(turn, "execute", &format!("Run {}", command.rest))?;
        let session = turn.session.clone();
        let params =
            json!({"sessionId": session, "command": "sh", "args": ["-c", command.rest], "outputByteLimit": 65536});
        let created = self.request(turn, "terminal/create", params)?;
        let Some(terminal) = created["result"]["terminalId"].as_str().map(str::to_owned) else {
            self.tool_ends(turn, &tool, false, json!([]))?;
            let problem = created["error"]["message"].as_str().unwrap_or("no terminal").to_owned();
            return self.say(turn, &problem);
        };
        let which = json!({"sessionId": session, "terminalId": terminal});
        let shown = json!({
            "sessionUpdate": "tool_call_update",
            "toolCallId": tool,
            "content": [{"type": "terminal", "terminalId": terminal}],
        });
        self.update(&session, &shown)?;
        let ended = self.request(turn, "terminal/wait_for_exit", which.clone())?;
        let output = self.request(turn, "terminal/output", which.clone())?;
        self.request(turn, "terminal/release", which)?;
        self.tool_ends(turn, &tool, ended["result"]["exitCode"] == 0, json!([]))?;
        let text = output["result"]["output"].as_str().unwrap_or_default().to_owned();
        self.say(turn, &format!("{text}(exit {})", ended["result"]["exitCode"]))
    }

    fn absolute(&self, turn: &Turn, name: &str) -> String {
        let folder = self.conversations.get(&turn.session).map(|conversation| conversation.cwd.clone());
        folder.unwrap_or_default().join(Path::new(name)).display().to_string()
    }
}
