//! The webhook of the GitHub App, and the records of its deliveries.

use std::time::Duration;

use actix_web::{
    HttpRequest, HttpResponse, get,
    http::{StatusCode, header::HeaderMap},
    post, web,
};
use uuid::Uuid;

use super::{
    HttpState,
    audit::in_order,
    problem::ApiError,
    reading::{Places, Unread},
    refusals::{OfDelivery, Problems},
    request::{Query, page, run_to_completion},
    rows,
};
use crate::{
    actors::triggers::Received,
    contract::{
        lists::Page,
        triggers::{DeliveryAnswer, DeliveryBody, DeliveryVerdict, Trigger, TriggerQuery},
    },
    domain::{access::Caller, automation::trigger::EventKind, turn::outcome::ErrorCode},
    store::{AuditFilter, DeliveryRow, Listed},
    webhook::is_signature,
};

/// The path of the webhook.
pub(super) const WEBHOOK_PATH: &str = "/github/webhook";
/// The largest payload, in bytes. An issue and a comment have up to 65,536 characters each, of which JSON may write each in 12
/// bytes, and the other members take some tens of kilobytes. GitHub itself sends up to 25 MB for other events.
const MAX_PAYLOAD_BYTES: usize = 2 * 1024 * 1024;
/// The size up to which a payload is small, in bytes. Events of an issue with usual texts have 10 to 30 KB.
const SMALL_BYTES: usize = 64 * 1024;
/// Small and large payloads that are read at the same time, before their signatures are known: 32 and 96 MiB. A new one takes
/// the place of the slowest if there is none.
const MAX_READING: (usize, usize) = (512, 48);
/// Time limit for a payload to arrive; GitHub sends at once.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Characters of a delivery's id, a UUID.
const ID_CHARS: usize = 36;

/// Places for small and for large payloads that are being read.
static READING: (Places, Places) =
    (Places::new(MAX_READING.0, SMALL_BYTES), Places::new(MAX_READING.1, MAX_PAYLOAD_BYTES));

