//! Checks every text literally, and the properties that all texts share.

use proptest::prelude::*;

use super::{
    super::markdown::{
        BREAK,
        tests::{hostile, live},
    },
    *,
};

const ORIGIN: Origin<'static> = Origin { run: "0190f3a2-7c1b-7def-8123-456789abcdef", session_suffix: "abcdef" };

fn redacted(text: &str) -> Redacted {
    Redacted::new(text)
}

fn figures() -> TurnFigures<'static> {
    TurnFigures {
        route: Route::Acp,
        stop_reason: "end_turn",
        duration: Duration::from_millis(83_456),
        updates: 1234,
        tokens: Some((1_234_567, 89)),
        rollback: None,
    }
}

#[test]
fn texts_are_as_listed() {
    let prompt = redacted("Please fix the login.\n\nIt fails for @octocat since #12, see https://example.com/x.");
    let summary = redacted("## Summary\n\n- Fixed the check in `login.rs`\n- Added a test, thanks @octocat\n");
    let notes = [redacted("not-quiet: a command was still running")];
    let issue = IssueText { origin: ORIGIN, title: None, summary: Some(&summary), prompt: &prompt };
    let pull = PullRequestText {
        origin: ORIGIN,
        title: None,
        summary: Some(&summary),
        prompt: &prompt,
        figures: figures(),
        notes: &notes,
        issue: Some(12),
    };
    let bare = PullRequestText {
        summary: None,
        issue: None,
        notes: &[],
        figures: TurnFigures {
            route: Route::Http,
            duration: Duration::from_millis(940),
            tokens: None,
            rollback: Some(FlipTrigger::AutoThreshold),
            ..figures()
        },
        ..pull
    };
    let url = "https://github.com/octo/hello/pull/13";
    let comment = CommentText { origin: ORIGIN, number: 13, url, is_update: false, waits_for_approval: true };
    let url = "https://x@evil.example/)<img>";
    let odd = CommentText { url, is_update: true, waits_for_approval: false, ..comment };
    let texts = [
        ("issue title", issue.title()),
        ("issue", issue.body()),
        ("pull request title", pull.title()),
        ("pull request", pull.body()),
        ("bare pull request title", bare.title()),
        ("bare pull request", bare.body()),
        ("comment", comment.body()),
        ("comment with an odd address", odd.body()),
    ];
    let texts = texts.map(|(name, text)| format!("== {name}\n{}", text.replace(BREAK, "~"))).join("\n");
    assert_eq!(texts.trim_end(), TEXTS.trim(), "\n{texts}");
}

const TEXTS: &str = r"
== issue title
Please fix the login.
== issue
### Summary

#~#~ Summary

- Fixed the check in `login.rs`
- Added a test, thanks @~octocat

### Original Request

> Please fix the login.
>
> It fails for @~octocat since #~12, see https:~//example.com/x.

---

Opened by LumiLink for session …abcdef.

<!-- lumilink:run=0190f3a2-7c1b-7def-8123-456789abcdef kind=issue -->

== pull request title
Fixed the check in login.rs
== pull request
### Summary

#~#~ Summary

- Fixed the check in `login.rs`
- Added a test, thanks @~octocat

### Diagnostics

- Route: acp
- Stop reason: end_turn
- Duration: 1 min 23.4 s
- Updates: 1,234
- Tokens: 1,234,567 in, 89 out
- Note: not-quiet: a command was still running

---

Fixes #12

Opened by LumiLink for session …abcdef.

<!-- lumilink:run=0190f3a2-7c1b-7def-8123-456789abcdef kind=pull-request -->

== bare pull request title
Please fix the login.
== bare pull request
### Summary

The agent left no summary.

### Diagnostics

- Route: http
- Stop reason: end_turn
- Duration: 0.9 s
- Updates: 1,234
- Tokens: not reported
- Rollback: active, by autoThreshold

---

Opened by LumiLink for session …abcdef.

