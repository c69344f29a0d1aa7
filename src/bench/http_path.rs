//! The whole path: plain prompts over HTTP to a supervisor; each answer comes after the commit.

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::json;

use super::{
    conversation::{BenchError, Conversation, TurnError, Turned},
    http_link::{HttpAnswer, HttpLink},
    plan::Plan,
    program::Program,
};

/// The tenant of everything that is measured.
pub(crate) const INSTALLATION: &str = "bench";
/// The status of a new session, and of a turn.
const CREATED: u16 = 201;
const OK: u16 = 200;
/// How much of an answer that is none is told.
const SHOWN_CHARS: usize = 200;

/// Opens one session in a workspace and makes a conversation of it.
pub(crate) async fn open(
    supervisor: &Program,
    workspace: &str,
    plan: &Plan,
) -> Result<Box<dyn Conversation>, BenchError> {
    let session = open_session(supervisor, workspace.to_owned()).await?;
    Ok(converse(supervisor, &session, &plan.prompt))
}

/// Opens one session in a workspace; gives its id.
pub(crate) async fn open_session(supervisor: &Program, workspace: String) -> Result<String, BenchError> {
    let mut link = HttpLink::new(supervisor.address());
    open_on(&mut link, &workspace).await.map_err(BenchError::Open)
}

/// The same on a link that is kept. Errors are sentences.
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

/// Closes a session. Errors are sentences.
pub(crate) async fn close_on(link: &mut HttpLink, session: &str) -> Result<(), String> {
    let body = json!({"sessionId": session}).to_string();
    let answer = link.post("/acp/session/close", body.into()).await?;
    read::<IgnoredAny>(&answer, OK).map(|_| ())
}

/// A conversation with a session, which always says the same.
pub(crate) fn converse(supervisor: &Program, session: &str, prompt: &str) -> Box<dyn Conversation> {
    let prompt = json!({"sessionId": session, "prompt": prompt}).to_string().into();
    Box::new(HttpConversation { link: HttpLink::new(supervisor.address()), prompt })
}

/// A session of the supervisor, on a connection of its own.
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

/// Reads an answer that has to have a status.
pub(crate) fn read<'a, T: Deserialize<'a>>(answer: &'a HttpAnswer, wanted: u16) -> Result<T, String> {
    let shown = || String::from_utf8_lossy(&answer.body).chars().take(SHOWN_CHARS).collect::<String>();
    if answer.status != wanted {
        return Err(format!("status {}: {}", answer.status, shown()));
    }
    serde_json::from_slice(&answer.body).map_err(|cause| format!("{cause} in: {}", shown()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_completed_turn_with_status_200_counts() {
        let answer = |status, body: &str| HttpAnswer { status, has_retry_after: false, body: body.to_owned().into() };
        assert_eq!(check(&answer(200, r#"{"stopReason":"completed","usage":{}}"#)), Ok(()));
        for (status, body, said) in [
            (502, r#"{"stopReason":"completed"}"#, "status 502"),
            (200, r#"{"stopReason":"error"}"#, "stopReason is error"),
            (200, "oops", "in: oops"),
            (202, "{}", "status 202"),
        ] {
            let Err(TurnError::Failed(error)) = check(&answer(status, body)) else { panic!("{body} counts") };
            assert!(error.contains(said), "{error}");
        }
    }
}
