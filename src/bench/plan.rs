//! What is to be measured.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use serde::Serialize;

/// The most sessions at one point; the mission asks for 1,000.
pub(crate) const MAX_SESSIONS: usize = 5000;
/// The longest measurement of one point, in seconds.
pub(crate) const MAX_SECONDS: f64 = 600.0;
/// From so many sessions on there is a pause between prompts by default: without one they only measure how
/// long the queue at the processors is.
const MANY_SESSIONS: usize = 1000;
/// That pause: 1,000 sessions then offer at most 1,000 turns a second.
const PAUSE_OF_MANY: Duration = Duration::from_secs(1);

/// A way from the load client to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PathKind {
    /// The agent's pipes.
    Stdio,
    /// A runtime, by ACP over WebSocket.
    Runtime,
    /// A supervisor with an embedded runtime, by HTTP.
    Supervisor,
}

impl PathKind {
    /// From the shortest to the longest.
    pub(crate) const ALL: [Self; 3] = [Self::Stdio, Self::Runtime, Self::Supervisor];

    fn name(self) -> &'static str {
        match self {
            Self::Stdio => "stdio",
            Self::Runtime => "runtime",
            Self::Supervisor => "supervisor",
        }
    }
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for PathKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|path| path.name() == text)
            .ok_or_else(|| "must be stdio, runtime or supervisor".to_owned())
    }
}

/// What is to be measured.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Along which paths.
    pub paths: Vec<PathKind>,
    /// At how many concurrent sessions.
    pub sessions: Vec<usize>,
    /// How long each point is measured, warm-up not counted.
    pub measured: Duration,
    /// The pause between two prompts of one session; absent: see [`Plan::think`].
    pub think: Option<Duration>,
    /// What every prompt says to the demo agent.
    pub prompt: String,
    /// `section.key=value` for the processes under test.
    pub settings: Vec<String>,
    /// Under which folder databases and workspaces go; absent: the system's temporary folder.
    pub folder: Option<PathBuf>,
}

impl Plan {
    /// The pause between two prompts of one session: none, or 1 s from 1,000 sessions on, unless one was
    /// asked for.
    pub(crate) fn think(&self, sessions: usize) -> Duration {
        let by_default = if sessions >= MANY_SESSIONS { PAUSE_OF_MANY } else { Duration::ZERO };
        self.think.unwrap_or(by_default)
    }

    /// How long a point runs before counting begins: a fifth of the measurement, between 0.1 and 2 s, and long
    /// enough that every session has begun.
    pub(crate) fn warm_up(&self, sessions: usize) -> Duration {
        (self.measured / 5).clamp(Duration::from_millis(100), Duration::from_secs(2)).max(self.think(sessions))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(think: Option<Duration>) -> Plan {
        Plan {
            paths: PathKind::ALL.into(),
            sessions: vec![1],
            measured: Duration::from_secs(5),
            think,
            prompt: "echo".into(),
            settings: Vec::new(),
            folder: None,
        }
    }

    #[test]
    fn many_sessions_pause_unless_a_pause_was_asked_for() {
        assert_eq!(plan(None).think(999), Duration::ZERO);
        assert_eq!(plan(None).think(1000), Duration::from_secs(1));
        assert_eq!(plan(Some(Duration::ZERO)).think(1000), Duration::ZERO);
        assert_eq!(plan(Some(Duration::from_secs(3))).warm_up(1), Duration::from_secs(3));
        assert_eq!(plan(None).warm_up(1), Duration::from_secs(1));
    }

    #[test]
    fn a_path_is_read_as_it_is_written() {
        for path in PathKind::ALL {
            assert_eq!(path.to_string().parse(), Ok(path));
        }
        assert!("http".parse::<PathKind>().is_err());
    }
}
