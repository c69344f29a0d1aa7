//! Ids of sessions, turns and folders; names of tenants, workspaces and users.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub(crate) struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

uuid_id! {
    /// A session of this service: a UUID of version 7, so that ids sort by age. The agent has a session id of its own,
    /// which is never shown as this one.
    SessionId
}
uuid_id! {
    /// A prompt turn: a UUID of version 7.
    PromptId
}
uuid_id! {
    /// The folder of a workspace under the root. Generated, so that no text of a caller becomes a path.
    FolderId
}

/// A malformed name in a request, with the name of its field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} must be 1 to {MAX_NAME_LENGTH} characters of A-Z a-z 0-9 . _ : @ - and begin with a letter or digit")]
pub(crate) struct BadName(&'static str);

/// The longest name that a caller may choose, in characters; short enough for an index and a log line.
pub(crate) const MAX_NAME_LENGTH: usize = 128;

fn checked_name<'a>(called: &'static str, text: &'a str) -> Result<&'a str, BadName> {
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._:@-".contains(&byte));
    if first && rest && text.len() <= MAX_NAME_LENGTH { Ok(text) } else { Err(BadName(called)) }
}

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident = $called:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub(crate) struct $name(String);

        impl $name {
            pub(crate) fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadName;

            fn try_from(text: String) -> Result<Self, BadName> {
                checked_name($called, &text)?;
                Ok(Self(text))
            }
        }

        impl FromStr for $name {
            type Err = BadName;

            fn from_str(text: &str) -> Result<Self, BadName> {
                checked_name($called, text).map(|text| Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_id! {
    /// A tenant.
    InstallationId = "installationId"
}
name_id! {
    /// A workspace of a tenant; unique only within the tenant, see [`WorkspaceKey`].
    WorkspaceId = "workspaceId"
}
name_id! {
    /// The person or program that holds a token.
    Subject = "subject"
}
name_id! {
    /// The user of a session.
    UserId = "userId"
}

/// The unique key of a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct WorkspaceKey {
    pub installation_id: InstallationId,
    pub workspace_id: WorkspaceId,
}

impl fmt::Display for WorkspaceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.installation_id, self.workspace_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_usable_as_a_path_or_an_option_are_refused() {
        for bad in ["", "-x", "..", ".git", "a/b", "a b", "a\0", "ü", &"a".repeat(129)] {
            assert!(bad.parse::<WorkspaceId>().is_err(), "{bad:?}");
        }
        for good in ["a", "ws-1", "octo_org.repo:main", "1", &"a".repeat(128)] {
            assert!(good.parse::<WorkspaceId>().is_ok(), "{good:?}");
        }
    }
}
