//! Tests of the git steps against a real git server over smart HTTP with authentication.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use base64::{Engine, prelude::BASE64_STANDARD};
use parking_lot::Mutex;
use uuid::Uuid;

use super::{Automation, rescue};
use crate::{
    contract::{
        runtime::{Checkout, PrepareWorkspace, WorkspaceRef},
        steps::{Remote, StepOrder},
    },
    domain::{
        automation::{
            signing::SigningWay,
            ssh_key::tests::new_key,
            step::{Changes, Identity, PushFact, RefusedPath, Remedy, StepFact, StepFailure, StepInput, StepOutcome},
        },
        clock::Timestamp,
        ids::{FolderId, SessionId},
    },
    github::{Github, GithubLimits},
    process::{ownership, sandbox::Sandbox, user::RunAs},
    runtime::workspaces::{WorkspaceSettings, Workspaces, diff::DiffLimits, folders::AllowedFolders, git::Git},
    telemetry::Metrics,
};

const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// In parts, so that no search for the token finds this program.
const TOKEN: [&str; 2] = ["ghs_123456_", "canaryCanaryCanary0123456789"];

fn token() -> String {
    TOKEN.concat()
}

fn git_in(folder: &Path) -> Command {
    let mut git = Command::new("git");
    git.current_dir(folder).env_clear().env("PATH", PATH).env("HOME", "/nonexistent");
    git.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
    git.args(["-c", "user.name=Person", "-c", "user.email=p@example.org", "-c", "init.defaultBranch=main"]);
    git
}

fn git(folder: &Path, args: &[&str]) -> String {
    let done = git_in(folder).args(args).output().unwrap();
    assert!(done.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).trim_end().to_owned()
}

/// A host with one repository.
#[derive(Default)]
struct Host {
    /// True to answer the next push with 502 after it was taken.
    loses_answer: AtomicBool,
    /// Answer to every request.
    refusal: Mutex<Option<(u16, String)>>,
    pushes: AtomicUsize,
}

