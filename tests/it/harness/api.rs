//! A client of the HTTP API that checks every response against the program's OpenAPI document.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, OnceLock, RwLock},
    time::Duration,
};

use super::{
    DEADLINE, Value, block_on,
    contract::{Contract, Operation, with_word},
    json,
    sse::{Event, Sse},
    wait_for,
};

/// A client of one program. Clones share the record of called operations.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    base: Arc<RwLock<String>>,
    token: Option<String>,
    client: reqwest::Client,
    contract: Arc<OnceLock<Contract>>,
    called: Arc<Mutex<BTreeSet<Operation>>>,
}

/// A response, with its whole body.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// The status.
    pub status: u16,
    /// The header lines.
    pub headers: reqwest::header::HeaderMap,
    /// The body as text.
    pub text: String,
    /// The body as JSON; null if it is not JSON.
    pub body: Value,
}

/// A request builder.
#[must_use = "a call does nothing until it is sent"]
pub(crate) struct Call {
    api: Api,
    method: String,
    path: String,
    request: reqwest::RequestBuilder,
}

impl Api {
    /// A client of the program at `base`.
    pub(crate) fn new(base: &str, token: Option<String>) -> Self {
        // No proxy and no redirects, so that a test sees the program's own responses.
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(120))
            .build()
            .expect("an HTTP client");
        let (contract, called) = (Arc::default(), Arc::default());
        Self { base: Arc::new(RwLock::new(base.to_owned())), token, client, contract, called }
    }

    /// `http://ADDR:PORT`.
    pub(crate) fn base(&self) -> String {
        self.base.read().expect("a lock").clone()
    }

    /// Changes the base URL after a restart, for all clones.
    pub(crate) fn move_to(&self, base: &str) {
        base.clone_into(&mut self.base.write().expect("a lock"));
    }

    /// Begins a request.
    pub(crate) fn call(&self, method: &str, path: &str) -> Call {
        let url = format!("{}{path}", self.base());
        let mut request = self.client.request(method.parse().expect("a method"), url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        Call { api: self.clone(), method: method.to_owned(), path: path.to_owned(), request }
    }

    /// `GET`.
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.call("GET", path).send()
    }

    /// `POST` with a JSON body.
    pub(crate) fn post(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path).json(&body).send()
    }

    /// `GET` of an event stream.
    pub(crate) fn events(&self, path: &str) -> Sse {
        self.call("GET", path).header("accept", "text/event-stream").stream()
    }

    /// The program's OpenAPI document, fetched once.
    pub(crate) fn contract(&self) -> &Contract {
        self.contract.get_or_init(|| Contract::new(self.document()))
    }

    /// Takes answers with `word` in place of a listed word: a row that another version wrote. The document asks readers
    /// to tolerate it. To be called before the first request.
    pub(crate) fn tolerate_word(&self, word: &str) {
        let contract = Contract::new(with_word(self.document(), word));
        self.contract.set(contract).expect("no request was made");
    }

    fn document(&self) -> Value {
        let mut request = self.client.get(format!("{}/openapi.json", self.base()));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let document = block_on(async { request.send().await?.error_for_status()?.json::<Value>().await });
        document.expect("GET /openapi.json")
    }

    /// The documented operations that were called through this client and answered with a status below 400.
    pub(crate) fn called(&self) -> BTreeSet<Operation> {
        self.called.lock().expect("a lock").clone()
    }

    /// Opens a session in a workspace of tenant `tenant-1`.
    pub(crate) fn open(&self, workspace: &str) -> Session {
        self.open_with(json!({"workspaceId": workspace, "installationId": "tenant-1"}))
    }

    /// Opens a session in a workspace pinned to ACP. For tests with repeated crashes, which would otherwise roll the
    /// workspace back to the fallback.
    pub(crate) fn open_on_acp(&self, workspace: &str) -> Session {
        let session = self.open(workspace);
        let pin = json!({"pin": {"protocol": "acp"}, "actor": "a test", "reason": "it is about ACP"});
        self.call("PUT", &format!("/acp/workspaces/{workspace}/protocol")).json(&pin).send().expect(200);
        session
    }

    /// Opens a session with the given request body.
    pub(crate) fn open_with(&self, body: Value) -> Session {
        Session::of(self.clone(), self.post("/acp/session/new", body).expect(201))
    }

    /// Records a WebSocket that another client opened.
    pub(crate) fn opened(&self, path: &str) {
        self.record("GET", path, 101);
    }

    fn record(&self, method: &str, path: &str, status: u16) {
        if let Some(operation) = self.contract().operation(method, path)
            && status < 400
        {
            self.called.lock().expect("a lock").insert(operation);
        }
    }
}

