//! Checks every text literally, and the properties that all texts share.

use proptest::prelude::*;

use super::*;
use crate::domain::{
    automation::repository_pattern::RepositoryName,
    routing::{
        Attribution,
        success_window::{WindowFigures, WindowState},
    },
};

#[test]
fn flip_texts_fit_and_only_rollbacks_name_the_fallback() {
    for to in Route::ALL {
        for trigger in FlipTrigger::ALL {
            for figures in [None, Some((u64::MAX, u64::MAX / 3))] {
                let figures = figures.map(|(samples, failures)| WindowFigures {
                    state: WindowState::Breached,
                    samples,
                    failures,
                    length_seconds: 3600,
                });
                let from = if to == Route::Acp { Route::Http } else { Route::Acp };
                let attribution = Attribution::of_system("x");
                let flip = Flip { from, to, epoch: 1, trigger, attribution, figures, attempt: 0 };
                let notice = of_flip(&flip);
                let text = notice.body.as_str();
                assert!((1..=MAX_BODY_CHARS).contains(&text.chars().count()), "{text}");
                assert_eq!(text.contains("HTTP fallback"), flip.is_rollback(), "{text}");
                assert_eq!(notice.severity == Severity::Error, flip.is_rollback());
            }
        }
    }
}

/// Every notification but those about skips, with a name.
fn every_text() -> Vec<(String, Notice)> {
    let session = SessionId(uuid::Uuid::from_u128(0xabcdef));
    let mut texts = Vec::new();
    for (to, from) in [(Route::Http, Route::Acp), (Route::Acp, Route::Http)] {
        for trigger in FlipTrigger::ALL {
            let figures =
                WindowFigures { state: WindowState::Breached, samples: 120, failures: 3, length_seconds: 3600 };
            let attribution = Attribution::of_system("x");
            let flip = Flip { from, to, epoch: 1, trigger, attribution, figures: Some(figures), attempt: 0 };
            texts.push((format!("flip {} {}", to.as_str(), trigger.as_str()), of_flip(&flip)));
            if (to, trigger) == (Route::Http, FlipTrigger::AutoThreshold) {
                texts.push(("flip http without figures".into(), of_flip(&Flip { figures: None, ..flip })));
            }
        }
    }
    texts.push(("storm".into(), of_storm(12, 40)));
    texts.push(("storm end".into(), of_storm_end(17)));
    for (kind, level) in [
        (AlertKind::Raised, AlertLevel::Warning),
        (AlertKind::Raised, AlertLevel::Critical),
        (AlertKind::Resolved, AlertLevel::Critical),
        (AlertKind::Resolved, AlertLevel::Warning),
    ] {
        if let Some(notice) = of_capacity(&CapacityChange { level, kind, taken: 860, limit: 1000 }) {
            texts.push((format!("capacity {} {}", kind.as_str(), level.as_str()), notice));
        }
    }
    texts.push(("failed session".into(), of_failed_session(session, ErrorCode::AgentCrashed)));
    texts.push(("reconnecting".into(), of_reconnecting()));
    texts.push(("failed handshake".into(), of_failed_handshake(session, ErrorCode::HandshakeTimeout)));
    texts
}

/// Every combination that can occur: each detail with its reason, and each reason alone.
fn skips() -> Vec<(SkipReason, Option<SkipDetail>)> {
    let details = SkipDetail::ALL.iter().map(|detail| (detail.reason(), Some(*detail)));
    details.chain(SkipReason::ALL.iter().map(|reason| (*reason, None))).collect()
}

fn name_of((reason, detail): (SkipReason, Option<SkipDetail>)) -> String {
    format!("skip {} {}", reason.as_str(), detail.map_or("-", SkipDetail::as_str))
}

const REPOSITORY: &str = "https://github.com/octo-org/hello-world.git";

