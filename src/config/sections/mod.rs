//! Every setting, its default, and the reason for that default.

pub(crate) mod fallback;
pub(crate) mod github;
pub(crate) mod notifications;
pub(crate) mod process;
pub(crate) mod validate;
pub(crate) mod webhook;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use secrecy::SecretString;
use serde::{Deserialize, Serialize, Serializer};

pub(crate) use self::{
    fallback::{Capacity, Migration, Recovery, Retention, Window},
    github::Github,
    notifications::Notifications,
    process::{Drain, Log, LogFormat},
    webhook::Webhook,
};
use crate::domain::session::permission::PermissionPolicy;

/// The effective configuration. Field names are the names in TOML, environment and flags.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The public HTTP face.
    pub server: Server,
    /// Where records are kept.
    pub database: Database,
    /// Where agents work.
    pub workspaces: Workspaces,
    /// The container side.
    pub runtime: Runtime,
    /// The default agent.
    pub agent: Agent,
    /// Further agents, by the name that a session may choose.
    pub agents: BTreeMap<String, Agent>,
    /// How long sessions live.
    pub session: Session,
    /// How turns end.
    pub turn: Turn,
    /// How often a session may be restarted.
    pub supervision: Supervision,
    /// Who answers an agent's permission requests.
    pub permission: Permission,
    /// When ACP counts as not well.
    pub window: Window,
    /// How a workspace comes back to ACP.
    pub recovery: Recovery,
    /// How fleets are moved.
    pub migration: Migration,
    /// How many sessions there may be.
    pub capacity: Capacity,
    /// Where operators' alerts are posted.
    pub webhook: Webhook,
    /// For how long records are kept.
    pub retention: Retention,
    /// What becomes of an agent's changes.
    pub github: Github,
    /// How people are told.
    pub notifications: Notifications,
    /// Bounds of every queue and payload.
    pub limits: Limits,
    /// How the service stops.
    pub drain: Drain,
    /// How it logs.
    pub log: Log,
}

/// `[server]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Server {
    /// Address of the HTTP API. Beyond loopback a `token` is required. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Bearer token that clients have to send; absent: no token is asked for.
    #[serde(serialize_with = "hidden")]
    pub token: Option<SecretString>,
    /// Host names that a request may name beside the loopback ones and the listen address; a page that
    /// rebinds its own name to this address is refused.
    pub allowed_hosts: Vec<String>,
    /// Origins of browser pages that may call the API, exact: `https://app.example.com`.
    pub allowed_origins: Vec<String>,
    /// Threads that serve HTTP and on which sessions live; 0: half of the processors, at least 1, since the
    /// embedded runtime and the database writer need the rest.
    pub workers: usize,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            token: None,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            workers: 0,
        }
    }
}

/// `[database]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Database {
    /// `sqlite:PATH` or `postgres://…`; absent: `lumilink.db` in the data folder. Hidden, since it may
    /// hold a password.
    #[serde(serialize_with = "hidden")]
    pub url: Option<SecretString>,
    /// How long the end of a turn waits for a database that is away before its caller is told that it is not
    /// durable, in seconds; it is written as soon as the database is back. Longer than a failover takes.
    pub patience_s: u64,
}

impl Default for Database {
    fn default() -> Self {
        Self { url: None, patience_s: 60 }
    }
}

/// `[workspaces]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Workspaces {
    /// Folder that holds the workspaces; absent: `workspaces` in the data folder.
    pub root: Option<PathBuf>,
    /// Folders under which a session may name an existing folder with `path`; none by default.
    pub allow_paths: Vec<PathBuf>,
    /// Hosts, with a port where it is not the usual one, from which repositories are cloned; `owner/name` means the
    /// first one.
    pub git_hosts: Vec<String>,
    /// How long a clone may take, in seconds.
    pub clone_timeout_s: u64,
}

