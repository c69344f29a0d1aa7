//! Child processes that cannot outlive what they were started for.
//!
//! Every child is the leader of a process group of its own and is started, watched and reaped by one
//! thread, the keeper, that lives as long as the program: the kernel's parent-death signal fires when the
//! *thread* that forked ends. The owner holds a [`Life`]; dropping it ends the group without blocking.

use std::{
    any::Any,
    ffi::OsString,
    io,
    os::{
        fd::{OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use tokio::{
    net::unix::pipe,
    sync::{mpsc, oneshot},
};

pub(crate) use super::watch::{Ended, MAX_PIPE_BYTES};
use super::{
    cgroup::{self, ControlGroup, ControlGroups},
    orphans::{self, Orphans},
    user::RunAs,
    watch::GroupWatch,
};

/// Starts that wait for the keeper; a start takes about a millisecond, and who finds it full waits.
const STARTS_IN_QUEUE: usize = 64;

/// What is started, and how it ends. Holds secrets in `env`, so it cannot be printed.
pub(crate) struct GroupCommand {
    /// A program name, looked up in the `PATH` of `env`, or a path.
    pub program: OsString,
    /// Arguments, passed without a shell.
    pub args: Vec<OsString>,
    /// The whole environment: nothing is inherited.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory.
    pub cwd: PathBuf,
    /// Another user; needs root.
    pub run_as: Option<RunAs>,
    /// From SIGTERM to SIGKILL.
    pub kill_grace: Duration,
    /// What stdin, stdout and stderr are.
    pub streams: Streams,
}

/// What stdin, stdout and stderr are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Streams {
    /// stdin and stdout are pipes; of stderr the end is kept.
    Dialogue,
    /// stdin is empty, stdout is a pipe; of stderr the end is kept.
    Output,
    /// stdin is empty, stdout and stderr are one pipe.
    Merged,
}

/// The right of a process group to live: it is ended when this is dropped. Dropping never blocks.
#[derive(Debug)]
pub(crate) struct Life {
    end: mpsc::Sender<()>,
}

/// Ends a process group from elsewhere, without keeping it alive.
#[derive(Debug, Clone)]
pub(crate) struct EndSwitch {
    end: mpsc::WeakSender<()>,
}

/// Says once how the first process ended, when it has been reaped and its group was killed.
#[derive(Debug)]
pub(crate) struct Exit {
    ended: oneshot::Receiver<Ended>,
}

/// A started group.
#[derive(Debug)]
pub(crate) struct Spawned {
    /// Process id, which is the id of the group.
    pub pid: u32,
    /// To stdin, with [`Streams::Dialogue`].
    pub input: Option<pipe::Sender>,
    /// From stdout.
    pub output: pipe::Receiver,
    /// Ends the group when dropped.
    pub life: Life,
    /// How it ended.
    pub exit: Exit,
}

/// A command could not be started.
#[derive(Debug, thiserror::Error)]
#[error("could not start `{program}`: {cause}")]
pub(crate) struct SpawnError {
    program: String,
    cause: io::Error,
}

impl Life {
    /// A switch for whoever may end the group early.
    pub(crate) fn switch(&self) -> EndSwitch {
        EndSwitch { end: self.end.downgrade() }
    }
}

impl EndSwitch {
    /// Begins to end the group: SIGTERM now, SIGKILL after the grace. Does nothing when it has ended.
    pub(crate) fn end(&self) {
        if let Some(end) = self.end.upgrade() {
            // The one place is taken when somebody has said it before.
            let _ = end.try_send(());
        }
    }
}

impl Exit {
    /// Waits for the end. Cancel-safe; must not be called again after it has answered.
    pub(crate) async fn wait(&mut self) -> Ended {
        (&mut self.ended).await.unwrap_or_default()
    }
}

/// Starts a command. `held` is dropped when the whole group is gone and reaped: a permit for instance.
///
/// Must be called within a tokio runtime with I/O, which then serves the pipes. A dropped future leaves no
/// process behind.
pub(crate) async fn spawn(command: GroupCommand, held: impl Any + Send) -> Result<Spawned, SpawnError> {
    let program = command.program.to_string_lossy().into_owned();
    let cwd = command.cwd.clone();
    let failed = |cause: io::Error| SpawnError { program: program.clone(), cause };
    let keeper =
        keeper().map_err(|kind| failed(io::Error::new(kind, "the thread that starts processes is missing")))?;
    let gone = || failed(io::Error::other("the thread that starts processes has ended"));
    let (reply, answer) = oneshot::channel();
    keeper.send(Start { command, held: Box::new(held), reply }).await.map_err(|_| gone())?;
    let started = answer.await.map_err(|_| gone())?.map_err(|cause| failed(explain(cause, &cwd)))?;
    let input = started.input.map(pipe::Sender::from_owned_fd).transpose().map_err(failed)?;
    let output = pipe::Receiver::from_owned_fd(started.output).map_err(failed)?;
    Ok(Spawned { pid: started.pid, input, output, life: started.life, exit: started.exit })
}

/// Starts the keeper, which adopts orphans from then on and kills what a dead run of this program left.
/// [`spawn`] does it too; who is going to spawn later calls this at the start.
pub(crate) fn prepare() -> io::Result<()> {
    keeper().map(drop).map_err(io::Error::from)
}

/// A missing folder reads like a missing program, so it is told apart here.
fn explain(cause: io::Error, cwd: &Path) -> io::Error {
    if cause.kind() == io::ErrorKind::NotFound && !cwd.is_dir() {
        return io::Error::new(cause.kind(), format!("its folder {} does not exist", cwd.display()));
    }
    cause
}

struct Start {
    command: GroupCommand,
    held: Box<dyn Any + Send>,
    reply: oneshot::Sender<io::Result<Started>>,
}

struct Started {
    pid: u32,
    input: Option<OwnedFd>,
    output: OwnedFd,
    life: Life,
    exit: Exit,
}

/// The keeper's queue. It is a static because a process has one set of children, whoever starts them.
fn keeper() -> Result<&'static mpsc::Sender<Start>, io::ErrorKind> {
    static KEEPER: OnceLock<Result<mpsc::Sender<Start>, io::ErrorKind>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.kind())?;
        let (queue, starts) = mpsc::channel(STARTS_IN_QUEUE);
        std::thread::Builder::new()
            .name("process-keeper".into())
            .spawn(move || runtime.block_on(keep_all(starts)))
            .map_err(|e| e.kind())?;
        Ok(queue)
    });
    keeper.as_ref().map_err(|kind| *kind)
}

