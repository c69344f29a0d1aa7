//! Calls of the session API. The answer to a prompt arrives after the commit of its turn.

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::json;

use super::{
    conversation::{BenchError, Conversation, TurnError, Turned},
    http::{HttpAnswer, HttpLink},
    program::Program,
};

/// Tenant of every benchmark.
pub(crate) const INSTALLATION: &str = "bench";
/// Status of a new session.
const CREATED: u16 = 201;
/// Status of most answers.
pub(crate) const OK: u16 = 200;
/// Part of an unexpected answer that is shown.
const SHOWN_CHARS: usize = 200;

/// Opens a session in a workspace; returns its id.
pub(crate) async fn open_session(supervisor: &Program, workspace: String) -> Result<String, BenchError> {
    let mut link = HttpLink::new(supervisor.address());
    open_on(&mut link, &workspace).await.map_err(BenchError::Open)
}

/// Opens a session over an existing link.
pub(crate) async fn open_on(link: &mut HttpLink, workspace: &str) -> Result<String, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Ready {
        session_id: String,
    }
    let body = json!({"workspaceId": workspace, "installationId": INSTALLATION}).to_string();
    let answer = link.post("/acp/session/new", body.into()).await?;
    let ready: Ready = read(&answer, CREATED)?;
    Ok(ready.session_id)
}

/// Closes a session over an existing link.
pub(crate) async fn close_on(link: &mut HttpLink, session: &str) -> Result<(), String> {
    let body = json!({"sessionId": session}).to_string();
    let answer = link.post("/acp/session/close", body.into()).await?;
    read::<IgnoredAny>(&answer, OK).map(|_| ())
}

/// A conversation with a session of the supervisor that repeats one prompt.
pub(crate) fn converse(supervisor: &Program, session: &str, prompt: &str) -> Box<dyn Conversation> {
    let prompt = json!({"sessionId": session, "prompt": prompt}).to_string().into();
    Box::new(HttpConversation { link: HttpLink::new(supervisor.address()), prompt })
}

/// A session on a connection of its own.
struct HttpConversation {
    link: HttpLink,
    prompt: Bytes,
}

impl Conversation for HttpConversation {
    fn turn(&mut self) -> BoxFuture<'_, Result<Turned, TurnError>> {
        async {
            let answer = self.link.post("/acp/session/prompt", self.prompt.clone()).await;
            check(&answer.map_err(TurnError::Failed)?).map(|()| Turned::default())
        }
        .boxed()
    }
}

fn check(answer: &HttpAnswer) -> Result<(), TurnError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Outcome {
        stop_reason: String,
    }
    let outcome: Outcome = read(answer, OK).map_err(TurnError::Failed)?;
    match outcome.stop_reason.as_str() {
        "completed" => Ok(()),
        other => Err(TurnError::Failed(format!("stopReason is {other}"))),
    }
}

/// Parses the body of an answer with the expected status.
pub(crate) fn read<'a, T: Deserialize<'a>>(answer: &'a HttpAnswer, expected: u16) -> Result<T, String> {
    if answer.status != expected {
        return Err(format!("status {}: {}", answer.status, shown(&answer.body)));
    }
    serde_json::from_slice(&answer.body).map_err(|cause| format!("{cause} in: {}", shown(&answer.body)))
}

/// The beginning of an unexpected answer, for its error message.
pub(crate) fn shown(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().take(SHOWN_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_completed_turn_with_status_200_counts() {
        let answer = |status, body: &str| HttpAnswer { status, has_retry_after: false, body: body.to_owned().into() };
        assert_eq!(check(&answer(200, r#"{"stopReason":"completed","usage":{}}"#)), Ok(()));
        for (status, body, expected) in [
            (502, r#"{"stopReason":"completed"}"#, "status 502"),
            (200, r#"{"stopReason":"error"}"#, "stopReason is error"),
            (200, "oops", "in: oops"),
            (202, "{}", "status 202"),
        ] {
            let Err(TurnError::Failed(error)) = check(&answer(status, body)) else { panic!("{body} counts") };
            assert!(error.contains(expected), "{error}");
        }
    }
}
