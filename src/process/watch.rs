//! Watches one process group from its start to its end: ends it, kills it as a whole, and reaps it.
//!
//! Only members of the group are waited for, so children of other parts of the program are never reaped here.

use std::{
    fs,
    io::{self, Read},
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    process::ExitStatus,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    net::unix::pipe,
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::domain::redaction::stream::StreamRedaction;

/// Bytes kept from the end of stderr; a panic message with a short backtrace fits.
pub(crate) const STDERR_TAIL_BYTES: usize = 4096;
/// The most that an exited process can have left in a pipe, in bytes: the default `pipe-max-size` of Linux.
pub(crate) const MAX_PIPE_BYTES: usize = 1024 * 1024;

/// The exit status of the leader of a process group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    /// The exit code; `None` if a signal killed the process.
    pub exit_code: Option<i32>,
    /// The signal that killed the process, if any.
    pub signal: Option<i32>,
    /// The last [`STDERR_TAIL_BYTES`] that the group wrote to stderr during its newest task, or before the first one
    /// ended, without known secrets; invalid UTF-8 is replaced.
    pub stderr_tail: String,
}

/// The watch over one started group.
pub(crate) struct GroupWatch {
    pid: u32,
    stderr: Option<pipe::Receiver>,
    /// A message, or the end of the channel, ends the group.
    ending: mpsc::Receiver<()>,
    kill_grace: Duration,
    tasks: TaskCount,
    tail: Vec<u8>,
    redaction: StreamRedaction,
    /// The task in which `tail` was written.
    tail_task: u64,
}

/// The number of tasks, such as prompts, that a group has begun. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct TaskCount(Arc<AtomicU64>);

impl TaskCount {
    pub(super) fn begin(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    /// The number of the running task; its start is a part of the first one.
    fn current(&self) -> u64 {
        self.0.load(Ordering::Acquire).max(1)
    }
}

impl GroupWatch {
    pub(crate) fn new(
        pid: u32,
        stderr: Option<pipe::Receiver>,
        ending: mpsc::Receiver<()>,
        kill_grace: Duration,
        tasks: TaskCount,
    ) -> Self {
        Self {
            pid,
            stderr,
            ending,
            kill_grace,
            tasks,
            tail: Vec::new(),
            redaction: StreamRedaction::default(),
            tail_task: 1,
        }
    }

    /// Runs until the whole group is reaped. `report` gets the exit status of the leader as soon as the group has
    /// been killed.
    pub(crate) async fn run_until_reaped(mut self, report: oneshot::Sender<Ended>) {
        self.until_exit_or_grace().await;
        // Must come before the leader is reaped: until then its process id cannot be reused for another group.
        signal_group(self.pid, libc::SIGKILL);
        let mut report = Some(report);
        let mut pause = Duration::from_millis(1);
        loop {
            let (reaped, status) = wait_for_member(self.pid);
            match reaped {
                Reaped::Leader => {
                    self.drain_stderr_after_exit();
                    // Reported before the rest of the group is reaped, which callers need not wait for.
                    if let Some(report) = report.take() {
                        let _ = report.send(self.ended(status));
                    }
                }
                Reaped::Orphan => {}
                Reaped::NoneYet => {
                    tokio::time::sleep(pause).await;
                    // Killed processes usually exit within a millisecond; one in an uninterruptible system call may
                    // take long.
                    pause = (pause * 2).min(Duration::from_millis(100));
                }
                Reaped::NoneLeft => break,
            }
        }
    }

    async fn until_exit_or_grace(&mut self) {
        let exit = until_exited(self.pid);
        tokio::pin!(exit);
        let mut kill_at: Option<Instant> = None;
        loop {
            tokio::select! {
                biased;
                // The exit comes first: a leader that has exited needs no further signal.
                () = &mut exit => return,
                () = tokio::time::sleep_until(kill_at.unwrap_or_else(Instant::now)), if kill_at.is_some() => return,
                _ = self.ending.recv(), if kill_at.is_none() => {
                    signal_group(self.pid, libc::SIGTERM);
                    kill_at = Some(Instant::now() + self.kill_grace);
                }
                () = readable(&self.stderr), if self.stderr.is_some() => self.drain_stderr(),
            }
        }
    }

