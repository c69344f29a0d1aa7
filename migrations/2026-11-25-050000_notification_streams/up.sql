-- Toasts in sequences that a reader can resume, who has read them, and what is posted to webhooks.

-- Names this database: a cursor of another one is worth nothing here. It has one row, which the first start makes.
CREATE TABLE identity (
    one BOOLEAN NOT NULL PRIMARY KEY CHECK (one),
    epoch TEXT NOT NULL
);

-- A transaction that adds a toast holds its stream's row until it commits: numbers appear in their order.
CREATE TABLE notification_streams (
    stream TEXT NOT NULL PRIMARY KEY,
    -- The newest number.
    head BIGINT NOT NULL CHECK (head >= 0),
    -- The newest number that was removed because of its age.
    tail BIGINT NOT NULL CHECK (tail >= 0 AND tail <= head)
);

-- Nothing wrote this table yet.
DROP TABLE notifications;

CREATE TABLE notifications (
    notification_id TEXT NOT NULL PRIMARY KEY,
    stream TEXT NOT NULL,
    seq BIGINT NOT NULL CHECK (seq > 0),
    -- Absent where it is for operators.
    installation_id TEXT,
    workspace_id TEXT,
    session_id TEXT,
    user_id TEXT,
    title TEXT NOT NULL,
    body TEXT NOT NULL,
    severity TEXT NOT NULL CHECK (severity IN ('info', 'warning', 'error')),
    trigger TEXT NOT NULL,
    auto_dismiss_ms BIGINT NOT NULL CHECK (auto_dismiss_ms >= 0),
    -- A cause is told once.
    cause_id TEXT NOT NULL UNIQUE,
    created_us BIGINT NOT NULL,
    UNIQUE (stream, seq),
    CHECK ((installation_id IS NULL) = (workspace_id IS NULL))
);

CREATE INDEX notifications_by_age ON notifications (created_us, notification_id);
CREATE INDEX notifications_by_tenant ON notifications (installation_id, created_us, notification_id);
CREATE INDEX notifications_by_workspace
    ON notifications (installation_id, workspace_id, created_us, notification_id);
CREATE INDEX notifications_by_session ON notifications (session_id, created_us, notification_id);

-- Who has read what; an empty user stands for everyone.
CREATE TABLE notification_reads (
    notification_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    read_us BIGINT NOT NULL,
    PRIMARY KEY (notification_id, user_id)
);

-- What opens one WebSocket of a browser, once.
CREATE TABLE notification_tickets (
    ticket_hash TEXT NOT NULL PRIMARY KEY,
    scope TEXT NOT NULL,
    expires_us BIGINT NOT NULL
);

CREATE INDEX notification_tickets_by_age ON notification_tickets (expires_us);

-- Toasts of operators that are posted, an endpoint a row.
CREATE TABLE webhook_deliveries (
    delivery_id TEXT NOT NULL PRIMARY KEY,
    notification_id TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'dead')),
    attempts INTEGER NOT NULL CHECK (attempts >= 0),
    -- When it is to be tried next; one who tries moves it first, so that another one does not.
    next_attempt_us BIGINT NOT NULL,
    last_status INTEGER,
    last_error TEXT,
    created_us BIGINT NOT NULL,
    updated_us BIGINT NOT NULL
);

CREATE INDEX webhook_deliveries_due ON webhook_deliveries (next_attempt_us) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_by_age ON webhook_deliveries (created_us, delivery_id);
CREATE INDEX webhook_deliveries_of ON webhook_deliveries (notification_id);
