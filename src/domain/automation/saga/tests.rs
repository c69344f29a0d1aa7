use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::domain::{
    automation::{
        order,
        plan::{Figures, Unconfirmed},
        signing::Signer,
        skip::WantedMode,
        step::{ChangedPath, Finding, StepInput},
    },
    ids::SessionId,
};

pub(crate) const NOW: Timestamp = Timestamp(1_700_000_000_000_000);

pub(crate) fn plan() -> Plan {
    Plan {
        session_id: SessionId(Uuid::from_u128(7)),
        repository: "octo/hello".into(),
        mode: WantedMode::Github,
        is_dry_run: false,
        at: NOW,
        prompt: "write a file".into(),
        message: String::new(),
        figures: Figures::default(),
        has_token: false,
        branch_name: None,
        base_branch: None,
        issue: None,
        issue_title: None,
        pull_request: None,
        requester: None,
        branch_template: "claude-code/".into(),
        author: None,
        is_draft: false,
        labels: Vec::new(),
        assignees: Vec::new(),
        reviewers: Vec::new(),
        protected_paths: vec![".github/".into()],
        protection: Protection::Draft,
        previous: None,
        earlier_issue: None,
        unconfirmed: None,
    }
}

fn changes(total: u64) -> Changes {
    let file = ChangedPath { path: "a.txt".into(), bytes: 5, is_deleted: false };
    Changes {
        parent: "1".repeat(40),
        tree: "2".repeat(40),
        files: std::iter::repeat_n(file, usize::try_from(total).unwrap()).collect(),
        total,
        ignored: 0,
        summary: None,
        base_branch: Some("main".into()),
        findings: Vec::new(),
        unsafe_paths: Default::default(),
        omitted: Default::default(),
        omitted_total: 0,
        api_obstacle: None,
    }
}

fn preflight() -> Preflight {
    Preflight {
        full_name: "octo/hello".into(),
        default_branch: "main".into(),
        has_issues: true,
        is_fork: false,
        branch_head: None,
        identity: None,
        pull_request: None,
        signing: None,
        could_sign: None,
        target: None,
        target_base: None,
        twin: None,
        requester: None,
    }
}

pub(crate) fn fact_of(step: StepName) -> StepFact {
    let url = || "https://github.test/x".to_owned();
    match step {
        StepName::Changes => StepFact::Changes(changes(1)),
        StepName::Preflight => StepFact::Preflight(preflight().into()),
        StepName::Issue => {
            StepFact::Issue(IssueFact { id: 1, number: 4, url: url(), title: "t".into(), is_adopted: false })
        }
        StepName::Commit => {
            StepFact::Commit(CommitFact { sha: "3".repeat(40), message: "m".into(), is_signed: false })
        }
        StepName::Push => StepFact::Push(PushFact { branch: "b".into(), sha: "3".repeat(40), is_rebased: false }),
        StepName::PullRequest => StepFact::PullRequest(PullRequestFact {
            number: 5,
            url: url(),
            branch: "b".into(),
            is_draft: false,
            is_adopted: false,
            waits_for_approval: false,
        }),
        StepName::Comment => StepFact::Comment { url: url() },
        StepName::Rescue => {
            StepFact::Rescue(RescueFact { bundle_bytes: 1, patch_bytes: 1, is_patch_cut: false, commit: None })
        }
    }
}

fn failed(code: &str, skip: Option<SkipDetail>, remedy: Remedy, retry_at: Option<Timestamp>) -> StepReport {
    let failure = StepFailure { code: code.into(), message: "why".into(), skip, remedy, retry_at };
    StepReport { outcome: StepOutcome::Failed(failure), logs: Vec::new(), rate_remaining: None }
}

fn done(fact: StepFact) -> StepReport {
    StepReport { outcome: StepOutcome::Done(fact), logs: Vec::new(), rate_remaining: None }
}

/// Runs an attempt to its end; `answer` may replace the success of a step. Returns the executed steps.
fn run(
    saga: &mut Saga,
    mut now: Timestamp,
    mut answer: impl FnMut(StepName) -> Option<StepReport>,
) -> (Vec<StepName>, Verdict) {
    let mut steps = Vec::new();
    for _ in 0..60 {
        // What is stored is what continues.
        let stored = serde_json::to_string(&saga).unwrap();
        *saga = serde_json::from_str(&stored).unwrap();
        match saga.next(now) {
            Next::Step(step) => {
                steps.push(step);
                let report = answer(step).unwrap_or_else(|| done(fact_of(step)));
                saga.apply(step, report, now);
            }
            Next::Wait(until) => {
                assert!(until > now);
                now = until;
            }
            Next::End(verdict) => return (steps, verdict),
        }
    }
    panic!("the attempt does not end: {steps:?}");
}