async fn keep_all(mut starts: mpsc::Receiver<Start>) {
    // Orphans of our children become ours, so that they can be found and reaped.
    // SAFETY: prctl with these arguments touches no memory.
    if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } != 0 {
        tracing::warn!(cause = %io::Error::last_os_error(), "cannot adopt orphans of agents");
    }
    let orphans = Orphans::new();
    orphans.kill_those_of_dead_predecessors();
    let control_groups = ControlGroups::find(orphans.run());
    tracing::debug!(allowed = control_groups.are_allowed(), "control groups checked");
    tokio::spawn(orphans.clone().sweep_on_request());
    while let Some(Start { command, held, reply }) = starts.recv().await {
        // Where nobody waits for the answer any more, dropping it drops the life, and the group ends.
        let _ = reply.send(start(command, held, &orphans, &control_groups));
        // Ends of processes are seen on this thread too: under a load that starts one after the other, a hundred starts
        // would go before them, and what ended processes hold would not come back.
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
    let control_group = control_groups.make(mark.group());
    let entrance = control_group.as_ref().map(ControlGroup::entrance);
    let mut process = Command::new(&command.program);
    process.args(&command.args).env_clear().envs(command.env).env(orphans::MARK, mark.value());
    process.current_dir(&command.cwd).process_group(0);
    if let Some(user) = &command.run_as {
        // Supplementary groups of ours are dropped with the user id by the standard library.
        process.gid(user.gid).uid(user.uid);
    }
    process.stdin(if command.streams == Streams::Dialogue { Stdio::piped() } else { Stdio::null() });
    let merged = if command.streams == Streams::Merged {
        let (reader, writer) = io::pipe()?;
        process.stdout(writer.try_clone()?).stderr(writer);
        Some(reader)
    } else {
        process.stdout(Stdio::piped()).stderr(Stdio::piped());
        None
    };
    let parent = std::process::id();
    // SAFETY: between fork and exec only async-signal-safe calls are made and nothing is allocated.
    unsafe { process.pre_exec(move || before_exec(parent, entrance)) };
    let mut child = process.spawn()?;
    // The command holds the write end of the merged pipe; with it open the reader would never see the end.
    drop(process);
    let pid = child.id();
    let stderr = child.stderr.take().and_then(|stderr| pipe::Receiver::from_owned_fd(stderr.into()).ok());
    let (end, ending) = mpsc::channel(1);
    let (report, ended) = oneshot::channel();
    orphans.born(pid, &mark);
    let watch = GroupWatch::new(pid, stderr, ending, command.kill_grace);
    let orphans = orphans.clone();
    tokio::spawn(async move {
        watch.until_gone(report).await;
        if let Some(control_group) = control_group {
            control_group.remove().await;
        }
        orphans.gone(pid, &mark);
        drop(held);
    });
    let output = match merged {
        Some(reader) => reader.into(),
        None => child.stdout.take().map(OwnedFd::from).ok_or_else(|| io::Error::other("no stdout"))?,
    };
    Ok(Started { pid, input: child.stdin.take().map(Into::into), output, life: Life { end }, exit: Exit { ended } })
}

