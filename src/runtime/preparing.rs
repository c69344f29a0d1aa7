//! The answer to `POST /workspace/prepare` for clients that read lines: the progress of the clone, then the end.

use std::{convert::Infallible, pin::Pin};

use actix_web::{HttpRequest, http::header};
use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::{
    sync::watch,
    time::{Interval, MissedTickBehavior, interval},
};

use super::reply::logged_problem;
use crate::{
    contract::{
        fallback::NDJSON,
        runtime::{PrepareLine, PreparedWorkspace},
    },
    domain::{
        session::preparation::{CloneProgress, REPORT_EVERY},
        turn::outcome::Failure,
    },
};

/// The preparation that an answer waits for. Dropping it ends the clone.
pub(super) type Preparing = Pin<Box<dyn Future<Output = Result<PreparedWorkspace, Failure>>>>;

/// True if the client reads lines.
pub(super) fn accepts_lines(request: &HttpRequest) -> bool {
    let accepted = request.headers().get_all(header::ACCEPT).filter_map(|accepted| accepted.to_str().ok());
    accepted.into_iter().any(|accepted| accepted.contains(NDJSON))
}

struct Lines {
    preparing: Option<Preparing>,
    progress: watch::Receiver<Option<CloneProgress>>,
    sent: Option<CloneProgress>,
    beat: Interval,
    /// Id of the request.
    id: String,
}

/// Progress at most once a second, with an empty line in a second without progress, by which a client that has left is
/// noticed; then the end.
pub(super) fn lines(
    preparing: Preparing,
    progress: watch::Receiver<Option<CloneProgress>>,
    id: String,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let mut beat = interval(REPORT_EVERY);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let lines = Lines { preparing: Some(preparing), progress, sent: None, beat, id };
    stream::unfold(lines, |mut lines| async move {
        let mut preparing = lines.preparing.take()?;
        let line = tokio::select! {
            biased;
            ended = &mut preparing => {
                let mut last = lines.newest().unwrap_or_default();
                last.extend(line_of(&end_of(ended, &lines.id)));
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

fn end_of(ended: Result<PreparedWorkspace, Failure>, id: &str) -> PrepareLine {
    match ended {
        Ok(prepared) => PrepareLine::Prepared(prepared),
        Err(failure) => PrepareLine::Failed(Box::new(logged_problem(&failure, id.to_owned(), Some(0)))),
    }
}

fn line_of(line: &PrepareLine) -> Vec<u8> {
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text
}
