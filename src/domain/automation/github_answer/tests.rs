use super::*;

const NOW: Timestamp = Timestamp(1_800_000_000_000_000);

fn cause(status: u16, message: &str) -> Cause {
    let body = serde_json::json!({"message": message, "documentation_url": "https://docs.github.com/rest"});
    Refusal::of(&Answer { status, body: &body.to_string(), ..Answer::default() }, NOW).cause
}

fn after(seconds: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(seconds))
}

#[test]
fn real_messages_of_github_are_classified() {
    let permission = Cause::Permission { needed: None };
    let secondary = Cause::SecondaryLimit { until: after(60) };
    let ip = "Although you appear to have the correct authorization credentials, the `octo` organization has an IP allow \
              list enabled, and 192.0.2.1 is not permitted to access this resource.";
    let restricted = "Although you appear to have the correct authorization credentials, the `octo` organization has \
                      enabled OAuth App access restrictions, meaning that data access to third-parties is limited.";
    for (status, message, expected) in [
        (301, "Moved Permanently", Cause::Moved),
        (307, "", Cause::Moved),
        (401, "Bad credentials", Cause::Unauthorised),
        (401, "Requires authentication", Cause::Unauthorised),
        (401, "A JSON web token could not be decoded", Cause::Unauthorised),
        (403, "Resource not accessible by integration", permission.clone()),
        (403, "Resource not accessible by personal access token", permission.clone()),
        (403, "Must have admin rights to Repository.", permission.clone()),
        (403, "Forbidden", permission),
        (403, ip, Cause::IpAllowList),
        (403, restricted, Cause::TokenPolicy),
        (
            403,
            "`octo` forbids access via a personal access token (classic). Please use a GitHub App, OAuth App, or a \
             personal access token with fine-grained permissions.",
            Cause::TokenPolicy,
        ),
        (403, "This installation has been suspended", Cause::TokenPolicy),
        (403, "Sorry. Your account was suspended.", Cause::TokenPolicy),
        (
            403,
            "Resource protected by organization SAML enforcement. You must grant your Personal Access token access to \
             this organization.",
            Cause::Sso { link: None },
        ),
        (403, "Repository was archived so is read-only.", Cause::Archived),
        (403, "Unable to create comment because issue is locked.", Cause::Locked),
        (403, "Repository access blocked", Cause::Blocked),
        (451, "Repository access blocked", Cause::Blocked),
        (
            403,
            "You have exceeded a secondary rate limit and have been temporarily blocked from content creation. Please \
             retry your request again later.",
            secondary.clone(),
        ),
        (
            403,
            "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.",
            secondary.clone(),
        ),
        (
            403,
            "You have triggered an abuse detection mechanism. Please wait a few minutes before you try again.",
            secondary.clone(),
        ),
        (403, "Maximum number of login attempts exceeded. Please try again later.", secondary.clone()),
        (429, "Too Many Requests", secondary.clone()),
        (422, "was submitted too quickly", secondary),
        (403, "API rate limit exceeded for installation ID 7.", Cause::PrimaryLimit { until: after(60) }),
        (429, "API rate limit exceeded for user ID 7.", Cause::PrimaryLimit { until: after(60) }),
        (404, "Not Found", Cause::NotFound),
        (409, "Git Repository is empty.", Cause::EmptyRepository),
        (409, "Conflict", Cause::Conflict),
        (410, "Issues are disabled for this repo", Cause::IssuesDisabled),
        (410, "Issues has been disabled in this repository.", Cause::IssuesDisabled),
        (410, "This issue was deleted", Cause::Gone),
        (422, "Validation Failed", Cause::Invalid),
        (500, "", Cause::Unavailable),
        (502, "Server Error", Cause::Unavailable),
        (503, "We're having some problems.", Cause::Unavailable),
        (400, "Problems parsing JSON", Cause::Other),
        (418, "I'm a teapot", Cause::Other),
    ] {
        assert_eq!(cause(status, message), expected, "{status} {message}");
    }
}

fn limit(answer: Answer<'_>) -> Cause {
    Refusal::of(&answer, NOW).cause
}

#[test]
fn secondary_limit_is_recognised_while_quota_is_left() {
    let body = r#"{"message": "You have exceeded a secondary rate limit."}"#;
    let (remaining, reset) = (Some("4999"), Some("1800003000"));
    let answer = Answer { status: 403, rate_remaining: remaining, rate_reset: reset, body, ..Answer::default() };
    assert_eq!(limit(answer), Cause::SecondaryLimit { until: after(60) }, "the reset is that of the hourly quota");
    let timed = Answer { retry_after: Some("7"), ..answer };
    assert_eq!(limit(timed), Cause::SecondaryLimit { until: after(7) });
    let used_up = Answer { rate_remaining: Some("0"), rate_reset: Some("1800000010"), ..answer };
    assert_eq!(limit(used_up), Cause::SecondaryLimit { until: after(11) });
    let by_address =
        r#"{"documentation_url": "https://docs.github.com/rest/overview/rate-limits#about-secondary-rate-limits"}"#;
    assert_eq!(limit(Answer { body: by_address, ..timed }), Cause::SecondaryLimit { until: after(7) });
    let silent = Answer { status: 403, retry_after: Some("5"), body: "", ..Answer::default() };
    assert_eq!(limit(silent), Cause::SecondaryLimit { until: after(5) }, "only limits have the header");
}

