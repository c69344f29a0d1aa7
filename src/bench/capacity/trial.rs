//! The trial: fill, work, work while others are refused, count.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tokio::time::{interval, timeout, timeout_at};

use super::{CapacityPlan, events::Follower};
use crate::bench::{
    closed_loop::{self, Tally, Window},
    conversation::{BenchError, Conversation},
    http_link::{HttpAnswer, HttpLink},
    http_path,
    latency::Latencies,
    point::processor_use,
    processes::{self, Memory},
    program::{Program, Workplace},
    progress,
    report::ProcessorUse,
};

/// Sessions that are opened at the same time, and read at the same time at the end.
const AT_ONCE: usize = 8;
/// Sessions that share a workspace.
const SESSIONS_PER_WORKSPACE: usize = 10;
/// How long the last event of a session may take; longer than any on a busy machine.
const EVENTS_LIMIT: Duration = Duration::from_secs(30);
/// The status of a refusal.
const REFUSED: u16 = 503;
/// How much is told of an answer that is no refusal.
const SHOWN_CHARS: usize = 200;

/// What was measured.
pub(crate) struct Measured {
    /// How long it took to take all seats.
    pub opening: Duration,
    /// Without refusals.
    pub undisturbed: Phase,
    /// With them.
    pub refusing: Phase,
    /// The refusals.
    pub refusals: Refusals,
    /// All events of all sessions.
    pub events: Events,
    /// Of the supervisor: without sessions, with all of them before the first prompt, at the end.
    pub memory: [Memory; 3],
    /// Of the agents, before the first prompt.
    pub agents: Memory,
    /// Lines of level ERROR in its log.
    pub errors_logged: u64,
}

/// One phase.
pub(crate) struct Phase {
    /// Its turns.
    pub tally: Tally,
    /// What it took.
    pub processors: ProcessorUse,
}

/// New sessions that were asked for beyond the limit.
pub(crate) struct Refusals {
    /// Of those that were refused as they should: 503, `capacity_exhausted`, `Retry-After` and the figures.
    pub latencies: Latencies,
    /// Answered in another way.
    pub wrong: u64,
    /// What the first of these said.
    pub sample: Option<String>,
}

/// Events by their ids.
#[derive(Debug, Default)]
pub(crate) struct Events {
    /// Events that sessions say they have published.
    pub published: u64,
    /// Those that no reader got.
    pub lost: u64,
    /// Those that came more than once.
    pub doubled: u64,
    /// Those that were no longer held when a session's events were read at the end: neither lost nor seen.
    pub not_held: u64,
}

/// Measures.
pub(crate) async fn measure(
    workplace: &Workplace,
    folder: &Path,
    plan: &CapacityPlan,
) -> Result<Measured, BenchError> {
    let program = Program::start(workplace, "serve", folder, &plan.settings()).await?;
    let memory = || processes::memory(&[program.pid()]);
    let before = memory();
    let begin = Instant::now();
    let sessions = (0..plan.sessions).map(|n| http_path::open_session(&program, workspace(n)));
    let sessions: Vec<_> = stream::iter(sessions).buffered(AT_ONCE).try_collect().await?;
    let opening = begin.elapsed();
    let agent_ids = processes::descendants(program.pid());
    let (idle, agents) = (memory(), processes::memory(&agent_ids));
    let followed = sessions.iter().take(plan.followed);
    let followers: Vec<_> = followed.map(|session| Follower::start(program.address(), session)).collect();
    let conversations = sessions.iter().map(|session| http_path::converse(&program, session, &plan.prompt)).collect();

    progress("the sessions work undisturbed");
    let window = window(plan);
    let (conversations, undisturbed) = phase(conversations, window, plan, &program, &agent_ids).await;
    progress("the sessions work while others are refused");
    let window = self::window(plan);
    let refusing = refuse(&program, window, plan);
    let ((_, refusing), refusals) = tokio::join!(phase(conversations, window, plan, &program, &agent_ids), refusing);
    progress("all events are counted");
    let events = count_events(&program, &sessions, followers).await?;
    let memory = [before, idle, memory()];
    let errors_logged = program.stop().await?;
    Ok(Measured { opening, undisturbed, refusing, refusals, events, memory, agents, errors_logged })
}

fn workspace(session: usize) -> String {
    format!("bench-{}", session / SESSIONS_PER_WORKSPACE)
}

