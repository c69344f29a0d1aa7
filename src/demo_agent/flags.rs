//! How the demo agent is started, and how it can misbehave then.

use std::{fs, io, path::PathBuf, time::Duration};

use super::lines::{Lines, Read};

/// The flags, all off by default.
#[derive(Debug, Clone)]
pub(super) struct Flags {
    /// `--no-load` takes `session/load` away.
    pub loads: bool,
    /// `--no-resume` takes `session/resume` away.
    pub resumes: bool,
    /// `--protocol-version N` answers with another one.
    pub protocol_version: u16,
    /// `--echo-version` answers with whatever was offered.
    pub echo_version: bool,
    /// `--refuse-handshake` answers `initialize` with an error.
    pub refuse_handshake: bool,
    /// `--require-auth` wants `authenticate` before a session.
    pub require_auth: bool,
    /// `--oneshot` runs the script on standard input and ends.
    pub oneshot: bool,
    /// `--persist DIR` keeps conversations for other processes.
    persist: Option<PathBuf>,
    exit_on_start: bool,
    hang_on_start: bool,
    garbage_on_start: bool,
    start_delay: Duration,
}

impl Flags {
    pub(crate) fn parse(arguments: Vec<String>) -> Result<Self, String> {
        let mut flags = Self {
            loads: true,
            resumes: true,
            protocol_version: 1,
            echo_version: false,
            refuse_handshake: false,
            require_auth: false,
            oneshot: false,
            persist: None,
            exit_on_start: false,
            hang_on_start: false,
            garbage_on_start: false,
            start_delay: Duration::ZERO,
        };
        let mut arguments = arguments.into_iter();
        while let Some(flag) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{flag} needs a value"));
            let bad = |cause: std::num::ParseIntError| format!("{flag}: {cause}");
            match flag.as_str() {
                "--no-load" => flags.loads = false,
                "--no-resume" => flags.resumes = false,
                "--protocol-version" => flags.protocol_version = value()?.parse().map_err(bad)?,
                "--echo-version" => flags.echo_version = true,
                "--refuse-handshake" => flags.refuse_handshake = true,
                "--require-auth" => flags.require_auth = true,
                "--oneshot" => flags.oneshot = true,
                "--persist" => flags.persist = Some(value()?.into()),
                "--exit-on-start" => flags.exit_on_start = true,
                "--hang-on-start" => flags.hang_on_start = true,
                "--garbage-on-start" => flags.garbage_on_start = true,
                "--start-delay-ms" => flags.start_delay = Duration::from_millis(value()?.parse().map_err(bad)?),
                other => return Err(format!("no flag {other}")),
            }
        }
        Ok(flags)
    }

    /// What goes wrong before the first message.
    pub(crate) fn misbehave_at_start(&self, lines: &mut Lines) -> io::Result<()> {
        if self.exit_on_start {
            eprintln!("demo-agent: ends at once, as it was told");
            std::process::exit(3);
        }
        if self.garbage_on_start {
            for n in 1..=3 {
                lines.write_raw(&format!("Welcome! This banner is not JSON, line {n}"))?;
            }
        }
        if self.hang_on_start {
            while !matches!(lines.read(None)?, Read::End) {}
        }
        if !self.start_delay.is_zero() {
            lines.wait(self.start_delay)?;
        }
        Ok(())
    }

    fn path(&self, id: &str) -> Option<PathBuf> {
        let harmless = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        self.persist.as_ref().filter(|_| harmless).map(|folder| folder.join(format!("{id}.json")))
    }

    /// Keeps a conversation, where the flag asks for it.
    pub(crate) fn keep(&self, id: &str, said: &[(String, String)]) {
        if let (Some(path), Ok(json)) = (self.path(id), serde_json::to_string(said)) {
            // A demo that cannot write forgets, which is what it does without the flag.
            let _ = fs::write(path, json);
        }
    }

    /// A conversation that was kept.
    pub(crate) fn kept(&self, id: &str) -> Option<Vec<(String, String)>> {
        serde_json::from_str(&fs::read_to_string(self.path(id)?).ok()?).ok()
    }
}
