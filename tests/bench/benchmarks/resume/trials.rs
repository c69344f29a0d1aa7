//! The trials, round by round.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::{interval, timeout};

use super::{ResumePlan, ms_since, relay::Relay};
use crate::support::{
    api,
    conversation::BenchError,
    http::HttpLink,
    program::{Pair, Workplace},
};

/// Time limit of each step of a round: longer than the longest pause between two attempts to reconnect.
const STEP: Duration = Duration::from_secs(120);
/// Interval at which an awaited state is polled.
const POLL: Duration = Duration::from_millis(10);

/// A supervisor, a runtime, and the relay between them.
struct Stage {
    programs: Pair,
    relay: Relay,
}

impl Stage {
    async fn start(workplace: &Workplace, name: &str, plan: &ResumePlan) -> Result<Self, BenchError> {
        let folder = workplace.folder(name)?;
        let mut relay = None;
        let via = async |runtime| Ok(relay.insert(Relay::to(runtime).await?).address());
        let programs = Pair::start(workplace, &folder, &[], &plan.common.settings, via).await?;
        let relay = relay.ok_or_else(|| BenchError::Start("there is no relay".into()))?;
        Ok(Self { programs, relay })
    }

    fn link(&self) -> HttpLink {
        HttpLink::new(self.programs.supervisor.address())
    }

    async fn open(&self, workspace: &str) -> Result<String, BenchError> {
        let opened = timeout(STEP, api::open_session(&self.programs.supervisor, workspace.to_owned())).await;
        opened.unwrap_or_else(|_| Err(BenchError::Open("no answer in time".into())))
    }
}

async fn ask(link: &mut HttpLink, path: &str, body: &Value) -> Result<Value, BenchError> {
    let answer = timeout(STEP, link.post(path, body.to_string().into())).await;
    let answer = answer.unwrap_or_else(|_| Err("no answer in time".into())).map_err(BenchError::Trial)?;
    let text = String::from_utf8_lossy(&answer.body);
    if answer.status >= 300 {
        return Err(BenchError::Trial(format!("{path} answered {}: {text}", answer.status)));
    }
    serde_json::from_str(&text).map_err(|cause| BenchError::Trial(format!("{path}: {cause}")))
}

/// Polls the state of a session until the predicate accepts it.
async fn wait_for_session(
    link: &mut HttpLink,
    session: &str,
    is_reached: impl Fn(&Value) -> bool,
) -> Result<(), BenchError> {
    let mut pause = interval(POLL);
    let waiting = async {
        loop {
            pause.tick().await;
            let answer = link.get(&format!("/acp/session/{session}")).await.map_err(BenchError::Trial)?;
            if serde_json::from_slice::<Value>(&answer.body).is_ok_and(|state| is_reached(&state)) {
                return Ok(());
            }
        }
    };
    timeout(STEP, waiting).await.unwrap_or_else(|_| Err(BenchError::Trial("a state was not reached in time".into())))
}

/// Results of the first trial.
pub(crate) struct Through {
    /// Messages a second, for each round.
    pub undisturbed: Vec<f64>,
    /// Messages a second with breaks, for each round.
    pub with_cuts: Vec<f64>,
    /// Breaks in all rounds.
    pub cuts: u64,
    /// Missing or additional messages in all rounds.
    pub lost_or_doubled: i64,
}

/// An agent sends as fast as it can; in every other turn the connection is reset repeatedly.
pub(crate) async fn messages_through_cuts(workplace: &Workplace, plan: &ResumePlan) -> Result<Through, BenchError> {
    let stage = Stage::start(workplace, "through", plan).await?;
    let session = stage.open("through").await?;
    let mut through = Through { undisturbed: Vec::new(), with_cuts: Vec::new(), cuts: 0, lost_or_doubled: 0 };
    let prompt = json!({"sessionId": session, "prompt": format!("flood {}", plan.messages)});
    let mut link = stage.link();
    let mut expected = None;
    for round in 0..plan.rounds * 2 {
        let is_cut = round % 2 == 1;
        let began = Instant::now();
        let cutting = async {
            if !is_cut {
                return std::future::pending::<u64>().await;
            }
            let mut pause = interval(plan.cut_every);
            pause.tick().await;
            loop {
                pause.tick().await;
                stage.relay.cut();
                through.cuts += 1;
            }
        };
        let result = tokio::select! {
            result = ask(&mut link, "/acp/session/prompt", &prompt) => result?,
            _ = cutting => return Err(BenchError::Trial("the breaks ended".into())),
        };
        let updates = result["meta"]["timings"]["updates"].as_i64().unwrap_or(0);
        let rate = f64::from(plan.messages) / began.elapsed().as_secs_f64();
        if is_cut { &mut through.with_cuts } else { &mut through.undisturbed }.push(rate);
        // The first turn, without breaks, has the expected number.
        through.lost_or_doubled += (updates - *expected.get_or_insert(updates)).abs();
    }
    stage.programs.stop().await?;
    Ok(through)
}

