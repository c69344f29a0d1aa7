//! Records an agent's stdio and checks each message against the official JSON schema.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{Value, json, program::Folder, repository};

/// The schema shipped with the TypeScript SDK; `tests/run` installs it from the lock file.
const SCHEMA: &str = "tests/interop/node_modules/acp-schema/schema/v1/schema.json";

/// The official schema of protocol version 1.
#[derive(Debug)]
pub(crate) struct AcpSchema {
    document: Value,
    /// (method, receiving side, `Request`, `Response` or `Notification`) → definition.
    definitions: BTreeMap<(String, String, &'static str), String>,
}

/// The side that receives a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The agent receives it.
    Agent,
    /// The client receives it.
    Client,
}

impl Side {
    fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Client => "client",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Agent => Self::Client,
            Self::Client => Self::Agent,
        }
    }
}

impl AcpSchema {
    /// Reads the installed schema.
    pub(crate) fn load() -> Self {
        let path = repository(SCHEMA);
        let text = fs::read_to_string(&path)
            .unwrap_or_else(|cause| panic!("{}: {cause}: run tests/run, which installs it", path.display()));
        let document: Value = serde_json::from_str(&text).expect("the schema is JSON");
        let mut definitions = BTreeMap::new();
        for (name, definition) in document["$defs"].as_object().expect("definitions") {
            let kind = ["Request", "Response", "Notification"].into_iter().find(|kind| name.ends_with(kind));
            if let (Some(method), Some(kind)) = (definition["x-method"].as_str(), kind) {
                let side = definition["x-side"].as_str().unwrap_or_default();
                definitions.insert((method.to_owned(), side.to_owned(), kind), name.clone());
            }
        }
        Self { document, definitions }
    }

    /// Describes how a message violates the schema; `None` if it conforms. `asked` is the method of the request that
    /// a response answers.
    pub(crate) fn fault(&self, line: &Value, to: Side, asked: Option<&str>) -> Option<String> {
        if line["jsonrpc"] != "2.0" {
            return Some("`jsonrpc` is not \"2.0\"".into());
        }
        if let Some(error) = line.get("error") {
            return self.mismatch("Error", error);
        }
        let (method, side, kind, part) = match (line["method"].as_str(), line.get("id")) {
            (Some(method), Some(_)) => (method, to, "Request", "params"),
            (Some(method), None) => (method, to, "Notification", "params"),
            // A response belongs to a request that the sender of the response received.
            (None, _) => (asked?, to.other(), "Response", "result"),
        };
        if method.starts_with('_') {
            return None; // The schema does not constrain extensions.
        }
        let sides = [side.as_str().to_owned(), "protocol".to_owned()];
        let found = sides.into_iter().find_map(|side| self.definitions.get(&(method.to_owned(), side, kind)));
        match found {
            Some(definition) => self.mismatch(definition, line.get(part).unwrap_or(&Value::Null)),
            None => Some(format!("the protocol has no {kind} `{method}` for this side")),
        }
    }

    fn mismatch(&self, definition: &str, value: &Value) -> Option<String> {
        let schema = json!({
            "$schema": self.document["$schema"],
            "$defs": self.document["$defs"],
            "$ref": format!("#/$defs/{definition}"),
        });
        let validator = jsonschema::validator_for(&schema).expect("the official schema compiles");
        let faults: Vec<_> =
            validator.iter_errors(value).map(|fault| format!("{fault} at {}", fault.instance_path())).collect();
        (!faults.is_empty()).then(|| format!("not a {definition}: {faults:?}"))
    }
}

/// A recording of both directions of one or more agents' stdio.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    to_agent: PathBuf,
}

impl Recorder {
    /// Records into files in `folder`.
    pub(crate) fn new(folder: &Folder) -> Self {
        let recording = folder.path().join("recording");
        fs::create_dir_all(&recording).expect("a folder");
        Self { to_agent: recording.join("to-agent.jsonl") }
    }

