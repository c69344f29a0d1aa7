//! A hostile stand-in of GitHub on loopback: REST API below `/api/v3` and git over smart HTTP on one origin.
//!
//! State and refs are real: a push through `git http-backend` changes what the API returns, and the checks of GitHub apply
//! (permissions, 422 for a second pull request of a branch, pages, limits of lengths). Faults are scripted per kind of
//! request, or random from a seed. It imports no code of the program.
//!
//! It starts with the App `lumi-test`, installed on `octo` with all permissions; the repository `octo/hello` with one
//! commit on `main`; and the person `octocat`, who administers it.

mod api;
mod auth;
mod emulator;
pub(crate) mod faults;
pub(crate) mod git;
pub(crate) mod http;
pub(crate) mod state;
mod world;

use std::{
    collections::BTreeMap,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac};
use sha2::Sha256;

use self::{
    api::{Call, Caller},
    faults::{Chaos, Fault, Scripted, error},
    git::{Rejection, Repositories, When},
    http::{Connection, Request, Response},
    state::{Comment, Holder, Installation, Issue, Logged, Pull, Repository, Rule, Token},
    world::World,
};
use super::{dice::Dice, program::Folder};

/// Where the API begins.
const API: &str = "/api/v3";
const GRAPHQL: &str = "/api/graphql";
/// Permissions of the installation on `octo`.
const PERMISSIONS: [(&str, &str); 5] = [
    ("contents", "write"),
    ("issues", "write"),
    ("metadata", "read"),
    ("pull_requests", "write"),
    ("workflows", "write"),
];

/// A running stand-in. Dropping it closes all connections.
#[derive(Debug)]
pub(crate) struct GitHub {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
    folder: Folder,
    emulator: Option<emulator::Emulator>,
}

#[derive(Debug)]
struct Shared {
    world: Mutex<World>,
    changed: Condvar,
    git: Repositories,
    open: Mutex<Vec<TcpStream>>,
}

impl GitHub {
    /// Starts a stand-in on a free port.
    pub(crate) fn start() -> Self {
        let folder = Folder::new();
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let installation = Installation {
            id: 77,
            account: "octo".into(),
            permissions: PERMISSIONS.map(|(name, level)| (name.to_owned(), level.to_owned())).into(),
            repositories: None,
            is_suspended: false,
        };
        let world = World {
            origin: format!("http://{address}"),
            app_id: 4711,
            app_slug: "lumi-test".into(),
            installations: vec![installation],
            people: BTreeMap::from([("octocat".to_owned(), 583_231)]),
            token_seconds: 3600,
            last_id: 10_000,
            ..World::default()
        };
        let git = Repositories::new(folder.path().join("github"));
        let shared =
            Arc::new(Shared { world: Mutex::new(world), changed: Condvar::new(), git, open: Mutex::default() });
        let accepting = std::thread::spawn({
            let shared = shared.clone();
            move || shared.accept(&listener)
        });
        let github = Self { shared, address, accepting: Some(accepting), folder, emulator: None };
        github.create("octo/hello");
        github.commit("octo/hello", "main", &[("README.md", "hello\n")]);
        github
    }

    /// Starts a stand-in of which the API is that of the npm package `emulate`, with the same App and `octo/hello`. Git, faults,
    /// tokens and the request log are those of the stand-in; issues and pull requests are only in the API. The emulator accepts
    /// any bearer token, a second pull request of a branch, and one of a missing branch.
    pub(crate) fn start_with_emulator() -> Self {
        let mut github = Self::start();
        let (folder, key) = (github.folder.path().to_owned(), github.app_key_file());
        let origin = format!("http://{}", github.address);
        let (emulator, port) = emulator::Emulator::start(&folder, &origin, github.app_id(), &key);
        github.world().upstream = Some(port);
        github.emulator = Some(emulator);
        github
    }

    /// `127.0.0.1:PORT`, for `workspaces.git_hosts`.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// Root of the API, for `github.api_url`.
    pub(crate) fn api_url(&self) -> String {
        format!("http://{}{API}", self.address)
    }

    /// Address of a repository, for clones.
    pub(crate) fn url(&self, full_name: &str) -> String {
        format!("http://{}/{full_name}.git", self.address)
    }

