//! Turns that a label or a mention at GitHub starts: takes deliveries into the queue, and works them off.
//!
//! A delivery is on disk before GitHub gets its answer, and each step of the work is on disk before the next one. Session and
//! turn are opened with keys made of the delivery's id, and the answer has it as a hidden mark: after a crash at any point the
//! work continues, and nothing is made twice. The rules are in [`crate::domain::automation::trigger`].

mod github;
mod turns;
mod worker;

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use secrecy::SecretString;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use super::workspaces::Workspaces;
use crate::{
    config::{Config, Reloadable, sections},
    domain::{
        automation::trigger::{
            DeliveryState, EventKind, IgnoreReason, Rejection, Request, Rules, decide, payload::Payload,
        },
        ids::{InstallationId, WorkspaceKey},
        turn::outcome::{ErrorCode, Failure},
    },
    github::{App, Github, GithubLimits},
    store::{self, DeliveryRow, QueueLimits, QueuedDelivery},
    telemetry::labels::{DeliveryOutcome, DeliveryResult},
    webhook::{content_hash, is_signed},
};

/// Handle to the queue. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Triggers(Arc<Inner>);

struct Inner {
    workspaces: Workspaces,
    app: Arc<App>,
    github: Github,
    settings: sections::Github,
    secret: Reloadable<SecretString>,
    /// Time after which a hibernated session is not continued.
    max_age: Duration,
    /// The App's own name, once an answer of GitHub has named it.
    name: Mutex<Option<String>>,
    /// A delivery was queued.
    queued: Notify,
    /// True once the service stops.
    stopping: watch::Receiver<bool>,
}

/// Verdict on a delivery, for the answer to GitHub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// The test of a new webhook.
    Pong,
    Queued,
    /// A delivery with this id or this body arrived before.
    Duplicate,
    Ignored(IgnoreReason),
}

impl Triggers {
    /// Makes the queue, if it is switched on. The settings were checked.
    pub(crate) fn new(
        workspaces: Workspaces,
        app: Option<Arc<App>>,
        config: &Config,
        stopping: watch::Receiver<bool>,
    ) -> Option<Self> {
        let settings = &config.github.triggers;
        let secret = settings.webhook_secret.clone().filter(|_| settings.enabled)?;
        Some(Self(Arc::new(Inner {
            workspaces,
            app: app?,
            github: Github::new(GithubLimits::default()),
            settings: config.github.clone(),
            secret: Reloadable::new(secret),
            max_age: Duration::from_secs(config.session.max_age_s),
            name: Mutex::default(),
            queued: Notify::new(),
            stopping,
        })))
    }

    /// Authenticates later deliveries with another secret.
    pub(crate) fn use_secret(&self, secret: SecretString) {
        self.0.secret.set(secret);
    }

    /// True if `signature` is that of the body.
    pub(crate) fn is_authentic(&self, body: &[u8], signature: &str) -> bool {
        is_signed(&self.0.secret.get(), body, signature)
    }

    /// Counts a delivery that is not authentic.
    pub(crate) fn refused(&self, event: EventKind) {
        self.count(event, DeliveryResult::Refused);
    }

    /// Takes an authentic delivery: decides about it, and queues it if it may start a turn. Sends nothing to GitHub.
    ///
    /// # Errors
    /// `invalid_request` for a malformed payload; `queue_full`; `draining`; or the failure of the database. A repetition is
    /// safe.
    ///
    /// # Cancel safety
    /// A dropped future may have queued.
    pub(crate) async fn receive(
        &self,
        delivery_id: Uuid,
        event: EventKind,
        body: &[u8],
    ) -> Result<Received, Failure> {
        let received = self.take(delivery_id, event, body).await;
        let result = match &received {
            Ok(Received::Pong) => DeliveryResult::Pong,
            Ok(Received::Queued) => DeliveryResult::Queued,
            Ok(Received::Duplicate) => DeliveryResult::Duplicate,
            Ok(Received::Ignored(_)) => DeliveryResult::Ignored,
            Err(failure) if failure.code == ErrorCode::QueueFull => DeliveryResult::Full,
            Err(failure) if failure.code == ErrorCode::InvalidRequest => DeliveryResult::Malformed,
            Err(_) => DeliveryResult::Failed,
        };
        self.count(event, result);
        let (event, result) = (event.as_str(), result.as_str());
        match &received {
            // No text of the payload: the repository may be of a foreign tenant.
            Ok(Received::Ignored(reason)) => {
                let reason = reason.as_str();
                tracing::debug!(marker = "[GITHUB-AUTO]", %delivery_id, event, result, reason, "delivery of GitHub");
            }
            Ok(_) => tracing::info!(marker = "[GITHUB-AUTO]", %delivery_id, event, result, "delivery of GitHub"),
            // The answer is logged with its code.
            Err(_) => {}
        }
        received
    }

