//! Tokens of the API: make, list, revoke.

use std::time::Duration;

use actix_web::{HttpResponse, delete, get, http::header::LOCATION, post, web};
use uuid::Uuid;

use super::{
    HttpState,
    problem::ApiError,
    refusals::{OfBody, OfTenant, OfTokens, Problems},
    request::{Body, Query, page, parse_body, path_id, run_to_completion},
    rows,
    secret::{self, hash_of},
};
use crate::{
    contract::{
        lists::Page,
        tokens::{NewToken, TokenBody, TokenItem, TokenQuery},
    },
    domain::{
        access::{Caller, Privilege, RESERVED_SUBJECTS, Scope},
        clock::Timestamp,
        limits::UseLimits,
        turn::outcome::{ErrorCode, Failure},
    },
    store::{self, StoreError, TokenRow},
};

/// The beginning of each token, by which scanners of secrets recognise one.
const PREFIX: &str = "lumilink_";

/// The hash of a token that this service can have made; `None` for other texts.
pub(super) fn hash_of_well_formed(token: &str) -> Option<String> {
    token.strip_prefix(PREFIX).filter(|secret| secret::is_well_formed(secret)).map(|_| hash_of(token))
}

/// Interval at which streams look whether their token ended.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// Completes once the token of a caller has expired or been revoked, to within five seconds; never for `server.token`.
///
/// # Cancel safety
/// Holds nothing.
pub(super) async fn until_token_ends(state: web::Data<HttpState>, caller: Caller) {
    if caller.grant().token_id.is_none() {
        return std::future::pending().await;
    }
    let services = state.workspaces.services();
    while services.tokens.is_current(&caller, services.clock.now()) {
        tokio::time::sleep(CHECK_EVERY).await;
    }
}

/// Makes a token. Its text is in the answer and nowhere else. It reaches at most what the token of the request reaches.
#[utoipa::path(
    tag = "access",
    security(("token" = ["tokens.manage"])),
    request_body = TokenBody,
    responses(
        (status = 201, description = "The token", body = NewToken),
        Problems<(OfTokens, OfTenant, OfBody)>,
    )
)]
#[post("/acp/tokens")]
pub(crate) async fn create_token(
    state: web::Data<HttpState>,
    caller: Caller,
    body: Body,
) -> Result<HttpResponse, ApiError> {
    let body: TokenBody = parse_body(&body)?;
    let now = state.workspaces.services().clock.now();
    let scope = scope(&caller, &body)?;
    if let Some(tenant) = &scope.tenant {
        rows::is_changeable(&state, tenant)?;
    }
    if state.guard.admits_everyone() {
        let detail = "server.token is `none`: every caller is admitted without a token";
        return Err(ApiError::new(ErrorCode::InvalidRequest, detail));
    }
    let expires = expiry(&caller, body.expires_at, now)?;
    let token = format!("{PREFIX}{}", secret::random());
    let row = TokenRow {
        token_id: Uuid::now_v7(),
        hash: hash_of(&token),
        scope,
        subject: body.subject.as_str().to_owned(),
        role: body.role,
        limits: limits(&caller, body.limits.map(Into::into).unwrap_or_default()),
        created_by: caller.subject().to_owned(),
        created: now,
        expires,
        revoked: None,
        last_used: None,
    };
    let services = state.workspaces.services();
    let (kept, tokens, store) = (row.clone(), services.tokens.clone(), services.store.clone());
    let adding = run_to_completion(async move {
        store.add_token(kept.clone()).await.map_err(too_many)?;
        tokens.admit(&kept);
        Ok(())
    });
    adding.await?;
    tracing::info!(
        marker = "[ACP]", token_id = %row.token_id, subject = row.subject, role = row.role.as_str(),
        created_by = row.created_by, "token created"
    );
    let location = (LOCATION, format!("/acp/tokens/{}", row.token_id));
    let answer = NewToken { token, item: item(row) };
    Ok(HttpResponse::Created().insert_header(location).insert_header(("Cache-Control", "no-store")).json(answer))
}

fn too_many(cause: StoreError) -> Failure {
    match cause {
        StoreError::Conflict(detail) => Failure::new(ErrorCode::TooManyTokens, detail),
        other => store::failure(&other),
    }
}

