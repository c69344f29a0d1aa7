//! Serves `terminal/*`: commands that an agent runs in its workspace, and that end with the agent's connection.

use std::{
    collections::HashMap,
    ffi::OsStr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    sync::{Mutex as AsyncMutex, watch},
};

use crate::{
    acp::{
        jsonrpc::{self, RpcError},
        schema::{CreateTerminalRequest, TerminalExitStatus, TerminalOutputResponse},
    },
    domain::text,
    process::{
        group::{self, Ended, GroupCommand, Life, Streams},
        limits::Limits,
        sandbox::{Confinement, enforce::Enforcement},
        user::RunAs,
    },
    runtime::workspaces::folders::SessionFolders,
};

/// Largest output that is kept of one command, in bytes, even if the agent requests more: the output has to fit a
/// frame, and agents truncate it further for their model anyway.
pub(super) const MAX_OUTPUT_BYTES: usize = 1024 * 1024;
/// Terminals that an agent may hold, finished ones included, as a multiple of the commands that it may run at once.
/// At the limit it must release some before it starts another command.
const KEPT_PER_RUNNING: usize = 8;

/// Settings of the commands of one agent.
#[derive(Clone)]
pub(crate) struct TerminalSettings {
    /// Largest number of concurrent commands.
    pub running: usize,
    /// Environment of every command; a request can add to it and override it.
    pub inherited: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    /// User to run the commands as; `None` for the runtime's own user.
    pub run_as: Option<RunAs>,
    /// Time between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
    pub jail: TerminalJail,
}

/// The jail of one agent, in which its commands run too.
#[derive(Clone)]
pub(crate) struct TerminalJail {
    pub confinement: Confinement,
    /// The jail of the agent's own process. It does not cover the folder of a session that the agent's client did not name
    /// in `initialize`.
    pub of_agent: Arc<Enforcement>,
    /// True if it covers the folders of all sessions.
    pub covers_sessions: bool,
}

/// Commands of one agent. Dropping this value ends them all.
pub(crate) struct Terminals {
    settings: TerminalSettings,
    folders: SessionFolders,
    open: Mutex<HashMap<String, Arc<Terminal>>>,
    made: AsyncMutex<u64>,
}

struct Terminal {
    output: Arc<Mutex<Output>>,
    /// Dropping the value ends the command.
    life: Mutex<Option<Life>>,
    exited: watch::Receiver<Option<TerminalExitStatus>>,
}

/// The last bytes of what a command printed.
struct Output {
    bytes: Vec<u8>,
    limit: usize,
    truncated: bool,
}

impl Output {
    fn push(&mut self, chunk: &[u8]) {
        self.bytes.extend_from_slice(chunk);
        // Truncated only at twice the limit, because every truncation moves the remaining bytes to the front.
        if self.bytes.len() > self.limit.saturating_mul(2).max(8192) {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let excess = self.bytes.len().saturating_sub(self.limit);
        self.truncated |= excess > 0;
        self.bytes.drain(..excess);
    }

    fn read(&mut self) -> (String, bool) {
        self.cut();
        // The truncation may have split the first character; skip its continuation bytes.
        let skip = if self.truncated {
            self.bytes.iter().take(3).take_while(|byte| (0x80..0xc0).contains(*byte)).count()
        } else {
            0
        };
        let whole = String::from_utf8_lossy(&self.bytes[skip..]);
        // An invalid byte becomes a replacement character of three bytes, so the text may exceed the limit again.
        (text::tail_bytes(&whole, self.limit).to_owned(), self.truncated)
    }
}

impl Terminals {
    /// Creates an empty set of commands.
    pub(crate) fn new(settings: TerminalSettings, folders: SessionFolders) -> Self {
        Self { settings, folders, open: Mutex::default(), made: AsyncMutex::new(0) }
    }

