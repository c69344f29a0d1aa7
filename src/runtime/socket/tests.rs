//! The ACP endpoint from outside: a real server, real sockets, and agents that are shell scripts.

use std::{collections::BTreeMap, path::Path, time::Duration};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest,
        http::{HeaderValue, Response},
        protocol::frame::{
            CloseFrame, Frame, FrameHeader,
            coding::{CloseCode, Data, OpCode},
        },
    },
};

use crate::{
    contract::runtime::close_code,
    process::sandbox::JailSettings,
    runtime::{workspaces::diff::DiffLimits, *},
};

/// Answers `initialize` and `session/new` like an agent, and each prompt by doing what its text says.
pub(crate) const AGENT: &str = r#"
while read -r line; do
    id=$(printf '%s' "$line" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
    case "$line" in
        *'"initialize"'*) echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"result\":{\"protocolVersion\":1,\"_meta\":{\"got\":$line}}}" ;;
        *'session/new'*) echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"result\":{\"sessionId\":\"s\"}}" ;;
        *'"die"'*) echo '{"method":"session/update","params":{"last":true}}'; echo oops >&2; exit 42 ;;
        *'"die later"'*) echo '{"method":"soon"}'; sleep 0.3; echo '{"method":"session/update","params":{"last":true}}'; exit 42 ;;
        *'"garbage"'*) echo 'this is not JSON' ;;
        *'"flood"'*) while :; do echo "{\"method\":\"session/update\",\"params\":{\"x\":\"$(printf '%01000d' 0)\"}}"; done ;;
        *'"endless"'*) cat /dev/zero ;;
        *'"quiet"'*) ;;
        *'"count"'*) i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo "{\"method\":\"session/update\",\"params\":{\"n\":$i}}"; done ;;
        *'"pid"'*) sleep 1000 & echo "{\"method\":\"pid\",\"params\":[$$,$!]}" ;;
        *'"read"'*) echo '{"jsonrpc":"2.0","id":"r","method":"fs/read_text_file","params":{"sessionId":"s","path":"a.txt"}}'
            echo "{\"jsonrpc\":\"2.0\",\"id\":\"a\",\"method\":\"fs/read_text_file\",\"params\":{\"sessionId\":\"s\",\"path\":\"$(pwd)/a.txt\"}}" ;;
        *) echo "{\"method\":\"echo\",\"params\":$line}" ;;
    esac
done
"#;

pub(crate) struct Place {
    pub(crate) base: tempfile::TempDir,
    pub(crate) runtime: RunningRuntime,
    pub(crate) metrics: Metrics,
}

impl Place {
    pub(crate) async fn start(base: tempfile::TempDir, options: RuntimeOptions) -> Self {
        let metrics = options.metrics.clone();
        let runtime = start(options, None).await.unwrap();
        Self { base, runtime, metrics }
    }

    pub(crate) fn held_conversations(&self) -> usize {
        self.metrics.value("lumilink_held_conversations").unwrap() as usize
    }

    pub(crate) fn workspace(&self) -> String {
        self.base.path().join("root/ws").to_str().unwrap().to_owned()
    }
}

pub(crate) fn options(base: &Path, script: &str) -> RuntimeOptions {
    let shell = |name: &str, script: &str, fs| AgentSettings {
        name: name.into(),
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        oneshot: Vec::new(),
        environment: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".into())]),
        run_as: None,
        serves: ServedRequests { fs, terminal: fs },
        jail: JailSettings::default(),
    };
    let mut missing = shell("missing", "", true);
    missing.command = vec!["/no/such/agent".into()];
    RuntimeOptions {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        token: Some("secret".into()),
        workers: 1,
        root: base.join("root"),
        allow_paths: Vec::new(),
        git_hosts: Vec::new(),
        clone_timeout: Duration::from_secs(10),
        agents: vec![shell("default", script, true), shell("closed", script, false), missing],
        own: OwnPaths::default(),
        serves_on: SocketAddr::from(([127, 0, 0, 1], 0)),
        inherited: Inherited::of_tests(),
        environment: BTreeMap::new(),
        max_agents: 2,
        kill_grace: Duration::from_millis(300),
        frame_bytes: 1024 * 1024,
        acp: true,
        pipe: PipeLimits { frames: 64, bytes: 1024 * 1024 },
        secrets: crate::config::Reloadable::new(BTreeMap::new()),
        diff: DiffLimits { patch_bytes: 10_000, file_bytes: 100_000 },
        terminals: 2,
        retention: Retention { grace: Duration::from_secs(60), frames: 64, bytes: 256 * 1024 },
        heartbeat: Heartbeat::ACP,
        metrics: Metrics::for_tests(),
    }
}

