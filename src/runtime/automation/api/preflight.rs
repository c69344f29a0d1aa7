//! The preflight: everything that can be refused is refused before something is created.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    Api, is_unknown, shown, skip,
    target::{self, Found},
    wrong_step,
};
use crate::{
    domain::automation::{
        branch_rules::{BranchRule, Obstacle, REQUIRED_SIGNATURES, obstacles},
        github_answer::Cause,
        github_host,
        signing::{Asked, Demand, Signer, SigningMode, SigningWay},
        skip::SkipDetail,
        step::{Identity, Preflight, PullRequestState, Remedy, StepFact, StepFailure, StepInput},
    },
    github::{Collaborator, PullRequest, Reference, RepositoryFacts, Ruleset, User},
    runtime::automation::{Made, failure},
};

/// The longest name of an identity, in characters.
const MAX_NAME: usize = 100;

/// The parts of the input.
struct Wanted<'a> {
    base: Option<&'a str>,
    issue: bool,
    pull_request: bool,
    workflows: bool,
}

/// Reads the repository, the branches, the rules for the branch, pull requests and the identity of commits, in about eight
/// requests.
pub(super) async fn preflight(api: &mut Api<'_>, input: &StepInput) -> Made {
    let StepInput::Preflight {
        branch,
        base,
        wants_issue,
        wants_pull_request,
        touches_workflows,
        pull_request,
        target,
        tree,
        requester,
        ..
    } = input
    else {
        return Err(wrong_step());
    };
    let facts = api.repository.resolve(&mut api.client).await.map_err(|refusal| api.failure(&refusal))?;
    let has_issues = facts.has_issues.unwrap_or(true);
    let default_branch = check_repository(&facts)?;
    let found = match target {
        Some(number) => target::open(api, *number).await?,
        None => Found::default(),
    };
    let wanted = Wanted {
        base: base.as_deref().or(found.base.as_deref()),
        issue: *wants_issue && has_issues,
        pull_request: *wants_pull_request,
        workflows: *touches_workflows,
    };
    check_permissions(api, &facts, &wanted)?;
    check_base(api, &wanted, &default_branch).await?;
    let branch = found.target.as_ref().map_or(branch.as_str(), |target| target.branch.as_str());
    let is_of_fork = found.target.as_ref().is_some_and(|target| target.fork.is_some());
    let branch_head = if is_of_fork { None } else { head_of(api, branch).await? };
    let of_branch = match is_of_fork {
        // The rules of the fork are not read; its push shows them.
        true => Demand::Nothing,
        false => check_rules(api, branch, branch_head.is_some()).await?,
    };
    let base = wanted.base.unwrap_or(&default_branch);
    let (signing, could_sign) = signing(api, input, of_branch, base).await?;
    let twin = match tree {
        Some(tree) => target::twin(api, base, tree).await?,
        None => None,
    };
    let state = match pull_request {
        Some(number) if Some(number) != target.as_ref() => state_of(api, *number).await?,
        _ => found.state,
    };
    let requester = match requester {
        Some(login) => requester_of(api, login).await?,
        None => None,
    };
    Ok(StepFact::Preflight(Box::new(Preflight {
        full_name: api.repository.name().to_string(),
        default_branch,
        has_issues,
        is_fork: facts.fork.unwrap_or(false),
        branch_head,
        identity: identity(api).await?,
        pull_request: state,
        signing,
        could_sign,
        target: found.target,
        target_base: found.base,
        twin,
        requester,
    })))
}

/// The signer of the commit, and the one that could sign it.
async fn signing(
    api: &mut Api<'_>,
    input: &StepInput,
    of_branch: Demand,
    base: &str,
) -> Result<(Option<SigningWay>, Option<SigningWay>), StepFailure> {
    let StepInput::Preflight { wants_pull_request, signing, has_signing_key, api_obstacle, .. } = input else {
        return Err(wrong_step());
    };
    let signer = Signer { mode: *signing, has_key: *has_signing_key };
    let asked = Asked { signer, is_app: api.remote.app.is_some(), api_obstacle: api_obstacle.as_deref() };
    let demand = match of_branch {
        Demand::Nothing if *wants_pull_request && signer.mode == SigningMode::Auto => {
            demand_of_base(api, base).await?
        }
        demand => demand,
    };
    let way = asked.decide(demand).map_err(|advice| skip(SkipDetail::SigningRequired, &advice))?;
    if demand == Demand::OfBase && way.is_none() {
        api.log("the base demands signed commits, and this one has no signature: merge the pull request by a squash");
    }
    Ok((way, asked.possible()))
}

