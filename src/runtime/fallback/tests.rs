//! Tests of the fallback from the supervisor's side: its transport, a real runtime, and a proxy between them that can
//! break connections.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::watch,
};
use uuid::Uuid;

use crate::{
    domain::{
        ids::{PromptId, SessionId},
        session::{choices::Choices, mcp::McpServers, permission::PermissionPolicy},
        turn::{
            outcome::{ErrorCode, Failure},
            prompt::Prompt,
        },
    },
    runtime::{
        socket::tests::{Place, options, until},
        *,
    },
    transport::{
        AgentEvent, HandshakeTimeouts, OpenRequest, OpenedSession, Transport, TurnRequest,
        http::{FallbackLimits, HttpFallback},
    },
};

/// Agent that answers a prompt with three updates; it sends the last two once the file `go` exists. For the prompt
/// `wait for a cancel` it sends one update and answers after `session/cancel`; so it does for `a large update`, of 200
/// kB.
const AGENT: &str = r#"
update() { echo "{\"method\":\"session/update\",\"params\":{\"update\":{\"n\":$1}}}"; }
while read -r line; do
    id=$(printf '%s' "$line" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
    case "$line" in
        *'"initialize"'*) echo "{\"id\":$id,\"result\":{\"protocolVersion\":1}}" ;;
        *'session/new'*) echo "{\"id\":$id,\"result\":{\"sessionId\":\"s\"}}" ;;
        *'session/cancel'*) echo "{\"id\":$prompt,\"result\":{\"stopReason\":\"cancelled\"}}" ;;
        *'wait for a cancel'*) prompt=$id; update 0 ;;
        *'a large update'*) prompt=$id; update "\"$(head -c 200000 /dev/zero | tr '\0' x)\"" ;;
        *'session/prompt'*) echo ran >> ran.txt; update 1
            while [ ! -e go ]; do sleep 0.02; done
            update 2; update 3
            echo "{\"id\":$id,\"result\":{\"stopReason\":\"end_turn\",\"usage\":{\"inputTokens\":5,\"outputTokens\":6}}}" ;;
    esac
done
"#;

/// TCP proxy to the runtime whose connections the test can cut.
struct CuttableProxy {
    address: SocketAddr,
    cut: watch::Sender<u64>,
    /// If true, the next connection reads one request, discards it and closes.
    swallows: Arc<AtomicBool>,
    listening: tokio::task::JoinHandle<()>,
}

impl CuttableProxy {
    async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, cuts) = watch::channel(0);
        let swallows = Arc::new(AtomicBool::new(false));
        let swallowing = swallows.clone();
        let listening = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (mut cuts, swallows) = (cuts.clone(), swallowing.swap(false, Ordering::AcqRel));
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    if swallows {
                        let _ = near.read(&mut [0; 4096]).await;
                        return;
                    }
                    let mut far = TcpStream::connect(target).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { address, cut, swallows, listening }
    }

    fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }
}

struct Side {
    place: Place,
    proxy: CuttableProxy,
    session: OpenedSession,
}

impl Side {
    async fn new(grace: Duration) -> Self {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(base.path().join("root/ws")).unwrap();
        let options = options(base.path(), AGENT);
        let place = Place::start(base, options).await;
        let proxy = CuttableProxy::to(place.runtime.address()).await;
        let session = open(proxy.address, place.workspace(), grace).await;
        Self { place, proxy, session }
    }

    fn file(&self, name: &str) -> PathBuf {
        PathBuf::from(self.place.workspace()).join(name)
    }

    fn runs(&self) -> usize {
        std::fs::read_to_string(self.file("ran.txt")).unwrap_or_default().lines().count()
    }

    fn prompt(&mut self, text: &str) {
        let prompt = Prompt::of_text(text);
        let turn = TurnRequest {
            prompt_id: PromptId(Uuid::now_v7()),
            prompt: &prompt,
            context: None,
            policy: PermissionPolicy::default(),
            choices: &Choices::default(),
        };
        self.session.link.prompt(1, turn).unwrap();
    }

    async fn next(&mut self) -> AgentEvent {
        let next = tokio::time::timeout(Duration::from_secs(20), self.session.events.next()).await;
        next.expect("an event in time").expect("an event")
    }

    async fn update(&mut self) -> String {
        match self.next().await {
            AgentEvent::Update { update, .. } => update.get().to_owned(),
            other => panic!("{other:?}"),
        }
    }

