//! Decides whether GitHub automation of a turn is skipped, and why.

use uuid::Uuid;

use super::repository_pattern::RepositoryName;
use crate::domain::{
    ids::{PromptId, SessionId},
    routing::Route,
    words::words,
};

words! {
    /// Reason for which automation was skipped; the detail names the exact cause.
    SkipReason {
        /// The repository is on the list of blocked ones.
        RepoBlocked = "repoBlocked",
        /// No credential for GitHub is configured.
        MissingCredential = "missingCredential",
        /// Automation is disabled for the turn, the session or the service.
        AutomationDisabled = "automationDisabled",
        /// GitHub asked for a pause that is too long to wait for.
        RateLimited = "rateLimited",
        /// The workspace is rolled back, and the fallback cannot automate.
        WorkspaceRollback = "workspaceRollback",
        /// Any other reason, which the detail names.
        Other = "other",
    }
}

words! {
    /// The finer reason of a skip.
    SkipDetail {
        /// Disabled by the kill switch in the environment.
        EnvDisabled = "env-disabled",
        /// Disabled by the configuration of the service.
        ConfigDisabled = "config-disabled",
        /// The session was opened without git.
        GitopsOff = "gitops-off",
        /// The prompt requested no automation.
        CallerSkip = "caller-skip",
        /// The session does not work on a GitHub repository.
        MissingRepository = "missing-repository",
        /// The turn changed nothing.
        NoChanges = "no-changes",
        /// Everything that changed is ignored.
        NothingStaged = "nothing-staged",
        /// The repository matches a blocked pattern.
        BlockedByPattern = "blocked-by-pattern",
        /// The GitHub App is not installed on the repository, or the installation is not bound to the tenant.
        NoInstallation = "no-installation",
        /// GitHub rejected the token as invalid or expired.
        TokenRefused = "token-refused",
        /// The hourly quota is used up.
        PrimaryLimit = "primary-limit",
        /// GitHub's secondary rate limit, on bursts of requests, applies.
        SecondaryLimit = "secondary-limit",
        /// The turn used the fallback, which does not support automation.
        FallbackCannot = "fallback-cannot",
        /// The repository has no commit.
        EmptyRepository = "empty-repository",
        /// The repository is archived, and takes no changes.
        Archived = "archived",
        /// A rule of the repository forbids the push.
        Ruleset = "ruleset",
        /// The change contains a secret.
        PushProtection = "push-protection",
        /// A file, or the whole change, exceeds GitHub's limits.
        TooLarge = "too-large",
        /// The change touches a path that the tenant's settings protect.
        ProtectedPath = "protected-path",
        /// The change touches a workflow, and the credential may not change workflows.
        WorkflowPermission = "workflow-permission",
        /// A rule demands signed commits, and no way to sign is configured.
        SigningRequired = "signing-required",
        /// The organisation demands that the token is authorised for single sign-on.
        Sso = "sso",
        /// The organisation permits only some network addresses.
        IpAllowList = "ip-allow-list",
        /// The change touches a file that Git LFS stores.
        Lfs = "lfs",
        /// A person closed the pull request of the session.
        ClosedByPerson = "closed-by-person",
        /// The session works on a pull request of a fork to which the credential may not push.
        ForkReadOnly = "fork-read-only",
    }
}

impl SkipDetail {
    /// The reason that this detail refines.
    pub(crate) fn reason(self) -> SkipReason {
        match self {
            Self::EnvDisabled | Self::ConfigDisabled | Self::GitopsOff | Self::CallerSkip => {
                SkipReason::AutomationDisabled
            }
            Self::MissingRepository
            | Self::NoChanges
            | Self::NothingStaged
            | Self::EmptyRepository
            | Self::Archived
            | Self::Ruleset
            | Self::PushProtection
            | Self::TooLarge
            | Self::ProtectedPath
            | Self::SigningRequired
            | Self::Lfs
            | Self::ClosedByPerson
            | Self::ForkReadOnly => SkipReason::Other,
            Self::BlockedByPattern => SkipReason::RepoBlocked,
            Self::NoInstallation | Self::TokenRefused | Self::WorkflowPermission | Self::Sso | Self::IpAllowList => {
                SkipReason::MissingCredential
            }
            Self::PrimaryLimit | Self::SecondaryLimit => SkipReason::RateLimited,
            Self::FallbackCannot => SkipReason::WorkspaceRollback,
        }
    }
}