    /// The App's id.
    pub(crate) fn app_id(&self) -> u64 {
        self.world().app_id
    }

    /// Gives the App a key, and returns the file of the private half in PEM.
    pub(crate) fn app_key_file(&self) -> PathBuf {
        let file = self.folder.path().join("app.pem");
        if !file.exists() {
            let key = auth::write_key(&file);
            self.world().app_key = Some(key);
        }
        file
    }

    /// Replaces the App's key, in its file too. The old one is not accepted any more.
    pub(crate) fn replace_app_key(&self) {
        let key = auth::write_key(&self.app_key_file());
        self.world().app_key = Some(key);
    }

    /// Issues a token of a person, who is created if unknown.
    pub(crate) fn user_token(&self, login: &str) -> String {
        let mut world = self.world();
        let id = world.next_id();
        world.people.entry(login.to_owned()).or_insert(id);
        let value = auth::user_token();
        let holder = Holder::User(login.to_owned());
        world.tokens.push(Token { value: value.clone(), holder, expires_at: None, is_revoked: false });
        value
    }

    /// Id of a person, who is created if unknown.
    pub(crate) fn person(&self, login: &str) -> u64 {
        let mut world = self.world();
        let id = world.next_id();
        *world.people.entry(login.to_owned()).or_insert(id)
    }

    /// Issues a token of the installation on `octo`, with all of its permissions.
    pub(crate) fn installation_token(&self) -> String {
        let mut world = self.world();
        let Installation { id, permissions, .. } = world.installations[0].clone();
        let value = auth::installation_token(world.app_id);
        let holder = Holder::Installation { id, permissions, repositories: None };
        let expires_at = Some(world.now() + world.token_seconds);
        world.tokens.push(Token { value: value.clone(), holder, expires_at, is_revoked: false });
        value
    }

    /// All tokens that were issued, for tests that search for them.
    pub(crate) fn tokens(&self) -> Vec<String> {
        self.world().tokens.iter().map(|it| it.value.clone()).collect()
    }

    /// Revokes a token.
    pub(crate) fn revoke(&self, token: &str) {
        for it in self.world().tokens.iter_mut().filter(|it| it.value == token) {
            it.is_revoked = true;
        }
    }

    /// Lets all tokens of installations expire.
    pub(crate) fn expire_tokens(&self) {
        let mut world = self.world();
        let now = world.now();
        for it in world.tokens.iter_mut().filter(|it| it.expires_at.is_some()) {
            it.expires_at = Some(now);
        }
    }

    /// Sets the lifetime of installation tokens from now on; 60 minutes before.
    pub(crate) fn token_lifetime(&self, lifetime: Duration) {
        self.world().token_seconds = i64::try_from(lifetime.as_secs()).expect("in range");
    }

    /// Moves the clock of the stand-in ahead, and with it the expiry of tokens.
    pub(crate) fn advance(&self, time: Duration) {
        self.world().ahead += i64::try_from(time.as_secs()).expect("in range");
    }

    /// Installs the App on another account.
    pub(crate) fn install(&self, account: &str) -> u64 {
        let mut world = self.world();
        let id = world.next_id();
        let installation = Installation { id, account: account.into(), ..world.installations[0].clone() };
        world.installations.push(installation);
        id
    }

    /// Changes the installation on `octo`.
    pub(crate) fn edit_installation(&self, change: impl FnOnce(&mut Installation)) {
        change(&mut self.world().installations[0]);
    }

    /// Creates a repository without commits, administered by `octocat`.
    pub(crate) fn create(&self, full_name: &str) {
        let mut world = self.world();
        let repository = Repository {
            id: world.next_id(),
            full_name: full_name.to_owned(),
            default_branch: "main".into(),
            is_private: false,
            is_archived: false,
            has_issues: true,
            parent: None,
            rules: Vec::new(),
            people: BTreeMap::from([("octocat".to_owned(), "admin".to_owned())]),
            issues: Vec::new(),
            comments: Vec::new(),
            reactions: Vec::new(),
            labels: Vec::new(),
            waiting_runs: 0,
        };
        self.shared.git.create(full_name, &repository.default_branch);
        world.repositories.insert(full_name.to_owned(), repository);
    }

