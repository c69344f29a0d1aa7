//! The trial: take all seats, work, work while others are refused, count events.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tokio::time::{interval, timeout_at};

use super::CapacityPlan;
use crate::support::{
    api::{self, INSTALLATION},
    cli::{progress, warm_up},
    closed_loop::{self, Tally, Window},
    conversation::{BenchError, Conversation},
    events::{self, Events, Follower},
    http::{HttpAnswer, HttpLink},
    latency::Latencies,
    processes::{self, Memory},
    program::{Program, Workplace},
};

/// Sessions that are opened at the same time, and read at the same time at the end.
const AT_ONCE: usize = 8;
/// Sessions that share a workspace.
const SESSIONS_PER_WORKSPACE: usize = 10;
/// Status of a refusal.
const REFUSED: u16 = 503;

/// Results of the trial.
pub(crate) struct Measured {
    /// Time to take all seats.
    pub opening: Duration,
    /// The phase without refusals.
    pub undisturbed: Phase,
    /// The phase with refusals.
    pub refusing: Phase,
    pub refusals: Refusals,
    pub events: Events,
    /// The supervisor without sessions, with all sessions before the first prompt, and at the end.
    pub memory: [Memory; 3],
    /// The agents before the first prompt.
    pub agents: Memory,
    /// Lines of level ERROR in the log of the supervisor.
    pub errors_logged: u64,
}

/// One phase.
pub(crate) struct Phase {
    pub tally: Tally,
    /// Processor time of the supervisor, of the agents and of the load client.
    pub processors: [Duration; 3],
}

/// Answers to requests beyond the limit.
pub(crate) struct Refusals {
    /// Latencies of correct refusals: 503, `capacity_exhausted`, `Retry-After` and the figures of the capacity.
    pub latencies: Latencies,
    /// Other answers.
    pub wrong: u64,
    /// The first of the other answers.
    pub sample: Option<String>,
}

pub(crate) async fn measure(
    workplace: &Workplace,
    folder: &Path,
    plan: &CapacityPlan,
) -> Result<Measured, BenchError> {
    let program = Program::start(workplace, "serve", folder, &plan.settings()).await?;
    let memory = || processes::memory(&[program.pid()]);
    let before = memory();
    let begin = Instant::now();
    let sessions = (0..plan.sessions).map(|n| api::open_session(&program, workspace(n)));
    let sessions: Vec<_> = stream::iter(sessions).buffered(AT_ONCE).try_collect().await?;
    let opening = begin.elapsed();
    let agent_ids = processes::descendants(program.pid());
    let (idle, agents) = (memory(), processes::memory(&agent_ids));
    let followed = sessions.iter().take(plan.followed());
    let followers: Vec<_> = followed.map(|session| Follower::start(program.address(), session)).collect();
    let conversations = sessions.iter().map(|session| api::converse(&program, session, &plan.prompt)).collect();

    progress("sessions work undisturbed");
    let window = window(plan);
    let (conversations, undisturbed) = phase(conversations, window, plan, &program, &agent_ids).await;
    progress("sessions work while others are refused");
    let window = self::window(plan);
    let refusing = refuse(&program, window, plan);
    let ((_, refusing), refusals) = tokio::join!(phase(conversations, window, plan, &program, &agent_ids), refusing);
    progress("counting all events");
    let events = count_events(&program, &sessions, followers).await?;
    let memory = [before, idle, memory()];
    let errors_logged = program.stop().await?;
    Ok(Measured { opening, undisturbed, refusing, refusals, events, memory, agents, errors_logged })
}

fn workspace(session: usize) -> String {
    format!("bench-{}", session / SESSIONS_PER_WORKSPACE)
}

/// Counting begins after the first prompt of every session.
fn window(plan: &CapacityPlan) -> Window {
    Window::now(warm_up(plan.measured, plan.think), plan.measured)
}

async fn phase(
    conversations: Vec<Box<dyn Conversation>>,
    window: Window,
    plan: &CapacityPlan,
    program: &Program,
    agents: &[u32],
) -> (Vec<Box<dyn Conversation>>, Phase) {
    let (server, agents) = (program.pid(), agents.to_owned());
    let processors = tokio::spawn(processes::used_within(window, move || {
        [processes::cpu_time(&[server]), processes::cpu_time(&agents), processes::cpu_time(&[std::process::id()])]
    }));
    let (conversations, tally) = closed_loop::run(conversations, window, plan.think).await;
    (conversations, Phase { tally, processors: processors.await.unwrap_or_default() })
}

/// Requests sessions beyond the limit, one after the other on one connection, at the rate of the plan.
async fn refuse(program: &Program, window: Window, plan: &CapacityPlan) -> Refusals {
    let mut refusals = Refusals { latencies: Latencies::new(), wrong: 0, sample: None };
    let body = json!({"workspaceId": "bench-refused", "installationId": INSTALLATION}).to_string();
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
            Err(answer) => {
                refusals.wrong += 1;
                refusals.sample.get_or_insert(answer);
            }
        }
    }
    refusals
}

fn is_refusal(answer: &HttpAnswer, seats: usize) -> Result<(), String> {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let figures = &body["capacity"];
    let is_refused = answer.status == REFUSED
        && answer.has_retry_after
        && body["code"] == "capacity_exhausted"
        && figures["taken"].as_u64() >= u64::try_from(seats).ok()
        && figures["limit"].is_u64();
    if is_refused { Ok(()) } else { Err(format!("status {}: {}", answer.status, api::shown(&answer.body))) }
}

async fn count_events(
    program: &Program,
    sessions: &[String],
    followers: Vec<Follower>,
) -> Result<Events, BenchError> {
    let live = followers.len();
    let late = sessions.iter().skip(live).map(|session| Follower::start(program.address(), session));
    let all = followers.into_iter().map(|follower| (follower, true)).chain(late.map(|follower| (follower, false)));
    let counted = all.map(|(follower, is_live)| events::count(program, follower, is_live));
    let counted = stream::iter(counted).buffer_unordered(AT_ONCE);
    counted
        .try_fold(Events::default(), async |mut sum, of| {
            sum += of;
            Ok(sum)
        })
        .await
}
