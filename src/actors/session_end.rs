//! Writes down where a session ended.

use super::{handles::session::SessionShared, services::Parts, session::notices};
use crate::{
    domain::{session::lifecycle::SessionState, turn::outcome::Failure},
    store::{SessionChange, StoreError},
};

/// Writes down where a session ended; the user of one that failed for good is told in the same transaction. Where the
/// database is away for longer than its patience, that is the error, and all of it is written when it is back.
pub async fn write_down(
    parts: &Parts,
    shared: &SessionShared,
    state: SessionState,
    failure: Option<Failure>,
) -> Result<(), StoreError> {
    let (id, now) = (shared.spec.session_id, parts.clock.now());
    let kept = {
        let view = shared.view();
        SessionChange {
            agent_session_id: view.agent_session_id.clone(),
            restarts: Some(view.restarts),
            last_used: Some(view.last_used),
            ..SessionChange::new(id)
        }
    };
    // The result of a turn that ended with the session is told once it is written, which is before the first of these
    // two. Only then is the last event known; until the second, the row says that it is not.
    let kept = parts.store.settle_session(kept).await;
    let last_event_id = kept.is_ok().then(|| shared.feed.last_id());
    let told = failure.as_ref().filter(|_| state == SessionState::Failed);
    let telling = told.map(|failure| notices::of_failed_session(&shared.spec, failure.code, now));
    let end = SessionChange { state: Some(state), failure, last_event_id, ..SessionChange::new(id) };
    let ended = match telling {
        Some(telling) => parts.store.settle_session_and_tell(end, shared.spec.workspace.clone(), telling, now).await,
        None => parts.store.settle_session(end).await,
    };
    kept.and(ended)
}