    /// Gives a repository an earlier name, from which the API redirects, as after a rename or a transfer.
    pub(crate) fn renamed_from(&self, full_name: &str, earlier: &str) {
        let mut world = self.world();
        let id = world.repository(full_name).expect("it exists").id;
        world.moved.insert(earlier.to_owned(), id);
    }

    /// Forks a repository; the fork is administered by its owner.
    pub(crate) fn fork(&self, from: &str, to: &str) {
        self.shared.git.fork(from, to);
        let mut world = self.world();
        let owner = to.split('/').next().expect("an owner").to_owned();
        let id = world.next_id();
        let people = BTreeMap::from([(owner, "admin".to_owned())]);
        let of = world.repository(from).expect("it exists").clone();
        let fork = Repository { id, full_name: to.into(), parent: Some(from.into()), people, ..of };
        let fork = Repository { issues: Vec::new(), comments: Vec::new(), ..fork };
        world.repositories.insert(to.to_owned(), fork);
    }

    /// Changes a repository, and makes the references of new pull requests.
    pub(crate) fn edit(&self, full_name: &str, change: impl FnOnce(&mut Repository)) {
        let mut world = self.world();
        change(world.repository_mut(full_name));
        world.update_pull_refs(&self.shared.git);
    }

    /// Adds a rule that `GET /rules/branches/{name}` returns for branches of a pattern.
    pub(crate) fn add_rule(&self, full_name: &str, pattern: &str, kind: &str) {
        let rule = Rule { pattern: pattern.into(), kind: kind.into(), parameters: super::Value::Null };
        self.edit(full_name, |it| it.rules.push(rule));
    }

    /// Demands signed commits on branches of a pattern: by a rule, and of every push.
    pub(crate) fn demand_signatures(&self, full_name: &str, pattern: &'static str) {
        self.add_rule(full_name, pattern, "required_signatures");
        self.reject(full_name, &Rejection::unsigned(pattern).on(pattern).when(When::Unsigned));
    }

    /// Accepts signatures of a key of this address, given as OpenSSH writes public keys.
    pub(crate) fn trust(&self, full_name: &str, email: &str, public_key: &str) {
        self.shared.git.trust(full_name, email, public_key);
    }

    /// True if GitHub made and signed the commit itself.
    pub(crate) fn has_signed(&self, commit: &str) -> bool {
        self.world().signed.iter().any(|it| it == commit)
    }

    /// Commits files on a branch, as a person who pushes; returns the commit.
    pub(crate) fn commit(&self, full_name: &str, branch: &str, files: &[(&str, &str)]) -> String {
        let files: Vec<_> = files.iter().map(|(name, content)| (*name, Some(content.as_bytes()))).collect();
        self.shared.git.commit(full_name, branch, "A commit", &files)
    }

    /// Commits a file of any content.
    pub(crate) fn commit_bytes(&self, full_name: &str, branch: &str, name: &str, content: &[u8]) -> String {
        self.shared.git.commit(full_name, branch, "A commit", &[(name, Some(content))])
    }

    /// The commit of a branch.
    pub(crate) fn branch(&self, full_name: &str, branch: &str) -> Option<String> {
        self.shared.git.branch(full_name, branch)
    }

    /// Names and commits of all branches.
    pub(crate) fn branches(&self, full_name: &str) -> Vec<(String, String)> {
        self.shared.git.branches(full_name)
    }

    /// Runs git in the bare repository, and returns its output.
    pub(crate) fn git(&self, full_name: &str, args: &[&str]) -> String {
        self.shared.git.run(full_name, args)
    }

    /// The folder of the bare repository.
    pub(crate) fn bare(&self, full_name: &str) -> PathBuf {
        self.shared.git.path(full_name)
    }

    /// Refuses pushes from now on; of several rejections the oldest that applies decides.
    pub(crate) fn reject(&self, full_name: &str, rejection: &Rejection) {
        self.shared.git.reject(full_name, rejection);
    }

