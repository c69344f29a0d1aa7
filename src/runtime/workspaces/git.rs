//! Runs the git program, hardened: only this module's configuration, no hooks, no prompts, one protocol per call, a
//! time limit that ends the whole process group, and bounded output.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    sync::watch,
};

use super::repository::Scheme;
use crate::{
    domain::{
        redaction::Redacted,
        session::preparation::CloneProgress,
        text,
        turn::outcome::{ErrorCode, Failure},
    },
    process::{
        group::{self, Ended, GroupCommand, Streams},
        limits::Limits,
        sandbox::{Sandbox, enforce::Enforcement},
        user::RunAs,
    },
};

/// Configuration that overrides every configuration file. It is a second line of defence: a workspace's own
/// configuration is never read, because `GIT_DIR` is a folder of the runtime.
const SETTINGS: [&str; 18] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.attributesFile=/dev/null",
    "core.excludesFile=/dev/null",
    "core.quotePath=false",
    "core.bigFileThreshold=1m",
    "core.compression=1",
    "credential.helper=",
    "protocol.ext.allow=never",
    "protocol.file.allow=never",
    "http.followRedirects=false",
    "transfer.credentialsInUrl=die",
    "submodule.recurse=false",
    "gc.auto=0",
    "maintenance.auto=false",
    // Each thread has a stack of 8 MiB, which counts as memory.
    "pack.threads=4",
    "index.threads=4",
];

/// Processor time of a call without network. Adding 100,000 files, the slowest call, takes 20 s.
const LOCAL_CPU: Duration = Duration::from_secs(60);
/// Largest file that such a call writes, in bytes: an object of a file under `limits.diff_file_bytes`, or the index.
const LOCAL_FILE_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// Largest file that a clone writes, in bytes: the pack of a very large repository.
const REMOTE_FILE_BYTES: u64 = 10 * 1024 * 1024 * 1024;
/// Memory of each process of git, in bytes, without mapped files. The most that was measured is 60 MiB, by `pack-objects` for
/// 100,000 files and a pack of 218 MB; `add` took 19, `clone` 22 and `index-pack` 8. The rest is for one large file: git holds
/// three copies of one that comes as a delta, so that 300 MB have room.
const MEMORY_BYTES: u64 = 1024 * 1024 * 1024;
/// Time between SIGTERM and SIGKILL. git removes its lock files on SIGTERM.
const KILL_GRACE: Duration = Duration::from_secs(1);

/// Longest text of git in an error, in bytes.
const MAX_ERROR_BYTES: usize = 1000;

/// Starts git with a fixed environment.
#[derive(Debug, Clone)]
pub(crate) struct Git {
    inherited: BTreeMap<String, OsString>,
    /// Confines git where it reads what agents wrote; `None`: it is not confined.
    sandbox: Option<Sandbox>,
}

pub(crate) struct Call<'a> {
    /// Arguments, without the hardening settings.
    pub args: Vec<OsString>,
    /// Environment variables that override the fixed ones.
    pub env: Vec<(&'static str, OsString)>,
    pub cwd: &'a Path,
    /// Time limit; git is ended when it is exceeded.
    pub timeout: Duration,
    /// Largest output to keep, in bytes; git is ended when it prints more.
    pub max_output: usize,
    /// Protocol that git may use; `None` forbids all network access.
    pub scheme: Option<Scheme>,
    /// The rights with which it runs.
    pub rights: Rights,
    pub input: Input,
    /// File that is created with the output, in place of [`Output::bytes`].
    pub target: Option<PathBuf>,
    /// True to read stdout and stderr as one text; excludes an input.
    pub is_merged: bool,
    /// Receives the progress that git prints; excludes an input, and stdout is read with stderr.
    pub progress: Option<ProgressSender>,
}

/// Publishes the newest progress of a clone.
pub(crate) type ProgressSender = watch::Sender<Option<CloneProgress>>;

impl<'a> Call<'a> {
    /// A call without network, input and output, with this program's own rights.
    pub(crate) fn local(cwd: &'a Path, args: Vec<OsString>, timeout: Duration) -> Self {
        let (env, rights, input) = Default::default();
        Self {
            args,
            env,
            cwd,
            timeout,
            max_output: 0,
            scheme: None,
            rights,
            input,
            target: None,
            is_merged: false,
            progress: None,
        }
    }
}