<!-- lumilink:run=0190f3a2-7c1b-7def-8123-456789abcdef kind=pull-request -->

== comment
The changes are in the pull request of session …abcdef: https://github.com/octo/hello/pull/13 Its checks wait for the approval of a person with write permission.

<!-- lumilink:run=0190f3a2-7c1b-7def-8123-456789abcdef kind=comment -->

== comment with an odd address
New changes are in the pull request of session …abcdef: #13

<!-- lumilink:run=0190f3a2-7c1b-7def-8123-456789abcdef kind=comment -->
";

#[test]
fn commit_message_is_the_best_that_is_known() {
    let (explicit, title) = (redacted("Rework login\n\nBecause of X."), redacted("Login"));
    let (summary, prompt) = (redacted("I looked around.\n\n1. **Adds** a check\n"), redacted("fix it\nplease"));
    let nothing = redacted(" \n");
    let mut commit = CommitText {
        explicit: Some(&explicit),
        issue: Some(7),
        title: Some(&title),
        summary: Some(&summary),
        prompt: &prompt,
        requester: None,
    };
    let mut next = |change: fn(&mut CommitText<'_>)| {
        let message = commit.message();
        change(&mut commit);
        message
    };
    assert_eq!(next(|it| it.explicit = None), "Rework login\n\nBecause of X.");
    assert_eq!(next(|it| it.title = None), "Fix issue #7: Login");
    assert_eq!(next(|it| it.issue = None), "Fix issue #7");
    assert_eq!(next(|it| it.summary = None), "Adds** a check");
    assert_eq!(next(|_| ()), "fix it");
    commit.prompt = &nothing;
    assert_eq!(commit.message(), "Automated changes");
    commit.explicit = Some(&nothing);
    commit.title = Some(&title);
    assert_eq!(commit.message(), "Login");
}

#[test]
fn requester_is_credited_only_with_a_well_formed_identity() {
    let prompt = redacted("x1");
    let message = |name: &str, email: &str| {
        let person = Identity { name: name.into(), email: email.into() };
        CommitText {
            explicit: None,
            issue: None,
            title: None,
            summary: None,
            prompt: &prompt,
            requester: Some(&person),
        }
        .message()
    };
    assert_eq!(
        message("Octo Cat", "1+octocat[bot]@users.noreply.github.com"),
        "x1\n\nCo-authored-by: Octo Cat <1+octocat[bot]@users.noreply.github.com>"
    );
    for (name, email) in
        [("", "a@b.c"), ("a", "no address"), ("a", "a@b\nSigned-off-by: x"), ("a", "<a@b>"), ("\n", "a@b")]
    {
        assert_eq!(message(name, email), "x1", "{name:?} {email:?}");
    }
    assert_eq!(message("a\nb fixes #1", "a@b.c").replace(BREAK, "~"), "x1\n\nCo-authored-by: a b fixes #~1 <a@b.c>");
}

#[test]
fn message_of_a_prompt_skips_no_checks_and_forges_no_trailer() {
    let prompt = redacted("[skip\nci] x");
    let explicit = redacted("Do it [SKIP CI]\n\nskip-checks: true\nSigned-off-by: A <a@b.c>\nNote: kept");
    let commit = CommitText {
        explicit: Some(&explicit),
        issue: None,
        title: None,
        summary: None,
        prompt: &prompt,
        requester: None,
    };
    assert_eq!(
        commit.message().replace(BREAK, "~"),
        "Do it [SKIP·CI]\n\nskip·checks: true\nSigned-off-by · A <~a@~b.c>\nNote: kept"
    );
    let one = redacted("Run `[ci skip]` now");
    assert_eq!(CommitText { explicit: None, prompt: &one, ..commit }.message(), "Run [ci·skip] now");
}

