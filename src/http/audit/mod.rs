//! Lists of audit records, in pages of JSON or CSV.

pub(crate) mod summary;

use actix_web::{
    HttpRequest, HttpResponse, get,
    http::header::{ACCEPT, HeaderMap, LINK},
    web,
};
use url::form_urlencoded;

use super::{
    HttpState,
    problem::ApiError,
    request::{Query, page},
    rows,
};
use crate::{
    contract::{
        audit::{
            AutomationRunItem, CapacityAlertItem, ChangeItem, ConnectionItem, ErasureItem, MigrationItem,
            NotificationItem, RollbackEventItem,
            csv::{TEXT_CSV, TableRow, csv_page},
            query::{AuditQuery, CapacityAlertQuery, Format},
        },
        lists::Page,
    },
    domain::{access::Caller, clock::Timestamp, turn::outcome::ErrorCode},
    store::{self, AuditFilter, CapacityAlertFilter, Listed, Store, StoreError},
};

/// Lists flips of workspaces and steps of migration runs, by start time, newest first.
#[utoipa::path(
    tag = "audit",
    security(("token" = ["audit.read"])),
    params(AuditQuery),
    responses(
        (status = 200, description = "A page; `Link` has the address of the next one", content(
            (Page<MigrationItem> = "application/json"), (String = "text/csv"),
        )),
    )
)]
#[get("/acp/audit/migrations")]
pub(crate) async fn list_migration_records(
    request: HttpRequest,
    state: web::Data<HttpState>,
    caller: Caller,
    query: Query<AuditQuery>,
) -> Result<HttpResponse, ApiError> {
    list(&request, (&state, &caller), query, Store::migrations).await
}

/// Lists rollbacks to HTTP and restores, newest first.
#[utoipa::path(
    tag = "audit",
    security(("token" = ["audit.read"])),
    params(AuditQuery),
    responses(
        (status = 200, description = "A page; `Link` has the address of the next one", content(
            (Page<RollbackEventItem> = "application/json"), (String = "text/csv"),
        )),
    )
)]
#[get("/acp/audit/rollback-events")]
pub(crate) async fn list_rollback_events(
    request: HttpRequest,
    state: web::Data<HttpState>,
    caller: Caller,
    query: Query<AuditQuery>,
) -> Result<HttpResponse, ApiError> {
    list(&request, (&state, &caller), query, Store::rollback_events).await
}

/// Lists handshakes with agents and the later changes of their connections, newest first. A page has at most the newest
/// 10,000 changes of its connections.
#[utoipa::path(
    tag = "audit",
    security(("token" = ["audit.read"])),
    params(AuditQuery),
    responses(
        (status = 200, description = "A page; `Link` has the address of the next one", content(
            (Page<ConnectionItem> = "application/json"), (String = "text/csv"),
        )),
    )
)]
#[get("/acp/audit/connections")]
pub(crate) async fn list_connections(
    request: HttpRequest,
    state: web::Data<HttpState>,
    caller: Caller,
    query: Query<AuditQuery>,
) -> Result<HttpResponse, ApiError> {
    list(&request, (&state, &caller), query, Store::connections).await
}

/// Lists what automation did with the changes of turns, newest first.
#[utoipa::path(
    tag = "audit",
    security(("token" = ["audit.read"])),
    params(AuditQuery),
    responses(
        (status = 200, description = "A page; `Link` has the address of the next one", content(
            (Page<AutomationRunItem> = "application/json"), (String = "text/csv"),
        )),
    )
)]
#[get("/acp/audit/automation-runs")]
pub(crate) async fn list_automation_runs(
    request: HttpRequest,
    state: web::Data<HttpState>,
    caller: Caller,
    query: Query<AuditQuery>,
) -> Result<HttpResponse, ApiError> {
    list(&request, (&state, &caller), query, Store::automation_runs).await
}

/// Lists notifications, newest first.
#[utoipa::path(
    tag = "audit",
    security(("token" = ["audit.read"])),
    params(AuditQuery),
    responses(
        (status = 200, description = "A page; `Link` has the address of the next one", content(
            (Page<NotificationItem> = "application/json"), (String = "text/csv"),
        )),
    )
)]
#[get("/acp/audit/notifications")]
pub(crate) async fn list_notifications(
    request: HttpRequest,
    state: web::Data<HttpState>,
    caller: Caller,
    query: Query<AuditQuery>,
) -> Result<HttpResponse, ApiError> {
    list(&request, (&state, &caller), query, Store::notifications).await
}

/// Lists erasures of sessions, workspaces and tenants, newest first.
#[utoipa::path(
    tag = "audit",
    security(("token" = ["audit.read"])),
    params(AuditQuery),
    responses(
        (status = 200, description = "A page; `Link` has the address of the next one", content(
            (Page<ErasureItem> = "application/json"), (String = "text/csv"),
        )),
    )
)]
#[get("/acp/audit/erasures")]
pub(crate) async fn list_erasures(
    request: HttpRequest,
    state: web::Data<HttpState>,
    caller: Caller,
    query: Query<AuditQuery>,
) -> Result<HttpResponse, ApiError> {
    list(&request, (&state, &caller), query, Store::list_erasures).await
}

