//! Deliveries to the operators' webhook: list and replay.

use actix_web::{get, post, web};
use uuid::Uuid;

use crate::{
    contract::{
        lists::{NoMembers, Page},
        notifications::webhook::{DeliveryQuery, ReplayedDeliveries, WebhookDelivery},
    },
    domain::{access::Caller, notify::webhook::DeliveryState, turn::outcome::ErrorCode},
    http::{
        HttpState,
        problem::ApiError,
        request::{Body, Query, has_no_members, page, path_id},
    },
    store::WebhookDeliveryRow,
};

/// Lists deliveries to the operators' webhook, the newest first.
#[utoipa::path(
    tag = "operations",
    security(("token" = ["service.operate"])),
    params(DeliveryQuery),
    responses(
        (status = 200, description = "A page", body = Page<WebhookDelivery>),
    )
)]
#[get("/acp/webhooks/deliveries")]
pub(crate) async fn list_deliveries(
    state: web::Data<HttpState>,
    _caller: Caller,
    query: Query<DeliveryQuery>,
) -> Result<web::Json<Page<WebhookDelivery>>, ApiError> {
    let DeliveryQuery { state: wanted, limit, cursor } = query.into_inner();
    let page = page(&state, limit, cursor)?;
    let limit = page.limit;
    let rows = state.workspaces.services().store.webhook_deliveries(wanted, page).await?;
    let next_cursor = if rows.len() < limit { None } else { rows.last().map(|row| row.cursor().to_string()) };
    Ok(web::Json(Page { items: rows.into_iter().map(delivery).collect(), next_cursor }))
}

/// Posts a delivery again in any state, with a full number of attempts. `webhook-id` stays the same.
#[utoipa::path(
    tag = "operations",
    security(("token" = ["service.operate"])),
    params(("id" = Uuid, Path, description = "deliveryId")),
    request_body = NoMembers,
    responses(
        (status = 200, description = "The pending delivery", body = WebhookDelivery),
    )
)]
#[post("/acp/webhooks/deliveries/{id}/replay")]
pub(crate) async fn replay_delivery(
    state: web::Data<HttpState>,
    _caller: Caller,
    id: web::Path<String>,
    body: Body,
) -> Result<web::Json<WebhookDelivery>, ApiError> {
    has_no_members(&body)?;
    let id: Uuid = path_id(&id, "delivery")?;
    is_configured(&state)?;
    let services = state.workspaces.services();
    let row = services.store.replay_delivery(id, services.clock.now()).await?;
    let row = row.ok_or_else(|| ApiError::new(ErrorCode::NotFound, "no delivery with this id"))?;
    Ok(web::Json(delivery(row)))
}

/// Posts all deliveries again that were given up.
#[utoipa::path(
    tag = "operations",
    security(("token" = ["service.operate"])),
    request_body = NoMembers,
    responses(
        (status = 200, description = "Number of deliveries", body = ReplayedDeliveries),
    )
)]
#[post("/acp/webhooks/deliveries/replay")]
pub(crate) async fn replay_dead_deliveries(
    state: web::Data<HttpState>,
    _caller: Caller,
    body: Body,
) -> Result<web::Json<ReplayedDeliveries>, ApiError> {
    has_no_members(&body)?;
    is_configured(&state)?;
    let services = state.workspaces.services();
    let replayed = services.store.replay_dead_deliveries(services.clock.now()).await?;
    Ok(web::Json(ReplayedDeliveries { replayed }))
}

/// Without a webhook no delivery would ever be posted.
fn is_configured(state: &HttpState) -> Result<(), ApiError> {
    match state.config.webhook.url {
        Some(_) => Ok(()),
        None => Err(ApiError::new(ErrorCode::InvalidRequest, "`webhook.url` is not configured")),
    }
}

fn delivery(row: WebhookDeliveryRow) -> WebhookDelivery {
    WebhookDelivery {
        delivery_id: row.delivery_id,
        notification_id: row.notification_id,
        endpoint: row.endpoint,
        state: row.state,
        attempts: row.attempts,
        next_attempt_at: (row.state == DeliveryState::Pending).then_some(row.next_attempt),
        last_status: row.last_status,
        last_error: row.last_error.map(|error| error.into_string()),
        created_at: row.created,
        updated_at: row.updated,
    }
}