/// The standard input of a call.
#[derive(Debug, Default)]
pub(crate) enum Input {
    #[default]
    Nothing,
    Bytes(Vec<u8>),
    File(PathBuf),
}

impl Input {
    /// Writes everything, as far as git reads it: git may end earlier, and its exit status reports why.
    async fn feed(self, pipe: Option<pipe::Sender>) {
        let Some(mut pipe) = pipe else { return };
        let _ = match self {
            Self::Nothing => Ok(()),
            Self::Bytes(bytes) => pipe.write_all(&bytes).await,
            Self::File(path) => match File::open(path).await {
                Ok(mut file) => tokio::io::copy(&mut file, &mut pipe).await.map(drop),
                Err(cause) => Err(cause),
            },
        };
    }
}

/// The end of a call.
pub(crate) struct Finished {
    pub output: Output,
    /// Absent if git was ended because its output was cut.
    pub ended: Option<Ended>,
}

impl Finished {
    pub(crate) fn exit_code(&self) -> Option<i32> {
        self.ended.as_ref().and_then(|ended| ended.exit_code)
    }

    /// The output of a call that succeeded or was cut.
    ///
    /// # Errors
    /// `workspace_unavailable` with the redacted tail of stderr as one line, since the other side may have written it.
    pub(crate) fn success(self) -> Result<Output, Failure> {
        let Self { mut output, ended } = self;
        let Some(ended) = ended else { return Ok(output) };
        if ended.exit_code == Some(0) {
            output.is_warned = !ended.stderr_tail.trim().is_empty();
            return Ok(output);
        }
        let stderr = Redacted::new(ended.stderr_tail.trim());
        let stderr = stderr.map(|tail| text::one_line(text::tail_bytes(tail, MAX_ERROR_BYTES)));
        Err(match limit_of(&ended) {
            Some(limit) => failed(&format!("exceeded its {limit}. {stderr}")),
            None => failed(stderr.as_str()),
        })
    }

    /// As [`success`](Self::success), for a call that reads the files of a workspace.
    ///
    /// # Errors
    /// `workspace_unreadable` if a repeat would meet the same, else `workspace_unavailable`.
    pub(crate) fn read(self) -> Result<Output, Failure> {
        let is_of_files = self.ended.as_ref().is_some_and(|ended| {
            limit_of(ended).is_some() || (ended.exit_code.is_some() && !may_pass(&ended.stderr_tail))
        });
        self.success().map_err(|failure| match is_of_files {
            true => Failure { code: ErrorCode::WorkspaceUnreadable, ..failure },
            false => failure,
        })
    }
}

/// The limit that ended git, in words. Of memory git reports that it was refused; a host that writes the same words only
/// changes the text of the error.
fn limit_of(ended: &Ended) -> Option<String> {
    let is_memory = || ["ut of memory", "Cannot allocate memory"].iter().any(|text| ended.stderr_tail.contains(text));
    match ended.signal {
        Some(libc::SIGXCPU) => Some("processor time".into()),
        Some(libc::SIGXFSZ) => Some("largest size of a file".into()),
        _ if is_memory() => Some(format!("memory of {} MiB", MEMORY_BYTES / 1024 / 1024)),
        _ => None,
    }
}

/// True if git names an error of the machine, or a file that changed while it was read. A file's name with such words is
/// only tried again.
fn may_pass(stderr: &str) -> bool {
    const PASSING: [&str; 12] = [
        "No space left on device",
        "Disk quota exceeded",
        "Input/output error",
        "Too many open files",
        "Resource temporarily unavailable",
        "Read-only file system",
        "Interrupted system call",
        "No such file or directory",
        "Not a directory",
        "Is a directory",
        "short read",
        "file changed before we could read it",
    ];
    PASSING.iter().any(|cause| stderr.contains(cause))
}

fn failed(why: &str) -> Failure {
    Failure::new(ErrorCode::WorkspaceUnavailable, format!("git: {why}"))
}

/// The rights of a git process. The default is those of this program.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rights {
    /// `None`: this program's own user.
    pub user: Option<RunAs>,
    /// `None`: no jail.
    pub jail: Option<Arc<Enforcement>>,
}

#[derive(Debug, Default)]
pub(crate) struct Output {
    /// At most `max_output` bytes.
    pub bytes: Vec<u8>,
    /// True if the output is incomplete: git printed more, or reading it failed.
    pub cut: bool,
    /// True if git succeeded and wrote to stderr. Known once the call has ended.
    pub is_warned: bool,
}

