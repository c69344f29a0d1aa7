//! Automation after the end of the agent: whatever happens between the two facts, the turn closes once.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use secrecy::SecretString;
use serde_json::{Value, value::RawValue};
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use super::resume;
use crate::{
    acp::schema::StopReason,
    actors::{
        handles::{
            closing::{AgentEnded, Automate, EndedRun, Run},
            event_feed::EventFeed,
            messages::TurnEnded,
            route_gate::{RouteGate, WorkspacePace},
            session::{SessionShared, SessionSpec, SessionView, SharedPolicy, SharedServers},
        },
        services::{Services, SessionSettings},
        session::turn_ticket::TurnTicket,
    },
    config::Config,
    contract::{
        audit::AutomationRunItem,
        automation::{AutomationDiagnostics, AutomationMembers, AutomationMode, AutomationStatus, GithubAutomation},
    },
    domain::{
        automation::{
            saga::{Next, Verdict},
            skip::{Automation, Credential, SkipDetail, WantedMode},
            step::{StepFailure, StepName},
        },
        clock::Clock,
        ids::{FolderId, InstallationId, PromptId, SessionId, WorkspaceKey},
        redaction::Redacted,
        routing::{Route, Routing, turn_route::TurnStart},
        session::{
            background::Activity,
            lifecycle::{SessionMode, SessionState},
            mcp::McpServers,
            permission::PermissionPolicy,
        },
        turn::{
            TurnInitiator, TurnOutcome, TurnPhase, TurnState, outcome::Failure, transcript::TranscriptEntry,
            update::view_update,
        },
    },
    store::{Acceptance, NewSession, NewTurn, NewWorkspace, PromptRow, RunEnd, SagaRow, Store, StoreError},
    telemetry::SystemClock,
    transport::fake::FakeTransport,
};

/// Deadline of a wait.
const DEADLINE: Duration = Duration::from_secs(60);

/// Two steps; each waits for a permit.
pub(crate) struct TwoSteps {
    pub permits: Arc<Semaphore>,
    /// Steps that have begun.
    pub begun: Arc<AtomicUsize>,
    panics: bool,
}

impl TwoSteps {
    pub(crate) fn new(permits: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(permits)), begun: Arc::default(), panics: false }
    }
}

/// Waits until this number of steps has begun.
pub(crate) async fn until_begun(begun: &AtomicUsize, count: usize) {
    let waiting = async {
        while begun.load(Ordering::Acquire) < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.expect("the step begins");
}

/// The outcome of a step; the detail names the step.
fn made(detail: SkipDetail) -> GithubAutomation {
    GithubAutomation::new(AutomationMembers {
        status: AutomationStatus::Skipped,
        mode: AutomationMode::Github,
        issue: None,
        branch: None,
        commit: None,
        pull_request: None,
        checks: None,
        skip_reason: Some(detail.reason()),
        skip_detail: Some(detail),
        toast_message: Some("left out".into()),
        transcript_note: Some("left out".into()),
        rollback: None,
        diagnostics: AutomationDiagnostics::default(),
        error: None,
        rescue: None,
        retry_at: None,
        dry_run: false,
    })
    .unwrap()
}

/// The run of a turn, of which only the number of steps is known.
struct StepsRun {
    permits: Arc<Semaphore>,
    begun: Arc<AtomicUsize>,
    panics: bool,
    done: usize,
    turn: AgentEnded,
}

impl Automate for TwoSteps {
    fn credential(&self, _: &InstallationId, _: bool) -> Credential {
        Credential::Present
    }

    fn open(&self, turn: &AgentEnded) -> BoxFuture<'static, Result<Box<dyn Run>, StoreError>> {
        let (permits, begun, panics) = (self.permits.clone(), self.begun.clone(), self.panics);
        let run: Box<dyn Run> = Box::new(StepsRun { permits, begun, panics, done: 0, turn: turn.clone() });
        std::future::ready(Ok(run)).boxed()
    }

    fn retry(&self, _: SagaRow, _: Option<SecretString>) -> BoxFuture<'static, Result<(), Failure>> {
        std::future::ready(Ok(())).boxed()
    }

    fn clone_token(
        &self,
        _: &InstallationId,
        _: &str,
    ) -> BoxFuture<'static, Result<Option<SecretString>, StepFailure>> {
        std::future::ready(Ok(None)).boxed()
    }
}