#[test]
fn primary_limit_lasts_until_its_reset_and_never_beyond_a_day() {
    let body = r#"{"message": "API rate limit exceeded for user ID 7."}"#;
    let answer = Answer { status: 403, rate_remaining: Some("0"), body, ..Answer::default() };
    for (reset, until) in [
        (Some("1800000100"), after(101)),
        (Some("1700000000"), after(1)),
        (Some("9999999999999999999"), after(60)),
        (Some("9223372036854775807"), after(24 * 3600)),
        (Some("soon"), after(60)),
        (None, after(60)),
    ] {
        assert_eq!(limit(Answer { rate_reset: reset, ..answer }), Cause::PrimaryLimit { until }, "{reset:?}");
    }
    let forbidden = Answer { body: r#"{"message": "Resource not accessible by integration"}"#, ..answer };
    assert_eq!(
        limit(forbidden),
        Cause::Permission { needed: None },
        "the last request of the quota lacked a permission"
    );
    assert_eq!(limit(Answer { body: "", ..answer }), Cause::PrimaryLimit { until: after(60) });
}

#[test]
fn missing_permission_is_named_and_workflows_have_a_detail_of_their_own() {
    let body = r#"{"message": "Resource not accessible by integration"}"#;
    let of = |permissions: &'static str| {
        let accepted_permissions = Some(permissions);
        Refusal::of(&Answer { status: 403, accepted_permissions, body, ..Answer::default() }, NOW)
    };
    let issues = of("issues=write; pull_requests=write");
    assert_eq!(issues.cause, Cause::Permission { needed: Some("issues=write or pull_requests=write".into()) });
    let failure = issues.failure(true);
    assert_eq!((failure.skip, failure.remedy), (Some(SkipDetail::TokenRefused), Remedy::Never));
    assert_eq!(
        failure.message,
        "GitHub answered 403: Resource not accessible by integration. Grant the GitHub App the permission \
         issues=write or pull_requests=write, and accept it in the installation"
    );
    assert!(
        issues
            .failure(false)
            .message
            .ends_with("Use a token with the permission issues=write or pull_requests=write")
    );
    assert_eq!(of("contents=write,workflows=write").failure(true).skip, Some(SkipDetail::WorkflowPermission));
    assert_eq!(of(" ; ").cause, Cause::Permission { needed: None });
}

#[test]
fn sso_refusal_passes_its_link_on() {
    let failure = |sso: &str| {
        let body = r#"{"message": "Resource protected by organization SAML enforcement."}"#;
        Refusal::of(&Answer { status: 403, sso: Some(sso), body, ..Answer::default() }, NOW).failure(false)
    };
    let link = "https://github.com/orgs/octo/sso?authorization_request=AZSCKtL4U8yX1H3sCQIVnVgmjmon5fWxks5YrqhJ";
    let whole = failure(&format!("required; url={link}"));
    assert_eq!(whole.skip, Some(SkipDetail::Sso));
    assert!(whole.message.ends_with(link) && whole.message.chars().count() <= 300, "{}", whole.message);
    let long = failure(&format!("required; url={link}{}", "A".repeat(500)));
    assert!(long.message.ends_with("sign-on: https://github.com/orgs/octo/sso"), "{}", long.message);
    for bad in ["required", "required; url=javascript:alert(1)", "required; url=https://x/<b>"] {
        assert!(failure(bad).message.ends_with("single sign-on of the organisation"), "{bad}");
    }
}