#[test]
fn texts_are_as_listed() {
    let mut texts: Vec<String> = every_text().into_iter().map(|(name, notice)| line(&name, &notice)).collect();
    for skip in skips() {
        let repository = Some(REPOSITORY).filter(|_| skip.1 != Some(SkipDetail::MissingRepository));
        texts.push(line(&name_of(skip), &of_skip(skip.0, skip.1, repository)));
        texts.push(format!("  note: {}", note_of_skip(skip.0, skip.1, repository)));
    }
    let alone = (SkipReason::Other, Some(SkipDetail::NoChanges));
    texts.push(line("skip without a name", &of_skip(alone.0, alone.1, Some("no name"))));
    texts.push(format!("  note: {}", note_of_skip(alone.0, alone.1, None)));
    let texts = texts.join("\n");
    assert_eq!(texts, TEXTS.trim(), "\n{texts}");
}

fn line(name: &str, notice: &Notice) -> String {
    format!("{name}: {} {}: {}", notice.severity.as_str(), notice.trigger.as_str(), notice.body)
}

const TEXTS: &str = r"
flip http autoThreshold: error autoThreshold: ACP succeeded in only 97.5 % of 120 turns; prompts use the HTTP fallback until ACP recovers.
flip http without figures: error autoThreshold: ACP failed again right after its restore; prompts use the HTTP fallback until ACP recovers.
flip http manualOperator: error manualOperator: An operator switched this workspace to the HTTP fallback.
flip http manualUser: error manualUser: A user switched this workspace to the HTTP fallback.
flip http recovery: error recovered: An operator switched this workspace to the HTTP fallback.
flip http pin: error manualOperator: An operator switched this workspace to the HTTP fallback.
flip http migration: info migrated: This workspace now uses HTTP.
flip acp autoThreshold: info autoThreshold: An operator switched this workspace back to ACP.
flip acp manualOperator: info manualOperator: An operator switched this workspace back to ACP.
flip acp manualUser: info manualUser: A user switched this workspace back to ACP.
flip acp recovery: info recovered: ACP has recovered; prompts use ACP again.
flip acp pin: info manualOperator: An operator switched this workspace back to ACP.
flip acp migration: info migrated: This workspace now uses ACP.
storm: error systemicRollback: 12 of 40 workspaces switched to the HTTP fallback within 5 minutes: check the runtime, the network and the agents' provider.
storm end: info systemicRollback: The rollback storm is over; at its peak, 17 workspaces had switched to the HTTP fallback within 5 minutes.
capacity raised warning: warning capacity: Capacity nears its limit: 860 of 1000 seats are taken.
capacity raised critical: error capacity: Capacity is nearly exhausted: 860 of 1000 seats are taken. Sessions beyond the limit are refused.
capacity resolved warning: info capacity: Capacity is back to normal: 860 of 1000 seats are taken.
failed session: error sessionFailed: Session …abcdef failed too often and was stopped (agent_crashed). Load it to try again.
reconnecting: warning reconnecting: The connection to an agent was interrupted and is being restored; the running turn continues.
failed handshake: error handshakeFailed: The agent's handshake failed (handshake_timeout); prompts of session …abcdef use the HTTP fallback for now.
skip automationDisabled env-disabled: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: it is disabled for the whole service.
  note: GitHub automation for octo-org/hello-world was skipped: it is disabled for the whole service. An operator has set GITHUB_AUTOMATION_DISABLED and can remove it. The changes stay in the workspace.
skip automationDisabled config-disabled: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: it is disabled in the configuration.
  note: GitHub automation for octo-org/hello-world was skipped: it is disabled in the configuration. An operator can enable it there. The changes stay in the workspace.
skip automationDisabled gitops-off: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: this session was opened without git.
  note: GitHub automation for octo-org/hello-world was skipped: this session was opened without git. For pull requests, open a session in mode development, and without enableGitOps false in an API request. This note appears once per session. The changes stay in the workspace.
