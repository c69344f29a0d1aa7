//! A small GitHub on loopback, so that automation can be tried without one: git over smart HTTP for one bare repository, the
//! operations of the REST API that automation uses, and a page for each issue and pull request.
//!
//! Branches are real and in the bare repository; issues and pull requests live as long as this process. Everything that
//! changes needs the token of the demo.

mod git;
mod issues;

use std::{io, net::TcpListener, path::Path, sync::Arc};

use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    dev::ServerHandle,
    http::{Method, StatusCode, header},
    web,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use self::{
    git::BareRepository,
    issues::{Issues, Refused},
};
use crate::runtime::workspaces::git::Git;

/// The repository.
pub(super) const REPOSITORY: &str = "demo/hello";
/// Largest request, in bytes: the pushes of a demo have some kilobytes.
const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;

/// The address of a server that does not run yet.
pub(super) struct Reserved {
    listener: TcpListener,
    origin: String,
}

impl Reserved {
    /// Takes a free port.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn new() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let origin = format!("http://{}", listener.local_addr()?);
        Ok(Self { listener, origin })
    }

    /// Root of the API, for `[github] api_url`.
    pub(super) fn api_url(&self) -> String {
        format!("{}/api/v3", self.origin)
    }

    /// Host and port, for `[workspaces] git_hosts`.
    pub(super) fn host(&self) -> &str {
        self.origin.trim_start_matches("http://")
    }

    /// Makes the repository `demo/hello` with one commit in `folder`, in place of an earlier one, and serves it.
    ///
    /// # Errors
    /// git is missing or fails, or the folder cannot be written.
    pub(super) async fn serve(self, folder: &Path, git: Git) -> io::Result<LocalGithub> {
        let Self { listener, origin } = self;
        let repository = BareRepository::create(folder.join("hello.git"), git).await?;
        let token = SecretString::from(format!("demo_{}", Uuid::new_v4().simple()));
        let issues = Mutex::new(Issues::new(&origin));
        let shared = Arc::new(Shared { token, origin, repository, issues });
        let of_server = shared.clone();
        let server = HttpServer::new(move || {
            App::new()
                .app_data(web::Data::from(of_server.clone()))
                .app_data(web::PayloadConfig::new(MAX_BODY_BYTES))
                .default_service(web::to(answer))
        })
        .workers(1)
        .disable_signals()
        .shutdown_timeout(1)
        .listen(listener)?
        .run();
        let handle = server.handle();
        actix_web::rt::spawn(server);
        Ok(LocalGithub { shared, server: handle })
    }
}

/// The running server. [`LocalGithub::stop`] ends it.
pub(super) struct LocalGithub {
    shared: Arc<Shared>,
    server: ServerHandle,
}

struct Shared {
    token: SecretString,
    origin: String,
    repository: BareRepository,
    issues: Mutex<Issues>,
}

impl LocalGithub {
    /// Ends the server.
    pub(super) async fn stop(self) {
        self.server.stop(false).await;
    }

    /// Address of the repository.
    pub(super) fn url(&self) -> String {
        format!("{}/{REPOSITORY}", self.shared.origin)
    }

    /// The token that may push and change issues.
    pub(super) fn token(&self) -> &SecretString {
        &self.shared.token
    }

    /// The folder of the bare repository.
    pub(super) fn folder(&self) -> &Path {
        self.shared.repository.folder()
    }

    /// The commit of a branch.
    pub(super) async fn head(&self, branch: &str) -> Option<String> {
        self.shared.repository.head(branch).await
    }

    /// The page of a pull request, without its changes; empty without it.
    pub(super) fn page_of_pull_request(&self, number: u64) -> String {
        self.shared.issues.lock().page(&number.to_string()).map(|(text, _)| text).unwrap_or_default()
    }

    /// The number of issues and pull requests.
    pub(super) fn open_items(&self) -> usize {
        self.shared.issues.lock().len()
    }
}