use StepName::{Changes as Look, Comment, Commit, Issue, Preflight as Check, PullRequest, Push, Rescue};

#[test]
fn whole_run_goes_from_changes_to_the_comment() {
    let mut saga = Saga::new(plan(), NOW);
    let (steps, verdict) = run(&mut saga, NOW, |_| None);
    assert_eq!(steps, [Look, Check, Issue, Commit, Push, PullRequest, Comment]);
    assert_eq!(verdict, Verdict::Success);
    assert_eq!(saga.next_attempt(&verdict, NOW), None);
}

#[test]
fn turn_without_changes_touches_nothing_at_github() {
    for (ignored, detail) in [(0, SkipDetail::NoChanges), (3, SkipDetail::NothingStaged)] {
        let mut saga = Saga::new(plan(), NOW);
        let nothing = Changes { ignored, ..changes(0) };
        let (steps, verdict) = run(&mut saga, NOW, |_| Some(done(StepFact::Changes(nothing.clone()))));
        assert_eq!((steps, verdict), (vec![Look], Verdict::Skipped(detail)));
    }
}

#[test]
fn commit_only_pushes_and_a_dry_run_stays_local() {
    let mut saga = Saga::new(Plan { mode: WantedMode::CommitOnly, ..plan() }, NOW);
    assert_eq!(run(&mut saga, NOW, |_| None).0, [Look, Check, Commit, Push]);
    let mut saga = Saga::new(Plan { is_dry_run: true, ..plan() }, NOW);
    assert_eq!(run(&mut saga, NOW, |_| None), (vec![Look, Check, Commit], Verdict::Success));
}

#[test]
fn refused_push_rescues_the_commit_and_opens_no_pull_request() {
    let mut saga = Saga::new(plan(), NOW);
    let refused = |step| (step == Push).then(|| failed("ruleset", Some(SkipDetail::Ruleset), Remedy::Never, None));
    let (steps, verdict) = run(&mut saga, NOW, refused);
    assert_eq!(steps, [Look, Check, Issue, Commit, Push, Rescue]);
    assert_eq!(verdict, Verdict::Skipped(SkipDetail::Ruleset));
    assert_eq!(saga.next_attempt(&verdict, NOW), None, "no repetition changes a rule");
}

#[test]
fn finding_and_protected_path_are_rescued_before_an_issue_exists() {
    let finding = super::super::step::Finding {
        detail: SkipDetail::PushProtection,
        path: "a".into(),
        line: Some(3),
        rule: "token".into(),
    };
    let found = Changes { findings: vec![finding], ..changes(1) };
    let mut saga = Saga::new(plan(), NOW);
    let (steps, verdict) = run(&mut saga, NOW, |step| (step == Look).then(|| done(StepFact::Changes(found.clone()))));
    assert_eq!((steps, verdict), (vec![Look, Commit, Rescue], Verdict::Skipped(SkipDetail::PushProtection)));
    let mut workflow = changes(1);
    workflow.files[0].path = ".github/workflows/ci.yml".into();
    let mut saga = Saga::new(Plan { protection: Protection::Refuse, ..plan() }, NOW);
    let (steps, verdict) =
        run(&mut saga, NOW, |step| (step == Look).then(|| done(StepFact::Changes(workflow.clone()))));
    assert_eq!((steps, verdict), (vec![Look, Commit, Rescue], Verdict::Skipped(SkipDetail::ProtectedPath)));
    let mut saga = Saga::new(plan(), NOW);
    let (_, verdict) = run(&mut saga, NOW, |step| (step == Look).then(|| done(StepFact::Changes(workflow.clone()))));
    assert!(verdict == Verdict::Success && saga.touches_protected(), "the pull request is a draft");
}

