//! The jail of agents, attacked from inside: by the agent's own process, by its headless command, and by a command of
//! `terminal/*`; as root and as a plain user.

use std::{
    fs,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::MetadataExt,
            net::{SocketAddr, UnixListener},
        },
    },
    path::{Path, PathBuf},
};

use crate::harness::{
    DEADLINE, Program, Session, Value, demo_agent, eventually, json, lumilink,
    process::without_landlock,
    program::{Folder, Process},
    wait_for,
};

/// Tries everything that the jail forbids, and some things that it allows. Prints an object: `true` for what succeeded.
const ATTACK: &str = r##"
import ctypes, glob, json, multiprocessing, os, pty, resource, signal, socket, subprocess, sys, urllib.request

home, other, pid, sock, address = sys.argv[1:6]
data = home + "/data"
done, facts = {}, {}
descriptors = [int(it) for it in os.listdir("/proc/self/fd")]

def attempt(name, what):
    try:
        what()
        done[name] = True
    except BaseException as cause:
        done[name] = False
        facts[name] = repr(cause)

def read(path):
    return lambda: open(path, "rb").read(1)

def write(path):
    return lambda: os.close(os.open(path, os.O_WRONLY))

def make(path):
    return lambda: os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))

attempt("database_read", read(data + "/lumilink.db"))
attempt("database_write", write(data + "/lumilink.db"))
attempt("data_truncate", lambda: os.truncate(data + "/sacrifice", 0))
attempt("data_link", lambda: os.link(data + "/sacrifice", "stolen"))
attempt("data_remove", lambda: os.unlink(data + "/sacrifice"))
attempt("data_list", lambda: os.listdir(data))
attempt("data_make", make(data + "/planted"))
attempt("token_read", read(data + "/token"))
attempt("address_read", read(data + "/address"))

def call(headers):
    url = "http://" + address + "/acp/sessions"
    return lambda: urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        urllib.request.Request(url, headers=headers), timeout=20).read()
attempt("call_without_token", call({}))
attempt("call_as_operator", lambda: call({"Authorization": "Bearer " + open(data + "/token").read().strip()})())

attempt("config_read", read(home + "/lumilink.toml"))
attempt("config_write", write(home + "/lumilink.toml"))
attempt("other_read", read(other + "/secret"))
attempt("other_write", write(other + "/secret"))
attempt("other_make", make(other + "/forged"))
attempt("other_list", lambda: os.listdir(other))
attempt("other_by_link", lambda: (os.symlink(other + "/secret", "link"), open("link").read()))
attempt("workspaces_list", lambda: os.listdir(os.path.dirname(other)))
attempt("home_write", make(home + "/planted"))
attempt("tmp_write", make("/tmp/lumilink-planted-" + pid))
attempt("tmp_list", lambda: os.listdir("/tmp"))
attempt("environ", read("/proc/" + pid + "/environ"))
attempt("memory", read("/proc/" + pid + "/mem"))
attempt("maps", read("/proc/" + pid + "/maps"))
attempt("descriptor_open", read("/proc/" + pid + "/fd/2"))
attempt("descriptor_name", lambda: os.readlink("/proc/" + pid + "/fd/2"))
attempt("root_by_proc", lambda: os.listdir("/proc/" + pid + "/root/root"))
attempt("signal", lambda: os.kill(int(pid), 0))
attempt("shadow", read("/etc/shadow"))
mounts = [line.split() for line in open("/proc/self/mounts")]
for at in [mount[1] for mount in mounts if mount[2].startswith("cgroup")]:
    attempt("control_group " + at, write(at + "/cgroup.procs"))
    for group in glob.glob(at + "/**/lumilink-*/**/cgroup.procs", recursive=True)[:20]:
        attempt("control_group " + group, write(group))