pub(crate) async fn place() -> Place {
    let base = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(base.path().join("root/ws")).unwrap();
    let options = options(base.path(), AGENT);
    Place::start(base, options).await
}

pub(crate) struct Client {
    pub(crate) socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Client {
    pub(crate) async fn try_connect(
        place: &Place,
        headers: &[(&'static str, &str)],
    ) -> Result<(Self, Response<Option<Vec<u8>>>), Error> {
        let url = format!("ws://{}/acp", place.runtime.address());
        let mut request = url.into_client_request()?;
        for (name, value) in headers {
            request.headers_mut().insert(*name, HeaderValue::from_str(value)?);
        }
        let (socket, response) = connect_async(request).await?;
        Ok((Self { socket }, response))
    }

    pub(crate) async fn connect(place: &Place) -> Self {
        Self::try_connect(place, &[("authorization", "Bearer secret")]).await.unwrap().0
    }

    pub(crate) async fn initialized(place: &Place, agent: &str) -> Self {
        let mut client = Self::connect(place).await;
        let answer = client.initialize(json!({"agent": agent, "cwd": place.workspace()})).await;
        assert!(answer["result"].is_object(), "{answer}");
        client
    }

    pub(crate) async fn initialize(&mut self, meta: Value) -> Value {
        let params = json!({
            "protocolVersion": 1,
            "clientCapabilities": {"fs": {"readTextFile": false}, "terminal": true, "extra": {"a": 1}},
            "_meta": {"lumilink": meta, "theirs": 1},
        });
        self.send(json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params})).await;
        self.receive().await
    }

    pub(crate) async fn send(&mut self, message: Value) {
        self.send_text(&message.to_string()).await;
    }

    pub(crate) async fn send_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Message {
        loop {
            let next = tokio::time::timeout(Duration::from_secs(20), self.socket.next()).await;
            match next.expect("an answer in time").expect("an open socket").unwrap() {
                Message::Ping(_) | Message::Pong(_) => {}
                message => return message,
            }
        }
    }

    pub(crate) async fn receive(&mut self) -> Value {
        match self.next().await {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn receive_close(&mut self) -> u16 {
        loop {
            if let Message::Close(Some(CloseFrame { code, .. })) = self.next().await {
                return code.into();
            }
        }
    }
}

pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[actix_web::test]
async fn the_handshake_starts_the_agent_and_rewrites_only_what_is_ours() {
    let place = place().await;
    let (mut client, response) = Client::try_connect(&place, &[("authorization", "Bearer secret")]).await.unwrap();
    assert!(response.headers()["acp-connection-id"].to_str().unwrap().parse::<uuid::Uuid>().is_ok());
    let answer = client.initialize(json!({"cwd": place.workspace()})).await;
    let got = &answer["result"]["_meta"]["got"]["params"];
    assert_eq!(got["clientCapabilities"]["fs"], json!({"readTextFile": true, "writeTextFile": true}));
    assert_eq!(got["clientCapabilities"]["extra"], json!({"a": 1}));
    assert_eq!(got["_meta"], json!({"theirs": 1}));
    assert_eq!(place.runtime.agent_processes(), 1);
    // Anything else passes as it is.
    client.send_text(r#"{"jsonrpc":"2.0","method":"_x/y","params":{"n":1.50,  "m":[1e2]}}"#).await;
    match client.next().await {
        Message::Text(text) => assert!(text.contains(r#"{"n":1.50,  "m":[1e2]}"#), "{text}"),
        other => panic!("{other:?}"),
    }
    drop(client);
    until("the agent is ended with its socket", || place.runtime.agent_processes() == 0).await;
}

#[actix_web::test]
async fn requests_without_a_token_or_from_a_browser_are_refused() {
    let place = place().await;
    for (headers, status) in [
        (vec![], 401),
        (vec![("authorization", "Bearer secreT")], 401),
        (vec![("authorization", "Basic secret")], 401),
        (vec![("authorization", "Bearer secret"), ("origin", "http://127.0.0.1")], 403),
    ] {
        match Client::try_connect(&place, &headers).await {
            Err(Error::Http(response)) => assert_eq!(response.status().as_u16(), status, "{headers:?}"),
            other => panic!("{headers:?}: {:?}", other.map(|_| ())),
        }
    }
}

#[actix_web::test]
async fn a_runtime_that_others_can_reach_needs_a_token() {
    let base = tempfile::tempdir().unwrap();
    let mut open = options(base.path(), AGENT);
    open.listen = SocketAddr::from(([0, 0, 0, 0], 0));
    open.token = None;
    assert!(matches!(start(open, None).await, Err(StartError::NoToken(_))));
}

#[actix_web::test]
async fn refusals_say_why_and_carry_their_code() {
    let place = place().await;
    let mut client = Client::connect(&place).await;
    let outside = place.base.path().to_str().unwrap();
    for (meta, rpc_code, code) in [
        (json!({"agent": "nobody"}), -32602, "unknown_agent"),
        (json!({"cwd": outside}), -32602, "path_not_allowed"),
        (json!({"cwd": format!("{outside}/root/none")}), -32602, "folder_missing"),
        (json!({"agent": "missing"}), -32603, "agent_start_failed"),
    ] {
        let answer = client.initialize(meta.clone()).await;
        assert_eq!(answer["error"]["code"], rpc_code, "{meta}: {answer}");
        assert_eq!(answer["error"]["data"]["lumilink"]["code"], code, "{meta}");
    }
    let _first = Client::initialized(&place, "default").await;
    let _second = Client::initialized(&place, "default").await;
    let answer = client.initialize(json!({})).await;
    assert_eq!(answer["error"]["data"]["lumilink"]["code"], "capacity_exhausted");
}

#[actix_web::test]
async fn the_first_message_has_to_be_initialize() {
    let place = place().await;
    for (text, code) in [
        (r#"{"jsonrpc":"2.0","id":7,"method":"session/new","params":{}}"#, -32600),
        ("{}", -32600),
        ("hello", -32700),
    ] {
        let mut client = Client::connect(&place).await;
        client.send_text(text).await;
        assert_eq!(client.receive().await["error"]["code"], code, "{text}");
        assert_eq!(client.receive_close().await, close_code::POLICY, "{text}");
    }
    let mut client = Client::connect(&place).await;
    client.socket.send(Message::binary(vec![1])).await.unwrap();
    assert_eq!(client.receive_close().await, close_code::POLICY);
}

#[actix_web::test]
async fn malformed_messages_are_answered_and_the_connection_continues() {
    let place = place().await;
    let mut client = Client::initialized(&place, "default").await;
    client.send_text("nonsense").await;
    assert_eq!(client.receive().await["error"]["code"], -32700);
    assert_eq!(client.initialize(json!({})).await["error"]["code"], -32600);
    client.send(json!({"method": "x"})).await;
    assert_eq!(client.receive().await["method"], "echo");
}

#[actix_web::test]
async fn a_message_in_several_frames_is_put_together_within_the_limit() {
    let place = place().await;
    let mut client = Client::initialized(&place, "default").await;
    let part = |text: Vec<u8>, code: Data, last: bool| {
        let header = FrameHeader { is_final: last, opcode: OpCode::Data(code), ..FrameHeader::default() };
        Message::Frame(Frame::from_payload(header, text.into()))
    };
    client.socket.send(part(b"{\"method\":".to_vec(), Data::Text, false)).await.unwrap();
    client.socket.send(part(b"\"in".to_vec(), Data::Continue, false)).await.unwrap();
    client.socket.send(part(b" parts\"}".to_vec(), Data::Continue, true)).await.unwrap();
    assert_eq!(client.receive().await["params"]["method"], "in parts");
    client.socket.send(part(vec![b' '; 700_000], Data::Text, false)).await.unwrap();
    client.socket.send(part(vec![b' '; 700_000], Data::Continue, false)).await.unwrap();
    assert_eq!(client.receive_close().await, close_code::TOO_BIG);
}

#[actix_web::test]
async fn a_session_stays_in_the_folder_that_was_named() {
    let place = place().await;
    std::fs::create_dir_all(place.base.path().join("root/other")).unwrap();
    std::fs::create_dir_all(place.base.path().join("root/ws/sub")).unwrap();
    let mut client = Client::initialized(&place, "default").await;
    let new = |cwd: String| json!({"jsonrpc": "2.0", "id": 5, "method": "session/new", "params": {"cwd": cwd, "mcpServers": []}});
    let other = place.base.path().join("root/other").to_str().unwrap().to_owned();
    for cwd in [other.clone(), "/".into(), "relative".into(), format!("{}/../other", place.workspace())] {
        client.send(new(cwd.clone())).await;
        assert_eq!(client.receive().await["error"]["code"], -32602, "{cwd}");
    }
    client.send(new(format!("{}/sub", place.workspace()))).await;
    assert_eq!(client.receive().await["result"]["sessionId"], "s");
    // A plain client names its folder with the session alone.
    let mut plain = Client::connect(&place).await;
    plain.send(json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": 1}})).await;
    plain.receive().await;
    plain.send(new(other)).await;
    assert_eq!(plain.receive().await["result"]["sessionId"], "s");
    plain.send(new(place.base.path().to_str().unwrap().to_owned())).await;
    assert_eq!(plain.receive().await["error"]["code"], -32602);
}

#[actix_web::test]
async fn files_are_served_here_or_refused_here() {
    let place = place().await;
    std::fs::write(place.base.path().join("root/ws/a.txt"), "content").unwrap();
    let answers = async |agent: &str| {
        let mut client = Client::initialized(&place, agent).await;
        client.send(json!({"method": "read"})).await;
        // The agent echoes what it gets, the answers of the endpoint included.
        let mut answers = BTreeMap::new();
        while answers.len() < 2 {
            let echoed = client.receive().await;
            assert_eq!(echoed["method"], "echo", "nothing of it reaches the client: {echoed}");
            answers.insert(echoed["params"]["id"].as_str().unwrap().to_owned(), echoed["params"].clone());
        }
        answers
    };
    let open = answers("default").await;
    assert_eq!(open["r"]["error"]["code"], -32602, "a relative path");
    assert_eq!(open["a"]["result"]["content"], "content");
    let closed = answers("closed").await;
    assert_eq!(closed["a"]["error"]["code"], -32601);
}

#[actix_web::test]
async fn an_agents_death_comes_after_its_last_words() {
    let place = place().await;
    let mut client = Client::initialized(&place, "default").await;
    client.send(json!({"method": "garbage"})).await;
    let stray = client.receive().await;
    assert_eq!(
        (&stray["method"], &stray["params"]["line"]),
        (&json!("_lumilink/stray_line"), &json!("this is not JSON"))
    );
    client.send(json!({"method": "die"})).await;
    assert_eq!(client.receive().await["params"]["last"], true);
    let end = client.receive().await;
    assert_eq!(end["method"], "_lumilink/agent_exited");
    assert_eq!((&end["params"]["exitCode"], &end["params"]["stderrTail"]), (&json!(42), &json!("oops\n")));
    assert_eq!(client.receive_close().await, close_code::AGENT_ENDED);
}

#[actix_web::test]
async fn a_line_without_end_ends_the_agent_with_a_reason() {
    let place = place().await;
    let mut client = Client::initialized(&place, "default").await;
    client.send(json!({"method": "endless"})).await;
    assert_eq!(client.receive().await["params"]["code"], "frame_too_large");
    assert_eq!(client.receive_close().await, close_code::AGENT_ENDED);
    until("the agent is gone", || place.runtime.agent_processes() == 0).await;
}

#[actix_web::test]
async fn a_flood_arrives_in_order_and_ends_with_its_client() {
    let place = place().await;
    let mut client = Client::initialized(&place, "default").await;
    client.send(json!({"method": "flood"})).await;
    for _ in 0..2_000 {
        assert_eq!(client.receive().await["method"], "session/update");
    }
    drop(client);
    until("the agent is gone", || place.runtime.agent_processes() == 0).await;
}

#[actix_web::test]
async fn a_client_that_says_more_than_the_agent_reads_is_closed() {
    let base = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(base.path().join("root/ws")).unwrap();
    let deaf = r#"read line; echo '{"jsonrpc":"2.0","id":1,"result":{}}'; exec sleep 1000"#;
    let options = options(base.path(), deaf);
    let place = Place::start(base, options).await;
    let mut client = Client::initialized(&place, "default").await;
    let large = json!({"method": "x", "params": "x".repeat(400_000)});
    for _ in 0..8 {
        if client.socket.send(Message::text(large.to_string())).await.is_err() {
            break;
        }
    }
    assert_eq!(client.receive_close().await, close_code::POLICY);
    until("the agent is gone", || place.runtime.agent_processes() == 0).await;
}

#[actix_web::test]
async fn stopping_says_goodbye_and_leaves_no_process() {
    let place = place().await;
    let mut client = Client::initialized(&place, "default").await;
    client.send(json!({"method": "pid"})).await;
    let pids = client.receive().await["params"].as_array().unwrap().clone();
    let mut flooded = Client::initialized(&place, "default").await;
    flooded.send(json!({"method": "flood"})).await;
    let started = tokio::time::Instant::now();
    let reader = actix_web::rt::spawn(async move { client.receive_close().await });
    place.runtime.stop(Duration::from_millis(300)).await;
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    assert_eq!(reader.await.unwrap(), u16::from(CloseCode::Away));
    for pid in pids {
        until("the process is gone", || !Path::new(&format!("/proc/{pid}")).exists()).await;
    }
}

#[actix_web::test]
async fn an_agent_of_another_user_owns_its_workspace_and_what_is_written_for_it() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    // SAFETY: a system call without arguments.
    if unsafe { libc::geteuid() } != 0 {
        // Only root may start processes of other users.
        return;
    }
    let base = tempfile::tempdir().unwrap();
    std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let workspace = base.path().join("root/ws");
    std::fs::create_dir_all(workspace.join("sub")).unwrap();
    std::fs::set_permissions(&workspace, std::fs::Permissions::from_mode(0o700)).unwrap();
    let script = r#"
        read -r line; echo "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"uid\":$(id -u),\"groups\":\"$(id -G)\"}}"
        echo "{\"jsonrpc\":\"2.0\",\"id\":\"w\",\"method\":\"fs/write_text_file\",\"params\":{\"sessionId\":\"s\",\"path\":\"$(pwd)/sub/new/a\",\"content\":\"x\"}}"
        read -r line; echo "{\"method\":\"echo\",\"params\":$line}"; read -r line"#;
    let mut options = options(base.path(), script);
    options.agents[0].run_as = Some("nobody".into());
    let nobody = crate::process::user::RunsAs::resolve("nobody").unwrap().example();
    let place = Place::start(base, options).await;
    let mut client = Client::connect(&place).await;
    let answer = client.initialize(json!({"cwd": place.workspace()})).await;
    assert_eq!(answer["result"]["uid"], nobody.uid, "{answer}");
    assert_eq!(answer["result"]["groups"], nobody.gid.to_string());
    let written = client.receive().await;
    assert!(written["params"]["result"].is_object(), "{written}");
    for name in ["", "sub", "sub/new", "sub/new/a"] {
        assert_eq!(std::fs::metadata(workspace.join(name)).unwrap().uid(), nobody.uid, "{name}");
    }
}

#[test]
fn parts_become_one_text_within_the_limit() {
    let mut fragments = super::Fragments::default();
    assert_eq!(fragments.add(b"a stray end", 5, true), super::Joined::Nothing);
    assert_eq!(fragments.begin(b"ab", 5), super::Joined::Nothing);
    assert_eq!(fragments.add(b"cd", 5, false), super::Joined::Nothing);
    assert_eq!(fragments.add(b"e", 5, true), super::Joined::Whole("abcde".into()));
    fragments.begin(b"abc", 5);
    assert_eq!(fragments.add(b"def", 5, false), super::Joined::TooBig);
    assert_eq!(fragments.add(b"", 5, true), super::Joined::Nothing, "nothing is left of it");
    fragments.begin(b"\xff", 5);
    assert!(matches!(fragments.add(b"", 5, true), super::Joined::NoText(_)));
}
