//! Secrets in every place in which an operator or a caller can put one are found nowhere else.

use std::{fs, path::Path};

use crate::harness::{
    Program, Value, free_port, json,
    process::{Folder, Process},
    processes,
    sse::message_of,
};

/// The secrets by place. None has a known shape.
const CANARIES: [(&str, &str); 17] = [
    ("server.token", "canary-one-of-a-token-7f3a"),
    ("runtime.token", "canary-two-of-a-token-7f3a"),
    ("webhook.secret", "canary-three-of-a-webhook-7f3a"),
    ("webhook.previous_secret", "canary-four-of-a-webhook-7f3a"),
    ("webhook.url", "canary-five-of-a-webhook-url-7f3a"),
    ("database.url", "canary-six-of-a-database-7f3a"),
    ("agent.env of a key", "canary-seven-of-a-key-7f3a"),
    ("agent.env", "canary-eight-of-a-variable-7f3a"),
    ("inherit_env", "canary-nine-of-a-variable-7f3a"),
    ("named secret", "canary-ten-of-a-name-7f3a"),
    ("env of an MCP server", "canary-eleven-of-mcp-7f3a"),
    ("headers of an MCP server", "canary-twelve-of-mcp-7f3a"),
    ("args of an MCP server", "canary-thirteen-of-mcp-7f3a"),
    ("url of an MCP server", "canary-fourteen-of-mcp-7f3a"),
    ("_meta of an MCP server", "canary-fifteen-of-mcp-7f3a"),
    ("user of a repository", "canary-sixteen-of-git-7f3a"),
    ("query of a repository", "canary-seventeen-of-git-7f3a"),
];

fn canary(place: &str) -> &'static str {
    CANARIES.iter().find(|(name, _)| *name == place).expect("a place").1
}

/// What was searched, and the canaries found there.
#[derive(Default)]
struct Search(Vec<String>);

impl Search {
    fn text(&mut self, what: &str, text: &str) {
        self.0.extend(
            CANARIES.iter().filter(|(_, value)| text.contains(value)).map(|(place, _)| format!("{place} in {what}")),
        );
    }

    fn files(&mut self, folder: &Path) {
        for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() {
                self.files(&entry);
            } else {
                self.text(
                    &entry.display().to_string(),
                    &String::from_utf8_lossy(&fs::read(&entry).unwrap_or_default()),
                );
            }
        }
    }

    /// A file of `/proc` of a process; `given` are the places whose secrets it was given.
    fn process(&mut self, pid: i32, file: &str, given: &[&str]) {
        let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let before = self.0.len();
        self.text(&format!("{file} of process {pid}"), &String::from_utf8_lossy(&text));
        let mut index = 0;
        self.0.retain(|found| {
            index += 1;
            index <= before || !given.iter().any(|place| found.starts_with(&format!("{place} in ")))
        });
    }
}

