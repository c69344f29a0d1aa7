//! From the configuration to who posts operators' alerts.

use std::sync::Arc;

use super::AppError;
use crate::{
    actors::{notifications::webhook::Webhooks, services::Services},
    config::sections::Webhook,
    webhook::{Poster, PosterOptions, Signer},
};

/// Nothing where no webhook is configured.
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
