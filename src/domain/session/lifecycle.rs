//! The states of a session, and what each of them allows.

use std::time::Duration;

use crate::domain::{turn::outcome::ErrorCode, words::words};

words! {
    /// State of a session.
    SessionState {
        /// Its folder is being prepared, for instance by a clone, before its first agent is started.
        Preparing = "preparing",
        /// Its agent is being started, for the first time or again.
        Starting = "starting",
        /// Its agent waits for a prompt.
        Idle = "idle",
        /// A turn is running.
        Running = "running",
        /// No turn is running, but its agent still works: the session does not hibernate, and accepts prompts.
        Background = "background",
        /// The session was idle for long: no process, no seat; the next prompt wakes it.
        Hibernated = "hibernated",
        /// The session was unused for so long that only a load restores it.
        Expired = "expired",
        /// The service stopped during a turn; a load restores the session.
        Interrupted = "interrupted",
        /// The agent failed too often; a load restores the session.
        Failed = "failed",
        /// The session was closed permanently.
        Closed = "closed",
    }
}

impl SessionState {
    /// True for states with a seat, and with an agent process or about to start one.
    pub(crate) fn is_live(self) -> bool {
        matches!(self, Self::Preparing | Self::Starting | Self::Idle | Self::Running | Self::Background)
    }

    /// Checks whether the session accepts a prompt. A prompt wakes a hibernated session.
    ///
    /// # Errors
    /// The code with which the prompt is refused.
    pub(crate) fn admits_prompt(self) -> Result<(), ErrorCode> {
        match self {
            Self::Starting | Self::Idle | Self::Running | Self::Background | Self::Hibernated => Ok(()),
            Self::Preparing => Err(ErrorCode::SessionPreparing),
            Self::Expired | Self::Interrupted => Err(ErrorCode::SessionNotLoaded),
            Self::Failed => Err(ErrorCode::SessionFailed),
            Self::Closed => Err(ErrorCode::SessionClosed),
        }
    }

    /// Checks whether the session can be loaded.
    ///
    /// # Errors
    /// `session_closed` for a closed session, `session_preparing` for one that is not ready yet.
    pub(crate) fn admits_load(self) -> Result<(), ErrorCode> {
        match self {
            Self::Preparing => Err(ErrorCode::SessionPreparing),
            Self::Closed => Err(ErrorCode::SessionClosed),
            _ => Ok(()),
        }
    }

    /// States in the rows of sessions that are in this state. A row is written when a session starts and ends, not with
    /// each turn, and up to a minute after it expired.
    pub(crate) fn kept_as(self) -> &'static [Self] {
        match self {
            Self::Preparing => &[Self::Preparing],
            Self::Starting | Self::Idle | Self::Running | Self::Background => {
                &[Self::Starting, Self::Idle, Self::Running, Self::Background]
            }
            Self::Hibernated => &[Self::Hibernated],
            Self::Expired => &[Self::Hibernated, Self::Expired],
            Self::Interrupted => &[Self::Interrupted],
            Self::Failed => &[Self::Failed],
            Self::Closed => &[Self::Closed],
        }
    }

    /// The state of a session that was not used for `unused`: a hibernated one expires at `max_age`.
    pub(crate) fn at_age(self, unused: Duration, max_age: Duration) -> Self {
        match self {
            Self::Hibernated if unused >= max_age => Self::Expired,
            other => other,
        }
    }

    /// The state of a session after a restart of the service, by the state of its row. The agent died with the embedded
    /// runtime, or the separate runtime released it.
    pub(crate) fn after_restart(self) -> Self {
        match self {
            Self::Running => Self::Interrupted,
            // Its caller has its id, and finds the reason there; a load prepares it again.
            Self::Preparing => Self::Failed,
            Self::Starting | Self::Idle | Self::Background => Self::Hibernated,
            other => other,
        }
    }
}

/// Period of the sweep for expired sessions: a quarter of `max_age`, 1 s to 60 s, so that the expiry is recorded at most a
/// quarter of the age late.
pub(crate) fn sweep_period(max_age: Duration) -> Duration {
    (max_age / 4).clamp(Duration::from_secs(1), Duration::from_secs(60))
}

words! {
    /// Purpose of a session.
    #[derive(Default)]
    SessionMode {
        /// Work on the workspace's repository.
        #[default]
        Development = "development",
        /// The agent only talks; git is not used.
        Conversation = "conversation",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_session_stays_closed_and_every_other_can_be_loaded_once_it_is_prepared() {
        for state in SessionState::ALL {
            let excluded = [SessionState::Closed, SessionState::Preparing].contains(&state);
            assert_eq!(state.admits_load().is_err(), excluded, "{state:?}");
            assert_eq!(SessionState::from_name(state.as_str()), Some(state));
        }
    }

    #[test]
    fn only_hibernated_sessions_expire_and_exactly_at_their_age() {
        let (age, less) = (Duration::from_secs(60), Duration::from_micros(59_999_999));
        for state in SessionState::ALL {
            let expires = state == SessionState::Hibernated;
            assert_eq!(state.at_age(age, age), if expires { SessionState::Expired } else { state });
            assert_eq!(state.at_age(less, age), state);
        }
        assert_eq!(sweep_period(Duration::from_secs(7200)), Duration::from_secs(60));
        assert_eq!(sweep_period(Duration::from_secs(8)), Duration::from_secs(2));
        assert_eq!(sweep_period(Duration::from_secs(1)), Duration::from_secs(1));
    }

    #[test]
    fn no_session_is_live_after_a_restart() {
        for state in SessionState::ALL {
            assert!(!state.after_restart().is_live(), "{state:?}");
        }
        assert_eq!(SessionState::Running.after_restart(), SessionState::Interrupted);
        assert_eq!(SessionState::Preparing.after_restart(), SessionState::Failed);
    }
}
