//! The REST API of the stand-in.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{
    auth,
    faults::{error, invalid},
    git::Repositories,
    http::{Request, Response},
    state::{Comment, Holder, Installation, Issue, Pull, Repository, Token, rfc3339},
    world::World,
};
use crate::harness::{Value, json};

/// GitHub's limits, in characters.
const MAX_TITLE: usize = 256;
const MAX_BODY: usize = 65_536;

/// The identity behind a request.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Caller {
    Anonymous,
    App,
    Token(Holder),
}

/// One request of the API, with all that it may need.
pub(super) struct Call<'a> {
    pub world: &'a mut World,
    pub git: &'a Repositories,
    pub request: &'a Request,
    pub caller: Caller,
}

fn not_found() -> Response {
    error(404, "Not Found")
}

fn not_accessible() -> Response {
    error(403, "Resource not accessible by integration")
}

type Answer = Result<Response, Response>;

impl Call<'_> {
    /// Answers a request; `parts` is the path below `/api/v3`.
    pub(super) fn answer(&mut self, parts: &[&str]) -> Response {
        let suspended = |id: u64| self.world.installations.iter().any(|it| it.id == id && it.is_suspended);
        if matches!(&self.caller, Caller::Token(Holder::Installation { id, .. }) if suspended(*id)) {
            return error(403, "This installation has been suspended");
        }
        let answer = match parts {
            ["app", ..] => self.app(&parts[1..]),
            ["repos", owner, name, rest @ ..] if self.world.moved.contains_key(&format!("{owner}/{name}")) => {
                Err(self.moved(&format!("{owner}/{name}"), rest))
            }
            ["repos", owner, name, "installation"] => self.installation_of(&format!("{owner}/{name}")),
            ["repos", owner, name, rest @ ..] => self.repository(&format!("{owner}/{name}"), rest),
            ["repositories", id, rest @ ..] => self.repository_of_id(id, rest),
            ["installation", "repositories"] => self.installation_repositories(),
            ["user"] => self.user(),
            ["users", login] => self.user_of(login),
            ["apps", slug] if *slug == self.world.app_slug => Ok(Response::json(200, &self.world.app_json())),
            ["rate_limit"] => Ok(Response::json(200, &json!({"resources": {"core": self.world.quota()}}))),
            ["search", "issues"] => self.search(),
            _ => Err(not_found()),
        };
        answer.unwrap_or_else(|refusal| refusal)
    }

    fn is(&self, method: &str) -> bool {
        self.request.method == method
    }

    fn app(&mut self, parts: &[&str]) -> Answer {
        if self.caller != Caller::App {
            return Err(error(401, "A JSON web token could not be decoded"));
        }
        let all = || self.world.installations.iter();
        match parts {
            [] => Ok(Response::json(200, &self.world.app_json())),
            ["installations"] => Ok(self.page(all().map(|it| self.world.installation_json(it)).collect())),
            ["installations", id, rest @ ..] => {
                let found = all().find(|it| it.id.to_string() == *id).cloned().ok_or_else(not_found)?;
                match rest {
                    [] => Ok(Response::json(200, &self.world.installation_json(&found))),
                    ["access_tokens"] if self.is("POST") => self.mint(&found),
                    _ => Err(not_found()),
                }
            }
            _ => Err(not_found()),
        }
    }

    fn installation_of(&mut self, full_name: &str) -> Answer {
        if self.caller != Caller::App {
            return Err(error(401, "A JSON web token could not be decoded"));
        }
        let found = self.world.installations.iter().find(|it| it.reaches(full_name)).ok_or_else(not_found)?;
        Ok(Response::json(200, &self.world.installation_json(found)))
    }

    fn mint(&mut self, installation: &Installation) -> Answer {
        if installation.is_suspended {
            return Err(error(403, "This installation has been suspended"));
        }
        let body = self.request.json();
        let mut permissions = installation.permissions.clone();
        if let Some(wanted) = body["permissions"].as_object() {
            let rank = |level: &str| ["read", "write", "admin"].iter().position(|it| *it == level);
            for (name, level) in wanted {
                let level = level.as_str().unwrap_or_default();
                if installation.permissions.get(name).and_then(|it| rank(it)) < rank(level) {
                    return Err(error(422, "The permissions requested are not granted to this installation."));
                }
            }
            permissions =
                wanted.iter().map(|(name, it)| (name.clone(), it.as_str().unwrap_or_default().into())).collect();
            permissions.insert("metadata".into(), "read".into());
        }
        let reached = |full_name: &str| installation.reaches(full_name);
        let by_name = |name: &Value| format!("{}/{}", installation.account, name.as_str().unwrap_or_default());
        let names = body["repositories"].as_array().map(|all| all.iter().map(by_name).collect::<Vec<_>>());
        let ids =
            body["repository_ids"].as_array().map(|all| all.iter().filter_map(Value::as_u64).collect::<Vec<_>>());
        let repositories = match (names, ids) {
            (None, None) => None,
            (Some(names), _) => {
                Some(names.iter().map(|it| self.world.repository(it).map(|it| it.id)).collect::<Vec<_>>())
            }
            (None, Some(ids)) => Some(ids.into_iter().map(Some).collect()),
        };
        let known = |id: &Option<u64>| {
            self.world.repositories.values().any(|it| Some(it.id) == *id && reached(&it.full_name))
        };
        if repositories.as_ref().is_some_and(|all| !all.iter().all(known)) {
            let message = "There is at least one repository that does not exist or is not accessible to the parent installation.";
            return Err(error(422, message));
        }
        let repositories = repositories.map(|all| all.into_iter().flatten().collect());
        let expires_at = self.world.now() + self.world.token_seconds;
        let value = auth::installation_token(self.world.app_id);
        let selection = if repositories.is_some() { "selected" } else { "all" };
        let answer = json!({"token": value, "expires_at": rfc3339(expires_at), "permissions": permissions,
                            "repository_selection": selection});
        let holder = Holder::Installation { id: installation.id, permissions, repositories };
        self.world.tokens.push(Token { value, holder, expires_at: Some(expires_at), is_revoked: false });
        Ok(Response::json(201, &answer))
    }

    /// The mutation `createCommitOnBranch` of the GraphQL API, whose commits GitHub signs. As there, errors have status 200.
    pub(super) fn graphql(&mut self) -> Response {
        let refused = |kind: &str, message: &str| {
            let errors = json!([{"type": kind, "path": ["createCommitOnBranch"], "message": message}]);
            Response::json(200, &json!({"data": {"createCommitOnBranch": null}, "errors": errors}))
        };
        let body = self.request.json();
        let input = &body["variables"]["input"];
        if !body["query"].as_str().is_some_and(|query| query.contains("createCommitOnBranch")) || !input.is_object() {
            return refused(
                "undefinedField",
                "The stand-in knows createCommitOnBranch with the variable $input only.",
            );
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let full_name = text(&input["branch"]["repositoryNameWithOwner"]);
        let branch = text(&input["branch"]["branchName"]);
        let Some(repository) = self.world.repository(&full_name).filter(|it| self.world.can_read(&self.caller, it))
        else {
            return refused("NOT_FOUND", &format!("Could not resolve to a Repository with the name '{full_name}'."));
        };
        if !self.world.may(&self.caller, repository, "contents", "write") {
            return refused("FORBIDDEN", "Resource not accessible by integration");
        }
        let Some(tip) = self.git.branch(&full_name, &branch) else {
            return refused("NOT_FOUND", &format!("Could not resolve to a node with the global id of '{branch}'."));
        };
        if tip != text(&input["expectedHeadOid"]) {
            let message = format!(
                "Expected branch to point to \"{}\" but it did not. Pull and try again.",
                text(&input["expectedHeadOid"])
            );
            return refused("STALE_DATA", &message);
        }
        let changes = |kind: &str| input["fileChanges"][kind].as_array().cloned().unwrap_or_default();
        let mut files = Vec::new();
        for addition in changes("additions") {
            let Ok(content) = STANDARD.decode(text(&addition["contents"])) else {
                return refused("UNPROCESSABLE", "A path was requested with contents that are not Base64.");
            };
            files.push((text(&addition["path"]), Some(content)));
        }
        files.extend(changes("deletions").iter().map(|it| (text(&it["path"]), None)));
        let files: Vec<_> = files.iter().map(|(path, content)| (path.as_str(), content.as_deref())).collect();
        let message = format!("{}\n\n{}", text(&input["message"]["headline"]), text(&input["message"]["body"]));
        let sha = self.git.commit(&full_name, &branch, message.trim(), &files);
        self.world.signed.push(sha.clone());
        self.world.update_pull_refs(self.git);
        let url = format!("{}/{full_name}/commit/{sha}", self.world.origin);
        Response::json(200, &json!({"data": {"createCommitOnBranch": {"commit": {"oid": sha, "url": url}}}}))
    }

    fn user(&mut self) -> Answer {
        match &self.caller {
            Caller::Token(Holder::User(login)) => Ok(Response::json(200, &self.world.person_json(login))),
            Caller::Anonymous => Err(error(401, "Requires authentication")),
            _ => Err(not_accessible()),
        }
    }

    fn user_of(&mut self, login: &str) -> Answer {
        let is_bot = login == format!("{}[bot]", self.world.app_slug);
        let is_known = is_bot || self.world.people.contains_key(login);
        if is_known { Ok(Response::json(200, &self.world.person_json(login))) } else { Err(not_found()) }
    }

    fn installation_repositories(&mut self) -> Answer {
        let Caller::Token(holder @ Holder::Installation { .. }) = &self.caller else { return Err(not_accessible()) };
        let reached = self.world.repositories.values().filter(|it| self.world.reaches(holder, it));
        let all: Vec<_> = reached.map(|it| self.repository_json(it)).collect();
        Ok(Response::json(200, &json!({"total_count": all.len(), "repositories": all})))
    }

    /// As on GitHub, the index of the search lags behind: nothing of the last minute is found.
    fn search(&mut self) -> Answer {
        let query = self.request.parameter("q");
        let words: Vec<_> = query.split_whitespace().filter(|it| !it.contains(':') || it.contains('=')).collect();
        let indexed = self.world.now() - 60;
        let mut found = Vec::new();
        for repository in self.world.repositories.values() {
            let named = query.split_whitespace().find_map(|it| it.strip_prefix("repo:"));
            if named.is_some_and(|it| it != repository.full_name) {
                continue;
            }
            let is_hit = |it: &&Issue| {
                it.created_at < indexed
                    && words.iter().all(|word| it.body.contains(*word) || it.title.contains(*word))
            };
            found.extend(repository.issues.iter().filter(is_hit).map(|it| self.issue_json(repository, it)));
        }
        Ok(Response::json(200, &json!({"total_count": found.len(), "incomplete_results": false, "items": found})))
    }

    fn repository_of_id(&mut self, id: &str, rest: &[&str]) -> Answer {
        let name = self.world.repositories.values().find(|it| it.id.to_string() == id).map(|it| it.full_name.clone());
        let name = name.ok_or_else(not_found)?;
        if rest == ["installation"] { self.installation_of(&name) } else { self.repository(&name, rest) }
    }

    /// The redirect from an earlier name of a repository.
    fn moved(&self, earlier: &str, rest: &[&str]) -> Response {
        let path = std::iter::once(self.world.moved[earlier].to_string());
        let path: Vec<_> = path.chain(rest.iter().map(|it| (*it).to_owned())).collect();
        let address = format!("{}/api/v3/repositories/{}", self.world.origin, path.join("/"));
        error(301, "Moved Permanently").with("Location", address)
    }

    fn repository(&mut self, full_name: &str, rest: &[&str]) -> Answer {
        let repository = self.world.repository(full_name).cloned().ok_or_else(not_found)?;
        if !self.world.can_read(&self.caller, &repository) {
            return Err(not_found());
        }
        match rest {
            [] => Ok(Response::json(200, &self.repository_json(&repository))),
            ["issues", rest @ ..] => self.issues(&repository, rest),
            ["labels"] => self.labels(&repository),
            ["pulls", rest @ ..] => self.pulls(&repository, rest),
            ["rules", "branches", name @ ..] => {
                let name = name.join("/");
                let rules = repository.rules.iter().filter(|it| it.applies_to(&name));
                Ok(self.page(rules.map(|it| it.to_json()).collect()))
            }
            ["branches", name @ ..] => self.branches(&repository, &name.join("/")),
            ["git", rest @ ..] => self.git_data(&repository, rest),
            ["commits", name @ ..] => self.commit(&repository, &name.join("/")),
            ["actions", "runs"] => {
                self.need(&repository, "actions", "read")?;
                let count = repository.waiting_runs;
                Ok(Response::json(200, &json!({"total_count": count, "workflow_runs": []})))
            }
            ["collaborators", login, "permission"] => {
                let level = repository.people.get(*login).map_or("read", String::as_str);
                let user = self.world.person_json(login);
                Ok(Response::json(200, &json!({"permission": level, "role_name": level, "user": user})))
            }
            _ => Err(not_found()),
        }
    }

    /// Refuses a caller without a permission of the repository.
    fn need(&self, repository: &Repository, permission: &str, level: &str) -> Result<(), Response> {
        if repository.is_archived && level == "write" {
            return Err(error(403, "Repository was archived so is read-only."));
        }
        match self.world.may(&self.caller, repository, permission, level) {
            true => Ok(()),
            false if self.caller == Caller::Anonymous => Err(error(401, "Requires authentication")),
            false => Err(not_accessible()),
        }
    }

    fn issues(&mut self, repository: &Repository, rest: &[&str]) -> Answer {
        if !repository.has_issues && !matches!(rest, [_, ..]) {
            return Err(error(410, "Issues has been disabled in this repository."));
        }
        match (rest, self.request.method.as_str()) {
            ([], "GET") => {
                let label = self.request.parameter("labels");
                let wanted: Vec<_> = label.split(',').filter(|it| !it.is_empty()).map(str::to_owned).collect();
                let creator = self.request.parameter("creator");
                let found = self.listed(repository, |it| {
                    wanted.iter().all(|label| it.labels.contains(label))
                        && (creator.is_empty() || it.author == creator)
                });
                Ok(self.page(found.iter().map(|it| self.issue_json(repository, it)).collect()))
            }
            ([], "POST") => {
                self.need(repository, "issues", "write")?;
                self.create_issue(repository)
            }
            ([.., "reactions"], "POST") => self.react(repository, rest),
            (["comments", id], method) => self.comment(repository, id, method),
            ([number], "GET") => {
                let issue = issue_of(repository, number)?;
                Ok(Response::json(200, &self.issue_json(repository, issue)))
            }
            ([number, rest @ ..], method) => {
                let number = issue_of(repository, number)?.number;
                self.part_of_issue(repository, number, rest, method)
            }
            _ => Err(not_found()),
        }
    }

    fn part_of_issue(&mut self, repository: &Repository, number: u64, rest: &[&str], method: &str) -> Answer {
        let issue = &repository.issues[usize::try_from(number).expect("a small number") - 1];
        let kind = if issue.pull.is_some() { "pull_requests" } else { "issues" };
        if (rest, method) == (&["comments"], "GET") {
            let comments = repository.comments.iter().filter(|it| it.issue == number);
            return Ok(self.page(comments.map(|it| self.comment_json(repository, it)).collect()));
        }
        if self.need(repository, "issues", "write").is_err() {
            self.need(repository, kind, "write")?;
        }
        let body = self.request.json();
        match (rest, method) {
            ([], "PATCH") => {
                check_texts(&body, false)?;
                let issue = self.world.issue_mut(&repository.full_name, number);
                change_issue(issue, &body);
                let issue = issue.clone();
                Ok(Response::json(200, &self.issue_json(repository, &issue)))
            }
            (["comments"], "POST") => {
                let text = body["body"].as_str().filter(|it| !it.is_empty());
                let text = text.ok_or_else(|| {
                    invalid(json!([{"resource": "IssueComment", "code": "missing_field", "field": "body"}]))
                })?;
                check_length(text, MAX_BODY, "body")?;
                let comment = Comment {
                    id: self.world.next_id(),
                    issue: number,
                    body: text.to_owned(),
                    author: self.author(),
                    created_at: self.world.now(),
                };
                self.world.repository_mut(&repository.full_name).comments.push(comment.clone());
                Ok(Response::json(201, &self.comment_json(repository, &comment)))
            }
            ([list @ ("labels" | "assignees")], "POST" | "PUT") => {
                let given = if body.is_array() { &body } else { &body[*list] };
                let given = strings(given);
                if *list == "assignees" {
                    check_people(repository, &given, "assignees")?;
                }
                let issue = self.world.issue_mut(&repository.full_name, number);
                let target = if *list == "labels" { &mut issue.labels } else { &mut issue.assignees };
                for name in given.into_iter().filter(|it| !it.is_empty()) {
                    if !target.contains(&name) {
                        target.push(name);
                    }
                }
                let issue = issue.clone();
                let labels = issue.labels.iter().map(|it| json!({"name": it})).collect::<Vec<_>>();
                let answer = if *list == "labels" { json!(labels) } else { self.issue_json(repository, &issue) };
                Ok(Response::json(if *list == "labels" { 200 } else { 201 }, &answer))
            }
            _ => Err(not_found()),
        }
    }

    fn create_issue(&mut self, repository: &Repository) -> Answer {
        let body = self.request.json();
        check_texts(&body, true)?;
        check_people(repository, &strings(&body["assignees"]), "assignees")?;
        let issue = self.add_issue(&repository.full_name, &body, None);
        Ok(Response::json(201, &self.issue_json(repository, &issue)))
    }

    fn add_issue(&mut self, full_name: &str, body: &Value, pull: Option<Pull>) -> Issue {
        let (id, created_at, author) = (self.world.next_id(), self.world.now(), self.author());
        let repository = self.world.repository_mut(full_name);
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let issue = Issue {
            id,
            number: repository.issues.len() as u64 + 1,
            title: text("title"),
            body: text("body"),
            state: "open".into(),
            labels: strings(&body["labels"]),
            assignees: strings(&body["assignees"]),
            author,
            created_at,
            pull,
        };
        repository.issues.push(issue.clone());
        issue
    }

    fn comment(&mut self, repository: &Repository, id: &str, method: &str) -> Answer {
        let at = repository.comments.iter().position(|it| it.id.to_string() == id).ok_or_else(not_found)?;
        if method == "PATCH" {
            self.need(repository, "issues", "write")?;
            let body = self.request.json();
            let text = body["body"].as_str().unwrap_or_default();
            check_length(text, MAX_BODY, "body")?;
            text.clone_into(&mut self.world.repository_mut(&repository.full_name).comments[at].body);
        }
        let comment = self.world.repository(&repository.full_name).expect("it exists").comments[at].clone();
        Ok(Response::json(200, &self.comment_json(repository, &comment)))
    }

    /// Adds a reaction to an issue or a comment. As on GitHub, a repetition answers 200 and adds none.
    fn react(&mut self, repository: &Repository, rest: &[&str]) -> Answer {
        self.need(repository, "issues", "write")?;
        let content = self.request.json()["content"].as_str().unwrap_or_default().to_owned();
        let reaction = (rest[..rest.len() - 1].join("/"), content);
        let is_new = !repository.reactions.contains(&reaction);
        if is_new {
            self.world.repository_mut(&repository.full_name).reactions.push(reaction);
        }
        Ok(Response::json(if is_new { 201 } else { 200 }, &json!({"id": 1, "content": "eyes"})))
    }

    fn labels(&mut self, repository: &Repository) -> Answer {
        if self.is("GET") {
            return Ok(self.page(repository.labels.iter().map(|it| json!({"name": it})).collect()));
        }
        self.need(repository, "issues", "write")?;
        let name = self.request.json()["name"].as_str().unwrap_or_default().to_owned();
        if repository.labels.contains(&name) {
            return Err(invalid(json!([{"resource": "Label", "code": "already_exists", "field": "name"}])));
        }
        self.world.repository_mut(&repository.full_name).labels.push(name.clone());
        Ok(Response::json(201, &json!({"name": name})))
    }

    fn pulls(&mut self, repository: &Repository, rest: &[&str]) -> Answer {
        match (rest, self.request.method.as_str()) {
            ([], "GET") => {
                let (head, base) = (self.request.parameter("head"), self.request.parameter("base"));
                let owner = |name: &str| name.split('/').next().unwrap_or_default().to_owned();
                let found = self.listed(repository, |it| {
                    it.pull.as_ref().is_some_and(|pull| {
                        let label = format!("{}:{}", owner(&pull.head_repository), pull.head);
                        (head.is_empty() || head == label) && (base.is_empty() || base == pull.base)
                    })
                });
                Ok(self.page(found.iter().map(|it| self.pull_json(repository, it)).collect()))
            }
            ([], "POST") => {
                self.need(repository, "pull_requests", "write")?;
                self.create_pull(repository)
            }
            ([number], method @ ("GET" | "PATCH")) => {
                let number = issue_of(repository, number)?.number;
                if method == "PATCH" {
                    self.need(repository, "pull_requests", "write")?;
                    let body = self.request.json();
                    check_texts(&body, false)?;
                    let issue = self.world.issue_mut(&repository.full_name, number);
                    change_issue(issue, &body);
                    if let (Some(pull), Some(base)) = (&mut issue.pull, body["base"].as_str()) {
                        base.clone_into(&mut pull.base);
                    }
                }
                let issue = self.world.issue_mut(&repository.full_name, number).clone();
                let is_pull = issue.pull.is_some();
                if is_pull { Ok(Response::json(200, &self.pull_json(repository, &issue))) } else { Err(not_found()) }
            }
            ([number, "requested_reviewers"], "POST") => {
                self.need(repository, "pull_requests", "write")?;
                let issue = issue_of(repository, number)?.clone();
                let wanted = strings(&self.request.json()["reviewers"]);
                if wanted.contains(&issue.author) {
                    return Err(error(422, "Review cannot be requested from pull request author."));
                }
                if wanted.iter().any(|it| !repository.people.contains_key(it)) {
                    let message = format!(
                        "Reviews may only be requested from collaborators. One or more of the users or teams you specified is not a collaborator of the {} repository.",
                        repository.full_name
                    );
                    return Err(error(422, &message));
                }
                let changed = self.world.issue_mut(&repository.full_name, issue.number);
                changed.pull.as_mut().ok_or_else(not_found)?.reviewers.extend(wanted);
                let changed = changed.clone();
                Ok(Response::json(201, &self.pull_json(repository, &changed)))
            }
            _ => Err(not_found()),
        }
    }

    fn create_pull(&mut self, repository: &Repository) -> Answer {
        let body = self.request.json();
        check_texts(&body, true)?;
        let (head, base) = (body["head"].as_str().unwrap_or_default(), body["base"].as_str().unwrap_or_default());
        let (owner, name) = repository.full_name.split_once('/').expect("owner/name");
        let (head_owner, head) = head.split_once(':').unwrap_or((owner, head));
        let head_repository = match head_owner == owner {
            true => repository.full_name.clone(),
            false => format!("{head_owner}/{name}"),
        };
        let bad = |field: &str| invalid(json!([{"resource": "PullRequest", "field": field, "code": "invalid"}]));
        let custom =
            |message: String| invalid(json!([{"resource": "PullRequest", "code": "custom", "message": message}]));
        self.world.repository(&head_repository).ok_or_else(|| bad("head"))?;
        let tip = self.git.branch(&head_repository, head).ok_or_else(|| bad("head"))?;
        let base_tip = self.git.branch(&repository.full_name, base).ok_or_else(|| bad("base"))?;
        let is_same = |it: &Issue| {
            it.state == "open"
                && it.pull.as_ref().is_some_and(|pull| {
                    (pull.head_repository.as_str(), pull.head.as_str(), pull.base.as_str())
                        == (&head_repository, head, base)
                })
        };
        if repository.issues.iter().any(is_same) {
            return Err(custom(format!("A pull request already exists for {head_owner}:{head}.")));
        }
        let is_behind = head_repository == repository.full_name
            && self.git.run(&repository.full_name, &["rev-list", "--count", &tip, &format!("^{base_tip}")]) == "0";
        if is_behind {
            return Err(custom(format!("No commits between {base} and {head}")));
        }
        let pull = Pull {
            head_repository,
            head: head.to_owned(),
            base: base.to_owned(),
            is_draft: body["draft"] == true,
            is_merged: false,
            maintainer_can_modify: body["maintainer_can_modify"] != false,
            reviewers: Vec::new(),
        };
        let issue = self.add_issue(&repository.full_name, &body, Some(pull));
        self.world.update_pull_refs(self.git);
        Ok(Response::json(201, &self.pull_json(repository, &issue)))
    }

    fn branches(&mut self, repository: &Repository, name: &str) -> Answer {
        if name.is_empty() {
            let all = self.git.branches(&repository.full_name);
            return Ok(
                self.page(all.iter().map(|(name, sha)| json!({"name": name, "commit": {"sha": sha}})).collect())
            );
        }
        let sha = self.git.branch(&repository.full_name, name).ok_or_else(|| error(404, "Branch not found"))?;
        let is_protected = repository.rules.iter().any(|it| it.applies_to(name));
        Ok(Response::json(200, &json!({"name": name, "commit": {"sha": sha}, "protected": is_protected})))
    }

    fn commit(&mut self, repository: &Repository, name: &str) -> Answer {
        if self.git.branches(&repository.full_name).is_empty() {
            return Err(error(409, "Git Repository is empty."));
        }
        let missing = || error(422, &format!("No commit found for SHA: {name}"));
        let sha = self.git.resolve(&repository.full_name, name).ok_or_else(missing)?;
        Ok(Response::json(200, &json!({"sha": sha, "commit": self.commit_json(repository, &sha)})))
    }

    fn commit_json(&self, repository: &Repository, sha: &str) -> Value {
        let shown = self.git.run(&repository.full_name, &["show", "-s", "--format=%T%n%P%n%an%n%ae%n%B", sha]);
        let lines: Vec<_> = shown.splitn(5, '\n').collect();
        let parents: Vec<_> = lines[1].split_whitespace().map(|sha| json!({"sha": sha})).collect();
        let author = json!({"name": lines[2], "email": lines[3]});
        let is_signed = self.world.signed.iter().any(|it| it == sha);
        let verification = json!({"verified": is_signed, "reason": if is_signed { "valid" } else { "unsigned" }});
        json!({"sha": sha, "tree": {"sha": lines[0]}, "parents": parents, "author": author,
               "message": lines.get(4).map_or("", |it| it.trim_end()), "verification": verification})
    }

    fn git_data(&mut self, repository: &Repository, rest: &[&str]) -> Answer {
        let git = self.git;
        let object = |name: &str, sha: &str| json!({"ref": format!("refs/heads/{name}"), "object": {"type": "commit", "sha": sha}});
        if git.branches(&repository.full_name).is_empty() {
            return Err(error(409, "Git Repository is empty."));
        }
        match (rest, self.request.method.as_str()) {
            (["ref", "heads", name @ ..], "GET") => {
                let name = name.join("/");
                let sha = git.branch(&repository.full_name, &name).ok_or_else(not_found)?;
                Ok(Response::json(200, &object(&name, &sha)))
            }
            (["matching-refs", "heads", start @ ..], "GET") => {
                let start = start.join("/");
                let all = git.branches(&repository.full_name);
                let found = all.iter().filter(|(name, _)| name.starts_with(&start));
                Ok(self.page(found.map(|(name, sha)| object(name, sha)).collect()))
            }
            (["commits", sha], "GET") => {
                let sha = git.resolve(&repository.full_name, sha).ok_or_else(not_found)?;
                Ok(Response::json(200, &self.commit_json(repository, &sha)))
            }
            (["refs"], "POST") => {
                self.need(repository, "contents", "write")?;
                let body = self.request.json();
                let (name, sha) =
                    (body["ref"].as_str().unwrap_or_default(), body["sha"].as_str().unwrap_or_default());
                let name = name
                    .strip_prefix("refs/heads/")
                    .ok_or_else(|| error(422, "Reference name must start with 'refs/'"))?;
                git.resolve(&repository.full_name, sha).ok_or_else(|| error(422, "Object does not exist"))?;
                let is_above =
                    |it: &str, other: &str| it.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'));
                for (other, _) in git.branches(&repository.full_name) {
                    if other == name {
                        return Err(error(422, "Reference already exists"));
                    }
                    if is_above(name, &other) || is_above(&other, name) {
                        return Err(error(422, "Reference update failed"));
                    }
                }
                git.run(&repository.full_name, &["update-ref", &format!("refs/heads/{name}"), sha]);
                Ok(Response::json(201, &object(name, sha)))
            }
            (["refs", "heads", name @ ..], "DELETE") => {
                self.need(repository, "contents", "write")?;
                let name = name.join("/");
                git.branch(&repository.full_name, &name).ok_or_else(|| error(422, "Reference does not exist"))?;
                git.run(&repository.full_name, &["update-ref", "-d", &format!("refs/heads/{name}")]);
                Ok(Response { status: 204, ..Response::default() })
            }
            _ => Err(not_found()),
        }
    }

    fn author(&self) -> String {
        match &self.caller {
            Caller::Token(Holder::User(login)) => login.clone(),
            _ => format!("{}[bot]", self.world.app_slug),
        }
    }

    /// Issues in the requested state and order, newest first by default.
    fn listed(&self, repository: &Repository, is_wanted: impl Fn(&Issue) -> bool) -> Vec<Issue> {
        let state = self.request.parameter("state");
        let state = if state.is_empty() { "open" } else { &state };
        let found = repository.issues.iter().filter(|it| (state == "all" || it.state == state) && is_wanted(it));
        let mut found: Vec<_> = found.cloned().collect();
        if self.request.parameter("direction") != "asc" {
            found.reverse();
        }
        found
    }

    /// One page of a list, with the links to the others.
    fn page(&self, items: Vec<Value>) -> Response {
        let number = |name: &str, default: usize| self.request.parameter(name).parse().unwrap_or(default).max(1);
        let (size, page) = (number("per_page", 30).min(100), number("page", 1));
        let last = items.len().div_ceil(size).max(1);
        let shown: Vec<_> = items.into_iter().skip((page - 1) * size).take(size).collect();
        let mut links = Vec::new();
        let mut link = |to: usize, relation: &str| {
            let query = url::form_urlencoded::parse(self.request.query.as_bytes()).filter(|(name, _)| name != "page");
            let query = url::form_urlencoded::Serializer::new(String::new())
                .extend_pairs(query)
                .append_pair("page", &to.to_string())
                .finish();
            links.push(format!("<{}{}?{query}>; rel=\"{relation}\"", self.world.origin, self.request.path));
        };
        if page < last {
            link(page + 1, "next");
            link(last, "last");
        }
        if page > 1 {
            link(page - 1, "prev");
            link(1, "first");
        }
        let response = Response::json(200, &json!(shown));
        if links.is_empty() { response } else { response.with("Link", links.join(", ")) }
    }

    fn repository_json(&self, it: &Repository) -> Value {
        let (owner, name) = it.full_name.split_once('/').expect("owner/name");
        let may = |level: &str| self.world.may(&self.caller, it, "contents", level);
        let parent = it.parent.as_ref().map(|parent| json!({"full_name": parent}));
        json!({
            "id": it.id, "node_id": format!("R_{}", it.id), "name": name, "full_name": it.full_name,
            "owner": {"login": owner, "id": 9000, "type": "Organization"}, "private": it.is_private, "fork": it.parent.is_some(),
            "parent": parent, "archived": it.is_archived, "disabled": false, "has_issues": it.has_issues,
            "default_branch": it.default_branch, "size": 1, "visibility": if it.is_private { "private" } else { "public" },
            "html_url": format!("{}/{}", self.world.origin, it.full_name),
            "clone_url": format!("{}/{}.git", self.world.origin, it.full_name),
            "permissions": {"admin": false, "push": may("write"), "pull": true},
        })
    }

    fn issue_json(&self, repository: &Repository, it: &Issue) -> Value {
        let kind = if it.pull.is_some() { "pull" } else { "issues" };
        let page = format!("{}/{}/{kind}/{}", self.world.origin, repository.full_name, it.number);
        let mut issue = json!({
            "id": it.id, "node_id": format!("I_{}", it.id), "number": it.number, "title": it.title, "body": it.body,
            "state": it.state, "locked": false, "html_url": page,
            "url": format!("{}/api/v3/repos/{}/issues/{}", self.world.origin, repository.full_name, it.number),
            "labels": it.labels.iter().map(|it| json!({"name": it})).collect::<Vec<_>>(),
            "assignees": it.assignees.iter().map(|it| json!({"login": it})).collect::<Vec<_>>(),
            "user": self.world.person_json(&it.author), "created_at": rfc3339(it.created_at),
            "comments": repository.comments.iter().filter(|comment| comment.issue == it.number).count(),
        });
        if it.pull.is_some() {
            issue["pull_request"] = json!({"html_url": page});
        }
        issue
    }

    fn pull_json(&self, repository: &Repository, it: &Issue) -> Value {
        let mut answer = self.issue_json(repository, it);
        let Some(pull) = &it.pull else { return answer };
        answer.as_object_mut().expect("an object").remove("pull_request");
        let side = |full_name: &str, branch: &str| {
            let owner = full_name.split('/').next().unwrap_or_default();
            let sha = self.git.branch(full_name, branch);
            let of = self.world.repository(full_name).map(|it| self.repository_json(it));
            json!({"ref": branch, "label": format!("{owner}:{branch}"), "sha": sha, "repo": of})
        };
        let more = json!({
            "draft": pull.is_draft, "merged": pull.is_merged, "maintainer_can_modify": pull.maintainer_can_modify,
            "merged_at": pull.is_merged.then(|| rfc3339(it.created_at)), "mergeable": null,
            "head": side(&pull.head_repository, &pull.head), "base": side(&repository.full_name, &pull.base),
            "requested_reviewers": pull.reviewers.iter().map(|it| json!({"login": it})).collect::<Vec<_>>(),
        });
        answer.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        answer
    }

    fn comment_json(&self, repository: &Repository, it: &Comment) -> Value {
        let page =
            format!("{}/{}/issues/{}#issuecomment-{}", self.world.origin, repository.full_name, it.issue, it.id);
        json!({"id": it.id, "body": it.body, "html_url": page, "user": self.world.person_json(&it.author),
               "created_at": rfc3339(it.created_at)})
    }
}

