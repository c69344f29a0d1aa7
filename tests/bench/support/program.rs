//! The processes under test: the built program, started in folders of its own.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use serde::Deserialize;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::conversation::BenchError;

/// Longest time until a process serves; it takes well under a second.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Interval at which the start and the end of a process are polled.
const POLL: Duration = Duration::from_millis(5);
/// Longest time from SIGTERM to the end, in which a process ends up to 1,000 agents. SIGKILL follows.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// The token of every program under test: also of older ones, which make none themselves.
const TOKEN: &str = "token-of-the-benchmarks-0123456789";
/// The header with [`TOKEN`].
pub(crate) const BEARER: &str = "Bearer token-of-the-benchmarks-0123456789";
/// File in which a process announces its address.
const ANNOUNCE: &str = "announce.json";
const LOG: &str = "log.jsonl";
/// End of the log that is shown for a process that does not start.
const SHOWN_LOG_CHARS: usize = 1000;
/// Variables that processes inherit, besides those with the prefix `LC_`. Other variables, those of the program's own
/// settings among them, must not change the measurement.
const INHERITED: [&str; 9] = ["HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER"];

/// Variable with the path of the program to measure. Without it, the program that cargo built for the benchmark is
/// measured: cargo unites the features of the dependencies of tests with the program's own, so this one differs a little
/// from `cargo build --release`.
pub(crate) const PROGRAM: &str = "LUMILINK_BENCH_PROGRAM";

/// A temporary folder, the program, and the environment of processes.
pub(crate) struct Workplace {
    folder: TempDir,
    program: PathBuf,
    environment: Vec<(OsString, OsString)>,
}

impl Workplace {
    /// Creates a folder under `parent`, or under the system's temporary folder. Dropping the workplace removes it.
    pub(crate) fn new(parent: Option<&Path>) -> Result<Self, BenchError> {
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix("lumilink-bench-");
        let folder = match parent {
            Some(parent) => builder.tempdir_in(parent),
            None => builder.tempdir(),
        };
        let folder = folder.map_err(BenchError::io("a temporary folder"))?;
        #[expect(clippy::disallowed_methods, reason = "the rule is for the program, not for its benchmarks")]
        let (variables, program) = (std::env::vars_os(), std::env::var_os(PROGRAM));
        let program = match program {
            Some(path) => fs::canonicalize(&path).map_err(BenchError::io(path.display().to_string()))?,
            None => PathBuf::from(env!("CARGO_BIN_EXE_lumilink")),
        };
        let is_inherited = |name: &str| INHERITED.contains(&name) || name.starts_with("LC_");
        let environment = variables.filter(|(name, _)| name.to_str().is_some_and(is_inherited)).collect();
        Ok(Self { folder, program, environment })
    }

    /// The folder of the whole run.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The program under test.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Creates a folder below the folder of the run.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, BenchError> {
        let folder = self.path().join(name);
        fs::create_dir_all(&folder).map_err(BenchError::io(folder.display().to_string()))?;
        Ok(folder)
    }

    /// Removes the folder of a point. One that cannot be removed remains until the run ends, which does no harm.
    pub(crate) fn clear(&self, folder: &Path) {
        let _ = fs::remove_dir_all(folder);
    }

    /// The program in a process group of its own, without arguments. The kernel kills the process when the thread that
    /// started it ends.
    pub(crate) fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new(self.program());
        command.env_clear().envs(self.environment.iter().cloned()).current_dir(folder).process_group(0);
        // SAFETY: between fork and exec only prctl is called, which touches no memory with these arguments.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        command
    }
}

