//! Migrations of fleets: start, read and change.

use actix_web::{HttpResponse, get, http::header::LOCATION, post, web};
use uuid::Uuid;

use super::protocol::attribution;
use crate::{
    actors::migrations::RunChange,
    contract::{
        lists::Page,
        routing::migration::{
            DEFAULT_BATCH, EntryState, Migration, MigrationBody, MigrationChange, MigrationEntry, MigrationQuery,
            Progress, When,
        },
    },
    domain::{
        access::Caller,
        migration::{Entry, MigrationMode, MigrationPlan, MigrationProgress, Place},
        turn::outcome::{ErrorCode, Failure},
    },
    http::{
        HttpState,
        problem::ApiError,
        refusals::{OfBody, OfMigration, Problems},
        request::{Body, Query, page, parse_body, path_id, run_to_completion},
        rows,
    },
    store::{MigrationRunFilter, MigrationRunRow},
};

/// The most migrations on a page, because each may be large.
const MAX_RUNS: usize = 50;

/// Starts moving workspaces to another default route, in steps. `Location` has the progress. Running turns keep their
/// route.
#[utoipa::path(
    tag = "migrations",
    security(("token" = ["fleet.change"])),
    request_body = MigrationBody,
    responses(
        (status = 202, description = "The migration was created", body = Migration),
        Problems<(OfMigration, OfBody)>,
    )
)]
#[post("/acp/migrations")]
pub(crate) async fn begin_migration(
    state: web::Data<HttpState>,
    caller: Caller,
    body: Body,
) -> Result<HttpResponse, ApiError> {
    let body: MigrationBody = parse_body(&body)?;
    let attribution = attribution(&caller, body.actor.as_deref(), &body.reason, body.initiated_by)?;
    let installation_id = rows::one_tenant(&caller, body.installation_id.clone())?;
    let mode = mode(&body)?;
    let migrations = state.migrations.clone();
    let started = run_to_completion(async move {
        let workspaces = match body.workspaces {
            Some(named) => named,
            None => migrations.with_another_default(&installation_id, body.target).await?,
        };
        if workspaces.is_empty() {
            let detail = "no workspaces are named, and no workspace of the tenant has another default route";
            return Err(Failure::new(ErrorCode::InvalidRequest, detail));
        }
        let plan = MigrationPlan {
            installation_id,
            target: body.target,
            workspaces,
            mode,
            batch_size: body.batch_size.unwrap_or(DEFAULT_BATCH),
            max_failures: body.max_failures.unwrap_or(0),
        };
        migrations.begin(plan, attribution).await
    });
    let row = started.await?;
    let place = format!("/acp/migrations/{}", row.run_id);
    Ok(HttpResponse::Accepted().insert_header((LOCATION, place)).json(migration(row, true)))
}

/// Lists migrations, the newest first, without their workspaces.
#[utoipa::path(
    tag = "migrations",
    security(("token" = ["fleet.read"])),
    params(MigrationQuery),
    responses(
        (status = 200, description = "A page", body = Page<Migration>),
    )
)]
#[get("/acp/migrations")]
pub(crate) async fn list_migrations(
    state: web::Data<HttpState>,
    caller: Caller,
    query: Query<MigrationQuery>,
) -> Result<web::Json<Page<Migration>>, ApiError> {
    let MigrationQuery { installation_id, status, limit, cursor } = query.into_inner();
    let mut page = page(&state, limit, cursor)?;
    page.limit = page.limit.min(MAX_RUNS);
    let limit = page.limit;
    let filter =
        MigrationRunFilter { installation_id: rows::tenant(&caller, installation_id)?, status, open_only: false };
    let rows = state.workspaces.services().store.migration_runs(filter, page).await?;
    let next_cursor = if rows.len() < limit { None } else { rows.last().map(|row| row.cursor().to_string()) };
    Ok(web::Json(Page { items: rows.into_iter().map(|row| migration(row, false)).collect(), next_cursor }))
}

/// Progress of a migration, and the state of each workspace.
#[utoipa::path(
    tag = "migrations",
    security(("token" = ["fleet.read"])),
    params(("id" = Uuid, Path, description = "migrationId")),
    responses(
        (status = 200, description = "The migration", body = Migration),
    )
)]
#[get("/acp/migrations/{id}")]
pub(crate) async fn get_migration(
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
) -> Result<web::Json<Migration>, ApiError> {
    let id: Uuid = path_id(&id, "migration")?;
    let row = rows::find_migration(&state, &caller, id).await?;
    Ok(web::Json(migration(row, true)))
}

/// Pauses a migration. A move in progress is completed.
#[utoipa::path(
    tag = "migrations",
    security(("token" = ["fleet.change"])),
    params(("id" = Uuid, Path, description = "migrationId")),
    request_body = MigrationChange,
    responses(
        (status = 200, description = "The changed migration", body = Migration),
        Problems<OfMigration>,
    )
)]
#[post("/acp/migrations/{id}/pause")]
pub(crate) async fn pause_migration(
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
    body: Body,
) -> Result<web::Json<Migration>, ApiError> {
    change(&state, &caller, (&id, &body), RunChange::Pause).await
}

