//! One started process of the program, and the folder that it works in.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;

use super::{lumilink, processes, wait_for};

/// The folder of a run: database, workspaces, HOME and logs. It may outlive a program, for a test that
/// starts another one on the same data.
#[derive(Debug, Clone)]
pub(crate) struct Folder(Arc<TempDir>);

impl Folder {
    /// Makes an empty one.
    pub(crate) fn new() -> Self {
        Self(Arc::new(tempfile::Builder::new().prefix("lumilink-it-").tempdir().expect("a temporary folder")))
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

/// One started process with its log.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts the program with these arguments, its log and output beside its data, HOME in the folder.
    pub(crate) fn start(name: &str, folder: &Folder, arguments: &[String], env: &[(String, String)]) -> Self {
        Self::start_with(name, folder, arguments, env, |_| {})
    }

    /// [`Process::start`], with a last word about how.
    pub(crate) fn start_with(
        name: &str,
        folder: &Folder,
        arguments: &[String],
        env: &[(String, String)],
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let log = folder.path().join(format!("{name}-{}.log", uuid::Uuid::new_v4().simple()));
        let stderr = fs::File::create(&log).expect("a log file");
        let mut command = Command::new(lumilink());
        command
            .args(arguments)
            .envs(env.iter().map(|(name, value)| (name.as_str(), value.as_str())))
            .env("HOME", folder.path())
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .process_group(0);
        prepare(&mut command);
        let child = command.spawn().expect("the program starts");
        Self { child, log }
    }

    /// Fails the test, with the log, where the process has ended.
    pub(crate) fn assert_running(&mut self) {
        if let Ok(Some(status)) = self.child.try_wait() {
            panic!("the program ended with {status}; its log:\n{}", self.log());
        }
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id")
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self, deadline: Duration) -> ExitStatus {
        wait_for(deadline, "the process ends", || self.child.try_wait().ok().flatten())
    }

    /// Kills it with its group, and reaps it.
    pub(crate) fn kill(&mut self) {
        processes::signal(-self.pid(), libc::SIGKILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
