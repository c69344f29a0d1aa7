//! The way in for subscribers of toasts, the inbox, acknowledgements, and tickets for browsers.

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

use self::access::{hash_of, new_ticket, offered_token, offers_frames, redeem, scope_of, ticket};
use super::{
    HttpState,
    problem::ApiError,
    request::{Body, page, parse_body, path_id},
};
use crate::{
    actors::handles::subscriber::notification_of,
    contract::notifications::{
        AckBody, Acknowledged, InboxItem, InboxPage, InboxQuery, SocketQuery, Subscription, Ticket,
        frames::SUBPROTOCOL,
    },
    domain::turn::outcome::ErrorCode,
    store::InboxRows,
};

/// Reads toasts over a WebSocket.
///
/// The client opens with a frame `hello`; see `ClientFrame` and `ServerFrame`. A server says who it is by its bearer
/// token; a page by a ticket, in the query or as a subprotocol, or by a subprotocol with the token.
#[utoipa::path(
    tag = "notifications",
    params(SocketQuery),
    responses(
        (status = 101, description = "The WebSocket is open"),
    )
)]
#[get("/ws/notifications")]
pub(crate) async fn subscribe(
    request: HttpRequest,
    body: web::Payload,
    state: web::Data<HttpState>,
    asked: web::Query<SocketQuery>,
) -> Result<HttpResponse, ApiError> {
    // First, so that what is no upgrade takes no ticket away.
    socket::check(&request)?;
    state.workspaces.admission()?;
    let asked = asked.into_inner().subscription();
    let ticket = ticket(&request);
    // A page shows anew that it may, whatever it came in with.
    let is_page = ticket.is_some() || offered_token(request.headers()).is_some();
    let (allowed, seat) = match ticket {
        Some(ticket) => redeem(&state, &ticket, &asked).await?,
        None => (asked, state.toasts.seat()?),
    };
    let now = state.workspaces.services().clock.steady();
    let expires = is_page.then(|| now.plus(state.config.notifications.ticket_session()));
    let scope = scope_of(&state, allowed).await?;
    let mut response = socket::open((&request, body), &state, scope, seat, expires)?;
    if offers_frames(request.headers()) {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    Ok(response)
}

/// Lists toasts, the newest first, each with whether it was read: by the user of the query, or by everyone where it
/// names none.
#[utoipa::path(
    tag = "notifications",
    params(InboxQuery),
    responses(
        (status = 200, description = "A page of the inbox", body = InboxPage),
    )
)]
#[get("/acp/notifications")]
pub(crate) async fn list_inbox(
    state: web::Data<HttpState>,
    asked: web::Query<InboxQuery>,
) -> Result<web::Json<InboxPage>, ApiError> {
    let asked = asked.into_inner();
    let scope = scope_of(&state, asked.subscription()).await?;
    let page = page(&state, asked.limit, asked.cursor)?;
    let store = &state.workspaces.services().store;
    // First: whoever goes on from here sees a toast twice rather than not at all.
    let head = store.stream_ends(scope.stream.clone()).await?.head;
    let InboxRows { rows, unreadable, next } = store.inbox(scope.clone(), asked.unread_only, page).await?;
    let next_cursor = next.map(|cursor| cursor.to_string());
    let items = rows.iter().map(|(row, read)| InboxItem { toast: notification_of(row), read: *read }).collect();
    let unread = store.unread(scope).await?;
    Ok(web::Json(InboxPage { items, unreadable, unread, epoch: store.epoch().to_owned(), head, next_cursor }))
}

/// Marks a toast as read, for the user that the body names, or for everyone. Safe to repeat.
#[utoipa::path(
    tag = "notifications",
    params(("id" = String, Path, description = "The toast's id")),
    request_body = AckBody,
    responses(
        (status = 200, description = "It is marked", body = Acknowledged),
    )
)]
#[post("/acp/notifications/{id}/ack")]
pub(crate) async fn acknowledge(
    state: web::Data<HttpState>,
    id: web::Path<String>,
    body: Body,
) -> Result<web::Json<Acknowledged>, ApiError> {
    let id: Uuid = path_id(&id, "notification")?;
    let scope = scope_of(&state, parse_body(&body)?).await?;
    let services = state.workspaces.services();
    if services.store.mark_read(scope.clone(), vec![id], services.clock.now()).await? != [true] {
        return Err(ApiError::new(ErrorCode::NotFound, format!("no notification {id}")));
    }
    Ok(web::Json(Acknowledged { id, unread: services.store.unread(scope).await? }))
}

/// Gives out a ticket with which a page opens one WebSocket, once and soon, and sees what the body says. Its server asks
/// for it, so that the page never has a token.
#[utoipa::path(
    tag = "notifications",
    request_body = Subscription,
    responses(
        (status = 201, description = "The ticket", body = Ticket),
    )
)]
#[post("/acp/notifications/ticket")]
pub(crate) async fn make_ticket(state: web::Data<HttpState>, body: Body) -> Result<HttpResponse, ApiError> {
    let asked: Subscription = parse_body(&body)?;
    scope_of(&state, asked.clone()).await?;
    let services = state.workspaces.services();
    let now = services.clock.now();
    let expires_at = now.plus(state.config.notifications.ticket_ttl());
    let (ticket, allows) = (new_ticket(), serde_json::to_string(&asked).unwrap_or_default());
    services.store.add_ticket(hash_of(&ticket), allows, expires_at, now).await?;
    Ok(HttpResponse::Created().insert_header(("Cache-Control", "no-store")).json(Ticket { ticket, expires_at }))
}