    /// Starts a command and returns its terminal id.
    ///
    /// # Errors
    /// `INTERNAL_ERROR` at one of the limits; `INVALID_PARAMS` for a working directory outside the session's folders
    /// and for a command that cannot be started.
    pub(crate) async fn create(&self, request: CreateTerminalRequest) -> Result<String, RpcError> {
        // Held until the new terminal is registered, so that concurrent starts cannot exceed the limit together.
        let mut made = self.made.lock().await;
        self.check_room()?;
        let cwd = self.cwd(request.cwd.as_ref())?;
        // Variables of the request override the inherited ones.
        let mut env: HashMap<_, _> = self.settings.inherited.iter().cloned().collect();
        let confinement = self.settings.jail.confinement.clone();
        env.extend(confinement.variables().map(|(name, value)| (name.into(), value.into())));
        env.extend(request.env.into_iter().map(|variable| (variable.name.into(), variable.value.into())));
        let path = env.get(OsStr::new("PATH")).cloned().unwrap_or_default();
        let (program, args) = command_line(request.command, request.args, &cwd, &path).await;
        let command = GroupCommand {
            program: program.into(),
            args: args.into_iter().map(Into::into).collect(),
            env: env.into_iter().collect(),
            cwd,
            run_as: self.settings.run_as,
            kill_grace: self.settings.kill_grace,
            streams: Streams::Merged,
            jail: Some(self.jail().await?),
            limits: Limits::default(),
        };
        let started = group::spawn(command, confinement)
            .await
            .map_err(|cause| RpcError::new(jsonrpc::INVALID_PARAMS, cause.to_string()))?;
        let limit = request.output_byte_limit.and_then(|limit| usize::try_from(limit).ok());
        // The agent may ask for less, and never for more: the output is held in memory.
        let limit = limit.unwrap_or(MAX_OUTPUT_BYTES).min(MAX_OUTPUT_BYTES);
        let output = Arc::new(Mutex::new(Output { bytes: Vec::new(), limit, truncated: false }));
        let (exit_status, exited) = watch::channel(None);
        tokio::spawn(follow(started.output, started.exit, output.clone(), exit_status));
        *made += 1;
        let id = format!("terminal-{made}");
        let terminal = Terminal { output, life: Mutex::new(Some(started.life)), exited };
        self.open().insert(id.clone(), Arc::new(terminal));
        Ok(id)
    }

    /// Returns the end of what a command has printed, and its exit status once it has exited.
    ///
    /// # Errors
    /// `RESOURCE_NOT_FOUND` for an unknown or released terminal.
    pub(crate) fn output(&self, id: &str) -> Result<TerminalOutputResponse, RpcError> {
        let terminal = self.find(id)?;
        // Read before the output: the status is set after the last output, so an exit status implies complete output.
        let exit_status = terminal.exited.borrow().clone();
        let (output, truncated) = terminal.output.lock().read();
        Ok(TerminalOutputResponse::new(output, truncated).exit_status(exit_status))
    }

    /// Waits until a command has exited and returns its status.
    ///
    /// # Errors
    /// `RESOURCE_NOT_FOUND` for an unknown or released terminal.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(crate) async fn wait_for_exit(&self, id: &str) -> Result<TerminalExitStatus, RpcError> {
        let mut exited = self.find(id)?.exited.clone();
        let status = exited.wait_for(Option::is_some).await.ok().and_then(|status| status.clone());
        Ok(status.unwrap_or_default())
    }

    /// Ends a command (SIGTERM, then SIGKILL after the grace) and keeps its output. Does not wait for the exit.
    ///
    /// # Errors
    /// `RESOURCE_NOT_FOUND` for an unknown or released terminal.
    pub(crate) fn kill(&self, id: &str) -> Result<(), RpcError> {
        self.find(id)?.life.lock().take();
        Ok(())
    }

    /// Ends a command as [`kill`](Self::kill) does and drops its output and id.
    ///
    /// # Errors
    /// `RESOURCE_NOT_FOUND` for an unknown or released terminal.
    pub(crate) fn release(&self, id: &str) -> Result<(), RpcError> {
        self.kill(id)?;
        // Callers that wait for the exit hold the terminal by its own reference and still get the status.
        self.open().remove(id);
        Ok(())
    }

