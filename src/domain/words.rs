//! The closed lists of words that audit records are made of.

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $word:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub(crate) enum $name {
            $($(#[$word_doc])* #[serde(rename = $text)] $word,)*
        }

        impl $name {
            /// Every word of the list.
            pub(crate) const ALL: &[Self] = &[$(Self::$word,)*];

            /// Its name in answers and rows.
            pub(crate) fn as_str(self) -> &'static str {
                match self {
                    $(Self::$word => $text,)*
                }
            }

            /// Reads the name back.
            #[allow(dead_code, reason = "not every list is read back")]
            pub(crate) fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|word| word.as_str() == name)
            }
        }
    };
}

pub(crate) use words;

words! {
    /// Where a migration of a workspace stands; a flip that was made has `succeeded`.
    MigrationStatus {
        /// It has a time at which it begins.
        Scheduled = "scheduled",
        /// It is being made.
        InProgress = "inProgress",
        /// Somebody stopped it for a while.
        Paused = "paused",
        /// It was made.
        Succeeded = "succeeded",
        /// It was made and taken back.
        RolledBack = "rolledBack",
        /// Somebody gave it up.
        Cancelled = "cancelled",
        /// It could not be made.
        Failed = "failed",
    }
}

words! {
    /// Which way a workspace went.
    RollbackKind {
        /// To the fallback.
        Rollback = "rollback",
        /// Back to ACP.
        Restore = "restore",
    }
}

words! {
    /// Why a workspace was rolled back or restored: the reasons of skips, and three of our own.
    ReasonCode {
        /// The repository is blocked.
        RepoBlocked = "repoBlocked",
        /// There is no credential for it.
        MissingCredential = "missingCredential",
        /// Automation is off.
        AutomationDisabled = "automationDisabled",
        /// GitHub limits us.
        RateLimited = "rateLimited",
        /// The workspace is rolled back.
        WorkspaceRollback = "workspaceRollback",
        /// Something else.
        Other = "other",
        /// There is no room.
        Capacity = "capacity",
        /// Somebody wanted it.
        Manual = "manual",
        /// The success rate.
        Threshold = "threshold",
    }
}

words! {
    /// What is to be done after a rollback.
    FollowUp {
        /// Users are told.
        NotifyUsers = "notifyUsers",
        /// Somebody looks into it.
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
            assert_eq!(serde_json::to_string(code).unwrap(), format!("{:?}", code.as_str()));
        }
        assert_eq!(FollowUp::from_name("nothing"), None);
        assert_eq!(RollbackKind::from_name("restore"), Some(RollbackKind::Restore));
    }
}