impl Git {
    /// Creates a runner that passes `inherited` to git: `PATH`, proxies and certificates, for instance.
    pub(crate) fn new(inherited: BTreeMap<String, OsString>) -> Self {
        Self { inherited, sandbox: None }
    }

    /// Confines calls that work on a workspace.
    pub(crate) fn confined_by(self, sandbox: Sandbox) -> Self {
        Self { sandbox: Some(sandbox), ..self }
    }

    /// The rights for a comparison of files, as `user`, that reads `reads` and writes `writes`. Blocks.
    ///
    /// # Errors
    /// The jail cannot be made.
    pub(crate) fn rights(&self, user: Option<RunAs>, reads: &[&Path], writes: &[&Path]) -> io::Result<Rights> {
        let path_variable = self.inherited.get("PATH").and_then(|path| path.to_str()).unwrap_or_default();
        let jail = |sandbox: &Sandbox| sandbox.of_tool(&["git".to_owned()], path_variable, user, reads, writes);
        let jail = self.sandbox.as_ref().map(jail).transpose()?.map(Arc::new);
        Ok(Rights { user, jail })
    }

    /// Runs git to its end.
    ///
    /// # Errors
    /// `workspace_unavailable` if git cannot be started, exceeds its time limit or fails; the text then ends with the
    /// redacted tail of its stderr. Output that is cut is no error.
    ///
    /// # Cancel safety
    /// A dropped future ends git and its process group.
    pub(crate) async fn run(&self, call: Call<'_>) -> Result<Output, Failure> {
        self.execute(call).await?.success()
    }

    /// Runs git to its end, whatever its exit status.
    ///
    /// # Errors
    /// `workspace_unavailable` if git cannot be started or exceeds its time limit.
    ///
    /// # Cancel safety
    /// As [`run`](Self::run).
    pub(crate) async fn execute(&self, call: Call<'_>) -> Result<Finished, Failure> {
        let Call { args, env, cwd, timeout, max_output, scheme, rights, input, target, is_merged, progress } = call;
        let memory_bytes = Some(MEMORY_BYTES);
        let settings = SETTINGS.iter().flat_map(|setting| [OsString::from("-c"), OsString::from(*setting)]);
        let command = GroupCommand {
            program: "git".into(),
            args: settings.chain(args).collect(),
            env: self.environment(env, scheme),
            cwd: cwd.to_owned(),
            run_as: rights.user,
            kill_grace: KILL_GRACE,
            streams: match input {
                Input::Nothing if is_merged || progress.is_some() => Streams::Merged,
                Input::Nothing => Streams::Output,
                _ => Streams::Dialogue,
            },
            jail: rights.jail,
            limits: match scheme {
                Some(_) => Limits { cpu: Some(timeout), file_bytes: Some(REMOTE_FILE_BYTES), memory_bytes },
                None => Limits { cpu: Some(LOCAL_CPU), file_bytes: Some(LOCAL_FILE_BYTES), memory_bytes },
            },
        };
        let mut started = group::spawn(command, ()).await.map_err(|cause| failed(&cause.to_string()))?;
        if let Some(progress) = progress {
            let work = async {
                let text = read_progress(&mut started.output, &progress).await;
                let mut ended = started.exit.wait().await;
                ended.stderr_tail = text;
                Finished { output: Output::default(), ended: Some(ended) }
            };
            let finished = tokio::time::timeout(timeout, work).await;
            return finished.map_err(|_| failed(&format!("did not finish within {} s", timeout.as_secs())));
        }
        let work = async {
            let feed = std::pin::pin!(input.feed(started.input.take()));
            let read = read_output(&mut started.output, max_output, target);
            let mut read = std::pin::pin!(read);
            let output = tokio::select! {
                output = &mut read => output,
                () = feed => read.await,
            };
            let ended = if output.cut { None } else { Some(started.exit.wait().await) };
            Finished { output, ended }
        };
        // Returning drops `started`, which ends the process group if git still runs.
        let finished = tokio::time::timeout(timeout, work).await;
        finished.map_err(|_| failed(&format!("did not finish within {} s", timeout.as_secs())))
    }