#[test]
fn disabled_issues_leave_a_whole_run_and_a_failed_issue_a_partial_one() {
    let mut saga = Saga::new(plan(), NOW);
    let gone = |step| (step == Issue).then(|| failed(ISSUES_DISABLED, None, Remedy::Never, None));
    let (steps, verdict) = run(&mut saga, NOW, gone);
    assert_eq!(steps, [Look, Check, Issue, Commit, Push, PullRequest]);
    assert_eq!(verdict, Verdict::Success);
    let mut saga = Saga::new(plan(), NOW);
    let broken = |step| (step == Issue).then(|| failed("github-unavailable", None, Remedy::Later, None));
    let (steps, verdict) = run(&mut saga, NOW, broken);
    assert_eq!(steps, [Look, Check, Issue, Issue, Issue, Commit, Push, PullRequest]);
    assert!(matches!(&verdict, Verdict::Failed(failure) if failure.code == "github-unavailable"));
    assert!(saga.facts.pull_request.is_some() && saga.next_attempt(&verdict, NOW).is_some());
    saga.retry(NOW);
    let (steps, verdict) = run(&mut saga, NOW, |_| None);
    assert_eq!((steps, verdict), (vec![Check, Issue, Comment], Verdict::Success), "only what is missing is made");
}

#[test]
fn rate_limited_run_is_rescued_and_continues_at_the_stated_time() {
    let mut saga = Saga::new(plan(), NOW);
    let reset = NOW.plus(Duration::from_secs(1800));
    let limited = |step| {
        let detail = Some(SkipDetail::PrimaryLimit);
        (step == Issue).then(|| failed("primary-limit", detail, Remedy::Later, Some(reset)))
    };
    let (steps, verdict) = run(&mut saga, NOW, limited);
    assert_eq!(steps, [Look, Check, Issue, Commit, Rescue]);
    assert_eq!(verdict, Verdict::Skipped(SkipDetail::PrimaryLimit));
    assert_eq!(saga.next_attempt(&verdict, NOW), Some(reset));
    saga.retry(reset);
    let (steps, verdict) = run(&mut saga, reset, |_| None);
    assert_eq!((steps, verdict), (vec![Check, Issue, Push, PullRequest, Comment], Verdict::Success));
    assert_eq!(saga.attempt, 2);
}

#[test]
fn commit_that_was_kept_before_an_identity_was_known_is_made_again_for_its_delivery() {
    let mut saga = Saga::new(plan(), NOW);
    let refused = |step| {
        (step == Check).then(|| failed("token-refused", Some(SkipDetail::TokenRefused), Remedy::NewToken, None))
    };
    assert_eq!(run(&mut saga, NOW, refused).0, [Look, Check, Commit, Rescue]);
    saga.retry(NOW);
    let (steps, verdict) = run(&mut saga, NOW, |_| None);
    assert_eq!((steps, verdict), (vec![Check, Issue, Commit, Push, PullRequest, Comment], Verdict::Success));
}

#[test]
fn unsafe_path_fails_the_run_before_an_issue_exists() {
    let mut named = changes(1);
    let path = crate::domain::automation::step::RefusedPath {
        path: "a/.GIT".into(),
        why: "it is a name of git's own".into(),
    };
    named.unsafe_paths.push(path);
    let mut saga = Saga::new(plan(), NOW);
    let (steps, verdict) = run(&mut saga, NOW, |step| (step == Look).then(|| done(StepFact::Changes(named.clone()))));
    assert_eq!(steps, [Look, Commit, Rescue]);
    assert!(
        matches!(verdict, Verdict::Failed(failure) if failure.code == UNSAFE_PATH && failure.message.contains(".GIT"))
    );
}

#[test]
fn change_of_nothing_but_a_file_that_is_too_large_is_skipped_for_its_size() {
    let mut large = changes(1);
    let (detail, rule) = (SkipDetail::TooLarge, "200000000 bytes".into());
    large.findings.push(Finding { detail, path: "a.bin".into(), line: None, rule });
    let mut saga = Saga::new(plan(), NOW);
    // Without that file there is no commit that could be kept.
    let (steps, verdict) = run(&mut saga, NOW, |step| match step {
        Look => Some(done(StepFact::Changes(large.clone()))),
        Commit => Some(failed("no-changes", Some(SkipDetail::NoChanges), Remedy::Never, None)),
        _ => None,
    });
    assert_eq!((steps, verdict), (vec![Look, Commit], Verdict::Skipped(SkipDetail::TooLarge)));
}

#[test]
fn blocked_branch_name_is_replaced_once() {
    let mut saga = Saga::new(plan(), NOW);
    let taken = |step| (step == Push).then(|| failed(BRANCH_NAME_TAKEN, None, Remedy::Never, None));
    let (steps, verdict) = run(&mut saga, NOW, taken);
    assert_eq!(steps, [Look, Check, Issue, Commit, Push, Push, Rescue]);
    assert!(matches!(verdict, Verdict::Failed(_)) && saga.has_other_name);
}

