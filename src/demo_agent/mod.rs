//! A deterministic ACP agent on stdin and stdout, controlled by words in the prompt. The demo shows it, and the tests
//! break it.
//!
//! The last text block of a prompt is a script: commands separated by ` ; `, run in order. A command that is not in
//! this table is echoed.
//!
//! | command | effect |
//! |---|---|
//! | `echo TEXT` | says TEXT in up to three chunks |
//! | `write NAME TEXT` | writes a file through `fs/write_text_file`, with a tool call |
//! | `read NAME` | says a file's content, through `fs/read_text_file` |
//! | `run COMMAND` | runs a command through `terminal/*`, and says its output |
//! | `linger MS` | works until it is cancelled, and ends the turn MS milliseconds later |
//! | `sleep SECONDS` | works on a tool call for that time; a cancel ends it |
//! | `ticks N MS` | says N chunks with pauses of MS milliseconds |
//! | `silent` | does nothing |
//! | `think` | sends one thought |
//! | `plan` | publishes a plan of three entries and completes it |
//! | `ask` | asks for permission and says the chosen option |
//! | `ask KIND …` | the same, with one option of each of these kinds |
//! | `ask-many N` | asks N times at once, and says how often each answer came |
//! | `ask-huge BYTES N` | asks with a title of that size and N options that allow |
//! | `ask-twice` | sends one permission request twice, with the same id |
//! | `withdraw` | withdraws a request that it never sent, then its own permission request |
//! | `mode NAME` | switches its own mode; in the mode `plan`, `write` writes nothing |
//! | `settings` | says its mode, tone, model and speed |
//! | `crash` | says something, writes to stderr, exits with 42 |
//! | `segv` | says something, kills itself with signal 11 |
//! | `hang` | falls silent; reads no cancel |
//! | `ignore-cancel` | falls silent; reads no cancel, and ignores SIGTERM |
//! | `garbage N` | prints N lines that are not JSON |
//! | `bad-frame` | ends the turn with a stop reason that the protocol does not define |
//! | `error CODE MESSAGE` | ends the turn with a JSON-RPC error |
//! | `error-data CODE JSON` | ends the turn with a JSON-RPC error that has this `data` |
//! | `provider-error`, `auth-error` | end the turn with the error of an overloaded provider, of a missing sign-in |
//! | `refuse`, `max-tokens` | end the turn with that stop reason |
//! | `flood N` | sends N updates as fast as it can |
//! | `unread N NAME` | asks N times for a file, reads no answer, and falls silent |
//! | `huge BYTES` | says one chunk of that size |
//! | `endless BYTES` | prints that number of bytes without a line end, and falls silent |
//! | `grandchild` | starts `sleep 1000` and says its process id |
//! | `unknown-update`, `unknown-request`, `unknown-notification` | sends a message that no client knows |
//! | `background MS SCRIPT` | announces a task as Claude Code does; after MS milliseconds, begins a turn by itself that runs SCRIPT, with ` , ` between commands |
//! | `background-qwen MS SCRIPT` | the same as qwen-code does |
//! | `unannounced MS SCRIPT` | the same without an announcement and without a mark at the end |
//! | `open-call MS` | leaves a tool call open as codex does, and completes it after MS milliseconds |
//! | `leave SECONDS` | leaves a process that runs for that time |
//! | `mcp` | says the MCP servers that it got, as JSON |
//! | `mcp-start` | starts its first MCP server, calls `initialize` there, and says the answer |
//! | `context` | says the number of blocks ahead of the prompt, and their text |
//! | `count` | says the number of prompts in this process |
//! | `usage IN OUT` | reports that number of tokens with the answer |
//! | `env NAME`, `cwd`, `pid` | say that value |
//! | `spell NAME` | says the value of that variable, or NAME itself without one, in chunks of one character |
//! | `answer TEXT` | ends the turn with this text in place of an answer; `$ID` is the id of the prompt, for more see `odd.rs` |
//! | `print TEXT` | prints this text, with the same placeholders |
//! | `complain TEXT` | writes TEXT to stderr |
//! | `complain-env NAME` | writes the value of that variable to stderr, in two parts |
//! | `update-as-request TEXT` | says TEXT in an update that is sent as a request, then the result of the answer |
//! | `ask-as METHOD ID` | sends a request whose id is this JSON, and says the id of the answer |
//!
//! With the flag `--oneshot` the agent is the headless command of the fallback instead: it reads the script as text
//! from stdin, writes its output to stdout as plain text, and echoes commands that need the protocol.

mod background;
mod flags;
mod lines;
mod odd;
mod oneshot;
mod script;
mod tools;
mod turn;

use std::{collections::BTreeMap, io, path::PathBuf, process::ExitCode};

use serde_json::{Value, json};

