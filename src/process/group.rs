//! Child processes that cannot outlive their owner.
//!
//! Every child is the leader of its own session and process group. One thread, the keeper, starts, watches and reaps all
//! children and lives as long as the program, because the kernel's parent-death signal fires when the *thread* that
//! forked ends. The owner holds a [`Life`]; dropping it ends the group without blocking.

use std::{
    any::Any,
    ffi::{CString, OsString},
    io,
    os::{
        fd::{OwnedFd, RawFd},
        unix::{ffi::OsStringExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    net::unix::pipe,
    sync::{mpsc, oneshot},
};

pub(crate) use super::watch::{Ended, MAX_PIPE_BYTES};
use super::{
    cgroup::{self, ControlGroup, ControlGroups},
    limits::Limits,
    members::Members,
    orphans::{self, Orphans, ReportSurvivors},
    sandbox::enforce::Enforcement,
    user::RunAs,
    watch::{GroupWatch, TaskCount},
};
use crate::domain::jail::limits::ControlGroupState;

/// Commands queued for the keeper. A start takes about a millisecond; when the queue is full, [`spawn`] waits.
const STARTS_IN_QUEUE: usize = 64;

/// A command to start as a process group. `env` holds secrets, so the type has no `Debug`.
pub(crate) struct GroupCommand {
    /// A program name, looked up in the `PATH` of `env`, or a path.
    pub program: OsString,
    /// Arguments, passed without a shell.
    pub args: Vec<OsString>,
    /// The whole environment: nothing is inherited.
    pub env: Vec<(OsString, OsString)>,
    /// The working directory, which must exist.
    pub cwd: PathBuf,
    /// The user that the command runs as; `None`: this program's own. Another user requires root.
    pub run_as: Option<RunAs>,
    /// Time from SIGTERM to SIGKILL.
    pub kill_grace: Duration,
    /// The connections of stdin, stdout and stderr.
    pub streams: Streams,
    /// The jail; `None`: none.
    pub jail: Option<Arc<Enforcement>>,
    pub limits: Limits,
}

/// The connections of stdin, stdout and stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Streams {
    /// stdin and stdout are pipes; the end of stderr is kept.
    Dialogue,
    /// stdin is empty, stdout is a pipe; the end of stderr is kept.
    Output,
    /// stdin is empty, stdout and stderr are one pipe.
    Merged,
}

/// Owns a process group: the group is ended when this is dropped. Dropping never blocks.
#[derive(Debug)]
pub(crate) struct Life {
    end: mpsc::Sender<()>,
    members: Members,
    tasks: TaskCount,
}

/// Ends a process group early, without keeping it alive.
#[derive(Debug, Clone)]
pub(crate) struct EndSwitch {
    end: mpsc::WeakSender<()>,
}

/// Resolves to the exit status of the group's leader, after the leader was reaped and the rest of the group was
/// killed.
#[derive(Debug)]
pub(crate) struct Exit {
    ended: oneshot::Receiver<Ended>,
}

#[derive(Debug)]
pub(crate) struct Spawned {
    /// Writes to stdin; only with [`Streams::Dialogue`].
    pub input: Option<pipe::Sender>,
    pub output: pipe::Receiver,
    /// Ends the group when dropped.
    pub life: Life,
    /// Resolves to the exit status of the leader.
    pub exit: Exit,
}

/// A failed start of a command. The cause names a missing working directory explicitly.
#[derive(Debug, thiserror::Error)]
#[error("could not start `{program}`: {cause}")]
pub(crate) struct SpawnError {
    program: String,
    cause: io::Error,
}

impl Life {
    /// Creates a switch that ends the group before its owner does.
    pub(crate) fn switch(&self) -> EndSwitch {
        EndSwitch { end: self.end.downgrade() }
    }

    /// Records that a new task is about to begin: what the group wrote to stderr before is of an older one.
    pub(crate) fn begin_task(&self) {
        self.tasks.begin();
    }

    /// The processes of the group.
    pub(crate) fn members(&self) -> Members {
        self.members.clone()
    }
}

impl EndSwitch {
    /// Begins to end the group: SIGTERM now, SIGKILL after the grace. Never blocks; does nothing if the group has
    /// ended already.
    pub(crate) fn end(&self) {
        if let Some(end) = self.end.upgrade() {
            // The queue of one is full if the end has been requested before.
            let _ = end.try_send(());
        }
    }
}

impl Exit {
    /// Waits for the exit of the leader. Must not be called again after it returned.
    ///
    /// # Cancel safety
    /// Cancel-safe: a dropped future loses nothing.
    pub(crate) async fn wait(&mut self) -> Ended {
        (&mut self.ended).await.unwrap_or_default()
    }
}

/// Starts a command. `held`, for instance a permit, is dropped after the whole group has ended and is reaped.
///
/// Must be called within a tokio runtime with I/O, which then serves the pipes. Waits while [`STARTS_IN_QUEUE`] other
/// starts are queued.
///
/// # Errors
/// The program or its working directory is missing, or the system refuses a process. Nothing is left behind, so a
/// retry is safe.
///
/// # Cancel safety
/// A dropped future leaves no process behind.
pub(crate) async fn spawn(command: GroupCommand, held: impl Any + Send) -> Result<Spawned, SpawnError> {
    let program = command.program.to_string_lossy().into_owned();
    let cwd = command.cwd.clone();
    let hides_files = command.jail.as_ref().is_some_and(|jail| jail.hides_files());
    let failed = |cause: io::Error| SpawnError { program: program.clone(), cause };
    let keeper =
        keeper(None).map_err(|kind| failed(io::Error::new(kind, "the process keeper thread is not running")))?;
    let gone = || failed(io::Error::other("the process keeper thread has ended"));
    let (reply, answer) = oneshot::channel();
    keeper.starts.send(Start { command, held: Box::new(held), reply }).await.map_err(|_| gone())?;
    let started = answer.await.map_err(|_| gone())?.map_err(|cause| failed(explain(cause, &cwd, hides_files)))?;
    let input = started.input.map(pipe::Sender::from_owned_fd).transpose().map_err(failed)?;
    let output = pipe::Receiver::from_owned_fd(started.output).map_err(failed)?;
    Ok(Spawned { input, output, life: started.life, exit: started.exit })
}

/// Starts the keeper and returns the state of control groups on this machine. From then on the keeper adopts orphans, and
/// kills processes that a dead run of this program left. [`spawn`] starts it too; a program that spawns later calls this
/// at its start. `report` gets the numbers of processes of ended groups that could not be killed; only that of the first
/// call is used.
///
/// # Errors
/// The thread or its runtime cannot be created. Later calls return the same error.
pub(crate) fn prepare(report: ReportSurvivors) -> io::Result<ControlGroupState> {
    keeper(Some(report)).map(|keeper| keeper.control_groups.clone()).map_err(io::Error::from)
}

/// Distinguishes a missing working directory from a missing program, and a program that the jail hides from one that
/// cannot be run: the system reports each pair as the same error.
fn explain(cause: io::Error, cwd: &Path, hides_files: bool) -> io::Error {
    if cause.kind() == io::ErrorKind::PermissionDenied && hides_files {
        let hint = "if its file may be run, the jail hides it or its interpreter: name its folder in `agent.read`";
        return io::Error::new(cause.kind(), format!("{cause}; {hint}"));
    }
    if cause.kind() == io::ErrorKind::NotFound && !cwd.is_dir() {
        return io::Error::new(cause.kind(), format!("its working directory {} does not exist", cwd.display()));
    }
    cause
}

struct Start {
    command: GroupCommand,
    held: Box<dyn Any + Send>,
    reply: oneshot::Sender<io::Result<Started>>,
}

struct Started {
    input: Option<OwnedFd>,
    output: OwnedFd,
    life: Life,
    exit: Exit,
}

/// The thread that keeps all children.
struct Keeper {
    starts: mpsc::Sender<Start>,
    control_groups: ControlGroupState,
}

/// Returns the keeper, which is static because all children of a process share one parent, whichever part of
/// the program starts them.
fn keeper(report: Option<ReportSurvivors>) -> Result<&'static Keeper, io::ErrorKind> {
    static KEEPER: OnceLock<Result<Keeper, io::ErrorKind>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.kind())?;
        let (queue, starts) = mpsc::channel(STARTS_IN_QUEUE);
        let orphans = Orphans::new();
        let groups = ControlGroups::find(orphans.run());
        let control_groups = groups.state();
        let report = report.unwrap_or_else(|| Box::new(|_| ()));
        std::thread::Builder::new()
            .name("process-keeper".into())
            .spawn(move || runtime.block_on(keep_all(starts, orphans, groups, report)))
            .map_err(|e| e.kind())?;
        Ok(Keeper { starts: queue, control_groups })
    });
    keeper.as_ref().map_err(|kind| *kind)
}

