//! Notifications: the WebSocket, the inbox, acknowledgements, and tickets for browsers.

pub(crate) mod access;
pub(crate) mod connection;
pub(crate) mod feed;
pub(crate) mod socket;
pub(crate) mod webhooks;

use actix_web::{
    HttpRequest, HttpResponse, get,
    http::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL},
    post, web,
};
use uuid::Uuid;

use self::access::{allowance, offered_token, offers_frames, redeem, scope_of, ticket};
use super::{
    HttpState,
    problem::ApiError,
    refusals::{OfBody, OfSocket, Problems},
    request::{Body, Query, page, parse_body, path_id},
    secret::{self, hash_of},
};
use crate::{
    actors::handles::subscriber::notification_of,
    contract::notifications::{
        AckBody, Acknowledged, InboxItem, InboxPage, InboxQuery, SocketQuery, Subscription, Ticket,
        frames::SUBPROTOCOL,
    },
    domain::{access::Caller, turn::outcome::ErrorCode},
    store::InboxRows,
};

/// Reads notifications over a WebSocket.
///
/// The client starts with the frame `hello`; see `ClientFrame` and `ServerFrame`. A server authenticates with the bearer
/// token; a browser page with a ticket, in the query or as a subprotocol, or with the token as a subprotocol.
#[utoipa::path(
    tag = "notifications",
    security(("token" = ["notifications.read"]), ()),
    params(SocketQuery),
    responses(
        (status = 101, description = "The WebSocket is open"),
        Problems<(OfSocket, OfBody)>,
    )
)]
#[get("/ws/notifications")]
pub(crate) async fn subscribe(
    request: HttpRequest,
    body: web::Payload,
    state: web::Data<HttpState>,
    caller: Option<Caller>,
    query: Query<SocketQuery>,
) -> Result<HttpResponse, ApiError> {
    // First, so that a request that is no upgrade does not use up a ticket.
    socket::check(&request)?;
    state.workspaces.admission()?;
    let requested = query.into_inner().subscription();
    let ticket = ticket(&request);
    // The authorisation of a browser page expires.
    let is_page = ticket.is_some() || offered_token(request.headers()).is_some();
    let (caller, allowed, seat) = match (ticket, caller) {
        (Some(ticket), _) => redeem(&state, &ticket, &requested).await?,
        (None, Some(caller)) => (caller, requested, state.notifications.seat()?),
        (None, None) => return Err(ApiError::new(ErrorCode::Unauthorized, "the request names no caller")),
    };
    let now = state.workspaces.services().clock.steady();
    let expires = is_page.then(|| now.plus(state.config.notifications.ticket_session()));
    let scope = scope_of(&state, &caller, allowed).await?;
    let mut response = socket::open((&request, body), &state, (caller, scope), seat, expires)?;
    if offers_frames(request.headers()) {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    Ok(response)
}

/// Lists notifications, the newest first. Each has whether it is marked as read: by `userId`, or for everyone without one.
#[utoipa::path(
    tag = "notifications",
    security(("token" = ["notifications.read"])),
    params(InboxQuery),
    responses(
        (status = 200, description = "A page of the inbox", body = InboxPage),
        Problems<OfBody>,
    )
)]
#[get("/acp/notifications")]
pub(crate) async fn list_inbox(
    state: web::Data<HttpState>,
    caller: Caller,
    query: Query<InboxQuery>,
) -> Result<web::Json<InboxPage>, ApiError> {
    let query = query.into_inner();
    let scope = scope_of(&state, &caller, query.subscription()).await?;
    let page = page(&state, query.limit, query.cursor)?;
    let store = &state.workspaces.services().store;
    // Read first: a subscriber that continues from it sees a notification twice rather than never.
    let head = store.stream_ends(scope.stream.clone()).await?.head;
    let InboxRows { rows, unreadable, next } = store.inbox(scope.clone(), query.unread_only, page).await?;
    let next_cursor = next.map(|cursor| cursor.to_string());
    let items =
        rows.iter().map(|(row, read)| InboxItem { notification: notification_of(row), read: *read }).collect();
    let unread = store.unread(scope).await?;
    Ok(web::Json(InboxPage { items, unreadable, unread, epoch: store.epoch().to_owned(), head, next_cursor }))
}

/// Marks a notification as read for `userId`, or for everyone without one. Idempotent.
#[utoipa::path(
    tag = "notifications",
    security(("token" = ["notifications.read"])),
    params(("id" = Uuid, Path, description = "Id of the notification")),
    request_body = AckBody,
    responses(
        (status = 200, description = "The notification is marked as read", body = Acknowledged),
    )
)]
#[post("/acp/notifications/{id}/ack")]
pub(crate) async fn acknowledge(
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
    body: Body,
) -> Result<web::Json<Acknowledged>, ApiError> {
    let id: Uuid = path_id(&id, "notification")?;
    let scope = scope_of(&state, &caller, parse_body(&body)?).await?;
    let services = state.workspaces.services();
    if services.store.mark_read(scope.clone(), vec![id], services.clock.now()).await? != [true] {
        return Err(ApiError::new(ErrorCode::NotFound, format!("no notification {id}")));
    }
    Ok(web::Json(Acknowledged { id, unread: services.store.unread(scope).await? }))
}

/// Issues a ticket with which a browser page opens one WebSocket. It is valid once, within `notifications.ticket_ttl_s`,
/// for the notifications that the body selects. The server of the page requests it, so the page never has the token.
#[utoipa::path(
    tag = "notifications",
    security(("token" = ["notifications.read"])),
    request_body = Subscription,
    responses(
        (status = 201, description = "The ticket", body = Ticket),
        Problems<OfBody>,
    )
)]
#[post("/acp/notifications/ticket")]
pub(crate) async fn make_ticket(
    state: web::Data<HttpState>,
    caller: Caller,
    body: Body,
) -> Result<HttpResponse, ApiError> {
    let requested: Subscription = parse_body(&body)?;
    scope_of(&state, &caller, requested.clone()).await?;
    let services = state.workspaces.services();
    let now = services.clock.now();
    let expires_at = now.plus(state.config.notifications.ticket_ttl());
    let (ticket, allows) = (secret::random(), allowance(&caller, requested));
    services.store.add_ticket(hash_of(&ticket), allows, expires_at, now).await?;
    Ok(HttpResponse::Created().insert_header(("Cache-Control", "no-store")).json(Ticket { ticket, expires_at }))
}