attempt("proc_write", write("/proc/sys/kernel/hostname"))
attempt("set_user", lambda: os.setuid(os.getuid() + 1 if os.getuid() == 0 else 0))
attempt("chown", lambda: (open("mine", "w").close(), os.chown("mine", os.getuid() + 1, -1)))
attempt("raw_socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))

def connect():
    with socket.socket(socket.AF_UNIX) as it:
        it.connect("\0" + sock)
attempt("abstract_socket", connect)

# Allowed.
attempt("may_write", lambda: open("own", "w").write("x"))
attempt("may_use_tmpdir", lambda: open(os.environ["TMPDIR"] + "/x", "w").write("x"))
attempt("may_rename_from_tmpdir", lambda: os.rename(os.environ["TMPDIR"] + "/x", "moved"))
def run_from_tmpdir():
    path = os.environ["TMPDIR"] + "/run"
    with open(path, "w") as it:
        it.write("#!/bin/sh\nexit 0\n")
    os.chmod(path, 0o700)
    subprocess.check_call([path])
attempt("may_run_from_tmpdir", run_from_tmpdir)
attempt("may_open_pty", lambda: os.ttyname(pty.openpty()[1]))
attempt("may_use_semaphores", lambda: multiprocessing.Semaphore())
attempt("may_read_etc", read("/etc/passwd"))
attempt("may_list_etc", lambda: os.listdir("/etc"))
attempt("may_read_proc", read("/proc/self/maps"))
attempt("may_signal_child", lambda: subprocess.Popen(["sleep", "60"]).send_signal(signal.SIGKILL))
attempt("may_read_home", read(home + "/notes"))
def listen():
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
attempt("may_use_loopback", listen)

status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
facts.update({
    "no_new_privs": status["NoNewPrivs"],
    "capabilities": [int(status[it], 16) for it in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "umask": oct(os.umask(0)),
    "core": resource.getrlimit(resource.RLIMIT_CORE),
    "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    # One is that of the listing itself.
    "descriptors_left": len([it for it in descriptors if it > 2]) - 1,
    "tmpdir": os.environ["TMPDIR"],
    "home": os.environ.get("HOME"),
    "tmpdir_mode": oct(os.stat(os.environ["TMPDIR"]).st_mode & 0o777),
})
print(json.dumps({"done": done, "facts": facts}))
"##;

/// A program whose agents attack it.
struct Stage {
    program: Program,
    victim: PathBuf,
    /// Listens on an abstract socket outside the jail.
    _listener: UnixListener,
    name: String,
}

impl Stage {
    /// With an agent that runs the attack before it becomes the demo agent; its headless command runs it too.
    fn start(user: Option<u32>, settings: &str) -> Self {
        let folder = Folder::new();
        let home = folder.path();
        fs::write(home.join("notes"), "of the user").unwrap();
        fs::write(home.join("attack.py"), ATTACK).unwrap();
        let attack = format!("python3 {0}/attack.py {0} $(cat victim 2>/dev/null || echo none) ", home.display());
        let agent = format!("if [ -e victim ]; then {attack} > attack.json; fi; exec {} demo-agent", lumilink());
        let toml = format!(
            "[agent]\ncommand = {}\noneshot = {}\n{settings}\n",
            json!(["sh", "-c", agent]),
            json!(["sh", "-c", attack])
        );
        let mut builder = Program::builder().folder(&folder).config(&toml);
        if let Some(user) = user {
            builder = builder.user(user);
        }
        let program = builder.start();
        fs::write(home.join("data/sacrifice"), "x").unwrap();
        let other = program.api.open("other");
        let victim = other.path();
        other.completes("write secret of-another-tenant");
        let name = format!("lumilink-it-{}", uuid::Uuid::new_v4().simple());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        Self { program, victim, _listener: listener, name }
    }

    fn arguments(&self) -> String {
        let (victim, program) = (self.victim.display(), &self.program);
        format!("{victim} {} {} {}", program.pid(), self.name, program.address)
    }

    /// Opens a session whose workspace names the victim.
    fn session(&self, workspace: &str) -> Session {
        let session = self.program.api.open(workspace);
        session.completes(&format!("write victim {}", self.arguments()));
        session
    }

    /// The attack of a terminal command.
    fn by_terminal(&self) -> Value {
        let session = self.session("by-terminal");
        let home = self.program.folder.path().display();
        parsed(&session.says(&format!("run python3 {home}/attack.py {home} {}", self.arguments())))
    }

    /// The attack of the agent's own process.
    fn by_agent(&self) -> Value {
        let session = self.session("by-agent");
        session.post("close", json!({})).expect(200);
        let session = self.program.api.open("by-agent");
        let found = session.path().join("attack.json");
        let text = wait_for(DEADLINE, "the attack has ended", || {
            fs::read_to_string(&found).ok().filter(|text| text.ends_with('\n'))
        });
        parsed(&text)
    }

    /// The attack of the headless command.
    fn by_oneshot(&self) -> Value {
        let session = self.session("by-oneshot");
        let why = json!({"reason": "the headless command", "actor": "it"});
        self.program.api.post("/acp/workspaces/by-oneshot/rollback", why).expect(200);
        parsed(&session.says("anything"))
    }
}

fn parsed(text: &str) -> Value {
    let start = text.find('{').unwrap_or_else(|| panic!("no report: {text}"));
    serde_json::Deserializer::from_str(&text[start..]).into_iter().next().expect("a report").expect("JSON")
}

/// Everything that the attack may not reach, and everything that work needs.
fn assert_jailed(report: &Value) {
    for (name, succeeded) in report["done"].as_object().expect("results") {
        let cause = &report["facts"][name];
        assert_eq!(succeeded, name.starts_with("may_"), "{name}: {cause}; the report: {report:#}");
    }
    let facts = &report["facts"];
    let refusal = facts["call_without_token"].as_str().unwrap_or_default();
    assert!(refusal.contains("401"), "the API is reached, and the token refuses: {refusal}");
    assert_eq!(facts["no_new_privs"], "1");
    assert_eq!(facts["capabilities"].as_array().unwrap()[..3], [0, 0, 0], "{facts}");
    assert_eq!(facts["core"], json!([0, 0]));
    assert_eq!(facts["descriptors_left"], 0);
    assert_eq!(facts["tmpdir_mode"], "0o700");
    assert_eq!(facts["umask"], umask_of_tests());
    assert_eq!(facts["open_files"], open_files_of_tests());
}

fn umask_of_tests() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:\t")).expect("a umask");
    format!("0o{}", umask.trim_start_matches('0'))
}

fn open_files_of_tests() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for the whole call.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    limit.rlim_cur
}

