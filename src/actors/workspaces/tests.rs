//! Tests of a workspace supervisor and its session, with an agent played by the test and a real database.

use std::{collections::HashMap, sync::Arc, time::Duration};

use actix::{Actor, Addr};
use diesel::{Connection, SqliteConnection, connection::SimpleConnection};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::supervisor::{self, WorkspaceSupervisor};
use crate::{
    acp::schema::RequestId,
    actors::{
        handles::{
            capacity_guard::{
                CapacityGuard,
                tests::{guard, tenant},
            },
            closing::Automate,
            index::LiveSession,
            messages::{
                AnswerPermission, CancelTurn, CloseSession, Past, PromptRefused, RunPrompt, StartSession, TurnBegun,
                TurnEnded,
            },
            session::{SessionSpec, SharedPolicy, SharedServers},
        },
        routing::WorkspaceRouting,
        services::{Services, SessionSettings},
        session::{
            adoption,
            closing::tests::{TwoSteps, until_begun},
        },
    },
    config::Config,
    contract::runtime::ResumedPrompt,
    domain::{
        automation::skip::WantedMode,
        clock::Clock,
        ids::{FolderId, PromptId, SessionId, WorkspaceKey},
        notify::notification::{Scope, Stream, Trigger},
        routing::{Route, success_window::Sample, turn_route::TurnReport},
        session::{
            lifecycle::{SessionMode, SessionState},
            mcp::McpServers,
            permission::PermissionPolicy,
        },
        turn::{
            CancelCause, Severity, TurnPhase, TurnState,
            outcome::{ErrorCode, Failure},
            prompt::Prompt,
        },
    },
    store::{EndSlot, Idempotency, KeptConnection, NewSession, NewWorkspace, Store, StoreError, StoreOptions},
    telemetry::SystemClock,
    transport::{
        AgentEvent, CloseReason, Transport,
        fake::{FakeAgent, FakeTransport},
    },
};

/// Capacity of the writer's queue.
const WRITE_QUEUE: usize = 64;

struct Stage {
    services: Arc<Services>,
    live: Arc<LiveSession>,
    id: SessionId,
    agents: mpsc::Receiver<FakeAgent>,
    panics: Arc<std::sync::atomic::AtomicUsize>,
    failures: Arc<parking_lot::Mutex<Vec<Failure>>>,
    held: Arc<parking_lot::Mutex<HashMap<String, Option<ResumedPrompt>>>>,
    capacity: CapacityGuard,
    _supervisor: Addr<WorkspaceSupervisor>,
    _folder: tempfile::TempDir,
}

/// A live session whose first agent has started.
async fn stage(change: impl FnOnce(&mut SessionSettings)) -> (Stage, FakeAgent) {
    stage_with(Duration::from_secs(60), None, change).await
}

/// With `automate` the session works on a repository, and automation runs on the changes of its turns.
async fn stage_with(
    patience: Duration,
    automate: Option<Arc<dyn Automate>>,
    change: impl FnOnce(&mut SessionSettings),
) -> (Stage, FakeAgent) {
    let repository = automate.is_some().then(|| "octo/hello".to_owned());
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(
        StoreOptions {
            write_queue: WRITE_QUEUE,
            patience,
            ..StoreOptions::for_tests(&folder.path().join("test.db"))
        },
        crate::telemetry::Metrics::for_tests(),
    )
    .unwrap();
    let (transport, mut agents) = FakeTransport::new();
    let (panics, failures, held) = (transport.panics.clone(), transport.failures.clone(), transport.held.clone());
    let mut settings = SessionSettings::new(&Config::default());
    change(&mut settings);
    let transport: Arc<dyn Transport> = Arc::new(transport);
    let services = Services::of_test(store, transport.clone(), transport, settings);
    let services = Arc::new(Services { automate, ..services });
    let key = WorkspaceKey { installation_id: "acme".parse().unwrap(), workspace_id: "w".parse().unwrap() };
    let id = SessionId(Uuid::now_v7());
    let now = SystemClock.now();
    let workspace = NewWorkspace {
        key: key.clone(),
        folder_id: FolderId(Uuid::now_v7()),
        repository: repository.clone(),
        branch: None,
        path: None,
        permission_policy: None,
        is_ephemeral: false,
        now,
    };
    let new = NewSession {
        session_id: id,
        key: key.clone(),
        workspace: Some(workspace),
        user_id: None,
        limited_token: None,
        own_folder: None,
        agent: "default".into(),
        mode: SessionMode::Development,
        enable_git_ops: false,
        state: SessionState::Idle,
        agent_session_id: Some("fake-session".into()),
        mcp_servers: McpServers::none().without_secrets(),
        protocol: Route::Acp,
        protocol_version: Some(1),
        agent_facts: None,
        choices: Default::default(),
        connection: Some(KeptConnection { id: "c".into(), cookies: None }),
        now,
    };
    services.store.create_session(new).await.unwrap();
    let routing = WorkspaceRouting::start(key.clone(), &services).await.unwrap();
    let spec = SessionSpec {
        user_id: None,
        mode: SessionMode::Development,
        enable_git_ops: repository.is_some(),
        repository,
        gate: routing.gate().clone(),
        pace: routing.pace().clone(),
        has_oneshot: false,
        is_isolated: false,
        session_id: id,
        workspace: key.clone(),
        agent: None,
        cwd: "/w".into(),
        is_ephemeral: false,
        mcp_servers: SharedServers::new(McpServers::none()),
        policy: SharedPolicy::new(PermissionPolicy::Ask),
    };
    let capacity = guard(1);
    let supervisor = WorkspaceSupervisor::new(key, services.clone(), routing).start();
    let seat = capacity.admit(&tenant("acme")).unwrap();
    supervisor
        .send(StartSession {
            spec: Arc::new(spec),
            past: Past::default(),
            seat,
            adopted: None,
            span: tracing::Span::none(),
        })
        .await
        .unwrap()
        .unwrap();
    let agent = agents.recv().await.unwrap();
    let live = services.index.get(id).unwrap();
    live.shared.mark_stored();
    let stage = Stage {
        services,
        live,
        id,
        agents,
        panics,
        failures,
        held,
        capacity,
        _supervisor: supervisor,
        _folder: folder,
    };
    (stage, agent)
}