impl Call {
    /// Adds a header.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    /// Sets a JSON body.
    pub(crate) fn json(mut self, body: &Value) -> Self {
        self.request = self.request.json(body);
        self
    }

    /// Sets a raw body.
    pub(crate) fn body(mut self, body: impl Into<String>) -> Self {
        self.request = self.request.body(body.into());
        self
    }

    /// Sends it, then reads and checks the response.
    pub(crate) fn send(self) -> Answer {
        let place = format!("{} {}", self.method, self.path);
        self.try_send().unwrap_or_else(|cause| panic!("{place}: {cause:?}"))
    }

    /// [`Self::send`] to a program that may be down or exit before it responds.
    pub(crate) fn try_send(self) -> Result<Answer, reqwest::Error> {
        let Self { api, method, path, request } = self;
        let (status, headers, text) = block_on(async {
            let response = request.send().await?;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            Ok::<_, reqwest::Error>((status, headers, response.text().await?))
        })?;
        let answer = Answer { status, headers, body: serde_json::from_str(&text).unwrap_or_default(), text };
        answer.check_form(&method, &path);
        api.contract().check(&method, &path, status, &answer.media_type(), &answer.text);
        api.record(&method, &path, status);
        Ok(answer)
    }

    /// Sends it and returns the status without checking the response. For load generators: the check takes longer
    /// than the program takes to respond.
    pub(crate) fn status(self) -> u16 {
        let place = format!("{} {}", self.method, self.path);
        let status = block_on(async {
            let response = self.request.send().await?;
            let status = response.status().as_u16();
            // Read to the end, so that the connection is reused.
            response.bytes().await.map(|_| status)
        });
        status.unwrap_or_else(|cause| panic!("{place}: {cause:?}"))
    }

    /// Sends it and reads the response as an event stream.
    pub(crate) fn stream(self) -> Sse {
        self.try_stream().unwrap_or_else(|cause| panic!("{cause}"))
    }

    /// [`Self::stream`] from a program that may be down or respond with something else.
    pub(crate) fn try_stream(self) -> Result<Sse, String> {
        let Self { api, method, path, request } = self;
        let response =
            block_on(async { request.send().await }).map_err(|cause| format!("{method} {path}: {cause:?}"))?;
        let status = response.status().as_u16();
        let media_type = header(response.headers(), "content-type");
        if !media_type.starts_with("text/event-stream") {
            return Err(format!("{method} {path} -> {status} {media_type}"));
        }
        assert!(response.headers().contains_key("x-request-id"), "a stream has a request id too");
        api.record(&method, &path, status);
        Ok(Sse::new(response))
    }
}

fn header(headers: &reqwest::header::HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

impl Answer {
    /// The value of a header; empty if it is absent.
    pub(crate) fn header(&self, name: &str) -> String {
        header(&self.headers, name)
    }

    /// Fails the test if the status differs; returns the body.
    pub(crate) fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.body
    }

    /// Fails the test if this is not a problem with this status and code; returns the body.
    pub(crate) fn problem(self, status: u16, code: &str) -> Value {
        assert_eq!((self.status, self.body["code"].as_str()), (status, Some(code)), "{}", self.text);
        self.body
    }

    fn media_type(&self) -> String {
        self.header("content-type").split(';').next().unwrap_or_default().trim().to_owned()
    }

    /// Checks the rules that hold for every response: a request id, and a problem document from status 400 on.
    fn check_form(&self, method: &str, path: &str) {
        let place = format!("{method} {path} -> {}: {}", self.status, self.text);
        let request_id = self.header("x-request-id");
        assert!(!request_id.is_empty(), "no X-Request-Id: {place}");
        if self.status >= 400 {
            assert_eq!(self.media_type(), "application/problem+json", "{place}");
            assert_eq!(self.body["status"].as_u64(), Some(u64::from(self.status)), "{place}");
            assert_eq!(self.body["requestId"].as_str(), Some(request_id.as_str()), "{place}");
            assert!(self.body["detail"].as_str().is_some_and(|it| it.len() > 10), "no useful `detail`: {place}");
        }
    }
}

/// An open session.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    /// The client to call it with.
    pub api: Api,
    /// Its id.
    pub id: String,
    /// The response to `new`.
    pub opened: Value,
}

impl Session {
    fn of(api: Api, opened: Value) -> Self {
        let id = opened["sessionId"].as_str().expect("`sessionId` is a string").to_owned();
        Self { api, id, opened }
    }

    /// The folder of its workspace.
    pub(crate) fn path(&self) -> std::path::PathBuf {
        self.opened["workspace"]["path"].as_str().expect("`workspace.path` is a string").into()
    }