/// A child process. Dropping it kills the process and waits for its end, which takes a few milliseconds.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(mut command: Command) -> io::Result<Self> {
        command.spawn().map(Self)
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Waits for the end. Cancel-safe.
    async fn ended(&mut self) -> io::Result<ExitStatus> {
        loop {
            match self.0.try_wait()? {
                Some(status) => return Ok(status),
                None => sleep(POLL).await,
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails where the process has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running program. Dropping it kills the process; its agents end with it.
pub(crate) struct Program {
    process: Process,
    address: SocketAddr,
    folder: PathBuf,
}

impl Program {
    /// Starts `lumilink <subcommand>` on a free loopback port and waits until it serves.
    pub(crate) async fn start(
        workplace: &Workplace,
        subcommand: &str,
        folder: &Path,
        settings: &[String],
    ) -> Result<Self, BenchError> {
        let (announce, log) = (folder.join(ANNOUNCE), folder.join(LOG));
        // A file, so that no thread of the load client has to read the log. A restart appends.
        let output = File::options().create(true).append(true).open(&log);
        let output = output.map_err(BenchError::io(log.display().to_string()))?;
        let errors = output.try_clone().map_err(BenchError::io(log.display().to_string()))?;
        let mut command = workplace.command(folder);
        command.args([subcommand, "--listen", "127.0.0.1:0", "--data-dir", "data", "--announce"]).arg(&announce);
        command.args(settings.iter().flat_map(|setting| ["--set", setting]));
        command.env("LUMILINK_SERVER__TOKEN", TOKEN);
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let mut process =
            Process::start(command).map_err(BenchError::io(format!("starting lumilink {subcommand}")))?;
        let address = tokio::select! {
            address = announced(&announce) => address.ok_or_else(|| format!("does not serve after {START_LIMIT:?}")),
            ended = process.ended() => Err(format!("ended ({ended:?})")),
        };
        match address {
            Ok(address) => Ok(Self { process, address, folder: folder.to_owned() }),
            Err(how) => {
                Err(BenchError::Start(format!("lumilink {subcommand} {how}; its log ends: {}", end_of(&log))))
            }
        }
    }

    /// The HTTP address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Kills the process with SIGKILL and starts `lumilink <subcommand>` in the same folder, on any free port.
    pub(crate) async fn kill_and_restart(
        self,
        workplace: &Workplace,
        subcommand: &str,
        settings: &[String],
    ) -> Result<Self, BenchError> {
        let Self { process, folder, .. } = self;
        drop(process);
        let announced = folder.join(ANNOUNCE);
        fs::remove_file(&announced).map_err(BenchError::io(announced.display().to_string()))?;
        Self::start(workplace, subcommand, &folder, settings).await
    }

    /// Stops the process with SIGTERM, waits for its end, and counts the errors in its log.
    pub(crate) async fn stop(mut self) -> Result<u64, BenchError> {
        let pid = libc::pid_t::try_from(self.pid()).unwrap_or(0);
        // SAFETY: kill takes numbers; the process is a child that has not been waited for, so the id is still its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        if let Ok(ended) = timeout(STOP_LIMIT, self.process.ended()).await {
            ended.map_err(BenchError::io("waiting for the process"))?;
        }
        let Self { process, folder, .. } = self;
        drop(process);
        let log = fs::read_to_string(folder.join(LOG)).map_err(BenchError::io("the log of the process"))?;
        let errors = log.lines().filter(|line| line.contains("\"level\":\"ERROR\"") || line.contains(" ERROR "));
        Ok(u64::try_from(errors.count()).unwrap_or(u64::MAX))
    }
}

async fn announced(file: &Path) -> Option<SocketAddr> {
    #[derive(Deserialize)]
    struct Announced {
        http: String,
    }
    let limit = Instant::now() + START_LIMIT;
    while Instant::now() < limit {
        let announced = fs::read(file).ok().and_then(|text| serde_json::from_slice::<Announced>(&text).ok());
        if let Some(announced) = announced {
            return announced.http.strip_prefix("http://")?.parse().ok();
        }
        sleep(POLL).await;
    }
    None
}

fn end_of(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let from = text.chars().count().saturating_sub(SHOWN_LOG_CHARS);
    text.chars().skip(from).collect()
}

/// A supervisor and a runtime, each in a process of its own.
pub(crate) struct Pair {
    pub supervisor: Program,
    pub runtime: Program,
    /// Settings of the supervisor, for a restart.
    pub settings: Vec<String>,
}

impl Pair {
    /// Starts a runtime, then a supervisor that connects to it at the address that `via` returns.
    pub(crate) async fn start(
        workplace: &Workplace,
        folder: &Path,
        of_runtime: &[String],
        of_supervisor: &[String],
        via: impl AsyncFnOnce(SocketAddr) -> Result<SocketAddr, BenchError>,
    ) -> Result<Self, BenchError> {
        let (near, far) = (folder.join("supervisor"), folder.join("runtime"));
        for folder in [&near, &far] {
            fs::create_dir_all(folder).map_err(BenchError::io(folder.display().to_string()))?;
        }
        let runtime = Program::start(workplace, "runtime", &far, of_runtime).await?;
        let mut settings = vec![format!("runtime.url=ws://{}/acp", via(runtime.address()).await?)];
        settings.extend(of_supervisor.iter().cloned());
        let supervisor = Program::start(workplace, "serve", &near, &settings).await?;
        Ok(Self { supervisor, runtime, settings })
    }

    /// Stops both; returns the number of errors in their logs.
    pub(crate) async fn stop(self) -> Result<u64, BenchError> {
        Ok(self.supervisor.stop().await? + self.runtime.stop().await?)
    }
}
