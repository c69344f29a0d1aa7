//! The flags of the demo agent, and its misbehaviour at the start.

use std::{collections::BTreeMap, fs, io, path::PathBuf, time::Duration};

use super::lines::{Lines, Read};

/// The parsed flags. Without flags, the agent loads and resumes sessions and behaves well.
#[derive(Debug, Clone)]
pub(super) struct Flags {
    /// False with `--no-load`: the agent does not offer `session/load`.
    pub loads: bool,
    /// False with `--no-resume`: the agent does not offer `session/resume`.
    pub resumes: bool,
    /// `--protocol-version N`: the version in the answer to `initialize`; default 1.
    pub protocol_version: u16,
    /// `--echo-version`: the agent answers with the version that the client offered.
    pub echo_version: bool,
    /// `--refuse-handshake`: the agent answers `initialize` with an error.
    pub refuse_handshake: bool,
    /// `--require-auth`: the agent requires `authenticate` before a session.
    pub require_auth: bool,
    /// `--late-replay`: the agent answers `session/load` before it replays; the first half of the history follows at
    /// once, the rest with the next prompt.
    pub late_replay: bool,
    /// `--echo-prompts`: the agent repeats each block of a prompt as a message of the user.
    pub echo_prompts: bool,
    /// `--deny-cancel`: the agent answers a cancelled prompt with `end_turn`.
    pub deny_cancel: bool,
    /// `--mute-modes`: the agent never answers `session/set_mode`.
    pub mute_modes: bool,
    /// `--contradict-modes`: the agent confirms `session/set_mode` and then reports its first mode.
    pub contradict_modes: bool,
    /// `--refuse-modes FILE`: the agent refuses `session/set_mode` while this file exists.
    refuse_modes: Option<PathBuf>,
    /// `--models`: the agent offers models, and the option `fast`, which is a boolean.
    pub models: bool,
    /// `--early-updates`: the agent announces its commands before it answers `session/new`.
    pub early_updates: bool,
    /// `--oneshot`: the agent runs the script on stdin and exits.
    pub oneshot: bool,
    /// `--persist DIR`: the agent stores conversations there for other processes.
    persist: Option<PathBuf>,
    /// `--exit-on-start`: the agent exits with code 3 before the first message.
    exit_on_start: bool,
    /// `--hang-on-start`: the agent reads its input and answers nothing.
    hang_on_start: bool,
    /// `--garbage-on-start` (3) or `--banner N`: the agent prints this number of lines that are not JSON.
    banner: u32,
    /// `--answer METHOD TEXT`: the agent answers the method with this text, see `odd.rs`.
    pub answers: BTreeMap<String, String>,
    /// `--start-delay-ms N`: the agent reads its input only after this time.
    start_delay: Duration,
}

impl Flags {
    /// Parses the command line.
    ///
    /// # Errors
    /// An unknown flag, or a missing or malformed value; the text names the flag.
    pub(crate) fn parse(arguments: Vec<String>) -> Result<Self, String> {
        let mut flags = Self {
            loads: true,
            resumes: true,
            protocol_version: 1,
            echo_version: false,
            refuse_handshake: false,
            require_auth: false,
            late_replay: false,
            echo_prompts: false,
            deny_cancel: false,
            mute_modes: false,
            contradict_modes: false,
            refuse_modes: None,
            models: false,
            early_updates: false,
            oneshot: false,
            persist: None,
            exit_on_start: false,
            hang_on_start: false,
            banner: 0,
            answers: BTreeMap::new(),
            start_delay: Duration::ZERO,
        };
        let mut arguments = arguments.into_iter();
        while let Some(flag) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{flag} requires a value"));
            let bad = |cause: std::num::ParseIntError| format!("{flag}: {cause}");
            match flag.as_str() {
                "--no-load" => flags.loads = false,
                "--no-resume" => flags.resumes = false,
                "--protocol-version" => flags.protocol_version = value()?.parse().map_err(bad)?,
                "--echo-version" => flags.echo_version = true,
                "--refuse-handshake" => flags.refuse_handshake = true,
                "--require-auth" => flags.require_auth = true,
                "--late-replay" => flags.late_replay = true,
                "--echo-prompts" => flags.echo_prompts = true,
                "--deny-cancel" => flags.deny_cancel = true,
                "--mute-modes" => flags.mute_modes = true,
                "--contradict-modes" => flags.contradict_modes = true,
                "--refuse-modes" => flags.refuse_modes = Some(value()?.into()),
                "--models" => flags.models = true,
                "--early-updates" => flags.early_updates = true,
                "--oneshot" => flags.oneshot = true,
                "--persist" => flags.persist = Some(value()?.into()),
                "--exit-on-start" => flags.exit_on_start = true,
                "--hang-on-start" => flags.hang_on_start = true,
                "--garbage-on-start" => flags.banner = 3,
                "--banner" => flags.banner = value()?.parse().map_err(bad)?,
                "--answer" => {
                    let method = value()?;
                    flags.answers.insert(method, value()?);
                }
                "--start-delay-ms" => flags.start_delay = Duration::from_millis(value()?.parse().map_err(bad)?),
                other => return Err(format!("unknown flag {other}")),
            }
        }
        Ok(flags)
    }

    /// Runs the misbehaviour that the flags request before the first message.
    pub(crate) fn misbehave_at_start(&self, lines: &mut Lines) -> io::Result<()> {
        if self.exit_on_start {
            eprintln!("demo-agent: exits at once, as requested");
            std::process::exit(3);
        }
        for n in 1..=self.banner {
            lines.write_raw(&format!("Welcome! This banner is not JSON, line {n}"))?;
        }
        if self.hang_on_start {
            while !matches!(lines.read(None)?, Read::End) {}
        }
        if !self.start_delay.is_zero() {
            lines.wait(self.start_delay)?;
        }
        Ok(())
    }

    pub(crate) fn refuses_modes(&self) -> bool {
        self.refuse_modes.as_ref().is_some_and(|file| file.exists())
    }

    fn path(&self, id: &str) -> Option<PathBuf> {
        let harmless = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        self.persist.as_ref().filter(|_| harmless).map(|folder| folder.join(format!("{id}.json")))
    }

    /// True if conversations are stored, so that the agent offers `session/delete`.
    pub(super) fn persists(&self) -> bool {
        self.persist.is_some()
    }

    /// Deletes a stored conversation; false if there is none.
    pub(super) fn delete(&self, id: &str) -> bool {
        self.path(id).is_some_and(|path| fs::remove_file(path).is_ok())
    }

    /// Stores a conversation if the flag `--persist` is set.
    pub(crate) fn keep(&self, id: &str, said: &[(String, String)]) {
        if let (Some(path), Ok(json)) = (self.path(id), serde_json::to_string(said)) {
            // A failed write is the same as no flag: the conversation is lost with the process.
            let _ = fs::write(path, json);
        }
    }

    /// Returns a stored conversation; `None` if it is unknown or the flag is not set.
    pub(crate) fn kept(&self, id: &str) -> Option<Vec<(String, String)>> {
        serde_json::from_str(&fs::read_to_string(self.path(id)?).ok()?).ok()
    }
}
