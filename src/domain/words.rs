//! Closed lists: an enum whose words are written once, with their names.

/// Defines an enum with `ALL`, `as_str` and `from_name`. Each word's text is its name everywhere: in JSON, rows, labels
/// and answers. Further derives are written above the name of the list.
macro_rules! words {
    ($(#[$attribute:meta])* $name:ident { $($(#[$word_attribute:meta])* $word:ident = $text:literal,)* }) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        $(#[$attribute])*
        pub(crate) enum $name {
            $($(#[$word_attribute])* #[serde(rename = $text)] $word,)*
        }

        #[allow(dead_code, reason = "not every list is enumerated and read back")]
        impl $name {
            /// Every word, in the order of their definition.
            pub(crate) const ALL: [Self; [$($text),*].len()] = [$(Self::$word,)*];

            pub(crate) fn as_str(self) -> &'static str {
                match self {
                    $(Self::$word => $text,)*
                }
            }

            /// The word of this name, if there is one.
            pub(crate) fn from_name(name: &str) -> Option<Self> {
                Self::ALL.into_iter().find(|word| word.as_str() == name)
            }
        }
    };
}

pub(crate) use words;

words! {
    /// State of a workspace's migration; a completed flip has `succeeded`.
    MigrationStatus {
        /// The migration has a start time in the future.
        Scheduled = "scheduled",
        /// The migration is running.
        InProgress = "inProgress",
        /// An operator paused the migration.
        Paused = "paused",
        /// The migration was completed.
        Succeeded = "succeeded",
        /// The migration was completed and rolled back.
        RolledBack = "rolledBack",
        /// An operator cancelled the migration.
        Cancelled = "cancelled",
        /// The migration could not be completed.
        Failed = "failed",
    }
}

words! {
    /// Direction of a flip.
    RollbackKind {
        /// From ACP to the HTTP fallback.
        Rollback = "rollback",
        /// From the HTTP fallback back to ACP.
        Restore = "restore",
    }
}

words! {
    /// Why a workspace was rolled back or restored: the reasons of skips, and three of our own.
    ReasonCode {
        /// The tenant blocks the repository of the workspace.
        RepoBlocked = "repoBlocked",
        /// No credential for GitHub is configured.
        MissingCredential = "missingCredential",
        /// Automation is off.
        AutomationDisabled = "automationDisabled",
        /// GitHub limits the rate of requests.
        RateLimited = "rateLimited",
        /// The workspace is rolled back.
        WorkspaceRollback = "workspaceRollback",
        /// Any other reason, given as a sentence.
        Other = "other",
        /// The service has no free seats.
        Capacity = "capacity",
        /// An operator or a user requested it.
        Manual = "manual",
        Threshold = "threshold",
    }
}

words! {
    /// Action after a rollback.
    FollowUp {
        /// The users of the workspace are notified.
        NotifyUsers = "notifyUsers",
        /// A person reviews the rollback.
        ScheduleReview = "scheduleReview",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_are_the_same_in_json() {
        assert!(MigrationStatus::ALL.iter().all(|word| MigrationStatus::from_name(word.as_str()) == Some(*word)));
        for code in ReasonCode::ALL {
            assert_eq!(serde_json::to_string(&code).unwrap(), format!("{:?}", code.as_str()));
        }
        assert_eq!(FollowUp::from_name("nothing"), None);
        assert_eq!(RollbackKind::from_name("restore"), Some(RollbackKind::Restore));
    }
}
