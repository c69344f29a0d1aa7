//! The address of a repository in the API, which changes when the repository is renamed.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{client::GithubClient, model::RepositoryFacts};
use crate::domain::automation::{
    github_answer::{Cause, Refusal},
    repository_pattern::RepositoryName,
};

/// A repository at GitHub.
#[derive(Debug, Clone)]
pub(crate) struct Repository {
    name: RepositoryName,
}

impl Repository {
    pub(crate) fn new(name: RepositoryName) -> Self {
        Self { name }
    }

    /// The name as it was given, or as GitHub spells it after [`Self::resolve`].
    pub(crate) fn name(&self) -> &RepositoryName {
        &self.name
    }

    /// The path of an operation on the repository.
    pub(crate) fn path<'a>(&'a self, tail: &[&'a str]) -> Vec<&'a str> {
        ["repos", self.name.owner(), self.name.name()].into_iter().chain(tail.iter().copied()).collect()
    }

    /// True if an address of the API, such as `repository_url`, is that of this repository.
    pub(crate) fn is_at(&self, address: &str) -> bool {
        let (owner, name) = (self.name.owner(), self.name.name());
        let tail = format!("/repos/{owner}/{name}").to_ascii_lowercase();
        address.to_ascii_lowercase().ends_with(&tail)
    }

    /// Reads the repository, and takes over its name of today.
    ///
    /// # Errors
    /// As [`GithubClient::get`].
    pub(crate) async fn resolve(&mut self, client: &mut GithubClient) -> Result<RepositoryFacts, Refusal> {
        let facts: RepositoryFacts = client.get(&self.path(&[])).await?;
        if let Some(name) = facts.full_name.as_deref().and_then(RepositoryName::parse) {
            self.name = name;
        }
        Ok(facts)
    }

    /// Creates something in the repository. A redirect, with which GitHub answers after a rename, creates nothing: the
    /// name is read again, and the request is sent to the new address once.
    ///
    /// # Errors
    /// As [`GithubClient::create`].
    pub(crate) async fn create<T: DeserializeOwned>(
        &mut self,
        client: &mut GithubClient,
        tail: &[&str],
        body: &Value,
    ) -> Result<T, Refusal> {
        match client.create(&self.path(tail), body).await {
            Err(refusal) if refusal.cause == Cause::Moved => {
                self.resolve(client).await?;
                client.create(&self.path(tail), body).await
            }
            result => result,
        }
    }
}