impl Default for Workspaces {
    fn default() -> Self {
        Self {
            root: None,
            allow_paths: Vec::new(),
            git_hosts: vec!["github.com".into()],
            // A shallow clone of the largest public repositories takes about two minutes.
            clone_timeout_s: 300,
        }
    }
}

/// `[runtime]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Runtime {
    /// `ws://host:port/acp` or `wss://…` of a separate runtime; absent: one is embedded.
    pub url: Option<String>,
    /// Bearer token between supervisor and runtime; required when the runtime listens beyond loopback.
    #[serde(serialize_with = "hidden")]
    pub token: Option<SecretString>,
    /// Address on which `lumilink runtime` listens. The embedded one takes a free loopback port.
    pub listen: SocketAddr,
    /// Whether the runtime offers ACP over WebSocket. Without, it speaks only HTTP, and turns run with a fresh agent
    /// each; on by default, since that is slower and nobody can be asked in the middle of a turn.
    pub acp: bool,
    /// Agent processes that one runtime runs at most: the mission's 1,000 sessions and room for
    /// restarts that overlap.
    pub max_agents: usize,
    /// How long a handshake (start, `initialize`, `session/new` or `load`) may take, in seconds. A Node
    /// agent starts within 3 s on a busy machine; loading a long conversation takes longer.
    pub handshake_timeout_s: u64,
    /// How long an agent may take to end after SIGTERM before it is killed, in milliseconds. One of the
    /// known agents takes 2 s.
    pub kill_grace_ms: u64,
    /// How long an agent is kept after the socket of its supervisor broke, and how long the supervisor tries to
    /// come back, in seconds; 0: a break ends the turn and the agent. Two minutes outlast a restart of the
    /// supervisor, and of the network between.
    pub reconnect_grace_s: u64,
    /// Messages of an agent that are kept until its supervisor has them on disk. More make the agent wait. A turn
    /// of a talkative agent has some hundred.
    pub replay_frames: usize,
    /// The same in bytes, for each agent.
    pub replay_bytes: usize,
}

impl Default for Runtime {
    fn default() -> Self {
        Self {
            url: None,
            token: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 8090)),
            acp: true,
            max_agents: 1100,
            handshake_timeout_s: 60,
            kill_grace_ms: 2500,
            reconnect_grace_s: 120,
            replay_frames: 2048,
            replay_bytes: 2 * 1024 * 1024,
        }
    }
}

/// `[agent]` and `[agents.<name>]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Agent {
    /// Program and arguments of a command that speaks ACP on stdio; empty: the built-in demo agent.
    pub command: Vec<String>,
    /// Program and arguments of a headless command for the fallback: it gets the prompt on standard input, prints the
    /// answer and ends. Empty: the fallback runs `command` anew for each turn, in ACP.
    pub oneshot: Vec<String>,
    /// Variables added to the agent's otherwise cleared environment. Values are hidden.
    #[serde(serialize_with = "hidden_values")]
    pub env: BTreeMap<String, SecretString>,
    /// Names of variables that the agent inherits beside HOME, LANG, LC_*, LOGNAME, PATH, SHELL, TERM,
    /// TMPDIR, TZ and USER.
    pub inherit_env: Vec<String>,
    /// User (name or number) as whom the agent runs; needs root. Off by default.
    pub run_as: Option<String>,
    /// Whether the agent may read and write files of the workspace through `fs/*`.
    pub fs: bool,
    /// Whether the agent may run commands in the workspace through `terminal/*`.
    pub terminal: bool,
    /// Id of the sign-in method to use when the agent asks for one (`authenticate`).
    pub auth_method: Option<String>,
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            oneshot: Vec::new(),
            env: BTreeMap::new(),
            inherit_env: Vec::new(),
            run_as: None,
            fs: true,
            terminal: true,
            auth_method: None,
        }
    }
}

/// `[session]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Session {
    /// An idle session hibernates after this many seconds (mission: 1800).
    pub idle_timeout_s: u64,
    /// A hibernated session expires after this many seconds without use (mission: 7200).
    pub max_age_s: u64,
}