    /// Ends all rejections.
    pub(crate) fn permit(&self, full_name: &str) {
        self.shared.git.permit(full_name);
    }

    /// The repository as it is now.
    pub(crate) fn repository(&self, full_name: &str) -> Repository {
        self.world().repository(full_name).expect("it exists").clone()
    }

    /// Issues without pull requests.
    pub(crate) fn issues(&self, full_name: &str) -> Vec<Issue> {
        self.repository(full_name).issues.into_iter().filter(|it| it.pull.is_none()).collect()
    }

    /// Pull requests.
    pub(crate) fn pulls(&self, full_name: &str) -> Vec<Issue> {
        self.repository(full_name).issues.into_iter().filter(|it| it.pull.is_some()).collect()
    }

    pub(crate) fn comments(&self, full_name: &str) -> Vec<Comment> {
        self.repository(full_name).comments
    }

    /// Hidden comments (`<!-- … -->`) that several issues, pull requests or comments share, which exactly-once creation
    /// excludes.
    pub(crate) fn duplicates(&self, full_name: &str) -> Vec<String> {
        let repository = self.repository(full_name);
        let bodies = repository.issues.iter().map(|it| &it.body).chain(repository.comments.iter().map(|it| &it.body));
        let mut markers: Vec<_> =
            bodies.filter_map(|body| Some(body[body.find("<!--")?..].trim().to_owned())).collect();
        markers.sort();
        let mut shared: Vec<_> =
            markers.windows(2).filter(|two| two[0] == two[1]).map(|two| two[0].clone()).collect();
        shared.dedup();
        shared
    }

    /// Closes an issue or a pull request, as a person does.
    pub(crate) fn close(&self, full_name: &str, number: u64) {
        self.world().issue_mut(full_name, number).state = "closed".into();
    }

    /// Opens a pull request for a branch, as a person does; returns its number.
    pub(crate) fn open_pull(&self, full_name: &str, (head_repository, head): (&str, &str), base: &str) -> u64 {
        let mut world = self.world();
        let (id, created_at) = (world.next_id(), world.now());
        let pull = Pull {
            head_repository: head_repository.into(),
            head: head.into(),
            base: base.into(),
            is_draft: false,
            is_merged: false,
            maintainer_can_modify: true,
            reviewers: Vec::new(),
        };
        let issues = &mut world.repository_mut(full_name).issues;
        let number = issues.len() as u64 + 1;
        issues.push(Issue {
            id,
            number,
            title: "By a person".into(),
            body: "By a person".into(),
            state: "open".into(),
            labels: Vec::new(),
            assignees: Vec::new(),
            author: "octocat".into(),
            created_at,
            pull: Some(pull),
        });
        world.update_pull_refs(&self.shared.git);
        number
    }

    /// Merges a pull request by a squash, as a person does, and deletes its branch.
    pub(crate) fn squash(&self, full_name: &str, number: u64) {
        let pull = self.world().issue_mut(full_name, number).pull.clone().expect("a pull request");
        let (git, tip) = (&self.shared.git, format!("refs/pull/{number}/head"));
        let base = format!("refs/heads/{}", pull.base);
        let tree = git.run(full_name, &["merge-tree", "--write-tree", &base, &tip]);
        let commit = git.run(full_name, &["commit-tree", &tree, "-p", &base, "-m", "Squash"]);
        git.run(full_name, &["update-ref", &base, &commit]);
        git.run(full_name, &["update-ref", "-d", &format!("refs/heads/{}", pull.head)]);
        let mut world = self.world();
        let issue = world.issue_mut(full_name, number);
        issue.state = "closed".into();
        issue.pull.as_mut().expect("a pull request").is_merged = true;
    }

    /// Merges a pull request, as a person does, with a merge commit.
    pub(crate) fn merge(&self, full_name: &str, number: u64) {
        let pull = self.world().issue_mut(full_name, number).pull.clone().expect("a pull request");
        let (git, tip) = (&self.shared.git, format!("refs/pull/{number}/head"));
        let base = format!("refs/heads/{}", pull.base);
        let tree = git.run(full_name, &["merge-tree", "--write-tree", &base, &tip]);
        let commit = git.run(full_name, &["commit-tree", &tree, "-p", &base, "-p", &tip, "-m", "Merge"]);
        git.run(full_name, &["update-ref", &base, &commit]);
        let mut world = self.world();
        let issue = world.issue_mut(full_name, number);
        issue.state = "closed".into();
        issue.pull.as_mut().expect("a pull request").is_merged = true;
    }