async fn answer(request: HttpRequest, body: Bytes, shared: web::Data<Shared>) -> HttpResponse {
    // A page of another site, whose name was changed to this address, sends its own name.
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    if host != Some(shared.origin.trim_start_matches("http://")) {
        return problem(404, "Not Found");
    }
    let path: Vec<&str> = request.path().trim_matches('/').split('/').collect();
    let is_write = !matches!(*request.method(), Method::GET | Method::HEAD);
    match path.as_slice() {
        ["api", "v3", rest @ ..] => match is_known(&request, &shared.token) {
            true => call(request.method(), rest, &request, &body, &shared).await,
            false => problem(401, "Bad credentials"),
        },
        ["demo", "hello" | "hello.git", service @ ("info" | "git-upload-pack" | "git-receive-pack"), ..] => {
            if !is_known(&request, &shared.token) {
                let mut refused = problem(401, "Bad credentials");
                let realm = header::HeaderValue::from_static("Basic realm=\"demo\"");
                refused.headers_mut().insert(header::WWW_AUTHENTICATE, realm);
                return refused;
            }
            shared.repository.serve(&request, service, body.to_vec()).await
        }
        ["demo", "hello", rest @ ..] if !is_write => page(rest, &shared).await,
        _ => problem(404, "Not Found"),
    }
}

/// True with the token as bearer, or as the password that git sends.
fn is_known(request: &HttpRequest, token: &SecretString) -> bool {
    let header =
        request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let given = match header.split_once(' ') {
        Some((kind, value)) if kind.eq_ignore_ascii_case("bearer") || kind.eq_ignore_ascii_case("token") => {
            value.to_owned()
        }
        Some((kind, value)) if kind.eq_ignore_ascii_case("basic") => {
            let decoded = BASE64_STANDARD.decode(value).unwrap_or_default();
            let text = String::from_utf8(decoded).unwrap_or_default();
            text.split_once(':').map(|(_, password)| password.to_owned()).unwrap_or_default()
        }
        _ => return false,
    };
    given.as_bytes().ct_eq(token.expose_secret().as_bytes()).into()
}

/// Answers an operation of the REST API.
async fn call(method: &Method, path: &[&str], request: &HttpRequest, body: &[u8], shared: &Shared) -> HttpResponse {
    let parts = match path {
        ["user"] => return ok(&json!({"id": 1, "login": "demo", "name": "Demo"})),
        ["repos", "demo", "hello", parts @ ..] => parts,
        _ => return problem(404, "Not Found"),
    };
    let (get, post) = (method == Method::GET, method == Method::POST);
    let body: Value = if body.is_empty() { json!({}) } else { serde_json::from_slice(body).unwrap_or_default() };
    let query = |name: &str| {
        let pairs = url::form_urlencoded::parse(request.query_string().as_bytes());
        pairs.into_owned().find(|(key, _)| key == name).map(|(_, value)| value)
    };
    let is_creation = post && matches!(parts, ["issues" | "pulls"] | ["issues", _, "comments"]);
    let made = match parts {
        [] if get => Ok(shared.facts()),
        ["git", "ref", name @ ..] if get => shared.reference(&decoded(name)).await,
        ["rules", "branches", ..] if get => Ok(json!([])),
        ["issues"] if get => Ok(shared.issues.lock().list()),
        ["issues"] if post => shared.issues.lock().open(&body, None),
        ["issues", number] if get => shared.issues.lock().get(number, false),
        ["issues", number, "comments"] if get => shared.issues.lock().comments(number),
        ["issues", number, "comments"] if post => shared.issues.lock().comment(number, &body),
        ["issues", number, "labels"] if post => shared.issues.lock().label(number, &body),
        ["issues", number, "assignees"] if post => shared.issues.lock().get(number, false),
        ["pulls"] if get => Ok(shared.issues.lock().pulls(query("head").as_deref())),
        ["pulls"] if post => shared.open_pull_request(&body).await,
        ["pulls", number] if get => shared.issues.lock().get(number, true),
        ["pulls", number] if method == Method::PATCH => shared.issues.lock().change(number, &body),
        ["pulls", number, "requested_reviewers"] if post => shared.issues.lock().get(number, true),
        _ => Err(Refused::Missing),
    };
    match made {
        Ok(value) if is_creation => HttpResponse::Created().json(value),
        Ok(value) => ok(&value),
        Err(refused) => problem_of(&refused),
    }
}