words! {
    /// Use of a turn's changes that the caller requests in `automation.mode`; `github` if the field is absent.
    WantedMode {
        /// Issue, branch, commit and pull request.
        Github = "github",
        /// The branch is pushed, without issue and pull request.
        CommitOnly = "commit-only",
        /// No automation was requested.
        None = "none",
    }
}

#[expect(clippy::derivable_impls, reason = "the list is made by a macro")]
impl Default for WantedMode {
    fn default() -> Self {
        Self::Github
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Credential {
    /// A token, or an app that issues one.
    Present,
    /// No credential; with the cause if it is known.
    Missing(Option<SkipDetail>),
}

/// The facts that decide whether a turn is automated, all known before the automation starts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// `automation.mode` of the prompt.
    pub mode: WantedMode,
    /// `enableGitOps` of the session.
    pub enable_git_ops: bool,
    /// True if the session's mode is `conversation`, which has no git.
    pub is_conversation: bool,
    /// The session's repository as the caller gave it: `owner/name` or an address.
    pub repository: Option<&'a str>,
    /// True if the environment's kill switch is set.
    pub is_killed: bool,
    /// True if the configuration enables automation.
    pub is_enabled: bool,
    /// Patterns of repositories that the configuration blocks.
    pub blocked: &'a [String],
    /// Patterns of repositories that the tenant blocks.
    pub blocked_by_tenant: &'a [String],
    pub credential: Credential,
    pub protocol: Route,
    pub fallback_can_automate: bool,
}

/// The decision about the automation of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Automation {
    /// The session has no repository: automation does not apply, and nothing is reported.
    Nothing,
    /// Automation is left out on purpose; a notification and a note report it.
    Skip {
        reason: SkipReason,
        detail: Option<SkipDetail>,
    },
    Run,
}

impl Automation {
    fn skip(detail: SkipDetail) -> Self {
        Self::Skip { reason: detail.reason(), detail: Some(detail) }
    }

    /// The stored form: `nothing`, `run`, or `skip` with the reason and the detail, if any.
    pub(crate) fn to_stored(self) -> String {
        match self {
            Self::Nothing => "nothing".to_owned(),
            Self::Run => "run".to_owned(),
            Self::Skip { reason, detail: None } => format!("skip {}", reason.as_str()),
            Self::Skip { reason, detail: Some(detail) } => format!("skip {} {}", reason.as_str(), detail.as_str()),
        }
    }

    /// Reads the stored form back; `None` if a word is unknown.
    pub(crate) fn from_stored(stored: &str) -> Option<Self> {
        let mut words = stored.split(' ');
        match words.next()? {
            "nothing" => Some(Self::Nothing),
            "run" => Some(Self::Run),
            "skip" => {
                let reason = SkipReason::from_name(words.next()?)?;
                let detail = words.next().map(SkipDetail::from_name);
                detail.is_none_or(|it| it.is_some()).then_some(Self::Skip { reason, detail: detail.flatten() })
            }
            _ => None,
        }
    }

