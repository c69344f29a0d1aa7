//! Reads why GitHub rejects a push, from the lines that git prints and from the status of the answer.

use super::{
    skip::SkipDetail,
    step::{Remedy, StepFailure},
};
use crate::domain::{redaction::Redacted, text};

/// Longest message of a failure, in characters.
const MAX_MESSAGE_CHARS: usize = 300;
/// Longest rule or path in a message, in characters.
const MAX_RULE_CHARS: usize = 120;

/// The meaning of a rejected push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// The branch has commits that the push does not contain.
    Moved,
    /// Final for this commit, or to be repeated later.
    Refused(StepFailure),
}

fn failure(code: &str, skip: Option<SkipDetail>, remedy: Remedy, message: &str) -> StepFailure {
    let message = text::cut(&text::one_line(Redacted::new(message).as_str()), MAX_MESSAGE_CHARS);
    StepFailure { code: code.to_owned(), message, skip, remedy, retry_at: None }
}

fn skipped(detail: SkipDetail, message: &str) -> StepFailure {
    let remedy = match detail {
        SkipDetail::TokenRefused | SkipDetail::WorkflowPermission | SkipDetail::Sso => Remedy::NewToken,
        SkipDetail::SecondaryLimit => Remedy::Later,
        _ => Remedy::Never,
    };
    failure(detail.as_str(), Some(detail), remedy, message)
}

/// The lines of the server, without their prefix and the spaces with which git pads them.
fn remote_lines(output: &str) -> Vec<&str> {
    // A terminal's `\x1b[K` follows each line if git takes the output for one.
    let lines = output.split(['\n', '\r']).filter_map(|line| line.trim_start().strip_prefix("remote:"));
    lines.map(|line| line.trim_end_matches("\u{1b}[K").trim_end()).collect()
}

/// Reads the output of a failed `git push`: stdout and stderr.
pub(crate) fn of_push(output: &str) -> Rejection {
    let lines = remote_lines(output);
    let status = output.lines().find(|line| line.trim_start().starts_with('!')).unwrap_or_default();
    let all = lines.join("\n");
    let says = |what: &str| all.contains(what) || status.contains(what);
    if says("GH013") {
        return Rejection::Refused(of_rules(&lines));
    }
    if says("GH001") || says("exceeds GitHub's file size limit") || says("pack exceeds maximum allowed size") {
        return Rejection::Refused(of_size(&lines));
    }
    if says("GH006") {
        return Rejection::Refused(of_protected_branch(&lines));
    }
    if says("GH007") {
        let message = "GitHub refuses a private e-mail address as author (GH007): configure the noreply address of the \
                       account as author";
        return Rejection::Refused(failure("private-email", None, Remedy::Never, message));
    }
    if says("GH008") {
        return Rejection::Refused(skipped(
            SkipDetail::Lfs,
            "The commit names files that are not in Git LFS (GH008)",
        ));
    }
    if let Some(workflow) = of_workflow(status).or_else(|| lines.iter().find_map(|line| of_workflow(line))) {
        return Rejection::Refused(workflow);
    }
    if says("cannot lock ref") && (says("exists; cannot create") || says("directory file conflict"))
        || says("directory file conflict")
    {
        let message = "A branch of the repository has the name of a folder of the branch, or the reverse";
        return Rejection::Refused(failure("branch-name-taken", None, Remedy::Never, message));
    }
    let moved = ["non-fast-forward", "fetch first", "stale info", "cannot lock ref", "reference already exists"];
    if moved.iter().any(|what| says(what)) {
        return Rejection::Moved;
    }
    // Trouble of the server itself; its text follows the status.
    let inner = [
        "Internal Server Error",
        "fatal error in commit_refs",
        "(failure)",
        "unpacker error",
        "failed to update ref",
    ];
    if status.is_empty() || inner.iter().any(|what| says(what)) {
        let message = format!("GitHub could not take the push: {}", last_words(&lines, status));
        return Rejection::Refused(failure("github-unavailable", None, Remedy::Later, &message));
    }
    let message = format!("GitHub rejected the push: {}", last_words(&lines, status));
    Rejection::Refused(failure("push-rejected", None, Remedy::Never, &message))
}

fn last_words(lines: &[&str], status: &str) -> String {
    let line = lines.iter().map(|line| line.trim()).find(|line| !line.is_empty()).unwrap_or_default();
    let reason = status.rsplit_once('\t').map_or(status, |(_, reason)| reason).trim();
    match (line, reason) {
        ("", "") => "it gave no reason".to_owned(),
        (line, "") => line.to_owned(),
        ("", reason) => reason.to_owned(),
        (line, reason) => format!("{line} {reason}"),
    }
}