#[test]
fn push_refused_without_a_signature_is_repeated_with_one_if_that_is_possible() {
    let refused = |code: &'static str| failed(code, Some(SkipDetail::SigningRequired), Remedy::Never, None);
    for (way, expected) in [
        (Some(SigningWay::Key), &[Look, Check, Issue, Commit, Push, Commit, Push, Rescue][..]),
        (Some(SigningWay::Api), &[Look, Check, Issue, Commit, Push, Push, Rescue]),
        (None, &[Look, Check, Issue, Commit, Push, Rescue]),
    ] {
        let mut saga = Saga::new(plan(), NOW);
        let (steps, verdict) = run(&mut saga, NOW, |step| match step {
            Check => Some(done(StepFact::Preflight(Preflight { could_sign: way, ..preflight() }.into()))),
            Push => Some(refused("signing-required")),
            _ => None,
        });
        assert_eq!(
            (steps.as_slice(), &verdict),
            (expected, &Verdict::Skipped(SkipDetail::SigningRequired)),
            "{way:?}"
        );
        assert_eq!(saga.signing(), way);
    }
}

#[test]
fn commit_that_was_kept_without_its_signature_is_made_and_kept_again() {
    let mut saga = Saga::new(plan(), NOW);
    let sha = |text: &str| text.repeat(40);
    let fact = |step, is_signed: bool| {
        let of = |sha: String| Some(done(StepFact::Commit(CommitFact { sha, message: "m".into(), is_signed })));
        match step {
            Commit => of(sha(if is_signed { "5" } else { "3" })),
            Rescue => Some(done(StepFact::Rescue(RescueFact {
                bundle_bytes: 1,
                patch_bytes: 1,
                is_patch_cut: false,
                commit: Some(sha(if is_signed { "5" } else { "3" })),
            }))),
            Push => Some(failed("github-unavailable", None, Remedy::Later, Some(NOW))),
            Check if is_signed => {
                Some(done(StepFact::Preflight(Preflight { signing: Some(SigningWay::Key), ..preflight() }.into())))
            }
            _ => None,
        }
    };
    assert!(run(&mut saga, NOW, |step| fact(step, false)).0.ends_with(&[Push, Rescue]));
    saga.retry(NOW);
    assert_eq!(run(&mut saga, NOW, |step| fact(step, true)).0, [Check, Commit, Push, Rescue]);
    saga.retry(NOW);
    assert_eq!(run(&mut saga, NOW, |step| fact(step, true)).0, [Check, Push], "what is kept is kept");
}

fn target(number: u64, fork: Option<&str>) -> PullTarget {
    PullTarget { number, branch: format!("topic-{number}"), head: "6".repeat(40), fork: fork.map(str::to_owned) }
}

const RUN: Uuid = Uuid::from_u128(9);

fn push_of(saga: &Saga) -> StepInput {
    order::input(saga, RUN, Push, Signer::default()).unwrap()
}

#[test]
fn session_on_a_pull_request_pushes_to_its_branch_and_opens_nothing() {
    for fork in [None, Some("stranger/hello")] {
        let mut saga = Saga::new(Plan { pull_request: Some(8), ..plan() }, NOW);
        let base = Some("release".to_owned());
        let checked = Preflight { target: Some(target(8, fork)), target_base: base, ..preflight() };
        let (steps, verdict) =
            run(&mut saga, NOW, |step| (step == Check).then(|| done(StepFact::Preflight(checked.clone().into()))));
        assert_eq!((steps, verdict), (vec![Look, Check, Commit, Push, PullRequest], Verdict::Success));
        saga.facts.push = None;
        let StepInput::Push { branch, expected, fork: pushed_to, onto, .. } = push_of(&saga) else {
            panic!("a push")
        };
        assert_eq!((branch.as_str(), expected, pushed_to.as_deref()), ("topic-8", Some("1".repeat(40)), fork));
        assert_eq!(onto, None);
        let Ok(StepInput::PullRequest { number, base, .. }) =
            order::input(&saga, RUN, PullRequest, Signer::default())
        else {
            panic!("a pull request")
        };
        assert_eq!((number, base.as_str()), (Some(8), "release"));
    }
}

