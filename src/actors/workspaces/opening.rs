//! Opens sessions. One whose repository is to be cloned, or whose caller does not wait, has a row and events while its folder
//! is prepared; every other gets its row once it is ready.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    OpenOnce, ReadySession, Supervised, Workspaces, kept_session,
    open::{self, OpenSession, Placing, Plan},
    start,
};
use crate::{
    actors::{
        handles::{
            capacity_guard::Permit,
            event_feed::EventFeed,
            folder_use::FolderGuard,
            messages::Past,
            preparing::{RegisteredPreparing, StopPreparing},
        },
        session::adoption::kept_connection,
    },
    config::DEFAULT_AGENT,
    contract::{
        runtime::PreparedWorkspace,
        session::{AcceptedWorkspace, SessionAccepted},
    },
    domain::{
        ids::{SessionId, WorkspaceKey},
        redaction::{Redacted, RedactedJson},
        routing::Route,
        session::{choices::Choices, event::EventKind, lifecycle::SessionState},
        turn::outcome::{ErrorCode, Failure},
    },
    store::{self, NewSession, SessionChange, SessionKey, WorkspaceRow},
    transport::AgentFacts,
};

/// A session that is being opened, with everything that it holds.
struct Opening {
    workspaces: Workspaces,
    request: OpenSession,
    session_id: SessionId,
    /// Taken by the agent's start.
    seat: Option<Permit>,
    plan: Plan,
    once: Option<OpenOnce>,
    /// Present once the session has a row.
    begun: Option<Begun>,
    _folder: FolderGuard,
}

/// A session with a row that says that it is being prepared.
struct Begun {
    row: WorkspaceRow,
    feed: EventFeed,
}

/// A session that was opened, with the answer that is bound to its key.
type Opened = (ReadySession, Option<RedactedJson>);

impl Workspaces {
    /// Creates a session, and answers when it is ready. A failure leaves nothing behind but the workspace, if that has a
    /// folder.
    pub(crate) async fn open(&self, request: OpenSession) -> Result<ReadySession, Failure> {
        self.open_with(request, None).await.map(|(ready, _)| ready)
    }

    /// [`Self::open`], and binds the key of the request to the answer, which is returned too.
    pub(super) async fn open_with(&self, request: OpenSession, once: Option<&OpenOnce>) -> Result<Opened, Failure> {
        let mut opening = self.begin(request, once).await?;
        if !opening.plan.needs_clone() {
            return opening.finish().await;
        }
        let (session_id, key) = (opening.session_id, opening.request.workspace.clone());
        let is_isolated = opening.plan.is_isolated();
        let (registered, stop) = opening.announce(None).await?;
        let ended = opening.finish_unless_stopped(stop).await;
        if let Err((failure, stopped)) = ended {
            match stopped {
                // Its id is known to the caller that stopped it.
                Some(cause) => self.end_preparing(session_id, &registered, cause, &failure).await,
                None => self.discard(session_id, (key, is_isolated)).await,
            }
            return Err(failure);
        }
        drop(registered);
        ended.map_err(|(failure, _)| failure)
    }

    /// Creates a session that is prepared after the answer, which is returned; its key is bound to that answer. A failure of
    /// the preparation is in the row and in the events of the session.
    pub(super) async fn accept(
        &self,
        request: OpenSession,
        once: Option<&OpenOnce>,
    ) -> Result<SessionAccepted, Failure> {
        let mut opening = self.begin(request, once).await?;
        let accepted = opening.accepted();
        let key = opening.once.take().map(|once| once.key_with(RedactedJson::of(&accepted)));
        let (registered, stop) = opening.announce(key).await?;
        let (workspaces, session_id) = (self.clone(), opening.session_id);
        actix::spawn(async move {
            if let Err((failure, stopped)) = opening.finish_unless_stopped(stop).await {
                let cause = stopped.unwrap_or(Stopped::Failed);
                workspaces.end_preparing(session_id, &registered, cause, &failure).await;
            }
            drop(registered);
        });
        Ok(accepted)
    }

    /// [`Self::accept`] of a request without a key.
    pub(crate) async fn open_later(&self, request: OpenSession) -> Result<SessionAccepted, Failure> {
        self.accept(request, None).await
    }

    /// Takes a seat and holds the folder.
    async fn begin(&self, mut request: OpenSession, once: Option<&OpenOnce>) -> Result<Opening, Failure> {
        self.admission()?;
        request.agent = request.agent.filter(|name| name != DEFAULT_AGENT);
        // Before anything is created: a full service must refuse without side effects.
        let seat = self.admit(&request)?;
        let services = self.services();
        let folder = services.folders.open(&request.workspace).await?;
        // After the folder is held: an erasure that begins now waits for it.
        self.not_erasing(&request.workspace)?;
        let plan = Plan::of(services, self.workspace_client(), &request).await?;
        let session_id = SessionId(Uuid::now_v7());
        let (workspaces, once) = (self.clone(), once.cloned());
        Ok(Opening { workspaces, request, session_id, seat: Some(seat), plan, once, begun: None, _folder: folder })
    }

