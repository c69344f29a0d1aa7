//! SIGHUP: a reload of the configuration, or a drain when the terminal of the process was closed.

use std::{
    fs,
    fs::File,
    io::Read,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::harness::{
    Api, DEADLINE, Program, Value, eventually, free_port,
    git_server::GitServer,
    github::GitHub,
    hostile::RawRequest,
    json, lumilink,
    postgres::PostgresDatabase,
    process::{Folder, Process},
    processes,
    receiver::Receiver,
    tokens, wait_for,
};
use crate::triggers;

const OLD: &str = "old-token-0123456789";
const NEW: &str = "new-token-0123456789";

fn write(folder: &Folder, toml: &str) {
    fs::write(folder.path().join("lumilink.toml"), toml).expect("a file");
}

fn api(program: &Program, token: &str) -> Api {
    Api::new(&program.api.base(), Some(token.to_owned()))
}

fn status(program: &Program, token: &str) -> u16 {
    api(program, token).get("/acp/sessions").status
}

/// Sends SIGHUP and waits for the log line with this message that follows.
fn reload(program: &Program, message: &str) -> Value {
    let before = program.log().len();
    program.signal(libc::SIGHUP);
    wait_for(DEADLINE, message, || {
        let log = program.log();
        let mut lines = log.get(before..)?.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.find(|line| line["message"] == message)
    })
}

#[test]
fn rotated_token_works_after_sighup_and_the_old_one_is_refused() {
    let mut program = Program::builder().config(&format!("[server]\ntoken = '{OLD}'\n")).start();
    // The harness has no token.
    program.turns_may_run();
    assert_eq!((status(&program, OLD), status(&program, NEW)), (200, 401));
    let session = api(&program, OLD).open("ws");
    let (_, mut stream) = session.is_busy_with("echo started ; sleep 1 ; echo finished");
    write(&program.folder, &format!("log.level = 'debug'\n[server]\ntoken = '{NEW}'\n[turn]\ncancel_grace_s = 9\n"));
    let line = reload(&program, "configuration reloaded in part");
    assert_eq!(
        (&line["reloaded"], &line["needs_restart"]),
        (&json!("log.level, server.token"), &json!("turn.cancel_grace_s"))
    );
    assert_eq!((status(&program, OLD), status(&program, NEW)), (401, 200));
    let ended = crate::harness::sse::message_of(&stream.rest());
    assert!(ended.contains("finished"), "the running turn is not disturbed: {ended}");
    eventually("the new filter logs more", || program.log().contains(r#""level":"DEBUG""#));
    assert!(!program.log().contains(OLD) && !program.log().contains(NEW));
    // A second reload repeats what still needs a restart, and nothing else.
    let line = reload(&program, "configuration reloaded in part");
    assert_eq!((&line["reloaded"], &line["needs_restart"]), (&json!(""), &json!("turn.cancel_grace_s")));
}

#[test]
fn invalid_file_keeps_the_old_settings_until_it_is_repaired() {
    let mut program = Program::builder().config(&format!("[server]\ntoken = '{OLD}'\n")).start();
    program.turns_may_run();
    program.expect_error("configuration not reloaded");
    for invalid in [
        format!("[server]\ntoken = '{NEW}'\n[turn]\ncancel_grace_s = 'soon'\n"),
        format!("[server]\ntoken = '{NEW}'\nallowed_hosts = ['a b']\n"),
        format!("[server\ntoken = '{NEW}'\n"),
    ] {
        write(&program.folder, &invalid);
        let line = reload(&program, "configuration not reloaded; the old settings remain");
        assert!(!line["cause"].as_str().unwrap_or_default().is_empty(), "{line}");
        assert_eq!((status(&program, OLD), status(&program, NEW)), (200, 401), "{invalid}");
    }
    assert_eq!(api(&program, OLD).open("ws").says("echo works"), "works");
    write(&program.folder, &format!("[server]\ntoken = '{NEW}'\n"));
    reload(&program, "configuration reloaded");
    assert_eq!((status(&program, OLD), status(&program, NEW)), (401, 200));
    assert!(!program.log().contains(NEW));
}

#[test]
fn blocked_repository_is_skipped_after_sighup() {
    let server = GitServer::start();
    let program = Program::builder().set("workspaces.git_hosts", format!("[\"{}\"]", server.host)).config("").start();
    let body = json!({"workspaceId": "ws", "installationId": "tenant-1", "repository": server.repository()});
    let session = program.api.open_with(body);
    let reason = || session.completes("write a.txt hello")["githubAutomation"]["skipReason"].clone();
    assert_eq!(reason(), "missingCredential");
    write(&program.folder, "[github]\nblocked_repositories = ['octo/*']\n");
    let line = reload(&program, "configuration reloaded");
    assert_eq!(line["reloaded"], "github.blocked_repositories");
    assert_eq!(reason(), "repoBlocked");
}

#[test]
fn webhook_is_signed_with_the_new_secret_after_sighup() {
    let secrets = ["correct-horse-battery-staple-1", "correct-horse-battery-staple-2"];
    let receiver = Receiver::start([]);
    let config = |secret: &str| format!("[webhook]\nurl = '{}'\nsecret = '{secret}'\n", receiver.url());
    let builder = Program::builder().set("capacity.max_sessions", 2).set("capacity.warn_bp", 5000);
    let builder = builder.set("capacity.resolve_bp", 4000).set("capacity.resolve_after_s", 0);
    let program = builder.config(&config(secrets[0])).start();
    let signed_by = |posts: usize, secret: &str| {
        eventually("the alert is posted", || receiver.posts().len() >= posts);
        let post = receiver.posts().pop().expect("a post");
        let webhook = standardwebhooks::Webhook::from_bytes(secret.as_bytes().to_vec()).expect("a secret");
        webhook.verify(&post.body, &post.headers).is_ok()
    };
    let session = program.api.open("ws");
    assert!(signed_by(1, secrets[0]));
    write(&program.folder, &config(secrets[1]));
    assert_eq!(reload(&program, "configuration reloaded")["reloaded"], "webhook.secret");
    session.post("close", json!({})).expect(200);
    assert!(signed_by(2, secrets[1]));
    assert!(!program.log().contains("battery"));
}

#[test]
fn webhook_posts_to_the_new_path_after_sighup_and_not_to_another_server() {
    let receiver = Receiver::start([]);
    let base = receiver.url();
    let config = |url: &str| format!("[webhook]\nurl = '{url}'\nsecret = 'correct-horse-battery-staple-1'\n");
    let builder = Program::builder().set("capacity.max_sessions", 2).set("capacity.warn_bp", 5000);
    let builder = builder.set("capacity.resolve_bp", 4000).set("capacity.resolve_after_s", 0);
    let program = builder.config(&config(&format!("{base}/first-secret-path"))).start();
    let line_of = |posts: usize| receiver.gets(posts).pop().expect("a post").line;
    let session = program.api.open("ws");
    assert!(line_of(1).contains("/first-secret-path "));
    write(&program.folder, &config(&format!("{base}/second-secret-path")));
    assert_eq!(reload(&program, "configuration reloaded")["reloaded"], "webhook.url");
    session.post("close", json!({})).expect(200);
    assert!(line_of(2).contains("/second-secret-path "));
    write(&program.folder, &config("https://hooks.example.com/second-secret-path"));
    let line = reload(&program, "configuration reloaded in part");
    assert_eq!((&line["reloaded"], &line["needs_restart"]), (&json!(""), &json!("webhook.url")));
    assert!(!program.log().contains("secret-path"));
}

#[test]
fn changed_password_of_the_database_is_used_after_sighup() {
    let (database, first, second) = (PostgresDatabase::create(), "first-db-password", "second-db-password");
    let folder = Folder::new();
    let file = folder.path().join("database-url");
    fs::write(&file, database.with_owner(first)).expect("a file");
    let mut program = Program::builder().config(&format!("[database]\nurl_file = '{}'\n", file.display())).start();
    program.expect_error("configuration not reloaded");
    let session = program.api.open("ws");
    assert_eq!(session.says("echo before"), "before");
    // Whoever rotates writes the new password first, so that no connection is refused for long.
    let url = database.change_password(second);
    fs::write(&file, &url).expect("a file");
    assert_eq!(reload(&program, "configuration reloaded")["reloaded"], "database.url");
    eventually("the database is back", || program.api.get("/readyz").status == 200);
    assert_eq!(session.says("echo after"), "after");
    for other in [url.replace("127.0.0.1", "localhost"), format!("{url}?hostaddr=127.0.0.9")] {
        fs::write(&file, other).expect("a file");
        assert_eq!(reload(&program, "configuration reloaded in part")["needs_restart"], "database.url");
    }
    fs::write(&file, "mysql://ann:third-db-password@127.0.0.1/d").expect("a file");
    let line = reload(&program, "configuration not reloaded; the old settings remain");
    assert!(line["cause"].as_str().unwrap_or_default().contains("database.url"), "{line}");
    // Agents could read a file that their jail does not know.
    let other = folder.path().join("other-url");
    fs::write(&other, &url).expect("a file");
    write(&program.folder, &format!("[database]\nurl_file = '{}'\n", other.display()));
    let line = reload(&program, "configuration not reloaded; the old settings remain");
    assert!(line["cause"].as_str().unwrap_or_default().contains("was not named at the start"), "{line}");
    assert!(!program.log().contains("db-password"));
}

#[test]
fn setting_that_needed_a_restart_is_reloaded_once_it_applies() {
    let receiver = Receiver::start([]);
    let config = |url: &str, secret: &str| format!("[webhook]\nurl = '{url}'\nsecret = '{secret}'\n");
    let (own, other) = (receiver.url(), "https://hooks.example.com/x");
    let secrets = ["correct-horse-battery-staple-1", "correct-horse-battery-staple-2"];
    let program = Program::builder().config(&config(&own, secrets[0])).start();
    write(&program.folder, &config(other, secrets[0]));
    assert_eq!(reload(&program, "configuration reloaded in part")["needs_restart"], "webhook.url");
    write(&program.folder, &config(other, secrets[1]));
    let line = reload(&program, "configuration reloaded in part");
    assert_eq!((&line["reloaded"], &line["needs_restart"]), (&json!("webhook.secret"), &json!("webhook.url")));
    write(&program.folder, &config(&format!("{own}/new"), secrets[1]));
    assert_eq!(reload(&program, "configuration reloaded")["reloaded"], "webhook.url");
    assert_eq!(reload(&program, "configuration reloaded")["reloaded"], "");
}

#[test]
fn keys_and_webhook_secret_of_github_in_files_are_read_again_on_sighup() {
    const EMAIL: &str = "1+lumi-test[bot]@users.noreply.github.com";
    let (github, folder) = (GitHub::start(), Folder::new());
    let (old, new) = ("old-webhook-secret-of-32-characters", "new-webhook-secret-of-32-characters");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let new_key = |name: &str| {
        let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &path(name)]).status();
        assert!(made.expect("ssh-keygen runs").success());
        fs::read_to_string(path(&format!("{name}.pub"))).expect("a key")
    };
    fs::write(path("webhook"), old).expect("a file");
    let first = new_key("signing");
    github.trust("octo/hello", EMAIL, &first);
    github.demand_signatures("octo/hello", "claude-code/*");
    let mut program = Program::builder()
        .set("workspaces.git_hosts", format!("[\"{}\"]", github.host()))
        .set("github.api_url", github.api_url())
        .set("github.author_name", "lumi-test[bot]")
        .set("github.author_email", EMAIL)
        .set("turn.quiet_s", 1)
        .set("github.app_id", github.app_id())
        .set("github.triggers.enabled", true)
        .env("LUMILINK_GITHUB__PRIVATE_KEY_FILE", &github.app_key_file().display().to_string())
        .env("LUMILINK_GITHUB__SIGNING_KEY_FILE", &path("signing"))
        .env("LUMILINK_GITHUB__TRIGGERS__WEBHOOK_SECRET_FILE", &path("webhook"))
        .start();
    let bound = json!({"automation": {"installations": [77]}, "actor": "ada", "reason": "test"});
    program.api.call("PUT", "/acp/tenants/acme").json(&bound).send().expect(200);
    let body = json!({"workspaceId": "ws", "installationId": "acme", "repository": github.url("octo/hello")});
    let session = program.api.open_with(body);
    let status = |result: Value| result["githubAutomation"]["status"].clone();
    assert_eq!(status(session.completes("write a.txt hello")), "success");
    assert_eq!(triggers::ping_signed_with(old, &program.api).status, 200);
    // GitHub knows neither the old key of the App nor that of the signatures any more.
    github.replace_app_key();
    github.expire_tokens();
    fs::remove_file(path("signing")).expect("a file");
    github.trust("octo/hello", EMAIL, &new_key("signing"));
    fs::write(path("webhook"), new).expect("a file");
    let line = reload(&program, "configuration reloaded");
    assert_eq!(line["reloaded"], "github.private_key, github.signing_key, github.triggers.webhook_secret");
    let result = session.completes("write b.txt hello");
    assert_eq!(status(result.clone()), "success", "{result:#}");
    let pinged = [old, new].map(|secret| triggers::ping_signed_with(secret, &program.api).status);
    assert_eq!(pinged, [401, 200]);
    // One key that cannot be used leaves all of them as they are.
    fs::write(path("webhook"), old).expect("a file");
    fs::write(github.app_key_file(), "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n")
        .expect("a file");
    program.expect_error("configuration not reloaded");
    let line = reload(&program, "configuration not reloaded; the old settings remain");
    assert!(line["cause"].as_str().unwrap_or_default().contains("github.private_key"), "{line}");
    assert_eq!(triggers::ping_signed_with(new, &program.api).status, 200);
    assert!(!program.log().contains("-webhook-secret-of"));
}

#[test]
fn supervisor_and_runtime_use_their_new_token_after_sighup() {
    let (folder, port) = (Folder::new(), free_port());
    let listen = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let config = |token: &str| format!("[runtime]\nlisten = '{listen}'\ntoken = '{token}'\n");
    write(&folder, &config(OLD));
    let arguments = ["runtime", "--config", "lumilink.toml"].map(str::to_owned);
    let mut process = Process::start("runtime", &folder, &arguments, &[]);
    wait_for(DEADLINE, "the runtime listens", || {
        process.assert_running();
        std::net::TcpStream::connect(listen).ok()
    });
    let status = |token: &str| {
        let request = RawRequest::new("GET", "/status").header("Host", &listen.to_string());
        request.header("Authorization", &format!("Bearer {token}")).send(listen).status
    };
    let of_supervisor = |token: &str| format!("[runtime]\nurl = 'ws://{listen}/acp'\ntoken = '{token}'\n");
    let program = Program::builder().config(&of_supervisor(OLD)).start();
    let session = program.api.open("ws");
    assert_eq!(session.says("echo before"), "before");
    assert_eq!((status(OLD), status(NEW)), (200, 401));
    write(&folder, &config(NEW));
    processes::signal(process.pid(), libc::SIGHUP);
    eventually("the token is reloaded", || status(NEW) == 200);
    assert_eq!(status(OLD), 401);
    write(&program.folder, &of_supervisor(NEW));
    assert_eq!(reload(&program, "configuration reloaded")["reloaded"], "runtime.token");
    // The open connection stays, and new connections and requests are admitted.
    assert_eq!(session.says("echo after"), "after");
    assert_eq!(program.api.open("other").says("echo new"), "new");
    processes::signal(process.pid(), libc::SIGTERM);
    assert_eq!(process.wait(DEADLINE).code(), Some(0), "{}", process.log());
}

/// A process whose controlling terminal is ours.
struct InTerminal {
    child: Child,
    terminal: Option<OwnedFd>,
    reading: Arc<AtomicBool>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl InTerminal {
    fn start(folder: &Folder, arguments: &[&str]) -> Self {
        let (mut ours, mut theirs) = (-1, -1);
        let (name, settings, size) = (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: both descriptors are valid for writes; name, settings and size may be null.
        let opened = unsafe { libc::openpty(&mut ours, &mut theirs, name, settings, size) };
        assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the call has just opened both, and nothing else owns them.
        let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
        let their_end = || Stdio::from(theirs.try_clone().expect("a descriptor"));
        let (our_fd, mut command) = (ours.as_raw_fd(), Command::new(lumilink()));
        command.args(arguments).current_dir(folder.path()).env("HOME", folder.path());
        command.stdin(their_end()).stdout(their_end()).stderr(their_end());
        let prepare = move || {
            // SAFETY: system calls on the child's own descriptors and process.
            let is_set = unsafe {
                libc::close(our_fd);
                libc::setsid() >= 0 && libc::ioctl(0, libc::TIOCSCTTY, 0) == 0
            };
            if is_set { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        // SAFETY: between fork and exec, the closure only makes system calls and does not allocate.
        unsafe { command.pre_exec(prepare) };
        let child = command.spawn().expect("the program starts");
        let reading = Arc::new(AtomicBool::new(true));
        let (is_reading, mut screen) = (reading.clone(), File::from(ours.try_clone().expect("a descriptor")));
        let reader = std::thread::spawn(move || {
            let mut shown = [0; 4096];
            while is_reading.load(Ordering::Relaxed) {
                let mut polled = libc::pollfd { fd: screen.as_raw_fd(), events: libc::POLLIN, revents: 0 };
                // SAFETY: one valid entry.
                if unsafe { libc::poll(&mut polled, 1, 50) } == 1 {
                    let _ = screen.read(&mut shown);
                }
            }
        });
        Self { child, terminal: Some(ours), reading, reader: Some(reader) }
    }

    /// Closes the terminal, as the end of an SSH connection does.
    fn close_terminal(&mut self) {
        self.reading.store(false, Ordering::Relaxed);
        self.reader.take().expect("it was open").join().expect("the reader ends");
        self.terminal = None;
    }
}

impl Drop for InTerminal {
    fn drop(&mut self) {
        self.reading.store(false, Ordering::Relaxed);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn announced(file: &Path) -> String {
    let announced: Value = wait_for(DEADLINE, "the program announces its address", || {
        serde_json::from_str(&fs::read_to_string(file).ok()?).ok()
    });
    announced["http"].as_str().expect("an address").to_owned()
}

#[test]
fn closed_terminal_drains_and_the_running_turn_completes() {
    let folder = Folder::new();
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--data-dir", "data", "--announce", "announce.json"];
    let mut process = InTerminal::start(&folder, &arguments);
    let base = announced(&folder.path().join("announce.json"));
    let api = Api::new(&base, tokens::of_folder(&folder.path().join("data")));
    let session = api.open("ws");
    let (prompt_id, mut stream) = session.is_busy_with("echo started ; sleep 2 ; echo finished");
    // With its terminal the process reloads: it has no file, so nothing changes.
    processes::signal(i32::try_from(process.child.id()).expect("a pid"), libc::SIGHUP);
    assert_eq!(api.get("/readyz").status, 200);
    process.close_terminal();
    wait_for(DEADLINE, "the program drains", || {
        (api.call("GET", "/readyz").try_send().ok()?.status == 503).then_some(())
    });
    assert!(crate::harness::sse::message_of(&stream.rest()).contains("finished"));
    let status = wait_for(DEADLINE, "the program ends", || process.child.try_wait().expect("our child"));
    assert_eq!(status.code(), Some(0), "{status}");
    let program = Program::builder().folder(&folder).start();
    let turn = program.api.get(&format!("/acp/prompt/{prompt_id}")).expect(200);
    assert_eq!(turn["state"], "completed", "{turn}");
}

#[test]
fn runtime_stops_in_order_when_its_terminal_is_closed() {
    let folder = Folder::new();
    let listen = format!("runtime.listen=127.0.0.1:{}", free_port());
    let arguments = ["runtime", "--set", &listen, "--data-dir", "data", "--announce", "announce.json"];
    let mut process = InTerminal::start(&folder, &arguments);
    announced(&folder.path().join("announce.json"));
    process.close_terminal();
    let status = wait_for(DEADLINE, "the runtime ends", || process.child.try_wait().expect("our child"));
    assert_eq!(status.code(), Some(0), "{status}");
}
