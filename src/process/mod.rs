//! An agent's process: a command that speaks ACP on stdio, with an environment of its own.

pub(crate) mod cgroup;
pub(crate) mod group;
pub(crate) mod orphans;
pub(crate) mod stdio;
pub(crate) mod user;
pub(crate) mod watch;

use std::{any::Any, collections::BTreeMap, ffi::OsString, path::PathBuf, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use tokio::net::unix::pipe;

use self::{
    group::{Ended, Exit, GroupCommand, Life, SpawnError, Streams},
    user::RunAs,
};
use crate::contract::runtime::AgentExited;

/// How an agent is started.
#[derive(Debug, Clone)]
pub(crate) struct AgentCommand {
    /// A program name or path.
    pub program: OsString,
    pub args: Vec<OsString>,
    /// The whole environment, already read and filtered by the configuration: nothing is inherited.
    pub env: BTreeMap<String, SecretString>,
    /// Another user; needs root.
    pub run_as: Option<RunAs>,
    /// Working directory.
    pub cwd: PathBuf,
    /// From SIGTERM to SIGKILL.
    pub kill_grace: Duration,
}

/// A running agent. Its process group ends when `life` is dropped.
#[derive(Debug)]
pub(crate) struct AgentProcess {
    /// To its stdin.
    pub stdin: pipe::Sender,
    /// From its stdout.
    pub stdout: pipe::Receiver,
    /// Ends the group when dropped: SIGTERM, grace, SIGKILL, reaped.
    pub life: Life,
    /// How it ended.
    pub exit: Exit,
}

/// Starts an agent within the calling task's tokio runtime. `held` is dropped when the whole process
/// group is gone. A dropped future leaves no process behind.
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