    /// All requests so far.
    pub(crate) fn requests(&self) -> Vec<Logged> {
        self.world().log.clone()
    }

    /// The stand-in's own time so far: from requests, once read, to their answers.
    pub(crate) fn time(&self) -> Duration {
        self.world().time
    }

    /// Requests of a method (`*` for all) and a pattern, see [`Self::fault`].
    pub(crate) fn requests_of(&self, method: &str, pattern: &str) -> Vec<Logged> {
        let is_meant = |it: &Logged| (method == "*" || it.method == method) && faults::matches(pattern, &it.path);
        self.requests().into_iter().filter(is_meant).collect()
    }

    /// The most requests that created something at the same time.
    pub(crate) fn most_creating(&self) -> usize {
        self.world().most_creating
    }

    /// Gives the next request of a method (`*` for any) and path a fault. In the pattern, `*` is any one part of the path,
    /// and `**` at the end all further ones, as in `/api/v3/repos/*/*/issues` and `/octo/hello.git/**`.
    pub(crate) fn fault(&self, method: &str, pattern: &str, fault: Fault) {
        let scripted = Scripted { method: method.into(), pattern: pattern.into(), fault };
        self.world().faults.scripted.push(scripted);
    }

    /// The number of scripted faults that did not occur yet.
    pub(crate) fn faults_left(&self) -> usize {
        self.world().faults.scripted.len()
    }

    /// Gives one in `one_in` requests a random fault, from now on.
    pub(crate) fn chaos(&self, dice: Dice, one_in: usize, faults: Vec<Fault>) {
        self.world().faults.chaos = Some(Chaos { dice, one_in, faults });
    }

    /// Ends all faults, scripted and random, and releases what is held.
    pub(crate) fn calm(&self) {
        self.world().faults = faults::Faults::default();
        self.release();
    }

    /// The number of requests that [`Fault::Hold`] and [`Fault::HoldAfter`] hold.
    pub(crate) fn held(&self) -> usize {
        self.world().held
    }

    /// Releases the requests that are held now.
    pub(crate) fn release(&self) {
        self.world().is_released = true;
        self.shared.changed.notify_all();
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world()
    }
}

/// A time in RFC 3339 with seconds, that is new in each call: the times of the events of an issue.
pub(crate) fn next_second() -> String {
    static CALLS: std::sync::atomic::AtomicI64 = std::sync::atomic::AtomicI64::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let calls = CALLS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    state::rfc3339(i64::try_from(now).expect("in range") + calls)
}

/// The headers of a webhook's delivery, signed with the secret as GitHub signs.
pub(crate) fn webhook_headers(secret: &str, event: &str, delivery: &str, body: &[u8]) -> Vec<(&'static str, String)> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any length is a key");
    mac.update(body);
    let digest: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    vec![
        ("Content-Type", "application/json".into()),
        ("User-Agent", "GitHub-Hookshot/0123abc".into()),
        ("X-GitHub-Event", event.into()),
        ("X-GitHub-Delivery", delivery.into()),
        ("X-Hub-Signature-256", format!("sha256={digest}")),
    ]
}

impl Drop for GitHub {
    fn drop(&mut self) {
        self.world().is_over = true;
        self.shared.changed.notify_all();
        for stream in self.shared.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

/// End of a connection without an answer.
struct Closed;

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for stream in listener.incoming().flatten() {
            if self.world().is_over {
                return;
            }
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.retain(|it| it.peer_addr().is_ok());
            open.extend(stream.try_clone());
            let shared = self.clone();
            std::thread::spawn(move || shared.serve(stream));
        }
    }

    fn serve(&self, stream: TcpStream) {
        let mut connection = Connection::new(stream);
        while let Ok(Some(request)) = connection.next() {
            if self.handle(&mut connection, &request).is_err() {
                break;
            }
        }
        connection.close();
    }

