//! `terminal/*`: commands that an agent runs in its workspace, ended with the session.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

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
        user::RunAs,
    },
    runtime::workspaces::folders::SessionFolders,
};

/// The most output that is kept of one command, in bytes, whatever the agent asks for: it has to fit a
/// frame, and agents cut it further for their model anyway.
const MAX_OUTPUT_BYTES: usize = 1024 * 1024;
/// Finished commands that an agent may keep for each one that it may run before it has to release some.
const KEPT_PER_RUNNING: usize = 8;

/// Where and how commands run.
#[derive(Clone)]
pub(crate) struct TerminalSettings {
    /// Commands at the same time.
    pub running: usize,
    /// Variables that every command gets.
    pub inherited: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    pub run_as: Option<RunAs>,
    /// From SIGTERM to SIGKILL.
    pub kill_grace: Duration,
}

/// The commands of one agent. Dropping it ends them all.
pub(crate) struct Terminals {
    settings: TerminalSettings,
    folders: SessionFolders,
    open: Mutex<HashMap<String, Arc<Terminal>>>,
    made: AsyncMutex<u64>,
}

struct Terminal {
    output: Arc<Mutex<Output>>,
    /// Taken when the command is to end.
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
        // Cut rarely: moving the rest to the front for every chunk would cost more than the memory.
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
        // The first character may have been cut in two.
        let skip = if self.truncated {
            self.bytes.iter().take(3).take_while(|byte| (0x80..0xc0).contains(*byte)).count()
        } else {
            0
        };
        let whole = String::from_utf8_lossy(&self.bytes[skip..]);
        // Bytes that are no text become longer.
        (text::tail_bytes(&whole, self.limit).to_owned(), self.truncated)
    }
}

impl Terminals {
    /// No command runs yet.
    pub(crate) fn new(settings: TerminalSettings, folders: SessionFolders) -> Self {
        Self { settings, folders, open: Mutex::default(), made: AsyncMutex::new(0) }
    }

    /// Starts a command and answers its id.
    pub(crate) async fn create(&self, request: CreateTerminalRequest) -> Result<String, RpcError> {
        // One start at a time, so that the count below holds.
        let mut made = self.made.lock().await;
        self.check_room()?;
        let cwd = self.cwd(request.cwd.as_ref())?;
        let mut env: HashMap<_, _> = self.settings.inherited.iter().cloned().collect();
        env.extend(request.env.into_iter().map(|variable| (variable.name.into(), variable.value.into())));
        let (program, args) = command_line(request.command, request.args);
        let command = GroupCommand {
            program: program.into(),
            args: args.into_iter().map(Into::into).collect(),
            env: env.into_iter().collect(),
            cwd,
            run_as: self.settings.run_as,
            kill_grace: self.settings.kill_grace,
            streams: Streams::Merged,
        };
        let started = group::spawn(command, ())
            .await
            .map_err(|cause| RpcError::new(jsonrpc::INVALID_PARAMS, cause.to_string()))?;
        let limit = request.output_byte_limit.and_then(|limit| usize::try_from(limit).ok());
        let limit = limit.unwrap_or(MAX_OUTPUT_BYTES).min(MAX_OUTPUT_BYTES);
        let output = Arc::new(Mutex::new(Output { bytes: Vec::new(), limit, truncated: false }));
        let (tell, exited) = watch::channel(None);
        tokio::spawn(follow(started.output, started.exit, output.clone(), tell));
        *made += 1;
        let id = format!("terminal-{made}");
        let terminal = Terminal { output, life: Mutex::new(Some(started.life)), exited };
        self.open().insert(id.clone(), Arc::new(terminal));
        Ok(id)
    }

    /// What a command has printed, and how it ended if it has.
    pub(crate) fn output(&self, id: &str) -> Result<TerminalOutputResponse, RpcError> {
        let terminal = self.find(id)?;
        // Asked first: what a command printed before its end is then complete.
        let exit_status = terminal.exited.borrow().clone();
        let (output, truncated) = terminal.output.lock().read();
        Ok(TerminalOutputResponse::new(output, truncated).exit_status(exit_status))
    }