skip automationDisabled caller-skip: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: the prompt disabled it.
  note: GitHub automation for octo-org/hello-world was skipped: the prompt disabled it. For a pull request, prompt again without automation.mode none; the command line never sends it. This note appears once per session. The changes stay in the workspace.
skip other missing-repository: warning automationSkipped: GitHub automation was skipped: the session has no GitHub repository.
  note: GitHub automation was skipped: the session has no GitHub repository. Open a session with a GitHub repository, such as owner/name. The changes stay in the workspace.
skip other no-changes: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: the turn changed nothing.
  note: GitHub automation for octo-org/hello-world was skipped: the turn changed nothing. No action is needed. If you expected changes, state in the prompt what to change.
skip other nothing-staged: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: git ignores every changed file.
  note: GitHub automation for octo-org/hello-world was skipped: git ignores every changed file. Check .gitignore and the files that the turn wrote. The changes stay in the workspace.
skip repoBlocked blocked-by-pattern: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: the repository is blocked.
  note: GitHub automation for octo-org/hello-world was skipped: the repository is blocked. A pattern of the tenant's settings or of the configuration matches it; ask an administrator. The changes stay in the workspace.
skip missingCredential no-installation: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: the GitHub App is not installed for this tenant.
  note: GitHub automation for octo-org/hello-world was skipped: the GitHub App is not installed for this tenant. Install it on the repository, and have an administrator bind the installation to the tenant; or send a githubToken with the prompt. The changes stay in the workspace.
skip missingCredential token-refused: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: GitHub rejected the token.
  note: GitHub automation for octo-org/hello-world was skipped: GitHub rejected the token. Send a valid token that may write contents, issues and pull requests of the repository. The changes stay in the workspace.
skip rateLimited primary-limit: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: GitHub's hourly quota is used up.
  note: GitHub automation for octo-org/hello-world was skipped: GitHub's hourly quota is used up. The quota resets within the hour; prompt again then. The changes stay in the workspace.
skip rateLimited secondary-limit: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: GitHub's secondary rate limit is reached.
  note: GitHub automation for octo-org/hello-world was skipped: GitHub's secondary rate limit is reached. Prompt again in a few minutes, with fewer turns at a time. The changes stay in the workspace.
skip workspaceRollback fallback-cannot: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: the HTTP fallback does not support it.
  note: GitHub automation for octo-org/hello-world was skipped: the HTTP fallback does not support it. Prompt again once the workspace is back on ACP. The changes stay in the workspace.
skip other empty-repository: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: the repository is empty.
  note: GitHub automation for octo-org/hello-world was skipped: the repository is empty. Push a first commit to its default branch. The changes stay in the workspace.
skip other archived: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: the repository is archived.
  note: GitHub automation for octo-org/hello-world was skipped: the repository is archived. Its owner can unarchive it. The changes stay in the workspace.
skip other ruleset: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: a rule of the repository forbids the push.
  note: GitHub automation for octo-org/hello-world was skipped: a rule of the repository forbids the push. The log of the run names the rule; change it, or the branch name in the tenant's settings. The changes stay in the workspace.
skip other push-protection: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: the change contains a secret.
  note: GitHub automation for octo-org/hello-world was skipped: the change contains a secret. The log of the run names path and line. Remove the secret, and replace it where it is valid. The changes stay in the workspace.
skip other too-large: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: the change is too large for GitHub.
  note: GitHub automation for octo-org/hello-world was skipped: the change is too large for GitHub. The log of the run names the files. Remove or ignore them, and prompt again. The changes stay in the workspace.
skip other protected-path: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: the change touches a protected path.
  note: GitHub automation for octo-org/hello-world was skipped: the change touches a protected path. The log of the run names the paths. An administrator can permit them in the tenant's settings. The changes stay in the workspace.