    /// Removes what a session left that could not be prepared and whose id nobody has.
    async fn discard(&self, session_id: SessionId, (key, is_isolated): (WorkspaceKey, bool)) {
        if let Err(cause) = self.services().store.discard_preparing(session_id, key).await {
            tracing::warn!(marker = "[ACP]", %session_id, %cause, "row of a session that was not prepared was left");
        }
        if is_isolated {
            self.drop_folder(session_id).await;
        }
        self.services().given_servers.drop_of(session_id);
        self.services().given_tokens.drop_of(session_id.0);
    }

    /// Writes the end of a preparation that was stopped or failed, and publishes it.
    async fn end_preparing(
        &self,
        session_id: SessionId,
        registered: &RegisteredPreparing,
        cause: Stopped,
        failure: &Failure,
    ) {
        let services = self.services();
        let state = if cause == Stopped::Closed { SessionState::Closed } else { SessionState::Failed };
        let failure = Some(failure.clone()).filter(|_| state == SessionState::Failed);
        let mut update = json!({"state": state});
        if let Some(failure) = &failure {
            update["failure"] = json!({"code": failure.code.as_str(), "detail": failure.detail});
            let (code, detail) = (failure.code.as_str(), Redacted::new(&failure.detail));
            tracing::warn!(marker = "[ACP]", %session_id, code, %detail, "session could not be prepared");
        }
        let feed = registered.feed();
        feed.announce(None, EventKind::Status, &update);
        let last_event_id = Some(feed.last_id());
        let change = SessionChange { state: Some(state), failure, last_event_id, ..SessionChange::new(session_id) };
        if let Err(cause) = services.store.settle_session(change).await {
            // The next start corrects the row.
            tracing::error!(marker = "[ACP]", %session_id, %cause, "end of a preparation was not written");
        }
    }
}

/// Reason why a session did not become ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    Closed,
    Drained,
    Failed,
}

impl Opening {
    fn accepted(&self) -> SessionAccepted {
        let key = self.request.workspace.clone();
        SessionAccepted {
            session_id: self.session_id,
            state: SessionState::Preparing,
            workspace: AcceptedWorkspace {
                workspace_id: key.workspace_id,
                installation_id: key.installation_id,
                is_isolated: self.plan.is_isolated(),
            },
        }
    }

    /// Writes the rows of the session and its workspace, and publishes the session.
    async fn announce(
        &mut self,
        key: Option<SessionKey>,
    ) -> Result<(RegisteredPreparing, watch::Receiver<Option<StopPreparing>>), Failure> {
        let services = self.workspaces.services();
        let row = self.plan.find_or_create(services, self.workspaces.workspace_client(), &self.request).await?;
        let new = NewSession { state: SessionState::Preparing, ..self.new_session() };
        if let Err(cause) = services.store.create_session_with(new, None, key).await {
            let of = (self.request.workspace.clone(), false);
            self.workspaces.discard(self.session_id, of).await;
            return Err(store::failure(&cause));
        }
        self.keep_secrets();
        let settings = &services.settings;
        let feed = EventFeed::new(self.session_id, settings.replay_events, settings.replay_bytes, 0);
        let (key, user_id) = (self.request.workspace.clone(), self.request.user_id.clone());
        let registered = services.preparing.register(key, user_id, feed.clone(), services.metrics.clone());
        feed.announce(None, EventKind::Status, &json!({"state": SessionState::Preparing}));
        self.begun = Some(Begun { row, feed });
        Ok(registered)
    }

    /// The row of the session before its agent is known.
    fn new_session(&self) -> NewSession {
        let request = &self.request;
        NewSession {
            session_id: self.session_id,
            key: request.workspace.clone(),
            workspace: None,
            user_id: request.user_id.clone(),
            limited_token: request.limited.map(|it| it.token_id),
            agent: request.agent.clone().unwrap_or_else(|| DEFAULT_AGENT.to_owned()),
            mode: request.mode,
            enable_git_ops: request.enable_git_ops,
            state: SessionState::Idle,
            agent_session_id: None,
            mcp_servers: request.mcp_servers.without_secrets(),
            protocol: Route::Acp,
            protocol_version: None,
            agent_facts: None,
            choices: Choices::default(),
            connection: None,
            own_folder: self.plan.own_folder(None),
            now: self.workspaces.services().clock.now(),
        }
    }