    /// Begins a prompt.
    pub(crate) fn call(&self, prompt: impl Into<Value>) -> Call {
        let prompt: Value = prompt.into();
        self.api.call("POST", "/acp/session/prompt").json(&json!({"sessionId": self.id, "prompt": prompt}))
    }

    /// Runs a turn and returns the response.
    pub(crate) fn prompt(&self, prompt: &str) -> Answer {
        self.call(prompt).send()
    }

    /// Runs a turn that has to complete; returns the result.
    pub(crate) fn completes(&self, prompt: &str) -> Value {
        let result = self.prompt(prompt).expect(200);
        assert_eq!(result["stopReason"], "completed", "{result}");
        result
    }

    /// Runs a turn that has to complete; returns the agent's message.
    pub(crate) fn says(&self, prompt: &str) -> String {
        self.completes(prompt)["meta"]["message"].as_str().expect("`meta.message` is a string").to_owned()
    }

    /// Runs a turn and streams its events.
    pub(crate) fn streams(&self, prompt: &str) -> Sse {
        self.call(prompt).header("accept", "text/event-stream").stream()
    }

    /// Starts a turn without waiting for its end; returns its id.
    pub(crate) fn starts(&self, prompt: &str) -> String {
        let answer = self.call(prompt).header("prefer", "respond-async").send();
        let location = answer.header("location");
        let body = answer.expect(202);
        let id = body["promptId"].as_str().expect("`promptId` is a string").to_owned();
        assert_eq!(location, format!("/acp/prompt/{id}"));
        id
    }

    /// Waits for the end of a turn; returns the body of `GET /acp/prompt/{id}`.
    pub(crate) fn ends(&self, prompt_id: &str) -> Value {
        let path = format!("/acp/prompt/{prompt_id}");
        wait_for(DEADLINE, "the turn ends", || {
            let body = self.api.get(&path).expect(200);
            let state = body["state"].as_str().expect("`state` is a string");
            (!["accepted", "running"].contains(&state)).then_some(body)
        })
    }

    /// Starts a turn and waits for the agent's first update; returns the turn's id and the stream.
    pub(crate) fn is_busy_with(&self, prompt: &str) -> (String, Sse) {
        let mut stream = self.streams(prompt);
        let seen = stream.until("an update", |event| event.name == "update");
        let id = seen.iter().find_map(|event| event.data["promptId"].as_str()).expect("a prompt id").to_owned();
        (id, stream)
    }

    /// Cancels the running turn; returns whether there was one.
    pub(crate) fn cancel(&self) -> bool {
        let body = self.post("cancel", json!({}));
        body.expect(200)["cancelled"].as_bool().expect("`cancelled` is a boolean")
    }

    /// Posts to `/acp/session/{action}` with the session's id in the body.
    pub(crate) fn post(&self, action: &str, mut body: Value) -> Answer {
        body["sessionId"] = json!(self.id);
        self.api.post(&format!("/acp/session/{action}"), body)
    }

    /// The body of `GET /acp/session/{id}`.
    pub(crate) fn state(&self) -> Value {
        self.get("").expect(200)
    }

    /// Waits until the session is in `state`.
    pub(crate) fn becomes(&self, state: &str) -> Value {
        let mut last = Value::Null;
        let what = format!("session state `{state}`");
        wait_for(DEADLINE, &what, || {
            last = self.state();
            (last["state"] == state).then(|| last.clone())
        })
    }

    /// `GET` of one of the session's routes, such as `/transcript`.
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.api.get(&format!("/acp/session/{}{path}", self.id))
    }

    /// All entries of the transcript, read page by page.
    pub(crate) fn transcript(&self) -> Vec<Value> {
        let (mut entries, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self.get(&format!("/transcript{cursor}")).expect(200);
            entries.extend(page["entries"].as_array().expect("`entries` is an array").iter().cloned());
            match page["nextCursor"].as_str() {
                Some(next) => cursor = format!("?cursor={next}"),
                None => return entries,
            }
        }
    }

    /// The transcript as (eventType, text).
    pub(crate) fn conversation(&self) -> Vec<(String, String)> {
        let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        self.transcript().iter().map(|entry| (text(entry, "eventType"), text(entry, "text"))).collect()
    }
}

/// The result that ends a stream, checked against the document.
pub(crate) fn result_of<'a>(api: &Api, events: &'a [Event]) -> &'a Value {
    let last = events.last().expect("a stream has events");
    assert_eq!(last.name, "result", "a stream of a turn ends with its result: {last:?}");
    // The data is the result or a session event with the result as its update.
    let result = if last.data.get("stopReason").is_some() { &last.data } else { &last.data["update"] };
    api.contract().check_component("ACPSessionResult", result);
    result
}
