//! Agent processes: commands that speak ACP on stdin and stdout, started with an explicit environment and in a jail. Also
//! the identity and the terminal of this process, and how another one finds it.

pub(crate) mod capabilities;
pub(crate) mod cgroup;
pub(crate) mod group;
pub(crate) mod identity;
pub(crate) mod inherited;
pub(crate) mod limits;
pub(crate) mod local_server;
pub(crate) mod members;
pub(crate) mod orphans;
pub(crate) mod ownership;
pub(crate) mod pool;
pub(crate) mod priority;
mod run;
pub(crate) mod sandbox;
pub(crate) mod stdio;
pub(crate) mod terminal;
mod tree;
pub(crate) mod user;
pub(crate) mod watch;

use std::{any::Any, collections::BTreeMap, ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use tokio::net::unix::pipe;

use self::{
    group::{Ended, Exit, GroupCommand, Life, SpawnError, Streams},
    limits::Limits,
    sandbox::enforce::Enforcement,
    user::RunAs,
};
use crate::contract::runtime::AgentExited;

/// The command that starts an agent.
#[derive(Debug, Clone)]
pub(crate) struct AgentCommand {
    /// A program name, looked up in the `PATH` of `env`, or a path.
    pub program: OsString,
    /// Arguments, passed without a shell.
    pub args: Vec<OsString>,
    /// The whole environment, already read and filtered by the configuration. Nothing is inherited.
    pub env: BTreeMap<String, SecretString>,
    /// The user that the agent runs as; `None`: this program's own. Another user requires root.
    pub run_as: Option<RunAs>,
    /// The working directory, which must exist.
    pub cwd: PathBuf,
    /// Time from SIGTERM to SIGKILL.
    pub kill_grace: Duration,
    /// The jail; `None`: none.
    pub jail: Option<Arc<Enforcement>>,
}

/// A running agent. Its process group ends when `life` is dropped.
#[derive(Debug)]
pub(crate) struct AgentProcess {
    /// Writes to the agent's stdin.
    pub stdin: pipe::Sender,
    /// Reads from the agent's stdout.
    pub stdout: pipe::Receiver,
    /// Ends the group when dropped: SIGTERM, `kill_grace`, SIGKILL, then every member is reaped.
    pub life: Life,
    /// Resolves to the exit status of the agent.
    pub exit: Exit,
}

/// Starts an agent; its pipes belong to the calling task's tokio runtime. `held` is dropped after the whole process
/// group has ended and is reaped.
///
/// # Errors
/// The program or its working directory is missing, or the system refuses a process. Nothing is left behind, so a
/// retry is safe.
///
/// # Cancel safety
/// A dropped future leaves no process behind.
pub(crate) async fn spawn(command: AgentCommand, held: impl Any + Send) -> Result<AgentProcess, SpawnError> {
    let env = command.env.iter().map(|(name, value)| (name.into(), value.expose_secret().into())).collect();
    let group = GroupCommand {
        program: command.program,
        args: command.args,
        env,
        cwd: command.cwd,
        run_as: command.run_as,
        kill_grace: command.kill_grace,
        streams: Streams::Dialogue,
        jail: command.jail,
        limits: Limits::default(),
    };
    let spawned = group::spawn(group, held).await?;
    let stdin = spawned.input.unwrap_or_else(|| unreachable!("a dialogue has a stdin"));
    Ok(AgentProcess { stdin, stdout: spawned.output, life: spawned.life, exit: spawned.exit })
}

impl From<Ended> for AgentExited {
    fn from(ended: Ended) -> Self {
        Self { exit_code: ended.exit_code, signal: ended.signal, stderr_tail: ended.stderr_tail, code: None }
    }
}