use self::{
    background::Task,
    flags::Flags,
    lines::{Lines, Read},
};

/// Speaks ACP on stdin and stdout until stdin ends. Returns exit code 2 for invalid flags, 1 if a script of
/// `--oneshot` fails, else 0.
pub(crate) fn run(arguments: Vec<String>) -> ExitCode {
    let flags = match Flags::parse(arguments) {
        Ok(flags) => flags,
        Err(problem) => {
            eprintln!("demo-agent: {problem}");
            return ExitCode::from(2);
        }
    };
    if flags.oneshot {
        return oneshot::run();
    }
    match Agent::new(flags).serve() {
        // The client closed stdin, or no longer reads.
        Ok(()) | Err(_) => ExitCode::SUCCESS,
    }
}

struct Conversation {
    cwd: PathBuf,
    mode: String,
    tone: String,
    /// Value of the option `fast`, which is offered with `--models`.
    fast: bool,
    model: String,
    /// `mcpServers`, as received.
    mcp_servers: Value,
    /// The turns so far: the user's script and the agent's text.
    said: Vec<(String, String)>,
}

impl Conversation {
    fn new(params: &Value, said: Vec<(String, String)>) -> Self {
        Self {
            cwd: PathBuf::from(params["cwd"].as_str().unwrap_or(".")),
            mode: MODES[0].0.to_owned(),
            tone: TONES[0].0.to_owned(),
            fast: false,
            model: MODELS[0].0.to_owned(),
            mcp_servers: params["mcpServers"].clone(),
            said,
        }
    }
}

struct Agent {
    flags: Flags,
    lines: Lines,
    conversations: BTreeMap<String, Conversation>,
    reads_files: bool,
    writes_files: bool,
    runs_commands: bool,
    signed_in: bool,
    next_request: u64,
    prompts_seen: u64,
    /// The rest of a replay that follows with the next prompt, as pairs of session and update.
    late: Vec<(String, Value)>,
    /// Work that continues after the turns that began it.
    tasks: Vec<Task>,
    turns_of_its_own: u32,
}

const MODES: [(&str, &str); 3] = [("code", "Code"), ("ask", "Ask"), ("plan", "Plan")];
const MODELS: [(&str, &str); 2] = [("small", "Small"), ("large", "Large")];
const TONES: [(&str, &str); 2] = [("plain", "Plain"), ("loud", "Loud")];

impl Agent {
    fn new(flags: Flags) -> Self {
        Self {
            signed_in: !flags.require_auth,
            flags,
            lines: Lines::new(),
            conversations: BTreeMap::new(),
            reads_files: false,
            writes_files: false,
            runs_commands: false,
            next_request: 1,
            prompts_seen: 0,
            late: Vec::new(),
            tasks: Vec::new(),
            turns_of_its_own: 0,
        }
    }

    fn serve(mut self) -> io::Result<()> {
        self.flags.misbehave_at_start(&mut self.lines)?;
        loop {
            let line = match self.lines.read(self.next_task())? {
                Read::Text(line) => line,
                Read::Silence => {
                    self.run_due_tasks()?;
                    continue;
                }
                Read::End => return Ok(()),
            };
            let Ok(message) = serde_json::from_str::<Value>(&line) else {
                let error = json!({"code": -32700, "message": "not JSON"});
                self.lines.write(&json!({"jsonrpc": "2.0", "id": null, "error": error}))?;
                continue;
            };
            self.handle(&message)?;
        }
    }

    fn handle(&mut self, message: &Value) -> io::Result<()> {
        let (Some(method), id) = (message["method"].as_str(), message.get("id").cloned()) else { return Ok(()) };
        let params = &message["params"];
        let Some(id) = id else {
            // A cancel without a running turn has no effect.
            return Ok(());
        };
        if let Some(template) = self.flags.answers.get(method) {
            let answer = script::filled(template, &id.to_string());
            return self.lines.write_raw(&answer);
        }
        if method == "session/prompt" {
            return self.run_turn(&id, params);
        }
        if method == "session/set_mode" && self.flags.mute_modes {
            return Ok(());
        }
        let result = self.answer(method, params)?;
        self.respond(&id, result)?;
        if method == "session/set_mode" && self.flags.contradict_modes {
            let session = params["sessionId"].as_str().unwrap_or_default().to_owned();
            return self.switch_mode(&session, MODES[0].0);
        }
        if method == "session/load" && self.flags.late_replay {
            let half = self.late.len() / 2;
            self.replay_late(half)?;
        }
        Ok(())
    }

    fn respond(&mut self, id: &Value, result: Result<Value, (i64, String)>) -> io::Result<()> {
        let answer = match result {
            Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
            Err((code, message)) => {
                json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
            }
        };
        self.lines.write(&answer)
    }