/// Runs in the child.
fn before_exec(parent: u32, entrance: Option<RawFd>) -> io::Result<()> {
    if let Some(entrance) = entrance {
        cgroup::enter(entrance);
    }
    // SAFETY: plain system calls without pointers.
    unsafe {
        // After the change of user, because that would clear it.
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        // The parent may have died before the line above.
        if u32::try_from(libc::getppid()) != Ok(parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        // Whatever a library opened without close-on-exec; fails harmlessly before Linux 5.11.
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
    Ok(())
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

    /// Reads the process id that the script prints first.
    async fn printed_pid(output: &mut pipe::Receiver) -> u32 {
        let mut text = String::new();
        while !text.ends_with('\n') {
            text.push(char::from(output.read_u8().await.unwrap()));
        }
        text.trim().parse().unwrap()
    }

    #[tokio::test]
    async fn a_crash_is_reported_with_its_code_and_the_end_of_stderr() {
        let script = "head -c 10000 /dev/zero | tr '\\0' x >&2; echo boom >&2; exit 42";
        let mut spawned = spawn(shell(script, Streams::Output), ()).await.unwrap();
        let ended = spawned.exit.wait().await;
        assert_eq!((ended.exit_code, ended.signal), (Some(42), None));
        assert!(ended.stderr_tail.ends_with("xboom\n") && ended.stderr_tail.len() == STDERR_TAIL_BYTES);
    }

    #[tokio::test]
    async fn a_signal_is_reported() {
        let mut spawned = spawn(shell("kill -SEGV $$", Streams::Output), ()).await.unwrap();
        assert_eq!(spawned.exit.wait().await.signal, Some(libc::SIGSEGV));
    }

    #[tokio::test]
    async fn grandchildren_die_with_the_group_when_it_is_dropped() {
        let mut spawned = spawn(shell("sleep 1000 & echo $!; wait", Streams::Output), ()).await.unwrap();
        let grandchild = printed_pid(&mut spawned.output).await;
        assert!(runs(grandchild));
        drop(spawned.life);
        spawned.exit.wait().await;
        until_gone(grandchild).await;
    }

    #[tokio::test]
    async fn grandchildren_die_when_the_first_process_crashes() {
        let mut spawned = spawn(shell("sleep 1000 & echo $!; exit 1", Streams::Output), ()).await.unwrap();
        let grandchild = printed_pid(&mut spawned.output).await;
        assert_eq!(spawned.exit.wait().await.exit_code, Some(1));
        until_gone(grandchild).await;
    }

    #[tokio::test]
    async fn a_daemon_that_left_the_group_dies_too() {
        let mut spawned = spawn(shell("setsid sleep 1000 & echo $!; wait", Streams::Output), ()).await.unwrap();
        let daemon = printed_pid(&mut spawned.output).await;
        spawned.life.switch().end();
        spawned.exit.wait().await;
        until_gone(daemon).await;
    }

    #[tokio::test]
    async fn escaped_process_dies_where_control_groups_are_allowed() {
        if !ControlGroups::find(Orphans::new().run()).are_allowed() {
            // Nothing else could find it, and the module says so.
            eprintln!("NOT CHECKED: control groups may not be made here");
            return;
        }
        let script = "env -i /usr/bin/setsid /bin/sleep 1000 & echo $!; wait";
        let mut spawned = spawn(shell(script, Streams::Output), ()).await.unwrap();
        let escaped = printed_pid(&mut spawned.output).await;
        let environment = format!("/proc/{escaped}/environ");
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::fs::read(&environment).is_ok_and(|it| !it.is_empty()) {
            assert!(Instant::now() < deadline, "it did not clear its environment");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(spawned.life);
        spawned.exit.wait().await;
        until_gone(escaped).await;
    }

    #[tokio::test]
    async fn group_that_ignores_sigterm_is_killed_after_the_grace() {
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
    async fn the_environment_is_what_was_given_and_the_mark() {
        let mut spawned = spawn(shell("env", Streams::Merged), ()).await.unwrap();
        let mut text = String::new();
        spawned.output.read_to_string(&mut text).await.unwrap();
        let mut names: Vec<_> = text.lines().filter_map(|line| line.split('=').next()).collect();
        names.sort_unstable();
        // PWD, OLDPWD, SHLVL and _ are the shell's own.
        names.retain(|name| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name));
        assert_eq!(names, [orphans::MARK, "PATH"]);
    }

    #[tokio::test]
    async fn missing_program_and_missing_folder_differ() {
        let mut command = shell("", Streams::Output);
        command.program = "/no/such/program".into();
        let said = spawn(command, ()).await.unwrap_err().to_string();
        assert!(said.contains("/no/such/program") && !said.contains("folder"), "{said}");
        let mut command = shell("", Streams::Output);
        command.cwd = "/no/such/folder".into();
        let said = spawn(command, ()).await.unwrap_err().to_string();
        assert!(said.contains("/no/such/folder does not exist"), "{said}");
    }

    #[tokio::test]
    async fn children_started_by_others_are_not_reaped() {
        let mut other = Command::new("/bin/sh").args(["-c", "exit 7"]).spawn().unwrap();
        for _ in 0..3 {
            spawn(shell("exit 0", Streams::Output), ()).await.unwrap().exit.wait().await;
        }
        assert_eq!(other.wait().unwrap().code(), Some(7));
    }
}