/// The text of the rest of a path. Clients encode the slashes of branches.
fn decoded(parts: &[&str]) -> String {
    // `+` is itself in a path.
    let pair = format!("x={}", parts.join("/").replace('+', "%2B"));
    url::form_urlencoded::parse(pair.as_bytes()).next().map(|(_, value)| value.into_owned()).unwrap_or_default()
}

impl Shared {
    fn facts(&self) -> Value {
        json!({
            "id": 1, "full_name": REPOSITORY, "default_branch": git::MAIN, "html_url": format!("{}/{REPOSITORY}", self.origin),
            "archived": false, "disabled": false, "fork": false, "private": true, "has_issues": true,
            "permissions": {"admin": false, "push": true, "pull": true},
        })
    }

    /// A branch with its commit; `name` is `heads/` and the branch.
    async fn reference(&self, name: &str) -> Result<Value, Refused> {
        let branch = name.strip_prefix("heads/").ok_or(Refused::Missing)?;
        let sha = self.repository.head(branch).await.ok_or(Refused::Missing)?;
        Ok(json!({"ref": format!("refs/heads/{branch}"), "object": {"sha": sha}}))
    }

    /// Opens a pull request for an existing branch.
    async fn open_pull_request(&self, body: &Value) -> Result<Value, Refused> {
        let of = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let (head, base) = (of("head"), of("base"));
        for (name, field) in [(&head, "head"), (&base, "base")] {
            if self.repository.head(name).await.is_none() {
                return Err(Refused::Invalid { resource: "PullRequest", field });
            }
        }
        self.issues.lock().open(body, Some((head, base)))
    }
}

/// A page for people.
async fn page(path: &[&str], shared: &Shared) -> HttpResponse {
    let text = match path {
        [] => Ok(shared.issues.lock().overview(shared.repository.folder())),
        ["issues", number] => shared.issues.lock().page(number).map(|(text, _)| text),
        ["pull", number] => {
            let found = shared.issues.lock().page(number);
            match found {
                Ok((text, Some((head, base)))) => {
                    Ok(format!("{text}\n{}", shared.repository.diff(&base, &head).await))
                }
                Ok((_, None)) => Err(Refused::Missing),
                Err(refused) => Err(refused),
            }
        }
        _ => Err(Refused::Missing),
    };
    match text {
        // Text, since titles and comments may hold markup of an agent.
        Ok(text) => HttpResponse::Ok()
            .insert_header((header::CONTENT_TYPE, "text/plain; charset=utf-8"))
            .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
            .body(text),
        Err(refused) => problem_of(&refused),
    }
}

fn ok(value: &Value) -> HttpResponse {
    HttpResponse::Ok().json(value)
}

fn problem(status: u16, message: &str) -> HttpResponse {
    answer_of(status, &json!({"message": message}))
}

fn answer_of(status: u16, body: &Value) -> HttpResponse {
    HttpResponse::build(StatusCode::from_u16(status).unwrap_or_default()).json(body)
}

fn problem_of(refused: &Refused) -> HttpResponse {
    let error = match refused {
        Refused::Missing => return problem(404, "Not Found"),
        Refused::Full => return problem(503, "The demo has no room for more"),
        Refused::Exists(head) => {
            let message = format!("A pull request already exists for demo:{head}.");
            json!({"resource": "PullRequest", "code": "custom", "message": message})
        }
        Refused::Invalid { resource, field } => json!({"resource": resource, "field": field, "code": "invalid"}),
    };
    answer_of(422, &json!({"message": "Validation Failed", "errors": [error]}))
}
