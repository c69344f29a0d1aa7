//! A process of the program, and the folder that it works in.

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

/// The folder of a run: database, workspaces, HOME and logs. Clones share it, so it may outlive a program, for a test
/// that starts another program on the same data. The last clone removes it.
#[derive(Debug, Clone)]
pub(crate) struct Folder(Arc<TempDir>);

impl Folder {
    /// Creates an empty folder.
    pub(crate) fn new() -> Self {
        Self(Arc::new(tempfile::Builder::new().prefix("lumilink-it-").tempdir().expect("a temporary folder")))
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

/// A process of the program with its log.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts the program with these arguments; its log, HOME and working directory are in `folder`.
    pub(crate) fn start(name: &str, folder: &Folder, arguments: &[String], env: &[(String, String)]) -> Self {
        Self::start_with(name, folder, arguments, env, |_| {})
    }

    /// [`Process::start`], after `prepare` has changed the command.
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

    /// Fails the test and shows the log if the process has ended.
    pub(crate) fn assert_running(&mut self) {
        if let Ok(Some(status)) = self.child.try_wait() {
            panic!("the program ended with {status}; its log:\n{}", self.log());
        }
    }

    /// Its log so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id")
    }

    /// Waits until it ends.
    pub(crate) fn wait(&mut self, deadline: Duration) -> ExitStatus {
        wait_for(deadline, "the process ends", || self.child.try_wait().ok().flatten())
    }

    /// Kills its process group with SIGKILL, and reaps it.
    pub(crate) fn kill(&mut self) {
        processes::signal(-self.pid(), libc::SIGKILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Simulates a kernel without Landlock: a filter answers its first system call as an older kernel does.
pub(crate) fn without_landlock(command: &mut Command) {
    let forbid = || {
        let instruction = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
        let returns = libc::BPF_RET | libc::BPF_K;
        let mut filter = [
            instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_landlock_create_ruleset as u32),
            instruction(returns, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
            instruction(returns, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the filter is valid during the calls, which are async-signal-safe.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) == 0
        };
        if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: the closure allocates nothing and makes only async-signal-safe calls.
    unsafe { command.pre_exec(forbid) };
}
