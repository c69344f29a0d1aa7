//! Calls for operators: migrations of fleets, runs of automation, tokens, and webhook deliveries.

use serde_json::{Value, json};

use super::{
    api::{ApiClient, CALL_TIMEOUT, Download},
    error::ClientError,
    requests::Page,
};

impl ApiClient {
    /// Starts a migration of a fleet. After `Lost` it may have started.
    pub(crate) async fn start_migration(&self, body: &Value) -> Result<Value, ClientError> {
        self.post(&["acp", "migrations"], body, Some(CALL_TIMEOUT)).await
    }

    pub(crate) async fn migrations(&self, query: &Value) -> Result<Page, ClientError> {
        self.get(&["acp", "migrations"], query).await
    }

    pub(crate) async fn migration(&self, id: &str) -> Result<Value, ClientError> {
        self.get(&["acp", "migrations", id], &json!({})).await
    }

    /// Changes a migration: `pause`, `resume`, `cancel` or `rollback`.
    pub(crate) async fn change_migration(&self, id: &str, verb: &str, body: &Value) -> Result<Value, ClientError> {
        self.post(&["acp", "migrations", id, verb], body, Some(CALL_TIMEOUT)).await
    }

    pub(crate) async fn automation_runs(&self, query: &Value) -> Result<Page, ClientError> {
        self.get(&["acp", "automation"], query).await
    }

    /// Deliveries of GitHub that started turns.
    pub(crate) async fn automation_triggers(&self, query: &Value) -> Result<Page, ClientError> {
        self.get(&["acp", "automation", "triggers"], query).await
    }

    pub(crate) async fn automation_run(&self, id: &str) -> Result<Value, ClientError> {
        self.get(&["acp", "automation", id], &json!({})).await
    }

    /// Begins another attempt of a run. A repeat while it runs is refused.
    pub(crate) async fn retry_automation(&self, id: &str, body: &Value) -> Result<Value, ClientError> {
        self.post(&["acp", "automation", id, "retry"], body, Some(CALL_TIMEOUT)).await
    }

    /// Opens the kept commit of a run: `bundle` or `patch`.
    pub(crate) async fn automation_rescue(&self, id: &str, format: &str) -> Result<Download, ClientError> {
        self.download(&["acp", "automation", id, "rescue"], &json!({"format": format})).await
    }

    /// Makes a token. After `Lost` it may exist, and its text is lost.
    pub(crate) async fn create_token(&self, body: &Value) -> Result<Value, ClientError> {
        self.post(&["acp", "tokens"], body, Some(CALL_TIMEOUT)).await
    }

    pub(crate) async fn tokens(&self, query: &Value) -> Result<Page, ClientError> {
        self.get(&["acp", "tokens"], query).await
    }

    /// Revokes a token. Safe to repeat.
    pub(crate) async fn revoke_token(&self, id: &str) -> Result<Value, ClientError> {
        self.delete(&["acp", "tokens", id]).await
    }

    /// Limits and ceilings of a tenant, and its use now.
    pub(crate) async fn tenant(&self, tenant: &str) -> Result<Value, ClientError> {
        self.get(&["acp", "tenants", tenant], &json!({})).await
    }

    /// Changes limits and ceilings of a tenant. Idempotent.
    pub(crate) async fn change_tenant(&self, tenant: &str, body: &Value) -> Result<Value, ClientError> {
        self.put(&["acp", "tenants", tenant], body).await
    }

    pub(crate) async fn webhook_deliveries(&self, query: &Value) -> Result<Page, ClientError> {
        self.get(&["acp", "webhooks", "deliveries"], query).await
    }

    pub(crate) async fn replay_delivery(&self, id: &str) -> Result<Value, ClientError> {
        self.post(&["acp", "webhooks", "deliveries", id, "replay"], &json!({}), Some(CALL_TIMEOUT)).await
    }

    /// Replays all deliveries that were given up.
    pub(crate) async fn replay_dead_deliveries(&self) -> Result<Value, ClientError> {
        self.post(&["acp", "webhooks", "deliveries", "replay"], &json!({}), Some(CALL_TIMEOUT)).await
    }
}
