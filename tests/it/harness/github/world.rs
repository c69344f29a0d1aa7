//! Everything that the stand-in knows, and who may do what.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    api::Caller,
    auth::PublicKey,
    faults::Faults,
    git::Repositories,
    state::{Holder, Installation, Issue, Logged, Repository, Token},
};
use crate::harness::{Value, json};

/// Requests per hour, as the headers report them.
const QUOTA: u64 = 5000;

#[derive(Debug, Default)]
pub(super) struct World {
    /// `http://127.0.0.1:PORT`.
    pub origin: String,
    pub app_id: u64,
    pub app_slug: String,
    pub app_key: Option<PublicKey>,
    pub repositories: BTreeMap<String, Repository>,
    /// Ids of repositories by earlier names.
    pub moved: BTreeMap<String, u64>,
    pub installations: Vec<Installation>,
    pub tokens: Vec<Token>,
    /// Logins and ids of people.
    pub people: BTreeMap<String, u64>,
    pub faults: Faults,
    pub log: Vec<Logged>,
    /// Time from requests to their answers, of all requests.
    pub time: Duration,
    /// Lifetime of tokens of installations, in seconds.
    pub token_seconds: i64,
    /// Seconds by which the clock is ahead.
    pub ahead: i64,
    pub used: u64,
    /// The last id of an object.
    pub last_id: u64,
    /// True once [`GitHub::release`](super::GitHub::release) was called and until the next hold.
    pub is_released: bool,
    /// Requests that wait for a release.
    pub held: usize,
    /// Requests that create something and are being handled, and the most of them so far.
    pub creating: usize,
    pub most_creating: usize,
    pub is_over: bool,
    /// Commits that GitHub made and signed itself.
    pub signed: Vec<String>,
    /// Port of the emulator that answers the API instead.
    pub upstream: Option<u16>,
}

impl World {
    /// Seconds since 1970.
    pub(super) fn now(&self) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        i64::try_from(now).expect("in range") + self.ahead
    }

    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn quota(&self) -> Value {
        let used = self.used.min(QUOTA);
        json!({"limit": QUOTA, "used": used, "remaining": QUOTA - used, "reset": self.now() + 3000})
    }

    pub(super) fn repository(&self, full_name: &str) -> Option<&Repository> {
        self.repositories.get(full_name)
    }

    pub(super) fn repository_mut(&mut self, full_name: &str) -> &mut Repository {
        self.repositories.get_mut(full_name).unwrap_or_else(|| panic!("there is no repository {full_name}"))
    }

    pub(super) fn issue_mut(&mut self, full_name: &str, number: u64) -> &mut Issue {
        let all = &mut self.repository_mut(full_name).issues;
        all.iter_mut().find(|it| it.number == number).unwrap_or_else(|| panic!("there is no issue {number}"))
    }

    /// The holder of a valid token.
    pub(super) fn holder(&self, token: &str) -> Option<Holder> {
        let now = self.now();
        let is_valid = |it: &&Token| it.value == token && !it.is_revoked && it.expires_at.is_none_or(|end| now < end);
        self.tokens.iter().find(is_valid).map(|it| it.holder.clone())
    }

    pub(super) fn reaches(&self, holder: &Holder, repository: &Repository) -> bool {
        match holder {
            Holder::User(login) => repository.people.contains_key(login),
            Holder::Installation { id, repositories, .. } => {
                let installation = self.installations.iter().find(|it| it.id == *id && !it.is_suspended);
                installation.is_some_and(|it| it.reaches(&repository.full_name))
                    && repositories.as_ref().is_none_or(|all| all.contains(&repository.id))
            }
        }
    }

    pub(super) fn can_read(&self, caller: &Caller, repository: &Repository) -> bool {
        match caller {
            Caller::Token(holder) => !repository.is_private || self.reaches(holder, repository),
            Caller::App | Caller::Anonymous => !repository.is_private,
        }
    }

    /// True if the caller has a permission on the repository, at the level `read` or `write`.
    pub(super) fn may(&self, caller: &Caller, repository: &Repository, permission: &str, level: &str) -> bool {
        let Caller::Token(holder) = caller else { return level == "read" && !repository.is_private };
        let is_public_read = level == "read" && !repository.is_private;
        is_public_read
            || self.reaches(holder, repository)
                && match holder {
                    Holder::User(login) => {
                        let held = repository.people.get(login).map_or("read", String::as_str);
                        level == "read" || ["write", "admin"].contains(&held)
                    }
                    Holder::Installation { permissions, .. } => {
                        let held = permissions.get(permission).map_or("none", String::as_str);
                        held == level || held == "write" || held == "admin"
                    }
                }
    }

    pub(super) fn app_json(&self) -> Value {
        let name = self.app_slug.replace('-', " ");
        json!({"id": self.app_id, "slug": self.app_slug, "name": name, "node_id": "A_1"})
    }

    pub(super) fn installation_json(&self, it: &Installation) -> Value {
        let selection = if it.repositories.is_some() { "selected" } else { "all" };
        let suspended_at = it.is_suspended.then_some("2026-01-01T00:00:00Z");
        json!({"id": it.id, "app_id": self.app_id, "app_slug": self.app_slug, "permissions": it.permissions,
               "account": {"login": it.account, "id": 9000, "type": "Organization"}, "repository_selection": selection,
               "suspended_at": suspended_at})
    }

    pub(super) fn person_json(&self, login: &str) -> Value {
        let is_bot = login.ends_with("[bot]");
        let id = if is_bot { 4_100_000 + self.app_id } else { self.people.get(login).copied().unwrap_or(1) };
        let kind = if is_bot { "Bot" } else { "User" };
        json!({"login": login, "id": id, "type": kind, "name": login.trim_end_matches("[bot]"), "email": null})
    }

    /// Moves `refs/pull/<n>/head` of open pull requests to their heads.
    pub(super) fn update_pull_refs(&self, git: &Repositories) {
        for repository in self.repositories.values() {
            for issue in repository.issues.iter().filter(|it| it.state == "open") {
                let Some(pull) = &issue.pull else { continue };
                git.update_pull_ref(&repository.full_name, issue.number, &pull.head_repository, &pull.head);
            }
        }
    }
}
