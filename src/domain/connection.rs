//! How the way to a session's agent is.

use super::outcome::ErrorClass;

/// How the way to a session's agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionStatus {
    /// For the first time.
    Connecting,
    /// It stands.
    Connected,
    /// It stands, but the last turn failed by it: the next one tells.
    Degraded,
    /// It broke, and is being made again, or the agent is being started again.
    Reconnecting,
    /// It broke for good.
    Error,
}

impl ConnectionStatus {
    /// Its name in answers and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Degraded => "degraded",
            Self::Reconnecting => "reconnecting",
            Self::Error => "error",
        }
    }

    /// What is shown of a connection on which the last turn failed with an error of this class, or did not fail.
    pub fn after(self, last_failure: Option<ErrorClass>) -> Self {
        match (self, last_failure) {
            (Self::Connected, Some(ErrorClass::Connection | ErrorClass::Protocol)) => Self::Degraded,
            (status, _) => status,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failure_of_the_way_itself_degrades_it_and_only_while_it_stands() {
        use ConnectionStatus::*;
        assert_eq!(Connected.after(None), Connected);
        assert_eq!(Connected.after(Some(ErrorClass::Connection)), Degraded);
        assert_eq!(Connected.after(Some(ErrorClass::Protocol)), Degraded);
        assert_eq!(Connected.after(Some(ErrorClass::Application)), Connected);
        assert_eq!(Reconnecting.after(Some(ErrorClass::Connection)), Reconnecting);
    }
}