async fn keep_all(
    mut starts: mpsc::Receiver<Start>,
    orphans: Orphans,
    control_groups: ControlGroups,
    report: ReportSurvivors,
) {
    // Orphans of children become children of this process, so that they can be found and reaped.
    // SAFETY: prctl with these arguments touches no memory.
    if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } != 0 {
        tracing::warn!(cause = %io::Error::last_os_error(), "orphans of agents cannot be adopted");
    }
    orphans.kill_those_of_dead_predecessors();
    tokio::spawn(orphans.clone().sweep_after_each_end(report));
    while let Some(Start { command, held, reply }) = starts.recv().await {
        // If the caller has been dropped, dropping the answer drops the `Life`, and the group ends.
        let _ = reply.send(start(command, held, &orphans, &control_groups));
        // This thread also reaps. Under a continuous load of starts, without the yield a hundred starts would run
        // before the next reap, and what exited processes hold would not be released.
        tokio::task::yield_now().await;
    }
}

fn start(
    command: GroupCommand,
    held: Box<dyn Any + Send>,
    orphans: &Orphans,
    control_groups: &ControlGroups,
) -> io::Result<Started> {
    let mark = orphans.next_mark();
    let limits = command.jail.as_ref().map(|jail| jail.limits).unwrap_or_default();
    let control_group = control_groups.make(mark.group(), limits);
    let entrance = control_group.as_ref().map(ControlGroup::entrance);
    let mut process = Command::new(&command.program);
    process.args(&command.args).env_clear().envs(command.env).env(orphans::MARK, mark.value());
    process.current_dir(&command.cwd);
    process.stdin(if command.streams == Streams::Dialogue { Stdio::piped() } else { Stdio::null() });
    let merged = if command.streams == Streams::Merged {
        let (reader, writer) = io::pipe()?;
        process.stdout(writer.try_clone()?).stderr(writer);
        Some(reader)
    } else {
        process.stdout(Stdio::piped()).stderr(Stdio::piped());
        None
    };
    let cwd = CString::new(command.cwd.into_os_string().into_vec())?;
    let before = BeforeExec {
        parent: std::process::id(),
        entrance,
        user: command.run_as,
        cwd,
        limits: command.limits,
        jail: command.jail,
    };
    // SAFETY: between fork and exec only async-signal-safe calls are made and nothing is allocated.
    unsafe { process.pre_exec(move || before.apply()) };
    let mut child = process.spawn()?;
    // The command holds the write end of the merged pipe. While it is open, the reader would never see the end.
    drop(process);
    let pid = child.id();
    let stderr = child.stderr.take().and_then(|stderr| pipe::Receiver::from_owned_fd(stderr.into()).ok());
    let (end, ending) = mpsc::channel(1);
    let (report, ended) = oneshot::channel();
    orphans.record_start(pid, &mark);
    let tasks = TaskCount::default();
    let watch = GroupWatch::new(pid, stderr, ending, command.kill_grace, tasks.clone());
    let folder = control_group.as_ref().map(|it| it.folder().into());
    let members = Members { leader: pid, mark: mark.clone(), control_group: folder };
    let orphans = orphans.clone();
    tokio::spawn(async move {
        watch.run_until_reaped(report).await;
        if let Some(control_group) = control_group {
            control_group.remove().await;
        }
        orphans.gone(pid, &mark).await;
        drop(held);
    });
    let output = match merged {
        Some(reader) => reader.into(),
        None => child.stdout.take().map(OwnedFd::from).ok_or_else(|| io::Error::other("no stdout"))?,
    };
    Ok(Started {
        input: child.stdin.take().map(Into::into),
        output,
        life: Life { end, members, tasks },
        exit: Exit { ended },
    })
}

