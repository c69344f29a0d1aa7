DROP TABLE webhook_deliveries;
DROP TABLE notification_tickets;
DROP TABLE notification_reads;
DROP TABLE notifications;
DROP TABLE notification_streams;
DROP TABLE identity;

CREATE TABLE notifications (
    notification_id TEXT NOT NULL PRIMARY KEY,
    installation_id TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    session_id TEXT,
    seq BIGINT NOT NULL,
    title TEXT NOT NULL,
    body TEXT NOT NULL,
    severity TEXT NOT NULL CHECK (severity IN ('info', 'warning', 'error')),
    trigger TEXT NOT NULL,
    auto_dismiss_ms BIGINT NOT NULL CHECK (auto_dismiss_ms >= 0),
    cause_id TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    delivered_us BIGINT
);

CREATE INDEX notifications_by_age ON notifications (created_us, notification_id);
CREATE INDEX notifications_by_tenant ON notifications (installation_id, created_us, notification_id);
CREATE INDEX notifications_by_workspace
    ON notifications (installation_id, workspace_id, created_us, notification_id);
CREATE INDEX notifications_by_session ON notifications (session_id, created_us, notification_id);
CREATE INDEX notifications_undelivered ON notifications (created_us) WHERE delivered_us IS NULL;
