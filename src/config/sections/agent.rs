//! `[agent]` and `[agents.<name>]`: the commands that speak ACP.

use std::{collections::BTreeMap, path::PathBuf};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::{check::Check, hidden_values};
use crate::domain::jail::{HomeMode, JailMode, pool::UserPool, presets::Preset};

/// The name of the agent that `[agent]` configures; `[agents.<name>]` cannot take it.
pub(crate) const DEFAULT_AGENT: &str = "default";

/// The agent of sessions that name none. `[agents.<name>]` takes the same keys; sessions select it by name (a-z, 0-9,
/// `_` and `-`, at most 64 characters).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Agent {
    /// Program and arguments of a command that speaks ACP on standard input and output. Empty: the built-in demo
    /// agent.
    pub command: Vec<String>,
    /// Program and arguments of a headless command for turns over the fallback: it reads the prompt from standard
    /// input, prints the answer and ends. Empty: the fallback starts `command` for each turn and speaks ACP with it.
    pub oneshot: Vec<String>,
    /// Variables added to the environment of the agent, which starts empty. Values are never shown.
    #[serde(serialize_with = "hidden_values")]
    pub env: BTreeMap<String, SecretString>,
    /// Names of variables that the agent inherits, beside HOME, LANG, LC_*, LOGNAME, PATH, SHELL, TERM, TMPDIR, TZ and
    /// USER.
    pub inherit_env: Vec<String>,
    /// User (name or number) that runs the agent, or `pool:70000-70999`: a user of its own for each tenant, with a private
    /// HOME. Needs root. Not set: the user of the runtime.
    pub run_as: Option<String>,
    /// Jail of the agent, its headless command and its `terminal/*` commands: `auto` (all that the kernel offers; without
    /// the file rules of Landlock the program serves on loopback only), `required` (no start without the file rules), `off`.
    pub jail: JailMode,
    /// Known agent whose files below HOME are writable: `claude`, `codex`, `gemini`, `goose`, `gptme`, `kimi`, `opencode`,
    /// `qwen`, `vibe`, `none`. Not set: recognised by the command.
    pub preset: Option<Preset>,
    /// Paths that the agent may read and run besides the system, its package, PATH and HOME. `~/` is the HOME of this
    /// program. The data folder and the configuration file stay hidden.
    pub read: Vec<PathBuf>,
    /// Paths that the agent may write besides its workspace, TMPDIR and what `preset` and common tools need. As `read`.
    pub write: Vec<PathBuf>,
    /// TCP ports to which the agent may connect, 1 to 65535. Empty: all. A convenience and no boundary: Multipath TCP and
    /// UDP pass.
    pub ports: Vec<u16>,
    /// HOME of the agent: `shared` (that of its environment, readable, writable as `preset` and `write` say), `tenant` (a
    /// private folder for each tenant), `auto` (`shared` with an embedded runtime or with HOME in `env`, else `tenant`).
    pub home: HomeMode,
    /// Processes and threads of the agent with all that it starts, and the same again for each `terminal/*` command, up to
    /// 1,000,000. 0: no limit. Needs a control group (cgroup v2) with the controller pids; `GET /acp/health` has what is on.
    pub max_processes: u64,
    /// Memory, in bytes, counted and limited as `max_processes`, with the controller memory. 0: no limit, else 16 MiB or
    /// more.
    pub max_memory_bytes: u64,
    /// CPU time in percent of one core, counted and limited as `max_processes`, with the controller cpu, up to 1,000,000.
    /// 0: no limit.
    pub max_cpu_percent: u64,
    /// True if the agent may read and write files of the workspace through `fs/*`.
    pub fs: bool,
    /// True if the agent may run commands in the workspace through `terminal/*`.
    pub terminal: bool,
    /// Id of the sign-in method for agents that require `authenticate`. Not set: such an agent fails with
    /// `agent_auth_required`.
    pub auth_method: Option<String>,
    /// Time limit for this agent to start and to open or load its session, in seconds, 1 or more. Not set:
    /// `runtime.handshake_timeout_s`. An agent that `npx` downloads at its first start took 81 s.
    pub handshake_timeout_s: Option<u64>,
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            oneshot: Vec::new(),
            env: BTreeMap::new(),
            inherit_env: Vec::new(),
            run_as: None,
            jail: JailMode::default(),
            preset: None,
            read: Vec::new(),
            write: Vec::new(),
            ports: Vec::new(),
            home: HomeMode::default(),
            max_processes: 512,
            max_memory_bytes: 0,
            max_cpu_percent: 0,
            fs: true,
            terminal: true,
            auth_method: None,
            handshake_timeout_s: None,
        }
    }
}