skip missingCredential workflow-permission: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: the credential may not change workflows.
  note: GitHub automation for octo-org/hello-world was skipped: the credential may not change workflows. Grant the permission workflows, and accept it in the settings of the installation. The changes stay in the workspace.
skip other signing-required: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: the repository demands signed commits.
  note: GitHub automation for octo-org/hello-world was skipped: the repository demands signed commits. An operator can configure a key for signatures. The changes stay in the workspace.
skip missingCredential sso: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: the token is not authorised for single sign-on.
  note: GitHub automation for octo-org/hello-world was skipped: the token is not authorised for single sign-on. Authorise it for the organisation at GitHub, then retry the run. The changes stay in the workspace.
skip missingCredential ip-allow-list: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: the organisation does not permit this network address.
  note: GitHub automation for octo-org/hello-world was skipped: the organisation does not permit this network address. Its owner can add the address of the runtime to the IP allow list. The changes stay in the workspace.
skip other lfs: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: the change touches a file of Git LFS.
  note: GitHub automation for octo-org/hello-world was skipped: the change touches a file of Git LFS. Change such files outside the session, and the others in a new turn. The changes stay in the workspace.
skip other closed-by-person: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: a person closed the pull request of the session.
  note: GitHub automation for octo-org/hello-world was skipped: a person closed the pull request of the session. Reopen it, or open a new session for a new pull request. The changes stay in the workspace.
skip other fork-read-only: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: the pull request is of a fork that takes no push.
  note: GitHub automation for octo-org/hello-world was skipped: the pull request is of a fork that takes no push. Its author can allow edits by maintainers; a token of a maintainer is needed, too. The changes stay in the workspace.
skip repoBlocked -: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: the repository is blocked.
  note: GitHub automation for octo-org/hello-world was skipped: the repository is blocked. A pattern of the tenant's settings or of the configuration matches it; ask an administrator. The changes stay in the workspace.
skip missingCredential -: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: no GitHub credential is available.
  note: GitHub automation for octo-org/hello-world was skipped: no GitHub credential is available. This version accepts no credential yet. API clients avoid this note with automation.mode none in the prompt request. The changes stay in the workspace.
skip automationDisabled -: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: it is disabled.
  note: GitHub automation for octo-org/hello-world was skipped: it is disabled. An operator can enable it. The changes stay in the workspace.
skip rateLimited -: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: GitHub's rate limit is reached.
  note: GitHub automation for octo-org/hello-world was skipped: GitHub's rate limit is reached. Prompt again in an hour. The changes stay in the workspace.
skip workspaceRollback -: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: the HTTP fallback does not support it.
  note: GitHub automation for octo-org/hello-world was skipped: the HTTP fallback does not support it. Prompt again once the workspace is back on ACP. The changes stay in the workspace.
skip other -: warning automationSkipped: GitHub automation for octo-org/hello-world was skipped: it was not possible.
  note: GitHub automation for octo-org/hello-world was skipped: it was not possible. See the diagnostics of the turn. The changes stay in the workspace.
skip without a name: warning automationSkipped: GitHub automation was skipped: the turn changed nothing.
  note: GitHub automation was skipped: the turn changed nothing. No action is needed. If you expected changes, state in the prompt what to change.
";

fn fits(text: &str, max_chars: usize) -> bool {
    let markup = ["<", ">", "`", "](", "][", "]:", "  "];
    let is_whole = !text.ends_with('…') && text.ends_with('.');
    let is_clean = !text.contains(char::is_control) && !markup.iter().any(|mark| text.contains(mark));
    is_whole && is_clean && (1..=max_chars).contains(&text.chars().count())
}

