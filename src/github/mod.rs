//! A client of GitHub's REST API, bounded in time, size, pages and pace, and the authentication of a GitHub App.
//!
//! Invariants:
//! - A token leaves this folder only in the header of a request, over TLS or to this machine, and never to another host
//!   than that of the API.
//! - A request that creates something is sent once. After an answer that is lost, or an error of the server, the caller
//!   looks for what exists ([`create_once`]).
//! - The meaning of an answer is decided in [`domain::automation::github_answer`](crate::domain::automation::github_answer).

mod app;
mod client;
mod comment;
mod create;
mod exchange;
mod fit;
mod locks;
mod model;
mod repository;
#[cfg(test)]
pub(crate) mod stub;
#[cfg(test)]
mod tests;

pub(crate) use self::app::{App, AppKey, AppOptions, AppToken, Scope, unbound};
pub(crate) use self::{
    client::{Access, GithubClient},
    comment::comment_once,
    create::{Creation, create_once},
    exchange::{Github, GithubLimits},
    fit::{fit_body, fit_title},
    model::{
        Collaborator, CommitObject, Issue, Name, PullRequest, Reference, RepositoryFacts, Ruleset, User, WorkflowRuns,
    },
    repository::Repository,
};
