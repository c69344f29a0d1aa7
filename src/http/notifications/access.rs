//! Authorisation of subscribers: from a query, a ticket or a subprotocol to a scope.

use actix_web::{
    HttpRequest,
    http::header::{self, HeaderMap},
    web,
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use crate::{
    contract::notifications::{
        SocketQuery, StreamName, Subscription,
        frames::{BEARER_SUBPROTOCOL, SUBPROTOCOL, TICKET_SUBPROTOCOL},
    },
    domain::{
        access::{Caller, Privilege},
        ids::{InstallationId, WorkspaceKey},
        notify::notification::{Scope, Stream},
        turn::outcome::ErrorCode,
    },
    http::{
        HttpState,
        problem::ApiError,
        rows::{self, permit},
        secret::{self, hash_of},
    },
};

pub(crate) const SOCKET_PATH: &str = "/ws/notifications";

/// The rights that a ticket gives.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Allowed {
    subscription: Subscription,
    /// The tenant of the token, by which an erasure finds the ticket.
    installation_id: Option<InstallationId>,
    /// Id of the token with which the ticket was requested, unless that is `server.token`.
    token_id: Option<Uuid>,
}

/// The scope of a subscription of a caller. A session has to belong to the tenant.
pub(crate) async fn scope_of(state: &HttpState, caller: &Caller, requested: Subscription) -> Result<Scope, ApiError> {
    let Subscription { installation_id, workspace_id, user_id, session_id, stream } = requested;
    if stream == Some(StreamName::Operators) {
        if installation_id.is_some() || workspace_id.is_some() || user_id.is_some() || session_id.is_some() {
            let detail = "stream=operators: cannot be combined with installationId, workspaceId, userId or sessionId";
            return Err(ApiError::new(ErrorCode::InvalidRequest, detail));
        }
        permit(caller, Privilege::Operate)?;
        return Ok(Scope::all(Stream::Operators));
    }
    let installation_id = rows::tenant(caller, installation_id)?;
    let workspace_id = rows::workspace(caller, workspace_id)?;
    let user = rows::user(caller, user_id)?;
    let (installation_id, workspace) = match session_id {
        Some(id) => {
            let key = rows::find_session(state, caller, id).await?.key;
            let fits = installation_id.is_none_or(|tenant| tenant == key.installation_id)
                && workspace_id.is_none_or(|workspace| workspace == key.workspace_id);
            if !fits {
                return Err(ApiError::new(ErrorCode::NotFound, format!("no session {id}")));
            }
            (key.installation_id, Some(key.workspace_id))
        }
        None => {
            let missing = || ApiError::new(ErrorCode::InvalidRequest, "installationId: is missing");
            (installation_id.ok_or_else(missing)?, workspace_id)
        }
    };
    // A caller that is limited to a user learns about workspaces only if that user works in them.
    let sessions_only = match &workspace {
        None => caller.scope().user.is_some(),
        Some(name) => {
            let key = WorkspaceKey { installation_id: installation_id.clone(), workspace_id: name.clone() };
            !rows::works_in(state, caller, &key).await?
        }
    };
    Ok(Scope { stream: Stream::Tenant(installation_id), workspace, user, session: session_id, sessions_only })
}

/// The subprotocols that a client offers.
fn offered(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// True if a client offers the subprotocol of the frames, which the server then selects.
pub(crate) fn offers_frames(headers: &HeaderMap) -> bool {
    offered(headers).any(|protocol| protocol == SUBPROTOCOL)
}

/// The token among the subprotocols that a client offers.
pub(crate) fn offered_token(headers: &HeaderMap) -> Option<String> {
    let token = offered(headers).find_map(|protocol| protocol.strip_prefix(BEARER_SUBPROTOCOL))?;
    String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(token).ok()?).ok()
}

/// The ticket of a request: in its query, or among the subprotocols.
pub(crate) fn ticket(request: &HttpRequest) -> Option<SecretString> {
    let query = web::Query::<SocketQuery>::from_query(request.query_string()).ok();
    let in_query = query.and_then(|query| query.into_inner().ticket);
    let offered = || offered(request.headers()).find_map(|protocol| protocol.strip_prefix(TICKET_SUBPROTOCOL));
    in_query.or_else(|| offered().map(SecretString::from))
}

/// The persisted form of what a ticket allows its holder.
pub(crate) fn allowance(caller: &Caller, subscription: Subscription) -> String {
    let installation_id = caller.scope().tenant.clone();
    let allowed = Allowed { subscription, installation_id, token_id: caller.grant().token_id };
    serde_json::to_string(&allowed).unwrap_or_default()
}

/// Redeems a ticket and takes a subscriber's seat. The time of arrival decides whether the ticket has expired.
///
/// # Errors
/// `unauthorized` if the ticket is unknown, used, expired, or allows another selection; `capacity_exhausted` without a
/// seat, and then the ticket stays valid.
pub(crate) async fn redeem(
    state: &HttpState,
    ticket: &SecretString,
    requested: &Subscription,
) -> Result<(Caller, Subscription, OwnedSemaphorePermit), ApiError> {
    let refused = || ApiError::new(ErrorCode::Unauthorized, "the ticket is unknown, used or expired: get a new one");
    let ticket = ticket.expose_secret();
    let (services, hash) = (state.workspaces.services(), hash_of(ticket));
    let (arrived, store, hash_to_find) = (services.clock.now(), services.store.clone(), hash.clone());
    // This is reachable without a token: an invalid ticket costs one read, never a seat or a write.
    if !secret::is_well_formed(ticket)
        || !state.notifications.look(async move { store.has_ticket(hash_to_find).await }).await?
    {
        return Err(refused());
    }
    let seat = state.notifications.seat()?;
    let kept = services.store.take_ticket(hash, arrived).await?.ok_or_else(refused)?;
    let Allowed { subscription, installation_id: _, token_id } =
        serde_json::from_str(&kept).map_err(|_| refused())?;
    let caller = match token_id {
        Some(id) => services.tokens.by_id(id, arrived).ok_or_else(refused)?,
        None => Caller::of_server(),
    };
    // The query of the socket may be empty or equal to that of the ticket.
    if *requested != Subscription::default() && *requested != subscription {
        return Err(refused());
    }
    Ok((caller, subscription, seat))
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn tokens_and_tickets_are_found_among_the_subprotocols() {
        let offer = |protocols: &'static str| TestRequest::get().insert_header(("sec-websocket-protocol", protocols));
        let token = format!("{SUBPROTOCOL}, {BEARER_SUBPROTOCOL}{}", BASE64_URL_SAFE_NO_PAD.encode("se cret/+"));
        let request = TestRequest::get().insert_header(("sec-websocket-protocol", token)).to_http_request();
        assert_eq!(offered_token(request.headers()).as_deref(), Some("se cret/+"));
        assert!(offers_frames(request.headers()) && ticket(&request).is_none());
        let request = offer("lumilink.ticket.abc,lumilink.notifications.v1").to_http_request();
        let found = |request: &HttpRequest| ticket(request).map(|ticket| ticket.expose_secret().to_owned());
        assert_eq!((found(&request).as_deref(), offered_token(request.headers())), (Some("abc"), None));
        let request = TestRequest::with_uri("/ws/notifications?ticket=x&installationId=a").to_http_request();
        assert_eq!(found(&request).as_deref(), Some("x"));
        assert!(offered_token(offer("lumilink.bearer.!!").to_http_request().headers()).is_none());
    }
}