#[test]
fn change_of_another_open_run_is_adopted_instead_of_opened_again() {
    let mut saga = Saga::new(plan(), NOW);
    let checked = Preflight { twin: Some(target(3, None)), ..preflight() };
    let (steps, verdict) =
        run(&mut saga, NOW, |step| (step == Check).then(|| done(StepFact::Preflight(checked.clone().into()))));
    assert_eq!((steps, verdict), (vec![Look, Check, Commit, Push, PullRequest], Verdict::Success), "no second issue");
    saga.facts.push = None;
    let StepInput::Push { branch, expected, is_twin, .. } = push_of(&saga) else { panic!("a push") };
    assert_eq!((branch.as_str(), expected, is_twin), ("topic-3", Some("6".repeat(40)), true));
}

#[test]
fn turn_after_a_merge_begins_anew_from_the_base() {
    let previous = Previous { branch: "b".into(), head: "4".repeat(40), issue: None, pull_request: Some(5) };
    let merged = Preflight { pull_request: Some(PullRequestState::Merged), ..preflight() };
    let mut saga = Saga::new(Plan { previous: Some(previous), ..plan() }, NOW);
    run(&mut saga, NOW, |step| (step == Check).then(|| done(StepFact::Preflight(merged.clone().into()))));
    saga.facts.push = None;
    let StepInput::Push { branch, expected, onto, .. } = push_of(&saga) else { panic!("a push") };
    assert_eq!((expected, onto.as_deref()), (None, Some("main")));
    assert_ne!(branch, "b");
    saga.plan.unconfirmed = Some(Unconfirmed { branch: "b".into(), commits: vec!["5".repeat(40)] });
    let StepInput::Push { branch, unconfirmed, .. } = push_of(&saga) else { panic!("a push") };
    assert!(branch != "b" && unconfirmed.is_empty(), "the merged branch is done: {branch}");
}

#[test]
fn run_resumes_soon_after_the_runtime_was_replaced_and_later_waits_longer() {
    let mut saga = Saga::new(plan(), NOW);
    let away = |step| (step != Rescue).then(|| failed(RUNTIME_UNAVAILABLE, None, Remedy::Later, None));
    let mut pauses = Vec::new();
    while let (_, verdict) = run(&mut saga, NOW, away)
        && let Some(at) = saga.next_attempt(&verdict, NOW)
    {
        pauses.push(at.since(NOW).as_secs());
        saga.retry(NOW);
    }
    assert_eq!(pauses, [10, 30, 60, 300, 300, 300, 300, 300]);
    let mut saga = Saga::new(plan(), NOW);
    let other = |step| (step == Check).then(|| failed("github-unavailable", None, Remedy::Later, None));
    let (_, verdict) = run(&mut saga, NOW, other);
    assert_eq!(saga.next_attempt(&verdict, NOW), Some(NOW.plus(NEXT_ATTEMPT)), "only the runtime comes back so soon");
}

#[test]
fn log_of_a_run_is_bounded_in_lines_and_in_bytes_and_keeps_the_newest() {
    for line in ["x".repeat(300), "\u{1}".repeat(300), "日".repeat(300), "😀".repeat(300)] {
        let mut saga = Saga::new(plan(), NOW);
        for number in 0..10 {
            let logs = (0..10).map(|_| line.clone()).collect();
            let outcome = StepOutcome::Done(fact_of(Look));
            saga.apply(Look, StepReport { outcome, logs, rate_remaining: None }, NOW);
            saga.logs.pop();
            saga.logs.push(format!("newest {number}"));
        }
        saga.apply(Look, failed("x", None, Remedy::Never, None), NOW);
        let bytes = serde_json::to_string(&saga.logs).unwrap().len();
        assert!(bytes <= MAX_LOG_BYTES + 2 && saga.logs.len() <= MAX_LOG_LINES, "{bytes} {}", saga.logs.len());
        assert!(saga.logs.len() >= 8 && saga.logs.last().unwrap().starts_with("changes failed"), "{:?}", saga.logs);
    }
}

