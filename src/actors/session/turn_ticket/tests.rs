//! Property test: a random turn ends exactly once, with the outcome that its steps imply.

use std::sync::Arc;

use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use serde_json::{Value, value::RawValue};
use tokio::sync::watch;
use uuid::Uuid;

use super::TurnTicket;
use crate::{
    acp::schema::StopReason,
    actors::{
        handles::{
            event_feed::EventFeed,
            route_gate::{RouteGate, WorkspacePace},
            session::{SessionShared, SessionSpec, SessionView, SharedPolicy, SharedServers},
        },
        services::{Services, SessionSettings},
    },
    config::Config,
    domain::{
        clock::{Clock, Timestamp},
        ids::{PromptId, SessionId, WorkspaceKey},
        routing::{Route, Routing, turn_route::TurnStart},
        session::{
            connection::ConnectionStatus,
            lifecycle::{SessionMode, SessionState},
            mcp::McpServers,
            permission::PermissionPolicy,
        },
        turn::{
            Severity, TurnOutcome, TurnState,
            outcome::{ErrorCode, Failure},
            transcript::TranscriptEntry,
            update::view_update,
        },
    },
    store::{Store, StoreOptions},
    telemetry::SystemClock,
    transport::fake::FakeTransport,
};

const SEQUENCES: usize = 10_000;
/// Turns that end before the first of them is checked.
const TOGETHER: usize = 500;

