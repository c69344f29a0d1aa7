//! Records of the store as they stand in answers.

use serde_json::Value;

use crate::{
    contract::audit::{
        AutomationRunItem, CapacityAlertItem, ConnectionItem, MigrationItem, NotificationItem, RollbackEventItem,
        TransitionItem,
    },
    store::{
        AutomationRunRow, CapacityAlertRow, ConnectionEventRow, ConnectionRow, MigrationRow, NotificationRow,
        RollbackEventRow,
    },
};

/// JSON that was kept; what is none reads as null.
pub(crate) fn kept(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or_default()
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl From<MigrationRow> for MigrationItem {
    fn from(row: MigrationRow) -> Self {
        Self {
            migration_id: row.migration_id,
            run_id: row.run_id,
            installation_id: row.key.installation_id,
            workspace_id: row.key.workspace_id,
            from_protocol: row.from,
            to_protocol: row.to,
            epoch: row.epoch,
            initiated_by: row.initiated_by,
            actor: row.actor,
            trigger: row.trigger,
            reason: row.reason,
            status: row.status,
            metrics: kept(&row.metrics),
            started_at: row.started,
            completed_at: row.completed,
        }
    }
}

impl From<RollbackEventRow> for RollbackEventItem {
    fn from(row: RollbackEventRow) -> Self {
        Self {
            event_id: row.event_id,
            installation_id: row.key.installation_id,
            workspace_id: row.key.workspace_id,
            epoch: row.epoch,
            kind: row.kind,
            trigger: row.trigger,
            reason_code: row.reason_code,
            actor: row.actor,
            reason: row.reason,
            follow_up: row.follow_up,
            metrics: kept(&row.metrics),
            created_at: row.created,
        }
    }
}

impl From<ConnectionEventRow> for TransitionItem {
    fn from(row: ConnectionEventRow) -> Self {
        let health = row.health.as_deref().map_or(Value::Null, kept);
        Self { status: row.status, cause: row.cause, health, at: row.created }
    }
}

impl From<ConnectionRow> for ConnectionItem {
    fn from(row: ConnectionRow) -> Self {
        let began = if row.failure.is_none() { "connected" } else { "error" };
        let transitions: Vec<TransitionItem> = row.events.into_iter().map(TransitionItem::from).collect();
        let measured = transitions.iter().rev().find(|change| !change.health.is_null());
        let (code, detail) = row.failure.map(|failure| (failure.code.as_str(), failure.detail)).unzip();
        Self {
            connection_row_id: row.connection_row_id,
            installation_id: row.key.installation_id,
            workspace_id: row.key.workspace_id,
            session_id: row.session_id,
            connection_id: row.connection_id,
            protocol: row.protocol,
            outcome: if code.is_none() { "connected" } else { "failed" },
            status: transitions.last().map_or_else(|| began.to_owned(), |change| change.status.clone()),
            protocol_version: row.protocol_version,
            agent_name: row.agent_name,
            agent_version: row.agent_version,
            capabilities: row.capabilities.as_deref().map_or(Value::Null, kept),
            error_code: code,
            error_detail: detail,
            handshake_ms: millis(row.handshake),
            is_probe: row.is_probe,
            created_at: row.created,
            health: measured.map_or(Value::Null, |change| change.health.clone()),
            transitions,
        }
    }
}

impl From<AutomationRunRow> for AutomationRunItem {
    fn from(row: AutomationRunRow) -> Self {
        Self {
            run_id: row.run_id,
            installation_id: row.key.installation_id,
            workspace_id: row.key.workspace_id,
            session_id: row.session_id,
            prompt_id: row.prompt_id,
            status: row.status,
            mode: row.mode,
            issue_number: row.issue_number,
            issue_url: row.issue_url,
            pull_request_number: row.pull_request_number,
            pull_request_url: row.pull_request_url,
            branch: row.branch,
            commit_sha: row.commit_sha,
            skip_reason: row.skip_reason,
            skip_detail: row.skip_detail,
            duration_ms: millis(row.took),
            attempts: row.attempts,
            error_code: row.error_code,
            logs: kept(&row.logs),
            created_at: row.created,
        }
    }
}

impl From<CapacityAlertRow> for CapacityAlertItem {
    fn from(row: CapacityAlertRow) -> Self {
        Self {
            event_id: row.event_id,
            alert_id: row.alert_id,
            installation_id: row.installation_id,
            level: row.change.level.as_str(),
            kind: row.change.kind.as_str(),
            taken: row.change.taken,
            limit: row.change.limit,
            created_at: row.created,
        }
    }
}

impl From<NotificationRow> for NotificationItem {
    fn from(row: NotificationRow) -> Self {
        let (installation_id, workspace_id) = row.key.map(|key| (key.installation_id, key.workspace_id)).unzip();
        Self {
            notification_id: row.notification_id,
            installation_id,
            workspace_id,
            session_id: row.session_id,
            user_id: row.user_id,
            stream: row.stream.to_string(),
            seq: row.seq,
            title: row.title,
            body: row.body,
            severity: row.severity.as_str(),
            trigger: row.trigger.as_str(),
            auto_dismiss_ms: millis(row.auto_dismiss),
            cause_id: row.cause_id,
            created_at: row.created,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;
    use crate::{
        contract::audit::csv::TableRow,
        domain::{
            clock::Timestamp,
            ids::{SessionId, WorkspaceKey},
            notify::toast::{Severity, Stream, Trigger},
            routing::Route,
        },
    };

    fn key() -> WorkspaceKey {
        WorkspaceKey { installation_id: "acme".parse().unwrap(), workspace_id: "web".parse().unwrap() }
    }

    fn has_its_columns<T: TableRow>(item: &T) {
        let item = serde_json::to_value(item).unwrap();
        let mut members: Vec<_> = item.as_object().unwrap().keys().map(String::as_str).collect();
        let mut columns = T::COLUMNS.to_vec();
        members.sort_unstable();
        columns.sort_unstable();
        assert_eq!(members, columns);
    }

    fn connection() -> ConnectionRow {
        let event = |status: &str, health: Option<&str>| ConnectionEventRow {
            status: status.into(),
            cause: "why".into(),
            health: health.map(str::to_owned),
            created: Timestamp(2),
        };
        ConnectionRow {
            connection_row_id: Uuid::nil(),
            key: key(),
            session_id: None,
            connection_id: None,
            protocol: Route::Acp,
            protocol_version: Some(1),
            agent_name: None,
            agent_version: None,
            capabilities: Some("{\"loadSession\":true}".into()),
            failure: None,
            handshake: Duration::from_millis(7),
            is_probe: false,
            created: Timestamp(1),
            events: vec![event("degraded", Some("{\"turns\":3}")), event("error", None)],
        }
    }

    #[test]
    fn a_connection_is_as_its_last_change_left_it() {
        let item = ConnectionItem::from(connection());
        assert_eq!((item.status.as_str(), item.outcome), ("error", "connected"));
        assert_eq!(item.health["turns"], 3, "the last figures there are");
        assert_eq!(item.capabilities["loadSession"], true);
        let untouched = ConnectionItem::from(ConnectionRow { events: Vec::new(), ..connection() });
        assert_eq!((untouched.status.as_str(), untouched.health), ("connected", Value::Null));
    }

    #[test]
    fn every_member_is_a_column() {
        has_its_columns(&ConnectionItem::from(connection()));
        has_its_columns(&NotificationItem::from(NotificationRow {
            notification_id: Uuid::nil(),
            stream: Stream::Operators,
            key: None,
            session_id: None,
            user_id: None,
            seq: 1,
            title: String::new(),
            body: String::new(),
            severity: Severity::Info,
            trigger: Trigger::Capacity,
            auto_dismiss: Duration::from_secs(10),
            cause_id: String::new(),
            created: Timestamp(1),
        }));
        has_its_columns(&AutomationRunItem::from(AutomationRunRow {
            run_id: Uuid::nil(),
            key: key(),
            session_id: SessionId(Uuid::nil()),
            prompt_id: None,
            status: "skipped".into(),
            mode: "github".into(),
            issue_number: None,
            issue_url: None,
            pull_request_number: None,
            pull_request_url: None,
            branch: None,
            commit_sha: None,
            skip_reason: None,
            skip_detail: None,
            took: Duration::ZERO,
            attempts: 1,
            error_code: None,
            logs: "[]".into(),
            created: Timestamp(1),
        }));
    }
}