    /// Decides. Of several reasons the first of this list is reported; the caller's choices come first, then permanent
    /// causes, then those that may differ for the next turn:
    /// 1. the session has no repository: [`Self::Nothing`];
    /// 2. the caller disabled automation for this turn, then: the session was opened without git;
    /// 3. the environment's kill switch, then: the configuration;
    /// 4. the repository is not on GitHub, then: the configuration or the tenant blocks it;
    /// 5. no credential;
    /// 6. the turn's carrier is a fallback that cannot automate.
    pub(crate) fn decide(asked: &Asked<'_>) -> Self {
        let Some(repository) = asked.repository else { return Self::Nothing };
        if asked.mode == WantedMode::None {
            return Self::skip(SkipDetail::CallerSkip);
        }
        if !asked.enable_git_ops || asked.is_conversation {
            return Self::skip(SkipDetail::GitopsOff);
        }
        if asked.is_killed {
            return Self::skip(SkipDetail::EnvDisabled);
        }
        if !asked.is_enabled {
            return Self::skip(SkipDetail::ConfigDisabled);
        }
        let Some(name) = RepositoryName::parse(repository) else {
            return Self::skip(SkipDetail::MissingRepository);
        };
        if asked.blocked.iter().chain(asked.blocked_by_tenant).any(|pattern| name.matches(pattern)) {
            return Self::skip(SkipDetail::BlockedByPattern);
        }
        if let Credential::Missing(detail) = asked.credential {
            let detail = detail.filter(|detail| detail.reason() == SkipReason::MissingCredential);
            return Self::Skip { reason: SkipReason::MissingCredential, detail };
        }
        if asked.protocol == Route::Http && !asked.fallback_can_automate {
            return Self::skip(SkipDetail::FallbackCannot);
        }
        Self::Run
    }
}

/// UUID namespace of the causes of skips.
const CAUSES: Uuid = Uuid::from_u128(0x7a1d_5c0e_93b4_5f68_8e21_d4c6_0b9a_f317);