/// Returns the default branch.
fn check_repository(facts: &RepositoryFacts) -> Result<String, StepFailure> {
    if facts.archived == Some(true) {
        return Err(skip(SkipDetail::Archived, "The repository is archived. Unarchive it, or use another"));
    }
    if facts.disabled == Some(true) {
        let message = "GitHub disabled the repository. Ask its owner";
        return Err(failure("repository-blocked", message, Remedy::Never));
    }
    let branch = facts.default_branch.clone().filter(|branch| !branch.is_empty());
    branch.ok_or_else(|| skip(SkipDetail::EmptyRepository, "The repository has no branch. Push a first commit"))
}

/// Checks what is known about the rights of the token; the rest shows when it is used.
fn check_permissions(api: &Api<'_>, facts: &RepositoryFacts, wanted: &Wanted<'_>) -> Result<(), StepFailure> {
    let missing = match &api.remote.app {
        Some(app) => missing_of_app(&app.permissions, wanted),
        None => missing_of_user(facts, api.client.scopes(), wanted),
    };
    let Some(missing) = missing else { return Ok(()) };
    let detail = if missing.contains("workflow") { SkipDetail::WorkflowPermission } else { SkipDetail::TokenRefused };
    let message = match &api.remote.app {
        Some(_) => format!(
            "The GitHub App lacks the permission {missing}. Grant it, and accept the new permission in the installation"
        ),
        None => format!("The token lacks {missing}. Use a token that has it"),
    };
    Err(skip(detail, &message))
}

fn missing_of_app(permissions: &BTreeMap<String, String>, wanted: &Wanted<'_>) -> Option<String> {
    let needs = [
        ("contents", true),
        ("issues", wanted.issue),
        ("pull_requests", wanted.pull_request),
        ("workflows", wanted.workflows),
    ];
    let lacks = |name: &str| !matches!(permissions.get(name).map(String::as_str), Some("write" | "admin"));
    let missing = needs.into_iter().find(|(name, is_needed)| *is_needed && !permissions.is_empty() && lacks(name));
    missing.map(|(name, _)| format!("{name}=write"))
}

/// `scopes` are those of a classic token. A token without scopes in its answers is left to GitHub.
fn missing_of_user(facts: &RepositoryFacts, scopes: Option<&str>, wanted: &Wanted<'_>) -> Option<String> {
    let permissions = facts.permissions.as_ref();
    if permissions.and_then(|all| all.get("push")).and_then(Value::as_bool) == Some(false) {
        return Some("the right to push to this repository".to_owned());
    }
    let scopes = scopes.filter(|scopes| !scopes.trim().is_empty())?;
    let has = |name: &str| scopes.split(',').any(|scope| scope.trim() == name);
    if !has("repo") && !has("public_repo") {
        return Some("the scope repo".to_owned());
    }
    (wanted.workflows && !has("workflow")).then(|| "the scope workflow".to_owned())
}

/// The commit of a branch, `None` without that branch.
async fn head_of(api: &mut Api<'_>, branch: &str) -> Result<Option<String>, StepFailure> {
    let name = format!("heads/{branch}");
    let path = api.repository.path(&["git", "ref", &name]);
    match api.client.get::<Reference>(&path).await {
        Ok(reference) => Ok(Some(reference.object.sha.to_ascii_lowercase())),
        Err(refusal) if refusal.cause == Cause::NotFound => Ok(None),
        Err(refusal) => Err(api.failure(&refusal)),
    }
}

/// The base of a pull request must exist. A default branch that does not is that of an empty repository.
async fn check_base(api: &mut Api<'_>, wanted: &Wanted<'_>, default_branch: &str) -> Result<(), StepFailure> {
    if !wanted.pull_request {
        return Ok(());
    }
    let base = wanted.base.unwrap_or(default_branch);
    if head_of(api, base).await?.is_some() {
        return Ok(());
    }
    if base == default_branch {
        return Err(skip(SkipDetail::EmptyRepository, "The default branch has no commit. Push a first commit"));
    }
    let message =
        format!("The branch {}, which the pull request would change, does not exist", shown(Some(base), 100));
    Err(failure("base-missing", &message, Remedy::Never))
}

async fn rules_of(api: &mut Api<'_>, branch: &str) -> Result<Vec<BranchRule>, StepFailure> {
    let path = api.repository.path(&["rules", "branches", branch]);
    match api.client.list::<BranchRule>(&path, &[], 2).await {
        Ok(rules) => Ok(rules),
        // Plans without rulesets, and servers without the operation; the push shows what applies.
        Err(refusal) if is_unknown(&refusal) => {
            api.log(&format!("the rules of the branch are not known: {refusal}"));
            Ok(Vec::new())
        }
        Err(refusal) => Err(api.failure(&refusal)),
    }
}