/// Every session has begun when counting begins.
fn window(plan: &CapacityPlan) -> Window {
    let warm_up = (plan.measured / 5).clamp(Duration::from_millis(100), Duration::from_secs(2)).max(plan.think);
    Window::now(warm_up, plan.measured)
}

async fn phase(
    conversations: Vec<Box<dyn Conversation>>,
    window: Window,
    plan: &CapacityPlan,
    program: &Program,
    agents: &[u32],
) -> (Vec<Box<dyn Conversation>>, Phase) {
    let processors = tokio::spawn(processor_use(window, std::process::id(), Some(program.pid()), agents.to_owned()));
    let (conversations, tally) = closed_loop::run(conversations, window, plan.think).await;
    (conversations, Phase { tally, processors: processors.await.unwrap_or_default() })
}

/// Asks for sessions that cannot be had, one after the other on one connection, at the rate of the plan.
async fn refuse(program: &Program, window: Window, plan: &CapacityPlan) -> Refusals {
    let mut refusals = Refusals { latencies: Latencies::new(), wrong: 0, sample: None };
    let body = json!({"workspaceId": "bench-refused", "installationId": "bench"}).to_string();
    let mut link = HttpLink::new(program.address());
    let mut pace = interval(Duration::from_secs(1) / plan.refusals_per_second.max(1));
    while timeout_at(window.until, pace.tick()).await.is_ok() {
        let begin = Instant::now();
        let answer = link.post("/acp/session/new", body.clone().into()).await;
        let took = begin.elapsed();
        if begin < window.from.into_std() {
            continue;
        }
        match answer.and_then(|answer| is_refusal(&answer, plan.sessions)) {
            Ok(()) => refusals.latencies.record(took),
            Err(said) => {
                refusals.wrong += 1;
                refusals.sample.get_or_insert(said);
            }
        }
    }
    refusals
}

fn is_refusal(answer: &HttpAnswer, seats: usize) -> Result<(), String> {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let figures = &body["capacity"];
    let fine = answer.status == REFUSED
        && answer.has_retry_after
        && body["code"] == "capacity_exhausted"
        && figures["taken"].as_u64() >= u64::try_from(seats).ok()
        && figures["limit"].is_u64();
    let said = || String::from_utf8_lossy(&answer.body).chars().take(SHOWN_CHARS).collect::<String>();
    if fine { Ok(()) } else { Err(format!("status {}: {}", answer.status, said())) }
}

async fn count_events(
    program: &Program,
    sessions: &[String],
    followers: Vec<Follower>,
) -> Result<Events, BenchError> {
    let live = followers.len();
    let late = sessions.iter().skip(live).map(|session| Follower::start(program.address(), session));
    let all = followers.into_iter().map(|follower| (follower, true)).chain(late.map(|follower| (follower, false)));
    let counted = all.map(|(follower, is_live)| events_of(program, follower, is_live));
    let counted = stream::iter(counted).buffer_unordered(AT_ONCE);
    let sum = |sum: Events, of: Events| async move {
        Ok(Events {
            published: sum.published + of.published,
            lost: sum.lost + of.lost,
            doubled: sum.doubled + of.doubled,
            not_held: sum.not_held + of.not_held,
        })
    };
    counted.try_fold(Events::default(), sum).await
}

/// What became of one session's events, up to the last that it says it has.
async fn events_of(program: &Program, mut follower: Follower, is_live: bool) -> Result<Events, BenchError> {
    let path = format!("/acp/session/{}", follower.session);
    let answer = HttpLink::new(program.address()).get(&path).await.map_err(BenchError::Trial)?;
    let state: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let published = state["lastEventId"].as_u64();
    let published = published.ok_or_else(|| BenchError::Trial(format!("{path} answered {}", answer.status)))?;
    let seen = match timeout(EVENTS_LIMIT, follower.until(published)).await {
        Ok(seen) => seen.map_err(|why| BenchError::Trial(format!("the events of {path}: {why}")))?,
        // What has not come by now is lost.
        Err(_) => follower.seen(),
    };
    let before = seen.first.saturating_sub(1);
    let lost = seen.missing + published.saturating_sub(seen.last);
    let (lost, not_held) = if is_live { (lost + before, 0) } else { (lost, before) };
    Ok(Events { published, lost, doubled: seen.doubled, not_held })
}
