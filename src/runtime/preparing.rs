//! `POST /workspace/prepare`: prepares a folder, and reports the progress of its clone to clients that read lines.

use std::{convert::Infallible, pin::Pin, sync::Arc};

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::{
    sync::watch,
    time::{Interval, MissedTickBehavior, interval},
};

use super::{
    reply::{answer, answer_failure, read, refuse},
    routes::{BODY, MAX_BODY_BYTES, RuntimeState},
};
use crate::{
    contract::{
        fallback::NDJSON,
        problem::Problem,
        runtime::{PrepareLine, PrepareWorkspace, PreparedWorkspace},
    },
    domain::{
        session::preparation::{CloneProgress, REPORT_EVERY},
        turn::outcome::{ErrorCode, Failure},
    },
    transport::request_id,
};

/// The preparation that an answer waits for. Dropping it ends the clone.
type Preparing = Pin<Box<dyn Future<Output = Result<PreparedWorkspace, Failure>>>>;

pub(super) async fn prepare(
    request: HttpRequest,
    body: web::Payload,
    state: web::Data<RuntimeState>,
) -> HttpResponse {
    let asked = match read::<PrepareWorkspace>(&request, body, MAX_BODY_BYTES, BODY).await {
        Ok(asked) => asked,
        Err(failure) => return answer_failure(&failure),
    };
    if let Some(agent) = asked.agent.as_ref().filter(|agent| !state.sockets.agents.names().contains(agent)) {
        return refuse(ErrorCode::UnknownAgent, &format!("no agent {agent:?} is configured"));
    }
    if !accepts_lines(&request) {
        return answer(work(state.into_inner(), asked, None).await);
    }
    let (sender, progress) = watch::channel(None);
    let preparing: Preparing = Box::pin(work(state.into_inner(), asked, Some(sender)));
    HttpResponse::Ok().content_type(NDJSON).streaming(lines(preparing, progress))
}

fn accepts_lines(request: &HttpRequest) -> bool {
    let accepted = request.headers().get_all(header::ACCEPT).filter_map(|accepted| accepted.to_str().ok());
    accepted.into_iter().any(|accepted| accepted.contains(NDJSON))
}

async fn work(
    state: Arc<RuntimeState>,
    asked: PrepareWorkspace,
    progress: Option<watch::Sender<Option<CloneProgress>>>,
) -> Result<PreparedWorkspace, Failure> {
    let agents = &state.sockets.agents;
    let has_oneshot = agents.has_oneshot(asked.agent.as_deref());
    let user = match asked.workspace.path {
        Some(_) => agents.user_of(asked.agent.as_deref(), asked.installation_id.as_ref()).await?,
        // A new workspace gets its owner with its first agent.
        None => None,
    };
    let prepared = state.workspaces.prepare(asked, user, progress).await?;
    Ok(PreparedWorkspace { has_oneshot, ..prepared })
}

struct Lines {
    preparing: Option<Preparing>,
    progress: watch::Receiver<Option<CloneProgress>>,
    sent: Option<CloneProgress>,
    beat: Interval,
}

/// Progress at most once a second, with an empty line in a second without progress, by which a client that has left is
/// noticed; then the end.
fn lines(
    preparing: Preparing,
    progress: watch::Receiver<Option<CloneProgress>>,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let mut beat = interval(REPORT_EVERY);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let lines = Lines { preparing: Some(preparing), progress, sent: None, beat };
    stream::unfold(lines, |mut lines| async move {
        let mut preparing = lines.preparing.take()?;
        let line = tokio::select! {
            biased;
            ended = &mut preparing => {
                let mut last = lines.newest().unwrap_or_default();
                last.extend(line_of(&end_of(ended)));
                return Some((Ok(last.into()), lines));
            }
            _ = lines.beat.tick() => lines.newest(),
        };
        lines.preparing = Some(preparing);
        Some((Ok(line.unwrap_or_else(|| b"\n".to_vec()).into()), lines))
    })
}

impl Lines {
    /// The progress that was not sent yet.
    fn newest(&mut self) -> Option<Vec<u8>> {
        let newest = *self.progress.borrow_and_update();
        let new = newest.filter(|newest| newest.is_after(self.sent))?;
        self.sent = Some(new);
        Some(line_of(&PrepareLine::Progress(new)))
    }
}

fn end_of(ended: Result<PreparedWorkspace, Failure>) -> PrepareLine {
    match ended {
        Ok(prepared) => PrepareLine::Prepared(prepared),
        Err(failure) => {
            let id = request_id::current().unwrap_or_default();
            PrepareLine::Failed(Box::new(Problem::new(&failure, id)))
        }
    }
}

fn line_of(line: &PrepareLine) -> Vec<u8> {
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text
}
