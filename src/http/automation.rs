//! Runs of GitHub automation: read, fetch what was kept, and try again.

use actix_web::{
    HttpResponse,
    body::SizedStream,
    get,
    http::header::{CONTENT_DISPOSITION, LOCATION},
    post, web,
};
use uuid::Uuid;

use super::{
    HttpState,
    audit::in_order,
    problem::ApiError,
    refusals::{OfRun, OfRuntime, Problems},
    request::{Body, Query, page, parse_body, path_id, run_to_completion},
    rows,
    sessions::prompt::github_token,
};
use crate::{
    contract::{
        automation::AutomationPullRequest,
        lists::Page,
        runs::{
            AutomationChanges, AutomationFile, AutomationFinding, AutomationKept, AutomationPlan, AutomationRun,
            AutomationRunCommit, AutomationRunIssue, AutomationStep, RescueFile, RescueQuery, RetryBody, RunQuery,
        },
    },
    domain::{
        access::{Caller, Privilege},
        automation::{
            order,
            plan::Plan,
            progress::StepProgress,
            saga::{Facts, Saga, SagaStatus},
            step::Changes,
        },
        turn::outcome::{ErrorCode, Failure},
    },
    store::{AuditFilter, Listed, SagaFilter, SagaRow},
};

/// Lists runs of automation, newest first, without logs, changed files and texts.
#[utoipa::path(
    tag = "automation",
    security(("token" = ["sessions.read"])),
    params(RunQuery),
    responses(
        (status = 200, description = "A page", body = Page<AutomationRun>),
    )
)]
#[get("/acp/automation")]
pub(crate) async fn list_runs(
    state: web::Data<HttpState>,
    caller: Caller,
    query: Query<RunQuery>,
) -> Result<web::Json<Page<AutomationRun>>, ApiError> {
    let RunQuery { installation_id, workspace_id, session_id, status, from, until, limit, cursor } =
        query.into_inner();
    in_order(from, until)?;
    let page = page(&state, limit, cursor)?;
    let limit = page.limit;
    let installation_id = rows::tenant(&caller, installation_id)?;
    let workspace_id = rows::workspace(&caller, workspace_id)?;
    let records = AuditFilter { installation_id, workspace_id, session_id, from, until };
    let filter = SagaFilter { records, status, user_id: rows::user(&caller, None)? };
    let found = state.workspaces.services().store.sagas(filter, page).await?;
    let next_cursor = if found.len() < limit { None } else { found.last().map(|row| row.cursor().to_string()) };
    Ok(web::Json(Page { items: found.into_iter().map(|row| run(row, false)).collect(), next_cursor }))
}

/// A run of automation with its plan, its steps and what it made.
#[utoipa::path(
    tag = "automation",
    security(("token" = ["sessions.read"])),
    params(("id" = Uuid, Path, description = "automationId")),
    responses(
        (status = 200, description = "The run", body = AutomationRun),
    )
)]
#[get("/acp/automation/{id}")]
pub(crate) async fn get_run(
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
) -> Result<web::Json<AutomationRun>, ApiError> {
    let row = find(&state, &caller, &id).await?;
    Ok(web::Json(run(row, caller.may(Privilege::ReadContents))))
}