/// Everything that a child does to itself. Made before fork.
struct BeforeExec {
    parent: u32,
    entrance: Option<RawFd>,
    user: Option<RunAs>,
    cwd: CString,
    limits: Limits,
    jail: Option<Arc<Enforcement>>,
}

impl BeforeExec {
    /// Runs in the child between fork and exec, where only async-signal-safe calls are allowed.
    fn apply(&self) -> io::Result<()> {
        // First: as another user the child may not enter the group.
        let is_in_control_group = self.entrance.is_some_and(cgroup::enter);
        lead(is_in_control_group)?;
        if let Some(user) = self.user {
            become_user(user)?;
            // A folder that the user cannot enter is an error of the start.
            // SAFETY: the path is a C string.
            check(unsafe { libc::chdir(self.cwd.as_ptr()) })?;
        }
        end_with(self.parent)?;
        // Covers descriptors that a library opened without close-on-exec. The call fails harmlessly before Linux 5.11.
        // SAFETY: a system call without pointers.
        unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        self.limits.apply();
        // Last: the steps before need what the jail forbids.
        self.jail.as_deref().map_or(Ok(()), Enforcement::apply)
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Begins a session, and with it a process group; see the module `orphans`.
fn lead(is_in_control_group: bool) -> io::Result<()> {
    // SAFETY: plain system calls without pointers.
    unsafe {
        check(libc::setsid())?;
        // Its daemons stay below it, so that they are found by parentage. In a control group they need not, and would be
        // zombies of an agent that reaps only what it started.
        if is_in_control_group { Ok(()) } else { check(libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)) }
    }
}

/// Changes the user, without any supplementary group.
fn become_user(user: RunAs) -> io::Result<()> {
    // SAFETY: a list of no groups needs no memory.
    unsafe {
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setgid(user.gid))?;
        check(libc::setuid(user.uid))
    }
}

