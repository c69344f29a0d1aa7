//! Starts the built program, and checks that it leaves nothing behind.

use std::{fs, net::SocketAddr, os::unix::process::CommandExt, time::Duration};

use super::{
    Api, DEADLINE, Value, disk::Disk, eventually, free_port, hostile::RawRequest, metrics::Scrape, processes,
    proxy::Proxy, tokens, wait_for,
};
pub(crate) use super::{
    postgres::PostgresDatabase,
    process::{Folder, Process, without_landlock},
};

/// Started turns, without labels.
pub(crate) const TURNS_STARTED: &str = "lumilink_turns_started_total";
/// Ended turns, by route and outcome.
pub(crate) const TURNS_ENDED: &str = "lumilink_turns_ended_total";

/// The settings of a program to start.
#[derive(Debug)]
pub(crate) struct Builder {
    folder: Folder,
    settings: Vec<(String, String)>,
    config: Option<String>,
    env: Vec<(String, String)>,
    token: Option<String>,
    postgres: Option<PostgresDatabase>,
    separate_runtime: Option<String>,
    runtime_env: Vec<(String, String)>,
    behind_proxy: bool,
    disk: Option<Disk>,
    arguments: Vec<String>,
    user: Option<u32>,
    without_landlock: bool,
}

impl Builder {
    /// Adds `--set key=value`; a secret, which is refused there, as a variable.
    pub(crate) fn set(mut self, key: &str, value: impl ToString) -> Self {
        const SECRETS: [&str; 7] = [
            "server.token",
            "runtime.token",
            "database.url",
            "webhook.url",
            "webhook.secret",
            "webhook.previous_secret",
            "github.triggers.webhook_secret",
        ];
        if SECRETS.contains(&key) {
            let variable = format!("LUMILINK_{}", key.to_uppercase().replace('.', "__"));
            return self.env(&variable, &value.to_string());
        }
        self.settings.push((key.to_owned(), value.to_string()));
        self
    }

    /// Adds a flag of `serve` with its value.
    pub(crate) fn argument(mut self, flag: &str, value: &str) -> Self {
        self.arguments.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// Runs `serve` as on a kernel without Landlock.
    pub(crate) fn without_landlock(mut self) -> Self {
        self.without_landlock = true;
        self
    }

    /// Runs `serve` as this user, who gets the folder. Requires root.
    pub(crate) fn user(mut self, uid: u32) -> Self {
        self.user = Some(uid);
        self
    }

    /// Allows the agent to write in this folder, in spite of its jail.
    pub(crate) fn agent_writes(self, folder: &std::path::Path) -> Self {
        let paths = super::json!([folder]);
        self.set("agent.write", paths)
    }

    /// Makes this folder in the program's folder, and allows the agent to write in it.
    pub(crate) fn agent_writes_below(self, name: &str) -> Self {
        let folder = self.folder.path().join(name);
        fs::create_dir_all(&folder).expect("a folder");
        self.agent_writes(&folder)
    }

    /// Uses the demo agent with `flags`.
    pub(crate) fn demo_agent(self, flags: &[&str]) -> Self {
        let command = super::demo_agent(flags);
        self.set("agent.command", command)
    }

    /// Adds a configuration file.
    pub(crate) fn config(mut self, toml: &str) -> Self {
        self.config = Some(toml.to_owned());
        self
    }

    /// Adds an environment variable.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The folder in which it works.
    pub(crate) fn path(&self) -> std::path::PathBuf {
        self.folder.path().to_owned()
    }

    /// Works in this folder instead of a new one.
    pub(crate) fn folder(mut self, folder: &Folder) -> Self {
        self.folder = folder.clone();
        self
    }

    /// Uses a temporary `PostgreSQL` database.
    pub(crate) fn postgres(mut self) -> Self {
        self.postgres = Some(PostgresDatabase::create());
        self
    }

    /// Requires a bearer token, which the program's [`Api`] sends.
    pub(crate) fn token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self.set("server.token", token)
    }

    /// Runs the container side as a separate process; the supervisor authenticates to it with `token`.
    pub(crate) fn separate_runtime(mut self, token: &str) -> Self {
        self.separate_runtime = Some(token.to_owned());
        self
    }

