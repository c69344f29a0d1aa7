//! The processes under test: this very program, started in folders of its own.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tempfile::TempDir;

use super::conversation::BenchError;
use crate::{
    config::{Environment, environment::current_program, sections::Agent},
    process::group::{self, Exit, GroupCommand, Life, Streams},
};

/// How long a process may take until it serves; it takes well under a second.
const START_LIMIT: Duration = Duration::from_secs(60);
const START_POLL: Duration = Duration::from_millis(5);
/// How long it may take to end 1,000 agents, after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// The file in which a process says where it serves.
const ANNOUNCE: &str = "announce.json";
/// How much of the end of a log is shown of a process that does not start.
const SHOWN_LOG_CHARS: usize = 1000;
/// Redirects the log to a file and becomes the program: nobody of ours has to read it then.
const START_WITH_LOG: &str = r#"exec "$@" >log.jsonl 2>&1"#;

/// A temporary folder, the program, and the environment that processes get.
pub(crate) struct Workplace {
    folder: TempDir,
    program: PathBuf,
    environment: BTreeMap<String, SecretString>,
}

impl Workplace {
    /// Makes a folder of our own under `parent`, or the system's temporary folder. It is removed in the end.
    pub(crate) fn new(parent: Option<&Path>) -> Result<Self, BenchError> {
        let program = current_program().map_err(BenchError::io("the program that runs"))?;
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix("lumilink-bench-");
        let folder = match parent {
            Some(parent) => builder.tempdir_in(parent),
            None => builder.tempdir(),
        };
        let folder = folder.map_err(BenchError::io("a temporary folder"))?;
        // Settings of whoever measures must not change what is measured, so only what agents get is inherited.
        let environment = Environment::of_process().of_agent(&Agent::default());
        Ok(Self { folder, program, environment })
    }

    /// The folder of the whole run.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The program that is measured: this one.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// The environment of every process.
    pub(crate) fn environment(&self) -> &BTreeMap<String, SecretString> {
        &self.environment
    }

    /// Makes a folder for one point.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, BenchError> {
        let folder = self.path().join(name);
        fs::create_dir_all(&folder).map_err(BenchError::io(folder.display().to_string()))?;
        Ok(folder)
    }
}

/// A running process. Dropping it begins to end it.
pub(crate) struct Program {
    pid: u32,
    address: SocketAddr,
    log: PathBuf,
    life: Life,
    exit: Exit,
}

impl Program {
    /// Starts `lumilink <command>` on a free loopback port and waits until it serves.
    pub(crate) async fn start(
        workplace: &Workplace,
        command: &str,
        folder: &Path,
        settings: &[String],
    ) -> Result<Self, BenchError> {
        let announce = folder.join(ANNOUNCE);
        let mut args: Vec<OsString> = vec!["-c".into(), START_WITH_LOG.into(), "sh".into()];
        args.push(workplace.program().into());
        args.extend([command, "--listen", "127.0.0.1:0", "--data-dir", "data", "--announce"].map(OsString::from));
        args.push((&announce).into());
        args.extend(settings.iter().flat_map(|setting| ["--set", setting]).map(OsString::from));
        let environment = workplace.environment().iter();
        let group = GroupCommand {
            program: "/bin/sh".into(),
            args,
            env: environment.map(|(name, value)| (name.into(), value.expose_secret().into())).collect(),
            cwd: folder.to_owned(),
            run_as: None,
            kill_grace: STOP_LIMIT,
            streams: Streams::Output,
        };
        let spawned = group::spawn(group, ()).await;
        let spawned = spawned.map_err(|cause| BenchError::Start(cause.to_string()))?;
        let log = folder.join("log.jsonl");
        let mut exit = spawned.exit;
        let address = tokio::select! {
            address = announced(&announce) => address.ok_or_else(|| format!("does not serve after {START_LIMIT:?}")),
            ended = exit.wait() => Err(format!("ended ({ended:?})")),
        };
        match address {
            Ok(address) => Ok(Self { pid: spawned.pid, address, log, life: spawned.life, exit }),
            Err(how) => Err(BenchError::Start(format!("lumilink {command} {how}; its log ends: {}", end_of(&log)))),
        }
    }

    /// Where it serves.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Kills it with SIGKILL and starts `lumilink <command>` again in the same folder, on whatever port is free.
    pub(crate) async fn killed_and_started_again(
        mut self,
        workplace: &Workplace,
        command: &str,
        settings: &[String],
    ) -> Result<Self, BenchError> {
        let folder = self.log.parent().map(Path::to_owned).unwrap_or_default();
        // SAFETY: a number is passed, no memory; the process is our child and has not been waited for.
        unsafe { libc::kill(libc::pid_t::try_from(self.pid).unwrap_or(0), libc::SIGKILL) };
        self.exit.wait().await;
        let announced = folder.join(ANNOUNCE);
        std::fs::remove_file(&announced).map_err(BenchError::io(announced.display().to_string()))?;
        Self::start(workplace, command, &folder, settings).await
    }

    /// Stops it with SIGTERM, waits for its end, and counts the errors that it logged.
    pub(crate) async fn stop(self) -> Result<u64, BenchError> {
        let Self { log, life, mut exit, .. } = self;
        drop(life);
        exit.wait().await;
        let log = fs::read_to_string(&log).map_err(BenchError::io("the log of the process"))?;
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
        tokio::time::sleep(START_POLL).await;
    }
    None
}

fn end_of(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let from = text.chars().count().saturating_sub(SHOWN_LOG_CHARS);
    text.chars().skip(from).collect()
}