/// Takes a delivery of the GitHub App's webhook. It needs no token: the signature over the body authenticates it.
///
/// The answer comes before any work: a delivery that may start a turn is stored, and `GET /acp/automation/triggers` has its
/// progress. A repeated delivery starts nothing. Without `github.triggers.enabled` the path is 404.
#[utoipa::path(
    tag = "automation",
    params(
        ("X-Hub-Signature-256" = String, Header, pattern = "^sha256=[0-9a-f]{64}$", description = "HMAC-SHA-256 of the body with the webhook's secret"),
        ("X-GitHub-Event" = String, Header, pattern = "^[a-z_]{1,64}$", description = "The event"),
        ("X-GitHub-Delivery" = Uuid, Header, description = "Id of the delivery"),
    ),
    request_body = DeliveryBody,
    responses(
        (status = 200, description = "The test of a new webhook, or a delivery that arrived before", body = DeliveryAnswer),
        (status = 202, description = "The delivery is stored, or ignored for a reason", body = DeliveryAnswer),
        Problems<OfDelivery>,
    )
)]
#[post("/github/webhook")]
pub(crate) async fn receive_delivery(
    request: HttpRequest,
    state: web::Data<HttpState>,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let Some(triggers) = state.triggers.clone() else {
        return Err(ApiError::no_route(WEBHOOK_PATH));
    };
    let event = only(request.headers(), "x-github-event");
    let kind = event.and_then(EventKind::from_name).unwrap_or(EventKind::Other);
    // One answer for every kind of wrong signature.
    let unsigned = || {
        triggers.refused(kind);
        ApiError::new(ErrorCode::SignatureInvalid, "the signature is missing or wrong")
    };
    let signature = only(request.headers(), "x-hub-signature-256").filter(|it| is_signature(it));
    let signature = signature.ok_or_else(unsigned)?.to_owned();
    let body = read(&request, payload).await.inspect_err(|_| triggers.refused(kind))?;
    if !triggers.is_authentic(&body, &signature) {
        return Err(unsigned());
    }
    let malformed =
        |name: &str, what: &str| ApiError::new(ErrorCode::InvalidRequest, format!("{name}: must be {what}"));
    let is_event =
        |name: &str| (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    if !event.is_some_and(is_event) {
        return Err(malformed("X-GitHub-Event", "the name of one event"));
    }
    let id = only(request.headers(), "x-github-delivery").filter(|id| id.len() == ID_CHARS);
    let id = id.and_then(|id| Uuid::try_parse(id).ok()).ok_or_else(|| malformed("X-GitHub-Delivery", "one UUID"))?;
    let received = run_to_completion(async move { triggers.receive(id, kind, &body).await }).await?;
    let (status, result, reason) = match received {
        Received::Pong => (StatusCode::OK, DeliveryVerdict::Pong, None),
        Received::Duplicate => (StatusCode::OK, DeliveryVerdict::Duplicate, None),
        Received::Queued => (StatusCode::ACCEPTED, DeliveryVerdict::Queued, None),
        Received::Ignored(reason) => (StatusCode::ACCEPTED, DeliveryVerdict::Ignored, Some(reason)),
    };
    Ok(HttpResponse::build(status).json(DeliveryAnswer { result, reason }))
}

/// The value of a header that is given once.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name);
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Reads a payload. Its header `Content-Length`, which GitHub sends, says whether it is small.
async fn read(request: &HttpRequest, payload: web::Payload) -> Result<web::Bytes, ApiError> {
    let declared = only(request.headers(), "content-length").and_then(|length| length.parse::<usize>().ok());
    let places = match declared {
        Some(length) if length <= SMALL_BYTES => Ok(&READING.0),
        Some(length) if length > MAX_PAYLOAD_BYTES => Err(Unread::TooLarge),
        _ => Ok(&READING.1),
    };
    let read = match places {
        Ok(places) => places.read(payload, BODY_TIMEOUT).await,
        Err(unread) => Err(unread),
    };
    read.map_err(|unread| match unread {
        Unread::Outpaced => ApiError::new(
            ErrorCode::QueueFull,
            "as many deliveries are being read as the service takes at once, and this one is the slowest",
        ),
        Unread::TooLarge => {
            let what = "which no event that starts turns needs";
            let detail = format!("the payload is larger than {MAX_PAYLOAD_BYTES} bytes, {what}");
            ApiError::new(ErrorCode::PayloadTooLarge, detail)
        }
        Unread::TooSlow => ApiError::new(ErrorCode::InvalidRequest, "the body did not arrive in time"),
        Unread::Broken => ApiError::new(ErrorCode::InvalidRequest, "the body could not be read"),
    })
}

/// Lists deliveries of GitHub that started turns, or were to, newest first, without their texts.
#[utoipa::path(
    tag = "automation",
    security(("token" = ["sessions.read"])),
    params(TriggerQuery),
    responses(
        (status = 200, description = "A page", body = Page<Trigger>),
    )
)]
#[get("/acp/automation/triggers")]
pub(crate) async fn list_triggers(
    state: web::Data<HttpState>,
    caller: Caller,
    query: Query<TriggerQuery>,
) -> Result<web::Json<Page<Trigger>>, ApiError> {
    let TriggerQuery { installation_id, workspace_id, session_id, state: of_state, from, until, limit, cursor } =
        query.into_inner();
    in_order(from, until)?;
    let page = page(&state, limit, cursor)?;
    let limit = page.limit;
    let installation_id = rows::tenant(&caller, installation_id)?;
    let workspace_id = rows::workspace(&caller, workspace_id)?;
    if rows::user(&caller, None)?.is_some() {
        // Sessions of deliveries belong to no user of the API.
        return Ok(web::Json(Page { items: Vec::new(), next_cursor: None }));
    }
    let filter = AuditFilter { installation_id, workspace_id, session_id, from, until };
    let store = &state.workspaces.services().store;
    let found = store.deliveries(filter, of_state, page).await?;
    let next_cursor = if found.len() < limit { None } else { found.last().map(|row| row.cursor().to_string()) };
    let is_shown = |row: &DeliveryRow| !store.erasures().is_erasing(&row.key);
    Ok(web::Json(Page { items: found.into_iter().filter(is_shown).map(item).collect(), next_cursor }))
}

fn item(row: DeliveryRow) -> Trigger {
    let DeliveryRow { delivery_id, key, session_id, prompt_id, event, state, reason, request, .. } = row;
    Trigger {
        delivery_id,
        installation_id: key.installation_id,
        workspace_id: key.workspace_id,
        session_id,
        prompt_id,
        event,
        cause: request.cause,
        state,
        reason,
        repository: request.repository,
        number: request.number,
        pull_request: request.is_pull_request,
        sender: request.sender.login,
        attempts: row.attempts,
        retry_at: row.due.filter(|_| row.attempts > 0),
        created_at: row.created,
        updated_at: row.updated,
    }
}