#[test]
fn closed_pull_request_stops_the_run_and_a_merged_one_begins_anew() {
    let previous = Previous { branch: "b".into(), head: "4".repeat(40), issue: None, pull_request: Some(5) };
    let with = |state| {
        move |step| {
            (step == Check)
                .then(|| done(StepFact::Preflight(Preflight { pull_request: Some(state), ..preflight() }.into())))
        }
    };
    let mut saga = Saga::new(Plan { previous: Some(previous.clone()), ..plan() }, NOW);
    let (steps, verdict) = run(&mut saga, NOW, with(PullRequestState::Closed));
    assert_eq!((steps, verdict), (vec![Look, Check, Commit, Rescue], Verdict::Skipped(SkipDetail::ClosedByPerson)));
    let mut saga = Saga::new(Plan { previous: Some(previous.clone()), ..plan() }, NOW);
    let (steps, _) = run(&mut saga, NOW, with(PullRequestState::Merged));
    assert!(saga.open_previous().is_none() && steps.ends_with(&[PullRequest, Comment]));
    let mut saga = Saga::new(Plan { previous: Some(previous), ..plan() }, NOW);
    let (steps, _) = run(&mut saga, NOW, with(PullRequestState::Open));
    assert!(steps.ends_with(&[PullRequest]), "the issue has its comment: {steps:?}");
}

fn any_report(step: StepName) -> impl Strategy<Value = StepReport> {
    let details = prop::option::weighted(0.3, prop::sample::select(SkipDetail::ALL.to_vec()));
    let remedies = prop::sample::select(Remedy::ALL.to_vec());
    let codes = prop::sample::select(vec!["x", ISSUES_DISABLED, BRANCH_NAME_TAKEN]);
    prop_oneof![
        3 => Just(done(fact_of(step))),
        1 => (details, remedies, codes, prop::option::of(Just(NOW.plus(Duration::from_secs(9000)))))
            .prop_map(|(skip, remedy, code, at)| failed(code, skip, remedy, at)),
    ]
}

fn all_reports() -> impl Strategy<Value = Vec<Vec<StepReport>>> {
    let of_step = |step| prop::collection::vec(any_report(step), 8).boxed();
    StepName::ALL.map(of_step).to_vec()
}

proptest! {
    #[test]
    fn every_run_ends_and_no_commit_is_lost(
        reports in all_reports(), is_commit_only in any::<bool>(), attempts in 1_u32..4,
    ) {
        let mode = if is_commit_only { WantedMode::CommitOnly } else { WantedMode::Github };
        let mut saga = Saga::new(Plan { mode, ..plan() }, NOW);
        let mut used = [0_usize; StepName::ALL.len()];
        for attempt in 0..attempts {
            if attempt > 0 {
                saga.retry(NOW);
            }
            let mut checked = false;
            let (steps, verdict) = run(&mut saga, NOW, |step| {
                let at = StepName::ALL.iter().position(|it| *it == step).unwrap();
                let report = reports[at][used[at] % reports[at].len()].clone();
                used[at] += 1;
                checked |= step == Check && matches!(report.outcome, StepOutcome::Done(_));
                assert!(checked || !matches!(step, Issue | Push | PullRequest | Comment), "before the check: {step:?}");
                Some(report)
            });
            for step in [Look, Check, Issue, Commit, PullRequest, Comment, Rescue] {
                let made = steps.iter().filter(|it| **it == step).count();
                prop_assert!(made <= 3, "{step:?} was executed {made} times");
            }
            if saga.facts.commit.is_some() && saga.facts.push.is_none() {
                prop_assert!(saga.facts.rescue.is_some() || saga.has_failed(Rescue), "{steps:?} {verdict:?}");
            }
            if verdict == Verdict::Success {
                prop_assert!(saga.facts.push.is_some());
                prop_assert!(is_commit_only || saga.facts.pull_request.is_some());
            }
            prop_assert!(saga.logs.len() <= MAX_LOG_LINES);
        }
    }
}

#[test]
fn turn_after_a_push_without_an_answer_uses_the_same_branch() {
    let unconfirmed = Unconfirmed { branch: "claude-code/issue-4-earlier".into(), commits: vec!["c".repeat(40)] };
    let mut saga = Saga::new(Plan { unconfirmed: Some(unconfirmed.clone()), ..plan() }, NOW);
    run(&mut saga, NOW, |_| None);
    saga.facts.push = None;
    let StepInput::Push { branch, expected, unconfirmed: commit, .. } = push_of(&saga) else { panic!("a push") };
    assert_eq!((branch, expected, commit), (unconfirmed.branch, None, unconfirmed.commits));
    saga.plan.branch_name = Some("topic".into());
    let StepInput::Push { branch, unconfirmed: commit, .. } = push_of(&saga) else { panic!("a push") };
    assert_eq!((branch.as_str(), commit), ("topic", Vec::new()), "the caller names another branch");
}
