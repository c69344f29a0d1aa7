//! Tokens of the API: made, listed, revoked.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::tenants::{TokenLimits, object};
use crate::domain::{
    access::Role,
    clock::Timestamp,
    ids::{InstallationId, Subject, UserId, WorkspaceId},
};

/// `POST /acp/tokens`: what the token grants.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(examples(json!({"installationId": "acme", "subject": "ann", "role": "user", "expiresAt": "2027-06-01T00:00:00Z"})))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TokenBody {
    /// The only tenant that the token reaches; without it all tenants.
    pub installation_id: Option<InstallationId>,
    /// The only workspace of the tenant that the token reaches.
    pub workspace_id: Option<WorkspaceId>,
    /// The only user of the tenant whose sessions the token reaches; sessions that it opens belong to this user.
    pub user_id: Option<UserId>,
    /// Name of the person or program that gets the token: the `actor` of its changes in the audit.
    pub subject: Subject,
    /// Role of the token: a set of operations.
    pub role: Role,
    /// Time from which the token is refused, RFC 3339 in UTC; without it the token does not expire.
    pub expires_at: Option<Timestamp>,
    /// Limits of its use, beside those of the tenant; without them it has none.
    #[serde(default, deserialize_with = "object")]
    pub limits: Option<TokenLimits>,
}

/// A token, without its text.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TokenItem {
    pub token_id: Uuid,
    /// The only tenant that the token reaches; absent for all tenants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub installation_id: Option<InstallationId>,
    /// The only workspace that the token reaches; absent for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace_id: Option<WorkspaceId>,
    /// The only user whose sessions the token reaches; absent for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    /// Name of the person or program that has the token.
    pub subject: String,
    pub role: Role,
    /// Limits of its use; null is unlimited.
    pub limits: TokenLimits,
    /// Subject of the token with which it was made.
    pub created_by: String,
    /// Time of creation, RFC 3339 in UTC.
    pub created_at: Timestamp,
    /// Time from which the token is refused, RFC 3339 in UTC; absent if it does not expire.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Time of the revocation, RFC 3339 in UTC; absent for a token that was not revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
    /// Subject of the token with which it was revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_by: Option<String>,
    /// Time of the last request, RFC 3339 in UTC, at most a minute old; absent until the first one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Timestamp>,
}

/// A new token. Its text is shown only here.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewToken {
    /// The token, to be sent as `Authorization: Bearer <token>`. It is not stored and cannot be read again.
    pub token: String,
    #[serde(flatten)]
    pub item: TokenItem,
}

impl fmt::Debug for NewToken {
    /// Omits the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewToken").field("item", &self.item).finish_non_exhaustive()
    }
}

/// `GET /acp/tokens`: the tokens to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct TokenQuery {
    /// Only tokens of this tenant.
    pub installation_id: Option<InstallationId>,
    /// Most entries on the page.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<usize>,
    /// `nextCursor` of the previous page.
    #[param(pattern = r"^-?[0-9]{1,18}~[!-~]{0,300}$")]
    pub cursor: Option<String>,
}