    async fn take(&self, delivery_id: Uuid, event: EventKind, body: &[u8]) -> Result<Received, Failure> {
        match event {
            EventKind::Ping => return Ok(Received::Pong),
            EventKind::Other => return Ok(Received::Ignored(IgnoreReason::Event)),
            EventKind::Issues | EventKind::IssueComment | EventKind::PullRequest => {}
        }
        let payload =
            Payload::parse(body).map_err(|cause| Failure::new(ErrorCode::InvalidRequest, cause.to_string()))?;
        let Some(tenant) = payload.installation_id().and_then(|id| self.tenant_of(id)) else {
            return Ok(Received::Ignored(IgnoreReason::NoInstallation));
        };
        if !self.is_on() {
            return Ok(Received::Ignored(IgnoreReason::AutomationOff));
        }
        let mention = self.mention();
        let rules = Rules { label: &self.0.settings.triggers.label, mention: mention.as_deref() };
        let request = match decide(event, payload, rules, self.0.workspaces.services().clock.now()) {
            Ok(request) => request,
            Err(Rejection::Ignored(reason)) => return Ok(Received::Ignored(reason)),
            Err(Rejection::Malformed(member)) => {
                let detail = format!("payload: {member} is missing or malformed");
                return Err(Failure::new(ErrorCode::InvalidRequest, detail));
            }
        };
        self.0.workspaces.admission()?;
        self.queue((delivery_id, &content_hash(body)), event, tenant, request).await
    }

    async fn queue(
        &self,
        (delivery_id, content_hash): (Uuid, &str),
        event: EventKind,
        installation_id: InstallationId,
        request: Request,
    ) -> Result<Received, Failure> {
        let services = self.0.workspaces.services();
        let named = request.workspace().parse();
        let workspace_id =
            named.map_err(|_| Failure::new(ErrorCode::Internal, "the name of the workspace is malformed"))?;
        let now = services.clock.now();
        let row = DeliveryRow {
            delivery_id,
            key: WorkspaceKey { installation_id, workspace_id },
            session_id: None,
            prompt_id: None,
            event,
            state: DeliveryState::Queued,
            reason: None,
            request,
            version: 0,
            attempts: 0,
            due: Some(now),
            created: now,
            updated: now,
        };
        let settings = &self.0.settings.triggers;
        let limits = QueueLimits { of_all: settings.max_queued, of_tenant: settings.max_queued_of_tenant };
        let queued = services
            .store
            .queue_delivery(&row, content_hash, limits)
            .await
            .map_err(|cause| store::failure(&cause))?;
        match queued {
            QueuedDelivery::New => {
                self.0.queued.notify_one();
                Ok(Received::Queued)
            }
            QueuedDelivery::Duplicate => Ok(Received::Duplicate),
            QueuedDelivery::Full => {
                let detail = "as many deliveries are queued as `[github.triggers]` allows";
                Err(Failure::new(ErrorCode::QueueFull, detail))
            }
        }
    }

    /// The tenant to which an installation is bound, unless it is being erased.
    fn tenant_of(&self, installation: u64) -> Option<InstallationId> {
        let services = self.0.workspaces.services();
        let tenant = services.tenants.bound_to(installation)?;
        (!services.store.erasures().is_erasing_tenant(&tenant)).then_some(tenant)
    }

    fn is_on(&self) -> bool {
        self.0.settings.enabled && !self.0.settings.kill_switch
    }

    /// The name to mention, if it is known.
    fn mention(&self) -> Option<String> {
        let set = &self.0.settings.triggers.mention;
        if set.is_empty() { self.0.name.lock().clone() } else { Some(set.clone()) }
    }

    fn count(&self, event: EventKind, result: DeliveryResult) {
        self.0.workspaces.services().metrics.github_delivery(DeliveryOutcome { event, result });
    }
}