/// The cause id of a skip's notification, by which it is deduplicated: skips that the session or its caller asked for are
/// reported once per session, all others once per turn. A hash, since every reader of the notification sees it and must
/// not learn the ids of session and turn.
pub(crate) fn cause_of_skip(
    session: SessionId,
    prompt: PromptId,
    reason: SkipReason,
    detail: Option<SkipDetail>,
) -> Uuid {
    let name = match detail {
        Some(wanted @ (SkipDetail::CallerSkip | SkipDetail::GitopsOff)) => format!("{session}:{}", wanted.as_str()),
        _ => format!("{prompt}:{}", reason.as_str()),
    };
    Uuid::new_v5(&CAUSES, name.as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wanted() -> Asked<'static> {
        Asked {
            mode: WantedMode::Github,
            enable_git_ops: true,
            is_conversation: false,
            repository: Some("https://github.com/octo/hello.git"),
            is_killed: false,
            is_enabled: true,
            blocked: &[],
            blocked_by_tenant: &[],
            credential: Credential::Present,
            protocol: Route::Acp,
            fallback_can_automate: false,
        }
    }

    fn reasons_of(asked: &Asked<'_>) -> Option<(&'static str, Option<&'static str>)> {
        match Automation::decide(asked) {
            Automation::Skip { reason, detail } => Some((reason.as_str(), detail.map(SkipDetail::as_str))),
            Automation::Nothing | Automation::Run => None,
        }
    }

    #[test]
    fn reasons_are_reported_in_the_documented_order() {
        let all = [String::from("OCTO/*")];
        let mut asked = Asked {
            mode: WantedMode::None,
            enable_git_ops: false,
            repository: None,
            is_killed: true,
            is_enabled: false,
            blocked_by_tenant: &all,
            credential: Credential::Missing(None),
            protocol: Route::Http,
            ..wanted()
        };
        assert_eq!(Automation::decide(&asked), Automation::Nothing, "there is no repository");
        asked.repository = Some("/not/a/name");
        let mut reported = |change: fn(&mut Asked<'_>)| {
            let reasons = reasons_of(&asked);
            change(&mut asked);
            reasons
        };
        let disabled = |detail| Some(("automationDisabled", Some(detail)));
        assert_eq!(reported(|it| it.mode = WantedMode::CommitOnly), disabled("caller-skip"));
        assert_eq!(reported(|it| it.enable_git_ops = true), disabled("gitops-off"));
        assert_eq!(reported(|it| it.is_killed = false), disabled("env-disabled"));
        assert_eq!(reported(|it| it.is_enabled = true), disabled("config-disabled"));
        assert_eq!(
            reported(|it| it.repository = Some("git@github.com:octo/x.git")),
            Some(("other", Some("missing-repository")))
        );
        assert_eq!(reported(|it| it.blocked_by_tenant = &[]), Some(("repoBlocked", Some("blocked-by-pattern"))));
        assert_eq!(reported(|it| it.credential = Credential::Present), Some(("missingCredential", None)));
        assert_eq!(
            reported(|it| it.fallback_can_automate = true),
            Some(("workspaceRollback", Some("fallback-cannot")))
        );
        assert_eq!(Automation::decide(&asked), Automation::Run);
    }

    #[test]
    fn conversation_has_no_git_and_a_missing_credential_keeps_its_detail() {
        let disabled = Some(("automationDisabled", Some("gitops-off")));
        assert_eq!(reasons_of(&Asked { is_conversation: true, ..wanted() }), disabled);
        let missing = |detail| reasons_of(&Asked { credential: Credential::Missing(Some(detail)), ..wanted() });
        assert_eq!(missing(SkipDetail::NoInstallation), Some(("missingCredential", Some("no-installation"))));
        assert_eq!(
            missing(SkipDetail::NoChanges),
            Some(("missingCredential", None)),
            "a detail of another reason is dropped"
        );
        let blocked = [String::from("octo/hello")];
        assert_eq!(reasons_of(&Asked { blocked: &blocked, ..wanted() }).map(|it| it.0), Some("repoBlocked"));
    }

    proptest! {
        #[test]
        fn automation_runs_or_skips_exactly_by_its_conditions(
            bits in prop::array::uniform7(any::<bool>()),
            mode in prop::sample::select(WantedMode::ALL.to_vec()),
            repository in prop::option::of(prop::sample::select(vec!["octo/hello", "octo/other", "nothing"])),
        ) {
            let [enable_git_ops, is_conversation, is_killed, is_enabled, is_blocked, has_credential, is_http] = bits;
            let blocked = if is_blocked { vec![String::from("*/hello")] } else { Vec::new() };
            let asked = Asked {
                mode,
                enable_git_ops,
                is_conversation,
                repository,
                is_killed,
                is_enabled,
                blocked: &blocked,
                credential: if has_credential { Credential::Present } else { Credential::Missing(None) },
                protocol: if is_http { Route::Http } else { Route::Acp },
                ..wanted()
            };
            let runs = mode != WantedMode::None && enable_git_ops && !is_conversation && !is_killed && is_enabled
                && has_credential && !is_http && repository.is_some_and(|it| it.contains('/'))
                && !(is_blocked && repository == Some("octo/hello"));
            let decided = Automation::decide(&asked);
            prop_assert_eq!(decided == Automation::Nothing, repository.is_none());
            prop_assert_eq!(decided == Automation::Run, runs);
            prop_assert_eq!(Automation::from_stored(&decided.to_stored()), Some(decided));
            if let Automation::Skip { reason, detail } = decided {
                prop_assert!(detail.is_none_or(|detail| detail.reason() == reason));
            }
        }

        #[test]
        fn requested_skips_have_one_cause_per_session_and_others_one_per_turn(
            session in any::<u128>(), one in any::<u128>(), two in any::<u128>(),
            detail in prop::sample::select(SkipDetail::ALL.to_vec()),
        ) {
            prop_assume!(one != two);
            let cause = |prompt| {
                let (session, prompt) = (SessionId(Uuid::from_u128(session)), PromptId(Uuid::from_u128(prompt)));
                cause_of_skip(session, prompt, detail.reason(), Some(detail))
            };
            prop_assert_eq!(cause(one), cause(one));
            let is_of_session = matches!(detail, SkipDetail::CallerSkip | SkipDetail::GitopsOff);
            prop_assert_eq!(cause(one) == cause(two), is_of_session);
        }
    }
}