    /// Waits for the end of a command. Cancel-safe.
    pub(crate) async fn wait_for_exit(&self, id: &str) -> Result<TerminalExitStatus, RpcError> {
        let mut exited = self.find(id)?.exited.clone();
        let status = exited.wait_for(Option::is_some).await.ok().and_then(|status| status.clone());
        Ok(status.unwrap_or_default())
    }

    /// Ends a command and keeps its output.
    pub(crate) fn kill(&self, id: &str) -> Result<(), RpcError> {
        self.find(id)?.life.lock().take();
        Ok(())
    }

    /// Ends a command and forgets it.
    pub(crate) fn release(&self, id: &str) -> Result<(), RpcError> {
        self.kill(id)?;
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
        let said = if running >= limit {
            format!("{running} commands are running, which is the limit: wait for one or kill it")
        } else if open.len() >= limit.saturating_mul(KEPT_PER_RUNNING) {
            format!("{} terminals are kept, which is the limit: release some", open.len())
        } else {
            return Ok(());
        };
        Err(RpcError::new(jsonrpc::INTERNAL_ERROR, said))
    }

    fn cwd(&self, asked: Option<&PathBuf>) -> Result<PathBuf, RpcError> {
        let outside = |path: &str| {
            RpcError::new(jsonrpc::INVALID_PARAMS, format!("{path}: is not a folder in the session's workspace"))
        };
        let Some(asked) = asked else {
            return Ok(self.folders.latest().ok_or_else(|| outside("cwd"))?.path().to_owned());
        };
        let said = asked.display().to_string();
        let (folder, relative) = self.folders.find(asked).ok_or_else(|| outside(&said))?;
        let inside = folder.dir().canonicalize(&relative).map_err(|_| outside(&said))?;
        if !folder.dir().is_dir(&inside) {
            return Err(outside(&said));
        }
        Ok(folder.path().join(inside))
    }
}

/// Some agents put a whole command line where a program's name belongs.
fn command_line(command: String, args: Vec<String>) -> (String, Vec<String>) {
    if args.is_empty() && command.contains(|c: char| c.is_whitespace() || "|&;<>$".contains(c)) {
        ("/bin/sh".to_owned(), vec!["-c".to_owned(), command])
    } else {
        (command, args)
    }
}

/// Keeps reading, whatever the limit, so that the command never waits for its output to be taken.
async fn follow(
    mut pipe: pipe::Receiver,
    mut exit: group::Exit,
    output: Arc<Mutex<Output>>,
    tell: watch::Sender<Option<TerminalExitStatus>>,
) {
    let mut chunk = vec![0; 8192];
    let mut ended = None;
    let keep = |chunk: &[u8]| output.lock().push(chunk);
    while ended.is_none() {
        tokio::select! {
            biased;
            read = pipe.read(&mut chunk) => match read {
                Ok(read @ 1..) => keep(&chunk[..read]),
                _ => ended = Some(exit.wait().await),
            },
            exited = exit.wait() => ended = Some(exited),
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
    let _ = tell.send(Some(exit_status(ended.unwrap_or_default())));
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
    use super::*;
    use crate::runtime::workspaces::folders::AllowedFolders;

    fn terminals(base: &tempfile::TempDir) -> Terminals {
        std::fs::create_dir_all(base.path().join("root/ws/sub")).unwrap();
        let allowed = AllowedFolders::new(&base.path().join("root"), &[]).unwrap();
        let folders = SessionFolders::default();
        folders.add(allowed.open(base.path().join("root/ws").to_str().unwrap()).unwrap()).unwrap();
        let settings = TerminalSettings {
            running: 2,
            inherited: vec![("PATH".into(), "/usr/bin:/bin".into())],
            run_as: None,
            kill_grace: Duration::from_millis(100),
        };
        Terminals::new(settings, folders)
    }

    fn shell(script: &str) -> CreateTerminalRequest {
        CreateTerminalRequest::new("s", "/bin/sh").args(vec!["-c".to_owned(), script.to_owned()])
    }

    #[tokio::test]
    async fn a_command_runs_in_the_workspace_and_its_output_is_kept_to_the_limit() {
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
    async fn commands_are_counted_killed_and_confined() {
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
