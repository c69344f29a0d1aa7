//! Notifications: the hub of their subscribers, and the webhook that posts operators' alerts.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinHandle;

use super::AppError;
use crate::{
    actors::{
        handles::session_progress::TelemetrySource,
        notifications::{
            NotificationHub,
            hub::HubServices,
            webhook::{WebhookStop, Webhooks},
        },
        services::Services,
        upkeep::keeper::Keeper,
    },
    config::{Config, sections::Webhook},
    store::Store,
    webhook::{Poster, PosterOptions, Signer},
};

/// Maximum wait for subscribers to close their sockets.
const CLOSE_WAIT: Duration = Duration::from_secs(3);

pub(super) struct NotificationsHandle {
    pub hub: NotificationHub,
}

/// Starts the hub; `is_shared` where other processes may write to the database.
pub(super) fn start_notifications(
    config: &Config,
    store: Store,
    progress: TelemetrySource,
    keeper: Keeper,
    is_shared: bool,
) -> NotificationsHandle {
    let services = HubServices::new(store, progress, is_shared);
    NotificationsHandle { hub: NotificationHub::start(services, keeper, config.notifications.max_subscribers) }
}

impl NotificationsHandle {
    /// Closes the sockets of all subscribers, for at most 3 s.
    pub(super) async fn stop(&self) {
        self.hub.close(CLOSE_WAIT).await;
    }
}

/// The poster of operators' alerts.
pub(super) struct WebhooksHandle {
    stop: WebhookStop,
    pub(super) poster: Option<Arc<Poster>>,
    /// `None` where no webhook is configured.
    posting: Option<JoinHandle<()>>,
}

/// Starts posting, where a webhook is configured.
pub(super) fn start_webhooks(webhooks: Option<Webhooks>, keeper: Keeper) -> WebhooksHandle {
    let stop = WebhookStop::default();
    let poster = webhooks.as_ref().map(|webhooks| webhooks.poster.clone());
    let posting = webhooks.map(|webhooks| webhooks.start(stop.clone(), keeper));
    WebhooksHandle { stop, poster, posting }
}

impl WebhooksHandle {
    /// Lets the post that is out end, for at most `flush`. The next start posts the rest.
    pub(super) async fn stop(self, flush: Duration) {
        self.stop.close();
        if let Some(posting) = self.posting
            && tokio::time::timeout(flush, posting).await.is_err()
        {
            tracing::warn!(marker = "[ACP]", "webhook post did not end; the next start repeats it");
        }
    }
}

/// Checks the webhook settings; `None` where no webhook is configured.
pub(super) fn webhooks(config: &Webhook, services: &Services) -> Result<Option<Webhooks>, AppError> {
    let Some(url) = &config.url else { return Ok(None) };
    let failed = |cause: &dyn std::error::Error| AppError::Webhook(cause.to_string());
    let secrets = config.secret.iter().chain(&config.previous_secret);
    let signer = Signer::new(secrets).map_err(|cause| failed(&cause))?;
    let poster =
        Poster::new(PosterOptions { url, signer, timeout: config.timeout() }).map_err(|cause| failed(&cause))?;
    Ok(Some(Webhooks {
        store: services.store.clone(),
        metrics: services.metrics.clone(),
        clock: services.clock.clone(),
        poster: Arc::new(poster),
        rules: config.rules(),
        timeout: config.timeout(),
    }))
}
