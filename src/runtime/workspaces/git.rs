//! The git program, hardened: no configuration but ours, no hooks, no prompts, no other protocol than
//! asked for, a time limit that ends the whole process group, and bounded output.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::Path,
    time::Duration,
};

use tokio::io::AsyncReadExt;

use super::repository::Scheme;
use crate::{
    domain::{
        redaction::Redacted,
        text,
        turn::outcome::{ErrorCode, Failure},
    },
    process::group::{self, GroupCommand, Streams},
};

/// Configuration that wins over every file. A workspace's own configuration is never read, because git is
/// pointed at a folder of ours; these are the second line.
const SETTINGS: [&str; 16] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.attributesFile=/dev/null",
    "core.excludesFile=/dev/null",
    "core.quotePath=false",
    "core.bigFileThreshold=1m",
    "core.compression=1",
    "credential.helper=",
    "protocol.ext.allow=never",
    "protocol.file.allow=never",
    "http.followRedirects=false",
    "transfer.credentialsInUrl=die",
    "submodule.recurse=false",
    "gc.auto=0",
    "maintenance.auto=false",
];

/// From SIGTERM to SIGKILL; git removes its lock files on SIGTERM.
const KILL_GRACE: Duration = Duration::from_secs(1);

/// How git is started.
#[derive(Debug, Clone)]
pub(crate) struct Git {
    inherited: BTreeMap<String, OsString>,
}

/// One call of git.
pub(crate) struct Call<'a> {
    /// Arguments, without the settings.
    pub args: Vec<OsString>,
    /// Further environment.
    pub env: Vec<(&'static str, OsString)>,
    /// Working directory.
    pub cwd: &'a Path,
    /// How long it may take.
    pub timeout: Duration,
    /// How much of its output is wanted, in bytes; it is ended when it prints more.
    pub max_output: usize,
    /// The one protocol that it may speak.
    pub scheme: Option<Scheme>,
}

pub(crate) struct Output {
    /// At most `max_output` bytes.
    pub bytes: Vec<u8>,
    /// Whether there was more.
    pub cut: bool,
}

impl Git {
    /// Uses these variables of the environment: `PATH`, proxies and certificates for instance.
    pub(crate) fn new(inherited: BTreeMap<String, OsString>) -> Self {
        Self { inherited }
    }

    /// Runs git. A dropped future ends it.
    pub(crate) async fn run(&self, call: Call<'_>) -> Result<Output, Failure> {
        let failed = |why: &str| Failure::new(ErrorCode::WorkspaceUnavailable, format!("git: {why}"));
        let Call { args, env, cwd, timeout, max_output, scheme } = call;
        let settings = SETTINGS.iter().flat_map(|setting| [OsString::from("-c"), OsString::from(*setting)]);
        let command = GroupCommand {
            program: "git".into(),
            args: settings.chain(args).collect(),
            env: self.environment(env, scheme),
            cwd: cwd.to_owned(),
            run_as: None,
            kill_grace: KILL_GRACE,
            streams: Streams::Output,
        };
        let mut started = group::spawn(command, ()).await.map_err(|cause| failed(&cause.to_string()))?;
        let work = async {
            let mut bytes = Vec::new();
            let mut output = (&mut started.output).take(max_output as u64 + 1);
            let read = output.read_to_end(&mut bytes).await;
            let cut = bytes.len() > max_output;
            if cut || read.is_err() {
                bytes.truncate(max_output);
                return (bytes, true, None);
            }
            (bytes, false, Some(started.exit.wait().await))
        };
        // Dropping what was started on the way out ends the group.
        let Ok((bytes, cut, ended)) = tokio::time::timeout(timeout, work).await else {
            return Err(failed(&format!("did not finish within {} s", timeout.as_secs())));
        };
        match ended {
            Some(ended) if ended.exit_code != Some(0) => {
                let said = Redacted::new(text::tail_bytes(ended.stderr_tail.trim(), 1000));
                Err(failed(said.as_str()))
            }
            _ => Ok(Output { bytes, cut }),
        }
    }

    fn environment(&self, env: Vec<(&'static str, OsString)>, scheme: Option<Scheme>) -> Vec<(OsString, OsString)> {
        let mut all: BTreeMap<OsString, OsString> =
            self.inherited.iter().map(|(name, value)| (name.into(), value.clone())).collect();
        // Keys and known hosts live in the home folder; nothing else there is wanted.
        if scheme != Some(Scheme::Ssh) {
            all.insert("HOME".into(), "/nonexistent".into());
        }
        let fixed: [(&str, &OsStr); 9] = [
            ("GIT_CONFIG_NOSYSTEM", OsStr::new("1")),
            ("GIT_CONFIG_SYSTEM", OsStr::new("/dev/null")),
            ("GIT_CONFIG_GLOBAL", OsStr::new("/dev/null")),
            ("GIT_TERMINAL_PROMPT", OsStr::new("0")),
            ("GIT_ASKPASS", OsStr::new("/bin/false")),
            ("GIT_SSH_COMMAND", OsStr::new("ssh -oBatchMode=yes")),
            ("GIT_ALLOW_PROTOCOL", OsStr::new(scheme.map_or("none", Scheme::as_str))),
            ("GIT_OPTIONAL_LOCKS", OsStr::new("0")),
            ("LC_ALL", OsStr::new("C")),
        ];
        all.extend(fixed.map(|(name, value)| (name.into(), value.to_owned())));
        all.extend(env.into_iter().map(|(name, value)| (name.into(), value)));
        all.into_iter().collect()
    }
}
