//! The calls of the HTTP session API.

use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use secrecy::ExposeSecret;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    clean::clean_line,
    error::{ClientError, causes, lost_or_unreachable},
    requests::{NewSession, OpenedSession, Page, PermissionChoice, PromptRequest, PromptStatus, SessionFilter},
    stream::TurnStream,
};
use crate::{
    config::ClientSettings,
    contract::{problem::Problem, runtime::WorkspaceDiff},
    domain::text,
};

/// How long a connection may take to come up: a server that is there answers at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a call may take that starts nothing; nothing that is looked up takes long.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Finds a peer that vanished without a word while a turn is silent.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How often a call is tried that may be repeated.
const TRIES: u32 = 3;
/// The wait after the first try; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const USER_AGENT: &str = concat!("lumilink/", env!("CARGO_PKG_VERSION"));
/// The largest answer, in bytes: a page of the largest transcript entries stays below.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// A client of one server. Cheap to clone; clones share their connections.
///
/// Calls that only read are tried three times. Calls that change something are repeated only where the
/// connection could not be made, so nothing is done twice.
#[derive(Debug, Clone)]
pub(crate) struct ApiClient {
    http: reqwest::Client,
    base: url::Url,
    headers: header::HeaderMap,
}

impl ApiClient {
    /// Makes a client; connects to nothing yet. The server's address is used as it is, without a proxy.
    ///
    /// # Errors
    /// Where the token cannot stand in a header, or the system has no TLS roots.
    pub(crate) fn new(settings: &ClientSettings) -> Result<Self, ClientError> {
        let mut headers = header::HeaderMap::new();
        headers.insert(header::USER_AGENT, header::HeaderValue::from_static(USER_AGENT));
        if let Some(token) = &settings.token {
            let value = format!("Bearer {}", token.expose_secret());
            let mut value = header::HeaderValue::try_from(value)
                .map_err(|_| ClientError::Setup("the token has characters that a header cannot carry".into()))?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        let http = reqwest::Client::builder()
            .default_headers(headers.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(KEEPALIVE)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| ClientError::Setup(causes(&error)))?;
        Ok(Self { http, base: settings.url.clone(), headers })
    }

    /// What goes with every request: who asks, and the token.
    pub(super) fn headers(&self) -> &header::HeaderMap {
        &self.headers
    }

    /// Opens a session. Takes as long as the clone and the agent's start take.
    ///
    /// # Errors
    /// See [`ClientError`]; after `Lost` the session may exist.
    pub(crate) async fn new_session(&self, request: &NewSession) -> Result<OpenedSession, ClientError> {
        self.post(&["acp", "session", "new"], request, None).await
    }

    /// Runs one turn and streams what happens. Safe to repeat with the same request.
    ///
    /// # Errors
    /// Where the turn did not begin; later ones come out of the stream.
    pub(crate) async fn prompt_stream(&self, request: &PromptRequest) -> Result<TurnStream, ClientError> {
        let call = self.call(Method::POST, &["acp", "session", "prompt"]);
        let call =
            call.header("Idempotency-Key", &request.key).header(header::ACCEPT, "text/event-stream").json(request);
        let response = refuse_problems(self.send_keyed(call).await?).await?;
        Ok(TurnStream::new(response))
    }

    /// Cancels the turn that runs; `false` where none did.
    pub(crate) async fn cancel(&self, session_id: &str, prompt_id: Option<&str>) -> Result<bool, ClientError> {
        let mut body = json!({"sessionId": session_id});
        if let Some(prompt_id) = prompt_id {
            body["promptId"] = prompt_id.into();
        }
        let answer: Value = self.post(&["acp", "session", "cancel"], &body, Some(CALL_TIMEOUT)).await?;
        Ok(answer["cancelled"] == true)
    }

    /// Ends a session and frees what it holds.
    pub(crate) async fn close(&self, session_id: &str) -> Result<(), ClientError> {
        let body = json!({"sessionId": session_id});
        let response = self.send_once(self.call(Method::POST, &["acp", "session", "close"]).json(&body)).await?;
        refuse_problems(response).await.map(drop)
    }

    /// Brings a session back. Takes as long as the agent's start takes.
    pub(crate) async fn load(&self, session_id: &str) -> Result<Value, ClientError> {
        self.post(&["acp", "session", "load"], &json!({"sessionId": session_id}), None).await
    }

    /// Answers a permission request that waits.
    pub(crate) async fn permission(
        &self,
        session_id: &str,
        request_id: &str,
        choice: &PermissionChoice,
    ) -> Result<(), ClientError> {
        let mut body = json!({"sessionId": session_id, "requestId": request_id});
        match choice {
            PermissionChoice::Option(id) => body["optionId"] = id.as_str().into(),
            PermissionChoice::Cancelled => body["cancelled"] = true.into(),
        }
        let call = self.call(Method::POST, &["acp", "session", "permission"]).timeout(CALL_TIMEOUT).json(&body);
        refuse_problems(self.send_once(call).await?).await.map(drop)
    }

    /// Where a session stands.
    pub(crate) async fn session(&self, session_id: &str) -> Result<Value, ClientError> {
        self.get(&["acp", "session", session_id], &()).await
    }

    /// One page of the sessions.
    pub(crate) async fn sessions(&self, filter: &SessionFilter) -> Result<Page, ClientError> {
        self.get(&["acp", "sessions"], filter).await
    }

    /// One page of a transcript, oldest first: the page after the one that gave `cursor`.
    pub(crate) async fn transcript(
        &self,
        session_id: &str,
        cursor: Option<&str>,
        limit: Option<u32>,
    ) -> Result<Page, ClientError> {
        let query = json!({"cursor": cursor, "limit": limit});
        self.get(&["acp", "session", session_id, "transcript"], &query).await
    }

    /// What changed in a session's workspace.
    pub(crate) async fn diff(&self, session_id: &str) -> Result<WorkspaceDiff, ClientError> {
        self.get(&["acp", "session", session_id, "diff"], &()).await
    }

    /// Where a turn stands, and its result once it ended.
    pub(crate) async fn prompt_state(&self, prompt_id: &str) -> Result<PromptStatus, ClientError> {
        self.get(&["acp", "prompt", prompt_id], &()).await
    }

    /// How the server is.
    pub(crate) async fn health(&self) -> Result<Value, ClientError> {
        self.get(&["acp", "health"], &()).await
    }

    /// What carries a workspace's turns, and why.
    pub(crate) async fn protocol(&self, workspace: &str, installation: Option<&str>) -> Result<Value, ClientError> {
        self.get(&["acp", "workspaces", workspace, "protocol"], &json!({"installationId": installation})).await
    }

    /// Changes a workspace's route: by `rollback` or `restore`, else by its settings. All of these may be repeated.
    pub(crate) async fn change_protocol(
        &self,
        workspace: &str,
        installation: Option<&str>,
        verb: Option<&str>,
        body: &Value,
    ) -> Result<Value, ClientError> {
        let method = if verb.is_some() { Method::POST } else { Method::PUT };
        let mut url = self.address(&["acp", "workspaces", workspace, verb.unwrap_or("protocol")]);
        if let Some(installation) = installation {
            url.query_pairs_mut().append_pair("installationId", installation);
        }
        let call = self.http.request(method, url).timeout(CALL_TIMEOUT).json(body);
        decode(self.send_once(call).await?).await
    }

    /// One page of records of the audit, or the summary as the only one.
    pub(crate) async fn audit(&self, records: &str, query: &impl Serialize) -> Result<Value, ClientError> {
        self.get(&["acp", "audit", records], query).await
    }

    /// One page of records of the audit as CSV, and the cursor of the next one.
    pub(crate) async fn audit_csv(
        &self,
        records: &str,
        query: &impl Serialize,
    ) -> Result<(String, Option<String>), ClientError> {
        let mut url = self.address(&["acp", "audit", records]);
        url.query_pairs_mut().extend_pairs(to_query(query)?).append_pair("format", "csv");
        let call = self.http.get(url).timeout(CALL_TIMEOUT);
        let response = refuse_problems(self.send_once(call).await?).await?;
        let next = response.headers().get(header::LINK).and_then(|link| link.to_str().ok());
        let next = next.and_then(|link| next_cursor(&self.base, link));
        Ok((String::from_utf8_lossy(&bounded_body(response).await?).into_owned(), next))
    }

    /// Why a session's turns go the way they go.
    pub(crate) async fn explain(&self, session_id: &str) -> Result<Value, ClientError> {
        self.get(&["acp", "session", session_id, "explain"], &()).await
    }

    fn call(&self, method: Method, path: &[&str]) -> RequestBuilder {
        self.http.request(method, self.address(path))
    }

    pub(super) fn address(&self, path: &[&str]) -> url::Url {
        let mut url = self.base.clone();
        // An address that cannot be a base was refused by the settings.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }

    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &impl Serialize,
    ) -> Result<T, ClientError> {
        let mut url = self.address(path);
        let query = to_query(query)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let (mut wait, mut tries) = (FIRST_WAIT, 0);
        loop {
            tries += 1;
            let call = self.http.get(url.clone()).timeout(CALL_TIMEOUT);
            let answer = match self.send(call).await {
                Ok(response) => decode(response).await,
                Err(error) => Err(error),
            };
            match answer {
                Err(error) if error.is_transient() && tries < TRIES => {
                    tokio::time::sleep(wait).await;
                    wait *= 2;
                }
                answer => return answer,
            }
        }
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
        timeout: Option<Duration>,
    ) -> Result<T, ClientError> {
        let mut call = self.call(Method::POST, path).json(body);
        if let Some(timeout) = timeout {
            call = call.timeout(timeout);
        }
        decode(self.send_once(call).await?).await
    }

    /// For calls that must not be done twice: repeated only where no connection came up.
    async fn send_once(&self, call: RequestBuilder) -> Result<Response, ClientError> {
        self.send_while(call, |error| matches!(error, ClientError::Unreachable { .. })).await
    }

    /// For calls with a key.
    async fn send_keyed(&self, call: RequestBuilder) -> Result<Response, ClientError> {
        self.send_while(call, |error| matches!(error, ClientError::Unreachable { .. } | ClientError::Lost { .. }))
            .await
    }

    async fn send_while(
        &self,
        call: RequestBuilder,
        may_repeat: impl Fn(&ClientError) -> bool,
    ) -> Result<Response, ClientError> {
        let mut wait = FIRST_WAIT;
        for _ in 1..TRIES {
            // Bodies are bytes in memory, so a call can always be copied.
            let Some(copy) = call.try_clone() else { break };
            match self.send(copy).await {
                Err(error) if may_repeat(&error) => {
                    tokio::time::sleep(wait).await;
                    wait *= 2;
                }
                answer => return answer,
            }
        }
        self.send(call).await
    }

    async fn send(&self, call: RequestBuilder) -> Result<Response, ClientError> {
        call.send().await.map_err(|error| lost_or_unreachable(&error, &self.base))
    }
}

/// Flat members as pairs; what is absent stays away.
pub(super) fn to_query(query: &impl Serialize) -> Result<Vec<(String, String)>, ClientError> {
    let Value::Object(members) = serde_json::to_value(query)? else { return Ok(Vec::new()) };
    let pairs = members.into_iter().filter_map(|(name, value)| match value {
        Value::Null => None,
        Value::String(text) => Some((name, text)),
        other => Some((name, other.to_string())),
    });
    Ok(pairs.collect())
}

/// The cursor in a `Link` to the next page.
fn next_cursor(base: &url::Url, link: &str) -> Option<String> {
    let target = link.strip_prefix('<')?.split_once('>')?.0;
    let url = base.join(target).ok()?;
    url.query_pairs().find(|(name, _)| name == "cursor").map(|(_, cursor)| cursor.into_owned())
}

async fn refuse_problems(response: Response) -> Result<Response, ClientError> {
    if response.status().is_success() {
        return Ok(response);
    }
    let (status, url) = (response.status(), response.url().to_string());
    let body = bounded_body(response).await?;
    match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) => Err(ClientError::Problem(Box::new(problem))),
        Err(_) => Err(unexpected(status, url, &body)),
    }
}

pub(super) fn unexpected(status: StatusCode, url: String, body: &[u8]) -> ClientError {
    let body = text::cut(&clean_line(&String::from_utf8_lossy(body)), 200);
    ClientError::Unexpected { url: clean_line(&url), status: status.as_u16(), body }
}

async fn decode<T: DeserializeOwned>(response: Response) -> Result<T, ClientError> {
    let response = refuse_problems(response).await?;
    Ok(serde_json::from_slice(&bounded_body(response).await?)?)
}

async fn bounded_body(mut response: Response) -> Result<Vec<u8>, ClientError> {
    let url = response.url().clone();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| lost_or_unreachable(&error, &url))? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(unexpected(response.status(), url.to_string(), b"the answer is too large"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
mod tests;