#[test]
fn texts_fit_uncut_and_hold_no_markup() {
    for (name, notice) in every_text() {
        assert!(fits(notice.body.as_str(), MAX_BODY_CHARS), "{name}: {}", notice.body);
    }
    let longest = format!("{}/{}", "o".repeat(100), "n".repeat(100));
    for (reason, detail) in skips() {
        for repository in [None, Some("octo/hello"), Some(&*longest)] {
            let (notice, note) = (of_skip(reason, detail, repository), note_of_skip(reason, detail, repository));
            assert!(fits(notice.body.as_str(), MAX_BODY_CHARS), "{}", notice.body);
            assert!(fits(&note, MAX_NOTE_CHARS), "{note}");
            assert_eq!((notice.severity, notice.trigger), (Severity::Warning, Trigger::AutomationSkipped));
            let (why, advice) = texts_of_skip(reason, detail);
            assert!(notice.body.as_str().contains(why) && note.contains(why) && note.contains(advice), "{note}");
            assert!(
                repository != Some("octo/hello") || notice.body.as_str().contains("octo/hello"),
                "{}",
                notice.body
            );
        }
    }
}

#[test]
fn every_detail_of_a_skip_has_its_own_text_and_advice() {
    let unknown = texts_of_skip(SkipReason::Other, None);
    for (at, detail) in SkipDetail::ALL.into_iter().enumerate() {
        let (why, advice) = texts_of_detail(detail);
        assert!(why != unknown.0 && advice != unknown.1, "{} has only the general text", detail.as_str());
        for other in &SkipDetail::ALL[..at] {
            let texts = texts_of_detail(*other);
            assert!(texts.0 != why && texts.1 != advice, "{} and {} share a text", detail.as_str(), other.as_str());
        }
    }
}

#[test]
fn secret_across_the_cut_is_redacted_whole() {
    let secret = format!("ghp_{}", "a1B2".repeat(9));
    for before in (MAX_BODY_CHARS - 50)..MAX_BODY_CHARS {
        let notice = notice(Severity::Info, Trigger::Capacity, &format!("{} {secret} after", "x".repeat(before)));
        let body = notice.body.as_str();
        assert!(!body.contains("ghp") && !body.contains("a1B2"), "{body}");
        assert!(body.chars().count() <= MAX_BODY_CHARS);
    }
    let named = format!("acme-platform-team/{secret}");
    for text in [
        of_skip(SkipReason::MissingCredential, None, Some(&named)).body.as_str().to_owned(),
        note_of_skip(SkipReason::MissingCredential, None, Some(&named)),
    ] {
        assert!(text.contains("acme-platform-team") && !text.contains("ghp") && !text.contains("a1B2"), "{text}");
    }
}

#[test]
fn secret_with_hidden_characters_or_markup_is_redacted() {
    let hidden = format!("ghp_{}\u{200B}{}", "a1B2".repeat(3), "c3D4".repeat(4));
    let in_markup = "see https://user:p`w]:x@host/ and [a](b)";
    for text in [hidden.as_str(), in_markup] {
        let body = notice(Severity::Info, Trigger::Capacity, text).body;
        assert!(body.as_str().contains("[redacted]"), "{body}");
        assert!(!["a1B2", "c3D4", "p`w", "pw"].iter().any(|part| body.as_str().contains(part)), "{body}");
    }
    let linked =
        notice(Severity::Info, Trigger::Capacity, &format!("ghp_{}(https://evil.example)", "a1B2".repeat(9)));
    assert_eq!(linked.body.as_str(), "[redacted] (https://evil.example)");
}

proptest! {
    #[test]
    fn repository_adds_only_its_name_to_a_text(repository in "\\PC{0,80}") {
        let (reason, detail) = (SkipReason::Other, Some(SkipDetail::NoChanges));
        let notice = of_skip(reason, detail, Some(&repository));
        let read = RepositoryName::parse(&repository);
        prop_assert!(read.is_some() || notice.body == of_skip(reason, detail, None).body);
        prop_assert!(fits(notice.body.as_str(), MAX_BODY_CHARS));
        prop_assert!(fits(&note_of_skip(reason, detail, Some(&repository)), MAX_NOTE_CHARS));
    }
}