    /// Reads the available stderr, at most 256 KiB at a time so that an agent that floods stderr does not starve
    /// others.
    fn drain_stderr(&mut self) {
        for _ in 0..64 {
            let Some(stderr) = &self.stderr else { return };
            let mut chunk = [0; STDERR_TAIL_BYTES];
            match stderr.try_read(&mut chunk) {
                Ok(0) => self.stderr = None,
                Ok(read) => self.keep(&chunk[..read]),
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.stderr = None,
            }
        }
    }

    /// Reads the rest of the stderr of an exited process directly, because tokio may not have seen yet that the pipe
    /// is readable. A process that left the group may hold the pipe open, so the read stops when the pipe is empty.
    fn drain_stderr_after_exit(&mut self) {
        let Some(Ok(fd)) = self.stderr.take().map(pipe::Receiver::into_nonblocking_fd) else { return };
        let mut stderr = fs::File::from(fd);
        let mut chunk = [0; STDERR_TAIL_BYTES];
        for _ in 0..MAX_PIPE_BYTES / STDERR_TAIL_BYTES {
            match stderr.read(&mut chunk) {
                Ok(read @ 1..) => self.keep(&chunk[..read]),
                _ => return,
            }
        }
    }

    fn keep(&mut self, chunk: &[u8]) {
        self.forget_older_tasks();
        // Before the tail is cut, which would leave a part of a value that is not recognised.
        let shown = self.redaction.push(chunk);
        self.extend_tail(&shown);
    }

    fn extend_tail(&mut self, shown: &[u8]) {
        self.tail.extend_from_slice(shown);
        let excess = self.tail.len().saturating_sub(STDERR_TAIL_BYTES);
        self.tail.drain(..excess);
    }

    /// The last words of an agent are those of the turn in which it ends.
    fn forget_older_tasks(&mut self) {
        let current = self.tasks.current();
        if self.tail_task != current {
            self.tail.clear();
            self.redaction = StreamRedaction::default();
            self.tail_task = current;
        }
    }

    fn ended(&mut self, status: ExitStatus) -> Ended {
        self.forget_older_tasks();
        let held = self.redaction.finish();
        self.extend_tail(&held);
        let stderr_tail = String::from_utf8_lossy(&self.tail).into_owned();
        Ended { exit_code: status.code(), signal: status.signal(), stderr_tail }
    }
}

async fn readable(stderr: &Option<pipe::Receiver>) {
    match stderr {
        // The next read reports the error.
        Some(stderr) => drop(stderr.readable().await),
        None => std::future::pending().await,
    }
}

/// Resolves when the process has exited, without reaping it.
async fn until_exited(pid: u32) {
    // SAFETY: a system call without pointers. The result is a new descriptor or negative.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if let Ok(fd) = i32::try_from(fd)
        && fd >= 0
    {
        // SAFETY: the descriptor was just opened and has no other owner.
        let fd = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) };
        // SAFETY: the descriptor stays open and unchanged until the registration is dropped with it.
        if let Ok(fd) = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
            && fd.readable().await.is_ok()
        {
            return;
        }
    }
    // The kernel or the sandbox has no process descriptors.
    while !has_exited(pid) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// True if the process is a zombie or does not exist.
pub(crate) fn has_exited(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z') || rest.starts_with('X'))
}

fn signal_group(pid: u32, signal: i32) {
    // SAFETY: a system call without pointers. Process ids fit into `i32`.
    unsafe { libc::kill(-(pid as i32), signal) };
}

enum Reaped {
    Leader,
    Orphan,
    NoneYet,
    NoneLeft,
}

/// Reaps at most one exited child of this program that is a member of the group.
fn wait_for_member(pid: u32) -> (Reaped, ExitStatus) {
    let mut status = 0;
    // SAFETY: `status` is valid for the whole call.
    let reaped = unsafe { libc::waitpid(-(pid as i32), &mut status, libc::WNOHANG) };
    let interrupted = || io::Error::last_os_error().kind() == io::ErrorKind::Interrupted;
    let reaped_member = match reaped {
        0 => Reaped::NoneYet,
        // Nothing was reaped, but the caller must try again at once, as after an orphan.
        -1 if interrupted() => Reaped::Orphan,
        -1 => Reaped::NoneLeft,
        found if found as u32 == pid => Reaped::Leader,
        _ => Reaped::Orphan,
    };
    (reaped_member, ExitStatus::from_raw(status))
}