fn is_root() -> bool {
    // SAFETY: geteuid(2) has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

const NOBODY: u32 = 65534;

#[test]
fn jailed_agent_reaches_nothing_of_the_program_or_of_other_workspaces() {
    assert_jailed(&Stage::start(None, "").by_agent());
}

#[test]
fn jailed_terminal_command_reaches_nothing_of_the_program_or_of_other_workspaces() {
    let report = Stage::start(None, "").by_terminal();
    assert_jailed(&report);
    // Root could otherwise gain them by an exec.
    let capabilities = report["facts"]["capabilities"].as_array().unwrap();
    assert!(!is_root() || capabilities.iter().all(|set| *set == 0), "{capabilities:?}");
}

#[test]
fn jailed_headless_command_reaches_nothing_of_the_program_or_of_other_workspaces() {
    assert_jailed(&Stage::start(None, "").by_oneshot());
}

#[test]
fn jail_of_a_plain_user_holds_without_root() {
    if !is_root() {
        // The other tests run as a plain user then.
        return;
    }
    let stage = Stage::start(Some(NOBODY), "");
    let report = stage.by_terminal();
    assert_jailed(&report);
    assert_eq!(report["facts"]["capabilities"].as_array().unwrap()[..3], [0, 0, 0]);
    assert_jailed(&stage.by_agent());
}

#[test]
fn agent_of_another_user_is_jailed_too() {
    if !is_root() {
        eprintln!("NOT CHECKED: `run_as` needs root");
        return;
    }
    let folder = Folder::new();
    let program = Program::builder().folder(&folder).set("agent.run_as", "nobody").start();
    let session = program.api.open("ws");
    let text = session.says("run id -u; echo x > made && echo wrote; cat /proc/self/status; ls /tmp");
    assert!(text.contains("65534") && text.contains("wrote") && text.contains("NoNewPrivs:\t1"), "{text}");
    assert!(text.contains("Permission denied") && text.contains("CapEff:\t0000000000000000"), "{text}");
}

#[test]
fn without_the_jail_the_same_attacks_succeed() {
    let stage = Stage::start(None, "jail = \"off\"");
    let report = stage.by_terminal();
    for name in [
        "other_read",
        "other_make",
        "data_list",
        "token_read",
        "call_as_operator",
        "config_read",
        "signal",
        "home_write",
        "abstract_socket",
    ] {
        assert_eq!(report["done"][name], true, "the attack is real: {name}: {report:#}");
    }
    assert_eq!(report["done"]["call_without_token"], false, "the token is a barrier of its own");
    let health = stage.program.api.get("/acp/health").expect(200);
    assert_eq!((&health["jail"]["state"], &health["jail"]["unconfinedAgents"]), (&json!("off"), &json!(["default"])));
    assert!(stage.program.log().contains("agent runs without a jail"));
    assert_eq!(stage.program.metrics().sum("lumilink_agent_jail", &[("right", "files")]), 0.0);
}

#[test]
fn health_metric_and_log_name_what_the_jail_enforces() {
    let program = Program::start();
    let jail = &program.api.get("/acp/health").expect(200)["jail"];
    let rights = jail["rights"].as_object().unwrap();
    assert_eq!(rights.len(), 6, "{jail}");
    assert_eq!(rights["files"], true, "this kernel has Landlock: {jail}");
    let all = rights.values().all(|on| on == true);
    assert_eq!(jail["state"], if all { "on" } else { "partial" });
    assert_eq!(rights["signals"] == false, jail["warnings"].to_string().contains("can end this program"));
    for (right, on) in rights {
        let value = program.metrics().sum("lumilink_agent_jail", &[("right", right)]);
        assert_eq!(value == 1.0, on == true, "{right}");
    }
    assert!(program.log().contains("jail of agents"));
}

#[test]
fn kernel_without_landlock_is_served_on_loopback_only_unless_the_jail_is_off() {
    let program = Program::builder().without_landlock().start();
    let jail = &program.api.get("/acp/health").expect(200)["jail"];
    assert_eq!((&jail["state"], &jail["rights"]["files"]), (&json!("off"), &json!(false)), "{jail}");
    assert!(jail["warnings"].to_string().contains("all rights of their user"), "{jail}");
    assert!(program.log().contains("jail is incomplete"));
    let text = program.api.open("ws").says("run cat /proc/self/status");
    assert!(text.contains("NoNewPrivs:\t1") && text.contains("CapEff:\t0000000000000000"), "{text}");
    let start = |folder: &Folder, listen: &str, jail: &str| {
        let path = |name: &str| folder.path().join(name).display().to_string();
        let settings = [format!("--set={jail}")];
        let env = [("LUMILINK_SERVER__TOKEN".to_owned(), "0123456789-0123456789-0123".to_owned())];
        let arguments = ["serve", "--listen", listen, "--data-dir", &path("data"), "--announce", &path("announce")];
        let arguments: Vec<_> = arguments.into_iter().map(str::to_owned).chain(settings).collect();
        Process::start_with("serve", folder, &arguments, &env, without_landlock)
    };
    for (listen, jail, named) in
        [("0.0.0.0:0", "agent.jail=auto", "loopback"), ("127.0.0.1:0", "agent.jail=required", "required")]
    {
        let folder = Folder::new();
        let mut process = start(&folder, listen, jail);
        assert!(!process.wait(DEADLINE).success());
        assert!(process.log().contains(named) && process.log().contains("agent.jail"), "{}", process.log());
    }
    let folder = Folder::new();
    let mut process = start(&folder, "0.0.0.0:0", "agent.jail=off");
    eventually("the program serves", || {
        process.assert_running();
        folder.path().join("announce").exists()
    });
    process.kill();
}

#[test]
fn temporary_folder_of_an_agent_is_removed_with_its_process() {
    let program = Program::start();
    let session = program.api.open("ws");
    let folder = PathBuf::from(session.says("env TMPDIR"));
    assert!(session.says("run sh -c 'echo x > $TMPDIR/left; echo $TMPDIR'").contains(folder.to_str().unwrap()));
    assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
    assert!(folder.join("left").exists(), "a command shares the folder of its agent");
    session.post("close", json!({})).expect(200);
    eventually("the folder is removed", || !folder.exists());
    let of_run = folder.parent().map(Path::to_owned).unwrap();
    program.stop();
    assert!(!of_run.exists(), "{} is removed with the program", of_run.display());
}

#[test]
fn paths_of_the_settings_are_readable_and_writable_and_hide_the_data_folder() {
    let folder = Folder::new();
    for name in ["shared/notes", "elsewhere"] {
        fs::create_dir_all(folder.path().join(name)).unwrap();
    }
    let outside = Folder::new();
    fs::write(outside.path().join("read-me"), "found").unwrap();
    let program = Program::builder()
        .folder(&folder)
        .set("agent.read", json!([outside.path()]))
        // Also a folder around the data folder.
        .set("agent.write", json!(["~/shared", folder.path()]))
        .start();
    let session = program.api.open("ws");
    let script = format!(
        "run cat {outside}/read-me; echo; touch {outside}/x || echo kept; touch ~/shared/a ~/elsewhere/b && echo wrote; \
         ls ~/data || echo hidden",
        outside = outside.path().display()
    );
    let text = session.says(&script);
    for expected in ["found", "kept", "wrote", "hidden"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn ports_limit_tcp_connections_and_leave_listening_free() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let allowed = listener.local_addr().unwrap().port();
    let program = Program::builder().set("agent.ports", json!([allowed])).start();
    let session = program.api.open("ws");
    let script = format!(
        "run python3 -c \"import socket; socket.create_connection(('127.0.0.1', {allowed})); print('allowed'); \
         s=socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); print('listens'); \
         socket.create_connection(('127.0.0.1', {}))\"",
        program.address.port()
    );
    let text = session.says(&script);
    assert!(text.contains("allowed") && text.contains("listens") && text.contains("PermissionError"), "{text}");
}

#[test]
fn each_tenant_has_its_own_home_with_a_separate_runtime() {
    let program = Program::builder().separate_runtime("runtime-token-0123456789").start();
    let open = |tenant: &str| {
        program.api.open_with(json!({"workspaceId": format!("of-{tenant}"), "installationId": tenant}))
    };
    let (ann, again, bob) = (open("ann"), open("ann"), open("bob"));
    let home = |session: &Session| PathBuf::from(session.says("env HOME"));
    assert_eq!(home(&ann), home(&again));
    assert_ne!(home(&ann), home(&bob));
    assert!(ann.says("run sh -c 'echo x > $HOME/.history && echo kept'").contains("kept"));
    let foreign = home(&ann);
    let text = bob.says(&format!(
        "run cat {0}/.history; ls {0}; ls {1}",
        foreign.display(),
        program.folder.path().display()
    ));
    assert_eq!(text.matches("Permission denied").count(), 3, "{text}");
}

#[test]
fn workspace_by_path_with_the_data_folder_or_the_configuration_is_refused() {
    let folder = Folder::new();
    let inside = folder.path().join("data/inside");
    for path in [&inside, &folder.path().join("project"), &folder.path().join("conf")] {
        fs::create_dir_all(path).unwrap();
    }
    let config = folder.path().join("conf/service.toml");
    fs::write(&config, "").unwrap();
    let program = Program::builder()
        .folder(&folder)
        .set("workspaces.allow_paths", json!([folder.path()]))
        .argument("--config", &config.display().to_string())
        .start();
    let open = |path: &Path| {
        let body = json!({"workspaceId": "ws", "installationId": "tenant-1", "path": path});
        program.api.post("/acp/session/new", body)
    };
    for path in [folder.path(), &folder.path().join("data"), &inside, &folder.path().join("conf")] {
        let problem = open(path).problem(403, "path_not_allowed");
        assert!(problem.to_string().contains("data folder"), "{problem}");
    }
    open(&folder.path().join("project")).expect(201);
}

#[test]
fn program_is_not_dumpable_and_its_files_are_its_own() {
    let program = Program::builder().separate_runtime("runtime-token-0123456789").start();
    let session = program.api.open("ws");
    session.completes("write file text");
    let runtime = crate::harness::processes::with_marker(program.folder.path());
    let of_runtime = runtime.iter().find(|it| it.command.contains(" runtime ")).expect("the runtime").pid;
    for pid in [program.pid(), of_runtime] {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("Umask:\t0077"), "{status}");
        // The files of a process that is not dumpable belong to root.
        assert_eq!(fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid(), 0);
    }
    for name in ["data", "data/lumilink.db"] {
        let mode = fs::metadata(program.folder.path().join(name)).unwrap().mode();
        assert_eq!(mode & 0o077, 0, "{name}: {mode:o}");
    }
}

#[test]
fn agent_that_the_jail_hides_is_named_with_the_setting_that_helps() {
    let outside = Folder::new();
    let program = outside.path().join("agents/tool");
    fs::create_dir_all(&program).unwrap();
    let script = program.join("agent");
    // Its interpreter is a shell in a folder that is not granted by the link.
    fs::write(&script, "#!/nonexistent-interpreter/sh\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let stage = Program::builder().set("agent.command", json!([script])).start();
    let body = json!({"workspaceId": "ws", "installationId": "tenant-1"});
    let problem = stage.api.post("/acp/session/new", body).problem(502, "agent_start_failed");
    assert!(problem.to_string().contains("agent.read"), "{problem}");
}

#[test]
fn demo_agent_works_in_the_jail_with_files_and_commands() {
    let program = Program::builder().set("agent.command", demo_agent(&[])).start();
    let session = program.api.open("ws");
    assert_eq!(session.says("write a.txt hello ; read a.txt ; run cat a.txt").matches("hello").count(), 2);
}

/// Becomes the demo agent, after it tried to leave its control group, gave up the duty to adopt its descendants and started a
/// daemon with another parent, its own session and no environment, if the workspace has the file `escape`.
const ESCAPE: &str = r##"
import ctypes, os, sys, time
if os.path.exists("escape"):
    for mount in [line.split() for line in open("/proc/self/mounts")]:
        try:
            if mount[2] == "cgroup2":
                open(mount[1] + "/cgroup.procs", "w").write("0")
        except OSError:
            pass
    ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for fd in (0, 1, 2):
                os.close(fd)
            os.setsid() if os.getpid() != os.getsid(0) else None
            with open("escaped", "w") as it:
                it.write(str(os.getpid()) + "\n")
            os.execve("/bin/sleep", ["sleep", "1000"], {})
        os._exit(0)
    os.wait()
if os.path.exists("relay") and os.fork() == 0:
    os.setsid()
    beats = os.open("beats", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    # Few enough for the machine: each leaves a zombie of the agent.
    for _ in range(2000):
        os.write(beats, b".")
        time.sleep(0.005)
        if os.fork():
            os._exit(0)
        os.setsid()
os.execv(sys.argv[1], [sys.argv[1], "demo-agent"])
"##;

fn assert_daemon_ends_with_its_session(user: Option<u32>, jail: &str) {
    let folder = Folder::new();
    fs::write(folder.path().join("escape.py"), ESCAPE).unwrap();
    let script = folder.path().join("escape.py");
    let mut builder = Program::builder().folder(&folder);
    if let Some(user) = user {
        builder = builder.user(user);
    }
    let program =
        builder.set("agent.jail", jail).set("agent.command", json!(["python3", script, lumilink()])).start();
    let health = program.api.get("/acp/health").expect(200);
    let has_control_groups = health["jail"]["controlGroups"]["processes"] == true;
    let other = program.api.open("other");
    let daemon = "run (env -i setsid sh -c '(sleep 1000 & echo daemon $! started)' &); sleep 0.2";
    let escape = |session: &Session| -> i32 {
        session.completes("write escape now");
        session.post("close", json!({})).expect(200);
        let session = program.api.open("escapes");
        let found = session.path().join("escaped");
        let pid = wait_for(DEADLINE, "the daemon runs", || {
            fs::read_to_string(&found).ok().filter(|text| text.ends_with('\n'))
        });
        let pid = pid.trim().parse().unwrap();
        // Cleared by its exec.
        eventually("the daemon has no environment", || {
            let environment = fs::read(format!("/proc/{pid}/environ"));
            crate::harness::processes::is_alive(pid) && environment.is_ok_and(|it| it.is_empty())
        });
        if has_control_groups {
            let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
            assert_eq!(group.contains("/lumilink-"), jail != "off", "only the jail keeps it in its group: {group}");
        }
        session.post("close", json!({})).expect(200);
        pid
    };
    let pid = escape(&program.api.open("escapes"));
    eventually("the daemon has ended", || !crate::harness::processes::is_alive(pid));
    // Outside of a group a relay is killed by a sweep, which it outruns on a loaded machine.
    if has_control_groups && jail != "off" {
        assert_relay_ends_with_its_session(&program);
    }
    let text = other.says(daemon);
    let left = text.split_whitespace().skip_while(|word| *word != "daemon").nth(1).and_then(|pid| pid.parse().ok());
    let left: i32 = left.unwrap_or_else(|| panic!("a pid: {text}"));
    eventually("the daemon of a command has ended", || !crate::harness::processes::is_alive(left));
    assert_eq!(program.metrics().sum("lumilink_agent_processes_left_total", &[]), 0.0);
    other.completes("echo still here");
}

/// Each process of the relay forks once, in a session of its own, and exits: none lives for longer than that.
fn assert_relay_ends_with_its_session(program: &Program) {
    let session = program.api.open("relay");
    session.completes("write relay now");
    session.post("close", json!({})).expect(200);
    let session = program.api.open("relay");
    let beats = session.path().join("beats");
    let count = || fs::metadata(&beats).map_or(0, |it| it.len());
    eventually("the relay runs", || count() > 20);
    session.post("close", json!({})).expect(200);
    eventually("the relay has been killed", || {
        let before = count();
        // Longer than many of its processes live.
        std::thread::sleep(std::time::Duration::from_millis(100));
        count() == before
    });
    assert!(count() < 2000, "the relay was not killed: it ended by itself");
}

#[test]
fn daemon_with_another_parent_and_no_environment_does_not_outlive_its_session() {
    assert_daemon_ends_with_its_session(None, "auto");
}

#[test]
fn daemon_that_left_its_control_group_without_a_jail_does_not_outlive_its_session() {
    assert_daemon_ends_with_its_session(None, "off");
}

#[test]
fn daemon_of_a_plain_user_without_control_groups_does_not_outlive_its_session() {
    if !is_root() {
        // The test before runs as a plain user then.
        return;
    }
    assert_daemon_ends_with_its_session(Some(NOBODY), "auto");
}

#[test]
fn socket_of_a_container_engine_that_agents_reach_is_named_by_health_and_log() {
    // A user whose folder for sockets no other test has.
    const USER: u32 = 64_123;
    if !is_root() {
        eprintln!("NOT CHECKED: needs root to make the folder of another user");
        return;
    }
    let folder = PathBuf::from(format!("/run/user/{USER}"));
    fs::create_dir_all(&folder).unwrap();
    std::os::unix::fs::chown(&folder, Some(USER), Some(USER)).unwrap();
    let socket = folder.join("docker.sock");
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).unwrap();
    std::os::unix::fs::chown(&socket, Some(USER), Some(USER)).unwrap();
    let program = Program::builder().user(USER).start();
    let health = program.api.get("/acp/health").expect(200);
    let log = program.log();
    let script =
        "run python3 -c \"import socket; socket.socket(socket.AF_UNIX).connect('SOCKET'); print('connected')\"";
    let text = program.api.open("ws").says(&script.replace("SOCKET", socket.to_str().unwrap()));
    drop(listener);
    fs::remove_dir_all(&folder).unwrap();
    let sockets = &health["jail"]["reachableSockets"];
    assert!(sockets.as_array().unwrap().contains(&json!(socket)), "{sockets}");
    assert!(log.contains(socket.to_str().unwrap()), "the log names it");
    // The reason for the warning: the jail does not restrict sockets with a path.
    assert!(text.contains("connected"), "{text}");
}

#[test]
fn health_and_log_name_what_control_groups_do_and_a_limit_without_effect() {
    let folder = Folder::new();
    let program = Program::builder().folder(&folder).set("agent.max_memory_bytes", 1_073_741_824).start();
    let jail = &program.api.get("/acp/health").expect(200)["jail"];
    let groups = jail["controlGroups"].as_object().unwrap();
    let names: Vec<_> = groups.keys().map(String::as_str).collect();
    assert_eq!(names, ["cpu", "memory", "pids", "processes"]);
    assert_eq!(groups["memory"] == false, jail["warnings"].to_string().contains("max_memory_bytes"), "{jail}");
    let log = program.log();
    let line = log.lines().find(|line| line.contains("jail of agents")).expect("one line");
    for (name, is_on) in groups {
        assert!(line.contains(&format!("{name}={}", if *is_on == true { "on" } else { "off" })), "{line}");
    }
    let session = program.api.open("ws");
    if groups["processes"] == true {
        // It sees its own group as the root.
        assert!(session.says("run cat /proc/self/cgroup").contains("0::/\n"), "a control group namespace");
    }
    for (name, is_on, expected) in
        [("pids.max", &groups["pids"], "512"), ("memory.max", &groups["memory"], "1073741824")]
    {
        if *is_on == false {
            eprintln!("NOT CHECKED: {name}: this machine offers no such controller");
            continue;
        }
        let group = control_group_of(session.says("pid").trim());
        assert_eq!(fs::read_to_string(group.join(name)).unwrap().trim(), expected);
    }
}

fn control_group_of(pid: &str) -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|mount| mount[2] == "cgroup2");
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).expect("a group");
    Path::new(mount.expect("a mount")[1]).join(group)
}