    fn open(&self) -> parking_lot::MutexGuard<'_, HashMap<String, Arc<Terminal>>> {
        self.open.lock()
    }

    fn find(&self, id: &str) -> Result<Arc<Terminal>, RpcError> {
        let unknown = || RpcError::new(jsonrpc::RESOURCE_NOT_FOUND, format!("there is no terminal `{id}`"));
        self.open().get(id).cloned().ok_or_else(unknown)
    }

    fn check_room(&self) -> Result<(), RpcError> {
        let open = self.open();
        let running = open.values().filter(|terminal| terminal.exited.borrow().is_none()).count();
        let limit = self.settings.running;
        let detail = if running >= limit {
            format!("{running} commands are running, which is the limit: wait for one to exit or kill it")
        } else if open.len() >= limit.saturating_mul(KEPT_PER_RUNNING) {
            format!("{} terminals are open, which is the limit: release some", open.len())
        } else {
            return Ok(());
        };
        Err(RpcError::new(jsonrpc::INTERNAL_ERROR, detail))
    }

    async fn jail(&self) -> Result<Arc<Enforcement>, RpcError> {
        let TerminalJail { confinement, of_agent, covers_sessions } = self.settings.jail.clone();
        if covers_sessions {
            return Ok(of_agent);
        }
        let folders = self.folders.paths();
        let making = tokio::task::spawn_blocking(move || confinement.enforcement(&folders));
        let made = making.await.map_err(std::io::Error::other).and_then(|made| made);
        made.map(Arc::new).map_err(|cause| {
            RpcError::new(jsonrpc::INTERNAL_ERROR, format!("the jail of the command cannot be made: {cause}"))
        })
    }

    fn cwd(&self, asked: Option<&PathBuf>) -> Result<PathBuf, RpcError> {
        let outside = |path: &str| {
            RpcError::new(jsonrpc::INVALID_PARAMS, format!("{path}: is not a folder in the session's workspace"))
        };
        let Some(asked) = asked else {
            return Ok(self.folders.latest().ok_or_else(|| outside("cwd"))?.path().to_owned());
        };
        let shown = asked.display().to_string();
        let (folder, relative) = self.folders.find(asked).ok_or_else(|| outside(&shown))?;
        // What exists in folders that the agent may not enter is not reported.
        let _identity = self.settings.run_as.map(RunAs::assume_for_files).transpose().map_err(|_| outside(&shown))?;
        let inside = folder.dir().canonicalize(&relative).map_err(|_| outside(&shown))?;
        if !folder.dir().is_dir(&inside) {
            return Err(outside(&shown));
        }
        Ok(folder.path().join(inside))
    }
}

/// Returns program and arguments. Some agents send a whole command line as the program; that is run by `sh`, unless it
/// is the path or name of a program.
async fn command_line(command: String, args: Vec<String>, cwd: &Path, path: &OsStr) -> (String, Vec<String>) {
    let is_line = args.is_empty() && command.contains(|c: char| c.is_whitespace() || "|&;<>$".contains(c));
    if is_line && !is_program(&command, cwd, path).await {
        ("/bin/sh".to_owned(), vec!["-c".to_owned(), command])
    } else {
        (command, args)
    }
}

/// True if `name` is an executable file: by its path, or by its name in one of the folders of `path`.
async fn is_program(name: &str, cwd: &Path, path: &OsStr) -> bool {
    let folders = if name.contains('/') { vec![cwd.to_owned()] } else { std::env::split_paths(path).collect() };
    for folder in folders {
        let found = tokio::fs::metadata(cwd.join(folder).join(name)).await;
        if found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0) {
            return true;
        }
    }
    false
}

/// Reads a command's output until its exit, then publishes the exit status.
///
/// Reads on beyond the output limit, so that a full pipe never blocks the command. A process that the command left
/// behind may hold the pipe open, so after the exit only what is already in the pipe is read.
async fn follow(
    mut pipe: pipe::Receiver,
    mut exit: group::Exit,
    output: Arc<Mutex<Output>>,
    exited: watch::Sender<Option<TerminalExitStatus>>,
) {
    let mut chunk = vec![0; 8192];
    let mut ended = None;
    let keep = |chunk: &[u8]| output.lock().push(chunk);
    while ended.is_none() {
        tokio::select! {
            biased;
            // Output first, so that the exit is published after everything that was printed before it.
            read = pipe.read(&mut chunk) => match read {
                Ok(read @ 1..) => keep(&chunk[..read]),
                _ => ended = Some(exit.wait().await),
            },
            end = exit.wait() => ended = Some(end),
        }
    }
    if let Ok(fd) = pipe.into_nonblocking_fd() {
        let mut rest = std::fs::File::from(fd);
        for _ in 0..group::MAX_PIPE_BYTES / chunk.len() {
            match std::io::Read::read(&mut rest, &mut chunk) {
                Ok(read @ 1..) => keep(&chunk[..read]),
                _ => break,
            }
        }
    }
    // Fails only if the terminal was released, and then nobody waits for the status.
    let _ = exited.send(Some(exit_status(ended.unwrap_or_default())));
}