#[derive(Debug, Clone)]
enum Step {
    Accepted,
    Sent,
    Update(&'static str, usize),
    Note,
    Remark,
    StrayLine,
    /// Takes the complete entries; `true` returns them, as for a full queue.
    Take(bool),
}

#[derive(Debug, Clone)]
enum End {
    Outcome(TurnOutcome),
    Dropped,
    Discarded,
}

fn step() -> impl Strategy<Value = Step> {
    let kinds = ["agent_message_chunk", "agent_thought_chunk", "tool_call", "plan", "no_such_kind"];
    prop_oneof![
        2 => Just(Step::Accepted),
        2 => Just(Step::Sent),
        5 => (prop::sample::select(kinds.to_vec()), prop_oneof![4 => 0usize..30, 1 => 0usize..9000])
            .prop_map(|(kind, length)| Step::Update(kind, length)),
        1 => Just(Step::Note),
        2 => Just(Step::Remark),
        1 => Just(Step::StrayLine),
        1 => any::<bool>().prop_map(Step::Take),
    ]
}

fn end() -> impl Strategy<Value = End> {
    let codes = prop::sample::select(ErrorCode::ALL);
    let outcome = prop_oneof![
        Just(TurnOutcome::Completed(StopReason::EndTurn)),
        Just(TurnOutcome::Completed(StopReason::Refusal)),
        any::<bool>().prop_map(|confirmed| TurnOutcome::Cancelled { confirmed }),
        (codes, 0usize..2000).prop_map(|(code, length)| TurnOutcome::Failed(Failure::new(code, "x".repeat(length)))),
    ];
    prop_oneof![6 => outcome.prop_map(End::Outcome), 2 => Just(End::Dropped), 1 => Just(End::Discarded)]
}

fn update(ticket: &mut TurnTicket, raw: String, now: Timestamp) {
    let raw = RawValue::from_string(raw).unwrap();
    ticket.on_update(view_update(&raw), &raw, None, false, now);
}

/// A turn that has ended, and the expected outcome.
struct Over {
    watching: watch::Receiver<Option<Arc<crate::actors::handles::messages::TurnEnded>>>,
    shared: Arc<SessionShared>,
    end: End,
    remarks: usize,
}

fn run(services: &Arc<Services>, steps: &[Step], end: End) -> Over {
    let key = WorkspaceKey { installation_id: "acme".parse().unwrap(), workspace_id: "w".parse().unwrap() };
    let settings = &services.settings;
    let gate = RouteGate::new(&Routing::new(Route::Acp), &settings.recovery);
    let route = gate.next_turn();
    let spec = SessionSpec {
        user_id: None,
        mode: SessionMode::Development,
        enable_git_ops: false,
        repository: None,
        gate,
        pace: WorkspacePace::default(),
        has_oneshot: false,
        is_isolated: false,
        session_id: SessionId(Uuid::now_v7()),
        workspace: key,
        agent: None,
        cwd: "/w".into(),
        is_ephemeral: false,
        mcp_servers: SharedServers::new(McpServers::none()),
        policy: SharedPolicy::new(PermissionPolicy::Ask),
    };
    let prompt_id = PromptId(Uuid::now_v7());
    let view = SessionView {
        state: SessionState::Running,
        connection: ConnectionStatus::Connected,
        running: Some(prompt_id),
        ..SessionView::starting(0, Timestamp(0))
    };
    let feed = EventFeed::new(spec.session_id, 1000, 1 << 20, 0);
    let shared = Arc::new(SessionShared::new(Arc::new(spec), feed, view));
    let slot = services.store.reserve_end().unwrap();
    let now = SystemClock.now();
    let span = tracing::Span::none();
    let start = TurnStart { prompt_id, route, carrier: Route::Acp, accepted_at: now };
    let (mut ticket, watching) = TurnTicket::new(services.clone(), shared.clone(), start, slot, span);
    let (mut is_accepted, mut remarks) = (false, 0);
    for step in steps {
        match step {
            // Only once, as in the session.
            Step::Accepted if !std::mem::replace(&mut is_accepted, true) => ticket.accepted(),
            Step::Accepted => {}
            Step::Sent => ticket.sent(now, false, None),
            Step::Update(kind, length) => {
                let text = "y".repeat(*length);
                let raw = format!(r#"{{"sessionUpdate":"{kind}","content":{{"type":"text","text":"{text}"}}}}"#);
                update(&mut ticket, raw, now);
            }
            Step::Note => ticket.note(TranscriptEntry::text("info", "noted")),
            Step::Remark => {
                ticket.remark(Severity::Warn, "a remark");
                remarks += 1;
            }
            Step::StrayLine => {
                let _ = ticket.on_stray_line("noise");
                remarks += 1;
            }
            Step::Take(put_back) => {
                if let Some(entries) = ticket.take_entries(1, 1).filter(|_| *put_back) {
                    ticket.put_back(entries);
                }
            }
        }
    }
    match end.clone() {
        End::Outcome(outcome) => drop(ticket.end(outcome, None, None, None)),
        End::Dropped => drop(ticket),
        End::Discarded => ticket.discard(),
    }
    Over { watching, shared, end, remarks }
}

async fn check(mut over: Over) {
    let end = &over.end;
    let ended = over.watching.wait_for(Option::is_some).await.map(|ended| ended.clone().unwrap()).ok();
    // The sender is dropped: no second end can follow.
    assert!(over.watching.changed().await.is_err(), "{end:?}");
    let (state, code) = match end {
        End::Discarded => {
            assert!(ended.is_none(), "a turn that never began has no end");
            return;
        }
        End::Dropped => (TurnState::Failed, Some(ErrorCode::Internal)),
        End::Outcome(TurnOutcome::Failed(failure)) if failure.code == ErrorCode::Interrupted => {
            (TurnState::Interrupted, Some(failure.code))
        }
        End::Outcome(TurnOutcome::Failed(failure)) => (TurnState::Failed, Some(failure.code)),
        End::Outcome(TurnOutcome::Cancelled { .. }) => (TurnState::Cancelled, None),
        End::Outcome(TurnOutcome::Completed(_)) => (TurnState::Completed, None),
    };
    let ended = ended.expect("a turn that began has an end");
    assert_eq!((ended.state, ended.failure.as_ref().map(|it| it.code)), (state, code));
    let result: Value = serde_json::from_str(ended.result.get()).unwrap();
    let stop_reason = match state {
        TurnState::Completed => "completed",
        TurnState::Cancelled => "cancelled",
        _ => "error",
    };
    assert_eq!(result["stopReason"], stop_reason, "{end:?}");
    assert_eq!(result["meta"]["errorCode"].as_str(), code.map(ErrorCode::as_str), "{result}");
    assert!(ended.result.get().len() <= 32 * 1024);
    let diagnostics = result["diagnostics"].as_array().map_or(0, Vec::len);
    assert!(diagnostics <= 100 && diagnostics >= over.remarks.min(100), "{diagnostics} of {}", over.remarks);
    let view = over.shared.view();
    assert_eq!((view.state, view.running, view.progress), (SessionState::Idle, None, None));
}

#[actix::test]
async fn each_of_ten_thousand_turns_has_exactly_one_outcome() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(
        StoreOptions { write_queue: TOGETHER + 1, ..StoreOptions::for_tests(&folder.path().join("test.db")) },
        crate::telemetry::Metrics::for_tests(),
    )
    .unwrap();
    let transport = || Arc::new(FakeTransport::new().0);
    let settings = SessionSettings::new(&Config::default());
    let services = Arc::new(Services::of_test(store, transport(), transport(), settings));
    let mut runner = TestRunner::default();
    let sequence = (prop::collection::vec(step(), 0..12), end());
    let mut accepted = 0;
    for _ in 0..SEQUENCES / TOGETHER {
        let mut over = Vec::with_capacity(TOGETHER);
        for _ in 0..TOGETHER {
            let (mut steps, end) = sequence.new_tree(&mut runner).unwrap().current();
            if matches!(end, End::Discarded) {
                // A discarded turn was never accepted.
                steps.retain(|step| !matches!(step, Step::Accepted));
            }
            accepted += u64::from(steps.iter().any(|step| matches!(step, Step::Accepted)));
            over.push(run(&services, &steps, end));
        }
        for over in over {
            check(over).await;
        }
    }
    assert_eq!(services.metrics.turns_started(Route::Acp), accepted);
    let ended: u64 =
        TurnOutcome::LABELS.iter().map(|outcome| services.metrics.turns_ended(Route::Acp, outcome)).sum();
    assert_eq!(ended, accepted, "turns started equal turns ended");
}