fn run_prompt(caller: watch::Receiver<()>) -> RunPrompt {
    let raw = serde_json::value::to_raw_value("hello").unwrap();
    RunPrompt {
        prompt_id: PromptId(Uuid::now_v7()),
        prompt: Prompt::parse(&raw).unwrap(),
        wanted: WantedMode::default().into(),
        token: None,
        idempotency: None,
        again: false,
        span: tracing::Span::none(),
        limited: None,
        caller,
    }
}

impl Stage {
    async fn cancel(&self) {
        let cancel = self.live.mailbox.borrow().cancel_turn.clone();
        assert!(cancel.send(CancelTurn { prompt_id: None, cause: CancelCause::User }).await.unwrap());
    }

    /// Begins a turn; retries at the session's fresh actor if the previous one has just died.
    async fn begin(&self, key: Option<&str>) -> Result<TurnBegun, PromptRefused> {
        let mut mailbox = self.live.mailbox.clone();
        let prompt_id = PromptId(Uuid::now_v7());
        let mut again = false;
        loop {
            let run = mailbox.borrow_and_update().run_prompt.clone();
            let (_present, caller) = watch::channel(());
            let idempotency = key.map(|key| Idempotency { key: key.into(), body_hash: "h".into() });
            let message = RunPrompt { prompt_id, idempotency, again, ..run_prompt(caller) };
            if let Ok(begun) = run.send(message).await {
                return begun;
            }
            again = true;
            mailbox.changed().await.unwrap();
        }
    }

    async fn run(&self) -> Arc<TurnEnded> {
        ended(self.begin(None).await.unwrap_or_else(|refused| panic!("{:?}", refused.failure))).await
    }

    async fn find_again(&self) -> Vec<adoption::Found> {
        let unfinished = self.services.store.unfinished(TurnPhase::Agent).await.unwrap();
        adoption::find_again(&self.services, unfinished).await
    }

    async fn gone(&self) {
        let mut mailbox = self.live.mailbox.clone();
        while mailbox.changed().await.is_ok() {}
    }

    async fn state(&self) -> SessionState {
        self.services.store.session(self.id).await.unwrap().unwrap().state
    }
}

async fn ended(begun: TurnBegun) -> Arc<TurnEnded> {
    let (TurnBegun::Accepted(mut turn) | TurnBegun::Joined(mut turn)) = begun else {
        panic!("the turn has already ended")
    };
    turn.ended.wait_for(Option::is_some).await.unwrap().clone().unwrap()
}

fn crash() -> AgentEvent {
    AgentEvent::Closed(CloseReason::Lost("cut".into()))
}