    /// Adds a variable to the environment of the process with the runtime: the separate one if there is one.
    pub(crate) fn runtime_env(mut self, name: &str, value: &str) -> Self {
        self.runtime_env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// [`Self::separate_runtime`] behind a [`Proxy`], so that a test can restart either side and break the connection
    /// between them.
    pub(crate) fn behind_proxy(mut self) -> Self {
        self.behind_proxy = true;
        self.separate_runtime("runtime-token-0123456789")
    }

    /// Keeps its data on a disk that the test can fill.
    pub(crate) fn disk(mut self, disk: Disk) -> Self {
        self.disk = Some(disk);
        // The disk may be mounted for the program alone, with the token that it makes.
        self.token("token-of-a-small-disk-0123456789")
    }

    /// Starts the program and waits until it has announced its address.
    pub(crate) fn start(mut self) -> Program {
        let (mut runtime, mut runtime_url, mut proxy) = (None, None, None);
        if let Some(token) = self.separate_runtime.clone() {
            let (process, mut listen) = self.start_runtime(&token);
            runtime = Some(process);
            if self.behind_proxy {
                listen = proxy.insert(Proxy::start(listen)).address();
            }
            runtime_url = Some(format!("ws://{listen}/acp"));
            self = self.set("runtime.url", format!("ws://{listen}/acp")).set("runtime.token", token);
        }
        let (process, address) = self.start_supervisor();
        Program {
            api: Api::new(&format!("http://{address}"), self.client_token()),
            address,
            folder: self.folder.clone(),
            process,
            runtime,
            runtime_url,
            proxy,
            former_logs: Vec::new(),
            expected_errors: Vec::new(),
            turns_may_run: false,
            stopped: false,
            builder: self,
        }
    }

    fn start_supervisor(&self) -> (Process, SocketAddr) {
        let announce = self.folder.path().join(format!("announce-{}.json", uuid::Uuid::new_v4().simple()));
        let data = self.folder.path().join("data");
        let mut arguments = vec!["serve".to_owned(), "--listen".into(), "127.0.0.1:0".into()];
        arguments.extend(["--data-dir".into(), data.display().to_string()]);
        arguments.extend(["--announce".into(), announce.display().to_string()]);
        if let Some(toml) = &self.config {
            let file = self.folder.path().join("lumilink.toml");
            fs::write(&file, toml).expect("the configuration can be written");
            arguments.extend(["--config".into(), file.display().to_string()]);
        }
        arguments.extend(self.arguments.iter().cloned());
        arguments.extend(self.setting_arguments());
        let prepare = |command: &mut std::process::Command| {
            if let Some(user) = self.user {
                give(self.folder.path(), user);
                command.uid(user).gid(user);
            }
            if self.without_landlock {
                without_landlock(command);
            }
            if let Some(disk) = self.disk {
                disk.prepare(&self.folder, command);
            }
        };
        let of_runtime = self.runtime_env.iter().filter(|_| self.separate_runtime.is_none());
        let database = self.postgres.iter().map(|it| ("LUMILINK_DATABASE__URL".to_owned(), it.url()));
        let env: Vec<_> = self.env.iter().chain(of_runtime).cloned().chain(database).collect();
        let mut process = Process::start_with("serve", &self.folder, &arguments, &env, prepare);
        let announced: Value = wait_for(DEADLINE, "the program announces its address", || {
            process.assert_running();
            serde_json::from_str(&fs::read_to_string(&announce).ok()?).ok()
        });
        let base = announced["http"].as_str().expect("`http` is a string").to_owned();
        assert_eq!(announced["pid"].as_i64(), Some(i64::from(process.pid())), "the announced pid");
        let address = base.strip_prefix("http://").and_then(|it| it.parse().ok()).expect("http://ADDR:PORT");
        if self.token.is_none()
            && let Some(token) = self.client_token()
        {
            tokens::add(address, &token);
        }
        (process, address)
    }

    /// The configured token, else that of the data folder.
    fn client_token(&self) -> Option<String> {
        self.token.clone().or_else(|| tokens::of_folder(&self.folder.path().join("data")))
    }

    fn start_runtime(&self, token: &str) -> (Process, SocketAddr) {
        let listen = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let root = self.folder.path().join("runtime-workspaces");
        fs::create_dir_all(&root).expect("a folder");
        let mut arguments = vec!["runtime".to_owned()];
        let settings = [("runtime.listen", listen.to_string()), ("workspaces.root", root.display().to_string())];
        for (key, value) in settings {
            arguments.extend(["--set".to_owned(), format!("{key}={value}")]);
        }
        arguments.extend(self.setting_arguments());
        let mut env: Vec<_> = self.env.iter().chain(&self.runtime_env).cloned().collect();
        env.push(("LUMILINK_RUNTIME__TOKEN".to_owned(), token.to_owned()));
        let mut process = Process::start("runtime", &self.folder, &arguments, &env);
        wait_for(DEADLINE, "the runtime listens", || {
            process.assert_running();
            std::net::TcpStream::connect(listen).ok()
        });
        (process, listen)
    }

    fn setting_arguments(&self) -> Vec<String> {
        self.settings.iter().flat_map(|(key, value)| ["--set".to_owned(), format!("{key}={value}")]).collect()
    }
}

/// A running program. Dropping it stops it and checks its end: exit code 0 after SIGTERM, no unexpected ERROR in its
/// log, as many ended as started turns, and no process left.
#[derive(Debug)]
pub(crate) struct Program {
    /// A client of its HTTP API.
    pub api: Api,
    /// The address that it listens on.
    pub address: SocketAddr,
    /// Its folder.
    pub folder: Folder,
    process: Process,
    runtime: Option<Process>,
    runtime_url: Option<String>,
    proxy: Option<Proxy>,
    /// The logs of replaced processes.
    former_logs: Vec<String>,
    expected_errors: Vec<String>,
    turns_may_run: bool,
    stopped: bool,
    /// Its settings, for a restart; owns its database.
    builder: Builder,
}

impl Program {
    /// Settings with the defaults: SQLite, embedded runtime, demo agent.
    pub(crate) fn builder() -> Builder {
        Builder {
            folder: Folder::new(),
            settings: Vec::new(),
            config: None,
            env: Vec::new(),
            token: None,
            postgres: None,
            separate_runtime: None,
            runtime_env: Vec::new(),
            behind_proxy: false,
            disk: None,
            arguments: Vec::new(),
            user: None,
            without_landlock: false,
        }
    }

