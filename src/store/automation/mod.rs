//! The table of automation runs: what became of the changes of a turn. Rows are added and pruned, never changed.

use std::time::Duration;

use diesel::{Insertable, Queryable, RunQueryDsl};
use uuid::Uuid;

use crate::{
    domain::{
        clock::Timestamp,
        ids::{PromptId, SessionId, WorkspaceKey},
    },
    store::{
        StoreError,
        engine::{columns, writer::WriteTx},
        schema::automation_runs,
    },
};

/// An automation run as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AutomationRunRow {
    /// Its id.
    pub run_id: Uuid,
    /// The workspace.
    pub key: WorkspaceKey,
    /// The session.
    pub session_id: SessionId,
    /// The turn.
    pub prompt_id: Option<PromptId>,
    /// `success`, `skipped` or `error`.
    pub status: String,
    /// `github` or `commit-only`.
    pub mode: String,
    /// The issue.
    pub issue_number: Option<u64>,
    /// Where to see it.
    pub issue_url: Option<String>,
    /// The pull request.
    pub pull_request_number: Option<u64>,
    /// Where to see it.
    pub pull_request_url: Option<String>,
    /// The branch.
    pub branch: Option<String>,
    /// The commit, 40 hexadecimal digits.
    pub commit_sha: Option<String>,
    /// Why it was left out.
    pub skip_reason: Option<String>,
    /// The same, exactly.
    pub skip_detail: Option<String>,
    /// How long it took.
    pub took: Duration,
    /// How often it was tried.
    pub attempts: u32,
    /// Why it failed.
    pub error_code: Option<String>,
    /// What it logged, as a JSON array.
    pub logs: String,
    /// When it ended.
    pub created: Timestamp,
}

#[derive(Queryable, Insertable)]
#[diesel(table_name = automation_runs, treat_none_as_default_value = false)]
pub(crate) struct Record {
    run_id: String,
    installation_id: String,
    workspace_id: String,
    session_id: String,
    prompt_id: Option<String>,
    status: String,
    mode: String,
    issue_number: Option<i64>,
    issue_url: Option<String>,
    pull_request_number: Option<i64>,
    pull_request_url: Option<String>,
    branch: Option<String>,
    commit_sha: Option<String>,
    skip_reason: Option<String>,
    skip_detail: Option<String>,
    duration_ms: i64,
    attempts: i32,
    error_code: Option<String>,
    logs: String,
    created_us: i64,
}

impl Record {
    pub(crate) fn new(row: AutomationRunRow) -> Self {
        Self {
            run_id: row.run_id.to_string(),
            installation_id: row.key.installation_id.to_string(),
            workspace_id: row.key.workspace_id.to_string(),
            session_id: row.session_id.to_string(),
            prompt_id: row.prompt_id.map(|id| id.to_string()),
            status: row.status,
            mode: row.mode,
            issue_number: row.issue_number.map(columns::signed),
            issue_url: row.issue_url.as_deref().map(columns::clean_text),
            pull_request_number: row.pull_request_number.map(columns::signed),
            pull_request_url: row.pull_request_url.as_deref().map(columns::clean_text),
            branch: row.branch.as_deref().map(columns::clean_text),
            commit_sha: row.commit_sha,
            skip_reason: row.skip_reason,
            skip_detail: row.skip_detail,
            duration_ms: i64::try_from(row.took.as_millis()).unwrap_or(i64::MAX),
            attempts: i32::try_from(row.attempts).unwrap_or(i32::MAX),
            error_code: row.error_code,
            logs: columns::clean_text(&row.logs),
            created_us: row.created.0,
        }
    }

    /// Adds it; to be called once for each run, in the transaction that tells that it was new.
    pub(crate) fn insert(&self, tx: &mut WriteTx<'_>) -> Result<(), StoreError> {
        tx.rows += diesel::insert_into(automation_runs::table).values(self).execute(tx.connection)?;
        Ok(())
    }

    pub(crate) fn read(self) -> Result<AutomationRunRow, StoreError> {
        Ok(AutomationRunRow {
            run_id: columns::parse(&self.run_id, "automation_runs.run_id")?,
            key: columns::workspace_key(self.installation_id, self.workspace_id)?,
            session_id: columns::parse(&self.session_id, "automation_runs.session_id")?,
            prompt_id: self.prompt_id.map(|id| columns::parse(&id, "automation_runs.prompt_id")).transpose()?,
            status: self.status,
            mode: self.mode,
            issue_number: self.issue_number.map(columns::unsigned),
            issue_url: self.issue_url,
            pull_request_number: self.pull_request_number.map(columns::unsigned),
            pull_request_url: self.pull_request_url,
            branch: self.branch,
            commit_sha: self.commit_sha,
            skip_reason: self.skip_reason,
            skip_detail: self.skip_detail,
            took: Duration::from_millis(columns::unsigned(self.duration_ms)),
            attempts: u32::try_from(self.attempts).unwrap_or(0),
            error_code: self.error_code,
            logs: self.logs,
            created: Timestamp(self.created_us),
        })
    }
}