/// The signatures that the rules of the base demand of merged commits.
async fn demand_of_base(api: &mut Api<'_>, base: &str) -> Result<Demand, StepFailure> {
    let rules = rules_of(api, base).await?;
    let demands = rules.iter().any(|rule| rule.kind == REQUIRED_SIGNATURES);
    Ok(if demands { Demand::OfBase } else { Demand::Nothing })
}

/// Refuses what a rule of the branch refuses, unless the holder of the token may bypass its ruleset. Returns the demand of
/// signatures.
async fn check_rules(api: &mut Api<'_>, branch: &str, exists: bool) -> Result<Demand, StepFailure> {
    let rules = rules_of(api, branch).await?;
    let mut demand = Demand::Nothing;
    for obstacle in obstacles(&rules, branch, exists) {
        if is_exempt(api, &obstacle).await? {
            api.log(&format!("{}, from which the token is exempt", obstacle.rule));
            continue;
        }
        if obstacle.detail == SkipDetail::SigningRequired {
            demand = Demand::OfBranch;
            continue;
        }
        let advice = "Use a branch that the rules permit, or exempt the holder of the token";
        let mut rule = obstacle.rule.chars();
        let rule: String = rule.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(rule).collect();
        return Err(skip(obstacle.detail, &format!("{rule}. {advice}")));
    }
    Ok(demand)
}

async fn is_exempt(api: &mut Api<'_>, obstacle: &Obstacle) -> Result<bool, StepFailure> {
    let Some(id) = obstacle.ruleset else { return Ok(false) };
    let id = id.to_string();
    let path = api.repository.path(&["rulesets", &id]);
    match api.client.get::<Ruleset>(&path).await {
        Ok(ruleset) => Ok(matches!(ruleset.current_user_can_bypass.as_deref(), Some("always" | "exempt"))),
        Err(refusal) if is_unknown(&refusal) => Ok(false),
        Err(refusal) => Err(api.failure(&refusal)),
    }
}

async fn state_of(api: &mut Api<'_>, number: u64) -> Result<Option<PullRequestState>, StepFailure> {
    let number = number.to_string();
    let path = api.repository.path(&["pulls", &number]);
    match api.client.get::<PullRequest>(&path).await {
        Ok(pull) => Ok(Some(pull.state())),
        Err(refusal) if matches!(refusal.cause, Cause::NotFound | Cause::Gone) => {
            api.log(&format!("pull request {number} does not exist any more"));
            Ok(None)
        }
        Err(refusal) => Err(api.failure(&refusal)),
    }
}

/// The bot of the App or the user of the token, with the noreply address of their GitHub.
async fn identity(api: &mut Api<'_>) -> Result<Option<Identity>, StepFailure> {
    let Some(domain) = github_host::noreply_domain(&api.remote.api_url) else { return Ok(None) };
    let user = match &api.remote.app {
        Some(app) => {
            let Some(slug) = &app.slug else { return Ok(None) };
            let bot = format!("{slug}[bot]");
            api.client.get::<User>(&["users", &bot]).await
        }
        None => api.client.get::<User>(&["user"]).await,
    };
    match user {
        Ok(user) => Ok(identity_of(&user, &domain)),
        // The token of an App that a caller sent has no user.
        Err(refusal) if is_unknown(&refusal) => {
            api.log(&format!("GitHub does not name the identity of commits: {refusal}"));
            Ok(None)
        }
        Err(refusal) => Err(api.failure(&refusal)),
    }
}

/// The person who asks for the change. A commit credits only people of whom GitHub reports that they may write to the
/// repository, with the address that belongs to their id.
async fn requester_of(api: &mut Api<'_>, login: &str) -> Result<Option<Identity>, StepFailure> {
    let domain = github_host::noreply_domain(&api.remote.api_url);
    let path = api.repository.path(&["collaborators", login, "permission"]);
    let found = match api.client.get::<Collaborator>(&path).await {
        Ok(found) => found,
        Err(refusal) if is_unknown(&refusal) => Collaborator::default(),
        Err(refusal) => return Err(api.failure(&refusal)),
    };
    let credited = domain.and_then(|domain| credited(&found, login, &domain));
    if credited.is_none() {
        api.log(
            "the commit does not credit the requester: GitHub does not report that they may write to the repository",
        );
    }
    Ok(credited)
}