    fn handle(&self, connection: &mut Connection, request: &Request) -> Result<(), Closed> {
        let begin = Instant::now();
        let (fault, caller) = {
            let mut world = self.world();
            (world.faults.take(&request.method, &request.path), self.caller(&world, request))
        };
        if matches!(fault, Some(Fault::Hold)) {
            self.hold();
        }
        let is_handled = fault.as_ref().is_none_or(Fault::takes_effect);
        let now = self.world().now();
        let answer = is_handled.then(|| self.answer(request, &caller));
        let replaced = fault.as_ref().and_then(|fault| fault.answer(now)).map(|it| self.with_headers(it));
        let response = replaced.or(answer).unwrap_or_else(|| Response::text(500, ""));
        if matches!(fault, Some(Fault::HoldAfter)) {
            self.hold();
        }
        let is_closed = matches!(fault, Some(Fault::DropBefore | Fault::DropAfter | Fault::Truncate));
        self.log(request, &caller, if is_closed { 0 } else { response.status });
        self.world().time += begin.elapsed();
        let sent = match fault {
            Some(Fault::DropBefore | Fault::DropAfter) => return Err(Closed),
            Some(Fault::Truncate) => {
                let _ = connection.truncate(&response);
                return Err(Closed);
            }
            Some(Fault::Slow(pause)) => connection.drip(&response, || self.pause(pause)),
            _ => connection.answer(&response),
        };
        sent.map_err(|_| Closed)
    }

    fn hold(&self) {
        let mut world = self.world();
        world.is_released = false;
        world.held += 1;
        self.changed.notify_all();
        let waits = |world: &mut World| !world.is_released && !world.is_over;
        let mut world = self.changed.wait_while(world, waits).unwrap_or_else(PoisonError::into_inner);
        world.held -= 1;
    }

    fn pause(&self, pause: Duration) {
        drop(self.changed.wait_timeout_while(self.world(), pause, |world| !world.is_over));
    }

    fn log(&self, request: &Request, caller: &Result<Caller, Response>, status: u16) {
        let caller = match caller {
            Ok(Caller::Anonymous) => "anonymous".to_owned(),
            Ok(Caller::App) => "App".to_owned(),
            Ok(Caller::Token(Holder::User(login))) => login.clone(),
            Ok(Caller::Token(Holder::Installation { id, .. })) => format!("installation {id}"),
            Err(_) => "unknown".to_owned(),
        };
        let logged = Logged {
            method: request.method.clone(),
            path: request.path.clone(),
            query: request.query.clone(),
            caller,
            user_agent: request.header("user-agent").to_owned(),
            api_version: request.header("x-github-api-version").to_owned(),
            body: request.json(),
            status,
        };
        self.world().log.push(logged);
    }

    /// The caller by its token: `Bearer`, `token`, or the password of `Basic`.
    fn caller(&self, world: &World, request: &Request) -> Result<Caller, Response> {
        let Some((scheme, value)) = request.header("authorization").split_once(' ') else {
            return Ok(Caller::Anonymous);
        };
        let token = match scheme.to_ascii_lowercase().as_str() {
            "basic" => {
                let decoded = STANDARD.decode(value.trim()).ok().and_then(|it| String::from_utf8(it).ok());
                let (user, password) = decoded.as_deref().and_then(|it| it.split_once(':')).unwrap_or_default();
                if password.is_empty() { user.to_owned() } else { password.to_owned() }
            }
            _ => value.trim().to_owned(),
        };
        if let Some(holder) = world.holder(&token) {
            return Ok(Caller::Token(holder));
        }
        match &world.app_key {
            Some(key) if token.starts_with("eyJ") => {
                key.check(&token, world.app_id, world.now()).map(|()| Caller::App)
            }
            _ => Err(error(401, "Bad credentials")),
        }
    }