fn exit_status(ended: Ended) -> TerminalExitStatus {
    let code = ended.exit_code.and_then(|code| u32::try_from(code).ok());
    TerminalExitStatus::new().exit_code(code).signal(ended.signal.map(signal_name))
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGTERM => "SIGTERM",
        other => return format!("SIG{other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        process::sandbox::{AgentPlan, JailSettings, Sandbox},
        runtime::workspaces::folders::AllowedFolders,
    };

    fn terminals(base: &tempfile::TempDir) -> Terminals {
        std::fs::create_dir_all(base.path().join("root/ws/sub")).unwrap();
        let allowed = AllowedFolders::new(&base.path().join("root"), &[], &[]).unwrap();
        let folders = SessionFolders::default();
        folders.add(allowed.open(base.path().join("root/ws").to_str().unwrap()).unwrap()).unwrap();
        let sandbox = Sandbox::for_tests(allowed.root());
        let environment = [("PATH".to_owned(), "/usr/bin:/bin".into())].into();
        let plan = Arc::new(AgentPlan::new(JailSettings::default(), &[], environment, false));
        let confinement = sandbox.confine(&plan, &[], "", None).unwrap();
        let settings = TerminalSettings {
            running: 2,
            inherited: vec![("PATH".into(), "/usr/bin:/bin".into())],
            run_as: None,
            kill_grace: Duration::from_millis(100),
            jail: TerminalJail {
                of_agent: Arc::new(confinement.enforcement(&[]).unwrap()),
                confinement,
                covers_sessions: false,
            },
        };
        Terminals::new(settings, folders)
    }

    fn shell(script: &str) -> CreateTerminalRequest {
        CreateTerminalRequest::new("s", "/bin/sh").args(vec!["-c".to_owned(), script.to_owned()])
    }

    #[tokio::test]
    async fn command_runs_in_the_workspace_and_its_output_is_truncated_to_the_limit() {
        let base = tempfile::tempdir().unwrap();
        let terminals = terminals(&base);
        let id = terminals.create(shell("pwd; echo err >&2; exit 3")).await.unwrap();
        assert_eq!(terminals.wait_for_exit(&id).await.unwrap().exit_code, Some(3));
        let output = terminals.output(&id).unwrap();
        assert!(output.output.ends_with("root/ws\nerr\n"), "{}", output.output);
        assert!(!output.truncated && output.exit_status.is_some());
        let id = terminals.create(shell("printf '%s' 'abcññ'").output_byte_limit(3)).await.unwrap();
        terminals.wait_for_exit(&id).await.unwrap();
        let output = terminals.output(&id).unwrap();
        assert_eq!((output.output.as_str(), output.truncated), ("ñ", true));
        terminals.release(&id).unwrap();
        assert_eq!(terminals.output(&id).unwrap_err().code, jsonrpc::RESOURCE_NOT_FOUND);
    }

    #[tokio::test]
    async fn program_with_a_space_in_its_path_is_run_itself() {
        let base = tempfile::tempdir().unwrap();
        let terminals = terminals(&base);
        let folder = base.path().join("root/ws/my tools");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("say it"), "#!/bin/sh\necho said $#\n").unwrap();
        std::fs::set_permissions(folder.join("say it"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let absolute = folder.join("say it").display().to_string();
        let env = json!([{"name": "PATH", "value": format!("/bin:{}", folder.display())}]);
        let on_path = json!({"sessionId": "s", "command": "say it", "env": env});
        let on_path: CreateTerminalRequest = serde_json::from_value(on_path).unwrap();
        for request in [
            CreateTerminalRequest::new("s", &*absolute),
            CreateTerminalRequest::new("s", "./my tools/say it"),
            on_path,
            CreateTerminalRequest::new("s", format!("'{absolute}'")),
            CreateTerminalRequest::new("s", "echo said 0"),
        ] {
            let shown = request.command.clone();
            let id = terminals.create(request).await.unwrap();
            assert_eq!(terminals.wait_for_exit(&id).await.unwrap().exit_code, Some(0), "{shown}");
            assert_eq!(terminals.output(&id).unwrap().output, "said 0\n", "{shown}");
            terminals.release(&id).unwrap();
        }
    }

    #[tokio::test]
    async fn commands_are_limited_killed_and_confined_to_the_workspace() {
        let base = tempfile::tempdir().unwrap();
        let terminals = terminals(&base);
        let first = terminals.create(shell("sleep 1000")).await.unwrap();
        terminals.create(CreateTerminalRequest::new("s", "sleep 1000")).await.unwrap();
        assert_eq!(terminals.create(shell("true")).await.unwrap_err().code, jsonrpc::INTERNAL_ERROR);
        terminals.kill(&first).unwrap();
        assert_eq!(terminals.wait_for_exit(&first).await.unwrap().signal.as_deref(), Some("SIGTERM"));
        for cwd in ["root", "root/ws/../../x", "root/ws/none"] {
            let request = shell("true").cwd(base.path().join(cwd));
            assert_eq!(terminals.create(request).await.unwrap_err().code, jsonrpc::INVALID_PARAMS, "{cwd}");
        }
        let id = terminals.create(shell("pwd").cwd(base.path().join("root/ws/sub"))).await.unwrap();
        terminals.wait_for_exit(&id).await.unwrap();
        assert!(terminals.output(&id).unwrap().output.ends_with("/root/ws/sub\n"));
    }
}