/// GH001: names the first file.
fn of_size(lines: &[&str]) -> StepFailure {
    let file = lines.iter().find_map(|line| {
        let rest = line.split_once("File ")?.1;
        let (path, size) = rest.split_once(" is ")?;
        Some(format!(": {} is {}", text::cut(path, MAX_RULE_CHARS), size.split(';').next().unwrap_or_default()))
    });
    let message = format!("A file exceeds GitHub's size limit{}. Use Git LFS or ignore it", file.unwrap_or_default());
    skipped(SkipDetail::TooLarge, &message)
}

/// Lines after the first one that describe the rules, one each.
fn of_protected_branch(lines: &[&str]) -> StepFailure {
    let head = lines.iter().position(|line| line.contains("GH006")).unwrap_or_default();
    let rules =
        lines.iter().skip(head + 1).map(|line| line.trim().trim_start_matches("error: ").trim_start_matches("- "));
    let rules: Vec<_> = rules.filter(|rule| !rule.is_empty()).map(str::to_owned).collect();
    by_rules(&rules, None)
}

/// GH013: a list of rules, each of which begins with `- `.
fn of_rules(lines: &[&str]) -> StepFailure {
    if lines.iter().any(|line| line.contains("PUSH PROTECTION") || line.contains("cannot contain secrets")) {
        return of_push_protection(lines);
    }
    let is_rule = |line: &&&str| line.trim_start().starts_with("- ") && !line.starts_with("   ");
    let rules: Vec<_> = lines.iter().filter(is_rule).map(|line| line.trim()[2..].trim().to_owned()).collect();
    let link = lines.iter().find_map(|line| line.split_whitespace().find(|word| is_rules_link(word)));
    by_rules(&rules, link)
}

fn is_rules_link(word: &str) -> bool {
    word.starts_with("https://") && word.contains("/rules")
}

fn by_rules(rules: &[String], link: Option<&str>) -> StepFailure {
    let named: Vec<_> = rules.iter().map(|rule| text::cut(rule.trim_end_matches('.'), MAX_RULE_CHARS)).collect();
    let named = if named.is_empty() { "it names none".to_owned() } else { named.join("; ") };
    let link = link.map(|link| format!(". See {link}")).unwrap_or_default();
    // The link survives a cut of the rules.
    let room = MAX_MESSAGE_CHARS.saturating_sub(link.chars().count() + 40);
    let message = format!("Rules of the repository refuse the push: {}{link}", text::cut(&named, room));
    let has_rule = |what: &str| rules.iter().any(|rule| rule.to_lowercase().contains(what));
    // A signature alone would be missing; with other rules it would not be enough.
    let needs_only_signature = has_rule("verified signature") && rules.len() == 1;
    skipped(if needs_only_signature { SkipDetail::SigningRequired } else { SkipDetail::Ruleset }, &message)
}

/// Push protection: kinds of secrets and their places. The links that allow a secret are never passed on.
fn of_push_protection(lines: &[&str]) -> StepFailure {
    let kind = lines.iter().find_map(|line| {
        let name = line.trim().trim_matches(|c: char| matches!(c, '—' | '-' | '─' | ' '));
        let is_head = line.trim().starts_with(['—', '─']) && !name.is_empty() && !name.starts_with("GITHUB");
        is_head.then(|| text::cut(name, MAX_RULE_CHARS))
    });
    let places = lines.iter().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("path:"));
    let places: Vec<_> = places.map(|place| text::cut(place.trim(), MAX_RULE_CHARS)).take(3).collect();
    let kind = kind.unwrap_or_else(|| "a secret".to_owned());
    let at = if places.is_empty() { String::new() } else { format!(" at {}", places.join(", ")) };
    skipped(
        SkipDetail::PushProtection,
        &format!("GitHub's push protection found {kind}{at}. Remove it from the change"),
    )
}

/// `refusing to allow a GitHub App to create or update workflow …`.
fn of_workflow(line: &str) -> Option<StepFailure> {
    let (_, rest) = line.split_once("refusing to allow ")?;
    let (_, workflow) = rest.split_once("workflow `").or_else(|| rest.split_once("workflow "))?;
    let path = workflow.split(['`', ' ']).next().unwrap_or_default();
    let advice = match rest.contains("GitHub App") {
        true => "grant the App the permission `workflows` and accept it in the installation",
        false => "use a token with the scope `workflow`",
    };
    let message = format!("The token may not change the workflow {}: {advice}", text::cut(path, MAX_RULE_CHARS));
    Some(skipped(SkipDetail::WorkflowPermission, &message))
}

