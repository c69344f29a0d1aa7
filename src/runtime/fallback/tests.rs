//! The fallback from the supervisor's side: its transport, a real runtime, and a cable between them that breaks.

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
        session::{mcp, permission::PermissionPolicy},
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
        AgentEvent, OpenRequest, OpenedSession, Transport, TurnRequest,
        http::{FallbackLimits, HttpFallback},
    },
};

/// Answers a prompt with three updates, the last two of them once it may continue, or with what its text says.
const AGENT: &str = r#"
update() { echo "{\"method\":\"session/update\",\"params\":{\"update\":{\"n\":$1}}}"; }
while read -r line; do
    id=$(printf '%s' "$line" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
    case "$line" in
        *'"initialize"'*) echo "{\"id\":$id,\"result\":{\"protocolVersion\":1}}" ;;
        *'session/new'*) echo "{\"id\":$id,\"result\":{\"sessionId\":\"s\"}}" ;;
        *'session/cancel'*) echo "{\"id\":$prompt,\"result\":{\"stopReason\":\"cancelled\"}}" ;;
        *'wait for a cancel'*) prompt=$id; update 0 ;;
        *'session/prompt'*) echo ran >> ran.txt; update 1
            while [ ! -e go ]; do sleep 0.02; done
            update 2; update 3
            echo "{\"id\":$id,\"result\":{\"stopReason\":\"end_turn\",\"usage\":{\"inputTokens\":5,\"outputTokens\":6}}}" ;;
    esac
done
"#;

/// A cable that can be cut.
struct ClientConnection {
    address: SocketAddr,
    cut: watch::Sender<u64>,
    /// Requests are read and thrown away.
    swallows: Arc<AtomicBool>,
    listening: tokio::task::JoinHandle<()>,
}

impl ClientConnection {
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
    cable: ClientConnection,
    session: OpenedSession,
}

impl Side {
    async fn new(grace: Duration) -> Self {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(base.path().join("root/ws")).unwrap();
        let options = options(base.path(), AGENT);
        let place = Place::start(base, options).await;
        let cable = ClientConnection::to(place.runtime.address()).await;
        let session = open(cable.address, place.workspace(), grace).await;
        Self { place, cable, session }
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
    let limits = FallbackLimits {
        inactivity_timeout: Duration::from_secs(20),
        cancel_grace: Duration::from_secs(10),
        handshake_timeout: Duration::from_secs(10),
        reconnect_grace: grace,
        frame_bytes: 1024 * 1024,
        auth_methods: BTreeMap::new(),
    };
    let fallback = HttpFallback::new(&format!("ws://{address}/acp"), Some("secret".into()), limits).unwrap();
    let request = OpenRequest {
        session_id: SessionId(Uuid::now_v7()),
        is_ephemeral: false,
        agent: None,
        cwd,
        mcp_servers: mcp::none(),
        previous: None,
        cookies: None,
    };
    fallback.open(request).await.unwrap()
}

const GRACE: Duration = Duration::from_secs(20);

#[actix_web::test]
async fn a_lost_answer_is_asked_for_again_and_the_turn_runs_once() {
    let mut side = Side::new(GRACE).await;
    side.prompt("hello");
    assert_eq!(side.update().await, r#"{"n":1}"#);
    side.cable.cut();
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
    // The link lives on, and each turn has an agent of its own.
    side.prompt("again");
    assert_eq!(side.update().await, r#"{"n":1}"#);
    until("the second turn ran", || side.runs() == 2).await;
}

#[actix_web::test]
async fn a_runtime_that_is_not_there_got_nothing_and_one_that_does_not_come_back_may_have_run() {
    let mut side = Side::new(Duration::from_millis(600)).await;
    side.prompt("hello");
    assert_eq!(side.update().await, r#"{"n":1}"#);
    side.cable.listening.abort();
    side.cable.cut();
    let failure = side.failure().await;
    assert_eq!(failure.code, ErrorCode::ConnectionLost, "{failure}");
    assert!(failure.detail.contains("may have run; one message of what it said came"), "{failure}");
    side.prompt("hello");
    let failure = side.failure().await;
    assert_eq!(failure.code, ErrorCode::RuntimeUnavailable, "{failure}");
    assert_eq!(side.runs(), 1);
}

#[actix_web::test]
async fn a_request_that_never_arrived_is_not_sent_again() {
    let mut side = Side::new(GRACE).await;
    side.cable.swallows.store(true, Ordering::Release);
    side.prompt("hello");
    let failure = side.failure().await;
    assert_eq!(failure.code, ErrorCode::ConnectionLost, "{failure}");
    assert!(failure.detail.contains("may have run; nothing of what it said came"), "{failure}");
    assert_eq!((side.runs(), side.place.runtime.agent_processes()), (0, 0));
}

#[actix_web::test]
async fn a_cancel_reaches_the_agent_and_what_is_not_offered_is_refused_at_once() {
    let mut side = Side::new(GRACE).await;
    side.session.link.set_mode(1, "code").unwrap();
    assert_eq!(side.failure().await.code, ErrorCode::NotSupportedByAgent);
    side.prompt("wait for a cancel");
    // At once: it may overtake the prompt.
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
    let Side { place, cable: _cable, session } = side;
    drop(session);
    until("the agent is ended with its link", || place.runtime.agent_processes() == 0).await;
}

#[actix_web::test]
async fn what_a_runtime_refuses_comes_with_its_code() {
    let side = Side::new(GRACE).await;
    let outside = side.place.base.path().display().to_string();
    let session = open(side.cable.address, outside, GRACE).await;
    let mut side = Side { session, ..side };
    side.prompt("hello");
    assert_eq!(side.failure().await.code, ErrorCode::PathNotAllowed);
}