/// Lists administrative changes, newest first. They are of limits, ceilings and route defaults of tenants, and of tokens, and
/// belong to no session; a change of a workspace is one of a token that is limited to it.
#[utoipa::path(
    tag = "audit",
    security(("token" = ["changes.read"])),
    params(AuditQuery),
    responses(
        (status = 200, description = "A page; `Link` has the address of the next one", content(
            (Page<ChangeItem> = "application/json"), (String = "text/csv"),
        )),
    )
)]
#[get("/acp/audit/changes")]
pub(crate) async fn list_changes(
    request: HttpRequest,
    state: web::Data<HttpState>,
    caller: Caller,
    query: Query<AuditQuery>,
) -> Result<HttpResponse, ApiError> {
    list(&request, (&state, &caller), query, Store::changes).await
}

/// Lists changes of capacity alerts, newest first.
#[utoipa::path(
    tag = "audit",
    security(("token" = ["audit.read"])),
    params(CapacityAlertQuery),
    responses(
        (status = 200, description = "A page; `Link` has the address of the next one", content(
            (Page<CapacityAlertItem> = "application/json"), (String = "text/csv"),
        )),
    )
)]
#[get("/acp/audit/capacity-alerts")]
pub(crate) async fn list_capacity_alerts(
    request: HttpRequest,
    state: web::Data<HttpState>,
    caller: Caller,
    query: Query<CapacityAlertQuery>,
) -> Result<HttpResponse, ApiError> {
    let CapacityAlertQuery { installation_id, from, until, limit, cursor, format } = query.into_inner();
    in_order(from, until)?;
    let requested = PageRequest { page: page(&state, limit, cursor)?, is_csv: is_csv(request.headers(), format) };
    let filter = CapacityAlertFilter { installation_id: rows::tenant(&caller, installation_id)?, from, until };
    let items = records(&state).list_capacity_alerts(filter, requested.page.clone()).await?;
    requested.respond(&request, items)
}

/// Answers with the page of records that `read` finds for the query.
async fn list<T: TableRow + Listed>(
    request: &HttpRequest,
    (state, caller): (&HttpState, &Caller),
    query: Query<AuditQuery>,
    read: impl AsyncFnOnce(&Store, AuditFilter, store::Page) -> Result<Vec<T>, StoreError>,
) -> Result<HttpResponse, ApiError> {
    let AuditQuery { installation_id, workspace_id, session_id, from, until, limit, cursor, format } =
        query.into_inner();
    in_order(from, until)?;
    let requested = PageRequest { page: page(state, limit, cursor)?, is_csv: is_csv(request.headers(), format) };
    let installation_id = rows::tenant(caller, installation_id)?;
    let filter = AuditFilter { installation_id, workspace_id, session_id, from, until };
    let items = read(records(state), filter, requested.page.clone()).await?;
    requested.respond(request, items)
}

struct PageRequest {
    page: store::Page,
    is_csv: bool,
}

impl PageRequest {
    /// Answers with the page and, if it is full, with the address of the next one.
    fn respond<T: TableRow + Listed>(&self, request: &HttpRequest, items: Vec<T>) -> Result<HttpResponse, ApiError> {
        let last = items.last().filter(|_| items.len() == self.page.limit);
        let next_cursor = last.map(|item| item.cursor().to_string());
        let mut response = HttpResponse::Ok();
        if let Some(cursor) = &next_cursor {
            response.insert_header((LINK, format!("<{}>; rel=\"next\"", next_page(request, cursor))));
        }
        if !self.is_csv {
            return Ok(response.json(Page { items, next_cursor }));
        }
        let text = csv_page(&items).map_err(|cause| ApiError::new(ErrorCode::Internal, cause.to_string()))?;
        Ok(response.content_type(TEXT_CSV).body(text))
    }
}

/// Rejects a period that is empty or ends before it begins.
pub(crate) fn in_order(from: Option<Timestamp>, until: Option<Timestamp>) -> Result<(), ApiError> {
    if from.zip(until).is_some_and(|(from, until)| from >= until) {
        return Err(ApiError::new(ErrorCode::InvalidRequest, "until: must be later than from"));
    }
    Ok(())
}

fn records(state: &HttpState) -> &Store {
    &state.workspaces.services().store
}

/// The address of this page with another cursor.
fn next_page(request: &HttpRequest, cursor: &str) -> String {
    let given = form_urlencoded::parse(request.query_string().as_bytes()).filter(|(name, _)| name != "cursor");
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(given).append_pair("cursor", cursor);
    format!("{}?{}", request.path(), query.finish())
}

/// True if the answer is CSV: `format` decides; without it, `Accept` must name `text/csv`.
fn is_csv(headers: &HeaderMap, format: Option<Format>) -> bool {
    let named = |range: &str| range.split(';').next().is_some_and(|it| it.trim().eq_ignore_ascii_case("text/csv"));
    match format {
        Some(format) => format == Format::Csv,
        None => headers.get_all(ACCEPT).filter_map(|it| it.to_str().ok()).any(|it| it.split(',').any(named)),
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn csv_needs_a_format_or_an_accept_header() {
        let of = |accept: &str, format| {
            is_csv(TestRequest::get().insert_header((ACCEPT, accept)).to_http_request().headers(), format)
        };
        assert!(of("text/csv", None) && of("application/json;q=0.5, Text/CSV; header=present", None));
        assert!(!of("*/*", None) && !of("text/csv", Some(Format::Json)) && of("*/*", Some(Format::Csv)));
    }

    #[test]
    fn the_next_page_keeps_the_filters() {
        let request = TestRequest::with_uri("/acp/audit/migrations?from=a%2Bb&cursor=old&limit=2").to_http_request();
        assert_eq!(next_page(&request, "1~x"), "/acp/audit/migrations?from=a%2Bb&limit=2&cursor=1%7Ex");
    }
}