/// Reads an answer of git's HTTP interface with an error status. `body` is its text, `sso` the header `X-GitHub-SSO`.
pub(crate) fn of_status(status: u16, body: &str, sso: Option<&str>) -> StepFailure {
    let lines: Vec<_> = body.lines().map(|line| line.trim().trim_start_matches("remote:").trim()).collect();
    let all = lines.join(" ");
    let says = |what: &str| all.contains(what);
    let detail = text::cut(&all, MAX_RULE_CHARS);
    let url = sso.and_then(|header| header.split("url=").nth(1)).and_then(|url| url.split(';').next());
    match status {
        401 => skipped(SkipDetail::TokenRefused, "GitHub refused the token as invalid or expired (401)"),
        403 | 404 if url.is_some() || says("SAML SSO") || says("SAML single sign-on") => {
            let link = url.map(|url| format!(": {url}")).unwrap_or_default();
            let message = format!("The organisation demands that the token is authorised for single sign-on{link}");
            skipped(SkipDetail::Sso, &message)
        }
        403 if says("IP allow list") => skipped(
            SkipDetail::IpAllowList,
            "The organisation's IP allow list does not have the address of this service",
        ),
        403 if says("archived") => skipped(SkipDetail::Archived, "The repository is archived, and takes no push"),
        429 => skipped(SkipDetail::SecondaryLimit, &format!("GitHub limits the rate of requests: {detail}")),
        403 if says("rate limit") || says("abuse") => {
            skipped(SkipDetail::SecondaryLimit, &format!("GitHub limits the rate of requests: {detail}"))
        }
        403 => {
            skipped(SkipDetail::TokenRefused, &format!("The token may not write to the repository (403): {detail}"))
        }
        404 => {
            let message =
                "The token does not reach the repository (404): it does not exist, or the App is not installed on it";
            skipped(SkipDetail::TokenRefused, message)
        }
        413 => skipped(SkipDetail::TooLarge, "GitHub refused the push as too large (413)"),
        408 | 500.. => failure(
            "github-unavailable",
            None,
            Remedy::Later,
            &format!("GitHub answered with status {status}: {detail}"),
        ),
        _ => {
            failure("push-rejected", None, Remedy::Never, &format!("GitHub answered with status {status}: {detail}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(output: &str) -> StepFailure {
        match of_push(output) {
            Rejection::Refused(failure) => failure,
            Rejection::Moved => panic!("moved: {output}"),
        }
    }

    #[test]
    fn large_files_are_named_with_their_size() {
        let found = refused(
            "remote: error: Trace: 0f3c5c1c7bb5d5b9c4f7a6a0f2c4f0d1        \n\
             remote: error: See https://gh.io/lfs for more information.        \n\
             remote: error: File data/big.bin is 120.00 MB; this exceeds GitHub's file size limit of 100.00 MB        \n\
             remote: error: GH001: Large files detected. You may want to try Git Large File Storage - https://git-lfs.github.com.        \n\
             To http://127.0.0.1/o/r\n!\trefs/heads/b:refs/heads/b\t[remote rejected] (pre-receive hook declined)\nDone\n",
        );
        assert_eq!((found.code.as_str(), found.skip), ("too-large", Some(SkipDetail::TooLarge)));
        assert!(found.message.contains("data/big.bin is 120.00 MB"), "{}", found.message);
    }

    #[test]
    fn rules_are_named_with_the_link_to_them() {
        let found = refused(
            "remote: error: GH013: Repository rule violations found for refs/heads/b.        \n\
             remote: Review all repository rules at https://github.com/o/r/rules?ref=refs%2Fheads%2Fb        \n\
             remote:         \nremote: - Cannot create ref due to creations being restricted.        \n\
             remote:         \nremote: - Commits must have verified signatures.        \n\
             remote:   Found 1 violation:        \nremote:         \nremote:   5d3c0e        \n\
             !\ta:refs/heads/b\t[remote rejected] (push declined due to repository rule violations)\n",
        );
        assert_eq!((found.skip, found.remedy), (Some(SkipDetail::Ruleset), Remedy::Never));
        for part in
            ["creations being restricted", "verified signatures", "https://github.com/o/r/rules?ref=refs%2Fheads%2Fb"]
        {
            assert!(found.message.contains(part), "{}", found.message);
        }
        let signing = refused(
            "remote: error: GH013: Repository rule violations found for refs/heads/b.\n\
             remote: - Commits must have verified signatures.\n!\ta:b\t[remote rejected] (push declined due to repository rule violations)",
        );
        assert_eq!(signing.code, "signing-required");
        let protected = refused(
            "remote: error: GH006: Protected branch update failed for refs/heads/main.\n\
             remote: error: Changes must be made through a pull request.\n!\ta:b\t[remote rejected] (protected branch hook declined)",
        );
        assert_eq!(protected.code, "ruleset");
        assert!(protected.message.contains("made through a pull request"), "{}", protected.message);
    }

    #[test]
    fn push_protection_names_the_place_and_neither_secret_nor_allow_link() {
        let found = refused(
            "remote: error: GH013: Repository rule violations found for refs/heads/b.\nremote: \n\
             remote: - GITHUB PUSH PROTECTION\nremote:   —————————————————————————————————————————\n\
             remote:     Resolve the following violations before pushing again\nremote: \n\
             remote:     - Push cannot contain secrets\nremote: \n\
             remote:      (?) Learn how to resolve a blocked push\n\
             remote:      https://docs.github.com/code-security/secret-scanning/working-with-push-protection\nremote: \n\
             remote:       —— GitHub Personal Access Token ——————————————————————\nremote:        locations:\n\
             remote:          - commit: 8728dbe67d0c4a2e\nremote:            path: config/app.env:4\nremote: \n\
             remote:        (?) To push, remove secret from commit(s) or follow this URL to allow the secret.\n\
             remote:        https://github.com/o/r/security/secret-scanning/unblock-secret/2abc\n\
             !\ta:b\t[remote rejected] (push declined due to repository rule violations)\n",
        );
        assert_eq!(found.skip, Some(SkipDetail::PushProtection));
        assert!(found.message.contains("GitHub Personal Access Token at config/app.env:4"), "{}", found.message);
        assert!(!found.message.contains("unblock"), "{}", found.message);
    }

    #[test]
    fn each_other_rejection_has_its_code() {
        for (output, code) in [
            (
                "remote: error: GH007: Your push would publish a private email address.\n!\ta:b\t[remote rejected] (push declined due to email privacy restrictions)",
                "private-email",
            ),
            (
                "remote: error: GH008: Your push referenced at least 1 unknown Git LFS object:\n!\ta:b\t[remote rejected] (pre-receive hook declined)",
                "lfs",
            ),
            (
                "!\ta:b\t[remote rejected] (refusing to allow a GitHub App to create or update workflow `.github/workflows/ci.yml` without `workflows` permission)",
                "workflow-permission",
            ),
            (
                "!\ta:b\t[remote rejected] (refusing to allow an OAuth App to create or update workflow `.github/workflows/ci.yml` without `workflow` scope)",
                "workflow-permission",
            ),
            (
                "remote: error: cannot lock ref 'refs/heads/foo/bar': 'refs/heads/foo' exists; cannot create 'refs/heads/foo/bar'\n!\ta:b\t[remote rejected] (failed to update ref)",
                "branch-name-taken",
            ),
            ("!\ta:b\t[remote rejected] (directory file conflict)", "branch-name-taken"),
            (
                "remote: Internal Server Error\n!\ta:b\t[remote rejected] (Internal Server Error)",
                "github-unavailable",
            ),
            ("remote: fatal error in commit_refs\n!\ta:b\t[remote rejected] (failure)", "github-unavailable"),
            ("fatal: the remote end hung up unexpectedly", "github-unavailable"),
            ("remote: no pushes on Fridays\n!\ta:b\t[remote rejected] (pre-receive hook declined)", "push-rejected"),
        ] {
            assert_eq!(refused(output).code, code, "{output}");
        }
        for moved in ["(non-fast-forward)", "(fetch first)", "(stale info)"] {
            assert_eq!(of_push(&format!("!\ta:b\t[rejected] {moved}\n")), Rejection::Moved);
        }
    }

    #[test]
    fn statuses_of_answers_are_classified() {
        for (status, body, sso, code) in [
            (401, "", None, "token-refused"),
            (403, "remote: Permission to o/r.git denied to bot.", None, "token-refused"),
            (403, "remote: The `o' organization has enabled or enforced SAML SSO.", None, "sso"),
            (403, "", Some("required; url=https://github.com/orgs/o/sso?x=1"), "sso"),
            (
                403,
                "The 'o' organization has an IP allow list enabled, and 1.2.3.4 is not permitted",
                None,
                "ip-allow-list",
            ),
            (403, "remote: This repository was archived so it is read-only.", None, "archived"),
            (404, "remote: Repository not found.", None, "token-refused"),
            (429, "", None, "secondary-limit"),
            (503, "", None, "github-unavailable"),
            (400, "", None, "push-rejected"),
        ] {
            assert_eq!(of_status(status, body, sso).code, code, "{status} {body}");
        }
        let sso = of_status(403, "", Some("required; url=https://github.com/orgs/o/sso?x=1"));
        assert!(sso.message.contains("https://github.com/orgs/o/sso?x=1") && sso.remedy == Remedy::NewToken);
        assert_eq!(of_status(502, "", None).remedy, Remedy::Later);
    }
}