impl Run for StepsRun {
    fn next(&self) -> Next {
        match self.done {
            0 | 1 => Next::Step(StepName::Changes),
            _ => Next::End(Verdict::Skipped(SkipDetail::NothingStaged)),
        }
    }

    fn perform(&mut self, _: StepName) -> BoxFuture<'_, Result<(), StoreError>> {
        self.begun.fetch_add(1, Ordering::AcqRel);
        async {
            self.permits.acquire().await.unwrap().forget();
            assert!(!self.panics, "a planted panic");
            self.done += 1;
            Ok(())
        }
        .boxed()
    }

    fn progress(&self, step: StepName, _: bool) -> Value {
        step.as_str().into()
    }

    fn end(&self, verdict: Option<Verdict>) -> Option<EndedRun> {
        let detail = match (verdict, self.done) {
            (Some(_), _) => SkipDetail::NothingStaged,
            (None, 0) => return None,
            (None, _) => SkipDetail::NoChanges,
        };
        let AgentEnded { prompt_id, session_id, key, .. } = &self.turn;
        let run = AutomationRunItem {
            run_id: Uuid::now_v7(),
            automation_id: None,
            installation_id: key.installation_id.clone(),
            workspace_id: key.workspace_id.clone(),
            session_id: *session_id,
            prompt_id: Some(*prompt_id),
            status: "skipped".into(),
            mode: "github".into(),
            issue_number: None,
            issue_url: None,
            pull_request_number: None,
            pull_request_url: None,
            branch: None,
            commit_sha: None,
            skip_reason: None,
            skip_detail: None,
            duration_ms: 0,
            attempts: 1,
            error_code: None,
            logs: Value::Array(Vec::new()),
            created_at: SystemClock.now(),
        };
        Some(EndedRun { automation: made(detail), rows: RunEnd { run, notice: None, saga: None } })
    }
}

fn services(folder: &Path, steps: TwoSteps) -> Arc<Services> {
    let store = Store::for_tests(&folder.join("test.db"));
    let transport = || Arc::new(FakeTransport::new().0);
    let mut settings = SessionSettings::new(&Config::default());
    settings.background.quiet = Duration::from_millis(10);
    let services = Services::of_test(store, transport(), transport(), settings);
    Arc::new(Services { automate: Some(Arc::new(steps)), ..services })
}

fn key() -> WorkspaceKey {
    WorkspaceKey { installation_id: "acme".parse().unwrap(), workspace_id: "w".parse().unwrap() }
}

async fn new_session(services: &Services) -> SessionId {
    let (session_id, now) = (SessionId(Uuid::now_v7()), services.clock.now());
    let workspace = NewWorkspace {
        key: key(),
        folder_id: FolderId(Uuid::now_v7()),
        repository: Some("octo/hello".into()),
        branch: None,
        path: None,
        permission_policy: None,
        is_ephemeral: false,
        now,
    };
    let new = NewSession {
        session_id,
        key: key(),
        workspace: Some(workspace),
        user_id: None,
        limited_token: None,
        own_folder: None,
        agent: "default".into(),
        mode: SessionMode::Development,
        enable_git_ops: true,
        state: SessionState::Idle,
        agent_session_id: Some("conversation".into()),
        mcp_servers: McpServers::none().without_secrets(),
        protocol: Route::Acp,
        protocol_version: Some(1),
        agent_facts: None,
        choices: Default::default(),
        connection: None,
        now,
    };
    services.store.create_session(new).await.unwrap();
    session_id
}

fn shared(services: &Services, session_id: SessionId) -> Arc<SessionShared> {
    let spec = SessionSpec {
        user_id: None,
        mode: SessionMode::Development,
        enable_git_ops: true,
        repository: Some("octo/hello".into()),
        gate: RouteGate::new(&Routing::new(Route::Acp), &services.settings.recovery),
        pace: WorkspacePace::default(),
        has_oneshot: false,
        is_isolated: false,
        session_id,
        workspace: key(),
        agent: None,
        cwd: "/w".into(),
        is_ephemeral: false,
        mcp_servers: SharedServers::new(McpServers::none()),
        policy: SharedPolicy::new(PermissionPolicy::Ask),
    };
    let view = SessionView { state: SessionState::Running, ..SessionView::starting(0, SystemClock.now()) };
    Arc::new(SessionShared::new(Arc::new(spec), EventFeed::new(session_id, 1000, 1 << 20, 0), view))
}

