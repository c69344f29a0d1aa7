//! Attribution of route flips: initiator, trigger, reason.

use serde::{Deserialize, Serialize};

/// Who flips a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Initiator {
    /// The window, the recovery or a migration.
    System,
    /// An operator.
    Operator,
    /// A user.
    User,
}

impl Initiator {
    /// Its name in answers and rows.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Operator => "operator",
            Self::User => "user",
        }
    }

    /// Reads the name back.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::System, Self::Operator, Self::User].into_iter().find(|initiator| initiator.as_str() == name)
    }
}

/// Why a route was flipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum FlipTrigger {
    /// The success rate was too low.
    AutoThreshold,
    /// An operator rolled back or restored.
    ManualOperator,
    /// A user rolled back or restored.
    ManualUser,
    /// ACP was tried and is well again.
    Recovery,
    /// A pin was set or released.
    Pin,
    /// The default protocol changed: a migration, or an administrator.
    Migration,
}

impl FlipTrigger {
    /// Every trigger, for metrics that start at 0.
    pub(crate) const ALL: [Self; 6] =
        [Self::AutoThreshold, Self::ManualOperator, Self::ManualUser, Self::Recovery, Self::Pin, Self::Migration];

    /// Its name in answers, rows and labels.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::AutoThreshold => "autoThreshold",
            Self::ManualOperator => "manualOperator",
            Self::ManualUser => "manualUser",
            Self::Recovery => "recovery",
            Self::Pin => "pin",
            Self::Migration => "migration",
        }
    }

    /// Reads the name back.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|trigger| trigger.as_str() == name)
    }
}

/// The origin of a change and its reason; texts are validated and redacted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Attribution {
    pub initiator: Initiator,
    /// The name that the caller gave, or `lumilink`.
    pub actor: String,
    pub reason: String,
}

impl Attribution {
    /// The attribution of an automatic change.
    pub(crate) fn of_system(reason: impl Into<String>) -> Self {
        Self { initiator: Initiator::System, actor: "lumilink".into(), reason: reason.into() }
    }

    /// The trigger of a rollback or restore on request.
    pub(crate) fn manual(&self) -> FlipTrigger {
        match self.initiator {
            Initiator::User => FlipTrigger::ManualUser,
            Initiator::System | Initiator::Operator => FlipTrigger::ManualOperator,
        }
    }
}
