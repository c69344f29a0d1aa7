//! Writes when tokens were last used.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use crate::{
    actors::{handles::client_tokens::ClientTokens, services::Services},
    store::Store,
};

/// Interval between writes: a token's last use is at most this much older than its last request.
const PERIOD: Duration = Duration::from_secs(60);
/// Tokens in one transaction.
const TOKENS_PER_WRITE: usize = 500;

/// Writes the uses of tokens, and counts those that expire soon, once a minute; never returns.
///
/// # Cancel safety
/// Uses since the last write are lost.
pub(crate) async fn record(services: Arc<Services>) {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        services.metrics.tokens_expire(services.tokens.expiring(services.clock.now()));
        record_now(&services.store, &services.tokens).await;
    }
}

/// Writes the uses of tokens since the last write. Uses that the database refuses are lost; it then refuses everything
/// else, too.
pub(crate) async fn record_now(store: &Store, tokens: &ClientTokens) {
    for used in tokens.take_used().chunks(TOKENS_PER_WRITE) {
        if let Err(cause) = store.record_token_use(used.to_vec()).await {
            tracing::warn!(marker = "[ACP]", %cause, tokens = used.len(), "last use of tokens was not written");
        }
    }
}