impl Default for Session {
    fn default() -> Self {
        Self { idle_timeout_s: 1800, max_age_s: 7200 }
    }
}

/// `[turn]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Turn {
    /// A turn fails when its agent says nothing for this many seconds. Silence, not length: a healthy
    /// turn may take hours. A build inside a tool call is silent for minutes.
    pub inactivity_timeout_s: u64,
    /// How long an agent may take to confirm a cancel, in seconds, before it is killed. Known agents take
    /// up to 1 s.
    pub cancel_grace_s: u64,
}

impl Default for Turn {
    fn default() -> Self {
        Self { inactivity_timeout_s: 600, cancel_grace_s: 5 }
    }
}

/// `[supervision]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Supervision {
    /// Restarts of one session within `within_s` before it is `failed`.
    pub max_restarts: u32,
    /// The period of `max_restarts`, in seconds.
    pub within_s: u64,
}

impl Default for Supervision {
    fn default() -> Self {
        Self { max_restarts: 5, within_s: 30 }
    }
}

/// `[permission]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Permission {
    /// `allow-once`, `allow-always`, `reject` or `ask`, for workspaces that did not choose one.
    pub policy: PermissionPolicy,
    /// A request under `ask` that nobody answers is rejected after this many seconds.
    pub timeout_s: u64,
}

impl Default for Permission {
    fn default() -> Self {
        Self { policy: PermissionPolicy::default(), timeout_s: 300 }
    }
}

/// `[limits]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    /// Largest HTTP body, in bytes. Agents take prompts of about 1 to 2 MB; 4 MiB leaves room for images.
    pub body_bytes: usize,
    /// Largest ACP message, in bytes, in either direction. Tool calls carry whole files.
    pub frame_bytes: usize,
    /// ACP messages that wait between two parts of the path before the sender has to wait.
    pub queue_frames: usize,
    /// Bytes of ACP messages that wait for one slow reader before the sender has to wait.
    pub queue_bytes: usize,
    /// Events that a session holds for readers who come late.
    pub replay_events: usize,
    /// Bytes of those events; 1,000 sessions hold 256 MB of them at most.
    pub replay_bytes: usize,
    /// Most entries on one page of a list or transcript.
    pub page_entries: usize,
    /// Writes that wait for the database before new work is refused. Every running turn holds one place
    /// for its end, so this is more than `[capacity] max_sessions`.
    pub write_queue: usize,
    /// Largest patch of a diff, in bytes.
    pub diff_bytes: usize,
    /// Commands that one agent may run at the same time through `terminal/*`.
    pub terminals: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 4 * 1024 * 1024,
            frame_bytes: 16 * 1024 * 1024,
            queue_frames: 256,
            queue_bytes: 1024 * 1024,
            replay_events: 1000,
            replay_bytes: 256 * 1024,
            page_entries: 200,
            write_queue: 4096,
            diff_bytes: 1024 * 1024,
            terminals: 16,
        }
    }
}

impl Turn {
    /// `inactivity_timeout_s` as a duration.
    pub(crate) fn inactivity_timeout(&self) -> Duration {
        Duration::from_secs(self.inactivity_timeout_s)
    }

    /// `cancel_grace_s` as a duration.
    pub(crate) fn cancel_grace(&self) -> Duration {
        Duration::from_secs(self.cancel_grace_s)
    }
}

/// What stands in place of a secret.
pub(crate) const HIDDEN: &str = "[hidden]";

pub(crate) fn hidden<S: Serializer>(secret: &Option<SecretString>, to: S) -> Result<S::Ok, S::Error> {
    match secret {
        Some(_) => to.serialize_str(HIDDEN),
        None => to.serialize_none(),
    }
}

fn hidden_values<S: Serializer>(values: &BTreeMap<String, SecretString>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(values.keys().map(|name| (name, HIDDEN)))
}