/// Has the kernel kill the calling process when its parent dies.
fn end_with(parent: u32) -> io::Result<()> {
    // SAFETY: plain system calls without pointers.
    unsafe {
        // Must follow the change of user, because that clears the setting.
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
        // The parent may have died before the call above; its signal would never come.
        if u32::try_from(libc::getppid()) == Ok(parent) {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::ESRCH))
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt, time::Instant};

    use super::{
        super::watch::{STDERR_TAIL_BYTES, has_exited},
        *,
    };

    fn shell(script: &str, streams: Streams) -> GroupCommand {
        GroupCommand {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
            cwd: "/".into(),
            run_as: None,
            kill_grace: Duration::from_millis(200),
            streams,
            jail: None,
            limits: Limits::default(),
        }
    }

    fn runs(pid: u32) -> bool {
        !has_exited(pid)
    }

    async fn until_gone(pid: u32) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while runs(pid) {
            assert!(Instant::now() < deadline, "process {pid} still runs");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_counted(members: &Members, expected: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while members.younger_than(Duration::from_secs(3600)) != expected {
            assert!(Instant::now() < deadline, "{expected} processes are not counted");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Reads the process id that the script prints on its first line.
    async fn printed_pid(output: &mut pipe::Receiver) -> u32 {
        let mut text = String::new();
        while !text.ends_with('\n') {
            text.push(char::from(output.read_u8().await.unwrap()));
        }
        text.trim().parse().unwrap()
    }

    #[tokio::test]
    async fn crash_reports_the_exit_code_and_the_end_of_stderr() {
        let script = "head -c 10000 /dev/zero | tr '\\0' x >&2; echo boom >&2; exit 42";
        let mut spawned = spawn(shell(script, Streams::Output), ()).await.unwrap();
        let ended = spawned.exit.wait().await;
        assert_eq!((ended.exit_code, ended.signal), (Some(42), None));
        assert!(ended.stderr_tail.ends_with("xboom\n") && ended.stderr_tail.len() == STDERR_TAIL_BYTES);
    }

    #[tokio::test]
    async fn exit_reports_the_signal() {
        let mut spawned = spawn(shell("kill -SEGV $$", Streams::Output), ()).await.unwrap();
        assert_eq!(spawned.exit.wait().await.signal, Some(libc::SIGSEGV));
    }

    #[tokio::test]
    async fn command_cannot_exceed_its_processor_time_and_file_size() {
        let limits = Limits { cpu: Some(Duration::from_secs(1)), file_bytes: Some(4096), memory_bytes: None };
        for (script, signal) in
            [("while :; do :; done", libc::SIGXCPU), ("exec head -c 100000 /dev/zero > $(mktemp)", libc::SIGXFSZ)]
        {
            let mut spawned = spawn(GroupCommand { limits, ..shell(script, Streams::Output) }, ()).await.unwrap();
            let ended = spawned.exit.wait().await;
            // The shell may report a signal of its child by its exit code, and the hard limit kills.
            let signals = [Some(signal), Some(libc::SIGKILL)];
            assert!(signals.contains(&ended.signal) || ended.exit_code == Some(128 + signal), "{script}: {ended:?}");
        }
    }

    #[tokio::test]
    async fn command_that_needs_more_memory_than_its_limit_is_refused_it() {
        let limits = Limits { memory_bytes: Some(64 * 1024 * 1024), ..Limits::default() };
        // A line without an end, which the program keeps.
        let command = GroupCommand { limits, ..shell("exec tail /dev/zero", Streams::Output) };
        let ended = spawn(command, ()).await.unwrap().exit.wait().await;
        assert!(ended.exit_code == Some(1) && ended.stderr_tail.contains("memory exhausted"), "{ended:?}");
    }

    #[tokio::test]
    async fn dropped_life_ends_grandchildren() {
        let mut spawned = spawn(shell("sleep 1000 & echo $!; wait", Streams::Output), ()).await.unwrap();
        let grandchild = printed_pid(&mut spawned.output).await;
        assert!(runs(grandchild));
        drop(spawned.life);
        spawned.exit.wait().await;
        until_gone(grandchild).await;
    }

    #[tokio::test]
    async fn crash_of_the_leader_ends_grandchildren() {
        let mut spawned = spawn(shell("sleep 1000 & echo $!; exit 1", Streams::Output), ()).await.unwrap();
        let grandchild = printed_pid(&mut spawned.output).await;
        assert_eq!(spawned.exit.wait().await.exit_code, Some(1));
        until_gone(grandchild).await;
    }

    #[tokio::test]
    async fn daemon_outside_the_group_is_killed() {
        let mut spawned = spawn(shell("setsid sleep 1000 & echo $!; wait", Streams::Output), ()).await.unwrap();
        let daemon = printed_pid(&mut spawned.output).await;
        spawned.life.switch().end();
        spawned.exit.wait().await;
        until_gone(daemon).await;
    }

    #[tokio::test]
    async fn processes_that_an_agent_left_are_counted_wherever_they_moved() {
        let script = "read one; sleep 1000 & setsid sleep 1000 & echo $!; wait";
        let mut spawned = spawn(shell(script, Streams::Dialogue), ()).await.unwrap();
        let members = spawned.life.members();
        assert_eq!(members.younger_than(Duration::from_secs(3600)), 0, "the leader itself does not count");
        let mut input = spawned.input.take().unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut input, b"go\n").await.unwrap();
        printed_pid(&mut spawned.output).await;
        // The environment of a process cannot be read while it begins its program.
        until_counted(&members, 2).await;
        drop(spawned.life);
        spawned.exit.wait().await;
        until_counted(&members, 0).await;
    }

    /// Starts a daemon that has another parent, another session and no environment, and prints its id.
    const ESCAPE: &str = "(env -i /usr/bin/setsid /bin/sh -c '(/bin/sleep 1000 & echo $!) ' & ) ";

    #[tokio::test]
    async fn daemon_of_a_double_fork_without_environment_is_killed_with_its_group() {
        let other = spawn(shell("exec sleep 1000", Streams::Output), ()).await.unwrap();
        let mut spawned =
            spawn(shell(&format!("{ESCAPE}; wait; exec sleep 1000"), Streams::Output), ()).await.unwrap();
        let escaped = printed_pid(&mut spawned.output).await;
        assert!(runs(escaped));
        drop(spawned.life);
        spawned.exit.wait().await;
        until_gone(escaped).await;
        drop(other);
    }

    #[tokio::test]
    async fn daemon_of_a_crashed_leader_is_killed_before_its_permit_is_released() {
        let permits = Arc::new(tokio::sync::Semaphore::new(1));
        let permit = permits.clone().acquire_owned().await.unwrap();
        let mut spawned =
            spawn(shell(&format!("{ESCAPE}; sleep 0.1; exit 1"), Streams::Output), permit).await.unwrap();
        let escaped = printed_pid(&mut spawned.output).await;
        drop(permits.acquire().await.unwrap());
        assert!(!runs(escaped));
    }

    #[tokio::test]
    async fn daemon_of_a_live_group_survives_the_end_of_another_group() {
        let mut live = spawn(shell(&format!("{ESCAPE}; wait; exec sleep 1000"), Streams::Output), ()).await.unwrap();
        let daemon = printed_pid(&mut live.output).await;
        for _ in 0..5 {
            let permits = Arc::new(tokio::sync::Semaphore::new(1));
            let permit = permits.clone().acquire_owned().await.unwrap();
            spawn(shell("exit 0", Streams::Output), permit).await.unwrap().exit.wait().await;
            // The permit is released after the sweep.
            drop(permits.acquire().await.unwrap());
        }
        assert!(runs(daemon));
        drop(live.life);
        until_gone(daemon).await;
    }

    #[tokio::test]
    async fn sigkill_after_the_grace_releases_the_permit() {
        let permits = std::sync::Arc::new(tokio::sync::Semaphore::new(1));
        let permit = permits.clone().acquire_owned().await.unwrap();
        let script = "trap '' TERM; echo $$; while :; do sleep 1; done";
        let mut spawned = spawn(shell(script, Streams::Output), permit).await.unwrap();
        printed_pid(&mut spawned.output).await;
        drop(spawned.life);
        assert_eq!(spawned.exit.wait().await.signal, Some(libc::SIGKILL));
        drop(permits.acquire().await.unwrap());
    }

    #[tokio::test]
    async fn environment_holds_only_the_given_variables_and_the_mark() {
        let mut spawned = spawn(shell("env", Streams::Merged), ()).await.unwrap();
        let mut text = String::new();
        spawned.output.read_to_string(&mut text).await.unwrap();
        let mut names: Vec<_> = text.lines().filter_map(|line| line.split('=').next()).collect();
        names.sort_unstable();
        // The shell itself sets PWD, OLDPWD, SHLVL and _.
        names.retain(|name| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name));
        assert_eq!(names, [orphans::MARK, "PATH"]);
    }

    #[tokio::test]
    async fn error_distinguishes_a_missing_program_from_a_missing_directory() {
        let mut command = shell("", Streams::Output);
        command.program = "/no/such/program".into();
        let message = spawn(command, ()).await.unwrap_err().to_string();
        assert!(message.contains("/no/such/program") && !message.contains("working directory"), "{message}");
        let mut command = shell("", Streams::Output);
        command.cwd = "/no/such/folder".into();
        let message = spawn(command, ()).await.unwrap_err().to_string();
        assert!(message.contains("/no/such/folder does not exist"), "{message}");
    }

    #[tokio::test]
    async fn unrelated_children_are_not_reaped() {
        let mut other = Command::new("/bin/sh").args(["-c", "exit 7"]).spawn().unwrap();
        for _ in 0..3 {
            spawn(shell("exit 0", Streams::Output), ()).await.unwrap().exit.wait().await;
        }
        assert_eq!(other.wait().unwrap().code(), Some(7));
    }
}
