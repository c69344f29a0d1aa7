//! Records what goes to an agent's stdin and checks every line of it against the official JSON schema.

use std::{collections::BTreeMap, fs, path::PathBuf};

use super::{Value, json, program::Folder, repository};

/// The schema as the TypeScript SDK ships it; `tests/run` installs it from the lock file.
const SCHEMA: &str = "tests/interop/node_modules/acp-schema/schema/v1/schema.json";

/// The official schema of protocol version 1.
#[derive(Debug)]
pub(crate) struct AcpSchema {
    document: Value,
    /// (method, side that answers it, `Request`, `Response` or `Notification`) → definition.
    definitions: BTreeMap<(String, String, &'static str), String>,
}

/// Which way a line goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The agent answers it.
    Agent,
    /// The client answers it.
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

    /// What is wrong with a line; `None` where nothing is. `asked` is the method of the request that a
    /// response answers.
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
            // A response is answered by the side that it comes from.
            (None, _) => (asked?, to.other(), "Response", "result"),
        };
        if method.starts_with('_') {
            return None; // An extension: the schema leaves its form open.
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
        let validator = jsonschema::validator_for(&schema).expect("the official schema is one");
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
    /// Records into files of this folder.
    pub(crate) fn new(folder: &Folder) -> Self {
        Self { to_agent: folder.path().join("to-agent.jsonl") }
    }

    /// The command that runs `agent` and records it. Only for agents that end by themselves when their
    /// stdin does: the shell waits for all three parts.
    pub(crate) fn command(&self, agent: &[String]) -> Vec<String> {
        let script = r#"tee -a "$0" | "$@" | tee -a "$0.answers""#;
        let mut command = vec!["sh".to_owned(), "-c".into(), script.into(), self.to_agent.display().to_string()];
        command.extend(agent.iter().cloned());
        command
    }

    /// Every recorded message to the agent.
    pub(crate) fn sent(&self) -> Vec<Value> {
        lines(&self.to_agent)
    }

    /// Every recorded message from the agent.
    pub(crate) fn answered(&self) -> Vec<Value> {
        lines(&self.to_agent.with_extension("jsonl.answers"))
    }

    /// Fails the test where a message to the agent is not what the official schema says; gives the
    /// methods that were sent.
    pub(crate) fn check(&self, schema: &AcpSchema) -> Vec<String> {
        let (sent, answered) = (self.sent(), self.answered());
        assert!(!sent.is_empty(), "something was recorded in {}", self.to_agent.display());
        check_lines(schema, Side::Agent, &sent, &answered);
        sent.iter().filter_map(|line| line["method"].as_str()).map(str::to_owned).collect()
    }

    /// The same for what the agent said, for an agent of ours.
    pub(crate) fn check_agent(&self, schema: &AcpSchema) {
        check_lines(schema, Side::Client, &self.answered(), &self.sent());
    }
}

fn check_lines(schema: &AcpSchema, to: Side, lines: &[Value], other_way: &[Value]) {
    // Several agents may have been recorded: an id then stands for each of them, and a response has to
    // fit the method that one of them asked for.
    for line in lines {
        let asked: Vec<_> = other_way
            .iter()
            .filter(|ask| ask.get("method").is_some() && ask.get("id") == line.get("id"))
            .filter_map(|ask| ask["method"].as_str())
            .collect();
        let is_response = line.get("method").is_none();
        assert!(!is_response || !asked.is_empty() || line.get("error").is_some(), "an answer to nothing: {line}");
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
fn the_schema_tells_good_messages_from_bad_ones() {
    let schema = AcpSchema::load();
    let fault = |line: Value, to, asked| schema.fault(&line, to, asked);
    let good = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": 1}});
    assert_eq!(fault(good, Side::Agent, None), None);
    let cancel = json!({"jsonrpc": "2.0", "method": "session/cancel", "params": {"sessionId": "s"}});
    assert_eq!(fault(cancel.clone(), Side::Agent, None), None);
    assert!(fault(cancel, Side::Client, None).is_some(), "nobody cancels at the client");
    let prompt = json!({"jsonrpc": "2.0", "id": 2, "method": "session/prompt", "params": {"sessionId": "s"}});
    assert!(fault(prompt, Side::Agent, None).is_some(), "a prompt without a prompt");
    let answer = json!({"jsonrpc": "2.0", "id": 3, "result": {"content": "x"}});
    assert_eq!(fault(answer.clone(), Side::Agent, Some("fs/read_text_file")), None);
    assert!(fault(answer, Side::Agent, Some("session/request_permission")).is_some());
    let error = json!({"jsonrpc": "2.0", "id": 3, "error": {"code": -32601, "message": "no"}});
    assert_eq!(fault(error, Side::Agent, Some("_x/y")), None);
}
