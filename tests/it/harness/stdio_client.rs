//! A minimal ACP client on an agent's stdio. It shows that an agent works with the stub model on its own, so that a
//! failing test with the program points at the program.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread,
};

use super::{DEADLINE, Value, agents::InteropAgent, json, processes};

/// A running agent.
#[derive(Debug)]
pub(crate) struct StdioClient {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<Value>,
    next_id: u64,
}

impl StdioClient {
    /// Starts an agent in a folder, with a cleared environment.
    pub(crate) fn start(agent: &InteropAgent, command: &[String], cwd: &Path) -> Self {
        let mut child = Command::new(&command[0])
            .args(&command[1..])
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap_or_default())
            .envs(&agent.env)
            .current_dir(cwd)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|cause| panic!("{}: {cause}", agent.name));
        let stdin = child.stdin.take().expect("a pipe");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = sync_channel(1024);
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or_else(|_| json!({"stray": line}));
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, stdin, lines, next_id: 1 }
    }

    /// Sends a request, and answers the agent's requests until the response arrives. `on_update` sees each update,
    /// and returns a session id to cancel that session.
    pub(crate) fn call(
        &mut self,
        method: &str,
        params: Value,
        mut on_update: impl FnMut(&Value) -> Option<String>,
    ) -> Value {
        let id = self.next_id;
        self.next_id += 1;
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}));
        loop {
            let line = match self.lines.recv_timeout(DEADLINE) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => panic!("{method}: no message within {DEADLINE:?}"),
                Err(RecvTimeoutError::Disconnected) => panic!("{method}: the agent ended"),
            };
            match (line["method"].as_str(), line.get("id")) {
                (Some(asked), Some(_)) => {
                    let answer = answer(asked, &line);
                    self.send(&answer);
                }
                (Some("session/update"), None) => {
                    if let Some(session) = on_update(&line["params"]["update"]) {
                        let params = json!({"sessionId": session});
                        self.send(&json!({"jsonrpc": "2.0", "method": "session/cancel", "params": params}));
                    }
                }
                (None, Some(answered)) if *answered == json!(id) => {
                    assert!(line.get("error").is_none(), "{method}: {line}");
                    return line["result"].clone();
                }
                _ => {}
            }
        }
    }

    fn send(&mut self, line: &Value) {
        writeln!(self.stdin, "{line}").expect("the agent reads");
    }
}

impl Drop for StdioClient {
    fn drop(&mut self) {
        processes::signal(-i32::try_from(self.child.id()).unwrap_or(0), libc::SIGKILL);
        let _ = self.child.wait();
    }
}

fn answer(method: &str, line: &Value) -> Value {
    let (id, params) = (&line["id"], &line["params"]);
    let path = params["path"].as_str().unwrap_or_default();
    let result = match method {
        "session/request_permission" => {
            let options = params["options"].as_array().expect("options");
            let allow = options.iter().find(|option| option["kind"] == "allow_once").expect("an allow_once");
            json!({"outcome": {"outcome": "selected", "optionId": allow["optionId"]}})
        }
        "fs/write_text_file" => {
            fs::write(path, params["content"].as_str().unwrap_or_default()).expect("the file can be written");
            json!({})
        }
        "fs/read_text_file" if Path::new(path).exists() => {
            json!({"content": fs::read_to_string(path).expect("the file can be read")})
        }
        _ => return json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "not here"}}),
    };
    json!({"jsonrpc": "2.0", "id": id, "result": result})
}