/// Resumes a paused migration.
#[utoipa::path(
    tag = "migrations",
    security(("token" = ["fleet.change"])),
    params(("id" = Uuid, Path, description = "migrationId")),
    request_body = MigrationChange,
    responses(
        (status = 200, description = "The changed migration", body = Migration),
        Problems<OfMigration>,
    )
)]
#[post("/acp/migrations/{id}/resume")]
pub(crate) async fn resume_migration(
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
    body: Body,
) -> Result<web::Json<Migration>, ApiError> {
    change(&state, &caller, (&id, &body), RunChange::Resume).await
}

/// Ends a migration; workspaces already moved stay moved.
#[utoipa::path(
    tag = "migrations",
    security(("token" = ["fleet.change"])),
    params(("id" = Uuid, Path, description = "migrationId")),
    request_body = MigrationChange,
    responses(
        (status = 200, description = "The changed migration", body = Migration),
        Problems<OfMigration>,
    )
)]
#[post("/acp/migrations/{id}/cancel")]
pub(crate) async fn cancel_migration(
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
    body: Body,
) -> Result<web::Json<Migration>, ApiError> {
    change(&state, &caller, (&id, &body), RunChange::Cancel).await
}

/// Moves back exactly the workspaces that the migration moved, in steps of the same size.
#[utoipa::path(
    tag = "migrations",
    security(("token" = ["fleet.change"])),
    params(("id" = Uuid, Path, description = "migrationId")),
    request_body = MigrationChange,
    responses(
        (status = 200, description = "The changed migration", body = Migration),
        Problems<OfMigration>,
    )
)]
#[post("/acp/migrations/{id}/rollback")]
pub(crate) async fn roll_migration_back(
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
    body: Body,
) -> Result<web::Json<Migration>, ApiError> {
    change(&state, &caller, (&id, &body), RunChange::RollBack).await
}

async fn change(
    state: &HttpState,
    caller: &Caller,
    (id, body): (&str, &Body),
    change: RunChange,
) -> Result<web::Json<Migration>, ApiError> {
    let id: Uuid = path_id(id, "migration")?;
    let body: MigrationChange = parse_body(body)?;
    let attribution = attribution(caller, body.actor.as_deref(), &body.reason, body.initiated_by)?;
    rows::find_migration(state, caller, id).await?;
    let migrations = state.migrations.clone();
    let row = run_to_completion(async move { migrations.change(id, change, &attribution).await }).await?;
    Ok(web::Json(migration(row, true)))
}

fn mode(body: &MigrationBody) -> Result<MigrationMode, Failure> {
    match (body.mode, body.at) {
        (When::Now, None) => Ok(MigrationMode::Now),
        (When::Automatic, None) => Ok(MigrationMode::Automatic),
        (When::At, Some(at)) => Ok(MigrationMode::At { at }),
        (When::At, None) => Err(Failure::new(ErrorCode::InvalidRequest, "at: the mode `at` needs a time")),
        (_, Some(_)) => Err(Failure::new(ErrorCode::InvalidRequest, "at: only allowed with the mode `at`")),
    }
}

fn migration(row: MigrationRunRow, with_workspaces: bool) -> Migration {
    let MigrationRunRow { run_id, run, updated, .. } = row;
    let (mode, at) = match run.mode() {
        MigrationMode::Now => (When::Now, None),
        MigrationMode::At { at } => (When::At, Some(at)),
        MigrationMode::Automatic => (When::Automatic, None),
    };
    let MigrationProgress { total, untouched, moving, moved, skipped, failed, moved_back } = run.progress();
    let attribution = run.attribution().clone();
    Migration {
        migration_id: run_id,
        installation_id: run.installation_id().clone(),
        target: run.target(),
        mode,
        at,
        batch_size: run.batch_size(),
        max_failures: run.max_failures(),
        status: run.status(),
        is_going_back: run.is_going_back(),
        progress: Progress { total, untouched, moving, moved, skipped, failed, moved_back },
        initiated_by: attribution.initiator,
        actor: attribution.actor,
        actor_note: attribution.actor_note,
        reason: attribution.reason,
        created_at: run.created(),
        started_at: run.started(),
        completed_at: run.completed(),
        updated_at: updated,
        workspaces: with_workspaces.then(|| run.entries().iter().map(entry).collect()),
    }
}

fn entry(entry: &Entry) -> MigrationEntry {
    let (state, reason, detail) = match &entry.place {
        Place::Untouched => (EntryState::Untouched, None, None),
        Place::Moving => (EntryState::Moving, None, None),
        Place::Moved { detail } => (EntryState::Moved, None, detail.clone()),
        Place::Skipped { reason } => (EntryState::Skipped, Some(*reason), None),
        Place::Failed { detail } => (EntryState::Failed, None, Some(detail.clone())),
        Place::MovingBack => (EntryState::MovingBack, None, None),
        Place::MovedBack => (EntryState::MovedBack, None, None),
    };
    MigrationEntry { workspace_id: entry.workspace_id.clone(), state, reason, detail }
}