async fn answer(host: &Host, root: &Path, request: &HttpRequest, body: &[u8]) -> HttpResponse {
    let expected = format!("Basic {}", BASE64_STANDARD.encode(format!("x-access-token:{}", token())));
    let header = |name: &str| request.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    if let Some((status, text)) = host.refusal.lock().clone() {
        return HttpResponse::build(status.try_into().unwrap()).body(text);
    }
    if header("authorization") != expected {
        return HttpResponse::Unauthorized().finish();
    }
    let is_push = request.path().ends_with("/git-receive-pack");
    host.pushes.fetch_add(usize::from(is_push), Ordering::Relaxed);
    let mut backend = Command::new("git")
        .arg("http-backend")
        .env_clear()
        .envs([
            ("PATH", PATH),
            ("HOME", "/nonexistent"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ])
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REMOTE_USER", "bot")
        .env("PATH_INFO", request.path())
        .env("QUERY_STRING", request.query_string())
        .env("REQUEST_METHOD", request.method().as_str())
        .env("CONTENT_TYPE", header("content-type"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    backend.stdin.take().unwrap().write_all(body).unwrap();
    let output = backend.wait_with_output().unwrap().stdout;
    if is_push && host.loses_answer.swap(false, Ordering::Relaxed) {
        return HttpResponse::BadGateway().finish();
    }
    let split = output.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let mut response = HttpResponse::Ok();
    for line in String::from_utf8_lossy(&output[..split]).lines() {
        let (name, value) = line.split_once(": ").unwrap();
        if name == "Status" {
            response.status(value[..3].parse::<u16>().unwrap().try_into().unwrap());
        } else {
            response.insert_header((name, value));
        }
    }
    response.body(output[split + 4..].to_vec())
}

fn serve(host: Arc<Host>, root: PathBuf) -> String {
    let handler = move |request: HttpRequest, body: web::Bytes| {
        let (host, root) = (host.clone(), root.clone());
        async move { answer(&host, &root, &request, &body).await }
    };
    let server = HttpServer::new(move || {
        let limit = web::PayloadConfig::new(64 * 1024 * 1024);
        App::new().app_data(limit).default_service(web::to(handler.clone()))
    });
    let server = server.workers(1).disable_signals().bind(("127.0.0.1", 0)).unwrap();
    let address = server.addrs()[0].to_string();
    actix_web::rt::spawn(server.run());
    address
}

struct Place {
    base: tempfile::TempDir,
    host: Arc<Host>,
    address: String,
    workspaces: Arc<Workspaces>,
    automation: Automation,
    id: Uuid,
    run: Uuid,
    signing: Option<SigningWay>,
    signing_key: Option<String>,
    onto: Option<String>,
    is_twin: bool,
    fork: Option<String>,
    /// As in the order of a push.
    unconfirmed: Vec<String>,
    branch: Option<String>,
}

impl Place {
    /// A repository with one commit, of these files, and its clone. The working copy of a person is `person`.
    async fn new(files: &[(&str, &str)]) -> Self {
        let place = Self::empty();
        for (name, text) in files {
            place.person_writes(name, text);
        }
        git(&place.person(), &["add", "-A"]);
        place.person_pushes("main");
        place.prepare().await;
        place
    }

    fn empty() -> Self {
        let base = tempfile::tempdir().unwrap();
        let remote = base.path().join("source/octo/hello.git");
        fs::create_dir_all(&remote).unwrap();
        git(&remote, &["init", "-q", "--bare"]);
        git(&remote, &["config", "http.receivepack", "true"]);
        git(&remote, &["config", "uploadpack.allowAnySHA1InWant", "true"]);
        let person = base.path().join("person");
        git(base.path(), &["clone", "-q", remote.to_str().unwrap(), "person"]);
        git(&person, &["config", "core.autocrlf", "false"]);
        let host = Arc::new(Host::default());
        let address = serve(host.clone(), base.path().join("source"));
        let allowed = AllowedFolders::new(&base.path().join("root"), &[], &[]).unwrap();
        let settings = WorkspaceSettings {
            git_hosts: vec![address.clone()],
            clone_timeout: Duration::from_secs(60),
            diff: DiffLimits { patch_bytes: 10_000, file_bytes: 100_000 },
            has_other_users: true,
            metrics: Metrics::new("test", None).unwrap(),
        };
        // Other users pass through; tests of them run as root only.
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let sandbox = Sandbox::for_tests(allowed.root());
        let git = Git::new(BTreeMap::from([("PATH".to_owned(), PATH.into())])).confined_by(sandbox);
        let workspaces = Arc::new(Workspaces::new(allowed, git, settings).unwrap());
        let automation = Automation::new(workspaces.clone(), Github::new(GithubLimits::default()));
        Self {
            base,
            host,
            address,
            workspaces,
            automation,
            id: Uuid::now_v7(),
            run: Uuid::now_v7(),
            signing: None,
            signing_key: None,
            onto: None,
            is_twin: false,
            fork: None,
            unconfirmed: Vec::new(),
            branch: None,
        }
    }

    fn url(&self) -> String {
        format!("http://{}/octo/hello.git", self.address)
    }

    async fn prepare(&self) {
        let request = PrepareWorkspace {
            workspace: self.reference(),
            agent: None,
            installation_id: None,
            checkout: Some(Checkout { repository: self.url(), branch: self.branch.clone() }),
            github_token: Some(token().into()),
        };
        self.workspaces.prepare(request, None, None).await.unwrap();
    }

    fn reference(&self) -> WorkspaceRef {
        WorkspaceRef { folder_id: FolderId(self.id), path: None, within: None }
    }

    fn root(&self) -> PathBuf {
        self.base.path().join("root")
    }

    fn workspace(&self) -> PathBuf {
        self.root().join(self.id.to_string())
    }

    fn remote(&self) -> PathBuf {
        self.base.path().join("source/octo/hello.git")
    }

    fn person(&self) -> PathBuf {
        self.base.path().join("person")
    }

    fn person_writes(&self, name: &str, text: &str) {
        let path = self.person().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn person_pushes(&self, branch: &str) {
        git(&self.person(), &["commit", "-qm", "by a person"]);
        git(&self.person(), &["push", "-q", "origin", &format!("HEAD:refs/heads/{branch}")]);
    }

    /// The agent writes a file.
    fn put(&self, name: &str, text: &str) {
        let path = self.workspace().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    async fn perform(&self, input: StepInput) -> Result<StepFact, StepFailure> {
        let remote = Remote {
            repository: self.url(),
            api_url: "http://127.0.0.1:1".into(),
            token: token().into(),
            max_wait_ms: 1000,
            app: None,
        };
        let order = StepOrder {
            workspace: self.reference(),
            session_id: SessionId(Uuid::nil()),
            remote: Some(remote),
            signing_key: self.signing_key.clone().map(Into::into),
            input,
        };
        let report = self.automation.perform(self.run, &order).await;
        assert!(!serde_json::to_string(&report).unwrap().contains(TOKEN[1]), "{report:?}");
        match report.outcome {
            StepOutcome::Done(fact) => Ok(fact),
            StepOutcome::Failed(failure) => Err(failure),
        }
    }

    async fn changes(&self, parent: Option<&str>) -> Changes {
        match self.perform(StepInput::Changes { parent: parent.map(str::to_owned) }).await {
            Ok(StepFact::Changes(changes)) => changes,
            other => panic!("{other:?}"),
        }
    }

    async fn commit(&self, changes: &Changes) -> String {
        let person = Identity { name: "bot".into(), email: "1+bot@users.noreply.example.org".into() };
        let input = StepInput::Commit {
            parent: changes.parent.clone(),
            tree: changes.tree.clone(),
            message: "-F /etc/passwd\n\nSecond line".into(),
            author: person.clone(),
            committer: person,
            at: Timestamp(1_700_000_000_000_000),
            is_signed: self.signing == Some(SigningWay::Key),
        };
        match self.perform(input).await {
            Ok(StepFact::Commit(commit)) => commit.sha,
            other => panic!("{other:?}"),
        }
    }

    async fn push(&self, branch: &str, commit: &str, expected: Option<&str>) -> Result<PushFact, StepFailure> {
        let (branch, commit, expected) = (branch.to_owned(), commit.to_owned(), expected.map(str::to_owned));
        match self
            .perform(StepInput::Push {
                branch,
                commit,
                expected,
                signing: self.signing,
                onto: self.onto.clone(),
                is_twin: self.is_twin,
                fork: self.fork.clone(),
                unconfirmed: self.unconfirmed.clone(),
            })
            .await?
        {
            StepFact::Push(fact) => Ok(fact),
            other => panic!("{other:?}"),
        }
    }

    /// Changes, commit and push.
    async fn deliver(&self, branch: &str, parent: Option<&str>, expected: Option<&str>) -> PushFact {
        let changes = self.changes(parent).await;
        assert!(changes.findings.is_empty() && changes.unsafe_paths.is_empty(), "{changes:?}");
        let commit = self.commit(&changes).await;
        self.push(branch, &commit, expected).await.unwrap()
    }

    /// Puts a file, and delivers it to `auto/x`. Returns the commit.
    async fn deliver_change(&self, name: &str, text: &str) -> String {
        self.put(name, text);
        self.deliver("auto/x", None, None).await.sha
    }

    /// A change that was committed and not pushed.
    async fn undelivered(&self) -> String {
        self.put("new", "x\n");
        let changes = self.changes(None).await;
        self.commit(&changes).await
    }

    fn head(&self, branch: &str) -> String {
        git(&self.remote(), &["rev-parse", &format!("refs/heads/{branch}")])
    }

    fn tree(&self, revision: &str) -> String {
        git(&self.remote(), &["ls-tree", "-r", revision])
    }

    fn show(&self, object: &str) -> Vec<u8> {
        git_in(&self.remote()).args(["cat-file", "blob", object]).output().unwrap().stdout
    }

    fn hook(&self, script: &str) {
        let path = self.remote().join("hooks/pre-receive");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn paths(changes: &Changes) -> Vec<&str> {
    changes.files.iter().map(|file| file.path.as_str()).collect()
}

#[actix_web::test]
async fn changes_become_one_commit_and_untouched_files_keep_their_bytes() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    let attributes = "*.bin filter=lfs diff=lfs merge=lfs -text\n*.txt text eol=crlf\n*.id ident\n";
    let place = Place::new(&[
        (".gitattributes", attributes),
        (".gitignore", "ignored/\n"),
        ("data.bin", pointer),
        ("lines.txt", "one\ntwo\n"),
        ("$Id.id", "$Id$\n"),
        ("sub/gone", "x\n"),
        ("edited", "before\n"),
    ])
    .await;
    let base = place.head("main");
    assert_eq!(
        fs::read_to_string(place.workspace().join("lines.txt")).unwrap(),
        "one\ntwo\n",
        "no line ends changed"
    );
    let config = fs::read_to_string(place.workspace().join(".git/config")).unwrap();
    assert!(config.contains(&place.url()) && !config.contains(TOKEN[1]), "{config}");
    let unchanged = place.changes(None).await;
    assert_eq!((unchanged.total, unchanged.base_branch.as_deref()), (0, Some("main")));
    place.put("edited", "after\n");
    place.put("-new file ü", "x\n");
    place.put("ignored/a", "x\n");
    place.put(".claude-pr-summary.md", "# Done\n");
    place.put("inner/file", "x\n");
    git(&place.workspace().join("inner"), &["init", "-q"]);
    fs::remove_file(place.workspace().join("sub/gone")).unwrap();
    let changes = place.changes(None).await;
    assert_eq!(paths(&changes), ["-new file ü", "edited", "sub/gone"]);
    assert_eq!((changes.total, changes.ignored, changes.summary.as_deref()), (3, 1, Some("# Done")));
    assert_eq!(changes.parent, base);
    assert_eq!(place.changes(None).await, changes, "a repeat");
    let commit = place.commit(&changes).await;
    assert_eq!(place.commit(&changes).await, commit, "a repeat makes the same commit");
    let pushed = place.push("auto/one", &commit, None).await.unwrap();
    assert_eq!((pushed.sha.as_str(), pushed.is_rebased), (commit.as_str(), false));
    assert_eq!(place.push("auto/one", &commit, None).await.unwrap(), pushed, "a repeat");
    assert_eq!(place.host.pushes.load(Ordering::Relaxed), 1);
    let old: Vec<String> = place.tree(&base).lines().map(str::to_owned).collect();
    let new = place.tree("auto/one");
    for name in [".gitattributes", ".gitignore", "data.bin", "lines.txt", "$Id.id"] {
        let entry = old.iter().find(|line| line.ends_with(&format!("\t{name}"))).unwrap();
        assert!(new.contains(entry.as_str()), "{name} changed: {new}");
    }
    assert!(!new.contains("inner") && !new.contains("claude-pr-summary") && !new.contains("sub/gone"), "{new}");
    let message = git(&place.remote(), &["log", "-1", "--format=%an <%ae> %at %B", "auto/one"]);
    assert_eq!(message, "bot <1+bot@users.noreply.example.org> 1700000000 -F /etc/passwd\n\nSecond line");
}

#[actix_web::test]
async fn second_turn_is_committed_on_top_of_the_first() {
    let place = Place::new(&[("a", "1\n"), ("b", "1\n")]).await;
    place.put("a", "2\n");
    place.put("c", "1\n");
    let first = place.deliver("auto/x", None, None).await;
    place.put("b", "2\n");
    place.put("a", "1\n");
    let changes = place.changes(Some(&first.sha)).await;
    assert_eq!(paths(&changes), ["a", "b"], "a file that is as in the clone again is a change");
    let commit = place.commit(&changes).await;
    place.push("auto/x", &commit, Some(&first.sha)).await.unwrap();
    assert_eq!(git(&place.remote(), &["rev-parse", "auto/x~1"]), first.sha);
    assert_eq!(place.show("auto/x:a"), b"1\n");
    assert_eq!(place.changes(Some(&commit)).await.total, 0);
    let unknown = place.perform(StepInput::Changes { parent: Some("0123456789".repeat(4)) }).await.unwrap_err();
    assert_eq!(unknown.code, "parent-missing");
}

/// Text that does not compress, of this many bytes.
fn noise(bytes: usize) -> String {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'0' + u8::try_from((state >> 33) % 75).unwrap())
    };
    (0..bytes).map(|_| next()).collect()
}

#[actix_web::test]
async fn large_files_are_committed_when_they_change_and_pushed_in_chunks() {
    let large = noise(200_000);
    let place = Place::new(&[("kept", &large), ("edited", &large), ("gone", &large), ("small", "1\n")]).await;
    assert_eq!(place.changes(None).await.total, 0);
    place.put("edited", &format!("{large}x"));
    place.put("new", &noise(3_000_000));
    fs::remove_file(place.workspace().join("gone")).unwrap();
    let changes = place.changes(None).await;
    assert_eq!(paths(&changes), ["edited", "gone", "new"]);
    let commit = place.commit(&changes).await;
    place.push("auto/x", &commit, None).await.unwrap();
    assert_eq!(place.show("auto/x:new").len(), 3_000_000);
    assert_eq!(place.show("auto/x:kept"), large.as_bytes());
    assert!(!place.tree("auto/x").contains("gone"));
}

#[actix_web::test]
async fn files_of_another_user_are_committed_with_the_rights_of_that_user() {
    let place = Place::new(&[("a", "1\n"), ("b", "1\n")]).await;
    if fs::metadata("/root").is_ok_and(|root| RunAs::owner(&root).is_some()) || fs::read_dir("/root").is_err() {
        eprintln!("NOT CHECKED: needs root");
        return;
    }
    ownership::hand_over(&place.workspace().canonicalize().unwrap(), RunAs { uid: 70000, gid: 70000 }).unwrap();
    place.put("a", "2\n");
    place.put("secret", "x\n");
    // Of this program's user; the agent cannot read it.
    fs::set_permissions(place.workspace().join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let changes = place.changes(None).await;
    assert_eq!(paths(&changes), ["a"]);
    let commit = place.commit(&changes).await;
    place.push("auto/x", &commit, None).await.unwrap();
    assert_eq!(place.show("auto/x:a"), b"2\n");
}

#[actix_web::test]
async fn commit_without_a_change_is_refused() {
    let place = Place::new(&[("a", "1\n")]).await;
    let changes = place.changes(None).await;
    let person = Identity { name: "bot".into(), email: "b@example.org".into() };
    let input = StepInput::Commit {
        parent: changes.parent,
        tree: changes.tree,
        message: "x".into(),
        author: person.clone(),
        committer: person,
        at: Timestamp(0),
        is_signed: false,
    };
    assert_eq!(place.perform(input).await.unwrap_err().code, "no-changes");
}

#[actix_web::test]
async fn push_whose_answer_is_lost_is_adopted() {
    let place = Place::new(&[("a", "1\n")]).await;
    let commit = place.undelivered().await;
    place.host.loses_answer.store(true, Ordering::Relaxed);
    let fact = place.push("auto/x", &commit, None).await.unwrap();
    assert_eq!((fact.sha.as_str(), place.head("auto/x").as_str()), (commit.as_str(), commit.as_str()));
    assert_eq!(place.push("auto/x", &commit, None).await.unwrap(), fact);
    assert_eq!(place.host.pushes.load(Ordering::Relaxed), 1);
}

#[actix_web::test]
async fn turn_after_a_push_without_an_answer_follows_it_on_the_same_branch() {
    for has_base in [false, true] {
        let mut place = Place::new(&[("a", "1\n")]).await;
        let base = match has_base {
            true => Some(place.deliver_change("base", "1\n").await),
            false => None,
        };
        place.put("new", "first\n");
        let changes = place.changes(base.as_deref()).await;
        let first = place.commit(&changes).await;
        place.push("auto/x", &first, base.as_deref()).await.unwrap();
        // The fact of this push is lost, and the next turn changes the same file.
        place.put("new", "second\n");
        let changes = place.changes(base.as_deref()).await;
        let second = place.commit(&changes).await;
        place.unconfirmed = vec![first.clone()];
        let fact = place.push("auto/x", &second, base.as_deref()).await.unwrap();
        assert_eq!(fact.sha, place.head("auto/x"));
        assert_eq!(place.show("auto/x:new"), b"second\n");
        let parent = git(&place.remote(), &["rev-parse", "auto/x^"]);
        assert_eq!(parent.trim(), first, "nothing is overwritten");
        assert_eq!(place.push("auto/x", &second, base.as_deref()).await.unwrap(), fact, "a repeat");
        // The fact of this push is lost too; the branch has the commit in another form.
        place.put("new", "third\n");
        let changes = place.changes(base.as_deref()).await;
        let third = place.commit(&changes).await;
        place.unconfirmed = vec![second, first];
        let fact = place.push("auto/x", &third, base.as_deref()).await.unwrap();
        assert_eq!(
            (fact.sha.as_str(), place.show("auto/x:new")),
            (place.head("auto/x").as_str(), b"third\n".to_vec())
        );
    }
}

#[actix_web::test]
async fn commit_that_github_made_of_an_unanswered_one_is_recognised_by_its_content() {
    for (message, is_ours) in [("-F /etc/passwd\n\nSecond line\n\nSigned-off-by: x", true), ("Of a person", false)] {
        let mut place = Place::new(&[("a", "1\n")]).await;
        let base = place.head("main");
        place.put("new", "first\n");
        let changes = place.changes(None).await;
        let first = place.commit(&changes).await;
        // The repository at GitHub gets the tree, and a commit with another name.
        place.push("auto/other", &first, None).await.unwrap();
        let tree = format!("{first}^{{tree}}");
        let made = git(&place.remote(), &["commit-tree", &tree, "-p", &base, "-m", message]);
        git(&place.remote(), &["update-ref", "refs/heads/auto/x", &made]);
        git(&place.remote(), &["update-ref", "-d", "refs/heads/auto/other"]);
        place.put("new", "second\n");
        let changes = place.changes(None).await;
        let second = place.commit(&changes).await;
        place.unconfirmed = vec![first];
        let pushed = place.push("auto/x", &second, None).await;
        if is_ours {
            assert_eq!(pushed.unwrap().sha, place.head("auto/x"));
            assert_eq!(git(&place.remote(), &["rev-parse", "auto/x^"]), made, "nothing is overwritten");
            assert_eq!(place.show("auto/x:new"), b"second\n");
        } else {
            assert_eq!(pushed.unwrap_err().code, "branch-name-taken");
        }
    }
}

#[actix_web::test]
async fn commit_is_moved_onto_commits_of_others_and_keeps_them() {
    let text = (1..=20).map(|n| format!("line {n}\n")).collect::<String>();
    let place = Place::new(&[("shared", &text), ("b", "1\n")]).await;
    place.put("shared", &text.replace("line 1\n", "agent\n"));
    let first = place.deliver("auto/x", None, None).await;
    // A person changes another part of the file on the branch.
    git(&place.person(), &["fetch", "-q"]);
    git(&place.person(), &["checkout", "-q", "-b", "auto/x", "origin/auto/x"]);
    place.person_writes("shared", &text.replace("line 1\n", "agent\n").replace("line 20\n", "person\n"));
    git(&place.person(), &["add", "-A"]);
    place.person_pushes("auto/x");
    place.put("b", "2\n");
    let changes = place.changes(Some(&first.sha)).await;
    let commit = place.commit(&changes).await;
    let fact = place.push("auto/x", &commit, Some(&first.sha)).await.unwrap();
    assert!(fact.is_rebased && fact.sha != commit && fact.sha == place.head("auto/x"));
    assert_eq!(place.push("auto/x", &commit, Some(&first.sha)).await.unwrap(), fact, "a repeat");
    // The workspace does not have the person's change, and the next turn must not undo it.
    place.put("shared", &text.replace("line 1\n", "agent\n").replace("line 10\n", "agent again\n"));
    let changes = place.changes(Some(&fact.sha)).await;
    assert_eq!(paths(&changes), ["shared"]);
    let commit = place.commit(&changes).await;
    place.push("auto/x", &commit, Some(&fact.sha)).await.unwrap();
    let shared = String::from_utf8(place.show("auto/x:shared")).unwrap();
    assert!(shared.contains("person\n") && shared.contains("agent again\n"), "{shared}");
}

#[actix_web::test]
async fn commit_is_signed_with_the_key_and_signed_again_when_it_is_moved() {
    let mut place = Place::new(&[("a", "1\n"), ("b", "1\n")]).await;
    let (private, public) = new_key(place.base.path(), &["-t", "ed25519", "-N", ""]);
    (place.signing, place.signing_key) = (Some(SigningWay::Key), Some(private.clone()));
    let signers = place.base.path().join("signers");
    fs::write(&signers, format!("1+bot@users.noreply.example.org {public}")).unwrap();
    let verify = |sha: &str| {
        let file = format!("gpg.ssh.allowedSignersFile={}", signers.display());
        git(&place.remote(), &["-c", &file, "-c", "gpg.format=ssh", "verify-commit", sha]);
    };
    place.put("a", "agent\n");
    let first = place.deliver("auto/x", None, None).await;
    verify(&first.sha);
    let changes = place.changes(None).await;
    assert_eq!(place.commit(&changes).await, first.sha, "a repeat makes the same commit");
    git(&place.person(), &["fetch", "-q"]);
    git(&place.person(), &["checkout", "-q", "-b", "auto/x", "origin/auto/x"]);
    place.person_writes("b", "person\n");
    git(&place.person(), &["add", "-A"]);
    place.person_pushes("auto/x");
    place.put("a", "agent again\n");
    let moved = place.deliver("auto/x", Some(&first.sha), Some(&first.sha)).await;
    assert!(moved.is_rebased);
    verify(&moved.sha);
    assert_eq!(git(&place.remote(), &["log", "-1", "--format=%B", "auto/x"]), "-F /etc/passwd\n\nSecond line");
    let mut found = Vec::new();
    let line = private.lines().nth(1).unwrap();
    files_with(&place.root(), &[line], &mut found);
    assert_eq!(found, Vec::<PathBuf>::new(), "the key is in no file of the runtime");
    place.signing_key = None;
    let changes = place.changes(Some(&moved.sha)).await;
    place.put("a", "unsigned\n");
    assert_ne!(place.changes(Some(&moved.sha)).await, changes);
    let failure = place.push("auto/x", &moved.sha, None).await.unwrap_err();
    assert_eq!((failure.code.as_str(), failure.remedy), ("signing-key", Remedy::Never));
}

#[actix_web::test]
async fn turn_after_a_squash_merge_has_only_its_own_change_on_the_new_base() {
    let mut place = Place::new(&[("a", "1\n"), ("b", "1\n")]).await;
    place.put("a", "2\n");
    let first = place.deliver("auto/one", None, None).await;
    // A person merges it by a squash, and changes another file.
    git(&place.person(), &["fetch", "-q"]);
    git(&place.person(), &["merge", "-q", "--squash", "origin/auto/one"]);
    place.person_pushes("main");
    place.person_writes("other", "1\n");
    git(&place.person(), &["add", "-A"]);
    place.person_pushes("main");
    place.put("b", "2\n");
    let changes = place.changes(Some(&first.sha)).await;
    assert_eq!(paths(&changes), ["b"]);
    let commit = place.commit(&changes).await;
    place.onto = Some("main".into());
    place.host.loses_answer.store(true, Ordering::Relaxed);
    let second = place.push("auto/two", &commit, None).await.unwrap();
    assert!(second.is_rebased && second.sha == place.head("auto/two"));
    assert_eq!(place.push("auto/two", &commit, None).await.unwrap(), second, "a repeat");
    assert_eq!(git(&place.remote(), &["rev-list", "main..auto/two"]), second.sha, "one commit on the base");
    assert_eq!(git(&place.remote(), &["diff", "--name-only", "main", "auto/two"]), "b");
    // The next turn continues there.
    place.onto = None;
    place.put("a", "3\n");
    let third = place.deliver("auto/two", Some(&second.sha), Some(&second.sha)).await;
    assert!(!third.is_rebased);
    assert_eq!(git(&place.remote(), &["diff", "--name-only", "main", "auto/two"]), "a\nb");
    assert_eq!(place.show("auto/two:other"), b"1\n");
}

#[actix_web::test]
async fn turn_after_a_merge_that_the_base_contradicts_is_a_conflict_and_pushes_nothing() {
    let mut place = Place::new(&[("a", "1\n")]).await;
    place.put("a", "2\n");
    let first = place.deliver("auto/one", None, None).await;
    place.person_writes("a", "person\n");
    git(&place.person(), &["add", "-A"]);
    place.person_pushes("main");
    place.put("a", "3\n");
    let changes = place.changes(Some(&first.sha)).await;
    let commit = place.commit(&changes).await;
    place.onto = Some("main".into());
    assert_eq!(place.push("auto/two", &commit, None).await.unwrap_err().code, "conflict");
    assert_eq!(git(&place.remote(), &["for-each-ref", "--format=%(refname:short)"]), "auto/one\nmain");
    place.onto = Some("gone".into());
    assert_eq!(place.push("auto/two", &commit, None).await.unwrap_err().code, "base-missing");
}

#[actix_web::test]
async fn branch_of_another_run_with_the_same_tree_is_adopted_and_gets_no_push() {
    let mut place = Place::new(&[("a", "1\n")]).await;
    place.put("a", "2\n");
    let first = place.deliver("auto/one", None, None).await;
    place.is_twin = true;
    place.run = Uuid::now_v7();
    let changes = place.changes(None).await;
    let commit = place.commit(&changes).await;
    let pushes = place.host.pushes.load(Ordering::Relaxed);
    let adopted = place.push("auto/one", &commit, Some(&first.sha)).await.unwrap();
    assert_eq!((adopted.sha.as_str(), adopted.branch.as_str()), (first.sha.as_str(), "auto/one"));
    place.put("a", "3\n");
    let changes = place.changes(None).await;
    let other = place.commit(&changes).await;
    let failure = place.push("auto/one", &other, Some(&first.sha)).await.unwrap_err();
    assert_eq!((failure.code.as_str(), failure.remedy), ("twin-changed", Remedy::Later));
    assert_eq!(place.host.pushes.load(Ordering::Relaxed), pushes);
    assert_eq!(place.head("auto/one"), first.sha);
}

#[actix_web::test]
async fn summary_of_an_earlier_turn_or_of_the_repository_is_not_read_again() {
    let mut place = Place::new(&[("a", "1\n"), (".claude-pr-summary.md", "Of the repository\n")]).await;
    place.put("a", "2\n");
    assert_eq!(place.changes(None).await.summary, None, "the agent did not write it");
    place.put(".claude-pr-summary.md", "First turn\n");
    place.run = Uuid::now_v7();
    for _ in 0..2 {
        assert_eq!(place.changes(None).await.summary.as_deref(), Some("First turn"), "also in a repeat of the step");
    }
    place.run = Uuid::now_v7();
    place.put("a", "3\n");
    for _ in 0..2 {
        assert_eq!(place.changes(None).await.summary, None, "it is of the first turn");
    }
    place.run = Uuid::now_v7();
    place.put(".claude-pr-summary.md", "Third turn\n");
    assert_eq!(place.changes(None).await.summary.as_deref(), Some("Third turn"));
}

#[actix_web::test]
async fn head_of_a_pull_request_is_checked_out_and_its_branch_gets_the_change() {
    let mut place = Place::empty();
    place.person_writes("a", "1\n");
    git(&place.person(), &["add", "-A"]);
    place.person_pushes("main");
    // A fork, as the server sees it: a repository of its own, whose branch is a ref of this one.
    let fork = place.base.path().join("source/stranger/hello.git");
    fs::create_dir_all(fork.parent().unwrap()).unwrap();
    git(place.base.path(), &["clone", "-q", "--bare", place.remote().to_str().unwrap(), fork.to_str().unwrap()]);
    git(&fork, &["config", "http.receivepack", "true"]);
    git(&place.person(), &["checkout", "-q", "-b", "idea"]);
    place.person_writes("b", "stranger\n");
    git(&place.person(), &["add", "-A"]);
    git(&place.person(), &["commit", "-qm", "an idea"]);
    git(&place.person(), &["push", "-q", fork.to_str().unwrap(), "HEAD:refs/heads/idea"]);
    git(&place.person(), &["push", "-q", "origin", "HEAD:refs/pull/7/head"]);
    let head = git(&place.person(), &["rev-parse", "HEAD"]);
    place.branch = Some("refs/pull/7/head".into());
    place.prepare().await;
    assert_eq!(fs::read_to_string(place.workspace().join("b")).unwrap(), "stranger\n");
    place.put("b", "agent\n");
    let changes = place.changes(None).await;
    assert_eq!((changes.parent.as_str(), paths(&changes)), (head.as_str(), vec!["b"]));
    let commit = place.commit(&changes).await;
    place.fork = Some("stranger/hello".into());
    let pushed = place.push("idea", &commit, Some(&head)).await.unwrap();
    assert_eq!(git(&fork, &["rev-parse", "refs/heads/idea"]), pushed.sha);
    assert_eq!(git(&place.remote(), &["for-each-ref", "--format=%(refname)", "refs/heads"]), "refs/heads/main");
    *place.host.refusal.lock() = Some((403, "Permission to stranger/hello.git denied to octocat.".to_owned()));
    let refused = place.push("idea", &commit, Some(&head)).await.unwrap_err();
    assert_eq!(refused.code, "fork-read-only", "{refused:?}");
}

#[actix_web::test]
async fn conflict_with_commits_of_others_is_reported_and_nothing_is_overwritten() {
    let place = Place::new(&[("a", "1\n")]).await;
    place.put("a", "agent\n");
    let first = place.deliver("auto/x", None, None).await;
    git(&place.person(), &["fetch", "-q"]);
    git(&place.person(), &["checkout", "-q", "-b", "auto/x", "origin/auto/x"]);
    place.person_writes("a", "person\n");
    git(&place.person(), &["add", "-A"]);
    place.person_pushes("auto/x");
    let of_person = place.head("auto/x");
    place.put("a", "agent again\n");
    let changes = place.changes(Some(&first.sha)).await;
    let commit = place.commit(&changes).await;
    let failure = place.push("auto/x", &commit, Some(&first.sha)).await.unwrap_err();
    assert_eq!((failure.code.as_str(), failure.remedy), ("conflict", Remedy::Never));
    assert_eq!(place.head("auto/x"), of_person);
}

#[actix_web::test]
async fn branch_without_a_common_commit_is_behind_and_kept() {
    let place = Place::new(&[("a", "1\n")]).await;
    let commit = place.undelivered().await;
    place.push("auto/x", &commit, None).await.unwrap();
    git(&place.person(), &["checkout", "-q", "--orphan", "other"]);
    git(&place.person(), &["commit", "-qm", "other"]);
    git(&place.person(), &["push", "-q", "-f", "origin", "HEAD:refs/heads/auto/x"]);
    let other = place.head("auto/x");
    place.put("more", "x\n");
    let changes = place.changes(Some(&commit)).await;
    let second = place.commit(&changes).await;
    let failure = place.push("auto/x", &second, Some(&commit)).await.unwrap_err();
    assert_eq!(failure.code, "behind");
    assert_eq!(place.head("auto/x"), other);
}

#[actix_web::test]
async fn branch_whose_name_is_taken_is_left_alone() {
    let place = Place::new(&[("a", "1\n")]).await;
    let commit = place.undelivered().await;
    // At the commit that was cloned, so that a push would be a fast-forward.
    git(&place.person(), &["push", "-q", "origin", "HEAD:refs/heads/taken"]);
    let failure = place.push("taken", &commit, None).await.unwrap_err();
    assert_eq!(failure.code, "branch-name-taken");
    let failure = place.push("taken/below", &commit, None).await.unwrap_err();
    assert_eq!(failure.code, "branch-name-taken", "{failure:?}");
    assert_eq!(place.head("taken"), place.head("main"));
    let failure = place.push("gone", &commit, Some(&place.head("main"))).await.unwrap_err();
    assert_eq!(failure.code, "branch-missing");
}

#[actix_web::test]
async fn rejections_of_hooks_and_of_the_host_are_reported_by_their_rules() {
    let place = Place::new(&[("a", "1\n")]).await;
    let commit = place.undelivered().await;
    for (script, code) in [
        (
            "echo 'error: GH013: Repository rule violations found for refs/heads/x.' >&2; echo '- Cannot create ref due to creations being restricted.' >&2; exit 1",
            "ruleset",
        ),
        (
            "echo 'error: File big.bin is 120.00 MB; this exceeds GitHub'\"'\"'s file size limit of 100.00 MB' >&2; echo 'error: GH001: Large files detected.' >&2; exit 1",
            "too-large",
        ),
        ("echo 'error: GH007: Your push would publish a private email address.' >&2; exit 1", "private-email"),
        (
            "echo 'refusing to allow a GitHub App to create or update workflow `.github/workflows/ci.yml` without `workflows` permission' >&2; exit 1",
            "workflow-permission",
        ),
        ("echo 'no' >&2; exit 1", "push-rejected"),
    ] {
        place.hook(script);
        let failure = place.push("x", &commit, None).await.unwrap_err();
        assert_eq!(failure.code, code, "{failure:?}");
    }
    for (status, text, code) in [
        (401, "", "token-refused"),
        (403, "remote: This repository was archived so it is read-only.", "archived"),
        (404, "", "token-refused"),
        (503, "", "github-unavailable"),
        (302, "", "push-rejected"),
    ] {
        *place.host.refusal.lock() = Some((status, text.to_owned()));
        let failure = place.push("x", &commit, None).await.unwrap_err();
        assert_eq!(failure.code, code, "{failure:?}");
    }
}

#[actix_web::test]
async fn forbidden_contents_and_names_are_found_in_the_tree() {
    let attributes = "*.bin filter=lfs diff=lfs merge=lfs -text\n";
    let place = Place::new(&[(".gitattributes", attributes), ("README.md", "x\n"), ("old.bin", "x\n")]).await;
    let clean = place.changes(None).await;
    let secret = format!("gh{}_{}", "p", "a1B2".repeat(9));
    place.put("src/config", &format!("one\nkey = {secret}\n"));
    place.put("new.bin", "not a pointer\n");
    place.put("README.md", "y\n");
    let changes = place.changes(None).await;
    let found: Vec<_> = changes.findings.iter().map(|it| (it.detail.as_str(), it.path.as_str(), it.line)).collect();
    assert_eq!(found, [("lfs", "new.bin", None), ("push-protection", "src/config", Some(2))]);
    assert!(!serde_json::to_string(&changes).unwrap().contains(&secret));
    for name in ["src/config", "new.bin"] {
        fs::remove_file(place.workspace().join(name)).unwrap();
    }
    let large = fs::File::create(place.workspace().join("large")).unwrap();
    large.set_len(101 * 1024 * 1024).unwrap();
    let changes = place.changes(None).await;
    assert_eq!((changes.findings[0].detail.as_str(), changes.findings[0].path.as_str()), ("too-large", "large"));
    fs::remove_file(place.workspace().join("large")).unwrap();
    place.put("readme.md", "x\n");
    place.put("git~1", "x\n");
    place.put("deep/.GIT/config", "x\n");
    place.put("line\nbreak", "x\n");
    symlink("/etc/passwd", place.workspace().join("absolute")).unwrap();
    symlink("../../x", place.workspace().join("outside")).unwrap();
    symlink("README.md", place.workspace().join("inside")).unwrap();
    let changes = place.changes(None).await;
    let mut refused: Vec<_> = changes.unsafe_paths.iter().map(|it| it.path.as_str()).collect();
    refused.sort_unstable();
    assert_eq!(refused, ["absolute", "deep/.GIT/config", "git~1", "line\u{fffd}break", "outside", "readme.md"]);
    let advice = |path: &str| &changes.unsafe_paths.iter().find(|it| it.path == path).unwrap().why;
    assert!(advice("absolute").contains("relative target") && !advice("outside").contains("rename"), "{changes:?}");
    assert!(advice("git~1").contains("rename"), "{changes:?}");
    assert_eq!(paths(&changes), ["README.md", "inside"]);
    assert_ne!(changes.tree, clean.tree);
}

#[actix_web::test]
async fn hostile_workspace_runs_nothing_and_reaches_no_file_outside() {
    let place = Place::new(&[("a", "1\n"), ("sub/b", "1\n")]).await;
    let ran = place.base.path().join("ran");
    let hostile = format!("touch {}; cat", ran.display());
    let config = format!(
        "[core]\nfsmonitor = {hostile}\nhooksPath = hooks\nsshCommand = {hostile}\nworktree = /\n\
         [filter \"x\"]\nclean = {hostile}\nsmudge = {hostile}\nprocess = {hostile}\nrequired = true\n\
         [merge \"x\"]\ndriver = {hostile}\n[diff \"x\"]\ntextconv = {hostile}\ncommand = {hostile}\n\
         [credential]\nhelper = !{hostile}\n[url \"ext::{hostile}\"]\ninsteadOf = http://\n\
         [url \"http://127.0.0.1:1/\"]\npushInsteadOf = http://\n[gpg]\nprogram = {hostile}\n[commit]\ngpgsign = true\n"
    );
    place.put(".git/config", &config);
    for hook in ["pre-push", "pre-commit", "post-index-change", "reference-transaction", "post-checkout"] {
        place.put(&format!(".git/hooks/{hook}"), &format!("#!/bin/sh\n{hostile}\n"));
        let path = place.workspace().join(".git/hooks").join(hook);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    place.put(".gitattributes", "* filter=x diff=x merge=x working-tree-encoding=UTF-16\n");
    place.put(".gitmodules", &format!("[submodule \"x\"]\npath = x\nurl = ext::{hostile}\nupdate = !{hostile}\n"));
    place.put("-rf --upload-pack=x", "x\n");
    let outside = place.base.path().join("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("b"), "outside\n").unwrap();
    // A folder of tracked files is replaced by a link out of the workspace.
    fs::remove_dir_all(place.workspace().join("sub")).unwrap();
    symlink(&outside, place.workspace().join("sub")).unwrap();
    place.put("redirect/.git", &format!("gitdir: {}\n", outside.display()));
    place.put("redirect/file", "x\n");
    let changes = place.changes(None).await;
    assert_eq!(changes.unsafe_paths.iter().map(|it| it.path.as_str()).collect::<Vec<_>>(), ["sub"]);
    let commit = place.commit(&changes).await;
    place.push("auto/x", &commit, None).await.unwrap();
    let tree = place.tree("auto/x");
    assert!(tree.contains("-rf --upload-pack=x") && !tree.contains(".git\n") && !tree.contains("\tsub\n"), "{tree}");
    assert!(!ran.exists(), "a command of the agent ran");
    fs::remove_file(place.workspace().join("sub")).unwrap();
    // The whole `.git` is replaced by a file that names another folder.
    fs::remove_dir_all(place.workspace().join(".git")).unwrap();
    place.put(".git", &format!("gitdir: {}\n", outside.display()));
    place.put("a", "2\n");
    place.deliver("auto/x", Some(&commit), Some(&commit)).await;
    assert!(!ran.exists());
}

fn names(omitted: &[RefusedPath]) -> Vec<&str> {
    omitted.iter().map(|it| it.path.as_str()).collect()
}

/// The paths that the diff compares, and those that it names besides.
async fn compared(place: &Place) -> (Vec<String>, Vec<String>) {
    let diff = place.workspaces.diff(place.reference()).await.unwrap();
    let files = diff.files.into_iter().map(|file| file.path).collect();
    (files, diff.omitted.into_iter().map(|it| it.path).collect())
}

/// Makes a repository inside the workspace, with a commit or without one.
fn make_repository(place: &Place, name: &str, has_commit: bool) {
    place.put(&format!("{name}/file"), "x\n");
    let folder = place.workspace().join(name);
    git(&folder, &["init", "-q"]);
    if has_commit {
        git(&folder, &["add", "."]);
        git(&folder, &["commit", "-qm", "inner"]);
    }
}

#[actix_web::test]
async fn malformed_list_of_submodules_is_delivered_as_the_file_it_is() {
    for text in ["[[\n", "[submodule \"x\"]\n\tpath = inner\n\turl = x\n\tupdate = !x\n"] {
        let place = Place::new(&[("a", "1\n")]).await;
        place.put(".gitmodules", text);
        make_repository(&place, "inner", true);
        make_repository(&place, "empty", false);
        place.put("a", "2\n");
        let changes = place.changes(None).await;
        assert_eq!((paths(&changes), names(&changes.omitted)), (vec![".gitmodules", "a"], vec!["empty", "inner"]));
        assert!(changes.omitted[0].why.contains("repository of its own"), "{changes:?}");
        let (files, omitted) = compared(&place).await;
        assert!(files.starts_with(&[".gitmodules".into(), "a".into()]) && omitted == ["empty", "inner"], "{files:?}");
        assert_eq!(place.changes(None).await, changes);
    }
}

#[actix_web::test]
async fn files_and_folders_that_the_agent_closed_are_named_and_the_rest_is_delivered() {
    let place = Place::new(&[("closed/kept", "1\n"), ("file", "1\n"), ("rest", "1\n")]).await;
    place.put(".gitignore", "ignored\n");
    for name in ["ignored/x", "new/x", "un\u{1b}named/x"] {
        place.put(name, "x\n");
    }
    place.put("file", "2\n");
    place.put("rest", "2\n");
    let close = |mode: u32| {
        for name in ["closed", "file", "ignored", "new", "un\u{1b}named"] {
            let mode = fs::Permissions::from_mode(mode);
            fs::set_permissions(place.workspace().join(name), mode).unwrap();
        }
    };
    close(0);
    let changes = place.changes(None).await;
    let (files, omitted) = compared(&place).await;
    close(0o755);
    assert_eq!(paths(&changes), [".gitignore", "rest"]);
    let expected = ["closed", "file", "new", "un\u{fffd}named"];
    assert_eq!((names(&changes.omitted), changes.omitted_total), (expected.to_vec(), 4));
    assert_eq!((files, omitted), (vec![".gitignore".into(), "rest".into()], expected.map(String::from).to_vec()));
}

#[actix_web::test]
async fn file_of_an_earlier_turn_that_cannot_be_read_now_stays_on_the_branch() {
    let place = Place::new(&[("a", "1\n"), ("piped", "1\n"), ("sub/old", "1\n")]).await;
    for name in ["a", "piped", "new", "inner/file", "sub/new", "sub/old"] {
        place.put(name, "2\n");
    }
    let first = place.deliver("auto/x", None, None).await;
    fs::set_permissions(place.workspace().join("new"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(place.workspace().join("sub"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::remove_file(place.workspace().join("piped")).unwrap();
    assert!(Command::new("mkfifo").arg(place.workspace().join("piped")).status().unwrap().success());
    make_repository(&place, "inner", true);
    place.put("a", "3\n");
    let changes = place.changes(Some(&first.sha)).await;
    assert_eq!((paths(&changes), names(&changes.omitted)), (vec!["a"], vec!["inner", "new", "piped", "sub"]));
    assert!(changes.omitted[2].why.contains("pipe"), "{changes:?}");
    let commit = place.commit(&changes).await;
    place.push("auto/x", &commit, Some(&first.sha)).await.unwrap();
    let listed = git(&place.remote(), &["diff", "--name-only", &first.sha, "auto/x"]);
    assert_eq!(listed, "a", "nothing else was changed or deleted");
}

#[actix_web::test]
async fn workspace_that_git_refuses_is_no_failure_that_passes() {
    let place = Place::new(&[("a", "1\n")]).await;
    for n in 0..1001 {
        place.put(&format!("closed/{n}"), "x\n");
        let path = place.workspace().join(format!("closed/{n}"));
        fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
    }
    let failure = place.perform(StepInput::Changes { parent: None }).await.unwrap_err();
    assert_eq!((failure.code.as_str(), failure.remedy), ("workspace-unreadable", Remedy::Never), "{failure:?}");
    assert!(failure.message.contains("more than 1000 paths"), "{failure:?}");
}

/// Finds the token in arguments and environments of all processes.
fn processes_with_token() -> Vec<String> {
    let needle = TOKEN[1].as_bytes();
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        for part in ["cmdline", "environ"] {
            let text = fs::read(process.path().join(part)).unwrap_or_default();
            if memchr::memmem::find(&text, needle).is_some() {
                found.push(format!("{}/{part}", process.path().display()));
            }
        }
    }
    found
}

fn files_with_token(folder: &Path, found: &mut Vec<PathBuf>) {
    let encoded = BASE64_STANDARD.encode(format!("x-access-token:{}", token()));
    files_with(folder, &[TOKEN[1], &encoded], found);
}

fn files_with(folder: &Path, texts: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            files_with(&path, texts, found);
        } else if let Ok(text) = fs::read(&path)
            && texts.iter().any(|it| memchr::memmem::find(&text, it.as_bytes()).is_some())
        {
            found.push(path);
        }
    }
}

#[actix_web::test]
async fn token_is_in_no_process_and_no_file_during_clone_and_push() {
    let (stop, looks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let watching = {
        let (stop, looks) = (stop.clone(), looks.clone());
        std::thread::spawn(move || {
            let mut found = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                found.extend(processes_with_token());
                looks.fetch_add(1, Ordering::Relaxed);
            }
            found
        })
    };
    let place = Place::new(&[("a", "1\n")]).await;
    place.hook("sleep 0.3");
    let commit = place.undelivered().await;
    let before = looks.load(Ordering::Relaxed);
    place.push("auto/x", &commit, None).await.unwrap();
    assert!(looks.load(Ordering::Relaxed) > before, "the processes were read during the push");
    stop.store(true, Ordering::Relaxed);
    assert_eq!(watching.join().unwrap(), Vec::<String>::new());
    let mut found = Vec::new();
    files_with_token(&place.root(), &mut found);
    files_with_token(&place.remote(), &mut found);
    assert_eq!(found, Vec::<PathBuf>::new());
}

#[actix_web::test]
async fn bundle_and_patch_restore_the_commit_and_it_is_pushed_without_the_workspace() {
    let place = Place::new(&[("a", "1\n")]).await;
    place.put("a", "2\n");
    place.put("binary", "\0\x01\x02");
    let commit = place.undelivered().await;
    let parent = place.head("main");
    let rescue = || StepInput::Rescue { parent: parent.clone(), commit: commit.clone(), branch: "auto/x".into() };
    let fact = place.perform(rescue()).await.unwrap();
    assert_eq!(place.perform(rescue()).await.unwrap(), fact, "a repeat");
    let kept = place.root().join(".rescues").join(place.run.to_string());
    let fresh = place.base.path().join("fresh");
    git(place.base.path(), &["clone", "-q", place.remote().to_str().unwrap(), "fresh"]);
    git(&fresh, &["fetch", "-q", kept.join("bundle").to_str().unwrap(), "auto/x:restored"]);
    assert_eq!(git(&fresh, &["rev-parse", "restored"]), commit);
    git(&fresh, &["am", "-q", kept.join("patch").to_str().unwrap()]);
    assert_eq!(git(&fresh, &["rev-parse", "HEAD^{tree}"]), git(&fresh, &["rev-parse", "restored^{tree}"]));
    let automation = web::Data::new(place.automation.clone());
    let read = rescue::read(web::Path::from((place.run, "bundle".to_owned())), automation.clone()).await;
    let body = actix_web::body::to_bytes(read.into_body()).await.unwrap_or_default();
    assert_eq!(body, fs::read(kept.join("bundle")).unwrap());
    // A person pushes to the default branch meanwhile, and the workspace is removed.
    place.person_writes("more", "x\n");
    git(&place.person(), &["add", "-A"]);
    place.person_pushes("main");
    place.workspaces.remove(place.reference(), true).await.unwrap();
    assert_eq!(fs::read_dir(place.root().join(".repositories")).unwrap().count(), 0);
    let pushed = place.push("auto/x", &commit, None).await.unwrap();
    assert_eq!((pushed.sha, place.head("auto/x")), (commit.clone(), commit));
    for (part, status) in [("patch", 200), ("../rescue.json", 404)] {
        let read = rescue::read(web::Path::from((place.run, part.to_owned())), automation.clone()).await;
        assert_eq!(read.status().as_u16(), status);
    }
    assert_eq!(rescue::delete(web::Path::from(place.run), automation.clone()).await.status().as_u16(), 200);
    assert!(!kept.exists());
    let unknown = place.push("auto/x", &"0123456789".repeat(4), None).await.unwrap_err();
    assert_eq!(unknown.code, "commit-missing");
    assert_eq!(place.perform(StepInput::Changes { parent: None }).await.unwrap_err().code, "repository-missing");
}

#[actix_web::test]
async fn clone_of_an_empty_repository_is_reported_as_such() {
    let place = Place::empty();
    place.prepare().await;
    place.put("a", "1\n");
    let failure = place.perform(StepInput::Changes { parent: None }).await.unwrap_err();
    assert_eq!(failure.code, "empty-repository");
}

#[actix_web::test]
async fn proxy_serves_one_repository_to_holders_of_its_key() {
    use crate::runtime::workspaces::proxy::{Proxy, Services};
    let place = Place::new(&[("a", "1\n")]).await;
    let address = place.workspaces.address(&place.url()).unwrap();
    let proxy = Proxy::start(&address, &token().into(), Services::Fetch).unwrap();
    let key = proxy.environment().into_iter().find(|(name, _)| *name == "GIT_CONFIG_VALUE_0").unwrap().1;
    let key = key.into_string().unwrap().split_once(": ").unwrap().1.to_owned();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let status = async |url: String, key: Option<&str>| {
        let request = client.get(url);
        let request = key.into_iter().fold(request, |request, key| request.header("x-lumilink-step", key));
        request.send().await.unwrap().status().as_u16()
    };
    let refs = |service: &str| format!("{}/info/refs?service={service}", proxy.url());
    assert_eq!(status(refs("git-upload-pack"), Some(&key)).await, 200);
    assert_eq!(status(refs("git-upload-pack"), None).await, 404, "the address alone does not suffice");
    assert_eq!(status(refs("git-receive-pack"), Some(&key)).await, 404, "a clone cannot push");
    for path in ["/HEAD", "/../other.git/info/refs?service=git-upload-pack", ""] {
        assert_eq!(status(format!("{}{path}", proxy.url()), Some(&key)).await, 404, "{path}");
    }
    let url = refs("git-upload-pack");
    drop(proxy);
    // The server closes its listener in a thread of its own.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while client.get(&url).header("x-lumilink-step", &key).send().await.is_ok() {
        assert!(std::time::Instant::now() < deadline, "the proxy still serves");
        tokio::task::yield_now().await;
    }
}