/// The scope of a new token.
fn scope(caller: &Caller, body: &TokenBody) -> Result<Scope, ApiError> {
    let scope = Scope {
        tenant: rows::tenant(caller, body.installation_id.clone())?,
        workspace: body.workspace_id.clone(),
        user: body.user_id.clone(),
    };
    if RESERVED_SUBJECTS.contains(&body.subject.as_str()) {
        return Err(ApiError::new(ErrorCode::InvalidRequest, "subject: the audit uses this name for something else"));
    }
    if !caller.scope().includes(&scope) {
        return Err(rows::forbidden(caller, Privilege::ManageTokens));
    }
    if scope.tenant.is_none() && (scope.workspace.is_some() || scope.user.is_some()) {
        let detail = "installationId: is missing; a workspace or a user is one of a tenant";
        return Err(ApiError::new(ErrorCode::InvalidRequest, detail));
    }
    Ok(scope)
}

/// The limits of a new token: not above those of the token that makes it.
fn limits(caller: &Caller, wanted: UseLimits) -> UseLimits {
    let own = caller.grant().limits;
    let least = |wanted: Option<u32>, own: Option<u32>| wanted.into_iter().chain(own).min();
    UseLimits {
        sessions: least(wanted.sessions, own.sessions),
        turns: least(wanted.turns, own.turns),
        prompts_per_minute: least(wanted.prompts_per_minute, own.prompts_per_minute),
    }
}

/// When a new token expires: not later than the token that makes it.
fn expiry(caller: &Caller, wanted: Option<Timestamp>, now: Timestamp) -> Result<Option<Timestamp>, ApiError> {
    let bad = |detail: &str| Err(ApiError::new(ErrorCode::InvalidRequest, detail));
    if wanted.is_some_and(|wanted| wanted <= now) {
        return bad("expiresAt: must be in the future");
    }
    match (wanted, caller.grant().expires) {
        (Some(wanted), Some(own)) if wanted > own => bad("expiresAt: the token that makes it expires earlier"),
        (wanted, own) => Ok(wanted.or(own)),
    }
}

/// Lists tokens, newest first, revoked and expired ones included.
#[utoipa::path(
    tag = "access",
    security(("token" = ["tokens.manage"])),
    params(TokenQuery),
    responses(
        (status = 200, description = "A page", body = Page<TokenItem>),
        Problems<OfBody>,
    )
)]
#[get("/acp/tokens")]
pub(crate) async fn list_tokens(
    state: web::Data<HttpState>,
    caller: Caller,
    query: Query<TokenQuery>,
) -> Result<web::Json<Page<TokenItem>>, ApiError> {
    let TokenQuery { installation_id, limit, cursor } = query.into_inner();
    let tenant = rows::tenant(&caller, installation_id)?;
    let page = page(&state, limit, cursor)?;
    let limit = page.limit;
    let rows = state.workspaces.services().store.list_tokens(tenant, page).await?;
    let next_cursor = if rows.len() < limit { None } else { rows.last().map(|row| row.cursor().to_string()) };
    Ok(web::Json(Page { items: rows.into_iter().map(item).collect(), next_cursor }))
}

/// Revokes a token: requests with it are refused at once, and its streams end within seconds. Idempotent.
#[utoipa::path(
    tag = "access",
    security(("token" = ["tokens.manage"])),
    params(("id" = Uuid, Path, description = "tokenId")),
    responses(
        (status = 200, description = "The revoked token", body = TokenItem),
    )
)]
#[delete("/acp/tokens/{id}")]
pub(crate) async fn revoke_token(
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
) -> Result<web::Json<TokenItem>, ApiError> {
    let id: Uuid = path_id(&id, "token")?;
    let row = rows::find_token(&state, &caller, id).await?;
    let services = state.workspaces.services();
    let (by, now) = (caller.subject().to_owned(), services.clock.now());
    let (store, tokens) = (services.store.clone(), services.tokens.clone());
    let revoking = run_to_completion(async move {
        // First, so that a token is refused even if the database is not available: the caller then repeats the request.
        tokens.revoke(id);
        store.revoke_token(row, by, now).await.map_err(|cause| store::failure(&cause))
    });
    revoking.await?;
    tracing::info!(marker = "[ACP]", token_id = %id, revoked_by = caller.subject(), "token revoked");
    Ok(web::Json(item(rows::find_token(&state, &caller, id).await?)))
}

fn item(row: TokenRow) -> TokenItem {
    let (revoked_at, revoked_by) = row.revoked.map(|it| (it.at, it.by)).unzip();
    TokenItem {
        token_id: row.token_id,
        installation_id: row.scope.tenant,
        workspace_id: row.scope.workspace,
        user_id: row.scope.user,
        subject: row.subject,
        role: row.role,
        limits: row.limits.into(),
        created_by: row.created_by,
        created_at: row.created,
        expires_at: row.expires,
        revoked_at,
        revoked_by,
        last_used_at: row.last_used,
    }
}
