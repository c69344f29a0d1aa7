//! Words of newer versions in stored rows, and the words by which this version reads them.
//!
//! During an upgrade, rows of a newer version may exist before every process has been replaced, and after a return to an
//! older version they remain. Such a row must neither stop a start nor hide other rows.

use super::{
    automation::{saga::SagaStatus, skip::WantedMode},
    capacity::{AlertKind, AlertLevel},
    notify::webhook::DeliveryState,
    routing::{
        Route,
        initiator::{FlipTrigger, Initiator},
    },
    session::{
        lifecycle::{SessionMode, SessionState},
        permission::PermissionPolicy,
    },
    turn::{TurnInitiator, TurnState},
    words::{MigrationStatus, ReasonCode, RollbackKind},
};

/// Gives lists of words a `tolerant` reader with the word that replaces an unknown one: the word that permits least, or
/// claims least.
macro_rules! tolerant {
    ($($list:ident => $stand_in:ident,)*) => {$(
        impl $list {
            /// The word of this name; an unknown one is read as another word.
            pub(crate) fn tolerant(name: &str) -> Self {
                Self::from_name(name).unwrap_or(Self::$stand_in)
            }
        }
    )*};
}

tolerant! {
    // A load restores the session, whatever it was.
    SessionState => Interrupted,
    // Without git.
    SessionMode => Conversation,
    Route => Acp,
    WantedMode => None,
    SagaStatus => Error,
    PermissionPolicy => Reject,
    Initiator => System,
    FlipTrigger => Migration,
    MigrationStatus => InProgress,
    RollbackKind => Rollback,
    ReasonCode => Other,
    AlertLevel => Critical,
    AlertKind => Raised,
    // Not posted again, until an operator replays it.
    DeliveryState => Dead,
    TurnInitiator => User,
}

impl TurnState {
    /// The state of this name; an unknown one is read as `interrupted` or, before the turn's end, as `running`.
    pub(crate) fn tolerant(name: &str, has_ended: bool) -> Self {
        Self::from_name(name).unwrap_or(if has_ended { Self::Interrupted } else { Self::Running })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_word_permits_least_and_known_words_are_unchanged() {
        assert_eq!(SessionState::tolerant("cloned"), SessionState::Interrupted);
        assert!(SessionState::tolerant("cloned").admits_load().is_ok());
        assert_eq!(PermissionPolicy::tolerant("ask-twice"), PermissionPolicy::Reject);
        assert_eq!(WantedMode::tolerant("gitlab"), WantedMode::None);
        for state in SessionState::ALL {
            assert_eq!(SessionState::tolerant(state.as_str()), state);
        }
        assert_eq!(TurnState::tolerant("verifying", true), TurnState::Interrupted);
        assert_eq!(TurnState::tolerant("verifying", false), TurnState::Running);
        assert_eq!(TurnState::tolerant("failed", true), TurnState::Failed);
    }
}