#[test]
fn entries_of_a_422_are_read_in_every_form() {
    let of = |body: &str| Refusal::of(&Answer { status: 422, body, ..Answer::default() }, NOW);
    let exists = of(r#"{"message": "Validation Failed", "errors": [{"resource": "PullRequest", "code": "custom",
        "message": "A pull request already exists for octo:a/b."}]}"#);
    assert!(exists.mentions("pull request already exists") && !exists.is_about("head"));
    assert_eq!(exists.message, "Validation Failed; A pull request already exists for octo:a/b.");
    let head = of(
        r#"{"message": "Validation Failed", "errors": [{"resource": "PullRequest", "field": "head", "code": "invalid"}]}"#,
    );
    assert!(head.is_about("head") && !head.is_about("base"));
    assert_eq!(head.message, "Validation Failed; head invalid");
    assert!(of(r#"{"message": "x", "errors": ["No commits between main and b"]}"#).mentions("no commits between"));
    assert!(
        of(r#"{"errors": "Draft pull requests are not supported in this repository."}"#)
            .mentions("draft pull requests")
    );
    for odd in ["", "[]", "7", "<html>", r#"{"errors": [null, 7, {"field": {}}]}"#, r#"{"message": 7}"#] {
        assert_eq!(of(odd).cause, Cause::Invalid, "{odd}");
    }
    let many = format!(r#"{{"errors": [{}7]}}"#, r#""x","#.repeat(100_000));
    assert_eq!(of(&many).errors.len(), MAX_ERRORS);
}

#[test]
fn failure_states_what_may_help() {
    let failure = |status, message: &str, is_app| {
        let body = serde_json::json!({"message": message}).to_string();
        Refusal::of(&Answer { status, body: &body, ..Answer::default() }, NOW).failure(is_app)
    };
    for (status, message, is_app, code, remedy) in [
        (401, "Bad credentials", false, "token-refused", Remedy::NewToken),
        (404, "Not Found", true, "no-installation", Remedy::Never),
        (404, "Not Found", false, "token-refused", Remedy::Never),
        (410, "Issues are disabled for this repo", false, "issues-disabled", Remedy::Never),
        (502, "", false, "github-unavailable", Remedy::Later),
        (422, "Validation Failed", false, "github-refused", Remedy::Never),
        (451, "", false, "repository-blocked", Remedy::Never),
        (429, "", false, "secondary-limit", Remedy::Later),
    ] {
        let made = failure(status, message, is_app);
        assert_eq!((made.code.as_str(), made.remedy), (code, remedy), "{status} {message}");
        assert_eq!(made.skip.map_or(code, SkipDetail::as_str), code);
        assert_eq!(made.retry_at, (status == 429).then(|| after(60)));
    }
    assert_eq!(
        failure(410, "Issues are disabled for this repo", false).skip,
        None,
        "the run continues without an issue"
    );
}

#[test]
fn text_of_github_is_shown_without_markup_and_secrets_within_its_bound() {
    let body = serde_json::json!({"message": format!("<img> ghp_{} \u{202e}{}", "a1".repeat(20), "x".repeat(999))});
    let refusal = Refusal::of(&Answer { status: 400, body: &body.to_string(), ..Answer::default() }, NOW);
    let failure = refusal.failure(false);
    assert!(failure.message.contains("‹img› [redacted]"), "{}", failure.message);
    assert!(failure.message.chars().count() <= 300 && failure.message.ends_with("The request is not repeated"));
    let page = format!("<html>{}", "bad gateway ".repeat(10_000));
    let refusal = Refusal::of(&Answer { status: 502, body: &page, ..Answer::default() }, NOW);
    assert!(refusal.message.starts_with("‹html›bad gateway") && refusal.message.chars().count() <= 200);
    assert_eq!(Refusal::unavailable(None, "no\nanswer").to_string(), "no answer");
}

#[test]
fn errors_of_graphql_with_status_200_are_classified_by_type_and_text() {
    let limit = "API rate limit exceeded for installation ID 7.";
    let secondary = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.";
    let stale = "Expected branch to point to \"0\" but it did not. Pull and try again.";
    let wrong = "Something went wrong while executing your query. Please include `A1` when reporting this issue.";
    let lacks = Cause::Permission { needed: None };
    for (kind, message, expected) in [
        ("RATE_LIMITED", limit, Cause::PrimaryLimit { until: after(120) }),
        ("RATE_LIMITED", secondary, Cause::SecondaryLimit { until: after(120) }),
        ("STALE_DATA", stale, Cause::Stale),
        ("", stale, Cause::Stale),
        ("NOT_FOUND", "Could not resolve to a Repository with the name 'octo/hello'.", Cause::NotFound),
        ("FORBIDDEN", "Resource not accessible by integration", lacks.clone()),
        ("INSUFFICIENT_SCOPES", "Your token has not been granted the required scopes.", lacks),
        ("FORBIDDEN", "Resource protected by organization SAML enforcement.", Cause::Sso { link: None }),
        ("", wrong, Cause::Unavailable),
        ("UNPROCESSABLE", "A path was requested for deletion which does not exist", Cause::Invalid),
    ] {
        let body = serde_json::json!({"data": null, "errors": [{"type": kind, "message": message}]}).to_string();
        let retry_after = kind.starts_with("RATE").then_some("120");
        let answer = Answer { status: 200, body: &body, retry_after, ..Answer::default() };
        let refusal = Refusal::of_graphql(&answer, NOW).unwrap();
        assert_eq!(refusal.cause, expected, "{kind} {message}");
        assert!(!refusal.message.is_empty() && refusal.failure(true).message.chars().count() <= 300);
    }
    for body in [r#"{"data": {"a": 1}}"#, r#"{"data": {}, "errors": []}"#, "no JSON", "[]"] {
        assert_eq!(Refusal::of_graphql(&Answer { status: 200, body, ..Answer::default() }, NOW), None, "{body}");
    }
}