impl Agent {
    /// Checks the agent of `section`: `agent` or `agents.<name>`.
    pub(super) fn validate(&self, check: &mut Check<'_>, section: &str) {
        let program = self.command.first();
        let what = "its first element must be a program, such as [\"goose\", \"acp\"]";
        check.require(program.is_none_or(|it| !it.trim().is_empty()), format!("{section}.command"), what);
        let no_nul = self.command.iter().all(|part| !part.contains('\0'));
        check.require(no_nul, format!("{section}.command"), "must not contain a NUL character");
        let oneshot = self.oneshot.first().is_none_or(|it| !it.trim().is_empty());
        let fine = oneshot && self.oneshot.iter().all(|part| !part.contains('\0'));
        let what = "its first element must be a program, and none may contain a NUL character";
        check.require(fine, format!("{section}.oneshot"), what);
        let user = self.run_as.as_ref().is_none_or(|user| !user.trim().is_empty());
        let what = "must be the name or number of a user; leave it out for none";
        check.require(user, format!("{section}.run_as"), what);
        let pool = self.run_as.as_deref().filter(|user| UserPool::is_meant(user));
        if let Some(Err(cause)) = pool.map(str::parse::<UserPool>) {
            check.require(false, format!("{section}.run_as"), cause.to_string());
        }
        let shared = self.home == HomeMode::Shared && pool.is_some();
        check.require(!shared, format!("{section}.home"), "cannot be `shared` with a pool of users");
        for (name, value) in &self.env {
            let fine = is_variable(name) && !value.expose_secret().contains('\0');
            let what = "must be the name of a variable with a value without NUL characters";
            check.require(fine, format!("{section}.env.{name}"), what);
        }
        check.require(!self.ports.contains(&0), format!("{section}.ports"), "must be ports from 1 to 65535");
        for (name, limit) in [("max_processes", self.max_processes), ("max_cpu_percent", self.max_cpu_percent)] {
            check.require(limit <= 1_000_000, format!("{section}.{name}"), "must be at most 1000000");
        }
        let fine = self.max_memory_bytes == 0 || self.max_memory_bytes >= 16 * 1024 * 1024;
        check.require(fine, format!("{section}.max_memory_bytes"), "must be 0 or at least 16777216 (16 MiB)");
        for (name, paths) in [("read", &self.read), ("write", &self.write)] {
            let fine = paths
                .iter()
                .all(|path| !path.as_os_str().is_empty() && !path.as_os_str().as_encoded_bytes().contains(&0));
            check.require(fine, format!("{section}.{name}"), "must be paths, such as [\"~/.config/tool\"]");
        }
        if let Some(seconds) = self.handshake_timeout_s {
            check.seconds(&format!("{section}.handshake_timeout_s"), seconds);
        }
        let names = self.inherit_env.iter().all(|name| is_variable(name));
        let what = "must be names of variables, such as [\"HTTPS_PROXY\"]";
        check.require(names, format!("{section}.inherit_env"), what);
    }
}

pub(super) fn validate_named(agents: &BTreeMap<String, Agent>, check: &mut Check<'_>) {
    for (name, agent) in agents {
        let section = format!("agents.{name}");
        let what = "the name is reserved: [agent] configures the default agent";
        check.require(name != DEFAULT_AGENT, &section, what);
        let what = "the name must be of a-z 0-9 _ - and begin with a letter or digit, at most 64 characters";
        check.require(is_agent_name(name), &section, what);
        agent.validate(check, &section);
    }
}

fn is_agent_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let rest = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte));
    first && rest && name.len() <= 64
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}