fn credited(found: &Collaborator, login: &str, domain: &str) -> Option<Identity> {
    let may_write = matches!(found.permission.as_deref(), Some("write" | "admin" | "maintain"));
    let user = found.user.as_ref().filter(|user| may_write && user.login.eq_ignore_ascii_case(login))?;
    identity_of(user, domain)
}

fn identity_of(user: &User, domain: &str) -> Option<Identity> {
    let is_login = user.login.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_[]".contains(&byte));
    if user.login.is_empty() || user.login.len() > MAX_NAME || !is_login {
        return None;
    }
    let name = shown(user.name.as_deref(), MAX_NAME).replace(['‹', '›'], "");
    let name = if name.trim().is_empty() { user.login.clone() } else { name.trim().to_owned() };
    Some(Identity { name, email: format!("{}+{}@{domain}", user.id, user.login) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NEEDS_ALL: Wanted<'_> = Wanted { base: None, issue: true, pull_request: true, workflows: true };

    #[test]
    fn missing_permission_of_an_app_is_named_before_something_is_created() {
        let missing = |permissions: Value, wanted: &Wanted<'_>| {
            missing_of_app(&serde_json::from_value(permissions).unwrap(), wanted)
        };
        let some = json!({"contents": "write", "issues": "write", "pull_requests": "write", "metadata": "read"});
        assert_eq!(missing(some.clone(), &NEEDS_ALL).as_deref(), Some("workflows=write"));
        assert_eq!(missing(some, &Wanted { workflows: false, ..NEEDS_ALL }), None);
        let commit_only = Wanted { issue: false, pull_request: false, workflows: false, ..NEEDS_ALL };
        assert_eq!(missing(json!({"contents": "write"}), &commit_only), None);
        assert_eq!(missing(json!({"contents": "read"}), &commit_only).as_deref(), Some("contents=write"));
        assert_eq!(missing(json!({}), &NEEDS_ALL), None, "not known");
    }

    #[test]
    fn missing_right_or_scope_of_a_user_is_named_before_something_is_created() {
        let facts = |push: Option<bool>| RepositoryFacts {
            permissions: push.map(|push| [("push".to_owned(), Value::Bool(push))].into()),
            ..RepositoryFacts::default()
        };
        for (push, scopes, missing) in [
            (Some(false), Some("repo, workflow"), Some("the right to push to this repository")),
            (Some(true), Some("repo, workflow"), None),
            (Some(true), Some("repo"), Some("the scope workflow")),
            (None, Some("gist, workflow"), Some("the scope repo")),
            (Some(true), Some("workflow,public_repo"), None),
            (Some(true), Some(" "), None),
            (Some(true), None, None),
        ] {
            assert_eq!(missing_of_user(&facts(push), scopes, &NEEDS_ALL).as_deref(), missing, "{push:?} {scopes:?}");
        }
    }

    #[test]
    fn only_a_requester_who_may_write_is_credited_and_with_the_address_of_their_id() {
        let of = |permission: &str, login: &str| {
            let user = User { id: 7, login: login.into(), name: None, kind: None };
            let found = Collaborator { permission: Some(permission.into()), user: Some(user) };
            credited(&found, "OctoCat", "users.noreply.github.com").map(|it| it.email)
        };
        assert_eq!(of("write", "octocat").as_deref(), Some("7+octocat@users.noreply.github.com"));
        assert!(of("admin", "octocat").is_some());
        assert_eq!((of("read", "octocat"), of("none", "octocat"), of("write", "stranger")), (None, None, None));
        assert_eq!(credited(&Collaborator::default(), "octocat", "users.noreply.github.com"), None);
    }

    #[test]
    fn identity_has_the_noreply_address_and_no_line_breaks_or_brackets() {
        let of = |login: &str, name: Option<&str>| {
            let user = User { id: 7, login: login.into(), name: name.map(str::to_owned), kind: None };
            identity_of(&user, "users.noreply.github.com").map(|it| format!("{} <{}>", it.name, it.email))
        };
        let bot = of("lumi[bot]", None).unwrap();
        assert_eq!(bot, "lumi[bot] <7+lumi[bot]@users.noreply.github.com>");
        let person = of("octocat", Some("The\n<Octo> Cat ")).unwrap();
        assert_eq!(person, "The Octo Cat <7+octocat@users.noreply.github.com>");
        assert_eq!(of("octocat", Some(" ")).unwrap(), "octocat <7+octocat@users.noreply.github.com>");
        assert_eq!(of("a> <b@c", None), None);
        assert_eq!(of("", Some("x")), None);
    }
}
