//! The members of GitHub's payloads that are used. Unknown members are ignored.

use serde::{Deserialize, de::IgnoredAny};

use crate::domain::clock::Timestamp;

/// A payload of the events that start turns.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Payload {
    pub action: Option<String>,
    installation: Option<Id>,
    pub repository: Option<Repository>,
    /// The person or program that caused the event.
    pub sender: Option<Account>,
    pub issue: Option<Subject>,
    pub pull_request: Option<Subject>,
    pub comment: Option<Comment>,
    /// The label that was applied.
    pub label: Option<Label>,
    /// Present in `opened` for an issue that was moved here from another repository.
    changes: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
struct Id {
    id: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Repository {
    pub id: u64,
    pub full_name: String,
}

/// A user, an organisation or a bot.
#[derive(Debug, Deserialize)]
pub(crate) struct Account {
    pub id: u64,
    pub login: String,
    #[serde(default, rename = "type")]
    kind: Option<String>,
}

/// An issue or a pull request.
#[derive(Debug, Deserialize)]
pub(crate) struct Subject {
    pub number: u64,
    #[serde(default)]
    pub title: Option<String>,
    #[serde(default)]
    pub body: Option<String>,
    /// `open` or `closed`.
    #[serde(default)]
    state: Option<String>,
    /// `None` for a deleted account.
    #[serde(default)]
    pub user: Option<Account>,
    #[serde(default)]
    pub labels: Option<Vec<Label>>,
    /// Present on the issue side of a pull request.
    #[serde(default)]
    pull_request: Option<IgnoredAny>,
    /// Present if a program opened it with the token of a person.
    #[serde(default)]
    pub performed_via_github_app: Option<IgnoredAny>,
    #[serde(default)]
    created_at: Option<String>,
    /// Time of the last change; applying a label is one.
    #[serde(default)]
    updated_at: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Comment {
    pub id: u64,
    #[serde(default)]
    pub body: Option<String>,
    #[serde(default)]
    pub user: Option<Account>,
    /// Present if a program wrote it with the token of a person.
    #[serde(default)]
    pub performed_via_github_app: Option<IgnoredAny>,
    #[serde(default)]
    created_at: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Label {
    pub name: String,
}

/// A payload that is no JSON, or whose members have other types than GitHub's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadPayload(String);

impl Payload {
    /// Parses a payload. Members that are not used may be nested as deep as the body is long, which takes no stack.
    ///
    /// # Errors
    /// The place of the error.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, BadPayload> {
        if body.trim_ascii_start().first() != Some(&b'{') {
            return Err(BadPayload("payload: is not an object".to_owned()));
        }
        serde_json::from_slice(body).map_err(|cause| BadPayload(format!("payload: {cause}")))
    }

    /// Id of the installation of the App.
    pub(crate) fn installation_id(&self) -> Option<u64> {
        self.installation.as_ref().map(|installation| installation.id)
    }

    /// True for an issue that was opened in another repository.
    pub(crate) fn is_moved(&self) -> bool {
        self.changes.is_some()
    }
}

/// The time of a member, at a resolution of one second; `None` if it is missing or malformed.
fn time_of(text: Option<&String>) -> Option<Timestamp> {
    text.and_then(|text| Timestamp::parse(text))
}

impl Comment {
    pub(crate) fn created(&self) -> Option<Timestamp> {
        time_of(self.created_at.as_ref())
    }
}

impl Account {
    /// True for a person; false for a bot, an organisation or a placeholder.
    pub(crate) fn is_person(&self) -> bool {
        self.kind.as_deref() == Some("User")
    }
}

impl Subject {
    pub(crate) fn is_closed(&self) -> bool {
        self.state.as_deref() == Some("closed")
    }

    pub(crate) fn is_pull_request(&self) -> bool {
        self.pull_request.is_some()
    }

    pub(crate) fn created(&self) -> Option<Timestamp> {
        time_of(self.created_at.as_ref())
    }

    pub(crate) fn updated(&self) -> Option<Timestamp> {
        time_of(self.updated_at.as_ref())
    }
}
