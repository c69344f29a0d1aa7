//! Attribution of route flips: initiator, trigger, reason.

use serde::{Deserialize, Serialize};

use crate::domain::words::words;

words! {
    /// Initiator of a route flip.
    Initiator {
        /// The window, the recovery or a migration.
        System = "system",
        /// An operator.
        Operator = "operator",
        /// A user.
        User = "user",
    }
}

words! {
    /// Why a route was flipped.
    FlipTrigger {
        /// The success rate was too low.
        AutoThreshold = "autoThreshold",
        /// An operator rolled back or restored.
        ManualOperator = "manualOperator",
        /// A user rolled back or restored.
        ManualUser = "manualUser",
        /// ACP was tried and has recovered.
        Recovery = "recovery",
        /// A pin was set or released.
        Pin = "pin",
        /// The default protocol changed: a migration, or an administrator.
        Migration = "migration",
    }
}

/// The origin of a change and its reason; texts are validated and redacted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Attribution {
    pub initiator: Initiator,
    /// The subject of the caller's token, or `lumilink`.
    pub actor: String,
    /// The name that the caller gave, if it differs from `actor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor_note: Option<String>,
    pub reason: String,
}

/// The initiator for people: the subject of the token and, if it differs, the given name.
pub(crate) fn named(actor: &str, note: Option<&str>) -> String {
    note.map_or_else(|| actor.to_owned(), |note| format!("{actor} ({note})"))
}

impl Attribution {
    /// The attribution of an automatic change.
    pub(crate) fn of_system(reason: impl Into<String>) -> Self {
        Self { initiator: Initiator::System, actor: "lumilink".into(), actor_note: None, reason: reason.into() }
    }

    /// The trigger of a rollback or restore on request.
    pub(crate) fn manual(&self) -> FlipTrigger {
        match self.initiator {
            Initiator::User => FlipTrigger::ManualUser,
            Initiator::System | Initiator::Operator => FlipTrigger::ManualOperator,
        }
    }
}