/// Results of the second trial, for each round.
pub(crate) struct Killed {
    /// Milliseconds until a new supervisor serves.
    pub serves: Vec<f64>,
    /// Milliseconds until a prompt is accepted.
    pub accepted: Vec<f64>,
    /// Turns that continued.
    pub picked_up: u32,
}

/// The supervisor is killed during a turn and restarted on the same database.
pub(crate) async fn killed_supervisors(workplace: &Workplace, plan: &ResumePlan) -> Result<Killed, BenchError> {
    let mut stage = Stage::start(workplace, "killed", plan).await?;
    let mut killed = Killed { serves: Vec::new(), accepted: Vec::new(), picked_up: 0 };
    for round in 0..plan.rounds {
        let (busy, idle) = (stage.open(&format!("busy-{round}")).await?, stage.open(&format!("idle-{round}")).await?);
        let mut link = stage.link();
        // A turn of about a second, which is not awaited.
        let body = json!({"sessionId": busy, "prompt": "ticks 20 50"});
        let running = tokio::spawn(async move { drop(ask(&mut link, "/acp/session/prompt", &body).await) });
        let mut link = stage.link();
        wait_for_session(&mut link, &busy, |state| state["lastEventId"].as_u64() > Some(5)).await?;
        let prompt_id = session_turn(&mut link, &busy).await?;
        let began = Instant::now();
        let Pair { supervisor, runtime, settings } = stage.programs;
        let supervisor = supervisor.kill_and_restart(workplace, "serve", &settings).await?;
        stage.programs = Pair { supervisor, runtime, settings };
        killed.serves.push(ms_since(began));
        running.abort();
        let mut link = stage.link();
        let body = json!({"sessionId": idle, "prompt": "echo again"});
        let answer =
            link.post_async("/acp/session/prompt", body.to_string().into()).await.map_err(BenchError::Trial)?;
        if answer.status != 202 {
            return Err(BenchError::Trial(format!("the next prompt was answered with {}", answer.status)));
        }
        killed.accepted.push(ms_since(began));
        let path = format!("/acp/prompt/{prompt_id}");
        let mut pause = interval(POLL);
        let limit = Instant::now() + STEP;
        let state = loop {
            pause.tick().await;
            let answer = link.get(&path).await.map_err(BenchError::Trial)?;
            let turn: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            let state = turn["state"].as_str().unwrap_or_default().to_owned();
            if !matches!(state.as_str(), "accepted" | "running") || Instant::now() > limit {
                break state;
            }
        };
        killed.picked_up += u32::from(state == "completed");
    }
    stage.programs.stop().await?;
    Ok(killed)
}

async fn session_turn(link: &mut HttpLink, session: &str) -> Result<String, BenchError> {
    let answer = link.get(&format!("/acp/session/{session}")).await.map_err(BenchError::Trial)?;
    let state: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let running = state["runningPromptId"].as_str().map(str::to_owned);
    running.ok_or_else(|| BenchError::Trial("the turn that was to be interrupted is not running".into()))
}

/// The connection falls silent during a turn and stays open.
pub(crate) async fn silent_connections(workplace: &Workplace, plan: &ResumePlan) -> Result<Vec<f64>, BenchError> {
    let mut noticed = Vec::new();
    let stage = Stage::start(workplace, "silent", plan).await?;
    for round in 0..plan.rounds {
        let session = stage.open(&format!("silent-{round}")).await?;
        let mut link = stage.link();
        let body = json!({"sessionId": session, "prompt": "sleep 600"});
        let running = tokio::spawn(async move { drop(ask(&mut link, "/acp/session/prompt", &body).await) });
        let mut link = stage.link();
        wait_for_session(&mut link, &session, |state| state["state"] == "running").await?;
        stage.relay.silence();
        let began = Instant::now();
        wait_for_session(&mut link, &session, |state| state["connectionStatus"] == "reconnecting").await?;
        noticed.push(ms_since(began));
        stage.relay.cut();
        wait_for_session(&mut link, &session, |state| state["connectionStatus"] == "connected").await?;
        ask(&mut link, "/acp/session/close", &json!({"sessionId": session})).await?;
        running.abort();
    }
    stage.programs.stop().await?;
    Ok(noticed)
}
