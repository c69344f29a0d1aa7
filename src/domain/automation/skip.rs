//! When GitHub automation is skipped on purpose, and why.

use uuid::Uuid;

use super::repository_pattern::RepositoryName;
use crate::domain::{
    ids::{PromptId, SessionId},
    routing::Route,
    words::words,
};

words! {
    /// Why automation was skipped.
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
        /// What the session works on is no repository on GitHub.
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

impl SkipDetail {
    /// The reason to which it belongs.
    pub(crate) fn reason(self) -> SkipReason {
        match self {
            Self::EnvDisabled | Self::ConfigDisabled | Self::GitopsOff | Self::CallerSkip => {
                SkipReason::AutomationDisabled
            }
            Self::MissingRepository | Self::NoChanges | Self::NothingStaged => SkipReason::Other,
            Self::BlockedByPattern => SkipReason::RepoBlocked,
            Self::NoInstallation | Self::TokenRefused => SkipReason::MissingCredential,
            Self::PrimaryLimit | Self::SecondaryLimit => SkipReason::RateLimited,
            Self::FallbackCannot => SkipReason::WorkspaceRollback,
        }
    }
}

words! {
    /// What a caller wants of a turn's changes: `automation.mode`, `github` where it is absent.
    WantedMode {
        /// Issue, branch, commit and pull request.
        Github = "github",
        /// The branch is pushed, no more.
        CommitOnly = "commit-only",
        /// Nothing.
        None = "none",
    }
}

#[expect(clippy::derivable_impls, reason = "the list is made by a macro")]
impl Default for WantedMode {
    fn default() -> Self {
        Self::Github
    }
}

/// What there is to sign in to GitHub with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Credential {
    /// A token, or an app that gives one.
    #[cfg_attr(not(test), expect(dead_code, reason = "no credential can be configured yet"))]
    Present,
    /// Nothing; `Some` where it is known why.
    Missing(Option<SkipDetail>),
}

/// All that decides whether a turn is automated, as far as it is known before anything of it is done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// What the caller wants of this turn.
    pub mode: WantedMode,
    /// `enableGitOps` of the session.
    pub enable_git_ops: bool,
    /// Whether the session's mode is `conversation`, which has no git.
    pub is_conversation: bool,
    /// The session's repository, as it was given: `owner/name` or an address.
    pub repository: Option<&'a str>,
    /// Whether the environment's kill switch is set.
    pub is_killed: bool,
    /// Whether the configuration has automation on.
    pub is_enabled: bool,
    /// Patterns of repositories that the configuration blocks.
    pub blocked: &'a [String],
    /// Patterns of repositories that the tenant blocks.
    pub blocked_by_tenant: &'a [String],
    /// What there is to sign in with.
    pub credential: Credential,
    /// What carries the turn.
    pub protocol: Route,
    /// Whether the fallback can automate.
    pub fallback_can_automate: bool,
}

/// What is to become of a turn's changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Automation {
    /// There is no repository, so nothing is skipped and nobody is told.
    Nothing,
    /// It is skipped on purpose, and told.
    Skip {
        reason: SkipReason,
        /// The finer reason, where there is one.
        detail: Option<SkipDetail>,
    },
    /// It is to be done.
    Run,
}

impl Automation {
    fn skip(detail: SkipDetail) -> Self {
        Self::Skip { reason: detail.reason(), detail: Some(detail) }
    }

    /// Decides. Where there are several reasons, the first of these is told, from what somebody wanted for this turn,
    /// over what holds for good, to what may be otherwise the next time:
    /// 1. a session without any repository: nothing;
    /// 2. the caller wants none of this turn, then: the session was opened without git;
    /// 3. the environment's kill switch, then: the configuration;
    /// 4. what the session works on is no repository on GitHub, then: it is blocked, by whomever;
    /// 5. no GitHub credential is available;
    /// 6. the turn goes over a fallback that cannot automate.
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

/// Names the causes of skips among all ids.
const CAUSES: Uuid = Uuid::from_u128(0x7a1d_5c0e_93b4_5f68_8e21_d4c6_0b9a_f317);

/// The id of what caused the telling of a skip; one that was told is not told again. What a session or its caller
/// wanted to be without is told once in a session, everything else once in a turn. All who see the notification see it,
/// so it gives neither the session's id nor the turn's away.
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
    fn skip_reasons_are_ordered_by_importance() {
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
        let mut told = |change: fn(&mut Asked<'_>)| {
            let told = reasons_of(&asked);
            change(&mut asked);
            told
        };
        let disabled = |detail| Some(("automationDisabled", Some(detail)));
        assert_eq!(told(|it| it.mode = WantedMode::CommitOnly), disabled("caller-skip"));
        assert_eq!(told(|it| it.enable_git_ops = true), disabled("gitops-off"));
        assert_eq!(told(|it| it.is_killed = false), disabled("env-disabled"));
        assert_eq!(told(|it| it.is_enabled = true), disabled("config-disabled"));
        assert_eq!(
            told(|it| it.repository = Some("git@github.com:octo/x.git")),
            Some(("other", Some("missing-repository")))
        );
        assert_eq!(told(|it| it.blocked_by_tenant = &[]), Some(("repoBlocked", Some("blocked-by-pattern"))));
        assert_eq!(told(|it| it.credential = Credential::Present), Some(("missingCredential", None)));
        assert_eq!(told(|it| it.fallback_can_automate = true), Some(("workspaceRollback", Some("fallback-cannot"))));
        assert_eq!(Automation::decide(&asked), Automation::Run);
    }

    #[test]
    fn a_conversation_has_no_git_and_a_credential_says_why_it_is_missing() {
        let disabled = Some(("automationDisabled", Some("gitops-off")));
        assert_eq!(reasons_of(&Asked { is_conversation: true, ..wanted() }), disabled);
        let missing = |detail| reasons_of(&Asked { credential: Credential::Missing(Some(detail)), ..wanted() });
        assert_eq!(missing(SkipDetail::NoInstallation), Some(("missingCredential", Some("no-installation"))));
        assert_eq!(missing(SkipDetail::NoChanges), Some(("missingCredential", None)), "it does not belong there");
        let blocked = [String::from("octo/hello")];
        assert_eq!(reasons_of(&Asked { blocked: &blocked, ..wanted() }).map(|it| it.0), Some("repoBlocked"));
    }

    proptest! {
        #[test]
        fn nothing_is_skipped_without_a_repository_or_a_reason(
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
            if let Automation::Skip { reason, detail } = decided {
                prop_assert!(detail.is_none_or(|detail| detail.reason() == reason));
            }
        }

        #[test]
        fn wanted_skips_notify_once_a_session_and_others_once_a_turn(
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