    /// Answers every request except a prompt.
    fn answer(&mut self, method: &str, params: &Value) -> io::Result<Result<Value, (i64, String)>> {
        let unknown_session = || Err((-32002, "no such session".to_owned()));
        let id = params["sessionId"].as_str().unwrap_or_default().to_owned();
        Ok(match method {
            "initialize" if self.flags.refuse_handshake => Err((-32603, "this agent refuses".into())),
            "initialize" => Ok(self.initialize(params)),
            "authenticate" => {
                self.signed_in = true;
                Ok(json!({}))
            }
            "session/new" | "session/load" | "session/resume" if !self.signed_in => {
                Err((-32000, "Authentication required".into()))
            }
            "session/new" => {
                let answer = self.begin(params);
                if self.flags.early_updates {
                    let session = answer["sessionId"].as_str().unwrap_or_default();
                    let commands = json!([{"name": "review", "description": "Reviews the changes."}]);
                    let update = json!({"sessionUpdate": "available_commands_update", "availableCommands": commands});
                    self.update(session, &update)?;
                    self.update(session, &chunk("agent_message_chunk", "Welcome!"))?;
                }
                Ok(answer)
            }
            "session/load" if self.flags.loads => match self.restore(&id, params) {
                true => {
                    self.replay(&id)?;
                    Ok(self.offers(&id))
                }
                false => unknown_session(),
            },
            "session/resume" if self.flags.resumes => match self.restore(&id, params) {
                true => Ok(self.offers(&id)),
                false => unknown_session(),
            },
            "session/delete" if self.flags.persists() => {
                self.conversations.remove(&id);
                match self.flags.delete(&id) {
                    true => Ok(json!({})),
                    false => unknown_session(),
                }
            }
            "session/close" => match self.close(&id) {
                true => Ok(json!({})),
                false => unknown_session(),
            },
            "session/set_mode" if self.flags.refuses_modes() => Err((-32603, "modes cannot be changed now".into())),
            "session/set_mode" => self.set_mode(&id, params["modeId"].as_str().unwrap_or_default()),
            "session/set_model" => self.set_model(&id, params["modelId"].as_str().unwrap_or_default()),
            "session/set_config_option" => self.set_tone(&id, params),
            other => Err((-32601, format!("no method {other}"))),
        })
    }

    fn initialize(&mut self, params: &Value) -> Value {
        let offered = &params["clientCapabilities"];
        self.reads_files = offered["fs"]["readTextFile"] == true;
        self.writes_files = offered["fs"]["writeTextFile"] == true;
        self.runs_commands = offered["terminal"] == true;
        let version = match self.flags.echo_version {
            true => params["protocolVersion"].clone(),
            false => json!(self.flags.protocol_version),
        };
        let mut session = json!({"close": {}});
        if self.flags.resumes {
            session["resume"] = json!({});
        }
        if self.flags.persists() {
            session["delete"] = json!({});
        }
        json!({
            "protocolVersion": version,
            "agentInfo": {"name": "lumilink-demo-agent", "title": "Demo agent", "version": env!("CARGO_PKG_VERSION")},
            "agentCapabilities": {
                "loadSession": self.flags.loads,
                "promptCapabilities": {"image": true, "embeddedContext": true},
                "sessionCapabilities": session,
            },
            "authMethods": if self.flags.require_auth { json!([{"id": "demo", "name": "Demo sign-in"}]) } else { json!([]) },
        })
    }

    fn begin(&mut self, params: &Value) -> Value {
        // Unique across processes, so that one process can restore a conversation of another.
        let id = format!("demo-{}", uuid::Uuid::now_v7());
        let conversation = Conversation::new(params, Vec::new());
        self.conversations.insert(id.clone(), conversation);
        self.keep(&id);
        let mut answer = self.offers(&id);
        answer["sessionId"] = json!(id);
        answer
    }

    fn offers(&self, id: &str) -> Value {
        let Some(conversation) = self.conversations.get(id) else { return json!({}) };
        let named = |(id, name): &(&str, &str)| json!({"id": id, "name": name});
        let mut offers = json!({
            "modes": {"currentModeId": conversation.mode, "availableModes": MODES.iter().map(named).collect::<Vec<_>>()},
            "configOptions": self.options(conversation),
        });
        if self.flags.models {
            let named = |(id, name): &(&str, &str)| json!({"modelId": id, "name": name});
            let models = MODELS.iter().map(named).collect::<Vec<_>>();
            offers["models"] = json!({"currentModelId": conversation.model, "availableModels": models});
        }
        offers
    }

    fn options(&self, conversation: &Conversation) -> Value {
        let mut options = tone_options(&conversation.tone);
        if let Some(options) = options.as_array_mut().filter(|_| self.flags.models) {
            options.push(json!({"id": "fast", "name": "Fast", "type": "boolean", "currentValue": conversation.fast}));
        }
        options
    }