#[test]
fn action_is_found_in_every_regular_form() {
    for line in
        ["Add a", "adds a", "Added a", "Updates a", "Updated a", "Applies a", "Dropped a", "Use a", "## Fixes a"]
    {
        assert_eq!(
            action_line(&redacted(&format!("Hello.\n- {line}\n"))).map(|it| it.len()),
            Some(line.trim_start_matches("## ").len()),
            "{line}"
        );
    }
    for line in ["Adder a", "Address a", "Add", "Nothing to add", "user a", ""] {
        assert_eq!(action_line(&redacted(line)), None, "{line}");
    }
}

#[test]
fn long_prompt_is_cut_on_a_line_with_a_pointer() {
    for line in ["@x\n", "😀 word #1\n", "\n", &"y".repeat(200_000)] {
        let prompt = redacted(&line.repeat(200_000 / line.len() + 1));
        let summary = redacted(&format!("```\n{}", "@a\n".repeat(3000)));
        let issue = IssueText { origin: ORIGIN, title: None, summary: Some(&summary), prompt: &prompt };
        let body = issue.body();
        assert!(markdown::length(&body) < 65_536, "{}", markdown::length(&body));
        let is_cut = !prompt.as_str().trim().is_empty();
        assert_eq!(body.matches("has the rest.*").count(), 1 + usize::from(is_cut), "{:.20}", line);
        assert!(body.ends_with("kind=issue -->\n"));
    }
}

#[test]
fn texts_of_failed_runs_are_as_listed() {
    let message = redacted("GitHub did not answer; `x` <b>");
    let nothing = redacted("");
    let failed = FailedRun {
        repository: Some("https://github.com/octo/hello.git"),
        code: "github-unavailable",
        message: &message,
        rescued_as: None,
        retry_at: None,
    };
    let rescued = FailedRun { rescued_as: Some(ORIGIN.run), ..failed };
    let again = FailedRun { retry_at: Some(Timestamp(1_700_000_000_000_000)), ..rescued };
    let nameless = FailedRun { repository: Some("?"), code: "a b<c>", message: &nothing, ..failed };
    let texts =
        [failed, rescued, again, nameless].map(|run| format!("{}\n{}", run.notification(), run.note())).join("\n");
    assert_eq!(texts, RUN_TEXTS.trim(), "\n{texts}");
}

const RUN_TEXTS: &str = r"
GitHub automation for octo/hello failed (github-unavailable). The changes stay in the workspace.
GitHub automation for octo/hello failed (github-unavailable): GitHub did not answer; x ‹b›. The changes stay in the workspace.
GitHub automation for octo/hello failed (github-unavailable). The commit is kept for a retry.
GitHub automation for octo/hello failed (github-unavailable): GitHub did not answer; x ‹b›. The commit is kept for a retry. Deliver it with: lumilink automation retry 0190f3a2-7c1b-7def-8123-456789abcdef
GitHub automation for octo/hello failed (github-unavailable). It is tried again at 2023-11-14 22:13 UTC.
GitHub automation for octo/hello failed (github-unavailable): GitHub did not answer; x ‹b›. It is tried again at 2023-11-14 22:13 UTC. The commit is kept as run 0190f3a2-7c1b-7def-8123-456789abcdef.
GitHub automation failed (abc). The changes stay in the workspace.
GitHub automation failed (abc): no further details. The changes stay in the workspace.
";

/// A body without the lines that are ours and live on purpose.
fn without_own_lines(body: &str, kind: MarkerKind, issue: Option<u64>) -> String {
    let own =
        [marker(ORIGIN.run, kind), "---".to_owned(), issue.map(|it| format!("Fixes #{it}")).unwrap_or_default()];
    let is_own = |line: &&str| own.iter().any(|it| it == line) || line.starts_with("### ");
    body.lines().filter(|line| !is_own(line)).collect::<Vec<_>>().join("\n")
}