/// A turn whose agent has just ended it with the message `done`.
struct Turn {
    prompt_id: PromptId,
    session_id: SessionId,
    shared: Arc<SessionShared>,
    ended: watch::Receiver<Option<Arc<TurnEnded>>>,
}

async fn agent_ends(services: &Arc<Services>) -> Turn {
    let session_id = new_session(services).await;
    let shared = shared(services, session_id);
    let (prompt_id, now) = (PromptId(Uuid::now_v7()), services.clock.now());
    let route = shared.spec.gate.next_turn();
    let turn = NewTurn {
        initiator: TurnInitiator::User,
        again: false,
        prompt_id,
        session_id,
        key: key(),
        idempotency: None,
        preview: Redacted::new("fix it"),
        route: Route::Acp,
        protocol: Route::Acp,
        epoch: 0,
        is_canary: false,
        wanted: WantedMode::Github.into(),
        decision: Automation::Run,
        first_entry: TranscriptEntry::text("user_message", "fix it"),
        now,
    };
    let slot = services.store.reserve_end().unwrap();
    assert_eq!(services.store.accept_turn(turn).await, Ok(Acceptance::Accepted));
    let start = TurnStart { prompt_id, route, carrier: Route::Acp, accepted_at: now };
    let (mut ticket, ended) = TurnTicket::new(services.clone(), shared.clone(), start, slot, tracing::Span::none());
    ticket.automate(WantedMode::Github, Automation::Run);
    ticket.accepted();
    ticket.sent(now, false, Some("conversation".into()));
    let update = r#"{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"done"}}"#;
    let update = RawValue::from_string(update.into()).unwrap();
    ticket.on_update(view_update(&update), &update, None, false, now);
    let _transcript = ticket.end(TurnOutcome::Completed(StopReason::EndTurn), None, None, None);
    Turn { prompt_id, session_id, shared, ended }
}

