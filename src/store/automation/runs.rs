//! The table of automation runs: what became of the changes of a turn. Rows are added and pruned, never changed.

use diesel::{Insertable, Queryable, RunQueryDsl};

use crate::{
    contract::audit::AutomationRunItem,
    domain::{clock::Timestamp, redaction::RedactedJson},
    store::{
        StoreError,
        engine::{columns, writer::WriteTx},
        schema::automation_runs,
    },
};

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
    automation_id: Option<String>,
}

impl Record {
    /// The row of a run; its texts are redacted here.
    pub(crate) fn new(run: AutomationRunItem) -> Self {
        Self {
            run_id: run.run_id.to_string(),
            installation_id: run.installation_id.to_string(),
            workspace_id: run.workspace_id.to_string(),
            session_id: run.session_id.to_string(),
            prompt_id: run.prompt_id.map(|id| id.to_string()),
            status: run.status,
            mode: run.mode,
            issue_number: run.issue_number.map(columns::signed),
            issue_url: run.issue_url.as_deref().map(columns::clean_text),
            pull_request_number: run.pull_request_number.map(columns::signed),
            pull_request_url: run.pull_request_url.as_deref().map(columns::clean_text),
            branch: run.branch.as_deref().map(columns::clean_text),
            commit_sha: run.commit_sha,
            skip_reason: run.skip_reason,
            skip_detail: run.skip_detail,
            duration_ms: columns::signed(run.duration_ms),
            attempts: i32::try_from(run.attempts).unwrap_or(i32::MAX),
            error_code: run.error_code,
            logs: RedactedJson::of(&run.logs).into_string(),
            created_us: run.created_at.0,
            automation_id: run.automation_id.map(|id| id.to_string()),
        }
    }

    /// Inserts the row. Called once for each run, in the transaction that ends its turn.
    pub(crate) fn insert(&self, tx: &mut WriteTx<'_>) -> Result<(), StoreError> {
        tx.rows += diesel::insert_into(automation_runs::table).values(self).execute(tx.connection)?;
        Ok(())
    }

    pub(crate) fn read(self) -> Result<AutomationRunItem, StoreError> {
        let key = columns::workspace_key(self.installation_id, self.workspace_id)?;
        Ok(AutomationRunItem {
            run_id: columns::parse(&self.run_id, "automation_runs.run_id")?,
            installation_id: key.installation_id,
            workspace_id: key.workspace_id,
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
            duration_ms: columns::unsigned(self.duration_ms),
            attempts: u32::try_from(self.attempts).unwrap_or(0),
            error_code: self.error_code,
            logs: columns::json_or_null(&self.logs),
            created_at: Timestamp(self.created_us),
            automation_id: self
                .automation_id
                .map(|id| columns::parse(&id, "automation_runs.automation_id"))
                .transpose()?,
        })
    }
}