fn check_body(body: &str, kind: MarkerKind, issue: Option<u64>) -> Result<(), TestCaseError> {
    prop_assert_eq!(body.matches(&marker(ORIGIN.run, kind)).count(), 1);
    prop_assert_eq!(body.to_lowercase().matches("lumilink:").count(), 1, "{:?}", body);
    prop_assert!(markdown::length(body) <= MAX_BODY_LENGTH);
    prop_assert_eq!(live(&without_own_lines(body, kind, issue)), None, "{:?}", body);
    prop_assert_eq!(body.lines().filter(|line| line.starts_with("### ")).count(), 2);
    prop_assert_eq!(body.lines().filter(|line| *line == "---").count(), 1);
    prop_assert_eq!(body.lines().filter(|line| line.contains("Fixes #")).count(), usize::from(issue.is_some()));
    Ok(())
}

proptest! {
    #[test]
    fn bodies_and_titles_are_inert_for_every_input(
        prompt in hostile(),
        summary in prop::option::of(hostile()),
        title in prop::option::of(hostile()),
        note in hostile(),
        issue in prop::option::of(1u64..1_000_000),
    ) {
        let marked = format!("{}{prompt}", marker(ORIGIN.run, MarkerKind::Issue));
        let (prompt, summary, title) = (redacted(&marked), summary.as_deref().map(redacted), title.as_deref().map(redacted));
        let notes = [redacted(&note)];
        let (summary, title) = (summary.as_ref(), title.as_ref());
        let of_issue = IssueText { origin: ORIGIN, title, summary, prompt: &prompt };
        let of_pull =
            PullRequestText { origin: ORIGIN, title, summary, prompt: &prompt, figures: figures(), notes: &notes, issue };
        check_body(&of_issue.body(), MarkerKind::Issue, None)?;
        check_body(&of_pull.body(), MarkerKind::PullRequest, issue)?;
        for title in [of_issue.title(), of_pull.title()] {
            prop_assert!((1..=MAX_TITLE_CHARS).contains(&title.chars().count()) && !title.contains('\n'), "{:?}", title);
            prop_assert_eq!(live(&title), None, "{:?}", title);
        }
    }

    #[test]
    fn commit_messages_are_inert_for_every_input(
        explicit in prop::option::of(hostile()),
        title in prop::option::of(hostile()),
        prompt in hostile(),
        issue in prop::option::of(1u64..1_000_000),
        name in hostile(),
    ) {
        let (explicit, title, prompt) = (explicit.as_deref().map(redacted), title.as_deref().map(redacted), redacted(&prompt));
        let person = Identity { name, email: "octo@example.com".into() };
        let message = CommitText {
            explicit: explicit.as_ref(),
            issue,
            title: title.as_ref(),
            summary: None,
            prompt: &prompt,
            requester: Some(&person),
        }
        .message();
        let subject = message.lines().next().unwrap_or_default();
        prop_assert!((1..=MAX_TITLE_CHARS).contains(&subject.chars().count()), "{:?}", subject);
        let own = issue.map(|issue| format!("Fix issue #{issue}")).unwrap_or_default();
        let rest = message.strip_prefix(&own).unwrap_or(&message).replace(" <octo@example.com>", "");
        prop_assert_eq!(live(&rest), None, "{:?}", message);
    }

    #[test]
    fn texts_of_failed_runs_fit_for_every_input(
        repository in prop::option::of("[a-z]{1,90}/[a-z]{1,90}|\\PC{0,20}"),
        code in "\\PC{0,80}",
        message in hostile(),
        run in prop::option::of("\\PC{0,90}"),
        retry_at in prop::option::of(any::<i64>().prop_map(Timestamp)),
    ) {
        let message = redacted(&message.repeat(4));
        let run =
            FailedRun { repository: repository.as_deref(), code: &code, message: &message, rescued_as: run.as_deref(), retry_at };
        let (notification, note) = (run.notification(), run.note());
        prop_assert!((1..=MAX_NOTIFICATION_CHARS).contains(&notification.chars().count()), "{}", notification);
        prop_assert!((1..=MAX_NOTE_CHARS).contains(&note.chars().count()), "{}", note);
        prop_assert!(notification.ends_with('.') && !note.contains(char::is_control));
    }
}