/// The commit of a run that could not be delivered, as a bundle or a patch.
///
/// `git fetch FILE 'refs/heads/*:refs/heads/*'` takes the commit from a bundle, in a clone that has its parent; `git am FILE`
/// applies a patch.
#[utoipa::path(
    tag = "automation",
    security(("token" = ["contents.read"])),
    params(("id" = Uuid, Path, description = "automationId"), RescueQuery),
    responses(
        (status = 200, description = "The file", content(
            (RescueFile = "application/octet-stream"), (String = "text/x-patch"),
        )),
        Problems<OfRuntime>,
    )
)]
#[get("/acp/automation/{id}/rescue")]
pub(crate) async fn get_rescue(
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
    query: Query<RescueQuery>,
) -> Result<HttpResponse, ApiError> {
    let row = find(&state, &caller, &id).await?;
    let facts = row.saga.as_ref().map(|saga| &saga.facts);
    if let Some(why) = why_nothing_is_kept(facts) {
        return Err(ApiError::new(ErrorCode::NotFound, format!("the run has no kept commit: {why}")));
    }
    let file = state.workspaces.workspace_client().rescue(row.run_id, query.format.as_str()).await?;
    let name = format!("attachment; filename=\"lumilink-{}.{}\"", row.run_id, query.format.as_str());
    let mut response = HttpResponse::Ok();
    response.content_type(query.format.media_type()).insert_header((CONTENT_DISPOSITION, name));
    Ok(match file.bytes {
        Some(bytes) => response.body(SizedStream::new(bytes, file.chunks)),
        None => response.streaming(file.chunks),
    })
}

/// Why a run has no kept commit; `None` if it has one.
fn why_nothing_is_kept(facts: Option<&Facts>) -> Option<String> {
    let facts = match facts {
        Some(facts) if facts.push.is_some() => return Some("it was delivered".to_owned()),
        Some(facts) => facts,
        None => return Some("the run has not begun".to_owned()),
    };
    match (&facts.rescue, facts.rescue_removed) {
        (Some(_), _) => None,
        (None, Some(at)) => Some(format!("it was removed at {at}, older than `retention.rescues_days`")),
        (None, None) => Some("nothing had to be kept".to_owned()),
    }
}

/// Begins another attempt of a run that was not delivered, with a new token if one is given.
///
/// Everything that exists is adopted. `Location` has the progress; the result of the turn does not change, and the end of the attempt has
/// its own audit record and notification. While an attempt runs, a repeat is 409 `turn_running`.
#[utoipa::path(
    tag = "automation",
    security(("token" = ["sessions.use"])),
    params(("id" = Uuid, Path, description = "automationId")),
    request_body = RetryBody,
    responses(
        (status = 202, description = "The attempt has begun; `Location` has the address of the run", body = AutomationRun),
        Problems<OfRun>,
    )
)]
#[post("/acp/automation/{id}/retry")]
pub(crate) async fn retry_run(
    state: web::Data<HttpState>,
    caller: Caller,
    id: web::Path<String>,
    body: Body,
) -> Result<HttpResponse, ApiError> {
    let body: RetryBody = if body.0.is_empty() { RetryBody::default() } else { parse_body(&body)? };
    let token = body.github_token.map(github_token).transpose()?;
    let row = find(&state, &caller, &id).await?;
    state.workspaces.admission()?;
    let services = state.workspaces.services().clone();
    let begun = run_to_completion(async move {
        let missing = || Failure::new(ErrorCode::Internal, "this process has no automation");
        services.automate.as_ref().ok_or_else(missing)?.retry(row, token).await
    });
    begun.await?;
    let row = find(&state, &caller, &id).await?;
    let place = format!("/acp/automation/{}", row.run_id);
    let run = run(row, caller.may(Privilege::ReadContents));
    Ok(HttpResponse::Accepted().insert_header((LOCATION, place)).json(run))
}

async fn find(state: &HttpState, caller: &Caller, id: &str) -> Result<SagaRow, ApiError> {
    let id: Uuid = path_id(id, rows::RUN)?;
    rows::find_run(state, caller, id).await
}

