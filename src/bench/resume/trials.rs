//! The trials, round by round.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::time::{interval, timeout};

use super::{ResumePlan, ms_since, relay::Relay};
use crate::bench::{
    conversation::BenchError,
    http_link::HttpLink,
    program::{Program, Workplace},
};

/// How long any step of a round may take: longer than the longest pause between two tries to reconnect.
const STEP: Duration = Duration::from_secs(120);
/// How often a state is asked for that is being waited for.
const POLL: Duration = Duration::from_millis(10);

/// A supervisor, a runtime, and the cable between them.
struct Stage {
    supervisor: Program,
    relay: Relay,
    runtime: Program,
    settings: Vec<String>,
}

impl Stage {
    async fn start(workplace: &Workplace, folder: &Path, plan: &ResumePlan) -> Result<Self, BenchError> {
        let (near, far) = (folder.join("supervisor"), folder.join("runtime"));
        for folder in [&near, &far] {
            std::fs::create_dir_all(folder).map_err(BenchError::io(folder.display().to_string()))?;
        }
        let runtime = Program::start(workplace, "runtime", &far, &[]).await?;
        let relay = Relay::to(runtime.address()).await?;
        let mut settings = vec![format!("runtime.url=ws://{}/acp", relay.address())];
        settings.extend(plan.settings.iter().cloned());
        let supervisor = Program::start(workplace, "serve", &near, &settings).await?;
        Ok(Self { supervisor, relay, runtime, settings })
    }

    fn link(&self) -> HttpLink {
        HttpLink::new(self.supervisor.address())
    }

    async fn open(&self, workspace: &str) -> Result<String, BenchError> {
        let body = json!({"workspaceId": workspace, "installationId": "bench"});
        let ready = ask(&mut self.link(), "/acp/session/new", &body).await?;
        Ok(ready["sessionId"].as_str().unwrap_or_default().to_owned())
    }

    async fn stop(self) -> Result<(), BenchError> {
        self.supervisor.stop().await?;
        self.runtime.stop().await?;
        Ok(())
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

/// Asks for a session's state until it is as wanted.
async fn wait_for_session(
    link: &mut HttpLink,
    session: &str,
    wanted: impl Fn(&Value) -> bool,
) -> Result<(), BenchError> {
    let mut pause = interval(POLL);
    let waiting = async {
        loop {
            pause.tick().await;
            let answer = link.get(&format!("/acp/session/{session}")).await.map_err(BenchError::Trial)?;
            if serde_json::from_slice::<Value>(&answer.body).is_ok_and(|state| wanted(&state)) {
                return Ok(());
            }
        }
    };
    timeout(STEP, waiting).await.unwrap_or_else(|_| Err(BenchError::Trial("a state did not come in time".into())))
}

/// What the first trial gave.
pub(crate) struct Through {
    /// Messages a second, for each round.
    pub undisturbed: Vec<f64>,
    /// The same, with cuts.
    pub with_cuts: Vec<f64>,
    /// Cuts of all rounds.
    pub cuts: u64,
    /// Messages too few or too many, of all rounds.
    pub lost_or_doubled: i64,
}

/// An agent sends as fast as it can; in every other turn the cable is cut again and again.
pub(crate) async fn messages_through_cuts(workplace: &Workplace, plan: &ResumePlan) -> Result<Through, BenchError> {
    let stage = Stage::start(workplace, &workplace.folder("through")?, plan).await?;
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
            _ = cutting => return Err(BenchError::Trial("the cutting ended".into())),
        };
        let updates = result["meta"]["timings"]["updates"].as_i64().unwrap_or(0);
        let rate = f64::from(plan.messages) / began.elapsed().as_secs_f64();
        if is_cut { &mut through.with_cuts } else { &mut through.undisturbed }.push(rate);
        // The first, undisturbed turn tells what a whole one has.
        through.lost_or_doubled += (updates - *expected.get_or_insert(updates)).abs();
    }
    stage.stop().await?;
    Ok(through)
}

/// What the second trial gave, for each round.
pub(crate) struct Killed {
    /// Until a new supervisor serves.
    pub serves: Vec<f64>,
    /// Until a prompt is accepted.
    pub accepted: Vec<f64>,
    /// Turns that went on.
    pub picked_up: u32,
}

/// The supervisor is killed in mid-turn and started again on the same database.
pub(crate) async fn killed_supervisors(workplace: &Workplace, plan: &ResumePlan) -> Result<Killed, BenchError> {
    let folder = workplace.folder("killed")?;
    let mut stage = Stage::start(workplace, &folder, plan).await?;
    let mut killed = Killed { serves: Vec::new(), accepted: Vec::new(), picked_up: 0 };
    for round in 0..plan.rounds {
        let (busy, idle) = (stage.open(&format!("busy-{round}")).await?, stage.open(&format!("idle-{round}")).await?);
        let mut link = stage.link();
        // A turn of about a second, begun and not waited for.
        let body = json!({"sessionId": busy, "prompt": "ticks 20 50"});
        let running = tokio::spawn(async move { drop(ask(&mut link, "/acp/session/prompt", &body).await) });
        let mut link = stage.link();
        wait_for_session(&mut link, &busy, |state| state["lastEventId"].as_u64() > Some(5)).await?;
        let prompt_id = session_turn(&mut link, &busy).await?;
        let began = Instant::now();
        stage.supervisor = stage.supervisor.killed_and_started_again(workplace, "serve", &stage.settings).await?;
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
    stage.stop().await?;
    Ok(killed)
}

async fn session_turn(link: &mut HttpLink, session: &str) -> Result<String, BenchError> {
    let answer = link.get(&format!("/acp/session/{session}")).await.map_err(BenchError::Trial)?;
    let state: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let running = state["runningPromptId"].as_str().map(str::to_owned);
    running.ok_or_else(|| BenchError::Trial("the turn that was to be interrupted is not running".into()))
}

/// The cable goes silent in mid-turn, and nobody is told.
pub(crate) async fn silent_connections(workplace: &Workplace, plan: &ResumePlan) -> Result<Vec<f64>, BenchError> {
    let mut noticed = Vec::new();
    let stage = Stage::start(workplace, &workplace.folder("silent")?, plan).await?;
    for round in 0..plan.rounds {
        let session = stage.open(&format!("silent-{round}")).await?;
        let mut link = stage.link();
        let body = json!({"sessionId": session, "prompt": "sleep 600"});
        let running = tokio::spawn(async move { drop(ask(&mut link, "/acp/session/prompt", &body).await) });
        let mut link = stage.link();
        wait_for_session(&mut link, &session, |state| state["state"] == "running").await?;
        stage.relay.swallow();
        let began = Instant::now();
        wait_for_session(&mut link, &session, |state| state["connectionStatus"] == "reconnecting").await?;
        noticed.push(ms_since(began));
        stage.relay.cut();
        wait_for_session(&mut link, &session, |state| state["connectionStatus"] == "connected").await?;
        ask(&mut link, "/acp/session/close", &json!({"sessionId": session})).await?;
        running.abort();
    }
    stage.stop().await?;
    Ok(noticed)
}