    /// The folder of the files, which agents in a jail must be allowed to write.
    pub(crate) fn folder(&self) -> &Path {
        self.to_agent.parent().expect("a folder")
    }

    /// The command that runs and records `agent`. The agent has to exit when its stdin closes, because the shell
    /// waits for all three parts of the pipe.
    pub(crate) fn command(&self, agent: &[String]) -> Vec<String> {
        let script = r#"tee -a "$0" | "$@" | tee -a "$0.answers""#;
        let mut command = vec!["sh".to_owned(), "-c".into(), script.into(), self.to_agent.display().to_string()];
        command.extend(agent.iter().cloned());
        command
    }

    /// All recorded messages to the agent.
    pub(crate) fn sent(&self) -> Vec<Value> {
        lines(&self.to_agent)
    }

    /// All recorded messages from the agent.
    pub(crate) fn answered(&self) -> Vec<Value> {
        lines(&self.to_agent.with_extension("jsonl.answers"))
    }

    /// Fails the test if a message to the agent violates the official schema; returns the methods sent.
    pub(crate) fn check(&self, schema: &AcpSchema) -> Vec<String> {
        let (sent, answered) = (self.sent(), self.answered());
        assert!(!sent.is_empty(), "something was recorded in {}", self.to_agent.display());
        check_lines(schema, Side::Agent, &sent, &answered);
        sent.iter().filter_map(|line| line["method"].as_str()).map(str::to_owned).collect()
    }

    /// Fails the test if a message from the agent violates the official schema.
    pub(crate) fn check_agent(&self, schema: &AcpSchema) {
        check_lines(schema, Side::Client, &self.answered(), &self.sent());
    }
}

fn check_lines(schema: &AcpSchema, to: Side, lines: &[Value], other_way: &[Value]) {
    // A recording may hold several agents, whose request ids overlap: a response has to match the method of at least
    // one request with its id.
    for line in lines {
        let asked: Vec<_> = other_way
            .iter()
            .filter(|ask| ask.get("method").is_some() && ask.get("id") == line.get("id"))
            .filter_map(|ask| ask["method"].as_str())
            .collect();
        let is_response = line.get("method").is_none();
        assert!(
            !is_response || !asked.is_empty() || line.get("error").is_some(),
            "a response without a request: {line}"
        );
        let faults: Vec<_> = if is_response && !asked.is_empty() {
            asked.iter().map(|asked| schema.fault(line, to, Some(asked))).collect()
        } else {
            vec![schema.fault(line, to, None)]
        };
        assert!(faults.iter().any(Option::is_none), "{faults:?}\nin {line}");
    }
}

fn lines(path: &PathBuf) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"))).collect()
}

#[test]
fn schema_accepts_valid_messages_and_rejects_invalid_ones() {
    let schema = AcpSchema::load();
    let fault = |line: Value, to, asked| schema.fault(&line, to, asked);
    let good = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": 1}});
    assert_eq!(fault(good, Side::Agent, None), None);
    let cancel = json!({"jsonrpc": "2.0", "method": "session/cancel", "params": {"sessionId": "s"}});
    assert_eq!(fault(cancel.clone(), Side::Agent, None), None);
    assert!(fault(cancel, Side::Client, None).is_some(), "only the agent receives a cancel");
    let prompt = json!({"jsonrpc": "2.0", "id": 2, "method": "session/prompt", "params": {"sessionId": "s"}});
    assert!(fault(prompt, Side::Agent, None).is_some(), "a prompt without a prompt");
    let answer = json!({"jsonrpc": "2.0", "id": 3, "result": {"content": "x"}});
    assert_eq!(fault(answer.clone(), Side::Agent, Some("fs/read_text_file")), None);
    assert!(fault(answer, Side::Agent, Some("session/request_permission")).is_some());
    let error = json!({"jsonrpc": "2.0", "id": 3, "error": {"code": -32601, "message": "no"}});
    assert_eq!(fault(error, Side::Agent, Some("_x/y")), None);
}