#[actix::test]
async fn actor_panic_ends_the_turn_once_and_the_session_continues() {
    let (mut stage, _first) = stage(|_| {}).await;
    stage.panics.store(1, std::sync::atomic::Ordering::Release);
    // The actor died before it could answer; the retry finds its turn, which has ended.
    let Ok(TurnBegun::Stored(row)) = stage.begin(None).await else { panic!("not found again") };
    assert_eq!((row.state, row.error.unwrap().code), (TurnState::Failed, ErrorCode::Internal));
    assert!(row.result.unwrap().contains("\"stopReason\":\"error\""));

    // The session is the same, and its fresh agent resumes the conversation.
    let begun = stage.begin(None).await;
    let mut agent = stage.agents.recv().await.unwrap();
    let call = agent.prompted().await;
    agent.answer(call, r#"{"stopReason":"end_turn"}"#).await;
    assert_eq!(agent.request.previous.as_deref(), Some("fake-session"));
    assert_eq!(ended(begun.unwrap_or_else(|_| panic!("refused"))).await.state, TurnState::Completed);
    assert_eq!(stage.services.metrics.turns_started(Route::Acp), 2);
    assert_eq!(stage.services.metrics.turns_ended(Route::Acp, "failed"), 1);
    assert_eq!(stage.services.metrics.turns_ended(Route::Acp, "completed"), 1);
}

#[actix::test]
async fn session_that_breaks_too_often_fails_and_releases_its_seat() {
    let (mut stage, mut agent) = stage(|settings| settings.restart.max_restarts = 2).await;
    for restarts_left in (0..=2).rev() {
        agent.says.send(crash()).await.unwrap();
        if restarts_left > 0 {
            agent = stage.agents.recv().await.unwrap();
        }
    }
    stage.gone().await;
    assert_eq!(stage.state().await, SessionState::Failed);
    assert!(stage.services.index.get(stage.id).is_none());
    assert_eq!(stage.capacity.taken(), 0);
    assert_eq!(stage.services.store.session(stage.id).await.unwrap().unwrap().restarts, 2);
}

#[actix::test]
async fn fr_013_failed_session_is_notified_once_the_database_is_back() {
    let (stage, _agent) = stage_with(Duration::from_millis(50), None, |_| {}).await;
    let path = stage._folder.path().join("test.db");
    let mut other = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    other.batch_execute("PRAGMA busy_timeout = 5000; BEGIN IMMEDIATE").unwrap();
    let failure = Failure::new(ErrorCode::AgentCrashed, "the agent exited");
    let ending =
        supervisor::persist_final_state(&stage.services, &stage.live.shared, SessionState::Failed, Some(failure));
    assert!(matches!(ending.await, Err(StoreError::Unavailable(_))));
    other.batch_execute("ROLLBACK").unwrap();
    let of_tenant = Scope::all(Stream::Tenant("acme".parse().unwrap()));
    let notifications =
        async || stage.services.store.notifications_after(of_tenant.clone(), 0, 9).await.unwrap().rows;
    while notifications().await.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let notified = notifications().await;
    let triggers: Vec<_> = notified.iter().flatten().map(|row| row.trigger).collect();
    assert_eq!(triggers, [Trigger::SessionFailed]);
    assert_eq!(stage.state().await, SessionState::Failed);
}

#[actix::test]
async fn failed_read_after_a_good_handshake_ends_no_agent_and_spends_no_restart() {
    let (mut stage, agent) = stage(|settings| settings.restart.max_restarts = 1).await;
    let path = stage._folder.path().join("test.db");
    let mut other = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    let mut rename = |from: &str, to: &str| {
        other.batch_execute(&format!("PRAGMA busy_timeout = 5000; ALTER TABLE {from} RENAME TO {to}")).unwrap();
    };
    rename("transcript_entries", "hidden");
    agent.says.send(crash()).await.unwrap();
    let mut agent = stage.agents.recv().await.unwrap();
    // A second restart would end the session.
    tokio::time::timeout(Duration::from_millis(300), stage.gone()).await.expect_err("the session waits for the read");
    rename("hidden", "transcript_entries");
    let begun = stage.begin(None).await;
    let call = agent.prompted().await;
    agent.answer(call, r#"{"stopReason":"end_turn"}"#).await;
    assert_eq!(ended(begun.unwrap_or_else(|_| panic!("refused"))).await.state, TurnState::Completed);
    assert_eq!(stage.live.shared.view().restarts, 1);
}

#[actix::test]
async fn route_actors_of_a_released_workspace_stop_although_it_is_rolled_back() {
    let (stage, _agent) = stage(|_| {}).await;
    let services = &stage.services;
    let key = WorkspaceKey { installation_id: "acme".parse().unwrap(), workspace_id: "other".parse().unwrap() };
    let routing = WorkspaceRouting::start(key, services).await.unwrap();
    assert_eq!(services.metrics.routes().actors(), 4);
    // As a session holds it.
    let gate = routing.gate().clone();
    for _ in 0..5 {
        let (turn, at) = (gate.outside_turns(), services.clock.steady());
        gate.reporter()(TurnReport { turn, carrier: Route::Acp, sample: Some(Sample::Failure), at });
    }
    while gate.route() == Route::Acp {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(routing);
    while services.metrics.routes().actors() > 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[actix::test]
async fn nfr_002_panicked_session_keeps_its_seat_only_while_restarted() {
    for (max_restarts, left) in [(1, 1), (0, 0)] {
        let (mut stage, _agent) = stage(|settings| settings.restart.max_restarts = max_restarts).await;
        stage.panics.store(1, std::sync::atomic::Ordering::Release);
        tokio::select! {
            biased;
            () = stage.gone() => {}
            _ = stage.begin(None) => drop(stage.agents.recv().await.expect("a fresh agent starts")),
        }
        assert_eq!(stage.capacity.taken(), left);
    }
}

#[actix::test]
async fn unconfirmed_cancel_ends_cancelled_and_unconfirmed() {
    let (mut stage, mut agent) = stage(|settings| settings.cancel_grace = Duration::from_millis(50)).await;
    let begun = stage.begin(None).await.unwrap_or_else(|_| panic!("refused"));
    agent.prompted().await;
    let cancel = stage.live.mailbox.borrow().cancel_turn.clone();
    assert!(cancel.send(CancelTurn { prompt_id: None, cause: CancelCause::User }).await.unwrap());
    let end = ended(begun).await;
    assert_eq!(end.state, TurnState::Cancelled);
    assert!(end.result.get().contains("did not confirm"), "{}", end.result);
    stage.agents.recv().await.expect("a fresh agent starts");
    let cancel = stage.live.mailbox.borrow().cancel_turn.clone();
    assert!(
        !cancel.send(CancelTurn { prompt_id: None, cause: CancelCause::User }).await.unwrap(),
        "no turn is running"
    );
}

#[actix::test]
async fn silent_agent_times_out_and_updates_extend_the_turn() {
    let (stage, mut agent) = stage(|settings| settings.inactivity_timeout = Duration::from_millis(300)).await;
    let begun = stage.begin(None).await.unwrap_or_else(|_| panic!("refused"));
    agent.prompted().await;
    let mut pulse = tokio::time::interval(Duration::from_millis(100));
    for _ in 0..8 {
        pulse.tick().await;
        let update = r#"{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"x"}}"#;
        agent
            .says
            .send(AgentEvent::Update { update: serde_json::from_str(update).unwrap(), meta: None })
            .await
            .unwrap();
    }
    let end = ended(begun).await;
    assert_eq!(end.failure.as_ref().unwrap().code, ErrorCode::InactivityTimeout);
    assert!(end.result.get().contains("xxxxxxxx"), "eight updates arrived first: {}", end.result);
}

#[actix::test]
async fn failed_call_ends_the_turn_and_keeps_the_connection() {
    let (mut stage, mut agent) = stage(|_| {}).await;
    for (asks_for_cancel, state) in [(false, TurnState::Failed), (true, TurnState::Cancelled)] {
        let begun = stage.begin(None).await.unwrap_or_else(|_| panic!("refused"));
        let call = agent.prompted().await;
        if asks_for_cancel {
            let cancel = stage.live.mailbox.borrow().cancel_turn.clone();
            assert!(cancel.send(CancelTurn { prompt_id: None, cause: CancelCause::User }).await.unwrap());
        }
        let remark = AgentEvent::Remark { severity: Severity::Warn, message: "by the way".into() };
        agent.says.send(remark).await.unwrap();
        let failure = Failure::new(ErrorCode::AgentCrashed, "exit code 42");
        agent.says.send(AgentEvent::Failed { call, failure }).await.unwrap();
        let end = ended(begun).await;
        assert_eq!(end.state, state);
        assert!(end.result.get().contains("by the way"), "{}", end.result);
    }
    let begun = stage.begin(None).await.unwrap_or_else(|_| panic!("refused"));
    let call = agent.prompted().await;
    agent.answer(call, r#"{"stopReason":"end_turn"}"#).await;
    assert_eq!(ended(begun).await.state, TurnState::Completed);
    assert!(stage.agents.try_recv().is_err(), "the same connection carried all turns");
}

#[actix::test]
async fn key_runs_once_and_a_second_prompt_is_refused_meanwhile() {
    let (stage, mut agent) = stage(|_| {}).await;
    let first = stage.begin(Some("k")).await.unwrap_or_else(|_| panic!("refused"));
    let TurnBegun::Joined(joined) = stage.begin(Some("k")).await.unwrap_or_else(|_| panic!("refused")) else {
        panic!("not joined")
    };
    let Err(refused) = stage.begin(Some("other")).await else { panic!("not refused") };
    assert_eq!((refused.failure.code, refused.running), (ErrorCode::TurnRunning, Some(joined.prompt_id)));
    let call = agent.prompted().await;
    agent.answer(call, r#"{"stopReason":"end_turn"}"#).await;
    // A repeated answer has no effect.
    agent.answer(call, r#"{"stopReason":"refusal"}"#).await;
    assert_eq!(ended(first).await.state, TurnState::Completed);
    assert!(matches!(stage.begin(Some("k")).await, Ok(TurnBegun::Stored(row)) if row.prompt_id == joined.prompt_id));
    assert_eq!(stage.services.metrics.turns_started(Route::Acp), 1);
}

#[actix::test]
async fn waiting_turn_fails_with_the_failure_of_the_agent_start() {
    let (stage, agent) = stage(|_| {}).await;
    let failure = Failure::new(ErrorCode::AgentStartFailed, "no such program");
    stage.failures.lock().push(failure);
    agent.says.send(crash()).await.unwrap();
    let mut mailbox = stage.live.mailbox.clone();
    mailbox.changed().await.unwrap();
    let end = stage.run().await;
    assert_eq!(end.failure.as_ref().unwrap().code, ErrorCode::AgentStartFailed);
}

/// Blocks the session on a full writer's queue; dropping the returned slots unblocks it.
async fn get_stuck(stage: &Stage, agent: &FakeAgent) -> Vec<EndSlot> {
    // The slots are reserved, not filled: the writer would drain filled slots and so unblock the session. The running
    // turn holds one slot.
    let mut slots = Vec::new();
    while slots.len() < WRITE_QUEUE - 1 {
        match stage.services.store.reserve_end() {
            Ok(slot) => slots.push(slot),
            Err(_) => tokio::task::yield_now().await,
        }
    }
    let text = "x".repeat(1_500_000);
    let update = format!(r#"{{"sessionUpdate":"agent_message_chunk","content":{{"type":"text","text":"{text}"}}}}"#);
    let update = serde_json::value::RawValue::from_string(update).unwrap();
    agent.says.send(AgentEvent::Update { update, meta: None }).await.unwrap();
    slots
}

#[actix::test]
async fn stuck_session_is_replaced_and_its_turn_ends_once() {
    let (mut stage, mut agent) = stage(|settings| settings.stuck_after = Duration::from_millis(100)).await;
    let begun = stage.begin(None).await.unwrap_or_else(|_| panic!("refused"));
    let call = agent.prompted().await;
    let mut mailbox = stage.live.mailbox.clone();
    mailbox.borrow_and_update();
    let slots = get_stuck(&stage, &agent).await;
    // The agent's answer is too late and is ignored.
    agent.answer(call, r#"{"stopReason":"end_turn"}"#).await;
    mailbox.changed().await.unwrap();
    drop(slots);
    let end = ended(begun).await;
    assert_eq!((end.state, end.failure.as_ref().unwrap().code), (TurnState::Failed, ErrorCode::Internal));
    let mut fresh = stage.agents.recv().await.unwrap();
    let begun = stage.begin(None).await.unwrap_or_else(|_| panic!("refused"));
    let call = fresh.prompted().await;
    // The fresh session answers its probes, so it outlives the time after which the stuck one was replaced.
    let mut others = stage.live.mailbox.clone();
    let replaced = tokio::time::timeout(Duration::from_millis(500), others.wait_for(|_| false));
    assert!(replaced.await.is_err());
    fresh.answer(call, r#"{"stopReason":"end_turn"}"#).await;
    assert_eq!(ended(begun).await.state, TurnState::Completed);
    let metrics = stage.services.metrics.render().unwrap();
    assert!(metrics.contains("lumilink_restarts_total{cause=\"stuck\"} 1"), "{metrics}");
    assert_eq!(stage.services.metrics.turns_started(Route::Acp), 2);
    assert_eq!(stage.services.metrics.turns_ended(Route::Acp, "failed"), 1);
    assert_eq!(stage.services.metrics.turns_ended(Route::Acp, "completed"), 1);
    assert!(agent.says.is_closed(), "the agent of the stuck session was released");
}

#[actix::test]
async fn idle_session_hibernates_and_releases_its_seat() {
    let (stage, _agent) = stage(|settings| settings.idle_timeout = Duration::from_millis(30)).await;
    stage.gone().await;
    assert_eq!(stage.state().await, SessionState::Hibernated);
    assert_eq!(stage.capacity.taken(), 0);
}

fn chunk(text: &str) -> AgentEvent {
    let update =
        serde_json::json!({"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}});
    AgentEvent::Update { update: serde_json::value::to_raw_value(&update).unwrap(), meta: None }
}

#[actix::test]
async fn runtime_keeps_output_until_it_is_on_disk() {
    let (stage, mut agent) = stage(|settings| settings.settle_messages = 3).await;
    let begun = stage.begin(None).await.unwrap_or_else(|_| panic!("refused"));
    let call = agent.prompted().await;
    for seq in 1..=4 {
        agent.delivered.handle(seq);
        agent.says.send(chunk("x")).await.unwrap();
        if seq == 2 {
            assert_eq!(agent.delivered.settled(), 0, "neither enough messages nor the end of the turn");
        }
    }
    agent.delivered.settled_more().await;
    let settled = agent.delivered.settled();
    assert!((3..=4).contains(&settled), "a long turn is settled in parts: {settled}");
    let row = stage.services.store.session(stage.id).await.unwrap().unwrap();
    assert_eq!(row.settled_seq, settled);
    agent.delivered.handle(5);
    agent.answer(call, r#"{"stopReason":"end_turn"}"#).await;
    assert_eq!(ended(begun).await.state, TurnState::Completed);
    assert_eq!(agent.delivered.settled(), 5, "the end of the turn is on disk");
    let transcript = stage.services.store.transcript(stage.id, 0, 10).await.unwrap();
    let said: String = transcript.iter().skip(1).map(|row| row.entry.text.as_str()).collect();
    assert_eq!(said, "xxxx");
}

#[actix::test]
async fn large_message_without_update_is_settled_during_a_turn() {
    let (stage, mut agent) = stage(|settings| settings.settle_bytes = 1000).await;
    let begun = stage.begin(None).await.unwrap_or_else(|_| panic!("refused"));
    let call = agent.prompted().await;
    agent.delivered.handle(1);
    let params = serde_json::value::to_raw_value(&"x".repeat(1000)).unwrap();
    let request = AgentEvent::Request { id: RequestId::Number(1), method: "_x/large".into(), params };
    agent.says.send(request).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), agent.delivered.settled_more())
        .await
        .expect("the session keeps reading from the agent");
    assert_eq!(agent.delivered.settled(), 1);
    agent.delivered.handle(2);
    agent.answer(call, r#"{"stopReason":"end_turn"}"#).await;
    assert_eq!(ended(begun).await.state, TurnState::Completed);
    assert_eq!(agent.delivered.settled(), 2);
    agent.delivered.handle(3);
    agent.says.send(chunk("outside a turn")).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), async {
        while agent.delivered.settled() < 3 {
            agent.delivered.settled_more().await;
        }
    })
    .await
    .expect("messages outside a turn are settled");
}

#[actix::test]
async fn agent_that_ended_unseen_is_restarted() {
    let (mut stage, mut first) = stage(|_| {}).await;
    let begun = stage.begin(None).await.unwrap_or_else(|_| panic!("refused"));
    let TurnBegun::Accepted(turn) = &begun else { panic!("not begun") };
    let prompt_id = turn.prompt_id;
    let call = first.prompted().await;
    stage.held.lock().insert("c".into(), Some(ResumedPrompt { prompt_id, call, after: 0 }));
    let found = stage.find_again().await.pop().expect("the turn is found");
    let agent = stage.agents.recv().await.unwrap();
    agent.answer(call, r#"{"stopReason":"end_turn"}"#).await;
    agent.says.send(crash()).await.unwrap();
    let Services { store, acp, http, settings, .. } = &*stage.services;
    let services = Services::of_test(store.clone(), acp.clone(), http.clone(), settings.clone());
    let services = Arc::new(services);
    let routing = WorkspaceRouting::start(found.session.key.clone(), &services).await.unwrap();
    let supervisor = WorkspaceSupervisor::new(found.session.key.clone(), services.clone(), routing).start();
    let spec = stage.live.shared.spec.clone();
    let seat = guard(1).admit(&tenant("acme")).unwrap();
    let start = StartSession {
        spec,
        past: Past::default(),
        seat,
        adopted: Some(Box::new(found.adopted)),
        span: tracing::Span::none(),
    };
    supervisor.send(start).await.unwrap().unwrap();
    let again = tokio::time::timeout(Duration::from_secs(10), stage.agents.recv()).await;
    assert!(again.expect("the agent is restarted").is_some());
    assert!(services.index.get(stage.id).is_some(), "the session stays in the index");
}

#[actix::test]
async fn turn_continues_under_a_restarted_supervisor() {
    let (mut stage, mut first) = stage(|settings| settings.settle_messages = 1).await;
    let begun = stage.begin(Some("k")).await.unwrap_or_else(|_| panic!("refused"));
    let TurnBegun::Accepted(turn) = &begun else { panic!("not begun") };
    let prompt_id = turn.prompt_id;
    let call = first.prompted().await;
    first.delivered.handle(1);
    first.says.send(chunk("before ")).await.unwrap();
    first.delivered.settled_more().await;

    // Simulates a crash of the service: a new supervisor on the same database.
    let held = ResumedPrompt { prompt_id, call, after: 0 };
    stage.held.lock().insert("c".into(), Some(held));
    let mut found = stage.find_again().await;
    let found = found.pop().expect("the turn is found");
    let agent = stage.agents.recv().await.unwrap();
    assert_eq!(
        stage.services.store.recover(SystemClock.now(), &[stage.id], Vec::new()).await.unwrap().interrupted_turns,
        0
    );
    let key = found.session.key.clone();
    let Services { store, acp, http, settings, .. } = &*stage.services;
    let services = Services::of_test(store.clone(), acp.clone(), http.clone(), settings.clone());
    let services = Arc::new(services);
    let routing = WorkspaceRouting::start(key.clone(), &services).await.unwrap();
    let supervisor = WorkspaceSupervisor::new(key.clone(), services.clone(), routing).start();
    let spec = stage.live.shared.spec.clone();
    let past = Past { agent_session_id: None, last_event_id: found.session.next_event_after(), ..Past::default() };
    let seat = guard(1).admit(&tenant("acme")).unwrap();
    let start =
        StartSession { spec, past, seat, adopted: Some(Box::new(found.adopted)), span: tracing::Span::none() };
    supervisor.send(start).await.unwrap().unwrap();
    let live = services.index.get(stage.id).unwrap();
    assert_eq!(live.shared.view().running, Some(prompt_id));
    stage.live = live;
    let joined = stage.begin(Some("k")).await.unwrap_or_else(|_| panic!("refused"));
    assert!(matches!(&joined, TurnBegun::Joined(turn) if turn.prompt_id == prompt_id), "one key, one execution");

    agent.says.send(chunk("after")).await.unwrap();
    agent.answer(call, r#"{"stopReason":"end_turn"}"#).await;
    let end = ended(joined).await;
    assert_eq!((end.state, end.prompt_id), (TurnState::Completed, prompt_id));
    assert!(end.result.get().contains("before after"), "{}", end.result);
    assert!(end.event_id.unwrap() > 10_000_000_000, "event ids of the earlier process are not reused");
    let transcript = stage.services.store.transcript(stage.id, 0, 10).await.unwrap();
    let said: String = transcript.iter().skip(1).map(|row| row.entry.text.as_str()).collect();
    assert_eq!(said, "before after");
    assert_eq!(
        (services.metrics.turns_started(Route::Acp), services.metrics.turns_ended(Route::Acp, "completed")),
        (1, 1)
    );
}

#[actix::test]
async fn turn_whose_prompt_never_reached_the_agent_is_not_resumed() {
    let (stage, mut agent) = stage(|_| {}).await;
    let _begun = stage.begin(None).await.unwrap_or_else(|_| panic!("refused"));
    agent.prompted().await;
    for held in [None, Some(ResumedPrompt { prompt_id: PromptId(Uuid::now_v7()), call: 1, after: 0 })] {
        stage.held.lock().insert("c".into(), held);
        assert!(stage.find_again().await.is_empty());
    }
    assert!(stage.find_again().await.is_empty(), "the runtime holds no agent");
}

#[actix::test]
async fn runtime_keeps_a_permission_request_until_it_is_answered() {
    let (stage, mut agent) = stage(|settings| settings.settle_messages = 1).await;
    let _begun = stage.begin(None).await.unwrap_or_else(|_| panic!("refused"));
    agent.prompted().await;
    let feed = &stage.live.shared.feed;
    let mut reader = feed.subscribe(crate::actors::handles::event_feed::ReadFrom::Live);
    let params = serde_json::json!({
        "sessionId": "s",
        "toolCall": {"toolCallId": "1"},
        "options": [{"optionId": "allow", "name": "Allow", "kind": "allow_once"}],
    });
    agent.delivered.handle(1);
    let asked = AgentEvent::Request {
        id: RequestId::Number(1),
        method: "session/request_permission".into(),
        params: serde_json::value::to_raw_value(&params).unwrap(),
    };
    agent.says.send(asked).await.unwrap();
    let event: serde_json::Value = serde_json::from_str(&reader.live.recv().await.unwrap().data).unwrap();
    agent.delivered.handle(2);
    agent.says.send(chunk("meanwhile")).await.unwrap();
    reader.live.recv().await.unwrap();
    assert_eq!(agent.delivered.settled(), 0, "a restarted supervisor must receive the request again");

    let request_id = event["update"]["requestId"].as_str().unwrap().to_owned();
    let answer = stage.live.mailbox.borrow().answer_permission.clone();
    answer.send(AnswerPermission { request_id, option_id: Some("allow".into()) }).await.unwrap().unwrap();
    agent.delivered.settled_more().await;
    assert_eq!(agent.delivered.settled(), 2);
}

#[actix::test]
async fn prompt_after_a_cancel_waits_for_the_end_of_the_turn() {
    let (stage, mut agent) = stage(|_| {}).await;
    let _first = stage.begin(Some("k")).await.unwrap_or_else(|_| panic!("refused"));
    let call = agent.prompted().await;
    stage.cancel().await;
    let mut second = Box::pin(stage.begin(None));
    let waits = tokio::time::timeout(Duration::from_millis(50), &mut second).await;
    assert!(waits.is_err(), "the agent has not ended the turn");
    assert!(matches!(stage.begin(Some("k")).await, Ok(TurnBegun::Joined(_))), "a repeat joins at once");
    agent.answer(call, r#"{"stopReason":"cancelled"}"#).await;
    assert!(matches!(second.await, Ok(TurnBegun::Accepted(_))));
    agent.prompted().await;
}

#[actix::test]
async fn prompt_after_a_cancel_that_takes_too_long_is_refused() {
    let (stage, mut agent) = stage(|_| {}).await;
    let first = stage.begin(None).await.unwrap_or_else(|_| panic!("refused"));
    let TurnBegun::Accepted(first) = first else { panic!("not begun") };
    agent.prompted().await;
    stage.cancel().await;
    let waiting = (0..5).map(|_| stage.begin(None));
    let begun = std::time::Instant::now();
    for refused in futures_util::future::join_all(waiting).await {
        let Err(refused) = refused else { panic!("not refused") };
        assert_eq!((refused.failure.code, refused.running), (ErrorCode::TurnRunning, Some(first.prompt_id)));
    }
    assert!(begun.elapsed() >= Duration::from_millis(1900), "{:?}", begun.elapsed());
}

#[actix::test]
async fn caller_that_disconnects_while_its_prompt_waits_begins_no_turn() {
    let (stage, mut agent) = stage(|_| {}).await;
    let _first = stage.begin(None).await.unwrap_or_else(|_| panic!("refused"));
    let call = agent.prompted().await;
    stage.cancel().await;
    let (present, caller) = watch::channel(());
    let run = stage.live.mailbox.borrow().run_prompt.clone();
    let mut waiting = Box::pin(run.send(run_prompt(caller)));
    let waits = tokio::time::timeout(Duration::from_millis(50), &mut waiting).await;
    assert!(waits.is_err(), "the agent has not ended the turn");
    drop(present);
    let Err(refused) = waiting.await.unwrap() else { panic!("a turn began") };
    assert_eq!(refused.failure.code, ErrorCode::TurnRunning);
    agent.answer(call, r#"{"stopReason":"cancelled"}"#).await;
    let _next = stage.begin(None).await.unwrap_or_else(|_| panic!("refused"));
    agent.prompted().await;
    assert_eq!(stage.services.metrics.turns_started(Route::Acp), 2);
}

#[actix::test]
async fn prompt_is_refused_while_automation_runs_and_a_cancel_closes_the_turn() {
    let steps = TwoSteps::new(0);
    let (permits, begun) = (steps.permits.clone(), steps.begun.clone());
    let enable = |settings: &mut SessionSettings| settings.github.enabled = true;
    let (stage, mut agent) = stage_with(Duration::from_secs(60), Some(Arc::new(steps)), enable).await;
    let first = stage.begin(Some("k")).await.unwrap_or_else(|_| panic!("refused"));
    let TurnBegun::Accepted(turn) = &first else { panic!("not begun") };
    let prompt_id = turn.prompt_id;
    let call = agent.prompted().await;
    agent.answer(call, r#"{"stopReason":"end_turn"}"#).await;
    until_begun(&begun, 1).await;
    let Err(refused) = stage.begin(None).await else { panic!("not refused") };
    assert_eq!((refused.failure.code, refused.running), (ErrorCode::TurnRunning, Some(prompt_id)));
    let joined = stage.begin(Some("k")).await.unwrap_or_else(|_| panic!("refused"));
    assert!(matches!(&joined, TurnBegun::Joined(turn) if turn.prompt_id == prompt_id), "one key, one execution");
    assert_eq!(stage.live.shared.view().running, Some(prompt_id));
    let cancel = stage.live.mailbox.borrow().cancel_turn.clone();
    assert!(cancel.send(CancelTurn { prompt_id: Some(prompt_id), cause: CancelCause::User }).await.unwrap());
    permits.add_permits(1);
    let end = ended(first).await;
    assert_eq!((end.state, ended(joined).await.prompt_id), (TurnState::Cancelled, prompt_id));
    assert!(end.result.get().contains("no-changes"), "what was made is kept: {}", end.result);

    let next = stage.begin(None).await.unwrap_or_else(|_| panic!("refused"));
    let call = agent.prompted().await;
    agent.answer(call, r#"{"stopReason":"end_turn"}"#).await;
    permits.add_permits(2);
    assert_eq!(ended(next).await.state, TurnState::Completed);
}

#[actix::test]
async fn session_closed_while_it_ends_is_written_closed() {
    let (stage, _agent) = stage(|settings| settings.idle_timeout = Duration::from_millis(50)).await;
    // The end by the idle timeout is being written while the close arrives.
    let path = stage._folder.path().join("test.db");
    let mut other = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    other.batch_execute("PRAGMA busy_timeout = 5000; BEGIN IMMEDIATE").unwrap();
    while stage.live.shared.view().state != SessionState::Hibernated {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let closing = stage.live.supervisor.send(CloseSession { session_id: stage.id });
    let closing = actix::spawn(closing);
    tokio::task::yield_now().await;
    other.batch_execute("ROLLBACK").unwrap();
    assert!(closing.await.unwrap().unwrap().unwrap());
    assert_eq!(stage.state().await, SessionState::Closed);
}
