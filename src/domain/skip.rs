//! When GitHub automation is left out on purpose, and why.

use super::record::words;

words! {
    /// Why automation was left out.
    SkipReason {
        /// The repository is on the list of blocked ones.
        RepoBlocked = "repoBlocked",
        /// There is nothing to sign in with.
        MissingCredential = "missingCredential",
        /// Somebody switched it off.
        AutomationDisabled = "automationDisabled",
        /// GitHub asked for a pause that is too long to wait for.
        RateLimited = "rateLimited",
        /// The workspace is rolled back, and the fallback cannot automate.
        WorkspaceRollback = "workspaceRollback",
        /// The detail says what.
        Other = "other",
    }
}

words! {
    /// The finer reason of a skip.
    SkipDetail {
        /// By the environment's kill switch.
        EnvDisabled = "env-disabled",
        /// By the configuration.
        ConfigDisabled = "config-disabled",
        /// The session was opened without git.
        GitopsOff = "gitops-off",
        /// The caller asked for none.
        CallerSkip = "caller-skip",
        /// The session has no repository.
        MissingRepository = "missing-repository",
        /// The turn changed nothing.
        NoChanges = "no-changes",
        /// Everything that changed is ignored.
        NothingStaged = "nothing-staged",
        /// The repository matches a blocked pattern.
        BlockedByPattern = "blocked-by-pattern",
        /// The app is not installed there.
        NoInstallation = "no-installation",
        /// GitHub refused the token.
        TokenRefused = "token-refused",
        /// The hourly quota is used up.
        PrimaryLimit = "primary-limit",
        /// GitHub's limit on bursts.
        SecondaryLimit = "secondary-limit",
        /// The fallback cannot automate.
        FallbackCannot = "fallback-cannot",
    }
}