fn issue_of<'a>(repository: &'a Repository, number: &str) -> Result<&'a Issue, Response> {
    repository.issues.iter().find(|it| it.number.to_string() == number).ok_or_else(not_found)
}

fn strings(list: &Value) -> Vec<String> {
    let all = list.as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().filter_map(|it| it.as_str().or_else(|| it["name"].as_str())).map(str::to_owned).collect()
}

fn check_length(text: &str, max: usize, field: &str) -> Result<(), Response> {
    if text.encode_utf16().count() <= max {
        return Ok(());
    }
    let message = format!("{field} is too long (maximum is {max} characters)");
    Err(invalid(json!([{"resource": "Issue", "code": "custom", "field": field, "message": message}])))
}

fn check_texts(body: &Value, is_new: bool) -> Result<(), Response> {
    let title = body["title"].as_str().unwrap_or_default();
    if is_new && title.is_empty() {
        return Err(invalid(json!([{"resource": "Issue", "code": "missing_field", "field": "title"}])));
    }
    check_length(title, MAX_TITLE, "title")?;
    check_length(body["body"].as_str().unwrap_or_default(), MAX_BODY, "body")
}

fn check_people(repository: &Repository, names: &[String], field: &str) -> Result<(), Response> {
    match names.iter().find(|it| !repository.people.contains_key(*it)) {
        Some(name) => Err(invalid(json!([{"value": name, "resource": "Issue", "field": field, "code": "invalid"}]))),
        None => Ok(()),
    }
}

fn change_issue(issue: &mut Issue, body: &Value) {
    for (name, target) in [("title", &mut issue.title), ("body", &mut issue.body), ("state", &mut issue.state)] {
        if let Some(value) = body[name].as_str() {
            value.clone_into(target);
        }
    }
    if body["labels"].is_array() {
        issue.labels = strings(&body["labels"]);
    }
}