/// The run of a row; `is_whole` with the parts of the conversation and of the changes.
fn run(row: SagaRow, is_whole: bool) -> AutomationRun {
    let SagaRow { run_id, prompt_id, session_id, key, version: _, status, saga, retry_at, created, updated } = row;
    let skip = saga.as_ref().and_then(|saga| saga.skip(status));
    let facts = saga.as_ref().map(|saga| saga.facts.clone()).unwrap_or_default();
    let with_contents = |text: String| is_whole.then_some(text);
    let branch = saga.as_ref().and_then(|saga| branch(saga, run_id));
    let sha = facts.push.as_ref().map(|push| push.sha.clone());
    let is_kept = saga.as_ref().is_some_and(Saga::is_kept);
    AutomationRun {
        automation_id: run_id,
        installation_id: key.installation_id,
        workspace_id: key.workspace_id,
        session_id,
        prompt_id,
        status,
        skip_reason: skip.map(|(reason, _)| reason),
        skip_detail: skip.and_then(|(_, detail)| detail),
        attempt: saga.as_ref().map_or(0, |saga| saga.attempt),
        // Of a running attempt it is the time at which another process may take it up.
        retry_at: retry_at.filter(|_| status == SagaStatus::Waiting),
        steps: saga.iter().flat_map(|saga| saga.steps(status)).map(|it| step(&it, is_whole)).collect(),
        plan: saga.as_ref().map(|saga| plan(&saga.plan)),
        changes: facts.changes.map(|it| changes(it, is_whole)),
        issue: facts.issue.map(|it| AutomationRunIssue {
            number: it.number,
            url: it.url,
            title: with_contents(it.title),
        }),
        branch,
        commit: facts
            .commit
            .map(|it| AutomationRunCommit { sha: sha.unwrap_or(it.sha), message: with_contents(it.message) }),
        pushed: facts.push.is_some(),
        pull_request: facts.pull_request.map(|it| AutomationPullRequest {
            number: it.number,
            url: it.url,
            branch: it.branch,
        }),
        comment_url: facts.comment_url,
        rescue: facts.rescue.filter(|_| is_kept).map(|it| AutomationKept {
            bundle_bytes: it.bundle_bytes,
            patch_bytes: it.patch_bytes,
            patch_cut: it.is_patch_cut,
        }),
        rescue_removed_at: facts.rescue_removed,
        logs: saga.filter(|_| is_whole).map(|saga| saga.logs),
        created_at: created,
        updated_at: updated,
    }
}

/// The branch for the commit, once there is one.
fn branch(saga: &Saga, run_id: Uuid) -> Option<String> {
    match (&saga.facts.push, &saga.facts.commit) {
        (Some(push), _) => Some(push.branch.clone()),
        (None, Some(_)) => Some(order::branch(saga, run_id)),
        (None, None) => None,
    }
}

fn step(of: &StepProgress<'_>, is_whole: bool) -> AutomationStep {
    let failure = of.failed.map(|failed| &failed.failure);
    AutomationStep {
        step: of.step,
        state: of.state,
        code: failure.map(|failure| failure.code.clone()),
        message: failure.filter(|_| is_whole).map(|failure| failure.message.clone()),
        retry_at: failure.and_then(|failure| failure.retry_at),
    }
}

fn plan(plan: &Plan) -> AutomationPlan {
    AutomationPlan {
        repository: plan.repository.clone(),
        mode: plan.mode,
        dry_run: plan.is_dry_run,
        branch_name: plan.branch_name.clone(),
        base_branch: plan.base_branch.clone(),
        issue: plan.issue,
        draft: plan.is_draft,
        labels: plan.labels.clone(),
        assignees: plan.assignees.clone(),
        reviewers: plan.reviewers.clone(),
        protected_paths: plan.protected_paths.clone(),
        protection: plan.protection,
    }
}

fn changes(of: Changes, is_whole: bool) -> AutomationChanges {
    let files = of.files.into_iter();
    let files = files.map(|file| AutomationFile { path: file.path, bytes: file.bytes, deleted: file.is_deleted });
    let findings = of.findings.into_iter().map(|finding| AutomationFinding {
        detail: finding.detail,
        path: finding.path,
        line: finding.line,
        rule: finding.rule,
    });
    AutomationChanges {
        parent: of.parent,
        total: of.total,
        ignored: of.ignored,
        base_branch: of.base_branch,
        files: is_whole.then(|| files.collect()),
        findings: is_whole.then(|| findings.collect()),
    }
}