    fn keep_secrets(&self) {
        let services = self.workspaces.services();
        services.given_servers.keep(self.session_id, &self.request.mcp_servers);
        if let Some(token) = self.request.github_token.clone() {
            services.given_tokens.keep(self.session_id.0, token);
        }
    }

    /// [`Self::finish`], unless the preparation is stopped; then the clone ends, and an agent that was just started too.
    async fn finish_unless_stopped(
        self,
        mut stop: watch::Receiver<Option<StopPreparing>>,
    ) -> Result<Opened, (Failure, Option<Stopped>)> {
        let (workspaces, session_id) = (self.workspaces.clone(), self.session_id);
        let mut work = Box::pin(self.finish());
        let cause = tokio::select! {
            biased;
            ended = &mut work => return ended.map_err(|failure| (failure, None)),
            cause = stop.wait_for(Option::is_some) => cause.ok().and_then(|cause| *cause),
        };
        drop(work);
        match cause {
            Some(StopPreparing::Drain) => {
                let detail = "the service stopped while the session was being prepared; load it to prepare it again";
                Err((Failure::new(ErrorCode::Draining, detail), Some(Stopped::Drained)))
            }
            Some(StopPreparing::Close) | None => {
                let _ = workspaces.close_live(session_id).await;
                let detail = "the session was closed while it was being prepared";
                Err((Failure::new(ErrorCode::SessionClosed, detail), Some(Stopped::Closed)))
            }
        }
    }

    /// Prepares the folder, starts the agent and writes the row, in this order.
    async fn finish(mut self) -> Result<Opened, Failure> {
        let workspaces = self.workspaces.clone();
        let services = workspaces.services();
        let (row, feed) = self.begun.take().map(|begun| (begun.row, begun.feed)).unzip();
        let is_stored = row.is_some();
        let on_progress = |progress| {
            if let Some(feed) = &feed {
                feed.announce(None, EventKind::Preparation, &progress);
            }
        };
        let (of, client) = ((&self.request, self.session_id), workspaces.workspace_client());
        let placed = open::place(services, client, of, (&self.plan, row), &on_progress).await?;
        let past = Past { feed, is_stored, ..Past::default() };
        let placing = Placing::first(&self.request, self.session_id, self.plan.is_isolated());
        let (supervised, spec) = workspaces.place(&placed.row, &placed.prepared, placing).await?;
        let seat = self.seat.take().ok_or_else(|| Failure::new(ErrorCode::Internal, "the session has no seat"))?;
        let facts = start(&supervised, spec, past, seat, None).await?;
        self.complete(&supervised, placed.prepared, facts, is_stored).await
    }

    /// Writes the row of a session whose agent is ready.
    async fn complete(
        self,
        supervised: &Supervised,
        prepared: PreparedWorkspace,
        facts: Arc<AgentFacts>,
        is_stored: bool,
    ) -> Result<Opened, Failure> {
        let (workspaces, session_id) = (&self.workspaces, self.session_id);
        let (services, protocol, chosen) =
            (workspaces.services(), workspaces.carrier_of(session_id), workspaces.chosen(session_id));
        let new = NewSession {
            agent_session_id: kept_session(&facts, protocol),
            protocol,
            protocol_version: facts.protocol_version,
            agent_facts: Some(facts.for_row(chosen.offers())),
            choices: chosen.choices().clone(),
            connection: (protocol == Route::Acp).then(|| kept_connection(&facts)),
            own_folder: self.plan.own_folder(Some(prepared.path.clone())),
            ..self.new_session()
        };
        let (key, kind) = (self.request.workspace.clone(), (protocol, self.plan.is_isolated()));
        let servers = (self.request.mcp_servers.without_secrets(), Vec::new());
        let opened = workspaces.ready(session_id, key.clone(), prepared, facts, kind, servers);
        let answer = self.once.as_ref().map(|once| (once.answer_of)(&opened));
        let bound = self.once.as_ref().zip(answer.clone()).map(|(once, answer)| once.key_with(answer));
        let deferred = workspaces.live(session_id).and_then(|live| live.shared.take_deferred_notice());
        let written = match is_stored {
            true => services.store.complete_session_with(new, deferred, bound).await,
            false => services.store.create_session_with(new, deferred, bound).await,
        };
        if let Err(cause) = written {
            workspaces.abandon(supervised, session_id, &key.installation_id, self.once.as_ref()).await;
            return Err(store::failure(&cause));
        }
        workspaces.mark_stored(session_id);
        self.keep_secrets();
        let now_chosen = workspaces.chosen(session_id);
        if now_chosen.choices() != chosen.choices() {
            // Changed by the agent while the row was written.
            let choices = Some(now_chosen.choices().clone());
            let change = SessionChange { choices, ..SessionChange::new(session_id) };
            services.store.update_session(change).await.map_err(|cause| store::failure(&cause))?;
        }
        Ok((opened, answer))
    }
}
