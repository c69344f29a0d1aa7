//! The calls of the HTTP session API.

use std::time::Duration;

use bytes::Bytes;
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
    contract::{keep_alive::CLIENT_KEEP_ALIVE, problem::Problem, runtime::WorkspaceDiff},
    domain::text,
};

/// Time limit for connecting; a running server accepts at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for a call that starts no agent.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// TCP keep-alive, which detects a vanished peer while a turn is silent.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Attempts of a call that is safe to repeat.
const ATTEMPTS: u32 = 3;
/// The wait after the first attempt; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const USER_AGENT: &str = concat!("lumilink/", env!("CARGO_PKG_VERSION"));
/// The largest answer, in bytes: a page of the largest transcript entries stays below.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// A client of one server. Clones share their connections.
///
/// Calls that only read are attempted three times. Calls that change something are repeated only if no connection could
/// be made, so nothing is done twice.
#[derive(Debug, Clone)]
pub(crate) struct ApiClient {
    http: reqwest::Client,
    base: url::Url,
    headers: header::HeaderMap,
}

impl ApiClient {
    /// Makes a client without connecting. Proxies of the environment are ignored.
    ///
    /// # Errors
    /// The token is not a valid header value, or the system has no TLS roots.
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
            .pool_idle_timeout(CLIENT_KEEP_ALIVE)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| ClientError::Setup(causes(&error)))?;
        Ok(Self { http, base: settings.url.clone(), headers })
    }

    /// Headers of every request: user agent and token.
    pub(super) fn headers(&self) -> &header::HeaderMap {
        &self.headers
    }

    /// Opens a session, without a timeout: cloning and starting the agent may take long.
    ///
    /// # Errors
    /// See [`ClientError`]; after `Lost` the session may exist.
    pub(crate) async fn new_session(&self, request: &NewSession) -> Result<OpenedSession, ClientError> {
        self.post(&["acp", "session", "new"], request, None).await
    }

    /// Runs one turn and streams its events. Safe to repeat with the same request.
    ///
    /// # Errors
    /// The turn did not start; the stream reports later errors.
    pub(crate) async fn prompt_stream(&self, request: &PromptRequest) -> Result<TurnStream, ClientError> {
        let call = self.call(Method::POST, &["acp", "session", "prompt"]);
        let call =
            call.header("Idempotency-Key", &request.key).header(header::ACCEPT, "text/event-stream").json(request);
        let response = refuse_problems(self.send_keyed(call).await?).await?;
        Ok(TurnStream::new(response))
    }

    /// Cancels the running turn; `false` if none was running.
    pub(crate) async fn cancel(&self, session_id: &str, prompt_id: Option<&str>) -> Result<bool, ClientError> {
        let mut body = json!({"sessionId": session_id});
        if let Some(prompt_id) = prompt_id {
            body["promptId"] = prompt_id.into();
        }
        let answer: Value = self.post(&["acp", "session", "cancel"], &body, Some(CALL_TIMEOUT)).await?;
        Ok(answer["cancelled"] == true)
    }

    pub(crate) async fn close(&self, session_id: &str) -> Result<(), ClientError> {
        let body = json!({"sessionId": session_id});
        let response = self.send_once(self.call(Method::POST, &["acp", "session", "close"]).json(&body)).await?;
        refuse_problems(response).await.map(drop)
    }

    /// Loads a session, without a timeout: starting the agent may take long.
    pub(crate) async fn load(&self, session_id: &str) -> Result<Value, ClientError> {
        self.post(&["acp", "session", "load"], &json!({"sessionId": session_id}), None).await
    }

    /// Answers a pending permission request.
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

    pub(crate) async fn session(&self, session_id: &str) -> Result<Value, ClientError> {
        self.get(&["acp", "session", session_id], &()).await
    }

    pub(crate) async fn sessions(&self, filter: &SessionFilter) -> Result<Page, ClientError> {
        self.get(&["acp", "sessions"], filter).await
    }

    /// One page of a transcript, oldest entry first.
    pub(crate) async fn transcript(
        &self,
        session_id: &str,
        cursor: Option<&str>,
        limit: Option<u32>,
    ) -> Result<Page, ClientError> {
        let query = json!({"cursor": cursor, "limit": limit});
        self.get(&["acp", "session", session_id, "transcript"], &query).await
    }

    pub(crate) async fn diff(&self, session_id: &str) -> Result<WorkspaceDiff, ClientError> {
        self.get(&["acp", "session", session_id, "diff"], &()).await
    }

    /// State of a turn, and its result once it has ended.
    pub(crate) async fn prompt_state(&self, prompt_id: &str) -> Result<PromptStatus, ClientError> {
        self.get(&["acp", "prompt", prompt_id], &()).await
    }

    pub(crate) async fn health(&self) -> Result<Value, ClientError> {
        self.get(&["acp", "health"], &()).await
    }

    pub(crate) async fn protocol(&self, workspace: &str, installation: Option<&str>) -> Result<Value, ClientError> {
        self.get(&["acp", "workspaces", workspace, "protocol"], &json!({"installationId": installation})).await
    }

    /// Changes the route of a workspace: `rollback`, `restore`, or its defaults and pin. Idempotent.
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

    /// One page of audit records, or the summary.
    pub(crate) async fn audit(&self, records: &str, query: &impl Serialize) -> Result<Value, ClientError> {
        self.get(&["acp", "audit", records], query).await
    }

    /// One page of audit records as CSV, and the cursor of the next page.
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

    /// Opens a file of any size. Each part must follow within the time of a call.
    pub(super) async fn download(&self, path: &[&str], query: &impl Serialize) -> Result<Download, ClientError> {
        let mut url = self.address(path);
        url.query_pairs_mut().extend_pairs(to_query(query)?);
        let sent = tokio::time::timeout(CALL_TIMEOUT, self.send_once(self.http.get(url))).await;
        let response = refuse_problems(sent.map_err(|_| silent(&self.base))??).await?;
        Ok(Download { response, base: self.base.clone() })
    }

    /// Explains the route of a session, with its history.
    pub(crate) async fn explain(&self, session_id: &str) -> Result<Value, ClientError> {
        self.get(&["acp", "session", session_id, "explain"], &()).await
    }

    fn call(&self, method: Method, path: &[&str]) -> RequestBuilder {
        self.http.request(method, self.address(path))
    }

    pub(super) fn address(&self, path: &[&str]) -> url::Url {
        let mut url = self.base.clone();
        // The settings refuse a URL that cannot be a base.
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
        let (mut wait, mut attempts) = (FIRST_WAIT, 0);
        loop {
            attempts += 1;
            let call = self.http.get(url.clone()).timeout(CALL_TIMEOUT);
            let answer = match self.send(call).await {
                Ok(response) => decode(response).await,
                Err(error) => Err(error),
            };
            match answer {
                Err(error) if error.is_transient() && attempts < ATTEMPTS => {
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

    /// Safe to repeat: what was deleted once stays deleted.
    pub(super) async fn delete<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, ClientError> {
        decode(self.send_keyed(self.call(Method::DELETE, path).timeout(CALL_TIMEOUT)).await?).await
    }

    pub(super) async fn put<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let call = self.call(Method::PUT, path).timeout(CALL_TIMEOUT).json(body);
        decode(self.send_once(call).await?).await
    }

    /// Erases what a path names, without a timeout: large tenants take long.
    pub(crate) async fn erase(&self, path: &[&str], installation: Option<&str>) -> Result<Value, ClientError> {
        let mut url = self.address(path);
        if let Some(installation) = installation {
            url.query_pairs_mut().append_pair("installationId", installation);
        }
        decode(self.send_once(self.http.delete(url)).await?).await
    }

    /// For calls that must not be done twice: repeated only if no connection could be made.
    async fn send_once(&self, call: RequestBuilder) -> Result<Response, ClientError> {
        self.send_while(call, |error| matches!(error, ClientError::Unreachable { .. })).await
    }

    /// For calls with an `Idempotency-Key`.
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
        for _ in 1..ATTEMPTS {
            // Bodies are in memory, so a call can always be cloned.
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

/// A file that is being received.
pub(crate) struct Download {
    response: Response,
    base: url::Url,
}

impl Download {
    /// The next part; `None` at the end.
    ///
    /// # Errors
    /// The connection was lost, or the server sent nothing for the time of a call.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        let chunk = tokio::time::timeout(CALL_TIMEOUT, self.response.chunk()).await;
        chunk.map_err(|_| silent(&self.base))?.map_err(|error| lost_or_unreachable(&error, &self.base))
    }
}

fn silent(base: &url::Url) -> ClientError {
    let cause = format!("no data for {} s", CALL_TIMEOUT.as_secs());
    ClientError::Lost { url: base.to_string(), cause }
}

/// Members as query pairs, without nulls.
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