    /// Starts a program with the defaults of [`Self::builder`].
    pub(crate) fn start() -> Self {
        Self::builder().start()
    }

    /// Permits ERROR log lines that contain `text`.
    pub(crate) fn expect_error(&mut self, text: &str) {
        self.expected_errors.push(text.to_owned());
    }

    /// Skips the check that every started turn has ended, for a test that stops the program in the middle of a turn.
    pub(crate) fn turns_may_run(&mut self) {
        self.turns_may_run = true;
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// The separate runtime.
    pub(crate) fn runtime(&mut self) -> &mut Process {
        self.runtime.as_mut().expect("the program has a separate runtime")
    }

    /// Its log so far.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// Scrapes its metrics, over a blocking socket.
    pub(crate) fn metrics(&self) -> Scrape {
        scrape(self.address, self.builder.client_token().as_deref())
    }

    /// Scrapes the metrics of the separate runtime, through the proxy if there is one.
    pub(crate) fn runtime_metrics(&self) -> Scrape {
        scrape(self.runtime_address(), self.builder.separate_runtime.as_deref())
    }

    /// The address of the separate runtime, or of the proxy before it.
    pub(crate) fn runtime_address(&self) -> SocketAddr {
        let url = self.runtime_url();
        let address = url.strip_prefix("ws://").and_then(|url| url.strip_suffix("/acp"));
        address.and_then(|address| address.parse().ok()).expect("ws://ADDR:PORT/acp")
    }

    /// The `[runtime] url` of a program with a separate runtime.
    pub(crate) fn runtime_url(&self) -> String {
        self.runtime_url.clone().expect("the program has a separate runtime")
    }

    /// Sends a signal to the program itself.
    pub(crate) fn signal(&self, signal: i32) {
        processes::signal(self.pid(), signal);
    }

    /// The proxy between supervisor and runtime. Requires [`Builder::behind_proxy`].
    pub(crate) fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("the program was started behind a proxy")
    }

    /// Kills the supervisor alone with SIGKILL, like the kernel's out-of-memory killer.
    pub(crate) fn kill_supervisor(&mut self) {
        processes::signal(self.process.pid(), libc::SIGKILL);
        self.process.wait(DEADLINE);
    }

    /// Restarts the supervisor on the same data. Its address changes; [`Api`] and its sessions follow.
    pub(crate) fn start_supervisor_again(&mut self) {
        self.former_logs.push(self.process.log());
        let (process, address) = self.builder.start_supervisor();
        (self.process, self.address, self.stopped) = (process, address, false);
        self.api.move_to(&format!("http://{address}"));
    }

    /// Kills the runtime alone with SIGKILL.
    pub(crate) fn kill_runtime(&mut self) {
        let runtime = self.runtime.as_mut().expect("the program has a separate runtime");
        processes::signal(runtime.pid(), libc::SIGKILL);
        runtime.wait(DEADLINE);
    }

    /// Stops the runtime with SIGTERM and waits for its exit.
    pub(crate) fn stop_runtime(&mut self) {
        let runtime = self.runtime.as_mut().expect("the program has a separate runtime");
        processes::signal(runtime.pid(), libc::SIGTERM);
        runtime.wait(DEADLINE);
    }

    /// Restarts the runtime. Its address changes; the proxy follows. Requires [`Builder::behind_proxy`].
    pub(crate) fn start_runtime_again(&mut self) {
        let token = self.builder.separate_runtime.clone().expect("the program has a separate runtime");
        let (process, listen) = self.builder.start_runtime(&token);
        let former = self.runtime.replace(process);
        self.former_logs.extend(former.map(|former| former.log()));
        self.proxy().target(listen);
    }