fn start() -> Program {
    let hook = format!("http://127.0.0.1:{}/{}", free_port(), canary("webhook.url"));
    Program::builder()
        .separate_runtime(canary("runtime.token"))
        .set("log.level", "trace")
        .set("recovery.cooldown_s", 1800)
        .token(canary("server.token"))
        .env("LUMILINK_WEBHOOK__SECRET", canary("webhook.secret"))
        .env("LUMILINK_WEBHOOK__PREVIOUS_SECRET", canary("webhook.previous_secret"))
        .env("LUMILINK_WEBHOOK__URL", &hook)
        .runtime_env("LUMILINK_AGENT__ENV__SERVICE_KEY", canary("agent.env of a key"))
        .runtime_env("LUMILINK_AGENT__ENV__PLAIN", canary("agent.env"))
        .runtime_env("INHERITED", canary("inherit_env"))
        .runtime_env("LUMILINK_AGENT__INHERIT_ENV", r#"["INHERITED"]"#)
        .runtime_env("LUMILINK_SECRETS__TRACKER__VALUE", canary("named secret"))
        .runtime_env("LUMILINK_SECRETS__TRACKER__TENANTS", r#"["tenant-1"]"#)
        .runtime_env("LUMILINK_SECRETS__TRACKER__MCP_COMMAND", r#"["/bin/cat"]"#)
        .start()
}

#[test]
fn none_of_17_canary_secrets_leaves_the_place_where_it_was_put() {
    let mut program = start();
    let mut search = Search::default();
    let server = |more: Value| {
        let mut server = json!({"name": "a", "command": "/bin/cat", "args": [], "env": [
            {"name": "NAMED_KEY", "value": {"secret": "tracker"}},
            {"name": "GIVEN_KEY", "value": canary("env of an MCP server")},
        ]});
        more.as_object().unwrap().iter().for_each(|(name, value)| server[name] = value.clone());
        server
    };
    let body = |workspace: &str, more: Value| {
        let mut body = json!({"workspaceId": workspace, "installationId": "tenant-1"});
        more.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        body
    };
    // Refused requests.
    let remote = |url: String| {
        let headers = json!([{"name": "X-Key", "value": canary("headers of an MCP server")}]);
        json!({"mcpServers": [{"type": "http", "name": "r", "url": url, "headers": headers}]})
    };
    for more in [
        json!({"mcpServers": [server(json!({"args": ["--token", canary("args of an MCP server")]}))]}),
        remote(format!("https://user:{}@mcp.example.com/", canary("url of an MCP server"))),
        remote("https://mcp.example.com/".to_owned()),
        json!({"repository": format!("https://{}@github.com/a/b", canary("user of a repository"))}),
        json!({"repository": format!("https://github.com/a/b?x={}", canary("query of a repository"))}),
    ] {
        let refused = program.api.post("/acp/session/new", body("refused", more));
        assert!((400..500).contains(&refused.status), "{}", refused.text);
        search.text("a refusal", &refused.text);
    }
    // A session that says and leaves what it has.
    let noted = json!({"name": "b", "command": "/bin/cat", "args": [], "env": [],
        "_meta": {"note": canary("_meta of an MCP server")}});
    let session = program.api.open_with(body("ws", json!({"mcpServers": [server(json!({})), noted]})));
    search.text("an answer", &session.opened.to_string());
    let script = "env SERVICE_KEY ; spell PLAIN ; spell INHERITED ; complain-env PLAIN ; plan ; write a.txt content";
    let events = session.streams(script).rest();
    let said = message_of(&events);
    assert_eq!(said.matches("[redacted]").count(), 3, "the agent has the values: {said}");
    search.text("the stream", &format!("{events:?}"));
    // Values that only the supervisor knows, since the runtime is another process.
    let of_supervisor = ["server.token", "webhook.secret", "webhook.previous_secret", "webhook.url"];
    let spelled = of_supervisor.map(|place| format!("spell {}", canary(place))).join(" ; ");
    let said = message_of(&session.streams(&spelled).rest());
    assert_eq!(said.matches("[redacted]").count(), of_supervisor.len(), "{said}");
    search.text("a message in chunks", &said);
    for agent in program.agents() {
        search.process(agent, "environ", &["agent.env of a key", "agent.env", "inherit_env"]);
    }
    for process in processes::with_marker(program.folder.path()) {
        search.process(process.pid, "cmdline", &[]);
    }
    search.process(
        program.pid(),
        "environ",
        &["server.token", "runtime.token", "webhook.secret", "webhook.previous_secret", "webhook.url"],
    );
    let crashed = session.prompt("complain-env PLAIN ; complain-env INHERITED ; spell SERVICE_KEY ; crash");
    assert_eq!(crashed.status, 502, "{}", crashed.text);
    search.text("a problem", &crashed.text);
    session.becomes("idle");
    let why = json!({"actor": "test", "reason": "test"});
    program.api.post("/acp/workspaces/ws/rollback", why).expect(200);
    search
        .text("the stream of the fallback", &format!("{:?}", session.streams("spell PLAIN ; env INHERITED").rest()));
    let shown = [
        ("state", session.get("").text),
        ("explain", session.get("/explain").text),
        ("diff", session.get("/diff").text),
        ("health", program.api.get("/acp/health").text),
        ("deliveries", program.api.get("/acp/webhooks/deliveries").text),
        ("notifications", program.api.get("/acp/notifications?installationId=tenant-1").text),
        ("metrics", program.api.get("/metrics").text),
    ];
    shown.iter().for_each(|(what, text)| search.text(what, text));
    search.text("the transcript", &format!("{:?}", session.transcript()));
    search.files(&program.folder.path().join("data"));
    search.files(&session.path());
    search.text("the log", &program.log());
    search.text("the log of the runtime", &program.runtime().log());
    search.text("a failed start", &failed_start());
    assert_eq!(search.0, [""; 0]);
}

/// The log of a start whose database cannot be reached.
fn failed_start() -> String {
    let folder = Folder::new();
    let url = format!("postgres://user:{}@127.0.0.1:{}/none", canary("database.url"), free_port());
    let env = [("LUMILINK_DATABASE__URL".to_owned(), url), ("LUMILINK_LOG__LEVEL".to_owned(), "trace".to_owned())];
    let arguments = ["serve", "--listen", "127.0.0.1:0"].map(str::to_owned);
    let mut process = Process::start("no-database", &folder, &arguments, &env);
    // The program waits for a database for some time; what it says until then is enough.
    crate::harness::eventually("the program reports its database", || process.log().contains("database"));
    process.kill();
    process.log()
}
