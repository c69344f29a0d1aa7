//! Opens a session once for each `Idempotency-Key`, however often it is requested.

use super::{OpenOnce, Workspaces, open::OpenSession};
use crate::{
    domain::{redaction::RedactedJson, session::lifecycle::SessionState, turn::outcome::Failure},
    store::{self, Idempotency, OpenedBefore},
};

/// The answer to a request with a key.
pub(crate) struct AnsweredOnce {
    pub session_id: String,
    /// As JSON.
    pub answer: String,
    /// True if it was given before the session was ready.
    pub is_accepted: bool,
    /// True if an earlier request opened the session.
    pub is_replay: bool,
}

/// The answer of the session that a key has opened.
///
/// # Errors
/// `idempotency_mismatch` if the request has another body.
fn replay(before: OpenedBefore, idempotency: &Idempotency) -> Result<AnsweredOnce, Failure> {
    if before.body_hash != idempotency.body_hash {
        return Err(Failure::idempotency_mismatch());
    }
    let answer: serde_json::Value = serde_json::from_str(&before.answer).unwrap_or_default();
    let is_accepted = answer["state"] == SessionState::Preparing.as_str();
    Ok(AnsweredOnce { session_id: before.session_id, answer: before.answer, is_accepted, is_replay: true })
}

impl Workspaces {
    /// Opens a session, or returns the answer of the one that the tenant opened with this key within 24 h. Concurrent
    /// requests with a key wait for each other. A failure does not bind the key.
    ///
    /// # Errors
    /// Those of [`Workspaces::open`], and `idempotency_mismatch` for another body.
    pub(crate) async fn open_once(&self, request: OpenSession, once: OpenOnce) -> Result<AnsweredOnce, Failure> {
        self.admission()?;
        let (tenant, key) = (request.workspace.installation_id.clone(), once.idempotency.key.clone());
        let _only_one = self.0.opening.begin(&(tenant.clone(), key.clone())).await;
        let before = || async {
            let services = &self.0.services;
            let found = services.store.opened_with_key(tenant.clone(), key.clone(), services.clock.now()).await;
            found.map_err(|cause| store::failure(&cause))
        };
        if let Some(before) = before().await? {
            return replay(before, &once.idempotency);
        }
        let opened = match once.is_async {
            false => self.open_with(request, Some(&once)).await.map(|(ready, answer)| (ready.session_id, answer)),
            true => self.accept(request, Some(&once)).await.map(|it| (it.session_id, Some(RedactedJson::of(&it)))),
        };
        match opened {
            Ok((session_id, answer)) => {
                let answer = answer.map_or_else(String::new, RedactedJson::into_string);
                Ok(AnsweredOnce {
                    session_id: session_id.to_string(),
                    answer,
                    is_accepted: once.is_async,
                    is_replay: false,
                })
            }
            // Another process with this database may have been faster. A closed session is that of this request: its
            // commit reported an error and took effect nevertheless.
            Err(failure) => match before().await? {
                Some(before) if self.is_open(&before).await => replay(before, &once.idempotency),
                _ => Err(failure),
            },
        }
    }

    async fn is_open(&self, opened: &OpenedBefore) -> bool {
        let Ok(id) = opened.session_id.parse() else { return false };
        let row = self.0.services.store.session(id).await;
        row.is_ok_and(|row| row.is_some_and(|row| row.state != SessionState::Closed))
    }
}