    /// The process ids of this run's running demo agents.
    pub(crate) fn agents(&self) -> Vec<i32> {
        let mut found = processes::with_marker(self.folder.path());
        found.retain(|process| process.command.contains("demo-agent"));
        found.into_iter().map(|process| process.pid).collect()
    }

    /// Kills the program and its children with SIGKILL, like a power cut.
    pub(crate) fn kill(&mut self) {
        self.stopped = true;
        self.kill_everything();
    }

    /// Sends SIGTERM and waits for the end; returns the exit code, `None` after a signal.
    pub(crate) fn terminate(&mut self, deadline: Duration) -> Option<i32> {
        self.signal(libc::SIGTERM);
        self.ends(deadline)
    }

    /// Waits for the end of a program that is stopping; returns the exit code, `None` after a signal.
    pub(crate) fn ends(&mut self, deadline: Duration) -> Option<i32> {
        let status = self.process.wait(deadline);
        self.stopped = true;
        status.code()
    }

    /// Stops the program with all checks; returns its folder, for a test that continues with the same data.
    pub(crate) fn stop(mut self) -> Folder {
        self.finish();
        self.folder.clone()
    }

    fn finish(&mut self) {
        if !self.stopped {
            self.process.assert_running();
            if !self.turns_may_run {
                eventually("every started turn has ended", || {
                    let scrape = self.metrics();
                    assert!(scrape.has(TURNS_STARTED, &[]) && scrape.has(TURNS_ENDED, &[]), "turns are counted");
                    scrape.sum(TURNS_STARTED, &[]) == scrape.sum(TURNS_ENDED, &[])
                });
            }
            let code = self.terminate(DEADLINE);
            assert_eq!(code, Some(0), "exit code after SIGTERM; the log:\n{}", self.log());
        }
        if let Some(mut runtime) = self.runtime.take() {
            runtime.assert_running();
            processes::signal(runtime.pid(), libc::SIGTERM);
            let status = runtime.wait(DEADLINE);
            assert_eq!(status.code(), Some(0), "exit code of the runtime; its log:\n{}", runtime.log());
            self.check_log(&runtime.log());
        }
        eventually("no process of this run is left", || processes::with_marker(self.folder.path()).is_empty());
        self.check_log(&self.log());
        self.former_logs.iter().for_each(|log| self.check_log(log));
    }

    fn check_log(&self, log: &str) {
        for line in log.lines() {
            let is_error = serde_json::from_str::<Value>(line)
                .map_or_else(|_| line.contains("panicked at"), |line| line["level"] == "ERROR");
            let is_expected = self.expected_errors.iter().any(|text| line.contains(text.as_str()));
            assert!(!is_error || is_expected, "unexpected ERROR in the log: {line}");
        }
    }

    fn kill_everything(&mut self) {
        self.process.kill();
        if let Some(runtime) = &mut self.runtime {
            runtime.kill();
        }
        for left in processes::with_marker(self.folder.path()) {
            processes::signal(left.pid, libc::SIGKILL);
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        /// Kills all remaining processes, even if a check fails.
        struct Kill<'a>(&'a mut Program);
        impl Drop for Kill<'_> {
            fn drop(&mut self) {
                self.0.kill_everything();
            }
        }
        let program = Kill(self);
        if std::thread::panicking() {
            let log = program.0.log();
            let tail: Vec<_> = log.lines().rev().take(40).collect();
            eprintln!("--- end of the program's log ---");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
            return;
        }
        program.0.finish();
    }
}

/// Changes the owner of a folder and everything in it.
fn give(path: &std::path::Path, user: u32) {
    std::os::unix::fs::lchown(path, Some(user), Some(user)).expect("root changes owners");
    if path.is_dir() && !path.is_symlink() {
        fs::read_dir(path).expect("a folder").flatten().for_each(|entry| give(&entry.path(), user));
    }
}

fn scrape(address: SocketAddr, token: Option<&str>) -> Scrape {
    let mut request = RawRequest::new("GET", "/metrics").header("Host", &address.to_string());
    if let Some(token) = token {
        request = request.header("Authorization", &format!("Bearer {token}"));
    }
    let answer = request.send(address);
    assert_eq!(answer.status, 200, "GET /metrics: {}", answer.body);
    let text = match answer.header("transfer-encoding") {
        Some(coding) if coding.contains("chunked") => dechunk(&answer.body),
        _ => answer.body,
    };
    Scrape::parse(&text)
}

fn dechunk(body: &str) -> String {
    let (mut rest, mut text) = (body, String::new());
    while let Some((size, after)) = rest.split_once("\r\n") {
        let Ok(size @ 1..) = usize::from_str_radix(size.trim(), 16) else { break };
        text.push_str(&after[..size]);
        rest = after[size..].trim_start_matches("\r\n");
    }
    text
}

#[test]
fn chunked_body_is_decoded() {
    assert_eq!(dechunk("3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n"), "abcd");
}
