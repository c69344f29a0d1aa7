//! What carries a turn.

use serde::{Deserialize, Serialize};

/// What the router chose for a workspace. A turn ends on the route on which it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// ACP, live.
    Acp,
    /// The managed fallback.
    Http,
}

impl Route {
    /// Every route, for metrics that start at 0.
    pub const ALL: [Self; 2] = [Self::Acp, Self::Http];

    /// Its name in answers, rows and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Acp => "acp",
            Self::Http => "http",
        }
    }

    /// Reads the name back.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|route| route.as_str() == name)
    }
}