/// Waits until the row of the turn satisfies `wanted`.
async fn row(services: &Services, prompt_id: PromptId, wanted: impl Fn(&PromptRow) -> bool) -> PromptRow {
    let found = async {
        loop {
            match services.store.prompt(prompt_id).await.unwrap().filter(&wanted) {
                Some(row) => return row,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    tokio::time::timeout(DEADLINE, found).await.expect("the row")
}

/// Fails the test unless the turn is closed with the whole result, and its transcript and outcome are stored once.
async fn is_closed(services: &Services, prompt_id: PromptId, state: TurnState, detail: Option<SkipDetail>) {
    let row = row(services, prompt_id, |row| row.ended.is_some()).await;
    assert_eq!((row.state, row.known_by.as_deref()), (state, Some("conversation")));
    let result: Value = serde_json::from_str(row.result.as_deref().unwrap()).unwrap();
    assert_eq!(result["meta"]["message"], "done", "{result}");
    assert_eq!(result["githubAutomation"]["skipDetail"].as_str(), detail.map(SkipDetail::as_str), "{result}");
    let stop_reason = if state == TurnState::Cancelled { "cancelled" } else { "completed" };
    assert_eq!(result["stopReason"], stop_reason, "{result}");
    let entries = services.store.transcript(row.session_id, 0, 10).await.unwrap();
    let texts: Vec<_> = entries.iter().map(|row| row.entry.text.as_str()).collect();
    assert_eq!(texts, ["fix it", "done"]);
    assert!(services.store.unfinished(TurnPhase::Automation).await.unwrap().is_empty());
    let metrics = &services.metrics;
    let ended: u64 = TurnOutcome::LABELS.iter().map(|outcome| metrics.turns_ended(Route::Acp, outcome)).sum();
    assert_eq!((metrics.turns_started(Route::Acp), ended), (1, 1), "one start and one end are counted");
}

/// The part of the service's start that concerns turns.
async fn recover(services: &Arc<Services>) {
    let store = &services.store;
    assert!(store.unfinished(TurnPhase::Agent).await.unwrap().is_empty(), "no agent has to be found again");
    let left = store.unfinished(TurnPhase::Automation).await.unwrap();
    assert_eq!(store.recover(services.clock.now(), &[], Vec::new()).await.unwrap().interrupted_turns, 0);
    resume(services, left);
}

#[tokio::test]
async fn turn_closes_with_the_whole_result_after_its_automation() {
    let folder = tempfile::tempdir().unwrap();
    let steps = TwoSteps::new(0);
    let permits = steps.permits.clone();
    let services = services(folder.path(), steps);
    let mut turn = agent_ends(&services).await;
    let open = row(&services, turn.prompt_id, |row| row.state == TurnState::Running).await;
    assert_eq!(open.ended, None, "the agent has ended, and the turn has not");
    assert!(open.result.unwrap().contains("\"message\":\"done\""), "the agent's part is on disk");
    assert!(turn.ended.borrow().is_none() && turn.shared.view().state == SessionState::Running);
    permits.add_permits(2);
    let ended = turn.ended.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert!(ended.event_id.is_some() && ended.result.get().contains("nothing-staged"), "{}", ended.result);
    assert_eq!(turn.shared.view().state, SessionState::Idle);
    assert!(services.closing.get(turn.session_id).is_none());
    is_closed(&services, turn.prompt_id, TurnState::Completed, Some(SkipDetail::NothingStaged)).await;
}

#[tokio::test]
async fn cancel_stops_automation_after_the_running_step_and_keeps_what_was_made() {
    let folder = tempfile::tempdir().unwrap();
    let steps = TwoSteps::new(0);
    let (permits, begun) = (steps.permits.clone(), steps.begun.clone());
    let services = services(folder.path(), steps);
    let turn = agent_ends(&services).await;
    until_begun(&begun, 1).await;
    services.closing.get(turn.session_id).unwrap().cancel();
    permits.add_permits(2);
    is_closed(&services, turn.prompt_id, TurnState::Cancelled, Some(SkipDetail::NoChanges)).await;
    assert_eq!(begun.load(Ordering::Acquire), 1, "the second step never began");
}

#[tokio::test]
async fn close_waits_for_automation_and_cancels_it_after_the_grace() {
    let folder = tempfile::tempdir().unwrap();
    let steps = TwoSteps::new(0);
    let (permits, begun) = (steps.permits.clone(), steps.begun.clone());
    let services = services(folder.path(), steps);
    let turn = agent_ends(&services).await;
    until_begun(&begun, 1).await;
    let closing = services.closing.get(turn.session_id).unwrap();
    let mut closing = std::pin::pin!(closing.cancel_after(Duration::from_millis(1)));
    let waits = tokio::time::timeout(Duration::from_millis(50), &mut closing).await;
    assert!(waits.is_err(), "the running step is not broken off");
    permits.add_permits(2);
    closing.await;
    is_closed(&services, turn.prompt_id, TurnState::Cancelled, Some(SkipDetail::NoChanges)).await;
}

#[tokio::test]
async fn drain_leaves_the_turn_open_and_the_next_start_closes_it() {
    let folder = tempfile::tempdir().unwrap();
    let steps = TwoSteps::new(0);
    let (permits, begun) = (steps.permits.clone(), steps.begun.clone());
    let first = services(folder.path(), steps);
    let mut turn = agent_ends(&first).await;
    until_begun(&begun, 1).await;
    let draining = first.closing.clone();
    let draining = tokio::spawn(async move { draining.drain().await });
    permits.add_permits(2);
    draining.await.unwrap();
    assert!(turn.ended.wait_for(Option::is_some).await.is_err(), "callers learn that the turn is left open");
    assert!(first.store.close().await);

    let second = services(folder.path(), TwoSteps::new(2));
    recover(&second).await;
    is_closed(&second, turn.prompt_id, TurnState::Completed, Some(SkipDetail::NothingStaged)).await;
}

#[tokio::test]
async fn automation_waits_until_the_background_work_of_the_agent_ends() {
    let folder = tempfile::tempdir().unwrap();
    let steps = TwoSteps::new(2);
    let begun = steps.begun.clone();
    let services = services(folder.path(), steps);
    let turn = agent_ends(&services).await;
    turn.shared.set_activity(Activity { is_open: true, heard: services.clock.now() });
    row(&services, turn.prompt_id, |row| row.state == TurnState::Running).await;
    // Longer than the silence that a turn without open work needs.
    let waits = tokio::time::timeout(Duration::from_millis(300), until_begun(&begun, 1)).await;
    assert!(waits.is_err(), "a tool call is still open");
    turn.shared.set_activity(Activity { is_open: false, heard: services.clock.now() });
    is_closed(&services, turn.prompt_id, TurnState::Completed, Some(SkipDetail::NothingStaged)).await;
    let result = row(&services, turn.prompt_id, |row| row.ended.is_some()).await.result.unwrap();
    assert!(!result.contains("not-quiet"), "{result}");
}

#[tokio::test]
async fn automation_begins_with_a_diagnostic_when_an_agent_never_becomes_quiet() {
    let folder = tempfile::tempdir().unwrap();
    let mut services = Arc::into_inner(services(folder.path(), TwoSteps::new(2))).unwrap();
    services.settings.background.quiet_max = Duration::from_millis(200);
    let services = Arc::new(services);
    let turn = agent_ends(&services).await;
    turn.shared.set_activity(Activity { is_open: true, heard: services.clock.now() });
    is_closed(&services, turn.prompt_id, TurnState::Completed, Some(SkipDetail::NothingStaged)).await;
    let result = row(&services, turn.prompt_id, |row| row.ended.is_some()).await.result.unwrap();
    assert!(result.contains("not-quiet"), "{result}");
}

#[tokio::test]
async fn cancel_ends_the_wait_for_a_quiet_agent() {
    let folder = tempfile::tempdir().unwrap();
    let services = services(folder.path(), TwoSteps::new(2));
    let turn = agent_ends(&services).await;
    turn.shared.set_activity(Activity { is_open: true, heard: services.clock.now() });
    services.closing.get(turn.session_id).unwrap().cancel();
    is_closed(&services, turn.prompt_id, TurnState::Cancelled, None).await;
}

#[tokio::test]
async fn panicking_step_closes_the_turn_with_a_remark() {
    let folder = tempfile::tempdir().unwrap();
    let services = services(folder.path(), TwoSteps { panics: true, ..TwoSteps::new(1) });
    let mut turn = agent_ends(&services).await;
    let ended = turn.ended.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert!(ended.result.get().contains("a step panicked"), "{}", ended.result);
    is_closed(&services, turn.prompt_id, TurnState::Completed, None).await;
}

/// The file by which the parent starts [`child_waits_in_its_first_step`].
const BEGIN: &str = "begin";
/// The file by which the child answers, with the id of its turn.
const READY: &str = "ready";

#[test]
fn turn_killed_between_the_end_of_its_agent_and_its_own_is_resumed_once() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(BEGIN), "").unwrap();
    let (_, name) = concat!(module_path!(), "::child_waits_in_its_first_step").split_once("::").unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact"])
        .current_dir(folder.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let ready = async {
            loop {
                match std::fs::read_to_string(folder.path().join(READY)) {
                    Ok(id) if id.len() == 36 => return id.parse::<Uuid>().unwrap(),
                    _ => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        let ready = tokio::time::timeout(DEADLINE, ready).await;
        // SIGKILL.
        child.kill().unwrap();
        child.wait().unwrap();
        let prompt_id = PromptId(ready.expect("the child reaches its first step"));
        let services = services(folder.path(), TwoSteps::new(2));
        recover(&services).await;
        is_closed(&services, prompt_id, TurnState::Completed, Some(SkipDetail::NothingStaged)).await;
        assert!(services.closing.drain().now_or_never().is_some(), "nothing is left");
    });
}

/// Runs as a child process of the test that kills it, and passes at once otherwise.
#[tokio::test]
async fn child_waits_in_its_first_step() {
    let here = Path::new(".");
    if !here.join(BEGIN).exists() {
        return;
    }
    let services = services(here, TwoSteps::new(0));
    let turn = agent_ends(&services).await;
    row(&services, turn.prompt_id, |row| row.state == TurnState::Running).await;
    std::fs::write(here.join(READY), turn.prompt_id.to_string()).unwrap();
    std::future::pending::<()>().await;
}