    fn environment(&self, env: Vec<(&'static str, OsString)>, scheme: Option<Scheme>) -> Vec<(OsString, OsString)> {
        let mut all: BTreeMap<OsString, OsString> =
            self.inherited.iter().map(|(name, value)| (name.into(), value.clone())).collect();
        // Only ssh needs the home folder, for keys and known hosts; git must not read configuration from it.
        if scheme != Some(Scheme::Ssh) {
            all.insert("HOME".into(), "/nonexistent".into());
        }
        let fixed: [(&str, &OsStr); 9] = [
            ("GIT_CONFIG_NOSYSTEM", OsStr::new("1")),
            ("GIT_CONFIG_SYSTEM", OsStr::new("/dev/null")),
            ("GIT_CONFIG_GLOBAL", OsStr::new("/dev/null")),
            ("GIT_TERMINAL_PROMPT", OsStr::new("0")),
            ("GIT_ASKPASS", OsStr::new("/bin/false")),
            ("GIT_SSH_COMMAND", OsStr::new("ssh -oBatchMode=yes")),
            ("GIT_ALLOW_PROTOCOL", OsStr::new(scheme.map_or("none", Scheme::as_str))),
            ("GIT_OPTIONAL_LOCKS", OsStr::new("0")),
            ("LC_ALL", OsStr::new("C")),
        ];
        all.extend(fixed.map(|(name, value)| (name.into(), value.to_owned())));
        all.extend(env.into_iter().map(|(name, value)| (name.into(), value)));
        all.into_iter().collect()
    }
}

/// Longest line of git's progress, in bytes. The rest of a longer line is dropped.
const MAX_LINE: usize = 1024;
/// Longest text beside the progress that is kept, in bytes.
const MAX_TEXT: usize = 4096;

/// Reads the output to its end, publishes the progress in it, and returns the end of the other lines.
async fn read_progress(output: &mut pipe::Receiver, progress: &ProgressSender) -> String {
    let (mut chunk, mut line, mut other) = (vec![0; 8192], Vec::new(), String::new());
    loop {
        let read = output.read(&mut chunk).await.unwrap_or(0);
        for byte in &chunk[..read] {
            if !matches!(byte, b'\r' | b'\n') {
                if line.len() < MAX_LINE {
                    line.push(*byte);
                }
                continue;
            }
            take_line(&mut line, progress, &mut other);
        }
        if read == 0 {
            take_line(&mut line, progress, &mut other);
            return other;
        }
    }
}

/// True for a line that git prints in every clone with progress.
fn is_chatter(line: &str) -> bool {
    let counts = [": Enumerating objects", ": Counting objects", ": Compressing objects", ": Total "];
    line.starts_with("Cloning into '") || (line.starts_with("remote: ") && counts.iter().any(|it| line.contains(it)))
}

/// Takes a whole line: progress, or other text.
fn take_line(line: &mut Vec<u8>, progress: &ProgressSender, other: &mut String) {
    let shown = String::from_utf8_lossy(line);
    if let Some(new) = CloneProgress::of_line(&shown) {
        progress.send_if_modified(|newest| {
            let is_after = new.is_after(*newest);
            if is_after {
                *newest = Some(new);
            }
            is_after
        });
    } else if !shown.trim().is_empty() && !is_chatter(&shown) {
        other.push_str(&shown);
        other.push('\n');
        if other.len() > 2 * MAX_TEXT {
            *other = text::tail_bytes(other, MAX_TEXT).to_owned();
        }
    }
    line.clear();
}

/// Reads the output up to a limit, into memory or a file.
async fn read_output(output: &mut pipe::Receiver, limit: usize, target: Option<PathBuf>) -> Output {
    let mut bytes = Vec::new();
    // One byte more than the limit shows that the output is incomplete.
    let mut limited = output.take(limit as u64 + 1);
    let Some(target) = target else {
        let read = limited.read_to_end(&mut bytes).await;
        let cut = bytes.len() > limit || read.is_err();
        bytes.truncate(limit);
        return Output { bytes, cut, is_warned: false };
    };
    let copied = async {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(target).await?;
        let copied = tokio::io::copy(&mut limited, &mut file).await?;
        if copied > limit as u64 {
            file.set_len(limit as u64).await?;
        }
        file.flush().await?;
        io::Result::Ok(copied)
    };
    Output { cut: !copied.await.is_ok_and(|copied| copied <= limit as u64), bytes, is_warned: false }
}
