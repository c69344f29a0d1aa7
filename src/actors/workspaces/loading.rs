//! The folder of a session that is loaded, with the progress of its clone in the session's events.
//!
//! Most folders are there. One that is not, because it was removed or its runtime lost its disk, is cloned again, which
//! readers of the session's events see as they see the first clone.

use std::{convert::Infallible, time::Duration};

use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch;

use super::{closed_meanwhile, open};
use crate::{
    actors::{
        handles::{
            event_feed::EventFeed,
            preparing::{RegisteredPreparing, StopPreparing},
        },
        services::Services,
    },
    contract::runtime::PreparedWorkspace,
    domain::{
        session::{event::EventKind, lifecycle::SessionState, preparation::CloneProgress},
        turn::outcome::{ErrorCode, Failure},
    },
    store::{self, SessionChange, SessionRow, WorkspaceRow},
    transport::http::client::WorkspaceClient,
};

/// Time after which a preparation is published: a folder that is there is prepared within milliseconds.
const PUBLISHED_AFTER: Duration = Duration::from_millis(500);

/// A load of a session.
pub(super) struct Loading<'a> {
    services: &'a Services,
    row: &'a SessionRow,
    stop: watch::Sender<Option<StopPreparing>>,
    /// Present while the preparation is published, until the load has ended.
    published: Mutex<Option<RegisteredPreparing>>,
}

impl<'a> Loading<'a> {
    pub(super) fn new(services: &'a Services, row: &'a SessionRow) -> Self {
        Self { services, row, stop: watch::Sender::new(None), published: Mutex::default() }
    }

    /// The events of the load, which continue when the session is live; `None` if nothing was published.
    pub(super) fn feed(&self) -> Option<EventFeed> {
        self.published.lock().as_ref().map(|registered| registered.feed().clone())
    }

    /// Ensures that the folder of the session exists, and records where that of the workspace is.
    ///
    /// # Errors
    /// `session_closed` or `draining` if the preparation was stopped; otherwise those of the runtime.
    pub(super) async fn prepare(
        &self,
        client: &WorkspaceClient,
        workspace: &WorkspaceRow,
    ) -> Result<PreparedWorkspace, Failure> {
        let (services, row) = (self.services, self.row);
        let token = services.given_tokens.of(row.session_id.0);
        let on_progress = |progress: CloneProgress| {
            self.publish();
            if let Some(feed) = self.feed() {
                feed.announce(None, EventKind::Preparation, &progress);
            }
        };
        let publishing = async {
            tokio::time::sleep(PUBLISHED_AFTER).await;
            self.publish();
            std::future::pending::<Infallible>().await
        };
        let mut stop = self.stop.subscribe();
        let prepared = tokio::select! {
            biased;
            prepared = open::prepare(services, client, workspace, Some(row), token, &on_progress) => prepared?,
            cause = stop.wait_for(Option::is_some) => return Err(stopped(cause.ok().and_then(|cause| *cause))),
            never = publishing => match never {},
        };
        if let Some(registered) = &mut *self.published.lock() {
            registered.end_stops();
        }
        let is_unknown = workspace.removed.is_some() || workspace.workspace_path.is_none();
        if is_unknown && row.own_folder.is_none() {
            let written = services.store.set_workspace_path(row.key.clone(), prepared.path.clone()).await;
            written.map_err(|cause| store::failure(&cause))?;
        }
        Ok(prepared)
    }

    /// Publishes the preparation once, unless another load of the session is published.
    fn publish(&self) {
        let (services, row) = (self.services, self.row);
        let mut published = self.published.lock();
        if published.is_some() {
            return;
        }
        let settings = &services.settings;
        let after = row.next_event_after();
        let feed = EventFeed::new(row.session_id, settings.replay_events, settings.replay_bytes, after);
        let of = (row.key.clone(), row.user_id.clone());
        *published = services.preparing.register_loaded(of, feed, self.stop.clone(), services.metrics.clone());
        if let Some(registered) = &*published {
            registered.feed().announce(None, EventKind::Status, &json!({"state": SessionState::Preparing}));
        }
    }

    /// Publishes the failure of a load whose preparation was published. The state of the session is that of before.
    pub(super) async fn fail(&self, failure: &Failure) {
        let Some(feed) = self.feed() else { return };
        let session_id = self.row.session_id;
        let reason = json!({"code": failure.code.as_str(), "detail": failure.detail});
        feed.announce(None, EventKind::Status, &json!({"state": self.row.state, "failure": reason}));
        let change = SessionChange { last_event_id: Some(feed.last_id()), ..SessionChange::new(session_id) };
        if let Err(cause) = self.services.store.update_session(change).await {
            tracing::warn!(marker = "[ACP]", %session_id, %cause, "last event of a load was not written");
        }
    }
}

fn stopped(cause: Option<StopPreparing>) -> Failure {
    match cause {
        Some(StopPreparing::Drain) => Failure::new(
            ErrorCode::Draining,
            "the service stopped while the session was being prepared; load it again",
        ),
        Some(StopPreparing::Close) | None => closed_meanwhile(),
    }
}