    async fn failure(&mut self) -> Failure {
        loop {
            match self.next().await {
                AgentEvent::Failed { call: 1, failure } => return failure,
                AgentEvent::Interrupted(_) | AgentEvent::Resumed | AgentEvent::Update { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

async fn open(address: SocketAddr, cwd: String, grace: Duration) -> OpenedSession {
    open_with(address, cwd, grace, FRAME_BYTES).await
}

/// The largest message of the runtime, in bytes.
const FRAME_BYTES: usize = 1024 * 1024;

async fn open_with(address: SocketAddr, cwd: String, grace: Duration, frame_bytes: usize) -> OpenedSession {
    let limits = FallbackLimits {
        inactivity_timeout: Duration::from_secs(20),
        cancel_grace: Duration::from_secs(10),
        handshake_timeouts: HandshakeTimeouts { default: Duration::from_secs(10), ..Default::default() },
        reconnect_grace: grace,
        frame_bytes,
        queue_bytes: 64 * 1024,
        auth_methods: BTreeMap::new(),
    };
    let fallback = HttpFallback::new(
        &format!("ws://{address}/acp"),
        crate::config::ReloadableSecret::new(Some("secret".into())),
        limits,
    )
    .unwrap();
    let request = OpenRequest {
        session_id: SessionId(Uuid::now_v7()),
        installation_id: None,
        is_ephemeral: false,
        agent: None,
        cwd,
        mcp_servers: McpServers::none(),
        previous: None,
        cookies: None,
        choices: Choices::default(),
    };
    fallback.open(request).await.unwrap()
}

const GRACE: Duration = Duration::from_secs(20);

#[actix_web::test]
async fn lost_answer_is_fetched_again_and_the_turn_runs_once() {
    let mut side = Side::new(GRACE).await;
    side.prompt("hello");
    assert_eq!(side.update().await, r#"{"n":1}"#);
    side.proxy.cut();
    assert!(matches!(side.next().await, AgentEvent::Interrupted(_)));
    std::fs::write(side.file("go"), "").unwrap();
    assert!(matches!(side.next().await, AgentEvent::Resumed));
    assert_eq!((side.update().await, side.update().await), (r#"{"n":2}"#.into(), r#"{"n":3}"#.into()));
    match side.next().await {
        AgentEvent::Answered { call: 1, result: Ok(answer) } => {
            let answer: serde_json::Value = serde_json::from_str(answer.get()).unwrap();
            let usage = serde_json::json!({"inputTokens": 5, "outputTokens": 6});
            assert_eq!((&answer["stopReason"], &answer["usage"]), (&"end_turn".into(), &usage));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(side.runs(), 1);
    // The session's link survives, and each turn has its own agent.
    side.prompt("again");
    assert_eq!(side.update().await, r#"{"n":1}"#);
    until("the second turn ran", || side.runs() == 2).await;
}

#[actix_web::test]
async fn lost_runtime_may_have_run_the_turn_and_unreachable_runtime_has_not() {
    let mut side = Side::new(Duration::from_millis(600)).await;
    side.prompt("hello");
    assert_eq!(side.update().await, r#"{"n":1}"#);
    side.proxy.listening.abort();
    side.proxy.cut();
    let failure = side.failure().await;
    assert_eq!(failure.code, ErrorCode::ConnectionLost, "{failure}");
    assert!(failure.detail.contains("may have run; received one message"), "{failure}");
    side.prompt("hello");
    let failure = side.failure().await;
    assert_eq!(failure.code, ErrorCode::RuntimeUnavailable, "{failure}");
    assert_eq!(side.runs(), 1);
}

#[actix_web::test]
async fn request_that_was_lost_is_not_sent_again() {
    let mut side = Side::new(GRACE).await;
    side.proxy.swallows.store(true, Ordering::Release);
    side.prompt("hello");
    let failure = side.failure().await;
    assert_eq!(failure.code, ErrorCode::ConnectionLost, "{failure}");
    assert!(failure.detail.contains("may have run; received no message"), "{failure}");
    assert_eq!((side.runs(), side.place.runtime.agent_processes()), (0, 0));
}

#[actix_web::test]
async fn cancel_reaches_the_agent_and_unsupported_calls_are_refused_at_once() {
    let mut side = Side::new(GRACE).await;
    side.session.link.set_mode(1, "code").unwrap();
    assert_eq!(side.failure().await.code, ErrorCode::NotSupportedByAgent);
    side.prompt("wait for a cancel");
    // Sent immediately, so it may arrive before the prompt.
    side.session.link.cancel().unwrap();
    loop {
        match side.next().await {
            AgentEvent::Answered { call: 1, result: Ok(answer) } => {
                assert!(answer.get().contains("cancelled"), "{answer}");
                break;
            }
            AgentEvent::Update { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    side.prompt("wait for a cancel");
    assert_eq!(side.update().await, r#"{"n":0}"#);
    let Side { place, proxy: _proxy, session } = side;
    drop(session);
    until("the agent is ended with its link", || place.runtime.agent_processes() == 0).await;
}

#[actix_web::test]
async fn refusal_of_the_runtime_keeps_its_error_code() {
    let side = Side::new(GRACE).await;
    let outside = side.place.base.path().display().to_string();
    let session = open(side.proxy.address, outside, GRACE).await;
    let mut side = Side { session, ..side };
    side.prompt("hello");
    assert_eq!(side.failure().await.code, ErrorCode::PathNotAllowed);
}

#[actix_web::test]
async fn message_above_the_limit_fails_the_turn_and_ends_its_agent() {
    let side = Side::new(GRACE).await;
    let session = open_with(side.proxy.address, side.place.workspace(), GRACE, 64 * 1024).await;
    let mut side = Side { session, ..side };
    side.prompt("a large update");
    let failure = side.failure().await;
    assert_eq!(failure.code, ErrorCode::FrameTooLarge, "{failure}");
    until("the agent does not work on", || side.place.runtime.agent_processes() == 0).await;
    side.prompt("hello");
    assert_eq!(side.update().await, r#"{"n":1}"#, "the session is usable");
}

#[actix_web::test]
async fn prompt_as_large_as_a_message_runs_and_a_larger_one_fails_its_turn() {
    let mut side = Side::new(GRACE).await;
    std::fs::write(side.file("go"), "").unwrap();
    side.prompt(&"x".repeat(FRAME_BYTES));
    while !matches!(side.next().await, AgentEvent::Answered { call: 1, result: Ok(_) }) {}
    side.prompt(&"x".repeat(FRAME_BYTES + 64 * 1024));
    let failure = side.failure().await;
    assert_eq!(failure.code, ErrorCode::FrameTooLarge, "{failure}");
    assert_eq!(side.runs(), 1, "the larger one was not sent");
    side.prompt("hello");
    assert_eq!(side.update().await, r#"{"n":1}"#, "the session is usable");
}
