//! Announces that sessions expire.
//!
//! Readers know by the clock when a hibernated session has expired; this writes it down and says so.

use std::{sync::Arc, time::Duration};

use super::services::Parts;
use crate::{domain::session::lifecycle::sweep_period, store::StoreError};

/// Sessions that expire in one transaction: it holds up other writes for some milliseconds.
const SESSIONS_PER_WRITE: usize = 100;

/// Sweeps for ever. Cancel-safe.
pub async fn sweep(parts: Arc<Parts>, max_age: Duration) {
    let mut period = tokio::time::interval(sweep_period(max_age));
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        while let Ok(SESSIONS_PER_WRITE) = expire_some(&parts, max_age).await {}
    }
}

/// How many expired. What the database does not take now, it is asked for again.
async fn expire_some(parts: &Parts, max_age: Duration) -> Result<usize, StoreError> {
    let now = parts.clock.now();
    let expired = parts.store.expire_sessions(now, max_age, SESSIONS_PER_WRITE).await?;
    parts.metrics.sessions_expired(expired.len());
    for session in &expired {
        tracing::info!(
            marker = "[ACP]",
            session_id = %session.session_id,
            workspace = %session.key,
            unused_s = now.since(session.last_used).as_secs(),
            "session expired; a load brings it back"
        );
    }
    Ok(expired.len())
}