    /// Forwards a request to the emulator, and takes note of a token that it issues, so that git accepts it.
    fn forward(&self, port: u16, request: &Request) -> Response {
        let path = request.path.strip_prefix(API).unwrap_or(&request.path);
        let response = emulator::forward(port, path, request);
        if request.path.ends_with("/access_tokens") {
            let issued: super::Value = serde_json::from_slice(&response.body).unwrap_or_default();
            if let Some(value) = issued["token"].as_str() {
                let mut world = self.world();
                let Installation { id, permissions, .. } = world.installations[0].clone();
                let holder = Holder::Installation { id, permissions, repositories: None };
                let expires_at = Some(world.now() + world.token_seconds);
                world.tokens.push(Token { value: value.to_owned(), holder, expires_at, is_revoked: false });
            }
        }
        response
    }

    fn answer(&self, request: &Request, caller: &Result<Caller, Response>) -> Response {
        let upstream = self.world().upstream;
        let is_git = request.path.contains("/info/refs") || request.path.ends_with("-pack");
        if let Some(port) = upstream.filter(|_| !is_git) {
            return self.forward(port, request);
        }
        let is_graphql = request.path == GRAPHQL;
        let below = if is_graphql { Some(Vec::new()) } else { request.parts_below(API) };
        let Some(parts) = below else { return self.answer_git(request, caller) };
        if request.header("user-agent").is_empty() {
            return Response::text(
                403,
                "Request forbidden by administrative rules. Please make sure your request has a User-Agent header.",
            );
        }
        let is_creating = request.method == "POST";
        if is_creating {
            let mut world = self.world();
            world.creating += 1;
            world.most_creating = world.most_creating.max(world.creating);
        }
        let response = match caller {
            Err(refusal) => refusal.clone(),
            Ok(caller) => {
                let mut world = self.world();
                world.used += 1;
                let parts: Vec<_> = parts.iter().map(String::as_str).collect();
                let mut call = Call { world: &mut world, git: &self.git, request, caller: caller.clone() };
                if is_graphql { call.graphql() } else { call.answer(&parts) }
            }
        };
        if is_creating {
            self.world().creating -= 1;
        }
        self.with_headers(response)
    }

    /// Adds the headers of every answer of the API that it does not have.
    fn with_headers(&self, response: Response) -> Response {
        let quota = self.world().quota();
        let mut response = response.with("x-github-request-id", uuid::Uuid::new_v4().simple());
        for name in ["limit", "remaining", "used", "reset"] {
            let header = format!("x-ratelimit-{name}");
            if !response.headers.iter().any(|(it, _)| *it == header) {
                response = response.with(&header, &quota[name]);
            }
        }
        response.with("x-ratelimit-resource", "core").with("x-github-media-type", "github.v3; format=json")
    }

    /// Serves git, as GitHub does: 401 without or with a wrong token, 404 for what the caller may not see.
    fn answer_git(&self, request: &Request, caller: &Result<Caller, Response>) -> Response {
        let parts: Vec<_> = request.path.trim_start_matches('/').splitn(3, '/').collect();
        let [owner, name, rest] = parts[..] else { return Response::text(404, "Not Found") };
        let full_name = format!("{owner}/{}", name.trim_end_matches(".git"));
        let unauthorized = |text: &str| Response::text(401, text).with("WWW-Authenticate", "Basic realm=\"GitHub\"");
        let Ok(caller) = caller else {
            return unauthorized(
                "Invalid username or token. Password authentication is not supported for Git operations.",
            );
        };
        let is_push = rest == "git-receive-pack" || request.parameter("service") == "git-receive-pack";
        {
            let world = self.world();
            let visible = world.repository(&full_name).filter(|it| world.can_read(caller, it));
            let repository = match visible {
                Some(repository) => repository,
                None if *caller == Caller::Anonymous => return unauthorized("No anonymous write access."),
                None => return Response::text(404, "Repository not found."),
            };
            if is_push && *caller == Caller::Anonymous {
                return unauthorized("No anonymous write access.");
            }
            if is_push && repository.is_archived {
                return Response::text(403, "This repository was archived so it is read-only.");
            }
            if is_push && !world.may(caller, repository, "contents", "write") {
                return Response::text(403, &format!("Permission to {full_name}.git denied to lumi-test[bot]."));
            }
        }
        let response = self.git.serve(&full_name, rest, request);
        if rest == "git-receive-pack" {
            self.world().update_pull_refs(&self.git);
        }
        response
    }
}