    /// Switches the mode and reports it.
    fn switch_mode(&mut self, session: &str, mode: &str) -> io::Result<()> {
        if let Some(conversation) = self.conversations.get_mut(session) {
            conversation.mode = mode.to_owned();
        }
        self.update(session, &json!({"sessionUpdate": "current_mode_update", "currentModeId": mode}))
    }

    /// Selects a model, which resets the tone.
    fn set_model(&mut self, id: &str, model: &str) -> Result<Value, (i64, String)> {
        let known = self.flags.models && MODELS.iter().any(|(known, _)| *known == model);
        match self.conversations.get_mut(id) {
            Some(conversation) if known => {
                (conversation.model, conversation.tone) = (model.to_owned(), TONES[0].0.to_owned());
                Ok(json!({}))
            }
            Some(_) => Err((-32602, format!("no model {model:?}"))),
            None => Err((-32002, "no such session".into())),
        }
    }

    /// The mode, tone, model and speed of a conversation, as text.
    fn settings(&self, id: &str) -> String {
        let Some(it) = self.conversations.get(id) else { return String::new() };
        format!("mode={} tone={} model={} fast={}", it.mode, it.tone, it.model, it.fast)
    }

    fn set_mode(&mut self, id: &str, mode: &str) -> Result<Value, (i64, String)> {
        let known = MODES.iter().any(|(known, _)| *known == mode);
        match self.conversations.get_mut(id) {
            Some(conversation) if known => {
                conversation.mode = mode.to_owned();
                Ok(json!({}))
            }
            Some(_) => Err((-32602, format!("no mode {mode:?}"))),
            None => Err((-32002, "no such session".into())),
        }
    }

    fn set_tone(&mut self, id: &str, params: &Value) -> Result<Value, (i64, String)> {
        let (value, has_fast) = (&params["value"], self.flags.models);
        let tone = value.as_str().unwrap_or_default();
        let known = params["configId"] == "tone" && TONES.iter().any(|(known, _)| *known == tone);
        match self.conversations.get_mut(id) {
            Some(conversation) if known => {
                conversation.tone = tone.to_owned();
                Ok(self.options_of(id))
            }
            Some(conversation) if has_fast && params["configId"] == "fast" && value.is_boolean() => {
                conversation.fast = *value == json!(true);
                Ok(self.options_of(id))
            }
            Some(_) => Err((-32602, "no such option or value".into())),
            None => Err((-32002, "no such session".into())),
        }
    }

    fn options_of(&self, id: &str) -> Value {
        json!({"configOptions": self.conversations.get(id).map(|conversation| self.options(conversation))})
    }

    /// Restores the conversation from this process or from the file of another one. Returns false if it is unknown.
    fn restore(&mut self, id: &str, params: &Value) -> bool {
        if !self.conversations.contains_key(id)
            && let Some(said) = self.flags.kept(id)
        {
            self.conversations.insert(id.to_owned(), Conversation::new(params, said));
        }
        self.conversations.contains_key(id)
    }

    fn keep(&self, id: &str) {
        if let Some(conversation) = self.conversations.get(id) {
            self.flags.keep(id, &conversation.said);
        }
    }

    fn replay(&mut self, id: &str) -> io::Result<()> {
        let said = self.conversations.get(id).map(|it| it.said.clone()).unwrap_or_default();
        let updates = said.iter().flat_map(|(user, agent)| {
            [chunk("user_message_chunk", user), chunk("agent_message_chunk", agent)].map(|it| (id.to_owned(), it))
        });
        self.late.extend(updates);
        if self.flags.late_replay { Ok(()) } else { self.replay_late(usize::MAX) }
    }

    /// Sends the first `most` updates of a replay that are left.
    fn replay_late(&mut self, most: usize) -> io::Result<()> {
        let most = most.min(self.late.len());
        for (id, update) in self.late.drain(..most).collect::<Vec<_>>() {
            self.update(&id, &update)?;
        }
        Ok(())
    }

    fn update(&mut self, id: &str, update: &Value) -> io::Result<()> {
        let params = json!({"sessionId": id, "update": update});
        self.lines.write(&json!({"jsonrpc": "2.0", "method": "session/update", "params": params}))
    }
}

fn chunk(kind: &str, text: &str) -> Value {
    json!({"sessionUpdate": kind, "content": {"type": "text", "text": text}})
}

fn tone_options(tone: &str) -> Value {
    let named = |(id, name): &(&str, &str)| json!({"value": id, "name": name});
    json!([{
        "id": "tone",
        "name": "Tone",
        "type": "select",
        "currentValue": tone,
        "options": TONES.iter().map(named).collect::<Vec<_>>(),
    }])
}
